//! Sources that break the protocol, against a real sink: what it says, and whether an honest source can go on.

mod attacks;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use guest_mm::addr::{Gfn, GfnRange, PageSize};
use guest_mm::postcopy::report::Watch;
use guest_mm::postcopy::sink::Sink;
use guest_mm::postcopy::transport::Limits;
use guest_mm::postcopy::wire::{
    Control, Digest, Encoding, Kind, Mode, Offer, Part, Purpose, Role, Session, Welcome,
};

pub(crate) use attacks::ATTACKS;

use crate::hand::{Hand, Over, frame, hello, page, pages_from};
use crate::mill::Mill;
use crate::trial::{Fate, Lives, in_short};
use crate::world::{DESCRIPTION, Host, MIB, Place, STATE, To, listening, pages, wait_for};

/// How far the source has behaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// It has connected.
    Greeting,
    /// Its streams are there.
    Streams,
    /// The guest runs at the sink.
    Running,
}

/// What it does then.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) until: Until,
    does: fn(&mut FalseSource),
    then: Then,
}

/// What there is of it afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The sink bears it, and goes on.
    Borne,
    /// The sink closes the connection; where the guest is with it, an honest source comes again.
    Closed,
    /// Nobody comes again: it has sent all.
    Gone,
}

/// A source, by hand.
pub(crate) struct FalseSource {
    path: PathBuf,
    session: Session,
    control: Hand,
    streams: Option<(Hand, Hand)>,
    words: Vec<u64>,
    /// Connections that say nothing.
    silent: Vec<UnixStream>,
}

const RAM: u64 = 8;
/// In it, of which all is missing when the guest comes.
const USED: u64 = 6;
const SOON: Duration = Duration::from_secs(2);
const SESSION: Session = Session::new([7; 16]);
const OTHER: Session = Session::new([8; 16]);

impl Until {
    pub(crate) fn told(self) -> &'static str {
        match self {
            Until::Greeting => "Welcome",
            Until::Streams => "the streams are there",
            Until::Running => "Running",
        }
    }
}

fn run(first: u64, frames: u64) -> GfnRange {
    GfnRange::new(Gfn::new(first), frames).unwrap()
}

fn offer(resumes: bool) -> Control {
    Control::Offer(Offer {
        description: DESCRIPTION.to_vec(),
        ranges: vec![run(0, pages(RAM))],
        mode: Mode::PostCopy,
        encoding: Encoding::Raw,
        bulk_streams: 1,
        resumes,
    })
}

impl FalseSource {
    fn connect(path: PathBuf, session: Session, words: Vec<u64>) -> FalseSource {
        let (control, answer) = Hand::dial(&path, &hello(Role::Control, session));
        assert_eq!(answer, Welcome::Chosen(1));
        FalseSource { path, session, control, streams: None, words, silent: Vec::new() }
    }

    fn open(&mut self) {
        let [bulk, urgent] = [Role::Bulk(0), Role::Urgent].map(|role| {
            let (hand, answer) = Hand::dial(&self.path, &hello(role, self.session));
            assert_eq!(answer, Welcome::Chosen(1));
            hand
        });
        self.streams = Some((bulk, urgent));
    }

    fn bulk(&mut self) -> &mut Hand {
        &mut self.streams.as_mut().expect("they are there").0
    }

    fn urgent(&mut self) -> &mut Hand {
        &mut self.streams.as_mut().expect("they are there").1
    }

    fn offers(&mut self) {
        self.control.say(&offer(false));
        assert_eq!(self.control.hear().unwrap(), Control::Accept);
        self.open();
    }

    fn fence(&mut self, number: u64) {
        self.bulk().send(&frame(Kind::Fence as u8, 0, &number.to_le_bytes()));
    }

    fn state(&mut self) {
        self.control.say(&Control::State { bytes: STATE.to_vec(), part: Part::Last });
    }

    fn switch_over(&mut self, missing: Vec<GfnRange>) {
        self.control.say(&Control::SwitchOver { fence: 1, missing, part: Part::Last });
    }

    fn hands_over(&mut self) {
        self.fence(1);
        self.state();
        self.switch_over(vec![run(0, pages(USED))]);
        assert_eq!(self.control.hear().unwrap(), Control::Ready);
        self.control.say(&Control::Go);
        assert_eq!(self.control.hear().unwrap(), Control::Running);
    }

    /// Sends these pages, and ends the bulk stream: their digest.
    fn sends(&mut self, missing: &[GfnRange]) -> Result<Digest, Over> {
        let mut digest = Digest::new();
        for part in missing.iter().flat_map(|run| run.chunks(512)) {
            let (from, to) = (part.start().as_u64() as usize, part.end().as_u64() as usize);
            let words = self.words[from..to].to_vec();
            let (bytes, header) = pages_from(from as u64, &words, Purpose::Bulk);
            // It is there while it sends.
            let goes = self.bulk().send(&bytes) && self.control.say(&Control::Ping(1));
            if !goes {
                return Err(Over);
            }
            digest.merge(header.digest());
        }
        self.bulk().finish();
        Ok(digest)
    }

    /// Comes again, as an honest source does, and sends what is missing; as often as it takes.
    fn recovers(&self) {
        let tries = 20;
        assert!((0..tries).any(|_| self.comes_again().is_ok()), "{tries} times it was in vain");
    }

    fn comes_again(&self) -> Result<(), Over> {
        let path = self.path.clone();
        let mut honest = FalseSource::connect(path, self.session, self.words.clone());
        honest.control.say(&offer(true));
        let mut here = Vec::new();
        loop {
            match honest.control.hear()? {
                Control::Accept => {}
                Control::Received { runs, part } => {
                    here.extend(runs);
                    if part == Part::Last {
                        break;
                    }
                }
                _ => return Err(Over),
            }
        }
        honest.open();
        let is_here = |page: u64| here.iter().any(|run| run.contains(Gfn::new(page)));
        let missing = (0..pages(USED)).filter(|&page| !is_here(page));
        let missing: Vec<_> = missing.map(|page| run(page, 1)).collect();
        let digest = honest.sends(&missing)?;
        honest.control.say(&Control::AllSent(digest));
        if honest.control.hear()? != Control::Complete(digest) {
            return Err(Over);
        }
        honest.control.say(&Control::Freed);
        honest.control.wait_for_the_end();
        Ok(())
    }

    /// Shows signs of life, whatever else it does, until the sink has had enough.
    fn pings_on(&mut self) {
        for number in 1..200 {
            if !self.control.say(&Control::Ping(number)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the sink bears it for ever");
    }

    /// Sends `bytes` on the bulk stream until the sink has had enough.
    fn endless(&mut self, bytes: &[u8]) {
        for _ in 0..100_000 {
            if !self.bulk().send(bytes) {
                return;
            }
        }
        panic!("the sink bears it for ever");
    }

    fn block(&self, first: u64) -> Vec<u8> {
        let first = first as usize;
        pages_from(first as u64, &self.words[first..first + 512], Purpose::Bulk).0
    }
}

/// Runs one; what becomes of the guest.
pub(crate) fn fate(attack: &Attack) -> Fate {
    let there = Host::new(RAM * MIB, PageSize::Size4K);
    let mill = Mill::new(pages(RAM));
    let words: Vec<u64> = (0..pages(USED)).map(|page| mill.number(page)).collect();
    debug_assert_eq!(page(words[0])[..8], words[0].to_le_bytes());
    let vcpu = Arc::default();
    let mut to = To { mill: mill.clone(), base: there.base(), pages: pages(USED), vcpu };
    let vcpu = to.vcpu.clone();
    let place = Place::new();
    let mut listen = listening(place.address());
    listen.patience = SOON;
    listen.limits = Limits { handshake: SOON, ..listen.limits };
    let done = AtomicBool::new(false);
    let (came, trouble) = std::thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let mut sink = Sink::new(&there.guest, Arc::clone(&there.pager));
            let mut left = 2000_u64;
            let came = sink.run(&listen, &mut to, &mut |_| {
                left = left.saturating_sub(if done.load(Relaxed) { 30 } else { 1 });
                if left == 0 { Watch::Cancel } else { Watch::GoOn }
            });
            (came, sink.report().troubles.first().cloned())
        });
        wait_for(&place.path);
        let mut source = FalseSource::connect(place.path.clone(), SESSION, words);
        let steps = [Until::Greeting, Until::Streams, Until::Running]
            .iter()
            .position(|&until| until == attack.until);
        let steps = steps.unwrap();
        if steps > 0 {
            source.offers();
        }
        if steps > 1 {
            source.hands_over();
        }
        (attack.does)(&mut source);
        match attack.then {
            Then::Borne => {
                if steps < 1 {
                    source.offers();
                }
                if steps < 2 {
                    source.hands_over();
                }
                source.recovers();
            }
            Then::Closed => {
                source.control.wait_for_the_end();
                if attack.until == Until::Running {
                    source.recovers();
                }
            }
            Then::Gone => assert!(
                (0..1000).any(|_| {
                    std::thread::sleep(Duration::from_millis(5));
                    there.guest.missing().is_empty()
                }),
                "what it sent has not come"
            ),
        }
        done.store(true, Relaxed);
        sink.join().unwrap()
    });
    let said = trouble.or(came.as_ref().err().map(ToString::to_string)).unwrap_or_default();
    let said = if attack.then == Then::Borne { "—".to_owned() } else { in_short(&said) };
    let ran = vcpu.lock().unwrap().take();
    let fate = match ran {
        Some(vcpu) => {
            came.unwrap();
            mill.halt(vcpu).unwrap();
            Fate { lives: Lives::Sink, wrong: mill.wrong(there.base(), |_| true), said }
        }
        None => {
            assert!(came.is_err(), "{}: it has come, and does not run", attack.name);
            Fate { lives: Lives::Source, wrong: 0, said }
        }
    };
    there.close();
    fate
}
