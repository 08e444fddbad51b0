//! The memory that an instruction names: linear addresses, and what lies under them.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use vm_memory::{Bytes, VolatileMemory, VolatileSlice};

use super::exception::Exception;

/// The size that a translation is good for, whatever the page is.
pub(super) const PAGE: u64 = 4096;

/// What an instruction does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It is read.
    Read,
    /// It is written, perhaps after it was read.
    Write,
    /// It is the instruction.
    Fetch,
}

/// Why an instruction was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It raised this.
    Raised(Exception),
    /// It touches what is no RAM: a device's registers, or nothing.
    Absent(u64),
    /// It changes what may be an entry of a page table that KVM has a shadow of.
    Table,
    /// Nothing here knows it.
    Unknown,
    /// KVM does not tell, or take, a part of the vCPU's state.
    State(&'static str),
}

impl From<Exception> for Trouble {
    fn from(exception: Exception) -> Trouble {
        Trouble::Raised(exception)
    }
}

/// Memory by linear address.
pub(crate) trait Linear {
    /// Lends `bytes` bytes at `address`, which lie in one page.
    ///
    /// # Errors
    /// The access is not allowed, or there is nothing.
    fn with(
        &self,
        address: u64,
        bytes: usize,
        access: Access,
        act: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<(), Trouble>;

    /// Loads `width` bytes, at most eight, at any address.
    ///
    /// # Errors
    /// As [`Linear::with`].
    fn load(&self, address: u64, width: usize) -> Result<u64, Trouble> {
        load_in(self, address, width)
    }

    /// Stores the low `width` bytes of `value`, at most eight, at any address.
    ///
    /// # Errors
    /// As [`Linear::with`].
    fn store(&self, address: u64, width: usize, value: u64) -> Result<(), Trouble> {
        self.write(address, &value.to_le_bytes()[..width])
    }

    /// Replaces `width` bytes (1, 2, 4 or 8) by what `change` makes of them, in one step for every other vCPU and device;
    /// gives what was there. `change` may be called again when somebody else was faster.
    ///
    /// # Errors
    /// As [`Linear::with`]; [`Trouble::Unknown`] when they are not aligned to their width, where a bus lock would be needed.
    fn exchange(
        &self,
        address: u64,
        width: usize,
        change: &mut dyn FnMut(u64) -> u64,
    ) -> Result<u64, Trouble> {
        exchange_in(self, address, width, change)
    }

    /// Copies out, over any number of pages.
    ///
    /// # Errors
    /// As [`Linear::with`].
    fn read(&self, address: u64, into: &mut [u8], access: Access) -> Result<(), Trouble> {
        for (at, part) in parts(address, into.len()) {
            let piece = &mut into[part];
            self.with(at, piece.len(), access, &mut |slice| {
                slice.read_slice(piece, 0).expect("the slice is as long as was asked for");
            })?;
        }
        Ok(())
    }

    /// Copies in. Nothing is written when a part cannot be.
    ///
    /// # Errors
    /// As [`Linear::with`].
    fn write(&self, address: u64, from: &[u8]) -> Result<(), Trouble> {
        if parts(address, from.len()).count() > 1 {
            for (at, part) in parts(address, from.len()) {
                self.with(at, part.len(), Access::Write, &mut |_| ())?;
            }
        }
        for (at, part) in parts(address, from.len()) {
            let piece = &from[part];
            self.with(at, piece.len(), Access::Write, &mut |slice| {
                slice.write_slice(piece, 0).expect("the slice is as long as was asked for");
            })?;
        }
        Ok(())
    }
}

/// [`Linear::load`] by [`Linear::read`]: over the end of a page, and of an odd width, too.
///
/// # Errors
/// As there.
#[cold]
pub(super) fn load_in<L: Linear + ?Sized>(
    memory: &L,
    address: u64,
    width: usize,
) -> Result<u64, Trouble> {
    let mut raw = [0; 8];
    memory.read(address, &mut raw[..width], Access::Read)?;
    Ok(u64::from_le_bytes(raw))
}

/// [`Linear::exchange`] by [`Linear::with`].
///
/// # Errors
/// As there.
pub(super) fn exchange_in<L: Linear + ?Sized>(
    memory: &L,
    address: u64,
    width: usize,
    change: &mut dyn FnMut(u64) -> u64,
) -> Result<u64, Trouble> {
    if !matches!(width, 1 | 2 | 4 | 8) || !address.is_multiple_of(width as u64) {
        return Err(Trouble::Unknown);
    }
    let mut old = 0;
    memory.with(address, width, Access::Write, &mut |slice| {
        old = exchanged(&slice, width, change);
    })?;
    Ok(old)
}

/// Replaces the integer in `slice`, which is aligned; what it was.
fn exchanged(slice: &VolatileSlice<'_>, width: usize, change: &mut dyn FnMut(u64) -> u64) -> u64 {
    macro_rules! update {
        ($atomic:ty, $int:ty) => {{
            let word = slice.get_atomic_ref::<$atomic>(0).expect("it is aligned");
            let new = |old: $int| Some(change(old.into()) as $int);
            let old = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, new);
            old.unwrap_or_else(|old| old).into()
        }};
    }
    match width {
        1 => update!(AtomicU8, u8),
        2 => update!(AtomicU16, u16),
        4 => update!(AtomicU32, u32),
        _ => {
            let word = slice.get_atomic_ref::<AtomicU64>(0).expect("it is aligned");
            let old =
                word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(change(old)));
            old.unwrap_or_else(|old| old)
        }
    }
}

/// `bytes` bytes at `address` by page: where each part begins, and which it is.
fn parts(address: u64, bytes: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == bytes {
            return None;
        }
        let at = address.wrapping_add(done as u64);
        let room = (PAGE - at % PAGE) as usize;
        let part = done..(done + room).min(bytes);
        done = part.end;
        Some((at, part))
    })
}
