//! Which pages of a running machine's memory have changed.
//!
//! | who changes it | who notes it |
//! |---|---|
//! | a vCPU in the guest; KVM's emulator; KVM itself (its clock) | KVM's dirty log |
//! | a device, by DMA | the memory service, by frame ([`Guest::take_dirty`](guest_mm::Guest::take_dirty)) |
//! | this monitor as it runs ring 0 | [`Ram::wrote`](crate::ram::Ram::wrote), when a burst is over |
//! | nobody: what is given back reads as zeroes | the memory service ([`Guest::note_lost`](guest_mm::Guest::note_lost)) |
//!
//! A page is told at the latest when it is asked for after the change; while the guest runs, it may be told a little later, and
//! may have changed again by then. So the last look is one at a machine at rest: then nothing is missing.

use std::sync::Arc;

use guest_mm::addr::{GfnRange, Gpa};
use guest_mm::notes::Notes;

use crate::kvm::{KvmError, Vm};

use super::Live;
use super::memory::ServedRam;

/// Why changes are not noted.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// Somebody else has them noted.
    #[error(
        "the changes of this machine's memory are noted for somebody else already: a migration, or a snapshot with --track"
    )]
    Busy,
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Notes of the changes of one machine's memory, one at a time. They end when it is dropped.
#[derive(Debug)]
pub struct DirtyTracker {
    vm: Arc<Vm>,
    ram: Arc<ServedRam>,
    changed: Notes,
}

impl DirtyTracker {
    /// Has the changes of `live` noted from now on.
    ///
    /// # Errors
    /// [`DirtyError`]: nothing is noted.
    pub fn start(live: &Live) -> Result<DirtyTracker, DirtyError> {
        let (vm, ram) = live.memory();
        let changed = Notes::new(ram.guest().windows().map(|(range, _)| range));
        {
            let mut stores = ram.stores();
            if stores.is_some() {
                return Err(DirtyError::Busy);
            }
            *stores = Some(changed.clone());
        }
        let mut tracker = DirtyTracker { vm, ram, changed };
        tracker.ram.guest().note_lost();
        tracker.vm.log_dirty()?;
        // What was noted before is nobody's.
        tracker.collect()?;
        tracker.changed.clear();
        Ok(tracker)
    }

    /// Calls `see` for all that has changed since the start or the last call, in runs.
    ///
    /// # Errors
    /// [`KvmError`]: what was found is told the next time, and part may be lost: begin anew.
    pub fn take(&mut self, see: &mut impl FnMut(GfnRange)) -> Result<(), KvmError> {
        self.collect()?;
        self.changed.for_each_run(see);
        self.changed.clear();
        Ok(())
    }

    /// Ends the notes.
    pub fn stop(self) {}

    fn collect(&mut self) -> Result<(), KvmError> {
        let DirtyTracker { vm, ram, changed } = self;
        vm.take_dirty(|slot, words| {
            if let Ok(range) = GfnRange::from_bytes(Gpa::new(slot.gpa), slot.bytes) {
                changed.note_words(range, words);
            }
        })?;
        if let Some(stores) = &mut *ram.stores() {
            changed.take(stores);
        }
        let guest = ram.guest();
        guest.take_lost(changed);
        for (range, _) in guest.windows() {
            guest.take_dirty(range, |gfn| {
                changed.note(GfnRange::new(gfn, 1).expect("a page of the range"));
            });
        }
        Ok(())
    }
}

impl Drop for DirtyTracker {
    fn drop(&mut self) {
        // What fails costs the guest time, and nothing else.
        let _ = self.vm.ignore_dirty();
        self.ram.guest().ignore_lost();
        *self.ram.stores() = None;
    }
}

#[cfg(test)]
mod tests;
