//! Instructions that were decoded, by address.
#![allow(unsafe_code, reason = "the processor is told what will be read")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::exception::Exception;
use super::linear::{Access, Linear, PAGE, Trouble};
use super::tlb::Tlb;

/// The longest instruction (SDM vol. 2A, 2.3.11).
const INSTRUCTION_MAX: usize = 15;
/// Instructions that are kept: some ticks' worth, so that those of a tick lie close together. Each takes 64 bytes.
const KEPT: usize = 1 << 14;
/// Where they are found, two for each.
const SETS: usize = 1 << 15;
/// How many instructions ahead the processor is told to fetch.
const AHEAD: usize = 4;

/// An instruction and the bytes that it was decoded from: a guest changes its code, and tells nobody. One line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Kept {
    instruction: Instruction,
    bytes: u128,
}

impl Kept {
    /// No bytes are like these, but for the longest of all, which no instruction has.
    const NEVER: u128 = u128::MAX;

    /// Whether it is what `bytes` are, if it is at their address.
    #[inline]
    fn is(&self, bytes: u128) -> bool {
        self.bytes == bytes & mask(&self.instruction)
    }
}

/// The bytes that an instruction has, of sixteen.
#[inline]
fn mask(instruction: &Instruction) -> u128 {
    !(u128::MAX << (8 * instruction.len()))
}

/// 64-bit code.
///
/// After some milliseconds of ring 3 a processor's caches have nothing of this, and waiting for memory would be most of a tick.
/// So instructions lie in the order in which they were met: the next one is behind the last, mostly, without a search, and is
/// fetched ahead.
pub(super) struct Code {
    kept: Vec<Kept>,
    /// By address; 0 is none.
    sets: Box<[[u32; 2]]>,
    /// The one that was found last.
    last: usize,
}

impl Default for Code {
    fn default() -> Self {
        let none = Kept { instruction: Instruction::new(), bytes: Kept::NEVER };
        let mut kept = Vec::with_capacity(KEPT);
        kept.push(none);
        Code { kept, sets: vec![[0; 2]; SETS].into(), last: 0 }
    }
}

impl Code {
    /// The instruction at `rip`.
    ///
    /// # Errors
    /// It cannot be fetched, or is none.
    #[inline]
    pub(super) fn at(&mut self, rip: u64, memory: &Tlb<'_>) -> Result<&Instruction, Trouble> {
        // Sixteen bytes are compared at once; near the end of a page the last sixteen, less those before RIP.
        let before = 16_u64.saturating_sub(PAGE - rip % PAGE);
        let bytes = memory.sixteen(rip - before)? >> (8 * before);
        let next = self.last + 1;
        let follows = self.kept.get(next).is_some_and(|kept| kept.instruction.ip() == rip);
        let found = if follows { next } else { self.find(rip) };
        let ahead = self.kept.as_ptr().wrapping_add(found + AHEAD);
        // SAFETY: a hint reads nothing, and takes any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
        if found != 0 && self.kept[found].is(bytes) {
            self.last = found;
            return Ok(&self.kept[found].instruction);
        }
        self.decode(rip, bytes, 16 - before as usize, memory)
    }

    /// Where the instruction at `rip` is, or 0.
    #[inline]
    fn find(&self, rip: u64) -> usize {
        let [first, second] = self.sets[set(rip)];
        let is_it = |at: u32| at != 0 && self.kept[at as usize].instruction.ip() == rip;
        if is_it(first) {
            first as usize
        } else if is_it(second) {
            second as usize
        } else {
            0
        }
    }

    /// Decodes the instruction at `rip`, where `here` of `bytes` are in its page, and keeps it.
    #[cold]
    fn decode(
        &mut self,
        rip: u64,
        bytes: u128,
        here: usize,
        memory: &Tlb<'_>,
    ) -> Result<&Instruction, Trouble> {
        let whole = decode(64, rip, &bytes.to_le_bytes()[..here.min(INSTRUCTION_MAX)]);
        let kept = match whole {
            Some(instruction) => Kept { instruction, bytes: bytes & mask(&instruction) },
            // Not to be found again where it goes on in the next page: its bytes were not compared.
            None => Kept { instruction: fetch(64, rip, rip, memory)?, bytes: Kept::NEVER },
        };
        let place = self.place(rip);
        self.kept[place] = kept;
        self.last = place;
        Ok(&self.kept[place].instruction)
    }

    /// Where the instruction at `rip` is to be kept: where it was, or in place of the older one of its set, or behind all.
    fn place(&mut self, rip: u64) -> usize {
        let found = self.find(rip);
        if found != 0 {
            return found;
        }
        if self.kept.len() == KEPT {
            *self = Code::default();
        }
        let set = &mut self.sets[set(rip)];
        let [newer, older] = *set;
        let place = if older == 0 { self.kept.len() } else { older as usize };
        *set = [place as u32, newer];
        if place == self.kept.len() {
            self.kept.push(self.kept[0]);
        }
        place
    }
}

fn set(rip: u64) -> usize {
    (rip ^ rip >> 15) as usize % SETS
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
