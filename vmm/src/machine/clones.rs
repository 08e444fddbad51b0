//! Many machines over one template, or one snapshot: one service, one image, and for each machine its own VM, vCPUs and window.
//!
//! They are built one after the other and run side by side. Their memory is taken down when the last has ended, so that
//! what all of them take can be looked at.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::{Bytes, MachineConfig, Setting};
use crate::kvm;
use crate::vcpu::{Ending, Stage};

use super::console::{Speech, Transcript};
use super::report::{Ingredients, Outcome};
use super::signals::Signals;
use super::{Commons, Footprint, Machine, MachineError, listen};

/// Machines to be started from one config.
#[derive(Clone, Copy, Debug)]
pub struct Clones<'a> {
    /// What each of them is. Its console is kept, and its control socket is not served.
    pub config: &'a MachineConfig,
    /// How many.
    pub count: u32,
}

/// What became of one of them.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CloneReport {
    /// Its number, from 0 on.
    pub clone: u32,
    /// From the start of its building to its first byte of output, in microseconds.
    pub first_output_us: Option<u64>,
    /// From its first vCPU's start to its end, in microseconds.
    pub ran_us: u64,
    /// Memory of its own.
    pub private_bytes: u64,
    /// Violations of its memory that were served.
    pub faults: u64,
    /// How it ended, by name.
    pub ending: &'static str,
    /// The same as a sentence.
    pub reason: String,
    /// Its verdict, as an exit code.
    pub exit_code: u8,
    /// `clean`, or the first wrong book.
    pub audit: String,
    /// The end of what it said.
    pub console: String,
}

/// What became of all.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ClonesReport {
    /// The config.
    pub config: String,
    /// The template's file.
    pub template: String,
    /// Its size.
    pub template_bytes: u64,
    /// So much of it was loaded, once for all.
    pub loaded_bytes: u64,
    /// Memory that clones had of their own, all together.
    pub private_bytes: u64,
    /// This process before the first clone was built.
    pub before: Footprint,
    /// And when the last had ended, with the memory of all still there.
    pub after: Footprint,
    /// What the pool lies on, and why.
    pub pool: String,
    /// `clean`, or the first wrong book of the pool.
    pub audit: String,
    /// Each of them.
    pub clones: Vec<CloneReport>,
}

/// One that runs.
struct Running {
    stage: Arc<Stage>,
    said: Transcript,
    end: JoinHandle<Result<Ingredients, MachineError>>,
}

/// How soon a signal is heeded.
const SIGNAL_WAIT: Duration = Duration::from_millis(20);

impl Clones<'_> {
    /// Room for the template and other files, once, and for all that each of them can write; what the config says, if it does.
    pub fn pool(&self) -> Setting<Bytes> {
        let memory = &self.config.memory;
        if memory.pool.origin != crate::config::Origin::Default {
            return memory.pool;
        }
        // Both sizes are far below 2^64, and the count has 32 bits; more than there can be is refused as such.
        let own = self.config.own_pool().get();
        let shared = memory.pool.value.get() - own;
        let all = own.saturating_mul(self.count.into()).saturating_add(shared);
        Setting { value: Bytes::new(all), origin: memory.pool.origin }
    }

    /// Runs them all to their ends.
    ///
    /// # Errors
    /// One of them could not be built or started: those before it are stopped.
    pub fn run(&self) -> Result<ClonesReport, MachineError> {
        let kvm = kvm::open()?;
        let signals = listen()?;
        let commons = Commons::with_pool(&self.config.memory, self.pool().value)?;
        let host = Host { commons: Arc::new(commons), signals, config: self.config };
        host.run(self.count, |commons, speech| {
            Machine::on(&kvm, commons, self.config, speech, Instant::now())
        })
    }
}

/// What machines that are run side by side have in common.
pub(super) struct Host<'a> {
    pub(super) commons: Arc<Commons>,
    pub(super) signals: Signals,
    pub(super) config: &'a MachineConfig,
}

impl Host<'_> {
    /// Runs `count` machines to their ends, as `build` makes each of them.
    ///
    /// # Errors
    /// As [`Clones::run`].
    pub(super) fn run(
        self,
        count: u32,
        build: impl Fn(&Arc<Commons>, Speech) -> Result<Machine, MachineError>,
    ) -> Result<ClonesReport, MachineError> {
        let Host { commons, signals, config } = self;
        let before = footprint()?;
        let mut running = Vec::new();
        let mut failed = None;
        let mut stopped = None;
        for number in 0..count {
            stopped = stopped.or(signals.next_end());
            if stopped.is_some() {
                break;
            }
            let said = Transcript::default();
            let machine = build(&commons, Speech::Kept(said.clone()));
            match machine.and_then(|machine| start(machine, said, number)) {
                Ok(one) => running.push(one),
                Err(error) => {
                    failed = Some(error);
                    stopped = Some(libc::SIGTERM);
                    break;
                }
            }
        }
        let ended = wait(running, &signals, stopped)?;
        if let Some(error) = failed {
            return Err(error);
        }
        let after = footprint()?;
        let template = commons.template();
        let (path, bytes, loaded) = template.map_or_else(Default::default, |image| {
            (image.path().display().to_string(), image.nr_pages() << 12, image.nr_loaded() << 12)
        });
        let pool = commons.describe_pool();
        let clones: Vec<CloneReport> = (0..).zip(ended).map(report).collect();
        let audit = match Arc::into_inner(commons).map(Commons::close) {
            Some(Ok(())) => "clean".into(),
            Some(Err(error)) => error.to_string(),
            None => "a clone's memory is still there".into(),
        };
        Ok(ClonesReport {
            config: config.file.display().to_string(),
            template: path,
            template_bytes: bytes,
            loaded_bytes: loaded,
            private_bytes: clones.iter().map(|clone| clone.private_bytes).sum(),
            before,
            after,
            pool,
            audit,
            clones,
        })
    }
}

/// Has `machine` run on a thread of its own.
fn start(machine: Machine, said: Transcript, number: u32) -> Result<Running, MachineError> {
    let stage = Arc::clone(&machine.stage);
    let end = Builder::new()
        .name(format!("clone{number}"))
        .stack_size(MONITOR_STACK_BYTES)
        .spawn(move || machine.run_to_end(None))
        .map_err(|source| MachineError::System { what: "starting a clone", source })?;
    Ok(Running { stage, said, end })
}

/// Runs one machine on `commons` to its end.
///
/// # Errors
/// It could not be built or started.
pub fn run_one(
    commons: &Arc<Commons>,
    config: &MachineConfig,
) -> Result<CloneReport, MachineError> {
    let _signals = listen()?;
    let kvm = kvm::open()?;
    let said = Transcript::default();
    let speech = Speech::Kept(said.clone());
    let machine = Machine::on(&kvm, commons, config, speech, Instant::now())?;
    Ok(report((0, (machine.run_to_end(None)?, said))))
}

/// The stack of a thread that waits for a machine.
const MONITOR_STACK_BYTES: usize = 256 << 10;

/// Waits until all have ended; ends them when a signal comes, or has come.
fn wait(
    running: Vec<Running>,
    signals: &Signals,
    mut stop: Option<i32>,
) -> Result<Vec<(Ingredients, Transcript)>, MachineError> {
    while stop.is_some() || running.iter().any(|clone| !clone.end.is_finished()) {
        if let Some(number) = stop.take() {
            running.iter().for_each(|clone| clone.stage.end(Ending::Signal(number)));
            break;
        }
        let timeout = Timespec::try_from(SIGNAL_WAIT).ok();
        let _ = poll(&mut [PollFd::new(&signals.inbox, PollFlags::IN)], timeout.as_ref());
        stop = signals.next_end();
    }
    let ended: Vec<_> = running.into_iter().map(|clone| (clone.end.join(), clone.said)).collect();
    ended
        .into_iter()
        .map(|(end, said)| {
            let panicked = || io::Error::other("it panicked, and has said why");
            let failed = |_| MachineError::System { what: "a clone's thread", source: panicked() };
            Ok((end.map_err(failed)??, said))
        })
        .collect()
}

fn footprint() -> Result<Footprint, MachineError> {
    let what = "the memory of this process";
    Footprint::now().map_err(|source| MachineError::System { what, source })
}

/// Takes the memory of one down.
fn report((clone, (left, said)): (u32, (Ingredients, Transcript))) -> CloneReport {
    let Outcome { report, .. } = Outcome::new(left);
    let resident = &report.memory.resident;
    CloneReport {
        clone,
        first_output_us: report.first_output_us,
        ran_us: report.ran_us,
        private_bytes: (resident.frames() - resident.image_frames()) << 12,
        faults: report.memory.violations(),
        ending: report.ending,
        reason: report.reason,
        exit_code: report.exit_code,
        audit: report.audit,
        console: said.text(),
    }
}
