//! Two guests over one image, whose pages are copied, merged, dropped, placed and retracted at random, against the plainest
//! oracle: the first word of each page. What never happens is that a guest sees another's store, that a device that
//! has a page pinned parts from its guest, or that a frame is lost or freed too early.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::os::fd::AsRawFd;

use proptest::prelude::*;
use proptest::sample::Index;
use vm_memory::Bytes;

use crate::addr::{FrameNo, Gfn, GfnRange, GpaRange, PageSize};
use crate::audit::{Holdings, audit, audit_torn_down, check_shared, leaked};
use crate::collapse::{CollapsePolicy, collapse};
use crate::entry::{Entry, Marker};
use crate::fault::{FaultError, fault, unmerge};
use crate::geometry::FRAME_BYTES;
use crate::image::Image;
use crate::mark::{MarkError, mark};
use crate::mirrors::fake::Fake;
use crate::pin::{PinError, Pinned, pin};
use crate::place::{Content, PlaceError, Placed, place};
use crate::pool::{BackingChoice, BackingKind, Pool};
use crate::prot::Access;
use crate::protocol::Sound;
use crate::share::{MergeError, drop_zeroes, merge};
use crate::space::{AddressSpace, Over, Sharing};
use crate::split::split;
use crate::sync::Arc;
use crate::unmap::{GiveBackError, give_back, take_back, unmap, unmap_all};

/// Pages of the image: a block, and half of one.
const IMAGE: u64 = 768;
/// Where memory begins that begins as zeroes: a block.
const ZEROES: u64 = 1024;
/// Where it ends.
const END: u64 = 1536;
/// Frames of the pool.
const POOL_BLOCKS: u64 = 6;

/// Which of the two guests.
type Who = usize;

#[derive(Clone, Debug)]
enum Op {
    Load(Who, Gfn),
    /// The value is one of few, so that pages come to be the same.
    Store(Who, Gfn, u64),
    Pin(Who, Gfn, Access),
    Unpin(Index),
    DeviceWrite(Index, u64),
    Merge((Who, Gfn), (Who, Gfn)),
    Unmerge(Who, Gfn),
    DropZeroes(Who, Gfn),
    Place(Who, Gfn, u64),
    Miss(Who, Gfn),
    Unmap(Who, GfnRange),
    GiveBack(Who, GfnRange),
    TakeBack(Who, GfnRange),
    Split(Who, Gfn),
    Collapse(Who, CollapsePolicy),
    Fail(Who, u32),
}

/// A page, one of few in each block, so that operations meet.
fn gfn() -> impl Strategy<Value = Gfn> {
    let near = prop_oneof![0..4u64, Just(511)];
    let block = prop_oneof![Just(0u64), Just(512), Just(ZEROES)];
    (block, near).prop_map(|(block, near)| {
        let page = block + near;
        Gfn::new(if (IMAGE..ZEROES).contains(&page) { IMAGE - 1 } else { page })
    })
}

fn op() -> impl Strategy<Value = Op> {
    let who = || 0..2usize;
    let value = || prop_oneof![3 => 0..3u64, 1 => any::<u64>()];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let range = || {
        (gfn(), prop_oneof![Just(1u64), Just(512), 1..3u64]).prop_map(|(start, frames)| {
            let end = if start.as_u64() < IMAGE { IMAGE } else { END };
            GfnRange::new(start, frames.min(end - start.as_u64())).unwrap()
        })
    };
    let holes = prop_oneof![Just(0u32), Just(511)];
    let policy = holes.prop_map(|max_holes| CollapsePolicy { max_holes, ..Default::default() });
    prop_oneof![
        4 => (who(), gfn()).prop_map(|(who, at)| Op::Load(who, at)),
        6 => (who(), gfn(), value()).prop_map(|(who, at, value)| Op::Store(who, at, value)),
        4 => (who(), gfn(), access).prop_map(|(who, at, access)| Op::Pin(who, at, access)),
        3 => any::<Index>().prop_map(Op::Unpin),
        3 => (any::<Index>(), value()).prop_map(|(pin, value)| Op::DeviceWrite(pin, value)),
        6 => (who(), gfn(), who(), gfn()).prop_map(|(a, x, b, y)| Op::Merge((a, x), (b, y))),
        1 => (who(), gfn()).prop_map(|(who, at)| Op::Unmerge(who, at)),
        2 => (who(), gfn()).prop_map(|(who, at)| Op::DropZeroes(who, at)),
        3 => (who(), gfn(), value()).prop_map(|(who, at, value)| Op::Place(who, at, value)),
        1 => (who(), gfn()).prop_map(|(who, at)| Op::Miss(who, at)),
        2 => (who(), range()).prop_map(|(who, range)| Op::Unmap(who, range)),
        2 => (who(), range()).prop_map(|(who, range)| Op::GiveBack(who, range)),
        1 => (who(), range()).prop_map(|(who, range)| Op::TakeBack(who, range)),
        1 => (who(), gfn()).prop_map(|(who, at)| Op::Split(who, at)),
        3 => (who(), policy).prop_map(|(who, policy)| Op::Collapse(who, policy)),
        1 => (who(), 0..4u32).prop_map(|(who, calls)| Op::Fail(who, calls)),
    ]
}

/// What the first word of a page is that nobody has written to.
fn initial(gfn: Gfn) -> u64 {
    if gfn.as_u64() < IMAGE { gfn.as_u64() % 3 } else { 0 }
}

/// An image in a file that only this process knows.
fn image(pool: &Arc<Pool>) -> Arc<Image> {
    let name = c"image";
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::memfd_create(name, flags).unwrap());
    for page in 0..IMAGE {
        let mut bytes = [0; FRAME_BYTES as usize];
        bytes[..8].copy_from_slice(&initial(Gfn::new(page)).to_le_bytes());
        file.write_all(&bytes).unwrap();
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Arc::new(Image::open(pool, path.as_ref()).unwrap())
}

struct Guest {
    space: AddressSpace<Sound>,
    window: Fake,
}

impl Guest {
    fn new(pool: &Arc<Pool>, image: &Arc<Image>, pages: PageSize) -> Guest {
        let window = Fake::new();
        let over = Over { image: Arc::clone(image), first: 0, sharing: Sharing::Private };
        let ram = [(0, IMAGE, Some(over)), (ZEROES, END - ZEROES, None)];
        let space = super::space_of(pool, ram, pages, &window);
        Guest { space, window }
    }
}

struct HeldPage<'g> {
    who: Who,
    gfn: Gfn,
    pinned: Pinned<'g>,
    /// Where the device finds it.
    page: usize,
    /// Whether the guest still has the page.
    attached: bool,
    value: u64,
}

struct World<'g> {
    guests: &'g [Guest; 2],
    image: &'g Arc<Image>,
    /// What differs from the first word that a page begins with; None is a page that is still elsewhere.
    words: [BTreeMap<Gfn, Option<u64>>; 2],
    pins: Vec<HeldPage<'g>>,
}

impl World<'_> {
    fn word(&self, who: Who, gfn: Gfn) -> Option<u64> {
        self.words[who].get(&gfn).copied().unwrap_or(Some(initial(gfn)))
    }

    fn set(&mut self, who: Who, gfn: Gfn, word: u64) {
        self.words[who].insert(gfn, Some(word));
        let pins = self.pins.iter_mut();
        pins.filter(|pin| (pin.who, pin.gfn, pin.attached) == (who, gfn, true))
            .for_each(|pin| pin.value = word);
    }

    /// False when the window may hold too much, so that the guest would be stopped.
    fn apply(&mut self, op: &Op) -> bool {
        match *op {
            Op::Load(who, gfn) => self.load(who, gfn),
            Op::Store(who, gfn, value) => self.store(who, gfn, value),
            Op::Pin(who, gfn, access) => self.pin(who, gfn, access),
            Op::Unpin(which) if !self.pins.is_empty() => {
                drop(self.pins.swap_remove(which.index(self.pins.len())));
            }
            Op::DeviceWrite(which, value) if !self.pins.is_empty() => {
                let index = which.index(self.pins.len());
                let pin = &mut self.pins[index];
                if pin.pinned.access() == Access::Write {
                    pin.pinned.slices().next().unwrap().write_obj(value, 0).unwrap();
                    let (who, gfn, attached, page) = (pin.who, pin.gfn, pin.attached, pin.page);
                    let same = self.pins.iter_mut().filter(|pin| pin.page == page);
                    same.for_each(|pin| pin.value = value);
                    if attached {
                        self.set(who, gfn, value);
                    }
                }
            }
            Op::Unpin(_) | Op::DeviceWrite(..) => {}
            Op::Merge(one, other) => self.merge(one, other),
            Op::Unmerge(who, gfn) => {
                let page = GfnRange::new(gfn, 1).unwrap();
                excused(unmerge(&self.guests[who].space, page));
            }
            Op::DropZeroes(who, gfn) => match drop_zeroes(&self.guests[who].space, gfn) {
                Ok(()) => assert_eq!(self.word(who, gfn), Some(0), "a page was dropped"),
                Err(MergeError::Pinned) => assert!(self.is_pinned(who, gfn)),
                Err(MergeError::Differs) => assert_ne!(self.word(who, gfn), Some(0)),
                Err(_) => {}
            },
            Op::Place(who, gfn, value) => self.place(who, gfn, value),
            Op::Miss(who, gfn) => {
                let page = GfnRange::new(gfn, 1).unwrap();
                match mark(&self.guests[who].space, page, Marker::Missing) {
                    Ok(()) => drop(self.words[who].insert(gfn, None)),
                    Err(MarkError::InUse { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Unmap(who, range) => {
                if unmap(&self.guests[who].space, range).is_err() {
                    return false;
                }
                self.words[who].retain(|gfn, _| !range.contains(*gfn));
                let pins = self.pins.iter_mut();
                pins.filter(|pin| pin.who == who && range.contains(pin.gfn))
                    .for_each(|pin| pin.attached = false);
            }
            Op::GiveBack(who, range) => {
                match give_back(&self.guests[who].space, range) {
                    Ok(_) => {}
                    Err(GiveBackError::Mirror(_)) => return false,
                    Err(error) => panic!("{error}"),
                }
                // Zeroes, over the image too.
                self.words[who].extend(range.iter().map(|gfn| (gfn, Some(0))));
                let pins = self.pins.iter_mut();
                pins.filter(|pin| pin.who == who && range.contains(pin.gfn))
                    .for_each(|pin| pin.attached = false);
            }
            Op::TakeBack(who, range) => {
                let space = &self.guests[who].space;
                let is_returned = |&gfn: &Gfn| {
                    let entry = space.table.walk(&space.table.enter(), gfn).entry;
                    entry == Entry::Marker(Marker::Returned)
                };
                let returned: Vec<Gfn> = range.iter().filter(is_returned).collect();
                match take_back(space, range) {
                    Ok(taken) => assert_eq!(taken, returned.len() as u64),
                    Err(_) => return false,
                }
                // As nobody has ever touched them.
                returned.iter().for_each(|gfn| {
                    self.words[who].remove(gfn);
                });
            }
            Op::Split(who, gfn) => {
                let page = GfnRange::new(gfn, 1).unwrap();
                split(&self.guests[who].space, page, PageSize::Size4K).unwrap();
            }
            Op::Collapse(who, policy) => {
                let ram = GfnRange::new(Gfn::new(0), END).unwrap();
                // Failing, each block is as it was or as it should be.
                let _ = collapse(&self.guests[who].space, ram, policy);
            }
            Op::Fail(who, calls) => self.guests[who].window.fail_after(Some(calls)),
        }
        true
    }

    fn is_pinned(&self, who: Who, gfn: Gfn) -> bool {
        let block = |gfn: Gfn| gfn.as_u64() / 512;
        // A pin of a huge leaf is on the whole block, and stays there.
        self.pins.iter().any(|pin| pin.who == who && block(pin.gfn) == block(gfn))
    }

    fn touch(&self, who: Who, gfn: Gfn, access: Access) -> bool {
        match fault(&self.guests[who].space, gfn.gpa(), access) {
            Ok(_) => true,
            Err(FaultError::Marked { marker: Marker::Missing, .. }) => {
                assert_eq!(self.word(who, gfn), None, "a page is missing");
                false
            }
            Err(error) => {
                assert!(super::world::is_excusable(&error), "{error}");
                false
            }
        }
    }

    fn load(&mut self, who: Who, gfn: Gfn) {
        if self.touch(who, gfn, Access::Read) {
            let guest = &self.guests[who];
            let (frame, _) = guest.window.translation(gfn).expect("what was served is shown");
            assert_eq!(Some(word_of(guest, frame)), self.word(who, gfn), "{who} reads {gfn}");
        }
    }

    fn store(&mut self, who: Who, gfn: Gfn, value: u64) {
        if !self.touch(who, gfn, Access::Write) {
            return;
        }
        let guest = &self.guests[who];
        let (frame, prot) = guest.window.translation(gfn).expect("what was served is shown");
        if !prot.writable() {
            // The window keeps what it shows until it is told otherwise; the guest faults again.
            return;
        }
        guest.space.pool.memory().write(frame, 0, &value.to_le_bytes());
        self.set(who, gfn, value);
    }

    fn pin(&mut self, who: Who, gfn: Gfn, access: Access) {
        let page = GpaRange::new(gfn.gpa(), FRAME_BYTES).unwrap();
        let space = &self.guests[who].space;
        match pin(space, page, access, None) {
            Ok(pinned) => {
                let value = pinned.slices().next().unwrap().read_obj(0).unwrap();
                assert_eq!(Some(value), self.word(who, gfn), "a device of {who} reads {gfn}");
                let page = pinned.slices().next().unwrap().ptr_guard().as_ptr().addr();
                self.pins.push(HeldPage { who, gfn, pinned, page, attached: true, value });
            }
            Err(PinError::Fault(FaultError::Marked { .. })) => {
                assert_eq!(self.word(who, gfn), None, "a page is missing");
            }
            Err(PinError::Fault(error)) => {
                assert!(super::world::is_excusable(&error), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn merge(&mut self, one: (Who, Gfn), other: (Who, Gfn)) {
        let space = |who: Who| &self.guests[who].space;
        match merge((space(one.0), one.1), (space(other.0), other.1)) {
            Ok(()) => {
                let (left, right) = (self.word(one.0, one.1), self.word(other.0, other.1));
                assert_eq!(left, right, "pages of other bytes were merged");
            }
            Err(MergeError::Pinned) => {
                assert!(self.is_pinned(one.0, one.1) || self.is_pinned(other.0, other.1));
            }
            Err(_) => {}
        }
    }

    fn place(&mut self, who: Who, gfn: Gfn, value: u64) {
        let mut bytes = [0; FRAME_BYTES as usize];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        match place(&self.guests[who].space, gfn.gpa(), Content::Bytes(&bytes)) {
            Ok(Placed::AlreadyThere) => {}
            // It is there, and in the window at the next touch.
            Ok(_) | Err(PlaceError::Mirror(_)) => {
                if self.at(who, gfn) == Some(value) {
                    self.set(who, gfn, value);
                }
            }
            Err(PlaceError::Fault(error)) => {
                assert!(super::world::is_excusable(&error), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The first word of what the table maps at `gfn`.
    fn at(&self, who: Who, gfn: Gfn) -> Option<u64> {
        frame(&self.guests[who], gfn).map(|frame| word_of(&self.guests[who], frame))
    }

    fn check(&self) {
        let mut holdings = Holdings::default();
        for (who, guest) in self.guests.iter().enumerate() {
            holdings.merge(audit(&guest.space).unwrap());
            for gfn in (0..IMAGE).chain(ZEROES..END).map(Gfn::new) {
                if let Some(word) = self.at(who, gfn) {
                    assert_eq!(Some(word), self.word(who, gfn), "{who} has other bytes at {gfn}");
                }
                if let Some((shown, _)) = guest.window.translation(gfn) {
                    assert_eq!(Some(shown), frame(guest, gfn), "the window of {who} at {gfn}");
                }
            }
        }
        for pin in &self.pins {
            let read: u64 = pin.pinned.slices().next().unwrap().read_obj(0).unwrap();
            assert_eq!(read, pin.value, "a device of {} at {}", pin.who, pin.gfn);
        }
        let pool = &self.guests[0].space.pool;
        check_shared(pool, &holdings, &HashMap::new()).unwrap();
        let usage = pool.usage();
        leaked(usage.used - usage.orphans, holdings.frames() + self.image.nr_loaded()).unwrap();
    }
}

fn frame(guest: &Guest, gfn: Gfn) -> Option<FrameNo> {
    let walked = guest.space.table.walk(&guest.space.table.enter(), gfn);
    match walked.entry {
        Entry::Leaf(leaf) => Some(leaf.frame.add(gfn.offset_in(walked.level.entry_frames()))),
        _ => None,
    }
}

fn word_of(guest: &Guest, frame: FrameNo) -> u64 {
    let mut bytes = [0; 8];
    guest.space.pool.memory().read(frame, 0, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn excused(result: Result<(), FaultError>) {
    if let Err(error) = result {
        assert!(super::world::is_excusable(&error), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 3000, ..ProptestConfig::default() })]

    #[test]
    fn clones_keep_apart_whatever_is_shared_between_them(
        ops in prop::collection::vec(op(), 1..120),
        blocks in prop::bool::ANY,
    ) {
        let pages = if blocks { PageSize::Size2M } else { PageSize::Size4K };
        let choice = BackingChoice::Only(BackingKind::Memfd);
        let pool = Arc::new(Pool::new(choice, POOL_BLOCKS << 21, pages).unwrap());
        let image = image(&pool);
        let guests = [(); 2].map(|()| Guest::new(&pool, &image, pages));
        let words = [BTreeMap::new(), BTreeMap::new()];
        let mut world = World { guests: &guests, image: &image, words, pins: Vec::new() };
        for op in &ops {
            if !world.apply(op) {
                return Ok(());
            }
            world.check();
        }
        drop(world);
        for guest in &guests {
            guest.window.fail_after(None);
            unmap_all(&guest.space).unwrap();
            audit_torn_down(&guest.space).unwrap();
            prop_assert_eq!(guest.window.len(), 0);
        }
        drop(guests);
        drop(image);
        prop_assert_eq!(pool.usage().free, POOL_BLOCKS * 512);
    }
}
