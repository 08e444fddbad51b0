//! Where the guest's console leads, and what comes in through it.

use std::fs;
use std::process::Stdio;

use tests::{Running, Scratch, Slat, require_guests};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));

const GREETING: &str = "hello from a slat guest\n";

/// What ends the guest's echo: Ctrl-D.
const END: &[u8] = &[4];

/// A guest that repeats what it hears, started and listening.
fn echo(scratch: &Scratch, irqchip: &str) -> Running {
    let config = scratch.hello("hello.toml", "");
    let mut command = SLAT.command(["run", "--set", "boot.cmdline=then=echo exit=5", "--set"]);
    command.arg(format!("machine.irqchip={irqchip}")).arg(config).stdin(Stdio::piped());
    let mut running = SLAT.start(command);
    running.wait_for("hello: command line");
    running
}

#[test]
fn what_is_typed_comes_back() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    for irqchip in ["none", "kernel"] {
        let mut running = echo(&scratch, irqchip);
        running.type_in(b"one, two\n");
        running.wait_for("\none, two\n");
        running.type_in("gr\u{fc}n\n".as_bytes());
        running.wait_for("\ngr\u{fc}n\n");
        running.type_in(END);
        let output = running.finish();
        assert_eq!(output.code, Some(5), "{output:?}");
    }
}

/// A pipe holds more than the serial port's 64 bytes; no byte may be lost, none may overtake another. Ctrl-A, the
/// terminal's escape, is a byte like any other in a pipe.
#[test]
fn more_input_than_the_port_holds_comes_back_whole() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let text: String = (0..400).map(|line| format!("line {line}\u{1}x\n")).collect();
    let mut running = echo(&scratch, "none");
    running.type_in(text.as_bytes());
    running.type_in(END);
    let output = running.finish();
    assert_eq!(output.code, Some(5), "{}", output.stderr);
    assert!(output.stdout.ends_with(&text), "{} bytes of {}", output.stdout.len(), text.len());
}

/// The end of the input is no input: the guest goes on.
#[test]
fn input_that_ends_does_not_end_the_guest() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let mut running = echo(&scratch, "none");
    running.type_in(b"last words\n");
    running.close_input();
    running.wait_for("\nlast words\n");
    // Long enough for a monitor that ends on end of input to have done so.
    std::thread::sleep(std::time::Duration::from_millis(200));
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.finish().code, Some(143));
}

/// `slat run … | true`: the guest runs on to its verdict, and what was lost is said.
#[test]
fn a_reader_that_has_gone_away_does_not_stop_the_guest() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch.hello("hello.toml", "");
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    let mut command = SLAT.command(["run", "--set", "boot.cmdline=exit=7"]);
    command.arg(config).stdout(writer);
    let output = SLAT.start(command).finish();
    assert_eq!(output.code, Some(7), "{output:?}");
    assert!(output.stderr.starts_with("error: the serial console's output failed"), "{output:?}");
    assert!(!output.stderr.contains("panicked"), "{output:?}");
}

#[test]
fn messages_that_nobody_reads_do_not_change_the_verdict() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch.hello("hello.toml", "");
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    let mut command = SLAT.command(["run", "--set", "boot.cmdline=exit=7"]);
    command.arg(config).stderr(writer);
    let output = SLAT.start(command).finish();
    assert_eq!((output.code, output.timed_out), (Some(7), false), "{output:?}");
    assert!(output.stdout.starts_with(GREETING), "{output:?}");
}

#[test]
fn the_console_goes_to_a_file() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let log = scratch.write("guest.log", "what was there before\n".repeat(100));
    let config = scratch.hello("hello.toml", "console.serial = \"file:guest.log\"");
    let output = SLAT.run(["run".as_ref(), config.as_os_str()]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""), "{output:?}");
    let text = fs::read_to_string(log).expect("the log is text");
    assert!(text.starts_with(GREETING) && text.ends_with("\"\n"), "{text}");
}

#[test]
fn a_console_that_is_off_is_silent() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch.hello("hello.toml", "console.serial = \"off\"");
    let output = SLAT.run(["run".as_ref(), config.as_os_str()]);
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""), "{output:?}");
}

#[test]
fn a_quiet_run_says_only_what_the_guest_says_and_errors() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch.hello("hello.toml", "");
    for flag in ["--quiet", "-q"] {
        let output = SLAT.run(["run".as_ref(), config.as_os_str(), flag.as_ref()]);
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{output:?}");
        assert!(output.stdout.starts_with(GREETING), "{output:?}");
    }
    let mut command = SLAT.command(["run", "-q", "--set", "boot.cmdline=read=0x8000000"]);
    command.arg(&config);
    let output = SLAT.start(command).finish();
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.starts_with("error: the guest read"), "{output:?}");
    assert!(!output.stderr.contains("slat: "), "{output:?}");
}
