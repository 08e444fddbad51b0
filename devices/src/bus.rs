//! Port-I/O and MMIO dispatch.
//!
//! A bus is filled while the machine is built (`&mut self`) and then shared by the vCPU threads (`&self`), so dispatch takes
//! one lock: that of the device it reaches. Devices must not call back into a bus.
//!
//! An access is delivered whole or not at all: it must lie in one claimed range. KVM hands over string I/O (`rep outsb`)
//! as `count` items of `size` bytes to one port; the caller delivers them one by one.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

/// What a device asks of the machine as the result of a guest's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reset the machine. A monitor may treat it as the end of the run.
    Reset,
    /// Switch the machine off, which ends the run.
    PowerOff,
    /// End the run; the byte is the guest's verdict.
    Exit(u8),
}

/// A device behind a bus. Offsets are relative to the range it was registered with.
///
/// The bus guarantees that `offset + data.len()` lies within that range. Access sizes are whatever the guest used; a
/// device that cannot serve a size leaves `data` as it is, which is all ones.
pub trait BusDevice: Send {
    /// Serves a guest's read. `data` arrives filled with ones.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes a guest's write.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request>;
}

/// A device as a bus holds it. Keep a typed clone (`Arc<Mutex<Serial>>`) to reach the device from outside the bus.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Whether a device answered, and what it asked for.
#[must_use = "an unclaimed access is a matter of the monitor's policy, a request must be carried out"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// A device took the access. Only writes carry a request.
    Yes(Option<Request>),
    /// No device claims these addresses: a read returned all ones, a write was dropped.
    No,
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Pio {}
    impl Sealed for super::Mmio {}
}

/// An address space a bus can serve.
pub trait Space: sealed::Sealed + Copy + Eq + fmt::Debug {
    /// The last valid address.
    const LAST: u64;
    /// What one address is called in messages.
    const UNIT: &'static str;
}

/// The 64 Ki x86 I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pio;

/// Guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio;

impl Space for Pio {
    const LAST: u64 = 0xffff;
    const UNIT: &'static str = "port";
}

impl Space for Mmio {
    const LAST: u64 = u64::MAX;
    const UNIT: &'static str = "address";
}

/// The I/O port bus.
pub type PioBus = Bus<Pio>;
/// The memory-mapped I/O bus.
pub type MmioBus = Bus<Mmio>;
/// A range of I/O ports.
pub type PioRange = Range<Pio>;
/// A range of guest-physical addresses.
pub type MmioRange = Range<Mmio>;

/// A non-empty range that lies inside its address space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Range<S> {
    base: u64,
    last: u64,
    space: PhantomData<S>,
}

impl<S: Space> Range<S> {
    /// The `len` addresses from `base` on.
    ///
    /// # Errors
    /// [`BadRange`] when `len` is zero or the range runs past the end of the space.
    pub const fn new(base: u64, len: u64) -> Result<Self, BadRange> {
        if len == 0 || base > S::LAST || len - 1 > S::LAST - base {
            return Err(BadRange { unit: S::UNIT, base, len });
        }
        Ok(Self { base, last: base + (len - 1), space: PhantomData })
    }

    /// A range that is written in the source.
    ///
    /// # Panics
    /// When it is not valid: in a constant, that is an error at compile time.
    pub const fn fixed(base: u64, len: u64) -> Self {
        match Self::new(base, len) {
            Ok(range) => range,
            Err(_) => panic!("the range is empty or leaves its space"),
        }
    }

    /// The first address.
    pub const fn base(self) -> u64 {
        self.base
    }

    /// The last address, inclusive (so that a range may end at the end of the space).
    pub const fn last(self) -> u64 {
        self.last
    }

    const fn overlaps(self, other: Self) -> bool {
        self.base <= other.last && other.base <= self.last
    }
}

impl<S> fmt::Debug for Range<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.base, self.last)
    }
}

impl<S> fmt::Display for Range<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The range is empty or runs past the end of its space.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "a range of {len} from {unit} {base:#x} is not valid: give it at least one {unit} and end it inside the space"
)]
pub struct BadRange {
    /// "port" or "address".
    pub unit: &'static str,
    /// First address asked for.
    pub base: u64,
    /// How many.
    pub len: u64,
}

/// Why a registration was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// What was to be registered is no range.
    #[error(transparent)]
    Range(#[from] BadRange),
    /// Two devices want the same addresses.
    #[error("{new} at {new_range} overlaps {old} at {old_range}: give one of them another range")]
    Overlap {
        /// The device being registered.
        new: String,
        /// Its range, as text.
        new_range: String,
        /// The device that was there first.
        old: String,
        /// Its range, as text.
        old_range: String,
    },
}

struct Slot<S> {
    range: Range<S>,
    name: String,
    device: SharedDevice,
}

/// Devices by address, and a record of what none of them claimed.
pub struct Bus<S> {
    /// Sorted by base; ranges do not overlap.
    slots: Vec<Slot<S>>,
    unclaimed: UnclaimedLog,
}

impl<S: Space> fmt::Debug for Bus<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.slots.iter().map(|slot| (slot.range, &slot.name))).finish()
    }
}

impl<S: Space> Default for Bus<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Space> Bus<S> {
    /// An empty bus.
    pub fn new() -> Self {
        Self { slots: Vec::new(), unclaimed: UnclaimedLog::default() }
    }

    /// Registers `device` for `range`. `name` appears in messages only.
    ///
    /// # Errors
    /// [`BusError::Overlap`] when any address of `range` is taken; it names both devices.
    pub fn insert(
        &mut self,
        range: Range<S>,
        name: impl Into<String>,
        device: SharedDevice,
    ) -> Result<(), BusError> {
        let name = name.into();
        if let Some(old) = self.slots.iter().find(|slot| slot.range.overlaps(range)) {
            return Err(BusError::Overlap {
                new: name,
                new_range: range.to_string(),
                old: old.name.clone(),
                old_range: old.range.to_string(),
            });
        }
        let at = self.slots.partition_point(|slot| slot.range.base < range.base);
        self.slots.insert(at, Slot { range, name, device });
        Ok(())
    }

    /// Delivers a read of `data.len()` bytes at `addr`. What no device fills in reads as ones.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> Claimed {
        data.fill(0xff);
        let Some(slot) = self.find(addr, data.len()) else {
            self.unclaimed.note(addr, Direction::Read, data.len());
            return Claimed::No;
        };
        lock(&slot.device).read(addr - slot.range.base, data);
        Claimed::Yes(None)
    }

    /// Delivers a write of `data` at `addr`.
    pub fn write(&self, addr: u64, data: &[u8]) -> Claimed {
        let Some(slot) = self.find(addr, data.len()) else {
            self.unclaimed.note(addr, Direction::Write, data.len());
            return Claimed::No;
        };
        Claimed::Yes(lock(&slot.device).write(addr - slot.range.base, data))
    }

    /// What no device claimed so far.
    pub fn unclaimed(&self) -> Unclaimed {
        self.unclaimed.report()
    }

    /// Registered ranges with their names, in address order: for `slat check` and for messages.
    pub fn ranges(&self) -> impl Iterator<Item = (Range<S>, &str)> {
        self.slots.iter().map(|slot| (slot.range, slot.name.as_str()))
    }

    fn find(&self, addr: u64, len: usize) -> Option<&Slot<S>> {
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        let after = self.slots.partition_point(|slot| slot.range.base <= addr);
        let slot = self.slots.get(after.checked_sub(1)?)?;
        (last <= slot.range.last).then_some(slot)
    }
}

/// A device that panicked under its lock has failed its own vCPU thread already; the others still need the bus to shut down.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which way an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest read.
    Read,
    /// The guest wrote.
    Write,
}

/// The first access to an address that nobody claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnclaimedAccess {
    /// Port or guest-physical address.
    pub addr: u64,
    /// Which way it went.
    pub direction: Direction,
    /// Its size in bytes.
    pub size: usize,
}

/// What no device claimed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unclaimed {
    /// How many accesses in all.
    pub accesses: u64,
    /// The first access to each of the first [`Unclaimed::REMEMBERED`] distinct addresses, in order of arrival.
    pub first: Vec<UnclaimedAccess>,
}

impl Unclaimed {
    /// How many distinct addresses are remembered.
    pub const REMEMBERED: usize = 16;
}

/// Fixed in size: a guest that scans the port space must not make the monitor allocate.
#[derive(Default)]
struct UnclaimedLog {
    accesses: AtomicU64,
    first: Mutex<[Option<UnclaimedAccess>; Unclaimed::REMEMBERED]>,
}

impl UnclaimedLog {
    fn note(&self, addr: u64, direction: Direction, size: usize) {
        // Relaxed: a counter that orders nothing.
        self.accesses.fetch_add(1, Ordering::Relaxed);
        for entry in lock(&self.first).iter_mut() {
            match entry {
                Some(known) if known.addr == addr => return,
                Some(_) => {}
                None => {
                    *entry = Some(UnclaimedAccess { addr, direction, size });
                    return;
                }
            }
        }
    }

    fn report(&self) -> Unclaimed {
        Unclaimed {
            accesses: self.accesses.load(Ordering::Relaxed),
            first: lock(&self.first).iter().flatten().copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests;
