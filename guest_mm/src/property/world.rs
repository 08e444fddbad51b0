//! A guest's memory beside its oracle: operations on both, and the comparison.

use std::collections::{BTreeMap, HashSet};

use proptest::sample::Index;

use crate::addr::{FrameNo, Gfn, GfnRange, GpaRange, PageSize};
use crate::audit::{audit, leaked};
use crate::collapse::{CollapsePolicy, Copying, Skip, collapse};
use crate::copy;
use crate::dirty;
use crate::entry::{Entry, Marker};
use crate::fault::{FaultError, fault, populate};
use crate::geometry::Level;
use crate::mark::mark;
use crate::mirrors::fake::Fake;
use crate::pin::{PinError, pin};
use crate::prot::{Access, Prot};
use crate::protect::protect;
use crate::protocol::Sound;
use crate::space::AddressSpace;
use crate::split::split;
use crate::unmap::{GiveBackError, TakeBackError, give_back, take_back, unmap};

use super::ops::Op;
use super::oracle::{Held, HeldPage, Mapping, Oracle, pin_counts};

pub(super) struct World<'s> {
    space: &'s AddressSpace<Sound>,
    mirror: Fake,
    pub(super) oracle: Oracle,
    pub(super) pins: Vec<Held<'s>>,
    next_value: u64,
}

impl<'s> World<'s> {
    pub(super) fn new(space: &'s AddressSpace<Sound>, mirror: Fake) -> World<'s> {
        World { space, mirror, oracle: Oracle::default(), pins: Vec::new(), next_value: 1 }
    }

    /// Does `op`; false when the guest would be stopped by it, because the window may hold too much.
    pub(super) fn apply(&mut self, op: &Op) -> bool {
        match *op {
            Op::Touch(gfn, access) => self.touch(gfn, access),
            Op::Populate(range) => {
                let done = populate(self.space, range);
                assert!(done.is_ok() || is_excusable(&done.unwrap_err()));
            }
            Op::Unmap(range) => {
                if unmap(self.space, range).is_err() {
                    return false;
                }
                self.oracle.guest.retain(|&gfn, _| !range.contains(gfn));
            }
            Op::GiveBack(range) => match give_back(self.space, range) {
                Ok(given) => assert_eq!(given.pages, self.oracle.give_back(range)),
                Err(GiveBackError::Mirror(_)) => return false,
                Err(error) => panic!("{error}"),
            },
            Op::TakeBack(range) => match take_back(self.space, range) {
                Ok(taken) => assert_eq!(taken, self.oracle.take_back(range)),
                Err(TakeBackError::Mirror(_)) => return false,
                Err(error) => panic!("{error}"),
            },
            Op::Protect(range, prot) => {
                if protect(self.space, range, prot).is_err() {
                    return false;
                }
                for (_, mapping) in self.oracle.guest.range_mut(range.start()..range.end()) {
                    if let Mapping::Mapped { prot: p, .. } = mapping {
                        *p = prot;
                    }
                }
            }
            Op::Split(range) => {
                split(self.space, range, PageSize::Size4K).unwrap();
            }
            Op::Mark(range, marker) => {
                // Refused at the first page in use; those before it are marked, which `adopt` sees.
                let _ = mark(self.space, range, marker);
            }
            Op::Collapse(range, policy) => self.collapse(range, policy),
            Op::Pin(range, access) => self.pin(range, access),
            Op::Unpin(which) => self.unpin(which),
            Op::DeviceWrite(which, page) => self.device_writes(which, page),
            Op::TakeDirty(range) => self.take_dirty(range),
            Op::Squeeze => {
                let pool = &self.space.pool;
                let taken: Vec<_> = std::iter::from_fn(|| pool.alloc_zeroed().ok()).collect();
                taken.into_iter().for_each(|frame| pool.release(frame, 1));
            }
            Op::Fail(calls) => self.mirror.fail_after(Some(calls)),
        }
        self.adopt();
        true
    }

    fn value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    /// What the guest's access does, and what it finds.
    fn touch(&mut self, gfn: Gfn, access: Access) {
        match fault(self.space, gfn.gpa(), access) {
            Ok(_) => {
                let marker = self.oracle.marker(gfn).filter(|&marker| marker != Marker::Returned);
                assert_eq!(marker, None, "served, though it is marked");
                self.used(GfnRange::entry(gfn, Level::PT));
            }
            Err(error) => {
                // It may be there, and not in the window.
                self.used(GfnRange::entry(gfn, Level::PT));
                return self.refused(&error);
            }
        }
        self.adopt();
        let (page, prot) = self.oracle.mapped(gfn).expect("a page that was served is mapped");
        assert!(prot.allows(access));
        if access == Access::Write {
            let value = self.value();
            copy::write(self.space, gfn.gpa(), &value.to_le_bytes()).unwrap();
            self.oracle.page(page).value = value;
        }
    }

    /// Whether an access that was refused is one that had to be.
    fn refused(&self, error: &FaultError) {
        match *error {
            FaultError::Marked { gpa, marker, .. } => {
                assert_eq!(self.oracle.marker(gpa.gfn()), Some(marker));
            }
            FaultError::ReadOnly { gpa } => {
                assert!(self.oracle.mapped(gpa.gfn()).is_some_and(|(_, prot)| !prot.writable()));
            }
            ref error => assert!(is_excusable(error), "{error:?}"),
        }
    }

    /// Somebody has used pages of `range`: those that had been given back and are mapped now are fresh ones.
    fn used(&mut self, range: GfnRange) {
        for gfn in range.iter() {
            let returned = self.oracle.marker(gfn) == Some(Marker::Returned);
            if returned && self.frame(gfn).is_some() {
                self.oracle.guest.remove(&gfn);
            }
        }
    }

    fn collapse(&mut self, range: GfnRange, policy: CollapsePolicy) {
        let Ok(report) = collapse(self.space, range, policy) else { return };
        let blocks: Vec<GfnRange> =
            range.chunks(512).map(|part| GfnRange::entry(part.start(), Level::PD)).collect();
        let done = report.promoted + report.copied + report.already_huge;
        assert_eq!(done + report.skipped.len() as u64, blocks.len() as u64);
        let skipped: HashSet<GfnRange> = report.skipped.iter().map(|skip| skip.block).collect();
        for block in blocks.into_iter().filter(|block| !skipped.contains(block)) {
            assert_eq!(self.frame(block.start()).map(|(_, level)| level), Some(Level::PD));
        }
        for skip in report.skipped {
            self.check_skip(skip.block, skip.why, policy);
        }
    }

    fn check_skip(&self, block: GfnRange, why: Skip, policy: CollapsePolicy) {
        let pages = self.oracle.mapped_in(block);
        let justified = match why {
            Skip::Pinned { gfn } => {
                let (frame, _) = self.frame(gfn).expect("what is pinned is mapped");
                policy.copying == Copying::Allowed && pin_counts(&self.pins).contains_key(&frame)
            }
            Skip::Marked { gfn, marker } => self.oracle.marker(gfn) == Some(marker),
            Skip::Returned { gfn } => self.oracle.marker(gfn) == Some(Marker::Returned),
            Skip::Holes { absent } => {
                let reduced = pages.iter().any(|&(_, _, prot)| prot != Prot::RAM);
                let too_many = absent > policy.max_holes || reduced;
                too_many && u64::from(absent) == 512 - pages.len() as u64
            }
            Skip::MixedRights { gfn } => {
                self.oracle.mapped(gfn).is_some_and(|(_, prot)| prot != pages[0].2)
            }
            Skip::Scattered => policy.copying == Copying::Never,
            Skip::NoBlock => policy.copying == Copying::Allowed,
            Skip::NotWhole => block.end().as_u64() > super::RAM,
            Skip::Untouched => pages.is_empty(),
            Skip::Shared { .. } | Skip::Busy => false,
        };
        assert!(justified, "{block} was skipped: {why}");
    }

    /// A device pins `range`, or is refused it.
    fn pin(&mut self, range: GpaRange, access: Access) {
        let pinned = pin(self.space, range, access, None);
        // Pages before one that was refused were faulted in.
        self.used(range.frames());
        let pinned = match pinned {
            Ok(pinned) => pinned,
            Err(PinError::Fault(error)) => return self.refused(&error),
            Err(error) => panic!("{error}"),
        };
        self.adopt();
        let held = |gfn| {
            let (page, prot) = self.oracle.mapped(gfn).expect("what is pinned is mapped");
            assert!(prot.allows(access), "{access} of {gfn}");
            let (frame, level) = self.frame(gfn).expect("what is pinned is mapped");
            HeldPage { gfn, page, frame, level }
        };
        let pages = range.frames().iter().map(held).collect();
        self.pins.push(Held { pinned, pages });
    }

    fn unpin(&mut self, which: Index) {
        if self.pins.is_empty() {
            return;
        }
        let held = self.pins.swap_remove(which.index(self.pins.len()));
        if held.is_for_writing() {
            held.pages.iter().for_each(|held| self.oracle.page(held.page).dirty = true);
        }
    }

    fn device_writes(&mut self, which: Index, page: Index) {
        let value = self.value();
        let Some(held) = self.pins.get(which.index(self.pins.len().max(1))) else { return };
        let index = page.index(held.pages.len());
        if let Some(at) = held.word(index).filter(|_| held.is_for_writing()) {
            held.write(at, value);
            self.oracle.page(held.pages[index].page).value = value;
        }
    }

    fn take_dirty(&mut self, range: GfnRange) {
        let mut seen = Vec::new();
        dirty::take(self.space, range, |gfn| seen.push(gfn));
        let pinned = pin_counts(&self.pins);
        let mut expected = Vec::new();
        for (gfn, page, _) in self.oracle.mapped_in(range) {
            if self.oracle.is_dirty(page) {
                expected.push(gfn);
                let (frame, _) = self.frame(gfn).expect("it is mapped");
                // Whoever has it pinned may be writing again.
                self.oracle.page(page).dirty = pinned.contains_key(&frame);
            }
        }
        assert_eq!(seen, expected, "written by devices in {range}");
    }

    /// Takes pages that appeared into the oracle: fresh ones read zero, and nothing may have vanished.
    fn adopt(&mut self) {
        let mut found = BTreeMap::new();
        self.space.table.visit(|visited| {
            for i in 0..visited.level.entry_frames() {
                let mapping = match visited.entry {
                    Entry::Leaf(leaf) => Ok(leaf.prot),
                    Entry::Marker(marker) => Err(marker),
                    Entry::Table(_) | Entry::Frozen(_) | Entry::Absent => return,
                };
                found.insert(visited.gfn.add(i), mapping);
            }
        });
        for (gfn, mapping) in found {
            if !self.oracle.guest.contains_key(&gfn) {
                let mapping = match mapping {
                    Ok(prot) => Mapping::Mapped { prot, page: self.oracle.fresh() },
                    Err(marker) => Mapping::Marked(marker),
                };
                self.oracle.guest.insert(gfn, mapping);
            }
        }
    }

    /// The frame that is mapped at `gfn`, and the level of the leaf that maps it.
    fn frame(&self, gfn: Gfn) -> Option<(FrameNo, Level)> {
        let walked = self.space.table.walk(&self.space.table.enter(), gfn);
        match walked.entry {
            Entry::Leaf(leaf) => {
                let offset = gfn.offset_in(walked.level.entry_frames());
                Some((leaf.frame.add(offset), walked.level))
            }
            _ => None,
        }
    }

    /// Holds everything against the oracle.
    pub(super) fn check(&self) {
        let mapped = audit(self.space).unwrap().frames();
        let usage = self.space.pool.usage();
        leaked(usage.used - usage.orphans, mapped).unwrap();
        let frames = self.check_guest();
        assert_eq!(frames.len() as u64, mapped);
        self.check_devices(&frames);
    }

    /// What the guest finds; the frames that it has.
    fn check_guest(&self) -> HashSet<FrameNo> {
        let mut frames = HashSet::new();
        let mut in_window = 0;
        for (&gfn, &mapping) in &self.oracle.guest {
            let walked = self.space.table.walk(&self.space.table.enter(), gfn);
            match (walked.entry, mapping) {
                (Entry::Marker(found), Mapping::Marked(marker)) => assert_eq!(found, marker),
                (Entry::Leaf(leaf), Mapping::Mapped { prot, page }) => {
                    assert_eq!(leaf.prot, prot);
                    let frame = leaf.frame.add(gfn.offset_in(walked.level.entry_frames()));
                    frames.insert(frame);
                    if let Some((shown, allowed)) = self.mirror.translation(gfn) {
                        in_window += 1;
                        assert_eq!(shown, frame, "the window shows another frame at {gfn}");
                        assert!(
                            !allowed.writable() || prot.writable(),
                            "too much is allowed at {gfn}"
                        );
                    }
                    let mut bytes = [0; 8];
                    copy::read(self.space, gfn.gpa(), &mut bytes).unwrap();
                    let value = self.oracle.value(page);
                    assert_eq!(u64::from_le_bytes(bytes), value, "wrong bytes at {gfn}");
                    let dirty = self.space.pool.frame_state(frame).dirty;
                    assert_eq!(dirty, self.oracle.is_dirty(page), "written by a device: {gfn}");
                }
                (entry, mapping) => panic!("{gfn} is {entry:?}, expected {mapping:?}"),
            }
        }
        assert_eq!(self.mirror.len(), in_window, "the window holds what the table has lost");
        frames
    }

    /// What devices find, and the pool's books of them; the guest has the frames `mapped`.
    pub(super) fn check_devices(&self, mapped: &HashSet<FrameNo>) {
        let pool = &self.space.pool;
        for held in &self.pins {
            let slices: Vec<usize> = held.pinned.slices().map(|slice| slice.len()).collect();
            assert_eq!(slices.iter().sum::<usize>() as u64, held.pinned.range().bytes());
            assert_eq!(slices.len(), held.pieces());
            for (index, page) in held.pages.iter().enumerate() {
                if let Some(at) = held.word(index) {
                    let (found, value) = (held.read(at), self.oracle.value(page.page));
                    assert_eq!(found, value, "wrong bytes for the device at {}", page.gfn);
                }
                if self.oracle.mapped(page.gfn).is_some_and(|(now, _)| now == page.page) {
                    let at = self.frame(page.gfn).map(|(frame, _)| frame);
                    assert_eq!(at, Some(page.frame), "{} has moved under a pin", page.gfn);
                }
            }
        }
        let counts = pin_counts(&self.pins);
        for frame in (0..pool.nr_frames()).map(|index| FrameNo::new(index as u32)) {
            let expected = counts.get(&frame).copied().unwrap_or(0);
            assert_eq!(pool.frame_state(frame).pins, expected, "pins on frame {frame}");
        }
        let orphans = counts.keys().filter(|frame| !mapped.contains(frame)).count();
        assert_eq!(pool.usage().orphans, orphans as u64, "unmapped and still pinned");
    }
}

/// Errors that the surroundings are to blame for: no memory left, or an injected failure.
pub(super) fn is_excusable(error: &FaultError) -> bool {
    matches!(error, FaultError::Exhausted { .. } | FaultError::Mirror(_))
}
