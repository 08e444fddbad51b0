//! Every page of which the bytes have changed between two looks at a guest at rest is told, whoever changed it, and pages that
//! nobody changed are not.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use ::tests::{Scratch, elf, require_guests};
use guest_mm::addr::{Gfn, Gpa};

use crate::machine::console::Transcript;
use crate::machine::trial::{build, config, memory, wait_until};
use crate::machine::{Outcome, listen};
use crate::vcpu::Ending;

use super::*;

/// Pages by number, and what is in them.
type Pages = BTreeMap<u64, Vec<u8>>;

fn pages(live: &Live) -> Pages {
    memory(live).into_iter().map(|(gpa, page)| (gpa.as_u64() >> 12, page)).collect()
}

/// Pages of which the bytes are others; one that is not there has zeroes.
fn changed(before: &Pages, after: &Pages) -> BTreeSet<u64> {
    let all: BTreeSet<u64> = before.keys().chain(after.keys()).copied().collect();
    all.into_iter().filter(|page| before.get(page) != after.get(page)).collect()
}

/// What is told of a machine that runs for a while, and the rounds of that. `rounds` looks are taken while it runs, and the last
/// when it rests.
struct Watched {
    told: BTreeSet<u64>,
    changed: BTreeSet<u64>,
    outcome: Outcome,
}

fn watched(
    text: &str,
    ready: impl Fn(&str) -> bool,
    rounds: u32,
    between: impl Fn(&Live),
) -> Watched {
    let _signals = listen().expect("signals");
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("disk.img"), vec![0; 16 << 20]).expect("room");
    std::fs::write(scratch.path().join("kernel"), elf(0x10_0000, 0x1000, STORES)).expect("room");
    let said = Transcript::default();
    let machine = build(&config(scratch.path(), text), &said, false);
    let live = machine.live();
    let running = thread::spawn(move || machine.run_to_end(None));
    wait_until(&live, &said, ready);
    live.pause().expect("it comes to rest");
    let before = pages(&live);
    let mut tracker = DirtyTracker::start(&live).expect("nobody else tracks");
    assert!(matches!(DirtyTracker::start(&live), Err(DirtyError::Busy)), "one at a time");
    live.resume();
    let mut told = BTreeSet::new();
    let mut see = |range: GfnRange| told.extend(range.iter().map(Gfn::as_u64));
    for _ in 0..rounds {
        thread::sleep(Duration::from_millis(30));
        between(&live);
        tracker.take(&mut see).expect("KVM tells");
    }
    live.pause().expect("it comes to rest");
    tracker.take(&mut see).expect("KVM tells");
    let after = pages(&live);
    // Nothing moves, so nothing is told.
    let mut more = 0;
    tracker.take(&mut |range: GfnRange| more += range.frames()).expect("KVM tells");
    assert_eq!(more, 0, "a machine at rest changes nothing");
    tracker.stop();
    live.end(Ending::Signal(0));
    drop(live);
    let left = running.join().expect("no panic").expect("it ran");
    let outcome = Outcome::new(left);
    assert_eq!(outcome.report.audit, "clean");
    let changed = changed(&before, &after);
    let missed: Vec<_> = changed.difference(&told).collect();
    assert!(missed.is_empty(), "{} pages were missed: {missed:x?}", missed.len());
    assert!(!changed.is_empty(), "it did nothing: {}", said.text());
    Watched { told, changed, outcome }
}

#[test]
fn every_page_that_vcpus_write_is_told_and_others_are_not() {
    if !require_guests() {
        return;
    }
    // One page of sixteen.
    let text = "memory.size = '64M'\n\
                [boot]\nguest = 'touch'\ncmdline = 'passes=1000000 stride=64K fill=page zero=0'\n";
    let Watched { told, changed, .. } = watched(text, |said| said.contains("pass 3"), 5, |_| {});
    assert!(changed.len() > 900, "{} pages of 1024", changed.len());
    // Beside them the guest has a stack, and statistics.
    assert!(told.len() < changed.len() + 300, "{} told, {} changed", told.len(), changed.len());
}

#[test]
fn what_a_disk_writes_is_told() {
    if !require_guests() {
        return;
    }
    let text = "machine.vcpus = 1\n[boot]\nguest = 'blk'\n\
                cmdline = 'blk.ops=1000000 blk.seconds=60 blk.depth=16'\n\
                [disk.data]\nfile = 'disk.img'\n";
    watched(text, |said| said.contains("writable disk"), 5, |_| {});
}

#[test]
fn what_is_given_back_is_told() {
    if !require_guests() {
        return;
    }
    let text = "memory.size = '64M'\n\
                [boot]\nguest = 'touch'\ncmdline = 'passes=1000000 stride=64K zero=0 verify=0'\n";
    // The upper half, which holds what the guest wrote there in the pass before.
    let half = GfnRange::new(Gpa::new(32 << 20).gfn(), 8192).expect("a range of RAM");
    let give_back = |live: &Live| {
        live.guest().give_back(half).expect("it is RAM");
        live.guest().take_back(half).expect("it is RAM");
    };
    let Watched { told, .. } = watched(text, |said| said.contains("pass 3"), 2, give_back);
    assert!(half.iter().all(|gfn| told.contains(&gfn.as_u64())));
}

/// Writes a counter to every third page from 8 MiB on, 64 pages, over and over again, in ring 0.
#[rustfmt::skip]
const STORES: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, // mov edx, 0x3f8
    0xb0, b'x',                   // mov al, 'x'
    0xee,                         // out dx, al
    0xbf, 0x00, 0x00, 0x80, 0x00, // round: mov edi, 0x800000
    0xb9, 0x40, 0x00, 0x00, 0x00, // mov ecx, 64
    0xff, 0xc3,                   // page: inc ebx
    0x89, 0x1f,                   // mov [rdi], ebx
    0x81, 0xc7, 0x00, 0x30, 0x00, 0x00, // add edi, 0x3000
    0xff, 0xc9,                   // dec ecx
    0x75, 0xf2,                   // jnz page
    0xeb, 0xe6,                   // jmp round
];

#[test]
fn what_the_monitor_writes_as_it_runs_ring_0_is_told() {
    if !require_guests() {
        return;
    }
    for who in ["monitor", "kvm"] {
        let text =
            format!("memory.size = '32M'\nmachine.ring0 = '{who}'\n[boot]\nkernel = 'kernel'\n");
        let Watched { told, changed, outcome, .. } =
            watched(&text, |said| said.contains('x'), 8, |_| {});
        let expected: BTreeSet<u64> = (0..64).map(|page| 0x800 + 3 * page).collect();
        assert_eq!(changed, expected, "{who}");
        assert_eq!(told, expected, "{who}");
        let interpreted = outcome.report.emulated.interpreted;
        assert_eq!(interpreted > 0, who == "monitor", "{interpreted} instructions, {who}");
    }
}
