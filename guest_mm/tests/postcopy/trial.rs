//! One migration over a way that does harm at one message, and what becomes of the guest.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use guest_mm::addr::PageSize;
use guest_mm::postcopy::report::{Phase, SourceReport, Watch};
use guest_mm::postcopy::sink::Sink;
use guest_mm::postcopy::source::{Source, SourceConfig, Stays};
use guest_mm::postcopy::transport::{Address, Limits};
use guest_mm::postcopy::wire::Mode;

use crate::mill::Mill;
use crate::relay::{Harm, Place, Relay, Spot};
use crate::world::{From, Host, MIB, Place as Site, To, dialer, going, listening, pages, wait_for};

/// Who is killed where the harm is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Nobody,
    Source,
    Sink,
    /// The guest ends at the sink by itself before all of it is there.
    Guest,
}

/// Where the guest is in the end: on one side, or it has ended with its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lives {
    Source,
    /// It stood still there until an operator took it back.
    TakenBack,
    Sink,
    /// All but what had not come when the source was gone for good.
    SinkInPart,
    /// It was at the source, and has died with it.
    DiedAtSource,
    /// It has ended at the sink.
    EndedAtSink,
}

/// Whose word about what was wrong is noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finder {
    Source,
    Sink,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) lives: Lives,
    pub(crate) wrong: usize,
    pub(crate) said: String,
}

/// A migration that is disturbed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    pub(crate) mode: Mode,
    pub(crate) trap: Option<(Spot, Harm)>,
    pub(crate) victim: Victim,
    pub(crate) finder: Finder,
}

const RAM: u64 = 8;
/// In it, of which all is written.
const USED: u64 = 6;
/// How long the side waits that is to find out about a silence, and how long the other.
const SOON: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_secs(8);

/// How one attempt of the source ended.
type Went = Result<SourceReport, Stays>;

impl Trial {
    /// How long `side` is patient.
    fn patience(&self, side: Finder) -> Duration {
        let is_silent = matches!(self.trap, Some((_, Harm::Silence)));
        if is_silent && self.finder == side { SOON } else { LATE }
    }

    fn way(&self) -> SourceConfig {
        // Slow enough for the guest to miss pages, and in a round to write all of them; or to end before all is there.
        let rate = if self.victim == Victim::Guest { 8 << 20 } else { 48 << 20 };
        SourceConfig {
            patience: self.patience(Finder::Source),
            downtime: Duration::from_secs(10),
            rate: std::num::NonZeroU64::new(rate),
            bulk_streams: 2,
            ..going(self.mode)
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If the guest runs on two sides, or if nothing happened where it should.
    pub(crate) fn run(self) -> Fate {
        let bytes = RAM * MIB;
        let host = || Host::new(bytes, PageSize::Size4K);
        let (here, there) = (host(), host());
        let mill = Mill::new(pages(RAM));
        mill.fill(here.base(), 0..pages(USED));
        let mut from = From::new(&here, &mill, pages(USED));
        let vcpu = Arc::default();
        let mut to = To { mill: mill.clone(), base: there.base(), pages: pages(USED), vcpu };
        let vcpu = to.vcpu.clone();
        let place = Site::new();
        let relay = Relay::new(&place.path.with_extension("relay"), &place.path, self.trap);
        let mut listen = listening(place.address());
        listen.patience = self.patience(Finder::Sink);
        let mut dial = dialer(Address::Unix(relay.path().to_owned()));
        dial.limits = Limits { handshake: self.patience(Finder::Source), ..dial.limits };
        let done = std::sync::atomic::AtomicBool::new(false);
        let ((came, trouble), went) = std::thread::scope(|scope| {
            let sink = scope.spawn(|| {
                let mut sink = Sink::new(&there.guest, Arc::clone(&there.pager));
                // A test that hangs fails instead; and when nobody comes any more, nobody is waited for.
                let mut left = 3000_u64;
                let came = sink.run(&listen, &mut to, &mut |progress| {
                    left = left.saturating_sub(if done.load(Relaxed) { 30 } else { 1 });
                    match self.victim {
                        Victim::Sink if relay.has_sprung() => Watch::Cancel,
                        Victim::Guest if progress.phase == Phase::PostCopy => Watch::Ended,
                        _ if left == 0 => Watch::Cancel,
                        _ => Watch::GoOn,
                    }
                });
                (came, sink.report().troubles.first().cloned())
            });
            wait_for(&place.path);
            let went = self.send(&here, &mut from, &relay, &dial);
            // The last word may be on its way.
            for _ in 0..200 {
                if self.trap.is_none() || relay.has_sprung() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            done.store(true, Relaxed);
            (sink.join().unwrap(), went)
        });
        let has_sprung = relay.has_sprung();
        assert!(self.trap.is_none() || has_sprung, "{self:?}: nothing happened: {went:?} {came:?}");
        let ran_there = vcpu.lock().unwrap().take();
        let runs_here = from.vcpu.is_some();
        assert!(!(runs_here && ran_there.is_some()), "{self:?}: it runs on both sides");
        let said = match self.finder {
            Finder::Source => went.0.clone(),
            Finder::Sink => trouble.or(came.as_ref().err().map(ToString::to_string)),
        };
        let said = self.in_short(&said.unwrap_or_default());
        let all = |_| true;
        let (lives, wrong) = match (self.victim, &went.1, ran_there) {
            (Victim::Source, ..) if runs_here => {
                // It dies with its source.
                mill.halt(from.vcpu.take().unwrap()).unwrap();
                assert!(came.is_err(), "{came:?}");
                (Lives::DiedAtSource, 0)
            }
            (Victim::Source, _, Some(vcpu)) => {
                // Who waits for what never comes finds no word there, and stops.
                let _ = mill.halt(vcpu);
                let missing: HashSet<u64> = missing(&there).collect();
                let lives = if missing.is_empty() { Lives::Sink } else { Lives::SinkInPart };
                (lives, mill.wrong(there.base(), |page| !missing.contains(&page)))
            }
            (Victim::Source, _, None) => (Lives::DiedAtSource, 0),
            (Victim::Sink | Victim::Nobody, Err(Stays::HandedOver(_)), ran) => {
                assert!(self.victim != Victim::Nobody || ran.is_none(), "{went:?} {came:?}");
                // The operator knows that the sink is gone.
                if let Some(vcpu) = ran {
                    let _ = mill.halt(vcpu);
                }
                mill.rewind();
                guest_mm::postcopy::machine::Departing::go_on(&mut from);
                mill.halt(from.vcpu.take().unwrap()).unwrap();
                (Lives::TakenBack, mill.wrong(here.base(), all))
            }
            (Victim::Guest, _, Some(vcpu)) => {
                let _ = mill.halt(vcpu);
                (Lives::EndedAtSink, 0)
            }
            (_, _, Some(vcpu)) => {
                assert!(came.is_ok() || self.victim == Victim::Sink, "{self:?}: {came:?}");
                mill.halt(vcpu).unwrap();
                (Lives::Sink, mill.wrong(there.base(), all))
            }
            (_, _, None) => {
                assert!(came.is_err(), "it has come, and nobody knows");
                mill.halt(from.vcpu.take().expect("it runs somewhere")).unwrap();
                (Lives::Source, mill.wrong(here.base(), all))
            }
        };
        here.close();
        there.close();
        Fate { lives, wrong, said }
    }

    /// Sends the guest, as often as it takes; what the first attempt came to, if not well, and the last.
    fn send(
        &self,
        here: &Host,
        from: &mut From,
        relay: &Relay,
        dial: &guest_mm::postcopy::source::Dialer,
    ) -> (Option<String>, Went) {
        let mut source = Source::new(&here.guest, self.way()).unwrap();
        let mut send = || source.run(dial, from, &mut |_| Watch::GoOn);
        let mut went = send();
        let first = went.as_ref().err().map(ToString::to_string);
        if went.is_ok() {
            return (first, went);
        }
        if self.victim != Victim::Nobody {
            relay.close();
            return (first, went);
        }
        relay.mend();
        for _ in 0..60 {
            if !matches!(went, Err(Stays::HandedOver(_))) {
                break;
            }
            // The sink may not have noticed yet.
            std::thread::sleep(Duration::from_millis(50));
            went = send();
        }
        (first, went)
    }
}

fn missing(host: &Host) -> impl Iterator<Item = u64> {
    let runs = host.guest.missing();
    runs.into_iter().flat_map(|run| run.iter().map(guest_mm::addr::Gfn::as_u64).collect::<Vec<_>>())
}

impl Trial {
    fn in_short(&self, said: &str) -> String {
        let short = in_short(said);
        // What its length has become decides who finds it out.
        let signs = ["is longer than", "the checksum of a Pages", "nothing came"];
        let of_length = matches!(self.trap, Some((_, Harm::Flip(Place::Length))));
        if of_length && signs.iter().any(|sign| short.contains(sign)) {
            return "the frame is too long, cut short or damaged".to_owned();
        }
        // Which stream finds it out first is chance.
        let signs = ["did not greet", "said nothing", "took nothing"];
        let of_silence = matches!(self.trap, Some((_, Harm::Silence)));
        if of_silence && signs.iter().any(|sign| short.contains(sign)) {
            return "the other side is silent".to_owned();
        }
        short
    }
}

/// An error without what differs from one time to the next.
pub(crate) fn in_short(said: &str) -> String {
    let said = said.split("; ").next().unwrap_or_default();
    let lost = [
        "closed the stream",
        "connection broke",
        "in the middle of a message",
        "cannot be connected",
        "went without a word",
    ];
    if lost.iter().any(|sign| said.contains(sign)) {
        return "the connection is gone".to_owned();
    }
    // Of which stream, or with whom.
    let said = said.split_once(" stream: ").map_or(said, |(_, what)| what);
    let said = said.strip_prefix("no greeting with ").unwrap_or(said);
    let said = match said.strip_prefix("unix:").and_then(|rest| rest.split_once(' ')) {
        Some((path, what)) if path.ends_with(':') => what.to_owned(),
        Some((_, what)) => format!("the sink {what}"),
        None => said.to_owned(),
    };
    // Which page it was is chance.
    let said = match said.split_once("guest frame 0x") {
        Some((before, after)) => {
            let rest = after.trim_start_matches(|digit: char| digit.is_ascii_hexdigit());
            format!("{before}a guest frame{rest}")
        }
        None => said,
    };
    match &*said {
        // By the test, when nobody came any more.
        "" | "it was cancelled" => "—".to_owned(),
        said => said.to_owned(),
    }
}
