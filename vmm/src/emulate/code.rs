//! Instructions that were decoded, by address.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::exception::Exception;
use super::linear::{Access, Linear, Trouble};
use super::tlb::Tlb;

/// The longest instruction (SDM vol. 2A, 2.3.11).
const INSTRUCTION_MAX: usize = 15;
/// Instructions that are kept. Each takes 64 bytes.
const PLACES: usize = 1 << 15;
const PAGE: u64 = 4096;

/// An instruction and the bytes that it was decoded from: a guest changes its code, and tells nobody.
#[derive(Clone, Copy)]
struct Kept {
    instruction: Instruction,
    bytes: u128,
    /// Which of `bytes` it has.
    mask: u128,
}

/// 64-bit code.
pub(super) struct Code {
    kept: Box<[Kept]>,
}

impl Default for Code {
    fn default() -> Self {
        let none = Kept { instruction: Instruction::new(), bytes: 0, mask: 0 };
        Code { kept: vec![none; PLACES].into() }
    }
}

impl Code {
    /// The instruction at `rip`.
    ///
    /// # Errors
    /// It cannot be fetched, or is none.
    #[inline]
    pub(super) fn at(&mut self, rip: u64, memory: &Tlb<'_>) -> Result<&Instruction, Trouble> {
        // Sixteen bytes are compared at once; near the end of a page there are none.
        if rip % PAGE > PAGE - 16 {
            return self.decode_apart(rip, memory);
        }
        let bytes = memory.sixteen(rip)?;
        let kept = &mut self.kept[place(rip)];
        if kept.instruction.ip() == rip && kept.mask != 0 && kept.bytes == bytes & kept.mask {
            return Ok(&self.kept[place(rip)].instruction);
        }
        let instruction = decode(64, rip, &bytes.to_le_bytes()[..INSTRUCTION_MAX])
            .ok_or(Trouble::Raised(Exception::invalid_opcode()))?;
        let mask = (1 << (8 * instruction.len())) - 1;
        *kept = Kept { instruction, bytes: bytes & mask, mask };
        Ok(&self.kept[place(rip)].instruction)
    }

    #[cold]
    fn decode_apart(&mut self, rip: u64, memory: &Tlb<'_>) -> Result<&Instruction, Trouble> {
        let instruction = fetch(64, rip, rip, memory)?;
        // Not to be found again: its bytes were not compared.
        let kept = &mut self.kept[place(rip)];
        *kept = Kept { instruction, bytes: 0, mask: 0 };
        Ok(&kept.instruction)
    }
}

fn place(rip: u64) -> usize {
    // Instructions are three to four bytes long on an average; neighbours get places of their own all the same.
    (rip ^ rip >> 15) as usize % PLACES
}

/// Reads and decodes the instruction at RIP, which is `rip` and lies at the linear address `at`; code is `bitness` bits wide.
///
/// # Errors
/// It cannot be fetched, or is none.
pub(super) fn fetch(
    bitness: u32,
    rip: u64,
    at: u64,
    memory: &dyn Linear,
) -> Result<Instruction, Trouble> {
    let mut bytes = [0; INSTRUCTION_MAX];
    // What is behind the page may not be there, and is only missed by an instruction that goes on there.
    let here = (PAGE - at % PAGE).min(INSTRUCTION_MAX as u64) as usize;
    memory.read(at, &mut bytes[..here], Access::Fetch)?;
    let mut found = decode(bitness, rip, &bytes[..here]);
    if found.is_none() && here < INSTRUCTION_MAX {
        memory.read(at.wrapping_add(here as u64), &mut bytes[here..], Access::Fetch)?;
        found = decode(bitness, rip, &bytes);
    }
    found.ok_or(Trouble::Raised(Exception::invalid_opcode()))
}

fn decode(bitness: u32, rip: u64, bytes: &[u8]) -> Option<Instruction> {
    let instruction = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}
