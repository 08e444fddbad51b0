//! Protocols that leave a step out, for those who want to see what it is good for. A service with one of
//! them loses data, unless it says otherwise: that is what they are for.

use super::{Protocol, Steps};

/// Makes a protocol that lacks one step, or one beside those that need each other.
macro_rules! lacking {
    ($($(#[$doc:meta])* $name:ident: $($step:ident)+;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl $name {
            /// What it takes.
            pub const STEPS: Steps = Steps::ALL$(.without(Steps::$step))+;
        }

        impl Protocol for $name {
            #[inline(always)]
            fn takes(steps: Steps) -> bool {
                Self::STEPS.contains(steps)
            }
        }
    )*};
}

lacking! {
    /// A leaf is installed in the window after its lock was dropped.
    InstallAfterUnlock: F5_INSTALL_UNDER_LOCK;
    /// A locked table is taken for attached.
    LockWithoutRecheck: L3_RECHECK_ATTACHED;
    /// A detached table is reused at once.
    FreeWithoutGrace: R2_GRACE_BEFORE_REUSE;
    /// A pin is taken for good though the page table may be on its way out.
    PinWithoutPde: P5_RECHECK_PDE;
    /// A collapse looks at the pins while new ones can still come.
    LookBeforeFreeze: C5_LOOK_AFTER_FREEZE;
    /// The look at the pins and the clearing of the mark are two steps, as in Linux. It holds: those that follow are
    /// this, and lack one more.
    TwoSteps: X5_ONE_EXCHANGE;
    /// The look at the entry may overtake the pin.
    PinWithoutBarrier: X5_ONE_EXCHANGE P3_BARRIER_BEHIND_PIN;
    /// The look at the mark may overtake that at the entry.
    PinWithoutReadBarrier: X5_ONE_EXCHANGE P4_READ_BARRIER;
    /// The mark is looked at with the pin, and not again.
    PinWithoutMark: X5_ONE_EXCHANGE P6_RECHECK_MARK;
    /// The look at the pins may overtake the clearing of the entry.
    LookWithoutBarrier: X5_ONE_EXCHANGE X3_BARRIER_BEHIND_CLEAR;
    /// The entry may be restored before the mark is gone.
    RestoreWithoutBarrier: X5_ONE_EXCHANGE X6_WRITE_BARRIER;
    /// Pins are looked at while new ones can still come, and the page replaced then.
    CountBeforeZap: S1_TAKE_OUT_BEFORE_LOOK;
    /// A page is replaced whoever has it pinned.
    NeverCount: S3_LOOK_AT_PINS;
    /// A page table is emptied, unlocked, and then detached.
    RetractUnlocked: T1_DIRECTORY_BEFORE_EMPTYING;
    /// A page table is emptied before it is clear that it goes, and what was taken out is not flushed if it stays.
    RetractUnflushed: T3_LEAF_BEFORE_EMPTYING;
    /// A huge leaf goes where a page table has come meanwhile.
    HugeWithoutRecheck: H3_RECHECK_HUGE;
    /// A page table goes where a huge leaf has come meanwhile.
    SmallWithoutRecheck: K3_RECHECK_SMALL;
    /// A block is shown huge as soon as its first page is there.
    HugeOnFirstPage: M2_EVERY_PAGE_PRESENT;
}
