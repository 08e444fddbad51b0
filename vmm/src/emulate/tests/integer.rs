//! The integer families and the bits of newer processors, in every form that 64-bit code has.

use std::arch::is_x86_feature_detected as has;

use iced_x86::Mnemonic;

use crate::emulate::cpu::flag;
use crate::emulate::exception::{DIVIDE, Exception};
use crate::emulate::linear::Trouble;

use super::native::{Arena, State};
use super::variants::{Numbers, Variant, codes, variant};

/// How many ways of writing each form are tried, and each with how many states.
const WAYS: usize = 48;
const STATES: usize = 12;

/// What the processor may leave in flags as it likes (SDM vol. 2, "Flags Affected").
fn undefined(variant: &Variant, state: &State) -> u64 {
    use flag::{ADJUST, CARRY, OVERFLOW, PARITY, SIGN, STATUS, ZERO};
    match variant.instruction.mnemonic() {
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test => ADJUST,
        Mnemonic::Mul | Mnemonic::Imul => SIGN | ZERO | ADJUST | PARITY,
        Mnemonic::Div | Mnemonic::Idiv => STATUS,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            OVERFLOW | SIGN | ADJUST | PARITY
        }
        Mnemonic::Bsf | Mnemonic::Bsr => STATUS & !ZERO,
        Mnemonic::Lzcnt | Mnemonic::Tzcnt => OVERFLOW | SIGN | PARITY | ADJUST,
        Mnemonic::Andn | Mnemonic::Blsi | Mnemonic::Blsr | Mnemonic::Blsmsk | Mnemonic::Bzhi => {
            ADJUST | PARITY
        }
        Mnemonic::Bextr => ADJUST | SIGN | PARITY,
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => {
            let count = variant.count(state);
            let carry = if count >= variant.bits() { CARRY } else { 0 };
            match count {
                0 => 0,
                1 => ADJUST,
                _ => ADJUST | OVERFLOW | carry,
            }
        }
        Mnemonic::Shld | Mnemonic::Shrd => match variant.count(state) {
            0 => 0,
            1 => ADJUST,
            count if count > variant.bits() => STATUS,
            _ => ADJUST | OVERFLOW,
        },
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => {
            match variant.count(state) {
                0 | 1 => 0,
                _ => OVERFLOW,
            }
        }
        _ => 0,
    }
}

/// Whether the result itself is undefined.
fn is_pointless(variant: &Variant, state: &State) -> bool {
    let double = matches!(variant.instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    let swap = variant.instruction.mnemonic() == Mnemonic::Bswap && variant.bits() == 16;
    double && variant.count(state) > variant.bits() || swap
}

fn is_locked(variant: &Variant) -> bool {
    variant.instruction.has_lock_prefix() || variant.instruction.mnemonic() == Mnemonic::Xchg
}

/// The instruction is carried out here and there. How many times it was.
fn compare(variant: &Variant, state: &State, arena: &mut Arena) -> usize {
    if is_pointless(variant, state) {
        return 0;
    }
    let (done, here, rip) = arena.emulated(&variant.bytes, state);
    let what = format!("{:?} {:02x?}", variant.instruction.code(), variant.bytes);
    match done {
        Ok(()) => {}
        Err(Trouble::Unknown) if is_locked(variant) => return 0,
        Err(Trouble::Raised(raised)) if raised == Exception::fault(DIVIDE) => {
            assert_eq!(here, *state, "{what}: a fault changes nothing");
            return 0;
        }
        Err(trouble) => panic!("{what}: {trouble:?}\nfrom {:x?}", state.regs),
    }
    assert_eq!(rip, arena.code() + variant.bytes.len() as u64);
    let there = arena.native(&variant.bytes, state);
    let undefined = undefined(variant, state);
    let context = || format!("{what}\nfrom {:x?} flags {:x}", state.regs, state.flags);
    assert_eq!(here.regs.map(Hex), there.regs.map(Hex), "{}", context());
    let kept = |flags: u64| Hex(flags & !undefined);
    assert_eq!(kept(here.flags), kept(there.flags), "flags: {}", context());
    if here.data != there.data {
        let at = here.data.iter().zip(&there.data).position(|(a, b)| a != b).unwrap();
        panic!(
            "memory at {at:#x}: {:02x?} here, {:02x?} there: {}",
            &here.data[at..at + 8],
            &there.data[at..at + 8],
            context()
        );
    }
    1
}

#[derive(PartialEq)]
struct Hex(u64);

impl std::fmt::Debug for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

fn compare_all(mnemonics: &[Mnemonic]) {
    let mut arena = Arena::new();
    let mut numbers = Numbers(1);
    for mnemonic in mnemonics {
        let mut compared = 0;
        for code in codes(*mnemonic) {
            for _ in 0..WAYS {
                let Some(variant) = variant(code, &mut numbers, &arena) else { continue };
                if variant.leads_anywhere() {
                    continue;
                }
                for _ in 0..STATES {
                    let state = variant.state(&mut numbers, &arena);
                    compared += compare(&variant, &state, &mut arena);
                }
            }
        }
        assert!(compared > 50, "{mnemonic:?} was compared {compared} times only");
    }
}

/// The same, if the processor has them.
fn compare_if(feature: bool, mnemonics: &[Mnemonic]) {
    if feature {
        compare_all(mnemonics);
    } else {
        println!("not on this processor: {mnemonics:?}");
    }
}

#[test]
fn movement() {
    use Mnemonic::*;
    compare_all(&[Mov, Movzx, Movsx, Movsxd, Lea, Xchg, Bswap, Movnti]);
    compare_all(&[Cbw, Cwde, Cdqe, Cwd, Cdq, Cqo, Lahf, Sahf, Cld, Std, Clc, Stc, Cmc]);
}

#[test]
fn conditional_movement() {
    use Mnemonic::*;
    compare_all(&[Cmovo, Cmovno, Cmovb, Cmovae, Cmove, Cmovne, Cmovbe, Cmova]);
    compare_all(&[Cmovs, Cmovns, Cmovp, Cmovnp, Cmovl, Cmovge, Cmovle, Cmovg]);
    compare_all(&[Seto, Setno, Setb, Setae, Sete, Setne, Setbe, Seta]);
    compare_all(&[Sets, Setns, Setp, Setnp, Setl, Setge, Setle, Setg]);
}

#[test]
fn stack() {
    use Mnemonic::*;
    compare_all(&[Push, Pop, Leave, Pushf, Pushfq]);
}

#[test]
fn arithmetic() {
    use Mnemonic::*;
    compare_all(&[Add, Adc, Sub, Sbb, Cmp, Inc, Dec, Neg, Xadd, Cmpxchg]);
}

#[test]
fn multiplication_and_division() {
    use Mnemonic::*;
    compare_all(&[Mul, Imul, Div, Idiv]);
}

#[test]
fn logic() {
    use Mnemonic::*;
    compare_all(&[And, Or, Xor, Not, Test, Bt, Bts, Btr, Btc, Bsf, Bsr]);
}

#[test]
fn shifts() {
    use Mnemonic::*;
    compare_all(&[Shl, Sal, Shr, Sar, Rol, Ror, Rcl, Rcr, Shld, Shrd]);
}

#[test]
fn newer_bits() {
    use Mnemonic::*;
    compare_if(has!("popcnt"), &[Popcnt]);
    compare_if(has!("lzcnt"), &[Lzcnt]);
    compare_if(has!("bmi1"), &[Tzcnt, Andn, Bextr, Blsi, Blsmsk, Blsr]);
    compare_if(has!("bmi2"), &[Bzhi, Pdep, Pext, Rorx, Sarx, Shlx, Shrx, Mulx]);
    compare_if(has!("adx"), &[Adcx, Adox]);
    compare_if(has!("sse4.2"), &[Crc32]);
    compare_if(has!("movbe"), &[Movbe]);
}
