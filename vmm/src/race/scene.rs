//! What the two sides of a race do.

use std::fmt::Debug;

use super::damage::Done;
use super::stage::Side;
use super::world::{Size, World};

/// Two sides that meet on one guest's memory. What a side returns as an error it found out itself.
pub(super) trait Scene: Debug + Sync {
    /// The memory that it takes.
    fn size(&self) -> Size;

    /// Makes memory what it has to be before the sides begin, whatever they have left of it the last time.
    fn prepare(&self, world: &World) -> Done;

    /// One side, once.
    fn left(&self, world: &World) -> Done;

    /// The other side, once.
    fn right(&self, world: &World) -> Done;

    /// Looks for damage when both sides are through, in whichever order they were.
    fn verdict(&self, world: &World) -> Done;
}

impl dyn Scene {
    /// What `side` does, once.
    pub(super) fn play(&self, side: Side, world: &World) -> Done {
        match side {
            Side::Left => self.left(world),
            Side::Right => self.right(world),
        }
    }
}
