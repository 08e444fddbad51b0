//! `pin-vs-unexclusive`: a device pins a page for reading while the page becomes one that others use too.

use guest_mm::addr::Gfn;
use guest_mm::prot::{Access, Prot};
use guest_mm::protocol::Step;
use guest_mm::protocol::historical::{
    LookWithoutBarrier, PinWithoutBarrier, PinWithoutMark, PinWithoutReadBarrier,
    RestoreWithoutBarrier,
};

use crate::race::cue::act;
use crate::race::damage::{Damage, Done};
use crate::race::scene::Scene;
use crate::race::stage::{left_ends, left_until, right_ends, right_until};
use crate::race::variant::{Play, Race, Variant};
use crate::race::world::{Size, World, block, dma_load, only, page};

pub(in crate::race) const RACE: Race = Race {
    name: "pin-vs-unexclusive",
    what: "a device's lockless pin for reading meets a page that comes to be shared",
    sides: ["device", "share"],
    held: "the device reads what the guest wrote",
    witness: None,
    variants: &[
        Variant {
            name: "pin-without-mark",
            what: "pins and mark are looked at in two steps, as in Linux, and the mark not again behind the entry",
            lacks: Step::P6,
            steps: PinWithoutMark::STEPS,
            origin: "Linux 6c287605fd56",
            damage: PARTED,
            // The pin comes between the look at the pins and the clearing of the mark; by the time that the entry is
            // looked at it is back as it was.
            play: Play::Here {
                scene: &Share,
                schedule: &[
                    left_until(Step::P2),
                    right_until(Step::X5),
                    left_until(Step::P4),
                    right_ends(),
                    left_ends(),
                ],
            },
            witness: None,
            loom: "pin::model::share::pin_vs_unexclusive_fails_when_the_mark_is_not_looked_at_again",
        },
        Variant {
            name: "pin-without-barrier",
            what: "in two steps, and the look at the entry may overtake the pin",
            lacks: Step::P3,
            steps: PinWithoutBarrier::STEPS,
            origin: BARRIERS,
            damage: PARTED,
            play: Play::Modelled {
                why: "the locked instruction of the pin is a full barrier on x86",
            },
            witness: None,
            loom: "pin::model::share::pin_vs_unexclusive_fails_without_a_barrier_behind_the_pin",
        },
        Variant {
            name: "pin-without-read-barrier",
            what: "in two steps, and the look at the mark may overtake the look at the entry",
            lacks: Step::P4,
            steps: PinWithoutReadBarrier::STEPS,
            origin: BARRIERS,
            damage: PARTED,
            play: Play::Modelled { why: "x86 keeps loads in order" },
            witness: None,
            loom: "pin::model::share::pin_vs_unexclusive_fails_when_the_mark_is_read_before_the_entry",
        },
        Variant {
            name: "look-without-barrier",
            what: "in two steps, and the look at the pins may overtake the clearing of the entry",
            lacks: Step::X3,
            steps: LookWithoutBarrier::STEPS,
            origin: BARRIERS,
            damage: PARTED,
            play: Play::Modelled {
                why: "the exchange that takes the entry out is a full barrier on x86",
            },
            witness: None,
            loom: "pin::model::share::pin_vs_unexclusive_fails_without_a_barrier_before_the_look",
        },
        Variant {
            name: "restore-without-barrier",
            what: "in two steps, and the entry may be back before the mark is gone",
            lacks: Step::X6,
            steps: RestoreWithoutBarrier::STEPS,
            origin: BARRIERS,
            damage: PARTED,
            play: Play::Modelled { why: "x86 keeps stores in order" },
            witness: None,
            loom: "pin::model::share::pin_vs_unexclusive_fails_when_the_entry_is_back_before_the_mark_is_gone",
        },
    ],
};

const BARRIERS: &str = "Linux 088b8aa537c2";
const PARTED: &str = "the guest and its device have parted";

/// The page that the device reads.
const PAGE: Gfn = page(0, 5);
/// A page of the same bytes.
const TWIN: Gfn = page(0, 6);
const BEFORE: u64 = 7;
const WRITTEN: u64 = 42;
const STORE: &str = "the guest may write the page again, and writes 42";
const LOAD: &str = "the device reads it";

/// A page that nobody may write to is shared, so that its entry is the same afterwards.
#[derive(Debug)]
struct Share;

impl Scene for Share {
    fn size(&self) -> Size {
        Size::blocks(1, 2)
    }

    fn prepare(&self, world: &World) -> Done {
        world.guest.unmap(block(0))?;
        for gfn in [PAGE, TWIN] {
            world.guest.populate(only(gfn))?;
            world.write(gfn.gpa(), BEFORE)?;
        }
        Ok(world.guest.protect(only(PAGE), Prot::R)?)
    }

    fn left(&self, world: &World) -> Done {
        let pinned = world.pin_for(PAGE, Access::Read)?;
        act(STORE);
        world.guest.protect(only(PAGE), Prot::RAM)?;
        world.window.store(PAGE.gpa(), WRITTEN);
        act(LOAD);
        let read = dma_load(&pinned, 0);
        if read == WRITTEN {
            return Ok(());
        }
        let at = PAGE.gpa();
        let what = format!(
            "the guest wrote {WRITTEN} to {at}, and the device that has it pinned reads {read}"
        );
        Err(Damage::new(PARTED, what))
    }

    fn right(&self, world: &World) -> Done {
        world.merge(PAGE, TWIN)
    }

    fn verdict(&self, world: &World) -> Done {
        world.sees(PAGE, WRITTEN)?;
        world.sees(TWIN, BEFORE)?;
        world.audit()
    }
}
