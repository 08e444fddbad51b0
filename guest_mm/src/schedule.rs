//! How soon a thread runs that has something to do, while others want its processor.
//!
//! Linux gives whoever wakes the processor at once if its slice is shorter than the running thread's, and it has not had more than
//! its share (`kernel/sched/fair.c`, `PREEMPT_SHORT`, Linux 6.12; older kernels take no notice of the slice). No right is needed for
//! it, and no thread gets more time by it.
#![allow(unsafe_code, reason = "a system call that no crate of the tree has")]

/// A slice of [`promptly`], in ns: the shortest that the kernel takes.
const SHORT: u64 = 100_000;

/// The calling thread does little at a time, and somebody waits for it.
pub(crate) fn promptly() {
    // SAFETY: all of its fields are numbers.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    attributes.size = size_of::<libc::sched_attr>() as u32;
    attributes.sched_policy = libc::SCHED_OTHER as u32;
    attributes.sched_runtime = SHORT;
    // SAFETY: the kernel reads `size` bytes of it; thread 0 is the caller. Refused, the thread is as any other.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy_and_slice() -> (u32, u64) {
        // SAFETY: as in `promptly`; the kernel writes as many bytes as it is told that there are.
        unsafe {
            let mut attributes: libc::sched_attr = std::mem::zeroed();
            let size = size_of::<libc::sched_attr>() as u32;
            let got = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0);
            assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
            (attributes.sched_policy, attributes.sched_runtime)
        }
    }

    #[test]
    fn the_kernel_takes_what_it_is_told() {
        let (_, whatever) = policy_and_slice();
        promptly();
        let (policy, slice) = policy_and_slice();
        assert_eq!(policy, libc::SCHED_OTHER as u32);
        // Kernels before 6.12 show nothing.
        assert!(slice == SHORT || slice == whatever, "{slice}");
    }
}
