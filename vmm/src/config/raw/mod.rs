//! A config as it was written: known keys, the right kind of value in each, and where each stands.

mod again;
mod source;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

pub(super) use value::Value;

use super::devices::Family;
use super::error::{quoted, shown};
use super::schema::{self, Key};
use super::{ConfigError, Origin, Problem};
use source::{Source, bad_name, in_order, tables, unknown_device, unknown_key, unknown_path};

/// A config file with its overrides. What it holds is known and of the right kind, and not yet inside its limits.
#[derive(Debug)]
pub(super) struct Document {
    /// The keys of the tables that are there once.
    pub(super) keys: Raw,
    /// In the order of the file; those that only `--set` names behind.
    pub(super) devices: Vec<DeviceTable>,
}

/// The table of a device.
#[derive(Debug)]
pub(super) struct DeviceTable {
    pub(super) family: Family,
    pub(super) name: String,
    pub(super) origin: Origin,
    pub(super) keys: Raw,
}

/// Keys as they were written: those of a device, or all that are none of a device.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) file: PathBuf,
    /// The device's name.
    device: Option<String>,
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

impl Document {
    /// Reads `text`, the contents of `file`.
    pub(super) fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, file };
        let document = DeTable::parse(text).map_err(|error| source.syntax(&error))?;
        let mut read = Document { keys: Raw::new(file, None), devices: Vec::new() };
        for (family, name, body) in tables(document.get_ref()) {
            let Some(family) = family else {
                let table = source.table(name, body)?;
                read.keys.read(&source, table, source.keys(table, name, body)?)?;
                continue;
            };
            let origin = source.origin(name.span());
            let mut device =
                DeviceTable::new(file, family, source.device(family, name, body)?, origin);
            let keys = source.keys(&device.path(), name, body)?;
            device.keys.read(&source, family.as_str(), keys)?;
            read.devices.push(device);
        }
        Ok(read)
    }

    /// Lays `table.key=value` or `family.name.key=value` over what the file says. An empty value takes the key out again.
    pub(super) fn set(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let Some((path, text)) = assignment.split_once('=') else {
            return Err(self.fail(None, Problem::NotAnAssignment(shown(assignment))));
        };
        let path = path.trim();
        let (table, name) = path.split_once('.').unwrap_or(("", path));
        if let Some(family) = Family::named(table) {
            return self.set_of_device(family, name, text);
        }
        let Some(key) = schema::find(table, name) else {
            let problem = match schema::TABLES.contains(&table) {
                true => unknown_key(table, table, name),
                false if name.contains('.') => unknown_device(path),
                false => unknown_path(name),
            };
            return Err(self.fail(Some(shown(path)), problem));
        };
        self.keys.set(key, text)
    }

    /// The same for `path`, a device of `family` and its key.
    fn set_of_device(&mut self, family: Family, path: &str, text: &str) -> Result<(), ConfigError> {
        let Some((name, key)) = path.split_once('.') else {
            let at = shown(&format!("{family}.{path}"));
            let first = schema::keys_of(family.as_str()).next().map_or("KEY", |key| key.name);
            let reason = format!("it must be a key of a device, like {family}.NAME.{first}");
            return Err(self.fail(Some(at), Problem::BadValue { value: quoted(text), reason }));
        };
        if let Some(problem) = bad_name(name) {
            return Err(self.fail(Some(family.to_string()), problem));
        }
        let table = family.as_str();
        let Some(key) = schema::find(table, key) else {
            let problem = unknown_key(table, &format!("{table}.{name}"), key);
            return Err(self.fail(Some(shown(&format!("{table}.{path}"))), problem));
        };
        let there = |device: &&mut DeviceTable| device.family == family && device.name == name;
        match self.devices.iter_mut().find(there) {
            Some(device) => device.keys.set(key, text)?,
            None if text.is_empty() => {}
            None => {
                let mut device = DeviceTable::new(&self.keys.file, family, name, Origin::Flag);
                device.keys.set(key, text)?;
                self.devices.push(device);
            }
        }
        Ok(())
    }

    /// The error that a flag has `problem`.
    fn fail(&self, key: Option<String>, problem: Problem) -> ConfigError {
        ConfigError { file: self.keys.file.clone(), origin: Origin::Flag, key, problem }
    }
}

impl DeviceTable {
    fn new(file: &Path, family: Family, name: &str, origin: Origin) -> Self {
        let keys = Raw::new(file, Some(name.to_owned()));
        DeviceTable { family, name: name.to_owned(), origin, keys }
    }

    /// `disk.root`.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.family, self.name)
    }

    /// The error that the device as a whole has `problem`.
    pub(super) fn fail(&self, problem: Problem) -> ConfigError {
        let (file, origin) = (self.keys.file.clone(), self.origin);
        ConfigError { file, origin, key: Some(self.path()), problem }
    }

    /// The error that `key` has `problem`, and is not written.
    pub(super) fn fail_at(&self, key: &Key, problem: Problem) -> ConfigError {
        ConfigError { key: Some(self.keys.path(key)), ..self.fail(problem) }
    }
}

impl Raw {
    fn new(file: &Path, device: Option<String>) -> Self {
        Raw { file: file.to_owned(), device, values: BTreeMap::new() }
    }

    /// Takes in `keys` of `table`.
    fn read(
        &mut self,
        source: &Source<'_>,
        table: &'static str,
        keys: &DeTable<'_>,
    ) -> Result<(), ConfigError> {
        let path = match &self.device {
            Some(name) => format!("{table}.{name}"),
            None => table.to_owned(),
        };
        for (name, value) in in_order(keys) {
            let (key, written) = source.value((table, &path), name, value)?;
            self.values.insert((key.table, key.name), written);
        }
        Ok(())
    }

    /// Lays the `text` of a flag over what the file says.
    fn set(&mut self, key: &'static Key, text: &str) -> Result<(), ConfigError> {
        if text.is_empty() {
            self.values.remove(&(key.table, key.name));
            return Ok(());
        }
        let value = Value::of_flag(text, key.kind).ok_or_else(|| {
            let value = quoted(text);
            let reason = format!("it must be {}", key.allowed);
            ConfigError {
                file: self.file.clone(),
                origin: Origin::Flag,
                key: Some(self.path(key)),
                problem: Problem::BadValue { value, reason },
            }
        })?;
        let written = Written { value, origin: Origin::Flag, shown: quoted(text) };
        self.values.insert((key.table, key.name), written);
        Ok(())
    }

    /// What is written for `key`.
    pub(super) fn get(&self, key: &Key) -> Option<&Written> {
        self.values.get(&(key.table, key.name))
    }

    /// `path`, found from the config's folder, or from the current one if it comes from the command line.
    pub(super) fn beside(&self, written: &Written, path: &str) -> PathBuf {
        let folder = match written.origin {
            Origin::Flag => None,
            _ => self.file.parent(),
        };
        folder.unwrap_or(Path::new("")).join(path)
    }

    /// `memory.size`, `disk.root.file`.
    pub(super) fn path(&self, key: &Key) -> String {
        match &self.device {
            Some(name) => format!("{}.{name}.{}", key.table, key.name),
            None => key.to_string(),
        }
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
            key: Some(self.path(key)),
            problem: Problem::BadValue { value: written.shown.clone(), reason: reason.into() },
        }
    }
}
