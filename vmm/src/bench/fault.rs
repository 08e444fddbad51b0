//! What a violation costs: served by the tables, by a bare loop, and without KVM at all.
#![allow(unsafe_code, reason = "touches a window as a guest would, to time a fault without KVM")]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use guest_mm::addr::{GfnRange, Gpa};

use kvm_ioctls::Kvm;

use crate::boot::BootImage;
use crate::config::{Host, MachineConfig};
use crate::kvm;
use crate::machine::ServedRam;
use crate::ram::Ram;
use crate::rig::tsc_khz;

use super::bare::BareRam;
use super::table::median;
use super::touch::{Touched, Walk, image, run};
use super::{BenchError, Goal, Rounds, Row, Table};

/// RAM that a walk touches.
const RAM: u64 = 64 << 20;
const PAGE: u64 = 4096;

/// The percentiles and rates of `slat bench fault`; `progress` is told what is being measured.
///
/// # Errors
/// [`BenchError`]: something could not be set up or the guest failed.
pub fn fault(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let kvm = kvm::open()?;
    let tsc_khz = tsc_khz(&kvm)?;
    let mut table = Table::new("fault");
    let bench = Bench { kvm, tsc_khz, rounds: rounds.count(), progress };
    bench.one_vcpu(&mut table)?;
    bench.more_vcpus(&mut table)?;
    bench.without_kvm(&mut table)?;
    metadata(&mut table)?;
    Ok(table)
}

struct Bench<'a> {
    kvm: Kvm,
    tsc_khz: u32,
    rounds: usize,
    progress: &'a dyn Fn(&str),
}

/// Rounds of one way to serve memory.
#[derive(Default)]
struct Series {
    p50: Vec<f64>,
    p99: Vec<f64>,
    page: Vec<f64>,
}

impl Series {
    fn push(&mut self, touched: Touched) {
        self.p50.push(touched.p50_us);
        self.p99.push(touched.p99_us);
        self.page.push(touched.page_us);
    }
}

impl Bench<'_> {
    fn one_vcpu(&self, table: &mut Table) -> Result<(), BenchError> {
        let walk = Walk { ram_bytes: RAM, vcpus: 1, cmdline: "verify=0" };
        let (mut small, mut bare, mut blocks) = <(Series, Series, Series)>::default();
        for round in 0..self.rounds {
            (self.progress)(&format!("round {} of {}", round + 1, self.rounds));
            small.push(self.served(walk, "4k")?);
            bare.push(self.bare(walk)?);
            blocks.push(self.served(walk, "2m")?);
        }
        let baseline = "bare loop: read, memset, UFFDIO_CONTINUE";
        table.rows.extend([
            Row::against(
                "violation of 4 KiB, seen by the guest, p50",
                "us",
                median(&mut small.p50),
                baseline,
                median(&mut bare.p50),
                Goal::RatioAtMost(1.15),
            ),
            Row::against(
                "violation of 4 KiB, seen by the guest, p99",
                "us",
                median(&mut small.p99),
                baseline,
                median(&mut bare.p99),
                Goal::None,
            ),
            Row::faster_than(
                "populating by blocks, per page",
                "us",
                median(&mut blocks.page),
                "by 4 KiB",
                median(&mut small.page),
                Goal::RatioAtLeast(30.0),
            ),
            Row::alone("first touch, whole blocks, p50", "us", median(&mut blocks.p50), Goal::None),
            Row::alone("first touch, whole blocks, p99", "us", median(&mut blocks.p99), Goal::None),
        ]);
        Ok(())
    }

    /// Pages per second by vCPU count.
    fn more_vcpus(&self, table: &mut Table) -> Result<(), BenchError> {
        for pages in ["4k", "2m"] {
            let mut one = 0.0;
            for vcpus in [1, 2, 4] {
                (self.progress)(&format!("{vcpus} vCPUs, {pages}"));
                let walk = Walk { ram_bytes: RAM, vcpus, cmdline: "verify=0" };
                let mut rates = Vec::new();
                for _ in 0..self.rounds {
                    rates.push(1e6 / self.served(walk, pages)?.page_us);
                }
                let rate = median(&mut rates);
                one = if vcpus == 1 { rate } else { one };
                let name = format!("first touches by {pages}, {vcpus} vCPUs");
                table.rows.push(Row::against(name, "pages/s", rate, "1 vCPU", one, Goal::None));
            }
        }
        Ok(())
    }

    /// The same loops, a thread of this process in place of the guest.
    fn without_kvm(&self, table: &mut Table) -> Result<(), BenchError> {
        (self.progress)("without KVM");
        let (mut served, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let ram = served_ram("4k", RAM)?;
            let window = ram.slots()[0].hva as *mut u8;
            served.extend(time_touches(window));
            let ram = BareRam::new(RAM)?;
            bare.extend(time_touches(ram.window()));
        }
        let p99 = |figures: &mut Vec<f64>| {
            figures.sort_by(f64::total_cmp);
            figures[figures.len() * 99 / 100]
        };
        let baseline = "bare userfaultfd round trip";
        let (p50s, p50b) = (median(&mut served), median(&mut bare));
        let (p99s, p99b) = (p99(&mut served), p99(&mut bare));
        table.rows.extend([
            Row::against("fault without KVM, p50", "us", p50s, baseline, p50b, Goal::None),
            Row::against("fault without KVM, p99", "us", p99s, baseline, p99b, Goal::None),
        ]);
        Ok(())
    }

    fn served(&self, walk: Walk, pages: &str) -> Result<Touched, BenchError> {
        let ram = served_ram(pages, walk.ram_bytes)?;
        let image = image(walk, self.tsc_khz)?;
        ram.load(&image)?;
        let ram: Arc<dyn Ram> = Arc::new(ram);
        run(&self.kvm, walk, &ram, &image)
    }

    fn bare(&self, walk: Walk) -> Result<Touched, BenchError> {
        let ram = BareRam::new(walk.ram_bytes)?;
        let image: BootImage = image(walk, self.tsc_khz)?;
        image.for_each_page(|gpa, page| ram.put(gpa.0, page))?;
        let ram: Arc<dyn Ram> = Arc::new(ram);
        run(&self.kvm, walk, &ram, &image)
    }
}

/// Memory from the service.
fn served_ram(pages: &str, bytes: u64) -> Result<ServedRam, BenchError> {
    let text =
        format!("memory = {{ size = {bytes}, pages = \"{pages}\" }}\nboot.guest = \"touch\"\n");
    let config =
        MachineConfig::parse(&text, Path::new("the benchmark's config"), &[], Host::of_this_cpu())
            .map_err(|error| BenchError::Guest(error.to_string()))?;
    // Called on a fault thread, while the guest waits: the only way out is out.
    let on_stop = |error: &guest_mm::fault::FaultError| {
        eprintln!("error: the benchmark's guest was stopped: {error}");
        std::process::exit(1);
    };
    Ok(ServedRam::new(&config.memory, Box::new(on_stop))?)
}

/// First touches of a window from this thread, in microseconds each.
fn time_touches(window: *mut u8) -> Vec<f64> {
    (0..RAM / PAGE / 4)
        .map(|page| {
            let start = Instant::now();
            // SAFETY: the window is mapped for RAM bytes while its owner lives, and nothing else accesses
            // it; the access waits until its fault is served.
            unsafe { window.add((page * PAGE) as usize).write_volatile(1) };
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect()
}

/// Metadata of guests whose RAM is all in use, small and large: the worst ratio counts.
fn metadata(table: &mut Table) -> Result<(), BenchError> {
    let mut worst: f64 = 0.0;
    for bytes in [64 << 20, 1 << 30] {
        let ram = served_ram("4k", bytes)?;
        for slot in ram.slots() {
            let range = GfnRange::from_bytes(Gpa::new(slot.gpa), slot.bytes)
                .map_err(crate::machine::MachineError::from)?;
            ram.guest().populate(range).map_err(crate::machine::MachineError::from)?;
        }
        let metadata = ram.guest().stats().metadata_bytes;
        worst = worst.max(metadata as f64 / bytes as f64 * 100.0);
    }
    let row =
        Row::alone("metadata, all of RAM touched by 4 KiB", "% of RAM", worst, Goal::AtMost(0.7));
    table.rows.push(row);
    Ok(())
}

impl From<io::Error> for BenchError {
    fn from(error: io::Error) -> BenchError {
        BenchError::System(error)
    }
}
