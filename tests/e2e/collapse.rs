//! `slat collapse` on the real program: with a collapser and without, and on what is no machine.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tests::{Output, Running, Scratch, Slat, assert_refused, impostor, require_kvm};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));

/// Starts a shipped config that never ends, and waits until it has said `words`. The socket is `s` in the scratch folder.
fn start(scratch: &Scratch, config: &str, sets: &[&str], words: &str) -> (Running, PathBuf) {
    let socket = scratch.path().join("s");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(config);
    let mut command = SLAT.command(["run"]);
    command.arg(config).arg("--control").arg(&socket);
    for set in sets {
        command.args(["--set", set]);
    }
    let mut machine = SLAT.start(command);
    machine.wait_for(words);
    (machine, socket)
}

/// Ends it as an operator does; its books have to be right.
fn stop(machine: Running) -> Output {
    machine.signal(Signal::TERM);
    let output = machine.finish();
    assert_eq!(output.code, Some(128 + 15), "{output:?}");
    assert!(output.stderr.contains("audit clean"), "{output:?}");
    output
}

fn collapse(socket: &Path, flags: &[&str]) -> Output {
    let mut command = SLAT.command(["collapse"]);
    command.arg(socket).args(flags);
    SLAT.start(command).finish()
}

fn told(socket: &Path, flags: &[&str]) -> Value {
    let output = collapse(socket, &[flags, &["--json"]].concat());
    assert_eq!(output.code, Some(0), "{output:?}");
    serde_json::from_str(&output.stdout).expect("--json prints JSON")
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

#[test]
fn all_ram_collapses_when_somebody_asks_and_no_collapser_is_needed() {
    if !require_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let sets = ["memory.size=64M", "boot.cmdline=fill=page passes=1000000"];
    // All has been touched when the first pass is over; the others go on under the collapse, and check every word.
    let (machine, socket) = start(&scratch, "touch.toml", &sets, "touch: pass 0:");
    let outcome = told(&socket, &["--now"]);
    assert_eq!(outcome["slat"], 1);
    assert_eq!(outcome["kind"], "collapse");
    assert_eq!(count(&outcome["blocks"]), 32);
    assert_eq!(count(&outcome["promoted"]) + count(&outcome["copied"]), 31, "{outcome}");
    // The block that the guest lies in itself has pages that nobody touches.
    assert_eq!(outcome["skipped"], serde_json::json!({ "holes": 1 }), "{outcome}");
    assert_eq!((&outcome["failed"], &outcome["left"]), (&0.into(), &0.into()), "{outcome}");
    let map = SLAT.run([Path::new("map"), &socket, Path::new("--json")]);
    let map: Value = serde_json::from_str(&map.stdout).expect("--json prints JSON");
    assert_eq!(map["totals"]["bytes"]["huge"], 62 << 20);

    let again = collapse(&socket, &["--now"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    for says in ["touch.toml: 0 of 32 blocks became", "31  huge before", "1  more untouched pages"]
    {
        assert!(again.stdout.contains(says), "{says:?} is not in {}", again.stdout);
    }
    for flags in [&[][..], &["--pause"], &["--resume"]] {
        let refused = collapse(&socket, flags);
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
        for says in ["no collapser runs", "collapse.background = true"] {
            assert!(refused.stderr.contains(says), "{refused:?}");
        }
    }
    let output = stop(machine);
    assert!(!output.stdout.contains("wrong at"), "{output:?}");
}

#[test]
fn a_collapser_can_be_paused_and_goes_on_where_it_was() {
    if !require_kvm() {
        return;
    }
    let scratch = Scratch::new();
    for rate in ["1024", "unlimited"] {
        let rate = format!("collapse.scan_rate={rate}");
        let sets = ["boot.cmdline=then=spin", "collapse.background=true", &rate];
        let (machine, socket) = start(&scratch, "quickstart.toml", &sets, "hello");
        assert_eq!(told(&socket, &[])["paused"], false);
        let paused = told(&socket, &["--pause"]);
        assert_eq!(paused["kind"], "collapser");
        assert_eq!(paused["paused"], true);
        // Two rounds of 32 blocks.
        std::thread::sleep(Duration::from_millis(70));
        // A round that was over when it was paused may be counted behind that; nothing is looked at.
        let work =
            |answer: &Value| ["scanned", "promoted", "copied"].map(|key| count(&answer[key]));
        assert_eq!(work(&told(&socket, &[])), work(&paused), "it rests");
        let text = collapse(&socket, &["--pause"]).stdout;
        assert!(text.contains("the collapser is paused"), "{text}");
        assert_eq!(told(&socket, &["--resume"])["paused"], false);
        let until = Instant::now() + Duration::from_secs(20);
        while count(&told(&socket, &[])["scanned"]) <= count(&paused["scanned"]) + 64 {
            assert!(Instant::now() < until, "it does not go on");
        }
        stop(machine);
    }
}

#[test]
fn a_machine_ends_while_its_collapser_is_paused() {
    if !require_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let sets = ["boot.cmdline=passes=1000000"];
    let (machine, socket) = start(&scratch, "collapse.toml", &sets, "touch: pass 0:");
    told(&socket, &["--pause"]);
    let output = stop(machine);
    assert!(output.stderr.contains(" blocks collapsed; "), "{output:?}");
}

#[test]
fn what_is_no_machine_is_said_in_a_sentence() {
    let scratch = Scratch::new();
    let config = scratch.hello("x.toml", "");
    let missing = scratch.path().join("missing");
    for (path, says) in [
        (config.as_path(), &["x.toml is no socket", "--control"][..]),
        (scratch.path(), &["is no socket"]),
        (&missing, &["missing is not there", "slat run"]),
    ] {
        assert_refused("collapse", &collapse(path, &[]), says);
    }
    let socket = scratch.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket can be made");
    for (answer, says) in [
        (&b"220 mail ready\n"[..], "did not answer as a slat does"),
        (b"{\"slat\":1,\"error\":\"no\"}\n", "says: no"),
        (b"", "not running"),
    ] {
        let output = impostor(&listener, answer, || collapse(&socket, &["--now"]));
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
        assert!(output.stderr.contains(says), "{output:?}");
    }
    drop(listener);
    let output = collapse(&socket, &[]);
    assert!(output.code == Some(1) && output.stderr.contains("nobody listens"), "{output:?}");
}

#[test]
fn the_help_teaches_by_example() {
    let help = SLAT.run(["collapse", "--help"]);
    assert_eq!(help.code, Some(0), "{help:?}");
    for says in ["--pause", "--resume", "--now", "configs/collapse.toml", "slat map"] {
        assert!(help.stdout.contains(says), "{says:?} is not in {}", help.stdout);
    }
    let both = SLAT.run(["collapse", "s", "--pause", "--now"]);
    assert!(both.code == Some(2) && both.stderr.contains("Usage:"), "{both:?}");
}
