//! One instruction, its operands, and where it finds them.

use iced_x86::{Instruction, OpKind};

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
    pub(super) fn address(&self) -> Result<u64, Trouble> {
        let instruction = self.instruction;
        let operand = (0..instruction.op_count())
            .find(|&operand| instruction.op_kind(operand) == OpKind::Memory)
            .ok_or(Trouble::Unknown)?;
        let address = instruction
            .virtual_address(operand, 0, |register, _, _| self.cpu.address_part(register))
            .ok_or(Trouble::Unknown)?;
        if self.cpu.bitness() != 64 {
            return Ok(address & 0xffff_ffff);
        }
        // 57 bits with five levels; a kernel that has them is as content with the check for 48 left out.
        let bits = if self.cpu.sregs.cr4 & 1 << 12 != 0 { 57 } else { 48 };
        let sign = (address as i64) << (64 - bits) >> (64 - bits);
        if sign as u64 == address { Ok(address) } else { Err(Exception::protection().into()) }
    }

    /// Whether an operand is memory.
    pub(super) fn is_memory(&self, operand: u32) -> bool {
        self.instruction.op_kind(operand) == OpKind::Memory
    }

    /// How wide an operand is, in bytes.
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
}

/// `value` cut to `bytes` bytes.
pub(super) fn cut(value: u64, bytes: usize) -> u64 {
    if bytes >= 8 { value } else { value & ((1 << (8 * bytes)) - 1) }
}
