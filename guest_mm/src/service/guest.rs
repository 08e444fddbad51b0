//! One guest's face.

use std::sync::{Arc as Shared, OnceLock};

use crate::addr::{Gfn, GfnRange, Gpa, GpaRange, Hva, PageSize};
use crate::audit::{AuditError, audit, audit_torn_down};
use crate::background::Workplace;
use crate::collapse::{
    self, CollapseError, CollapsePolicy, CollapseReport, Collapser, CollapserConfig, CollapserStats,
};
use crate::copy::{self, NotMapped, Written};
use crate::dedup::Scanner;
use crate::dirty;
use crate::entry::Marker;
use crate::fault::{self, FaultError, Filled};
use crate::lift::{self, Held};
use crate::map::{MemoryMap, map};
use crate::mark::{self, MarkError};
use crate::mirror::MirrorError;
use crate::mirrors::uffd::{FaultThreads, Uffd};
use crate::notes::Notes;
use crate::pin::{self, Patience, PinBatch, PinError, Pinned};
use crate::place;
use crate::prot::{Access, Prot};
use crate::protect::{self, ProtectError};
use crate::protocol::{Protocol, Sound};
use crate::share::{self, MergeError};
use crate::space::AddressSpace;
use crate::split::{self, SplitError};
use crate::stats::Stats;
use crate::sync::Arc;
use crate::unmap::{self, GiveBackError, GivenBack, TakeBackError, UnmapError};

use super::expected::Expected;
use super::{Pinner, Reclaimer, WriteError};

/// One guest's memory. Dropping it takes the guest down; [`Guest::close`] also says whether the books
/// were right.
#[derive(Debug)]
pub struct Guest<P: Protocol = Sound> {
    space: Shared<AddressSpace<P>>,
    mirror: Arc<Uffd>,
    threads: Option<FaultThreads>,
    collapser: Option<Collapser>,
    /// Who looks for pages of the same bytes, in this guest too.
    scanner: Shared<Workplace<Scanner<P>>>,
    /// What it is going to touch soon, if that is known.
    pub(super) expected: Shared<OnceLock<Expected>>,
}

impl<P: Protocol> Guest<P> {
    pub(super) fn new(
        space: Shared<AddressSpace<P>>,
        mirror: Arc<Uffd>,
        threads: FaultThreads,
        scanner: Shared<Workplace<Scanner<P>>>,
        expected: Shared<OnceLock<Expected>>,
    ) -> Guest<P> {
        Guest { space, mirror, threads: Some(threads), collapser: None, scanner, expected }
    }

    /// Where the RAM is in this process, for KVM's memory slots. Nothing else may use these addresses,
    /// and they end with the guest: close the VM first.
    pub fn windows(&self) -> impl Iterator<Item = (GfnRange, Hva)> {
        self.mirror.windows()
    }

    /// Serves a violation as a fault thread would.
    ///
    /// # Errors
    /// [`FaultError`]: the access cannot be made.
    pub fn fault(&self, gpa: Gpa, access: Access) -> Result<Filled, FaultError> {
        self.expected.get().into_iter().for_each(|it| it.touched(&self.space, gpa.gfn()));
        fault::fault(&self.space, gpa, access)
    }

    /// Fills every absent page of `range`, which is RAM, and where the policy is to fill blocks the rest of its
    /// blocks too; how many pages were filled.
    ///
    /// # Errors
    /// [`FaultError`]; pages before the one that it names are filled.
    pub fn populate(&self, range: GfnRange) -> Result<u64, FaultError> {
        fault::populate(&self.space, range)
    }

    /// Copies bytes into populated memory. Pages that others use too become the guest's own first.
    ///
    /// # Errors
    /// [`WriteError`]: bytes before the address that it names are written.
    pub fn write(&self, gpa: Gpa, from: &[u8]) -> Result<(), WriteError> {
        let mut done = 0;
        while done < from.len() {
            let at = gpa.checked_add(done as u64).ok_or(NotMapped { gpa })?;
            match copy::write(&self.space, at, &from[done..])? {
                Written::All => break,
                Written::UpToShared { at, bytes } => {
                    fault::unshare(&self.space, at)?;
                    done += bytes;
                }
            }
        }
        Ok(())
    }

    /// Gives the guest a page of its own for every page of `range` that others use too.
    ///
    /// # Errors
    /// [`FaultError`]; pages before the one that it names are done.
    pub fn unmerge(&self, range: GfnRange) -> Result<(), FaultError> {
        fault::unmerge(&self.space, range)
    }

    /// Takes the page at `gfn` away if it is all zeroes: its next touch reads zeroes again.
    ///
    /// # Errors
    /// [`MergeError`]: the page stays.
    pub fn drop_zeroes(&self, gfn: Gfn) -> Result<(), MergeError> {
        share::drop_zeroes(&self.space, gfn)
    }

    /// Copies the pages from `first` on, all in one block, to `into`, a page each. Bytes of `into` stay what they are where a
    /// page has none. What each page holds.
    ///
    /// # Errors
    /// [`FaultError`]: a page over an image cannot be read.
    ///
    /// # Panics
    /// If `into` is no number of whole pages, or reaches out of the block.
    pub fn lift(&self, first: Gfn, into: &mut [u8]) -> Result<Vec<Held>, FaultError> {
        lift::lift(&self.space, first, into)
    }

    /// The runs of pages that may hold anything but zeroes, in order.
    pub fn holding(&self) -> Vec<GfnRange> {
        lift::holding(&self.space)
    }

    /// Whether no page of `range`, all in one block, holds bytes. While others fill pages, right for a moment.
    pub fn holds_nothing(&self, range: GfnRange) -> bool {
        lift::holds_nothing(&self.space, range)
    }

    /// The runs of pages that are to come from elsewhere, in order.
    pub fn missing(&self) -> Vec<GfnRange> {
        lift::missing(&self.space)
    }

    /// Lets those ask again that wait for a page of `range`: perhaps it will never come.
    ///
    /// # Errors
    /// The window could not be changed: who waits goes on waiting.
    pub fn wake(&self, range: GfnRange) -> Result<(), MirrorError> {
        place::wake(&self.space, range)
    }

    /// Copies bytes out of populated memory.
    ///
    /// # Errors
    /// [`NotMapped`]: part of it is not populated.
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), NotMapped> {
        copy::read(&self.space, gpa, into)
    }

    /// Pins `range` for a device. Pages that are not there are faulted in.
    ///
    /// # Errors
    /// [`PinError`]: nothing is pinned.
    #[inline(always)]
    pub fn pin(&self, range: GpaRange, access: Access) -> Result<Pinned<'_>, PinError> {
        pin::pin(&self.space, range, access, None)
    }

    /// As [`Guest::pin`], waiting for pages no longer than `patience` lasts.
    ///
    /// # Errors
    /// [`PinError`]: nothing is pinned.
    pub fn pin_within(
        &self,
        range: GpaRange,
        access: Access,
        patience: &Patience,
    ) -> Result<Pinned<'_>, PinError> {
        pin::pin(&self.space, range, access, Some(patience))
    }

    /// A batch to pin many ranges with, empty.
    pub fn pin_batch(&self) -> PinBatch<'_, P> {
        PinBatch::new(&self.space)
    }

    /// The right to pin its memory, for device threads that come and go by themselves.
    pub fn pinner(&self) -> Pinner<P> {
        Pinner::new(Shared::clone(&self.space))
    }

    /// The right to give its memory back, likewise.
    pub fn reclaimer(&self) -> Reclaimer<P> {
        Reclaimer::new(Shared::clone(&self.space))
    }

    /// How many frames the pool has in which it lies.
    pub fn pool_frames(&self) -> u64 {
        self.space.pool.nr_frames()
    }

    /// Its memory, for the faces beside this one.
    pub(crate) fn space(&self) -> &AddressSpace<P> {
        &self.space
    }

    /// Takes `range` away; its next touch reads zeroes, or the image that it lies over. How many frames it had: they are back in the pool, but
    /// for those that a device has pinned, which follow when it lets go.
    ///
    /// # Errors
    /// [`UnmapError`].
    pub fn unmap(&self, range: GfnRange) -> Result<u64, UnmapError> {
        unmap::unmap(&self.space, range)
    }

    /// The guest does not need `range`: its pages leave the table and the pool, and what nobody else uses goes back to the host.
    /// A touch of the guest's, a pin, or a page that is placed there fills them again, one page at a time, with zeroes, also
    /// over an image. Nobody else does, a collapse least of all. Guard and poisoned pages stay what they are; what was
    /// to come from elsewhere is not waited for.
    ///
    /// What a device has pinned is free when it lets go. The memory for it stays with the pool.
    ///
    /// # Errors
    /// [`GiveBackError`]. A range that is refused for what it is has not changed; blocks before one that failed are given
    /// back.
    pub fn give_back(&self, range: GfnRange) -> Result<GivenBack, GiveBackError> {
        unmap::give_back(&self.space, range)
    }

    /// The guest wants `range` again: what is still as it was given back is untouched from now on, as after
    /// [`Guest::unmap`]. How many pages that were. Nothing is filled.
    ///
    /// # Errors
    /// [`TakeBackError`].
    pub fn take_back(&self, range: GfnRange) -> Result<u64, TakeBackError> {
        unmap::take_back(&self.space, range)
    }

    /// Gives what is mapped in `range` other rights.
    ///
    /// # Errors
    /// [`ProtectError`].
    pub fn protect(&self, range: GfnRange, prot: Prot) -> Result<(), ProtectError> {
        protect::protect(&self.space, range, prot)
    }

    /// Splits leaves of `range` that are larger than `size`; how many.
    ///
    /// # Errors
    /// [`SplitError`].
    pub fn split(&self, range: GfnRange, size: PageSize) -> Result<u64, SplitError> {
        split::split(&self.space, range, size)
    }

    /// Marks `range`, which is untouched.
    ///
    /// # Errors
    /// [`MarkError`].
    pub fn mark(&self, range: GfnRange, marker: Marker) -> Result<(), MarkError> {
        mark::mark(&self.space, range, marker)
    }

    /// Maps every block that `range` touches by one huge leaf, as far as `policy` allows.
    ///
    /// # Errors
    /// [`CollapseError`]; blocks before the one that failed are done.
    pub fn collapse(
        &self,
        range: GfnRange,
        policy: CollapsePolicy,
    ) -> Result<CollapseReport, CollapseError> {
        collapse::collapse(&self.space, range, policy)
    }

    /// Starts a thread that looks for blocks to collapse, until the guest goes; one that was started before
    /// ends.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start_collapser(&mut self, config: CollapserConfig) -> std::io::Result<()> {
        self.collapser = None;
        self.collapser = Some(Collapser::start(&self.space, config)?);
        Ok(())
    }

    /// Lets that thread rest. A block that it is at work on is done when this returns.
    pub fn pause_collapser(&self) {
        self.collapser.iter().for_each(Collapser::pause);
    }

    /// Lets that thread go on.
    pub fn resume_collapser(&self) {
        self.collapser.iter().for_each(Collapser::resume);
    }

    /// What that thread did, if there is one.
    pub fn collapser_stats(&self) -> Option<CollapserStats> {
        self.collapser.as_ref().map(Collapser::stats)
    }

    /// Calls `see` for every page of `range` that a device has written since this was last asked. Pages
    /// that a device has pinned now are told again the next time.
    pub fn take_dirty(&self, range: GfnRange, see: impl FnMut(Gfn)) {
        dirty::take(&self.space, range, see);
    }

    /// Its RAM, in order.
    pub fn ram(&self) -> Vec<GfnRange> {
        let mut ranges: Vec<_> = self.space.ram.iter().map(|region| region.range).collect();
        ranges.sort_unstable_by_key(|range| range.start());
        ranges
    }

    /// How many pages of RAM it has.
    pub fn ram_frames(&self) -> u64 {
        self.space.ram_frames()
    }

    /// Notes from now on which pages read otherwise though neither a vCPU nor a device wrote to them: those that the guest gave
    /// back, or took back, and those that were unmapped.
    pub fn note_lost(&self) {
        *self.space.lost.lock() = Some(Notes::new(self.space.ram.iter().map(|ram| ram.range)));
    }

    /// Adds those notes to `notes`, which are of the ranges of [`Guest::windows`], and begins anew.
    pub fn take_lost(&self, notes: &mut Notes) {
        if let Some(lost) = &mut *self.space.lost.lock() {
            notes.take(lost);
        }
    }

    /// Notes that no more.
    pub fn ignore_lost(&self) {
        *self.space.lost.lock() = None;
    }

    /// Whether all of `range` is RAM.
    pub fn is_ram(&self, range: GfnRange) -> bool {
        self.space.is_ram(range)
    }

    /// What the service did so far.
    pub fn stats(&self) -> Stats {
        let messages = self.threads.as_ref().map(FaultThreads::stats).unwrap_or_default();
        let collapser = self.collapser_stats();
        let notes = self.scanner.visit().metadata_bytes(&self.space);
        let stats = Stats::of(&self.space, messages);
        Stats { collapser, metadata_bytes: stats.metadata_bytes + notes, ..stats }
    }

    /// What each block holds.
    pub fn memory_map(&self) -> MemoryMap {
        map(&self.space)
    }

    /// Checks the books. Only at rest.
    ///
    /// # Errors
    /// The first wrong book.
    pub fn audit(&self) -> Result<(), AuditError> {
        let _rests = self.scanner.visit();
        audit(&self.space).map(|_| ())
    }

    /// Takes the guest down: no fault is served any more, all memory goes back to the pool, and the
    /// books are checked. No vCPU may run.
    ///
    /// # Errors
    /// What is left, or wrong.
    pub fn close(mut self) -> Result<(), AuditError> {
        self.rest();
        let books = audit(&self.space);
        self.take_down()?;
        books.map(|_| ())
    }

    /// Nobody changes its memory by itself any more.
    fn end_helpers(&mut self) {
        self.collapser = None;
        self.scanner.visit().leave(&self.space);
    }

    /// Serves no fault any more, and waits for those that are being served: a fault thread may still be
    /// filling the rest of a block when its vCPU has ended long ago. No vCPU may run.
    pub fn rest(&mut self) {
        self.end_helpers();
        if let Some(threads) = &mut self.threads {
            threads.stop();
        }
    }

    fn take_down(&mut self) -> Result<(), AuditError> {
        self.end_helpers();
        drop(self.threads.take());
        unmap::unmap_all(&self.space).map_err(|error| AuditError::Teardown(error.to_string()))?;
        // What was shared with nobody else.
        self.scanner.visit().prune();
        audit_torn_down(&self.space)
    }
}

impl<P: Protocol> Drop for Guest<P> {
    fn drop(&mut self) {
        if self.threads.is_some()
            && let Err(error) = self.take_down()
            && !std::thread::panicking()
        {
            panic!("a guest's memory could not be taken down: {error}");
        }
    }
}
