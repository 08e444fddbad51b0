//! Machines whose memory is read as it is touched: one, or many over the same frames.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use guest_mm::image::{Layers, Order};
use kvm_ioctls::Kvm;

use crate::config::{Bytes, MachineConfig};
use crate::control::Listener;
use crate::kvm;
use crate::machine::clones::{Clones, ClonesReport, Host};
use crate::machine::console::Speech;
use crate::machine::{Commons, Machine, MachineError, listen};
use crate::snapshot::{Snapshot, WorkingSet};

use super::Filling;
use super::ahead::{Plan, Stored};

/// What machines that were restored lazily needed first.
#[derive(Debug)]
pub struct Learnt {
    folder: PathBuf,
    id: String,
    order: Option<Order>,
}

impl Learnt {
    /// Keeps it beside the snapshot for the next time, when the machine has ended; if it is not there already.
    ///
    /// # Errors
    /// What the system says.
    pub fn keep(&self) -> io::Result<()> {
        let Some(order) = &self.order else { return Ok(()) };
        WorkingSet(order.pages()).write(&self.folder, &self.id)
    }
}

/// A snapshot on a pool, as what memory lies over.
struct Basis<'a> {
    snapshot: &'a Snapshot,
    config: MachineConfig,
    /// What is known to be needed.
    known: Option<WorkingSet>,
}

impl<'a> Basis<'a> {
    /// And the image.
    fn new(config: &MachineConfig, snapshot: &'a Snapshot) -> (Basis<'a>, Layers) {
        let image = snapshot.image();
        let mut config = config.clone();
        let bytes = Bytes::new(snapshot.manifest().file_pages() * 4096);
        config.lay_over(Some((image.files[0].clone(), bytes)));
        let known = WorkingSet::read(snapshot.folder(), &snapshot.manifest().id);
        (Basis { snapshot, config, known }, image)
    }

    /// The pool with the image on it, and what is learnt if nothing is known.
    fn commons(&self, pool: Bytes, image: Layers) -> Result<(Arc<Commons>, Learnt), MachineError> {
        let manifest = self.snapshot.manifest();
        let commons = Commons::over(&self.config.memory, pool, image, &manifest.ranges)?;
        let template = commons.template().expect("it lies over the snapshot");
        let order = self.known.is_none().then(|| template.note_order());
        let folder = self.snapshot.folder().to_owned();
        Ok((Arc::new(commons), Learnt { folder, id: manifest.id.clone(), order }))
    }

    fn machine(
        &self,
        kvm: &Kvm,
        commons: &Arc<Commons>,
        speech: Speech,
        stored: Stored,
        started: Instant,
    ) -> Result<Machine, MachineError> {
        let ahead = self.known.as_ref().map(|pages| Plan::new(pages, stored));
        let filling = Filling { ahead, ..Filling::default() };
        let mut machine = Machine::empty(kvm, commons, &self.config, speech, filling, started)?;
        machine.restore(self.snapshot.state())?;
        Ok(machine)
    }
}

impl Machine {
    /// The machine that `config` describes as `snapshot` has it, its memory read as it is touched, each page checked then; what an
    /// earlier machine needed first is made ready meanwhile.
    ///
    /// # Errors
    /// As [`Machine::restored`].
    pub fn lazily_from_snapshot(
        config: &MachineConfig,
        snapshot: &Snapshot,
        started: Instant,
    ) -> Result<(Machine, Learnt), MachineError> {
        let (basis, image) = Basis::new(config, snapshot);
        let control = config.control.socket.as_ref();
        let control = control.map(|path| Listener::bind(&path.value)).transpose()?;
        let kvm = kvm::open()?;
        let image = Layers { alone: true, ..image };
        let (commons, learnt) = basis.commons(basis.config.memory.pool.value, image)?;
        let speech = Speech::AsConfigured;
        let machine = basis.machine(&kvm, &commons, speech, Stored::Own, started)?;
        Ok((Machine { control, ..machine }, learnt))
    }
}

/// Machines to be restored lazily from one snapshot, in one process.
#[derive(Debug)]
pub struct Restores<'a> {
    /// What each of them is. Its console is kept, and its control socket is not served.
    pub config: &'a MachineConfig,
    /// What they come from. A page of it is read once, and is shown to all of them until they store to it.
    pub snapshot: &'a Snapshot,
    /// How many.
    pub count: u32,
}

impl Restores<'_> {
    /// Runs them all to their ends; and what they needed first.
    ///
    /// # Errors
    /// One of them could not be built or started: those before it are stopped.
    pub fn run(self) -> Result<(ClonesReport, Learnt), MachineError> {
        let kvm = kvm::open()?;
        let signals = listen()?;
        let (basis, image) = Basis::new(self.config, self.snapshot);
        let pool = Clones { config: &basis.config, count: self.count }.pool();
        let (commons, learnt) = basis.commons(pool.value, image)?;
        let host = Host { commons, signals, config: &basis.config };
        let report = host.run(self.count, |commons, speech| {
            basis.machine(&kvm, commons, speech, Stored::Shared, Instant::now())
        })?;
        Ok((report, learnt))
    }
}
