//! The pages of a view that were used last: a queue's rings, the headers of its requests.

use std::cell::Cell;

use crate::addr::{FrameNo, Gfn};
use crate::prot::Access;

/// Pages that are remembered: the rings of a queue of 256 lie in three, and requests' headers and status bytes beside them.
const PAGES: usize = 8;

/// A page by the last bits of its number; none twice.
#[derive(Debug, Default)]
pub(super) struct Near([Cell<Option<Page>>; PAGES]);

/// What is known of a guest frame: what it is for this view.
#[derive(Clone, Copy, Debug)]
struct Page {
    gfn: Gfn,
    frame: FrameNo,
    access: Access,
}

impl Near {
    fn place(&self, gfn: Gfn) -> &Cell<Option<Page>> {
        &self.0[gfn.as_u64() as usize % PAGES]
    }

    /// The frame of `gfn`, if it is remembered for `access`. What is held for writing is so for reading too.
    #[inline]
    pub(super) fn find(&self, gfn: Gfn, access: Access) -> Option<FrameNo> {
        let page = self.place(gfn).get()?;
        let allows = page.access == Access::Write || access == Access::Read;
        (page.gfn == gfn && allows).then_some(page.frame)
    }

    /// `gfn` is held as `frame` for `access`; as far as the view has it for writing, that is what counts.
    pub(super) fn note(&self, gfn: Gfn, frame: FrameNo, access: Access) {
        let place = self.place(gfn);
        if place.get().is_some_and(|page| page.gfn == gfn && page.access == Access::Write) {
            return;
        }
        place.set(Some(Page { gfn, frame, access }));
    }

    /// Remembers nothing.
    pub(super) fn forget(&self) {
        self.0.iter().for_each(|place| place.set(None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_for_writing_is_what_is_read() {
        let near = Near::default();
        let (gfn, one, other) = (Gfn::new(9), FrameNo::new(1), FrameNo::new(2));
        assert_eq!(near.find(gfn, Access::Read), None);
        near.note(gfn, one, Access::Read);
        assert_eq!(
            (near.find(gfn, Access::Read), near.find(gfn, Access::Write)),
            (Some(one), None)
        );
        near.note(gfn, other, Access::Write);
        near.note(gfn, one, Access::Read);
        assert_eq!(near.find(gfn, Access::Read), Some(other));
        near.forget();
        assert_eq!(near.find(gfn, Access::Write), None);
    }

    #[test]
    fn pages_that_share_a_place_displace_each_other() {
        let near = Near::default();
        let (one, other) = (Gfn::new(3), Gfn::new(3 + PAGES as u64));
        near.note(one, FrameNo::new(1), Access::Write);
        near.note(other, FrameNo::new(2), Access::Write);
        assert_eq!(near.find(one, Access::Read), None);
        assert_eq!(near.find(other, Access::Read), Some(FrameNo::new(2)));
    }
}
