//! What the scanner did, in numbers.

/// The numbers, at one moment, of all guests together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct DedupStats {
    /// Whether a thread runs and is paused.
    pub paused: bool,
    /// Times that every page of every guest was looked at.
    pub rounds: u64,
    /// Pages looked at.
    pub scanned: u64,
    /// Pages replaced by a shared one.
    pub merged: u64,
    /// Pages of zeroes that were dropped.
    pub zeroes: u64,
    /// Pages passed over because their bytes had changed since the round before.
    pub volatile: u64,
    /// Pages passed over because a device had them pinned.
    pub pinned: u64,
    /// Pages that were not what their checksum said: another page has the same, or they changed meanwhile.
    pub differing: u64,
    /// Pages that would have been merged but for the budget.
    pub over_budget: u64,
    /// Blocks passed over because a huge leaf maps them.
    pub huge: u64,
    /// Pages whose window or tables could not be changed.
    pub failed: u64,
    /// Frames that are shared now.
    pub shared_frames: u64,
    /// Pages that share them, less one for each: the frames that are saved now. Zeroes that were dropped do not count.
    pub saved_pages: u64,
}
