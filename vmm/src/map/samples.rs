//! Maps for tests.

use guest_mm::map::{BlockMap, MemoryMap};

use super::document::{Document, State};

/// A map of these blocks, taken on 2026-01-01.
pub(super) fn document(blocks: Vec<BlockMap>) -> Document {
    let map = MemoryMap { blocks };
    let mut document = Document::new("configs/sample.toml".into(), State::Running, map);
    document.taken_unix = 1_767_225_600;
    document
}

/// `count` untouched blocks from block `first`.
pub(super) fn blocks(first: u64, count: u64) -> Vec<BlockMap> {
    let block = |index| BlockMap { gpa: index << 21, pages: 512, ..BlockMap::default() };
    (first..first + count).map(block).collect()
}

/// 3 GiB and more above the hole, with something of every kind.
pub(super) fn mixed() -> Document {
    let mut all = blocks(0, 1536);
    all.extend(blocks(2048, 700));
    all[0].small = 60;
    all[1].small = 250;
    all[2].small = 380;
    for block in &mut all[3..40] {
        block.small = 512;
    }
    for block in &mut all[40..48] {
        block.small = 400;
        block.scattered = 90;
    }
    for block in &mut all[64..500] {
        block.huge = 512;
    }
    for block in &mut all[512..1024] {
        block.giant = 512;
    }
    for block in &mut all[1100..1200] {
        block.missing = 300;
        block.small = 100;
    }
    all[1300].guard = 1;
    all[1310].poison = 2;
    for block in &mut all[1320..1340] {
        block.returned = 512;
    }
    for (index, block) in all[1536..2100].iter_mut().enumerate() {
        block.small = (index as u32 * 37) % 513;
    }
    document(all)
}
