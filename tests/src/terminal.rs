//! A terminal of the test's own, for programs that have a person at one.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::{read, write};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, LocalModes, Termios, tcgetattr};

const LIMIT: Duration = Duration::from_secs(30);

/// A terminal: the end that a person types at, and the end that programs have.
#[derive(Debug)]
pub struct Terminal {
    person: OwnedFd,
    program: OwnedFd,
    before: Termios,
}

impl Terminal {
    /// A new terminal, as cooked as a login finds it. Panics if there is none to be had.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Terminal {
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

    /// Makes it the input of `command`.
    pub fn give(&self, command: &mut Command) {
        command.stdin(Stdio::from(self.program.try_clone().unwrap()));
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.program).unwrap()
    }

    /// Waits until the guest has the terminal, and checks that it has all of it.
    pub fn wait_until_raw(&self) {
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

    /// What a person types.
    pub fn type_in(&self, bytes: &[u8]) {
        assert_eq!(write(&self.person, bytes).unwrap(), bytes.len());
    }

    /// Checks that it is as it was before anybody had it.
    pub fn assert_restored(&self, when: &str) {
        let (now, before) = (self.modes(), &self.before);
        assert_eq!(now.local_modes, before.local_modes, "{when}");
        assert_eq!(now.input_modes, before.input_modes, "{when}");
        assert_eq!(now.output_modes, before.output_modes, "{when}");
        assert_eq!(now.control_modes, before.control_modes, "{when}");
        // No program is left on it that would not wait for input.
        let flags = rustix::fs::fcntl_getfl(&self.program).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "{when}: {flags:?}");
    }

    /// Checks that what was typed while the guest had the terminal was not shown by the terminal itself.
    pub fn assert_no_echo(&self) {
        rustix::io::ioctl_fionbio(&self.person, true).unwrap();
        let mut shown = [0; 64];
        assert_eq!(read(&self.person, &mut shown), Err(rustix::io::Errno::AGAIN), "{shown:?}");
    }
}
