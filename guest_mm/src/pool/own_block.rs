//! A block that nobody has yet but who holds this.
#![allow(unsafe_code, reason = "hands out the bytes of a block that is its holder's alone")]

use crate::addr::{BlockNo, PageSize};
use crate::sync::Arc;

use super::Pool;

/// A block of the pool, in use, that no table leads to. Its bytes are whatever they were; it goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct OwnBlock {
    pool: Arc<Pool>,
    /// None once it was given away.
    block: Option<BlockNo>,
}

impl OwnBlock {
    /// A whole block, `hint` if that is free; none if none is whole.
    pub(crate) fn new(pool: &Arc<Pool>, hint: BlockNo) -> Option<OwnBlock> {
        let block = pool.alloc_block(hint)?;
        Some(OwnBlock { pool: Arc::clone(pool), block: Some(block) })
    }

    /// Its bytes.
    #[cfg(not(loom))]
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let block = self.block.expect("it was not given away");
        let bytes = PageSize::Size2M.bytes() as usize;
        let start = self.pool.memory().address(block.first(), 0, bytes);
        // SAFETY:
        // 1. `address` has checked that the bytes lie in the direct map, which lives as long as the pool, and any byte is a
        //    `u8`;
        // 2. the block was allocated to this value alone, no table and no other value leads to it, and the borrow of `self`
        //    keeps it from being given away or borrowed again meanwhile.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }

    /// Gives it to who is going to map it in a guest of `pool`; back, if it is another pool's.
    pub(crate) fn give(mut self, pool: &Arc<Pool>) -> Result<BlockNo, OwnBlock> {
        match self.block {
            Some(block) if Arc::ptr_eq(&self.pool, pool) => {
                self.block = None;
                Ok(block)
            }
            _ => Err(self),
        }
    }
}

impl Drop for OwnBlock {
    fn drop(&mut self) {
        let frames = PageSize::Size2M.frames();
        self.block.into_iter().for_each(|block| self.pool.release(block.first(), frames));
    }
}
