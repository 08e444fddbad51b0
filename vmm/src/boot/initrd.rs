//! The initial RAM disk: at the top of what the kernel can reach, out of the way of its early allocations.

use vm_memory::GuestAddress;

use super::BootError;
use super::layout::{GuestExtent, PAGE_SIZE, RamLayout};
use super::staging::Staging;

/// The highest address an x86-64 vmlinux takes an initrd at; what its own bzImage header says (`initrd_addr_max`).
pub(super) const ELF_ADDR_MAX: u32 = 0x7fff_ffff;

/// Writes `content` as high as low RAM and `addr_max` (inclusive) allow, page aligned, above `kernel_end`.
pub(super) fn place(
    staging: &mut Staging,
    ram: RamLayout,
    content: &[u8],
    kernel_end: u64,
    addr_max: u32,
) -> Result<GuestExtent, BootError> {
    let len = content.len() as u64;
    if len == 0 {
        return Err(BootError::EmptyInitrd);
    }
    let limit = ram.low().end().min(u64::from(addr_max) + 1);
    let start = limit
        .checked_sub(len)
        .map(|start| start & !(PAGE_SIZE - 1))
        .filter(|&start| start >= kernel_end)
        .ok_or(BootError::InitrdTooLarge { len, kernel_end, limit })?;
    let start = GuestAddress(start);
    staging.write(start, content, "initrd")?;
    Ok(GuestExtent { start, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn placed(
        ram: u64,
        len: usize,
        kernel_end: u64,
        addr_max: u32,
    ) -> Result<GuestExtent, BootError> {
        let ram = RamLayout::new(ram)?;
        place(&mut Staging::new(ram)?, ram, &vec![1; len], kernel_end, addr_max)
    }

    #[test]
    fn it_lies_page_aligned_at_the_top_of_what_can_be_reached() {
        assert_eq!(placed(64 * MIB, 5000, 0, u32::MAX).unwrap().start.0, 64 * MIB - 8192);
        assert_eq!(placed(64 * MIB, 4096, 0, 0x1ff_ffff).unwrap().start.0, 32 * MIB - 4096);
        assert_eq!(placed(64 * MIB, 1, 0, 0x1ff_f000).unwrap().start.0, 32 * MIB - 4096);
        assert_eq!(placed(8 << 30, 1, 0, u32::MAX).unwrap().end(), 0xc000_0000 - 4095);
    }

    #[test]
    fn it_never_overlaps_the_kernel_and_the_message_says_where_it_failed() {
        assert_eq!(placed(4 * MIB, 1 << 20, 3 * MIB, u32::MAX).unwrap().start.0, 3 * MIB);
        for (len, kernel_end) in [(1 << 20, 3 * MIB + 1), (5 << 20, 0)] {
            let text = placed(4 * MIB, len, kernel_end, u32::MAX).unwrap_err().to_string();
            assert!(text.contains(&len.to_string()) && text.contains("0x400000"), "{text}");
        }
        assert!(matches!(placed(4 * MIB, 0, 0, u32::MAX), Err(BootError::EmptyInitrd)));
    }
}
