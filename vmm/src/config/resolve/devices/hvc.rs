//! `[hvc.NAME]`

use rustix::termios::tcgetwinsize;

use crate::config::devices::{Device, DeviceKind, Hvc, Port};
use crate::config::error::quoted;
use crate::config::machine::{Console, Serial, Setting};
use crate::config::raw::{DeviceTable, Raw, Written};
use crate::config::schema::{self, Key};
use crate::config::{ConfigError, Problem};

use super::super::place::{file_to_write, socket};
use super::super::read::{must_be, setting, text};
use super::read::integer;

/// Columns and rows of a terminal that nobody knows.
const USUAL: (u16, u16) = (80, 25);

pub(super) fn hvc(
    table: &DeviceTable,
    console: &Console,
    before: &[Device],
) -> Result<Hvc, ConfigError> {
    let raw = &table.keys;
    let port = setting(raw, &schema::HVC_PORT, Port::Stdio, |written| port(raw, written))?;
    if port.value == Port::Stdio
        && let Some(reason) = stdio_is_taken(console, before)
    {
        return Err(match raw.get(&schema::HVC_PORT) {
            Some(written) => raw.bad(&schema::HVC_PORT, written, reason),
            None => {
                let value = format!("{} by default", quoted("stdio"));
                table.fail_at(&schema::HVC_PORT, Problem::BadValue { value, reason })
            }
        });
    }
    let (columns, rows) = if port.value == Port::Stdio { terminal() } else { USUAL };
    let count = |key: &Key, default| {
        setting(raw, key, default, |written| integer(written, key, (1, i128::from(u16::MAX))))
    };
    Ok(Hvc {
        columns: count(&schema::HVC_COLUMNS, columns)?,
        rows: count(&schema::HVC_ROWS, rows)?,
        port,
    })
}

fn port(raw: &Raw, written: &Written) -> Result<Port, String> {
    let key = &schema::HVC_PORT;
    let text = text(written, key)?;
    match text.split_once(':') {
        None if text == "stdio" => Ok(Port::Stdio),
        None if text == "off" => Ok(Port::Off),
        Some(("file", path)) => file_to_write(raw, written, path, key).map(Port::File),
        Some(("socket", path)) => socket(raw, written, path, key).map(Port::Socket),
        _ => {
            let hint = schema::closest(text, ["stdio", "off"])
                .map_or_else(String::new, |word| format!(" (did you mean {word:?}?)"));
            Err(format!("{}{hint}", must_be(key)))
        }
    }
}

/// Why a console cannot have the monitor's standard input and output, if another has them.
fn stdio_is_taken(console: &Console, before: &[Device]) -> Option<String> {
    let Setting { value: Serial::Stdio, origin } = console.serial else {
        let other = before.iter().find_map(|device| match &device.kind {
            DeviceKind::Hvc(Hvc { port: Setting { value: Port::Stdio, origin }, .. }) => {
                Some((&device.name, origin))
            }
            _ => None,
        });
        return other.map(|(name, origin)| {
            format!("hvc.{name}.port is too ({origin}), and only one console can be")
        });
    };
    Some(format!(
        "console.serial is too ({origin}), and only one console can be: set console.serial = \"off\""
    ))
}

/// Columns and rows of the terminal that standard output leads to, if it does.
fn terminal() -> (u16, u16) {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => USUAL,
    }
}
