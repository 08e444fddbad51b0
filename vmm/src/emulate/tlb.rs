//! Linear memory through page tables, with the translations that were found kept.
#![allow(unsafe_code, reason = "a page that was translated once is accessed by its address")]

use std::cell::{Cell, RefCell};
use std::ops::Range;

use vm_memory::VolatileSlice;

use super::linear::{Access, Linear, Trouble, exchange_in};
use super::paging::Regime;
use super::physical::Physical;

const PAGE: u64 = 4096;
/// Translations that are kept: enough for what one entry into a kernel touches.
const PLACES: usize = 512;

/// An entry that is present (bit 0), the user's (2) and accessed (5): SDM vol. 3A, 4.5.
const ENTRY: u64 = 1 << 0 | 1 << 2 | 1 << 5;
/// Bits that are zero in the entries of a kernel that has no more than 52 bits of physical address; 58 and above are its own.
const NO_ENTRY: u64 = 0x03f0_0000_0000_0000;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A translation: of a linear page, and where that is in this process.
#[derive(Clone, Copy)]
struct Kept {
    /// The page's number, and the generation in which it was found.
    page: u64,
    generation: u64,
    host: u64,
    /// A bit for each [`Access`] that was found allowed.
    allowed: u8,
}

/// Translations, for as long as they are good. The places are used again and again.
pub(super) struct Translations {
    kept: Box<[Cell<Kept>]>,
    generation: Cell<u64>,
}

impl Default for Translations {
    fn default() -> Self {
        let none = Kept { page: 0, generation: 0, host: 0, allowed: 0 };
        Translations { kept: vec![Cell::new(none); PLACES].into(), generation: Cell::new(1) }
    }
}

impl Translations {
    /// Forgets all of them.
    pub(super) fn flush(&self) {
        self.generation.set(self.generation.get() + 1);
    }
}

/// A vCPU's linear memory, under one regime.
///
/// What a translation leads to is the window, whose place does not change. So translations go stale for one reason alone:
/// the guest changed its page tables, which it tells its processor, and that is the caller's to heed
/// ([`Translations::flush`]).
pub(super) struct Tlb<'r> {
    physical: Physical<'r>,
    regime: RefCell<Regime>,
    translations: &'r Translations,
    /// Whether entries of page tables are KVM's to change.
    guards_tables: bool,
}

impl<'r> Tlb<'r> {
    pub(super) fn new(
        physical: Physical<'r>,
        regime: Regime,
        translations: &'r Translations,
    ) -> Tlb<'r> {
        Tlb { physical, regime: RefCell::new(regime), translations, guards_tables: false }
    }

    /// The same, where a store that may change a page table is refused with [`Trouble::Table`].
    ///
    /// KVM without hardware below it runs ring 3 on tables that it derives from the guest's. It sees the stores that it
    /// emulates, and corrects what it has derived; a store here it does not see. What it may have derived something from is
    /// an entry that is present, the user's and accessed ([`ENTRY`]), since it sets that bit first; and a word that looks
    /// like one and is none costs a way to KVM, no more. Small numbers would look like entries for page 0, which no kernel
    /// gives to ring 3: they are none. Strings (`rep stos`, `rep movs`) are not looked at: a kernel takes entries away one by
    /// one before it clears their page or makes it something else.
    pub(super) fn guarding_tables(self) -> Tlb<'r> {
        Tlb { guards_tables: true, ..self }
    }

    /// Whether the word around the bytes at `address`, which are at `host` in this process, may be such an entry.
    #[inline]
    fn is_entry(&self, address: u64, host: *const u8) -> bool {
        let word = host.wrapping_sub((address % 8) as usize).cast::<u64>();
        // SAFETY: as in `with`; an aligned word does not cross a page.
        let word = unsafe { word.read_volatile() };
        let page = word & ADDRESS;
        word & (ENTRY | NO_ENTRY) == ENTRY
            && page != 0
            && self.physical.holds(page)
            && may_be_table(host.wrapping_sub((address % PAGE) as usize))
    }

    /// Says that RFLAGS.AC is `on`, which decides about the user's pages.
    pub(super) fn set_ac(&self, on: bool) {
        let mut regime = self.regime.borrow_mut();
        if regime.ac != on {
            regime.ac = on;
            self.translations.flush();
        }
    }

    /// Where the byte at `address` is in this process; good for the rest of its page.
    #[inline]
    pub(super) fn host(&self, address: u64, access: Access) -> Result<*mut u8, Trouble> {
        let page = address / PAGE;
        let kept = self.translations.kept[page as usize % PLACES].get();
        let current = kept.page == page && kept.generation == self.translations.generation.get();
        if current && kept.allowed & bit(access) != 0 {
            return Ok((kept.host + address % PAGE) as *mut u8);
        }
        let known = if current { kept.allowed } else { 0 };
        self.find(address, access, known)
    }

    #[cold]
    fn find(&self, address: u64, access: Access, known: u8) -> Result<*mut u8, Trouble> {
        let page = address / PAGE;
        let gpa = self.regime.borrow().translate(&self.physical, address, access)?;
        let slice =
            self.physical.slice(gpa & !(PAGE - 1), PAGE as usize, access == Access::Write)?;
        let host = slice.ptr_guard_mut().as_ptr() as u64;
        // What may be written may be read, but not the other way: the dirty bit is set by the first write.
        let also = if access == Access::Write { bit(Access::Read) } else { 0 };
        self.translations.kept[page as usize % PLACES].set(Kept {
            page,
            generation: self.translations.generation.get(),
            host,
            allowed: known | bit(access) | also,
        });
        Ok((host + address % PAGE) as *mut u8)
    }

    /// Sixteen bytes of code at `address`, which lie in one page.
    ///
    /// # Errors
    /// They cannot be fetched.
    #[inline]
    pub(super) fn sixteen(&self, address: u64) -> Result<u128, Trouble> {
        debug_assert!(Self::room(address) >= 16);
        let host = self.host(address, Access::Fetch)?;
        // SAFETY: as in `with`; the page holds them.
        Ok(unsafe { host.cast::<Anywhere<u128>>().read_volatile() }.0)
    }

    /// What is left of the page at `address`.
    fn room(address: u64) -> usize {
        (PAGE - address % PAGE) as usize
    }
}

/// Whether the page at `host` may be a page table: one that has a word which looks present, with bits that no entry has, is
/// none. Stacks have such words: the odd ones among the addresses of a kernel's code.
#[cold]
fn may_be_table(host: *const u8) -> bool {
    let page = host.cast::<u64>();
    // SAFETY: the page is mapped, as a byte of it is, and has so many words.
    let mut words = (0..PAGE as usize / 8).map(|index| unsafe { page.add(index).read_volatile() });
    !words.any(|word| word & 1 != 0 && word & NO_ENTRY != 0)
}

/// An integer at any address: one access for the processor all the same.
#[repr(C, packed)]
struct Anywhere<T>(T);

fn bit(access: Access) -> u8 {
    1 << access as u8
}

impl Linear for Tlb<'_> {
    fn with(
        &self,
        address: u64,
        bytes: usize,
        access: Access,
        act: &mut dyn FnMut(VolatileSlice<'_>),
    ) -> Result<(), Trouble> {
        debug_assert!(bytes <= Self::room(address));
        let host = self.host(address, access)?;
        // SAFETY: `host` is good for the rest of its page, while the guest's RAM is borrowed.
        act(unsafe { VolatileSlice::new(host, bytes) });
        Ok(())
    }

    fn exchange(
        &self,
        address: u64,
        width: usize,
        change: &mut dyn FnMut(u64) -> u64,
    ) -> Result<u64, Trouble> {
        if self.guards_tables && self.is_entry(address, self.host(address, Access::Write)?) {
            return Err(Trouble::Table);
        }
        exchange_in(self, address, width, change)
    }

    #[inline]
    fn load(&self, address: u64, width: usize) -> Result<u64, Trouble> {
        if width > Self::room(address) {
            return load_apart(self, address, width);
        }
        let host = self.host(address, Access::Read)?;
        // SAFETY: as in `with`. What others write at the same time is seen or not, as by any load; x86 needs no alignment.
        Ok(unsafe {
            match width {
                1 => host.read_volatile().into(),
                2 => host.cast::<Anywhere<u16>>().read_volatile().0.into(),
                4 => host.cast::<Anywhere<u32>>().read_volatile().0.into(),
                8 => host.cast::<Anywhere<u64>>().read_volatile().0,
                _ => return load_apart(self, address, width),
            }
        })
    }

    #[inline]
    fn store(&self, address: u64, width: usize, value: u64) -> Result<(), Trouble> {
        if width > Self::room(address) {
            return self.write(address, &value.to_le_bytes()[..width]);
        }
        let host = self.host(address, Access::Write)?;
        if self.guards_tables && self.is_entry(address, host) {
            return Err(Trouble::Table);
        }
        // SAFETY: as in `load`.
        unsafe {
            match width {
                1 => host.write_volatile(value as u8),
                2 => host.cast::<Anywhere<u16>>().write_volatile(Anywhere(value as u16)),
                4 => host.cast::<Anywhere<u32>>().write_volatile(Anywhere(value as u32)),
                8 => host.cast::<Anywhere<u64>>().write_volatile(Anywhere(value)),
                _ => return self.write(address, &value.to_le_bytes()[..width]),
            }
        }
        Ok(())
    }
}

/// A load that crosses a page, or of an odd width.
#[cold]
fn load_apart(memory: &Tlb<'_>, address: u64, width: usize) -> Result<u64, Trouble> {
    let mut raw = [0; 8];
    let part: Range<usize> = 0..width;
    memory.read(address, &mut raw[part], Access::Read)?;
    Ok(u64::from_le_bytes(raw))
}
