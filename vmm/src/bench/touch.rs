//! The guest `touch` on memory from anywhere, and what it reports of its first touches.

use std::sync::Arc;

use kvm_ioctls::Kvm;

use crate::boot::BootImage;
use crate::ram::Ram;
use crate::rig::{Brake, Ran, Rig, told};
use crate::vcpu::Ending;

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

impl Walk {
    fn rig(self) -> Rig<'static> {
        let Walk { ram_bytes, vcpus, cmdline } = self;
        Rig { guest: "touch", ram_bytes, vcpus, cmdline }
    }
}

/// A guest that is ready to be loaded: its frequency and its image.
pub(super) fn image(walk: Walk, tsc_khz: u32) -> Result<BootImage, BenchError> {
    Ok(walk.rig().image(tsc_khz)?)
}

/// Runs the guest on `ram`, which has its image already, and reads its report.
pub(super) fn run(
    kvm: &Kvm,
    walk: Walk,
    ram: &Arc<dyn Ram>,
    start: &BootImage,
) -> Result<Touched, BenchError> {
    let Ran { ending, console } = walk.rig().run(kvm, ram, start, &Brake::new()?)?;
    match ending {
        Ending::Verdict(0) => parse(&console)
            .ok_or_else(|| BenchError::Guest(format!("its report is not readable: {console}"))),
        other => Err(BenchError::Guest(format!("{other}; console: {console}"))),
    }
}

/// Reads the last line of the guest's report: `touch: key=value …`.
fn parse(console: &str) -> Option<Touched> {
    let field = |name| told(console, "touch: pages=", name).map(|value| value as f64);
    let us_per_cycle = field("ns")? / field("cycles")? / 1e3;
    Some(Touched {
        p50_us: field("first_touch_p50_cycles")? * us_per_cycle,
        p99_us: field("p99")? * us_per_cycle,
        page_us: field("ns")? / field("pages")? / 1e3,
    })
}
