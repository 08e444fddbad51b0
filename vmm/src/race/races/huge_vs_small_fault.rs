//! `huge-vs-small-fault`: a read that may map 2 MiB meets a store that must map 4 KiB, in one block of an image.

use guest_mm::addr::Gfn;
use guest_mm::prot::Access;
use guest_mm::protocol::Step;
use guest_mm::protocol::historical::{HugeWithoutRecheck, SmallWithoutRecheck};

use crate::race::cue::act;
use crate::race::damage::{Damage, Done};
use crate::race::scene::Scene;
use crate::race::stage::{left_ends, left_until, right_ends, right_until};
use crate::race::variant::{Play, Race, Variant};
use crate::race::world::{Size, World, block, image_word, page};

pub(in crate::race) const RACE: Race = Race {
    name: "huge-vs-small-fault",
    what: "a fault that maps 4 KiB meets one that maps the 2 MiB around it",
    sides: ["store", "read"],
    held: "the guest reads what it wrote, and the image beside it, as the table says",
    witness: None,
    variants: &[
        Variant {
            name: "huge-without-recheck",
            what: "a huge page goes where a page table has come meanwhile",
            lacks: Step::H3,
            steps: HugeWithoutRecheck::STEPS,
            origin: ORIGIN,
            damage: LOST_STORE,
            // The store has its page table and its copy when the read, which saw neither, maps the block.
            play: Play::Here {
                scene: &Untouched,
                schedule: &[right_until(Step::H2), left_ends(), right_ends()],
            },
            witness: None,
            loom: "fault::model::huge_vs_small_fault_fails_when_the_huge_fault_does_not_look_again",
        },
        Variant {
            name: "small-without-recheck",
            what: "a page table goes where a huge page has come meanwhile",
            lacks: Step::K3,
            steps: SmallWithoutRecheck::STEPS,
            origin: ORIGIN,
            damage: LOST_BLOCK,
            // The block is mapped when the store, which saw nothing there, makes its page table.
            play: Play::Here {
                scene: &Untouched,
                schedule: &[left_until(Step::K2), right_ends(), left_ends()],
            },
            witness: None,
            loom: "fault::model::huge_vs_small_fault_fails_when_the_small_fault_does_not_look_again",
        },
    ],
};

const ORIGIN: &str = "Linux e2093926a098";

const LOST_STORE: &str = "a store is lost";
const LOST_BLOCK: &str = "a huge page is lost";

/// The page that the guest writes.
const PAGE: Gfn = page(0, 5);
/// The page that it reads.
const OTHER: Gfn = page(0, 6);
const WRITTEN: u64 = 42;
const STORE: &str = "the guest writes 42";

/// Both touch a block that nobody has touched.
#[derive(Debug)]
struct Untouched;

impl Scene for Untouched {
    fn size(&self) -> Size {
        Size::blocks(1, 3).over_image().by_blocks()
    }

    fn prepare(&self, world: &World) -> Done {
        world.guest.unmap(block(0))?;
        Ok(())
    }

    fn left(&self, world: &World) -> Done {
        world.guest.fault(PAGE.gpa(), Access::Write)?;
        act(STORE);
        world.window.store(PAGE.gpa(), WRITTEN);
        Ok(())
    }

    fn right(&self, world: &World) -> Done {
        world.guest.fault(OTHER.gpa(), Access::Read)?;
        Ok(())
    }

    fn verdict(&self, world: &World) -> Done {
        let (at, other) = (PAGE.gpa(), OTHER.gpa());
        let books = world.wrong_book().map(|wrong| format!(" ({wrong})")).unwrap_or_default();
        // Before the window is looked at: a look fills what is not there.
        if world.read(other).is_err() {
            let seen = world.window.load(other);
            let what =
                format!("the guest reads {seen} at {other}, where the table has nothing{books}");
            return Err(Damage::new(LOST_BLOCK, what));
        }
        let found = world.window.load(at);
        if found != WRITTEN {
            let what = format!("the guest wrote {WRITTEN} to {at}, and reads {found}{books}");
            return Err(Damage::new(LOST_STORE, what));
        }
        world.sees(OTHER, image_word(OTHER))?;
        world.audit()
    }
}
