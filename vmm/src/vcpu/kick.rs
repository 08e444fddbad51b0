//! Getting a vCPU out of the guest.
//!
//! A signal ends `KVM_RUN`, and its handler sets the vCPU's `immediate_exit`, so that a signal that comes
//! just before `KVM_RUN` ends that one too (Linux Documentation/virt/kvm/api.rst, `immediate_exit`).
#![allow(unsafe_code, reason = "a signal handler, and the flag that it sets")]

use std::cell::Cell;
use std::io;
use std::mem::zeroed;
use std::ptr::{addr_of_mut, null_mut};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs. Constant and without a destructor, so
    /// that a signal handler may read it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: the flag belongs to a mapping that outlives the thread-local's value: `Kick::bound`
        // clears it before the vCPU can go away. Written and read by this thread and the kernel only.
        unsafe { flag.write_volatile(1) };
    }
}

/// The right to be kicked: while it lives, a kick ends this thread's `KVM_RUN`.
#[derive(Debug)]
pub struct Kick(());

impl Kick {
    /// Makes kicks possible in this process. Call once, before the first vCPU thread.
    ///
    /// # Errors
    /// What `sigaction` says.
    pub fn prepare() -> Result<(), errno::Error> {
        register_signal_handler(SIGRTMIN(), on_kick)
    }

    /// Binds this thread to the vCPU that it runs.
    pub(super) fn bound(vcpu: &mut VcpuFd) -> Kick {
        IMMEDIATE_EXIT.set(addr_of_mut!(vcpu.get_kvm_run().immediate_exit));
        Kick(())
    }

    /// Kicks the vCPU of a thread; nothing happens to a thread that has ended.
    pub fn kick<T>(thread: &JoinHandle<T>) {
        // Failing means that the thread is gone.
        let _ = thread.kill(SIGRTMIN());
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(null_mut());
    }
}

/// Kicks the thread that made it, once, after a time.
#[derive(Debug)]
pub(super) struct Alarm(libc::timer_t);

impl Alarm {
    /// An alarm of this thread, not set.
    ///
    /// # Errors
    /// What `timer_create` says.
    pub(super) fn new() -> io::Result<Alarm> {
        // SAFETY: all zeroes is a `sigevent`.
        let mut event: libc::sigevent = unsafe { zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_pid();
        let mut timer: libc::timer_t = null_mut();
        // SAFETY: both live during the call.
        match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) } {
            0 => Ok(Alarm(timer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sets it.
    pub(super) fn set(&self, after: Duration) {
        let it_value = libc::timespec {
            tv_sec: after.as_secs() as libc::time_t,
            tv_nsec: after.subsec_nanos().into(),
        };
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::itimerspec { it_interval: never, it_value };
        // SAFETY: the timer is there until this is dropped; it cannot fail on one that is, with a time that is one.
        unsafe { libc::timer_settime(self.0, 0, &raw const value, null_mut()) };
    }

    /// It will not ring any more; but it may just have.
    pub(super) fn clear(&self) {
        self.set(Duration::ZERO);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: made by `new`, deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}
