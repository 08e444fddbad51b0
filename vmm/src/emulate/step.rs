//! One instruction, its operands, and where it finds them.

use iced_x86::{Instruction, OpKind, Register};

use super::cpu::{Beyond, Cpu};
use super::exception::Exception;
use super::linear::{Linear, Trouble};

/// An instruction that is being carried out.
pub(super) struct Step<'a> {
    pub(super) instruction: &'a Instruction,
    pub(super) cpu: &'a mut Cpu,
    pub(super) memory: &'a dyn Linear,
    pub(super) beyond: &'a dyn Beyond,
}

impl Step<'_> {
    /// The linear address of the memory operand.
    ///
    /// # Errors
    /// It is not canonical, or there is none.
    #[inline]
    pub(super) fn address(&self) -> Result<u64, Trouble> {
        self.address_beyond(0)
    }

    /// The linear address `distance` bytes behind the memory operand, where a bit string goes on.
    ///
    /// # Errors
    /// As [`Step::address`].
    #[inline]
    pub(super) fn address_beyond(&self, distance: u64) -> Result<u64, Trouble> {
        let segment = self.instruction.memory_segment();
        let offset = self.offset(distance)?;
        self.linear(segment, offset)
    }

    /// The address of the memory operand in its segment, plus `distance`, cut to the address size.
    ///
    /// # Errors
    /// It is built from what is no general register.
    #[inline]
    pub(super) fn offset(&self, distance: u64) -> Result<u64, Trouble> {
        let instruction = self.instruction;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        // Relative to RIP, it is the whole address already.
        let mut offset = instruction.memory_displacement64().wrapping_add(distance);
        if !matches!(base, Register::None | Register::RIP | Register::EIP) {
            offset = offset.wrapping_add(self.cpu.get(base).ok_or(Trouble::Unknown)?);
        }
        if index != Register::None {
            let scaled = self.cpu.get(index).ok_or(Trouble::Unknown)?;
            let scale = u64::from(instruction.memory_index_scale());
            offset = offset.wrapping_add(scaled.wrapping_mul(scale));
        }
        let bytes = match (base, index) {
            (Register::None, Register::None) => instruction.memory_displ_size() as usize,
            (Register::None, index) => index.size(),
            (base, _) => base.size(),
        };
        Ok(cut(offset, bytes))
    }

    /// The linear address of `offset` in a segment.
    ///
    /// # Errors
    /// It is not canonical: #SS for the stack's segment, #GP for any other (SDM vol. 3A, 6.15).
    #[inline]
    pub(super) fn linear(&self, segment: Register, offset: u64) -> Result<u64, Trouble> {
        let base = self.cpu.segment_base(segment).ok_or(Trouble::Unknown)?;
        let address = base.wrapping_add(offset);
        if self.cpu.bitness() != 64 {
            return Ok(address & 0xffff_ffff);
        }
        if self.cpu.is_canonical(address) {
            return Ok(address);
        }
        Err(match segment {
            Register::SS => Exception::stack().into(),
            _ => Exception::protection().into(),
        })
    }

    /// Whether an operand is memory.
    #[inline]
    pub(super) fn is_memory(&self, operand: u32) -> bool {
        self.instruction.op_kind(operand) == OpKind::Memory
    }

    /// How wide an operand is, in bytes.
    #[inline]
    pub(super) fn width(&self, operand: u32) -> usize {
        if self.is_memory(operand) {
            self.instruction.memory_size().size()
        } else {
            self.instruction.op_register(operand).size()
        }
    }

    /// The value of an operand of at most 64 bits.
    ///
    /// # Errors
    /// It cannot be read, or is of a kind that is not known.
    #[inline]
    pub(super) fn read(&self, operand: u32) -> Result<u64, Trouble> {
        match self.instruction.op_kind(operand) {
            OpKind::Register => {
                self.cpu.get(self.instruction.op_register(operand)).ok_or(Trouble::Unknown)
            }
            OpKind::Memory => {
                let width = self.width(operand);
                if width > 8 {
                    return Err(Trouble::Unknown);
                }
                self.memory.load(self.address()?, width)
            }
            _ => self.instruction.try_immediate(operand).map_err(|_| Trouble::Unknown),
        }
    }

    /// Sets an operand of at most 64 bits.
    ///
    /// # Errors
    /// It cannot be written, or is of a kind that is not known.
    #[inline]
    pub(super) fn write(&mut self, operand: u32, value: u64) -> Result<(), Trouble> {
        match self.instruction.op_kind(operand) {
            OpKind::Register => {
                let register = self.instruction.op_register(operand);
                self.cpu.set(register, value).ok_or(Trouble::Unknown)
            }
            OpKind::Memory => {
                let width = self.width(operand);
                if width > 8 {
                    return Err(Trouble::Unknown);
                }
                self.memory.store(self.address()?, width, value)
            }
            _ => Err(Trouble::Unknown),
        }
    }

    /// A source of operand 0's width: an immediate is given as wide as that.
    ///
    /// # Errors
    /// As [`Step::read`].
    #[inline]
    pub(super) fn source(&self, operand: u32) -> Result<u64, Trouble> {
        Ok(cut(self.read(operand)?, self.width(0)))
    }

    /// Replaces operand 0 by what `change` makes of it; gives what it was. With LOCK it is one step for everybody else.
    ///
    /// # Errors
    /// As [`Step::write`]: nothing is changed.
    #[inline]
    pub(super) fn modify(&mut self, change: impl FnMut(u64) -> u64) -> Result<u64, Trouble> {
        match self.instruction.op_kind(0) {
            OpKind::Register => {
                let mut change = change;
                let register = self.instruction.op_register(0);
                let old = self.cpu.get(register).ok_or(Trouble::Unknown)?;
                self.cpu.set(register, change(old)).ok_or(Trouble::Unknown)?;
                Ok(old)
            }
            OpKind::Memory => self.modify_at(self.address()?, change),
            _ => Err(Trouble::Unknown),
        }
    }

    /// The same for operand 0 in memory, whose address is known.
    ///
    /// # Errors
    /// As [`Step::modify`].
    #[inline]
    pub(super) fn modify_at(
        &self,
        address: u64,
        mut change: impl FnMut(u64) -> u64,
    ) -> Result<u64, Trouble> {
        let width = self.width(0);
        if self.instruction.has_lock_prefix() {
            return self.memory.exchange(address, width, &mut change);
        }
        let old = self.memory.load(address, width)?;
        self.memory.store(address, width, change(old))?;
        Ok(old)
    }
}

/// `value` cut to `bytes` bytes.
#[inline]
pub(super) fn cut(value: u64, bytes: usize) -> u64 {
    if bytes >= 8 { value } else { value & ((1 << (8 * bytes)) - 1) }
}

/// The low `bytes` bytes of `value` with their sign.
#[inline]
pub(super) fn extend(value: u64, bytes: usize) -> u64 {
    match bytes {
        1 => value as i8 as u64,
        2 => value as i16 as u64,
        4 => value as i32 as u64,
        _ => value,
    }
}
