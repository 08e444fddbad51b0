//! How a machine's run can end. The first thread that has a reason to end it decides.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use devices::bus::{Direction, UnclaimedAccess};
use guest_mm::fault::FaultError;

use rustix::event::{EventfdFlags, eventfd};

use super::gate::Gate;
use super::report::CpuReport;

/// Why the run ended.
#[derive(Clone, Debug)]
pub enum Ending {
    /// The guest gave its verdict through the exit port.
    Verdict(u8),
    /// The guest asked for a reset.
    Reset,
    /// The guest switched itself off.
    PoweredOff,
    /// Every vCPU halted with interrupts off.
    Halted,
    /// A vCPU met a fault while delivering a double fault.
    TripleFault(CpuReport),
    /// The operator asked for the end: the signal's number.
    Signal(i32),
    /// The operator typed the escape.
    Escape,
    /// The guest runs elsewhere now: where it was sent to.
    Moved(String),
    /// The operator had it saved, to go on elsewhere or later.
    Saved,
    /// A guest access that the memory service cannot serve.
    Memory(FaultError),
    /// A guest access that no device and no RAM claims, and the config says that this ends the run.
    Unclaimed {
        /// `port` or `guest-physical address`.
        space: &'static str,
        /// The access.
        access: UnclaimedAccess,
        /// The vCPU.
        cpu: CpuReport,
    },
    /// KVM could not go on with a vCPU.
    Kvm {
        /// What it said.
        what: String,
        /// The vCPU.
        cpu: CpuReport,
    },
}

impl Ending {
    /// The exit code of `slat run`: the guest's verdict; 0 for an orderly end; 128 and the signal's number
    /// for a signal, as shells have it; else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Ending::Verdict(verdict) => *verdict,
            Ending::Reset
            | Ending::PoweredOff
            | Ending::Halted
            | Ending::Escape
            | Ending::Moved(_)
            | Ending::Saved => 0,
            Ending::Signal(number) => 128 + *number as u8,
            _ => 1,
        }
    }

    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Ending::Verdict(_) => "verdict",
            Ending::Reset => "reset",
            Ending::PoweredOff => "powered-off",
            Ending::Halted => "halted",
            Ending::TripleFault(_) => "triple-fault",
            Ending::Signal(_) => "signal",
            Ending::Escape => "escape",
            Ending::Moved(_) => "moved",
            Ending::Saved => "saved",
            Ending::Memory(FaultError::Exhausted { .. }) => "pool-exhausted",
            Ending::Memory(FaultError::Marked { .. }) => "marked-page",
            Ending::Memory(_) => "memory",
            Ending::Unclaimed { .. } => "unclaimed-access",
            Ending::Kvm { .. } => "kvm-error",
        }
    }

    /// Whether the guest or the operator wanted it so.
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Ending::Verdict(_)
                | Ending::Reset
                | Ending::PoweredOff
                | Ending::Halted
                | Ending::Escape
                | Ending::Moved(_)
                | Ending::Saved
                | Ending::Signal(_)
        )
    }

    /// The state of the vCPU that ended it, where one did.
    pub fn cpu(&self) -> Option<&CpuReport> {
        match self {
            Ending::TripleFault(cpu) | Ending::Unclaimed { cpu, .. } | Ending::Kvm { cpu, .. } => {
                Some(cpu)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Verdict(verdict) => write!(f, "the guest ended with verdict {verdict}"),
            Ending::Reset => f.write_str("the guest reset itself"),
            Ending::PoweredOff => f.write_str("the guest powered itself off"),
            Ending::Halted => f.write_str("the guest halted with interrupts off"),
            Ending::TripleFault(cpu) => write!(f, "the guest met a triple fault at {cpu}"),
            Ending::Signal(number) => write!(f, "ended by signal {number}"),
            Ending::Escape => f.write_str("ended from the console"),
            Ending::Moved(to) => write!(f, "the guest has moved to {to}"),
            Ending::Saved => f.write_str("saved, and ended"),
            Ending::Memory(error @ FaultError::Exhausted { .. }) => {
                write!(f, "the guest was stopped: {error}; raise memory.pool or lower memory.size")
            }
            Ending::Memory(error) => write!(f, "the guest was stopped: {error}"),
            Ending::Unclaimed { space, access, cpu } => {
                let direction = match access.direction {
                    Direction::Read => "read",
                    Direction::Write => "wrote",
                };
                write!(
                    f,
                    "the guest {direction} {} bytes at {space} {:#x}, where there is nothing, at {cpu}",
                    access.size, access.addr
                )
            }
            Ending::Kvm { what, cpu } => write!(f, "{what} at {cpu}"),
        }
    }
}

/// The end of a run, once it has come, and the bell that tells the monitor.
#[derive(Debug)]
pub struct Stage {
    ending: OnceLock<Ending>,
    bell: OwnedFd,
    gate: Gate,
}

impl Stage {
    /// A run that has not ended.
    ///
    /// # Errors
    /// No descriptor is left for its bell.
    pub fn new() -> std::io::Result<Stage> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Stage { ending: OnceLock::new(), bell, gate: Gate::default() })
    }

    /// Readable once the run has ended.
    pub fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// Where vCPUs wait while the machine is paused.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Ends the run, unless it has ended; a machine that is paused ends, too.
    pub fn end(&self, ending: Ending) {
        if self.ending.set(ending).is_ok() {
            // A bell that cannot be rung would need 2^64 rings.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
            self.gate.retire();
        }
    }

    /// Why it ended.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }
}
