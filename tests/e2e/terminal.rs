//! The operator's terminal: raw while a guest has it, and as it was before after every way out.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::{read, write};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, LocalModes, Termios, tcgetattr};
use tests::{Running, Scratch, Slat, require_guests};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));
const LIMIT: Duration = Duration::from_secs(30);

/// The escape: Ctrl-A, then x.
const ESCAPE: &[u8] = b"\x01x";

/// A terminal: the end that a person types at, and the end that programs have.
struct Terminal {
    person: OwnedFd,
    program: OwnedFd,
    before: Termios,
}

impl Terminal {
    fn new() -> Terminal {
        // Nobody's controlling terminal, so that nothing is signalled through it.
        let person =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let program = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let before = tcgetattr(&program).unwrap();
        assert!(before.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
        Terminal { person, program, before }
    }

    /// Starts a guest that has this terminal as its input; its output is a pipe.
    fn start(&self, scratch: &Scratch, cmdline: &str, serial: &str) -> Running {
        let config = scratch.hello("hello.toml", "");
        let mut command = SLAT.command(["run"]);
        command.arg(config);
        command.args(["--set", &format!("boot.cmdline={cmdline}")]);
        command.args(["--set", &format!("console.serial={serial}")]);
        self.give(&mut command);
        SLAT.start(command)
    }

    fn give(&self, command: &mut Command) {
        command.stdin(Stdio::from(self.program.try_clone().unwrap()));
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.program).unwrap()
    }

    /// Waits until the guest has the terminal, and checks that it has all of it.
    fn wait_until_raw(&self) {
        let started = Instant::now();
        while self.modes().local_modes.contains(LocalModes::ICANON) {
            assert!(started.elapsed() < LIMIT, "the terminal is never made raw");
            thread::sleep(Duration::from_millis(1));
        }
        let modes = self.modes();
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
        assert!(!modes.local_modes.intersects(cooked), "{modes:?}");
        let changed = InputModes::ICRNL | InputModes::IXON | InputModes::ISTRIP;
        assert!(!modes.input_modes.intersects(changed), "{modes:?}");
        // Messages of the monitor go to the same screen: their line ends stay whole.
        assert_eq!(modes.output_modes, self.before.output_modes);
    }

    fn type_in(&self, bytes: &[u8]) {
        assert_eq!(write(&self.person, bytes).unwrap(), bytes.len());
    }

    fn assert_restored(&self, when: &str) {
        let (now, before) = (self.modes(), &self.before);
        assert_eq!(now.local_modes, before.local_modes, "{when}");
        assert_eq!(now.input_modes, before.input_modes, "{when}");
        assert_eq!(now.output_modes, before.output_modes, "{when}");
        assert_eq!(now.control_modes, before.control_modes, "{when}");
        // No program is left on it that would not wait for input.
        let flags = rustix::fs::fcntl_getfl(&self.program).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "{when}: {flags:?}");
    }
}

#[test]
fn a_guest_that_ends_gives_the_terminal_back() {
    if !require_guests() {
        return;
    }
    let (scratch, terminal) = (Scratch::new(), Terminal::new());
    let mut running = terminal.start(&scratch, "then=echo exit=3", "stdio");
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
    assert_no_echo(&terminal);
}

/// What was typed while the guest had the terminal was not shown by the terminal itself.
fn assert_no_echo(terminal: &Terminal) {
    rustix::io::ioctl_fionbio(&terminal.person, true).unwrap();
    let mut shown = [0; 64];
    assert_eq!(read(&terminal.person, &mut shown), Err(rustix::io::Errno::AGAIN), "{shown:?}");
}

#[test]
fn the_escape_ends_the_run_and_gives_the_terminal_back() {
    if !require_guests() {
        return;
    }
    // Whether the guest listens or not.
    for cmdline in ["then=echo", "then=spin"] {
        let (scratch, terminal) = (Scratch::new(), Terminal::new());
        let mut running = terminal.start(&scratch, cmdline, "stdio");
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
        let mut running = terminal.start(&scratch, "then=spin", "stdio");
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
        let output = terminal.start(&scratch, cmdline, "stdio").finish();
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
    let running = terminal.start(&scratch, "then=spin", &format!("file:{}", log.display()));
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
