//! The config of a microVM: a TOML file, checked and completed before anything is created.
//!
//! Two stages. `raw` is the file as it was written: known keys only, each with the line it stands on. `resolve` turns it
//! into a [`MachineConfig`]: every default filled in, every value inside its limits, every path found, and each value with
//! its [`Origin`], so that `slat check` can show where it came from.
//!
//! The tree of [`toml`] is walked here rather than handed to derived deserializers: those report an unknown field or a
//! wrong type without the table it stands in, and every message of this module names line, key, value and what is allowed.
//!
//! The keys are documented in `configs/README.md`; a test holds it to `schema`.

mod bytes;
mod devices;
mod error;
mod features;
mod file;
mod guard;
mod host;
mod host_path;
mod machine;
mod raw;
mod resolve;
mod schema;

pub use bytes::{Bytes, ParseBytesError};
pub use devices::{
    BackingFile, Balloon, ByteRate, Device, DeviceKind, Disk, DiskIo, Family, Hvc, Mac, Net, Pmem,
    Port, Rng, Sharing, Vsock,
};
pub use error::{ConfigError, Origin, Problem};
pub use features::{EMULATION_SAFE, FEATURES, Feature, Register};
pub use guard::Guard;
pub use host::{HOLE_END, HOLE_START, Host, RamRange, pmem_ranges, ram_ranges};
pub use host_path::HostPath;
pub use machine::{
    Backing, Boot, BuiltinGuest, Collapse, Console, Control, CpuModel, Dedup, Image, Irqchip,
    Kernel, Machine, MachineConfig, Memory, PageSize, Protocol, Rate, Ring0, Serial, Setting,
    Template, Unclaimed,
};

use std::path::Path;

impl MachineConfig {
    /// Reads the config at `path`, lays `overrides` (each `table.key=value`, `family.name.key=value` for a device) over it, and checks the whole against `host`.
    ///
    /// # Errors
    /// The first thing that is wrong, in the order: the file itself, its syntax, its keys from top to bottom, the
    /// overrides, the values.
    pub fn load(path: &Path, overrides: &[String], host: Host) -> Result<Self, ConfigError> {
        let text = file::read(path)?;
        Self::parse(&text, path, overrides, host)
    }

    /// As [`load`](Self::load), with the text at hand. `path` is for messages and for the folder that relative paths
    /// start from.
    ///
    /// # Errors
    /// As [`load`](Self::load), the file itself aside.
    pub fn parse(
        text: &str,
        path: &Path,
        overrides: &[String],
        host: Host,
    ) -> Result<Self, ConfigError> {
        let mut raw = raw::Document::parse(text, path)?;
        for assignment in overrides {
            raw.set(assignment)?;
        }
        resolve::resolve(&raw, host)
    }
}
