//! The steps of the protocols, and those of them that history got wrong.
//!
//! Each of the latter is a constant of [`Steps`], named after its label in the protocol block at the top of a module, and the
//! code asks [`Protocol::takes`] where the step is taken. [`Sound`] takes them all; it is the only protocol that a production
//! type names. [`historical`] has others: each leaves one step out, as Linux or an earlier monitor
//! once did, and a test shows the damage.
//!
//! The code also says which [`Step`] it is about to take. Nobody listens to [`Sound`]; another protocol may, and can hold a
//! thread there. It may also answer what it takes when the program runs, so that one engine shows every variant.

mod block;
pub mod historical;
mod step;

pub use block::{Block, block};
pub use step::Step;

/// What the code asks before it takes a step that history got wrong, and says before it takes any.
pub trait Protocol: Send + Sync + 'static {
    /// Whether `steps` are taken. The answer is the same for as long as a service with this protocol is used.
    fn takes(steps: Steps) -> bool;

    /// Called before a step is taken. Locks may be held, and on the way of a pin an epoch.
    #[inline(always)]
    fn at(_step: Step) {}
}

/// A set of the steps that history got wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Steps(u32);

/// Makes the constants, a bit each, of one list.
macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        impl Steps {
            numbered! { 0; $($(#[$doc])* $name;)* }

            /// Each of them.
            pub const ALL: Steps = Steps($(Steps::$name.0)|*);

            /// The names of the constants, from the lowest bit up.
            #[cfg(all(test, not(loom)))]
            const NAMES: &[&str] = &[$(stringify!($name)),*];
        }
    };
}

/// Gives each its bit.
macro_rules! numbered {
    ($bit:expr;) => {};
    ($bit:expr; $(#[$doc:meta])* $name:ident; $($rest:tt)*) => {
        $(#[$doc])*
        pub const $name: Steps = Steps(1 << $bit);

        numbered! { $bit + 1; $($rest)* }
    };
}

steps! {
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

impl Steps {
    /// These without `others`.
    #[must_use]
    pub const fn without(self, others: Steps) -> Steps {
        Steps(self.0 & !others.0)
    }

    /// Whether all of `others` are among these.
    #[inline(always)]
    pub const fn contains(self, others: Steps) -> bool {
        self.0 & others.0 == others.0
    }

    /// As a number, a bit for each: for who keeps them in an atomic.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// What [`bits`](Steps::bits) made a number. Other bits are left out.
    pub const fn from_bits(bits: u32) -> Steps {
        Steps(bits & Steps::ALL.0)
    }
}

/// Every step is taken.
#[derive(Debug)]
pub struct Sound;

impl Sound {
    /// Known when the code is compiled, which then asks nothing.
    const STEPS: Steps = Steps::ALL;
}

const _: () =
    assert!(Sound::STEPS.contains(Steps::ALL), "the protocol that ships takes every step");

impl Protocol for Sound {
    #[inline(always)]
    fn takes(steps: Steps) -> bool {
        const { Sound::STEPS }.contains(steps)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_constant_has_a_bit_and_begins_with_a_label() {
        assert_eq!(Steps::ALL.bits().count_ones() as usize, Steps::NAMES.len());
        let labels: Vec<String> = Step::ALL.iter().map(|step| step.label()).collect();
        for name in Steps::NAMES {
            let label = name.split('_').next().unwrap_or_default();
            assert!(labels.iter().any(|known| known == label), "{name} begins with no label");
        }
    }

    #[test]
    fn sound_takes_each_step_and_a_historical_protocol_all_but_its_own() {
        use historical::{PinWithoutMark, PinWithoutPde};
        for bit in 0..Steps::NAMES.len() {
            let step = Steps::from_bits(1 << bit);
            assert!(Sound::takes(step));
            assert_eq!(PinWithoutPde::takes(step), step != Steps::P5_RECHECK_PDE);
            let own = [Steps::X5_ONE_EXCHANGE, Steps::P6_RECHECK_MARK];
            assert_eq!(PinWithoutMark::takes(step), !own.contains(&step));
        }
        assert!(!PinWithoutPde::takes(Steps::ALL));
    }

    #[test]
    fn steps_survive_as_a_number() {
        let some = Steps::ALL.without(Steps::M2_EVERY_PAGE_PRESENT);
        assert_eq!(Steps::from_bits(some.bits()), some);
        assert_eq!(Steps::from_bits(u32::MAX), Steps::ALL);
    }
}
