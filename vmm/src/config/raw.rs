//! A config as it was written: known keys, the right kind of value in each, and where each stands.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{quoted, shown};
use super::schema::{self, Key, Kind};
use super::{ConfigError, Origin, Problem};

/// A config file with its overrides. What it holds is known and of the right kind, and not yet inside its limits.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) file: PathBuf,
    values: BTreeMap<(&'static str, &'static str), Written>,
}

/// A value as it was written.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) value: Value,
    pub(super) origin: Origin,
    /// As it is quoted in messages.
    pub(super) shown: String,
}

/// What a key holds.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// TOML's integers are 64 bits wide; what is written may be wider, and is refused as too large where it is read.
    Integer(i128),
    Boolean(bool),
    Text(String),
    List(Vec<String>),
}

impl Raw {
    /// Reads `text`, the contents of `file`.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, file };
        let document = DeTable::parse(text).map_err(|error| source.syntax(&error))?;
        let mut values = BTreeMap::new();
        for (table, body) in in_order(document.get_ref()) {
            let table = source.table(table)?;
            let DeValue::Table(keys) = body.get_ref() else {
                let reason = format!("it must be a table, [{table}]");
                return Err(source.bad(body.span(), table, body, reason));
            };
            for (name, value) in in_order(keys) {
                let key = source.key(table, name)?;
                let Some(read) = Value::of(value.get_ref(), key.kind) else {
                    let reason = format!("it must be {}", key.allowed);
                    return Err(source.bad(name.span(), &key.to_string(), value, reason));
                };
                let written = Written {
                    value: read,
                    origin: source.origin(name.span()),
                    shown: source.shown(value),
                };
                values.insert((key.table, key.name), written);
            }
        }
        Ok(Raw { file: file.to_owned(), values })
    }

    /// Lays `table.key=value` over what the file says. An empty value takes the key out again.
    pub(super) fn set(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let fail = |key: Option<String>, problem| ConfigError {
            file: self.file.clone(),
            origin: Origin::Flag,
            key,
            problem,
        };
        let Some((path, text)) = assignment.split_once('=') else {
            return Err(fail(None, Problem::NotAnAssignment(shown(assignment))));
        };
        let (table, name) = path.trim().split_once('.').unwrap_or(("", path.trim()));
        let Some(key) = schema::find(table, name) else {
            let problem = match schema::TABLES.contains(&table) {
                true => unknown_key(table, name),
                false => unknown_path(name),
            };
            return Err(fail(Some(shown(path.trim())), problem));
        };
        if text.is_empty() {
            self.values.remove(&(key.table, key.name));
            return Ok(());
        }
        let value = Value::of_flag(text, key.kind).ok_or_else(|| {
            let value = quoted(text);
            let reason = format!("it must be {}", key.allowed);
            fail(Some(key.to_string()), Problem::BadValue { value, reason })
        })?;
        let written = Written { value, origin: Origin::Flag, shown: quoted(text) };
        self.values.insert((key.table, key.name), written);
        Ok(())
    }

    /// What is written for `key`.
    pub(super) fn get(&self, key: &Key) -> Option<&Written> {
        self.values.get(&(key.table, key.name))
    }

    /// The error that `key` has what is written in it, and why that will not do.
    pub(super) fn bad(
        &self,
        key: &Key,
        written: &Written,
        reason: impl Into<String>,
    ) -> ConfigError {
        ConfigError {
            file: self.file.clone(),
            origin: written.origin,
            key: Some(key.to_string()),
            problem: Problem::BadValue { value: written.shown.clone(), reason: reason.into() },
        }
    }
}

impl Value {
    /// What `value` is, if it is of the kind that a key takes.
    fn of(value: &DeValue<'_>, kind: Kind) -> Option<Self> {
        match (value, kind) {
            (DeValue::Integer(n), Kind::Integer | Kind::Size | Kind::IntegerOrText) => {
                // Wider than 128 bits is as wrong as the widest.
                let n = i128::from_str_radix(n.as_str(), n.radix()).unwrap_or(i128::MAX);
                Some(Value::Integer(n))
            }
            (DeValue::Boolean(b), Kind::Boolean) => Some(Value::Boolean(*b)),
            (
                DeValue::String(s),
                Kind::Text | Kind::Size | Kind::IntegerOrText | Kind::TextOrList,
            ) => Some(Value::Text(s.to_string())),
            (DeValue::Array(items), Kind::List | Kind::TextOrList) => items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .map(Value::List),
            _ => None,
        }
    }

    /// The same for the text behind `--set table.key=`, where the shell has eaten the quotes: a text is taken as it is, a
    /// list is TOML's or goes by commas.
    fn of_flag(text: &str, kind: Kind) -> Option<Self> {
        match kind {
            Kind::Integer | Kind::Boolean => Value::of(DeValue::parse(text).ok()?.get_ref(), kind),
            Kind::IntegerOrText if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                Value::of(DeValue::parse(text).ok()?.get_ref(), kind)
            }
            Kind::List | Kind::TextOrList if text.starts_with('[') => {
                Value::of(DeValue::parse(text).ok()?.get_ref(), kind)
            }
            Kind::List => Some(Value::List(text.split(',').map(str::to_owned).collect())),
            Kind::TextOrList if text.starts_with('-') => {
                Some(Value::List(text.split(',').map(str::to_owned).collect()))
            }
            Kind::Text | Kind::Size | Kind::IntegerOrText | Kind::TextOrList => {
                Some(Value::Text(text.to_owned()))
            }
        }
    }
}

/// The entries of a table from top to bottom: the first mistake is the one that is reported.
fn in_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// The file as text, to say where in it something stands.
struct Source<'a> {
    text: &'a str,
    file: &'a Path,
}

impl Source<'_> {
    fn fail(&self, span: Range<usize>, key: Option<String>, problem: Problem) -> ConfigError {
        ConfigError { file: self.file.to_owned(), origin: self.origin(span), key, problem }
    }

    fn table(
        &self,
        name: &Spanned<std::borrow::Cow<'_, str>>,
    ) -> Result<&'static str, ConfigError> {
        let text: &str = name.get_ref();
        schema::TABLES
            .into_iter()
            .find(|&table| table == text)
            .ok_or_else(|| self.fail(name.span(), Some(shown(text)), unknown_path(text)))
    }

    fn key(
        &self,
        table: &'static str,
        name: &Spanned<std::borrow::Cow<'_, str>>,
    ) -> Result<&'static Key, ConfigError> {
        let text: &str = name.get_ref();
        schema::find(table, text).ok_or_else(|| {
            let key = shown(&format!("{table}.{text}"));
            self.fail(name.span(), Some(key), unknown_key(table, text))
        })
    }

    fn bad(
        &self,
        span: Range<usize>,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        reason: String,
    ) -> ConfigError {
        let value = self.shown(value);
        self.fail(span, Some(key.to_owned()), Problem::BadValue { value, reason })
    }

    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or(0..0);
        if error.message() == "duplicate key" {
            let name = self.text.get(span.clone()).unwrap_or_default();
            return self.fail(span, Some(shown(name)), Problem::Duplicate);
        }
        let (_, column) = self.position(span.start);
        let reason = error.message().replace('\n', ", ");
        self.fail(span, None, Problem::Syntax { column, reason })
    }

    /// A value as the file spells it.
    fn shown(&self, value: &Spanned<DeValue<'_>>) -> String {
        match value.get_ref() {
            DeValue::String(text) => quoted(text),
            // The span of a `[table]` is its header alone, and that of a dotted one its key.
            DeValue::Table(_) => "a table".to_owned(),
            _ => shown(self.text.get(value.span()).unwrap_or_default()),
        }
    }

    fn origin(&self, span: Range<usize>) -> Origin {
        let (line, column) = self.position(span.start);
        Origin::File { line, column }
    }

    /// Line and column of a byte, from 1. A byte behind the end or inside a character counts as the one before it.
    fn position(&self, mut at: usize) -> (u32, u32) {
        at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &self.text[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.matches('\n').count();
        let column = 1 + before[line_start..].chars().count();
        // A config is at most 1 MiB long.
        (line as u32, column as u32)
    }
}

/// `name` is no key of `table`.
fn unknown_key(table: &str, name: &str) -> Problem {
    let names = schema::keys_of(table).map(|key| key.name);
    Problem::Unknown {
        hint: schema::closest(name, names.clone()).map(|name| format!("{table}.{name}")),
        allowed: format!("[{table}] takes {}", schema::listed(names, "and")),
    }
}

/// `name` stands where a table should. It may be a key that has lost its table.
fn unknown_path(name: &str) -> Problem {
    let key = schema::KEYS.iter().find(|key| key.name == name);
    let table = || schema::closest(name, schema::TABLES).map(|table| format!("[{table}]"));
    Problem::Unknown {
        hint: key.map(Key::to_string).or_else(table),
        allowed: format!("the tables are {}", schema::listed(schema::TABLES, "and")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Raw::parse(text, Path::new("x.toml")).unwrap_err().to_string()
    }

    fn flag_error(assignment: &str) -> String {
        let mut raw = Raw::parse("", Path::new("x.toml")).unwrap();
        raw.set(assignment).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_mistake_names_line_key_and_what_is_allowed() {
        for (text, says) in [
            (
                "[machine]\nvcpu = 1",
                "x.toml:2: machine.vcpu is unknown (did you mean machine.vcpus?): \
                 [machine] takes vcpus, irqchip, unclaimed and cpu",
            ),
            (
                "\n[memroy]\nsize = 1",
                "x.toml:2: memroy is unknown (did you mean [memory]?): \
                 the tables are machine, memory, collapse, dedup, boot, console and control",
            ),
            (
                "vcpus = 2",
                "x.toml:1: vcpus is unknown (did you mean machine.vcpus?): \
                 the tables are machine, memory, collapse, dedup, boot, console and control",
            ),
            (
                "[machine]\nvcpus = \"two\"",
                "x.toml:2: machine.vcpus is \"two\": it must be an integer from 1 to 8",
            ),
            (
                "[machine]\nvcpus = 1.5",
                "x.toml:2: machine.vcpus is 1.5: it must be an integer from 1 to 8",
            ),
            ("[[memory]]", "x.toml:1: memory is [[memory]]: it must be a table, [memory]"),
            ("memory = 3", "x.toml:1: memory is 3: it must be a table, [memory]"),
            ("[boot.unpack]", "x.toml:1: boot.unpack is a table: it must be true or false"),
            (
                "[machine]\nvcpus = 1\nirqchip = \"none\"\nvcpus = 2",
                "x.toml:4: vcpus is set twice: remove one of the two",
            ),
        ] {
            assert_eq!(error(text), says);
        }
    }

    #[test]
    fn what_is_not_toml_is_told_by_line_and_column() {
        let error = error("[machine]\nvcpus = = 1");
        assert!(error.starts_with("x.toml:2: column 9: this is not TOML: "), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn the_topmost_mistake_is_reported() {
        assert!(error("[memory]\nzzz = 1\n[boot]\naaa = 1").contains(":2: memory.zzz"));
    }

    #[test]
    fn flags_are_checked_like_the_file_and_named_in_errors() {
        for (assignment, says) in [
            ("memory.size", "--set: \"memory.size\" is not of the form table.key=value"),
            (
                "memory.sise=1M",
                "--set: memory.sise is unknown (did you mean memory.size?): \
                 [memory] takes size, template, pool, backing, pages, fault_threads and guard",
            ),
            (
                "size=1M",
                "--set: size is unknown (did you mean memory.size?): \
                 the tables are machine, memory, collapse, dedup, boot, console and control",
            ),
            (
                "machine.vcpus=two",
                "--set: machine.vcpus is \"two\": it must be an integer from 1 to 8",
            ),
        ] {
            assert_eq!(flag_error(assignment), says);
        }
    }

    #[test]
    fn a_flag_replaces_and_an_empty_one_takes_out() {
        let mut raw = Raw::parse("[boot]\ncmdline = \"a\"", Path::new("x.toml")).unwrap();
        raw.set("boot.cmdline=b=c").unwrap();
        let written = raw.get(&schema::CMDLINE).unwrap();
        assert!(matches!(&written.value, Value::Text(text) if text == "b=c"));
        assert_eq!(written.origin, Origin::Flag);
        raw.set("boot.cmdline=").unwrap();
        assert!(raw.get(&schema::CMDLINE).is_none());
    }

    #[test]
    fn lists_on_the_command_line_go_by_commas_or_as_toml() {
        for text in ["machine.cpu=-cx16,-avx", "machine.cpu=[\"-cx16\", '-avx']"] {
            let mut raw = Raw::parse("", Path::new("x.toml")).unwrap();
            raw.set(text).unwrap();
            let written = raw.get(&schema::CPU).unwrap();
            assert!(matches!(&written.value, Value::List(l) if l == &["-cx16", "-avx"]));
        }
    }

    #[test]
    fn columns_count_characters() {
        let source = Source { text: "# ü\nüb = 1", file: Path::new("") };
        assert_eq!(source.position(5), (2, 1));
        assert_eq!(source.position(7), (2, 2));
        assert_eq!(source.position(6), (2, 1), "inside a character");
        assert_eq!(source.position(999), (2, 7));
    }
}
