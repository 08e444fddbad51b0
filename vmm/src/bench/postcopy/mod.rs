//! What a migration by post-copy costs the guest, and how long it takes: two of these monitors over a Unix socket, beside bare loops
//! and, where it is installed, QEMU's own post-copy of the same guest.

mod bare;
mod pair;
mod qemu;
mod qmp;

use crate::kvm;
use crate::rig::tsc_khz;

use super::table::median;
use super::{BenchError, Goal, Rounds, Row, Table};

use pair::{Came, Churn, Waits};

/// The guest whose faults are measured: all of its RAM is changed at random.
const BUSY: Churn = Churn { ram_mib: 512, hot_mib: None, seconds: 4 };
/// The guest that leaves the channel to bulk: what it changes comes at once.
const CALM: Churn = Churn { ram_mib: 1024, hot_mib: Some(2), seconds: 4 };
/// The guests whose downtimes are compared.
const SMALL: Churn = Churn { ram_mib: 64, hot_mib: None, seconds: 2 };
const LARGE: Churn = Churn { ram_mib: 4096, hot_mib: None, seconds: 10 };

/// The figures of `slat bench postcopy`.
///
/// # Errors
/// [`BenchError`]: a machine cannot be started, or its guest does not arrive whole.
pub fn postcopy(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let khz = tsc_khz(&kvm::open()?)?;
    let mut table = Table::new("postcopy");
    // A round takes most of a minute.
    let count = rounds.count() / 2;
    let mut all = Series::default();
    for round in 0..count {
        let turn = |what: &str| progress(&format!("round {} of {count}: {what}", round + 1));
        turn("faults");
        all.bare_fault.push(bare::fault(khz)?);
        all.bare_trip.push(bare::round_trip()?);
        all.busy.push(pair::moved(BUSY)?);
        if qemu::is_here() {
            turn("faults, QEMU");
            all.qemu.push(qemu::moved(BUSY, khz)?);
        }
        turn("bulk");
        all.calm.push(pair::moved(CALM)?);
        let bytes = CALM.ram_mib << 20;
        all.bare_rate.push(bare::bulk(bytes, bare::Landing::Fresh)?);
        all.touched_rate.push(bare::bulk(bytes, bare::Landing::Touched)?);
        turn("downtime");
        all.small.push(pair::moved(SMALL)?);
        all.large.push(pair::moved(LARGE)?);
    }
    all.tell(&mut table);
    Ok(table)
}

/// What the rounds said.
#[derive(Default)]
struct Series {
    bare_fault: Vec<f64>,
    bare_trip: Vec<f64>,
    bare_rate: Vec<f64>,
    touched_rate: Vec<f64>,
    busy: Vec<Came>,
    calm: Vec<Came>,
    small: Vec<Came>,
    large: Vec<Came>,
    qemu: Vec<qemu::Came>,
}

/// The median of one figure of all rounds.
fn middle<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    median(&mut rounds.iter().map(figure).collect::<Vec<_>>())
}

impl Series {
    fn tell(&mut self, table: &mut Table) {
        self.faults(table);
        self.times(table);
        if self.qemu.is_empty() {
            return;
        }
        let waits = |came: &qemu::Came| came.waits;
        self.against_qemu(table, "the guest's wait, p50", "us", |it| it.p50_us, waits);
        self.against_qemu(table, "the guest's wait, p99", "us", |it| it.p99_us, waits);
        let total = middle(&self.qemu, |came| came.total_s);
        table.rows.push(Row::against(
            "in all, 512 MiB of random changes",
            "s",
            middle(&self.busy, |came| came.total_s),
            "QEMU",
            total,
            Goal::RatioAtMost(1.0),
        ));
    }

    fn faults(&mut self, table: &mut Table) {
        let (fault, trip) = (median(&mut self.bare_fault), median(&mut self.bare_trip));
        let baseline = "bare fault of a KVM guest, and 4 KiB there and back";
        let p50 = middle(&self.busy, |came| came.waits.p50_us);
        let name = "a missing page, seen by the guest, p50";
        table.rows.extend([
            Row::against(name, "us", p50, baseline, fault + trip, Goal::RatioAtMost(1.35)),
            Row::alone(name, "us", p50, Goal::AtMost(80.0)),
            Row::alone(
                "a missing page, seen by the guest, p99",
                "us",
                middle(&self.busy, |came| came.waits.p99_us),
                Goal::AtMost(250.0),
            ),
            Row::alone(
                "changes of the guest that waited",
                "",
                middle(&self.busy, |came| came.waits.count),
                Goal::None,
            ),
            Row::alone("bare fault of a KVM guest, p50", "us", fault, Goal::None),
            Row::alone("bare 4 KiB there and back, p50", "us", trip, Goal::None),
        ]);
    }

    fn times(&mut self, table: &mut Table) {
        let rate = |came: &Came| came.bytes / came.postcopy_s / 1e9;
        let (bulk, bare) = (middle(&self.calm, rate), median(&mut self.bare_rate));
        let touched = median(&mut self.touched_rate);
        let by_bare_rate = |churn: Churn| churn.ram_mib as f64 * f64::from(1 << 20) / 1e9 / bare;
        let huge = |came: &Came| came.huge_after / came.huge_before.max(1.0);
        let after = middle(&self.busy, |came| came.collapse_ms);
        table.rows.extend([
            Row::against(
                "bulk, beside a guest that runs",
                "GB/s",
                bulk,
                "bare sendfile and read into fresh memory, beside a busy thread",
                bare,
                Goal::RatioAtLeast(0.85),
            ),
            Row::against(
                "bulk, beside a guest that runs",
                "GB/s",
                bulk,
                "the same into memory that was touched before",
                touched,
                Goal::None,
            ),
            Row::against(
                "in all, 512 MiB of random changes",
                "s",
                middle(&self.busy, |came| came.total_s),
                "RAM by the bare rate",
                by_bare_rate(BUSY),
                Goal::RatioAtMost(1.1),
            ),
            Row::against(
                "in all, 1 GiB of a guest that asks for little",
                "s",
                middle(&self.calm, |came| came.total_s),
                "RAM by the bare rate",
                by_bare_rate(CALM),
                Goal::RatioAtMost(1.1),
            ),
            Row::against(
                "downtime, 4 GiB",
                "ms",
                middle(&self.large, |came| came.downtime_ms),
                "downtime, 64 MiB",
                middle(&self.small, |came| came.downtime_ms),
                Goal::RatioAtMost(1.2),
            ),
            Row::alone(
                "blocks that were huge and are again",
                "%",
                100.0 * middle(&self.busy, huge),
                Goal::AtLeast(99.0),
            ),
            Row::alone("until then, from the last page", "ms", after, Goal::AtMost(2000.0)),
        ]);
    }

    fn against_qemu(
        &self,
        table: &mut Table,
        name: &str,
        unit: &'static str,
        figure: impl Fn(Waits) -> f64,
        theirs: impl Fn(&qemu::Came) -> Waits,
    ) {
        table.rows.push(Row::against(
            name,
            unit,
            middle(&self.busy, |came| figure(came.waits)),
            "QEMU",
            middle(&self.qemu, |came| figure(theirs(came))),
            Goal::None,
        ));
    }
}
