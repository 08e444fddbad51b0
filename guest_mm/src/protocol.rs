//! The steps of the protocols, and those of them that history got wrong.
//!
//! A constant of [`Protocol`] is named after the label of its step in the protocol block at the top of a module, and the
//! code asks for it where the step is taken. [`Sound`] has them all; it is the only one that a production
//! type names. [`historical`] has the others: each leaves one step out, as Linux or an earlier monitor
//! once did, and a test shows the damage.
//!
//! The code also says which [`Step`] it is about to take. Nobody listens to [`Sound`]; with [`Observed`] somebody
//! does, and can hold a thread there.

mod block;
pub mod historical;
mod step;

use std::fmt;
use std::marker::PhantomData;

pub use block::{Block, block};
pub use step::Step;

/// Makes the trait, [`Sound`]'s assertion and [`Observed`]'s forwarding of one list.
macro_rules! protocol {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        /// Which steps are taken.
        pub trait Protocol: Send + Sync + 'static {
            $($(#[$doc])* const $name: bool = true;)*

            /// Called before a step is taken. Locks may be held, and on the way of a pin an epoch.
            #[inline(always)]
            fn at(_step: Step) {}
        }

        const _: () = assert!(
            $(Sound::$name)&&*,
            "the protocol that ships takes every step"
        );

        impl<P: Protocol, O: Observer> Protocol for Observed<P, O> {
            $(const $name: bool = P::$name;)*

            #[inline]
            fn at(step: Step) {
                O::at(step);
            }
        }
    };
}

protocol! {
    /// `continue-vs-zap`, step F5 (`fault`): a published leaf goes into the window before the lock on
    /// its table is released. Without it a zap can come between, and the window keeps a translation
    /// that the table has lost. Origin: ours; KVM guards the same step with `mmu_invalidate_seq`
    /// (Linux e930bffe95e1, "KVM: Synchronize guest physical memory map to host virtual memory map").
    F5_INSTALL_UNDER_LOCK;

    /// `lock-vs-detach`, step L3 (`table::cursor`): after a table's lock is taken, it is looked at
    /// again whether the table still hangs in the tree. Without it an entry goes into a detached table
    /// and its page is lost. Origin: Linux 0d940a9b270b, "mm/pgtable: allow pte_offset_map[_lock]() to
    /// fail".
    L3_RECHECK_ATTACHED;

    /// `walk-vs-free`, step R2 (`table::reclaim`): a detached table is reused only after every walker
    /// that could still be in it has left. Without it a walker reads another range's entries. Origin:
    /// Linux 2667f50e8b81, "mm: introduce a general RCU get_user_pages_fast()".
    R2_GRACE_BEFORE_REUSE;

    /// `pin-vs-collapse`, step P5 (`pin`): with the pin in place, it is looked at again whether the page
    /// directory still points to the page table that the leaf was found in. Without it a pin lands on
    /// a page that a collapse has copied already, and what a device writes there is lost. Origin: Linux
    /// 70cbc3cc78a99, "mm: gup: fix the fast GUP race against THP collapse".
    P5_RECHECK_PDE;

    /// `pin-vs-collapse`, step C5 (`collapse`): the pins are looked at when no walker can find the page
    /// table any more. Looked at before that only, a pin that comes between is overlooked. Origin:
    /// khugepaged counts references after it has cleared and flushed the entry (Linux ba76149f47d8,
    /// "thp: khugepaged"); other code that replaces pages was found to count before, or not at all.
    C5_LOOK_AFTER_FREEZE;

    /// `pin-vs-unexclusive`, step X5 (`share`): the look at the pins and the clearing of the mark are one exchange, as the
    /// pin and the look at the mark are. As two steps they need each of the five that follow. Origin: ours; with two
    /// words for the two it is Linux 088b8aa537c2, "mm: fix PageAnonExclusive clearing racing with concurrent
    /// RCU GUP-fast".
    X5_ONE_EXCHANGE;

    /// `pin-vs-unexclusive`, step P3 (`pin`): a full barrier between the pin and the look at what it rests on.
    /// Without it the look may be the older of the two, and both sides miss each other. On x86 the pin itself is
    /// this barrier. Origin, of this and the four that follow: Linux 088b8aa537c2.
    P3_BARRIER_BEHIND_PIN;

    /// `pin-vs-unexclusive`, step P4 (`pin`): the look at the entry comes before that at the mark. Without it a
    /// mark that was read early vouches for an entry that was restored since. x86 keeps loads in order.
    P4_READ_BARRIER;

    /// `pin-vs-unexclusive`, step P6 (`pin`), if X5 is two steps: the mark is looked at after the entry. Looked at with the
    /// pin only, a frame whose mark went while its entry was out for a moment is pinned for good, and shared.
    P6_RECHECK_MARK;

    /// `pin-vs-unexclusive`, step X3 (`share`): a full barrier between the entry that is taken out and the look at
    /// the pins. On x86 taking the entry out is this barrier.
    X3_BARRIER_BEHIND_CLEAR;

    /// `pin-vs-unexclusive`, step X6 (`share`): who sees the entry restored sees the mark gone. x86 keeps stores
    /// in order.
    X6_WRITE_BARRIER;

    /// `dedup-vs-pin`, step S1 (`share`): the entry is taken out, of the table and of the window, before the pins are
    /// looked at. Looked at before that only, a pin comes between the look and the replacement, and the device
    /// writes to a page that the guest has lost. Origin: Linux, `write_protect_page` and `replace_page` of
    /// ksm.c, which clear and flush before they count (31dbd01f3143, "ksm: Kernel SamePage Merging").
    S1_TAKE_OUT_BEFORE_LOOK;

    /// `dedup-vs-pin`, step S3 (`share`): the pins are looked at, at all. Origin: uprobes' `__replace_page`, which
    /// never did (Linux 2b1444983508, "uprobes, mm, x86: Add the ability to install and remove uprobes
    /// breakpoints").
    S3_LOOK_AT_PINS;

    /// `place-vs-retract`, step T1 (`collapse::retract`): the page directory is locked before the page table is emptied,
    /// and the page table's lock is kept until it is detached. Without it a page that is placed between the two is
    /// lost. Origin: Linux 1043173eb5eb and its repair, "mm/khugepaged: fix collapse_pte_mapped_thp() versus
    /// uffd".
    T1_DIRECTORY_BEFORE_EMPTYING;

    /// `place-vs-retract`, step T3 (`collapse::retract`): the huge leaf is there before the small ones go, so there is
    /// nothing to flush and nothing to give up. A pass that takes them out first, and has to look again when it has
    /// both locks, forgets the flush if it then gives up. Origin: the second draft of that repair, withdrawn for it.
    T3_LEAF_BEFORE_EMPTYING;

    /// `huge-vs-small-fault`, step H3 (`fault::image`): with the directory's lock taken, it is looked at again
    /// whether nothing has come to the block. Without it a huge leaf goes over a page table, and that and
    /// its pages are lost. Origin: Linux e2093926a098, "dax: fix race between colliding PMD & PTE entries".
    H3_RECHECK_HUGE;

    /// `huge-vs-small-fault`, step K3 (`fault::image`): with the lock taken, it is looked at again whether a huge leaf has
    /// come. Without it a page table goes over the leaf, and the counters never recover. Origin: as for H3.
    K3_RECHECK_SMALL;

    /// `huge-map-over-missing`, step M2 (`place`): a block is shown huge only when each of its pages is there. Without
    /// it the guest reads zeroes where pages are still to come. Origin: ours; Cloud Hypervisor's issue 8663
    /// is the same.
    M2_EVERY_PAGE_PRESENT;
}

/// Every step is taken.
#[derive(Debug)]
pub struct Sound;

impl Protocol for Sound {}

/// Hears of the steps that threads are about to take.
pub trait Observer: Send + Sync + 'static {
    /// The calling thread is about to take `step`. It may be kept waiting: for replays and storms, where that is
    /// the purpose.
    fn at(step: Step);
}

/// The protocol `P`, with `O` told of each step.
pub struct Observed<P, O>(PhantomData<(P, O)>);

impl<P: fmt::Debug, O> fmt::Debug for Observed<P, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observed")
    }
}
