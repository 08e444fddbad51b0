//! What can happen, against how far the guest is: a table of what becomes of it, which `docs/faults.md` holds.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use guest_mm::postcopy::wire::{Kind, Lane, Mode};

use crate::recovery::{Outcome, over};
use crate::relay::{Harm, Letter, Place, Spot};
use crate::trial::{Fate, Finder, Lives, Trial, Victim};
use crate::world::going;
use crate::{false_sink, false_source};

/// How far a migration is: the message that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Hello,
    Welcome,
    Offer,
    Accept,
    Join,
    PreCopy,
    State,
    SwitchOver,
    Fence,
    Ready,
    Go,
    Running,
    Request,
    Answer,
    Bulk,
    AllSent,
    Complete,
    Freed,
    Ended,
}

use Step::*;

/// Every step of a guest that goes by post-copy, in order.
const STEPS: [Step; 17] = [
    Hello, Welcome, Offer, Accept, Join, State, SwitchOver, Fence, Ready, Go, Running, Request,
    Answer, Bulk, AllSent, Complete, Freed,
];

impl Step {
    fn name(self) -> &'static str {
        match self {
            Hello => "Hello",
            Welcome => "Welcome",
            Offer => "Offer",
            Accept => "Accept",
            Join => "a bulk stream's Hello",
            PreCopy => "pages of the pre-copy",
            State => "State",
            SwitchOver => "SwitchOver",
            Fence => "Fence",
            Ready => "Ready",
            Go => "Go",
            Running => "Running",
            Request => "Request",
            Answer => "the answer to a request",
            Bulk => "pages in bulk",
            AllSent => "AllSent",
            Complete => "Complete",
            Freed => "Freed",
            Ended => "Ended",
        }
    }

    fn spot(self) -> Spot {
        use Lane::*;
        let (letter, lane) = match self {
            Hello => (Letter::Hello, ControlToSink),
            Welcome => (Letter::Welcome, ControlToSource),
            Offer => (Letter::Frame(Kind::Offer), ControlToSink),
            Accept => (Letter::Frame(Kind::Accept), ControlToSource),
            Join => (Letter::Hello, BulkToSink),
            PreCopy | Bulk => (Letter::Frame(Kind::Pages), BulkToSink),
            State => (Letter::Frame(Kind::State), ControlToSink),
            SwitchOver => (Letter::Frame(Kind::SwitchOver), ControlToSink),
            Fence => (Letter::Frame(Kind::Fence), BulkToSink),
            Ready => (Letter::Frame(Kind::Ready), ControlToSource),
            Go => (Letter::Frame(Kind::Go), ControlToSink),
            Running => (Letter::Frame(Kind::Running), ControlToSource),
            Request => (Letter::Frame(Kind::Request), UrgentToSource),
            Answer => (Letter::Frame(Kind::Pages), UrgentToSink),
            AllSent => (Letter::Frame(Kind::AllSent), ControlToSink),
            Complete => (Letter::Frame(Kind::Complete), ControlToSource),
            Freed => (Letter::Frame(Kind::Freed), ControlToSink),
            Ended => (Letter::Frame(Kind::Ended), ControlToSource),
        };
        Spot { letter, lane }
    }

    /// In a guest that goes by post-copy there is no pre-copy.
    fn mode(self) -> Mode {
        if self == PreCopy { Mode::Hybrid } else { Mode::PostCopy }
    }

    /// Whether the message has bytes of this kind.
    fn has(self, place: Place) -> bool {
        match place {
            Place::Before | Place::Header | Place::Behind => true,
            Place::Length | Place::Payload => matches!(self, PreCopy | Answer | Bulk),
            Place::Body => !matches!(
                self,
                Hello | Welcome | Join | Accept | Ready | Go | Running | Freed | Ended
            ),
        }
    }

    /// Who gets the message, and finds out what is wrong with it.
    fn finder(self) -> Finder {
        match self.spot().lane {
            // Of a stream that has not begun the sink thinks nothing.
            _ if matches!(self, Hello | Join) => Finder::Source,
            Lane::ControlToSink | Lane::UrgentToSink | Lane::BulkToSink => Finder::Sink,
            Lane::ControlToSource | Lane::UrgentToSource => Finder::Source,
        }
    }
}

/// A row of the table.
struct Case {
    fault: &'static str,
    step: Step,
    trial: Trial,
}

fn case(fault: &'static str, step: Step, harm: Harm, victim: Victim) -> Case {
    // Who is left.
    let finder = match victim {
        Victim::Source => Finder::Sink,
        Victim::Sink => Finder::Source,
        Victim::Nobody | Victim::Guest => step.finder(),
    };
    let trial = Trial { mode: step.mode(), trap: Some((step.spot(), harm)), victim, finder };
    Case { fault, step, trial }
}

/// How long a stream is held back: all else has long passed by then.
const HELD: Duration = Duration::from_millis(400);

fn cases() -> Vec<Case> {
    let nobody = Victim::Nobody;
    let all = || STEPS.into_iter().chain([PreCopy]);
    let mut cases = Vec::new();
    for (fault, place) in [
        ("cut before it", Place::Before),
        ("cut in its header", Place::Header),
        ("cut in its body", Place::Body),
        ("cut in its pages", Place::Payload),
        ("cut behind it", Place::Behind),
    ] {
        let steps = all().filter(|step| step.has(place));
        cases.extend(steps.map(|step| case(fault, step, Harm::Cut(place), nobody)));
    }
    for (fault, place) in [
        ("a bit of its header", Place::Header),
        ("a bit of its length", Place::Length),
        ("a bit of its body", Place::Body),
        ("a bit of its pages", Place::Payload),
    ] {
        let steps = all().filter(|step| step.has(place));
        cases.extend(steps.map(|step| case(fault, step, Harm::Flip(place), nobody)));
    }
    cases.extend(all().map(|step| case("silence", step, Harm::Silence, nobody)));
    cases.extend(all().map(|step| case("held back", step, Harm::Hold(HELD), nobody)));
    for (fault, victim) in [("the source dies", Victim::Source), ("the sink dies", Victim::Sink)] {
        cases.extend(all().map(|step| case(fault, step, Harm::Cut(Place::Behind), victim)));
    }
    for (fault, place) in [("cut before it", Place::Before), ("cut behind it", Place::Behind)] {
        cases.push(case(fault, Ended, Harm::Cut(place), Victim::Guest));
    }
    cases
}

impl Lives {
    fn told(self) -> &'static str {
        match self {
            Lives::Source => "source",
            Lives::TakenBack => "source, taken back",
            Lives::Sink => "sink",
            Lives::SinkInPart => "sink, in part",
            Lives::DiedAtSource => "died with the source",
            Lives::EndedAtSink => "ended at the sink",
        }
    }
}

/// Does all of `work`, some at a time: most of it is waiting.
fn at_once<T: Sync>(work: &[T], fate: impl Fn(&T) -> Fate + Sync) -> Vec<Fate> {
    let (next, fates) = (AtomicUsize::new(0), Mutex::new(vec![None; work.len()]));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Relaxed);
                    let Some(one) = work.get(at) else { return };
                    let fate = fate(one);
                    fates.lock().unwrap()[at] = Some(fate);
                }
            });
        }
    });
    fates.into_inner().unwrap().into_iter().map(|fate| fate.expect("each was done")).collect()
}

/// What `docs/faults.md` holds before its tables.
const INTRODUCTION: &str = "\
# What can happen to a guest on its way

For each fault and each step of a migration: where the guest is in the end, how many bytes of its memory are wrong, and what the side
said that found out. The test `whatever_happens_the_guest_runs_on_one_side_and_loses_nothing` makes these tables, and fails when this
page says something else. The steps are messages of [the channel](wire.md), in a post-copy; *pages of the pre-copy* are those of a
hybrid migration.

*Source, taken back*: nobody at the source can know whether the guest runs at the sink. It stands still there until an operator says
that the sink is gone, and goes on as it was when it stopped. *Sink, in part*: the source is gone for good, and with it what had not
come; what has come is right. In all other rows a connection that broke was replaced where the guest was the sink's by then, unless all had come.

## The way between them

The connections break, a bit is changed, nothing passes any more, or one stream waits while the others run on.

";

const SOURCES: &str = "
## Sources that break the protocol

A hand-made source behaves until the step, and then does this to a real sink. The guest that is at the source has never come; where
it is at the sink, an honest source went on afterwards, in the same session; but for the last, which had sent all.

";

const SINKS: &str = "
## Sinks that break the protocol

Likewise, a hand-made sink and a real source. Where the guest is the sink's, an honest sink took all of its pages afterwards.

";

/// A table of rows: those of the same fault and the same fate are one.
fn table(rows: impl Iterator<Item = (&'static str, &'static str, Fate)>) -> String {
    let mut joined: Vec<(&str, Fate, Vec<&str>)> = Vec::new();
    for (fault, step, fate) in rows {
        match joined.iter_mut().find(|(of, same, _)| *of == fault && *same == fate) {
            Some((.., steps)) => steps.push(step),
            None => joined.push((fault, fate, vec![step])),
        }
    }
    let mut table =
        "| fault | step | the guest | wrong bytes | the word |\n|---|---|---|---|---|\n".to_owned();
    for (fault, Fate { lives, wrong, said }, steps) in joined {
        let (lives, steps) = (lives.told(), steps.join(", "));
        table += &format!("| {fault} | {steps} | {lives} | {wrong} | {said} |\n");
    }
    table
}

#[test]
fn whatever_happens_the_guest_runs_on_one_side_and_loses_nothing() {
    let _alone = crate::alone();
    let cases = cases();
    let fates = at_once(&cases, |case| case.trial.run());
    let way = cases.iter().zip(fates).map(|(case, fate)| (case.fault, case.step.name(), fate));
    let fates = at_once(false_source::ATTACKS, false_source::fate);
    let attacks = false_source::ATTACKS.iter().zip(fates);
    let sources = attacks.map(|(attack, fate)| (attack.name, attack.until.told(), fate));
    let fates = at_once(false_sink::ATTACKS, false_sink::fate);
    let attacks = false_sink::ATTACKS.iter().zip(fates);
    let sinks = attacks.map(|(attack, fate)| (attack.name, attack.until.told(), fate));
    let rows = [way.collect::<Vec<_>>(), sources.collect(), sinks.collect()];
    let wrong = rows.iter().flatten().find(|(.., fate)| fate.wrong != 0);
    assert!(wrong.is_none(), "bytes are wrong: {wrong:?}");
    let [way, sources, sinks] = rows.map(|rows| table(rows.into_iter()));
    let now = [INTRODUCTION, &way, SOURCES, &sources, SINKS, &sinks].concat();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md");
    if std::fs::read_to_string(&page).is_ok_and(|page| page == now) {
        return;
    }
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.md");
    std::fs::write(&fresh, &now).unwrap();
    panic!(
        "docs/faults.md holds another table than {}, which is what happens:\n{now}",
        fresh.display()
    );
}

#[test]
fn a_slow_way_is_a_way() {
    let _alone = crate::alone();
    for mode in [Mode::PostCopy, Mode::Hybrid] {
        let (outcome, _) = over(&going(mode), |weather| weather.delay_us.store(500, Relaxed));
        assert_eq!(outcome, Outcome::Went);
        let narrow = over(&going(mode), |weather| weather.bytes_a_ms.store(20 << 10, Relaxed));
        assert_eq!(narrow.0, Outcome::Went);
    }
}
