//! What the monitor tells the guest: RAM and command line, from `struct boot_params`.
//!
//! Offsets as in Linux's `Documentation/arch/x86/zero-page.rst`.

use crate::cmdline::Cmdline;

const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;
const E820_RAM: u32 = 1;
const CMD_LINE_PTR: usize = 0x228;
/// Bits 63:32 of the pointer.
const EXT_CMD_LINE_PTR: usize = 0x0c8;
/// A bound for the search of the terminator; Linux's own is 2048.
const CMD_LINE_MAX: usize = 4096;

/// `struct boot_e820_entry`.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct E820Entry {
    addr: u64,
    size: u64,
    kind: u32,
}

/// `[start, end)` in guest-physical bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// Bytes.
    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Nothing in it?
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Any byte in common?
    pub fn overlaps(self, other: Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// What the monitor said at boot.
pub struct Boot {
    /// Address of `struct boot_params`.
    boot_params: *const u8,
    cmdline: &'static str,
}

impl Boot {
    /// # Safety
    /// `boot_params` is the address of a `struct boot_params` which, like the command line it points to, is mapped and will
    /// not change.
    pub(crate) unsafe fn from_boot_params(boot_params: *const u8) -> Boot {
        // SAFETY: both fields lie in the structure.
        let at = unsafe {
            let low: u32 = boot_params.add(CMD_LINE_PTR).cast::<u32>().read_unaligned();
            let high: u32 = boot_params.add(EXT_CMD_LINE_PTR).cast::<u32>().read_unaligned();
            u64::from(high) << 32 | u64::from(low)
        };
        let bytes = match at {
            0 => &[],
            // SAFETY: a NUL-terminated string, says the protocol; it is read up to its terminator, or the bound.
            _ => unsafe {
                let start = at as *const u8;
                let len =
                    (0..CMD_LINE_MAX).find(|&i| start.add(i).read() == 0).unwrap_or(CMD_LINE_MAX);
                core::slice::from_raw_parts(start, len)
            },
        };
        // Every word that is meant for a guest is ASCII; a stray byte ends the line.
        let cmdline = match core::str::from_utf8(bytes) {
            Ok(line) => line,
            Err(bad) => core::str::from_utf8(&bytes[..bad.valid_up_to()]).unwrap_or(""),
        };
        Boot { boot_params, cmdline }
    }

    /// The command line.
    pub fn cmdline(&self) -> Cmdline<'static> {
        Cmdline(self.cmdline)
    }

    /// The RAM that e820 lists, in its order.
    pub fn ram(&self) -> impl Iterator<Item = Range> + use<> {
        let boot_params = self.boot_params;
        // SAFETY: the field lies in the structure.
        let entries = usize::from(unsafe { boot_params.add(E820_ENTRIES).read() }).min(E820_MAX);
        (0..entries).filter_map(move |i| {
            // SAFETY: i < 128, the length of the table in the structure.
            let entry =
                unsafe { boot_params.add(E820_TABLE).cast::<E820Entry>().add(i).read_unaligned() };
            let E820Entry { addr, size, kind } = entry;
            (kind == E820_RAM).then(|| Range { start: addr, end: addr.saturating_add(size) })
        })
    }

    /// Where the structure and the command line lie: not to be written.
    pub fn occupied(&self) -> [Range; 2] {
        let of = |start: u64, len: u64| Range { start, end: start + len };
        [
            of(self.boot_params as u64, 4096),
            of(self.cmdline.as_ptr() as u64, self.cmdline.len() as u64 + 1),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(entries: &[(u64, u64, u32)]) -> Vec<u8> {
        let mut page = vec![0u8; 4096];
        page[E820_ENTRIES] = entries.len() as u8;
        for (i, (addr, size, kind)) in entries.iter().enumerate() {
            let at = E820_TABLE + i * 20;
            page[at..at + 8].copy_from_slice(&addr.to_le_bytes());
            page[at + 8..at + 16].copy_from_slice(&size.to_le_bytes());
            page[at + 16..at + 20].copy_from_slice(&kind.to_le_bytes());
        }
        page
    }

    #[test]
    fn only_ram_is_listed_and_a_wrapping_entry_is_clipped() {
        let page = page(&[(0, 0x9fc00, 1), (0x9fc00, 0x400, 2), (u64::MAX - 4095, u64::MAX, 1)]);
        // SAFETY: a page with the layout of `struct boot_params` and no command line.
        let boot = unsafe { Boot::from_boot_params(page.as_ptr()) };
        let ram: Vec<Range> = boot.ram().collect();
        assert_eq!(
            ram,
            [Range { start: 0, end: 0x9fc00 }, Range { start: u64::MAX - 4095, end: u64::MAX }]
        );
        assert_eq!(boot.cmdline().0, "");
    }

    #[test]
    fn the_command_line_ends_at_its_nul() {
        let line = b"exit=3 then=halt\0junk".to_vec();
        let mut page = page(&[]);
        let at = line.as_ptr() as u64;
        page[CMD_LINE_PTR..CMD_LINE_PTR + 4].copy_from_slice(&(at as u32).to_le_bytes());
        page[EXT_CMD_LINE_PTR..EXT_CMD_LINE_PTR + 4]
            .copy_from_slice(&((at >> 32) as u32).to_le_bytes());
        // SAFETY: a page with the layout of `struct boot_params`; `line` outlives the test's use of it.
        let boot = unsafe { Boot::from_boot_params(page.as_ptr()) };
        assert_eq!(boot.cmdline().0, "exit=3 then=halt");
    }
}
