//! The steps of the protocols that history got wrong, one constant each.
//!
//! A constant is named after the label of its step in the protocol block at the top of a module, and the
//! code asks for it where the step is taken. [`Sound`] has them all; it is the only one that a production
//! type names. `historical` has the others: each leaves one step out, as Linux or an earlier monitor
//! once did, and a test shows the damage.

/// Which steps are taken.
pub trait Protocol: Send + Sync + 'static {
    /// `continue-vs-zap`, step F5 (`fault`): a published leaf goes into the window before the lock on
    /// its table is released. Without it a zap can come between, and the window keeps a translation
    /// that the table has lost. Origin: ours; KVM guards the same step with `mmu_invalidate_seq`
    /// (Linux e930bffe95e1, "KVM: Synchronize guest physical memory map to host virtual memory map").
    const F5_INSTALL_UNDER_LOCK: bool = true;

    /// `lock-vs-detach`, step L3 (`table::cursor`): after a table's lock is taken, it is looked at
    /// again whether the table still hangs in the tree. Without it an entry goes into a detached table
    /// and its page is lost. Origin: Linux 0d940a9b270b, "mm/pgtable: allow pte_offset_map[_lock]() to
    /// fail".
    const L3_RECHECK_ATTACHED: bool = true;

    /// `walk-vs-free`, step R2 (`table::reclaim`): a detached table is reused only after every walker
    /// that could still be in it has left. Without it a walker reads another range's entries. Origin:
    /// Linux 2667f50e8b81, "mm: introduce a general RCU get_user_pages_fast()".
    const R2_GRACE_BEFORE_REUSE: bool = true;
}

/// Every step is taken.
#[derive(Debug)]
pub struct Sound;

impl Protocol for Sound {}

const _: () = assert!(
    Sound::F5_INSTALL_UNDER_LOCK && Sound::L3_RECHECK_ATTACHED && Sound::R2_GRACE_BEFORE_REUSE,
    "the protocol that ships takes every step"
);

/// Protocols that leave one step out, for the tests that show what it is good for.
#[cfg(loom)]
pub(crate) mod historical {
    use super::Protocol;

    /// A leaf is installed in the window after its lock was dropped.
    #[derive(Debug)]
    pub(crate) struct InstallAfterUnlock;
    impl Protocol for InstallAfterUnlock {
        const F5_INSTALL_UNDER_LOCK: bool = false;
    }

    /// A locked table is taken for attached.
    #[derive(Debug)]
    pub(crate) struct LockWithoutRecheck;
    impl Protocol for LockWithoutRecheck {
        const L3_RECHECK_ATTACHED: bool = false;
    }

    /// A detached table is reused at once.
    #[derive(Debug)]
    pub(crate) struct FreeWithoutGrace;
    impl Protocol for FreeWithoutGrace {
        const R2_GRACE_BEFORE_REUSE: bool = false;
    }
}
