//! The file as text: where in it something stands, and what does not belong there.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Value, Written};
use crate::config::devices::Family;
use crate::config::error::{quoted, shown};
use crate::config::schema::{self, Key};
use crate::config::{ConfigError, Origin, Problem};

/// The name of a table or a key.
pub(super) type Name<'i> = Spanned<Cow<'i, str>>;

/// What it stands for.
pub(super) type Body<'i> = Spanned<DeValue<'i>>;

/// Characters of a device's name.
const LONGEST_NAME: usize = 32;

/// The entries of a table from top to bottom: the first mistake is the one that is reported.
pub(super) fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Name<'i>, &'a Body<'i>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

/// The tables of a document from top to bottom, those of devices each where it stands, with its family.
pub(super) fn tables<'a, 'i>(
    document: &'a DeTable<'i>,
) -> Vec<(Option<Family>, &'a Name<'i>, &'a Body<'i>)> {
    let mut tables = Vec::new();
    for (name, body) in document {
        match (Family::named(name.get_ref()), body.get_ref()) {
            (Some(family), DeValue::Table(devices)) if !devices.is_empty() => {
                tables.extend(devices.iter().map(|(name, body)| (Some(family), name, body)));
            }
            _ => tables.push((None, name, body)),
        }
    }
    tables.sort_by_key(|(_, name, _)| name.span().start);
    tables
}

/// The file as text, to say where in it something stands.
pub(super) struct Source<'a> {
    pub(super) text: &'a str,
    pub(super) file: &'a Path,
}

impl Source<'_> {
    fn fail(&self, span: Range<usize>, key: Option<String>, problem: Problem) -> ConfigError {
        ConfigError { file: self.file.to_owned(), origin: self.origin(span), key, problem }
    }

    /// The fixed table of that name.
    pub(super) fn table(
        &self,
        name: &Name<'_>,
        body: &Body<'_>,
    ) -> Result<&'static str, ConfigError> {
        let text: &str = name.get_ref();
        if let Some(family) = Family::named(text) {
            let reason =
                format!("it must be tables with the names of devices, like [{family}.NAME]");
            return Err(self.bad(name.span(), text, body, reason));
        }
        schema::TABLES
            .into_iter()
            .find(|&table| table == text)
            .ok_or_else(|| self.fail(name.span(), Some(shown(text)), unknown_path(text)))
    }

    /// The keys of the table `path`.
    pub(super) fn keys<'b, 'i>(
        &self,
        path: &str,
        name: &Name<'_>,
        body: &'b Body<'i>,
    ) -> Result<&'b DeTable<'i>, ConfigError> {
        match body.get_ref() {
            DeValue::Table(keys) => Ok(keys),
            _ => Err(self.bad(name.span(), path, body, format!("it must be a table, [{path}]"))),
        }
    }

    /// The name of a device of `family`, whose table is to be `body`.
    pub(super) fn device<'n>(
        &self,
        family: Family,
        name: &'n Name<'_>,
        body: &Body<'_>,
    ) -> Result<&'n str, ConfigError> {
        let text: &str = name.get_ref();
        let keys = schema::keys_of(family.as_str()).map(|key| key.name);
        let table = matches!(body.get_ref(), DeValue::Table(_));
        if !table && schema::closest(text, keys).is_some() {
            let key = shown(&format!("{family}.{text}"));
            let reason =
                format!("it must be in a table with the name of a device, like [{family}.NAME]");
            return Err(self.bad(name.span(), &key, body, reason));
        }
        match bad_name(text) {
            None => Ok(text),
            Some(problem) => Err(self.fail(name.span(), Some(family.to_string()), problem)),
        }
    }

    /// The value `value` of the key `name` of the table that is called `path`.
    pub(super) fn value(
        &self,
        (table, path): (&'static str, &str),
        name: &Name<'_>,
        value: &Body<'_>,
    ) -> Result<(&'static Key, Written), ConfigError> {
        let text: &str = name.get_ref();
        let at = shown(&format!("{path}.{text}"));
        let Some(key) = schema::find(table, text) else {
            return Err(self.fail(name.span(), Some(at), unknown_key(table, path, text)));
        };
        let Some(read) = Value::of(value.get_ref(), key.kind) else {
            let reason = format!("it must be {}", key.allowed);
            return Err(self.bad(name.span(), &at, value, reason));
        };
        let (origin, shown) = (self.origin(name.span()), self.shown(value));
        Ok((key, Written { value: read, origin, shown }))
    }

    fn bad(&self, span: Range<usize>, key: &str, value: &Body<'_>, reason: String) -> ConfigError {
        let value = self.shown(value);
        self.fail(span, Some(key.to_owned()), Problem::BadValue { value, reason })
    }

    /// The error that the text is not TOML.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> ConfigError {
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
    fn shown(&self, value: &Body<'_>) -> String {
        match value.get_ref() {
            DeValue::String(text) => quoted(text),
            // The span of a `[table]` is its header alone, and that of a dotted one its key.
            DeValue::Table(_) => "a table".to_owned(),
            _ => shown(self.text.get(value.span()).unwrap_or_default()),
        }
    }

    pub(super) fn origin(&self, span: Range<usize>) -> Origin {
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

/// What is wrong with `name` as that of a device, if something is.
pub(super) fn bad_name(name: &str) -> Option<Problem> {
    let fits = |name: &str| {
        (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    if fits(name) {
        return None;
    }
    let lower = name.to_lowercase();
    let hint = if fits(&lower) { format!(" (try {lower:?})") } else { String::new() };
    Some(Problem::BadName {
        name: quoted(name),
        reason: format!("it must be 1 to {LONGEST_NAME} characters out of a-z, 0-9, - and _{hint}"),
    })
}

/// `name` is no key of `table`, which is called `path`.
pub(super) fn unknown_key(table: &str, path: &str, name: &str) -> Problem {
    let names = schema::keys_of(table).map(|key| key.name);
    Problem::Unknown {
        hint: schema::closest(name, names.clone()).map(|name| format!("{path}.{name}")),
        allowed: format!("[{path}] takes {}", schema::listed(names, "and")),
    }
}

/// `name` stands where a table should. It may be a key that has lost its table.
pub(super) fn unknown_path(name: &str) -> Problem {
    let key = schema::KEYS.iter().find(|key| key.name == name);
    let table = || schema::closest(name, schema::TABLES).map(|table| format!("[{table}]"));
    let families = || Family::ALL.iter().map(|family| family.as_str());
    let family = || schema::closest(name, families()).map(|family| format!("[{family}.NAME]"));
    let named: Vec<String> = families().map(|family| format!("{family}.NAME")).collect();
    Problem::Unknown {
        hint: key.map(Key::to_string).or_else(table).or_else(family),
        allowed: format!(
            "the tables are {}, and for devices {}",
            schema::listed(schema::TABLES, "and"),
            schema::listed(named.iter().map(String::as_str), "and")
        ),
    }
}

/// `path` has three parts, and the first is no family of devices.
pub(super) fn unknown_device(path: &str) -> Problem {
    let (table, rest) = path.split_once('.').unwrap_or((path, ""));
    let meant = schema::closest(table, Family::ALL.iter().map(|family| family.as_str()));
    match (meant, unknown_path(rest)) {
        (Some(family), Problem::Unknown { allowed, .. }) => {
            Problem::Unknown { hint: Some(shown(&format!("{family}.{rest}"))), allowed }
        }
        (_, problem) => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let source = Source { text: "# ü\nüb = 1", file: Path::new("") };
        assert_eq!(source.position(5), (2, 1));
        assert_eq!(source.position(7), (2, 2));
        assert_eq!(source.position(6), (2, 1), "inside a character");
        assert_eq!(source.position(999), (2, 7));
    }
}
