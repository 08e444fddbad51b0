//! From what was written to what will be: defaults, limits, and rules between keys.

mod collapse;
mod dedup;
mod devices;
mod place;
mod read;
mod template;

use place::{file_to_write, socket};
use read::{
    boolean, bytes, existing_file, keyword, keyword_or_auto, must_be, setting, small_count, text,
};

use super::error::quoted;
use super::machine::{
    Backing, Boot, BuiltinGuest, Console, Control, CpuModel, Image, Irqchip, Kernel, Machine,
    MachineConfig, Memory, PageSize, Protocol, Ring0, Serial, Setting, Unclaimed,
};
use super::raw::{Document, Raw, Value, Written};
use super::schema;
use super::{Bytes, ConfigError, Feature, Guard, Host, HostPath, Origin, Problem};

/// What a page table entry maps at least.
const PAGE: Bytes = Bytes::kib(4);

/// What the pool is made of.
const BLOCK: Bytes = Bytes::mib(2);

/// Linux on x86 keeps 2048 bytes of command line, the last one NUL.
const LONGEST_CMDLINE: usize = 2047;

/// Fills in and checks everything.
pub(super) fn resolve(document: &Document, host: Host) -> Result<MachineConfig, ConfigError> {
    let raw = &document.keys;
    // First, because it is what an empty file lacks, and because defaults depend on it.
    let boot = boot(raw)?;
    let machine = machine(raw, &boot, host)?;
    let memory = memory(raw, host)?;
    let collapse = collapse::collapse(raw)?;
    let dedup = dedup::dedup(raw, &memory)?;
    let console =
        Console { serial: setting(raw, &schema::SERIAL, Serial::Stdio, |w| serial(raw, w))? };
    let socket = match raw.get(&schema::SOCKET) {
        Some(_) => Some(setting(raw, &schema::SOCKET, HostPath::default(), |w| {
            socket(raw, w, text(w, &schema::SOCKET)?, &schema::SOCKET)
        })?),
        None => None,
    };
    let toml = document.to_toml();
    let (file, control) = (HostPath(raw.file.clone()), Control { socket });
    let devices = devices::devices(document, &memory, &console, host)?;
    let mut config = MachineConfig {
        file,
        machine,
        memory,
        collapse,
        dedup,
        boot,
        console,
        control,
        devices,
        toml,
    };
    if config.memory.pool.origin == Origin::Default {
        config.memory.pool.value = room_for_all(&config);
    }
    Ok(config)
}

/// The pool that never runs out: all that the guest can write to, and the files that it is made of, once for all that lie over
/// them.
fn room_for_all(config: &MachineConfig) -> Bytes {
    // Cannot overflow: all sizes are far below 2^64.
    let in_blocks = |size: Bytes| size.checked_round_up(BLOCK).unwrap_or(size).get();
    let template = config.memory.template.as_ref();
    let template = template.map_or(0, |template| in_blocks(template.value.bytes));
    let files: u64 = config.pmem().map(|(_, pmem)| in_blocks(pmem.file.value.bytes)).sum();
    Bytes::new(config.own_pool().get() + template + files)
}

fn boot(raw: &Raw) -> Result<Boot, ConfigError> {
    let image = match (raw.get(&schema::GUEST), raw.get(&schema::KERNEL)) {
        (None, None) => {
            return Err(ConfigError {
                file: raw.file.clone(),
                origin: Origin::Default,
                key: Some("boot.guest".into()),
                problem: Problem::Missing(
                    "set boot.guest to hello, touch, smp, clone, churn, blk, net, console, rng, balloon, pmem or vsock, or boot.kernel to the path of a kernel",
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
                unpack: setting(raw, &schema::UNPACK, false, |w| boolean(w, &schema::UNPACK))?,
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

fn machine(raw: &Raw, boot: &Boot, host: Host) -> Result<Machine, ConfigError> {
    let vcpus = setting(raw, &schema::VCPUS, 1, |w| small_count(w, &schema::VCPUS))?;
    let builtin = matches!(boot.image.value, Image::Guest(_));
    // One vCPU has nobody to interrupt it, and creating the chips costs milliseconds.
    let irqchip = if builtin && vcpus.value == 1 { Irqchip::None } else { Irqchip::Kernel };
    // A built-in guest touches only what it knows to be there; a kernel probes.
    let unclaimed = if builtin { Unclaimed::Stop } else { Unclaimed::Ignore };
    // A built-in guest is in ring 0 for a moment; a kernel lives there.
    let ring0 = if builtin || host.runs_ring0 { Ring0::Kvm } else { Ring0::Monitor };
    let several = vcpus.value > 1;
    let irqchip = setting(raw, &schema::IRQCHIP, irqchip, |w| {
        let chip = keyword_or_auto(w, irqchip, Irqchip::ALL, Irqchip::as_str)?;
        if several && chip == Irqchip::None {
            return Err(
                "several vCPUs start one another by interrupts: it must be \"kernel\"".into()
            );
        }
        Ok(chip)
    })?;
    let has_irqchip = irqchip.value == Irqchip::Kernel;
    let acpi = setting(raw, &schema::ACPI, !builtin && has_irqchip, |w| {
        let reason = match boolean(w, &schema::ACPI)? {
            true if builtin => "boot.guest is built in and reads no ACPI tables",
            true if !has_irqchip => "machine.irqchip is \"none\", and the tables describe KVM's",
            acpi => return Ok(acpi),
        };
        Err(format!("{reason}: it must be false"))
    })?;
    Ok(Machine {
        vcpus,
        irqchip,
        acpi,
        unclaimed: setting(raw, &schema::UNCLAIMED, unclaimed, |w| {
            keyword_or_auto(w, unclaimed, Unclaimed::ALL, Unclaimed::as_str)
        })?,
        ring0: setting(raw, &schema::RING0, ring0, |w| {
            keyword_or_auto(w, ring0, Ring0::ALL, Ring0::as_str)
        })?,
        cpu: setting(raw, &schema::CPU, CpuModel::Host, cpu)?,
        device_threads: setting(raw, &schema::DEVICE_THREADS, 1, |w| {
            small_count(w, &schema::DEVICE_THREADS)
        })?,
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
    // Cannot overflow: all sizes are far below 2^64.
    let in_blocks = |size: Bytes| size.checked_round_up(BLOCK).unwrap_or(size);
    let backing = setting(raw, &schema::BACKING, Backing::Auto, |w| {
        keyword(w, Backing::ALL, Backing::as_str)
    })?;
    let template = template::template(raw, size.value, backing.value)?;
    // By default there is room for everything, which is known when all devices are.
    let least = in_blocks(size.value);
    let pool =
        setting(raw, &schema::POOL, least, |w| fits(bytes(w, &schema::POOL)?).map(in_blocks))?;
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
        template,
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
    match text(written, &schema::SERIAL)? {
        "stdio" => Ok(Serial::Stdio),
        "off" => Ok(Serial::Off),
        other => match other.strip_prefix("file:") {
            Some(path) => file_to_write(raw, written, path, &schema::SERIAL).map(Serial::File),
            None => Err(must_be(&schema::SERIAL)),
        },
    }
}

#[cfg(test)]
mod tests;
