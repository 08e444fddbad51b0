//! Drivers at random, for each kind of device and for the transport: nothing panics, hangs, or harms others.
//!
//! A driver is a string of bytes. Those of the corpus (`tests/corpus/KIND`) come first; then they are changed, and a change
//! after which the device is seen to behave in a new way is kept to be changed further. `SLAT_LONG=1` gives each kind a
//! minute instead of two seconds, and `SLAT_BLESS=1` puts what was found into the corpus.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tests::require_userfaultfd;

use crate::rig::kinds::{
    BALLOON, BALLOON_FREE, BLK, CONSOLE, CONSOLE_RX, Kind, NET, NET_RX, PMEM, RNG, VSOCK, VSOCK_RX,
};
use crate::rig::{NEEDS_RESET, Rig, program};

/// Inputs of a corpus at most.
const KEPT: usize = 64;
/// Bytes of one.
const BYTES: usize = 600;
/// Programs on one guest: then its books are looked at, and there is another.
const PROGRAMS: usize = 200;

/// What can be seen of a device: inputs that show the same are one.
fn seen(rig: &mut Rig) -> u64 {
    let report = rig.device.report();
    let mut hasher = DefaultHasher::new();
    let words = |text: String| text.replace(|c: char| c.is_ascii_hexdigit(), "");
    report.broken.map(words).hash(&mut hasher);
    // The features and the queue that are selected, interrupts, the status.
    for register in [0x10, 0x34, 0x44, 0x60, 0x70] {
        rig.victim.read(register).hash(&mut hasher);
    }
    for (name, count) in report.counts {
        (name, count.checked_ilog2()).hash(&mut hasher);
    }
    hasher.finish()
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides.max(1)
    }

    /// `input` with a few changes.
    fn change(&mut self, mut input: Vec<u8>, other: &[u8]) -> Vec<u8> {
        for _ in 0..=self.roll(6) {
            let at = self.roll(input.len());
            match self.roll(6) {
                0 if !input.is_empty() => input[at] ^= 1 << self.roll(8),
                1 if !input.is_empty() => input[at] = self.roll(256) as u8,
                2 => input.insert(at, self.roll(256) as u8),
                3 if !input.is_empty() => {
                    let len = self.roll(8).min(input.len() - at);
                    input.drain(at..at + len);
                }
                4 if !other.is_empty() => {
                    let from = self.roll(other.len());
                    let len = self.roll(32).min(other.len() - from);
                    input.splice(at..at, other[from..from + len].iter().copied());
                }
                _ => input.extend((0..self.roll(24)).map(|_| self.roll(256) as u8)),
            }
        }
        input.truncate(BYTES);
        input
    }
}

fn corpus(target: &str) -> (PathBuf, Vec<Vec<u8>>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    paths.sort();
    let inputs = paths.iter().map(|path| fs::read(path).expect("the corpus can be read")).collect();
    (folder, inputs)
}

/// How a string of bytes is a driver.
type Run = fn(&mut Rig, &[u8]);

/// What the fuzzing of one target works on.
struct Target {
    kind: &'static Kind,
    run: Run,
    rig: Option<Rig>,
    programs: usize,
}

impl Target {
    /// Runs `input` on a device that was reset; what it showed.
    fn run(&mut self, input: &[u8]) -> u64 {
        if self.programs.is_multiple_of(PROGRAMS) {
            self.end();
            self.rig = Some(Rig::new(self.kind));
        }
        self.programs += 1;
        let rig = self.rig.as_mut().expect("it was made");
        program::fresh(rig);
        let begin = Instant::now();
        (self.run)(rig, input);
        let took = begin.elapsed();
        let show = || input.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(took < Duration::from_secs(20), "{took:?} for {}", show());
        let shown = seen(rig);
        assert!(rig.neighbour_reads(), "the disk beside it stands still after {}", show());
        rig.bring_up();
        assert_eq!(rig.victim.status() & NEEDS_RESET, 0, "a reset does not mend {}", show());
        shown
    }

    fn end(&mut self) {
        if let Some(rig) = self.rig.take() {
            assert_eq!(rig.end(), "clean");
        }
    }
}

fn fuzz(target: &str, kind: &'static Kind) {
    fuzz_by(target, kind, program::run);
}

fn fuzz_by(target: &str, kind: &'static Kind, run: Run) {
    if !require_userfaultfd() {
        return;
    }
    let end = Instant::now() + time();
    let mut at = Target { kind, run, rig: None, programs: 0 };
    let (folder, mut inputs) = corpus(target);
    let known: HashSet<u64> = inputs.iter().map(|input| at.run(input)).collect();
    let mut shown = known;
    let fixed = inputs.len();
    let seed = std::env::var("SLAT_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut dice = Dice(seed.unwrap_or(0x9e37_79b9_7f4a_7c15));
    while Instant::now() < end {
        let pick =
            |dice: &mut Dice| inputs.get(dice.roll(inputs.len())).cloned().unwrap_or_default();
        let (one, other) = (pick(&mut dice), pick(&mut dice));
        let input = dice.change(one, &other);
        if shown.insert(at.run(&input)) && inputs.len() < 4096 {
            inputs.push(input);
        }
    }
    println!("{target}: {} programs, {} ways to behave", at.programs, shown.len());
    at.end();
    if std::env::var_os("SLAT_BLESS").is_some() {
        fs::create_dir_all(&folder).expect("the corpus can be written");
        for (number, input) in inputs.iter().enumerate().take(KEPT).skip(fixed) {
            fs::write(folder.join(format!("{number:03}")), input)
                .expect("the corpus can be written");
        }
    }
}

#[test]
fn blk_survives_any_driver() {
    fuzz("blk", &BLK);
}

#[test]
fn console_survives_any_driver() {
    fuzz("console", &CONSOLE);
}

#[test]
fn rng_survives_any_driver() {
    fuzz("rng", &RNG);
}

#[test]
fn vsock_survives_any_driver() {
    fuzz("vsock", &VSOCK);
}

#[test]
fn net_survives_any_driver() {
    fuzz("net", &NET);
}

#[test]
fn net_rx_survives_any_driver() {
    fuzz("net_rx", &NET_RX);
}

#[test]
fn console_rx_survives_any_driver() {
    fuzz("console_rx", &CONSOLE_RX);
}

#[test]
fn vsock_rx_survives_any_driver() {
    fuzz("vsock_rx", &VSOCK_RX);
}

/// The registers, with a disk behind them: programs that only read and write those.
#[test]
fn the_transport_survives_any_driver() {
    fuzz_by("transport", &BLK, program::registers);
}

/// What a target has.
fn time() -> Duration {
    Duration::from_secs(if std::env::var_os("SLAT_LONG").is_some() { 60 } else { 2 })
}

#[test]
fn balloon_survives_any_driver() {
    fuzz("balloon", &BALLOON);
}

#[test]
fn balloon_survives_any_report() {
    fuzz("balloon_free", &BALLOON_FREE);
}

#[test]
fn pmem_survives_any_driver() {
    fuzz("pmem", &PMEM);
}
