//! Strings, jumps, and what else needs a state of its own.

use iced_x86::Mnemonic;

use crate::emulate::cpu::flag;

use super::native::{Arena, DATA, FLAGS_ALWAYS, State};
use super::variants::Numbers;

/// Prefixes for repetition, and none.
const REPEATS: [Option<u8>; 3] = [None, Some(0xf3), Some(0xf2)];

/// The bytes of a string instruction: the opcode for bytes, and how wide the elements are.
fn string(opcode: u8, width: u64, repeat: Option<u8>, narrow: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(narrow.then_some(0x67));
    bytes.extend((width == 2).then_some(0x66));
    bytes.extend(repeat);
    bytes.extend((width == 8).then_some(0x48));
    bytes.push(opcode + u8::from(width > 1));
    bytes
}

fn state(numbers: &mut Numbers, arena: &Arena, width: u64, repeats: bool) -> State {
    let mut regs = std::array::from_fn(|_| numbers.value());
    let count = if numbers.one_in(3) { numbers.below(5000) } else { numbers.below(40) };
    regs[1] = count.min(4000 / width);
    let middle = arena.data() + DATA as u64 / 2;
    regs[6] = middle - 100 + numbers.below(200);
    // Beside each other, over each other, or far away.
    regs[7] = match numbers.below(3) {
        0 => regs[6].wrapping_add(numbers.below(40)).wrapping_sub(20),
        1 => regs[6].wrapping_add(numbers.below(3000)).wrapping_sub(1500),
        _ => middle - 100 + numbers.below(200),
    };
    if !repeats {
        regs[1] = numbers.value();
    }
    let down = if numbers.one_in(2) { flag::DIRECTION } else { 0 };
    let flags = numbers.next() & flag::STATUS | FLAGS_ALWAYS | down;
    let mut data = vec![0; DATA];
    match numbers.below(3) {
        // The same over and over, so that comparisons go on.
        0 => data.fill(regs[0] as u8),
        1 => data.iter_mut().for_each(|byte| *byte = numbers.next() as u8),
        _ => {
            data.fill(regs[0] as u8);
            data[DATA / 2 + 60] ^= 1;
        }
    }
    if numbers.one_in(2) {
        regs[0] = u64::from(regs[0] as u8) * 0x0101_0101_0101_0101;
    }
    State { regs, flags, data }
}

fn compare(bytes: &[u8], state: &State, arena: &mut Arena) {
    let (done, here, rip) = arena.emulated(bytes, state);
    assert_eq!(done, Ok(()), "{bytes:02x?}");
    assert_eq!(rip, arena.code() + bytes.len() as u64);
    let there = arena.native(bytes, state);
    assert_eq!(here.regs, there.regs, "{bytes:02x?} from {:x?}", state.regs);
    assert_eq!(here.flags, there.flags, "{bytes:02x?} from {:x?}", state.regs);
    assert!(here.data == there.data, "memory: {bytes:02x?} from {:x?}", state.regs);
}

#[test]
fn strings() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(2);
    // MOVS, CMPS, STOS, LODS, SCAS
    for opcode in [0xa4, 0xa6, 0xaa, 0xac, 0xae] {
        for (width, repeat) in [1, 2, 4, 8].into_iter().flat_map(|w| REPEATS.map(|r| (w, r))) {
            for narrow in [false, true] {
                let bytes = string(opcode, width, repeat, narrow);
                for _ in 0..60 {
                    let state = state(&mut numbers, &arena, width, repeat.is_some() || narrow);
                    compare(&bytes, &state, &mut arena);
                }
            }
        }
    }
}

/// More than is done at a time, over several pages.
#[test]
fn long_strings() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(3);
    for (opcode, width) in [(0xa4, 1), (0xa4, 8), (0xaa, 1), (0xaa, 8), (0xae, 1)] {
        let bytes = string(opcode, width, Some(0xf3), false);
        for _ in 0..20 {
            let mut state = state(&mut numbers, &arena, width, true);
            state.flags &= !flag::DIRECTION;
            state.regs[6] = arena.data() + numbers.below(64);
            state.regs[7] = arena.data() + 64 + numbers.below(6000);
            state.regs[1] = 9000 / width;
            compare(&bytes, &state, &mut arena);
        }
    }
}

/// Behind the last page there is nothing: the registers say how far it came.
#[test]
fn a_string_that_faults_is_where_it_came_to() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(4);
    let mut state = state(&mut numbers, &arena, 1, true);
    state.flags &= !flag::DIRECTION;
    let end = arena.data() + DATA as u64;
    for (opcode, from) in [(0xa4, arena.data() + 8), (0xaa, arena.data())] {
        state.regs[6] = from;
        state.regs[7] = end - 5000;
        state.regs[1] = 6000;
        let (done, after, rip) = arena.emulated(&string(opcode, 1, Some(0xf3), false), &state);
        assert!(done.is_err());
        assert_eq!((after.regs[7], after.regs[1]), (end, 1000), "{opcode:x}");
        assert_eq!(rip, arena.code());
    }
}

/// A marker behind the jump is passed or not.
#[test]
fn jumps_go_where_the_processor_goes() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(5);
    let marker = arena.data() + 8;
    // mov byte [marker], 1
    let mut mark = vec![0xc6, 0x04, 0x25];
    mark.extend((marker as u32).to_le_bytes());
    mark.push(1);
    let over = mark.len() as u8;
    let mut jumps: Vec<Vec<u8>> = (0x70..0x80).map(|opcode| vec![opcode, over]).collect();
    jumps.extend((0x80..0x90).map(|opcode| vec![0x0f, opcode, over, 0, 0, 0]));
    jumps.extend([vec![0xe0, over], vec![0xe1, over], vec![0xe2, over], vec![0xe3, over]]);
    jumps.extend([vec![0x67, 0xe2, over], vec![0x67, 0xe3, over], vec![0x67, 0xe0, over]]);
    jumps.extend([vec![0xeb, over], vec![0xe9, over, 0, 0, 0]]);
    for jump in jumps {
        for _ in 0..300 {
            let mut state = state(&mut numbers, &arena, 1, false);
            state.regs[1] = match numbers.below(4) {
                0 => numbers.below(3),
                1 => numbers.below(3) | 1 << 32,
                2 => 0,
                _ => state.regs[1],
            };
            let next = arena.code() + jump.len() as u64;
            let (done, here, rip) = arena.emulated(&jump, &state);
            assert_eq!(done, Ok(()));
            let taken = rip != next;
            assert!(rip == next || rip == next + u64::from(over), "{jump:02x?}");
            state.data[8] = 0;
            let there = arena.native(&[jump.clone(), mark.clone()].concat(), &state);
            assert_eq!(taken, there.data[8] == 0, "{jump:02x?} flags {:x}", state.flags);
            assert_eq!(here.regs, there.regs, "{jump:02x?}");
            assert_eq!(here.flags, there.flags, "{jump:02x?}");
        }
    }
}

/// Calls and returns that end behind themselves: CALL rel32, CALL RAX, CALL [RAX], JMP RAX, RET and RET imm16.
#[test]
fn calls_and_returns() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(6);
    let forms: [&[u8]; 7] = [
        &[0xe8, 0, 0, 0, 0],
        &[0xff, 0xd0],
        &[0xff, 0x10],
        &[0xff, 0xe0],
        &[0xff, 0x20],
        &[0xc3],
        &[0xc2, 0x18, 0],
    ];
    for bytes in forms {
        for _ in 0..50 {
            let mut state = state(&mut numbers, &arena, 1, false);
            let next = arena.code() + bytes.len() as u64;
            let in_memory = bytes.len() == 2 && bytes[1] & 0xc0 == 0;
            state.regs[0] = if in_memory { arena.data() + 64 } else { next };
            state.data[64..72].copy_from_slice(&next.to_le_bytes());
            state.regs[4] = arena.data() + 512 + numbers.below(64);
            let top = (state.regs[4] - arena.data()) as usize;
            state.data[top..top + 8].copy_from_slice(&next.to_le_bytes());
            compare(bytes, &state, &mut arena);
        }
    }
}

/// POPF at ring 3: no trap, and nothing that an interrupt would trip over.
#[test]
fn flags_from_the_stack() {
    let mut arena = Arena::new();
    let mut numbers = Numbers(7);
    let bad = flag::TRAP | flag::ALIGNMENT | flag::NESTED | flag::RESUME | flag::VIRTUAL_8086;
    for bytes in [&[0x9d][..], &[0x66, 0x9d]] {
        for _ in 0..300 {
            let mut state = state(&mut numbers, &arena, 1, false);
            state.regs[4] = arena.data() + 512 + numbers.below(64);
            let top = (state.regs[4] - arena.data()) as usize;
            let value = numbers.next() & !bad;
            state.data[top..top + 8].copy_from_slice(&value.to_le_bytes());
            compare(bytes, &state, &mut arena);
        }
    }
}

/// CMPXCHG8B and CMPXCHG16B on [RSI], with what is expected there and something else.
#[test]
fn wide_exchanges() {
    assert!(std::arch::is_x86_feature_detected!("cmpxchg16b"));
    let mut arena = Arena::new();
    let mut numbers = Numbers(8);
    for lock in [false, true] {
        for wide in [false, true] {
            let mut bytes = Vec::new();
            bytes.extend(lock.then_some(0xf0));
            bytes.extend(wide.then_some(0x48));
            bytes.extend([0x0f, 0xc7, 0x0e]);
            for _ in 0..200 {
                let mut state = state(&mut numbers, &arena, 1, false);
                state.regs[6] = arena.data() + 64 + 16 * numbers.below(4);
                let at = (state.regs[6] - arena.data()) as usize;
                let half = if wide { 8 } else { 4 };
                if numbers.one_in(2) {
                    let (low, high) = (state.regs[0].to_le_bytes(), state.regs[2].to_le_bytes());
                    state.data[at..at + half].copy_from_slice(&low[..half]);
                    state.data[at + half..at + 2 * half].copy_from_slice(&high[..half]);
                }
                compare(&bytes, &state, &mut arena);
            }
        }
    }
    // The counts of what was carried out go by these names.
    assert_eq!(crate::emulate::counts::name(Mnemonic::Cmpxchg16b), "cmpxchg16b");
}
