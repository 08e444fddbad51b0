//! Reading one value of a device: what must be there, a rate, a queue's size.

use crate::config::devices::ByteRate;
use crate::config::machine::Setting;
use crate::config::raw::{DeviceTable, Raw, Value, Written};
use crate::config::schema::Key;
use crate::config::{ConfigError, Problem};

use super::super::read::{boolean, bytes, must_be, setting};

/// The value of `key`, which has no default; `missing` says what it is for.
pub(super) fn required<T>(
    table: &DeviceTable,
    key: &Key,
    missing: &'static str,
    read: impl FnOnce(&Written) -> Result<T, String>,
) -> Result<Setting<T>, ConfigError> {
    let Some(written) = table.keys.get(key) else {
        return Err(table.fail_at(key, Problem::Missing(missing)));
    };
    let value = read(written).map_err(|reason| table.keys.bad(key, written, reason))?;
    Ok(Setting { value, origin: written.origin })
}

/// True or false, with a default.
pub(super) fn switch(raw: &Raw, key: &Key, default: bool) -> Result<Setting<bool>, ConfigError> {
    setting(raw, key, default, |written| boolean(written, key))
}

/// An integer from `least` to `most`.
pub(super) fn integer<T: TryFrom<i128>>(
    written: &Written,
    key: &Key,
    (least, most): (i128, i128),
) -> Result<T, String> {
    match written.value {
        Value::Integer(n) if (least..=most).contains(&n) => n.try_into().map_err(|_| must_be(key)),
        _ => Err(must_be(key)),
    }
}

/// Bytes in a second, without a limit by default.
pub(super) fn byte_rate(raw: &Raw, key: &Key) -> Result<Setting<ByteRate>, ConfigError> {
    setting(raw, key, ByteRate::Unlimited, |written| match &written.value {
        Value::Text(word) if word == "unlimited" => Ok(ByteRate::Unlimited),
        // No size begins with a letter: this is a word.
        Value::Text(word) if word.starts_with(|c: char| c.is_alphabetic()) => Err(must_be(key)),
        _ => bytes(written, key).map(ByteRate::PerSecond),
    })
}

/// Descriptors of a queue, 256 by default.
pub(super) fn queue_size(raw: &Raw, key: &Key) -> Result<Setting<u16>, ConfigError> {
    setting(raw, key, 256, |written| {
        let size: u16 = integer(written, key, (2, 1024))?;
        if size.is_power_of_two() {
            return Ok(size);
        }
        let up = size.next_power_of_two();
        Err(format!("{} (try {} or {up})", must_be(key), up / 2))
    })
}
