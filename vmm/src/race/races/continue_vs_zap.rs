//! `continue-vs-zap`: a fault that fills a page meets an unmap of it.

use guest_mm::addr::Gfn;
use guest_mm::prot::Access;
use guest_mm::protocol::Step;
use guest_mm::protocol::historical::InstallAfterUnlock;

use crate::race::damage::{Damage, Done};
use crate::race::scene::Scene;
use crate::race::stage::{left_ends, left_until, right_ends};
use crate::race::variant::{Play, Race, Variant};
use crate::race::world::{Size, World, block, only, page};

pub(in crate::race) const RACE: Race = Race {
    name: "continue-vs-zap",
    what: "a fault that fills a page meets an unmap of it",
    sides: ["fault", "unmap"],
    held: "the window shows the guest what the table maps",
    witness: None,
    variants: &[Variant {
        name: "install-after-unlock",
        what: "a leaf goes into the window when the lock on its table is released",
        lacks: Step::F5,
        steps: InstallAfterUnlock::STEPS,
        origin: "ours; KVM guards the same step since Linux e930bffe95e1",
        damage: STALE,
        // The unmap takes the whole page back between the unlock and the install.
        play: Play::Here {
            scene: &Touch,
            schedule: &[left_until(Step::F5), right_ends(), left_ends()],
        },
        witness: None,
        loom: "fault::model::continue_vs_zap_fails_when_the_install_comes_after_the_unlock",
    }],
};

const STALE: &str = "the window holds a page that the table has lost";

/// The page that is touched.
const PAGE: Gfn = page(0, 5);
/// A page that gets the same frame: there is but one block, and it is in the same place.
const NEIGHBOUR: Gfn = page(1, 5);
const SECRET: u64 = 1234;

/// A page is touched and taken away.
#[derive(Debug)]
struct Touch;

impl Scene for Touch {
    fn size(&self) -> Size {
        Size::blocks(2, 1)
    }

    fn prepare(&self, world: &World) -> Done {
        world.guest.unmap(block(0))?;
        world.guest.unmap(block(1))?;
        Ok(())
    }

    fn left(&self, world: &World) -> Done {
        world.guest.fault(PAGE.gpa(), Access::Write)?;
        Ok(())
    }

    fn right(&self, world: &World) -> Done {
        world.guest.unmap(only(PAGE))?;
        Ok(())
    }

    fn verdict(&self, world: &World) -> Done {
        world.guest.populate(only(NEIGHBOUR))?;
        world.write(NEIGHBOUR.gpa(), SECRET)?;
        let (at, neighbour) = (PAGE.gpa(), NEIGHBOUR.gpa());
        let seen = world.window.load(at);
        match world.read(at) {
            // The window may have asked for it just now.
            Ok(mapped) if mapped == seen => world.audit(),
            _ if seen == SECRET => {
                let what = format!(
                    "the frame of {at} was freed and given to {neighbour}; the guest reads {SECRET} at {at}, which was \
                     written to {neighbour}"
                );
                Err(Damage::new(STALE, what))
            }
            _ => Err(Damage::new(
                STALE,
                format!("the guest reads {seen} at {at}, which is not mapped"),
            )),
        }
    }
}
