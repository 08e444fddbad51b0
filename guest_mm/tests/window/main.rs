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
mod limits;
mod queue;
mod view;

const MIB: u64 = 1 << 20;

struct TestGuest {
    guest: Guest,
    stops: Mutex<Receiver<FaultError>>,
    base: Hva,
}

fn add(mm: &GuestMm, bytes: u64, pages: PageSize) -> TestGuest {
    let (tell, stops) = channel();
    let tell = Mutex::new(tell);
    let ram = GfnRange::from_bytes(Gpa::new(0), bytes).unwrap();
    let config = GuestConfig {
        ram: vec![ram],
        over: Vec::new(),
        on_missing: None,
        policy: FaultPolicy { pages },
        fault_threads: 2,
        on_stop: Box::new(move |error| tell.lock().unwrap().send(error.clone()).unwrap()),
    };
    let guest = mm.add_guest(config).unwrap();
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
