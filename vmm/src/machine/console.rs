//! Where the serial console leads, and what is typed into it.

use std::fs::File;
use std::io::{self, Write, sink};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use devices::serial::Trigger;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use vmm_sys_util::eventfd::EventFd;

use crate::config;
use crate::vcpu::Stage;

use super::MachineError;

/// The serial port's interrupt line; none in a machine without an interrupt controller, whose guest polls.
#[derive(Debug)]
pub(super) struct Interrupt(pub(super) Option<EventFd>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |event| event.write(1))
    }
}

/// Where a machine's console leads.
#[derive(Clone, Debug)]
pub(super) enum Speech {
    /// Where its config says.
    AsConfigured,
    /// Here, and nothing is typed.
    Kept(Transcript),
}

impl Speech {
    /// The output of the serial port that `config` describes.
    pub(super) fn output(
        self,
        config: &config::Serial,
        stage: &Arc<Stage>,
    ) -> Result<Box<dyn Write + Send>, MachineError> {
        Ok(match (self, config) {
            (Speech::Kept(transcript), _) => Box::new(transcript),
            // Unbuffered: the device says when a byte goes out, and it goes at once.
            (_, config::Serial::Stdio) => {
                Box::new(Stdout { fd: stdout()?, stage: Arc::clone(stage) })
            }
            (_, config::Serial::Off) => Box::new(sink()),
            (_, config::Serial::File(path)) => {
                Box::new(File::create(&**path).map_err(|source| MachineError::File {
                    key: "console.serial",
                    path: path.to_path_buf(),
                    source,
                })?)
            }
        })
    }

    /// Whether what is typed reaches the guest.
    pub(super) fn takes_input(&self, config: &config::Serial) -> bool {
        matches!(self, Speech::AsConfigured) && *config == config::Serial::Stdio
    }
}

/// The end of what a guest said.
#[derive(Clone, Debug, Default)]
pub(super) struct Transcript(Arc<Mutex<Vec<u8>>>);

/// Bytes of a transcript that are kept.
const TRANSCRIPT: usize = 64 << 10;

impl Transcript {
    pub(super) fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Transcript {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() + bytes.len() > TRANSCRIPT {
            let excess = kept.len() / 2;
            kept.drain(..excess);
        }
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn stdout() -> Result<OwnedFd, MachineError> {
    let what = "duplicating standard output";
    io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| MachineError::System { what, source })
}

/// Standard output. Once the run has ended, nobody waits any more for a reader that does not read.
#[derive(Debug)]
struct Stdout {
    fd: OwnedFd,
    stage: Arc<Stage>,
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.fd, bytes) {
                // A kick.
                Err(rustix::io::Errno::INTR) if self.stage.ending().is_none() => {}
                Err(rustix::io::Errno::INTR) => return Err(io::ErrorKind::TimedOut.into()),
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard input as the guest's keyboard: unbuffered and unechoed. As it was before when this is
/// dropped, on every way out.
#[derive(Debug)]
pub(super) struct Keyboard {
    before: Option<Termios>,
    escaping: bool,
}

/// The terminal's prefix, Ctrl-A, as in `screen` and QEMU.
const PREFIX: u8 = 0x01;

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// Bytes for the guest; none when there are none now.
    Bytes(Vec<u8>),
    /// The escape: the prefix and `x`.
    Escape,
    /// Nothing will be typed any more.
    End,
}

impl Keyboard {
    /// Takes standard input; a terminal is made raw, so that what is typed reaches the guest as it is.
    pub(super) fn take() -> io::Result<Keyboard> {
        let stdin = io::stdin();
        let mut before = None;
        if isatty(&stdin) {
            let was = tcgetattr(&stdin)?;
            let mut raw = was.clone();
            raw.make_raw();
            // Line ends of this program's own messages stay what they are.
            raw.output_modes = was.output_modes;
            tcsetattr(&stdin, OptionalActions::Now, &raw)?;
            before = Some(was);
        }
        Ok(Keyboard { before, escaping: false })
    }

    /// Whether a person types.
    pub(super) fn is_terminal(&self) -> bool {
        self.before.is_some()
    }

    /// Takes up to `room` bytes that were typed. Call it when input is ready, so that it does not wait.
    pub(super) fn read(&mut self, room: usize) -> Typed {
        let mut bytes = vec![0; room];
        let count = match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) => return Typed::End,
            Ok(count) => count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(_) => return Typed::End,
        };
        bytes.truncate(count);
        if self.before.is_none() { Typed::Bytes(bytes) } else { self.unescape(&bytes) }
    }

    /// Only a person at a terminal has an escape: a pipe may carry any byte.
    fn unescape(&mut self, typed: &[u8]) -> Typed {
        let mut bytes = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (self.escaping, byte) {
                (false, PREFIX) => self.escaping = true,
                (true, b'x' | b'X') => return Typed::Escape,
                _ => {
                    self.escaping = false;
                    bytes.push(byte);
                }
            }
        }
        Typed::Bytes(bytes)
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyboard() -> Keyboard {
        Keyboard { before: None, escaping: false }
    }

    #[test]
    fn the_prefix_twice_is_one_and_with_x_ends_the_run() {
        let mut keyboard = keyboard();
        assert_eq!(keyboard.unescape(b"a\x01\x01b"), Typed::Bytes(b"a\x01b".to_vec()));
        assert_eq!(keyboard.unescape(b"c\x01"), Typed::Bytes(b"c".to_vec()));
        assert_eq!(keyboard.unescape(b"x"), Typed::Escape);
    }
}
