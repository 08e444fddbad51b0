//! The guest `touch` on memory from anywhere, and what it reports of its first touches.
#![allow(unsafe_code, reason = "hands windows to KVM")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use devices::bus::{MmioBus, PioBus};
use devices::debug_exit::{self, DebugExit};
use devices::serial::{COM1_RANGE, Serial};
use kvm_ioctls::Kvm;

use crate::boot::{BootImage, BootRequest, CpuCount, RamLayout, load};
use crate::config::Unclaimed;
use crate::guests;
use crate::kvm::{CpuPlan, KvmError, Vm, failed};
use crate::ram::Ram;
use crate::vcpu::{Devices, Ending, Progress, Stage, Vcpu};

use super::BenchError;

/// How the guest walks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// RAM of the guest.
    pub(super) ram_bytes: u64,
    /// Virtual CPUs that share the walk.
    pub(super) vcpus: u8,
    /// Keys of the guest's command line.
    pub(super) cmdline: &'static str,
}

/// What the guest measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touched {
    /// Median first touch, in microseconds.
    pub(super) p50_us: f64,
    /// The 99th percentile.
    pub(super) p99_us: f64,
    /// Mean time of a page over the walk, in microseconds, all vCPUs together.
    pub(super) page_us: f64,
}

/// A guest that is ready to be loaded: its frequency and its image.
pub(super) fn image(walk: Walk, tsc_khz: u32) -> Result<BootImage, BenchError> {
    let guest =
        guests::find("touch").ok_or(BenchError::Guest("there is no guest `touch`".into()))?;
    let cmdline = format!("{} cpus={} tsc_khz={tsc_khz}", walk.cmdline, walk.vcpus);
    let mut request = BootRequest::new(guest.elf, RamLayout::new(walk.ram_bytes)?);
    request.cmdline = &cmdline;
    request.mp_table = CpuCount::new(walk.vcpus.into()).ok();
    Ok(load(&request)?)
}

/// Runs the guest on `ram`, which has its image already, and reads its report.
pub(super) fn run(
    kvm: &Kvm,
    walk: Walk,
    ram: &Arc<dyn Ram>,
    start: &BootImage,
) -> Result<Touched, BenchError> {
    let console = Console::default();
    let stage = Arc::new(Stage::new()?);
    let mut pio = PioBus::new();
    let serial = Serial::new(Silent, console.clone());
    pio.insert(COM1_RANGE, "serial port", Arc::new(Mutex::new(serial)))?;
    pio.insert(debug_exit::RANGE, "exit port", Arc::new(Mutex::new(DebugExit)))?;
    let devices = Arc::new(Devices { pio, mmio: MmioBus::new(), unclaimed: Unclaimed::Stop });
    // SAFETY: the windows live as long as `ram`, which outlives `vm`; only the guest accesses them.
    let vm = unsafe { Vm::new(kvm, &ram.slots()) }?;
    if walk.vcpus > 1 {
        vm.add_irqchip()?;
    }
    let cpus = CpuPlan::new(kvm, walk.vcpus, &[], walk.vcpus > 1)?;
    let vcpus = (0..walk.vcpus)
        .map(|index| {
            let fd = vm.add_vcpu(index)?;
            fd.set_cpuid2(&cpus.for_vcpu(index)).map_err(failed("KVM_SET_CPUID2"))?;
            if index == 0 {
                let mut sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
                start.entry.fill_sregs(&mut sregs);
                fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
                fd.set_regs(&start.entry.regs()).map_err(failed("KVM_SET_REGS"))?;
            }
            let (devices, stage, ram) = (devices.clone(), stage.clone(), ram.clone());
            Ok(Vcpu { index, fd, devices, ram, stage, progress: Arc::new(Progress::default()) })
        })
        .collect::<Result<Vec<_>, KvmError>>()?;
    crate::vcpu::Kick::prepare().map_err(io::Error::from)?;
    let threads: Vec<_> =
        vcpus.into_iter().map(|vcpu| std::thread::spawn(move || vcpu.run())).collect();
    let threads_done = || threads.iter().all(std::thread::JoinHandle::is_finished);
    while !threads_done() {
        if stage.ending().is_some() {
            threads.iter().for_each(crate::vcpu::Kick::kick);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    threads.into_iter().for_each(|thread| drop(thread.join()));
    drop(vm);
    match stage.ending() {
        Some(Ending::Verdict(0)) => parse(&console.text()),
        Some(other) => Err(BenchError::Guest(format!("{other}; console: {}", console.text()))),
        None => Err(BenchError::Guest("the guest ended without an ending".into())),
    }
}

/// The frequency of the guests' time stamp counter, in kHz.
pub(super) fn tsc_khz(kvm: &Kvm) -> Result<u32, BenchError> {
    // SAFETY: there are no slots.
    let vm = unsafe { Vm::new(kvm, &[]) }?;
    Ok(vm.add_vcpu(0)?.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?)
}

/// Reads the last line of the guest's report: `touch: key=value …`.
fn parse(console: &str) -> Result<Touched, BenchError> {
    let unreadable = || BenchError::Guest(format!("its report is not readable: {console}"));
    let line =
        console.lines().rfind(|line| line.starts_with("touch: pages=")).ok_or_else(unreadable)?;
    let field = |name: &str| -> Option<f64> {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    let fields = || {
        Some((
            field("pages")?,
            field("first_touch_p50_cycles")?,
            field("p99")?,
            field("cycles")?,
            field("ns")?,
        ))
    };
    let (pages, p50, p99, cycles, ns) = fields().ok_or_else(unreadable)?;
    let us_per_cycle = ns / cycles / 1e3;
    Ok(Touched {
        p50_us: p50 * us_per_cycle,
        p99_us: p99 * us_per_cycle,
        page_us: ns / pages / 1e3,
    })
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

impl devices::serial::Trigger for Silent {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}
