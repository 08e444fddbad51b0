//! Where the command line says that virtio devices are: `virtio_mmio.device=SIZE@ADDRESS:IRQ`, once for each.
//!
//! Linux' syntax (`Documentation/admin-guide/kernel-parameters.txt`), with its optional `:ID`, which means nothing here.

use crate::boot_params::Range;
use crate::cmdline::{BadValue, Cmdline, Expected, parse};

const KEY: &str = "virtio_mmio.device";
/// The registers before the device's own (virtio 1.3, 4.2.2).
const REGISTERS: u64 = 0x100;
/// What the identity map can reach.
const END: u64 = 1 << 39;

/// The registers of a device. The interrupt is of no use to a guest that polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Guest-physical addresses.
    pub range: Range,
    /// Line of the interrupt controller.
    pub irq: u32,
}

/// Every device of `line`, in order.
pub fn listed<'a>(line: Cmdline<'a>) -> impl Iterator<Item = Result<Window, BadValue<'a>>> {
    line.all(KEY).map(|value| {
        window(value).ok_or(BadValue {
            key: KEY,
            value,
            expected: Expected::Words(
                "SIZE@ADDRESS:IRQ, of at least 256 bytes, at a multiple of 4, below 512 GiB",
            ),
        })
    })
}

fn window(value: &str) -> Option<Window> {
    let (size, rest) = value.split_once('@')?;
    let (base, rest) = rest.split_once(':')?;
    let (irq, id) = rest.split_once(':').unwrap_or((rest, "0"));
    let (size, start) = (parse(size)?, parse(base)?);
    let (irq, _) = (irq.parse().ok()?, parse(id)?);
    let range = Range { start, end: start.checked_add(size)? };
    let fits = size >= REGISTERS && start.is_multiple_of(4) && range.end <= END;
    fits.then_some(Window { range, irq })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_listed_in_order_among_other_words() {
        let line = "blk.ops=7 virtio_mmio.device=4K@0xd0000000:5 quiet \
                    virtio_mmio.device=0x200@3489665024:33:1 xvirtio_mmio.device=1K@0:1";
        let found: Vec<Window> = listed(Cmdline(line)).map(Result::unwrap).collect();
        let at = |start, len, irq| Window { range: Range { start, end: start + len }, irq };
        assert_eq!(found, [at(0xd000_0000, 4096, 5), at(0xd000_1000, 512, 33)]);
    }

    #[test]
    fn what_is_malformed_is_reported_and_the_rest_is_found() {
        for bad in [
            "",
            "4K",
            "4K@0xd0000000",
            "4K@0xd0000000:",
            "4K@0xd0000000:x",
            "4K@0xd0000000:5:x",
            "4K@0xd0000002:5",
            "0xff@0xd0000000:5",
            "4K@0xffffffffffffff00:5",
            "4K@0x8000000000:5",
        ] {
            let line = format!("virtio_mmio.device={bad} virtio_mmio.device=4K@0xd0000000:5");
            let found: Vec<_> = listed(Cmdline(&line)).collect();
            assert_eq!(found.len(), 2, "{bad}");
            let said = found[0].unwrap_err().to_string();
            assert!(
                said.starts_with(&format!("virtio_mmio.device={bad}: expected SIZE@")),
                "{said}"
            );
            assert!(found[1].is_ok());
        }
        assert_eq!(listed(Cmdline("exit=3")).count(), 0);
    }
}
