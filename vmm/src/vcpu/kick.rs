//! Getting a vCPU out of the guest.
//!
//! A signal ends `KVM_RUN`, and its handler sets the vCPU's `immediate_exit`, so that a signal that comes
//! just before `KVM_RUN` ends that one too (Linux Documentation/virt/kvm/api.rst, `immediate_exit`).
#![allow(unsafe_code, reason = "a signal handler, and the flag that it sets")]

use std::cell::Cell;
use std::ptr::{addr_of_mut, null_mut};
use std::thread::JoinHandle;

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
