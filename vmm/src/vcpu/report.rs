//! What is said of a vCPU when it cannot go on: where it was, the bytes there, its registers.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_run, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// The longest instruction of the architecture, in bytes (SDM vol. 2A, 2.3.11).
const INSTRUCTION_BYTES: usize = 15;

/// `KVM_INTERNAL_ERROR_EMULATION`: the emulator does not know the instruction.
const SUBERROR_EMULATION: u32 = 1;
/// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`: the exit carries the bytes.
const FLAG_INSTRUCTION_BYTES: u64 = 1;

/// A vCPU at its end.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct CpuReport {
    /// Its number.
    pub vcpu: u8,
    /// The instruction pointer.
    pub rip: u64,
    /// The privilege level, 0 to 3.
    pub cpl: u8,
    /// The bytes at the instruction pointer, as many as could be read.
    pub bytes: Vec<u8>,
    /// General registers by name.
    pub registers: Vec<(&'static str, u64)>,
}

impl CpuReport {
    /// The state of `vcpu`; `read` copies guest-physical memory, as far as it is there.
    pub(super) fn of(vcpu: &VcpuFd, index: u8, read: &dyn Fn(u64, &mut [u8]) -> bool) -> CpuReport {
        // A vCPU that cannot even be asked is reported with zeroes.
        let regs = vcpu.get_regs().unwrap_or_default();
        let sregs = vcpu.get_sregs().unwrap_or_default();
        CpuReport {
            vcpu: index,
            rip: regs.rip,
            cpl: sregs.ss.dpl,
            bytes: bytes_at(vcpu, sregs.cs.base.wrapping_add(regs.rip), read),
            registers: registers(&regs, &sregs),
        }
    }

    /// The registers, four to a line.
    pub fn register_lines(&self) -> impl Iterator<Item = String> {
        self.registers.chunks(4).map(|line| {
            let cells: Vec<String> =
                line.iter().map(|(name, value)| format!("{name:>6} {value:016x}")).collect();
            cells.join(" ")
        })
    }
}

impl fmt::Display for CpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rip {:#x} (vcpu {}, ring {}), bytes", self.rip, self.vcpu, self.cpl)?;
        if self.bytes.is_empty() {
            return f.write_str(" unreadable");
        }
        self.bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

/// Whether `KVM_EXIT_INTERNAL_ERROR` is about an instruction that KVM cannot emulate.
pub(super) fn is_emulation_failure(run: &kvm_run) -> bool {
    #[allow(unsafe_code, reason = "the exit's part of a union")]
    // SAFETY: the caller has seen KVM_EXIT_INTERNAL_ERROR, whose part of the union this is.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    internal.suberror == SUBERROR_EMULATION
}

/// What `KVM_EXIT_INTERNAL_ERROR` says.
pub(super) fn internal_error(run: &kvm_run) -> String {
    #[allow(unsafe_code, reason = "the exit's part of a union")]
    // SAFETY: the caller has seen KVM_EXIT_INTERNAL_ERROR, whose part of the union this is.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let what = match internal.suberror {
        SUBERROR_EMULATION => "KVM cannot emulate the instruction".to_owned(),
        2 => "KVM met two exceptions at once".to_owned(),
        3 => "KVM could not deliver an event".to_owned(),
        4 => "KVM got an exit reason that it does not know".to_owned(),
        other => format!("KVM gave up with suberror {other}"),
    };
    let data = &internal.data[..(internal.ndata as usize).min(internal.data.len())];
    match data {
        // Linux, `struct kvm_run`, `emulation_failure`: flags, then the length and the bytes.
        [flags, first, second, ..]
            if internal.suberror == SUBERROR_EMULATION && flags & FLAG_INSTRUCTION_BYTES != 0 =>
        {
            let raw = [first.to_le_bytes(), second.to_le_bytes()].concat();
            let length = usize::from(raw[0]).min(INSTRUCTION_BYTES);
            let bytes: Vec<String> = raw[1..=length].iter().map(|b| format!("{b:02x}")).collect();
            format!("{what} ({} as KVM fetched it)", bytes.join(" "))
        }
        _ => what,
    }
}

fn bytes_at(vcpu: &VcpuFd, linear: u64, read: &dyn Fn(u64, &mut [u8]) -> bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(INSTRUCTION_BYTES);
    // Byte by byte, because the next page may lie elsewhere or nowhere.
    for i in 0..INSTRUCTION_BYTES as u64 {
        let mut byte = [0];
        let translated = vcpu.translate_gva(linear.wrapping_add(i));
        match translated {
            Ok(at) if at.valid != 0 && read(at.physical_address, &mut byte) => bytes.push(byte[0]),
            _ => break,
        }
    }
    bytes
}

fn registers(regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<(&'static str, u64)> {
    vec![
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("rflags", regs.rflags),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("efer", sregs.efer),
        ("cs", sregs.cs.selector.into()),
        ("ss", sregs.ss.selector.into()),
        ("gdt", sregs.gdt.base),
        ("idt", sregs.idt.base),
        ("tr", sregs.tr.base),
    ]
}
