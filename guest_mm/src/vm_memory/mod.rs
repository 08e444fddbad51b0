//! A guest's memory as the crate `vm-memory` has it, for device models that are written against that:
//! `virtio-queue` and what is built on it work on a [`GuestView`] as they are.
//!
//! `vm-memory` lends slices for as long as the memory is borrowed, and nobody says when a device is done with
//! one. So what a view lends it pins, and it unpins everything at once, when it is dropped. Meanwhile it
//! knows what it has pinned: a queue's rings, a descriptor table or a buffer are walked to and pinned once
//! for a view, and not for each access to them.

mod held;
mod near;

use std::cell::RefCell;
use std::io::{Error as IoError, ErrorKind};
use std::iter::FusedIterator;
use std::rc::Rc;

use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryResult, GuestRegionMmap, Permissions, VolatileSlice,
};

use crate::addr::{GfnRange, Gpa, GpaRange};
use crate::entry::{Entry, Marker};
use crate::fault::FaultError;
use crate::geometry::{FRAME_BYTES, Level};
use crate::pin::{PinError, slice};
use crate::prot::Access;
use crate::protocol::{Protocol, Sound};
use crate::service::Guest;
use crate::space::AddressSpace;

use held::Held;
use near::Near;

/// A guest's memory for one request of a device, or for one burst of them: what is used through it is
/// pinned until it is dropped. Keep none for longer, because pages that are pinned cannot be moved, so the
/// collapser leaves their blocks as they are; and what the guest gave up meanwhile stays in the pool.
///
/// A view is a device with an IOTLB: a page that it has used once stays the same page for it, whatever the
/// guest address leads to later. Dropping the view is the invalidation. What was lent for writing counts as
/// written by a device ([`Guest::take_dirty`]) from then on.
///
/// A range that is not RAM is refused with [`GuestMemoryError::InvalidGuestAddress`] and the first address
/// that is not; a page that does not allow the access, a guard page or an exhausted pool with
/// [`GuestMemoryError::IOError`], which holds the [`PinError`]. A range is lent whole or not at all: where
/// part of it is refused, nothing of it is read or written.
#[derive(Debug)]
pub struct GuestView<'g, P: Protocol = Sound> {
    space: &'g AddressSpace<P>,
    held: RefCell<Held<'g, P>>,
    near: Near,
}

impl<P: Protocol> Guest<P> {
    /// The memory as device models that are written against `vm-memory` use it, for one request or one
    /// burst: see [`GuestView`].
    pub fn view(&self) -> GuestView<'_, P> {
        GuestView::new(self.space())
    }
}

impl<'g, P: Protocol> GuestView<'g, P> {
    pub(crate) fn new(space: &'g AddressSpace<P>) -> GuestView<'g, P> {
        GuestView { space, held: RefCell::new(Held::new(space)), near: Near::default() }
    }

    /// Pins what of `range` is not yet; the range is RAM all of it.
    fn hold(&self, range: GpaRange, access: Access) -> Result<(), PinError> {
        // Before anything is faulted in: a device is told any address and length by its guest.
        if let Some(gpa) = self.first_not_ram(range.frames()) {
            return Err(FaultError::NotRam { gpa, access }.into());
        }
        let frames = range.frames();
        self.held.borrow_mut().hold(frames, access)?;
        if frames.frames() == 1 {
            let frame = self.held.borrow().piece(frames.start(), 1, access).first;
            self.near.note(frames.start(), frame, access);
        } else if access == Access::Write {
            // Some of them may have been another page until now.
            self.near.forget();
        }
        Ok(())
    }

    /// The bytes at `gpa`, if they lie in a page that was used a short time ago.
    #[inline]
    fn found(&self, gpa: Gpa, bytes: u64, access: Access) -> Option<VolatileSlice<'_>> {
        let offset = gpa.frame_offset() as u64;
        if bytes == 0 || bytes > FRAME_BYTES - offset {
            return None;
        }
        let frame = self.near.find(gpa.gfn(), access)?;
        Some(slice(&self.space.pool, (frame, offset, bytes)))
    }

    /// The first address of `range` that is not RAM.
    fn first_not_ram(&self, range: GfnRange) -> Option<Gpa> {
        let mut gfn = range.start();
        while gfn < range.end() {
            match self.space.region(gfn) {
                Some(region) => gfn = region.range.end(),
                None => return Some(gfn.gpa()),
            }
        }
        None
    }

    /// Whether nothing of `range`, which is RAM, forbids `access`. Absent pages, and those that were
    /// given back, do not: they are faulted in, and those that are elsewhere waited for.
    fn allows(&self, range: GfnRange, access: Access) -> bool {
        let mut gfn = range.start();
        while gfn < range.end() {
            // Waits for a collapse that has the page table.
            let cursor = self.space.table.cursor_on(gfn, Level::PT);
            let end = range.end().min(cursor.range().end());
            while gfn < end {
                match cursor.entry(gfn) {
                    Entry::Absent | Entry::Marker(Marker::Returned) => {}
                    Entry::Marker(Marker::Missing) if self.space.pager.is_some() => {}
                    Entry::Leaf(leaf) if leaf.prot.allows(access) => {}
                    Entry::Leaf(_) | Entry::Marker(_) => return false,
                    // Looked at from its own table, which is below this one.
                    Entry::Table(_) | Entry::Frozen(_) => break,
                }
                gfn = GfnRange::entry(gfn, cursor.level()).end();
            }
        }
        true
    }
}

/// What a device that asks for `permissions` does. Memory that is lent is always there to be read.
fn access(permissions: Permissions) -> Access {
    if permissions.has_write() { Access::Write } else { Access::Read }
}

/// The bytes that a device names; none if it names none.
fn named(addr: GuestAddress, count: usize) -> GuestMemoryResult<Option<GpaRange>> {
    if count == 0 {
        return Ok(None);
    }
    let range = GpaRange::new(Gpa::new(addr.0), count as u64);
    range.map(Some).map_err(|_| GuestMemoryError::InvalidGuestAddress(addr))
}

fn refused(error: PinError) -> GuestMemoryError {
    let kind = match &error {
        PinError::Fault(FaultError::NotRam { gpa, .. }) => {
            return GuestMemoryError::InvalidGuestAddress(GuestAddress(gpa.as_u64()));
        }
        PinError::Fault(FaultError::ReadOnly { .. } | FaultError::Marked { .. }) => {
            ErrorKind::PermissionDenied
        }
        PinError::Fault(FaultError::Exhausted { .. } | FaultError::OutOfTables(_)) => {
            ErrorKind::OutOfMemory
        }
        _ => ErrorKind::Other,
    };
    GuestMemoryError::IOError(IoError::new(kind, error))
}

impl<P: Protocol> GuestMemory for GuestView<'_, P> {
    type PhysicalMemory = NoBackend;
    /// What devices write is noted with their pins.
    type Bitmap = ();

    /// Pins nothing and faults nothing in.
    fn check_range(&self, addr: GuestAddress, count: usize, permissions: Permissions) -> bool {
        let Ok(range) = named(addr, count) else { return false };
        range.is_none_or(|range| {
            let frames = range.frames();
            self.first_not_ram(frames).is_none() && self.allows(frames, access(permissions))
        })
    }

    #[inline]
    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        permissions: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        let (access, next) = (access(permissions), Gpa::new(addr.0));
        if let Some(first) = self.found(next, count as u64, access) {
            return Ok(Slices { view: self, first: Some(first), next, left: 0, access });
        }
        if let Some(range) = named(addr, count)? {
            self.hold(range, access).map_err(refused)?;
        }
        Ok(Slices { view: self, first: None, next, left: count as u64, access })
    }
}

/// The pieces of a range that is held, as few as its frames allow.
struct Slices<'a, 'g, P: Protocol> {
    view: &'a GuestView<'g, P>,
    /// The first piece, where it was found already: most ranges are one.
    first: Option<VolatileSlice<'a>>,
    next: Gpa,
    left: u64,
    access: Access,
}

impl<'a, P: Protocol> Iterator for Slices<'a, '_, P> {
    type Item = GuestMemoryResult<VolatileSlice<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        if self.left == 0 {
            return None;
        }
        let offset = self.next.frame_offset() as u64;
        let wanted = (offset + self.left).div_ceil(FRAME_BYTES);
        let piece = self.view.held.borrow().piece(self.next.gfn(), wanted, self.access);
        let bytes = (piece.frames * FRAME_BYTES - offset).min(self.left);
        self.next = Gpa::new(self.next.as_u64() + bytes);
        self.left -= bytes;
        Some(Ok(slice(&self.view.space.pool, (piece.first, offset, bytes))))
    }
}

impl<P: Protocol> FusedIterator for Slices<'_, '_, P> {}

impl<'a, P: Protocol> GuestMemorySliceIterator<'a, ()> for Slices<'a, '_, P> {}

/// Where `vm-memory` wants to know the memory behind a translation: there is none to be had. The pool's frames
/// have no guest addresses, and the windows are the guest's.
#[derive(Debug)]
pub enum NoBackend {}

impl GuestMemoryBackend for NoBackend {
    type R = GuestRegionMmap<()>;

    fn iter(&self) -> impl Iterator<Item = &Self::R> {
        std::iter::empty()
    }
}

/// For device models that are given an address space and ask it for its memory when a request comes: each time
/// they get a view of their own, which ends with the last clone of what they got.
impl<'g, P: Protocol> GuestAddressSpace for &'g Guest<P> {
    type M = GuestView<'g, P>;
    type T = Rc<GuestView<'g, P>>;

    fn memory(&self) -> Self::T {
        Rc::new(Guest::view(self))
    }
}
