//! A microVM as it is going to be: every value filled in and checked.

use serde::{Serialize, Serializer};

use super::devices::{DeviceKind, Pmem, Sharing};
use super::{
    Bytes, Device, EMULATION_SAFE, Feature, Guard, HostPath, Origin, RamRange, ram_ranges,
};

/// A value, and who set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Who set it. A value that `auto` stands for has the origin of the word `auto`.
    #[serde(flatten)]
    pub origin: Origin,
}

/// Defines an enum of keywords: each variant is one word of the config.
macro_rules! keywords {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every variant, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that stands for it in a config.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}

pub(super) use keywords;

keywords! {
    /// `machine.irqchip`, with `auto` decided.
    Irqchip {
        /// No interrupt controller: the guest polls.
        None = "none",
        /// KVM's PICs, IOAPIC and local APICs.
        Kernel = "kernel",
    }
}

keywords! {
    /// `machine.unclaimed`, with `auto` decided: what an access does that no device and no RAM claims.
    Unclaimed {
        /// It ends the machine with a report.
        Stop = "stop",
        /// It reads all ones, writes nothing, and is counted.
        Ignore = "ignore",
    }
}

keywords! {
    /// `machine.ring0`, with `auto` decided: who runs what a guest does in ring 0.
    Ring0 {
        /// KVM, on the processor or by emulation.
        Kvm = "kvm",
        /// This monitor, but for what is KVM's own.
        Monitor = "monitor",
    }
}

keywords! {
    /// `memory.backing`: what the pool's memory is made of.
    Backing {
        /// The best of what the host has.
        Auto = "auto",
        /// A memfd.
        Memfd = "memfd",
        /// A file on a private tmpfs mounted with huge pages.
        Tmpfs = "tmpfs",
        /// Pages reserved in hugetlbfs.
        Hugetlb = "hugetlb",
    }
}

keywords! {
    /// `memory.pages`: what one fault populates.
    PageSize {
        /// 4 KiB.
        Size4K = "4k",
        /// 2 MiB.
        Size2M = "2m",
        /// 1 GiB.
        Size1G = "1g",
    }
}

impl PageSize {
    /// The size itself.
    pub const fn bytes(self) -> Bytes {
        match self {
            PageSize::Size4K => Bytes::kib(4),
            PageSize::Size2M => Bytes::mib(2),
            PageSize::Size1G => Bytes::gib(1),
        }
    }
}

keywords! {
    /// `boot.guest`: the guests that are part of the monitor.
    BuiltinGuest {
        /// Says hello, reads what its command line asks for, and ends.
        Hello = "hello",
        /// Writes and checks every page of its RAM.
        Touch = "touch",
        /// Does so on every vCPU.
        Smp = "smp",
        /// Reads what a template filled its RAM with, and writes pages of its own.
        Clone = "clone",
        /// Changes words of its RAM at random, and times each change.
        Churn = "churn",
        /// Writes to a disk and checks what it reads back.
        Blk = "blk",
        /// Pings, echoes or streams over a network device.
        Net = "net",
        /// Answers lines on a virtio console.
        Console = "console",
        /// Reads bytes from an entropy device and checks them.
        Rng = "rng",
        /// Gives memory to a balloon, and takes it again.
        Balloon = "balloon",
        /// Reads and writes persistent memory.
        Pmem = "pmem",
        /// Talks to programs of the host over a socket device.
        Vsock = "vsock",
    }
}

keywords! {
    /// `boot.protocol`: how a kernel is entered.
    Protocol {
        /// What the kernel's file offers.
        Auto = "auto",
        /// The 64-bit entry of Linux's boot protocol.
        Linux64 = "linux64",
        /// The PVH entry that an ELF note names.
        Pvh = "pvh",
    }
}

/// `machine.cpu`: what CPUID shows the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// Everything that KVM supports here.
    Host,
    /// That, less what KVM's emulator cannot execute in ring 0: [`EMULATION_SAFE`].
    EmulationSafe,
    /// That, less these.
    #[serde(untagged)]
    Without(Vec<Feature>),
}

impl CpuModel {
    /// The features to hide from the guest.
    pub fn hidden(&self) -> Vec<Feature> {
        match self {
            CpuModel::Host => Vec::new(),
            CpuModel::EmulationSafe => {
                EMULATION_SAFE.iter().filter_map(|name| Feature::named(name)).collect()
            }
            CpuModel::Without(features) => features.clone(),
        }
    }
}

impl std::fmt::Display for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CpuModel::Host => f.write_str("host"),
            CpuModel::EmulationSafe => {
                write!(f, "emulation-safe: host less {} features", EMULATION_SAFE.len())
            }
            CpuModel::Without(features) => {
                f.write_str("host")?;
                features.iter().try_for_each(|feature| write!(f, " {feature}"))
            }
        }
    }
}

/// A microVM, as its config describes it. Made by [`MachineConfig::load`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    /// The config file, as it was named.
    pub file: HostPath,
    /// `[machine]`
    pub machine: Machine,
    /// `[memory]`
    pub memory: Memory,
    /// `[collapse]`
    pub collapse: Collapse,
    /// `[dedup]`
    pub dedup: Dedup,
    /// `[boot]`
    pub boot: Boot,
    /// `[console]`
    pub console: Console,
    /// `[control]`
    pub control: Control,
    /// The virtio devices, in their order on the bus.
    pub devices: Vec<Device>,
    /// All of it as TOML, with what flags changed and every path from the root on: the config for another time and place.
    #[serde(skip)]
    pub toml: String,
}

impl MachineConfig {
    /// The devices that are memory, with their names.
    pub fn pmem(&self) -> impl Iterator<Item = (&str, &Pmem)> + Clone {
        self.devices.iter().filter_map(|device| match &device.kind {
            DeviceKind::Pmem(pmem) => Some((device.name.as_str(), pmem)),
            _ => None,
        })
    }

    /// Bytes of persistent memory that the guest may have pages of its own for.
    fn private_pmem(&self) -> u64 {
        let private = self.pmem().filter(|(_, pmem)| pmem.sharing.value == Sharing::Private);
        private.map(|(_, pmem)| pmem.file.value.bytes.get()).sum()
    }

    /// Bytes of files that lie in the pool once, whoever has them.
    fn images(&self) -> u64 {
        let template = self.memory.template.as_ref();
        let template = template.map_or(0, |template| template.value.bytes.get());
        template + self.pmem().map(|(_, pmem)| pmem.file.value.bytes.get()).sum::<u64>()
    }

    /// What of the pool is for this machine alone, if it writes to all that it may: whole blocks.
    pub fn own_pool(&self) -> Bytes {
        // Cannot overflow: all of it has addresses in one guest.
        let ram = self.memory.size.value.get().next_multiple_of(Bytes::mib(2).get());
        Bytes::new(ram + self.private_pmem())
    }

    /// RAM, files and copies of them promised for each byte of pool there is: above 1 is overcommit.
    pub fn overcommit(&self) -> f64 {
        let promised = self.memory.size.value.get() + self.private_pmem() + self.images();
        promised as f64 / self.memory.pool.value.get() as f64
    }
}

/// `[machine]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Virtual CPUs, 1 to 8.
    pub vcpus: Setting<u8>,
    /// The interrupt controller.
    pub irqchip: Setting<Irqchip>,
    /// Whether the guest finds its machine in ACPI tables. Only with a kernel and its interrupt controller.
    pub acpi: Setting<bool>,
    /// What an access does that nothing claims.
    pub unclaimed: Setting<Unclaimed>,
    /// Who runs ring 0.
    pub ring0: Setting<Ring0>,
    /// What CPUID shows.
    pub cpu: Setting<CpuModel>,
    /// Threads that do the work of devices, 1 to 8.
    pub device_threads: Setting<u8>,
}

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The guest's RAM: a multiple of 4 KiB, not 0, and within the host's address width.
    pub size: Setting<Bytes>,
    /// What the RAM is before anyone writes to it; without one it is zeroes.
    pub template: Option<Setting<Template>>,
    /// What the RAM is populated from: a multiple of 2 MiB, at least one of [`pages`](Self::pages). Smaller than
    /// [`size`](Self::size) is overcommit.
    pub pool: Setting<Bytes>,
    /// What the pool is made of.
    pub backing: Setting<Backing>,
    /// What one fault populates. Never 4 KiB on hugetlb.
    pub pages: Setting<PageSize>,
    /// Threads that resolve faults, 1 to 8.
    pub fault_threads: Setting<u8>,
    /// Ranges that must not be touched: in RAM, in ascending order, without overlap.
    pub guard: Setting<Vec<Guard>>,
}

impl Memory {
    /// Where the RAM lies, around the MMIO hole.
    pub fn ram(&self) -> impl Iterator<Item = RamRange> + Clone + use<> {
        ram_ranges(self.size.value)
    }
}

/// A file that RAM is private over. It was there, and had so many bytes, when the config was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Template {
    /// The file, found from the config's folder.
    pub path: HostPath,
    /// Its size: a multiple of 4 KiB, at least that of RAM.
    pub bytes: Bytes,
}

/// `[collapse]`: how blocks of 4 KiB pages become huge pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collapse {
    /// Whether a thread looks for such blocks while the guest runs.
    pub background: Setting<bool>,
    /// Pages of a block, of 512, that may be absent and are then filled with zeroes: 0 to 511.
    pub max_holes: Setting<u32>,
    /// Whether pages may be moved.
    pub copying: Setting<bool>,
    /// Blocks that the thread looks at in a second.
    pub scan_rate: Setting<Rate>,
    /// Blocks that the thread copies in a second.
    pub copy_budget: Setting<Rate>,
}

/// `[dedup]`: how pages of the same bytes become one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dedup {
    /// Whether a thread looks for such pages while the guest runs. Never on hugetlb.
    pub background: Setting<bool>,
    /// Pages that the thread looks at in a second.
    pub scan_rate: Setting<Rate>,
    /// Pages that may be merged at one time.
    pub max_merged: Setting<u32>,
    /// Whether huge pages are split for pages in them that can be merged.
    pub split_huge: Setting<bool>,
}

/// How many in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// So many, 1 to a million.
    PerSecond(u32),
    /// As many as can be.
    Unlimited,
}

impl Rate {
    /// The most, if there is one.
    pub const fn limit(self) -> Option<u32> {
        match self {
            Rate::PerSecond(count) => Some(count),
            Rate::Unlimited => None,
        }
    }

    /// In words, of what there are so many in a second.
    pub fn of(self, what: &str) -> String {
        match self {
            Rate::PerSecond(count) => format!("{count} {what}/s"),
            Rate::Unlimited => "unlimited".to_owned(),
        }
    }
}

/// As in a config: a number, or `"unlimited"`.
impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Rate::PerSecond(count) => serializer.serialize_u32(*count),
            Rate::Unlimited => serializer.serialize_str("unlimited"),
        }
    }
}

/// `[boot]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// What runs.
    pub image: Setting<Image>,
    /// Its command line, without NUL and at most 2047 bytes.
    pub cmdline: Setting<String>,
}

/// What runs in the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Image {
    /// A guest that is part of the monitor.
    Guest(BuiltinGuest),
    /// A kernel from a file.
    Kernel(Kernel),
}

/// A kernel and what goes with it. Both files were there when the config was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// An ELF vmlinux or a bzImage, found from the config's folder.
    pub path: HostPath,
    /// How it is entered.
    pub protocol: Setting<Protocol>,
    /// Whether the ELF inside a bzImage is booted instead of the bzImage.
    pub unpack: Setting<bool>,
    /// The initial ramdisk, found from the config's folder.
    pub initrd: Option<Setting<HostPath>>,
}

/// `[console]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Console {
    /// Where the serial port leads.
    pub serial: Setting<Serial>,
}

/// Where the serial port leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Serial {
    /// The monitor's standard input and output.
    Stdio,
    /// Nowhere.
    Off,
    /// A file that is written; nothing is read. Its folder was there when the config was read.
    File(HostPath),
}

/// `[control]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Control {
    /// The socket where the running machine answers questions. Its folder was there when the config was read.
    pub socket: Option<Setting<HostPath>>,
}
