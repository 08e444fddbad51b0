//! What came of a storm.

use std::collections::BTreeMap;

use guest_mm::collapse::{CollapseReport, Skip};
use guest_mm::stats::Stats;

/// Everything that is known of a storm when it is over.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// How long it blew.
    pub seconds: f64,
    /// What the devices did and found.
    pub traffic: Traffic,
    /// What the guest found.
    pub guest: Option<Verdict>,
    /// Slots that held another number than their device wrote last when all was over.
    pub lost_at_rest: u64,
    /// Slots whose last number the guest has not acknowledged.
    pub unacknowledged: u64,
    /// What the collapser was told.
    pub collapses: Collapses,
    /// Blocks that were split.
    pub splits: u64,
    /// Loose pages that were taken away and put back.
    pub scattered: u64,
    /// What the memory service counted, if it could still be asked.
    pub memory: Option<Stats>,
    /// `clean`, or the first wrong book.
    pub audit: String,
    /// What ended before its time, and how.
    pub failures: Vec<String>,
}

impl Report {
    /// Numbers of devices that went missing, whoever noticed.
    pub fn lost(&self) -> u64 {
        self.traffic.lost + self.traffic.stranded + self.lost_at_rest + self.unacknowledged
    }

    /// What went wrong, if anything did.
    pub fn damage(&self) -> Option<String> {
        if self.is_sound() {
            return None;
        }
        if let Some(loss) = self.traffic.first_loss {
            return Some(loss.to_string());
        }
        let (lost, audit, failures) = (self.lost(), &self.audit, self.failures.join(", "));
        let wrong = self.guest.as_ref().map_or(0, |guest| guest.wrong);
        Some(format!(
            "{lost} DMA writes were lost, the guest found {wrong} wrong words, audit {audit}; {failures}"
        ))
    }

    /// Whether there is no damage at all.
    pub fn is_sound(&self) -> bool {
        let guest = self.guest.as_ref().is_some_and(|guest| guest.wrong == 0);
        guest && self.lost() == 0 && self.audit == "clean" && self.failures.is_empty()
    }
}

/// What devices did.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Traffic {
    /// Pins, a batch being one; what a disk pins for a request is a batch.
    pub pins: u64,
    /// Requests to disks.
    pub requests: u64,
    /// Bytes that these moved.
    pub bytes: u64,
    /// Numbers read and checked.
    pub reads: u64,
    /// Numbers written: the DMA writes.
    pub writes: u64,
    /// Numbers that were not there any more.
    pub lost: u64,
    /// Disks that a request got no answer from, or a wrong one: a ring, a header or a status has lost a write.
    pub stranded: u64,
    /// The first of these.
    pub first_loss: Option<Loss>,
}

impl Traffic {
    pub(super) fn add(&mut self, other: Traffic) {
        self.pins += other.pins;
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.reads += other.reads;
        self.writes += other.writes;
        self.lost += other.lost;
        self.stranded += other.stranded;
        let losses = [self.first_loss.take(), other.first_loss];
        self.first_loss =
            losses.into_iter().flatten().min_by(|a, b| a.seconds.total_cmp(&b.seconds));
    }
}

/// A DMA write that was lost.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Loss {
    /// Where.
    pub gpa: u64,
    /// Whose.
    pub device: u64,
    /// What this device wrote there last.
    pub expected: u64,
    /// What was there.
    pub found: u64,
    /// When it was noticed, from the storm's start.
    pub seconds: f64,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Loss { gpa, device, expected, found, seconds } = self;
        write!(
            f,
            "device {device} wrote {expected} to guest-physical {gpa:#x} and found {found} there, {seconds:.3} s into the storm"
        )
    }
}

/// The last line of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Passes over all pages.
    pub passes: u64,
    /// New numbers of devices that it found.
    pub seen: u64,
    /// Words that were not what they had to be.
    pub wrong: u64,
    /// Slots among them that held a smaller number than before.
    pub backwards: u64,
}

/// What collapses came to.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Collapses {
    /// In place.
    pub promoted: u64,
    /// To another block.
    pub copied: u64,
    /// Of both, blocks with a disk's rings.
    pub rings: u64,
    /// Huge already.
    pub already_huge: u64,
    /// Absent pages that were filled for it.
    pub holes_filled: u64,
    /// Left alone, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
}

impl Collapses {
    pub(super) fn add(&mut self, done: &CollapseReport) {
        self.promoted += done.promoted;
        self.copied += done.copied;
        self.already_huge += done.already_huge;
        self.holes_filled += done.holes_filled;
        for skipped in &done.skipped {
            *self.skipped.entry(Skip::NAMES[skipped.why.index()]).or_default() += 1;
        }
    }

    pub(super) fn merge(&mut self, other: Collapses) {
        self.promoted += other.promoted;
        self.copied += other.copied;
        self.rings += other.rings;
        self.already_huge += other.already_huge;
        self.holes_filled += other.holes_filled;
        for (why, count) in other.skipped {
            *self.skipped.entry(why).or_default() += count;
        }
    }
}
