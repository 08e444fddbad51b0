//! The guest's memory, from the service.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_mm::addr::{Gfn, GfnRange, Gpa, PageSize};
use guest_mm::collapse::{CollapsePolicy, Copying};
use guest_mm::entry::Marker;
use guest_mm::fault::FaultError;
use guest_mm::notes::Notes;
use guest_mm::prot::Access;
use guest_mm::protocol::{Protocol, Sound};
use guest_mm::service::WriteError;
use guest_mm::{Answer, CollapserConfig, FaultPolicy, Guest, GuestConfig, ImageRam};
use vm_memory::GuestAddress;

use crate::boot::BootImage;
use crate::config::{Collapse, Memory};
use crate::kvm::Slot;
use crate::ram::Ram;

use super::MachineError;
use super::commons::{Commons, pages};

/// A guest's memory, and what it lies on. The guest goes first.
#[derive(Debug)]
pub struct ServedRam<P: Protocol = Sound> {
    guest: Guest<P>,
    commons: Arc<Commons<P>>,
    policy: CollapsePolicy,
    /// Its RAM, less what devices are.
    plain: Vec<GfnRange>,
    /// What the monitor wrote as the guest, while somebody wants to know.
    stores: Mutex<Option<Notes>>,
}

/// Called when an access cannot be served; sends every vCPU out of the guest.
pub(crate) type OnStop = Box<dyn Fn(&FaultError) + Send + Sync>;

/// Called for a page that is marked missing: asks for it.
pub(crate) type OnMissing = Box<dyn Fn(Gpa) -> Answer + Send + Sync>;

impl<P: Protocol> ServedRam<P> {
    /// The memory that `config` describes, untouched but for its guard pages, on a pool of its own.
    ///
    /// # Errors
    /// The pool or the window cannot be had, or the template is none.
    pub(crate) fn new(config: &Memory, on_stop: OnStop) -> Result<ServedRam<P>, MachineError> {
        ServedRam::on(&Arc::new(Commons::new(config)?), config, on_stop)
    }

    /// The same on what other machines lie on too.
    ///
    /// # Errors
    /// The window cannot be had.
    pub(crate) fn on(
        commons: &Arc<Commons<P>>,
        config: &Memory,
        on_stop: OnStop,
    ) -> Result<ServedRam<P>, MachineError> {
        ServedRam::beside(commons, config, Vec::new(), None, on_stop)
    }

    /// The same, and beside the RAM the memory that `images` are.
    ///
    /// # Errors
    /// As [`ServedRam::on`].
    pub(super) fn beside(
        commons: &Arc<Commons<P>>,
        config: &Memory,
        images: Vec<ImageRam>,
        on_missing: Option<OnMissing>,
        on_stop: OnStop,
    ) -> Result<ServedRam<P>, MachineError> {
        let ram: Vec<GfnRange> = config
            .ram()
            .map(|range| GfnRange::from_bytes(Gpa::new(range.start), range.length.get()))
            .collect::<Result<_, _>>()?;
        let plain = ram.clone();
        let guest = commons.add_guest(GuestConfig {
            ram,
            over: images,
            on_missing,
            policy: FaultPolicy { pages: pages(config) },
            fault_threads: config.fault_threads.value.into(),
            on_stop,
        })?;
        for guard in &config.guard.value {
            let range = GfnRange::from_bytes(Gpa::new(guard.start()), guard.length().get())?;
            guest.mark(range, Marker::Guard)?;
        }
        Ok(ServedRam {
            guest,
            commons: Arc::clone(commons),
            policy: CollapsePolicy::default(),
            plain,
            stores: Mutex::default(),
        })
    }

    /// What it has in common with other machines.
    pub(super) fn commons(&self) -> &Commons<P> {
        &self.commons
    }

    /// The same memory, collapsed as `config` says: by a thread from now on, if there is to be one.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn collapsed_as(mut self, config: &Collapse) -> Result<Self, MachineError> {
        self.policy = policy(config);
        if config.background.value {
            self.guest.start_collapser(collapser(config)).map_err(|source| {
                MachineError::System { what: "starting the collapser", source }
            })?;
        }
        Ok(self)
    }

    /// What a collapse of this memory may do.
    pub(super) fn policy(&self) -> CollapsePolicy {
        self.policy
    }

    /// The guest's side of the service.
    pub fn guest(&self) -> &Guest<P> {
        &self.guest
    }

    /// What the pool lies on, and why.
    pub fn describe_pool(&self) -> String {
        self.commons.describe_pool()
    }

    /// Its RAM, less what devices are.
    pub(super) fn plain(&self) -> impl Iterator<Item = GfnRange> {
        self.plain.iter().copied()
    }

    /// What the monitor writes as the guest: noted while there is something to note it in.
    pub(super) fn stores(&self) -> MutexGuard<'_, Option<Notes>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the boot image into memory. Pages of zeroes stay untouched where they read the same: not over a template.
    ///
    /// # Errors
    /// [`MachineError::Load`]: the pool is too small for the image, or a guard page lies in it.
    pub(crate) fn load(&self, image: &BootImage) -> Result<(), MachineError> {
        // Neighbours go together: one batch costs what one page costs.
        let mut start = 0;
        let mut bytes: Vec<u8> = Vec::new();
        let put = |gpa: GuestAddress, page: &[u8; 4096]| {
            let follows = !bytes.is_empty() && gpa.0 == start + bytes.len() as u64;
            if !follows || bytes.len() as u64 >= PageSize::Size2M.bytes() {
                self.put(start, &bytes)?;
                bytes.clear();
                start = gpa.0;
            }
            bytes.extend_from_slice(page);
            Ok::<(), MachineError>(())
        };
        match self.commons.template() {
            Some(_) => image.for_every_page(put)?,
            None => image.for_each_page(put).map(|_| ())?,
        }
        self.put(start, &bytes)
    }

    /// Puts `bytes` to `start`, which is RAM.
    ///
    /// # Errors
    /// As [`ServedRam::load`].
    pub(super) fn put(&self, start: u64, bytes: &[u8]) -> Result<(), MachineError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let gpa = Gpa::new(start);
        self.guest.populate(GfnRange::from_bytes(gpa, bytes.len() as u64)?)?;
        loop {
            match self.guest.write(gpa, bytes) {
                Ok(()) => return Ok(()),
                // A scanner for duplicates may have dropped a page of zeroes again; a guard page stays away.
                Err(WriteError::NotMapped(missing)) => self
                    .guest
                    .fault(missing.gpa, Access::Write)
                    .map_err(|_| MachineError::Guarded { gpa: missing.gpa })?,
                Err(WriteError::Fault(error)) => return Err(MachineError::Load(error)),
            };
        }
    }

    /// Serves no fault any more. No vCPU may run.
    pub(crate) fn rest(&mut self) {
        self.guest.rest();
    }

    /// Takes the memory down; whether the books were right. Who is the last on a pool checks that as well.
    ///
    /// # Errors
    /// The first wrong book.
    pub(crate) fn close(self) -> Result<(), guest_mm::audit::AuditError> {
        self.guest.close()?;
        Arc::into_inner(self.commons).map_or(Ok(()), Commons::close)
    }
}

impl<P: Protocol + fmt::Debug> Ram for ServedRam<P> {
    fn slots(&self) -> Vec<Slot> {
        self.guest
            .windows()
            .map(|(range, hva)| Slot {
                gpa: range.start().gpa().as_u64(),
                hva: hva.as_u64(),
                bytes: range.bytes(),
            })
            .collect()
    }

    fn read(&self, gpa: u64, into: &mut [u8]) -> bool {
        let gfn: Gfn = Gpa::new(gpa).gfn();
        let within = GfnRange::new(gfn, 1).is_ok_and(|page| self.guest.is_ram(page));
        within && self.guest.read(Gpa::new(gpa), into).is_ok()
    }

    fn ready(&self, gpa: u64, write: bool) -> bool {
        // A page that can be read is there; a write that it does not allow is a violation that a fault thread serves.
        let mut byte = [0];
        let access = if write { Access::Write } else { Access::Read };
        self.read(gpa, &mut byte) || self.guest.fault(Gpa::new(gpa), access).is_ok()
    }

    fn wrote(&self, pages: &[u64]) {
        if let Some(stores) = &mut *self.stores() {
            let page = |gpa: &u64| GfnRange::new(Gpa::new(*gpa).gfn(), 1).ok();
            pages.iter().filter_map(page).for_each(|page| stores.note(page));
        }
    }
}

/// What a collapse may do.
fn policy(config: &Collapse) -> CollapsePolicy {
    let copying = if config.copying.value { Copying::Allowed } else { Copying::Never };
    CollapsePolicy { max_holes: config.max_holes.value, copying }
}

/// The same for the thread that collapses by itself, with its pace.
fn collapser(config: &Collapse) -> CollapserConfig {
    CollapserConfig {
        policy: policy(config),
        scan_rate: config.scan_rate.value.limit(),
        copy_budget: config.copy_budget.value.limit(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Host, MachineConfig};

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let host = Host { phys_bits: 46, runs_ring0: true };
        let text = "boot.guest = 'hello'";
        let config = MachineConfig::parse(text, Path::new("x.toml"), &[], host).unwrap();
        assert_eq!(collapser(&config.collapse), CollapserConfig::default());
    }

    #[test]
    fn a_config_reaches_the_library() {
        let sets = ["max_holes=7", "copying=false", "scan_rate=unlimited", "copy_budget=9"];
        let sets = sets.map(|set| format!("collapse.{set}"));
        let host = Host { phys_bits: 46, runs_ring0: true };
        let text = "boot.guest = 'hello'";
        let config = MachineConfig::parse(text, Path::new("x.toml"), &sets, host).unwrap();
        let policy = CollapsePolicy { max_holes: 7, copying: Copying::Never };
        let expected = CollapserConfig { policy, scan_rate: None, copy_budget: Some(9) };
        assert_eq!(collapser(&config.collapse), expected);
    }
}
