//! A virtio queue whose device side is `virtio-queue`, unchanged, over memory that is collapsed, scattered and
//! split meanwhile. Threads of this test play the guest's driver and the collapser.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_mm::Guest;
use guest_mm::addr::PageSize;
use guest_mm::collapse::CollapsePolicy;
use tests::require_userfaultfd;
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::WithBitmapSlice;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory};

use super::{MIB, TestGuest, add, range, service};

const PAGE: u64 = 4096;
const RAM: u64 = 8 * MIB;
const REQUESTS: u64 = 20_000;

/// Descriptors of the queue; four for each request that may be under way.
const QUEUE_SIZE: u64 = 64;
const SLOTS: u64 = QUEUE_SIZE / 4;

// Whatever can cross a page or a block does.
const DESCRIPTORS: u64 = PAGE - 512;
const AVAIL: u64 = 6 * MIB - 64;
const USED: u64 = 5 * MIB - 252;
const INDIRECT: u64 = 5 * PAGE - 40;
const HEADERS: u64 = 0x1_0000;
const TRAILERS: u64 = 0x2_0000;
const INPUTS: u64 = 2 * MIB - 40_000;
const OUTPUTS: u64 = 4 * MIB - 40_000;
/// From one slot's buffer to the next's; also the most bytes that a request has.
const STRIDE: u64 = 5_000;

/// Two pages of each block that nobody has anything in.
const SPARE: u64 = 300 * PAGE;

const NEXT: u64 = 1;
const WRITE: u64 = 2;
const INDIRECT_TABLE: u64 = 4;

/// Word `i` of request `seq`.
fn word(seq: u64, i: u64) -> u64 {
    (seq << 16 ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Bytes of request `seq`.
fn length(seq: u64) -> u64 {
    8 + word(seq, 0xffff) % (STRIDE / 8) * 8
}

/// The driver, in the guest.
struct Driver<'t> {
    test: &'t TestGuest,
    /// What each slot's request is.
    under_way: [Option<u64>; SLOTS as usize],
    next_avail: u16,
    next_used: u16,
}

impl Driver<'_> {
    fn at<T>(&self, gpa: u64) -> *mut T {
        let at: *mut T = self.test.base.add(gpa).as_u64() as *mut T;
        assert!(at.is_aligned());
        at
    }

    fn describe(&self, at: u64, buffer: u64, len: u64, flags: u64, next: u64) {
        self.test.store(at, buffer);
        self.test.store(at + 8, len | flags << 32 | next << 48);
    }

    /// Puts request `seq` into the queue, every other one by an indirect table.
    fn offer(&mut self, slot: u64, seq: u64) {
        let len = length(seq);
        let (input, output) = (INPUTS + slot * STRIDE, OUTPUTS + slot * STRIDE);
        self.test.store(HEADERS + slot * 64, seq);
        self.test.store(HEADERS + slot * 64 + 8, len);
        for i in 0..len / 8 {
            self.test.store(input + i * 8, word(seq, i));
            self.test.store(output + i * 8, 0);
        }
        let head = slot * 4;
        let chain = [
            (HEADERS + slot * 64, 16, NEXT),
            (input, len, NEXT),
            (output, len, NEXT | WRITE),
            (TRAILERS + slot * 64, 8, WRITE),
        ];
        let (table, first) = if seq.is_multiple_of(2) {
            (DESCRIPTORS + head * 16, head)
        } else {
            let table = INDIRECT + slot * 64;
            self.describe(DESCRIPTORS + head * 16, table, 64, INDIRECT_TABLE, 0);
            (table, 0)
        };
        for ((buffer, len, flags), i) in chain.into_iter().zip(0..) {
            self.describe(table + i * 16, buffer, len, flags, first + i + 1);
        }
        self.under_way[slot as usize] = Some(seq);
        let place = AVAIL + 4 + u64::from(self.next_avail) % QUEUE_SIZE * 2;
        self.next_avail = self.next_avail.wrapping_add(1);
        // SAFETY: the window is mapped for as long as the guest lives, and everybody accesses the ring's
        // words as wholes.
        unsafe {
            self.at::<u16>(place).write_volatile(head as u16);
            std::sync::atomic::AtomicU16::from_ptr(self.at(AVAIL + 2))
                .store(self.next_avail, Ordering::Release);
        }
    }

    /// Takes one answer out of the queue and checks it; its slot.
    fn take(&mut self) -> Option<u64> {
        // SAFETY: as in `offer`.
        let used = unsafe { std::sync::atomic::AtomicU16::from_ptr(self.at(USED + 2)) };
        if used.load(Ordering::Acquire) == self.next_used {
            return None;
        }
        let place = USED + 4 + u64::from(self.next_used) % QUEUE_SIZE * 8;
        self.next_used = self.next_used.wrapping_add(1);
        let element = self.test.load(place);
        let (head, written) = (element & 0xffff_ffff, element >> 32);
        assert!(head < QUEUE_SIZE && head.is_multiple_of(4), "{head} is no request");
        let slot = head / 4;
        let seq = self.under_way[slot as usize].take().expect("a request is answered once");
        assert_eq!(written, length(seq) + 8);
        for i in 0..length(seq) / 8 {
            let found = self.test.load(OUTPUTS + slot * STRIDE + i * 8);
            assert_eq!(found, !word(seq, i), "word {i} of the answer to request {seq}");
        }
        assert_eq!(self.test.load(TRAILERS + slot * 64), !seq);
        Some(slot)
    }
}

/// Offers requests for as long as `more` says so and takes all answers; how many there were.
fn drive(test: &TestGuest, done: &AtomicBool, more: impl Fn(u64) -> bool) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut driver =
        Driver { test, under_way: [None; SLOTS as usize], next_avail: 0, next_used: 0 };
    let mut seq = 0;
    let mut free: Vec<u64> = (0..SLOTS).collect();
    while free.len() < SLOTS as usize || more(seq) {
        if more(seq)
            && let Some(slot) = free.pop()
        {
            driver.offer(slot, seq);
            seq += 1;
        }
        if let Some(slot) = driver.take() {
            free.push(slot);
        } else if free.is_empty() || !more(seq) {
            assert!(!done.load(Ordering::Relaxed), "another thread has failed");
            assert!(Instant::now() < deadline, "no answer, or no collapse, in time");
            std::thread::yield_now();
        }
    }
    seq
}

/// Ends the other threads with the one that has it.
struct Ends<'t>(&'t AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Answers what the queue holds, as a device model does that knows nothing of this library; how many requests.
fn serve<M: GuestMemory>(queue: &mut Queue, memory: &M) -> u64
where
    for<'a> M::Bitmap: WithBitmapSlice<'a, S = ()>,
{
    let mut requests = 0;
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        let mut reader = chain.clone().reader(memory).unwrap();
        let mut writer = chain.writer(memory).unwrap();
        let (seq, len): (u64, u64) = (reader.read_obj().unwrap(), reader.read_obj().unwrap());
        assert_eq!(len, length(seq), "the header of request {seq}");
        let mut data = vec![0; len as usize];
        reader.read_exact(&mut data).unwrap();
        assert_eq!((reader.available_bytes(), writer.available_bytes()), (0, len as usize + 8));
        for (bytes, i) in data.chunks_exact_mut(8).zip(0..) {
            let found = u64::from_le_bytes((&*bytes).try_into().unwrap());
            assert_eq!(found, word(seq, i), "word {i} of request {seq}");
            bytes.copy_from_slice(&(!found).to_le_bytes());
        }
        writer.write_all(&data).unwrap();
        writer.write_obj(!seq).unwrap();
        queue.add_used(memory, head, writer.bytes_written() as u32).unwrap();
        requests += 1;
    }
    requests
}

/// The device: asks for its memory once for each burst of requests. How many requests it answered.
fn device<A: GuestAddressSpace>(space: &A, done: &AtomicBool) -> u64
where
    for<'a> <A::M as GuestMemory>::Bitmap: WithBitmapSlice<'a, S = ()>,
{
    let _end = Ends(done);
    let mut queue = Queue::new(QUEUE_SIZE as u16).unwrap();
    queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    assert!(queue.is_valid(&*space.memory()));
    let mut requests = 0;
    while !done.load(Ordering::Relaxed) {
        let burst = serve(&mut queue, &*space.memory());
        requests += burst;
        if burst == 0 {
            std::thread::yield_now();
        }
    }
    requests
}

/// Makes the pages of every block lie out of order: the reservations of the pool end when `other` takes all
/// that is free, and then a block's spare pages get each other's frames.
fn scatter(test: &TestGuest, other: &Guest) {
    assert!(other.populate(range(0, RAM)).is_err(), "the pool is exhausted");
    other.unmap(range(0, RAM)).unwrap();
    for block in (0..RAM).step_by(2 * MIB as usize) {
        test.guest.unmap(range(block + SPARE, 2 * PAGE)).unwrap();
        test.guest.populate(range(block + SPARE + PAGE, PAGE)).unwrap();
        test.guest.populate(range(block + SPARE, PAGE)).unwrap();
    }
}

/// Collapses all blocks and splits them again, scattered every other time; how many were promoted and copied.
fn collapse(test: &TestGuest, other: &Guest, counts: &[AtomicU64; 2], done: &AtomicBool) {
    let _end = Ends(done);
    let mut round = 0;
    while !done.load(Ordering::Relaxed) {
        test.guest.split(range(0, RAM), PageSize::Size4K).unwrap();
        round += 1;
        if round % 2 == 0 {
            scatter(test, other);
        }
        let report = test.guest.collapse(range(0, RAM), CollapsePolicy::default()).unwrap();
        counts[0].fetch_add(report.promoted, Ordering::Relaxed);
        counts[1].fetch_add(report.copied, Ordering::Relaxed);
        // The guest is to get somewhere between two rounds.
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_virtio_queue_works_on_memory_that_is_collapsed_and_split_meanwhile() {
    if !require_userfaultfd() {
        return;
    }
    let mm = service(RAM + 4 * MIB, PageSize::Size4K);
    let test = add(&mm, RAM, PageSize::Size4K);
    let other = add(&mm, RAM, PageSize::Size4K);
    test.guest.populate(range(0, RAM)).unwrap();
    let (done, counts) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let (offered, answered) = std::thread::scope(|scope| {
        let device = scope.spawn(|| device(&&test.guest, &done));
        scope.spawn(|| collapse(&test, &other.guest, &counts, &done));
        let end = Ends(&done);
        let offered = drive(&test, &done, |requests| {
            requests < REQUESTS || counts.iter().any(|count| count.load(Ordering::Relaxed) == 0)
        });
        drop(end);
        (offered, device.join().unwrap())
    });
    assert_eq!(answered, offered);
    let [promoted, copied] = counts.map(AtomicU64::into_inner);
    println!("{answered} requests, {promoted} blocks promoted, {copied} copied");
    test.guest.audit().unwrap();
    mm.audit().unwrap();
    assert_eq!(mm.usage().orphans, 0);
    other.close();
    test.close();
    mm.audit().unwrap();
}
