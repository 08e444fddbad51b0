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

    /// `pin-vs-collapse`, step P5 (`pin`): with the pin in place, it is looked at again whether the page
    /// directory still points to the page table that the leaf was found in. Without it a pin lands on
    /// a page that a collapse has copied already, and what a device writes there is lost. Origin: Linux
    /// 70cbc3cc78a99, "mm: gup: fix the fast GUP race against THP collapse".
    const P5_RECHECK_PDE: bool = true;

    /// `pin-vs-collapse`, step C5 (`collapse`): the pins are looked at when no walker can find the page
    /// table any more. Looked at before that only, a pin that comes between is overlooked. Origin:
    /// khugepaged counts references after it has cleared and flushed the entry (Linux ba76149f47d8,
    /// "thp: khugepaged"); other code that replaces pages was found to count before, or not at all.
    const C5_LOOK_AFTER_FREEZE: bool = true;
}

/// Every step is taken.
#[derive(Debug)]
pub struct Sound;

impl Protocol for Sound {}

const _: () = assert!(
    Sound::F5_INSTALL_UNDER_LOCK
        && Sound::L3_RECHECK_ATTACHED
        && Sound::R2_GRACE_BEFORE_REUSE
        && Sound::P5_RECHECK_PDE
        && Sound::C5_LOOK_AFTER_FREEZE,
    "the protocol that ships takes every step"
);

/// Protocols that leave one step out, for those who want to see what it is good for. A service with one of
/// them loses data: that is what they are for.
pub mod historical {
    use super::Protocol;

    /// A leaf is installed in the window after its lock was dropped.
    #[derive(Debug)]
    pub struct InstallAfterUnlock;
    impl Protocol for InstallAfterUnlock {
        const F5_INSTALL_UNDER_LOCK: bool = false;
    }

    /// A locked table is taken for attached.
    #[derive(Debug)]
    pub struct LockWithoutRecheck;
    impl Protocol for LockWithoutRecheck {
        const L3_RECHECK_ATTACHED: bool = false;
    }

    /// A detached table is reused at once.
    #[derive(Debug)]
    pub struct FreeWithoutGrace;
    impl Protocol for FreeWithoutGrace {
        const R2_GRACE_BEFORE_REUSE: bool = false;
    }

    /// A pin is taken for good though the page table may be on its way out.
    #[derive(Debug)]
    pub struct PinWithoutPde;
    impl Protocol for PinWithoutPde {
        const P5_RECHECK_PDE: bool = false;
    }

    /// A collapse looks at the pins while new ones can still come.
    #[derive(Debug)]
    pub struct LookBeforeFreeze;
    impl Protocol for LookBeforeFreeze {
        const C5_LOOK_AFTER_FREEZE: bool = false;
    }
}
