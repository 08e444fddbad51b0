//! A bit for each page of some ranges: what was noted of them.

use crate::addr::{Gfn, GfnRange};

/// Pages of a word.
const WORD: u64 = 64;

/// Notes of pages. What lies outside of the ranges is not noted.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    range: GfnRange,
    /// The page number `64 * i + j` of the range is bit `j` of word `i`.
    words: Vec<u64>,
}

impl Notes {
    /// No notes of `ranges`, which do not overlap.
    pub fn new(ranges: impl IntoIterator<Item = GfnRange>) -> Notes {
        let part = |range: GfnRange| {
            let words = vec![0; range.frames().div_ceil(WORD) as usize];
            Part { range, words }
        };
        Notes { parts: ranges.into_iter().map(part).collect() }
    }

    /// Notes all of `range`.
    pub fn note(&mut self, range: GfnRange) {
        for part in &mut self.parts {
            let Some(common) = part.range.intersection(range) else { continue };
            let first = common.start().as_u64() - part.range.start().as_u64();
            let end = first + common.frames();
            for index in first / WORD..end.div_ceil(WORD) {
                let from = first.saturating_sub(index * WORD);
                let to = (end - index * WORD).min(WORD);
                let upper = u64::MAX.checked_shl(to as u32).unwrap_or(0);
                part.words[index as usize] |= (u64::MAX << from) & !upper;
            }
        }
    }

    /// Notes the pages of `range`, one of the ranges, of which the bits in `words` are set: page `64 * i + j` of it is bit `j` of word
    /// `i`, as KVM's dirty log has it.
    pub fn note_words(&mut self, range: GfnRange, words: &[u64]) {
        for part in self.parts.iter_mut().filter(|part| part.range == range) {
            for (own, new) in part.words.iter_mut().zip(words) {
                *own |= new;
            }
        }
    }

    /// Notes what `other`, of the same ranges, has, and takes it away there.
    pub fn take(&mut self, other: &mut Notes) {
        for (own, from) in self.parts.iter_mut().zip(&mut other.parts) {
            for (word, new) in own.words.iter_mut().zip(&mut from.words) {
                *word |= std::mem::take(new);
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.parts.iter_mut().for_each(|part| part.words.fill(0));
    }

    /// Whether `gfn` is noted.
    pub fn has(&self, gfn: Gfn) -> bool {
        let mut parts = self.parts.iter().filter(|part| part.range.contains(gfn));
        parts.any(|part| {
            let index = gfn.as_u64() - part.range.start().as_u64();
            part.words[(index / WORD) as usize] >> (index % WORD) & 1 != 0
        })
    }

    /// How many pages are noted.
    pub fn count(&self) -> u64 {
        let words = self.parts.iter().flat_map(|part| &part.words);
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// Calls `see` with every run of pages that are noted, in ascending order within each range.
    pub fn for_each_run(&self, mut see: impl FnMut(GfnRange)) {
        for part in &self.parts {
            let is_set = |page: u64| part.words[(page / WORD) as usize] >> (page % WORD) & 1 != 0;
            let mut page = 0;
            while page < part.range.frames() {
                if part.words[(page / WORD) as usize] >> (page % WORD) == 0 {
                    // Nothing more in this word.
                    page = (page / WORD + 1) * WORD;
                    continue;
                }
                if !is_set(page) {
                    page += 1;
                    continue;
                }
                let first = page;
                while page < part.range.frames() && is_set(page) {
                    page += 1;
                }
                let start = Gfn::new(part.range.start().as_u64() + first);
                see(GfnRange::new(start, page - first).expect("it lies in a range"));
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range((start, frames): (u64, u64)) -> GfnRange {
        GfnRange::new(Gfn::new(start), frames).unwrap()
    }

    proptest! {
        /// Against a set of numbers.
        #[test]
        fn notes_are_a_set_of_pages(
            ranges in prop::collection::vec((90_u64..800, 1_u64..200), 0..12),
            moved in prop::collection::vec((90_u64..800, 1_u64..9), 0..12),
        ) {
            let places = [range((100, 67)), range((300, 512))];
            let mut notes = Notes::new(places);
            let mut other = notes.clone();
            ranges.iter().for_each(|&part| notes.note(range(part)));
            moved.iter().for_each(|&part| other.note(range(part)));
            notes.take(&mut other);
            let all = ranges.iter().chain(&moved).flat_map(|&part| range(part).iter());
            let expected: BTreeSet<u64> = all
                .filter(|&gfn| places.iter().any(|place| place.contains(gfn)))
                .map(Gfn::as_u64)
                .collect();
            let mut found = Vec::new();
            let mut end = None;
            notes.for_each_run(|run| {
                assert_ne!(end, Some(run.start()), "two runs are one");
                end = Some(run.end());
                found.extend(run.iter().map(Gfn::as_u64));
            });
            prop_assert_eq!(found.len() as u64, notes.count());
            prop_assert!(found.iter().all(|&page| notes.has(Gfn::new(page))));
            prop_assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
            prop_assert_eq!(other.count(), 0);
            notes.clear();
            prop_assert_eq!(notes.count(), 0);
        }
    }

    #[test]
    fn words_are_those_of_a_dirty_log() {
        let all = range((512, 130));
        let mut notes = Notes::new([all]);
        notes.note_words(all, &[1 << 63, 1, 0b10]);
        let mut runs = Vec::new();
        notes.for_each_run(|run| runs.push((run.start().as_u64(), run.frames())));
        assert_eq!(runs, [(575, 2), (641, 1)]);
    }
}
