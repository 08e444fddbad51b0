//! What the guest, its devices and the service do, at random.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::addr::{Gfn, GfnRange, GpaRange};
use crate::collapse::{CollapsePolicy, Copying};
use crate::entry::Marker;
use crate::prot::{Access, Prot};

use super::RAM;

#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The guest loads or stores.
    Touch(Gfn, Access),
    Populate(GfnRange),
    Unmap(GfnRange),
    GiveBack(GfnRange),
    TakeBack(GfnRange),
    Protect(GfnRange, Prot),
    Split(GfnRange),
    Mark(GfnRange, Marker),
    Collapse(GfnRange, CollapsePolicy),
    /// A device pins bytes, and keeps them pinned.
    Pin(GpaRange, Access),
    /// It lets go of one of its pins.
    Unpin(Index),
    /// It writes to a page of one of its pins, if it has one for writing.
    DeviceWrite(Index, Index),
    TakeDirty(GfnRange),
    /// Another guest takes all of the pool that is free and goes again: no block is reserved any more, and
    /// pages that are filled next lie anywhere.
    Squeeze,
    /// The mirror call after so many fails.
    Fail(u32),
}

fn gfn() -> impl Strategy<Value = u64> {
    let blocks = (0..RAM.div_ceil(512)).prop_map(|block| block * 512);
    prop_oneof![2 => 0..RAM, 1 => blocks]
}

fn range() -> impl Strategy<Value = GfnRange> {
    let frames = prop_oneof![1..4u64, 1..600u64, Just(512u64), Just(1024u64)];
    (gfn(), frames).prop_map(|(start, frames)| {
        GfnRange::new(Gfn::new(start), frames.min(RAM - start)).unwrap()
    })
}

/// Whole pages more often than not.
fn bytes() -> impl Strategy<Value = GpaRange> {
    let cut = || prop_oneof![3 => Just(0u64), 1 => 1..2000u64];
    (range(), cut(), cut()).prop_map(|(frames, front, back)| {
        let start = frames.start().gpa().checked_add(front).unwrap();
        GpaRange::new(start, frames.bytes() - front - back).unwrap()
    })
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write)]
}

fn policy() -> impl Strategy<Value = CollapsePolicy> {
    let max_holes = prop_oneof![Just(0u32), 0..512u32, Just(511u32)];
    let copying = prop_oneof![3 => Just(Copying::Allowed), 1 => Just(Copying::Never)];
    (max_holes, copying).prop_map(|(max_holes, copying)| CollapsePolicy { max_holes, copying })
}

/// What leaves two pages of a block in each other's place, if the pool has room for it.
fn scatter() -> impl Strategy<Value = Vec<Op>> {
    (0..RAM / 512, 0..511u64).prop_map(|(block, page)| {
        let range = |start, frames| GfnRange::new(Gfn::new(start), frames).unwrap();
        let (block, page) = (range(block * 512, 512), block * 512 + page);
        vec![
            Op::Populate(block),
            Op::Split(block),
            Op::Squeeze,
            Op::Unmap(range(page, 2)),
            Op::Touch(Gfn::new(page + 1), Access::Write),
            Op::Touch(Gfn::new(page), Access::Write),
        ]
    })
}

/// A run of operations.
pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let steps = prop_oneof![12 => op().prop_map(|op| vec![op]), 1 => scatter()];
    prop::collection::vec(steps, 1..60).prop_map(|steps| steps.concat())
}

fn op() -> impl Strategy<Value = Op> {
    let prot = (0..4usize).prop_map(|p| Prot::ALL[p]);
    let marker = (0..Marker::ALL.len()).prop_map(|m| Marker::ALL[m]);
    let index = || any::<Index>();
    prop_oneof![
        6 => (gfn(), access()).prop_map(|(at, access)| Op::Touch(Gfn::new(at), access)),
        3 => range().prop_map(Op::Populate),
        3 => range().prop_map(Op::Unmap),
        3 => range().prop_map(Op::GiveBack),
        2 => range().prop_map(Op::TakeBack),
        2 => (range(), prot).prop_map(|(range, prot)| Op::Protect(range, prot)),
        2 => range().prop_map(Op::Split),
        1 => (range(), marker).prop_map(|(range, marker)| Op::Mark(range, marker)),
        3 => (range(), policy()).prop_map(|(range, policy)| Op::Collapse(range, policy)),
        4 => (bytes(), access()).prop_map(|(bytes, access)| Op::Pin(bytes, access)),
        3 => index().prop_map(Op::Unpin),
        3 => (index(), index()).prop_map(|(pin, page)| Op::DeviceWrite(pin, page)),
        1 => range().prop_map(Op::TakeDirty),
        1 => Just(Op::Squeeze),
        1 => (0..6u32).prop_map(Op::Fail),
    ]
}
