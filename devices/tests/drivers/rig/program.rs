//! A driver as a string of bytes: every string is one, so that mutation finds its way.

use std::time::{Duration, Instant};

use devices::virtio::driver::{Buffer, Driver};
use vm_memory::{Bytes, GuestAddress};

use super::{ABSENT, DATA, GUARD, MISSING, NEIGHBOUR, RAM, Rig};

/// Bytes that are read as numbers; behind their end they are zeroes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let len = N.min(self.0.len());
        let (now, rest) = self.0.split_at(len);
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..len].copy_from_slice(now);
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// An address: near something of interest, or anything.
    fn address(&mut self, rig: &Rig) -> u64 {
        let rings = rig.rings();
        let base = match self.byte() % 12 {
            0..=3 => DATA,
            4 => rings.descriptors,
            5 => rings.available,
            6 => rings.used,
            7 => GUARD,
            8 => MISSING,
            9 => ABSENT,
            10 => RAM - 0x80,
            _ => return u64::from_le_bytes(self.take()),
        };
        base + u64::from(self.short())
    }

    /// A length: small mostly.
    fn length(&mut self) -> u32 {
        match self.byte() {
            byte @ 0..=199 => byte.into(),
            200..=239 => u32::from(self.short()),
            _ => self.word(),
        }
    }
}

/// Operations of one program at most.
const LONGEST: usize = 400;

/// Runs the program that `bytes` are.
pub(crate) fn run(rig: &mut Rig, bytes: &[u8]) {
    let mut left = Reader(bytes);
    let mut index = 0_u16;
    for _ in 0..LONGEST {
        if left.0.is_empty() {
            break;
        }
        match left.byte() % 16 {
            0 => {
                let register = u64::from(left.byte()) * 4;
                let value = left.word();
                rig.victim.write(register, value);
            }
            1 => {
                let register = u64::from(left.byte()) * 4;
                rig.victim.read(register);
            }
            2 => {
                let (at, value) = (u64::from(left.byte()), left.word());
                rig.victim.write(0x100 + at, value);
                rig.victim.config(at, &mut vec![0; usize::from(left.byte())]);
            }
            3..=5 => {
                let (place, addr, len) = (left.short() % 32, left.address(rig), left.length());
                let (flags, next) = (u32::from(left.byte() % 8), left.short() % 32);
                rig.describe(place, Buffer { addr, len, writable: false }, flags, next);
            }
            6 => {
                // A plain request: a header, data, a status.
                let (kind, sector) = (u64::from(left.byte() % 16), u64::from(left.short()));
                rig.put(DATA, kind);
                rig.put(DATA + 8, sector);
                let len = left.length();
                rig.describe(0, Buffer::readable(DATA, 16), 1, 1);
                rig.describe(
                    1,
                    Buffer::readable(DATA + 0x1000, len),
                    1 | u32::from(left.byte() & 2),
                    2,
                );
                rig.describe(2, Buffer::writable(DATA + 0x800, 1), 2, 0);
                index = index.wrapping_add(1);
                rig.offer(&[0; 16], index);
            }
            7 => {
                let heads = left.take::<4>().map(u16::from);
                index = index.wrapping_add(u16::from(left.byte() % 4));
                rig.offer(&heads, index);
            }
            8 => {
                index = left.short();
                let heads = left.take::<2>().map(u16::from);
                rig.offer(&heads, index);
            }
            9 => {
                let (at, bytes) = (left.address(rig), left.take::<16>());
                // What is no memory is not written.
                let _ = rig.memory().write_slice(&bytes, GuestAddress(at));
            }
            10 => rig.victim.kick(u16::from(left.byte() % 8)),
            11 => rig.turn(),
            12 => {
                rig.bring_up();
                index = 0;
            }
            13 => rest(rig),
            14 => {
                let at = left.address(rig) % RAM;
                let page = guest_mm::addr::GfnRange::new(guest_mm::addr::Gfn::new(at >> 12), 1);
                if ![GUARD >> 12, MISSING >> 12].contains(&(at >> 12)) {
                    rig.guest().unmap(page.expect("a page of RAM")).expect("RAM can be unmapped");
                }
            }
            _ => input(rig, left.byte()),
        }
    }
    rig.turn();
}

/// Where most of a driver's life is.
const REGISTERS: [u64; 13] =
    [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0xa0];

/// Runs the program that `bytes` are, of reads and writes of registers alone.
pub(crate) fn registers(rig: &mut Rig, bytes: &[u8]) {
    let mut left = Reader(bytes);
    for _ in 0..LONGEST {
        if left.0.is_empty() {
            break;
        }
        let what = left.byte() % 16;
        if what == 15 {
            rig.turn();
            continue;
        }
        let register = match left.byte() {
            byte @ 0..=207 => REGISTERS[usize::from(byte) % REGISTERS.len()],
            _ => u64::from(left.short() % 0x400) * 4,
        };
        if what > 10 {
            rig.victim.read(register);
            continue;
        }
        let value = match left.byte() {
            byte @ 0..=127 => u32::from(byte % 16),
            byte @ 128..=159 => 1 << (byte - 128),
            160..=207 => left.address(rig) as u32,
            _ => left.word(),
        };
        rig.victim.write(register, apart(value));
    }
    rig.turn();
}

/// `value`, moved to where no memory of the disk beside it is: rings there would be written over that disk's, as they are
/// meant to be.
fn apart(value: u32) -> u32 {
    let others = NEIGHBOUR - 0x1_0000..DATA;
    if others.contains(&value.into()) { value + (DATA - others.start) as u32 } else { value }
}

/// The device comes to rest, is saved, becomes what it was, and goes on.
fn rest(rig: &mut Rig) {
    let deadline = Instant::now() + Duration::from_secs(10);
    // Requests end only when somebody attends to them.
    std::thread::scope(|scope| {
        let device = rig.device.clone();
        let rested = scope.spawn(move || device.quiesce(deadline));
        while !rested.is_finished() {
            rig.turn();
        }
        rested.join().expect("no panic").expect("what is under way ends");
    });
    let state = rig.device.save();
    let _ = rig.device.restore(&state);
    rig.device.resume();
}

/// The host's side has something for the guest.
fn input(rig: &mut Rig, byte: u8) {
    (rig.kind.input)(&mut rig.host, byte);
    rig.turn();
}

/// A driver for another program.
pub(crate) fn fresh(rig: &mut Rig) {
    rig.victim = Driver::new(rig.device.clone());
    rig.bring_up();
}
