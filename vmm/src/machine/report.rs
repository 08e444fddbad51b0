//! What is said when a run is over: one line, or everything as JSON.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::bus::Unclaimed;
use devices::serial::Serial;
use devices::virtio::device::DeviceReport;
use guest_mm::addr::PageSize;
use guest_mm::dedup::DedupStats;
use guest_mm::map::MemoryMap;
use guest_mm::stats::Stats;

use crate::emulate::{Emulated, ProfileReport};
use crate::vcpu::{CpuReport, Devices, Ending, Progress, Stage};

use super::memory::ServedRam;

/// A run that is over.
#[derive(Debug)]
pub struct Outcome {
    /// Why it ended.
    pub ending: Ending,
    /// What happened in it.
    pub report: Report,
    /// The memory as it was at the end.
    pub map: MemoryMap,
    /// What went wrong with the console, in a sentence.
    pub console_error: Option<String>,
    /// What went wrong with the control socket, in a sentence.
    pub control_error: Option<String>,
}

/// What happened in a run, for machines to read.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// The ending's name.
    pub ending: &'static str,
    /// The same as a sentence.
    pub reason: String,
    /// Whether neither the guest nor the operator wanted it so.
    pub error: bool,
    /// The exit code of the program.
    pub exit_code: u8,
    /// From the program's start to the guest's first byte of output, in microseconds.
    pub first_output_us: Option<u64>,
    /// From the first vCPU's start to the end, in microseconds.
    pub ran_us: u64,
    /// Exits of all vCPUs.
    pub exits: u64,
    /// Instructions that were not the processor's.
    pub emulated: Emulated,
    /// Where the vCPUs' time went, if that was asked for.
    pub profile: Option<ProfileReport>,
    /// Accesses that nothing claimed, ports and memory.
    pub unclaimed: UnclaimedCounts,
    /// Bytes that the guest wrote to its console, and those that were lost.
    pub console: ConsoleBytes,
    /// What the virtio devices did.
    pub devices: Vec<DeviceReport>,
    /// What the memory service did.
    pub memory: Stats,
    /// What the scanner for duplicates did, where one runs.
    pub dedup: Option<DedupStats>,
    /// What the pool lies on, and why.
    pub pool: String,
    /// `clean`, or the first wrong book.
    pub audit: String,
    /// The vCPU that could not go on.
    pub cpu: Option<CpuReport>,
}

/// Accesses that nothing claimed.
#[derive(Debug, Default, serde::Serialize)]
pub struct UnclaimedCounts {
    /// To ports.
    pub ports: u64,
    /// The first ports of them.
    pub first_ports: Vec<String>,
    /// To guest-physical addresses.
    pub memory: u64,
    /// The first addresses of them.
    pub first_addresses: Vec<String>,
}

/// What went through the console.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct ConsoleBytes {
    /// Bytes written.
    pub written: u64,
    /// Bytes that the output did not take.
    pub lost: u64,
}

/// What is left of a machine when its vCPUs are joined.
pub(super) struct Ingredients {
    pub(super) stage: Arc<Stage>,
    pub(super) devices: Arc<Devices>,
    pub(super) virtio: Vec<DeviceReport>,
    pub(super) serial: Arc<Mutex<Serial>>,
    pub(super) ram: Arc<ServedRam>,
    pub(super) progress: Vec<Arc<Progress>>,
    pub(super) emulated: Emulated,
    pub(super) profile: Option<ProfileReport>,
    pub(super) control_error: Option<String>,
    pub(super) started: Instant,
    pub(super) ran: Duration,
}

impl Outcome {
    /// Looks at everything once more, and takes the memory down.
    pub(super) fn new(left: Ingredients) -> Outcome {
        let Ingredients {
            stage, devices, virtio, serial, ram, progress, emulated, profile, ..
        } = left;
        let Ingredients { control_error, started, ran, .. } = left;
        let pool = ram.describe_pool();
        let collapser = ram.rest_collapser();
        let dedup = ram.rest_dedup();
        let look = |ram: &ServedRam| {
            (Stats { collapser, ..ram.guest().stats() }, ram.guest().memory_map())
        };
        // Others may still hold it to look at; then it is checked here and taken down by the last.
        let ((memory, map), audit) = match Arc::try_unwrap(ram) {
            Ok(mut ram) => {
                ram.rest();
                (look(&ram), ram.close())
            }
            Err(shared) => (look(&shared), shared.guest().audit()),
        };
        let mut serial = serial.lock().unwrap_or_else(PoisonError::into_inner);
        let output = serial.output_stats();
        let ending = stage.ending().cloned().expect("vCPU threads end only once the run has ended");
        let report = Report {
            ending: ending.name(),
            reason: ending.to_string(),
            error: !ending.is_orderly(),
            exit_code: if audit.is_ok() { ending.exit_code() } else { ending.exit_code().max(1) },
            first_output_us: output.first_byte.map(|at| micros(at.duration_since(started))),
            ran_us: micros(ran),
            exits: progress.iter().map(|vcpu| vcpu.exits()).sum(),
            emulated,
            profile,
            unclaimed: unclaimed(&devices),
            console: ConsoleBytes { written: output.bytes, lost: output.lost },
            devices: virtio,
            memory,
            dedup,
            pool,
            audit: audit.map_or_else(|error| error.to_string(), |()| "clean".into()),
            cpu: ending.cpu().cloned(),
        };
        let console_error = serial.take_error().map(|error| error.to_string());
        Outcome { ending, report, map, console_error, control_error }
    }
}

impl Report {
    /// One line of what the memory service did.
    pub fn summary(&self) -> String {
        let memory = &self.memory;
        let sizes = PageSize::ALL.iter().zip(memory.resident.leaves);
        let leaves: Vec<String> = sizes
            .filter(|(_, count)| *count > 0)
            .map(|(size, count)| format!("{count} x {size}"))
            .collect();
        let collapsed = match &memory.collapser {
            Some(did) => format!(", {} blocks collapsed", did.promoted + did.copied),
            None => String::new(),
        };
        let merged = match &self.dedup {
            Some(did) => {
                format!(", {} pages merged, {} of zeroes dropped", did.merged, did.zeroes)
            }
            None => String::new(),
        };
        let assisted: u64 = self.emulated.assisted.values().sum();
        let emulated = match (assisted, self.emulated.interpreted) {
            (0, 0) => String::new(),
            (assisted, 0) => format!(", {assisted} instructions for KVM"),
            (_, interpreted) => {
                format!(", {} million instructions of ring 0", interpreted / 1_000_000)
            }
        };
        let leaves = if leaves.is_empty() { "none".into() } else { leaves.join(" + ") };
        let first = match self.first_output_us {
            Some(us) => format!("first guest output after {:.1} ms", us as f64 / 1e3),
            None => "no guest output".into(),
        };
        // What went wrong has a line of its own.
        let ending = match self.error {
            false => self.reason.clone(),
            true => format!("ended by {}, exit code {}", self.ending, self.exit_code),
        };
        format!(
            "{} faults, {} pages filled ahead{collapsed}{merged}{emulated}; {} frames in use ({leaves}) of {}, pool on {}; {first}; \
             audit {}; {ending}",
            memory.violations(),
            memory.prefilled,
            memory.resident.frames(),
            memory.pool.frames,
            self.pool,
            self.audit,
        )
    }
}

fn unclaimed(devices: &Devices) -> UnclaimedCounts {
    let hex = |accesses: &Unclaimed| {
        accesses.first.iter().map(|access| format!("{:#x}", access.addr)).collect()
    };
    let (ports, memory) = (devices.pio.unclaimed(), devices.mmio.unclaimed());
    UnclaimedCounts {
        ports: ports.accesses,
        first_ports: hex(&ports),
        memory: memory.accesses,
        first_addresses: hex(&memory),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
