//! A way between source and sink that knows the frames which pass, and does harm at one of them.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use guest_mm::postcopy::wire::{FrameHeader, Hello, Kind, Lane, Welcome};

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    Hello,
    Welcome,
    Frame(Kind),
}

/// A part of what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Before,
    Header,
    /// The field that says how long the body is.
    Length,
    Body,
    Payload,
    Behind,
}

/// What is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    /// All connections break there.
    Cut(Place),
    /// One bit is wrong there.
    Flip(Place),
    /// From here on nothing passes any more, over any stream.
    Silence,
    /// It and what follows it in its direction of its stream waits so long; all else passes.
    Hold(Duration),
}

/// Where harm is done: at the first of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) letter: Letter,
    pub(crate) lane: Lane,
}

#[derive(Debug, Default)]
struct State {
    trap: Mutex<Option<(Spot, Harm)>>,
    /// How often it broke. A connection lasts until the next time.
    breaks: AtomicU64,
    /// Bulk streams that have not ended.
    bulk: AtomicU64,
    is_mute: AtomicBool,
    has_sprung: AtomicBool,
    is_closed: AtomicBool,
}

/// How long what has passed may take to be taken.
const ARRIVES: Duration = Duration::from_millis(300);

/// Lets connections through to a sink.
pub(crate) struct Relay {
    state: Arc<State>,
    path: PathBuf,
}

impl Relay {
    /// Between `path`, where it listens, and the sink at `to`. Does `harm` once it comes to `spot`.
    pub(crate) fn new(path: &Path, to: &Path, trap: Option<(Spot, Harm)>) -> Relay {
        let ear = UnixListener::bind(path).unwrap();
        let state = Arc::new(State { trap: Mutex::new(trap), ..State::default() });
        let (to, seen) = (to.to_owned(), Arc::clone(&state));
        std::thread::spawn(move || {
            for near in ear.incoming() {
                let Ok(near) = near else { return };
                if seen.is_closed.load(Relaxed) {
                    continue;
                }
                let Ok(far) = UnixStream::connect(&to) else { continue };
                let role = Arc::new(OnceLock::new());
                for (to_sink, from, to) in [(true, &near, &far), (false, &far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (state, role) = (Arc::clone(&seen), Arc::clone(&role));
                    let breaks = state.breaks.load(Relaxed);
                    std::thread::spawn(move || {
                        Passage { from, to, to_sink, role, breaks, state }.run();
                    });
                }
            }
        });
        Relay { state, path: path.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the harm was done.
    pub(crate) fn has_sprung(&self) -> bool {
        self.state.has_sprung.load(Relaxed)
    }

    /// It is whole again.
    pub(crate) fn mend(&self) {
        self.state.breaks.fetch_add(1, Relaxed);
        self.state.is_mute.store(false, Relaxed);
        *self.state.trap.lock().unwrap() = None;
    }

    /// Nobody comes through any more.
    pub(crate) fn close(&self) {
        self.state.is_closed.store(true, Relaxed);
        self.state.breaks.fetch_add(1, Relaxed);
    }
}

/// One direction of one connection.
struct Passage {
    from: UnixStream,
    to: UnixStream,
    to_sink: bool,
    /// The stream's, as the hello has it.
    role: Arc<OnceLock<u8>>,
    breaks: u64,
    state: Arc<State>,
}

/// A whole message, and how long its parts are.
struct Whole {
    letter: Letter,
    bytes: Vec<u8>,
    header: usize,
    body: usize,
}

impl Passage {
    fn run(mut self) {
        let _ = self.from.set_read_timeout(Some(Duration::from_millis(5)));
        let mut greeted = false;
        while let Some(mut whole) = self.next(greeted) {
            greeted = true;
            let mut through = whole.bytes.len();
            match self.harm(whole.letter) {
                None => {}
                Some(Harm::Cut(place)) => {
                    through = whole.offset(place);
                    // What comes before arrives, and what would answer it does not.
                    self.state.is_mute.store(true, Relaxed);
                    let _ = self.to.write_all(&whole.bytes[..through]);
                    std::thread::sleep(ARRIVES);
                    self.state.breaks.fetch_add(1, Relaxed);
                    break;
                }
                Some(Harm::Flip(place)) => {
                    let at = whole.offset(place);
                    whole.bytes[at] ^= 0x04;
                }
                Some(Harm::Silence) => self.state.is_mute.store(true, Relaxed),
                Some(Harm::Hold(time)) => {
                    let since = Instant::now();
                    while since.elapsed() < time && !self.is_broken() {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
            if self.state.is_mute.load(Relaxed) {
                continue;
            }
            if self.to.write_all(&whole.bytes[..through]).is_err() || self.is_broken() {
                break;
            }
        }
        self.state.bulk.fetch_sub(u64::from(self.is_bulk()), Relaxed);
        if self.is_broken() {
            let _ = self.from.shutdown(Shutdown::Both);
            let _ = self.to.shutdown(Shutdown::Both);
        } else {
            // What goes the other way is still to come through.
            let _ = self.from.shutdown(Shutdown::Read);
            let _ = self.to.shutdown(Shutdown::Write);
        }
    }

    fn is_broken(&self) -> bool {
        self.state.breaks.load(Relaxed) != self.breaks
    }

    fn lane(&self) -> Lane {
        match (self.role.get().copied().unwrap_or(0), self.to_sink) {
            (0, true) => Lane::ControlToSink,
            (0, false) => Lane::ControlToSource,
            (1, true) => Lane::UrgentToSink,
            (1, false) => Lane::UrgentToSource,
            _ => Lane::BulkToSink,
        }
    }

    /// Whether pages come this way in bulk.
    fn is_bulk(&self) -> bool {
        self.to_sink && self.role.get().is_some_and(|&role| role > 1)
    }

    /// What is to be done here; once.
    fn harm(&self, letter: Letter) -> Option<Harm> {
        let mut trap = self.state.trap.lock().unwrap();
        let spot = Spot { letter, lane: self.lane() };
        let (_, harm) = trap.take_if(|(at, _)| *at == spot)?;
        drop(trap);
        if letter == Letter::Frame(Kind::AllSent) {
            // It speaks of pages that may be on their way through here: in bulk, and as answers.
            for _ in 0..4000 {
                if self.state.bulk.load(Relaxed) == 0 || self.is_broken() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(ARRIVES);
        }
        self.state.has_sprung.store(true, Relaxed);
        Some(harm)
    }

    /// The next message; none when the connection is over.
    fn next(&mut self, greeted: bool) -> Option<Whole> {
        let letter_of = |byte| Kind::ALL.into_iter().find(|&kind| kind as u8 == byte);
        let mut bytes = Vec::new();
        if !greeted && self.to_sink {
            self.read(&mut bytes, Hello::BYTES)?;
            let _ = self.role.set(bytes[12]);
            self.state.bulk.fetch_add(u64::from(self.is_bulk()), Relaxed);
            let (header, body) = (32, Hello::BYTES - 32);
            return Some(Whole { letter: Letter::Hello, bytes, header, body });
        }
        if !greeted {
            self.read(&mut bytes, Welcome::FIXED)?;
            let reason = usize::from(u16::from_le_bytes([bytes[12], bytes[13]]));
            self.read(&mut bytes, reason)?;
            let (header, body) = (16, bytes.len() - 16);
            return Some(Whole { letter: Letter::Welcome, bytes, header, body });
        }
        let number = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        self.read(&mut bytes, FrameHeader::BYTES)?;
        let kind = letter_of(bytes[0]).expect("both sides are honest");
        let (header, body) = (FrameHeader::BYTES, number(&bytes[4..]));
        self.read(&mut bytes, body)?;
        if kind == Kind::Pages {
            let payload = number(&bytes[header + 8..]);
            self.read(&mut bytes, payload)?;
        }
        Some(Whole { letter: Letter::Frame(kind), bytes, header, body })
    }

    /// Reads so many bytes more.
    fn read(&mut self, bytes: &mut Vec<u8>, more: usize) -> Option<()> {
        let (mut filled, end) = (bytes.len(), bytes.len() + more);
        bytes.resize(end, 0);
        while filled < end {
            match self.from.read(&mut bytes[filled..]) {
                Ok(0) => return None,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
            if self.is_broken() {
                return None;
            }
        }
        Some(())
    }
}

impl Whole {
    /// Where `place` is in it.
    fn offset(&self, place: Place) -> usize {
        let (payload, end) = (self.header + self.body, self.bytes.len());
        match place {
            Place::Before => 0,
            Place::Header => 9,
            Place::Length => 5,
            Place::Body => self.header + self.body / 2,
            Place::Payload => payload + (end - payload) / 2,
            Place::Behind => end,
        }
    }
}
