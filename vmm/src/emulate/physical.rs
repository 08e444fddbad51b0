//! Guest-physical memory as a vCPU has it: through its window.
#![allow(unsafe_code, reason = "the window's addresses become slices")]

use std::cell::RefCell;

use vm_memory::VolatileSlice;

use crate::kvm::Slot;
use crate::ram::Ram;

use super::linear::Trouble;

/// A guest's RAM, for an instruction of one of its vCPUs.
///
/// The window is the guest's: nobody else in this process touches it, and an instruction that is carried out here is the
/// guest. So it sees what KVM's own accesses see. What is absent comes as a violation, what is zapped is gone at once, and
/// no page has to be pinned.
///
/// Pages that it may have stored to are told when it is over, which is before its vCPU rests. No translation for a store may
/// outlive it untold.
pub(super) struct Physical<'r> {
    ram: &'r dyn Ram,
    slots: Vec<Slot>,
    /// Guest-physical addresses of pages that were asked for to be written to.
    written: RefCell<Vec<u64>>,
}

impl Drop for Physical<'_> {
    fn drop(&mut self) {
        let written = self.written.get_mut();
        if !written.is_empty() {
            self.ram.wrote(written);
        }
    }
}

impl<'r> Physical<'r> {
    pub(super) fn of(ram: &'r dyn Ram) -> Physical<'r> {
        Physical { ram, slots: ram.slots(), written: RefCell::default() }
    }

    /// Whether there is RAM at `gpa`.
    pub(super) fn holds(&self, gpa: u64) -> bool {
        self.slots.iter().any(|slot| (slot.gpa..slot.gpa + slot.bytes).contains(&gpa))
    }

    /// The page at `gpa`, which was asked for before, may be stored to from now on.
    pub(super) fn will_write(&self, gpa: u64) {
        self.written.borrow_mut().push(gpa);
    }

    /// `bytes` bytes at `gpa`, which lie in one page.
    ///
    /// # Errors
    /// [`Trouble::Absent`]: there is no such RAM, or the memory service does not give it.
    pub(super) fn slice(
        &self,
        gpa: u64,
        bytes: usize,
        write: bool,
    ) -> Result<VolatileSlice<'r>, Trouble> {
        let holds = |slot: &&Slot| (slot.gpa..slot.gpa + slot.bytes).contains(&gpa);
        let slot = self.slots.iter().find(holds).ok_or(Trouble::Absent(gpa))?;
        if !self.ram.ready(gpa, write) {
            return Err(Trouble::Absent(gpa));
        }
        if write {
            self.will_write(gpa);
        }
        let host = slot.hva + (gpa - slot.gpa);
        // SAFETY: a slot is mapped as long as its RAM, which `'r` borrows; slots end with a page, and the bytes do not
        // leave theirs. Others change them at any time, as a `VolatileSlice` allows.
        Ok(unsafe { VolatileSlice::new(host as *mut u8, bytes) })
    }
}
