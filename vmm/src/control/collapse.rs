//! Answers, and what is answered about collapses: written by the machine, read by who asked, shown to people.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use super::balloon::Balloons;
use super::pause::{Paused, Resumed};
use super::receive::ReceiveStatus;
use super::request::VERSION;
use super::send::SendStatus;
use super::snapshot::Saved;

/// An answer of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    slat: u64,
    /// The machine's config, as it was named.
    pub machine: String,
    /// What it says.
    #[serde(flatten)]
    pub body: Body,
}

/// What a machine says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Body {
    /// What its collapser did so far.
    Collapser(Collapser),
    /// What became of all its RAM.
    Collapse(CollapseOutcome),
    /// It rests.
    Paused(Paused),
    /// It runs.
    Resumed(Resumed),
    /// How far it is on its way to another host.
    Sending(SendStatus),
    /// How far its guest is that comes from another host.
    Receiving(ReceiveStatus),
    /// It was saved.
    Saved(Saved),
    /// What its balloons hold.
    #[serde(rename = "balloon")]
    Balloons(Balloons),
}

/// What the thread did that collapses by itself. Of `skipped` and `backed_off`, each look at a block counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collapser {
    /// Whether it rests.
    pub paused: bool,
    /// Times that it saw all of RAM.
    pub rounds: u64,
    /// Looks at a block.
    pub scanned: u64,
    /// Blocks that it made huge in place.
    pub promoted: u64,
    /// Blocks that it made huge by a copy.
    pub copied: u64,
    /// Looks that changed nothing, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Looks that it saved, because a device had had the block pinned before.
    pub backed_off: u64,
    /// Blocks that it could not collapse.
    pub failed: u64,
}

/// What became of all RAM: `blocks` is the sum of `promoted`, `copied`, `already_huge`, `skipped`, `failed` and `left`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollapseOutcome {
    /// Blocks of RAM.
    pub blocks: u64,
    /// Made huge in place.
    pub promoted: u64,
    /// Made huge by a copy.
    pub copied: u64,
    /// Huge before.
    pub already_huge: u64,
    /// Pages that were filled with zeroes.
    pub holes_filled: u64,
    /// As they were, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Those that could not be collapsed.
    pub failed: u64,
    /// Why the first of them could not.
    pub failure: Option<String>,
    /// Not looked at, because the time was up or the machine ends.
    pub left: u64,
}

/// Why bytes are no answer. As the end of a sentence that names where they come from.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// The machine said no.
    #[error("says: {0}")]
    Refused(String),
    /// Something else.
    #[error("did not answer as a slat does ({0})")]
    Other(String),
}

impl Answer {
    /// An answer of `machine`.
    pub fn new(machine: String, body: Body) -> Answer {
        Answer { slat: VERSION, machine, body }
    }

    /// One line of JSON, its end included.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("keys are strings and no value can fail");
        line.push('\n');
        line
    }

    /// Reads what [`to_line`](Self::to_line) writes.
    ///
    /// # Errors
    /// [`BadAnswer`].
    pub fn parse(bytes: &[u8]) -> Result<Answer, BadAnswer> {
        #[derive(Deserialize)]
        struct Refused {
            error: String,
        }
        if let Ok(Refused { error }) = serde_json::from_slice(bytes) {
            return Err(BadAnswer::Refused(one_line(&error)));
        }
        serde_json::from_slice(bytes)
            .map_err(|error| BadAnswer::Other(one_line(&error.to_string())))
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let mut out = format!("{}: ", one_line(&self.machine));
        match &self.body {
            Body::Collapser(collapser) => collapser.write(&mut out),
            Body::Collapse(outcome) => outcome.write(&mut out),
            Body::Paused(paused) => paused.write(&mut out),
            Body::Resumed(resumed) => resumed.write(&mut out),
            Body::Sending(status) => status.write(&mut out),
            Body::Receiving(status) => status.write(&mut out),
            Body::Saved(saved) => saved.write(&mut out),
            Body::Balloons(balloons) => balloons.write(&mut out),
        }
        .expect("a string takes everything");
        out
    }
}

impl Collapser {
    fn write(&self, out: &mut String) -> fmt::Result {
        let state = if self.paused { "is paused" } else { "runs" };
        writeln!(out, "the collapser {state}, {} rounds of all RAM so far\n", self.rounds)?;
        row(out, self.promoted, "blocks made huge in place")?;
        row(out, self.copied, "blocks made huge by a copy")?;
        if self.failed > 0 {
            row(out, self.failed, "blocks that could not be collapsed")?;
        }
        let skipped: u64 = self.skipped.values().sum();
        row(out, skipped, "looks that changed nothing")?;
        reasons(out, &self.skipped)?;
        if self.backed_off > 0 {
            row(out, self.backed_off, "looks saved, at blocks that were pinned before")?;
        }
        Ok(())
    }
}

impl CollapseOutcome {
    fn write(&self, out: &mut String) -> fmt::Result {
        let made = self.promoted + self.copied;
        writeln!(out, "{made} of {} blocks became huge pages\n", self.blocks)?;
        row(out, self.promoted, "made huge in place")?;
        row(out, self.copied, "made huge by a copy")?;
        row(out, self.already_huge, "huge before")?;
        row(out, self.skipped.values().sum(), "as they were")?;
        reasons(out, &self.skipped)?;
        if self.failed > 0 {
            let why = one_line(self.failure.as_deref().unwrap_or("for no reason"));
            row(out, self.failed, &format!("could not be collapsed: {why}"))?;
        }
        if self.left > 0 {
            row(out, self.left, "not looked at, for want of time: ask again")?;
        }
        if self.holes_filled > 0 {
            writeln!(out, "\n{} pages were filled with zeroes", self.holes_filled)?;
        }
        Ok(())
    }
}

fn row(out: &mut String, count: u64, what: &str) -> fmt::Result {
    writeln!(out, "{count:>10}  {what}")
}

fn reasons(out: &mut String, skipped: &BTreeMap<String, u64>) -> fmt::Result {
    let mut reasons: Vec<_> = skipped.iter().collect();
    reasons.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    reasons
        .into_iter()
        .try_for_each(|(name, count)| writeln!(out, "{count:>14}  {}", meaning(name)))
}

/// What a reason means to who reads it the first time. One that is not known here is named.
fn meaning(reason: &str) -> String {
    match reason {
        "pinned" => "a device has pages of it pinned",
        "marked" => "guard pages, or pages that are lost or have yet to arrive",
        "shared" => "pages that are shared",
        "holes" => "more untouched pages than collapse.max_holes",
        "mixed_rights" => "not all of its pages allow the same",
        "scattered" => "needs a copy, and collapse.copying is off",
        "no_block" => "needs a copy, and the pool has no whole block left",
        "not_whole" => "not all of it is RAM",
        "untouched" => "untouched",
        "busy" => "was being collapsed just then",
        other => return one_line(other),
    }
    .to_owned()
}

/// `text` on one line and cut to a bearable length: it comes from a socket.
pub(super) fn one_line(text: &str) -> String {
    text.chars().take(160).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::request::refusal;
    use super::*;

    fn answers() -> [Answer; 2] {
        let skipped = [("untouched", 2), ("holes", 1), ("new-one", 1)];
        let skipped: BTreeMap<_, _> =
            skipped.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        let collapser = Collapser { promoted: 31, skipped: skipped.clone(), ..Default::default() };
        let outcome = CollapseOutcome {
            blocks: 40,
            promoted: 30,
            skipped,
            failed: 1,
            failure: Some("no\nway".into()),
            left: 5,
            ..Default::default()
        };
        [Body::Collapser(collapser), Body::Collapse(outcome)]
            .map(|body| Answer::new("x.toml".into(), body))
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        for answer in answers() {
            assert_eq!(Answer::parse(answer.to_line().as_bytes()), Ok(answer.clone()));
            assert_eq!(answer.to_line().lines().count(), 1);
            assert!(answer.to_line().starts_with("{\"slat\":1,"), "{}", answer.to_line());
        }
    }

    #[test]
    fn people_read_how_many_and_why_not() {
        let [collapser, outcome] = answers().map(|answer| answer.text());
        assert!(collapser.starts_with("x.toml: the collapser runs, 0 rounds"), "{collapser}");
        assert!(collapser.contains("        31  blocks made huge in place\n"), "{collapser}");
        assert!(outcome.starts_with("x.toml: 30 of 40 blocks became huge pages\n"), "{outcome}");
        for says in ["2  untouched\n", "1  more untouched pages", "1  new-one\n", ": no way\n"] {
            assert!(outcome.contains(says), "{says:?} is not in\n{outcome}");
        }
        for line in collapser.lines().chain(outcome.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused_with_the_reason() {
        let refused = refusal("not now");
        for (bytes, says) in [
            (refused.as_str(), "says: not now"),
            ("", "did not answer as a slat does (EOF"),
            ("220 mail ready", "did not answer as a slat does"),
            ("{\"slat\":1,\"machine\":\"x\",\"kind\":\"dance\"}", "did not answer as a slat does"),
        ] {
            let error = Answer::parse(bytes.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(says) && error.lines().count() == 1, "{bytes}: {error}");
        }
    }
}
