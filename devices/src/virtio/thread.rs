//! Device threads: each waits for the kicks and the files of its devices, and serves them in turn.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::dma::Dma;

use super::device::Device;
use super::watch::{Event, Watch};

/// Events that are fetched at once. More wait their turn in the kernel.
const FETCHED: usize = 32;
/// The word of the event that ends a thread: no device has it.
const END: u64 = u64::MAX;

/// The threads of a machine's devices. They end when this is dropped, a burst that has begun first.
#[derive(Debug)]
pub struct Threads(#[expect(dead_code, reason = "kept to be dropped")] Vec<Thread>);

#[derive(Debug)]
struct Thread {
    end: EventFd,
    handle: Option<JoinHandle<()>>,
}

impl Threads {
    /// Starts `count` threads, at most one for each of `devices`, and deals the devices out among them.
    ///
    /// # Errors
    /// There is no thread, or nothing to wait with: no device is served.
    pub fn start<D: Dma>(devices: &[Arc<Device<D>>], count: usize) -> io::Result<Threads> {
        let count = count.clamp(1, devices.len().max(1));
        let threads = (0..count).filter(|&index| index < devices.len()).map(|index| {
            let share = devices.iter().skip(index).step_by(count).cloned().collect();
            Thread::start(index, share)
        });
        threads.collect::<io::Result<_>>().map(Threads)
    }
}

impl Thread {
    fn start<D: Dma>(index: usize, devices: Vec<Arc<Device<D>>>) -> io::Result<Thread> {
        let end = EventFd::new(EFD_NONBLOCK)?;
        let attendance = Attendance::new(devices)?;
        let ending = EpollEvent::new(EventSet::IN, END);
        attendance.epoll.ctl(ControlOperation::Add, end.as_raw_fd(), ending)?;
        let handle = Builder::new().name(format!("device{index}")).spawn(move || {
            while attendance.turn(None).expect("a device thread can wait") == Turn::Served {}
        })?;
        Ok(Thread { end, handle: Some(handle) })
    }
}

/// Devices and what they wait for. A thread attends to them; or whoever has this, when it suits: benchmarks, and tests that
/// want to know what happens when.
#[derive(Debug)]
pub struct Attendance<D: Dma> {
    epoll: Arc<Epoll>,
    devices: Vec<Arc<Device<D>>>,
}

/// Whether there is going to be another turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is.
    Served,
    /// The devices' thread is to end.
    Ended,
}

impl<D: Dma> Attendance<D> {
    /// Attends to `devices` from now on.
    ///
    /// # Errors
    /// There is nothing to wait with.
    pub fn new(devices: Vec<Arc<Device<D>>>) -> io::Result<Attendance<D>> {
        let epoll = Arc::new(Epoll::new()?);
        for (number, device) in (0..).zip(&devices) {
            device.attach(Watch::new(Arc::clone(&epoll), number))?;
        }
        Ok(Attendance { epoll, devices })
    }

    /// Serves what is ready, having waited for that for no longer than `time`.
    ///
    /// # Errors
    /// There is no waiting.
    pub fn turn(&self, time: Option<Duration>) -> io::Result<Turn> {
        let time = time.map_or(-1, |time| i32::try_from(time.as_millis()).unwrap_or(i32::MAX));
        let mut events = [EpollEvent::default(); FETCHED];
        let count = match self.epoll.wait(time, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            if event.data() == END {
                return Ok(Turn::Ended);
            }
            let event = Event::of(event.data());
            if let Some(device) = self.devices.get(event.device as usize) {
                device.serve(event.source);
            }
        }
        Ok(Turn::Served)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let _ = self.end.write(1);
        if let Some(handle) = self.handle.take() {
            // Its panic was printed by itself.
            let _ = handle.join();
        }
    }
}
