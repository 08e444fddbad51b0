//! Memory of the host that is there before anybody needs it.

use crate::addr::{BlockNo, PageSize};
use crate::pool::Pool;
use crate::protocol::Protocol;

use super::Guest;

const BLOCK: u64 = PageSize::Size2M.frames();

/// Blocks that the host backs. What nobody has used goes back to it when this is dropped.
#[derive(Debug)]
pub struct Backed<'g> {
    pool: &'g Pool,
    blocks: Vec<BlockNo>,
}

impl<P: Protocol> Guest<P> {
    /// Has the host back the blocks of the pool that the guest's RAM prefers, for as long as `wanted`: a page that comes to one then
    /// waits for no block to be zeroed. Nothing is mapped and no frame is taken. Memory over an image needs none of its own.
    pub fn back(&self, wanted: impl Fn() -> bool) -> Backed<'_> {
        let space = self.space();
        let mut backed = Backed { pool: &space.pool, blocks: Vec::new() };
        for region in space.ram.iter().filter(|region| region.over.is_none()) {
            let blocks = region.range.chunks(BLOCK).filter(|part| part.frames() == BLOCK);
            for part in blocks {
                if !wanted() {
                    return backed;
                }
                let block = region.preferred_frame(part.start(), space.pool.nr_frames()).block();
                if space.pool.prepare(block) {
                    backed.blocks.push(block);
                }
            }
        }
        backed
    }
}

impl Backed<'_> {
    /// How many there are.
    pub fn blocks(&self) -> usize {
        self.blocks.len()
    }
}

impl Drop for Backed<'_> {
    fn drop(&mut self) {
        self.blocks.iter().for_each(|&block| self.pool.unprepare(block));
    }
}
