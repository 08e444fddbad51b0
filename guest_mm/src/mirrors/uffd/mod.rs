//! The real mirror: windows in this process, kept through userfaultfd.
//!
//! A window is a shared mapping of the pool's file, registered for missing, minor and write-protect
//! faults. KVM's memory slots point at it, so a guest's second-stage tables hold at most what the host's
//! page table holds for the window, and KVM's MMU notifier takes along what leaves it.
//!
//! | table            | window                                                                     |
//! |------------------|----------------------------------------------------------------------------|
//! | install          | `UFFDIO_CONTINUE`: maps the file's page, wakes who waits                   |
//! | install a block  | on huge folios: unregister, so that the host maps it huge at the next touch |
//! | zap              | `MADV_DONTNEED`: the page stays in the file, vCPUs are flushed; an open     |
//! |                  | (unregistered) block is registered again first                             |
//! | protect          | `UFFDIO_WRITEPROTECT`                                                      |
//! | remap            | `mremap` of a registered mapping of the file elsewhere into its place       |
//!
//! A page whose frame is not in its place in its block is a mapping of its own (a *stray*); the kernel
//! allows 65,530 of them (`vm.max_map_count`), after which installing fails by name.

mod descriptor;
mod faults;
mod window;

use rustix::io::Errno;

use crate::addr::{Gfn, GfnRange, Gpa, Hva, PageSize};
use crate::geometry::Level;
use crate::mirror::{Mirror, MirrorError, Run};
use crate::pool::Pool;
use crate::prot::Prot;
use crate::space::RamRegion;
use crate::sync::Arc;

use descriptor::Descriptor;
pub use descriptor::UffdError;
pub use faults::{FaultStats, FaultThreads};
pub use window::WindowError;
use window::{Window, Windows};

/// The mirror of one guest.
#[derive(Debug)]
pub struct Uffd {
    descriptor: Descriptor,
    windows: Windows,
    pool: Arc<Pool>,
}

impl Uffd {
    /// Windows for `ram`, empty.
    pub(crate) fn new(pool: Arc<Pool>, ram: &[RamRegion]) -> Result<Uffd, WindowError> {
        let descriptor = Descriptor::open()?;
        let windows =
            ram.iter()
                .map(|region| {
                    let bytes = region.range.bytes();
                    Window::new(&descriptor, &pool, region)
                        .map_err(|(step, source)| WindowError::Map { bytes, step, source })
                })
                .collect::<Result<Windows, _>>()?;
        Ok(Uffd { descriptor, windows, pool })
    }

    /// Where the guest's RAM is in this process: guest frames and the window's first byte, for memory
    /// slots. Nothing else may use these addresses.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (GfnRange, Hva)> {
        self.windows.iter().map(|window| (window.region(), window.host().start()))
    }

    /// Lets a vCPU leave an access that will never be served: a scratch page that belongs to no memory
    /// takes the window's place there. Only for a guest whose vCPUs have been told to stop and will not
    /// run again; it is the one moment when a window holds more than its table.
    pub(crate) fn abandon(&self, gpa: Gpa) {
        let Some(window) = self.window(gpa.gfn()) else { return };
        // A mapping of huge pages can only be replaced by whole ones.
        let level = self.pool.granule().level().unwrap_or(Level::PT);
        let page = GfnRange::entry(gpa.gfn(), level);
        // Failing, the vCPU's signal still ends the wait of all accesses but those that KVM emulates.
        let _ = window.close(&self.descriptor, page);
        let _ = window.scratch(page);
        let _ = self.descriptor.wake(window.hva(page.start()), page.bytes());
    }

    fn window(&self, gfn: Gfn) -> Option<&Window> {
        self.windows.iter().find(|window| window.region().contains(gfn))
    }

    fn gpa(&self, address: Hva) -> Option<Gpa> {
        self.windows.iter().find_map(|window| {
            let offset = address.as_u64().checked_sub(window.host().start().as_u64())?;
            (offset < window.host().bytes())
                .then(|| Gpa::new(window.region().start().gpa().as_u64() + offset))
        })
    }

    /// Calls `change` for what each window has of `range`.
    fn for_windows(
        &self,
        range: GfnRange,
        step: &'static str,
        change: impl Fn(&Window, GfnRange) -> Result<(), Errno>,
    ) -> Result<(), MirrorError> {
        self.windows
            .iter()
            .filter_map(|window| Some((window, window.region().intersection(range)?)))
            .try_for_each(|(window, part)| {
                change(window, part).map_err(|errno| MirrorError {
                    range: part,
                    step,
                    cause: match errno {
                        Errno::NOMEM => format!("{errno} (is vm.max_map_count reached?)"),
                        errno => errno.to_string(),
                    },
                })
            })
    }
}

impl Mirror for Uffd {
    fn install(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        let page = self.pool.granule();
        self.for_windows(run.range(), "UFFDIO_CONTINUE", |window, range| {
            let frame_of = |gfn: Gfn| run.frame.add(gfn.as_u64() - run.gfn.as_u64());
            for part in range.chunks(PageSize::Size2M.frames()) {
                let frame = frame_of(part.start());
                if !window.is_pointed(part, frame) {
                    if page > PageSize::Size4K {
                        // Its pages cannot be mapped one by one: a block's frames are always in place.
                        return Err(Errno::INVAL);
                    }
                    for gfn in part.iter() {
                        if !window.is_pointed(GfnRange::entry(gfn, Level::PT), frame_of(gfn)) {
                            window.stray(&self.descriptor, &self.pool, gfn, frame_of(gfn))?;
                        }
                    }
                    for gfn in part.iter() {
                        let bytes = page.bytes();
                        self.descriptor.install(window.hva(gfn), bytes, bytes, prot)?;
                    }
                    continue;
                }
                let start = window.hva(part.start());
                if window.is_open(part.start()) {
                    self.descriptor.wake(start, part.bytes())?;
                    continue;
                }
                let whole = part.frames() == PageSize::Size2M.frames();
                if whole && prot == Prot::Rwx && self.pool.has_huge_folios() {
                    match window.open(&self.descriptor, part) {
                        // No mapping is left to split off: the block is served page by page.
                        Err(Errno::NOMEM) => {}
                        result => {
                            result?;
                            continue;
                        }
                    }
                }
                self.descriptor.install(start, part.bytes(), page.bytes(), prot)?;
            }
            Ok(())
        })
    }

    fn zap(&self, range: GfnRange) -> Result<(), MirrorError> {
        self.for_windows(range, "MADV_DONTNEED", |window, part| {
            window.drop_translations(&self.descriptor, &self.pool, part)
        })
    }

    fn protect(&self, range: GfnRange, prot: Prot) -> Result<(), MirrorError> {
        self.for_windows(range, "UFFDIO_WRITEPROTECT", |window, part| {
            if part.chunks(PageSize::Size2M.frames()).any(|block| window.is_open(block.start())) {
                // A huge page cannot be protected in part. Dropped, it comes back with the new rights.
                return window.drop_translations(&self.descriptor, &self.pool, part);
            }
            let start = window.hva(part.start());
            self.descriptor.protect(start, part.bytes(), prot)
        })
    }

    fn remap(&self, run: Run) -> Result<(), MirrorError> {
        self.for_windows(run.range(), "mremap", |window, part| {
            let frame = run.frame.add(part.start().as_u64() - run.gfn.as_u64());
            window.remap(&self.descriptor, &self.pool, part, frame)
        })
    }
}
