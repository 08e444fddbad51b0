//! A vCPU whose ring 0 is this monitor's: who runs it when.
//!
//! KVM has the vCPU while it is in ring 3, which runs on the processor, and while something of KVM's own has to be done. It
//! gives it back when an alarm rings ([`Ring0::before`]), and at once where breakpoints are: at the guest's handlers of page
//! faults and of its local APIC's timer. KVM looks for them as it emulates, so they stand in ring 0 alone. A page fault may
//! be half a system call, too: [`emulate`](crate::emulate) completes it.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, KVM_MP_STATE_RUNNABLE, kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;

use crate::emulate::{Came, Interpreter, Left, Profiler, Shared, beside, entries};
use crate::ram::Ram;

use super::kick::Alarm;

/// How long KVM has for an instruction of its own, or to begin an interrupt: at first, and where that was not enough, as on a
/// busy host.
const BRIEF: Duration = Duration::from_micros(10);
const LESS_BRIEF: Duration = Duration::from_millis(1);
/// How long KVM runs the guest before it is looked whether it is in ring 0: where it was the last time, and at most. The most is
/// more than the 4 ms of a common kernel's tick, which sets the alarm anew: where the processor computes, it does not ring.
const SOON: Duration = Duration::from_micros(200);
const LATE: Duration = Duration::from_millis(5);

/// DR7 without a breakpoint (SDM vol. 3B, 17.2.4): bit 10 is always set, bit 2n has breakpoint n on, for instructions.
const DR7_FIXED: u64 = 1 << 10;
/// Breakpoints that there are.
const BREAKPOINTS: usize = 4;
/// How often it is looked for them; a kernel that has no timer has none.
const LOOKS: u32 = 100_000;

/// Ring 0 of one vCPU.
#[derive(Debug)]
pub(super) struct Ring0 {
    interpreter: Interpreter,
    alarm: Alarm,
    /// What KVM was told to do.
    left: Left,
    /// How long it may, for either.
    wait: Duration,
    brief: Duration,
    shared: Arc<Shared>,
    /// Whether breakpoints are set.
    watches: bool,
    /// Times that it was looked where they belong.
    looks: u32,
}

impl Ring0 {
    /// For the vCPU that this thread runs.
    ///
    /// # Errors
    /// There is no timer to be had.
    pub(super) fn new(shared: Arc<Shared>, vcpu: &mut VcpuFd) -> std::io::Result<Ring0> {
        beside::begin(vcpu);
        Ok(Ring0 {
            interpreter: Interpreter::new(Arc::clone(&shared)),
            shared,
            alarm: Alarm::new()?,
            left: Left::Guest,
            wait: SOON,
            brief: BRIEF,
            watches: false,
            looks: 0,
        })
    }

    /// Before KVM runs the guest.
    pub(super) fn before(&mut self) {
        self.alarm.set(match self.left {
            Left::Guest => self.wait,
            Left::One => self.brief,
        });
    }

    /// After KVM has run the guest, when nothing that it began is left to be done.
    ///
    /// # Errors
    /// What KVM does not tell or take, in words.
    pub(super) fn after(
        &mut self,
        vcpu: &mut VcpuFd,
        ram: &dyn Ram,
        profiler: Option<&mut Profiler>,
    ) -> Result<(), String> {
        let was_left = self.left;
        if was_left == Left::Guest && is_halted(vcpu) {
            self.alarm.clear();
            self.wait = LATE;
            return Ok(());
        }
        let ran = self.go_on(vcpu, ram, Came::Otherwise, profiler)?;
        // Who was found in ring 0 came there unseen.
        match was_left {
            Left::Guest if ran => self.wait = SOON,
            Left::Guest => self.wait = (2 * self.wait).min(LATE),
            Left::One => {}
        }
        Ok(())
    }

    /// The guest has come to a breakpoint.
    ///
    /// # Errors
    /// As [`Ring0::after`].
    pub(super) fn entered(
        &mut self,
        vcpu: &mut VcpuFd,
        ram: &dyn Ram,
        profiler: Option<&mut Profiler>,
    ) -> Result<(), String> {
        self.go_on(vcpu, ram, Came::ToBreakpoint, profiler).map(|_| ())
    }

    /// An instruction of ring 0 was carried out behind KVM's back: what KVM has told of the vCPU holds no more.
    pub(super) fn assisted(&mut self) {
        self.alarm.clear();
        self.left = Left::One;
    }

    /// KVM has to have all that it is to know of the vCPU, because somebody will ask.
    ///
    /// # Errors
    /// What KVM does not take, in words.
    pub(super) fn settle(&self, vcpu: &mut VcpuFd) -> Result<(), String> {
        beside::settle(vcpu).map_err(|refusal| refusal.to_string())
    }

    /// Whether there was an instruction for the interpreter.
    fn go_on(
        &mut self,
        vcpu: &mut VcpuFd,
        ram: &dyn Ram,
        came: Came,
        profiler: Option<&mut Profiler>,
    ) -> Result<bool, String> {
        self.alarm.clear();
        let before = self.interpreter.instructions();
        let left = self.interpreter.run(vcpu, ram, came, profiler);
        self.left = left.map_err(|refusal| refusal.to_string())?;
        let ran = self.interpreter.instructions() > before;
        self.brief = if ran { BRIEF } else { (2 * self.brief).min(LESS_BRIEF) };
        if self.left == Left::Guest && !self.watches && self.looks < LOOKS {
            self.settle(vcpu)?;
            self.watch(vcpu, ram)?;
        }
        Ok(ran)
    }

    /// Puts breakpoints where the guest's kernel is entered, once it has said where.
    fn watch(&mut self, vcpu: &VcpuFd, ram: &dyn Ram) -> Result<(), String> {
        self.looks += 1;
        let Some(timer) = timer_vector(vcpu)? else { return Ok(()) };
        let entries = entries(vcpu, ram, &self.shared, timer);
        let Some(entries) = entries.map_err(|refusal| refusal.to_string())? else {
            return Ok(());
        };
        let mut debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
            ..kvm_guest_debug::default()
        };
        debug.arch.debugreg[7] = DR7_FIXED;
        for (index, entry) in entries.into_iter().enumerate().take(BREAKPOINTS) {
            debug.arch.debugreg[index] = entry;
            debug.arch.debugreg[7] |= 1 << (2 * index);
        }
        vcpu.set_guest_debug(&debug).map_err(|error| format!("KVM_SET_GUEST_DEBUG: {error}"))?;
        self.watches = true;
        Ok(())
    }
}

/// The vector of the local APIC's timer, once it has one (SDM vol. 3A, 11.5.1). Vectors below 16 are the processor's.
fn timer_vector(vcpu: &VcpuFd) -> Result<Option<u8>, String> {
    const LVT_TIMER: usize = 0x320;
    let lapic = vcpu.get_lapic().map_err(|error| format!("KVM_GET_LAPIC: {error}"))?;
    let vector = lapic.regs[LVT_TIMER] as u8;
    Ok((vector >= 16).then_some(vector))
}

pub(super) fn is_halted(vcpu: &VcpuFd) -> bool {
    vcpu.get_mp_state().is_ok_and(|state| state.mp_state != KVM_MP_STATE_RUNNABLE)
}
