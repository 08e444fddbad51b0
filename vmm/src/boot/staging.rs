//! Low guest RAM as the boot code builds it: sparse, private to the loader, and thrown away after the copy.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::BootError;
use super::layout::{GuestExtent, PAGE_SIZE, RamLayout};

/// Anonymous memory without a reservation: what is not written costs address space only.
pub(super) struct Staging {
    memory: GuestMemoryMmap<()>,
    written: Vec<GuestExtent>,
}

impl Staging {
    /// Maps all of low RAM; nothing that boots lies above it.
    pub(super) fn new(ram: RamLayout) -> Result<Self, BootError> {
        let bytes = ram.low().len;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)])
            .map_err(|error| BootError::Staging { bytes, reason: error.to_string() })?;
        Ok(Self { memory, written: Vec::new() })
    }

    /// The memory, for a loader that writes by itself. Say what it wrote with [`Staging::note`].
    pub(super) fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// Records that `len` bytes at `start` have content.
    pub(super) fn note(&mut self, start: GuestAddress, len: u64) {
        if len > 0 {
            self.written.push(GuestExtent { start, len });
        }
    }

    /// Writes `bytes`; `what` names them in the error.
    pub(super) fn write(
        &mut self,
        start: GuestAddress,
        bytes: &[u8],
        what: &'static str,
    ) -> Result<(), BootError> {
        let len = bytes.len() as u64;
        self.memory.write_slice(bytes, start).map_err(|_| BootError::OutsideRam {
            what,
            start: start.0,
            len,
        })?;
        self.note(start, len);
        Ok(())
    }

    /// The memory and what was written of it: whole pages, sorted, merged.
    pub(super) fn finish(self) -> (GuestMemoryMmap<()>, Vec<GuestExtent>) {
        (self.memory, pages_of(self.written))
    }
}

fn pages_of(mut written: Vec<GuestExtent>) -> Vec<GuestExtent> {
    written.sort_by_key(|extent| extent.start);
    let mut pages: Vec<GuestExtent> = Vec::with_capacity(written.len());
    for extent in written {
        let start = extent.start.0 & !(PAGE_SIZE - 1);
        let end = extent.end().next_multiple_of(PAGE_SIZE);
        match pages.last_mut() {
            Some(last) if start <= last.end() => last.len = last.len.max(end - last.start.0),
            _ => pages.push(GuestExtent { start: GuestAddress(start), len: end - start }),
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_whole_pages_sorted_and_merged() {
        let extent = |start, len| GuestExtent { start: GuestAddress(start), len };
        let written =
            vec![extent(0x7ff0, 0x20), extent(0x500, 8), extent(0x3000, 0x1001), extent(0x3100, 1)];
        assert_eq!(
            pages_of(written),
            [extent(0, 0x1000), extent(0x3000, 0x2000), extent(0x7000, 0x2000)]
        );
        assert_eq!(
            pages_of(vec![extent(0x1000, 0x1000), extent(0x2000, 1)]),
            [extent(0x1000, 0x2000)]
        );
    }

    #[test]
    fn a_write_outside_of_low_ram_is_an_error_that_says_what() {
        let mut staging = Staging::new(RamLayout::new(2 << 20).unwrap()).unwrap();
        let text =
            staging.write(GuestAddress((2 << 20) - 1), &[1, 2], "initrd").unwrap_err().to_string();
        assert!(text.contains("initrd of 2 bytes at 0x1fffff"), "{text}");
        assert!(staging.finish().1.is_empty());
    }
}
