//! `pin-vs-collapse`: a device's pin meets a collapse of the block that its page is in.

use guest_mm::addr::{Gfn, Gpa, PageSize};
use guest_mm::collapse::CollapsePolicy;
use guest_mm::protocol::historical::{FreeWithoutGrace, LookBeforeFreeze, PinWithoutPde};
use guest_mm::protocol::{Sound, Step};

use crate::race::cue::act;
use crate::race::damage::{Damage, Done};
use crate::race::engine::Chosen;
use crate::race::scene::Scene;
use crate::race::stage::{
    left_ends, left_until, left_until_act, right_ends, right_until, right_until_act,
};
use crate::race::storm;
use crate::race::variant::{Play, Race, Variant};
use crate::race::world::{Size, World, block, dma_load, dma_store, page};

pub(in crate::race) const RACE: Race = Race {
    name: "pin-vs-collapse",
    what: "a device's lockless pin meets a collapse of the block",
    sides: ["device", "collapse"],
    held: "the guest reads what the device wrote, where the device was to write it",
    witness: Some(storm::<Sound>),
    variants: &[
        Variant {
            name: "pin-without-pde",
            what: "a pin is taken for good though the page table is on its way out",
            lacks: Step::P5,
            steps: PinWithoutPde::STEPS,
            origin: "Linux 70cbc3cc78a99",
            damage: LOST_WRITE,
            // The collapse comes between the walk and the pin, and has its copy before it takes the old entries away.
            play: Play::Here {
                scene: &Gather,
                schedule: &[left_until(Step::P2), right_until(Step::C7), left_ends(), right_ends()],
            },
            witness: Some(storm::<Chosen>),
            loom: "pin::model::pin_vs_collapse_fails_when_the_page_directory_is_not_looked_at_again",
        },
        Variant {
            name: "look-before-freeze",
            what: "the pins are looked at while new ones can still come",
            lacks: Step::C5,
            steps: LookBeforeFreeze::STEPS,
            origin: "Linux ba76149f47d8",
            damage: LOST_WRITE,
            // The device comes between the look and the freeze, and writes when the copy is made.
            play: Play::Here {
                scene: &Gather,
                schedule: &[
                    right_until(Step::C2),
                    left_until_act(WRITE),
                    right_ends(),
                    left_ends(),
                ],
            },
            witness: Some(storm::<Chosen>),
            loom: "pin::model::pin_vs_collapse_fails_when_the_pins_are_looked_at_before_the_freeze",
        },
        Variant {
            name: "free-without-grace",
            what: "a page table is reused while a walk is still in it",
            lacks: Step::R2,
            steps: FreeWithoutGrace::STEPS,
            origin: "Linux 2ba99c5e08812",
            damage: STRAY_WRITE,
            // The walk finds the table of the first block; what it reads there is the second's, and when it looks again
            // the table is the first's once more.
            play: Play::Here {
                scene: &Reuse,
                schedule: &[
                    left_until(Step::W3),
                    right_until_act(BACK),
                    left_until(Step::P5),
                    right_ends(),
                    left_ends(),
                ],
            },
            witness: None,
            loom: "pin::model::pin_vs_collapse_fails_when_the_table_is_freed_at_once",
        },
    ],
};

const LOST_WRITE: &str = "a DMA write is lost";
const STRAY_WRITE: &str = "a DMA write went to another page";

/// Something that the device does.
const WRITE: &str = "the device writes 42";
/// The collapse turns round.
const BACK: &str = "the other block is collapsed, and the first split";

/// The page that the device wants.
const PAGE: Gfn = page(0, 5);
/// In each page, a word that says which page it is, and the word that the device writes.
const NAME: usize = 0;
const SLOT: usize = 8;
const BEFORE: u64 = 7;
const WRITTEN: u64 = 42;

fn word(gfn: Gfn, offset: usize) -> Gpa {
    gfn.gpa().checked_add(offset as u64).expect("a page holds the word")
}

/// The device writes to a page of a block that is copied.
#[derive(Debug)]
struct Gather;

impl Scene for Gather {
    fn size(&self) -> Size {
        Size::blocks(1, 3)
    }

    fn prepare(&self, world: &World) -> Done {
        world.guest.populate(block(0))?;
        world.guest.split(block(0), PageSize::Size4K)?;
        // Or the block would be promoted where it is.
        world.displace(page(0, 511))?;
        Ok(world.write(word(PAGE, SLOT), BEFORE)?)
    }

    fn left(&self, world: &World) -> Done {
        let pinned = world.pin(PAGE)?;
        act(WRITE);
        dma_store(&pinned, SLOT, WRITTEN);
        Ok(())
    }

    fn right(&self, world: &World) -> Done {
        world.guest.collapse(block(0), CollapsePolicy::default())?;
        Ok(())
    }

    fn verdict(&self, world: &World) -> Done {
        let at = word(PAGE, SLOT);
        let found = world.window.load(at);
        if found != WRITTEN {
            let what = format!("the device wrote {WRITTEN} to {at}, and the guest reads {found}");
            return Err(Damage::new(LOST_WRITE, what));
        }
        world.audit()
    }
}

/// The device writes to a page of a block whose page table becomes another block's, and its own again.
#[derive(Debug)]
struct Reuse;

/// A page of the other block, in the same place of it.
const OTHER: Gfn = page(1, 5);

impl Scene for Reuse {
    fn size(&self) -> Size {
        Size::blocks(2, 3)
    }

    fn prepare(&self, world: &World) -> Done {
        for (index, gfn) in [PAGE, OTHER].into_iter().enumerate() {
            world.guest.populate(block(index as u64))?;
            world.write(word(gfn, NAME), gfn.as_u64())?;
            world.write(word(gfn, SLOT), BEFORE)?;
        }
        world.guest.collapse(block(1), CollapsePolicy::default())?;
        world.guest.split(block(0), PageSize::Size4K)?;
        Ok(())
    }

    fn left(&self, world: &World) -> Done {
        let pinned = world.pin(PAGE)?;
        let name = dma_load(&pinned, NAME);
        act(WRITE);
        dma_store(&pinned, SLOT, WRITTEN);
        if name == PAGE.as_u64() {
            return Ok(());
        }
        let (wanted, got) = (PAGE.gpa(), Gfn::new(name).gpa());
        let what = format!(
            "the device pinned {wanted}, was given the frame of {got}, and wrote {WRITTEN} to it"
        );
        Err(Damage::new(STRAY_WRITE, what))
    }

    fn right(&self, world: &World) -> Done {
        let guest = &world.guest;
        guest.collapse(block(0), CollapsePolicy::default())?;
        guest.split(block(1), PageSize::Size4K)?;
        act(BACK);
        guest.collapse(block(1), CollapsePolicy::default())?;
        guest.split(block(0), PageSize::Size4K)?;
        Ok(())
    }

    fn verdict(&self, world: &World) -> Done {
        let (found, other) = (world.window.load(word(PAGE, SLOT)), word(OTHER, SLOT));
        if world.window.load(other) != BEFORE {
            let what =
                format!("the guest finds at {other} what the device wrote for {}", PAGE.gpa());
            return Err(Damage::new(STRAY_WRITE, what));
        }
        if found != WRITTEN {
            let what = format!("the device wrote {WRITTEN}, and the guest reads {found}");
            return Err(Damage::new(LOST_WRITE, what));
        }
        world.audit()
    }
}
