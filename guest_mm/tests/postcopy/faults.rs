//! What can happen to a connection, against how far the guest is: a table of what becomes of it. In each case it runs on one side,
//! and finds every word, or the test fails where it is looked at.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use guest_mm::postcopy::source::SourceConfig;
use guest_mm::postcopy::wire::Mode;

use crate::proxy::Weather;
use crate::recovery::{Outcome, over};
use crate::world::going;

/// Where a fault is set.
type Knob = fn(&Weather) -> &AtomicU64;
/// At which byte, of how many.
type When = fn(u64) -> u64;

/// What happens, and where it is set.
const FAULTS: [(&str, Knob); 3] = [
    ("cut", |weather| &weather.cut_after),
    ("one bit wrong", |weather| &weather.damage_at),
    ("silence", |weather| &weather.mute_after),
];

/// When: as bytes from the beginning, or as parts in 100 of all that passes.
const STEPS: [(&str, When); 8] = [
    ("hello", |_| 20),
    ("offer", |_| 100),
    ("streams join", |_| 260),
    ("a tenth", |all| all / 10),
    ("half", |all| all / 2),
    ("nine tenths", |all| all * 9 / 10),
    ("the last pages", |all| all - 5000),
    ("the end", |all| all - 60),
];

#[test]
fn whatever_happens_the_guest_runs_on_one_side_and_loses_nothing() {
    let patience = Duration::from_millis(700);
    let (mut stayed, mut recovered) = (0, 0);
    for mode in [Mode::PostCopy, Mode::Hybrid, Mode::PreCopy] {
        let downtime = Duration::from_secs(10);
        let config = SourceConfig { patience, downtime, ..going(mode) };
        let (outcome, all) = over(&config, |_| {});
        assert_eq!(outcome, Outcome::Went);
        println!("\n| {mode:?} | {} |", STEPS.map(|(step, _)| step).join(" | "));
        for (fault, set) in FAULTS {
            let told = STEPS.map(|(_, at)| {
                let (outcome, _) = over(&config, |weather| set(weather).store(at(all), Relaxed));
                match outcome {
                    Outcome::Stayed => stayed += 1,
                    Outcome::Recovered(_) => recovered += 1,
                    Outcome::Went => {}
                }
                match outcome {
                    Outcome::Stayed => "stays".to_owned(),
                    Outcome::Went => "goes".to_owned(),
                    Outcome::Recovered(times) => format!("goes, {times} more"),
                }
            });
            println!("| {fault} | {} |", told.join(" | "));
        }
    }
    assert!(stayed > 10 && recovered > 5, "{stayed} stayed, {recovered} recovered");
}

#[test]
fn a_slow_way_is_a_way() {
    for mode in [Mode::PostCopy, Mode::Hybrid] {
        let (outcome, _) = over(&going(mode), |weather| weather.delay_us.store(500, Relaxed));
        assert_eq!(outcome, Outcome::Went);
    }
}
