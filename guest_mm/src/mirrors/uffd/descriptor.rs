//! The userfaultfd and its ioctls, typed.
#![allow(unsafe_code, reason = "ioctls, each with the structure that its number asks for")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general::{
    _UFFDIO_CONTINUE, UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_EVENT_REMAP,
    UFFD_FEATURE_EXACT_ADDRESS, UFFD_FEATURE_MINOR_HUGETLBFS, UFFD_FEATURE_MINOR_SHMEM,
    UFFD_FEATURE_MISSING_HUGETLBFS, UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE,
    UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, uffd_msg,
    uffdio_api, uffdio_continue, uffdio_range, uffdio_register, uffdio_writeprotect,
};
use linux_raw_sys::ioctl::{
    UFFDIO_API, UFFDIO_CONTINUE, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE,
    UFFDIO_WRITEPROTECT,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use crate::addr::Hva;
use crate::geometry::FRAME_BYTES;
use crate::prot::{Access, Prot};

/// `_IO(0xAA, 0)`: `/dev/userfaultfd` makes a new descriptor, its flags the argument.
const USERFAULTFD_IOC_NEW: Opcode = 0xaa00;
/// `UFFDIO_CONTINUE_MODE_WP`: install write-protected (Linux 6.4).
const CONTINUE_WRITE_PROTECTED: u64 = 1 << 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`: protect; without it, unprotect and wake.
const WRITE_PROTECT: u64 = 1 << 0;

/// What the window needs of the kernel.
const FEATURES: u32 = UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | UFFD_FEATURE_MISSING_SHMEM
    | UFFD_FEATURE_MISSING_HUGETLBFS
    | UFFD_FEATURE_MINOR_SHMEM
    | UFFD_FEATURE_MINOR_HUGETLBFS
    | UFFD_FEATURE_WP_HUGETLBFS_SHMEM
    | UFFD_FEATURE_EXACT_ADDRESS
    // A moved mapping stays registered (`Window::map`).
    | UFFD_FEATURE_EVENT_REMAP;

/// How long the mover of a mapping waits before it looks whether somebody else read its event.
const MOVE_WAIT_NS: i64 = 200_000;

/// Messages that one read takes at most.
pub(super) const BATCH: usize = 16;

/// Why there is no userfaultfd.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// No right to one that sees a guest's faults.
    #[error(
        "cannot open a userfaultfd for guest faults ({0}): run as root, or give this user /dev/userfaultfd \
         (chown or a udev rule)"
    )]
    Open(io::Error),
    /// The kernel is too old.
    #[error(
        "this kernel's userfaultfd lacks minor faults or write protection on shared memory ({0}): Linux 6.4 has them"
    )]
    Features(Errno),
}

/// One access that the window does not translate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) address: Hva,
    pub(super) access: Access,
}

/// The descriptor.
#[derive(Debug)]
pub(super) struct Descriptor(OwnedFd);

impl Descriptor {
    /// A userfaultfd that also sees faults of the kernel's, which a guest's are.
    pub(super) fn open() -> Result<Descriptor, UffdError> {
        let fd = from_device().or_else(|refused| match from_system_call() {
            Ok(fd) => Ok(fd),
            // What the device said teaches more, unless there is no device.
            Err(errno) if refused.kind() == io::ErrorKind::NotFound => Err(io::Error::from(errno)),
            Err(_) => Err(refused),
        });
        let fd = fd.map_err(UffdError::Open)?;
        let mut api = uffdio_api { api: UFFD_API.into(), features: FEATURES.into(), ioctls: 0 };
        // SAFETY: UFFDIO_API reads and writes one `uffdio_api`.
        unsafe { ioctl(&fd, Updater::<{ UFFDIO_API as Opcode }, _>::new(&mut api)) }
            .map_err(UffdError::Features)?;
        Ok(Descriptor(fd))
    }

    /// Registers `bytes` at `start` for faults on absent, unmapped and write-protected pages.
    pub(super) fn register(&self, start: Hva, bytes: u64) -> Result<(), Errno> {
        let mode =
            UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;
        let mut arg = uffdio_register { range: range(start, bytes), mode: mode.into(), ioctls: 0 };
        // SAFETY: UFFDIO_REGISTER reads and writes one `uffdio_register`.
        unsafe { ioctl(&self.0, Updater::<{ UFFDIO_REGISTER as Opcode }, _>::new(&mut arg)) }?;
        // Old kernels register shared memory and then cannot continue it.
        if arg.ioctls >> _UFFDIO_CONTINUE & 1 == 0 { Err(Errno::OPNOTSUPP) } else { Ok(()) }
    }

    /// Lets the host fill `bytes` at `start` from the file without asking, and wakes who waits there.
    pub(super) fn unregister(&self, start: Hva, bytes: u64) -> Result<(), Errno> {
        let range = range(start, bytes);
        // SAFETY: UFFDIO_UNREGISTER reads one `uffdio_range`.
        unsafe { ioctl(&self.0, Setter::<{ UFFDIO_UNREGISTER as Opcode }, _>::new(range)) }
    }

    /// Maps the file's pages at `start` into the window and wakes who waits there. Pages that are mapped
    /// already stay.
    pub(super) fn install(
        &self,
        start: Hva,
        bytes: u64,
        page: u64,
        prot: Prot,
    ) -> Result<(), Errno> {
        let mode = if prot.writable() { 0 } else { CONTINUE_WRITE_PROTECTED };
        let mut done = 0;
        while done < bytes {
            let range = range(start.add(done), bytes - done);
            let mut arg = uffdio_continue { range, mode, mapped: 0 };
            // SAFETY: UFFDIO_CONTINUE reads and writes one `uffdio_continue`.
            let result = unsafe {
                ioctl(&self.0, Updater::<{ UFFDIO_CONTINUE as Opcode }, _>::new(&mut arg))
            };
            done += arg.mapped.max(0) as u64;
            match result {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {
                    // A waiter that came between the mapping and its message is still asleep.
                    self.wake(start.add(done), page)?;
                    done += page;
                }
                // A mapping is being moved.
                Err(Errno::AGAIN) => std::thread::yield_now(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the right to write from `bytes` at `start`, or gives it back and wakes, as `prot` says.
    pub(super) fn protect(&self, start: Hva, bytes: u64, prot: Prot) -> Result<(), Errno> {
        let mode = if prot.writable() { 0 } else { WRITE_PROTECT };
        loop {
            let mut arg = uffdio_writeprotect { range: range(start, bytes), mode };
            // SAFETY: UFFDIO_WRITEPROTECT reads and writes one `uffdio_writeprotect`.
            let result = unsafe {
                ioctl(&self.0, Updater::<{ UFFDIO_WRITEPROTECT as Opcode }, _>::new(&mut arg))
            };
            if result != Err(Errno::AGAIN) {
                return result;
            }
            std::thread::yield_now();
        }
    }

    /// Lets whoever waits in `bytes` at `start` try again.
    pub(super) fn wake(&self, start: Hva, bytes: u64) -> Result<(), Errno> {
        // SAFETY: UFFDIO_WAKE reads one `uffdio_range`.
        unsafe { ioctl(&self.0, Setter::<{ UFFDIO_WAKE as Opcode }, _>::new(range(start, bytes))) }
    }

    /// Waits a little for messages, and lets every access that they report try again, so that it is
    /// reported again; whether the event of a moved mapping was among them.
    pub(super) fn pass_over_messages(&self) -> Result<bool, Errno> {
        let wait = Timespec { tv_sec: 0, tv_nsec: MOVE_WAIT_NS };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&wait))?;
        let mut messages = Vec::new();
        let others = self.read(&mut messages)?;
        for message in messages {
            let page = Hva::new(message.address.as_u64() & !(FRAME_BYTES - 1));
            self.wake(page, FRAME_BYTES)?;
        }
        Ok(others > 0)
    }

    /// Takes up to [`BATCH`] messages, without waiting, and adds the faults among them to `into`; how many
    /// others there were.
    pub(super) fn read(&self, into: &mut Vec<Message>) -> Result<usize, Errno> {
        const BYTES: usize = size_of::<uffd_msg>();
        let mut buffer = [0u8; BATCH * BYTES];
        let bytes = match rustix::io::read(&self.0, &mut buffer) {
            Err(Errno::AGAIN | Errno::INTR) => 0,
            result => result?,
        };
        let mut others = 0;
        for raw in buffer[..bytes].chunks_exact(BYTES) {
            // SAFETY: the kernel wrote a whole message here, and every bit pattern is one; the read
            // does not ask for alignment.
            let message = unsafe { raw.as_ptr().cast::<uffd_msg>().read_unaligned() };
            if u32::from(message.event) != UFFD_EVENT_PAGEFAULT {
                others += 1;
                continue;
            }
            // SAFETY: the event says which part of the union was written.
            let fault = unsafe { message.arg.pagefault };
            let write =
                fault.flags & u64::from(UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP) != 0;
            let access = if write { Access::Write } else { Access::Read };
            into.push(Message { address: Hva::new(fault.address), access });
        }
        Ok(others)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn range(start: Hva, bytes: u64) -> uffdio_range {
    uffdio_range { start: start.as_u64(), len: bytes }
}

fn from_system_call() -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor is used on windows only, whose pages nothing in this process touches.
    unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }
}

fn from_device() -> Result<OwnedFd, io::Error> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: as in `from_system_call`; the ioctl takes flags and makes a descriptor.
    Ok(unsafe { ioctl(&device, NewDescriptor(flags))? })
}

/// `USERFAULTFD_IOC_NEW`: an argument by value, a descriptor as the result.
struct NewDescriptor(UserfaultfdFlags);

// SAFETY: the opcode takes an integer for its argument and touches no memory of the caller's; its result
// is a new descriptor that nobody else owns.
unsafe impl Ioctl for NewDescriptor {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        USERFAULTFD_IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        self.0.bits() as usize as *mut _
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        // SAFETY: the ioctl succeeded, so `out` is a descriptor made for the caller.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}
