//! What came of a race.

use crate::race::variant::Race;

use super::Mode;

/// What came of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Outcome {
    /// The race.
    pub race: &'static str,
    /// The variant, or `sound`.
    pub variant: &'static str,
    /// How it was run.
    pub mode: Mode,
    /// What the two sides did, counted by side; interleavings, if the model checker ran.
    pub operations: u64,
    /// How long it took; in a storm, until the damage was noticed.
    pub seconds: f64,
    /// What went wrong, if anything did.
    pub damage: Option<String>,
    /// The kind of damage that was expected, or `none`.
    pub expected: &'static str,
    /// Whether what was expected is what came of it.
    pub holds: bool,
    /// What else went wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// Replays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// Those of them that did damage: of a variant, the damage that was expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown: Option<u32>,
}

impl Outcome {
    /// It in a sentence or two.
    pub fn text(&self, race: &Race) -> String {
        let (seconds, operations) = (self.seconds, self.operations);
        let effort = match (self.mode, self.times, self.shown) {
            (Mode::Replay, Some(times), Some(shown)) => {
                let each = 1000.0 * seconds / f64::from(times.max(1));
                format!("{shown} of {times} replays did damage, {each:.1} ms each\n")
            }
            (Mode::Storm, ..) => format!("{operations} operations in {seconds:.2} s\n"),
            _ => String::new(),
        };
        let verdict = match &self.damage {
            None if self.holds => format!("held: {}\n", race.held),
            None => format!("no damage; expected: {}\n", self.expected),
            Some(damage) if self.holds => format!("damage: {damage}\n"),
            Some(damage) => format!("damage: {damage}; expected: {}\n", self.expected),
        };
        let also: String = self.also.iter().map(|also| format!("and: {also}\n")).collect();
        effort + &verdict + &also
    }
}
