//! A running machine is written to a folder, and goes on.

use std::path::Path;
use std::time::Instant;

use guest_mm::addr::{GfnRange, Gpa};
use guest_mm::notes::Notes;
use guest_mm::prot::Access;

use crate::control::{Progress, Saved, SnapshotRequest};
use crate::kvm::KvmError;
use crate::snapshot::{Snapshot, SnapshotError, Writer, Written, layout};
use crate::vcpu::Ending;

use super::dirty::{DirtyError, DirtyTracker};
use super::live::{Live, Unrest};

/// Pages between two words about how far it is.
const TOLD: u64 = 4096;

/// Saves one machine, once or more often.
#[derive(Debug)]
pub(super) struct Saver {
    machine: String,
    toml: String,
    tracked: Option<Tracked>,
}

/// What has changed since a snapshot.
#[derive(Debug)]
struct Tracked {
    /// The snapshot's id.
    id: String,
    tracker: DirtyTracker,
    /// What was taken of the tracker, and is in no snapshot yet.
    changed: Notes,
}

/// Why a machine was not saved. It goes on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    /// It did not come to rest, or did not tell its state.
    #[error(transparent)]
    Unrest(#[from] Unrest),
    /// Some of its memory is not there.
    #[error(
        "{0} pages of the guest have not come from its source: let them come (\"slat send --recover\" if the connection is gone), \
         and ask again; the machine goes on"
    )]
    Incomplete(u64),
    /// Nothing could be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Nobody noted what has changed since.
    #[error(
        "what has changed since {} is not known: it must be the last snapshot that this machine was saved in with --track",
        .0.display()
    )]
    NotTracked(std::path::PathBuf),
    /// Changes cannot be noted.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// What has changed cannot be had.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

impl Saver {
    /// For the machine called `machine`, whose config is `toml`.
    pub(super) fn new(machine: String, toml: String) -> Saver {
        Saver { machine, toml, tracked: None }
    }

    /// Saves the machine as `request` says; `tell` is told how far it is. A machine that rested before rests on.
    ///
    /// # Errors
    /// [`SaveError`]: what lay there is as it was, and so is the machine.
    pub(super) fn save(
        &mut self,
        live: &Live,
        request: &SnapshotRequest,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Saved, SaveError> {
        // Whoever waited for them might wait for ever, and the guest with him.
        match live.missing() {
            0 => {}
            pages => return Err(SaveError::Incomplete(pages)),
        }
        let base = request.base.as_deref().map(|base| self.base(base)).transpose()?;
        let mut writer = Writer::new(&request.folder, layout(live.fingerprint()), base)?;
        let rested = live.is_paused();
        live.pause()?;
        let began = Instant::now();
        let written = self.write(live, request, &mut writer, tell).and_then(|state| {
            let advance = self.advance(live, request)?;
            Ok((state, advance))
        });
        // What takes longest, to make it last, is the guest's time only if it has no more.
        let waits = rested || request.stop && written.is_ok();
        if !waits {
            live.resume();
        }
        let paused_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (state, advance) = written?;
        let finished = writer.finish(&self.machine, &state, &self.toml);
        self.settle(advance, finished.as_ref().ok().map(|written| &*written.id));
        match (&finished, request.stop) {
            (Ok(_), true) => live.end(Ending::Saved),
            (Err(_), true) if !rested => live.resume(),
            _ => {}
        }
        let Written { id, pages } = finished?;
        Ok(Saved { folder: request.folder.clone(), id, pages, paused_us, stopped: request.stop })
    }

    /// The snapshot in `folder`, if what has changed since is known.
    fn base(&self, folder: &Path) -> Result<Snapshot, SaveError> {
        let base = Snapshot::open(folder)?;
        match &self.tracked {
            Some(tracked) if tracked.id == base.manifest().id => Ok(base),
            _ => Err(SaveError::NotTracked(folder.to_owned())),
        }
    }

    /// Writes the memory of a machine at rest; its state.
    fn write(
        &mut self,
        live: &Live,
        request: &SnapshotRequest,
        writer: &mut Writer,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Vec<u8>, SaveError> {
        let state = live.state()?.to_bytes();
        if let Some(Tracked { tracker, changed, .. }) = &mut self.tracked {
            tracker.take(&mut |range| changed.note(range))?;
        }
        let changed = match (&request.base, &self.tracked) {
            (Some(_), Some(tracked)) => Some(&tracked.changed),
            _ => None,
        };
        let wanted = |gpa| changed.is_none_or(|changed| changed.has(Gpa::new(gpa).gfn()));
        let mut progress = |done: u64, of: u64| {
            if done.is_multiple_of(TOLD) || done == of {
                tell(Progress { done, of });
            }
            live.ending().is_none()
        };
        writer.memory(wanted, |gpa, page| read(live, gpa, page), &mut progress)?;
        Ok(state)
    }

    /// Notes changes from now on apart from those before, if the next snapshot may build on this one.
    fn advance(&mut self, live: &Live, request: &SnapshotRequest) -> Result<Advance, SaveError> {
        if !request.track && request.base.is_none() {
            return Ok(Advance::None);
        }
        let empty = Notes::new(live.guest().windows().map(|(range, _)| range));
        if let Some(tracked) = &mut self.tracked {
            return Ok(Advance::Further(std::mem::replace(&mut tracked.changed, empty)));
        }
        let tracker = DirtyTracker::start(live)?;
        self.tracked = Some(Tracked { id: String::new(), tracker, changed: empty });
        Ok(Advance::Begun)
    }

    /// The snapshot has become `id`, or nothing has come of it.
    fn settle(&mut self, advance: Advance, id: Option<&str>) {
        match (&mut self.tracked, advance, id) {
            (_, Advance::None, _) | (None, ..) => {}
            (Some(tracked), _, Some(id)) => id.clone_into(&mut tracked.id),
            (Some(tracked), Advance::Further(mut before), None) => {
                tracked.changed.take(&mut before);
            }
            (_, Advance::Begun, None) => self.tracked = None,
        }
    }
}

/// What has become of the notes of changes with a snapshot.
enum Advance {
    /// They are as before.
    None,
    /// They were begun.
    Begun,
    /// They were begun anew; these were there before.
    Further(Notes),
}

/// Copies a page of a guest at rest; false where it reads as zeroes, and where the guest may not read.
fn read(live: &Live, gpa: u64, page: &mut [u8]) -> bool {
    let (guest, gpa) = (live.guest(), Gpa::new(gpa));
    if guest.read(gpa, page).is_ok() {
        return true;
    }
    // Over an image, what nobody has touched is there.
    let over_image = live.ram().lies_over_image(gpa);
    over_image && guest.fault(gpa, Access::Read).is_ok() && guest.read(gpa, page).is_ok()
}

impl super::memory::ServedRam {
    /// Whether a page that nobody has touched may be other than zeroes.
    fn lies_over_image(&self, gpa: Gpa) -> bool {
        let page = GfnRange::new(gpa.gfn(), 1);
        let is_ram = page.is_ok_and(|page| self.plain().any(|range| range.covers(page)));
        self.commons().template().is_some() || !is_ram
    }
}
