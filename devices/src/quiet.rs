//! Ports that a PC guest probes and that this machine leaves empty on purpose.
//!
//! They read as ones and swallow writes, as an ISA bus with nothing on it does, and they do not count as unclaimed: what
//! remains in the bus's record of unclaimed accesses is news.
//!
//! Not here: what KVM's in-kernel interrupt controllers and PIT serve (0x20, 0x21, 0x40..=0x43, 0x61, 0xa0, 0xa1, 0x4d0,
//! 0x4d1); those accesses never leave the kernel, and if they do, that is a fault in the machine's set-up.

use std::sync::{Arc, Mutex};

use crate::bus::{BusDevice, BusError, PioBus, PioRange, Request};

/// (first port, number of ports, name). All ones mean "absent" to the probe named in the comment.
const QUIET: &[(u64, u64, &str)] = &[
    // 8237 DMA controller 1. Only ISA drivers use it.
    (0x00, 0x10, "absent DMA controller 1"),
    // POST code port. Kernels write it as a delay of about a microsecond.
    (0x80, 0x01, "POST port"),
    // DMA page registers. Linux reads 0x87 to learn whether there is a DMA controller at all.
    (0x81, 0x0f, "absent DMA page registers"),
    // 8237 DMA controller 2.
    (0xc0, 0x20, "absent DMA controller 2"),
    // The other delay port, for boards where 0x80 is taken.
    (0xed, 0x01, "delay port"),
    // COM4 and COM2: the 8250 driver writes the interrupt-enable register and looks for the value it wrote.
    (0x2e8, 0x08, "absent COM4"),
    (0x2f8, 0x08, "absent COM2"),
    // COM3.
    (0x3e8, 0x08, "absent COM3"),
    // PCI configuration mechanisms 1 and 2: the probe writes an address and reads it back. There is no PCI bus.
    (0xcf8, 0x08, "absent PCI configuration"),
];

/// A device that is not there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl BusDevice for Quiet {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Option<Request> {
        None
    }
}

/// Claims all quiet ports.
///
/// # Errors
/// [`BusError::Overlap`] when a device was registered on one of them.
pub fn claim_quiet_ports(bus: &mut PioBus) -> Result<(), BusError> {
    for &(base, len, name) in QUIET {
        bus.insert(PioRange::new(base, len)?, name, Arc::new(Mutex::new(Quiet)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Claimed;

    #[test]
    fn probes_find_nothing_and_leave_no_trace_in_the_unclaimed_record() {
        let mut bus = PioBus::new();
        claim_quiet_ports(&mut bus).unwrap();
        for (port, size) in
            [(0x80, 1), (0x87, 1), (0xcf8, 4), (0xcfc, 4), (0x2f9, 1), (0x3ef, 1), (0xde, 1)]
        {
            let mut data = vec![0; size];
            assert_eq!(bus.write(port, &data), Claimed::Yes(None), "{port:#x}");
            assert_eq!(bus.read(port, &mut data), Claimed::Yes(None), "{port:#x}");
            assert!(data.iter().all(|&byte| byte == 0xff));
        }
        assert_eq!(bus.unclaimed().accesses, 0);
    }

    #[test]
    fn ports_of_real_devices_and_of_the_kernels_irqchip_stay_free() {
        let mut bus = PioBus::new();
        claim_quiet_ports(&mut bus).unwrap();
        for port in [0x20, 0x40, 0x60, 0x61, 0x64, 0x70, 0x71, 0xa0, 0xf4, 0x3f8, 0x3ff, 0x4d0] {
            assert_eq!(bus.read(port, &mut [0]), Claimed::No, "{port:#x}");
        }
    }
}
