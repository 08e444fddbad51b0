//! What a guest can see of its machine: a state fits a machine that looks the same.

use std::fmt::Debug;

use devices::virtio::device::Shape;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use crate::config::{self, DeviceKind, Irqchip, MachineConfig, Sharing};

/// A machine as its guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Where RAM is, in ascending order.
    pub ram: Vec<Extent>,
    /// Other memory, with the name of its device.
    pub memory: Vec<DeviceMemory>,
    /// Pages that must not be touched.
    pub guard: Vec<Extent>,
    /// vCPUs.
    pub vcpus: u8,
    /// What CPUID tells the first of them.
    pub cpuid: Vec<Leaf>,
    /// Whether there are a PC's interrupt controllers and timer.
    pub irqchip: bool,
    /// Whether there are the power registers of ACPI.
    pub acpi: bool,
    /// The virtio devices, in their order on the bus.
    pub devices: Vec<NamedShape>,
}

/// A range of guest-physical memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Its first address.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
}

/// Memory of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceMemory {
    /// The device's name.
    pub name: String,
    /// Where it is.
    pub at: Extent,
    /// Whether the guest has pages of its own in it.
    pub private: bool,
}

/// One leaf of CPUID, or one subleaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    leaf: u32,
    subleaf: u32,
    flags: u32,
    /// EAX, EBX, ECX and EDX.
    values: [u32; 4],
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedShape {
    /// Its name.
    pub name: String,
    /// What its driver sees.
    pub shape: Shape,
}

impl Fingerprint {
    /// The machine of `config`, whose first vCPU is told `cpuid`, with these devices.
    pub fn new(config: &MachineConfig, cpuid: &CpuId, devices: Vec<NamedShape>) -> Fingerprint {
        let memory = config.devices.iter().filter_map(|device| match &device.kind {
            DeviceKind::Pmem(pmem) => Some(DeviceMemory {
                name: format!("{}.{}", device.kind.family(), device.name),
                at: Extent::of(pmem.range),
                private: pmem.sharing.value == Sharing::Private,
            }),
            _ => None,
        });
        let guard = config.memory.guard.value.iter();
        Fingerprint {
            ram: config.memory.ram().map(Extent::of).collect(),
            memory: memory.collect(),
            guard: guard
                .map(|guard| Extent { start: guard.start(), bytes: guard.length().get() })
                .collect(),
            vcpus: config.machine.vcpus.value,
            cpuid: cpuid.as_slice().iter().map(Leaf::of).collect(),
            irqchip: config.machine.irqchip.value == Irqchip::Kernel,
            acpi: config.machine.acpi.value,
            devices,
        }
    }

    /// The first thing in which `here` differs from this, which was saved: a sentence, if there is one.
    pub fn difference(&self, here: &Fingerprint) -> Option<String> {
        let number = |what: &str, then: u64, now: u64| {
            (then != now)
                .then(|| format!("it was saved with {then} {what}, and this machine has {now}"))
        };
        let yes_or_no = |what: &str, then: bool, now: bool| {
            let word = |there: bool| if there { "with" } else { "without" };
            (then != now).then(|| {
                format!("it was saved {} {what}, and this machine is {} it", word(then), word(now))
            })
        };
        let total = |ram: &[Extent]| ram.iter().map(|range| range.bytes).sum();
        number("bytes of RAM", total(&self.ram), total(&here.ram))
            .or_else(|| lists("ranges of RAM", &self.ram, &here.ram))
            .or_else(|| lists("guard pages", &self.guard, &here.guard))
            .or_else(|| number("vCPUs", self.vcpus.into(), here.vcpus.into()))
            .or_else(|| yes_or_no("an interrupt controller", self.irqchip, here.irqchip))
            .or_else(|| yes_or_no("ACPI", self.acpi, here.acpi))
            .or_else(|| number("devices", self.devices.len() as u64, here.devices.len() as u64))
            .or_else(|| self.devices.iter().zip(&here.devices).find_map(|(a, b)| a.difference(b)))
            .or_else(|| lists("memory of devices", &self.memory, &here.memory))
            .or_else(|| self.cpuid_difference(here))
    }

    fn cpuid_difference(&self, here: &Fingerprint) -> Option<String> {
        let find = |all: &[Leaf], leaf: &Leaf| {
            all.iter()
                .copied()
                .find(|other| (other.leaf, other.subleaf) == (leaf.leaf, leaf.subleaf))
        };
        let told = |leaf: Option<Leaf>| match leaf {
            Some(Leaf { values: [a, b, c, d], .. }) => format!("{a:08x} {b:08x} {c:08x} {d:08x}"),
            None => "nothing".into(),
        };
        let all = self.cpuid.iter().chain(&here.cpuid);
        let differs =
            all.copied().find(|leaf| find(&self.cpuid, leaf) != find(&here.cpuid, leaf))?;
        Some(format!(
            "CPUID leaf {:#x}.{} was {}, and is {} in this machine: restore it on a processor of the same kind, \
             or save it with a machine.cpu that hides what only one of the two has",
            differs.leaf,
            differs.subleaf,
            told(find(&self.cpuid, &differs)),
            told(find(&here.cpuid, &differs)),
        ))
    }
}

impl NamedShape {
    fn difference(&self, here: &NamedShape) -> Option<String> {
        let name = &self.name;
        let Shape { device_type, features, queues } = &self.shape;
        if *name != here.name {
            return Some(format!(
                "it was saved with the device {name}, where this machine has {}",
                here.name
            ));
        }
        if *device_type != here.shape.device_type {
            return Some(format!(
                "{name} was of type {device_type}, and is of type {}",
                here.shape.device_type
            ));
        }
        if *features != here.shape.features {
            return Some(format!(
                "{name} offered the features {features:#x}, and offers {:#x}",
                here.shape.features
            ));
        }
        (*queues != here.shape.queues).then(|| {
            format!("{name} had queues of {queues:?} entries, and has {:?}", here.shape.queues)
        })
    }
}

fn lists<T: PartialEq + Debug>(what: &str, then: &[T], now: &[T]) -> Option<String> {
    (then != now)
        .then(|| format!("it was saved with the {what} {then:x?}, and this machine has {now:x?}"))
}

impl Extent {
    fn of(range: config::RamRange) -> Extent {
        Extent { start: range.start, bytes: range.length.get() }
    }
}

impl Leaf {
    fn of(entry: &kvm_cpuid_entry2) -> Leaf {
        Leaf {
            leaf: entry.function,
            subleaf: entry.index,
            flags: entry.flags,
            values: [entry.eax, entry.ebx, entry.ecx, entry.edx],
        }
    }
}
