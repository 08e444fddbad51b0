//! Instructions and states to try them with.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic,
    OpCodeOperandKind as Kind, OpKind, Register,
};

use super::native::{Arena, DATA, FLAGS_ALWAYS, State};

/// A generator of numbers (splitmix64), the same at each run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// A value at which something happens, half of the time.
    pub(super) fn value(&mut self) -> u64 {
        let bits = [7, 8, 15, 16, 31, 32, 63][self.below(7) as usize];
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << bits,
            3 => (1 << bits) - 1,
            4 => self.below(80).wrapping_sub(8),
            _ => self.next(),
        }
    }
}

/// An instruction, and what has to be in registers for its operand in memory to be where it should.
pub(super) struct Variant {
    pub(super) bytes: Vec<u8>,
    pub(super) instruction: Instruction,
    address: Vec<(usize, u64)>,
}

/// The general register of `bytes` bytes with this number; 16 and above are the old high bytes.
fn register(bytes: usize, number: u64) -> Register {
    let first = match bytes {
        1 if number >= 16 => {
            return [Register::AH, Register::CH, Register::DH, Register::BH][number as usize & 3];
        }
        1 if number >= 4 => Register::SPL as u64 - 4,
        1 => Register::AL as u64,
        2 => Register::AX as u64,
        4 => Register::EAX as u64,
        _ => Register::RAX as u64,
    };
    Register::values().nth((first + number) as usize).unwrap()
}

/// The number of a register of 16 bits or more.
fn number(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

fn any_register(numbers: &mut Numbers, bytes: usize) -> Register {
    let number = numbers.below(if bytes == 1 { 20 } else { 16 });
    register(bytes, number)
}

/// All forms of an instruction in 64-bit mode, but for those of processors that are no longer made.
pub(super) fn codes(mnemonic: Mnemonic) -> impl Iterator<Item = Code> {
    Code::values().filter(move |code| {
        let of_today = !matches!(code.encoding(), EncodingKind::XOP | EncodingKind::MVEX);
        code.mnemonic() == mnemonic && code.op_code().mode64() && of_today
    })
}

/// One way to write `code`, or `None` where its operands are not for general registers and memory, or do not go together.
pub(super) fn variant(code: Code, numbers: &mut Numbers, arena: &Arena) -> Option<Variant> {
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    let mut address = Vec::new();
    for (operand, kind) in code.op_code().op_kinds().iter().enumerate() {
        let operand = operand as u32;
        let memory = numbers.one_in(2);
        let bytes = match kind {
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => 1,
            Kind::r16_or_mem | Kind::r16_reg | Kind::r16_opcode | Kind::r16_rm => 2,
            Kind::r32_or_mem | Kind::r32_reg | Kind::r32_opcode | Kind::r32_rm | Kind::r32_vvvv => {
                4
            }
            _ => 8,
        };
        let set = |instruction: &mut Instruction, register| {
            instruction.set_op_kind(operand, OpKind::Register);
            instruction.set_op_register(operand, register);
        };
        let immediate = numbers.value();
        match kind {
            Kind::r8_or_mem | Kind::r16_or_mem | Kind::r32_or_mem | Kind::r64_or_mem if memory => {
                address = set_memory(&mut instruction, operand, numbers, arena);
            }
            Kind::mem => address = set_memory(&mut instruction, operand, numbers, arena),
            Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::r8_reg
            | Kind::r16_reg
            | Kind::r32_reg
            | Kind::r64_reg
            | Kind::r8_opcode
            | Kind::r16_opcode
            | Kind::r32_opcode
            | Kind::r64_opcode
            | Kind::r16_rm
            | Kind::r32_rm
            | Kind::r64_rm
            | Kind::r32_vvvv
            | Kind::r64_vvvv => set(&mut instruction, any_register(numbers, bytes)),
            Kind::al => set(&mut instruction, Register::AL),
            Kind::cl => set(&mut instruction, Register::CL),
            Kind::ax => set(&mut instruction, Register::AX),
            Kind::eax => set(&mut instruction, Register::EAX),
            Kind::rax => set(&mut instruction, Register::RAX),
            Kind::mem_offs => {
                instruction.set_op_kind(operand, OpKind::Memory);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(target(numbers, arena));
            }
            Kind::imm8 => set_immediate(&mut instruction, operand, OpKind::Immediate8, immediate),
            Kind::imm8_const_1 => set_immediate(&mut instruction, operand, OpKind::Immediate8, 1),
            Kind::imm16 => set_immediate(&mut instruction, operand, OpKind::Immediate16, immediate),
            Kind::imm32 => set_immediate(&mut instruction, operand, OpKind::Immediate32, immediate),
            Kind::imm64 => set_immediate(&mut instruction, operand, OpKind::Immediate64, immediate),
            Kind::imm8sex16 => {
                sign_extended(&mut instruction, operand, OpKind::Immediate8to16, immediate);
            }
            Kind::imm8sex32 => {
                sign_extended(&mut instruction, operand, OpKind::Immediate8to32, immediate);
            }
            Kind::imm8sex64 => {
                sign_extended(&mut instruction, operand, OpKind::Immediate8to64, immediate);
            }
            Kind::imm32sex64 => {
                instruction.set_op_kind(operand, OpKind::Immediate32to64);
                instruction.set_immediate32to64(immediate as i32 as i64);
            }
            Kind::seg_rSI => instruction.set_op_kind(operand, OpKind::MemorySegRSI),
            Kind::es_rDI => instruction.set_op_kind(operand, OpKind::MemoryESRDI),
            Kind::br64_1 | Kind::br64_4 => {
                instruction.set_op_kind(operand, OpKind::NearBranch64);
                instruction.set_near_branch64(arena.code() + 0x80);
            }
            _ => return None,
        }
    }
    let in_memory = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
    if in_memory && code.op_code().can_use_lock_prefix() && numbers.one_in(3) {
        instruction.set_has_lock_prefix(true);
    }
    let mut encoder = Encoder::new(64);
    // Not all go together: an old high byte and a prefix for the new registers.
    encoder.encode(&instruction, arena.code()).ok()?;
    let bytes = encoder.take_buffer();
    // Some are of processors that this one is none of.
    if Decoder::new(64, &bytes, DecoderOptions::NONE).decode().is_invalid() {
        return None;
    }
    Some(Variant { bytes, instruction, address })
}

fn set_immediate(instruction: &mut Instruction, operand: u32, kind: OpKind, value: u64) {
    instruction.set_op_kind(operand, kind);
    match kind {
        OpKind::Immediate8 => instruction.set_immediate8(value as u8),
        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
        OpKind::Immediate32 => instruction.set_immediate32(value as u32),
        _ => instruction.set_immediate64(value),
    }
}

fn sign_extended(instruction: &mut Instruction, operand: u32, kind: OpKind, value: u64) {
    instruction.set_op_kind(operand, kind);
    match kind {
        OpKind::Immediate8to16 => instruction.set_immediate8to16(value as i8 as i16),
        OpKind::Immediate8to32 => instruction.set_immediate8to32(value as i8 as i32),
        _ => instruction.set_immediate8to64(value as i8 as i64),
    }
}

/// Somewhere in the middle of memory: aligned, or over the end of a page.
fn target(numbers: &mut Numbers, arena: &Arena) -> u64 {
    let middle = arena.data() + DATA as u64 / 2;
    match numbers.below(4) {
        0 => middle - numbers.below(16),
        1 => middle + 64 + numbers.below(64),
        _ => middle + 16 * numbers.below(8),
    }
}

/// An operand in memory: relative to nothing, to RIP, or to registers.
fn set_memory(
    instruction: &mut Instruction,
    operand: u32,
    numbers: &mut Numbers,
    arena: &Arena,
) -> Vec<(usize, u64)> {
    let target = target(numbers, arena);
    instruction.set_op_kind(operand, OpKind::Memory);
    let bytes = if numbers.one_in(6) { 4 } else { 8 };
    instruction.set_memory_displ_size(8);
    let form = numbers.below(8);
    if form < 2 {
        let base = [Register::None, Register::RIP][form as usize];
        instruction.set_memory_base(base);
        instruction.set_memory_displacement64(target);
        return Vec::new();
    }
    let displacement = [0, numbers.below(100), numbers.below(4000)][numbers.below(3) as usize];
    let displacement = if numbers.one_in(2) { displacement } else { displacement.wrapping_neg() };
    instruction.set_memory_displ_size(if displacement == 0 { 0 } else { bytes as u32 });
    let cut = if bytes == 4 { displacement & 0xffff_ffff } else { displacement };
    instruction.set_memory_displacement64(cut);
    let rest = target.wrapping_sub(displacement);
    let base = numbers.below(16) as usize;
    // What is above 32 bits does not matter, but for the stack.
    let garbage = if bytes == 4 && base != 4 { numbers.next() << 32 } else { 0 };
    let narrow = |value: u64| if bytes == 4 { garbage | value & 0xffff_ffff } else { value };
    // RSP is no index.
    let index = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15][numbers.below(15) as usize];
    let scale = 1 << numbers.below(4);
    match form {
        2 | 3 if index != base => {
            instruction.set_memory_base(register(bytes, base as u64));
            instruction.set_memory_index(register(bytes, index as u64));
            instruction.set_memory_index_scale(scale);
            let by = numbers.below(32).wrapping_sub(16);
            let value = rest.wrapping_sub(by.wrapping_mul(u64::from(scale)));
            vec![(base, narrow(value)), (index, narrow(by))]
        }
        4 => {
            instruction.set_memory_index(register(bytes, index as u64));
            instruction.set_memory_index_scale(1);
            vec![(index, narrow(rest))]
        }
        _ => {
            instruction.set_memory_base(register(bytes, base as u64));
            vec![(base, narrow(rest))]
        }
    }
}

impl Variant {
    /// Flags, registers and memory, such that operands are in memory, and the stack.
    pub(super) fn state(&self, numbers: &mut Numbers, arena: &Arena) -> State {
        let mut regs = std::array::from_fn(|_| numbers.value());
        // RSP and RBP, for what works on the stack.
        regs[4] = arena.data() + DATA as u64 / 2 + 8 * numbers.below(32) + numbers.below(8);
        regs[5] = arena.data() + DATA as u64 / 2 + 8 * numbers.below(32);
        if numbers.one_in(2) {
            // Dividends that are not too large, with either sign.
            regs[2] = if numbers.one_in(3) { u64::MAX } else { numbers.below(3) };
        }
        self.limit_bit_offset(&mut regs, numbers);
        for (register, value) in &self.address {
            regs[*register] = *value;
        }
        let flags = numbers.next() & 0x8d5 | FLAGS_ALWAYS;
        let mut data = vec![0; DATA];
        for chunk in data[DATA / 2 - 64..DATA / 2 + 512].chunks_exact_mut(8) {
            chunk.copy_from_slice(&numbers.value().to_le_bytes());
        }
        State { regs, flags, data }
    }

    /// A bit string is no longer than memory.
    fn limit_bit_offset(&self, regs: &mut [u64; 16], numbers: &mut Numbers) {
        let mnemonics = [Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc];
        let is_string = mnemonics.contains(&self.instruction.mnemonic())
            && self.instruction.op0_kind() == OpKind::Memory
            && self.instruction.op1_kind() == OpKind::Register;
        if is_string {
            let offset = numbers.below(50_000).wrapping_sub(25_000);
            regs[number(self.instruction.op1_register())] = offset;
        }
    }

    /// Whether the register with the bit's offset is also part of the address, which leads anywhere.
    pub(super) fn leads_anywhere(&self) -> bool {
        let mnemonics = [Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc];
        mnemonics.contains(&self.instruction.mnemonic())
            && self.instruction.op1_kind() == OpKind::Register
            && self.address.iter().any(|(part, _)| *part == number(self.instruction.op1_register()))
    }

    /// How wide the operands are, in bits.
    pub(super) fn bits(&self) -> u64 {
        match self.instruction.op0_kind() {
            OpKind::Memory => 8 * self.instruction.memory_size().size() as u64,
            _ => 8 * self.instruction.op0_register().size() as u64,
        }
    }

    /// By how much a shift or rotation shifts `state`.
    pub(super) fn count(&self, state: &State) -> u64 {
        let last = self.instruction.op_count() - 1;
        let count = match self.instruction.op_kind(last) {
            OpKind::Immediate8 => self.instruction.immediate8().into(),
            _ => state.regs[1],
        };
        count & if self.bits() == 64 { 63 } else { 31 }
    }
}
