//! One instruction on this machine's processor, and the same here.
#![allow(unsafe_code, reason = "the processor is given bytes to execute, and memory to do it in")]

use iced_x86::{Decoder, DecoderOptions};
use kvm_bindings::kvm_regs;
use vm_memory::VolatileSlice;

use crate::emulate::exception::{Exception, page_fault};
use crate::emulate::linear::{Access, Linear, Trouble};
use crate::emulate::{carry_out, cpu};

use super::{Nothing, cpu};

const PAGE: usize = 4096;
/// How much memory instructions have.
pub(super) const DATA: usize = 4 * PAGE;
const ARENA: usize = 2 * PAGE + DATA;
/// Where the parts of the second page are.
const IN: usize = PAGE;
const IN_FLAGS: usize = IN + 16 * 8;
const OUT: usize = PAGE + 256;
const OUT_FLAGS: usize = OUT + 16 * 8;
const HOST_STACK: usize = OUT_FLAGS + 8;
/// The instruction, in the first page.
const CODE: usize = 1024;
/// Bit 1 and IF, as they are at ring 3.
pub(super) const FLAGS_ALWAYS: u64 = 0x202;

/// General registers in the order of their encoding, flags, and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) regs: [u64; 16],
    pub(super) flags: u64,
    pub(super) data: Vec<u8>,
}

/// Memory below 2 GiB: a page of code, one of state, and what the instruction works on.
pub(super) struct Arena {
    at: *mut u8,
}

impl Arena {
    pub(super) fn new() -> Arena {
        // SAFETY: new memory, wherever the kernel finds room in the low 2 GiB.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                ARENA,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        let mut arena = Arena { at: at.cast() };
        arena.write_entry();
        arena
    }

    /// Where memory for operands begins.
    pub(super) fn data(&self) -> u64 {
        self.at as u64 + 2 * PAGE as u64
    }

    /// Where the instruction is.
    pub(super) fn code(&self) -> u64 {
        self.at as u64 + CODE as u64
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= ARENA);
        // SAFETY: the bytes lie in the arena, which is this value's own.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(offset), bytes.len()) }
    }

    fn take(&self, offset: usize, bytes: usize) -> Vec<u8> {
        assert!(offset + bytes <= ARENA);
        // SAFETY: as in `put`.
        unsafe { std::slice::from_raw_parts(self.at.add(offset), bytes).to_vec() }
    }

    fn word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.take(offset, 8).try_into().unwrap())
    }

    /// Sets the memory that instructions work on.
    pub(super) fn set_memory(&mut self, data: &[u8]) {
        self.put(2 * PAGE, data);
    }

    /// That memory.
    pub(super) fn memory(&self) -> Vec<u8> {
        self.take(2 * PAGE, DATA)
    }

    /// The four bytes of an absolute address, behind ModRM and SIB.
    fn absolute(&self, offset: usize) -> [u8; 4] {
        ((self.at as u64 + offset as u64) as u32).to_le_bytes()
    }

    /// Saves what the caller needs, and loads flags and registers.
    fn write_entry(&mut self) {
        // push rbx, rbp, r12-r15; pushfq; mov [HOST_STACK], rsp; push [IN_FLAGS]; popfq
        let mut code = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x9c];
        code.extend([0x48, 0x89, 0x24, 0x25]);
        code.extend(self.absolute(HOST_STACK));
        code.extend([0xff, 0x34, 0x25]);
        code.extend(self.absolute(IN_FLAGS));
        code.push(0x9d);
        for register in 0..16 {
            code.extend(self.mov(0x8b, register, IN + 8 * register));
        }
        // The instruction, at the end of all those before it.
        let skip = (CODE - code.len() - 5) as u32;
        code.push(0xe9);
        code.extend(skip.to_le_bytes());
        self.put(0, &code);
    }

    /// `mov` between a register and memory.
    fn mov(&self, opcode: u8, register: usize, offset: usize) -> Vec<u8> {
        let rex = 0x48 | if register >= 8 { 4 } else { 0 };
        let mut code = vec![rex, opcode, 0x04 | (register as u8 & 7) << 3, 0x25];
        code.extend(self.absolute(offset));
        code
    }

    /// The instruction, and the way back.
    fn write_code(&mut self, instruction: &[u8]) {
        let mut code = instruction.to_vec();
        for register in 0..16 {
            code.extend(self.mov(0x89, register, OUT + 8 * register));
        }
        // mov rsp, [HOST_STACK]; pushfq; pop [OUT_FLAGS]; popfq; pop r15-r12, rbp, rbx; ret
        code.extend([0x48, 0x8b, 0x24, 0x25]);
        code.extend(self.absolute(HOST_STACK));
        code.extend([0x9c, 0x8f, 0x04, 0x25]);
        code.extend(self.absolute(OUT_FLAGS));
        code.push(0x9d);
        code.extend([0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
        self.put(CODE, &code);
    }

    /// What the processor makes of `state`. The instruction raises no exception, and goes on behind itself.
    pub(super) fn native(&mut self, instruction: &[u8], state: &State) -> State {
        self.write_code(instruction);
        self.put(2 * PAGE, &state.data);
        for (register, value) in state.regs.iter().enumerate() {
            self.put(IN + 8 * register, &value.to_le_bytes());
        }
        self.put(IN_FLAGS, &state.flags.to_le_bytes());
        // SAFETY: the page holds a function of the platform's calling convention: it saves and restores what has to be,
        // flags included, and what it does between is the test's instruction, on the arena.
        unsafe {
            let entry: extern "sysv64" fn() = std::mem::transmute(self.at);
            entry();
        }
        State {
            regs: std::array::from_fn(|register| self.word(OUT + 8 * register)),
            flags: self.word(OUT_FLAGS),
            data: self.take(2 * PAGE, DATA),
        }
    }

    /// What is made of `state` here; the flags and RIP that it has afterwards.
    pub(super) fn emulated(
        &mut self,
        instruction: &[u8],
        state: &State,
    ) -> (Result<(), Trouble>, State, u64) {
        self.put(2 * PAGE, &state.data);
        let mut cpu = cpu(3);
        load(&mut cpu.regs, state);
        cpu.regs.rip = self.code();
        let decoded = Decoder::with_ip(64, instruction, self.code(), DecoderOptions::NONE).decode();
        assert!(!decoded.is_invalid(), "{instruction:02x?} is no instruction");
        let mut done;
        loop {
            done = carry_out(&decoded, &mut cpu, self, &Nothing);
            // A repeated string goes on until the engine would go on elsewhere.
            if done.is_err() || cpu.regs.rip != self.code() {
                break;
            }
        }
        let after =
            State { regs: unload(&cpu), flags: cpu.regs.rflags, data: self.take(2 * PAGE, DATA) };
        (done, after, cpu.regs.rip)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        let unmapped = unsafe { libc::munmap(self.at.cast(), ARENA) };
        assert_eq!(unmapped, 0);
    }
}

fn load(regs: &mut kvm_regs, state: &State) {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.regs;
    let rflags = state.flags;
    let rip = 0;
    *regs = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    };
}

fn unload(cpu: &cpu::Cpu) -> [u64; 16] {
    let r = &cpu.regs;
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

/// Linear addresses are the process's own, and the arena's data all that there is.
impl Linear for Arena {
    fn with(
        &self,
        address: u64,
        bytes: usize,
        access: Access,
        act: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<(), Trouble> {
        let code = if access == Access::Write { page_fault::WRITE } else { 0 };
        let at = address.wrapping_sub(self.data());
        if at.saturating_add(bytes as u64) > DATA as u64 {
            return Err(Exception::page_fault(address, code).into());
        }
        assert!(address % PAGE as u64 + bytes as u64 <= PAGE as u64, "over the end of a page");
        // SAFETY: the bytes lie in the arena, which outlives the call.
        act(unsafe { VolatileSlice::new(address as *mut u8, bytes) });
        Ok(())
    }
}
