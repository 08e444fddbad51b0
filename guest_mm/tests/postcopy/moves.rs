//! A guest that runs goes, and finds all of its memory.

use std::time::{Duration, Instant};

use guest_mm::addr::PageSize;
use guest_mm::postcopy::source::{Source, SourceConfig};
use guest_mm::postcopy::transport::Address;
use guest_mm::postcopy::wire::{Encoding, Mode};

use crate::mill::Mill;
use crate::world::{
    From, Host, MIB, Place, To, dialer, going, listening, pages, send, wait_for, with_sink,
};

/// A guest of 48 MiB, a third of it untouched, goes as `config` says, and runs there for a while.
fn moves(config: &SourceConfig, address: Option<&Address>, size: PageSize) {
    let bytes = 48 * MIB;
    let (here, there) = (Host::new(bytes, size), Host::new(bytes, size));
    let mill = Mill::new(pages(48));
    mill.fill(here.base(), 0..pages(32));
    let mut from = From::new(&here, &mill, pages(40));
    let (vcpu, base) = (Default::default(), there.base());
    let mut to = To { mill: mill.clone(), base, pages: pages(40), vcpu };
    let place = Place::new();
    let listen = listening(address.cloned().unwrap_or(place.address()));
    let dial = dialer(address.cloned().unwrap_or(place.address()));
    let vcpu = to.vcpu.clone();
    let (came, went) = with_sink(&there, &mut to, &listen, || {
        match address {
            None => wait_for(&place.path),
            Some(_) => std::thread::sleep(Duration::from_millis(300)),
        }
        let mut source = Source::new(&here.guest, config.clone()).unwrap();
        send(&mut source, &dial, &mut from)
    });
    let (came, went) = (came.unwrap(), went.unwrap());
    assert!(from.vcpu.is_none(), "it runs at the source, too");
    // It goes on for a while.
    let (turns, since) = (mill.turns(), Instant::now());
    while mill.turns() < turns + 1000 && since.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let vcpu = vcpu.lock().unwrap().take().expect("it runs at the sink");
    mill.halt(vcpu).unwrap();
    mill.check(there.base());
    assert_eq!((came.progress.left, went.progress.left), (0, 0));
    assert!(there.guest.missing().is_empty());
    let late = came.progress.requests > 0;
    assert!(!late || config.mode != Mode::PreCopy, "pages were asked for after a pre-copy");
    here.close();
    there.close();
}

#[test]
fn a_guest_goes_by_post_copy() {
    moves(&going(Mode::PostCopy), None, PageSize::Size4K);
}

#[test]
fn a_guest_of_blocks_goes_by_post_copy() {
    moves(&going(Mode::PostCopy), None, PageSize::Size2M);
}

#[test]
fn a_guest_goes_by_pre_copy() {
    let patient = Duration::from_secs(10);
    moves(&SourceConfig { downtime: patient, ..going(Mode::PreCopy) }, None, PageSize::Size4K);
}

#[test]
fn a_guest_goes_by_both() {
    moves(&SourceConfig { rounds: 2, ..going(Mode::Hybrid) }, None, PageSize::Size4K);
    moves(&going(Mode::Hybrid), None, PageSize::Size2M);
}

#[test]
fn pages_go_packed_and_over_many_streams() {
    for encoding in [Encoding::Lz4, Encoding::Zstd] {
        for mode in [Mode::PostCopy, Mode::Hybrid] {
            let config = SourceConfig { encoding, bulk_streams: 3, ..going(mode) };
            moves(&config, None, PageSize::Size4K);
        }
    }
}

#[test]
fn a_guest_goes_over_tcp() {
    // A port of the loopback that nobody has.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: free };
    moves(&going(Mode::PostCopy), Some(&address), PageSize::Size4K);
}

#[test]
fn a_rate_is_kept() {
    let rate = std::num::NonZeroU64::new(100 << 20);
    let config = SourceConfig { rate, downtime: Duration::from_secs(10), ..going(Mode::PreCopy) };
    let since = Instant::now();
    moves(&config, None, PageSize::Size4K);
    // 32 MiB that are not zeroes, in one round at least.
    assert!(since.elapsed() > Duration::from_millis(300));
}
