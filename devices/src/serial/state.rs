//! What is kept of the serial port when its machine is saved.

use std::io::sink;
use std::mem;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, Serial as Uart, SerialState as UartState};

use super::{Output, Serial};

/// The registers of the UART, and the input that the guest has not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialState {
    /// The baud rate's divisor, which is kept and without effect.
    pub divisor: [u8; 2],
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// What was typed and not yet read, the oldest first.
    pub input: Vec<u8>,
}

impl Serial {
    /// What it is. What was written is out already.
    pub fn save(&self) -> SerialState {
        let UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: input,
        } = self.uart.state();
        SerialState {
            divisor: [baud_divisor_low, baud_divisor_high],
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            input,
        }
    }

    /// Becomes what `state` says, with the output and the interrupt that it has. An interrupt that was pending is raised again.
    ///
    /// # Errors
    /// A sentence: there is more input than a UART holds, or the interrupt cannot be raised. The port is to be thrown away.
    pub fn restore(&mut self, state: &SerialState) -> Result<(), String> {
        let uart = UartState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        };
        let line = self.uart.interrupt_evt().clone();
        let output = mem::replace(self.uart.writer_mut(), Output::new(sink()));
        self.uart = Uart::from_state(&uart, line, NoEvents, output)
            .map_err(|error| format!("the serial port: {error}"))?;
        Ok(())
    }
}
