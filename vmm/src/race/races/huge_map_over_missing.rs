//! `huge-map-over-missing`: the guest reads a page that has not come, in a block whose first page just came.

use guest_mm::addr::Gfn;
use guest_mm::entry::Marker;
use guest_mm::mark::MarkError;
use guest_mm::place::Content;
use guest_mm::protocol::Step;
use guest_mm::protocol::historical::HugeOnFirstPage;

use crate::race::cue::act;
use crate::race::damage::{Damage, Done};
use crate::race::scene::Scene;
use crate::race::stage::{left_ends, left_until_act, right_ends};
use crate::race::variant::{Play, Race, Variant};
use crate::race::world::{Size, World, block, only, page, page_of};

pub(in crate::race) const RACE: Race = Race {
    name: "huge-map-over-missing",
    what: "pages of a block arrive one by one, and the guest reads one that has not",
    sides: ["arrivals", "guest"],
    held: "the guest waits for each page, and reads what was placed",
    witness: None,
    variants: &[Variant {
        name: "huge-on-first-page",
        what: "a block is shown huge as soon as its first page is there",
        lacks: Step::M2,
        steps: HugeOnFirstPage::STEPS,
        origin: "ours; Cloud Hypervisor's issue 8663",
        damage: EARLY,
        // The guest reads between the two arrivals.
        play: Play::Here {
            scene: &Arrivals,
            schedule: &[left_until_act(SECOND), right_ends(), left_ends()],
        },
        witness: None,
        loom: "place::model::huge_map_over_missing_fails_when_the_block_is_shown_with_its_first_page",
    }],
};

const EARLY: &str = "the guest reads a page that has not come";

/// The page that comes first.
const FIRST: Gfn = page(0, 5);
/// The page that the guest reads.
const PAGE: Gfn = page(0, 6);
const WORDS: [u64; 2] = [7, 42];
const SECOND: &str = "the next page arrives";
const LOAD: &str = "the guest reads it";

/// Two pages of a missing block arrive, and the guest reads the second.
#[derive(Debug)]
struct Arrivals;

impl Scene for Arrivals {
    // One block of pool: its bytes are these, whoever had them.
    fn size(&self) -> Size {
        Size::blocks(1, 1)
    }

    fn prepare(&self, world: &World) -> Done {
        world.guest.unmap(block(0))?;
        // The bytes of the last round go.
        world.guest.populate(only(PAGE))?;
        loop {
            world.guest.unmap(block(0))?;
            match world.guest.mark(block(0), Marker::Missing) {
                // The last round's fault was told after its page had come, and is served only now.
                Err(MarkError::InUse { .. }) => {}
                marked => return Ok(marked?),
            }
        }
    }

    fn left(&self, world: &World) -> Done {
        world.guest.place(FIRST.gpa(), Content::Bytes(&page_of(WORDS[0])))?;
        act(SECOND);
        world.guest.place(PAGE.gpa(), Content::Bytes(&page_of(WORDS[1])))?;
        Ok(())
    }

    fn right(&self, world: &World) -> Done {
        act(LOAD);
        let (at, read) = (PAGE.gpa(), world.window.load(PAGE.gpa()));
        if read == WORDS[1] {
            return Ok(());
        }
        let what = format!(
            "the page at {at} is still to come, with {}, and the guest reads {read}",
            WORDS[1]
        );
        Err(Damage::new(EARLY, what))
    }

    fn verdict(&self, world: &World) -> Done {
        world.sees(FIRST, WORDS[0])?;
        world.sees(PAGE, WORDS[1])?;
        world.audit()
    }
}
