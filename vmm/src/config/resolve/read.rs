//! Reading one value: a keyword, a count, a size, a path.

use std::fs;
use std::io;

use crate::config::HostPath;
use crate::config::error::quoted;
use crate::config::file::{describe, reason};
use crate::config::machine::{Rate, Setting};
use crate::config::raw::{Raw, Value, Written};
use crate::config::schema::{self, Key};
use crate::config::{Bytes, ConfigError, Origin, ParseBytesError};

/// The value of `key`: what `read` makes of what is written, or the default.
pub(super) fn setting<T>(
    raw: &Raw,
    key: &Key,
    default: T,
    read: impl FnOnce(&Written) -> Result<T, String>,
) -> Result<Setting<T>, ConfigError> {
    let Some(written) = raw.get(key) else {
        return Ok(Setting { value: default, origin: Origin::Default });
    };
    let value = read(written).map_err(|reason| raw.bad(key, written, reason))?;
    Ok(Setting { value, origin: written.origin })
}

/// The whole of what `key` takes.
pub(super) fn must_be(key: &Key) -> String {
    format!("it must be {}", key.allowed)
}

/// A string.
pub(super) fn text<'a>(written: &'a Written, key: &Key) -> Result<&'a str, String> {
    match &written.value {
        Value::Text(text) => Ok(text),
        _ => Err(must_be(key)),
    }
}

/// One of `all` by its word.
pub(super) fn keyword<T: Copy>(
    written: &Written,
    all: &[T],
    word: fn(T) -> &'static str,
) -> Result<T, String> {
    let (text, words) = words(written, all, word)?;
    one_of(text, all, word).ok_or_else(|| not_one_of(text, words))
}

/// One of `all` by its word, or `auto`.
pub(super) fn keyword_or_auto<T: Copy>(
    written: &Written,
    auto: T,
    all: &[T],
    word: fn(T) -> &'static str,
) -> Result<T, String> {
    let (text, mut words) = words(written, all, word)?;
    if text == "auto" {
        return Ok(auto);
    }
    words.insert(0, "auto");
    one_of(text, all, word).ok_or_else(|| not_one_of(text, words))
}

fn words<'a, T: Copy>(
    written: &'a Written,
    all: &[T],
    word: fn(T) -> &'static str,
) -> Result<(&'a str, Vec<&'static str>), String> {
    let words: Vec<_> = all.iter().map(|&one| word(one)).collect();
    match &written.value {
        Value::Text(text) => Ok((text, words)),
        _ => Err(format!("it must be {}", schema::listed(words, "or"))),
    }
}

fn one_of<T: Copy>(text: &str, all: &[T], word: fn(T) -> &'static str) -> Option<T> {
    all.iter().copied().find(|&one| word(one) == text)
}

fn not_one_of(text: &str, words: Vec<&'static str>) -> String {
    let hint = schema::closest(text, words.iter().copied())
        .map_or_else(String::new, |word| format!(" (did you mean {word:?}?)"));
    format!("it must be {}{hint}", schema::listed(words, "or"))
}

/// More of anything in a second than any host gets done.
const FASTEST: i128 = 1_000_000;

/// How many in a second; `zero` says what to write for none at all.
pub(super) fn rate(written: &Written, key: &Key, zero: &str) -> Result<Rate, String> {
    match &written.value {
        Value::Integer(count @ 1..=FASTEST) => Ok(Rate::PerSecond(*count as u32)),
        Value::Integer(0) => Err(format!("{} ({zero})", must_be(key))),
        Value::Text(word) if word == "unlimited" => Ok(Rate::Unlimited),
        Value::Text(word) => {
            let hint = schema::closest(word, ["unlimited"])
                .map_or_else(String::new, |word| format!(" (did you mean {word:?}?)"));
            Err(format!("{}{hint}", must_be(key)))
        }
        _ => Err(must_be(key)),
    }
}

/// True or false.
pub(super) fn boolean(written: &Written, key: &Key) -> Result<bool, String> {
    match written.value {
        Value::Boolean(yes) => Ok(yes),
        _ => Err(must_be(key)),
    }
}

/// An integer from 1 to 8.
pub(super) fn small_count(written: &Written, key: &Key) -> Result<u8, String> {
    match written.value {
        Value::Integer(n @ 1..=8) => Ok(n as u8),
        _ => Err(must_be(key)),
    }
}

/// A size that is not 0.
pub(super) fn bytes(written: &Written, key: &Key) -> Result<Bytes, String> {
    match size(written, key)? {
        none if none.get() == 0 => Err("it must not be 0".into()),
        some => Ok(some),
    }
}

/// A size, which may be 0.
pub(super) fn size(written: &Written, key: &Key) -> Result<Bytes, String> {
    match &written.value {
        Value::Integer(n) if *n < 0 => Err("it must not be negative".into()),
        Value::Integer(n) => {
            u64::try_from(*n).map(Bytes::new).map_err(|_| ParseBytesError::TooLarge.to_string())
        }
        Value::Text(text) => text.parse().map_err(|e: ParseBytesError| e.to_string()),
        _ => Err(must_be(key)),
    }
}

/// The file that `key` names, which must be there.
pub(super) fn existing_file(
    raw: &Raw,
    key: &Key,
    written: &Written,
) -> Result<HostPath, ConfigError> {
    let bad = |why: String| raw.bad(key, written, why);
    let text = text(written, key).map_err(bad)?;
    if text.is_empty() {
        return Err(bad(must_be(key)));
    }
    let path = raw.beside(written, text);
    let at = quoted(&path.to_string_lossy());
    match fs::metadata(&path) {
        Ok(found) => match describe(found.file_type()) {
            None => Ok(HostPath(path)),
            Some(what) => Err(bad(format!("{at} is {what}, and it must be a regular file"))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(bad(format!("there is no file {at}")))
        }
        Err(error) => Err(bad(format!("{at} cannot be used: {}", reason(&error)))),
    }
}
