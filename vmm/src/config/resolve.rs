//! From what was written to what will be: defaults, limits, and rules between keys.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::quoted;
use super::file::{describe, reason};
use super::machine::{
    Backing, Boot, BuiltinGuest, Console, CpuModel, HostPath, Image, Irqchip, Kernel, Machine,
    MachineConfig, Memory, PageSize, Protocol, Serial, Setting, Unclaimed,
};
use super::raw::{Raw, Value, Written};
use super::schema::{self, Key};
use super::{Bytes, ConfigError, Feature, Guard, Host, Origin, ParseBytesError, Problem};

/// What a page table entry maps at least.
const PAGE: Bytes = Bytes::kib(4);

/// What the pool is made of.
const BLOCK: Bytes = Bytes::mib(2);

/// Linux on x86 keeps 2048 bytes of command line, the last one NUL.
const LONGEST_CMDLINE: usize = 2047;

/// Fills in and checks everything.
pub(super) fn resolve(raw: &Raw, host: Host) -> Result<MachineConfig, ConfigError> {
    // First, because it is what an empty file lacks, and because defaults depend on it.
    let boot = boot(raw)?;
    let machine = machine(raw, &boot)?;
    let memory = memory(raw, host)?;
    let console =
        Console { serial: setting(raw, &schema::SERIAL, Serial::Stdio, |w| serial(raw, w))? };
    Ok(MachineConfig { file: HostPath(raw.file.clone()), machine, memory, boot, console })
}

fn boot(raw: &Raw) -> Result<Boot, ConfigError> {
    let image = match (raw.get(&schema::GUEST), raw.get(&schema::KERNEL)) {
        (None, None) => {
            return Err(ConfigError {
                file: raw.file.clone(),
                origin: Origin::Default,
                key: Some("boot.guest".into()),
                problem: Problem::Missing(
                    "set boot.guest to hello, touch or smp, or boot.kernel to the path of a kernel",
                ),
            });
        }
        (Some(guest), Some(kernel)) => {
            let reason =
                format!("boot.kernel is set too ({}), remove one of the two", kernel.origin);
            return Err(raw.bad(&schema::GUEST, guest, reason));
        }
        (Some(guest), None) => {
            for key in [&schema::PROTOCOL, &schema::UNPACK, &schema::INITRD] {
                if let Some(written) = raw.get(key) {
                    let reason = "it goes with boot.kernel, and boot.guest is built in";
                    return Err(raw.bad(key, written, reason));
                }
            }
            Setting {
                value: Image::Guest(
                    keyword(guest, BuiltinGuest::ALL, BuiltinGuest::as_str)
                        .map_err(|reason| raw.bad(&schema::GUEST, guest, reason))?,
                ),
                origin: guest.origin,
            }
        }
        (None, Some(kernel)) => Setting {
            value: Image::Kernel(Kernel {
                path: existing_file(raw, &schema::KERNEL, kernel)?,
                protocol: setting(raw, &schema::PROTOCOL, Protocol::Auto, |w| {
                    keyword(w, Protocol::ALL, Protocol::as_str)
                })?,
                unpack: setting(raw, &schema::UNPACK, false, |w| match w.value {
                    Value::Boolean(yes) => Ok(yes),
                    _ => Err(must_be(&schema::UNPACK)),
                })?,
                initrd: raw
                    .get(&schema::INITRD)
                    .map(|written| {
                        Ok(Setting {
                            value: existing_file(raw, &schema::INITRD, written)?,
                            origin: written.origin,
                        })
                    })
                    .transpose()?,
            }),
            origin: kernel.origin,
        },
    };
    let cmdline = setting(raw, &schema::CMDLINE, String::new(), cmdline)?;
    Ok(Boot { image, cmdline })
}

fn cmdline(written: &Written) -> Result<String, String> {
    let text = text(written, &schema::CMDLINE)?;
    if let Some(at) = text.find('\0') {
        return Err(format!("it must not contain NUL (byte {at})"));
    }
    if text.len() > LONGEST_CMDLINE {
        let length = text.len();
        return Err(format!("it must be at most {LONGEST_CMDLINE} bytes, not {length}"));
    }
    Ok(text.to_owned())
}

fn machine(raw: &Raw, boot: &Boot) -> Result<Machine, ConfigError> {
    let vcpus = setting(raw, &schema::VCPUS, 1, |w| small_count(w, &schema::VCPUS))?;
    let builtin = matches!(boot.image.value, Image::Guest(_));
    // One vCPU has nobody to interrupt it, and creating the chips costs milliseconds.
    let irqchip = if builtin && vcpus.value == 1 { Irqchip::None } else { Irqchip::Kernel };
    // A built-in guest touches only what it knows to be there; a kernel probes.
    let unclaimed = if builtin { Unclaimed::Stop } else { Unclaimed::Ignore };
    Ok(Machine {
        vcpus,
        irqchip: setting(raw, &schema::IRQCHIP, irqchip, |w| {
            keyword_or_auto(w, irqchip, Irqchip::ALL, Irqchip::as_str)
        })?,
        unclaimed: setting(raw, &schema::UNCLAIMED, unclaimed, |w| {
            keyword_or_auto(w, unclaimed, Unclaimed::ALL, Unclaimed::as_str)
        })?,
        cpu: setting(raw, &schema::CPU, CpuModel::Host, cpu)?,
    })
}

fn cpu(written: &Written) -> Result<CpuModel, String> {
    let names = match &written.value {
        Value::Text(word) if word == "host" => return Ok(CpuModel::Host),
        Value::Text(word) if word == "emulation-safe" => return Ok(CpuModel::EmulationSafe),
        Value::List(names) => names,
        _ => return Err(must_be(&schema::CPU)),
    };
    let mut features = Vec::new();
    for name in names {
        let Some(bare) = name.strip_prefix('-') else {
            return Err(format!(
                "{} must have a minus sign in front: features can only be switched off",
                quoted(name)
            ));
        };
        let Some(feature) = Feature::named(bare) else {
            let known = super::FEATURES.iter().map(|f| f.name);
            let hint = schema::closest(bare, known)
                .map_or_else(String::new, |name| format!(", did you mean \"-{name}\"?"));
            return Err(format!(
                "{} is no feature that can be switched off{hint} (configs/README.md lists them)",
                quoted(name)
            ));
        };
        if !features.contains(&feature) {
            features.push(feature);
        }
    }
    Ok(CpuModel::Without(features))
}

fn memory(raw: &Raw, host: Host) -> Result<Memory, ConfigError> {
    let limit = host.ram_limit();
    let fits = |size: Bytes| {
        if size > limit {
            let bits = host.phys_bits;
            return Err(format!("it must be at most {limit}: addresses here have {bits} bits"));
        }
        Ok(size)
    };
    let size = setting(raw, &schema::SIZE, Bytes::mib(64), |w| {
        let size = fits(bytes(w, &schema::SIZE)?)?;
        if size.is_multiple_of(PAGE) {
            return Ok(size);
        }
        let hint = size
            .checked_round_up(PAGE)
            .map_or_else(String::new, |up| format!(" (try {:?})", up.short()));
        Err(format!("it must be a multiple of {PAGE}{hint}"))
    })?;
    // Cannot overflow: both sizes are far below 2^64.
    let in_blocks = |size: Bytes| size.checked_round_up(BLOCK).unwrap_or(size);
    let pool = setting(raw, &schema::POOL, in_blocks(size.value), |w| {
        fits(bytes(w, &schema::POOL)?).map(in_blocks)
    })?;
    let backing = setting(raw, &schema::BACKING, Backing::Auto, |w| {
        keyword(w, Backing::ALL, Backing::as_str)
    })?;
    let smallest = match backing.value {
        Backing::Hugetlb => PageSize::Size2M,
        _ => PageSize::Size4K,
    };
    let pages = setting(raw, &schema::PAGES, smallest, |w| {
        let pages = keyword(w, PageSize::ALL, PageSize::as_str)?;
        if pages.bytes() < smallest.bytes() {
            return Err("memory.backing is hugetlb, which has no 4 KiB pages (try \"2m\")".into());
        }
        if pages.bytes() > pool.value {
            return Err(format!("the pool of {} is smaller than that", pool.value));
        }
        if pages.bytes() > in_blocks(size.value) {
            return Err(format!("memory.size, {}, is smaller than that", size.value));
        }
        Ok(pages)
    })?;
    Ok(Memory {
        size,
        pool,
        backing,
        pages,
        fault_threads: setting(raw, &schema::FAULT_THREADS, 1, |w| {
            small_count(w, &schema::FAULT_THREADS)
        })?,
        guard: setting(raw, &schema::GUARD, Vec::new(), |w| guards(w, size.value))?,
    })
}

fn guards(written: &Written, size: Bytes) -> Result<Vec<Guard>, String> {
    let Value::List(texts) = &written.value else {
        return Err(must_be(&schema::GUARD));
    };
    let mut guards = Vec::new();
    for text in texts {
        let guard = Guard::parse(text).map_err(|reason| format!("{}: {reason}", quoted(text)))?;
        if !guard.lies_in_ram(size) {
            return Err(format!(
                "{guard} must lie inside the {size} of RAM, \"slat check\" shows where that is"
            ));
        }
        if let Some(other) = guards.iter().find(|&&other| guard.overlaps(other)) {
            return Err(format!("{guard} must not overlap {other}"));
        }
        guards.push(guard);
    }
    guards.sort_unstable();
    Ok(guards)
}

fn serial(raw: &Raw, written: &Written) -> Result<Serial, String> {
    let path = match text(written, &schema::SERIAL)? {
        "stdio" => return Ok(Serial::Stdio),
        "off" => return Ok(Serial::Off),
        other => other
            .strip_prefix("file:")
            .filter(|path| !path.is_empty())
            .ok_or_else(|| must_be(&schema::SERIAL))?,
    };
    let path = beside(raw, written, path);
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => {
            return Err("it must name a file, and this is a directory".into());
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = match path.parent() {
                Some(folder) if folder != Path::new("") => folder,
                _ => Path::new("."),
            };
            if !folder.is_dir() {
                return Err(format!("there is no folder {}", quoted(&folder.to_string_lossy())));
            }
        }
        Err(error) => return Err(reason(&error)),
    }
    Ok(Serial::File(HostPath(path)))
}

/// The value of `key`: what `read` makes of what is written, or the default.
fn setting<T>(
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

fn must_be(key: &Key) -> String {
    format!("it must be {}", key.allowed)
}

fn text<'a>(written: &'a Written, key: &Key) -> Result<&'a str, String> {
    match &written.value {
        Value::Text(text) => Ok(text),
        _ => Err(must_be(key)),
    }
}

/// One of `all` by its word.
fn keyword<T: Copy>(
    written: &Written,
    all: &[T],
    word: fn(T) -> &'static str,
) -> Result<T, String> {
    let (text, words) = words(written, all, word)?;
    one_of(text, all, word).ok_or_else(|| not_one_of(text, words))
}

/// One of `all` by its word, or `auto`.
fn keyword_or_auto<T: Copy>(
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

/// An integer from 1 to 8.
fn small_count(written: &Written, key: &Key) -> Result<u8, String> {
    match written.value {
        Value::Integer(n @ 1..=8) => Ok(n as u8),
        _ => Err(must_be(key)),
    }
}

/// A size that is not 0.
fn bytes(written: &Written, key: &Key) -> Result<Bytes, String> {
    let size = match &written.value {
        Value::Integer(n) if *n < 0 => return Err("it must not be negative".into()),
        Value::Integer(n) => {
            Bytes::new(u64::try_from(*n).map_err(|_| ParseBytesError::TooLarge.to_string())?)
        }
        Value::Text(text) => text.parse().map_err(|e: ParseBytesError| e.to_string())?,
        _ => return Err(must_be(key)),
    };
    if size.get() == 0 {
        return Err("it must not be 0".into());
    }
    Ok(size)
}

/// `path`, found from the config's folder, or from the current one if it comes from the command line.
fn beside(raw: &Raw, written: &Written, path: &str) -> PathBuf {
    let folder = match written.origin {
        Origin::Flag => None,
        _ => raw.file.parent(),
    };
    folder.unwrap_or(Path::new("")).join(path)
}

/// The file that `key` names, which must be there.
fn existing_file(raw: &Raw, key: &Key, written: &Written) -> Result<HostPath, ConfigError> {
    let bad = |why: String| raw.bad(key, written, why);
    let text = text(written, key).map_err(bad)?;
    if text.is_empty() {
        return Err(bad(must_be(key)));
    }
    let path = beside(raw, written, text);
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
