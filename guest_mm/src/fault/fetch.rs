//! Pages that are still elsewhere, asked for together.

use std::task::Waker;

use crate::addr::Gfn;
use crate::entry::{Entry, Marker};
use crate::prot::Access;
use crate::protocol::Protocol;
use crate::space::AddressSpace;
use crate::wait::Wait;

use super::{Filled, fault, walk};

/// Asks for those of `pages` that are missing, all of them, without waiting: a wait for them, which wakes `waker`. None if
/// nothing is to be waited for: nothing of them is missing, or it will never come, which a fault finds out.
pub(crate) fn fetch<P: Protocol>(
    space: &AddressSpace<P>,
    pages: impl IntoIterator<Item = Gfn>,
    waker: &Waker,
) -> Option<Wait> {
    // Without a pager, a missing page stops whoever touches it. A look at the count is no look at the page, but nothing is marked
    // once the guest runs: none is none for good.
    if space.pager.is_none() || !space.table.has_any(Marker::Missing) {
        return None;
    }
    let mut wait: Option<Wait> = None;
    for gfn in pages {
        // N1 of `wait-vs-arrival`
        if walk(space, gfn).entry != Entry::Marker(Marker::Missing) {
            continue;
        }
        let wait = wait.get_or_insert_with(|| space.waits.begin(waker));
        // N2, N3
        if wait.note(gfn) && !matches!(fault(space, gfn.gpa(), Access::Read), Ok(Filled::Asked)) {
            wait.strike();
        }
    }
    // N4
    wait.and_then(Wait::seal)
}
