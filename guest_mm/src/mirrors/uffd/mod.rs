//! The real mirror: windows in this process, kept through userfaultfd.
//!
//! A window is a shared mapping of the pool's file, registered for missing, minor and write-protect
//! faults. KVM's memory slots point at it, so a guest's second-stage tables hold at most what the host's
//! page table holds for the window, and KVM's MMU notifier takes along what leaves it.
//!
//! | table            | window                                                                     |
//! |------------------|----------------------------------------------------------------------------|
//! | install          | `UFFDIO_CONTINUE`: maps the file's page, wakes who waits                   |
//! | install a block  | on huge folios: unregister, so that the host maps it huge at the next touch; |
//! |                  | elsewhere than its block points: `mmap`, which leaves it unregistered       |
//! | promote          | unregister, and let the host map or make a huge page                       |
//! | replace          | `mmap` of the new page over the old, which flushes it; else as zap         |
//! | zap              | `MADV_DONTNEED`: the page stays in the file, vCPUs are flushed; an open     |
//! |                  | (unregistered) block is registered again first; nothing for a leaf whose   |
//! |                  | frame the window does not show there                                       |
//! | protect          | `UFFDIO_WRITEPROTECT`                                                      |
//! | remap            | `mremap` of a registered mapping of the file elsewhere into its place       |
//!
//! A page whose frame is not in its place in its block is a mapping of its own (a *stray*); the kernel
//! allows 65,530 of them (`vm.max_map_count`), after which installing fails by name. What nobody waits
//! for is not installed if it would be a stray.

mod descriptor;
mod faults;
mod strays;
mod window;

use rustix::io::Errno;

use crate::addr::{FrameNo, Gfn, GfnRange, Gpa, Hva, PageSize};
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

impl Uffd {
    /// Puts what `part`, in one block, has of a run into its window; `frame` backs its first page.
    fn install_in_block(
        &self,
        window: &Window,
        part: GfnRange,
        frame: FrameNo,
        prot: Prot,
    ) -> Result<(), Errno> {
        let page = self.pool.granule();
        let whole = part.frames() == PageSize::Size2M.frames();
        let start = window.hva(part.start());
        let pointed = window.is_pointed(part, frame);
        if pointed && window.is_open(part.start()) {
            return self.descriptor.wake(start, part.bytes());
        }
        if whole && prot == Prot::Rwx && (self.pool.has_huge_folios() || !pointed) {
            let opened = match pointed {
                true => window.open(&self.descriptor, &self.pool, part),
                false => window.show(&self.descriptor, &self.pool, part, frame),
            };
            // Where no mapping is left to split off, the block stays as it is mapped, and is filled in it.
            if opened != Err(Errno::NOMEM) {
                return opened;
            }
        }
        if !pointed && whole {
            window.remap(&self.descriptor, &self.pool, part, frame)?;
        } else if !pointed || window.strays().any_in(part) {
            return part.iter().try_for_each(|gfn| {
                self.install_page(
                    window,
                    gfn,
                    frame.add(gfn.as_u64() - part.start().as_u64()),
                    prot,
                )
            });
        }
        self.descriptor.install(start, part.bytes(), page.bytes(), prot)
    }

    fn install_page(
        &self,
        window: &Window,
        gfn: Gfn,
        frame: FrameNo,
        prot: Prot,
    ) -> Result<(), Errno> {
        let page = self.pool.granule();
        if page > PageSize::Size4K {
            // Its pages cannot be mapped one by one: a block's frames are always in place.
            return Err(Errno::INVAL);
        }
        let start = window.hva(gfn);
        let pointed = window.is_pointed(GfnRange::entry(gfn, Level::PT), frame);
        if pointed && window.strays().get(gfn).is_some_and(|stray| stray.open) {
            return self.descriptor.wake(start, page.bytes());
        }
        if !pointed && prot == Prot::Rwx {
            return window.stray_open(&self.descriptor, &self.pool, gfn, frame);
        }
        if !pointed {
            window.stray(&self.descriptor, &self.pool, gfn, frame)?;
        }
        self.descriptor.install(start, page.bytes(), page.bytes(), prot)
    }
}

impl Mirror for Uffd {
    fn install(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        // What `replace` has put there: nothing is left to do but to wake who waits.
        if run.frames == 1
            && let Some(window) = self.window(run.gfn)
            && window.strays().get(run.gfn).is_some_and(|it| it.open && it.frame == run.frame)
        {
            return self.for_windows(run.range(), "UFFDIO_WAKE", |window, page| {
                self.descriptor.wake(window.hva(page.start()), page.bytes())
            });
        }
        self.for_windows(run.range(), "UFFDIO_CONTINUE", |window, range| {
            range.chunks(PageSize::Size2M.frames()).try_for_each(|part| {
                self.install_in_block(window, part, run.frame_of(part.start()), prot)
            })
        })
    }

    fn offer(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        self.for_windows(run.range(), "UFFDIO_CONTINUE", |window, range| {
            range.chunks(PageSize::Size2M.frames()).try_for_each(|part| {
                let frame = run.frame_of(part.start());
                // Out of place, every page would be a mapping of its own, of which the kernel has few.
                if !window.is_pointed(part, frame) && part.frames() < PageSize::Size2M.frames() {
                    return Ok(());
                }
                self.install_in_block(window, part, frame, prot)
            })
        })
    }

    fn promote(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        self.for_windows(run.range(), "UFFDIO_UNREGISTER", |window, block| {
            let frame = run.frame_of(block.start());
            if prot != Prot::Rwx || window.is_open(block.start()) {
                // What the window shows by small pages stays right.
                return Ok(());
            }
            if window.is_pointed(block, frame) && !window.strays().any_in(block) {
                window.open(&self.descriptor, &self.pool, block)?;
            } else {
                window.show(&self.descriptor, &self.pool, block, frame)?;
            }
            window.touch(block.start());
            Ok(())
        })
    }

    fn settle(&self, range: GfnRange) {
        if self.pool.has_huge_folios() {
            return;
        }
        for window in self.windows.iter() {
            let part = window.region().intersection(range);
            for block in part.into_iter().flat_map(|part| part.chunks(PageSize::Size2M.frames())) {
                if window.is_open(block.start()) {
                    window.gather(block);
                }
            }
        }
    }

    fn zap(&self, range: GfnRange) -> Result<(), MirrorError> {
        self.for_windows(range, "MADV_DONTNEED", |window, part| {
            window.drop_translations(&self.descriptor, &self.pool, part)?;
            // Who waits for a page that was to come asks again: perhaps it never will.
            self.descriptor.wake(window.hva(part.start()), part.bytes())
        })
    }

    fn replace(&self, run: Run, prot: Prot) -> Result<(), MirrorError> {
        let range = run.range();
        let window = self.window(run.gfn).filter(|window| {
            // What the host fills by itself, and what would be no stray, takes the long way.
            let closed = run.frames == 1 && prot == Prot::Rwx && !window.is_open(run.gfn);
            closed && self.pool.granule() == PageSize::Size4K && !window.is_home(run.gfn, run.frame)
        });
        let replaced = window.map(|window| window.exchange(&self.pool, run.gfn, run.frame));
        match replaced {
            Some(Ok(())) => Ok(()),
            // Where no mapping is left to split off, the old page goes all the same.
            Some(Err(_)) | None => self.zap(range),
        }
    }

    fn zap_leaf(&self, leaf: Run) -> Result<(), MirrorError> {
        self.for_windows(leaf.range(), "MADV_DONTNEED", |window, part| {
            if part.frames() == 1 && !window.is_pointed(part, leaf.frame_of(part.start())) {
                // The window holds what the table holds, or less. It shows another frame here, so it holds nothing: the
                // page was merged, or copied, and has not been touched since.
                return Ok(());
            }
            window.drop_translations(&self.descriptor, &self.pool, part)
        })
    }

    fn protect(&self, range: GfnRange, prot: Prot) -> Result<(), MirrorError> {
        self.for_windows(range, "UFFDIO_WRITEPROTECT", |window, part| {
            if window.has_open(part) {
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
