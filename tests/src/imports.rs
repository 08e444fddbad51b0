//! Which modules a Rust source names: a scan of its text, enough to hold a layout to its rules and no more.
//!
//! Paths are seen wherever they stand, in `use` or in an expression. Code under `#[cfg(test)]` is left out. Paths that a
//! macro puts together are not seen.

use std::collections::BTreeSet;
use std::path::Path;

/// A module that a source names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Import {
    /// A top-level module (or item) of the same crate.
    Module(String),
    /// Another crate.
    Crate(String),
}

/// The module path of a source below a crate's `src`: `fault/mod.rs` is `[fault]`, `lib.rs` is `[]`.
pub fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> = file
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    let last = path.last().map(String::as_str);
    if last == Some("mod") || (path.len() == 1 && matches!(last, Some("lib" | "main"))) {
        path.pop();
    }
    path
}

/// What `source`, the module at `module`, names: of its own crate, and of `crates`.
pub fn imports(source: &str, module: &[String], crates: &[&str]) -> BTreeSet<Import> {
    let tokens = tokens(source);
    let mut scan = Scan { tokens: &tokens, module, inline: Vec::new(), found: BTreeSet::new() };
    scan.run(crates);
    scan.found
}

struct Scan<'a> {
    tokens: &'a [String],
    module: &'a [String],
    /// The brace depths at which inline modules were opened.
    inline: Vec<usize>,
    found: BTreeSet<Import>,
}

impl Scan<'_> {
    fn run(&mut self, crates: &[&str]) {
        let (mut at, mut depth) = (0, 0);
        while at < self.tokens.len() {
            if self.matches(at, &["#", "[", "cfg", "(", "test", ")", "]"]) {
                at = self.skip_item(at + 7);
                continue;
            }
            match self.token(at) {
                "{" => depth += 1,
                "}" => {
                    if self.inline.last() == Some(&depth) {
                        self.inline.pop();
                    }
                    depth = depth.saturating_sub(1);
                }
                "mod" if self.token(at + 2) == "{" => self.inline.push(depth + 1),
                // The middle of a path says nothing about where it starts.
                _ if at > 0 && self.token(at - 1) == "::" => {}
                "crate" if self.token(at + 1) == "::" => self.heads(at + 2),
                "super" if self.token(at + 1) == "::" => self.upwards(at),
                name if crates.contains(&name) && self.token(at + 1) == "::" => {
                    self.found.insert(Import::Crate(name.to_owned()));
                }
                _ => {}
            }
            at += 1;
        }
    }

    fn token(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", String::as_str)
    }

    fn matches(&self, at: usize, pattern: &[&str]) -> bool {
        (0..pattern.len()).all(|i| self.token(at + i) == pattern[i])
    }

    /// `super::super::…`: a top-level module, if it gets as far as the crate's root.
    fn upwards(&mut self, mut at: usize) {
        let mut steps = 0;
        while self.token(at) == "super" && self.token(at + 1) == "::" {
            steps += 1;
            at += 2;
        }
        if steps == self.module.len() + self.inline.len() {
            self.heads(at);
        }
    }

    /// The first names of a path, or of each path of a `{…}` group.
    fn heads(&mut self, at: usize) {
        if self.token(at) != "{" {
            self.module_named(at);
            return;
        }
        let mut depth = 0;
        for i in at..self.tokens.len() {
            match self.token(i) {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ if depth == 1 && matches!(self.token(i - 1), "{" | ",") => self.module_named(i),
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn module_named(&mut self, at: usize) {
        let name = self.token(at).to_owned();
        self.found.insert(Import::Module(name));
    }

    /// The first token behind the item at `at`: behind its `;`, or behind its braces.
    fn skip_item(&self, at: usize) -> usize {
        let mut depth = 0;
        for i in at..self.tokens.len() {
            match self.token(i) {
                ";" if depth == 0 => return i + 1,
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => continue,
            }
            if depth == 0 && self.token(i) == "}" {
                return i + 1;
            }
        }
        self.tokens.len()
    }
}

/// Identifiers, `::`, and single other characters; comments, strings and white space left out.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let starts = |at: usize, text: &str| {
        text.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c))
    };
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if starts(at, "//") {
            at = (at..chars.len()).find(|&i| chars[i] == '\n').unwrap_or(chars.len());
        } else if starts(at, "/*") {
            at = behind_block_comment(&chars, at);
        } else if let Some(behind) = behind_raw_string(&chars, at) {
            at = behind;
        } else if c == '"' {
            at = behind_quoted(&chars, at, '"');
        } else if c == '\''
            && (chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\''))
        {
            at = behind_quoted(&chars, at, '\'');
        } else if starts(at, "::") {
            tokens.push("::".to_owned());
            at += 2;
        } else if c.is_alphanumeric() || c == '_' {
            let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
            let word: String = chars[at..].iter().copied().take_while(is_word).collect();
            at += word.chars().count();
            tokens.push(word);
        } else {
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
            at += 1;
        }
    }
    tokens
}

fn behind_quoted(chars: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn behind_block_comment(chars: &[char], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < chars.len() {
        match chars.get(at..at + 2) {
            Some(['/', '*']) => (depth, at) = (depth + 1, at + 2),
            Some(['*', '/']) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The place behind `r"…"` or `r#"…"#` that starts at `start`, if one does.
fn behind_raw_string(chars: &[char], start: usize) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    // `br"…"` comes here at its `r`, so a `b` in front is no word.
    let in_word = start > 0 && is_word(chars[start - 1]);
    if chars[start] != 'r' || in_word {
        return None;
    }
    let hashes = chars[start + 1..].iter().take_while(|&&c| c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes =
        |at: usize| chars[at] == '"' && (1..=hashes).all(|i| chars.get(at + i) == Some(&'#'));
    let close = (open + 1..chars.len()).find(|&at| closes(at))?;
    Some(close + 1 + hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(source: &str, module: &[&str]) -> Vec<String> {
        let module: Vec<String> = module.iter().map(|&part| part.to_owned()).collect();
        imports(source, &module, &["vmm"])
            .into_iter()
            .map(|import| match import {
                Import::Module(name) => name,
                Import::Crate(name) => format!("{name}!"),
            })
            .collect()
    }

    #[test]
    fn paths_are_seen_in_use_and_in_code() {
        let source =
            "use crate::{pool::Pool, table::{self, walk}, addr}; fn f() { crate::fault::go() }";
        assert_eq!(modules(source, &["pin"]), ["addr", "fault", "pool", "table"]);
        assert_eq!(modules("use vmm::config; use vmm_sys_util::x;", &["a"]), ["vmm!"]);
    }

    #[test]
    fn super_counts_when_it_reaches_the_root() {
        assert_eq!(modules("use super::{pin, pool::X};", &["fault"]), ["pin", "pool"]);
        assert!(modules("use super::helper;", &["fault", "model"]).is_empty());
        assert_eq!(modules("use super::super::pin;", &["fault", "model"]), ["pin"]);
        let inline = "mod a { use super::b; fn f() {} } use super::c;";
        assert_eq!(modules(inline, &["fault"]), ["c"]);
    }

    #[test]
    fn tests_comments_and_strings_are_not_code() {
        let source = r##"
            //! crate::a
            /* crate::b /* nested */ crate::b */
            const S: &str = "crate::c \" crate::c";
            const R: &str = r#"crate::d"#;
            const Q: char = '"';
            #[cfg(test)]
            mod tests { use crate::e; fn f(x: [u8; 2]) {} }
            #[cfg(test)]
            use crate::g;
            use crate::f;
        "##;
        assert_eq!(modules(source, &["x"]), ["f"]);
    }

    #[test]
    fn files_are_modules() {
        for (file, path) in [
            ("lib.rs", &[][..]),
            ("main.rs", &[]),
            ("addr.rs", &["addr"]),
            ("fault/mod.rs", &["fault"]),
            ("fault/main.rs", &["fault", "main"]),
        ] {
            assert_eq!(module_path(Path::new(file)), path, "{file}");
        }
    }
}
