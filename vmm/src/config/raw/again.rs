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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What flags say is in it, paths are good anywhere, and read again it says the same.
    #[test]
    fn a_config_reads_back_wherever_it_lies() {
        let text = "machine.cpu = ['-cx16']\nmemory.size = '64M'\nmemory.guard = ['0x2000000+4K']\n\
                    boot.kernel = 'k'\nboot.cmdline = 'a \"b\" \\\\ c'\ncontrol.socket = 's'\n\
                    [disk.b]\nfile = 'b.img'\nreadonly = true\n[disk.a]\nfile = '/a.img'\n\
                    [hvc.x]\nport = 'file:log'\n[net.n]\ntap = 'tap0'\n";
        let mut first = Document::parse(text, Path::new("/some/where/x.toml")).unwrap();
        for set in
            ["memory.size=128M", "rng.r.source=here", "console.serial=file:out", "disk.b.readonly="]
        {
            first.set(set).unwrap();
        }
        let told = first.to_toml();
        let here = std::env::current_dir().unwrap().display().to_string();
        for says in [
            "size = \"128M\"",
            "kernel = \"/some/where/k\"",
            "socket = \"/some/where/s\"",
            "[disk.b]\nfile = \"/some/where/b.img\"\n[disk.a]\nfile = \"/a.img\"\n",
            "port = \"file:/some/where/log\"",
            "tap = \"tap0\"",
            &format!("serial = \"file:{here}/out\""),
            &format!("source = \"{here}/here\""),
        ] {
            assert!(told.contains(says), "{says} is not in\n{told}");
        }
        let second = Document::parse(&told, Path::new("/elsewhere/y.toml")).unwrap();
        assert_eq!(second.to_toml(), told);
        first.set("control.socket=/flag").unwrap();
        assert!(!first.to_toml().contains("flag"), "a flag's socket is that run's alone");
    }
}
