//! The storm `pin-vs-collapse`: devices write by DMA to memory that is collapsed, split and scattered under them, and a guest
//! with two vCPUs checks every word of it. The devices are threads that do nothing but pin, or disks with their drivers.
//!
//! `SLAT_LONG=1` lets the sound storms blow for a minute; without it, for five seconds.

use std::env;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_mm::protocol::Sound;
use guest_mm::protocol::historical::PinWithoutPde;
use tests::require_guests;
use vmm::race::{Drive, Options, Report, Until, storm};

/// Set to 1, it asks for the long form of a test that has one.
const LONG: &str = "SLAT_LONG";

/// How long the sound storm blows.
fn length() -> Duration {
    let is_long = env::var_os(LONG).is_some_and(|value| value == "1");
    Duration::from_secs(if is_long { 60 } else { 5 })
}

/// One storm at a time: two of them take the processors from each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a report comes to, for who reads the test's output.
fn show(report: &Report) {
    let text = serde_json::to_string_pretty(report).expect("a report is plain data");
    println!("{text}");
}

/// That `report` is of a storm without damage, and of one that would have done some.
fn assert_sound(report: &Report, what: &str) {
    show(report);
    assert!(report.is_sound(), "{what}: {report:#?}");
    let guest = report.guest.expect("a sound storm has a verdict");
    for (count, least, what) in [
        (report.collapses.promoted, 10, "promotions"),
        (report.collapses.copied, 10, "copies"),
        (report.splits, 10, "splits"),
        (report.scattered, 10, "pages out of place"),
        (report.traffic.writes, 1000, "DMA writes"),
        (guest.seen, 1000, "DMA writes that the guest saw"),
        (guest.passes, 3, "passes of the guest"),
    ] {
        assert!(count >= least, "only {count} {what}: {report:#?}");
    }
}

#[test]
fn a_storm_of_dma_and_collapses_loses_nothing_with_the_protocol_that_ships() {
    if !require_guests() {
        return;
    }
    let _alone = alone();
    for vcpus in [2, 1] {
        let until = Until::Time(length());
        let report = storm::<Sound>(&Options { vcpus, until, ..Options::default() })
            .expect("the storm can blow");
        assert_sound(&report, &format!("{vcpus} vCPUs"));
    }
}

/// What pins is what a machine's disks run, and their rings are moved, too.
#[test]
fn a_storm_of_disk_requests_and_collapses_loses_nothing_with_the_protocol_that_ships() {
    if !require_guests() {
        return;
    }
    let _alone = alone();
    let options =
        Options { drive: Drive::Disk, until: Until::Time(length()), ..Options::default() };
    let report = storm::<Sound>(&options).expect("the storm can blow");
    assert_sound(&report, "disks");
    let (requests, rings) = (report.traffic.requests, report.collapses.rings);
    assert!(requests >= 1000, "only {requests} requests: {report:#?}");
    assert!(rings >= 10, "only {rings} blocks with rings were collapsed: {report:#?}");
}

/// Linux had this bug from 2012 to 2022 (70cbc3cc78a99): the page directory was not looked at again once the pin was in place.
#[test]
fn without_the_second_look_at_the_page_directory_a_dma_write_is_lost() {
    if !require_guests() {
        return;
    }
    let _alone = alone();
    let until = Until::FirstLoss { at_most: Duration::from_secs(20) };
    let report = storm::<PinWithoutPde>(&Options { until, ..Options::default() })
        .expect("the storm can blow");
    show(&report);
    assert!(report.lost() > 0, "nothing was lost: {report:#?}");
    if let Some(loss) = report.traffic.first_loss {
        assert!(loss.found < loss.expected, "not a lost write: {loss}");
    }
}

/// A disk is seldom at a pin, and often elsewhere. What it loses may also be a descriptor, and then anything goes wrong.
#[test]
fn without_the_second_look_at_the_page_directory_a_disk_loses_what_it_read() {
    if !require_guests() {
        return;
    }
    let _alone = alone();
    let until = Until::FirstLoss { at_most: Duration::from_secs(60) };
    let options = Options { drive: Drive::Disk, until, ..Options::default() };
    let report = storm::<PinWithoutPde>(&options).expect("the storm can blow");
    show(&report);
    assert!(report.lost() > 0, "nothing was lost: {report:#?}");
}
