//! Who owns a frame, step by step.

use super::*;

const BLOCK: u64 = PageSize::Size2M.frames();

#[test]
fn a_reservation_hands_out_its_frames_in_place() {
    let ledger = Ledger::new(4 * BLOCK);
    let reservation = ledger.reserve(BlockNo::new(2)).unwrap();
    assert_eq!(ledger.claim(reservation, 7), Some(BlockNo::new(2).first().add(7)));
    assert_eq!(ledger.claim(reservation, 7), None, "it is in use");
    let usage = ledger.usage();
    assert_eq!((usage.free, usage.reserved, usage.used), (3 * BLOCK, BLOCK - 1, 1));
}

#[test]
fn a_reservation_that_nothing_was_claimed_of_counts_and_ends_as_any_other() {
    let ledger = Ledger::new(2 * BLOCK);
    let fresh = ledger.reserve(BlockNo::new(0)).unwrap();
    let usage = ledger.usage();
    assert_eq!((usage.free, usage.reserved, usage.used), (BLOCK, BLOCK, 0));
    ledger.unreserve(fresh);
    assert_eq!(ledger.usage().free, 2 * BLOCK);
    assert_eq!(ledger.claim(fresh, 0), None, "it has ended");
    // Broken up, its frames go to whoever asks.
    let fresh = ledger.reserve(BlockNo::new(0)).unwrap();
    let all = (0..2 * BLOCK).map(|_| ledger.alloc_frame()).filter(Result::is_ok).count() as u64;
    assert_eq!((all, ledger.claim(fresh, 0)), (2 * BLOCK, None));
    assert_eq!(ledger.usage().reserved, 0);
}

#[test]
fn under_pressure_the_oldest_reservation_is_broken_up() {
    let ledger = Ledger::new(2 * BLOCK);
    let old = ledger.reserve(BlockNo::new(0)).unwrap();
    let young = ledger.reserve(BlockNo::new(1)).unwrap();
    let kept = ledger.claim(old, 0).unwrap();
    let scattered = ledger.alloc_frame().unwrap();
    assert_eq!(scattered.block(), old.block());
    assert_ne!(scattered, kept);
    assert_eq!(ledger.claim(old, 5), None, "broken up");
    assert!(ledger.claim(young, 5).is_some(), "not needed yet");
}

#[test]
fn every_frame_can_be_used_before_the_pool_is_exhausted() {
    let ledger = Ledger::new(2 * BLOCK);
    let reservation = ledger.reserve(BlockNo::new(0)).unwrap();
    ledger.claim(reservation, 0).unwrap();
    for _ in 0..2 * BLOCK - 1 {
        ledger.alloc_frame().unwrap();
    }
    assert_eq!(ledger.alloc_frame(), Err(Exhausted { frames: 2 * BLOCK }));
}

#[test]
fn a_frame_freed_in_a_reserved_block_stays_with_its_guest() {
    let ledger = Ledger::new(BLOCK);
    let reservation = ledger.reserve(BlockNo::new(0)).unwrap();
    let frame = ledger.claim(reservation, 3).unwrap();
    ledger.release(frame, 1);
    assert_eq!(ledger.claim(reservation, 3), Some(frame));
    ledger.release(frame, 1);
    ledger.unreserve(reservation);
    assert_eq!(ledger.usage().free, BLOCK);
}

#[test]
fn a_late_end_of_a_broken_up_reservation_does_not_hurt_its_successor() {
    let ledger = Ledger::new(BLOCK);
    let first = ledger.reserve(BlockNo::new(0)).unwrap();
    let frame = ledger.alloc_frame().unwrap();
    ledger.release(frame, 1);
    let second = ledger.reserve(BlockNo::new(0)).unwrap();
    ledger.unreserve(first);
    assert!(ledger.claim(second, 0).is_some());
}

#[test]
fn a_pinned_frame_waits_for_its_last_pin() {
    let ledger = Ledger::new(BLOCK);
    let frame = ledger.alloc_frame().unwrap();
    let _ = ledger.frames().words().pin(frame);
    let _ = ledger.frames().words().pin(frame);
    ledger.release(frame, 1);
    assert_eq!((ledger.usage().free, ledger.usage().orphans), (BLOCK - 1, 1));
    assert!(!ledger.frames().words().unpin(frame), "one pin is left");
    assert!(ledger.frames().words().unpin(frame));
    ledger.reap(frame);
    ledger.reap(frame);
    assert_eq!((ledger.usage().free, ledger.usage().orphans), (BLOCK, 0));
}

#[test]
fn a_pinned_block_keeps_all_of_its_frames_until_its_last_pin() {
    let ledger = Ledger::new(2 * BLOCK);
    let first = ledger.alloc_run(PageSize::Size2M, FrameNo::new(0)).unwrap();
    ledger.frames().pin_block(first.block());
    let _ = ledger.frames().words().pin(first.add(3));
    ledger.release(first, BLOCK);
    assert_eq!((ledger.usage().free, ledger.usage().orphans), (BLOCK, BLOCK));
    assert!(ledger.frames().unpin_block(first.block()));
    ledger.reap_block(first.block());
    assert_eq!(ledger.usage().orphans, 1, "this one has a pin of its own");
    assert!(ledger.frames().words().unpin(first.add(3)));
    ledger.reap(first.add(3));
    assert_eq!(ledger.usage().free, 2 * BLOCK);
    assert_eq!(ledger.alloc_run(PageSize::Size2M, first), Some(first), "one run again");
}

/// A device wrote all of a block, which is one note for its 512 frames; the note outlived the pages, and
/// the next ones in these frames counted as written by a device.
#[test]
fn what_a_device_wrote_is_forgotten_with_the_page() {
    let ledger = Ledger::new(BLOCK);
    let first = ledger.alloc_run(PageSize::Size2M, FrameNo::new(0)).unwrap();
    ledger.frames().set_block_dirty(first.block());
    ledger.release(first, 1);
    assert_eq!(ledger.alloc_frame(), Ok(first));
    assert!(!ledger.frame_state(first).dirty);
    assert!(ledger.frame_state(first.add(1)).dirty, "this page is there still");
    ledger.frames().pin_block(first.block());
    ledger.release(first, BLOCK);
    ledger.frames().set_block_dirty(first.block());
    assert!(ledger.frames().unpin_block(first.block()));
    ledger.reap_block(first.block());
    let dirty = |i| ledger.frame_state(first.add(i)).dirty;
    assert_eq!((0..BLOCK).find(|&i| dirty(i)), None);
}

#[test]
fn a_frame_that_is_pinned_twice_waits_for_both() {
    let ledger = Ledger::new(BLOCK);
    let first = ledger.alloc_run(PageSize::Size2M, FrameNo::new(0)).unwrap();
    ledger.frames().pin_block(first.block());
    let _ = ledger.frames().words().pin(first);
    ledger.release(first, 1);
    assert!(ledger.frames().words().unpin(first));
    ledger.reap(first);
    assert_eq!(ledger.usage().orphans, 1, "its block is pinned");
    assert!(ledger.frames().unpin_block(first.block()));
    ledger.reap_block(first.block());
    assert_eq!(ledger.usage().orphans, 0);
}

/// A walker that came too late had the block pinned for the moment in which the frame's last pin went; nobody
/// had noted that the frame waits for the block, and it was lost.
#[test]
fn an_orphan_is_freed_though_a_late_walker_has_its_block_pinned() {
    let ledger = Ledger::new(BLOCK);
    let frame = ledger.alloc_frame().unwrap();
    let _ = ledger.frames().words().pin(frame);
    ledger.release(frame, 1);
    ledger.frames().pin_block(frame.block());
    assert!(ledger.frames().words().unpin(frame));
    ledger.reap(frame);
    if ledger.frames().unpin_block(frame.block()) {
        ledger.reap_block(frame.block());
    }
    assert_eq!((ledger.usage().free, ledger.usage().orphans), (BLOCK, 0));
}

#[test]
fn an_orphan_goes_back_to_the_reservation_of_its_block() {
    let ledger = Ledger::new(BLOCK);
    let reservation = ledger.reserve(BlockNo::new(0)).unwrap();
    let frame = ledger.claim(reservation, 3).unwrap();
    let _ = ledger.frames().words().pin(frame);
    ledger.release(frame, 1);
    assert_eq!(ledger.claim(reservation, 3), None, "a device still has it");
    assert!(ledger.frames().words().unpin(frame));
    ledger.reap(frame);
    assert_eq!(ledger.claim(reservation, 3), Some(frame));
}

#[test]
#[should_panic(expected = "is not in use and cannot be freed")]
fn a_frame_cannot_be_freed_twice() {
    let ledger = Ledger::new(BLOCK);
    let frame = ledger.alloc_frame().unwrap();
    ledger.release(frame, 1);
    ledger.release(frame, 1);
}

/// A frame was claimed before it was counted as reserved, and the count went below zero.
#[test]
fn the_usage_adds_up_while_frames_come_and_go() {
    let ledger = Ledger::new(2 * BLOCK);
    let reservation = ledger.reserve(BlockNo::new(0)).unwrap();
    (0..BLOCK).for_each(|i| assert!(ledger.claim(reservation, i).is_some()));
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (ledger, done) = (&ledger, &done);
            scope.spawn(move || {
                for _ in 0..4 {
                    (0..BLOCK).for_each(|i| {
                        let frame = BlockNo::new(0).first().add(i);
                        if part == 0 {
                            ledger.release(frame, 1);
                        }
                        while part == 0 && ledger.frame_state(frame).owner != Owner::User {
                            std::thread::yield_now();
                        }
                        while part == 1 && ledger.claim(reservation, i).is_none() {
                            std::thread::yield_now();
                        }
                    });
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        while !done.load(Ordering::Relaxed) {
            let usage = ledger.usage();
            // One is on its way, and one may be claimed and counted still.
            assert!(usage.reserved <= 2 && usage.free == BLOCK, "{usage:?}");
            // The lock is not a fair one.
            std::thread::yield_now();
        }
    });
}
