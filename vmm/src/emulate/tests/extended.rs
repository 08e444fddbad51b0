//! x87, SSE and extended state: the processor is given a state, does the instruction, and saves what it has then.

use std::cell::RefCell;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions};
use kvm_bindings::kvm_xsave;

use crate::emulate::area::{Area, standard};
use crate::emulate::carry_out;
use crate::emulate::cpu::{Beyond, Cpu, control};
use crate::emulate::exception::{DEVICE_NOT_AVAILABLE, GENERAL_PROTECTION, INVALID_OPCODE};
use crate::emulate::linear::Trouble;

use super::native::{Arena, DATA, FLAGS_ALWAYS, State};
use super::variants::Numbers;

/// x87, SSE, AVX and AVX-512: what is compared.
const MASK: u64 = 0xe7;
/// Parts of memory: the host's own state, the one to begin with, the operand, and the one that comes out.
const HOST: usize = 0;
const BEFORE: usize = 4096;
const OPERAND: usize = 8192;
const AFTER: usize = 12288;
const HEADER: usize = 512;

/// Opcodes with an operand in memory: what is before ModRM, and which of the group.
struct Form(&'static [u8], u8);

const XSAVE: Form = Form(&[0x0f, 0xae], 4);
const XSAVE64: Form = Form(&[0x48, 0x0f, 0xae], 4);
const XRSTOR: Form = Form(&[0x0f, 0xae], 5);
const XRSTOR64: Form = Form(&[0x48, 0x0f, 0xae], 5);
const XSAVEOPT64: Form = Form(&[0x48, 0x0f, 0xae], 6);
const XSAVEC: Form = Form(&[0x0f, 0xc7], 4);
const XSAVEC64: Form = Form(&[0x48, 0x0f, 0xc7], 4);
const XSAVES64: Form = Form(&[0x48, 0x0f, 0xc7], 5);
const XRSTORS64: Form = Form(&[0x48, 0x0f, 0xc7], 3);
const LDMXCSR: Form = Form(&[0x0f, 0xae], 2);
const STMXCSR: Form = Form(&[0x0f, 0xae], 3);
const FLDCW: Form = Form(&[0xd9], 5);
const FNSTCW: Form = Form(&[0xd9], 7);
const FNSTSW: Form = Form(&[0xdd], 7);

/// The instruction on an absolute address.
fn on(form: &Form, address: u64) -> Vec<u8> {
    let mut bytes = form.0.to_vec();
    bytes.extend([0x04 | form.1 << 3, 0x25]);
    bytes.extend((address as u32).to_le_bytes());
    bytes
}

/// Loads EDX:EAX.
fn with_mask(mask: u64) -> Vec<u8> {
    let mut bytes = vec![0xb8];
    bytes.extend((mask as u32).to_le_bytes());
    bytes.push(0xba);
    bytes.extend(((mask >> 32) as u32).to_le_bytes());
    bytes
}

/// A vCPU's extended state.
struct Extended {
    state: RefCell<kvm_xsave>,
    xcr0: u64,
}

impl Extended {
    fn new(page: &[u8]) -> Extended {
        let mut state = kvm_xsave::default();
        for (word, chunk) in state.region.iter_mut().zip(page.chunks_exact(4)) {
            *word = u32::from_le_bytes(chunk.try_into().unwrap());
        }
        Extended { state: RefCell::new(state), xcr0: enabled() }
    }

    fn area(&self) -> Area {
        Area::of(&self.state.borrow())
    }
}

impl Beyond for Extended {
    fn xsave(&self) -> Result<Box<kvm_xsave>, Trouble> {
        let mut copy = Box::new(kvm_xsave::default());
        copy.region = self.state.borrow().region;
        Ok(copy)
    }
    fn set_xsave(&self, state: &kvm_xsave) -> Result<(), Trouble> {
        self.state.borrow_mut().region = state.region;
        Ok(())
    }
    fn xcr0(&self) -> Result<u64, Trouble> {
        Ok(self.xcr0)
    }
    fn set_xcr0(&self, _: u64) -> Result<(), Trouble> {
        Ok(())
    }
    fn msr(&self, _: u32) -> Result<u64, Trouble> {
        Ok(0)
    }
}

/// What of `MASK` this machine has.
fn enabled() -> u64 {
    let has_avx512 = std::arch::is_x86_feature_detected!("avx512f");
    let has_avx = std::arch::is_x86_feature_detected!("avx");
    MASK & if has_avx512 {
        0xe7
    } else if has_avx {
        7
    } else {
        3
    }
}

/// An area in the standard format: random values for `components`, with this MXCSR.
fn area(numbers: &mut Numbers, components: u64, mxcsr: u32) -> Vec<u8> {
    let mut page = vec![0; 4096];
    page[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    page[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    page[HEADER] = components as u8;
    let mut fill = |place: Range<usize>| {
        page[place].iter_mut().for_each(|byte| *byte = numbers.next() as u8);
    };
    if components & 1 != 0 {
        (0..8).for_each(|register| fill(32 + 16 * register..42 + 16 * register));
        fill(4..5);
        fill(8..13);
        fill(16..21);
    }
    if components & 2 != 0 {
        fill(160..416);
    }
    (2..8).filter(|i| components >> i & 1 != 0).filter_map(standard).for_each(fill);
    if components & 1 != 0 {
        // Precision and rounding of its own; a stack of three; no exception pending, masked ones told.
        page[..4].copy_from_slice(&[0x7f, 0x0e, 0x21, 0x28]);
        page[6..8].copy_from_slice(&0x1d9_u16.to_le_bytes());
    }
    page
}

struct Outcome {
    operand: Vec<u8>,
    after: Vec<u8>,
    rax: u64,
}

/// The processor begins with the area `before`, and does `instruction` with `operand` and the mask.
fn native(
    arena: &mut Arena,
    before: &[u8],
    operand: &[u8],
    mask: u64,
    instruction: &[u8],
) -> Outcome {
    let at = arena.data();
    let mut code = with_mask(enabled());
    code.extend(on(&XSAVE64, at + HOST as u64));
    code.extend(on(&XRSTOR64, at + BEFORE as u64));
    code.extend(with_mask(mask));
    code.extend(instruction);
    // mov rbx, rax
    code.extend([0x48, 0x89, 0xc3]);
    code.extend(with_mask(enabled()));
    code.extend(on(&XSAVE64, at + AFTER as u64));
    code.extend(on(&XRSTOR64, at + HOST as u64));
    let mut data = vec![0; DATA];
    data[BEFORE..OPERAND].copy_from_slice(before);
    data[OPERAND..AFTER].copy_from_slice(operand);
    let mut regs = [0; 16];
    regs[4] = at;
    let done = arena.native(&code, &State { regs, flags: FLAGS_ALWAYS, data });
    let operand = done.data[OPERAND..AFTER].to_vec();
    Outcome { operand, after: done.data[AFTER..].to_vec(), rax: done.regs[3] }
}

fn emulate(
    arena: &mut Arena,
    extended: &Extended,
    cpu: &mut Cpu,
    operand: &[u8],
    instruction: &[u8],
) -> (Result<(), Trouble>, Vec<u8>) {
    let mut data = vec![0; DATA];
    data[OPERAND..AFTER].copy_from_slice(operand);
    arena.set_memory(&data);
    let decoded = Decoder::with_ip(64, instruction, 0x1000, DecoderOptions::NONE).decode();
    assert!(!decoded.is_invalid(), "{instruction:02x?}");
    let done = carry_out(&decoded, cpu, arena, extended);
    (done, arena.memory()[OPERAND..AFTER].to_vec())
}

/// The same for an instruction of ring 0, of which `twin` does the same at ring 3.
fn compare_twin(
    arena: &mut Arena,
    before: &[u8],
    operand: &[u8],
    mask: u64,
    (instruction, twin): (&[u8], &[u8]),
) {
    let start = native(arena, before, operand, 0, &[]).after;
    let there = native(arena, before, operand, mask, twin);
    let extended = Extended::new(&start);
    let mut cpu = super::cpu(0);
    cpu.regs.rax = mask;
    let (done, here) = emulate(arena, &extended, &mut cpu, operand, instruction);
    assert_eq!(done, Ok(()));
    assert!(here == there.operand, "{instruction:02x?} with {mask:#x}");
    let state = extended.area();
    assert!(state.bytes(0..HEADER) == &there.after[..HEADER], "{instruction:02x?} with {mask:#x}");
    assert!(state.bytes(576..4096) == &there.after[576..], "{instruction:02x?} with {mask:#x}");
}

/// With no supervisor component, they are XSAVEC and XRSTOR of a compacted area.
#[test]
fn supervisor_forms() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(17);
    let at = arena.data() + OPERAND as u64;
    let others = states(&mut numbers);
    for (before, other) in states(&mut numbers).iter().zip(&others) {
        for mask in MASKS.map(|mask| mask & enabled()) {
            let zero = vec![0; 4096];
            let save = (&*on(&XSAVES64, at), &*on(&XSAVEC64, at));
            compare_twin(&mut arena, before, &zero, mask, save);
            let area = native(&mut arena, other, &zero, enabled(), &on(&XSAVEC64, at)).operand;
            let restore = (&*on(&XRSTORS64, at), &*on(&XRSTOR64, at));
            compare_twin(&mut arena, before, &area, mask, restore);
        }
    }
    let standard = area(&mut numbers, 3, 0x1f80);
    for (level, form) in [(0, &XRSTORS64), (3, &XRSTORS64), (3, &XSAVES64)] {
        let cpu = super::cpu(level);
        assert_eq!(refused(&mut arena, &cpu, &standard, &on(form, at)), GENERAL_PROTECTION);
    }
}

/// Both; then operand, state and RAX are the same. `written` says which parts of the operand may be looked at.
fn compare(
    arena: &mut Arena,
    before: &[u8],
    operand: &[u8],
    mask: u64,
    instruction: &[u8],
    written: impl Fn(&Outcome, usize) -> bool,
) {
    let start = native(arena, before, operand, 0, &[]).after;
    let there = native(arena, before, operand, mask, instruction);
    let extended = Extended::new(&start);
    let mut cpu = super::cpu(0);
    cpu.regs.rax = mask & 0xffff_ffff;
    cpu.regs.rdx = mask >> 32;
    let (done, here) = emulate(arena, &extended, &mut cpu, operand, instruction);
    let what = || {
        let components = u64::from(before[HEADER]);
        format!(
            "{instruction:02x?} of {components:#x} with {mask:#x} and {:02x?}",
            &operand[512..528]
        )
    };
    assert_eq!(done, Ok(()), "{}", what());
    assert_eq!(cpu.regs.rax, there.rax, "{}", what());
    let wrong = (0..4096).find(|at| here[*at] != there.operand[*at] && written(&there, *at));
    if let Some(at) = wrong {
        let (here, there) = (&here[at..at + 4], &there.operand[at..at + 4]);
        panic!("operand at {at}: {here:02x?} here, {there:02x?} there: {}", what());
    }
    let state = extended.area();
    let state = state.bytes(0..4096);
    // What counts as in use may be more than what differs from the state at reset.
    let wrong =
        (0..4096).find(|at| state[*at] != there.after[*at] && !(HEADER..HEADER + 8).contains(at));
    if let Some(at) = wrong {
        let (here, there) = (&state[at..at + 4], &there.after[at..at + 4]);
        panic!("state at {at}: {here:02x?} here, {there:02x?} there: {}", what());
    }
}

/// States to begin with: components, and MXCSR.
fn states(numbers: &mut Numbers) -> Vec<Vec<u8>> {
    let components = [0, 1, 2, 3, 4, 6, 7, 0xe7, 0xe3].into_iter();
    let each = components.flat_map(|components| [(components, 0x1f80), (components, 0x5fa1)]);
    each.map(|(components, mxcsr)| area(numbers, components & enabled(), mxcsr)).collect()
}

const MASKS: [u64; 9] = [1, 2, 3, 4, 5, 6, 7, 0xe7, 0];

#[test]
fn areas_are_saved_as_the_processor_saves_them() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(11);
    let at = arena.data() + OPERAND as u64;
    let mut operand = vec![0xa5; 4096];
    operand[HEADER..576].fill(0);
    // Components that are not asked for stay in the header.
    operand[HEADER] = 0x5;
    for before in states(&mut numbers) {
        for mask in MASKS.map(|mask| mask & enabled()) {
            for form in [&XSAVE64, &XSAVE, &XSAVEC64, &XSAVEC] {
                compare(&mut arena, &before, &operand, mask, &on(form, at), |_, _| true);
            }
            // It leaves out components that are as at reset.
            let used = |outcome: &Outcome, at: usize| {
                let used = u64::from(outcome.operand[HEADER]) & mask;
                match at {
                    24..32 => outcome.operand[24] != 0xa5,
                    0..160 => used & 1 != 0,
                    160..416 => used & 2 != 0,
                    512..576 => true,
                    _ => (2..8).any(|component| {
                        let place = standard(component).unwrap_or(0..0);
                        used >> component & 1 != 0 && place.contains(&at)
                    }),
                }
            };
            compare(&mut arena, &before, &operand, mask, &on(&XSAVEOPT64, at), used);
        }
    }
}

#[test]
fn areas_are_restored_as_the_processor_restores_them() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(12);
    let at = arena.data() + OPERAND as u64;
    let before = states(&mut numbers);
    for (index, from) in states(&mut numbers).iter().enumerate() {
        let zero = vec![0; 4096];
        let standard = native(&mut arena, from, &zero, MASK & enabled(), &on(&XSAVE64, at)).operand;
        for saved in [3, 7, 0xe7, 5] {
            let saved = saved & enabled();
            let compacted = native(&mut arena, from, &zero, saved, &on(&XSAVEC64, at)).operand;
            for mask in MASKS.map(|mask| mask & enabled()) {
                for operand in [&standard, &compacted] {
                    let before = &before[(index * 7 + mask as usize) % before.len()];
                    for form in [&XRSTOR64, &XRSTOR] {
                        compare(&mut arena, before, operand, mask, &on(form, at), |_, _| true);
                    }
                }
            }
        }
    }
}

#[test]
fn control_and_status() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(13);
    let at = arena.data() + OPERAND as u64;
    let mut operand = vec![0; 4096];
    for before in states(&mut numbers) {
        for form in [&FNSTCW, &FNSTSW, &STMXCSR] {
            compare(&mut arena, &before, &operand, 0, &on(form, at), |_, _| true);
        }
        for value in [0x1f80_u32, 0x9fc0, 0x5fbf] {
            operand[..4].copy_from_slice(&value.to_le_bytes());
            compare(&mut arena, &before, &operand, 0, &on(&LDMXCSR, at), |_, _| true);
        }
        for value in [0x37f_u16, 0xe7f, 0x27f, 0x3f, 0xffff, 0x340] {
            operand[..2].copy_from_slice(&value.to_le_bytes());
            compare(&mut arena, &before, &operand, 0, &on(&FLDCW, at), |_, _| true);
        }
        // fninit; fnclex; emms; fnstsw ax; wait
        for bytes in [&[0xdb, 0xe3][..], &[0xdb, 0xe2], &[0x0f, 0x77], &[0xdf, 0xe0], &[0x9b]] {
            compare(&mut arena, &before, &operand, 0, bytes, |_, _| true);
        }
    }
}

/// The vector that restoring `operand` raises.
fn refused(arena: &mut Arena, cpu: &Cpu, operand: &[u8], instruction: &[u8]) -> u8 {
    let extended = Extended::new(&area(&mut Numbers(14), 3, 0x1f80));
    let before = extended.area();
    let (done, _) = emulate(arena, &extended, &mut cpu.clone(), operand, instruction);
    assert!(extended.area() == before, "the state is left");
    match done {
        Err(Trouble::Raised(exception)) => exception.vector,
        other => panic!("{other:?}"),
    }
}

#[test]
fn areas_that_are_not_taken() {
    let mut arena = Arena::new();
    let at = arena.data() + OPERAND as u64;
    let mut cpu = super::cpu(0);
    cpu.regs.rax = 3;
    let good = area(&mut Numbers(15), 3, 0x1f80);
    // XSTATE_BV and XCOMP_BV of components that are not enabled; of more than the layout has; bytes that are reserved.
    for (place, value) in [(519, 0x40), (527, 0x80), (520, 1), (528, 1), (535, 1)] {
        let mut bad = good.clone();
        bad[place] = value;
        assert_eq!(refused(&mut arena, &cpu, &bad, &on(&XRSTOR64, at)), GENERAL_PROTECTION);
    }
    let mut compacted = good.clone();
    compacted[520] = 3;
    compacted[527] = 0x80;
    for (place, value) in [(512, 7), (526, 0x40), (528, 1), (575, 1)] {
        let mut bad = compacted.clone();
        bad[place] = value;
        assert_eq!(refused(&mut arena, &cpu, &bad, &on(&XRSTOR64, at)), GENERAL_PROTECTION);
    }
    let mut reserved = good.clone();
    reserved[27] = 0x80;
    assert_eq!(refused(&mut arena, &cpu, &reserved, &on(&XRSTOR64, at)), GENERAL_PROTECTION);
    let mut word = vec![0; 4096];
    word[3] = 0x80;
    assert_eq!(refused(&mut arena, &cpu, &word, &on(&LDMXCSR, at)), GENERAL_PROTECTION);
    for form in [&XSAVE64, &XSAVEC64, &XRSTOR64] {
        assert_eq!(refused(&mut arena, &cpu, &good, &on(form, at + 16)), GENERAL_PROTECTION);
        cpu.sregs.cr0 |= control::CR0_TS;
        assert_eq!(refused(&mut arena, &cpu, &good, &on(form, at)), DEVICE_NOT_AVAILABLE);
        cpu.sregs.cr4 &= !control::CR4_OSXSAVE;
        assert_eq!(refused(&mut arena, &cpu, &good, &on(form, at)), INVALID_OPCODE);
        cpu.sregs = super::sregs(0);
    }
}

#[test]
fn extended_control_registers() {
    let mut arena = Arena::new();
    let extended = Extended::new(&area(&mut Numbers(16), 3, 0x1f80));
    let mut cpu = super::cpu(0);
    let xgetbv = [0x0f, 0x01, 0xd0];
    for (index, value) in [(0, enabled()), (1, 3)] {
        cpu.regs.rcx = index;
        let (done, _) = emulate(&mut arena, &extended, &mut cpu, &[0; 4096], &xgetbv);
        assert_eq!((done, cpu.regs.rax, cpu.regs.rdx), (Ok(()), value, 0));
    }
    cpu.regs.rcx = 2;
    assert_eq!(refused(&mut arena, &cpu, &[0; 4096], &xgetbv), GENERAL_PROTECTION);
    let xsetbv = [0x0f, 0x01, 0xd1];
    for (level, index, value) in [(0, 1, 7), (0, 0, 6), (0, 0, 5), (3, 0, 7)] {
        let mut cpu = super::cpu(level);
        (cpu.regs.rcx, cpu.regs.rax) = (index, value);
        assert_eq!(refused(&mut arena, &cpu, &[0; 4096], &xsetbv), GENERAL_PROTECTION);
    }
}
