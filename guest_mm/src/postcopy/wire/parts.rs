//! What holds across the parts of a message that comes in several frames.

use super::control::{Control, Part, RUNS_PER_PART};
use super::frame::Kind;
use super::{MOST_STATE, WireError};
use crate::addr::{Gfn, GfnRange};

/// Most bytes of a machine's state in one part.
pub const STATE_PART: usize = 1 << 20;

/// Watches the messages of one direction of a control stream: the parts of a message follow each other, nothing but a ping, a
/// pong or the end of the migration comes between them, their runs stay in order, and a state does not grow without bound.
#[derive(Clone, Default, Debug)]
pub struct Parts {
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    kind: Kind,
    /// Bytes of state so far.
    bytes: usize,
    /// The end of the last run.
    end: Option<Gfn>,
    /// The number of the fence.
    fence: u64,
}

impl Parts {
    /// Before the first message.
    pub const fn new() -> Parts {
        Parts { open: None }
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// [`WireError::Parts`] for one that may not come now, [`WireError::Order`] for runs, [`WireError::TooLong`] for a state.
    pub fn follow(&mut self, message: &Control) -> Result<(), WireError> {
        let kind = message.kind();
        let (bytes, runs, fence): (_, &[GfnRange], _) = match message {
            Control::State { bytes, .. } => (bytes.len(), &[], 0),
            Control::SwitchOver { fence, missing, .. } => (0, missing, *fence),
            Control::Received { runs, .. } => (0, runs, 0),
            Control::Ping(_) | Control::Pong(_) => return Ok(()),
            Control::Cancel(_) | Control::Failed(_) => {
                self.open = None;
                return Ok(());
            }
            _ if self.open.is_some() => return Err(WireError::Parts(kind)),
            _ => return Ok(()),
        };
        let mut open = self.open.unwrap_or(Open { kind, bytes: 0, end: None, fence });
        if open.kind != kind || open.fence != fence {
            return Err(WireError::Parts(kind));
        }
        open.bytes += bytes;
        if open.bytes > MOST_STATE {
            let (length, limit) = (open.bytes as u64, MOST_STATE as u64);
            return Err(WireError::TooLong { what: "state", length, limit });
        }
        if let (Some(first), Some(last)) = (runs.first(), runs.last()) {
            if open.end.is_some_and(|end| first.start() < end) {
                return Err(WireError::Order(first.start()));
            }
            open.end = Some(last.end());
        }
        self.open = (message.part() == Part::More).then_some(open);
        Ok(())
    }
}

/// `state` as messages, in order; one with nothing in it if it is empty.
pub fn state_parts(state: &[u8]) -> impl Iterator<Item = Control> {
    split(state, STATE_PART).map(|(bytes, part)| Control::State { bytes: bytes.to_vec(), part })
}

/// `runs` as messages that `message` makes of them, in order; one with nothing in it if there are none.
pub fn runs_in_parts(
    runs: &[GfnRange],
    mut message: impl FnMut(Vec<GfnRange>, Part) -> Control,
) -> impl Iterator<Item = Control> {
    split(runs, RUNS_PER_PART).map(move |(runs, part)| message(runs.to_vec(), part))
}

/// `all` in pieces of at most `most`: at least one.
fn split<T>(all: &[T], most: usize) -> impl Iterator<Item = (&[T], Part)> {
    let mut rest = Some(all);
    std::iter::from_fn(move || {
        let all = rest?;
        let (piece, behind) = all.split_at(all.len().min(most));
        rest = (!behind.is_empty()).then_some(behind);
        Some((piece, if rest.is_some() { Part::More } else { Part::Last }))
    })
}
