//! Which integer instruction is which operation.

use iced_x86::{Code, ConditionCode as When, Mnemonic, Register};

use crate::emulate::cpu::flag;
use crate::emulate::linear::Trouble;
use crate::emulate::step::Step;

use super::logic::Change;
use super::{arithmetic, flow, logic, movement, shift, stack, string};

/// Carries an integer instruction out.
///
/// # Errors
/// It raises an exception, or is none; then nothing is changed.
#[inline]
pub(super) fn execute(step: &mut Step<'_>) -> Result<(), Trouble> {
    match step.instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => movement::mov(step),
        Mnemonic::Movzx => movement::movzx(step),
        Mnemonic::Movsx | Mnemonic::Movsxd => movement::movsx(step),
        Mnemonic::Lea => movement::lea(step),
        Mnemonic::Xchg => movement::xchg(step),
        Mnemonic::Push => stack::push(step),
        Mnemonic::Pop => stack::pop(step),
        Mnemonic::Leave => stack::leave(step),
        Mnemonic::Bswap => movement::bswap(step),

        Mnemonic::Jmp => flow::jmp(step),
        Mnemonic::Call => flow::call(step),
        Mnemonic::Ret => flow::ret(step),
        Mnemonic::Jo => flow::jump_if(step, When::o),
        Mnemonic::Jno => flow::jump_if(step, When::no),
        Mnemonic::Jb => flow::jump_if(step, When::b),
        Mnemonic::Jae => flow::jump_if(step, When::ae),
        Mnemonic::Je => flow::jump_if(step, When::e),
        Mnemonic::Jne => flow::jump_if(step, When::ne),
        Mnemonic::Jbe => flow::jump_if(step, When::be),
        Mnemonic::Ja => flow::jump_if(step, When::a),
        Mnemonic::Js => flow::jump_if(step, When::s),
        Mnemonic::Jns => flow::jump_if(step, When::ns),
        Mnemonic::Jp => flow::jump_if(step, When::p),
        Mnemonic::Jnp => flow::jump_if(step, When::np),
        Mnemonic::Jl => flow::jump_if(step, When::l),
        Mnemonic::Jge => flow::jump_if(step, When::ge),
        Mnemonic::Jle => flow::jump_if(step, When::le),
        Mnemonic::Jg => flow::jump_if(step, When::g),
        Mnemonic::Loop => flow::count(step, When::None),
        Mnemonic::Loope => flow::count(step, When::e),
        Mnemonic::Loopne => flow::count(step, When::ne),
        Mnemonic::Jcxz => flow::jump_if_none(step, Register::CX),
        Mnemonic::Jecxz => flow::jump_if_none(step, Register::ECX),
        Mnemonic::Jrcxz => flow::jump_if_none(step, Register::RCX),

        Mnemonic::Add => arithmetic::add(step, false),
        Mnemonic::Adc => arithmetic::add(step, true),
        Mnemonic::Sub => arithmetic::sub(step, false),
        Mnemonic::Sbb => arithmetic::sub(step, true),
        Mnemonic::Cmp => arithmetic::cmp(step),
        Mnemonic::Inc => arithmetic::inc(step),
        Mnemonic::Dec => arithmetic::dec(step),
        Mnemonic::Neg => arithmetic::neg(step),
        Mnemonic::Mul => arithmetic::mul(step),
        Mnemonic::Imul => arithmetic::imul(step),
        Mnemonic::Div => arithmetic::div(step),
        Mnemonic::Idiv => arithmetic::idiv(step),
        Mnemonic::Xadd => arithmetic::xadd(step),
        Mnemonic::Cmpxchg => arithmetic::cmpxchg(step),

        Mnemonic::And => logic::combine(step, |a, b| a & b),
        Mnemonic::Or => logic::combine(step, |a, b| a | b),
        Mnemonic::Xor => logic::combine(step, |a, b| a ^ b),
        Mnemonic::Not => logic::not(step),
        Mnemonic::Test => logic::test(step),
        Mnemonic::Bt => logic::bit(step, Change::None),
        Mnemonic::Bts => logic::bit(step, Change::Set),
        Mnemonic::Btr => logic::bit(step, Change::Reset),
        Mnemonic::Btc => logic::bit(step, Change::Complement),
        Mnemonic::Bsf => logic::scan(step, u64::trailing_zeros),
        Mnemonic::Bsr => logic::scan(step, |value| 63 - value.leading_zeros()),
        Mnemonic::Shl | Mnemonic::Sal => shift::shl(step),
        Mnemonic::Shr => shift::shr(step),
        Mnemonic::Sar => shift::sar(step),
        Mnemonic::Rol => shift::rol(step),
        Mnemonic::Ror => shift::ror(step),
        Mnemonic::Rcl => shift::rotate_through_carry(step, true),
        Mnemonic::Rcr => shift::rotate_through_carry(step, false),
        Mnemonic::Shld => shift::shift_double(step, true),
        Mnemonic::Shrd => shift::shift_double(step, false),

        Mnemonic::Cmovo => movement::cmov(step, When::o),
        Mnemonic::Cmovno => movement::cmov(step, When::no),
        Mnemonic::Cmovb => movement::cmov(step, When::b),
        Mnemonic::Cmovae => movement::cmov(step, When::ae),
        Mnemonic::Cmove => movement::cmov(step, When::e),
        Mnemonic::Cmovne => movement::cmov(step, When::ne),
        Mnemonic::Cmovbe => movement::cmov(step, When::be),
        Mnemonic::Cmova => movement::cmov(step, When::a),
        Mnemonic::Cmovs => movement::cmov(step, When::s),
        Mnemonic::Cmovns => movement::cmov(step, When::ns),
        Mnemonic::Cmovp => movement::cmov(step, When::p),
        Mnemonic::Cmovnp => movement::cmov(step, When::np),
        Mnemonic::Cmovl => movement::cmov(step, When::l),
        Mnemonic::Cmovge => movement::cmov(step, When::ge),
        Mnemonic::Cmovle => movement::cmov(step, When::le),
        Mnemonic::Cmovg => movement::cmov(step, When::g),
        Mnemonic::Seto => movement::set(step, When::o),
        Mnemonic::Setno => movement::set(step, When::no),
        Mnemonic::Setb => movement::set(step, When::b),
        Mnemonic::Setae => movement::set(step, When::ae),
        Mnemonic::Sete => movement::set(step, When::e),
        Mnemonic::Setne => movement::set(step, When::ne),
        Mnemonic::Setbe => movement::set(step, When::be),
        Mnemonic::Seta => movement::set(step, When::a),
        Mnemonic::Sets => movement::set(step, When::s),
        Mnemonic::Setns => movement::set(step, When::ns),
        Mnemonic::Setp => movement::set(step, When::p),
        Mnemonic::Setnp => movement::set(step, When::np),
        Mnemonic::Setl => movement::set(step, When::l),
        Mnemonic::Setge => movement::set(step, When::ge),
        Mnemonic::Setle => movement::set(step, When::le),
        Mnemonic::Setg => movement::set(step, When::g),

        Mnemonic::Movsb => string::movs(step, 1),
        Mnemonic::Movsw => string::movs(step, 2),
        // SSE2 has two of that name as well.
        Mnemonic::Movsd if step.instruction.code() == Code::Movsd_m32_m32 => string::movs(step, 4),
        Mnemonic::Movsq => string::movs(step, 8),
        Mnemonic::Stosb => string::stos(step, 1),
        Mnemonic::Stosw => string::stos(step, 2),
        Mnemonic::Stosd => string::stos(step, 4),
        Mnemonic::Stosq => string::stos(step, 8),
        Mnemonic::Lodsb => string::lods(step, 1),
        Mnemonic::Lodsw => string::lods(step, 2),
        Mnemonic::Lodsd => string::lods(step, 4),
        Mnemonic::Lodsq => string::lods(step, 8),
        Mnemonic::Scasb => string::scas(step, 1),
        Mnemonic::Scasw => string::scas(step, 2),
        Mnemonic::Scasd => string::scas(step, 4),
        Mnemonic::Scasq => string::scas(step, 8),
        Mnemonic::Cmpsb => string::cmps(step, 1),
        Mnemonic::Cmpsw => string::cmps(step, 2),
        Mnemonic::Cmpsd if step.instruction.code() == Code::Cmpsd_m32_m32 => string::cmps(step, 4),
        Mnemonic::Cmpsq => string::cmps(step, 8),

        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => stack::pushf(step),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => stack::popf(step),
        Mnemonic::Cli => stack::interrupts(step, false),
        Mnemonic::Sti => stack::interrupts(step, true),

        _ => registers(step),
    }
}

/// What cannot fault: registers and flags alone.
fn registers(step: &mut Step<'_>) -> Result<(), Trouble> {
    match step.instruction.mnemonic() {
        Mnemonic::Cbw => movement::widen(step, Register::AX),
        Mnemonic::Cwde => movement::widen(step, Register::EAX),
        Mnemonic::Cdqe => movement::widen(step, Register::RAX),
        Mnemonic::Cwd => movement::spread(step, Register::DX),
        Mnemonic::Cdq => movement::spread(step, Register::EDX),
        Mnemonic::Cqo => movement::spread(step, Register::RDX),
        Mnemonic::Lahf => movement::lahf(step),
        Mnemonic::Sahf => movement::sahf(step),
        Mnemonic::Clc => movement::set_flag(step, flag::CARRY, false),
        Mnemonic::Stc => movement::set_flag(step, flag::CARRY, true),
        Mnemonic::Cmc => movement::cmc(step),
        Mnemonic::Cld => movement::set_flag(step, flag::DIRECTION, false),
        Mnemonic::Std => movement::set_flag(step, flag::DIRECTION, true),
        _ => return Err(Trouble::Unknown),
    }
    Ok(())
}
