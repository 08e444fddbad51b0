//! What moves the memory under test: collapses, splits, and pages that are put out of place.
//!
//! A block whose pages lie in order is only promoted, where nothing moves and nothing can be lost. What makes a collapse copy
//! is a page that lies elsewhere, and one is enough: the block's loose page.

use std::thread::sleep;
use std::time::Duration;

use guest_mm::Guest;
use guest_mm::addr::PageSize;
use guest_mm::collapse::{CollapseError, CollapsePolicy};
use guest_mm::fault::FaultError;
use guest_mm::pin::PinError;
use guest_mm::prot::Access;
use guest_mm::protocol::Protocol;
use guest_mm::split::SplitError;
use guest_mm::unmap::UnmapError;

use super::heckler::{Audience, Looks};
use super::place::Place;
use super::report::Collapses;
use super::sky::Sky;
use crate::race::dice::Dice;

/// After a look that found nothing to do: who looks again at once keeps the others from the tables' locks.
const NOTHING_TO_DO: Duration = Duration::from_micros(20);
/// Between two collapses of the collapser, so that most blocks lose their order before they are collapsed.
const BREATH: Duration = Duration::from_micros(300);
/// The pool is exhausted once in so many rounds.
const EXHAUSTION: u64 = 256;

/// Why pages could not be put out of place.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScatterError {
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    #[error(transparent)]
    Collapse(#[from] CollapseError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Fault(#[from] FaultError),
}

/// What the threads of the weather work on.
#[derive(Debug)]
pub(super) struct Weather<'a, P: Protocol> {
    pub(super) guest: &'a Guest<P>,
    pub(super) place: Place,
    pub(super) sky: &'a Sky,
    pub(super) audience: &'a Audience,
}

impl<P: Protocol> Clone for Weather<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Protocol> Copy for Weather<'_, P> {}

impl<P: Protocol> Weather<'_, P> {
    /// Collapses block after block.
    pub(super) fn collapse(self, mut dice: Dice) -> Result<Collapses, CollapseError> {
        let mut collapses = Collapses::default();
        while !self.sky.is_clear() {
            let block = dice.pick(0..self.place.nr_moved());
            self.collapse_one(block, &mut dice, &mut collapses)?;
            sleep(BREATH);
        }
        Ok(collapses)
    }

    /// Collapses block `index`; whether it changed.
    fn collapse_one(
        self,
        index: u64,
        dice: &mut Dice,
        collapses: &mut Collapses,
    ) -> Result<bool, CollapseError> {
        // A hole is where a loose page was.
        let max_holes = dice.pick(0..2) as u32;
        let policy = CollapsePolicy { max_holes, ..CollapsePolicy::default() };
        let done = self.guest.collapse(self.place.block(index), policy)?;
        collapses.add(&done);
        let changed = done.promoted + done.copied;
        if index >= self.place.nr_blocks() {
            collapses.rings += changed;
        }
        Ok(changed > 0)
    }

    /// Splits whatever is huge; how many blocks were.
    pub(super) fn split(self, mut dice: Dice) -> Result<u64, SplitError> {
        let mut splits = 0;
        while !self.sky.is_clear() {
            let block = self.place.block(dice.pick(0..self.place.nr_moved()));
            let split = self.guest.split(block, PageSize::Size4K)?;
            if split == 0 {
                sleep(NOTHING_TO_DO);
            }
            splits += split;
        }
        Ok(splits)
    }

    /// Keeps every loose page out of place: a block that was collapsed loses its order again at once. Blocks that a
    /// device was about to pin something of come first. How many pages, and what the collapses came to.
    pub(super) fn scatter(self, mut dice: Dice) -> Result<(u64, Collapses), ScatterError> {
        let (mut scattered, mut collapses) = (0, Collapses::default());
        let mut looks = Looks::default();
        for index in 0..self.place.nr_moved() {
            self.displace(index)?;
            scattered += 1;
        }
        while !self.sky.is_clear() {
            let any = dice.pick(0..self.place.nr_moved());
            let index = self.audience.stuck(&mut looks).unwrap_or(any);
            if self.collapse_one(index, &mut dice, &mut collapses)? {
                self.displace(index)?;
                scattered += 1;
            } else {
                sleep(NOTHING_TO_DO);
            }
            if dice.one_in(EXHAUSTION) {
                // Fails when nothing is left, and that is the aim.
                let _ = self.guest.populate(self.place.filler());
                self.guest.unmap(self.place.filler())?;
            }
        }
        Ok((scattered, collapses))
    }

    /// Puts the loose page of block `index` out of place. While a device has its frame, that frame is nobody's, and
    /// the page gets another.
    fn displace(self, index: u64) -> Result<(), ScatterError> {
        let loose = self.place.loose(index);
        let pinned = self.guest.pin(loose.into(), Access::Read)?;
        self.guest.unmap(loose)?;
        self.guest.populate(loose)?;
        drop(pinned);
        Ok(())
    }
}
