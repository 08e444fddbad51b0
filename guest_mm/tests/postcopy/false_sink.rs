//! Sinks that break the protocol, against a real source: what it says, and whether an honest sink can go on.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use guest_mm::addr::{Gfn, GfnRange, PageSize};
use guest_mm::postcopy::report::Watch;
use guest_mm::postcopy::source::{Source, SourceConfig, Stays};
use guest_mm::postcopy::transport::Limits;
use guest_mm::postcopy::wire::{
    Control, Digest, Kind, Mode, PAGE_BYTES, Part, Reason, Request, Role, Welcome,
};

use crate::hand::{Hand, frame, header, page};
use crate::mill::Mill;
use crate::trial::{Fate, Lives, in_short};
use crate::world::{From, Host, MIB, Place, dialer, going, pages};

/// How far the sink has behaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Until {
    /// A source has connected.
    Greeting,
    /// It has heard the offer.
    Offered,
    /// The streams are there.
    Streams,
    /// It was told that the guest is to run.
    Go,
    /// It has said that the guest runs.
    Running,
    /// It was connected to again, after a break.
    Again,
}

/// What it does then.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) until: Until,
    does: fn(&mut FalseSink),
}

/// A sink, by hand.
pub(crate) struct FalseSink {
    ear: UnixListener,
    control: Hand,
    bulk: Option<Hand>,
    urgent: Option<Hand>,
}

const RAM: u64 = 24;
/// In it, of which all is written: more than a socket holds that nobody reads from.
const USED: u64 = 20;
const SOON: Duration = Duration::from_secs(2);

impl Until {
    pub(crate) fn told(self) -> &'static str {
        match self {
            Greeting => "Hello",
            Offered => "Offer",
            Streams => "the streams are there",
            Go => "Go",
            Running => "Running",
            Again => "connected again",
        }
    }
}

impl FalseSink {
    /// Takes the first stream of a source, and says nothing yet.
    fn new(ear: UnixListener) -> FalseSink {
        let (control, hello) = Hand::accept(&ear);
        assert_eq!(hello.role, Role::Control);
        FalseSink { ear, control, bulk: None, urgent: None }
    }

    /// The next connection of the same source, up to its offer.
    fn again(self) -> FalseSink {
        let FalseSink { ear, .. } = self;
        let mut next = FalseSink::new(ear);
        next.hears_offer(true);
        next
    }

    fn hears_offer(&mut self, resumes: bool) {
        self.control.welcome();
        match self.control.hear().unwrap() {
            Control::Offer(offer) => assert_eq!(offer.resumes, resumes),
            other => panic!("{other:?}"),
        }
    }

    fn joins(&mut self) {
        for _ in 0..2 {
            let (mut hand, hello) = Hand::accept(&self.ear);
            hand.welcome();
            match hello.role {
                Role::Urgent => self.urgent = Some(hand),
                _ => self.bulk = Some(hand),
            }
        }
    }

    fn accepts(&mut self) {
        self.control.say(&Control::Accept);
        self.joins();
    }

    /// Takes all that comes before the guest runs.
    fn is_ready(&mut self) {
        loop {
            if let Control::SwitchOver { part: Part::Last, .. } = self.control.hear().unwrap() {
                break;
            }
        }
        self.control.say(&Control::Ready);
        assert_eq!(self.control.hear().unwrap(), Control::Go);
    }

    /// Says what it has already, which is nothing, and takes all pages as an honest sink: how many are not as `words` has them.
    fn takes_all(&mut self, words: &[u64]) -> usize {
        self.control.say(&Control::Accept);
        self.control.say(&Control::Received { runs: Vec::new(), part: Part::Last });
        self.joins();
        let mut bulk = self.bulk.take().unwrap();
        let taken = std::thread::spawn(move || {
            let (mut digest, mut came) = (Digest::new(), vec![0; pages(RAM) as usize]);
            let mut whole = 0;
            while let Ok(frame) = bulk.pages() {
                let Some((header, payload)) = frame else { continue };
                digest.merge(header.digest());
                let (payload, _) = payload.as_chunks::<PAGE_BYTES>();
                for (gfn, bytes) in header.nonzero_pages().zip(payload) {
                    let word = u64::from_le_bytes(*bytes.first_chunk().unwrap());
                    whole += usize::from(*bytes == page(word));
                    came[gfn.as_u64() as usize] = word;
                }
            }
            (digest, came, whole)
        });
        // It ends the bulk streams before it says so.
        let Control::AllSent(theirs) = self.control.hear().unwrap() else { panic!("not all sent") };
        let (digest, came, whole) = taken.join().unwrap();
        assert_eq!(digest, theirs);
        self.control.say(&Control::Complete(digest));
        assert_eq!(self.control.hear().unwrap(), Control::Freed);
        assert_eq!(whole as u64, pages(USED), "pages came more than once, or with other bytes");
        came.iter().zip(words).filter(|(came, word)| came != word).count()
    }

    fn urgent(&mut self) -> &mut Hand {
        self.urgent.as_mut().expect("it is there")
    }

    fn asks(&mut self, gfn: u64) {
        let request = Request { gfn: Gfn::new(gfn) }.encode();
        self.urgent().send(&request);
    }

    /// Takes what comes in bulk, and keeps nothing.
    fn drops_pages(&mut self) {
        let mut bulk = self.bulk.take().expect("it is there");
        std::thread::spawn(move || while bulk.pages().is_ok() {});
    }

    /// Answers signs of life, whatever else it does, until the source has had enough.
    fn pongs_on(&mut self) {
        while self.control.hear().is_ok() {}
    }
}

const fn attack(name: &'static str, until: Until, does: fn(&mut FalseSink)) -> Attack {
    Attack { name, until, does }
}

use Until::{Again, Go, Greeting, Offered, Running, Streams};

pub(crate) const ATTACKS: &[Attack] = &[
    attack("does not answer", Greeting, |_| {}),
    attack("answers with noise", Greeting, |sink| {
        sink.control.send(&[0xaa; 24]);
    }),
    attack("chooses a version that was not offered", Greeting, |sink| {
        sink.control.send(&Welcome::Chosen(9).encode());
    }),
    attack("does not want the stream", Greeting, |sink| sink.control.refuse()),
    attack("says nothing", Offered, |_| {}),
    attack("does not want the machine", Offered, |sink| {
        sink.control.say(&Control::Refuse(Reason::new("no")));
    }),
    attack("says that the guest runs", Offered, |sink| {
        sink.control.say(&Control::Running);
    }),
    attack("sends a longer frame than there is", Offered, |sink| {
        sink.control.send(&header(Kind::Failed, 1025));
    }),
    attack("sends what only a source may", Offered, |sink| {
        sink.control.say(&Control::Go);
    }),
    attack("answers signs of life that there were not", Offered, |sink| {
        sink.control.say(&Control::Pong(77));
    }),
    attack("does not want the other streams", Offered, |sink| {
        sink.control.say(&Control::Accept);
        let (mut hand, _) = Hand::accept(&sink.ear);
        hand.refuse();
    }),
    attack("fails", Streams, |sink| {
        sink.control.say(&Control::Failed(Reason::new("no memory")));
    }),
    attack("has it all at once", Streams, |sink| {
        sink.control.say(&Control::Complete(Digest::new()));
    }),
    attack("says nothing", Streams, |_| {}),
    attack("says nothing", Go, |_| {}),
    attack("fails", Go, |sink| {
        sink.control.say(&Control::Failed(Reason::new("no memory")));
    }),
    attack("takes no pages, and answers signs of life", Running, FalseSink::pongs_on),
    attack("asks for what is no RAM", Running, |sink| sink.asks(pages(RAM))),
    attack("asks for what no guest can have", Running, |sink| {
        let mut body = (1_u64 << 36).to_le_bytes().to_vec();
        body.extend([0; 8]);
        sink.urgent().send(&frame(Kind::Request as u8, 0, &body));
    }),
    attack("asks with another checksum", Running, |sink| {
        let mut request = Request { gfn: Gfn::new(1) }.encode();
        request[20] ^= 1;
        sink.urgent().send(&request);
    }),
    attack("asks with a longer frame than there is", Running, |sink| {
        sink.urgent().send(&header(Kind::Request, 17));
    }),
    attack("asks with half a frame, and answers signs of life", Running, |sink| {
        sink.drops_pages();
        sink.urgent().send(&header(Kind::Request, 16)[..9]);
        sink.pongs_on();
    }),
    attack("asks without end", Running, |sink| {
        sink.drops_pages();
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(20) {
            sink.asks(0);
            if sink.urgent().pages().is_err() {
                return;
            }
        }
        panic!("the source bears it for ever");
    }),
    attack("asks without end, and takes no answer", Running, |sink| {
        sink.drops_pages();
        let request = Request { gfn: Gfn::new(0) }.encode().repeat(1000);
        let mut urgent = sink.urgent.take().unwrap();
        std::thread::spawn(move || while urgent.send(&request) {});
        sink.pongs_on();
    }),
    attack("has another digest", Running, |sink| {
        sink.drops_pages();
        assert!(matches!(sink.control.hear(), Ok(Control::AllSent(_))));
        sink.control.say(&Control::Complete(Digest::new()));
    }),
    attack("says again that the guest runs", Running, |sink| {
        sink.control.say(&Control::Running);
    }),
    attack("fails", Running, |sink| {
        sink.control.say(&Control::Failed(Reason::new("no memory")));
    }),
    attack("says nothing", Running, FalseSink::drops_pages),
    attack("says nothing", Again, |_| {}),
    attack("does not want the machine any more", Again, |sink| {
        sink.control.say(&Control::Refuse(Reason::new("no")));
    }),
    attack("has what is no RAM", Again, |sink| {
        sink.control.say(&Control::Accept);
        let run = GfnRange::new(Gfn::new(0), pages(RAM) + 1).unwrap();
        sink.control.say(&Control::Received { runs: vec![run], part: Part::Last });
    }),
    attack("has runs that overlap", Again, |sink| {
        sink.control.say(&Control::Accept);
        let run: Vec<u8> =
            [5_u64, 5, 5, 5].iter().flat_map(|number| number.to_le_bytes()).collect();
        sink.control.send(&frame(Kind::Received as u8, 1, &run));
    }),
];

/// Runs one; what becomes of the guest.
pub(crate) fn fate(attack: &Attack) -> Fate {
    let here = Host::new(RAM * MIB, PageSize::Size4K);
    let mill = Mill::new(pages(RAM));
    mill.fill(here.base(), 0..pages(USED));
    let mut from = From::new(&here, &mill, pages(USED));
    let place = Place::new();
    let ear = UnixListener::bind(&place.path).unwrap();
    let mut dial = dialer(place.address());
    dial.limits = Limits { handshake: SOON, ..dial.limits };
    let config = SourceConfig { patience: SOON, ..going(Mode::PostCopy) };
    let mut source = Source::new(&here.guest, config).unwrap();
    let since = Instant::now();
    // A test that hangs fails instead.
    let mut watch = move |_: &_| {
        if since.elapsed() < Duration::from_secs(20) { Watch::GoOn } else { Watch::Cancel }
    };
    let until = attack.until;
    let (sink, went) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| source.run(&dial, &mut from, &mut watch));
        let mut sink = FalseSink::new(ear);
        if until >= Offered {
            sink.hears_offer(false);
        }
        if until >= Streams {
            sink.accepts();
        }
        if until >= Go {
            sink.is_ready();
        }
        if until >= Running {
            sink.control.say(&Control::Running);
        }
        if until < Again {
            (attack.does)(&mut sink);
        }
        if until == Again {
            // The connection breaks.
            drop((sink.bulk.take(), sink.urgent.take()));
            sink.control.finish();
        }
        let went = sending.join().unwrap();
        (sink, went)
    });
    let (sink, went) = if until == Again {
        assert!(matches!(went, Err(Stays::HandedOver(_))), "{went:?}");
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| source.run(&dial, &mut from, &mut watch));
            let mut sink = sink.again();
            (attack.does)(&mut sink);
            let went = sending.join().unwrap();
            (sink, went)
        })
    } else {
        (sink, went)
    };
    let said = in_short(&went.as_ref().unwrap_err().to_string());
    let fate = match went {
        Err(Stays::Here(_)) => {
            mill.halt(from.vcpu.take().expect("it goes on here")).unwrap();
            Fate { lives: Lives::Source, wrong: mill.wrong(here.base(), |_| true), said }
        }
        Err(Stays::HandedOver(_)) => {
            assert!(from.vcpu.is_none(), "it runs at the source, too");
            let words = mill.words();
            let (wrong, went) = std::thread::scope(|scope| {
                let sending = scope.spawn(|| source.run(&dial, &mut from, &mut watch));
                let wrong = sink.again().takes_all(&words);
                (wrong, sending.join().unwrap())
            });
            went.unwrap();
            Fate { lives: Lives::Sink, wrong, said }
        }
        Ok(report) => panic!("{}: {report:?}", attack.name),
    };
    drop(source);
    here.close();
    fate
}
