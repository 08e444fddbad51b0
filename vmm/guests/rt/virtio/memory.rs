//! The memory that drivers share with devices: the heap's, at the same address for both.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Virtual is physical, and devices see all RAM: sharing memory with one is nothing to do.
pub struct Memory;

// SAFETY: `dma_alloc` gives zeroed pages of the heap that are nobody else's until `dma_dealloc`; there are no BARs.
unsafe impl Hal for Memory {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let Some(layout) = layout(pages) else {
            return (0, NonNull::dangling());
        };
        // SAFETY: the layout's size is not 0.
        let block = unsafe { alloc_zeroed(layout) };
        // The address 0 is how the trait says that there is no memory.
        NonNull::new(block).map_or((0, NonNull::dangling()), |at| (address(at), at))
    }

    unsafe fn dma_dealloc(_: PhysAddr, at: NonNull<u8>, pages: usize) -> i32 {
        match layout(pages) {
            Some(layout) => {
                // SAFETY: the caller's promise: `dma_alloc` gave this block, for as many pages.
                unsafe { dealloc(at.as_ptr(), layout) };
                0
            }
            None => -1,
        }
    }

    unsafe fn mmio_phys_to_virt(at: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("there is no PCI, and so no BAR at {at:#x}")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        address(buffer.cast())
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn address(at: NonNull<u8>) -> PhysAddr {
    at.as_ptr() as PhysAddr
}

fn layout(pages: usize) -> Option<Layout> {
    let size = pages.checked_mul(PAGE_SIZE).filter(|&size| size != 0)?;
    Layout::from_size_align(size, PAGE_SIZE).ok()
}
