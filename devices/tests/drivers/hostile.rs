//! Drivers that break every rule. A device may fail then, and say so; the machine, the other devices and the books of the
//! memory stay as they should be, and after a reset the device works again.
//!
//! `docs/hostile.md` has the table that this makes. `SLAT_BLESS=1` writes it anew.

use std::fmt::Write;
use std::path::Path;

use devices::virtio::driver::{Buffer, Rings};
use guest_mm::addr::{Gfn, GfnRange};
use tests::require_userfaultfd;

use crate::rig::kinds::{KINDS, Kind};
use crate::rig::{ABSENT, DATA, GUARD, MISSING, NEEDS_RESET, RAM, Rig, SIZE, VICTIM};

const NEXT: u32 = 1;
const WRITE: u32 = 2;
const INDIRECT: u32 = 4;

/// What an attack must end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The device needs a reset.
    Broken,
    /// It goes on.
    Lives,
    /// Either, by what the device is: the attack is no error by itself.
    Either,
}

struct Case {
    name: &'static str,
    end: End,
    attack: fn(&mut Rig),
}

const fn case(name: &'static str, end: End, attack: fn(&mut Rig)) -> Case {
    Case { name, end, attack }
}

use End::{Broken, Either, Lives};

const CASES: &[Case] = &[
    case("a chain that loops", Broken, |rig| {
        rig.describe(0, Buffer::readable(DATA, 16), NEXT, 1);
        rig.describe(1, Buffer::readable(DATA, 16), NEXT, 0);
        rig.offer(&[0], 1);
    }),
    case("a descriptor that is its own next", Broken, |rig| {
        rig.describe(0, Buffer::readable(DATA, 16), NEXT, 0);
        rig.offer(&[0], 1);
    }),
    case("a chain that goes on behind the table", Broken, |rig| {
        rig.describe(0, Buffer::readable(DATA, 16), NEXT, SIZE);
        rig.offer(&[0], 1);
    }),
    case("a head behind the table", Broken, |rig| rig.offer(&[SIZE], 1)),
    case("the head 65535", Broken, |rig| rig.offer(&[u16::MAX], 1)),
    case("an index that jumps over more than the queue", Broken, |rig| rig.offer(&[0], SIZE + 1)),
    case("an index that goes back", Broken, |rig| rig.offer(&[0], u16::MAX)),
    case("a buffer of no length", Broken, |rig| {
        rig.describe(0, Buffer::readable(DATA, 0), 0, 0);
        rig.offer(&[0], 1);
    }),
    case("a buffer over the end of all addresses", Broken, |rig| {
        rig.describe(0, Buffer::readable(u64::MAX - 8, 4096), 0, 0);
        rig.offer(&[0], 1);
    }),
    case("a buffer to read behind one to write", Broken, |rig| {
        rig.describe(0, Buffer::writable(DATA, 16), NEXT | WRITE, 1);
        rig.describe(1, Buffer::readable(DATA, 16), 0, 0);
        rig.offer(&[0], 1);
    }),
    case("an indirect table in an indirect table", Broken, |rig| {
        rig.describe(0, Buffer::readable(DATA, 32), INDIRECT, 0);
        rig.put(DATA, (DATA + 64).to_le());
        rig.put(DATA + 8, 16_u32);
        rig.put(DATA + 12, INDIRECT as u16);
        rig.offer(&[0], 1);
    }),
    case("an indirect table of seven bytes", Broken, |rig| {
        rig.describe(0, Buffer::readable(DATA, 7), INDIRECT, 0);
        rig.offer(&[0], 1);
    }),
    case("an indirect table that loops", Broken, |rig| {
        rig.describe(0, Buffer::readable(DATA, 32), INDIRECT, 0);
        for at in [DATA, DATA + 16] {
            rig.put(at, DATA + 4096);
            rig.put(at + 8, 16_u32);
            rig.put(at + 12, NEXT as u16);
            rig.put(at + 14, 0_u16);
        }
        rig.offer(&[0], 1);
    }),
    case("an indirect chain longer than the queue", Broken, |rig| {
        let entries = u32::from(SIZE) + 1;
        rig.describe(0, Buffer::readable(DATA, 16 * entries), INDIRECT, 0);
        for index in 0..entries {
            let at = DATA + 16 * u64::from(index);
            rig.put(at, DATA + 4096);
            rig.put(at + 8, 16_u32);
            rig.put(at + 12, if index + 1 < entries { NEXT as u16 } else { 0 });
            rig.put(at + 14, (index + 1) as u16);
        }
        rig.offer(&[0], 1);
    }),
    case("an indirect table outside of RAM", Broken, |rig| {
        rig.describe(0, Buffer::readable(RAM, 32), INDIRECT, 0);
        rig.offer(&[0], 1);
    }),
    case("a buffer to read outside of RAM", Broken, |rig| buffers(rig, RAM)),
    case("a buffer to read across the end of RAM", Broken, |rig| buffers(rig, RAM - 8)),
    case("a buffer to read on a guard page", Broken, |rig| buffers(rig, GUARD)),
    case("a buffer to read on a missing page that nobody fetches", Broken, |rig| {
        buffers(rig, MISSING);
    }),
    case("buffers on pages that nobody has touched", Either, |rig| buffers(rig, ABSENT)),
    case("buffers that all overlap", Either, |rig| {
        rig.describe(0, Buffer::readable(DATA, 64), NEXT, 1);
        rig.describe(1, Buffer::writable(DATA + 8, 4096), NEXT | WRITE, 2);
        rig.describe(2, Buffer::writable(DATA, 8192), NEXT | WRITE, 3);
        rig.describe(3, Buffer::writable(DATA + 1, 1), WRITE, 0);
        rig.offer(&[0], 1);
    }),
    case("buffers over the queue's own rings", Either, |rig| {
        let rings = rig.rings();
        rig.describe(0, Buffer::readable(rings.descriptors, 64), NEXT, 1);
        rig.describe(1, Buffer::writable(rings.descriptors, 1024), WRITE, 0);
        rig.offer(&[0], 1);
    }),
    case("one chain in every entry of the queue", Either, |rig| {
        rig.describe(0, Buffer::readable(DATA, 64), NEXT, 1);
        rig.describe(1, Buffer::writable(DATA + 4096, 4096), WRITE, 0);
        rig.offer(&[0; SIZE as usize], SIZE);
    }),
    case("a chain of every descriptor, a byte each", Either, |rig| {
        for index in 0..SIZE {
            let next = if index + 1 < SIZE { NEXT } else { 0 };
            let buffer = Buffer::writable(DATA + u64::from(index), 1);
            rig.describe(index, buffer, next | WRITE, index + 1);
        }
        rig.offer(&[0], 1);
    }),
    case("four GiB in one buffer", Either, |rig| {
        rig.describe(0, Buffer::readable(0, u32::MAX), 0, 0);
        rig.offer(&[0], 1);
    }),
    case("rings outside of RAM", Broken, |rig| rings(rig, |_| Rings::at(RAM, SIZE))),
    case("rings across the end of RAM", Broken, |rig| rings(rig, |_| Rings::at(RAM - 64, SIZE))),
    case("rings on a guard page", Broken, |rig| rings(rig, |_| Rings::at(GUARD, SIZE))),
    case("rings on a missing page that nobody fetches", Broken, |rig| {
        rings(rig, |_| Rings::at(MISSING, SIZE));
    }),
    case("rings on pages that nobody has touched", Lives, |rig| {
        rings(rig, |_| Rings::at(ABSENT, SIZE));
    }),
    case("rings that lie on each other", Either, |rig| {
        rings(rig, |rings| Rings {
            available: rings.descriptors,
            used: rings.descriptors,
            ..rings
        });
        rig.offer(&[0, 1, 2], 3);
    }),
    case("rings at addresses that are not aligned", Either, |rig| {
        rings(rig, |rings| Rings {
            descriptors: rings.descriptors + 1,
            available: rings.available + 1,
            used: rings.used + 1,
            ..rings
        });
    }),
    case("a queue of three descriptors", Either, |rig| {
        rings(rig, |rings| Rings { size: 3, ..rings });
    }),
    case("rings that are unmapped while the device runs", Lives, |rig| {
        let gfn = Gfn::new(rig.rings().descriptors >> 12);
        let range = GfnRange::new(gfn, 2).expect("two pages");
        rig.guest().unmap(range).expect("they are RAM");
        rig.victim.kick(rig.kind.queue);
        rig.turn();
    }),
    case("a storm of kicks", Lives, |rig| {
        for kick in 0..20_000_u32 {
            rig.victim.write(0x50, kick % 3);
            if kick % 64 == 0 {
                rig.turn();
            }
        }
    }),
    case("kicks of queues that are not there", Lives, |rig| {
        for queue in [100, u32::from(u16::MAX), u32::MAX] {
            rig.victim.write(0x50, queue);
        }
        rig.turn();
    }),
    case("the configuration written at random", Lives, |rig| {
        let mut dice = 7_u32;
        for _ in 0..5_000 {
            dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            rig.victim.write(0x100 + u64::from(dice >> 8) % 0xf00 / 4 * 4, dice);
            rig.victim.config(u64::from(dice >> 4) % 0xf00, &mut [0; 8]);
        }
        rig.turn();
    }),
    case("every register written", Either, |rig| {
        for register in (0..0x100).step_by(4) {
            for value in [0, 1, u32::MAX] {
                rig.victim.write(register, value);
                rig.victim.read(register);
            }
        }
        rig.turn();
    }),
    case("DRIVER_OK before the features are agreed on", Lives, |rig| {
        rig.victim.write(0x70, 0);
        rig.victim.write(0x70, 7);
        assert_eq!(rig.victim.status() & 4, 0, "not ready");
    }),
    case("features that were not offered", Lives, |rig| {
        assert!(!rig.victim.negotiate(u64::MAX), "not agreed to");
    }),
    case("features without VERSION_1", Lives, |rig| {
        assert!(!rig.victim.negotiate(0), "not agreed to");
    }),
    case("a reset with a queue full of requests", Lives, |rig| {
        rig.describe(0, Buffer::readable(DATA, 16), NEXT, 1);
        rig.describe(1, Buffer::writable(DATA + 4096, 4097), WRITE, 0);
        let rings = rig.rings();
        rig.put(rings.available + 2, SIZE);
        rig.victim.kick(rig.kind.queue);
        rig.victim.write(0x70, 0);
        rig.turn();
        assert_eq!(rig.victim.status(), 0);
    }),
    case("a hundred resets with requests under way", Lives, |rig| {
        for _ in 0..100 {
            rig.bring_up();
            rig.describe(0, Buffer::readable(DATA, 16), NEXT, 1);
            rig.describe(1, Buffer::writable(DATA + 4096, 4097), WRITE, 0);
            rig.offer(&[0], 1);
            rig.victim.write(0x70, 0);
        }
    }),
    case("a ready queue set up again", Lives, |rig| {
        rig.victim.write(0x30, u32::from(rig.kind.queue));
        rig.victim.write(0x80, u32::MAX << 4);
        rig.victim.write(0x38, 2);
        rig.victim.kick(rig.kind.queue);
        rig.turn();
    }),
];

/// A chain of a buffer to read at `at`, in front of all that a request needs.
fn buffers(rig: &mut Rig, at: u64) {
    rig.describe(0, Buffer::readable(at, 64), NEXT, 1);
    rig.describe(1, Buffer::writable(DATA, 64), WRITE, 0);
    rig.offer(&[0], 1);
}

/// The victim brought up with other rings.
fn rings(rig: &mut Rig, other: fn(Rings) -> Rings) {
    let good = rig.rings();
    let features = rig.victim.offered();
    assert!(rig.victim.negotiate(features));
    for queue in 0..rig.device.kicks().len() as u64 {
        let mut place = Rings::at(VICTIM + 0x2000 * queue, SIZE);
        if queue == u64::from(rig.kind.queue) {
            place = other(good);
        }
        rig.victim.add_queue(place);
    }
    rig.victim.go();
    rig.victim.kick(rig.kind.queue);
    rig.turn();
}

/// What became of a device of `kind` under `case`.
fn outcome(kind: &'static Kind, case: &Case) -> String {
    let what = format!("{}: {}", kind.name, case.name);
    let mut rig = Rig::new(kind);
    assert_eq!(rig.victim.status() & NEEDS_RESET, 0, "{what}: it begins well");
    (case.attack)(&mut rig);
    let broken = rig.victim.status() & NEEDS_RESET != 0;
    let report = rig.device.report();
    assert_eq!(broken, report.broken.is_some(), "{what}: {report:?}");
    match case.end {
        End::Broken => assert!(broken, "{what}: it should have been noticed"),
        End::Lives => assert!(!broken, "{what}: {:?}", report.broken),
        End::Either => {}
    }
    assert!(rig.neighbour_reads(), "{what}: the disk beside it stands still");
    rig.bring_up();
    let report = rig.device.report();
    assert_eq!(report.broken, None, "{what}: a reset mends it");
    assert_eq!(rig.end(), "clean", "{what}");
    if broken { "needs a reset".into() } else { "goes on".into() }
}

#[test]
fn hostile_drivers_break_their_device_at_most_and_the_table_says_which() {
    if !require_userfaultfd() {
        return;
    }
    let mut table = String::from(
        "# What becomes of a device whose driver breaks the rules\n\n\
         Made by `cargo test -p devices --test drivers hostile` (with `SLAT_BLESS=1` it is written). In every case, for every kind of device:\n\
         a disk beside it goes on, a reset mends the device, and when both have gone the memory's books are clean and nothing is pinned.\n\n",
    );
    let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let rule = "---|".repeat(names.len());
    let _ = write!(table, "| what the driver does | {} |\n|---|{rule}\n", names.join(" | "));
    for case in CASES {
        let outcomes: Vec<String> = KINDS.iter().map(|kind| outcome(kind, case)).collect();
        let _ = writeln!(table, "| {} | {} |", case.name, outcomes.join(" | "));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hostile.md");
    if std::env::var_os("SLAT_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
        std::fs::write(&path, &table).expect("it can be written");
    }
    let known = std::fs::read_to_string(&path).expect("the table is in the tree");
    assert_eq!(known, table, "write it anew with SLAT_BLESS=1");
}
