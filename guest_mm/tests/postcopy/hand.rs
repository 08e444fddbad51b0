//! A stream of a peer that speaks the wire by hand.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use guest_mm::addr::Gfn;
use guest_mm::postcopy::wire::{
    Control, FrameHeader, Hello, Kind, Lane, PAGE_BYTES, PagesHeader, Purpose, Reason, Refusal,
    Role, Session, Versions, Welcome,
};
use twox_hash::XxHash3_64;

/// What a peer waits for a word of the other side.
const DEADLINE: Duration = Duration::from_secs(20);

/// One end of a stream.
pub(crate) struct Hand {
    socket: UnixStream,
    /// What it hears.
    lane: Lane,
}

/// There is nothing more to hear.
#[derive(Debug)]
pub(crate) struct Over;

impl Hand {
    /// A stream to the sink at `path`, and what that answers.
    pub(crate) fn dial(path: &Path, hello: &Hello) -> (Hand, Welcome) {
        let socket = UnixStream::connect(path).unwrap();
        let mut hand = Hand::new(socket, lane(hello.role, false));
        hand.send(&hello.encode());
        let mut bytes = hand.read(Welcome::FIXED).expect("an answer");
        let reason = Welcome::reason_bytes(bytes.first_chunk().unwrap()).unwrap();
        bytes.extend(hand.read(reason).unwrap());
        (hand, Welcome::decode(&bytes).unwrap())
    }

    /// The next stream of a source, not yet welcome.
    pub(crate) fn accept(ear: &UnixListener) -> (Hand, Hello) {
        let (socket, _) = ear.accept().unwrap();
        let mut hand = Hand::new(socket, Lane::ControlToSink);
        let bytes = hand.read(Hello::BYTES).expect("a hello");
        let hello = Hello::decode(bytes.first_chunk().unwrap()).unwrap();
        hand.lane = lane(hello.role, true);
        (hand, hello)
    }

    fn new(socket: UnixStream, lane: Lane) -> Hand {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        Hand { socket, lane }
    }

    /// Sends bytes; whether anybody took them.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    pub(crate) fn welcome(&mut self) {
        self.send(&Welcome::Chosen(1).encode());
    }

    pub(crate) fn refuse(&mut self) {
        self.send(&Welcome::Refused(Refusal::Other, Reason::new("no")).encode());
    }

    pub(crate) fn say(&mut self, message: &Control) -> bool {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        self.send(&bytes)
    }

    /// The next message, but for signs of life, which are answered.
    pub(crate) fn hear(&mut self) -> Result<Control, Over> {
        loop {
            let (frame, _) = self.frame()?;
            match Control::decode(&frame, self.lane).expect("it speaks well") {
                Control::Ping(number) => drop(self.say(&Control::Pong(number))),
                Control::Pong(_) => {}
                other => return Ok(other),
            }
        }
    }

    /// The next pages: the first of them, and the bytes of those that are not zeroes; none at a fence.
    pub(crate) fn pages(&mut self) -> Result<Option<(PagesHeader, Vec<u8>)>, Over> {
        let (frame, kind) = self.frame()?;
        if kind != Kind::Pages {
            return Ok(None);
        }
        let header = PagesHeader::decode(&frame, self.lane).expect("it speaks well");
        let payload = self.read(header.payload_bytes())?;
        Ok(Some((header, payload)))
    }

    fn frame(&mut self) -> Result<(Vec<u8>, Kind), Over> {
        let mut bytes = self.read(FrameHeader::BYTES)?;
        let header = FrameHeader::decode(bytes.first_chunk().unwrap(), self.lane).unwrap();
        bytes.extend(self.read(header.body_bytes())?);
        Ok((bytes, header.kind()))
    }

    fn read(&mut self, count: usize) -> Result<Vec<u8>, Over> {
        let mut bytes = vec![0; count];
        self.socket.read_exact(&mut bytes).map_err(|_| Over)?;
        Ok(bytes)
    }

    /// Waits until the other side has ended the stream.
    ///
    /// # Panics
    /// If it does not.
    pub(crate) fn wait_for_the_end(&mut self) {
        let since = Instant::now();
        let mut bytes = [0; 4096];
        self.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        while since.elapsed() < DEADLINE {
            match self.socket.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
        panic!("the other side does not end the stream");
    }

    /// Nothing more goes out.
    pub(crate) fn finish(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}

fn lane(role: Role, to_sink: bool) -> Lane {
    match (role, to_sink) {
        (Role::Control, true) => Lane::ControlToSink,
        (Role::Control, false) => Lane::ControlToSource,
        (Role::Urgent, true) => Lane::UrgentToSink,
        (Role::Urgent, false) => Lane::UrgentToSource,
        (Role::Bulk(_), _) => Lane::BulkToSink,
    }
}

pub(crate) fn hello(role: Role, session: Session) -> Hello {
    Hello { versions: Versions::SPOKEN, role, session }
}

/// A frame of any kind, with any body, rightly summed up.
pub(crate) fn frame(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, flags, 0, 0];
    bytes.extend((body.len() as u32).to_le_bytes());
    let half = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    bytes.extend(XxHash3_64::oneshot_with_seed(half, body).to_le_bytes());
    bytes.extend(body);
    bytes
}

/// The beginning of a frame that says that it is `length` bytes long.
pub(crate) fn header(kind: Kind, length: u32) -> Vec<u8> {
    let mut bytes = frame(kind as u8, 0, &[]);
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// A page that begins with `word`.
pub(crate) fn page(word: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    page[..8].copy_from_slice(&word.to_le_bytes());
    page
}

/// Pages from `first` on that begin with `words`: what to send, and their header.
pub(crate) fn pages_from(first: u64, words: &[u64], purpose: Purpose) -> (Vec<u8>, PagesHeader) {
    let mut header = PagesHeader::new(Gfn::new(first), purpose);
    let (mut bytes, mut payload) = (Vec::new(), Vec::new());
    for &word in words {
        let page = page(word);
        header.push_page(&page).unwrap();
        if word != 0 {
            payload.extend(page);
        }
    }
    header.encode(&mut bytes).unwrap();
    bytes.extend(payload);
    (bytes, header)
}
