//! What the two sides of a race do.

use guest_mm::protocol::Protocol;

use super::damage::Done;
use super::world::{Size, World};

/// Two sides that meet on one guest's memory. What a side returns as an error it found out itself.
pub(super) trait Scene: 'static {
    /// The memory that it takes.
    const SIZE: Size;

    /// Makes memory what it has to be before the sides begin, whatever they have left of it the last time.
    fn prepare<P: Protocol>(world: &World<P>) -> Done;

    /// One side, once.
    fn left<P: Protocol>(world: &World<P>) -> Done;

    /// The other side, once.
    fn right<P: Protocol>(world: &World<P>) -> Done;

    /// Looks for damage when both sides are through, in whichever order they were.
    fn verdict<P: Protocol>(world: &World<P>) -> Done;
}
