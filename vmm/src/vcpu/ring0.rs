//! A vCPU whose ring 0 KVM emulates: who runs it when.

use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VcpuFd;

use crate::emulate::{Interpreter, Left, Refusal, Shared};
use crate::ram::Ram;

use super::kick::Alarm;

/// How long KVM runs the guest before it is looked whether it is in ring 0: at first, and at most.
const SOON: Duration = Duration::from_micros(200);
const LATE: Duration = Duration::from_millis(8);

/// How long KVM has for an instruction of its own, or to begin an interrupt.
const BRIEF: Duration = Duration::from_micros(10);

/// Ring 0 of one vCPU, once KVM has shown that it emulates it.
#[derive(Debug)]
pub(super) struct Ring0 {
    interpreter: Interpreter,
    alarm: Alarm,
    /// What KVM was told to do.
    left: Left,
    /// How long it may.
    wait: Duration,
}

impl Ring0 {
    /// For the vCPU that this thread runs.
    ///
    /// # Errors
    /// There is no timer to be had.
    pub(super) fn new(shared: Arc<Shared>) -> std::io::Result<Ring0> {
        Ok(Ring0 {
            interpreter: Interpreter::new(shared),
            alarm: Alarm::new()?,
            left: Left::Guest,
            wait: SOON,
        })
    }

    /// Before KVM runs the guest.
    pub(super) fn before(&mut self) {
        self.alarm.set(match self.left {
            Left::Guest => self.wait,
            Left::One => BRIEF,
        });
    }

    /// After KVM has run the guest, when nothing is left to do for it.
    ///
    /// # Errors
    /// KVM does not tell or take registers.
    pub(super) fn after(&mut self, vcpu: &VcpuFd, ram: &dyn Ram) -> Result<(), Refusal> {
        self.alarm.clear();
        if self.left == Left::Guest && is_halted(vcpu) {
            self.wait = LATE;
            return Ok(());
        }
        let before = self.interpreter.instructions();
        let left = self.interpreter.run(vcpu, ram)?;
        let ran = self.interpreter.instructions() - before;
        self.wait = if ran > 0 { SOON } else { (2 * self.wait).min(LATE) };
        self.left = left;
        Ok(())
    }
}

fn is_halted(vcpu: &VcpuFd) -> bool {
    vcpu.get_mp_state().is_ok_and(|state| state.mp_state != kvm_bindings::KVM_MP_STATE_RUNNABLE)
}
