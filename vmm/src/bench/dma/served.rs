//! A disk on guest memory, worked at full rate by a driver in this process.
#![allow(unsafe_code, reason = "the driver is the guest: it uses the window as a vCPU would")]

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::dma::{Dma, Pinning, Plain, Standing};
use devices::virtio::blk::Blk;
use devices::virtio::blk::host::{Engine, host};
use devices::virtio::blk::wire::{SECTOR, Shape};
use devices::virtio::device::Device;
use devices::virtio::driver::{Buffer, Driver};
use devices::virtio::interrupt::Interrupt;
use devices::virtio::rate::Limiter;
use devices::virtio::thread::Attendance;
use guest_mm::addr::{Gfn, GfnRange, PageSize};
use guest_mm::pool::BackingChoice;
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
};

use crate::bench::{BenchError, failed};

/// RAM of the guest.
pub(super) const RAM: u64 = 256 << 20;
/// Bytes of the disk.
pub(super) const DISK: u64 = 256 << 20;
/// Where the rings begin, and where buffers may lie.
const RINGS: u64 = 1 << 20;
/// The first buffer.
pub(super) const BUFFERS: u64 = 2 << 20;
/// Bytes of a block.
const BLOCK: u64 = PageSize::Size2M.bytes();
/// Descriptors of the queue.
const QUEUE: u16 = 256;
/// Bytes of a request's header and status, with room between them.
const FRAME: u64 = 64;

/// A guest's memory, all of it there.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) guest: Guest,
    bytes: u64,
    _service: GuestMm,
}

impl Served {
    /// `RAM`, all of it there, in pages of `pages`.
    pub(super) fn new(pages: PageSize) -> Result<Served, BenchError> {
        let served = Served::bare(RAM / BLOCK, RAM / BLOCK, pages)?;
        let ram = GfnRange::new(Gfn::new(0), RAM / 4096).map_err(failed)?;
        served.guest.populate(ram).map_err(failed)?;
        Ok(served)
    }

    /// `blocks` of RAM, none of it there, on a pool of `pool_blocks`, for faults of `pages`.
    pub(super) fn bare(
        blocks: u64,
        pool_blocks: u64,
        pages: PageSize,
    ) -> Result<Served, BenchError> {
        let ram = GfnRange::new(Gfn::new(0), blocks * PageSize::Size2M.frames()).map_err(failed)?;
        let service =
            GuestMm::new(BackingChoice::Auto, pool_blocks * BLOCK, pages).map_err(failed)?;
        let guest = service
            .add_guest(GuestConfig {
                ram: vec![ram],
                over: Vec::new(),
                on_missing: None,
                policy: FaultPolicy { pages },
                fault_threads: 1,
                on_stop: Box::new(|error| {
                    // The access that met it would wait for ever.
                    eprintln!("error: the benchmark's guest was stopped: {error}");
                    std::process::exit(1);
                }),
            })
            .map_err(failed)?;
        Ok(Served { guest, bytes: blocks * BLOCK, _service: service })
    }

    /// The memory as the guest itself sees it.
    pub(super) fn seen(&self) -> Result<GuestMemoryMmap, BenchError> {
        let no_window = || BenchError::Guest("it has no window".into());
        let (_, window) = self.guest.windows().next().ok_or_else(no_window)?;
        let at = window.as_u64() as *mut u8;
        // SAFETY:
        // 1. the window is mapped until the guest goes, which the caller keeps for longer than this (a field before it);
        // 2. nothing in this process but the guest, which the driver is here, uses it.
        let region = unsafe {
            MmapRegionBuilder::new(self.bytes as usize)
                .with_raw_mmap_pointer(at)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .build()
        };
        over(GuestRegionMmap::new(region.map_err(failed)?, GuestAddress(0)))
    }

    /// Pinned for each request.
    pub(super) fn pinning(&self) -> Pinning {
        Pinning::new(self.guest.pinner())
    }

    /// The first `bytes` pinned once and for good.
    pub(super) fn standing(&self, bytes: u64) -> Result<Standing, BenchError> {
        Standing::new(&self.guest.pinner(), bytes).map_err(failed)
    }
}

fn over(region: Option<GuestRegionMmap>) -> Result<GuestMemoryMmap, BenchError> {
    let region = region.ok_or_else(|| BenchError::Guest("its RAM is no region".into()))?;
    GuestMemoryMmap::from_regions(vec![region]).map_err(failed)
}

/// Memory of the same kind as a pool's, that is translated and not pinned: the disk's and the driver's view of it.
pub(super) fn plain() -> Result<(Plain, GuestMemoryMmap), BenchError> {
    let file = memory_file("slat-bench-plain", RAM)?;
    let ranges = [(GuestAddress(0), RAM as usize, Some(FileOffset::new(file, 0)))];
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges_with_files(ranges).map_err(failed)?;
    let zeroes = vec![1; 1 << 20];
    for at in (0..RAM).step_by(zeroes.len()) {
        memory.write_slice(&zeroes, GuestAddress(at)).map_err(failed)?;
        memory.write_slice(&vec![0; zeroes.len()], GuestAddress(at)).map_err(failed)?;
    }
    Ok((Plain::new(memory.clone()), memory))
}

/// A file of `bytes` in memory, all of it there.
pub(super) fn memory_file(name: &str, bytes: u64) -> Result<File, BenchError> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC).map_err(|e| BenchError::System(e.into()))?;
    let file = File::from(fd);
    let mut writer = &file;
    let chunk: Vec<u8> = (0..1_u32 << 20).map(|at| (at / 512) as u8).collect();
    for _ in 0..bytes / chunk.len() as u64 {
        std::io::Write::write_all(&mut writer, &chunk).map_err(BenchError::System)?;
    }
    Ok(file)
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    /// Bytes of each.
    pub(super) bytes: u32,
    /// Requests under way.
    pub(super) depth: u16,
    /// Whether each is where the one before ended.
    pub(super) sequential: bool,
    /// Buffers that they use, if there are so many.
    pub(super) buffers: u64,
}

/// No request takes so long.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a disk did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// Seconds that a request took.
    pub(super) seconds: f64,
    /// Seconds of the processor that it took.
    pub(super) cpu: f64,
}

/// A disk with its driver, on one thread.
#[derive(Debug)]
pub(super) struct Bench<D: Dma> {
    driver: Driver<D>,
    attendance: Attendance<D>,
    memory: GuestMemoryMmap,
    /// Bytes of it.
    ram: u64,
    dice: u64,
}

impl<D: Dma> Bench<D> {
    /// A disk over `file` on the memory of `dma`, worked by a driver that sees it as `memory`.
    pub(super) fn new(dma: &D, memory: GuestMemoryMmap, file: &File) -> Result<Self, BenchError> {
        let shape = Shape {
            sectors: DISK / SECTOR,
            read_only: false,
            discard: false,
            queues: 1,
            queue_size: QUEUE,
        };
        let system = BenchError::System;
        let file = file.try_clone().map_err(system)?;
        let host = host(file, Engine::Uring, Blk::<D>::depth(&shape)).map_err(system)?;
        let limiter = Limiter::new(None, None);
        let model = Blk::new(dma, shape, "bench", host, limiter).map_err(system)?;
        let device = Device::new("bench", dma.clone(), Box::new(model), Interrupt::default());
        let device = Arc::new(device.map_err(system)?);
        let attendance = Attendance::new(vec![Arc::clone(&device)]).map_err(system)?;
        let zeroes = [0; 64 << 10];
        memory.write_slice(&zeroes, GuestAddress(RINGS)).map_err(failed)?;
        let mut driver = Driver::new(device);
        driver.bring_up(RINGS, QUEUE);
        let ram = memory.last_addr().0 + 1;
        Ok(Bench { driver, attendance, memory, ram, dice: 1 })
    }

    /// `requests` reads as `work` says.
    pub(super) fn run(&mut self, work: Work, requests: u32) -> Result<Done, BenchError> {
        let (start, cpu) = (Instant::now(), processor());
        let (mut begun, mut done) = (0, 0);
        // Who has nothing to do waits: the processor is the kernel's, whose threads read the file.
        let mut wait = Duration::ZERO;
        while done < requests {
            let wanted = requests.min(done + u32::from(work.depth));
            if begun < wanted {
                while begun < wanted && self.begin(work, begun)? {
                    begun += 1;
                }
                self.driver.kick(0);
            }
            self.attendance.turn(Some(wait)).map_err(BenchError::System)?;
            let before = done;
            while self.driver.poll(&self.memory, 0).is_some() {
                done += 1;
            }
            wait = if done == before { PATIENCE } else { Duration::ZERO };
        }
        let requests = f64::from(requests);
        let seconds = start.elapsed().as_secs_f64() / requests;
        Ok(Done { seconds, cpu: (processor() - cpu).as_secs_f64() / requests })
    }

    /// Puts request number `number` into the queue, if there is room.
    fn begin(&mut self, work: Work, number: u32) -> Result<bool, BenchError> {
        let bytes = u64::from(work.bytes);
        let places = DISK / bytes;
        let place = if work.sequential { u64::from(number) } else { self.roll() } % places;
        // Each request under way has a buffer of its own, and those of random reads lie anywhere.
        let buffers = ((self.ram - BUFFERS) / bytes).min(work.buffers);
        let buffer = if work.sequential { u64::from(number) } else { self.roll() } % buffers;
        let frame = RINGS + (32 << 10) + u64::from(number % u32::from(QUEUE)) * FRAME;
        let sector = place * bytes / SECTOR;
        let header = u128::from(sector) << 64;
        self.memory.write_obj(header.to_le_bytes(), GuestAddress(frame)).map_err(failed)?;
        let buffers = [
            Buffer::readable(frame, 16),
            Buffer::writable(BUFFERS + buffer * bytes, work.bytes),
            Buffer::writable(frame + 32, 1),
        ];
        Ok(self.driver.add(&self.memory, 0, &buffers).is_some())
    }

    fn roll(&mut self) -> u64 {
        // Marsaglia's xorshift64.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice >> 8
    }
}

/// What this thread and its kernel's helpers have had of the processor.
pub(super) fn processor() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
