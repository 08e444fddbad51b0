//! `dedup-vs-pin`: a device writes to a page that is being replaced by another of the same bytes.

use guest_mm::addr::{Gfn, Gpa};
use guest_mm::protocol::Step;
use guest_mm::protocol::historical::{CountBeforeZap, NeverCount};

use crate::race::cue::act;
use crate::race::damage::{Damage, Done};
use crate::race::scene::Scene;
use crate::race::stage::{left_ends, left_until_act, right_ends, right_until};
use crate::race::variant::{Play, Race, Variant};
use crate::race::world::{Size, World, block, dma_store, only, page};

pub(in crate::race) const RACE: Race = Race {
    name: "dedup-vs-pin",
    what: "a device's lockless pin meets the replacement of its page by a shared one",
    sides: ["device", "share"],
    held: "the guest reads what the device wrote, and in no other page",
    witness: None,
    variants: &[
        Variant {
            name: "count-before-zap",
            what: "the pins are looked at while new ones can still come",
            lacks: Step::S1,
            steps: CountBeforeZap::STEPS,
            origin: "Linux 31dbd01f3143",
            damage: LOST_WRITE,
            // The device comes between the look and the taking out, and writes when the page has been replaced.
            play: Play::Here {
                scene: &Twins,
                schedule: &[
                    right_until(Step::S1),
                    left_until_act(WRITE),
                    right_ends(),
                    left_ends(),
                ],
            },
            witness: None,
            loom: "pin::model::share::dedup_vs_pin_fails_when_pins_are_counted_before_the_zap",
        },
        Variant {
            name: "never-count",
            what: "a page is replaced whoever has it pinned",
            lacks: Step::S3,
            steps: NeverCount::STEPS,
            origin: "Linux 2b1444983508",
            damage: LOST_WRITE,
            // The device has had its pin all along.
            play: Play::Here {
                scene: &Twins,
                schedule: &[left_until_act(WRITE), right_ends(), left_ends()],
            },
            witness: None,
            loom: "pin::model::share::dedup_vs_pin_fails_when_pins_are_not_counted",
        },
    ],
};

const LOST_WRITE: &str = "a DMA write is lost";
const STRAY_WRITE: &str = "a DMA write went to another page";

/// Something that the device does.
const WRITE: &str = "the device writes 42";

/// The page whose frame both are to have.
const TWIN: Gfn = page(0, 5);
/// The page that the device wants.
const PAGE: Gfn = page(0, 6);
/// The word of it that the device writes.
const SLOT: usize = 8;
const BEFORE: u64 = 7;
const WRITTEN: u64 = 42;

fn slot(gfn: Gfn) -> Gpa {
    gfn.gpa().checked_add(SLOT as u64).expect("a page holds the word")
}

/// Two pages of the same bytes become one, and a device writes to the second.
#[derive(Debug)]
struct Twins;

impl Scene for Twins {
    fn size(&self) -> Size {
        Size::blocks(1, 2)
    }

    fn prepare(&self, world: &World) -> Done {
        world.guest.unmap(block(0))?;
        for gfn in [TWIN, PAGE] {
            world.guest.populate(only(gfn))?;
            world.write(slot(gfn), BEFORE)?;
        }
        Ok(())
    }

    fn left(&self, world: &World) -> Done {
        let pinned = world.pin(PAGE)?;
        act(WRITE);
        dma_store(&pinned, SLOT, WRITTEN);
        Ok(())
    }

    fn right(&self, world: &World) -> Done {
        world.merge(TWIN, PAGE)
    }

    fn verdict(&self, world: &World) -> Done {
        let [at, twin] = [PAGE, TWIN].map(slot);
        let [found, beside] = [at, twin].map(|at| world.window.load(at));
        if beside != BEFORE {
            let what = format!("the guest finds at {twin} what the device wrote for {at}");
            return Err(Damage::new(STRAY_WRITE, what));
        }
        if found != WRITTEN {
            let what = format!("the device wrote {WRITTEN} to {at}, and the guest reads {found}");
            return Err(Damage::new(LOST_WRITE, what));
        }
        world.audit()
    }
}
