//! A guest that runs goes, and finds all of its memory.

use std::time::{Duration, Instant};

use guest_mm::addr::PageSize;
use guest_mm::postcopy::report::Watch;
use guest_mm::postcopy::sink::{Door, Sink};
use guest_mm::postcopy::source::{Source, SourceConfig};
use guest_mm::postcopy::transport::{Address, Security};
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
    let (came, went) = match (came, went) {
        (Ok(came), Ok(went)) => (came, went),
        (came, went) => panic!("{config:?}: {went:?}, {came:?}"),
    };
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

#[test]
fn a_sink_listens_elsewhere_when_it_is_told() {
    let bytes = 8 * MIB;
    let (here, there) = (Host::new(bytes, PageSize::Size4K), Host::new(bytes, PageSize::Size4K));
    let mill = Mill::new(pages(8));
    mill.fill(here.base(), 0..pages(4));
    let mut from = From::new(&here, &mill, pages(8));
    let vcpu = Default::default();
    let mut to = To { mill: mill.clone(), base: there.base(), pages: pages(8), vcpu };
    let vcpu = to.vcpu.clone();
    let (first, second) = (Place::new(), Place::new());
    let door = Door::new();
    let config = listening(first.address());
    let since = Instant::now();
    let came = std::thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let sink = Sink::new(&there.guest, std::sync::Arc::clone(&there.pager));
            sink.with_door(std::sync::Arc::clone(&door)).run(&config, &mut to, &mut |_| {
                if since.elapsed() < Duration::from_secs(30) { Watch::GoOn } else { Watch::Cancel }
            })
        });
        wait_for(&first.path);
        let listen_at = |address| door.listen_at(address, Security::Plain);
        // What cannot be listened on changes nothing.
        listen_at(Address::Unix("/no/such/folder/sink".into())).unwrap_err();
        assert!(first.path.exists());
        // Where it listens already; and again where somebody has removed its socket.
        assert_eq!(listen_at(first.address()).unwrap(), first.address());
        std::fs::remove_file(&first.path).unwrap();
        assert_eq!(listen_at(first.address()).unwrap(), first.address());
        assert!(first.path.exists());
        assert_eq!(listen_at(second.address()).unwrap(), second.address());
        assert!(second.path.exists() && !first.path.exists());
        let mut source = Source::new(&here.guest, going(Mode::PostCopy)).unwrap();
        send(&mut source, &dialer(second.address()), &mut from).unwrap();
        sink.join().unwrap()
    });
    came.unwrap();
    // It has ended: nobody hears.
    door.listen_at(first.address(), Security::Plain).unwrap_err();
    let vcpu = vcpu.lock().unwrap().take().expect("it runs at the sink");
    mill.halt(vcpu).unwrap();
    mill.check(there.base());
    here.close();
    there.close();
}
