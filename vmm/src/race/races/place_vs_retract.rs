//! `place-vs-retract`: a page arrives in a block whose page table is about to give way to the image's huge leaf.

use guest_mm::addr::{Gfn, PageSize};
use guest_mm::collapse::{CollapsePolicy, Copying};
use guest_mm::entry::Marker;
use guest_mm::place::{Content, Placed};
use guest_mm::protocol::Step;
use guest_mm::protocol::historical::{RetractUnflushed, RetractUnlocked};

use crate::race::cue::act;
use crate::race::damage::{Damage, Done};
use crate::race::scene::Scene;
use crate::race::stage::{Turn, left_ends, right_ends, right_until};
use crate::race::variant::{Play, Race, Variant};
use crate::race::world::{Size, World, block, image_word, only, page, page_of};

pub(in crate::race) const RACE: Race = Race {
    name: "place-vs-retract",
    what: "a page arrives in a block that goes back to its image's huge page",
    sides: ["place", "retract"],
    held: "guest and devices read what was placed, and nothing that the table has lost",
    witness: None,
    variants: &[
        Variant {
            name: "retract-unlocked",
            what: "a page table is emptied, unlocked, and then replaced by the huge page",
            lacks: Step::T1,
            steps: RetractUnlocked::STEPS,
            origin: "Linux 1043173eb5eb",
            damage: LOST_PAGE,
            play: Play::Here { scene: &Arrival, schedule: BETWEEN },
            witness: None,
            loom: "place::model::place_vs_retract_fails_when_the_table_is_unlocked_before_it_is_detached",
        },
        Variant {
            name: "retract-unflushed",
            what: "a page table is emptied too early, and what was taken out is not flushed if it stays",
            lacks: Step::T3,
            steps: RetractUnflushed::STEPS,
            origin: "a withdrawn draft of the repair of Linux 1043173eb5eb",
            damage: STALE,
            play: Play::Here { scene: &Arrival, schedule: BETWEEN },
            witness: None,
            loom: "place::model::place_vs_retract_fails_when_a_pass_that_gives_up_does_not_flush",
        },
    ],
};

/// The page comes between the emptying, where that has a lock of its own, and the rest.
const BETWEEN: &[Turn] = &[right_until(Step::T1), left_ends(), right_ends()];

const LOST_PAGE: &str = "a page is lost";
const STALE: &str = "the window holds a page that the table has lost";

/// The page that arrives.
const PAGE: Gfn = page(0, 5);
/// A page of the image's.
const OTHER: Gfn = page(0, 6);
/// What arrives.
const ARRIVES: u64 = 42;
const STORE: &str = "the image's page is there: the guest writes 42 over it";

/// A page arrives in a block of an image.
#[derive(Debug)]
struct Arrival;

impl Scene for Arrival {
    fn size(&self) -> Size {
        Size::blocks(1, 3).over_image()
    }

    /// A page table of the image's pages but one, as a store to that one would leave it behind.
    fn prepare(&self, world: &World) -> Done {
        world.guest.unmap(block(0))?;
        world.guest.populate(block(0))?;
        world.guest.split(block(0), PageSize::Size4K)?;
        world.guest.unmap(only(PAGE))?;
        world.sees(OTHER, image_word(OTHER))
    }

    fn left(&self, world: &World) -> Done {
        let placed = world.guest.place(PAGE.gpa(), Content::Bytes(&page_of(ARRIVES)))?;
        if placed == Placed::AlreadyThere {
            act(STORE);
            world.window.store(PAGE.gpa(), ARRIVES);
        }
        Ok(())
    }

    fn right(&self, world: &World) -> Done {
        let policy = CollapsePolicy { copying: Copying::Never, ..CollapsePolicy::default() };
        world.guest.collapse(block(0), policy)?;
        Ok(())
    }

    fn verdict(&self, world: &World) -> Done {
        let (at, other) = (PAGE.gpa(), OTHER.gpa());
        // Of a page that the table maps this is refused.
        if world.guest.mark(only(OTHER), Marker::Guard).is_ok() {
            let seen = world.window.load(other);
            let what = format!(
                "the table has lost the page at {other}, so it can be made a guard page, which nobody can read; and the \
                 guest still reads {seen} there"
            );
            return Err(Damage::new(STALE, what));
        }
        let found = world.read(at)?;
        if found != ARRIVES {
            let what = format!("{ARRIVES} was placed at {at}, and a device reads {found} there");
            return Err(Damage::new(LOST_PAGE, what));
        }
        world.sees(PAGE, ARRIVES)?;
        world.sees(OTHER, image_word(OTHER))?;
        world.audit()
    }
}
