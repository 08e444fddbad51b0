//! The storm `pin-vs-collapse`: devices write to memory by DMA while it is collapsed, split and scattered under them, and a
//! guest checks every word of it.
//!
//! ```text
//!   device.rs    pins, checks what it wrote last, writes, lets go      witness.rs   the guest's side, and the end
//!   disk.rs      the same by requests to a disk and its driver         place.rs     where what lies
//!   slots.rs     what a device wrote last, and where                   report.rs    what came of it
//!   weather.rs   collapses, splits, scatters                           sky.rs       when it is over
//!   heckler.rs   takes devices off their CPU at random points
//! ```
//!
//! A write that goes to a frame that a collapse has copied already is lost. Its device finds an older number at its next visit,
//! or it is found at rest; and the guest sees a number go backwards or its own words change.

mod device;
mod disk;
mod heckler;
mod place;
mod report;
mod sky;
mod slots;
mod weather;
mod witness;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{ScopedJoinHandle, scope};
use std::time::Duration;

use guest_mm::fault::FaultError;
use guest_mm::pin::PinError;
use guest_mm::protocol::Protocol;

use crate::config::{ConfigError, Host, MachineConfig};
use crate::kvm::{self, KvmError};
use crate::machine::{MachineError, ServedRam};
use crate::ram::Ram;
use crate::rig::{Brake, Ran, Rig, RigError, tsc_khz};
use crate::vcpu::Ending;

use super::damage::said;
use super::dice::Dice;
use device::Device;
use disk::Disk;
use heckler::Audience;
use place::Place;
pub use report::{Collapses, Loss, Report, Traffic, Verdict};
use sky::{Sky, wait_for};
use slots::{Log, Slots};
use weather::Weather;

/// How long the guest may take for its first and for its last pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// What kind of storm.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Virtual CPUs of the guest.
    pub vcpus: u8,
    /// Devices, a thread each; at most 128.
    pub devices: u64,
    /// What they are.
    pub drive: Drive,
    /// Blocks under test.
    pub blocks: u64,
    /// How long.
    pub until: Until,
    /// Which random numbers.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        let until = Until::Time(Duration::from_secs(5));
        Options { vcpus: 2, devices: 4, drive: Drive::Pins, blocks: 8, until, seed: 1 }
    }
}

/// What the devices of a storm are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Drive {
    /// Threads that pin, write and let go, and do nothing else.
    Pins,
    /// Disks, each with its driver and rings: the way of a machine's DMA.
    Disk,
}

/// When a storm ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After this time.
    Time(Duration),
    /// At the first number that is missed.
    FirstLoss {
        /// Or after this time.
        at_most: Duration,
    },
}

/// Why there was no storm.
#[derive(Debug, thiserror::Error)]
pub enum StormError {
    /// The machine's config.
    #[error("the storm's config: {0}")]
    Config(#[from] ConfigError),
    /// Its memory.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest.
    #[error(transparent)]
    Rig(#[from] RigError),
    /// The system.
    #[error("the storm could not be set up: {0}")]
    System(#[from] std::io::Error),
}

/// Why a device stopped.
#[derive(Debug, thiserror::Error)]
enum DeviceError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// Lets a storm of `P` blow, and says what it did.
///
/// # Errors
/// [`StormError`]: it could not begin. What goes wrong later is in the report.
pub fn storm<P: Protocol + fmt::Debug>(options: &Options) -> Result<Report, StormError> {
    let place = Place::new(options);
    let kvm = kvm::open()?;
    let brake = Brake::new()?;
    let ram = Arc::new(memory::<P>(place, &brake)?);
    let cmdline = place.cmdline(options);
    let (vcpus, ram_bytes) = (options.vcpus, place.ram_bytes());
    let rig = Rig { guest: "touch", ram_bytes, vcpus, cmdline: &cmdline };
    let image = rig.image(tsc_khz(&kvm)?)?;
    ram.load(&image)?;
    ram.guest().populate(place.held()).map_err(MachineError::from)?;

    let audience = &Audience::new().map_err(std::io::Error::from)?;
    let failures = Mutex::default();
    let storm = Storm { options, place, ram: &ram, brake: &brake, audience, failures };
    let shared: Arc<dyn Ram> = ram.clone();
    let (blown, ran) = scope(|scope| {
        let guest =
            scope.spawn(|| storm.attempt("the guest", || rig.run(&kvm, &shared, &image, &brake)));
        let blown = storm.blow();
        // If it has ended by itself, this changes nothing.
        brake.pull(Ending::Escape);
        (blown, guest.join().ok().flatten())
    });
    drop(shared);
    let mut report = storm.report(blown, ran.as_ref());
    report.failures = storm.failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    let ram = Arc::into_inner(ram).expect("the threads that shared it are joined");
    take_down(ram, &mut report);
    Ok(report)
}

/// Memory for a storm: a pool with little room, and of huge pages where the host has them. Without those a promotion asks the
/// host to make one, and waits for every CPU.
fn memory<P: Protocol>(place: Place, brake: &Brake) -> Result<ServedRam<P>, StormError> {
    let text = format!(
        "memory = {{ size = {}, pool = {}, pages = \"2m\" }}\nboot.guest = \"touch\"\n",
        place.ram_bytes(),
        place.pool_bytes(),
    );
    let host = Host::of_this_cpu();
    let config = MachineConfig::parse(&text, Path::new("the storm's config"), &[], host)?;
    let brake = brake.clone();
    let on_stop = move |error: &FaultError| brake.pull(Ending::Memory(error.clone()));
    Ok(ServedRam::new(&config.memory, Box::new(on_stop))?)
}

/// Checks the books. A storm of a broken protocol may have left them in a state that the engine refuses to go on with.
fn take_down<P: Protocol>(mut ram: ServedRam<P>, report: &mut Report) {
    let books = catch_unwind(AssertUnwindSafe(move || {
        ram.rest();
        (ram.guest().stats(), ram.close())
    }));
    report.audit = match books {
        Ok((memory, audit)) => {
            report.memory = Some(memory);
            audit.map_or_else(|error| error.to_string(), |()| "clean".into())
        }
        Err(panic) => said(&*panic).to_owned(),
    };
}

/// A storm that is under way.
struct Storm<'a, P: Protocol> {
    options: &'a Options,
    place: Place,
    ram: &'a ServedRam<P>,
    brake: &'a Brake,
    audience: &'a Audience,
    failures: Mutex<Vec<String>>,
}

/// What the threads of a storm come back with.
#[derive(Default)]
struct Blown {
    seconds: f64,
    logs: Vec<Log>,
    collapses: Collapses,
    splits: u64,
    scattered: u64,
}

impl<P: Protocol + fmt::Debug> Storm<'_, P> {
    /// From the guest's first pass to its last.
    fn blow(&self) -> Blown {
        let (guest, place) = (self.ram.guest(), self.place);
        let has_begun = || witness::passes(guest, place) > 0;
        if !wait_for(PATIENCE, || has_begun() || self.brake.is_pulled()) || !has_begun() {
            self.fail("the guest", &"it did not get through its first pass");
            return Blown::default();
        }
        let blown = self.threads();
        self.attempt("stopping the guest", || witness::stop(guest, place));
        if !wait_for(PATIENCE, || self.brake.is_pulled()) {
            self.fail("the guest", &"it did not make its last pass");
        }
        blown
    }

    /// Devices and weather, from their start to their end.
    fn threads(&self) -> Blown {
        let (guest, place, options) = (self.ram.guest(), self.place, self.options);
        let sky = &Sky::new();
        let audience = self.audience;
        let weather = Weather { guest, place, sky, audience };
        let dice = |stream| Dice::new(options.seed, stream);
        scope(|scope| {
            let devices: Vec<_> = (0..options.devices)
                .map(|number| {
                    let (slots, dice) = (Slots::new(number, place, sky), dice(number));
                    scope.spawn(move || self.attempt("a device", || self.device(slots, dice)))
                })
                .collect();
            // The streams of the devices have their numbers.
            let [one, two, three] = [0, 1, 2].map(|stream| dice(options.devices + stream));
            let collapser =
                scope.spawn(move || self.attempt("the collapser", || weather.collapse(one)));
            let splitter = scope.spawn(move || self.attempt("the splitter", || weather.split(two)));
            let scatterer =
                scope.spawn(move || self.attempt("the scatterer", || weather.scatter(three)));
            scope.spawn(move || audience.heckle(sky));
            sky.watch(options.until, || self.brake.is_pulled() || self.has_failed());
            let seconds = sky.seconds();
            sky.clear_up();
            let logs: Vec<_> = devices.into_iter().filter_map(ended).collect();
            for why in logs.iter().filter_map(|log| log.stranded.as_ref()) {
                self.fail("a disk", why);
            }
            let mut collapses = ended(collapser).unwrap_or_default();
            let splits = ended(splitter).unwrap_or_default();
            let (scattered, repairs) = ended(scatterer).unwrap_or_default();
            collapses.merge(repairs);
            Blown { seconds, logs, collapses, splits, scattered }
        })
    }

    /// A device, from its start to its end.
    fn device(&self, slots: Slots<'_>, dice: Dice) -> Result<Log, DeviceError> {
        let guest = self.ram.guest();
        match self.options.drive {
            Drive::Pins => Ok(Device::new(guest, slots, dice).work(&self.audience.attend())?),
            Drive::Disk => {
                let disk = Disk::new(guest, slots, dice)?;
                Ok(disk.work(&self.audience.attend()))
            }
        }
    }

    fn report(&self, blown: Blown, ran: Option<&Ran>) -> Report {
        let Blown { seconds, logs, collapses, splits, scattered } = blown;
        let verdict = ran.and_then(|ran| self.attempt("the guest", || witness::verdict(ran)));
        let rest = self
            .attempt("the look at rest", || witness::inspect(self.ram.guest(), self.place, &logs));
        let (lost_at_rest, unacknowledged) = rest.unwrap_or_default();
        let mut traffic = Traffic::default();
        logs.into_iter().for_each(|log| traffic.add(log.traffic));
        Report {
            seconds,
            traffic,
            guest: verdict,
            lost_at_rest,
            unacknowledged,
            collapses,
            splits,
            scattered,
            memory: None,
            audit: String::new(),
            failures: Vec::new(),
        }
    }

    /// Does `work`; if that fails or panics, notes what it said.
    fn attempt<T, E: fmt::Display>(
        &self,
        who: &str,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => self.fail(who, &error),
            Err(panic) => self.fail(who, &said(&*panic)),
        }
        None
    }

    fn fail(&self, who: &str, what: &dyn fmt::Display) {
        self.lock_failures().push(format!("{who}: {what}"));
    }

    fn has_failed(&self) -> bool {
        !self.lock_failures().is_empty()
    }

    fn lock_failures(&self) -> MutexGuard<'_, Vec<String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread came back with; what went wrong in it is noted.
fn ended<T>(thread: ScopedJoinHandle<'_, Option<T>>) -> Option<T> {
    thread.join().ok().flatten()
}
