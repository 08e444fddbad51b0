//! The memory map that a person looks at: what each block of a guest holds.

use crate::addr::{FrameNo, Gpa, PageSize};
use crate::entry::{Entry, Leaf, Marker, Source};
use crate::protocol::Protocol;
use crate::space::AddressSpace;

/// Pages of one 2 MiB block of guest memory, by what they are. They add up to `pages`, but for those of `scattered`,
/// `pinned`, `shared` and `image`, which are among the mapped ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct BlockMap {
    /// The block's first guest-physical address.
    pub gpa: u64,
    /// Pages of RAM in the block: 512, or fewer at the end of a region.
    pub pages: u32,
    /// Mapped by 4 KiB leaves.
    pub small: u32,
    /// Mapped by the block's own 2 MiB leaf.
    pub huge: u32,
    /// Mapped by a 1 GiB leaf around it.
    pub giant: u32,
    /// Marked missing.
    pub missing: u32,
    /// Marked guard.
    pub guard: u32,
    /// Marked poisoned.
    pub poison: u32,
    /// Given back by the guest, and not touched since.
    #[serde(default)]
    pub returned: u32,
    /// Small pages of the guest's own whose frame is not in its place in the block that most of them lie in.
    pub scattered: u32,
    /// Mapped pages that a device has pinned: of a 2 MiB or 1 GiB leaf, all of a block at once.
    #[serde(default)]
    pub pinned: u32,
    /// Mapped pages whose frame other pages may be, too, of this guest or of others.
    #[serde(default)]
    pub shared: u32,
    /// Mapped pages whose frame is an image's.
    #[serde(default)]
    pub image: u32,
}

/// The map of one guest.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct MemoryMap {
    /// Every block that holds RAM, by address.
    pub blocks: Vec<BlockMap>,
}

const BLOCK: u64 = PageSize::Size2M.frames();

pub(crate) fn map<P: Protocol>(space: &AddressSpace<P>) -> MemoryMap {
    let mut blocks: Vec<BlockMap> = space
        .ram
        .iter()
        .flat_map(|region| region.range.chunks(BLOCK))
        .map(|part| BlockMap {
            gpa: part.start().gpa().as_u64(),
            pages: part.frames() as u32,
            ..BlockMap::default()
        })
        .collect();
    let pinned = |first: FrameNo, pages: u32| {
        let frames = (0..u64::from(pages)).map(|i| first.add(i));
        frames.filter(|&frame| space.pool.frame_state(frame).pins > 0).count() as u32
    };
    // Small pages alone are shared: what is huge is the guest's own, or an image's.
    let is_shared =
        |leaf: Leaf| leaf.source == Source::Guest && !space.pool.frames().is_exclusive(leaf.frame);
    let of_image = |leaf: Leaf, pages: u32| if leaf.source == Source::Image { pages } else { 0 };
    // Where the first small page of the block in hand lies that is the guest's own, less its place.
    let mut base = None;
    space.table.visit(|visited| {
        let span = visited.level.entry_frames();
        let first = visited.gfn.align_down(BLOCK);
        let at = blocks.partition_point(|block| block.gpa < first.gpa().as_u64());
        let spanned = (span / BLOCK).max(1) as usize;
        for block in blocks.iter_mut().skip(at).take(spanned) {
            let pages = (span.min(BLOCK) as u32).min(block.pages);
            match visited.entry {
                Entry::Leaf(leaf) if span == 1 => {
                    block.small += 1;
                    let origin = leaf.frame.index() as i64 - visited.gfn.offset_in(BLOCK) as i64;
                    if is_shared(leaf) {
                        block.shared += 1;
                    } else if leaf.source == Source::Guest {
                        let (_, base) = *base.insert(
                            base.filter(|&(block, _)| block == first).unwrap_or((first, origin)),
                        );
                        block.scattered += u32::from(base != origin);
                    }
                    block.pinned += pinned(leaf.frame, 1);
                    block.image += of_image(leaf, 1);
                }
                Entry::Leaf(leaf) if span == BLOCK => {
                    block.huge = pages;
                    block.pinned = pinned(leaf.frame, pages);
                    block.image = of_image(leaf, pages);
                }
                Entry::Leaf(leaf) => {
                    block.giant = pages;
                    block.image = of_image(leaf, pages);
                    let offset = Gpa::new(block.gpa).gfn().offset_in(span);
                    block.pinned = pinned(leaf.frame.add(offset), pages);
                }
                Entry::Marker(Marker::Missing) => block.missing += pages,
                Entry::Marker(Marker::Guard) => block.guard += pages,
                Entry::Marker(Marker::Poison) => block.poison += pages,
                Entry::Marker(Marker::Returned) => block.returned += pages,
                Entry::Table(_) | Entry::Frozen(_) | Entry::Absent => {}
            }
        }
    });
    MemoryMap { blocks }
}
