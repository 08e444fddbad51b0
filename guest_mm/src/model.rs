//! What the models share: a guest of two blocks of two pages, the accesses that threads make, and what must
//! hold when they are done.
//!
//! Every interleaving of two threads is explored; those with a pin in them, of which there are millions, up
//! to a number of preemptions. How many there were is printed, so that a model that has become trivial is
//! noticed.

use std::collections::HashSet;
use std::io::Write;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use loom::thread::JoinHandle;

use crate::addr::{BlockNo, FrameNo, Gfn, GfnRange, PageSize};
use crate::entry::{Entry, Leaf, Marker, Source};
use crate::fault::fault;
use crate::geometry::{LEVELS, Level};
use crate::image::Image;
use crate::mirrors::fake::Fake;
use crate::pool::Pool;
use crate::prot::{Access, Prot};
use crate::protocol::Protocol;
use crate::space::{AddressSpace, FaultPolicy, Over, RamRegion, Sharing};
use crate::sync::Arc;
use crate::table::Residency;

/// The word of an image's first page.
pub(crate) const IMAGE: u64 = 40;

/// The guest's memory, and its window.
pub(crate) struct World<P: Protocol> {
    pub(crate) space: Arc<AddressSpace<P>>,
    pub(crate) window: Fake,
}

/// Runs `model` once for every interleaving, and says how many there were.
pub(crate) fn explore(model: impl Fn() + Send + Sync + 'static) {
    run(loom::model::Builder::new(), model);
}

/// As [`explore`], where a thread is preempted at most [`PREEMPTIONS`] times in one interleaving. Switches
/// where a thread waits or ends do not count. `LOOM_MAX_PREEMPTIONS` sets another bound.
pub(crate) fn explore_bounded(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    run(builder, model);
}

/// Each historical variant shows with three at most.
const PREEMPTIONS: usize = 4;

fn run(builder: loom::model::Builder, model: impl Fn() + Send + Sync + 'static) {
    let executions = std::sync::Arc::new(AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&executions);
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        model();
    });
    let name = std::thread::current().name().unwrap_or_default().to_string();
    // Not `println`, which a passing test swallows.
    let _ = writeln!(std::io::stderr(), "{name}: {} executions", executions.load(Relaxed));
}

impl<P: Protocol> World<P> {
    /// Four pages of RAM, untouched, filled by `pages` from a pool of `frames`.
    pub(crate) fn new(pages: PageSize, frames: u64) -> World<P> {
        let range = GfnRange::new(Gfn::new(0), 4).unwrap();
        let region = RamRegion { range, origin: BlockNo::new(0), over: None };
        World::of(pages, Arc::new(Pool::model(frames)), vec![region])
    }

    fn of(pages: PageSize, pool: Arc<Pool>, ram: Vec<RamRegion>) -> World<P> {
        let window = Fake::new();
        let mirror = Box::new(window.clone());
        let space = AddressSpace::new(ram, pool, mirror, FaultPolicy { pages }, None);
        let space = Arc::new(space);
        World { space, window }
    }

    /// As [`World::new`], block 0 private over an image whose words are [`IMAGE`] and one more, loaded.
    pub(crate) fn over_image(pages: PageSize, frames: u64) -> World<P> {
        let pool = Arc::new(Pool::model(frames));
        let image = Arc::new(Image::model(&pool, 2, |page| IMAGE + page));
        let over = Over { image, first: 0, sharing: Sharing::Private };
        let first = RamRegion { range: block(0), origin: BlockNo::new(1), over: Some(over) };
        let second = RamRegion { range: block(1), origin: BlockNo::new(2), over: None };
        World::of(pages, pool, vec![first, second])
    }

    /// Block 0 mapped to frames that do not lie in order.
    pub(crate) fn scatter(&self) {
        let frames = [(); 2].map(|()| self.space.pool.alloc_zeroed().unwrap());
        let mut table = self.space.table.cursor_at(Gfn::new(0), Level::PT).unwrap();
        for (gfn, &frame) in frames.iter().rev().enumerate() {
            let leaf = Leaf::own(frame, Prot::Rwx);
            table.map(Gfn::new(gfn as u64), leaf).install(&*self.space.mirror).unwrap();
        }
    }

    /// Does `work` beside what follows.
    pub(crate) fn beside<R: 'static>(
        &self,
        work: impl FnOnce(&World<P>) -> R + 'static,
    ) -> JoinHandle<R> {
        let other = World { space: Arc::clone(&self.space), window: self.window.clone() };
        loom::thread::spawn(move || work(&other))
    }

    /// A violation of the guest's at `gfn`.
    pub(crate) fn touch(&self, gfn: u64) {
        fault(&self.space, Gfn::new(gfn).gpa(), Access::Write)
            .expect("there is a frame for every page");
    }

    /// The guest reads at `gfn`, faulting until it can.
    pub(crate) fn load(&self, gfn: u64) -> u64 {
        loop {
            if let Some((frame, _)) = self.window.translation(Gfn::new(gfn)) {
                return self.space.pool.memory().read(frame);
            }
            fault(&self.space, Gfn::new(gfn).gpa(), Access::Read).expect("the page can be read");
        }
    }

    /// The guest stores `value`, faulting where it has to.
    pub(crate) fn store_or_touch(&self, gfn: u64, value: u64) {
        // Twice, because what it touched can be taken away again before it stores.
        for _ in 0..3 {
            if self.store(gfn, value) {
                return;
            }
            self.touch(gfn);
        }
        assert!(self.store(gfn, value), "a store faults for ever");
    }

    /// The guest stores `value`; whether its window translated the access.
    pub(crate) fn store(&self, gfn: u64, value: u64) -> bool {
        self.window.access(Gfn::new(gfn), |frame| self.space.pool.memory().write(frame, value))
    }

    /// The frame that the table maps at `gfn`.
    pub(crate) fn frame(&self, gfn: u64) -> Option<FrameNo> {
        let gfn = Gfn::new(gfn);
        let walked = self.space.table.walk(&self.space.table.enter(), gfn);
        match walked.entry {
            Entry::Leaf(leaf) => Some(leaf.frame.add(gfn.offset_in(walked.level.entry_frames()))),
            _ => None,
        }
    }

    /// What the guest finds at `gfn`, which is mapped.
    pub(crate) fn value(&self, gfn: u64) -> u64 {
        self.space.pool.memory().read(self.frame(gfn).expect("the page is mapped"))
    }

    /// At rest: the window holds nothing that the table does not, the counters are right, no frame is lost and
    /// none is pinned.
    pub(crate) fn check(&self) {
        let mut found = Residency::default();
        found.tables[LEVELS as usize - 1] = 1;
        let mut frames = HashSet::new();
        self.space.table.visit(|visited| match visited.entry {
            Entry::Leaf(leaf) => {
                let size = visited.level.number() as usize - 1;
                found.leaves[size] += 1;
                if leaf.source == Source::Image {
                    found.image[size] += 1;
                } else {
                    let span = visited.level.entry_frames();
                    frames.extend((0..span).map(|i| leaf.frame.add(i)));
                }
            }
            Entry::Table(_) => found.tables[visited.level.number() as usize - 2] += 1,
            Entry::Frozen(_) => panic!("a table was left frozen"),
            Entry::Marker(marker) => {
                found.markers[marker.index()] += 1;
                if marker == Marker::Returned {
                    found.returned += visited.level.entry_frames();
                }
            }
            Entry::Absent => {}
        });
        assert!(self.space.table.residency() == found, "bad resident counter");
        for gfn in 0..4 {
            let Some((frame, _)) = self.window.translation(Gfn::new(gfn)) else { continue };
            assert!(
                self.frame(gfn) == Some(frame),
                "the window holds a translation that the table has lost"
            );
        }
        assert!(self.space.pool.frames().nr_pins() == 0, "a pin leaked");
        let usage = self.space.pool.usage();
        assert!(usage.orphans == 0, "an orphan was left");
        let images = self.space.ram.iter().filter_map(|region| region.over.as_ref());
        let loaded: u64 = images.map(|over| over.image.nr_loaded()).sum();
        assert!(usage.used == frames.len() as u64 + loaded, "a frame leaked");
    }
}

/// The pages of a block.
pub(crate) fn block(index: u64) -> GfnRange {
    GfnRange::new(Gfn::new(2 * index), 2).unwrap()
}
