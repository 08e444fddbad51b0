//! A built-in guest on memory from anywhere, without a config file: the vCPUs, a console that is kept, the exit port, and
//! nothing else. Benchmarks and storms run on it.
#![allow(unsafe_code, reason = "hands windows to KVM")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::{BusError, MmioBus, PioBus};
use devices::debug_exit::{self, DebugExit};
use devices::serial::{COM1_RANGE, Serial, Trigger};
use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, poll};

use crate::boot::{BootError, BootImage, BootRequest, CpuCount, RamLayout, load};
use crate::config::Unclaimed;
use crate::guests;
use crate::kvm::{CpuPlan, KvmError, Vm, failed};
use crate::ram::Ram;
use crate::vcpu::{Devices, Ending, Kick, Stage, Threads, Vcpu};

/// What runs.
#[derive(Clone, Copy, Debug)]
pub struct Rig<'a> {
    /// The built-in guest.
    pub guest: &'static str,
    /// Its RAM.
    pub ram_bytes: u64,
    /// Its virtual CPUs.
    pub vcpus: u8,
    /// Keys of its command line; `cpus` and `tsc_khz` are added.
    pub cmdline: &'a str,
}

/// Why it did not run.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// There is no such guest.
    #[error("there is no guest `{0}`")]
    NoGuest(&'static str),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The boot image.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The buses.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The system.
    #[error("the guest's threads could not be set up: {0}")]
    System(#[from] io::Error),
}

/// What others can end a run with.
#[derive(Clone, Debug)]
pub struct Brake {
    stage: Arc<Stage>,
    threads: Arc<Threads>,
}

impl Brake {
    /// For one run.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Brake> {
        Ok(Brake { stage: Arc::new(Stage::new()?), threads: Arc::default() })
    }

    /// Ends the run, unless it has ended, and gets every vCPU out of the guest.
    pub fn pull(&self, ending: Ending) {
        self.stage.end(ending);
        self.threads.kick();
    }

    /// Whether the run has ended, by this or by itself.
    pub fn is_pulled(&self) -> bool {
        self.stage.ending().is_some()
    }
}

/// What a run left behind.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Why it ended.
    pub ending: Ending,
    /// All that the guest said.
    pub console: String,
}

impl Rig<'_> {
    /// What has to be in memory before it runs.
    ///
    /// # Errors
    /// [`RigError::NoGuest`] or [`RigError::Boot`].
    pub fn image(&self, tsc_khz: u32) -> Result<BootImage, RigError> {
        let guest = guests::find(self.guest).ok_or(RigError::NoGuest(self.guest))?;
        let cmdline = format!("{} cpus={} tsc_khz={tsc_khz}", self.cmdline, self.vcpus);
        let mut request = BootRequest::new(guest.elf, RamLayout::new(self.ram_bytes)?);
        request.cmdline = &cmdline;
        request.mp_table = CpuCount::new(self.vcpus.into()).ok();
        Ok(load(&request)?)
    }

    /// Runs the guest on `ram`, which has its image already, until it ends or `brake` is pulled.
    ///
    /// # Errors
    /// [`RigError`]: it did not start.
    pub fn run(
        &self,
        kvm: &Kvm,
        ram: &Arc<dyn Ram>,
        image: &BootImage,
        brake: &Brake,
    ) -> Result<Ran, RigError> {
        let console = Console::default();
        let mut pio = PioBus::new();
        let serial = Serial::new(Silent, console.clone());
        pio.insert(COM1_RANGE, "serial port", Arc::new(Mutex::new(serial)))?;
        pio.insert(debug_exit::RANGE, "exit port", Arc::new(Mutex::new(DebugExit)))?;
        let devices = Arc::new(Devices { pio, mmio: MmioBus::new(), unclaimed: Unclaimed::Stop });
        // SAFETY: the windows live as long as `ram`, which outlives `vm`; only the guest accesses them.
        let vm = unsafe { Vm::new(kvm, &ram.slots()) }?;
        if self.vcpus > 1 {
            vm.add_irqchip()?;
        }
        let cpus = CpuPlan::new(kvm, self.vcpus, &[], self.vcpus > 1)?;
        let vcpus = (0..self.vcpus)
            .map(|index| {
                let fd = vm.add_vcpu(index)?;
                fd.set_cpuid2(&cpus.for_vcpu(index)).map_err(failed("KVM_SET_CPUID2"))?;
                if index == 0 {
                    let mut sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
                    image.entry.fill_sregs(&mut sregs);
                    fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
                    fd.set_regs(&image.entry.regs()).map_err(failed("KVM_SET_REGS"))?;
                }
                let (devices, stage, ram) = (devices.clone(), brake.stage.clone(), ram.clone());
                let (progress, shared) = (Arc::default(), Arc::default());
                Ok(Vcpu {
                    index,
                    fd,
                    devices,
                    ram,
                    stage,
                    progress,
                    shared,
                    runs_ring0: false,
                    profile: None,
                })
            })
            .collect::<Result<Vec<_>, KvmError>>()?;
        Kick::prepare().map_err(io::Error::from)?;
        if let Err(error) = brake.threads.start(vcpus) {
            // Those that were started have to stop before anything goes away.
            brake.stage.end(Ending::Signal(libc::SIGTERM));
            brake.threads.join();
            return Err(error.into());
        }
        let ending = loop {
            if let Some(ending) = brake.stage.ending() {
                break ending.clone();
            }
            // Interrupted is as good as rung: it is looked at again.
            let _ = poll(&mut [PollFd::new(brake.stage.bell(), PollFlags::IN)], None);
        };
        brake.threads.join();
        drop(vm);
        Ok(Ran { ending, console: console.text() })
    }
}

/// The frequency of the guests' time stamp counter, in kHz.
///
/// # Errors
/// KVM does not say.
pub fn tsc_khz(kvm: &Kvm) -> Result<u32, RigError> {
    // SAFETY: there are no slots.
    let vm = unsafe { Vm::new(kvm, &[]) }?;
    Ok(vm.add_vcpu(0)?.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?)
}

/// The value of `key=` in the last line that starts with `mark`: how the built-in guests report to programs.
pub fn told(console: &str, mark: &str, key: &str) -> Option<u64> {
    let line = console.lines().rfind(|line| line.starts_with(mark))?;
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

/// The guest's console, kept.
#[derive(Clone, Debug, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An interrupt line that leads nowhere: the guest polls.
#[derive(Debug)]
struct Silent;

impl Trigger for Silent {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}
