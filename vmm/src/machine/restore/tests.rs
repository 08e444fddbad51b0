//! Guests that are stopped in the middle of their work and go on in another machine: their own verdict is the judge.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ::tests::{Scratch, require_guests, told};
use guest_mm::addr::Gpa;

use crate::config::MachineConfig;
use crate::machine::console::Transcript;
use crate::machine::report::Ingredients;
use crate::machine::trial::{LIMIT, build, config, memory, wait_until};
use crate::machine::{Outcome, listen};
use crate::state::StateError;
use crate::vcpu::Ending;

use super::*;

/// Lets `machine` run until `ready`, saves it, and ends it.
fn stopped(
    machine: Machine,
    said: &Transcript,
    ready: impl Fn(&str) -> bool,
) -> (Vec<u8>, Vec<(Gpa, Vec<u8>)>) {
    let live = machine.live();
    let running = thread::spawn(move || machine.run_to_end(None));
    wait_until(&live, said, ready);
    live.pause().expect("it comes to rest");
    let state = live.state().expect("it can be saved").to_bytes();
    let memory = memory(&live);
    live.end(Ending::Signal(0));
    drop(live);
    finish(running.join().expect("no panic").expect("it ran"), Some("signal"));
    (state, memory)
}

fn finish(left: Ingredients, ending: Option<&str>) -> Outcome {
    let outcome = Outcome::new(left);
    assert_eq!(outcome.report.audit, "clean");
    assert!(ending.is_none_or(|name| outcome.report.ending == name), "{:?}", outcome.ending);
    outcome
}

/// The same machine again, as it was saved.
fn revived(config: &MachineConfig, state: &[u8], memory: &[(Gpa, Vec<u8>)]) -> (Outcome, String) {
    let said = Transcript::default();
    let mut machine = build(config, &said, true);
    for (gpa, page) in memory {
        machine.ram.put(gpa.as_u64(), page).expect("there is room");
    }
    machine.restore(&MachineState::from_bytes(state).expect("a state")).expect("it fits");
    let stage = Arc::clone(&machine.stage);
    let running = thread::spawn(move || machine.run_to_end(None));
    let begun = Instant::now();
    while !running.is_finished() {
        if begun.elapsed() > LIMIT {
            stage.end(Ending::Signal(0));
        }
        thread::sleep(Duration::from_millis(1));
    }
    let left = running.join().expect("no panic").expect("it ran");
    (finish(left, Some("verdict")), said.text())
}

/// The verdict of a guest that is stopped once it says `mark`, and goes on elsewhere; what it said in both lives.
fn moved(text: &str, mark: &str, after: Duration) -> (u8, String) {
    let _signals = listen().expect("signals");
    let scratch = Scratch::new();
    std::fs::write(scratch.path().join("disk.img"), vec![0; 16 << 20]).expect("room");
    let config = config(scratch.path(), text);
    let said = Transcript::default();
    let machine = build(&config, &said, false);
    let (state, memory) = stopped(machine, &said, |said| {
        let ready = said.contains(mark);
        if ready {
            thread::sleep(after);
        }
        ready
    });
    let (outcome, more) = revived(&config, &state, &memory);
    (outcome.report.exit_code, said.text() + &more)
}

#[test]
fn one_vcpu_that_checks_its_memory_goes_on() {
    if !require_guests() {
        return;
    }
    let text = "memory.size = '64M'\n[boot]\nguest = 'touch'\ncmdline = 'passes=120 fill=page'\n";
    let (code, said) = moved(text, "touch", Duration::from_millis(300));
    assert_eq!((code, told(&said, "wrong")), (0, 0), "{said}");
}

#[test]
fn two_vcpus_that_count_together_go_on_and_no_increment_is_missing() {
    if !require_guests() {
        return;
    }
    let text =
        "memory.size = '16M'\nmachine.vcpus = 2\n[boot]\nguest = 'smp'\ncmdline = 'passes=6000'\n";
    let (code, said) = moved(text, "by the MP table", Duration::from_millis(300));
    assert_eq!((code, told(&said, "wrong")), (0, 0), "{said}");
}

#[test]
fn a_disk_with_requests_under_way_goes_on() {
    if !require_guests() {
        return;
    }
    let text = "[boot]\nguest = 'blk'\ncmdline = 'blk.ops=1000000 blk.seconds=3 blk.depth=16'\n\
                [disk.data]\nfile = 'disk.img'\n[rng.entropy]\n";
    let (code, said) = moved(text, "writable disk", Duration::from_millis(500));
    assert!(code == 0 && said.contains("wrong=0 errors=0"), "{said}");
}

#[test]
fn a_guest_that_waits_for_input_gets_what_was_typed_before_it_was_saved() {
    if !require_guests() {
        return;
    }
    let _signals = listen().expect("signals");
    let scratch = Scratch::new();
    let text = "[boot]\nguest = 'hello'\ncmdline = 'then=echo exit=7'\n";
    let config = config(scratch.path(), text);
    let said = Transcript::default();
    let machine = build(&config, &said, false);
    let serial = Arc::clone(&machine.serial);
    let typed = |said: &str| {
        let ready = said.contains("hello from");
        if ready {
            // It may be read at once, or be left in the port.
            lock(&serial).enqueue(b"moved\x04");
        }
        ready
    };
    let (state, memory) = stopped(machine, &said, typed);
    let (outcome, more) = revived(&config, &state, &memory);
    assert_eq!(outcome.report.exit_code, 7);
    let all = said.text() + &more;
    assert!(all.contains("moved"), "{all}");
}

/// A new vCPU's counter begins at 0, and a new VM's clock too.
#[test]
fn time_never_runs_backwards() {
    if !require_guests() {
        return;
    }
    let _signals = listen().expect("signals");
    let scratch = Scratch::new();
    let text = "machine.vcpus = 2\n[boot]\nguest = 'smp'\ncmdline = 'passes=1000000'\n";
    let config = config(scratch.path(), text);
    let said = Transcript::default();
    let ready = |said: &str| said.contains("by the MP table");
    let (first, memory) = stopped(build(&config, &said, false), &said, ready);
    let first = MachineState::from_bytes(&first).expect("a state");
    let mut machine = build(&config, &said, true);
    for (gpa, page) in &memory {
        machine.ram.put(gpa.as_u64(), page).expect("there is room");
    }
    machine.restore(&first).expect("it fits");
    let (second, _) = stopped(machine, &said, |_| true);
    let second = MachineState::from_bytes(&second).expect("a state");
    assert!(second.vm.clock_ns() > first.vm.clock_ns());
    for (before, after) in first.vcpus.iter().zip(&second.vcpus) {
        assert!(before.tsc().expect("a counter") > 0);
        assert!(after.tsc() > before.tsc(), "{:?} {:?}", before.tsc(), after.tsc());
    }
}

#[test]
fn a_machine_that_looks_otherwise_refuses_a_state_and_says_what_differs() {
    if !require_guests() {
        return;
    }
    let _signals = listen().expect("signals");
    let scratch = Scratch::new();
    let hello = |more: &str| {
        let text = format!("{more}\n[boot]\nguest = 'hello'\ncmdline = 'then=spin'\n");
        config(scratch.path(), &text)
    };
    let said = Transcript::default();
    let machine = build(&hello("memory.size = '16M'"), &said, false);
    let (state, _) = stopped(machine, &said, |said| said.contains("hello"));
    let state = MachineState::from_bytes(&state).expect("a state");
    for (more, says) in [
        ("memory.size = '32M'", "16777216 bytes of RAM, and this machine has 33554432"),
        ("memory.size = '16M'\nmachine.vcpus = 2", "1 vCPUs, and this machine has 2"),
        ("memory.size = '16M'\nmachine.irqchip = 'kernel'", "without an interrupt controller"),
        ("memory.size = '16M'\nmemory.guard = ['0xa00000+4K']", "guard pages"),
        ("memory.size = '16M'\n[rng.entropy]", "0 devices, and this machine has 1"),
        ("memory.size = '16M'\nmachine.cpu = ['-cx16']", "CPUID leaf 0x"),
    ] {
        let mut other = build(&hello(more), &Transcript::default(), true);
        let error = other.restore(&state).expect_err(more);
        assert!(matches!(error, MachineError::State(StateError::Misfit(_))), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}
