//! The boot image that a config asks for.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::boot::{
    self, AcpiMachine, BootError, BootImage, BootRequest, CpuCount, IdentityMap, IdentityPages,
    Packing, Protocol, RamLayout,
};
use crate::config::{self, Boot, Image, MachineConfig};
use crate::guests;

use super::MachineError;
use super::virtio::{in_acpi_tables, on_command_line};

/// Files larger than this are no kernels and no initrds.
const FILE_MAX: u64 = 2 << 30;

/// What the machine knows about itself that a guest wants to be told.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Frequency of the time stamp counter, in kHz.
    pub tsc_khz: u32,
    /// Whether the vCPUs have 1 GiB pages.
    pub one_gib_pages: bool,
}

/// Builds the image.
///
/// # Errors
/// [`MachineError::Boot`] and [`MachineError::File`], which name the key.
pub fn image(config: &MachineConfig, facts: Facts) -> Result<BootImage, MachineError> {
    let ram = RamLayout::new(config.memory.size.value.get())
        .map_err(|source| wrong(config, "memory.size", source))?;
    let vcpus = config.machine.vcpus.value;
    let Boot { image, cmdline } = &config.boot;
    let has_acpi = config.machine.acpi.value;
    // A kernel that is told of a device twice drives it twice.
    let devices = if has_acpi { String::new() } else { on_command_line(config) };
    match &image.value {
        Image::Guest(name) => {
            let guest =
                guests::find(name.as_str()).expect("the config names guests that there are");
            let cmdline =
                format!("{devices}{} cpus={vcpus} tsc_khz={}", cmdline.value, facts.tsc_khz);
            let mut request = BootRequest::new(guest.elf, ram);
            request.cmdline = cmdline.trim_start();
            request.identity = identity(facts);
            request.mp_table = (vcpus > 1).then(|| cpus(vcpus)).flatten();
            boot::load(&request).map_err(|source| wrong(config, "boot.cmdline", source))
        }
        Image::Kernel(kernel) => {
            let file = read(&kernel.path, "boot.kernel")?;
            let initrd = kernel.initrd.as_ref();
            let initrd = initrd.map(|path| read(&path.value, "boot.initrd")).transpose()?;
            let mut request = BootRequest::new(&file, ram);
            request.initrd = initrd.as_deref();
            let cmdline = format!("{devices}{}", cmdline.value);
            request.cmdline = &cmdline;
            request.protocol = match kernel.protocol.value {
                config::Protocol::Auto => Protocol::Auto,
                config::Protocol::Linux64 => Protocol::Linux64,
                config::Protocol::Pvh => Protocol::Pvh,
            };
            request.packing = if kernel.unpack.value { Packing::Unpack } else { Packing::AsIs };
            request.identity = identity(facts);
            let virtio = in_acpi_tables(config);
            if has_acpi {
                let tables = |cpus| AcpiMachine { cpus, virtio: &virtio };
                request.acpi = cpus(vcpus).map(tables);
            } else {
                request.mp_table = cpus(vcpus);
            }
            boot::load(&request).map_err(|source| wrong(config, key(&source), source))
        }
    }
}

fn identity(facts: Facts) -> IdentityMap {
    let pages = if facts.one_gib_pages { IdentityPages::OneGib } else { IdentityPages::TwoMib };
    IdentityMap { pages, ..IdentityMap::default() }
}

fn cpus(vcpus: u8) -> Option<CpuCount> {
    CpuCount::new(vcpus.into()).ok()
}

/// The key of the config that an error is about.
fn key(error: &BootError) -> &'static str {
    match error {
        BootError::RamSize { .. } | BootError::MemoryMapFull { .. } => "memory.size",
        BootError::EmptyInitrd | BootError::InitrdTooLarge { .. } => "boot.initrd",
        BootError::CmdlineTooLong { .. }
        | BootError::CmdlineByte { .. }
        | BootError::Cmdline { .. } => "boot.cmdline",
        BootError::CpuCount { .. } => "machine.vcpus",
        _ => "boot.kernel",
    }
}

fn wrong(config: &MachineConfig, key: &'static str, source: BootError) -> MachineError {
    let file = match (&config.boot.image.value, key) {
        (Image::Kernel(kernel), "boot.initrd") => {
            kernel.initrd.as_ref().map(|path| path.value.clone())
        }
        (Image::Kernel(kernel), "boot.kernel") => Some(kernel.path.clone()),
        _ => None,
    };
    MachineError::Boot { config: config.file.clone(), key, file, source }
}

fn read(path: &Path, key: &'static str) -> Result<Vec<u8>, MachineError> {
    let failed = |source| MachineError::File { key, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > FILE_MAX {
        return Err(failed(std::io::Error::other(
            "larger than 2 GiB, which is no kernel or initrd",
        )));
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
