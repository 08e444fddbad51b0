//! The serial console: a 16550 (by `vm-superio`) behind eight ports.
//!
//! Output is written through, byte by byte. A byte costs the guest an exit of 7–24 us and us a `write` of about 1 us, so a
//! buffer would save a tenth at most, and it would need a rule for when a prompt without a newline goes out. A guest that
//! writes and then halts for ever is the common end of a test program: nothing would flush for it.
//!
//! Output that fails is not the guest's fault and does not stop it: the error is kept for [`Serial::take_error`], later
//! bytes are dropped and counted. A sink that would block loses that byte only.
//!
//! Known hole: a blocking sink that stops reading stops the vCPU that writes, under this device's lock.

mod state;

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;
pub use vm_superio::Trigger;
use vm_superio::serial::{Error as UartError, NoEvents, Serial as Uart};

use crate::bus::{BusDevice, PioRange, Request};

pub use state::SerialState;

/// COM1's first port; its interrupt is ISA IRQ 4.
pub const COM1: u64 = 0x3f8;

/// ISA interrupt of COM1.
pub const COM1_IRQ: u32 = 4;

/// COM1's eight ports.
pub const COM1_RANGE: PioRange = PioRange::fixed(COM1, 8);

/// What went wrong outside of the guest.
#[derive(Debug, Error)]
pub enum SerialError {
    /// The console's sink failed; nothing is written to it any more.
    #[error("the serial console's output failed, what the guest writes from now on is lost: {0}")]
    Output(#[source] io::Error),
    /// The interrupt could not be raised: the guest may wait for ever for input or for room to write.
    #[error("the serial console's interrupt could not be raised: {0}")]
    Interrupt(#[source] io::Error),
}

/// What the guest has written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputStats {
    /// When the first byte arrived here, whether or not the sink took it.
    pub first_byte: Option<Instant>,
    /// Bytes the sink took.
    pub bytes: u64,
    /// Bytes that were lost because the sink failed or would have blocked.
    pub lost: u64,
}

/// A 16550 UART.
pub struct Serial {
    uart: Uart<Line, NoEvents, Output>,
    interrupt_error: Option<io::Error>,
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("output", &self.output_stats())
            .field("fifo_capacity", &self.fifo_capacity())
            .finish_non_exhaustive()
    }
}

impl Serial {
    /// A UART after reset. `interrupt` is triggered on each rising edge of the interrupt line; `output` gets what the guest
    /// transmits.
    pub fn new(
        interrupt: impl Trigger<E = io::Error> + Send + Sync + 'static,
        output: impl Write + Send + 'static,
    ) -> Self {
        let (line, output) = (Line(Arc::new(interrupt)), Output::new(output));
        Self { uart: Uart::new(line, output), interrupt_error: None }
    }

    /// How many bytes [`Serial::enqueue`] would take now. The monitor stops reading its input at 0 and asks again after
    /// the guest has read, so input is never dropped.
    pub fn fifo_capacity(&self) -> usize {
        self.uart.fifo_capacity()
    }

    /// Gives the guest input; returns how many bytes were taken (none while the guest has the UART in loopback).
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let free = self.uart.fifo_capacity();
        match self.uart.enqueue_raw_bytes(input) {
            Ok(taken) => taken,
            Err(UartError::Trigger(error)) => {
                // The bytes are in the FIFO all the same: the guest finds them when it polls.
                self.interrupt_error.get_or_insert(error);
                free - self.uart.fifo_capacity()
            }
            Err(UartError::FullFifo | UartError::IOError(_)) => 0,
        }
    }

    /// What the guest has written so far.
    pub fn output_stats(&self) -> OutputStats {
        self.uart.writer().stats
    }

    /// The first error of either kind since the last call. An output error is reported once in the device's life.
    pub fn take_error(&mut self) -> Option<SerialError> {
        let output = self.uart.writer_mut().take_error().map(SerialError::Output);
        output.or_else(|| self.interrupt_error.take().map(SerialError::Interrupt))
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // A wide access is split into its bytes, as an 8-bit ISA device sees it.
        for (register, byte) in (offset..).zip(data) {
            *byte = self.uart.read(register as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        for (register, &byte) in (offset..).zip(data) {
            // Output never fails here, see `Output`; FullFifo is not an answer to a write.
            if let Err(UartError::Trigger(error)) = self.uart.write(register as u8, byte) {
                self.interrupt_error.get_or_insert(error);
            }
        }
        None
    }
}

/// The interrupt line, so that [`Serial`] needs no type parameter.
#[derive(Clone)]
struct Line(Arc<dyn Trigger<E = io::Error> + Send + Sync>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

enum SinkState {
    Open,
    /// Failed for good; the error until it is taken.
    Failed(Option<io::Error>),
}

/// A sink that counts and never fails, so that the UART never reports an error to the guest.
struct Output {
    sink: Box<dyn Write + Send>,
    stats: OutputStats,
    state: SinkState,
}

impl Output {
    fn new(sink: impl Write + Send + 'static) -> Output {
        Output { sink: Box::new(sink), stats: OutputStats::default(), state: SinkState::Open }
    }

    fn take_error(&mut self) -> Option<io::Error> {
        match &mut self.state {
            SinkState::Open => None,
            SinkState::Failed(error) => error.take(),
        }
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stats.first_byte.get_or_insert_with(Instant::now);
        let len = data.len() as u64;
        if matches!(self.state, SinkState::Failed(_)) {
            self.stats.lost += len;
            return Ok(data.len());
        }
        // A sink with a buffer of its own must not keep a prompt.
        match self.sink.write_all(data).and_then(|()| self.sink.flush()) {
            Ok(()) => self.stats.bytes += len,
            Err(error) => {
                self.stats.lost += len;
                if error.kind() != ErrorKind::WouldBlock {
                    self.state = SinkState::Failed(Some(error));
                }
            }
        }
        Ok(data.len())
    }

    /// Every write has been flushed already.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
