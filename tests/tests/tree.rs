//! Rules that every file of the repository keeps.

use std::path::Path;

use tests::tree;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 5] = ["utils", "util", "common", "helpers", "misc"];

/// Lines of a Rust source, its tests not counted.
const LONGEST: usize = 450;

/// Put together here so that this file does not hold what it looks for.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Kinds of files with code in them.
const CODE: [&str; 6] = ["rs", "toml", "sh", "s", "S", "ld"];

fn shown(path: &Path) -> String {
    let root = tree::root();
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|text| text.to_str()).unwrap_or_default()
}

/// Fails with one line for each of `wrong`.
fn assert_none(rule: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{rule}:\n{}\n", wrong.join("\n"));
}

#[test]
fn names_say_what_is_inside() {
    let wrong: Vec<String> = tree::files(&tree::root())
        .iter()
        .map(|path| shown(path))
        .filter(|path| {
            let mut parts = path.split('/').map(|part| part.split('.').next().unwrap_or(part));
            parts.any(|part| EMPTY_NAMES.contains(&part))
        })
        .collect();
    assert_none("name these after the one thing they hold", &wrong);
}

#[test]
fn sources_are_short() {
    let wrong: Vec<String> = tree::sources(&tree::root())
        .iter()
        .filter_map(|path| {
            let lines = lines_without_tests(&tree::text(path));
            (lines > LONGEST).then(|| format!("{}: {lines} lines", shown(path)))
        })
        .collect();
    assert_none(&format!("split what is longer than {LONGEST} lines"), &wrong);
}

/// Lines up to the tests at the end of the file.
fn lines_without_tests(source: &str) -> usize {
    let lines: Vec<&str> = source.lines().collect();
    lines
        .windows(2)
        .position(|pair| {
            pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{')
        })
        .unwrap_or(lines.len())
}

#[test]
fn nothing_is_left_unfinished() {
    let mut wrong = Vec::new();
    for path in tree::files(&tree::root()) {
        if !CODE.contains(&extension(&path)) {
            continue;
        }
        for (at, line) in tree::text(&path).lines().enumerate() {
            // As a word: a CPUID leaf or a hash may hold the letters.
            let mut words = line.split(|c: char| !c.is_alphanumeric());
            if words.any(|word| UNFINISHED.contains(&word)) {
                wrong.push(format!("{}:{}: {}", shown(&path), at + 1, line.trim()));
            }
        }
    }
    assert_none("do these or drop them", &wrong);
}

/// A crate in the workspace inherits its lints; one outside of it (a bare-metal guest) has a table of its own.
#[test]
fn every_crate_is_linted() {
    let root = tree::root();
    let wrong: Vec<String> = tree::files(&root)
        .iter()
        .filter(|path| path.ends_with("Cargo.toml") && path.parent() != Some(&root))
        .filter(|path| {
            let manifest = tree::text(path);
            let inherits = manifest.contains("[lints]\nworkspace = true");
            let own = manifest.contains("\n[lints.rust]") && manifest.contains("\n[workspace]");
            !inherits && !own
        })
        .map(|path| shown(path))
        .collect();
    assert_none("give these [lints] workspace = true", &wrong);
}
