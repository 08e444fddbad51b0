//! The config as TOML once more: what the file and the flags say together, good wherever it lies.

use std::fmt::Write;
use std::path::PathBuf;

use crate::config::Origin;
use crate::config::schema::{self, Key};

use super::{Document, Raw, Value, Written};

/// Keys that hold a path.
const PATHS: [Key; 8] = [
    schema::TEMPLATE,
    schema::KERNEL,
    schema::INITRD,
    schema::SOCKET,
    schema::DISK_FILE,
    schema::RNG_SOURCE,
    schema::PMEM_FILE,
    schema::VSOCK_SOCKET,
];
/// Keys that hold one behind a word.
const PREFIXED: [Key; 2] = [schema::SERIAL, schema::HVC_PORT];

impl Document {
    /// It as TOML, every path from the root on. A control socket that a flag named is that run's alone.
    pub(in crate::config) fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut table = "";
        for (key, written) in self.keys.in_order() {
            if key == &schema::SOCKET && written.origin == Origin::Flag {
                continue;
            }
            if key.table != table {
                table = key.table;
                let _ = writeln!(text, "[{table}]");
            }
            let _ = writeln!(text, "{} = {}", key.name, value(&self.keys, key, written));
        }
        for device in &self.devices {
            let _ = writeln!(text, "[{}]", device.path());
            for (key, written) in device.keys.in_order() {
                let _ = writeln!(text, "{} = {}", key.name, value(&device.keys, key, written));
            }
        }
        text
    }
}

impl Raw {
    fn in_order(&self) -> impl Iterator<Item = (&'static Key, &Written)> {
        schema::KEYS.iter().filter_map(|key| Some((key, self.get(key)?)))
    }
}

fn value(raw: &Raw, key: &Key, written: &Written) -> toml::Value {
    match &written.value {
        Value::Integer(number) => toml::Value::Integer(i64::try_from(*number).unwrap_or(i64::MAX)),
        Value::Boolean(on) => toml::Value::Boolean(*on),
        Value::Text(text) => toml::Value::String(absolute(raw, key, written, text)),
        Value::List(items) => {
            toml::Value::Array(items.iter().cloned().map(toml::Value::String).collect())
        }
    }
}

fn absolute(raw: &Raw, key: &Key, written: &Written, text: &str) -> String {
    let whole = |name: &str| {
        let path = raw.beside(written, name);
        let path: PathBuf = std::path::absolute(&path).unwrap_or(path);
        path.display().to_string()
    };
    if PATHS.contains(key) && !text.is_empty() {
        return whole(text);
    }
    match text.split_once(':') {
        Some((word, name)) if PREFIXED.contains(key) && !name.is_empty() => {
            format!("{word}:{}", whole(name))
        }
        _ => text.to_owned(),
    }
}
