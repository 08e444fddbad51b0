//! Linear memory through page tables, with the translations that were found kept.
#![allow(unsafe_code, reason = "a page that was translated once is accessed by its address")]

use std::cell::{Cell, RefCell};

use vm_memory::VolatileSlice;

use super::linear::{Access, Linear, PAGE, Trouble, exchange_in, load_in};
use super::paging::{Regime, Rights, Way, entry};
use super::physical::Physical;

/// Translations that are kept: enough for what a timer's tick touches, and more.
const PLACES: usize = 512;

/// An entry that is the user's and has been used.
const ENTRY: u64 = entry::PRESENT | entry::USER | entry::ACCESSED;
/// Bits that are zero in the entries of a kernel that has no more than 52 bits of physical address; 58 and above are its own.
const NO_ENTRY: u64 = 0x03f0_0000_0000_0000;

/// A translation: of a linear page, and where that is in this process.
#[derive(Clone, Copy)]
struct Kept {
    /// The page's number, and the generation in which it was last found good.
    page: u64,
    generation: u64,
    /// The generation in which it was last told that the page may be stored to.
    told: u64,
    host: u64,
    /// Where it is for the guest.
    gpa: u64,
    rights: Rights,
}

/// Translations that were found. The places are used again and again.
pub(super) struct Translations {
    kept: Box<[Cell<Kept>]>,
    /// By the same places.
    ways: RefCell<Box<[Way]>>,
    generation: Cell<u64>,
    /// What was found before this generation is of no use.
    oldest: Cell<u64>,
    /// What the last was found under.
    regime: Cell<Option<Regime>>,
}

impl Default for Translations {
    fn default() -> Self {
        Translations::with_places(PLACES)
    }
}

impl Translations {
    /// For one instruction.
    pub(super) fn few() -> Translations {
        Translations::with_places(8)
    }

    fn with_places(places: usize) -> Translations {
        let none = Kept { page: 0, generation: 0, told: 0, host: 0, gpa: 0, rights: Rights::NONE };
        Translations {
            kept: vec![Cell::new(none); places].into(),
            ways: RefCell::new(vec![Way::NONE; places].into()),
            generation: Cell::new(1),
            oldest: Cell::new(1),
            regime: Cell::new(None),
        }
    }

    /// From now on the vCPU has `regime`, and may have changed its page tables: what was found has to be looked at again.
    fn begin(&self, regime: &Regime) {
        let next = self.generation.get() + 1;
        self.generation.set(next);
        if self.regime.replace(Some(*regime)).is_none_or(|before| !before.is_like(regime)) {
            self.oldest.set(next);
        }
    }

    #[inline]
    fn place(&self, page: u64) -> usize {
        // A kernel's areas begin at round addresses, and their first pages are as dear as any.
        (page ^ page >> 9 ^ page >> 18 ^ page >> 27) as usize & (self.kept.len() - 1)
    }
}

/// A vCPU's linear memory, under one regime.
///
/// What a translation leads to is the window, whose place does not change. So translations go stale for one reason alone:
/// the guest changed its page tables. While it does so here, it has to tell its processor, and that is KVM's to carry out. When
/// KVM has run the vCPU, nobody knows what the guest told its processor; then a translation is good again when the entries that
/// led to it are what they were ([`Way::holds`]), which is all that a walk would find.
pub(super) struct Tlb<'r> {
    physical: Physical<'r>,
    regime: Cell<Regime>,
    translations: &'r Translations,
    /// Where the root is in this process, once asked.
    root: Cell<Option<u64>>,
    /// Whether entries of page tables are KVM's to change.
    guards_tables: bool,
}

impl<'r> Tlb<'r> {
    /// Once for each stay of the vCPU in this process. `translations` are always the same RAM's.
    pub(super) fn new(
        physical: Physical<'r>,
        regime: Regime,
        translations: &'r Translations,
    ) -> Tlb<'r> {
        translations.begin(&regime);
        let root = Cell::new(None);
        Tlb { physical, regime: Cell::new(regime), translations, root, guards_tables: false }
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
        let page = word & entry::ADDRESS;
        word & (ENTRY | NO_ENTRY) == ENTRY
            && page != 0
            && self.physical.holds(page)
            && may_be_table(host.wrapping_sub((address % PAGE) as usize))
    }

    /// Says that RFLAGS.AC is `on`, which decides about the user's pages.
    pub(super) fn set_ac(&self, on: bool) {
        self.regime.set(self.regime.get().with_ac(on));
    }

    /// Where the byte at `address` is in this process; good for the rest of its page.
    #[inline]
    pub(super) fn host(&self, address: u64, access: Access) -> Result<*mut u8, Trouble> {
        let page = address / PAGE;
        let kept = self.translations.kept[self.translations.place(page)].get();
        // A store that nobody was told of would be lost to who looks for changes.
        let good = if access == Access::Write { kept.told } else { kept.generation };
        let current = kept.page == page && good == self.translations.generation.get();
        if current && kept.rights.allow(access, self.regime.get().ac) {
            return Ok((kept.host + address % PAGE) as *mut u8);
        }
        self.look_again(address, access)
    }

    /// A translation that was good may be so still.
    #[inline(never)]
    fn look_again(&self, address: u64, access: Access) -> Result<*mut u8, Trouble> {
        let page = address / PAGE;
        let translations = self.translations;
        let place = translations.place(page);
        let mut kept = translations.kept[place].get();
        if kept.page != page || kept.generation < translations.oldest.get() {
            return self.find(address, access);
        }
        if kept.generation != translations.generation.get() {
            let root = self.root()?;
            // SAFETY: the RAM that the way was found in is mapped where it was for as long as it is there, which `'r`
            // borrows; the root's page is in it.
            if !unsafe { translations.ways.borrow()[place].holds(root) } {
                return self.find(address, access);
            }
            kept.generation = translations.generation.get();
            translations.kept[place].set(kept);
        }
        if !kept.rights.allow(access, self.regime.get().ac) {
            return self.find(address, access);
        }
        if access == Access::Write {
            self.physical.will_write(kept.gpa);
            kept.told = kept.generation;
            translations.kept[place].set(kept);
        }
        Ok((kept.host + address % PAGE) as *mut u8)
    }

    fn root(&self) -> Result<u64, Trouble> {
        if let Some(root) = self.root.get() {
            return Ok(root);
        }
        let page = self.physical.slice(self.regime.get().root(), PAGE as usize, false)?;
        let root = page.ptr_guard().as_ptr() as u64;
        self.root.set(Some(root));
        Ok(root)
    }

    #[cold]
    fn find(&self, address: u64, access: Access) -> Result<*mut u8, Trouble> {
        let page = address / PAGE;
        let walk = self.regime.get().walk(&self.physical, address, access)?;
        let start = walk.gpa & !(PAGE - 1);
        let slice = self.physical.slice(start, PAGE as usize, access == Access::Write)?;
        let host = slice.ptr_guard_mut().as_ptr() as u64;
        let place = self.translations.place(page);
        let generation = self.translations.generation.get();
        let told = if access == Access::Write { generation } else { 0 };
        let (gpa, rights) = (start, walk.rights);
        self.translations.kept[place].set(Kept { page, generation, told, host, gpa, rights });
        self.translations.ways.borrow_mut()[place] = walk.way;
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
            return load_in(self, address, width);
        }
        let host = self.host(address, Access::Read)?;
        // SAFETY: as in `with`. What others write at the same time is seen or not, as by any load; x86 needs no alignment.
        Ok(unsafe {
            match width {
                1 => host.read_volatile().into(),
                2 => host.cast::<Anywhere<u16>>().read_volatile().0.into(),
                4 => host.cast::<Anywhere<u32>>().read_volatile().0.into(),
                8 => host.cast::<Anywhere<u64>>().read_volatile().0,
                _ => return load_in(self, address, width),
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
