//! CPUID features by name, for `machine.cpu`.
//!
//! The names are those of Linux's `/proc/cpuinfo`; leaf, register and bit are from Intel's SDM vol. 2 (CPUID) and, for
//! `xop`, `fma4` and `sse4a`, AMD's APM vol. 3, appendix E; those of KVM are from Linux, Documentation/virt/kvm/x86/cpuid.rst. Only features that a guest may be better off without are listed.

use std::fmt;

use serde::{Serialize, Serializer};

/// A CPUID output register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// One CPUID feature bit: clear it in what the guest sees, and the feature is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Feature {
    /// The name in Linux's `/proc/cpuinfo`.
    pub name: &'static str,
    /// The leaf: what EAX holds before CPUID.
    pub leaf: u32,
    /// The subleaf: what ECX holds before CPUID.
    pub subleaf: u32,
    /// Where the bit comes back.
    pub register: Register,
    /// The bit, 0 to 31.
    pub bit: u8,
}

impl Feature {
    /// The feature of that name.
    pub fn named(name: &str) -> Option<Feature> {
        FEATURES.iter().copied().find(|f| f.name == name)
    }

    /// The bit as a mask of its register.
    pub const fn mask(self) -> u32 {
        1 << self.bit
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-{}", self.name)
    }
}

impl Serialize for Feature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

const fn bit(name: &'static str, leaf: u32, subleaf: u32, register: Register, bit: u8) -> Feature {
    Feature { name, leaf, subleaf, register, bit }
}

/// Every feature that can be switched off, in the order of leaf, register and bit.
pub const FEATURES: &[Feature] = &[
    bit("pclmulqdq", 0x1, 0, Register::Ecx, 1),
    bit("monitor", 0x1, 0, Register::Ecx, 3),
    bit("ssse3", 0x1, 0, Register::Ecx, 9),
    bit("fma", 0x1, 0, Register::Ecx, 12),
    bit("cx16", 0x1, 0, Register::Ecx, 13),
    bit("pcid", 0x1, 0, Register::Ecx, 17),
    bit("sse4_1", 0x1, 0, Register::Ecx, 19),
    bit("sse4_2", 0x1, 0, Register::Ecx, 20),
    bit("x2apic", 0x1, 0, Register::Ecx, 21),
    bit("movbe", 0x1, 0, Register::Ecx, 22),
    bit("popcnt", 0x1, 0, Register::Ecx, 23),
    bit("tsc_deadline_timer", 0x1, 0, Register::Ecx, 24),
    bit("aes", 0x1, 0, Register::Ecx, 25),
    bit("xsave", 0x1, 0, Register::Ecx, 26),
    bit("avx", 0x1, 0, Register::Ecx, 28),
    bit("f16c", 0x1, 0, Register::Ecx, 29),
    bit("rdrand", 0x1, 0, Register::Ecx, 30),
    bit("fsgsbase", 0x7, 0, Register::Ebx, 0),
    bit("bmi1", 0x7, 0, Register::Ebx, 3),
    bit("hle", 0x7, 0, Register::Ebx, 4),
    bit("avx2", 0x7, 0, Register::Ebx, 5),
    bit("smep", 0x7, 0, Register::Ebx, 7),
    bit("bmi2", 0x7, 0, Register::Ebx, 8),
    bit("erms", 0x7, 0, Register::Ebx, 9),
    bit("invpcid", 0x7, 0, Register::Ebx, 10),
    bit("rtm", 0x7, 0, Register::Ebx, 11),
    bit("avx512f", 0x7, 0, Register::Ebx, 16),
    bit("avx512dq", 0x7, 0, Register::Ebx, 17),
    bit("rdseed", 0x7, 0, Register::Ebx, 18),
    bit("adx", 0x7, 0, Register::Ebx, 19),
    bit("smap", 0x7, 0, Register::Ebx, 20),
    bit("avx512ifma", 0x7, 0, Register::Ebx, 21),
    bit("clflushopt", 0x7, 0, Register::Ebx, 23),
    bit("clwb", 0x7, 0, Register::Ebx, 24),
    bit("avx512cd", 0x7, 0, Register::Ebx, 28),
    bit("sha_ni", 0x7, 0, Register::Ebx, 29),
    bit("avx512bw", 0x7, 0, Register::Ebx, 30),
    bit("avx512vl", 0x7, 0, Register::Ebx, 31),
    bit("avx512vbmi", 0x7, 0, Register::Ecx, 1),
    bit("umip", 0x7, 0, Register::Ecx, 2),
    bit("pku", 0x7, 0, Register::Ecx, 3),
    bit("waitpkg", 0x7, 0, Register::Ecx, 5),
    bit("avx512_vbmi2", 0x7, 0, Register::Ecx, 6),
    bit("user_shstk", 0x7, 0, Register::Ecx, 7),
    bit("gfni", 0x7, 0, Register::Ecx, 8),
    bit("vaes", 0x7, 0, Register::Ecx, 9),
    bit("vpclmulqdq", 0x7, 0, Register::Ecx, 10),
    bit("avx512_vnni", 0x7, 0, Register::Ecx, 11),
    bit("avx512_bitalg", 0x7, 0, Register::Ecx, 12),
    bit("avx512_vpopcntdq", 0x7, 0, Register::Ecx, 14),
    bit("la57", 0x7, 0, Register::Ecx, 16),
    bit("rdpid", 0x7, 0, Register::Ecx, 22),
    bit("cldemote", 0x7, 0, Register::Ecx, 25),
    bit("movdiri", 0x7, 0, Register::Ecx, 27),
    bit("movdir64b", 0x7, 0, Register::Ecx, 28),
    bit("fsrm", 0x7, 0, Register::Edx, 4),
    bit("serialize", 0x7, 0, Register::Edx, 14),
    bit("ibt", 0x7, 0, Register::Edx, 20),
    bit("amx_bf16", 0x7, 0, Register::Edx, 22),
    bit("avx512_fp16", 0x7, 0, Register::Edx, 23),
    bit("amx_tile", 0x7, 0, Register::Edx, 24),
    bit("amx_int8", 0x7, 0, Register::Edx, 25),
    bit("avx_vnni", 0x7, 1, Register::Eax, 4),
    bit("avx512_bf16", 0x7, 1, Register::Eax, 5),
    bit("xsaveopt", 0xd, 1, Register::Eax, 0),
    bit("xsavec", 0xd, 1, Register::Eax, 1),
    bit("xgetbv1", 0xd, 1, Register::Eax, 2),
    bit("xsaves", 0xd, 1, Register::Eax, 3),
    bit("kvm_pv_unhalt", 0x4000_0001, 0, Register::Eax, 7),
    bit("kvm_pv_ipi", 0x4000_0001, 0, Register::Eax, 11),
    bit("kvm_pv_sched_yield", 0x4000_0001, 0, Register::Eax, 13),
    bit("abm", 0x8000_0001, 0, Register::Ecx, 5),
    bit("sse4a", 0x8000_0001, 0, Register::Ecx, 6),
    bit("3dnowprefetch", 0x8000_0001, 0, Register::Ecx, 8),
    bit("xop", 0x8000_0001, 0, Register::Ecx, 11),
    bit("fma4", 0x8000_0001, 0, Register::Ecx, 16),
    bit("nx", 0x8000_0001, 0, Register::Edx, 20),
    bit("pdpe1gb", 0x8000_0001, 0, Register::Edx, 26),
    bit("rdtscp", 0x8000_0001, 0, Register::Edx, 27),
];

/// What `cpu = "emulation-safe"` switches off.
///
/// A host may run a guest's ring 0 through KVM's instruction emulator, which stops the guest at an instruction that it
/// does not decode. A kernel runs most of those only where CPUID offers them: CMPXCHG16B, POPCNT, STAC and CLAC, RDRAND,
/// INVPCID, RDTSCP, WRFSBASE, and everything with a VEX prefix. LZCNT (`abm`) is worse than not decoded: the emulator takes
/// it for BSR and gives another result. XSAVE, AVX and AVX-512 stay: on such a host a program at ring 3 asks the processor
/// itself what there is, and uses it; a kernel that did not save those registers would lose them. What KVM offers by
/// hypercalls goes: its emulator first writes the instruction anew, and kernel code is read-only.
pub const EMULATION_SAFE: &[&str] = &[
    "pclmulqdq",
    "monitor",
    "ssse3",
    "fma",
    "cx16",
    "sse4_1",
    "sse4_2",
    "popcnt",
    "aes",
    "f16c",
    "rdrand",
    "fsgsbase",
    "bmi1",
    "hle",
    "avx2",
    "bmi2",
    "invpcid",
    "rtm",
    "avx512dq",
    "rdseed",
    "adx",
    "smap",
    "avx512ifma",
    "clwb",
    "avx512cd",
    "sha_ni",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "pku",
    "waitpkg",
    "avx512_vbmi2",
    "user_shstk",
    "gfni",
    "vaes",
    "vpclmulqdq",
    "avx512_vnni",
    "avx512_bitalg",
    "avx512_vpopcntdq",
    "cldemote",
    "movdiri",
    "movdir64b",
    "serialize",
    "ibt",
    "amx_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "avx_vnni",
    "avx512_bf16",
    "xsaveopt",
    "xsavec",
    "xgetbv1",
    "xsaves",
    "kvm_pv_unhalt",
    "kvm_pv_ipi",
    "kvm_pv_sched_yield",
    "abm",
    "sse4a",
    "xop",
    "fma4",
    "rdtscp",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_and_every_bit_stands_once() {
        let names: HashSet<_> = FEATURES.iter().map(|f| f.name).collect();
        assert_eq!(names.len(), FEATURES.len());
        let bits: HashSet<_> =
            FEATURES.iter().map(|f| (f.leaf, f.subleaf, f.register, f.bit)).collect();
        assert_eq!(bits.len(), FEATURES.len());
        assert!(FEATURES.iter().all(|f| f.bit < 32));
    }

    #[test]
    fn emulation_safe_names_known_features() {
        for name in EMULATION_SAFE {
            assert!(Feature::named(name).is_some(), "{name}");
        }
    }
}
