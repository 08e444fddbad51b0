//! A whole machine: built from a config, run to its end, taken down with its books checked.
//!
//! ```text
//!   memory.rs   RAM from the service        monitor.rs   the main thread: input, signals, the end
//!   image.rs    what is booted              report.rs    what is said afterwards
//!   console.rs  where the serial leads      answers.rs   what it tells who asks at the control socket
//!   collapse.rs huge pages out of small ones: by themselves, and when somebody asks
//!   dedup.rs    pages of the same bytes become one
//!   live.rs     vCPUs and devices come to rest, tell their state, and go on
//!   restore.rs  a machine that begins as a state
//!   dirty.rs    which pages have changed          snapshot.rs  it is written to a folder, and read from one
//!   balloons.rs how much memory the guest gives back
//!   virtio/     devices that do DMA
//!   commons.rs  what machines share: a pool, a template
//!   clones.rs   many machines over one template, and footprint.rs, what they take
//! ```
//!
//! # Order of set-up
//! Time to the guest's first byte is a figure of this project. Memory slots come before the interrupt
//! controller, which would make each of them wait for an RCU grace period; nothing that can wait until
//! the guest runs comes before it runs. The control socket is made first, where there is one, because a
//! path that cannot be had should be known before anything else is done; it is served once the guest runs.

mod answers;
mod balloons;
mod clones;
mod collapse;
mod commons;
mod console;
mod dedup;
mod dirty;
mod error;
mod footprint;
mod image;
mod live;
mod memory;
mod migrate;
mod monitor;
mod report;
mod restore;
mod signals;
mod snapshot;
#[cfg(test)]
mod trial;
mod virtio;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use devices::acpi_power::AcpiPower;
use devices::bus::{MmioBus, PioBus};
use devices::cmos::{Cmos, MemorySizes};
use devices::debug_exit::DebugExit;
use devices::i8042::I8042;
use devices::serial::{COM1_IRQ, COM1_RANGE, Serial};
use devices::{acpi_power, cmos, debug_exit, i8042, quiet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::{Bytes, Irqchip, MachineConfig, Ring0};
use crate::control::{self, Listener};
use crate::emulate::{Counts, Profile, Shared};
use crate::kvm::{self, CpuPlan, KvmError, Vm, failed, set_boot_msrs};
use crate::ram::Ram;
use crate::state::{Fingerprint, NamedShape};
use crate::vcpu::{Devices, Ending, Kick, Stage, Threads, Vcpu, set_virtual_wire};

pub use clones::{CloneReport, Clones, ClonesReport, run_one};
pub use commons::Commons;
use console::{Interrupt, Speech};
pub use dirty::{DirtyError, DirtyTracker};
pub use error::MachineError;
pub use footprint::Footprint;
pub use image::{Facts, image};
pub use live::{Live, Unrest};
pub use memory::ServedRam;
use migrate::Arriving;
pub use migrate::{Came, ReceiveError, Received, receive, security};
use report::Ingredients;
pub use report::{Outcome, Report};
pub use restore::{Ahead, Filling, Learnt, Restores};
use signals::Signals;
use virtio::{Served, Virtio};

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Machine {
    control: Option<Listener>,
    /// Who makes pages ready that are going to be needed.
    ahead: Option<Ahead>,
    vcpus: Vec<Vcpu>,
    stage: Arc<Stage>,
    threads: Arc<Threads>,
    devices: Arc<Devices>,
    serial: Arc<Mutex<Serial>>,
    cmos: Arc<Mutex<Cmos>>,
    virtio: Served,
    vm: Arc<Vm>,
    ram: Arc<ServedRam>,
    fingerprint: Arc<Fingerprint>,
    has_one_gib_pages: bool,
    /// Of which this much is RAM.
    memory: Bytes,
    takes_input: bool,
    has_irqchip: bool,
    name: String,
    /// Its guest comes from another host.
    arriving: Option<Arc<Arriving>>,
    /// Its config, for a snapshot.
    toml: String,
    started: Instant,
}

impl Machine {
    /// Builds the machine that `config` describes; `started` is when the program was.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left behind.
    pub fn new(config: &MachineConfig, started: Instant) -> Result<Machine, MachineError> {
        let control = config.control.socket.as_ref();
        let control = control.map(|path| Listener::bind(&path.value)).transpose()?;
        let kvm = kvm::open()?;
        let commons = Arc::new(Commons::new(&config.memory)?);
        let machine = Machine::on(&kvm, &commons, config, Speech::AsConfigured, started)?;
        Ok(Machine { control, ..machine })
    }

    /// The same, with a note of where the vCPUs' time goes.
    #[must_use]
    pub fn profiled(mut self) -> Machine {
        let profile = Arc::new(Profile::default());
        for vcpu in &mut self.vcpus {
            vcpu.profile = Some(Arc::clone(&profile));
        }
        self
    }

    /// The same on a pool that it may share with others, its console where `speech` says, without a control socket.
    fn on(
        kvm: &kvm_ioctls::Kvm,
        commons: &Arc<Commons>,
        config: &MachineConfig,
        speech: Speech,
        started: Instant,
    ) -> Result<Machine, MachineError> {
        let machine = Machine::empty(kvm, commons, config, speech, Filling::default(), started)?;
        let Machine { ram, vcpus, has_one_gib_pages, has_irqchip, .. } = &machine;
        enter(config, ram, &vcpus[0], *has_one_gib_pages, *has_irqchip)?;
        Ok(machine)
    }

    /// The same with nothing booted; its memory comes from where `filling` says.
    fn empty(
        kvm: &kvm_ioctls::Kvm,
        commons: &Arc<Commons>,
        config: &MachineConfig,
        speech: Speech,
        mut filling: Filling,
        started: Instant,
    ) -> Result<Machine, MachineError> {
        let stage = Stage::new()
            .map_err(|source| MachineError::System { what: "an event for the end", source })?;
        let stage = Arc::new(stage);
        let threads = Arc::new(Threads::default());
        // A guest that is to come from elsewhere has its disks with it.
        let on_missing = filling.on_missing.take();
        let claims_now = on_missing.is_none();
        let ram = {
            let (stage, threads) = (Arc::clone(&stage), Arc::clone(&threads));
            let on_stop = move |error: &guest_mm::fault::FaultError| {
                stage.end(Ending::Memory(error.clone()));
                threads.kick();
            };
            let images = virtio::images(config, commons)?;
            let ram =
                ServedRam::beside(commons, &config.memory, images, on_missing, Box::new(on_stop))?;
            Arc::new(ram.collapsed_as(&config.collapse)?.merged_as(&config.dedup)?)
        };
        let ahead = filling.begin(&ram);
        let has_irqchip = config.machine.irqchip.value == Irqchip::Kernel;
        let (vm, cpus) = hypervisor(kvm, config, &ram.slots(), has_irqchip)?;
        let interrupt = has_irqchip.then(|| event("an interrupt")).transpose()?;
        if let Some(event) = &interrupt {
            vm.connect_irq(event, COM1_IRQ)?;
        }
        let takes_input = speech.takes_input(&config.console.serial.value);
        let output = speech.output(&config.console.serial.value, &stage)?;
        let serial = Serial::new(Interrupt(interrupt), output);
        let serial = Arc::new(Mutex::new(serial));
        let mut mmio = MmioBus::new();
        let virtio = Virtio::new(config, &ram, &vm, &mut mmio, claims_now)?;
        let cmos = Arc::new(Mutex::new(Cmos::new(memory_sizes(config))));
        let devices = Arc::new(Devices {
            pio: ports(config, &serial, &cmos)?,
            mmio,
            unclaimed: config.machine.unclaimed.value,
        });
        let shared = Arc::new(Shared {
            hidden: config.machine.cpu.value.hidden(),
            counts: Counts::default(),
        });
        stage.gate().expect(config.machine.vcpus.value.into());
        let runs_ring0 = config.machine.ring0.value == Ring0::Monitor;
        let vcpus = (0..config.machine.vcpus.value)
            .map(|index| {
                let fd = vm.add_vcpu(index)?;
                fd.set_cpuid2(&cpus.for_vcpu(index)).map_err(failed("KVM_SET_CPUID2"))?;
                let (devices, stage) = (Arc::clone(&devices), Arc::clone(&stage));
                let ram: Arc<dyn Ram> = ram.clone();
                let (progress, shared) = (Arc::default(), Arc::clone(&shared));
                Ok(Vcpu {
                    index,
                    fd,
                    devices,
                    ram,
                    stage,
                    progress,
                    shared,
                    runs_ring0,
                    profile: None,
                })
            })
            .collect::<Result<Vec<_>, KvmError>>()?;
        let virtio = virtio.serve()?;
        let shapes = virtio.devices().iter();
        let shapes = shapes
            .map(|device| NamedShape { name: device.name().to_owned(), shape: device.shape() })
            .collect();
        let fingerprint = Fingerprint::new(config, &cpus.for_vcpu(0), shapes);
        Ok(Machine {
            control: None,
            ahead,
            vcpus,
            stage,
            threads,
            devices,
            serial,
            cmos,
            virtio,
            vm: Arc::new(vm),
            ram,
            fingerprint: Arc::new(fingerprint),
            has_one_gib_pages: cpus.has_one_gib_pages(),
            memory: config.memory.size.value,
            takes_input,
            has_irqchip,
            name: config.file.display().to_string(),
            arriving: None,
            toml: config.toml.clone(),
            started,
        })
    }

    /// Runs the machine to its end.
    ///
    /// # Errors
    /// No thread can be started, or no signal handled: nothing runs.
    pub fn run(self) -> Result<Outcome, MachineError> {
        let signals = listen()?;
        Ok(Outcome::new(self.run_to_end(Some(&signals))?))
    }

    /// Runs the machine until its vCPUs are joined; its memory is as they left it. [`listen`] was called.
    fn run_to_end(self, signals: Option<&Signals>) -> Result<Ingredients, MachineError> {
        // Bound in this order, the VM goes before the memory on every way out.
        let live = self.live();
        let Machine { ram, vm, control, vcpus, stage, threads, devices, serial, virtio, .. } = self;
        let ahead = self.ahead;
        let progress: Vec<_> = vcpus.iter().map(|vcpu| Arc::clone(&vcpu.progress)).collect();
        let (shared, profile) = (Arc::clone(&vcpus[0].shared), vcpus[0].profile.clone());
        // Those of a machine that was restored rest still.
        virtio.devices().iter().for_each(|device| device.resume());
        let entered = Instant::now();
        if let Err(source) = threads.start(vcpus) {
            // Those that were started have to stop before anything goes away.
            stage.end(Ending::Signal(libc::SIGTERM));
            threads.join();
            return Err(MachineError::System { what: "starting a vCPU thread", source });
        }
        ahead.iter().for_each(Ahead::go_on);
        let serve = |listener| {
            let answers = answers::of(self.name, live, self.toml, self.memory, self.arriving);
            control::Server::start(listener, answers)
        };
        let server = control.map(serve).transpose();
        monitor::Monitor {
            stage: &stage,
            threads: &threads,
            signals,
            progress: &progress,
            serial: &serial,
            virtio: &virtio,
            takes_input: self.takes_input,
            has_irqchip: self.has_irqchip,
        }
        .watch();
        threads.join();
        let ran = entered.elapsed();
        // What is not needed any more.
        drop(ahead);
        // Before the memory is taken down: the server looks at it, and no client may keep it.
        let (server, control_error) =
            server.map_or_else(|e| (None, Some(e.to_string())), |s| (s, None));
        drop(server);
        let virtio = virtio.end();
        // No vCPU runs from here on: the memory is at rest, and KVM lets go of it before it goes.
        drop(vm);
        Ok(Ingredients {
            stage,
            devices,
            virtio,
            serial,
            ram,
            progress,
            emulated: shared.counts.all(),
            profile: profile.map(|profile| profile.report()),
            control_error,
            started: self.started,
            ran,
        })
    }
}

/// Prepares for signals: the operator's, and those that get vCPUs out of their guests.
fn listen() -> Result<Signals, MachineError> {
    Kick::prepare()
        .map_err(|e| MachineError::System { what: "handling a signal", source: e.into() })?;
    signals::listen().map_err(|source| MachineError::System { what: "handling signals", source })
}

/// The VM and its CPUs' features. Slots before the interrupt controller, that before the vCPUs.
fn hypervisor(
    kvm: &kvm_ioctls::Kvm,
    config: &MachineConfig,
    slots: &[kvm::Slot],
    has_irqchip: bool,
) -> Result<(Vm, CpuPlan), MachineError> {
    #[allow(unsafe_code, reason = "hands the windows to KVM")]
    // SAFETY:
    // 1. the slots are the windows of a guest, mapped until it is dropped; `Machine::run` drops the VM
    //    before the last owner of the guest, and `Machine`'s fields are declared in that order;
    // 2. nothing in this process but the mirror touches a window: that is `guest_mm`'s promise.
    let vm = unsafe { Vm::new(kvm, slots) }?;
    if has_irqchip {
        vm.add_irqchip()?;
    }
    let hidden = config.machine.cpu.value.hidden();
    let cpus = CpuPlan::new(kvm, config.machine.vcpus.value, &hidden, has_irqchip)?;
    Ok((vm, cpus))
}

/// Loads what is booted, and puts the boot CPU at its start. The others wait for its INIT and SIPI.
fn enter(
    config: &MachineConfig,
    ram: &ServedRam,
    boot: &Vcpu,
    one_gib_pages: bool,
    has_irqchip: bool,
) -> Result<(), MachineError> {
    let tsc_khz = boot.fd.get_tsc_khz().unwrap_or(0);
    let image = image(config, Facts { tsc_khz, one_gib_pages })?;
    ram.load(&image)?;
    let mut sregs = boot.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    image.entry.fill_sregs(&mut sregs);
    boot.fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    boot.fd.set_regs(&image.entry.regs()).map_err(failed("KVM_SET_REGS"))?;
    if has_irqchip {
        set_virtual_wire(&boot.fd)?;
        set_boot_msrs(&boot.fd)?;
    }
    Ok(())
}

fn memory_sizes(config: &MachineConfig) -> MemorySizes {
    let mut sizes = MemorySizes { below_4g: 0, above_4g: 0 };
    for range in config.memory.ram() {
        let part = if range.start == 0 { &mut sizes.below_4g } else { &mut sizes.above_4g };
        *part = range.length.get();
    }
    sizes
}

/// The ports of the machine.
fn ports(
    config: &MachineConfig,
    serial: &Arc<Mutex<Serial>>,
    cmos: &Arc<Mutex<Cmos>>,
) -> Result<PioBus, MachineError> {
    let mut bus = PioBus::new();
    bus.insert(COM1_RANGE, "serial port", serial.clone())?;
    bus.insert(debug_exit::RANGE, "exit port", Arc::new(Mutex::new(DebugExit)))?;
    bus.insert(i8042::DATA_RANGE, "keyboard data", Arc::new(Mutex::new(I8042::Data)))?;
    bus.insert(i8042::COMMAND_RANGE, "keyboard command", Arc::new(Mutex::new(I8042::Command)))?;
    bus.insert(cmos::RANGE, "real-time clock", cmos.clone())?;
    if config.machine.acpi.value {
        bus.insert(acpi_power::RANGE, "power registers", Arc::new(Mutex::new(AcpiPower)))?;
    }
    quiet::claim_quiet_ports(&mut bus)?;
    Ok(bus)
}

fn event(what: &'static str) -> Result<EventFd, MachineError> {
    EventFd::new(EFD_NONBLOCK).map_err(|source| MachineError::System { what, source })
}
