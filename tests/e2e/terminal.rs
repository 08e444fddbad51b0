//! The operator's terminal: raw while a guest has it, and as it was before after every way out.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Running, Scratch, Slat, Terminal, require_guests};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));
const LIMIT: Duration = Duration::from_secs(30);

/// The escape: Ctrl-A, then x.
const ESCAPE: &[u8] = b"\x01x";

/// Starts a guest that has `terminal` as its input; its output is a pipe.
fn start(terminal: &Terminal, scratch: &Scratch, cmdline: &str, serial: &str) -> Running {
    let config = scratch.hello("hello.toml", "");
    let mut command = SLAT.command(["run"]);
    command.arg(config);
    command.args(["--set", &format!("boot.cmdline={cmdline}")]);
    command.args(["--set", &format!("console.serial={serial}")]);
    terminal.give(&mut command);
    SLAT.start(command)
}

#[test]
fn a_guest_that_ends_gives_the_terminal_back() {
    if !require_guests() {
        return;
    }
    let (scratch, terminal) = (Scratch::new(), Terminal::new());
    let mut running = start(&terminal, &scratch, "then=echo exit=3", "stdio");
    running.wait_for("hello: command line");
    terminal.wait_until_raw();
    // Raw: no line is waited for, Ctrl-C is a byte, and a carriage return stays one.
    terminal.type_in(b"a\x03\r");
    running.wait_for("a\x03\r");
    // Ctrl-A twice is one.
    terminal.type_in(b"\x01\x01");
    running.wait_for("a\x03\r\x01");
    terminal.type_in(&[4]);
    let output = running.finish();
    assert_eq!(output.code, Some(3), "{output:?}");
    terminal.assert_restored("after the guest's verdict");
    terminal.assert_no_echo();
}

#[test]
fn the_escape_ends_the_run_and_gives_the_terminal_back() {
    if !require_guests() {
        return;
    }
    // Whether the guest listens or not.
    for cmdline in ["then=echo", "then=spin"] {
        let (scratch, terminal) = (Scratch::new(), Terminal::new());
        let mut running = start(&terminal, &scratch, cmdline, "stdio");
        running.wait_for("hello: command line");
        terminal.wait_until_raw();
        terminal.type_in(ESCAPE);
        let output = running.finish();
        assert_eq!((output.code, output.timed_out), (Some(0), false), "{cmdline}: {output:?}");
        assert!(output.stderr.contains("ended from the console"), "{cmdline}: {output:?}");
        terminal.assert_restored(cmdline);
    }
}

#[test]
fn a_signal_ends_the_run_and_gives_the_terminal_back() {
    if !require_guests() {
        return;
    }
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (scratch, terminal) = (Scratch::new(), Terminal::new());
        let mut running = start(&terminal, &scratch, "then=spin", "stdio");
        running.wait_for("hello: command line");
        terminal.wait_until_raw();
        running.signal(signal);
        let output = running.finish();
        assert_eq!(output.code, Some(code), "{output:?}");
        terminal.assert_restored("after a signal");
    }
}

#[test]
fn a_guest_that_fails_gives_the_terminal_back() {
    if !require_guests() {
        return;
    }
    for cmdline in ["then=triple", "read=0x8000000"] {
        let (scratch, terminal) = (Scratch::new(), Terminal::new());
        let output = start(&terminal, &scratch, cmdline, "stdio").finish();
        assert_eq!(output.code, Some(1), "{output:?}");
        terminal.assert_restored(cmdline);
    }
}

#[test]
fn a_bad_config_never_touches_the_terminal() {
    let (scratch, terminal) = (Scratch::new(), Terminal::new());
    scratch.write("kernel", "no kernel");
    for text in ["[boot]\nguest = \"helo\"", "[boot]\nkernel = \"kernel\""] {
        let mut command = SLAT.command(["run"]);
        command.arg(scratch.write("x.toml", text));
        terminal.give(&mut command);
        let output = SLAT.start(command).finish();
        assert_eq!(output.code, Some(2), "{output:?}");
        terminal.assert_restored(text);
    }
}

/// A guest whose console is elsewhere has no use for the keyboard, so the terminal's own keys go on working.
#[test]
fn a_console_that_is_elsewhere_leaves_the_terminal_alone() {
    if !require_guests() {
        return;
    }
    let (scratch, terminal) = (Scratch::new(), Terminal::new());
    let log = scratch.path().join("guest.log");
    let running = start(&terminal, &scratch, "then=spin", &format!("file:{}", log.display()));
    let started = Instant::now();
    while !std::fs::read_to_string(&log).is_ok_and(|text| text.contains("hello: command line")) {
        assert!(started.elapsed() < LIMIT, "the guest says nothing");
        thread::sleep(Duration::from_millis(1));
    }
    terminal.assert_restored("during the run");
    running.signal(Signal::TERM);
    assert_eq!(running.finish().code, Some(143));
    terminal.assert_restored("after it");
}
