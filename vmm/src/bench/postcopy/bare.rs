//! The baselines: a fault with nothing behind it, a page there and back, bytes in bulk.
#![allow(unsafe_code, reason = "maps memory that bytes are read into")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::net::sockopt::set_socket_send_buffer_size;

use crate::bench::BenchError;
use crate::bench::bare::BareRam;
use crate::bench::table::median;
use crate::bench::touch::{Walk, image, run};
use crate::kvm;
use crate::ram::Ram;

/// Bytes of a request, and of what comes back: a page, and a frame's header.
const REQUEST: usize = 16;
const ANSWER: usize = 4096 + 64;
/// Times there and back.
const TRIPS: usize = 4096;
/// Bytes of one call.
const CHUNK: usize = 2 << 20;
/// What the page channel gives a Unix socket, too.
const BUFFER: usize = 4 << 20;

/// The median fault of a KVM guest that a bare loop serves, in microseconds.
pub(super) fn fault(khz: u32) -> Result<f64, BenchError> {
    let walk = Walk { ram_bytes: 64 << 20, vcpus: 1, cmdline: "verify=0" };
    let ram = BareRam::new(walk.ram_bytes)?;
    let image = image(walk, khz)?;
    image.for_each_page(|gpa, page| ram.put(gpa.0, page))?;
    let ram: Arc<dyn Ram> = Arc::new(ram);
    Ok(run(&kvm::open()?, walk, &ram, &image)?.p50_us)
}

/// The median time until a request of a few bytes is answered with a page by another thread, in microseconds.
pub(super) fn round_trip() -> Result<f64, BenchError> {
    let (mut here, mut there) = UnixStream::pair()?;
    let answering = thread::spawn(move || {
        let (mut request, answer) = ([0; REQUEST], [7; ANSWER]);
        while there.read_exact(&mut request).is_ok() && there.write_all(&answer).is_ok() {}
    });
    let (request, mut answer) = ([1; REQUEST], [0; ANSWER]);
    let mut trips = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let start = Instant::now();
        here.write_all(&request)?;
        here.read_exact(&mut answer)?;
        trips.push(start.elapsed().as_secs_f64() * 1e6);
    }
    drop(here);
    let _ = answering.join();
    Ok(median(&mut trips))
}

/// Where bytes in bulk are read to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Landing {
    /// Memory that nobody has touched, as where a guest arrives.
    Fresh,
    /// Memory whose pages are there.
    Touched,
}

/// GB/s of `bytes` by sendfile and read on a Unix socket, while another thread is as busy as a vCPU.
pub(super) fn bulk(bytes: u64, landing: Landing) -> Result<f64, BenchError> {
    let file = memfd_create("bulk", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
    ftruncate(&file, bytes).map_err(io::Error::from)?;
    let filling = vec![0xa5; CHUNK];
    for at in (0..bytes).step_by(CHUNK) {
        rustix::io::pwrite(&file, &filling, at).map_err(io::Error::from)?;
    }
    let mut memory = Memory::new(bytes as usize)?;
    if landing == Landing::Touched {
        memory.bytes().fill(1);
    }
    let (source, mut sink) = UnixStream::pair()?;
    set_socket_send_buffer_size(&source, BUFFER).map_err(io::Error::from)?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| busy(&over));
        let sending = scope.spawn(move || {
            let mut offset = 0;
            while offset < bytes {
                rustix::fs::sendfile(&source, &file, Some(&mut offset), CHUNK)?;
            }
            Ok::<(), io::Error>(())
        });
        let start = Instant::now();
        let read = memory.bytes().chunks_mut(CHUNK).try_for_each(|chunk| sink.read_exact(chunk));
        let took = start.elapsed();
        over.store(true, Relaxed);
        // Which sees that nobody reads any more.
        drop(sink);
        let sent = sending.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read.and(sent)?;
        Ok(bytes as f64 / took.as_secs_f64() / 1e9)
    })
}

/// Changes words of 2 MiB until it is over.
fn busy(over: &AtomicBool) {
    let words: Vec<AtomicU64> = (0..CHUNK as u64 / 8).map(AtomicU64::new).collect();
    let mut at = 1_usize;
    while !over.load(Relaxed) {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        words[at >> 20 & (words.len() - 1)].fetch_add(1, Relaxed);
    }
}

/// Memory of huge pages, where the system has some.
struct Memory {
    start: *mut u8,
    bytes: usize,
}

impl Memory {
    fn new(bytes: usize) -> io::Result<Memory> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which `Memory` owns.
        let start = unsafe { mmap_anonymous(null_mut(), bytes, prot, MapFlags::PRIVATE)? };
        let memory = Memory { start: start.cast(), bytes };
        // SAFETY: as above. Refused, it has small pages.
        let _ = unsafe { madvise(start, bytes, Advice::LinuxHugepage) };
        Ok(memory)
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is as long, readable and writable, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped in `Memory::new`; nothing borrows it.
        let _ = unsafe { munmap(self.start.cast(), self.bytes) };
    }
}
