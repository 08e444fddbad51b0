//! The loop of a vCPU thread.
#![allow(unsafe_code, reason = "reads parts of `kvm_run` that kvm-ioctls does not hand out")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use devices::bus::{Bus, Claimed, Direction, MmioBus, PioBus, Request, Space, UnclaimedAccess};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::config::Unclaimed;
use crate::emulate::{self, Profile, Profiler, Shared};
use crate::ram::Ram;

use super::ending::{Ending, Stage};
use super::kick::{Alarm, Kick};
use super::report::{CpuReport, internal_error, is_emulation_failure};
use super::ring0::{Ring0, is_halted};

/// How often a profile looks at a vCPU that is in the guest.
const SAMPLE: Duration = Duration::from_millis(1);
/// Interrupts are taken (RFLAGS bit 9).
const RFLAGS_IF: u64 = 1 << 9;

/// What a vCPU reaches beside memory.
#[derive(Debug)]
pub struct Devices {
    /// The ports.
    pub pio: PioBus,
    /// Guest-physical addresses that are not RAM.
    pub mmio: MmioBus,
    /// What an access does that nothing claims.
    pub unclaimed: Unclaimed,
}

/// What the monitor can see of a vCPU from outside. Relaxed all of it: the monitor looks again.
#[derive(Debug, Default)]
pub struct Progress {
    exits: AtomicU64,
    /// The monitor wants to know whether the vCPU sleeps for ever.
    asked: AtomicBool,
    asleep: AtomicBool,
}

impl Progress {
    /// Exits so far.
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// Asks, with the next kick, whether the vCPU sleeps for ever. Until it answers, it does not.
    pub fn ask(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
    }

    /// The answer to the last question: halted with interrupts off, or not started by anyone.
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }
}

/// A vCPU and all that its thread needs.
#[derive(Debug)]
pub struct Vcpu {
    /// Its number.
    pub index: u8,
    /// KVM's.
    pub fd: VcpuFd,
    /// Ports and MMIO.
    pub devices: Arc<Devices>,
    /// For reports.
    pub ram: Arc<dyn Ram>,
    /// Where the run ends.
    pub stage: Arc<Stage>,
    /// For the monitor.
    pub progress: Arc<Progress>,
    /// What this and other vCPUs have of KVM's shortcomings.
    pub shared: Arc<Shared>,
    /// Whether this monitor runs ring 0.
    pub runs_ring0: bool,
    /// Where its time is noted, if it is to be.
    pub profile: Option<Arc<Profile>>,
}

/// A vCPU thread that panics has said why; the run must still end.
struct RingOnPanic(Arc<Stage>);

impl Drop for RingOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let what = "a vCPU thread of the monitor failed".to_owned();
            self.0.end(Ending::Kvm { what, cpu: CpuReport::default() });
        }
    }
}

/// What one exit led to.
enum Outcome {
    GoOn,
    Kicked,
    End(Ending),
    /// An access that nothing claims.
    Nowhere(&'static str, UnclaimedAccess),
    TripleFault,
    /// KVM's own failure; the text is complete but for where.
    Failed(String),
    InternalError,
    /// The guest has come to a breakpoint of the monitor's.
    Entered,
}

impl Outcome {
    /// Its name in a profile.
    fn name(&self) -> &'static str {
        match self {
            Outcome::GoOn | Outcome::Nowhere(..) => "access to a device",
            Outcome::Kicked => "kick",
            Outcome::InternalError => "instruction that KVM cannot emulate",
            Outcome::Entered => "breakpoint",
            Outcome::End(_) | Outcome::TripleFault | Outcome::Failed(_) => "end",
        }
    }
}

impl Vcpu {
    /// Runs until the run ends, here or elsewhere.
    pub fn run(mut self) {
        let _kick = Kick::bound(&mut self.fd);
        let _bell = RingOnPanic(Arc::clone(&self.stage));
        let stage = Arc::clone(&self.stage);
        let passer = stage.gate().join();
        let mut profiler = self.profile.clone().map(Profiler::new);
        let mut alarms = || {
            let no_timer = |error| format!("no timer for a vCPU ({error}),");
            let sampler = profiler.is_some().then(Alarm::new).transpose().map_err(no_timer)?;
            let ring0 = self.runs_ring0.then(|| Ring0::new(Arc::clone(&self.shared), &mut self.fd));
            Ok((sampler, ring0.transpose().map_err(no_timer)?))
        };
        let (sampler, mut ring0) = match alarms() {
            Ok(both) => both,
            Err(what) => return stage.end(Ending::Kvm { what, cpu: self.report() }),
        };
        // Whether KVM has yet to finish what the guest was left for, which it does as it is run the next time.
        let mut half_done = false;
        loop {
            if passer.is_stopped() {
                if half_done {
                    // It finishes that and leaves, or has another part of it for a device.
                    self.fd.set_kvm_immediate_exit(1);
                } else {
                    if let Some(Err(what)) = ring0.as_ref().map(|ring0| ring0.settle(&mut self.fd))
                    {
                        stage.end(Ending::Kvm { what, cpu: self.report() });
                    }
                    passer.wait(self.index, &self.fd);
                }
            }
            if stage.ending().is_some() {
                return;
            }
            match (&mut ring0, &sampler) {
                (Some(ring0), _) => ring0.before(),
                (None, Some(sampler)) => sampler.set(SAMPLE),
                (None, None) => {}
            }
            let outcome = self.enter();
            half_done = !matches!(outcome, Outcome::Kicked);
            if let Some(profiler) = &mut profiler {
                self.look(profiler, &outcome);
            }
            // A kick is not the guest's doing.
            if !matches!(outcome, Outcome::Kicked) {
                self.progress.exits.fetch_add(1, Ordering::Relaxed);
            }
            let ending = match outcome {
                Outcome::GoOn => continue,
                Outcome::Kicked => {
                    self.fd.set_kvm_immediate_exit(0);
                    if self.progress.asked.swap(false, Ordering::Relaxed) {
                        self.progress.asleep.store(self.sleeps_for_ever(), Ordering::Relaxed);
                    }
                    match self.go_on(&mut ring0, profiler.as_mut()) {
                        Ok(()) => continue,
                        Err(what) => Ending::Kvm { what, cpu: self.report() },
                    }
                }
                Outcome::InternalError => match self.assist() {
                    Ok(()) => {
                        ring0.iter_mut().for_each(Ring0::assisted);
                        continue;
                    }
                    Err(what) => Ending::Kvm { what, cpu: self.report() },
                },
                Outcome::Entered => {
                    let Some(ring0) = &mut ring0 else { continue };
                    match ring0.entered(&mut self.fd, &*self.ram, profiler.as_mut()) {
                        Ok(()) => continue,
                        Err(what) => Ending::Kvm { what, cpu: self.report() },
                    }
                }
                Outcome::End(ending) => ending,
                Outcome::Nowhere(space, access) => {
                    Ending::Unclaimed { space, access, cpu: self.report() }
                }
                Outcome::TripleFault => Ending::TripleFault(self.report()),
                Outcome::Failed(what) => Ending::Kvm { what, cpu: self.report() },
            };
            stage.end(ending);
        }
    }

    /// Goes on in ring 0, if that is this monitor's. KVM has finished what it began: after an access to a device it has not.
    fn go_on(
        &mut self,
        ring0: &mut Option<Ring0>,
        profiler: Option<&mut Profiler>,
    ) -> Result<(), String> {
        let Some(ring0) = ring0 else { return Ok(()) };
        ring0.after(&mut self.fd, &*self.ram, profiler)
    }

    /// Notes for the profile where KVM came back from, and why.
    fn look(&self, profiler: &mut Profiler, outcome: &Outcome) {
        profiler.exit(outcome.name());
        if is_halted(&self.fd) {
            return profiler.skip();
        }
        if let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) {
            profiler.look(sregs.ss.dpl, regs.rip);
        }
    }

    /// One stay in the guest, and what it left for.
    fn enter(&mut self) -> Outcome {
        let run: *const kvm_run = self.fd.get_kvm_run();
        let devices = &*self.devices;
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                // SAFETY: KVM has just filled in the part of the union that this exit names; the mapping
                // lives as long as `self.fd`, and `data` is another part of it.
                let size = unsafe { (*run).__bindgen_anon_1.io.size }.max(1);
                // `rep outs` comes as many items at once; a device sees them one by one.
                data.chunks(size.into())
                    .map(|item| devices.write("port", &devices.pio, port.into(), item))
                    .find(|outcome| !matches!(outcome, Outcome::GoOn))
                    .unwrap_or(Outcome::GoOn)
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                // SAFETY: as above.
                let size = unsafe { (*run).__bindgen_anon_1.io.size }.max(1);
                data.chunks_mut(size.into())
                    .map(|item| devices.read("port", &devices.pio, port.into(), item))
                    .find(|outcome| !matches!(outcome, Outcome::GoOn))
                    .unwrap_or(Outcome::GoOn)
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                devices.read("guest-physical address", &devices.mmio, gpa, data)
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                devices.write("guest-physical address", &devices.mmio, gpa, data)
            }
            // Without an interrupt controller nothing can wake a halted vCPU.
            Ok(VcpuExit::Hlt) => Outcome::End(Ending::Halted),
            Ok(VcpuExit::Shutdown) => Outcome::TripleFault,
            Ok(VcpuExit::Intr) => Outcome::Kicked,
            Ok(VcpuExit::Debug(_)) if self.runs_ring0 => Outcome::Entered,
            Ok(VcpuExit::InternalError) => Outcome::InternalError,
            Ok(VcpuExit::SystemEvent(..)) => Outcome::End(Ending::Reset),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                Outcome::Failed(format!("the processor refused the guest's state ({reason:#x})"))
            }
            Ok(exit) => {
                Outcome::Failed(format!("KVM exited with {exit:?}, which nothing asked for"))
            }
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => Outcome::Kicked,
                _ => Outcome::Failed(format!("KVM_RUN failed: {error}")),
            },
        }
    }

    /// Does what KVM's emulator could not, if that is what it stopped for.
    ///
    /// # Errors
    /// What is wrong, in a sentence that lacks the place.
    #[cold]
    fn assist(&mut self) -> Result<(), String> {
        let run = self.fd.get_kvm_run();
        let what = internal_error(run);
        if !is_emulation_failure(run) {
            return Err(what);
        }
        emulate::assist(&self.fd, &*self.ram, &self.shared)
            .map_err(|refusal| format!("{what}, and {refusal},"))
    }

    /// Whether no interrupt can wake this vCPU: it halted with interrupts off, or nobody has started it.
    fn sleeps_for_ever(&self) -> bool {
        let Ok(state) = self.fd.get_mp_state() else { return false };
        let interruptible = self.fd.get_regs().is_ok_and(|regs| regs.rflags & RFLAGS_IF != 0);
        let halted = state.mp_state == kvm_bindings::KVM_MP_STATE_HALTED;
        state.mp_state != KVM_MP_STATE_RUNNABLE && !(halted && interruptible)
    }

    fn report(&self) -> CpuReport {
        CpuReport::of(&self.fd, self.index, &|gpa, into| self.ram.read(gpa, into))
    }
}

impl Devices {
    fn read<S: Space>(
        &self,
        space: &'static str,
        bus: &Bus<S>,
        address: u64,
        data: &mut [u8],
    ) -> Outcome {
        match bus.read(address, data) {
            Claimed::Yes(_) => Outcome::GoOn,
            Claimed::No => self.nowhere(space, address, Direction::Read, data.len()),
        }
    }

    fn write<S: Space>(
        &self,
        space: &'static str,
        bus: &Bus<S>,
        address: u64,
        data: &[u8],
    ) -> Outcome {
        match bus.write(address, data) {
            Claimed::Yes(None) => Outcome::GoOn,
            Claimed::Yes(Some(Request::Reset)) => Outcome::End(Ending::Reset),
            Claimed::Yes(Some(Request::PowerOff)) => Outcome::End(Ending::PoweredOff),
            Claimed::Yes(Some(Request::Exit(verdict))) => Outcome::End(Ending::Verdict(verdict)),
            Claimed::No => self.nowhere(space, address, Direction::Write, data.len()),
        }
    }

    fn nowhere(
        &self,
        space: &'static str,
        addr: u64,
        direction: Direction,
        size: usize,
    ) -> Outcome {
        match self.unclaimed {
            Unclaimed::Ignore => Outcome::GoOn,
            Unclaimed::Stop => Outcome::Nowhere(space, UnclaimedAccess { addr, direction, size }),
        }
    }
}
