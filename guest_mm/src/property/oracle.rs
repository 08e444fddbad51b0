//! What the guest and its devices should find.

use std::collections::{BTreeMap, HashMap, HashSet};

use vm_memory::Bytes;

use crate::addr::{BlockNo, FrameNo, Gfn, GfnRange};
use crate::entry::Marker;
use crate::geometry::{FRAME_BYTES, Level};
use crate::pin::Pinned;
use crate::prot::{Access, Prot};

/// A page by when it appeared: wherever its bytes are, and whether the guest has it or only a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PageId(usize);

/// What is at a guest frame.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Mapping {
    Mapped { prot: Prot, page: PageId },
    Marked(Marker),
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Page {
    /// Its first word.
    pub(super) value: u64,
    /// Whether a device wrote to it since that was asked.
    pub(super) dirty: bool,
}

#[derive(Default, Debug)]
pub(super) struct Oracle {
    pub(super) guest: BTreeMap<Gfn, Mapping>,
    pages: Vec<Page>,
}

impl Oracle {
    /// A page that appeared, its bytes zero.
    pub(super) fn fresh(&mut self) -> PageId {
        self.pages.push(Page::default());
        PageId(self.pages.len() - 1)
    }

    pub(super) fn page(&mut self, id: PageId) -> &mut Page {
        &mut self.pages[id.0]
    }

    pub(super) fn value(&self, id: PageId) -> u64 {
        self.pages[id.0].value
    }

    pub(super) fn is_dirty(&self, id: PageId) -> bool {
        self.pages[id.0].dirty
    }

    /// The guest's page at `gfn`, and its rights.
    pub(super) fn mapped(&self, gfn: Gfn) -> Option<(PageId, Prot)> {
        match self.guest.get(&gfn) {
            Some(&Mapping::Mapped { prot, page }) => Some((page, prot)),
            _ => None,
        }
    }

    pub(super) fn marker(&self, gfn: Gfn) -> Option<Marker> {
        match self.guest.get(&gfn) {
            Some(&Mapping::Marked(marker)) => Some(marker),
            _ => None,
        }
    }

    /// The guest gives `range` back; how many pages of it were not before.
    pub(super) fn give_back(&mut self, range: GfnRange) -> u64 {
        let kept = [Marker::Guard, Marker::Poison, Marker::Returned];
        let given =
            range.iter().filter(|&gfn| !self.marker(gfn).is_some_and(|m| kept.contains(&m)));
        let given: Vec<Gfn> = given.collect();
        given.iter().for_each(|&gfn| {
            self.guest.insert(gfn, Mapping::Marked(Marker::Returned));
        });
        given.len() as u64
    }

    /// The guest takes `range` back; how many pages of it had been given back.
    pub(super) fn take_back(&mut self, range: GfnRange) -> u64 {
        let before = self.guest.len();
        let returned = Mapping::Marked(Marker::Returned);
        self.guest.retain(|&gfn, mapping| !(range.contains(gfn) && *mapping == returned));
        (before - self.guest.len()) as u64
    }

    /// The guest's pages in `range`.
    pub(super) fn mapped_in(&self, range: GfnRange) -> Vec<(Gfn, PageId, Prot)> {
        let all = self.guest.range(range.start()..range.end());
        all.filter_map(|(&gfn, _)| self.mapped(gfn).map(|(page, prot)| (gfn, page, prot))).collect()
    }
}

/// A page that a device has pinned: which it was, and where it lay.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldPage {
    pub(super) gfn: Gfn,
    pub(super) page: PageId,
    pub(super) frame: FrameNo,
    /// The level of the leaf that it was pinned through.
    pub(super) level: Level,
}

/// A pin that a device keeps.
#[derive(Debug)]
pub(super) struct Held<'s> {
    pub(super) pinned: Pinned<'s>,
    pub(super) pages: Vec<HeldPage>,
}

impl Held<'_> {
    /// Where the first word of page `index` lies among the pinned bytes, if it does.
    pub(super) fn word(&self, index: usize) -> Option<usize> {
        let range = self.pinned.range();
        let front = range.start().frame_offset() as u64;
        let at = (index as u64 * FRAME_BYTES).checked_sub(front)?;
        (at + 8 <= range.bytes()).then_some(at as usize)
    }

    /// What the device reads there.
    pub(super) fn read(&self, mut at: usize) -> u64 {
        for slice in self.pinned.slices() {
            match at.checked_sub(slice.len()) {
                None => return slice.read_obj(at).unwrap(),
                Some(behind) => at = behind,
            }
        }
        panic!("the pin ends before its range does")
    }

    /// The device writes there.
    pub(super) fn write(&self, mut at: usize, value: u64) {
        for slice in self.pinned.slices() {
            match at.checked_sub(slice.len()) {
                None => return slice.write_obj(value, at).unwrap(),
                Some(behind) => at = behind,
            }
        }
        panic!("the pin ends before its range does")
    }

    pub(super) fn is_for_writing(&self) -> bool {
        self.pinned.access() == Access::Write
    }

    /// The blocks that it has pinned whole, through huge leaves.
    fn blocks(&self) -> HashSet<BlockNo> {
        let huge = self.pages.iter().filter(|held| held.level > Level::PT);
        huge.map(|held| held.frame.block()).collect()
    }

    /// As few pieces as its frames allow.
    pub(super) fn pieces(&self) -> usize {
        let follows = |pair: &[HeldPage]| pair[0].frame.add(1) == pair[1].frame;
        1 + self.pages.windows(2).filter(|pair| !follows(pair)).count()
    }
}

/// How often each frame is pinned by `pins` together; those that are not are left out.
pub(super) fn pin_counts(pins: &[Held<'_>]) -> HashMap<FrameNo, u32> {
    let mut counts = HashMap::new();
    for held in pins {
        let small = held.pages.iter().filter(|held| held.level == Level::PT);
        let blocks = held.blocks();
        let in_blocks = blocks.iter().flat_map(|block| (0..512).map(|i| block.first().add(i)));
        for frame in small.map(|held| held.frame).chain(in_blocks) {
            *counts.entry(frame).or_insert(0) += 1;
        }
    }
    counts
}
