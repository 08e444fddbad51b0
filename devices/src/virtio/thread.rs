//! Device threads: each waits for the kicks and the files of its devices, and serves them in turn.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

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
        let epoll = Arc::new(Epoll::new()?);
        let end = EventFd::new(EFD_NONBLOCK)?;
        let ending = EpollEvent::new(EventSet::IN, END);
        epoll.ctl(ControlOperation::Add, std::os::fd::AsRawFd::as_raw_fd(&end), ending)?;
        for (number, device) in (0..).zip(&devices) {
            device.attach(Watch::new(Arc::clone(&epoll), number))?;
        }
        let handle =
            Builder::new().name(format!("device{index}")).spawn(move || serve(&epoll, &devices))?;
        Ok(Thread { end, handle: Some(handle) })
    }
}

fn serve<D: Dma>(epoll: &Epoll, devices: &[Arc<Device<D>>]) {
    let mut events = [EpollEvent::default(); FETCHED];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => panic!("epoll of a device thread: {error}"),
        };
        for event in &events[..count] {
            if event.data() == END {
                return;
            }
            let event = Event::of(event.data());
            if let Some(device) = devices.get(event.device as usize) {
                device.serve(event.source);
            }
        }
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
