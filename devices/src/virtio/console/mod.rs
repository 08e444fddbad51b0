//! A console (virtio 1.2, section 5.3): one port, which leads to a terminal, a file or a socket of the host.
//!
//! What the guest writes goes from its pinned buffers to the file by one system call. What the file does not take at once
//! waits here, up to a bound; then the guest's buffers stay in their queue, and the guest waits. Input is read only into
//! buffers that the driver has given: until then it waits where it was typed.

pub mod host;
mod moving;
mod state;
#[cfg(test)]
mod tests;
pub mod wire;

use std::os::fd::AsRawFd;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::epoll::EventSet;

use crate::dma::{Dma, Transfer};
use crate::virtio::backlog::Backlog;
use crate::virtio::device::ConfigIs;
use crate::virtio::model::{DeviceType, Io, Model, Progress, Saved};
use crate::virtio::queue::{Broken, Chain};
use crate::virtio::watch::{Interest, Watch, hung_up, takes_more};

use host::{Answer, Port};
use wire::{F_EMERG_WRITE, F_SIZE, QUEUE_SIZE, RX, Size, TX};

/// Bytes of output that wait here for the host.
pub const KEPT: usize = 64 << 10;

/// How long a console that ends waits for an output that takes nothing.
const LINGER: Duration = Duration::from_secs(1);

/// Clients that are looked after at once.
const AT_ONCE: u32 = 16;

/// There is input.
const INPUT: u32 = 0;
/// The output takes more, or nobody reads it any more.
const OUTPUT: u32 = 1;
/// Somebody wants to connect.
const DOOR: u32 = 2;

/// What a console counts.
#[derive(Debug, Default)]
struct Counts {
    input: u64,
    output: u64,
    /// Bytes of output that nobody got.
    lost: u64,
    /// How often the output was full.
    held_up: u64,
    /// Clients that were refused.
    refused: u64,
    /// Errors of the host's files.
    failed: u64,
}

/// Whether a driver is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// There is none.
    Idle,
    Running,
    Paused,
}

/// A console.
#[derive(Debug)]
pub struct Console<D: Dma> {
    input: Interest,
    output: Interest,
    door: Interest,
    port: Box<dyn Port>,
    size: Size,
    /// What was taken from the driver and not by the host.
    backlog: Backlog,
    /// Bytes of the first buffer in the transmit queue that have gone.
    sent: u64,
    /// The transmit queue waits until the output takes more.
    held_up: bool,
    /// The driver has given buffers for input.
    wanted: bool,
    /// The input can be read at any time, and cannot be waited for: it is a plain file.
    plain: bool,
    life: Life,
    /// Where to wait for the output, for bytes that come by the configuration space.
    watch: Option<Watch>,
    transfer: Transfer<D::Hold>,
    chain: Chain,
    counts: Counts,
}

impl<D: Dma> Console<D> {
    /// A console of `size` that leads to `port`.
    pub fn new(dma: &D, size: Size, port: Box<dyn Port>) -> Console<D> {
        Console {
            input: Interest::new(INPUT),
            output: Interest::new(OUTPUT),
            door: Interest::new(DOOR),
            port,
            size,
            backlog: Backlog::new(KEPT),
            sent: 0,
            held_up: false,
            wanted: false,
            plain: false,
            life: Life::Idle,
            watch: None,
            transfer: Transfer::new(dma.hold()),
            chain: Chain::default(),
            counts: Counts::default(),
        }
    }

    /// The terminal has another size now: for [`super::device::Device::with`].
    pub fn resize(&mut self, columns: u16, rows: u16) -> ConfigIs {
        let size = Size { columns, rows };
        if self.size == size {
            return ConfigIs::Same;
        }
        self.size = size;
        ConfigIs::New
    }

    /// Has itself told of what it can do something about now, and of nothing else.
    fn attend(&mut self, watch: &Watch) -> Result<(), Broken> {
        let running = self.life == Life::Running;
        let broken = |what: &str, error: std::io::Error| {
            Broken::Host(format!("the console's {what} cannot be watched: {error}"))
        };
        let input = self.port.input().filter(|_| running && self.wanted && !self.plain);
        let input = input.map(|file| (file.as_raw_fd(), EventSet::IN));
        match self.input.set(watch, input) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.plain = true,
            result => result.map_err(|error| broken("input", error))?,
        }
        let leaves = self.port.door().is_some() && self.port.input().is_none();
        let output = self.port.output().map(|file| file.as_raw_fd());
        let output = match output {
            Some(file) if !self.backlog.is_empty() || running && self.held_up => {
                Some((file, EventSet::OUT))
            }
            // To hear when a client goes that types no more.
            Some(file) if leaves => Some((file, EventSet::empty())),
            _ => None,
        };
        self.output.set(watch, output).map_err(|error| broken("output", error))?;
        let door = self.port.door().filter(|_| running);
        // Told once for each who comes: one that cannot be let in, for want of a file, would be told for ever.
        let told = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let door = door.map(|file| (file.as_raw_fd(), told));
        self.door.set(watch, door).map_err(|error| broken("socket", error))
    }

    fn close_input(&mut self, watch: &Watch) {
        // What was told before comes once more at most.
        let _ = self.input.set(watch, None);
        self.port.close_input();
        if self.port.door().is_some() && self.port.output().is_some_and(hung_up) {
            self.close_output(watch);
        }
    }

    fn close_output(&mut self, watch: &Watch) {
        let _ = self.output.set(watch, None);
        self.port.close_output();
    }

    /// Connects who comes, or sends them away.
    fn answer_door(&mut self, watch: &Watch) {
        // A client that has gone is replaced.
        let _ = (self.input.set(watch, None), self.output.set(watch, None));
        for _ in 0..AT_ONCE {
            match self.port.answer_door() {
                Ok(Answer::Connected) => {}
                Ok(Answer::Refused) => self.counts.refused += 1,
                Err(error) => {
                    let nobody = error.kind() == std::io::ErrorKind::WouldBlock;
                    self.counts.failed += u64::from(!nobody);
                    return;
                }
            }
        }
        // Others may wait: watched anew, they are told again.
        let _ = self.door.set(watch, None);
    }
}

impl<D: Dma> Drop for Console<D> {
    /// The end of what a guest has to say is what matters most.
    fn drop(&mut self) {
        while let Some(file) = self.port.output()
            && self.backlog.flush(file).is_ok()
            && !self.backlog.is_empty()
            && takes_more(file, LINGER)
        {}
    }
}

impl<D: Dma> Model<D> for Console<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType(VIRTIO_ID_CONSOLE)
    }

    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.size.config();
        let rest =
            usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or(&[]);
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Some(byte) = wire::emergency(offset, data) else { return };
        if let Some(watch) = self.watch.clone() {
            self.emergency(byte, &watch);
        } else if !self.backlog.push(byte) {
            self.counts.lost += 1;
        }
    }

    fn start(&mut self, _features: u64, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        self.life = Life::Running;
        self.watch = Some(io.watch.clone());
        self.flush(io.watch);
        self.attend(io.watch)
    }

    fn kicked(&mut self, queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken> {
        if queue == TX {
            let progress = self.transmit(io)?;
            self.attend(io.watch)?;
            return Ok(progress);
        }
        self.wanted = !io.queues[usize::from(RX)].is_empty(io.memory)?;
        self.attend(io.watch)?;
        // What can be waited for says by itself when there is something.
        if self.plain { self.receive(io) } else { Ok(Progress::Done) }
    }

    fn ready(&mut self, token: u32, io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        let running = self.life == Life::Running;
        match token {
            INPUT if running => {
                // More of it says so again.
                let (Progress::Done | Progress::More) = self.receive(io)?;
            }
            DOOR if running => self.answer_door(io.watch),
            _ => {}
        }
        self.flush(io.watch);
        if token == OUTPUT && self.backlog.is_empty() && self.port.output().is_some_and(hung_up) {
            self.close_output(io.watch);
        }
        if running && self.held_up && self.transmit(io)? == Progress::More {
            io.again(TX);
        }
        self.attend(io.watch)
    }

    fn pause(&mut self, watch: &Watch) {
        self.life = Life::Paused;
        // Telling files off does not fail.
        let _ = self.attend(watch);
    }

    fn resume(&mut self, watch: &Watch) {
        self.life = Life::Running;
        // What cannot be watched is found when the queues are kicked, which follows.
        let _ = self.attend(watch);
    }

    fn reset(&mut self, watch: &Watch) {
        (self.life, self.wanted) = (Life::Idle, false);
        (self.sent, self.held_up) = (0, false);
        // What the driver was told is written is still on its way.
        let _ = self.attend(watch);
    }

    fn save(&self) -> Saved {
        state::save(self.size, self.sent)
    }

    fn restore(&mut self, saved: &Saved) -> Result<(), String> {
        (self.size, self.sent) = state::restore(saved)?;
        Ok(())
    }

    fn stats(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("bytes_input", self.counts.input),
            ("bytes_output", self.counts.output),
            ("bytes_lost", self.counts.lost),
            ("held_up", self.counts.held_up),
            ("refused", self.counts.refused),
            ("failed", self.counts.failed),
        ]
    }
}
