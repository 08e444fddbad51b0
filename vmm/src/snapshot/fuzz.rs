//! No bytes in the files of a snapshot panic who opens it, or make it take memory that they do not account for. What it takes is what was
//! saved, unless somebody has sealed the damage again by checksums that are right: who does that may lie, and not more.
//!
//! `SLAT_LONG=1` tries fifty times as much.

use std::collections::BTreeMap;
use std::fs;

use ::tests::Scratch;
use proptest::collection::vec;
use proptest::prelude::*;

use super::tests::{Memory, expected, load, save};
use super::*;
use crate::state::{checksum, seal};

const FILES: [&str; 8] = [MANIFEST, STATE, CONFIG, SUMS, PARTS, MEMORY, OWN, WORKING_SET];

/// A snapshot over another, in files that are kept in memory.
struct Sample {
    scratch: Scratch,
    memory: Memory,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Sample {
    fn new() -> Sample {
        let scratch = Scratch::new();
        let folder = scratch.path().join("s");
        let mut memory: Memory = (0..40).map(|page| (page * 3 * PAGE, page as u8 + 1)).collect();
        let base = scratch.path().join("base");
        save(&base, &memory, None).unwrap();
        memory.extend([(3 * PAGE, 77), (7 * PAGE, 78), (1 << 32, 79)]);
        save(&folder, &memory, Some((&base, &[3 * PAGE, 7 * PAGE, 1 << 32]))).unwrap();
        let id = Manifest::read(&folder).unwrap().id;
        let needed = |page| guest_mm::image::Needed { page, stored: page % 2 == 0 };
        WorkingSet((0..99).map(needed).collect()).write(&folder, &id).unwrap();
        let read = |name| (name, fs::read(folder.join(name)).unwrap());
        Sample { scratch, memory, files: FILES.map(read).into() }
    }

    fn folder(&self) -> PathBuf {
        self.scratch.path().join("s")
    }

    /// Opens it with `bytes` in the place of the file `name`, and reads all there is to read.
    fn open_with(&self, name: &'static str, bytes: &[u8]) -> Option<BTreeMap<u64, Vec<u8>>> {
        let folder = self.folder();
        fs::write(folder.join(name), bytes).unwrap();
        let opened = look(&folder);
        fs::write(folder.join(name), &self.files[name]).unwrap();
        opened
    }

    /// The same with checksums that are right: of the file in the manifest, and of the manifest in its header.
    fn open_sealed(&self, name: &'static str, bytes: &[u8]) {
        let folder = self.folder();
        if let Some(sealed) = sealed(name, bytes) {
            self.open_with(name, &sealed);
            let mut manifest: serde_json::Value = body(&self.files[MANIFEST]);
            let (named, parts) = match name {
                SUMS => (PARTS, parts_of(&sealed)),
                _ => (name, sealed.clone()),
            };
            manifest["files"][named] = checksum(&parts).into();
            fs::write(folder.join(named), &parts).unwrap();
            fs::write(folder.join(name), &sealed).unwrap();
            self.open_with(MANIFEST, &seal("snapshot", VERSION, &manifest.to_string()));
            fs::write(folder.join(name), &self.files[name]).unwrap();
            fs::write(folder.join(named), &self.files[named]).unwrap();
        }
    }
}

/// All that a snapshot says, if it can be opened. What it takes is no more than its files have.
fn look(folder: &Path) -> Option<BTreeMap<u64, Vec<u8>>> {
    let id = Manifest::read(folder).map(|manifest| manifest.id).unwrap_or_default();
    if let Some(WorkingSet(pages)) = WorkingSet::read(folder, &id) {
        let bytes = fs::metadata(folder.join(WORKING_SET)).unwrap().len();
        assert!(pages.len() as u64 <= bytes, "each has a line");
    }
    let snapshot = Snapshot::open(folder).ok()?;
    let pages = snapshot.manifest().file_pages();
    assert_eq!(pages * PAGE, fs::metadata(folder.join(MEMORY)).unwrap().len());
    for range in snapshot.manifest().ranges.clone() {
        assert!(
            snapshot.zero_pages(range.start).is_ok_and(|zero| zero.len() as u64 <= pages)
                || snapshot.sums().is_err()
        );
    }
    snapshot.config().ok()?;
    let image = snapshot.image();
    assert!(image.of.iter().all(|&layer| usize::from(layer) < image.files.len()));
    assert_eq!(image.sums.len() as u64, pages);
    load(folder).ok()
}

/// The second line of a sealed file, if it is JSON.
fn body<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> T {
    let second = bytes.splitn(2, |&byte| byte == b'\n').nth(1).unwrap_or_default();
    serde_json::from_slice(second).expect("it was written so")
}

/// The digests of such checksums.
fn parts_of(sums: &[u8]) -> Vec<u8> {
    let (words, _) = sums.as_chunks();
    let sums: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let digests = guest_mm::image::Sums::digests(&sums);
    digests.iter().flat_map(|digest| digest.to_le_bytes()).collect()
}

/// `bytes` of the file `name`, its own header made right again; none where that is no text.
fn sealed(name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let kind = match name {
        MANIFEST => "snapshot",
        STATE => "state",
        _ => return Some(bytes.to_vec()),
    };
    let text = std::str::from_utf8(bytes).ok()?;
    let (_, second) = text.split_once('\n')?;
    Some(seal(kind, VERSION, second.strip_suffix('\n').unwrap_or(second)))
}

/// Numbers at which arithmetic goes wrong.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..0x1000_u64,
        (0..64_u32).prop_map(|bit| 1 << bit),
        (0..64_u32).prop_map(|bit| (1_u64 << bit).wrapping_neg()),
        (0..1_u64 << 20).prop_map(|blocks| blocks << 21),
    ]
}

#[derive(Clone, Debug)]
enum Damage {
    /// Other bytes at places.
    Bytes(Vec<(prop::sample::Index, u8)>),
    /// Another length: cut, or filled up.
    Length(prop::sample::Index, u8),
    /// Another number in the place of one in the text.
    Number(prop::sample::Index, u64),
}

impl Damage {
    fn any() -> impl Strategy<Value = Damage> {
        let byte = (any::<prop::sample::Index>(), any::<u8>());
        prop_oneof![
            vec(byte, 1..6).prop_map(Damage::Bytes),
            (any::<prop::sample::Index>(), any::<u8>())
                .prop_map(|(at, fill)| Damage::Length(at, fill)),
            (any::<prop::sample::Index>(), number())
                .prop_map(|(at, value)| Damage::Number(at, value)),
        ]
    }

    fn of(&self, good: &[u8]) -> Vec<u8> {
        let mut bad = good.to_vec();
        match self {
            Damage::Bytes(places) => {
                places.iter().for_each(|(at, byte)| bad[at.index(good.len())] = *byte);
            }
            Damage::Length(at, fill) => bad.resize(at.index(2 * good.len().min(1 << 20)), *fill),
            Damage::Number(at, value) => {
                let numbers = digits(good);
                if !numbers.is_empty() {
                    let (start, end) = numbers[at.index(numbers.len())];
                    bad.splice(start..end, value.to_string().into_bytes());
                }
            }
        }
        bad
    }
}

/// Where decimal numbers are in the text: from and to.
fn digits(text: &[u8]) -> Vec<(usize, usize)> {
    let runs = text.chunk_by(|one, next| one.is_ascii_digit() == next.is_ascii_digit());
    let mut at = 0;
    let places = runs.map(|run| {
        at += run.len();
        (run[0].is_ascii_digit(), at - run.len(), at)
    });
    places.filter(|(number, ..)| *number).map(|(_, start, end)| (start, end)).collect()
}

fn cases() -> u32 {
    if std::env::var_os("SLAT_LONG").is_some() { 20_000 } else { 400 }
}

#[test]
fn a_damaged_snapshot_is_refused_or_is_what_was_saved() {
    let sample = Sample::new();
    assert_eq!(look(&sample.folder()), Some(expected(&sample.memory)));
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) };
    proptest!(config, |(name in prop::sample::select(&FILES[..]), damage in Damage::any())| {
        let bad = damage.of(&sample.files[name]);
        if let Some(found) = sample.open_with(name, &bad) {
            prop_assert_eq!(found, expected(&sample.memory), "{}", name);
        }
    });
}

#[test]
fn damage_that_is_sealed_again_panics_nobody() {
    let sample = Sample::new();
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) };
    let files = &[MANIFEST, MANIFEST, MANIFEST, STATE, SUMS, PARTS, OWN, CONFIG][..];
    proptest!(config, |(name in prop::sample::select(files), damage in Damage::any())| {
        sample.open_sealed(name, &damage.of(&sample.files[name]));
    });
}

/// Of which each once overflowed, or would have.
#[test]
fn ranges_that_no_machine_can_have_are_refused() {
    let sample = Sample::new();
    let good: Manifest = body(&sample.files[MANIFEST]);
    let block = 2 << 20;
    for (index, range) in [
        (1, FileRange { start: 1 << 32, bytes: block, offset: block.wrapping_neg() }),
        (1, FileRange { start: 1 << 32, bytes: 1 << 45, offset: 4 << 20 }),
        (1, FileRange { start: 1 << 32, bytes: block, offset: 0 }),
        (0, FileRange { start: u64::MAX - block + 1, bytes: block, offset: 0 }),
    ] {
        let mut bad = good.clone();
        bad.ranges[index] = range;
        let bad = serde_json::to_string(&bad).unwrap();
        assert_eq!(sample.open_with(MANIFEST, &seal("snapshot", VERSION, &bad)), None, "{range:?}");
    }
}

#[test]
fn a_snapshot_that_builds_on_itself_is_refused() {
    let sample = Sample::new();
    let mut bad: Manifest = body(&sample.files[MANIFEST]);
    bad.base = Some(Base { folder: sample.folder(), id: bad.id.clone() });
    let bad = serde_json::to_string(&bad).unwrap();
    fs::write(sample.folder().join(MANIFEST), seal("snapshot", VERSION, &bad)).unwrap();
    let error = Snapshot::open(&sample.folder()).unwrap_err().to_string();
    assert!(error.contains("the end of more than"), "{error}");
}
