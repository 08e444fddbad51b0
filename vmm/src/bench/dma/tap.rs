//! Frames from one network device to another, over two TAP interfaces and a bridge.

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::dma::Dma;
use devices::virtio::device::Device;
use devices::virtio::driver::{Buffer, Driver};
use devices::virtio::interrupt::Interrupt;
use devices::virtio::net::host::Tap;
use devices::virtio::net::{Config, Net};
use devices::virtio::thread::Attendance;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::bench::{BenchError, failed};

use super::served::{BUFFERS, Done, processor};

/// Descriptors of a queue.
const QUEUE: u16 = 256;
/// Where the rings of the two devices are.
const RINGS: [u64; 2] = [1 << 20, 1 << 20 | 1 << 19];
/// The header that goes with a frame, and the frame: as many bytes as an Ethernet without large frames takes.
const HEADER: u32 = 12;
pub(super) const FRAME: u32 = 1514;
/// Room for each in memory.
const ROOM: u64 = 2048;
/// For experiments (RFC 5342): the kernel sends nothing of the kind by itself.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Frames under way: the bridge drops what a TAP's queue does not take.
const DEPTH: u32 = 64;
/// No frame for so long is one too few.
const PATIENCE: Duration = Duration::from_secs(5);

/// Two devices with their drivers, on one thread.
pub(super) struct Cable<D: Dma> {
    drivers: [Driver<D>; 2],
    attendance: Attendance<D>,
    memory: GuestMemoryMmap,
}

impl<D: Dma> Cable<D> {
    /// Devices over `taps`, on the memory of `dma`, worked by drivers that see it as `memory`.
    pub(super) fn new(
        dma: &D,
        memory: GuestMemoryMmap,
        taps: [Tap; 2],
    ) -> Result<Self, BenchError> {
        let mut devices = Vec::new();
        for (number, tap) in (1..).zip(taps) {
            let mac = [2, 0, 0, 0, 0, number];
            let config = Config { mac, queues: 1, queue_size: QUEUE, offloads: false };
            let model = Net::new(dma, config, Box::new(tap)).map_err(BenchError::System)?;
            let device = Device::new("cable", dma.clone(), Box::new(model), Interrupt::default());
            devices.push(Arc::new(device.map_err(BenchError::System)?));
        }
        let attendance = Attendance::new(devices.clone()).map_err(BenchError::System)?;
        memory.write_slice(&[0; 1 << 20], GuestAddress(RINGS[0])).map_err(failed)?;
        let drivers = [0, 1].map(|which: usize| {
            let mut driver = Driver::new(Arc::clone(&devices[which]));
            driver.bring_up(RINGS[which], QUEUE);
            driver
        });
        let mut cable = Cable { drivers, attendance, memory };
        cable.prepare()?;
        Ok(cable)
    }

    /// A frame to send in each of the first places, and room for one in each of those behind them.
    fn prepare(&mut self) -> Result<(), BenchError> {
        let mut frame = vec![0x5a; (HEADER + FRAME) as usize];
        frame[..12].fill(0);
        frame[12..24].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        frame[24..26].copy_from_slice(&ETHERTYPE);
        for place in 0..u64::from(QUEUE) {
            self.memory
                .write_slice(&frame, GuestAddress(BUFFERS + place * ROOM))
                .map_err(failed)?;
        }
        (0..QUEUE).for_each(|place| self.give_room(place));
        self.drivers[1].kick(0);
        Ok(())
    }

    fn give_room(&mut self, place: u16) {
        let at = BUFFERS + (u64::from(QUEUE) + u64::from(place)) * ROOM;
        self.drivers[1].add(&self.memory, 0, &[Buffer::writable(at, ROOM as u32)]);
    }

    /// Sends `frames` from the one to the other.
    pub(super) fn run(&mut self, frames: u32) -> Result<Done, BenchError> {
        let (start, cpu) = (Instant::now(), processor());
        let (mut sent, mut arrived, mut last) = (0, 0, Instant::now());
        while arrived < frames {
            let mut news = false;
            while sent < frames.min(arrived + DEPTH) {
                let at = BUFFERS + u64::from(sent % u32::from(QUEUE)) * ROOM;
                let frame = [Buffer::readable(at, HEADER + FRAME)];
                if self.drivers[0].add(&self.memory, 1, &frame).is_none() {
                    break;
                }
                (sent, news) = (sent + 1, true);
            }
            if news {
                self.drivers[0].kick(1);
            }
            self.attendance.turn(Some(Duration::ZERO)).map_err(BenchError::System)?;
            while self.drivers[0].poll(&self.memory, 1).is_some() {}
            let mut room = false;
            while let Some((head, bytes)) = self.drivers[1].poll(&self.memory, 0) {
                // Others are of the kernel's own: neighbours that look for one another.
                if bytes == HEADER + FRAME {
                    (arrived, last) = (arrived + 1, Instant::now());
                }
                self.give_room(head);
                room = true;
            }
            if room {
                self.drivers[1].kick(0);
            }
            if last.elapsed() > PATIENCE {
                return Err(BenchError::Guest(format!("{} frames were lost", sent - arrived)));
            }
        }
        let frames = f64::from(frames);
        let seconds = start.elapsed().as_secs_f64() / frames;
        Ok(Done { seconds, cpu: (processor() - cpu).as_secs_f64() / frames })
    }
}
