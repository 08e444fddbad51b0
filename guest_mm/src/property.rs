//! Random operations against a plain oracle, with a mirror that fails now and then. After each operation
//! the books are audited, and the window and the bytes are held against the oracle.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use crate::addr::{BlockNo, Gfn, GfnRange, PageSize};
use crate::audit::{audit, audit_torn_down, leaked};
use crate::copy;
use crate::entry::{Entry, Marker};
use crate::fault::{FaultError, fault, populate};
use crate::mark::mark;
use crate::mirrors::fake::Fake;
use crate::pool::{BackingChoice, BackingKind, Owner, Pool};
use crate::prot::{Access, Prot};
use crate::protect::protect;
use crate::protocol::Sound;
use crate::space::{AddressSpace, Counters, FaultPolicy, FillLocks, RamRegion};
use crate::split::split;
use crate::sync::{Apart, Arc};
use crate::table::Table;
use crate::tally::Tally;
use crate::unmap::{unmap, unmap_all};

/// Guest frames: three blocks and a half, so that the last block is not whole.
const RAM: u64 = 3 * 512 + 256;

#[derive(Clone, Debug)]
enum Op {
    /// The guest loads or stores.
    Touch(Index, Access),
    Populate(Index, u64),
    Unmap(Index, u64),
    Protect(Index, u64, Prot),
    Split(Index, u64),
    Mark(Index, u64, Marker),
    /// The mirror call after so many fails.
    Fail(u32),
}

fn ops() -> impl Strategy<Value = Op> {
    let len = prop_oneof![1..4u64, 1..600u64, Just(512u64)];
    let at = || any::<Index>();
    prop_oneof![
        6 => (at(), prop::bool::ANY).prop_map(|(at, write)| {
            Op::Touch(at, if write { Access::Write } else { Access::Read })
        }),
        2 => (at(), len.clone()).prop_map(|(at, len)| Op::Populate(at, len)),
        3 => (at(), len.clone()).prop_map(|(at, len)| Op::Unmap(at, len)),
        2 => (at(), len.clone(), 0..4usize).prop_map(|(at, len, p)| Op::Protect(at, len, Prot::ALL[p])),
        1 => (at(), len.clone()).prop_map(|(at, len)| Op::Split(at, len)),
        1 => (at(), len, 0..3usize).prop_map(|(at, len, m)| Op::Mark(at, len, Marker::ALL[m])),
        1 => (0..6u32).prop_map(Op::Fail),
    ]
}

/// A page as the guest should find it.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Page {
    Mapped { prot: Prot, value: u64 },
    Marked(Marker),
}

struct World {
    space: AddressSpace<Sound>,
    mirror: Fake,
    oracle: BTreeMap<Gfn, Page>,
    next_value: u64,
}

impl World {
    fn new(pages: PageSize, pool_blocks: u64) -> World {
        let range = GfnRange::new(Gfn::new(0), RAM).unwrap();
        let mirror = Fake::new();
        let choice = BackingChoice::Only(BackingKind::Memfd);
        let pool = Pool::new(choice, pool_blocks << 21, pages).unwrap();
        let space = AddressSpace {
            ram: vec![RamRegion { range, origin: BlockNo::new(0) }],
            table: Table::new(&[range]),
            mirror: Box::new(mirror.clone()),
            pool: Apart::new(Arc::new(pool)),
            policy: FaultPolicy { pages },
            counters: Counters::default(),
            pin_counts: Apart::new(Tally::new()),
            fill_locks: FillLocks::new(),
        };
        World { space, mirror, oracle: BTreeMap::new(), next_value: 1 }
    }

    /// Does `op`; false when the guest would be stopped by it, because the window may hold too much.
    fn apply(&mut self, op: &Op) -> bool {
        match *op {
            Op::Touch(at, access) => self.touch(gfn(at), access),
            Op::Populate(at, len) => {
                let done = populate(&self.space, range(at, len));
                assert!(done.is_ok() || is_excusable(&done.unwrap_err()));
            }
            Op::Unmap(at, len) => {
                let range = range(at, len);
                if unmap(&self.space, range).is_err() {
                    return false;
                }
                self.oracle.retain(|&gfn, _| !range.contains(gfn));
            }
            Op::Protect(at, len, prot) => {
                let range = range(at, len);
                if protect(&self.space, range, prot).is_err() {
                    return false;
                }
                for (_, page) in self.oracle.range_mut(range.start()..range.end()) {
                    if let Page::Mapped { prot: p, .. } = page {
                        *p = prot;
                    }
                }
            }
            Op::Split(at, len) => {
                split(&self.space, range(at, len), PageSize::Size4K).unwrap();
            }
            Op::Mark(at, len, marker) => {
                // Refused at the first page in use; those before it are marked, which `adopt` sees.
                let _ = mark(&self.space, range(at, len), marker);
            }
            Op::Fail(calls) => self.mirror.fail_after(Some(calls)),
        }
        self.adopt();
        true
    }

    /// What the guest's access does, and what it finds.
    fn touch(&mut self, gfn: Gfn, access: Access) {
        let before = self.oracle.get(&gfn).copied();
        let result = fault(&self.space, gfn.gpa(), access);
        match (before, result) {
            (_, Err(error)) if is_excusable(&error) => return,
            (Some(Page::Marked(marker)), Err(FaultError::Marked { marker: found, .. })) => {
                assert_eq!(marker, found);
                return;
            }
            (Some(Page::Mapped { prot, .. }), Err(FaultError::ReadOnly { .. })) => {
                assert!(!prot.writable());
                return;
            }
            (Some(Page::Marked(_)), result) => panic!("{result:?} at a marked page"),
            (_, result) => assert!(result.is_ok(), "{result:?}"),
        }
        self.adopt();
        if access == Access::Write {
            let value = self.next_value;
            self.next_value += 1;
            copy::write(&self.space, gfn.gpa(), &value.to_le_bytes()).unwrap();
            let Some(Page::Mapped { value: held, .. }) = self.oracle.get_mut(&gfn) else {
                panic!("a page that was served is mapped")
            };
            *held = value;
        }
    }

    /// Takes pages that appeared into the oracle: fresh ones read zero, and nothing may have vanished.
    fn adopt(&mut self) {
        let mut found = BTreeMap::new();
        self.space.table.visit(|visited| {
            for i in 0..visited.level.entry_frames() {
                let page = match visited.entry {
                    Entry::Leaf(leaf) => Page::Mapped { prot: leaf.prot, value: 0 },
                    Entry::Marker(marker) => Page::Marked(marker),
                    Entry::Table(_) | Entry::Frozen(_) | Entry::Absent => return,
                };
                found.insert(visited.gfn.add(i), page);
            }
        });
        for (gfn, page) in found {
            self.oracle.entry(gfn).or_insert(page);
        }
    }

    fn check(&self) {
        let mapped = audit(&self.space).unwrap();
        leaked(self.space.pool.usage().used, mapped).unwrap();
        let in_oracle = self.oracle.values().filter(|page| matches!(page, Page::Mapped { .. }));
        assert_eq!(in_oracle.count() as u64, mapped);
        let mut in_window = 0;
        for (&gfn, &page) in &self.oracle {
            let walked = self.space.table.walk(&self.space.table.enter(), gfn);
            match (walked.entry, page) {
                (Entry::Marker(found), Page::Marked(marker)) => assert_eq!(found, marker),
                (Entry::Leaf(leaf), Page::Mapped { prot, value }) => {
                    assert_eq!(leaf.prot, prot);
                    let frame = leaf.frame.add(gfn.offset_in(walked.level.entry_frames()));
                    if let Some((shown, allowed)) = self.mirror.translation(gfn) {
                        in_window += 1;
                        assert_eq!(shown, frame, "the window shows another frame at {gfn}");
                        assert!(
                            !allowed.writable() || prot.writable(),
                            "too much is allowed at {gfn}"
                        );
                    }
                    let mut bytes = [0; 8];
                    copy::read(&self.space, gfn.gpa(), &mut bytes).unwrap();
                    assert_eq!(u64::from_le_bytes(bytes), value, "wrong bytes at {gfn}");
                }
                (entry, page) => panic!("{gfn} is {entry:?}, expected {page:?}"),
            }
        }
        assert_eq!(self.mirror.len(), in_window, "the window holds what the table has lost");
    }
}

fn gfn(at: Index) -> Gfn {
    Gfn::new(at.index(RAM as usize) as u64)
}

fn range(at: Index, len: u64) -> GfnRange {
    let start = gfn(at);
    GfnRange::new(start, len.min(RAM - start.as_u64())).unwrap()
}

/// Errors that the surroundings are to blame for: no memory left, or an injected failure.
fn is_excusable(error: &FaultError) -> bool {
    matches!(error, FaultError::Exhausted { .. } | FaultError::Mirror(_))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_guest_finds_what_the_oracle_says_and_the_books_are_right(
        ops in prop::collection::vec(ops(), 1..60),
        blocks in prop::bool::ANY,
        pool_blocks in 1..6u64,
    ) {
        let pages = if blocks { PageSize::Size2M } else { PageSize::Size4K };
        let mut world = World::new(pages, pool_blocks);
        for op in &ops {
            if !world.apply(op) {
                // The window may be ahead of the table: the service stops the guest here. What it must
                // not have done is hand out the frames.
                for gfn in (0..RAM).map(Gfn::new) {
                    if let Some((frame, _)) = world.mirror.translation(gfn) {
                        prop_assert_eq!(world.space.pool.frame_state(frame).owner, Owner::User);
                    }
                }
                return Ok(());
            }
            world.check();
        }
        world.mirror.fail_after(None);
        unmap_all(&world.space).unwrap();
        audit_torn_down(&world.space).unwrap();
        prop_assert_eq!(world.space.pool.usage().free, pool_blocks * 512);
        prop_assert_eq!(world.mirror.len(), 0);
    }
}
