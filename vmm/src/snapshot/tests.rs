//! Snapshots of made-up memory: what was written reads back, whatever it builds on; what was damaged is refused; what goes wrong
//! leaves what was there.

use std::collections::BTreeMap;
use std::fs;

use ::tests::Scratch;
use guest_mm::image::Needed;
use proptest::prelude::*;

use super::*;

use crate::state::{Extent, MachineState};

const MIB: u64 = 1 << 20;

/// Memory by guest-physical page; what is not there is zeroes.
pub(super) type Memory = BTreeMap<u64, u8>;

fn ranges() -> Vec<FileRange> {
    let range = |start, bytes, offset| FileRange { start, bytes, offset };
    vec![range(0, 3 * MIB, 0), range(1 << 32, 2 * MIB, 4 * MIB)]
}

fn page(seed: u8) -> Vec<u8> {
    (0..PAGE).map(|i| (i as u8).wrapping_mul(seed | 1)).collect()
}

/// Saves `memory` in `folder`; only `changed` of it, over the snapshot in another folder.
pub(super) fn save(
    folder: &Path,
    memory: &Memory,
    over: Option<(&Path, &[u64])>,
) -> Result<Written, SnapshotError> {
    let base = over.map(|(base, _)| Snapshot::open(base)).transpose()?;
    let mut writer = Writer::new(folder, ranges(), base)?;
    let wanted = |gpa| over.is_none_or(|(_, changed)| changed.contains(&gpa));
    let read = |gpa, into: &mut [u8]| {
        let there = memory.get(&gpa).filter(|seed| **seed != 0);
        there.inspect(|seed| into.copy_from_slice(&page(**seed))).is_some()
    };
    writer.memory(wanted, read, &mut |_, _| true)?;
    writer.finish("x.toml", &MachineState::sample().to_bytes(), "boot.guest = 'hello'\n")
}

pub(super) fn load(folder: &Path) -> Result<BTreeMap<u64, Vec<u8>>, SnapshotError> {
    let mut found = BTreeMap::new();
    Snapshot::open(folder)?.for_each_run(|gpa, bytes| {
        for (page, bytes) in (gpa..).step_by(PAGE as usize).zip(bytes.chunks(PAGE as usize)) {
            found.insert(page, bytes.to_vec());
        }
        Ok::<_, SnapshotError>(())
    })?;
    Ok(found)
}

pub(super) fn expected(memory: &Memory) -> BTreeMap<u64, Vec<u8>> {
    let there = memory.iter().filter(|(_, seed)| **seed != 0);
    there.map(|(gpa, seed)| (*gpa, page(*seed))).collect()
}

/// A page of one of the two ranges.
fn any_page() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..3 * MIB / PAGE).prop_map(|page| page * PAGE),
        (0..2 * MIB / PAGE).prop_map(|page| (1 << 32) + page * PAGE)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A full one and up to three that build on it, each with other changes: each reads back as the memory was then, eagerly and
    /// as an image.
    #[test]
    fn memory_reads_back_through_every_layer(
        first in prop::collection::btree_map(any_page(), any::<u8>(), 0..80),
        changes in prop::collection::vec(prop::collection::btree_map(any_page(), 0..3_u8, 0..40), 0..4),
    ) {
        let scratch = Scratch::new();
        let mut memory = first;
        let mut last = scratch.path().join("0");
        save(&last, &memory, None).unwrap();
        prop_assert_eq!(load(&last).unwrap(), expected(&memory));
        for (index, changed) in changes.iter().enumerate() {
            memory.extend(changed);
            let next = scratch.path().join(format!("{}", index + 1));
            let pages: Vec<u64> = changed.keys().copied().collect();
            let written = save(&next, &memory, Some((&last, &pages))).unwrap();
            prop_assert!(written.pages <= pages.len() as u64);
            prop_assert_eq!(load(&next).unwrap(), expected(&memory));
            let image = Snapshot::open(&next).unwrap().image();
            prop_assert_eq!(image.files.len(), index + 2);
            last = next;
        }
    }

    /// A bit of any file but the working set.
    #[test]
    fn damage_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let scratch = Scratch::new();
        let folder = scratch.path().join("s");
        let memory: Memory = (0..40).map(|page| (page * 3 * PAGE, page as u8 + 1)).collect();
        save(&folder, &memory, None).unwrap();
        for name in [MANIFEST, STATE, SUMS, PARTS, CONFIG, MEMORY] {
            let good = fs::read(folder.join(name)).unwrap();
            let mut bad = good.clone();
            // Holes of the memory's file are not read.
            let at = if name == MEMORY { at.index(40) * 3 * 4096 + at.index(4096) } else { at.index(good.len()) };
            bad[at] ^= 1 << bit;
            fs::write(folder.join(name), &bad).unwrap();
            let opened = Snapshot::open(&folder).and_then(|s| s.config()).map(drop);
            let result = opened.and_then(|()| load(&folder).map(drop));
            prop_assert!(result.is_err(), "bit {bit} of byte {at} of {name}");
            fs::write(folder.join(name), &bad[..bad.len() / 2]).unwrap();
            let opened = Snapshot::open(&folder).and_then(|s| s.config()).map(drop);
            prop_assert!(opened.and_then(|()| load(&folder).map(drop)).is_err(), "half of {name}");
            fs::write(folder.join(name), &good).unwrap();
        }
        prop_assert_eq!(load(&folder).unwrap(), expected(&memory));
    }
}

#[test]
fn one_that_is_not_finished_leaves_what_was_there() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("s");
    let old: Memory = [(0, 1)].into();
    save(&folder, &old, None).unwrap();
    // The machine ends in the middle.
    let mut writer = Writer::new(&folder, ranges(), None).unwrap();
    assert!(matches!(Writer::new(&folder, ranges(), None), Err(SnapshotError::Busy(_))));
    let stop = &mut |_, _| false;
    let ended = writer.memory(|_| true, |_, _| false, stop);
    assert!(matches!(ended, Err(SnapshotError::Ended(_))));
    drop(writer);
    assert_eq!(load(&folder).unwrap(), expected(&old));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1, "nothing is left beside it");
    // One that was killed left something, which the next removes.
    fs::create_dir(scratch.path().join(".s.slat-new")).unwrap();
    fs::write(scratch.path().join(".s.slat-new/memory"), "half").unwrap();
    let new: Memory = [(PAGE, 2)].into();
    save(&folder, &new, None).unwrap();
    assert_eq!(load(&folder).unwrap(), expected(&new));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

#[test]
fn what_is_no_snapshot_is_not_replaced_and_a_base_stays() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("s");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("precious"), "x").unwrap();
    let memory: Memory = [(0, 1)].into();
    assert!(matches!(save(&folder, &memory, None), Err(SnapshotError::Occupied(_))));
    assert!(folder.join("precious").exists());
    let base = scratch.path().join("base");
    save(&base, &memory, None).unwrap();
    assert!(matches!(save(&base, &memory, Some((&base, &[]))), Err(SnapshotError::Needed(_))));
    let over = scratch.path().join("over");
    save(&over, &memory, Some((&base, &[]))).unwrap();
    // Another in the base's place is not what it builds on.
    save(&base, &memory, None).unwrap();
    let error = Snapshot::open(&over).unwrap_err().to_string();
    assert!(error.contains("has been replaced since"), "{error}");
    fs::remove_dir_all(&base).unwrap();
    let error = Snapshot::open(&over).unwrap_err().to_string();
    assert!(error.contains("cannot be used"), "{error}");
}

#[test]
fn a_working_set_is_of_one_snapshot_and_a_damaged_one_is_none() {
    let scratch = Scratch::new();
    let needed = [(7, false), (3, true), (5_000_000, true)];
    let set = WorkingSet(needed.map(|(page, stored)| Needed { page, stored }).to_vec());
    set.write(scratch.path(), "id").unwrap();
    assert_eq!(WorkingSet::read(scratch.path(), "id"), Some(set));
    assert_eq!(WorkingSet::read(scratch.path(), "other"), None);
    let path = scratch.path().join(WORKING_SET);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\n3 w\n", "\n3\n")).unwrap();
    assert_eq!(WorkingSet::read(scratch.path(), "id"), None);
}

#[test]
fn device_memory_lies_behind_ram_at_blocks() {
    let mut fingerprint = MachineState::sample().fingerprint;
    fingerprint.ram = vec![Extent { start: 0, bytes: 3 * MIB }];
    let memory = |start, private| crate::state::DeviceMemory {
        name: "pmem.x".into(),
        at: Extent { start, bytes: 2 * MIB },
        private,
    };
    fingerprint.memory = vec![memory(1 << 32, false), memory(1 << 33, true)];
    let range = |start, bytes, offset| FileRange { start, bytes, offset };
    assert_eq!(layout(&fingerprint), [range(0, 3 * MIB, 0), range(1 << 33, 2 * MIB, 4 * MIB)]);
}
