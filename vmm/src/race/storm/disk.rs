//! A device that is a disk: what pins, writes and lets go is what a machine's disks run, from the queue to the kernel's copy
//! into pinned frames.
//!
//! ```text
//!   look     a request gathers up to 64 slots, and what is missing to a sector from a page of the disk's own
//!   write    the next numbers go to the disk's file, and a request scatters that sector over the same slots
//! ```
//!
//! The kernel copies a slot by one instruction for strings of bytes, and the guest reads slots meanwhile. Whether eight aligned
//! bytes go at once is not written down; no processor that this ran on has shown a part of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::dma::Pinning;
use devices::virtio::blk::Blk;
use devices::virtio::blk::host::{Engine, host};
use devices::virtio::blk::wire::{SECTOR, Shape, Status};
use devices::virtio::device::Device;
use devices::virtio::driver::{Buffer, Driver, Rings};
use devices::virtio::interrupt::Interrupt;
use devices::virtio::rate::Limiter;
use devices::virtio::thread;
use guest_mm::Guest;
use guest_mm::protocol::Protocol;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use super::heckler::Attendance;
use super::place::{BLOCK, PAGE, SLOT};
use super::slots::{Log, Slots};
use crate::race::dice::Dice;

/// Slots of a sector: the most that a request has.
const MOST: u64 = SECTOR / SLOT;
/// Descriptors of the queue, of which a request has two more than slots.
const QUEUE: u16 = 128;
/// A request in so many only looks.
const LOOKS: u64 = 8;
/// How long a request may take, on a host that has other things to do.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long its end is waited for at once.
const WAIT: Duration = Duration::from_millis(10);

// Pages of the disk's block, a thing each, so that a burst has some to pin.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 1;
const USED: u64 = 2;
const HEADERS: u64 = 3;
const STATUS: u64 = 4;
const REST: u64 = 5;

/// What a request is for, which is also the sector that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// From the slots to the disk.
    Look = 0,
    /// From the disk to the slots.
    Write = 1,
}

/// The disk writes memory: `VIRTIO_BLK_T_IN`.
const IN: u128 = 0;
/// The disk reads it: `VIRTIO_BLK_T_OUT`.
const OUT: u128 = 1;

/// No status that a disk gives.
const UNANSWERED: u8 = 0xff;

/// A disk with its driver, on one thread.
#[derive(Debug)]
pub(super) struct Disk<'a, P: Protocol + std::fmt::Debug> {
    guest: &'a Guest<P>,
    slots: Slots<'a>,
    dice: Dice,
    file: File,
    device: Arc<Device<Pinning<P>>>,
    driver: Driver<Pinning<P>>,
    thread: thread::Attendance<Pinning<P>>,
}

impl<'a, P: Protocol + std::fmt::Debug> Disk<'a, P> {
    /// A disk that is brought up.
    pub(super) fn new(
        guest: &'a Guest<P>,
        slots: Slots<'a>,
        dice: Dice,
    ) -> std::io::Result<Disk<'a, P>> {
        let file = File::from(memfd_create("slat-storm", MemfdFlags::CLOEXEC)?);
        file.set_len(2 * SECTOR)?;
        let shape =
            Shape { sectors: 2, read_only: false, discard: false, queues: 1, queue_size: QUEUE };
        let depth = Blk::<Pinning<P>>::depth(&shape);
        let host = host(file.try_clone()?, Engine::Auto, depth)?;
        let dma = Pinning::new(guest.pinner());
        let model = Blk::new(&dma, shape, "storm", host, Limiter::new(None, None))?;
        let device = Arc::new(Device::new("storm", dma, Box::new(model), Interrupt::default())?);
        let thread = thread::Attendance::new(vec![Arc::clone(&device)])?;
        let driver = Driver::new(Arc::clone(&device));
        let mut disk = Disk { guest, slots, dice, file, device, driver, thread };
        disk.bring_up();
        Ok(disk)
    }

    fn bring_up(&mut self) {
        let features = self.driver.offered();
        assert!(self.driver.negotiate(features), "a disk agrees with its own features");
        self.driver.add_queue(Rings {
            descriptors: self.page(DESCRIPTORS),
            available: self.page(AVAILABLE),
            used: self.page(USED),
            size: QUEUE,
        });
        self.driver.go();
        let memory = self.guest.view();
        for purpose in [Purpose::Look, Purpose::Write] {
            let kind = match purpose {
                Purpose::Look => OUT,
                Purpose::Write => IN,
            };
            let header = kind | (purpose as u128) << 64;
            let at = GuestAddress(self.header(purpose));
            memory.write_obj(header.to_le_bytes(), at).expect("a disk's block is RAM");
        }
    }

    /// Looks and writes until the storm is over, or the disk does not answer.
    pub(super) fn work(mut self, attendance: &Attendance<'_>) -> Log {
        let mut stranded = None;
        while stranded.is_none() && !self.slots.is_clear() {
            let pages = self.pages();
            let done = self.look(&pages).and_then(|()| {
                if self.dice.one_in(LOOKS) { Ok(()) } else { self.write(&pages, attendance) }
            });
            stranded = done.err().map(|why| self.device.report().broken.unwrap_or(why));
        }
        self.slots.into_log(stranded)
    }

    /// Checks the slots of `pages`.
    fn look(&mut self, pages: &[u64]) -> Result<(), String> {
        self.begin(Purpose::Look, pages)?;
        self.end()?;
        let mut sector = [0; SECTOR as usize];
        let read = self.file.read_exact_at(&mut sector, SECTOR * Purpose::Look as u64);
        read.map_err(|error| error.to_string())?;
        for (&page, number) in pages.iter().zip(sector.as_chunks().0) {
            self.slots.look(page, u64::from_le_bytes(*number));
        }
        Ok(())
    }

    /// Writes new numbers to them.
    fn write(&mut self, pages: &[u64], attendance: &Attendance<'_>) -> Result<(), String> {
        let mut sector = [0; SECTOR as usize];
        for (&page, number) in pages.iter().zip(sector.as_chunks_mut().0) {
            *number = self.slots.write(page).to_le_bytes();
        }
        let written = self.file.write_all_at(&sector, SECTOR * Purpose::Write as u64);
        written.map_err(|error| error.to_string())?;
        self.begin(Purpose::Write, pages)?;
        // Whichever it is, it is the first of its block that is pinned: one that meets no other pin there.
        let first = pages.len().min(self.slots.place().nr_blocks() as usize);
        attendance.aim(pages[self.dice.pick(0..first as u64) as usize] / BLOCK);
        let ended = self.end();
        attendance.hit();
        ended
    }

    /// Puts a request into the queue, as a driver does.
    fn begin(&mut self, purpose: Purpose, pages: &[u64]) -> Result<(), String> {
        let rest = (SECTOR - SLOT * pages.len() as u64) as u32;
        let data = pages.iter().map(|&page| (self.slots.gpa(page), SLOT as u32));
        let data = data.chain((rest > 0).then_some((self.page(REST), rest)));
        let mut buffers = vec![Buffer::readable(self.header(purpose), 16)];
        let writable = purpose == Purpose::Write;
        buffers.extend(data.map(|(addr, len)| Buffer { addr, len, writable }));
        let status = self.page(STATUS);
        buffers.push(Buffer::writable(status, 1));
        let memory = self.guest.view();
        memory.write_obj(UNANSWERED, GuestAddress(status)).map_err(|error| error.to_string())?;
        self.driver.add(&memory, 0, &buffers).ok_or("the queue has no descriptors left")?;
        self.driver.kick(0);
        Ok(())
    }

    /// Serves the disk until the request has ended, and well.
    fn end(&mut self) -> Result<(), String> {
        let since = Instant::now();
        loop {
            self.thread.turn(Some(WAIT)).map_err(|error| error.to_string())?;
            if self.driver.poll(&self.guest.view(), 0).is_some() {
                break;
            }
            if since.elapsed() > PATIENCE {
                let number = self.slots.number();
                return Err(format!("disk {number} did not answer a request in {PATIENCE:?}"));
            }
        }
        let status = self.guest.view().read_obj::<u8>(GuestAddress(self.page(STATUS)));
        match status.map_err(|error| error.to_string())? {
            status if status == Status::Ok as u8 => {}
            other => return Err(format!("a request ended with the status {other:#x}")),
        }
        let traffic = &mut self.slots.traffic;
        traffic.pins += 1;
        traffic.requests += 1;
        traffic.bytes += SECTOR;
        Ok(())
    }

    /// Different pages, none of them loose: some of one block, or as many blocks as there are.
    fn pages(&mut self) -> Vec<u64> {
        // Mostly single pages: the gap that a protocol has to close is at the start of a pin, and only if nothing else of the
        // block is pinned.
        let count = match self.dice.pick(0..8) {
            0..5 => 1,
            5..7 => self.dice.pick(2..9),
            _ => self.dice.pick(9..MOST + 1),
        };
        let blocks = self.slots.place().nr_blocks();
        let (block, across) = (self.dice.pick(0..blocks), self.dice.pick(0..2));
        // No step below 8 comes back to its start within 64: the pages of a block that may be used are 7 times 73.
        let (offset, step) = (self.dice.pick(0..BLOCK - 1), self.dice.pick(1..8));
        let page = |index| {
            let block = (block + across * index) % blocks;
            block * BLOCK + (offset + step * index) % (BLOCK - 1)
        };
        (0..count).map(page).collect()
    }

    /// Where page `index` of the disk's block begins.
    fn page(&self, index: u64) -> u64 {
        self.slots.place().disk(self.slots.number()).as_u64() + index * PAGE
    }

    fn header(&self, purpose: Purpose) -> u64 {
        self.page(HEADERS) + 16 * purpose as u64
    }
}
