//! The service on the real userfaultfd: threads of this test play the vCPU, and access the window as a
//! guest would.
#![allow(unsafe_code, reason = "plays the guest: accesses the window, which nothing else does")]

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use guest_mm::addr::{GfnRange, Gpa, Hva, PageSize};
use guest_mm::fault::FaultError;
use guest_mm::pool::BackingChoice;
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};

mod collapse;
mod contents;
mod dedup;
mod image;
mod limits;
mod queue;
mod returned;
mod view;
mod waits;

const MIB: u64 = 1 << 20;

struct TestGuest {
    guest: Guest,
    stops: Mutex<Receiver<FaultError>>,
    base: Hva,
}

fn add(mm: &GuestMm, bytes: u64, pages: PageSize) -> TestGuest {
    let config = GuestConfig { ram: vec![range(0, bytes)], ..nothing(pages) };
    add_as(mm, config)
}

/// A guest without RAM, that nothing may stop.
fn nothing(pages: PageSize) -> GuestConfig {
    GuestConfig {
        ram: Vec::new(),
        over: Vec::new(),
        on_missing: None,
        policy: FaultPolicy { pages },
        fault_threads: 2,
        on_stop: Box::new(|_| ()),
    }
}

/// The guest that `config` describes, what stops it kept.
fn add_as(mm: &GuestMm, config: GuestConfig) -> TestGuest {
    let (tell, stops) = channel();
    let tell = Mutex::new(tell);
    let on_stop =
        Box::new(move |error: &FaultError| tell.lock().unwrap().send(error.clone()).unwrap());
    let guest = mm.add_guest(GuestConfig { on_stop, ..config }).unwrap();
    let base = guest.windows().next().unwrap().1;
    TestGuest { guest, stops: Mutex::new(stops), base }
}

impl TestGuest {
    fn pointer(&self, gpa: u64) -> *mut u64 {
        self.base.add(gpa).as_u64() as *mut u64
    }

    fn load(&self, gpa: u64) -> u64 {
        // SAFETY: the window is mapped for as long as the guest lives; an access that the table does
        // not translate waits for a fault thread.
        unsafe { self.pointer(gpa).read_volatile() }
    }

    fn store(&self, gpa: u64, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.pointer(gpa).write_volatile(value) }
    }

    /// Stores from a thread of its own, which an access that is refused may hold up for a while.
    fn store_aside(&self, gpa: u64) -> std::thread::JoinHandle<()> {
        let at = self.pointer(gpa) as usize;
        // SAFETY: as in `load`; every test joins the thread before the guest ends.
        std::thread::spawn(move || unsafe { (at as *mut u64).write_volatile(1) })
    }

    /// The same for a load.
    fn load_aside(&self, gpa: u64) -> std::thread::JoinHandle<u64> {
        let at = self.pointer(gpa) as usize;
        // SAFETY: as in `store_aside`.
        std::thread::spawn(move || unsafe { (at as *const u64).read_volatile() })
    }

    /// Mappings of this process that lie in the first `bytes` of the guest's window.
    fn mappings(&self, bytes: u64) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let (start, end) = (self.base.as_u64(), self.base.as_u64() + bytes);
        let starts =
            maps.lines().filter_map(|line| u64::from_str_radix(line.split_once('-')?.0, 16).ok());
        starts.filter(|at| (start..end).contains(at)).count()
    }

    /// Ends a guest that nothing stopped, its books right.
    fn close(self) {
        let stop = self.stops.lock().unwrap().try_recv();
        assert!(stop.is_err(), "stopped: {}", stop.unwrap());
        self.guest.close().unwrap();
    }

    fn stop(&self) -> FaultError {
        self.stops
            .lock()
            .unwrap()
            .recv_timeout(Duration::from_secs(10))
            .expect("the guest is stopped")
    }
}

fn service(bytes: u64, pages: PageSize) -> GuestMm {
    GuestMm::new(BackingChoice::Auto, bytes, pages).unwrap()
}

fn range(gpa: u64, bytes: u64) -> GfnRange {
    GfnRange::from_bytes(Gpa::new(gpa), bytes).unwrap()
}
