//! The pool's memory under the model checker: one word a frame, so that a model can see whose bytes a
//! stale translation reads.

use crate::addr::FrameNo;
use crate::sync::{AtomicU64, Ordering, zeroed_words};

/// The words.
#[derive(Debug)]
pub(crate) struct DirectMap {
    words: Box<[AtomicU64]>,
}

impl DirectMap {
    pub(crate) fn new(frames: u64) -> DirectMap {
        DirectMap { words: zeroed_words(frames as usize) }
    }

    pub(crate) fn zero(&self, first: FrameNo, frames: u64) {
        for frame in 0..frames {
            self.words[first.add(frame).index()].store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn copy(&self, from: FrameNo, to: FrameNo) {
        self.write(to, self.read(from));
    }

    pub(crate) fn is_same(&self, one: FrameNo, other: FrameNo) -> bool {
        self.read(one) == self.read(other)
    }

    pub(crate) fn is_zero(&self, frame: FrameNo) -> bool {
        self.read(frame) == 0
    }

    /// The word of `frame`.
    pub(crate) fn read(&self, frame: FrameNo) -> u64 {
        self.words[frame.index()].load(Ordering::Relaxed)
    }

    /// Writes the word of `frame`.
    pub(crate) fn write(&self, frame: FrameNo, word: u64) {
        self.words[frame.index()].store(word, Ordering::Relaxed);
    }

    pub(crate) fn populate(&self, _first: FrameNo, _frames: u64) {}
}
