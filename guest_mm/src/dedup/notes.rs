//! What is remembered of a guest's pages from round to round: 4 bytes a page.

use super::checksum::Checksum;

/// A page of a guest's RAM, counted over its regions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PageNo(pub(super) u32);

/// What is remembered of one page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Note {
    /// Nothing yet.
    Unseen,
    /// It was replaced by a shared page.
    Merged,
    /// Its checksum in short.
    Sum(u32),
}

const UNSEEN: u32 = 0;
const MERGED: u32 = 1;

/// What is remembered of all pages of a guest.
#[derive(Debug)]
pub(super) struct Notes(Box<[u32]>);

impl Notes {
    /// None yet, of `pages`; the host backs them as they are made.
    pub(super) fn new(pages: u64) -> Notes {
        Notes(vec![UNSEEN; pages as usize].into_boxed_slice())
    }

    /// Notes that the checksum of `page` is `sum`; what was noted before.
    pub(super) fn set_sum(&mut self, page: PageNo, sum: Checksum) -> Note {
        self.set(page, Self::short(sum))
    }

    /// Notes that `page` was replaced.
    pub(super) fn set_merged(&mut self, page: PageNo) {
        self.set(page, MERGED);
    }

    /// What is noted of `page`.
    pub(super) fn get(&self, page: PageNo) -> Note {
        Self::read(self.0[page.0 as usize])
    }

    fn set(&mut self, page: PageNo, word: u32) -> Note {
        Self::read(std::mem::replace(&mut self.0[page.0 as usize], word))
    }

    fn read(word: u32) -> Note {
        match word {
            UNSEEN => Note::Unseen,
            MERGED => Note::Merged,
            sum => Note::Sum(sum),
        }
    }

    /// A checksum's word: none that means something else.
    fn short(sum: Checksum) -> u32 {
        sum.short().max(MERGED + 1)
    }

    /// Whether `note` is that of `sum`.
    pub(super) fn is(note: Note, sum: Checksum) -> bool {
        note == Note::Sum(Self::short(sum))
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> u64 {
        self.0.len() as u64 * 4
    }
}
