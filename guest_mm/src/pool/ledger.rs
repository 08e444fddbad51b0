//! Who owns each frame: the buddy allocator's books, the reservations, and the frames' own words.

use std::collections::VecDeque;

use crate::addr::{BlockNo, FrameNo, PageSize};
use crate::sync::{AtomicU32, AtomicU64, Lock, Ordering, Rank, full_fence};

use super::buddy::{Buddy, Order};
use super::frame::{Disowned, FrameState, FrameTable, Owner};

/// With a ticket: nothing of the block was claimed yet, and its frames' words do not say that they are reserved. An image reserves
/// all of its blocks when it is opened, and most machines touch few of them.
const FRESH: u32 = 1 << 31;

/// A guest block's preference for a block of the pool. Ended by `unreserve`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reservation {
    block: BlockNo,
    /// Tells this reservation from later ones of the same block.
    ticket: u32,
}

impl Reservation {
    /// The block that it prefers.
    pub(crate) fn block(self) -> BlockNo {
        self.block
    }
}

/// No frame is left, reserved ones included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the pool of {} MiB is exhausted", frames >> 8)]
pub struct Exhausted {
    /// How many frames the pool has.
    pub frames: u64,
}

/// How many frames of a pool are what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct PoolUsage {
    /// All of them.
    pub frames: u64,
    /// Free for anyone.
    pub free: u64,
    /// Held by reservations, not in use.
    pub reserved: u64,
    /// In use; orphans are.
    pub used: u64,
    /// Mapped nowhere, and kept for a device that has them pinned.
    pub orphans: u64,
    /// Bytes that the host has memory for, by its own books.
    pub host_bytes: u64,
    /// Bytes that went back to the host so far. What was used again since is not taken off.
    pub returned_bytes: u64,
}

#[derive(Debug)]
struct Books {
    buddy: Buddy,
    /// Reservations by age, oldest first; ended ones are passed over.
    reservations: VecDeque<Reservation>,
    next_ticket: u32,
}

#[derive(Debug)]
pub(super) struct Ledger {
    frames: FrameTable,
    /// The ticket of the reservation that each block has, or 0; with [`FRESH`] until its first claim. Written under `books`;
    /// a claim reads it without, because a claim in a block that has just changed hands is unfair but not wrong.
    tickets: Box<[AtomicU32]>,
    /// Frames that reservations hold. A statistic: claims change it without the lock.
    nr_reserved: AtomicU64,
    /// Orphans. Changed under `books`.
    nr_orphans: AtomicU64,
    books: Lock<Books>,
}

impl Ledger {
    pub(super) fn new(frames: u64) -> Ledger {
        let blocks = frames.div_ceil(PageSize::Size2M.frames());
        Ledger {
            frames: FrameTable::new(frames as usize),
            tickets: (0..blocks).map(|_| AtomicU32::new(0)).collect(),
            nr_reserved: AtomicU64::new(0),
            nr_orphans: AtomicU64::new(0),
            books: Lock::new(
                Rank::Last,
                Books { buddy: Buddy::new(frames), reservations: VecDeque::new(), next_ticket: 1 },
            ),
        }
    }

    pub(super) fn nr_frames(&self) -> u64 {
        self.frames.len() as u64
    }

    pub(super) fn frame_state(&self, frame: FrameNo) -> FrameState {
        self.frames.state(frame)
    }

    pub(super) fn metadata_bytes(&self) -> u64 {
        // 8 bytes of state and 2 bits of free lists a frame; 8 bytes of pins, 4 of ticket a block.
        self.nr_frames() * 8 + self.nr_frames() / 4 + self.tickets.len() as u64 * 12
    }

    pub(super) fn usage(&self) -> PoolUsage {
        // The lock is held to the end: a frame that is freed can be claimed before it is counted as reserved.
        let books = self.books.lock();
        let free = books.buddy.nr_free();
        let reserved = self.nr_reserved.load(Ordering::Relaxed);
        let frames = self.nr_frames();
        let orphans = self.nr_orphans.load(Ordering::Relaxed);
        let used = frames.saturating_sub(free + reserved);
        // The pool adds what it knows of the host.
        PoolUsage { frames, free, reserved, used, orphans, ..PoolUsage::default() }
    }

    pub(super) fn set_written(&self, first: FrameNo, frames: u64) -> bool {
        // Every frame is marked, so no short cut at the first that was.
        (0..frames).fold(false, |any, i| self.frames.set_written(first.add(i)) | any)
    }

    pub(super) fn reserve(&self, hint: BlockNo) -> Option<Reservation> {
        let books = &mut *self.books.lock();
        let first = books
            .buddy
            .alloc_at(hint.first(), Order::BLOCK)
            .or_else(|| books.buddy.alloc(Order::BLOCK))?;
        self.nr_reserved.fetch_add(PageSize::Size2M.frames(), Ordering::Relaxed);
        let reservation = self.open(books, first.block());
        self.tickets[first.block().index()].store(reservation.ticket | FRESH, Ordering::Relaxed);
        Some(reservation)
    }

    /// The first claim of `reservation`, if it has not ended: its frames' words say from now on that they are reserved.
    #[cold]
    fn begin(&self, reservation: Reservation) {
        let _books = self.books.lock();
        let ticket = &self.tickets[reservation.block.index()];
        if ticket.load(Ordering::Relaxed) == reservation.ticket | FRESH {
            self.frames_of(reservation.block).for_each(|frame| self.frames.reserve(frame));
            // Release, with the acquire in `claim`: who does not find it fresh finds the words.
            ticket.store(reservation.ticket, Ordering::Release);
        }
    }

    pub(super) fn adopt(&self, block: BlockNo) -> Option<Reservation> {
        let books = &mut *self.books.lock();
        (self.ticket(block) == 0).then(|| self.open(books, block))
    }

    fn open(&self, books: &mut Books, block: BlockNo) -> Reservation {
        let ticket = books.next_ticket;
        books.next_ticket = if ticket + 1 < FRESH { ticket + 1 } else { 1 };
        self.tickets[block.index()].store(ticket, Ordering::Relaxed);
        let reservation = Reservation { block, ticket };
        books.reservations.push_back(reservation);
        // Ended reservations are dropped from the front at once and from the middle now and then, so
        // that the queue stays within twice the number of blocks.
        if books.reservations.len() > 2 * self.tickets.len() {
            books.reservations.retain(|r| self.ticket(r.block) == r.ticket);
        }
        reservation
    }

    /// Lockless but for a block's first: this is the path of every 4 KiB fault.
    pub(super) fn claim(&self, reservation: Reservation, offset: u64) -> Option<FrameNo> {
        let frame = reservation.block.first().add(offset);
        let ticket = &self.tickets[reservation.block.index()];
        // Acquire, with the release in `begin`.
        let mut now = ticket.load(Ordering::Acquire);
        if now == reservation.ticket | FRESH {
            self.begin(reservation);
            now = ticket.load(Ordering::Acquire);
        }
        let claimed = now == reservation.ticket && self.frames.claim(frame);
        self.nr_reserved.fetch_sub(claimed.into(), Ordering::Relaxed);
        claimed.then_some(frame)
    }

    pub(super) fn alloc_frame(&self) -> Result<FrameNo, Exhausted> {
        let books = &mut *self.books.lock();
        loop {
            if let Some(frame) = books.buddy.alloc(Order::FRAME) {
                self.frames.take(frame);
                return Ok(frame);
            }
            let Some(oldest) = books.reservations.pop_front() else {
                return Err(Exhausted { frames: self.nr_frames() });
            };
            self.end(books, oldest);
        }
    }

    pub(super) fn alloc_run(&self, size: PageSize, hint: FrameNo) -> Option<FrameNo> {
        let books = &mut *self.books.lock();
        let order = Order::of(size);
        let first = books.buddy.alloc_at(hint, order).or_else(|| books.buddy.alloc(order))?;
        for i in 0..size.frames() {
            self.frames.take(first.add(i));
        }
        Some(first)
    }

    /// Takes `block`, if it is free as a whole and not the last: others may need it in this moment. Whether it did.
    #[cfg(not(loom))]
    pub(super) fn alloc_spare_block(&self, block: BlockNo) -> bool {
        let books = &mut *self.books.lock();
        let spare = books.buddy.nr_free() >= 2 * PageSize::Size2M.frames();
        let free = spare && books.buddy.alloc_at(block.first(), Order::BLOCK).is_some();
        if free {
            self.frames_of(block).for_each(|frame| self.frames.take(frame));
        }
        free
    }

    pub(super) fn unreserve(&self, reservation: Reservation) {
        let books = &mut *self.books.lock();
        self.end(books, reservation);
        while books.reservations.front().is_some_and(|r| self.ticket(r.block) != r.ticket) {
            books.reservations.pop_front();
        }
    }

    /// Takes a reservation's unused frames back; nothing if it has ended already.
    fn end(&self, books: &mut Books, reservation: Reservation) {
        if self.ticket(reservation.block) != reservation.ticket {
            return;
        }
        let was = self.tickets[reservation.block.index()].swap(0, Ordering::Relaxed);
        if was & FRESH != 0 {
            self.nr_reserved.fetch_sub(PageSize::Size2M.frames(), Ordering::Relaxed);
            books.buddy.free(reservation.block.first(), Order::BLOCK);
            return;
        }
        for frame in self.frames_of(reservation.block) {
            if self.frames.unreserve(frame) {
                self.nr_reserved.fetch_sub(1, Ordering::Relaxed);
                books.buddy.free(frame, Order::FRAME);
            }
        }
    }

    /// U3 and U4 of `pins`.
    pub(super) fn release(&self, first: FrameNo, frames: u64) {
        full_fence();
        let books = &mut *self.books.lock();
        let mut next = 0;
        while next < frames {
            let part = first.add(next);
            let rest_of_block = PageSize::Size2M.frames() - part.offset_in_block();
            let len = rest_of_block.min(frames - next);
            self.release_in_block(books, part, len);
            next += len;
        }
    }

    /// Releases frames of one block.
    fn release_in_block(&self, books: &mut Books, first: FrameNo, frames: u64) {
        let block = first.block();
        let reserved = self.ticket(block) != 0;
        let pinned = self.frames.is_block_pinned(block);
        if !pinned {
            self.settle_dirty(block);
        }
        let run = || (0..frames).map(|i| first.add(i));
        let (mut freed, mut orphans) = (0, 0);
        for frame in run() {
            match self.frames.disown(frame, reserved, pinned) {
                Disowned::Freed => freed += 1,
                Disowned::Orphaned => orphans += 1,
                Disowned::Shared => {}
            }
        }
        self.nr_orphans.fetch_add(orphans, Ordering::Relaxed);
        if reserved {
            self.nr_reserved.fetch_add(freed, Ordering::Relaxed);
        } else if freed == PageSize::Size2M.frames() {
            books.buddy.free(first, Order::BLOCK);
        } else if freed == frames {
            run().for_each(|frame| books.buddy.free(frame, Order::FRAME));
        } else {
            // The state of a frame that was freed cannot change: the lock is held.
            run()
                .filter(|&frame| self.frames.state(frame).owner == Owner::Buddy)
                .for_each(|frame| books.buddy.free(frame, Order::FRAME));
        }
        if pinned && !self.frames.await_block(block) {
            self.reap_block_locked(books, block);
        }
    }

    /// P7: frees the orphan whose last pin has gone, if it is one still.
    #[cold]
    pub(super) fn reap(&self, frame: FrameNo) {
        let books = &mut *self.books.lock();
        // A pin on its block keeps it too, and frees it when it goes; it has to be told, because it may have come
        // only after the frame was unmapped.
        let block = frame.block();
        if !self.frames.is_block_pinned(block) {
            self.reap_locked(books, frame);
        } else if !self.frames.await_block(block) {
            self.reap_block_locked(books, block);
        }
    }

    /// P7: frees the orphans of the block whose last pin has gone.
    #[cold]
    pub(super) fn reap_block(&self, block: BlockNo) {
        let books = &mut *self.books.lock();
        self.reap_block_locked(books, block);
    }

    fn reap_block_locked(&self, books: &mut Books, block: BlockNo) {
        if self.frames.stop_awaiting_block(block) {
            self.settle_dirty(block);
            self.frames_of(block).for_each(|frame| self.reap_locked(books, frame));
        }
    }

    /// Moves the note that a device has written to all of a block to its frames.
    pub(super) fn spread_dirty(&self, block: BlockNo) {
        if self.frames.is_block_dirty(block) {
            let _books = self.books.lock();
            self.settle_dirty(block);
        }
    }

    /// Before frames of a block that no device has pinned are freed: the note that all of it is dirty goes to
    /// the frames, which lose it with their pages. It would count for those who get the frames next.
    fn settle_dirty(&self, block: BlockNo) {
        self.frames.spread_dirty(block, self.frames_of(block));
    }

    fn reap_locked(&self, books: &mut Books, frame: FrameNo) {
        let reserved = self.ticket(frame.block()) != 0;
        if !self.frames.adopt_orphan(frame, reserved) {
            return;
        }
        self.nr_orphans.fetch_sub(1, Ordering::Relaxed);
        if reserved {
            self.nr_reserved.fetch_add(1, Ordering::Relaxed);
        } else {
            books.buddy.free(frame, Order::FRAME);
        }
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn hold_books(&self) -> impl Sized + '_ {
        self.books.lock()
    }

    /// The words of the frames, for who pins them.
    #[inline]
    pub(super) fn frames(&self) -> &FrameTable {
        &self.frames
    }

    fn ticket(&self, block: BlockNo) -> u32 {
        self.tickets[block.index()].load(Ordering::Relaxed) & !FRESH
    }

    pub(super) fn frames_of(&self, block: BlockNo) -> impl Iterator<Item = FrameNo> + use<> {
        (0..PageSize::Size2M.frames()).map(move |i| block.first().add(i))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
