//! A config as it was written: known keys, the right kind of value in each, and where each stands.

mod again;
mod source;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Document::parse(text, Path::new("x.toml")).unwrap_err().to_string()
    }

    fn flag_error(assignment: &str) -> String {
        let mut raw = Document::parse("", Path::new("x.toml")).unwrap();
        raw.set(assignment).unwrap_err().to_string()
    }

    #[test]
    fn every_kind_of_mistake_names_line_key_and_what_is_allowed() {
        for (text, says) in [
            (
                "[machine]\nvcpu = 1",
                "x.toml:2: machine.vcpu is unknown (did you mean machine.vcpus?): \
                 [machine] takes vcpus, irqchip, acpi, unclaimed, ring0, cpu and device_threads",
            ),
            (
                "\n[memroy]\nsize = 1",
                "x.toml:2: memroy is unknown (did you mean [memory]?): \
                 the tables are machine, memory, collapse, dedup, boot, console and control, and for \
                 devices disk.NAME, net.NAME, rng.NAME, hvc.NAME, balloon.NAME, pmem.NAME and vsock.NAME",
            ),
            (
                "vcpus = 2",
                "x.toml:1: vcpus is unknown (did you mean machine.vcpus?): \
                 the tables are machine, memory, collapse, dedup, boot, console and control, and for \
                 devices disk.NAME, net.NAME, rng.NAME, hvc.NAME, balloon.NAME, pmem.NAME and vsock.NAME",
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
                 the tables are machine, memory, collapse, dedup, boot, console and control, and for \
                 devices disk.NAME, net.NAME, rng.NAME, hvc.NAME, balloon.NAME, pmem.NAME and vsock.NAME",
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
        let mut raw = Document::parse("[boot]\ncmdline = \"a\"", Path::new("x.toml")).unwrap();
        raw.set("boot.cmdline=b=c").unwrap();
        let written = raw.keys.get(&schema::CMDLINE).unwrap();
        assert!(matches!(&written.value, Value::Text(text) if text == "b=c"));
        assert_eq!(written.origin, Origin::Flag);
        raw.set("boot.cmdline=").unwrap();
        assert!(raw.keys.get(&schema::CMDLINE).is_none());
    }

    #[test]
    fn lists_on_the_command_line_go_by_commas_or_as_toml() {
        for text in ["machine.cpu=-cx16,-avx", "machine.cpu=[\"-cx16\", '-avx']"] {
            let mut raw = Document::parse("", Path::new("x.toml")).unwrap();
            raw.set(text).unwrap();
            let written = raw.keys.get(&schema::CPU).unwrap();
            assert!(matches!(&written.value, Value::List(l) if l == &["-cx16", "-avx"]));
        }
    }

    #[test]
    fn devices_stand_in_the_order_of_the_file_and_those_of_flags_behind() {
        let text = "[disk.b]
file = 'x'
[net.a]
[disk.a]
queues = 2
[machine]
vcpus = 1";
        let mut raw = Document::parse(text, Path::new("x.toml")).unwrap();
        raw.set("rng.c.source=/dev/random").unwrap();
        raw.set("disk.a.queues=3").unwrap();
        raw.set("disk.b.file=").unwrap();
        raw.set("hvc.d.port=").unwrap();
        let names: Vec<String> = raw.devices.iter().map(DeviceTable::path).collect();
        assert_eq!(names, ["disk.b", "net.a", "disk.a", "rng.c"]);
        let origins: Vec<Origin> = raw.devices.iter().map(|device| device.origin).collect();
        assert_eq!(origins[2], Origin::File { line: 4, column: 7 });
        assert_eq!(origins[3], Origin::Flag);
        let queues = raw.devices[2].keys.get(&schema::DISK_QUEUES).unwrap();
        assert!(matches!(queues.value, Value::Integer(3)));
        assert!(raw.devices[0].keys.get(&schema::DISK_FILE).is_none());
    }

    #[test]
    fn mistakes_in_devices_name_the_device() {
        for (text, says) in [
            (
                "[disk]",
                "x.toml:1: disk is a table: it must be tables with the names of devices, like [disk.NAME]",
            ),
            (
                "[[disk]]",
                "x.toml:1: disk is [[disk]]: it must be tables with the names of devices, like [disk.NAME]",
            ),
            (
                "disk = 1",
                "x.toml:1: disk is 1: it must be tables with the names of devices, like [disk.NAME]",
            ),
            (
                "[disk]
file = 'a'",
                "x.toml:2: disk.file is \"a\": it must be in a table with the name of a device, like [disk.NAME]",
            ),
            ("[[disk.a]]", "x.toml:1: disk.a is [[disk.a]]: it must be a table, [disk.a]"),
            (
                "[disk]
a = 1",
                "x.toml:2: disk.a is 1: it must be a table, [disk.a]",
            ),
            (
                "[disk.\"\"]",
                "x.toml:1: disk has a device named \"\": it must be 1 to 32 characters out of a-z, 0-9, - and _",
            ),
            (
                "[disk.Root]",
                "x.toml:1: disk has a device named \"Root\": \
                 it must be 1 to 32 characters out of a-z, 0-9, - and _ (try \"root\")",
            ),
            (
                "[net.up]
mtu = 1",
                "x.toml:2: net.up.mtu is unknown: [net.up] takes tap, mac, queues, queue_size and offloads",
            ),
            (
                "[disk.a]
readonly = 1",
                "x.toml:2: disk.a.readonly is 1: it must be true or false",
            ),
            (
                "[disk.a]
[disk.a]",
                "x.toml:2: a is set twice: remove one of the two",
            ),
        ] {
            assert_eq!(error(text), says);
        }
        assert!(
            error(
                "[disk.a]
fle = 1"
            )
            .contains("disk.a.fle is unknown (did you mean disk.a.file?)")
        );
        assert!(error("[dsk.a]").contains("dsk is unknown (did you mean [disk.NAME]?)"));
        assert!(error("readonly = 1").contains("(did you mean disk.NAME.readonly?)"));
        assert!(
            error(
                "[net.b]
[disk.a]
x = 1
[net.c]
y = 1"
            )
            .contains(":3: disk.a.x")
        );
    }

    #[test]
    fn flags_for_devices_have_three_parts() {
        for (assignment, says) in [
            (
                "disk.a=x",
                "--set: disk.a is \"x\": it must be a key of a device, like disk.NAME.file",
            ),
            ("disk.A.file=x", "--set: disk has a device named \"A\": it must be"),
            ("disk..file=x", "--set: disk has a device named \"\": it must be"),
            ("disk.a.fil=x", "--set: disk.a.fil is unknown (did you mean disk.a.file?)"),
            ("disk.a.file.b=x", "--set: disk.a.file.b is unknown"),
            ("dsk.a.file=x", "--set: dsk.a.file is unknown (did you mean disk.a.file?)"),
            ("disk.a.queues=x", "--set: disk.a.queues is \"x\": it must be an integer from 1 to 8"),
        ] {
            assert!(flag_error(assignment).starts_with(says), "{}", flag_error(assignment));
        }
    }
}
