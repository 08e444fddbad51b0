//! The promises page is true: every promise names what keeps it, and that is there. So is whatever else a document links to.
//!
//! A row of `guest_mm/docs/promises.md` is `| promise | links |`. A link's label is a test function of the file that it
//! leads to, or, in quotes, a text of that file: a benchmark's row, or the message of an assertion at compile time.

use std::path::{Path, PathBuf};

use tests::tree;

/// The page, from the root of the repository.
const PAGE: &str = "guest_mm/docs/promises.md";

/// Tests of other crates that the monitor's manifest has to name, or they are never built.
const END_TO_END: &str = "tests/e2e/";
const MANIFEST: &str = "vmm/Cargo.toml";

/// A Markdown link.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    label: String,
    /// As written, without the `#…` behind it.
    target: String,
}

/// A row of the page.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    line: usize,
    says: String,
    kept_by: Vec<Link>,
}

/// The links of a Markdown text: `[label](target)`.
fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("](") {
        let (before, behind) = (&text[..at], &text[at + 2..]);
        let (Some(open), Some(close)) = (before.rfind('['), behind.find(')')) else { continue };
        let target = behind[..close].split('#').next().unwrap_or_default();
        let label = before[open + 1..].trim_matches('`');
        found.push(Link { label: label.to_owned(), target: target.to_owned() });
    }
    found
}

/// The rows of the page, heads and rulers left out.
fn promises(page: &str) -> Vec<Promise> {
    let rows = page.lines().enumerate().filter_map(|(at, line)| {
        let cells = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let (says, kept_by) = cells.rsplit_once(" | ")?;
        (says != "promise").then(|| Promise {
            line: at + 1,
            says: says.to_owned(),
            kept_by: links(kept_by),
        })
    });
    rows.collect()
}

/// What is wrong with `label` as something that the source `text` holds.
fn missing(label: &str, text: &str) -> Option<String> {
    if let Some(quoted) = label.strip_prefix('"') {
        let there = text.contains(&format!("\"{}\"", quoted.trim_end_matches('"')));
        return (!there).then(|| format!("has no text {label}"));
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let start = format!("fn {label}(");
    let Some(at) = lines.iter().position(|line| line.starts_with(&start)) else {
        return Some(format!("has no function {label}"));
    };
    // From the function up: its attributes, and what is written between them.
    let above = lines[..at].iter().rev();
    let attributes: Vec<&&str> =
        above.take_while(|line| line.starts_with("#[") || line.starts_with("//")).collect();
    if attributes.iter().any(|line| line.starts_with("#[ignore")) {
        Some(format!("has the test {label}, which is ignored"))
    } else if attributes.contains(&&"#[test]") {
        None
    } else {
        Some(format!("has {label}, which is no test"))
    }
}

/// A path without its `..`, so that it can be compared.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        if part.as_os_str() == ".." {
            plain.pop();
        } else {
            plain.push(part);
        }
        plain
    })
}

/// What is wrong with the page, one sentence each. `read` gives the text of a file, named from the root, if it is there.
fn broken(page: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let folder = Path::new(PAGE).parent().unwrap_or(Path::new(""));
    let mut wrong = Vec::new();
    for promise in promises(page) {
        let mut say = |what: String| wrong.push(format!("{PAGE}:{}: {what}", promise.line));
        if promise.kept_by.is_empty() {
            say(format!("nothing keeps {:?}", promise.says));
        }
        for Link { label, target } in &promise.kept_by {
            let path = plain(&folder.join(target)).display().to_string();
            match read(&path) {
                None => say(format!("{path} is not there")),
                Some(text) => {
                    missing(label, &text)
                        .into_iter()
                        .for_each(|what| say(format!("{path} {what}")));
                }
            }
            let built = read(MANIFEST).is_some_and(|manifest| manifest.contains(&path));
            if path.starts_with(END_TO_END) && !built {
                say(format!("{path} is not a test of {MANIFEST}, so it never runs"));
            }
        }
    }
    wrong
}

#[test]
fn every_promise_is_kept_by_something_that_is_there() {
    let root = tree::root();
    let page = tree::text(&root.join(PAGE));
    let wrong = broken(&page, |path| std::fs::read_to_string(root.join(path)).ok());
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert!(promises(&page).len() > 20, "the page is read as it is written");
}

#[test]
fn what_is_not_kept_is_noticed() {
    let source = "#[test]\n#[should_panic(expected = \"x\")]\nfn holds() {\n}\n\nfn helper() {}\n\n\
                  #[test]\n#[ignore]\nfn sleeps() {}\nRow::alone(\"a row\", 1.0);\n";
    let read = |path: &str| match path {
        "guest_mm/src/a.rs" | "tests/e2e/b.rs" | "tests/e2e/c.rs" => Some(source.to_owned()),
        MANIFEST => Some("path = \"../tests/e2e/b.rs\"".to_owned()),
        _ => None,
    };
    let check = |kept_by: &str| {
        let page = format!("| promise | kept by |\n|---|---|\n| a \\| b | {kept_by} |\n");
        broken(&page, read)
    };
    for (kept_by, says) in [
        ("somebody", "nothing keeps"),
        ("[`holds`](../src/z.rs)", "guest_mm/src/z.rs is not there"),
        ("[`hold`](../src/a.rs)", "has no function hold"),
        ("[`helper`](../src/a.rs)", "is no test"),
        ("[`sleeps`](../src/a.rs)", "is ignored"),
        ("[\"a ro\"](../src/a.rs)", "has no text"),
        ("[`holds`](../../tests/e2e/c.rs)", "never runs"),
    ] {
        let wrong = check(kept_by);
        assert!(wrong.len() == 1 && wrong[0].contains(says), "{kept_by}: {wrong:?}");
        assert!(wrong[0].starts_with("guest_mm/docs/promises.md:3: "), "{wrong:?}");
    }
    let kept = "[`holds`](../src/a.rs), [\"a row\"](../src/a.rs), [`holds`](../../tests/e2e/b.rs)";
    assert_eq!(check(kept), Vec::<String>::new());
}

#[test]
fn links_of_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    let documents = tree::files(&tree::root());
    for document in documents.iter().filter(|path| path.extension().is_some_and(|e| e == "md")) {
        let folder = document.parent().expect("a file lies in a folder");
        for Link { target, .. } in links(&tree::text(document)) {
            let elsewhere = target.is_empty() || target.contains("://");
            if !elsewhere && !folder.join(&target).exists() {
                wrong.push(format!("{}: {target} is not there", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
