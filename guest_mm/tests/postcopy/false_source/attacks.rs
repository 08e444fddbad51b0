//! What false sources do.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use guest_mm::addr::Gfn;
use guest_mm::postcopy::wire::{
    Control, Digest, Encoding, Hello, Kind, Part, Purpose, Reason, Role, STATE_PART, Versions,
    Welcome,
};

use super::{Attack, FalseSource, OTHER, RAM, SESSION, Then, USED, Until, offer, run};
use crate::hand::{Hand, frame, header, hello, pages_from};
use crate::world::pages;

const fn attack(name: &'static str, until: Until, does: fn(&mut FalseSource)) -> Attack {
    Attack { name, until, does, then: Then::Closed }
}

const fn borne(name: &'static str, until: Until, does: fn(&mut FalseSource)) -> Attack {
    Attack { name, until, does, then: Then::Borne }
}

const fn gone(name: &'static str, until: Until, does: fn(&mut FalseSource)) -> Attack {
    Attack { name, until, does, then: Then::Gone }
}

use Until::{Greeting, Running, Streams};

pub(crate) const ATTACKS: &[Attack] = &[
    borne("connects twenty times and does not say hello", Greeting, |source| {
        source.silent.extend((0..20).map(|_| UnixStream::connect(&source.path).unwrap()));
    }),
    borne("speaks a version that nobody speaks", Greeting, |source| {
        let versions = Versions::new(9, 9).unwrap();
        let (_, answer) =
            Hand::dial(&source.path, &Hello { versions, ..hello(Role::Control, OTHER) });
        assert!(matches!(answer, Welcome::Refused(..)), "{answer:?}");
    }),
    borne("comes from another migration", Greeting, |source| {
        for role in [Role::Control, Role::Urgent, Role::Bulk(0)] {
            let (_, answer) = Hand::dial(&source.path, &hello(role, OTHER));
            assert!(matches!(answer, Welcome::Refused(..)), "{answer:?}");
        }
    }),
    attack("offers nothing", Greeting, |_| {}),
    attack("offers a longer frame than there is", Greeting, |source| {
        source.control.send(&header(Kind::Offer, u32::MAX));
    }),
    attack("offers a longer description than it sends", Greeting, |source| {
        let mut bytes = Vec::new();
        offer(false).encode(&mut bytes).unwrap();
        bytes[16 + 8..16 + 12].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        let wrong = frame(Kind::Offer as u8, 0, &bytes[16..]);
        source.control.send(&wrong);
    }),
    attack("offers half of it", Greeting, |source| {
        source.control.send(&header(Kind::Offer, 100));
        source.control.send(&[0; 10]);
    }),
    attack("says that the guest is to run at once", Greeting, |source| {
        source.control.say(&Control::Go);
    }),
    attack("sends pages that are no RAM", Streams, |source| {
        let (bytes, _) = pages_from(pages(RAM), &[1], Purpose::Bulk);
        source.bulk().send(&bytes);
    }),
    attack("sends a page of another checksum", Streams, |source| {
        let (mut bytes, _) = pages_from(5, &[1], Purpose::Bulk);
        *bytes.last_mut().unwrap() ^= 1;
        source.bulk().send(&bytes);
    }),
    attack("sends a state without end", Streams, |source| {
        let part = Control::State { bytes: vec![1; STATE_PART], part: Part::More };
        for _ in 0..66 {
            source.control.say(&part);
        }
    }),
    attack("switches over again and again", Streams, |source| {
        source.state();
        for _ in 0..1000 {
            source.switch_over(vec![run(0, 1)]);
        }
    }),
    attack("misses what is no RAM", Streams, |source| {
        source.state();
        source.switch_over(vec![run(0, pages(RAM) + 1)]);
    }),
    attack("sends a fence that goes back", Streams, |source| {
        source.fence(3);
        source.fence(2);
    }),
    attack("ends its bulk stream before the guest runs", Streams, |source| {
        source.bulk().finish();
        source.pings_on();
    }),
    attack("says nothing", Streams, |_| {}),
    borne("sends a page twice", Running, |source| {
        let one = source.block(0);
        source.bulk().send(&one);
    }),
    borne("sends a page twice, the second with other bytes", Running, |source| {
        let one = source.block(0);
        source.bulk().send(&one);
        // The first is there once the sink has asked for the next: it takes a stream's frames in order.
        let (other, _) = pages_from(0, &[666; 512], Purpose::Bulk);
        source.bulk().send(&other);
    }),
    borne("opens a stream twice", Running, |source| {
        let (_, answer) = Hand::dial(&source.path, &hello(Role::Bulk(0), SESSION));
        assert!(matches!(answer, Welcome::Refused(..)), "{answer:?}");
    }),
    attack("sends pages that are no RAM", Running, |source| {
        let (bytes, _) = pages_from(pages(RAM), &[1; 512], Purpose::Bulk);
        source.bulk().send(&bytes);
    }),
    attack("answers with pages that are no RAM", Running, |source| {
        let (bytes, _) = pages_from(1 << 30, &[1], Purpose::Requested);
        source.urgent().send(&bytes);
    }),
    attack("sends a page of another checksum", Running, |source| {
        let mut bytes = source.block(512);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        source.bulk().send(&bytes);
    }),
    attack("answers with a page of another checksum", Running, |source| {
        let (mut bytes, _) = pages_from(0, &[1], Purpose::Requested);
        *bytes.last_mut().unwrap() ^= 1;
        source.urgent().send(&bytes);
    }),
    attack("sends what does not unpack", Running, |source| {
        let (_, mut header) = pages_from(512, &[1; 4], Purpose::Bulk);
        header.set_payload(Encoding::Zstd, 100).unwrap();
        let mut bytes = Vec::new();
        header.encode(&mut bytes).unwrap();
        bytes.extend([0xee; 100]);
        source.bulk().send(&bytes);
    }),
    attack("sends fewer bytes than its pages have", Running, |source| {
        let mut body = Vec::new();
        body.extend(0_u64.to_le_bytes());
        body.extend(4095_u32.to_le_bytes());
        body.extend([1, 0, 0, 0]);
        body.extend([0; 16]);
        source.bulk().send(&frame(Kind::Pages as u8, 0, &body));
    }),
    attack("sends a longer frame than there is", Running, |source| {
        source.bulk().send(&header(Kind::Pages, 4177));
    }),
    attack("sends a kind of frame that there is not", Running, |source| {
        source.bulk().send(&frame(0x7f, 0, &[]));
    }),
    attack("sends a request", Running, |source| {
        source.bulk().send(&frame(Kind::Request as u8, 0, &[0; 16]));
    }),
    attack("sends half a frame, and signs of life", Running, |source| {
        let half = source.block(0)[..2000].to_vec();
        source.bulk().send(&half);
        source.pings_on();
    }),
    attack("sends half of a page, and signs of life", Running, |source| {
        let half = source.block(0)[..100_000].to_vec();
        source.bulk().send(&half);
        source.pings_on();
    }),
    attack("answers with half a frame, and signs of life", Running, |source| {
        source.urgent().send(&header(Kind::Pages, 32)[..9]);
        source.pings_on();
    }),
    attack("sends pages without end", Running, |source| {
        let block = source.block(0);
        source.endless(&block);
    }),
    attack("sends answers without end", Running, |source| {
        let (bytes, _) = pages_from(0, &[source.words[0]], Purpose::Requested);
        let many = bytes.repeat(16);
        for _ in 0..100_000 {
            if !source.urgent().send(&many) {
                return;
            }
        }
        panic!("the sink bears it for ever");
    }),
    attack("sends fences without end", Running, |source| {
        let fence = frame(Kind::Fence as u8, 0, &2_u64.to_le_bytes());
        source.endless(&fence);
    }),
    attack("has another digest", Running, |source| {
        let digest = source.sends(&[run(0, pages(USED))]).unwrap();
        let digest = Digest::from_parts(digest.sum() ^ 1, digest.pages());
        source.control.say(&Control::AllSent(digest));
    }),
    attack("has sent fewer pages than it says", Running, |source| {
        let mut digest = source.sends(&[run(0, pages(USED))]).unwrap();
        digest.add(Gfn::new(0), 1);
        source.control.say(&Control::AllSent(digest));
    }),
    attack("ends its urgent stream, and shows signs of life", Running, |source| {
        source.urgent().finish();
        source.pings_on();
    }),
    attack("says that all is sent before it is, and shows signs of life", Running, |source| {
        let digest = source.sends(&[run(0, 512)]).unwrap();
        source.control.say(&Control::AllSent(digest));
        source.pings_on();
    }),
    attack("says again that the guest is to run", Running, |source| {
        source.control.say(&Control::Go);
    }),
    attack("says that it has freed what is missing", Running, |source| {
        source.control.say(&Control::Freed);
    }),
    attack("gives up", Running, |source| {
        source.control.say(&Control::Cancel(Reason::new("no more")));
    }),
    attack("says nothing", Running, |_| {}),
    attack("ends its control stream, and sends on for ever", Running, |source| {
        source.control.finish();
        for page in (0..pages(USED)).cycle().take(1000) {
            let (bytes, _) = pages_from(page, &[source.words[page as usize]], Purpose::Bulk);
            if !source.bulk().send(&bytes) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the sink bears it for ever");
    }),
    gone("dies, and what it sent is under way", Running, |source| {
        source.control.finish();
        for first in (0..pages(USED)).step_by(512) {
            // Longer than between two looks at the connection.
            std::thread::sleep(Duration::from_millis(50));
            let block = source.block(first);
            source.bulk().send(&block);
        }
        source.bulk().finish();
    }),
];
