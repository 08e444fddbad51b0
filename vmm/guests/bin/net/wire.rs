//! Frames out and in, with several of each on their way.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use rt::packet::{HEADERS, MAX_DATA, Mac};
use rt::tsc::Frequency;
use rt::virtio::{Device, Failure, Memory};
use virtio_drivers::device::net::VirtIONetRaw;

/// Descriptors of each queue. The stack has room for no more: the driver is made there, and holds them by value.
const QUEUE: usize = 32;
/// Bytes of a buffer: the longest frame, and the header of virtio before it.
const BUFFER: usize = 2048;
const _: () = assert!(HEADERS + MAX_DATA + 12 <= BUFFER);
/// Milliseconds without an answer after which the device is given up.
const PATIENCE: u64 = 20_000;

type Driver = VirtIONetRaw<Memory, Device, QUEUE>;
/// Never freed: a device that does not answer may still use it.
type Buffer = &'static mut [u8];

/// A frame that came, to be given back.
pub(crate) struct Frame {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Frame {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
}

/// What went over the wire.
#[derive(Clone, Copy, Default)]
pub(crate) struct Traffic {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

pub(crate) struct Wire {
    /// On the heap: it is too large to be moved about on the stack.
    driver: Box<Driver>,
    frequency: Frequency,
    /// Buffers that frames may come to, by their tokens.
    receiving: Vec<(u16, Buffer)>,
    /// Buffers that are being sent: tokens, buffers and how much of them.
    sending: Vec<(u16, Buffer, usize)>,
    free: Vec<Buffer>,
    pub(crate) sent: Traffic,
    pub(crate) received: Traffic,
}

impl Wire {
    pub(crate) fn new(device: Device, frequency: Frequency) -> Result<Wire, Failure> {
        let driver = Box::new(
            Driver::new(device)
                .map_err(Failure::at("setting the device up, with 32 descriptors a queue"))?,
        );
        let buffer = || Box::leak(vec![0; BUFFER].into_boxed_slice());
        let mut wire = Wire {
            driver,
            frequency,
            receiving: Vec::with_capacity(QUEUE),
            sending: Vec::with_capacity(QUEUE),
            free: (0..QUEUE).map(|_| buffer()).collect(),
            sent: Traffic::default(),
            received: Traffic::default(),
        };
        (0..QUEUE).try_for_each(|_| wire.offer(buffer()))?;
        Ok(wire)
    }

    pub(crate) fn mac(&self) -> Mac {
        Mac(self.driver.mac_address())
    }

    /// The next frame, if one is there.
    pub(crate) fn receive(&mut self) -> Result<Option<Frame>, Failure> {
        let Some(token) = self.driver.poll_receive() else { return Ok(None) };
        let place = self.receiving.iter().position(|(offered, _)| *offered == token);
        let place = place.ok_or(Failure::Wrong("the device filled a buffer nobody offered"))?;
        let (_, buffer) = self.receiving.swap_remove(place);
        // SAFETY: the buffer that `offer` got this token for.
        let lengths = unsafe { self.driver.receive_complete(token, buffer) };
        let (start, len) = lengths.map_err(Failure::at("receive"))?;
        let end = start + len;
        if end > buffer.len() {
            return Err(Failure::Wrong("the device says it received more than the buffer holds"));
        }
        self.received.frames += 1;
        self.received.bytes += len as u64;
        Ok(Some(Frame { buffer, start, end }))
    }

    /// Gives a frame's buffer back to the device.
    pub(crate) fn recycle(&mut self, frame: Frame) -> Result<(), Failure> {
        self.offer(frame.buffer)
    }

    fn offer(&mut self, buffer: Buffer) -> Result<(), Failure> {
        // SAFETY: it is in `receiving`, where nobody looks at it, until `receive` completes it.
        let token = unsafe { self.driver.receive_begin(buffer) };
        self.receiving.push((token.map_err(Failure::at("receive"))?, buffer));
        Ok(())
    }

    /// Sends the frame that `build` writes, of the length that it says; waits for a free buffer.
    pub(crate) fn send(&mut self, build: impl FnOnce(&mut [u8]) -> usize) -> Result<(), Failure> {
        let patience = self.frequency.after(PATIENCE);
        let buffer = loop {
            self.reclaim()?;
            match self.free.pop() {
                Some(buffer) => break buffer,
                None if patience.passed() => {
                    return Err(Failure::Wrong("nothing was sent for 20 s, with frames to send"));
                }
                None => core::hint::spin_loop(),
            }
        };
        let header = self.driver.fill_buffer_header(buffer).map_err(Failure::at("send"))?;
        let len = build(&mut buffer[header..]);
        // SAFETY: it is in `sending`, where nobody looks at it, until `reclaim` completes it.
        let token = unsafe { self.driver.transmit_begin(&buffer[..header + len]) };
        let token = token.map_err(Failure::at("send"))?;
        self.sending.push((token, buffer, header + len));
        self.sent.frames += 1;
        self.sent.bytes += len as u64;
        Ok(())
    }

    /// Waits until all that was given to the device is sent.
    pub(crate) fn drain(&mut self) -> Result<(), Failure> {
        let patience = self.frequency.after(PATIENCE);
        while !self.sending.is_empty() {
            self.reclaim()?;
            if patience.passed() {
                return Err(Failure::Wrong("frames were not sent for 20 s"));
            }
        }
        Ok(())
    }

    /// Takes back what was sent.
    fn reclaim(&mut self) -> Result<(), Failure> {
        while let Some(token) = self.driver.poll_transmit() {
            let place = self.sending.iter().position(|(sent, ..)| *sent == token);
            let place = place.ok_or(Failure::Wrong("the device sent a frame nobody gave it"))?;
            let (_, buffer, len) = self.sending.swap_remove(place);
            // SAFETY: as much of the buffer as `send` got this token for.
            let done = unsafe { self.driver.transmit_complete(token, &buffer[..len]) };
            done.map_err(Failure::at("send"))?;
            self.free.push(buffer);
        }
        Ok(())
    }
}
