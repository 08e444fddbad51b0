//! Pages by kind, and which kind stands for many.

use guest_mm::map::BlockMap;

use super::PAGE;

/// Pages of some blocks, by what they are. `scattered` and `shared` pages are among the `small` ones, those of an `image` among
/// the `small` and the `huge` ones, and `pinned` ones among all that have memory; all others add up to `pages`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages of RAM.
    pub pages: u64,
    /// Mapped by 4 KiB leaves.
    pub small: u64,
    /// Mapped by 2 MiB leaves.
    pub huge: u64,
    /// Mapped by 1 GiB leaves.
    pub giant: u64,
    /// Marked missing.
    pub missing: u64,
    /// Marked guard.
    pub guard: u64,
    /// Marked poisoned.
    pub poison: u64,
    /// Given back by the guest.
    pub returned: u64,
    /// Small pages whose frame is not in its place in a block.
    pub scattered: u64,
    /// Pages that a device has pinned.
    pub pinned: u64,
    /// Small pages whose frame other pages may be, too.
    pub shared: u64,
    /// Pages whose frame is an image's.
    pub image: u64,
    /// Those of them that 2 MiB leaves map.
    pub image_huge: u64,
}

/// What a block is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nobody has touched it.
    Untouched,
    /// 4 KiB pages.
    Small,
    /// 4 KiB pages, some of them out of their places: no promotion without a copy.
    Scattered,
    /// 4 KiB pages that are other pages, too.
    Shared,
    /// Pages of an image.
    Image,
    /// A 2 MiB page.
    Huge,
    /// A 1 GiB page.
    Giant,
    /// Pages that have not arrived yet.
    Missing,
    /// Pages that must not be touched.
    Guard,
    /// Pages that are lost.
    Poison,
    /// Pages that the guest has given back.
    Returned,
}

impl Kind {
    /// Every kind, in the order of the legends.
    pub const ALL: [Kind; 11] = [
        Kind::Small,
        Kind::Scattered,
        Kind::Shared,
        Kind::Image,
        Kind::Huge,
        Kind::Giant,
        Kind::Missing,
        Kind::Guard,
        Kind::Poison,
        Kind::Returned,
        Kind::Untouched,
    ];

    /// What a legend calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Untouched => "untouched",
            Kind::Small => "4 KiB pages",
            Kind::Scattered => "4 KiB pages, scattered",
            Kind::Shared => "4 KiB pages, shared",
            Kind::Image => "of an image",
            Kind::Huge => "2 MiB pages",
            Kind::Giant => "1 GiB pages",
            Kind::Missing => "missing",
            Kind::Guard => "guard",
            Kind::Poison => "poisoned",
            Kind::Returned => "given back",
        }
    }
}

impl Counts {
    /// The sum over `blocks`.
    pub fn sum<'a>(blocks: impl IntoIterator<Item = &'a BlockMap>) -> Counts {
        blocks.into_iter().fold(Counts::default(), |sum, block| sum + Counts::from(block))
    }

    /// Pages that nobody has touched.
    pub fn untouched(&self) -> u64 {
        self.pages.saturating_sub(self.known())
    }

    /// Pages of which there is something to say.
    pub fn known(&self) -> u64 {
        self.resident() + self.missing + self.guard + self.poison + self.returned
    }

    /// Pages that have memory.
    pub fn resident(&self) -> u64 {
        self.small + self.huge + self.giant
    }

    /// Pages of one kind, each page in one kind only: [`Kind::Small`] leaves those out that are scattered, shared or of an
    /// image, [`Kind::Huge`] those of an image.
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Untouched => self.untouched(),
            Kind::Small => self.small.saturating_sub(self.special_small()),
            Kind::Scattered => self.scattered,
            Kind::Shared => self.shared,
            Kind::Image => self.image,
            Kind::Huge => self.huge.saturating_sub(self.image_huge),
            Kind::Giant => self.giant,
            Kind::Missing => self.missing,
            Kind::Guard => self.guard,
            Kind::Poison => self.poison,
            Kind::Returned => self.returned,
        }
    }

    /// Small pages that have a kind of their own.
    pub fn special_small(&self) -> u64 {
        self.scattered + self.shared + self.image.saturating_sub(self.image_huge)
    }

    /// The same in bytes.
    pub fn bytes_of(&self, kind: Kind) -> u64 {
        self.of(kind) * PAGE
    }

    /// What these pages are shown as when one mark has to do: the worst news if there is any, else what most of the
    /// resident ones are. None where there is no RAM.
    pub fn kind(&self) -> Option<Kind> {
        let news = [Kind::Poison, Kind::Guard, Kind::Missing, Kind::Scattered];
        let most = [Kind::Giant, Kind::Huge, Kind::Image, Kind::Shared, Kind::Small];
        if self.pages == 0 {
            return None;
        }
        let worst = news.into_iter().find(|&kind| self.of(kind) > 0);
        // Of equals the last one: small pages are the ones that somebody may want to change.
        let most = || most.into_iter().max_by_key(|&kind| self.of(kind));
        let resident = || most().filter(|_| self.resident() > 0);
        let unused = [Kind::Returned, Kind::Untouched].into_iter().find(|&kind| self.of(kind) > 0);
        worst.or_else(resident).or(unused)
    }

    /// How full the pages are, from 1 to 4: a quarter or less, …, more than three quarters.
    pub fn fill(&self) -> usize {
        ((4 * self.resident()).div_ceil(self.pages.max(1)) as usize).clamp(1, 4)
    }
}

impl From<&BlockMap> for Counts {
    fn from(block: &BlockMap) -> Counts {
        Counts {
            pages: block.pages.into(),
            small: block.small.into(),
            huge: block.huge.into(),
            giant: block.giant.into(),
            missing: block.missing.into(),
            guard: block.guard.into(),
            poison: block.poison.into(),
            returned: block.returned.into(),
            scattered: block.scattered.into(),
            pinned: block.pinned.into(),
            shared: block.shared.into(),
            image: block.image.into(),
            // A block has one huge leaf or small ones.
            image_huge: block.image.min(block.huge).into(),
        }
    }
}

impl std::ops::Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        Counts {
            pages: self.pages + other.pages,
            small: self.small + other.small,
            huge: self.huge + other.huge,
            giant: self.giant + other.giant,
            missing: self.missing + other.missing,
            guard: self.guard + other.guard,
            poison: self.poison + other.poison,
            returned: self.returned + other.returned,
            scattered: self.scattered + other.scattered,
            pinned: self.pinned + other.pinned,
            shared: self.shared + other.shared,
            image: self.image + other.image,
            image_huge: self.image_huge + other.image_huge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: Counts = Counts {
        pages: 512,
        small: 0,
        huge: 0,
        giant: 0,
        missing: 0,
        guard: 0,
        poison: 0,
        returned: 0,
        scattered: 0,
        pinned: 0,
        shared: 0,
        image: 0,
        image_huge: 0,
    };

    #[test]
    fn the_most_important_kind_stands_for_the_rest() {
        for (counts, kind) in [
            (Counts::default(), None),
            (BLOCK, Some(Kind::Untouched)),
            (Counts { small: 1, ..BLOCK }, Some(Kind::Small)),
            (Counts { small: 511, scattered: 1, ..BLOCK }, Some(Kind::Scattered)),
            (Counts { small: 256, huge: 256, ..BLOCK }, Some(Kind::Small)),
            (Counts { small: 256, shared: 129, ..BLOCK }, Some(Kind::Shared)),
            (Counts { small: 256, shared: 128, ..BLOCK }, Some(Kind::Small)),
            (Counts { huge: 512, image: 512, image_huge: 512, ..BLOCK }, Some(Kind::Image)),
            (Counts { small: 9, image: 5, shared: 3, ..BLOCK }, Some(Kind::Image)),
            (Counts { small: 1, huge: 511, ..BLOCK }, Some(Kind::Huge)),
            (Counts { giant: 512, ..BLOCK }, Some(Kind::Giant)),
            (Counts { small: 1, returned: 511, ..BLOCK }, Some(Kind::Small)),
            (Counts { returned: 1, ..BLOCK }, Some(Kind::Returned)),
            (Counts { small: 500, missing: 1, ..BLOCK }, Some(Kind::Missing)),
            (Counts { missing: 500, guard: 1, ..BLOCK }, Some(Kind::Guard)),
            (Counts { guard: 500, poison: 1, ..BLOCK }, Some(Kind::Poison)),
        ] {
            assert_eq!(counts.kind(), kind, "{counts:?}");
        }
    }

    #[test]
    fn fill_goes_by_quarters() {
        for (small, fill) in [(1, 1), (128, 1), (129, 2), (256, 2), (384, 3), (385, 4), (512, 4)] {
            assert_eq!(Counts { small, ..BLOCK }.fill(), fill, "{small}");
        }
    }

    #[test]
    fn the_kinds_cover_every_page_once() {
        let small =
            Counts { small: 100, scattered: 30, missing: 5, guard: 1, returned: 7, ..BLOCK };
        let shared = Counts { small: 100, scattered: 30, shared: 20, image: 50, ..BLOCK };
        let of_image = Counts { small: 100, huge: 200, image: 250, image_huge: 200, ..BLOCK };
        for counts in [small, shared, of_image] {
            assert_eq!(Kind::ALL.into_iter().map(|kind| counts.of(kind)).sum::<u64>(), 512);
        }
    }
}
