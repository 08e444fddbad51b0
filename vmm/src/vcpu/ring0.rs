//! A vCPU whose ring 0 is this monitor's: who runs it when.
//!
//! KVM has the vCPU while it is in ring 3, which runs on the processor, and while something of KVM's own has to be done. It
//! gives it back when an alarm rings ([`Ring0::before`]), and at once where breakpoints are: at the guest's handlers of page
//! faults and of its local APIC's timer. KVM looks for them as it emulates, so they stand in ring 0 alone. A page fault may
//! be half a system call, too: see [`finish`].

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, KVM_MP_STATE_RUNNABLE, kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;

use crate::emulate::{Interpreter, Left, Shared, fault_handler, finish};
use crate::ram::Ram;

use super::kick::Alarm;

/// How long KVM has for an instruction of its own, or to begin an interrupt.
const BRIEF: Duration = Duration::from_micros(10);
/// How long KVM runs the guest before it is looked whether it is in ring 0: at first, and at most.
const SOON: Duration = Duration::from_micros(200);
const LATE: Duration = Duration::from_millis(2);

/// DR7: breakpoint 0 is on, for instructions (SDM vol. 3B, 17.2.4). Bit 10 is always set.
const DR7_FIRST: u64 = 1 << 0 | 1 << 10;

/// Ring 0 of one vCPU.
#[derive(Debug)]
pub(super) struct Ring0 {
    interpreter: Interpreter,
    alarm: Alarm,
    /// What KVM was told to do.
    left: Left,
    /// How long it may.
    wait: Duration,
    shared: Arc<Shared>,
    /// Where its handler of page faults begins, once it has one.
    handler: Option<u64>,
}

impl Ring0 {
    /// For the vCPU that this thread runs.
    ///
    /// # Errors
    /// There is no timer to be had.
    pub(super) fn new(shared: Arc<Shared>) -> std::io::Result<Ring0> {
        Ok(Ring0 {
            interpreter: Interpreter::new(Arc::clone(&shared)),
            shared,
            alarm: Alarm::new()?,
            left: Left::Guest,
            wait: SOON,
            handler: None,
        })
    }

    /// Before KVM runs the guest.
    pub(super) fn before(&mut self) {
        self.alarm.set(match self.left {
            Left::Guest => self.wait,
            Left::One => BRIEF,
        });
    }

    /// After KVM has run the guest, when nothing that it began is left to be done.
    ///
    /// # Errors
    /// What KVM does not tell or take, in words.
    pub(super) fn after(&mut self, vcpu: &VcpuFd, ram: &dyn Ram) -> Result<(), String> {
        self.alarm.clear();
        if self.left == Left::Guest && is_halted(vcpu) {
            self.wait = LATE;
            return Ok(());
        }
        let before = self.interpreter.instructions();
        self.left = self.interpreter.run(vcpu, ram).map_err(|refusal| refusal.to_string())?;
        let ran = self.interpreter.instructions() > before;
        self.wait = if ran { SOON } else { (2 * self.wait).min(LATE) };
        if self.left == Left::Guest && self.handler.is_none() {
            self.watch(vcpu, ram)?;
        }
        Ok(())
    }

    /// The guest has come to a breakpoint.
    ///
    /// # Errors
    /// As [`Ring0::after`].
    pub(super) fn entered(&mut self, vcpu: &VcpuFd, ram: &dyn Ram) -> Result<(), String> {
        finish(vcpu, ram, &self.shared).map_err(|refusal| refusal.to_string())?;
        self.left = Left::One;
        self.after(vcpu, ram)
    }

    /// Puts breakpoints where the guest's kernel is entered, once there is one.
    fn watch(&mut self, vcpu: &VcpuFd, ram: &dyn Ram) -> Result<(), String> {
        let found =
            fault_handler(vcpu, ram, &self.shared).map_err(|refusal| refusal.to_string())?;
        let Some(handler) = found else { return Ok(()) };
        let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        let mut debug = kvm_guest_debug { control, ..kvm_guest_debug::default() };
        debug.arch.debugreg[0] = handler;
        debug.arch.debugreg[7] = DR7_FIRST;
        vcpu.set_guest_debug(&debug).map_err(|error| format!("KVM_SET_GUEST_DEBUG: {error}"))?;
        self.handler = Some(handler);
        Ok(())
    }
}

fn is_halted(vcpu: &VcpuFd) -> bool {
    vcpu.get_mp_state().is_ok_and(|state| state.mp_state != KVM_MP_STATE_RUNNABLE)
}
