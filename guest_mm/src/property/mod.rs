//! Random operations of a guest and of its devices against a plain oracle, with a mirror that fails now and
//! then. After each operation the books are audited, and the window, the bytes, the pins and the notes of
//! what devices wrote are held against the oracle.

mod clones;
mod ops;
mod oracle;
mod world;

use std::collections::HashSet;

use proptest::prelude::*;

use crate::addr::{BlockNo, Gfn, GfnRange, PageSize};
use crate::audit::audit_torn_down;
use crate::mirrors::fake::Fake;
use crate::pool::{BackingChoice, BackingKind, Owner, Pool};
use crate::protocol::Sound;
use crate::space::{AddressSpace, FaultPolicy, Over, RamRegion};
use crate::sync::Arc;
use crate::unmap::unmap_all;

use world::World;

/// Guest frames: three blocks and a half, so that the last block is not whole.
const RAM: u64 = 3 * 512 + 256;

fn space(pages: PageSize, pool_blocks: u64, mirror: &Fake) -> AddressSpace<Sound> {
    let choice = BackingChoice::Only(BackingKind::Memfd);
    let pool = Arc::new(Pool::new(choice, pool_blocks << 21, pages).unwrap());
    space_of(&pool, [(0, RAM, None)], pages, mirror)
}

/// Memory from `pool`, of ranges by their first frame, how many they are, and what they lie over.
fn space_of<const N: usize>(
    pool: &Arc<Pool>,
    ram: [(u64, u64, Option<Over>); N],
    pages: PageSize,
    mirror: &Fake,
) -> AddressSpace<Sound> {
    let ram: Vec<RamRegion> = ram
        .into_iter()
        .map(|(start, frames, over)| {
            let range = GfnRange::new(Gfn::new(start), frames).unwrap();
            RamRegion { range, origin: BlockNo::new(0), over }
        })
        .collect();
    let mirror = Box::new(mirror.clone());
    AddressSpace::new(ram, Arc::clone(pool), mirror, FaultPolicy { pages }, None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn guest_and_devices_find_what_the_oracle_says_and_the_books_are_right(
        ops in ops::ops(),
        blocks in prop::bool::ANY,
        pool_blocks in 1..8u64,
    ) {
        let pages = if blocks { PageSize::Size2M } else { PageSize::Size4K };
        let mirror = Fake::new();
        let space = space(pages, pool_blocks, &mirror);
        let mut world = World::new(&space, mirror.clone());
        for op in &ops {
            if !world.apply(op) {
                // The window may be ahead of the table: the service stops the guest here. What it must
                // not have done is hand out the frames.
                for gfn in (0..RAM).map(Gfn::new) {
                    if let Some((frame, _)) = mirror.translation(gfn) {
                        prop_assert_eq!(space.pool.frame_state(frame).owner, Owner::User);
                    }
                }
                return Ok(());
            }
            world.check();
        }
        mirror.fail_after(None);
        unmap_all(&space).unwrap();
        audit_torn_down(&space).unwrap();
        prop_assert_eq!(mirror.len(), 0);
        // Devices may be the last to know.
        world.oracle.guest.clear();
        world.check_devices(&HashSet::new());
        world.pins.clear();
        world.check_devices(&HashSet::new());
        prop_assert_eq!(space.pool.usage().free, pool_blocks * 512);
    }
}
