//! `lock-vs-detach`: a fault that waits for a page table's lock meets an unmap that takes the table out of the tree.

use guest_mm::addr::Gfn;
use guest_mm::prot::Access;
use guest_mm::protocol::Step;
use guest_mm::protocol::historical::LockWithoutRecheck;

use crate::race::cue::act;
use crate::race::damage::{Damage, Done};
use crate::race::scene::Scene;
use crate::race::stage::{left_ends, left_until, right_ends};
use crate::race::variant::{Play, Race, Variant};
use crate::race::world::{Size, World, block, only, page};

pub(in crate::race) const RACE: Race = Race {
    name: "lock-vs-detach",
    what: "a fault on its way to a page table's lock meets an unmap that detaches the table",
    sides: ["fault", "unmap"],
    held: "each page that the guest has is in the table",
    witness: None,
    variants: &[Variant {
        name: "lock-without-recheck",
        what: "a locked table is taken for attached",
        lacks: Step::L3,
        steps: LockWithoutRecheck::STEPS,
        origin: "Linux 0d940a9b270b",
        damage: LOST_PAGE,
        // The table is found, and gone from the tree before it is locked.
        play: Play::Here {
            scene: &Touch,
            schedule: &[left_until(Step::L2), right_ends(), left_ends()],
        },
        witness: None,
        loom: "fault::model::lock_vs_detach_fails_when_a_locked_table_is_taken_for_attached",
    }],
};

const LOST_PAGE: &str = "a page is lost";

/// The page that is touched.
const PAGE: Gfn = page(0, 5);
/// The page that the table is there for.
const OTHER: Gfn = page(0, 6);
const STORE: &str = "the guest writes 42";
const WRITTEN: u64 = 42;

/// A page is touched in a block that is taken away.
#[derive(Debug)]
struct Touch;

impl Scene for Touch {
    fn size(&self) -> Size {
        Size::blocks(1, 2)
    }

    fn prepare(&self, world: &World) -> Done {
        world.guest.unmap(block(0))?;
        world.guest.populate(only(OTHER))?;
        Ok(())
    }

    fn left(&self, world: &World) -> Done {
        world.guest.fault(PAGE.gpa(), Access::Write)?;
        act(STORE);
        world.window.store(PAGE.gpa(), WRITTEN);
        Ok(())
    }

    fn right(&self, world: &World) -> Done {
        world.guest.unmap(block(0))?;
        Ok(())
    }

    fn verdict(&self, world: &World) -> Done {
        let at = PAGE.gpa();
        let seen = world.window.load(at);
        let what = if world.read(at) != Ok(seen) {
            format!("the guest reads {seen} at {at}, where the table has nothing")
        } else if let Some(wrong) = world.wrong_book() {
            // The unmap has taken it out of the window again.
            format!("a page was filled for {at}, and no table leads to it ({wrong})")
        } else {
            return Ok(());
        };
        Err(Damage::new(LOST_PAGE, what))
    }
}
