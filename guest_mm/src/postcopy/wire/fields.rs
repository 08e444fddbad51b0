//! Integers in bytes: read with their length checked, and written.

use super::WireError;
use crate::addr::{Gfn, GfnRange};
use crate::geometry::TREE_FRAMES;

/// What is left to be read of a message.
pub(super) struct Fields<'a> {
    what: &'static str,
    length: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Fields<'a> {
        Fields { what, length: bytes.len(), rest: bytes }
    }

    fn wrong_length(&self) -> WireError {
        WireError::Length { what: self.what, length: self.length as u64 }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or_else(|| self.wrong_length())?;
        self.rest = rest;
        Ok(*field)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn u128(&mut self) -> Result<u128, WireError> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A guest frame number that tables can map.
    pub(super) fn gfn(&mut self) -> Result<Gfn, WireError> {
        let number = self.u64()?;
        if number < TREE_FRAMES { Ok(Gfn::new(number)) } else { Err(WireError::Gfn(number)) }
    }

    /// Start and length of a run of guest frames.
    pub(super) fn run(&mut self) -> Result<GfnRange, WireError> {
        let (start, frames) = (self.u64()?, self.u64()?);
        if start >= TREE_FRAMES {
            return Err(WireError::Run { start, frames });
        }
        GfnRange::new(Gfn::new(start), frames).map_err(|_| WireError::Run { start, frames })
    }

    /// `count` runs, in order and apart.
    pub(super) fn runs(&mut self, count: usize) -> Result<Vec<GfnRange>, WireError> {
        if self.rest.len() / RUN_BYTES < count {
            return Err(self.wrong_length());
        }
        let mut runs: Vec<GfnRange> = Vec::with_capacity(count);
        for _ in 0..count {
            let run = self.run()?;
            if runs.last().is_some_and(|last| run.start() < last.end()) {
                return Err(WireError::Order(run.start()));
            }
            runs.push(run);
        }
        Ok(runs)
    }

    /// Fails unless the next `N` bytes are zero.
    pub(super) fn reserved<const N: usize>(&mut self) -> Result<(), WireError> {
        if self.array::<N>()? == [0; N] { Ok(()) } else { Err(WireError::Reserved(self.what)) }
    }

    /// As many runs as the rest holds: all of it.
    pub(super) fn remaining_runs(mut self) -> Result<Vec<GfnRange>, WireError> {
        let runs = self.runs(self.rest.len() / RUN_BYTES)?;
        self.end()?;
        Ok(runs)
    }

    /// As many words as make up the rest, which have to be `count`.
    pub(super) fn words(self, count: usize) -> Result<Vec<u64>, WireError> {
        let (words, rest) = self.rest.as_chunks();
        if words.len() != count || !rest.is_empty() {
            return Err(self.wrong_length());
        }
        Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// All that is left, which has to be `length` bytes.
    pub(super) fn last(self, length: usize) -> Result<&'a [u8], WireError> {
        if self.rest.len() == length { Ok(self.rest) } else { Err(self.wrong_length()) }
    }

    /// Fails if something is left.
    pub(super) fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.wrong_length()) }
    }
}

/// Bytes of a run.
pub(super) const RUN_BYTES: usize = 16;

/// Fails unless `runs` are in order and apart.
pub(super) fn check_order(runs: &[GfnRange]) -> Result<(), WireError> {
    match runs.windows(2).find(|pair| pair[1].start() < pair[0].end()) {
        Some(pair) => Err(WireError::Order(pair[1].start())),
        None => Ok(()),
    }
}

pub(super) fn put_runs(runs: &[GfnRange], out: &mut Vec<u8>) {
    for run in runs {
        out.extend(run.start().as_u64().to_le_bytes());
        out.extend(run.frames().to_le_bytes());
    }
}
