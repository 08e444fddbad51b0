//! Connections that break, at any byte: the guest runs on one side, and loses nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use guest_mm::addr::PageSize;
use guest_mm::postcopy::source::{Source, SourceConfig, Stays};
use guest_mm::postcopy::transport::Address;
use guest_mm::postcopy::wire::{Encoding, Mode};

use crate::mill::Mill;
use crate::proxy::{Proxy, Weather};
use crate::world::{
    From, Host, MIB, Place, To, dialer, going, listening, pages, send, wait_for, with_sink,
};

const MIB_OF_RAM: u64 = 16;

/// What became of a migration over a way that did `harm` to it, and was mended then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest goes on at the source.
    Stayed,
    /// It went at once.
    Went,
    /// It went, and came in full over other connections.
    Recovered(u32),
}

/// Sends a guest over a proxy, as often as it takes.
pub(crate) fn over(config: &SourceConfig, harm: impl Fn(&Weather)) -> (Outcome, u64) {
    let bytes = MIB_OF_RAM * MIB;
    let (here, there) = (Host::new(bytes, PageSize::Size4K), Host::new(bytes, PageSize::Size4K));
    let mill = Mill::new(pages(MIB_OF_RAM));
    mill.fill(here.base(), 0..pages(MIB_OF_RAM / 2));
    // It works where it has bytes from the start, so that a round has as many whatever the time.
    let all = pages(MIB_OF_RAM / 2);
    let mut from = From::new(&here, &mill, all);
    let vcpu = Arc::default();
    let mut to = To { mill: mill.clone(), base: there.base(), pages: all, vcpu };
    let place = Place::new();
    let proxy = Proxy::new(&place.path.with_extension("proxy"), &place.path);
    harm(&proxy.weather);
    let vcpu = to.vcpu.clone();
    let listen = listening(place.address());
    let dial = dialer(Address::Unix(proxy.path().to_owned()));
    let (came, (went, passed)) = with_sink(&there, &mut to, &listen, || {
        wait_for(&place.path);
        let mut source = Source::new(&here.guest, config.clone()).unwrap();
        let mut went = send(&mut source, &dial, &mut from);
        let passed = proxy.passed();
        proxy.mend();
        for _ in 0..200 {
            if !matches!(went, Err(Stays::HandedOver(_))) {
                break;
            }
            // The sink may not have noticed yet.
            std::thread::sleep(Duration::from_millis(50));
            went = send(&mut source, &dial, &mut from);
        }
        (went, passed)
    });
    let outcome = match went {
        Err(Stays::Here(trouble)) => {
            println!("{trouble}");
            assert!(came.is_err(), "it has come, and the source does not know");
            assert!(vcpu.lock().unwrap().is_none(), "it runs on both sides");
            Outcome::Stayed
        }
        Err(Stays::HandedOver(trouble)) => panic!("{trouble}, and {came:?}"),
        Ok(report) => {
            came.unwrap();
            match report.reconnects {
                0 => Outcome::Went,
                times => Outcome::Recovered(times),
            }
        }
    };
    let (at, host) = match outcome {
        Outcome::Stayed => (from.vcpu.take(), &here),
        _ => {
            assert!(from.vcpu.is_none(), "it runs on both sides");
            (vcpu.lock().unwrap().take(), &there)
        }
    };
    mill.halt(at.expect("it runs somewhere")).unwrap();
    mill.check(host.base());
    here.close();
    there.close();
    (outcome, passed)
}

#[test]
fn a_connection_that_breaks_at_any_byte_loses_nothing() {
    let _alone = crate::alone();
    for mode in [Mode::PostCopy, Mode::Hybrid] {
        let config = going(mode);
        // Slow enough for the guest to write to every page in a round: half of what passes passes after it has moved.
        let slowly = |weather: &Weather| {
            let delay = if mode == Mode::Hybrid { 200 } else { 0 };
            weather.delay_us.store(delay, Relaxed);
        };
        let (outcome, passed) = over(&config, slowly);
        assert_eq!(outcome, Outcome::Went);
        let mut seen = [0, 0];
        // All over it, at offsets that mean nothing, and more often where it begins and ends.
        let bytes = somewhere(passed).take(24);
        let ends = [1, 40, 100, 500, 1500].into_iter().chain((1..6).map(|n| passed - n * 40));
        for cut in bytes.chain(ends) {
            let (outcome, _) = over(&config, |weather| {
                slowly(weather);
                weather.cut_after.store(cut, Relaxed);
            });
            match outcome {
                Outcome::Stayed => seen[0] += 1,
                Outcome::Recovered(_) => seen[1] += 1,
                Outcome::Went => {}
            }
        }
        // How much passes before the guest has moved is chance: as late as it takes.
        for part in 1..20 {
            if seen[1] > 2 {
                break;
            }
            let (_, passed) = over(&config, slowly);
            let (outcome, _) = over(&config, |weather| {
                slowly(weather);
                weather.cut_after.store(passed - passed * part / 40, Relaxed);
            });
            seen[1] += usize::from(matches!(outcome, Outcome::Recovered(_)));
        }
        assert!(seen[0] > 2 && seen[1] > 2, "{mode:?}: {seen:?}");
    }
}

/// Bytes of `all`, the same each time.
fn somewhere(all: u64) -> impl Iterator<Item = u64> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        1 + seed % all
    })
}

#[test]
fn a_bit_that_changes_at_any_byte_never_reaches_the_guest() {
    let _alone = crate::alone();
    for (mode, encoding) in [
        (Mode::PostCopy, Encoding::Raw),
        (Mode::PostCopy, Encoding::Zstd),
        (Mode::Hybrid, Encoding::Lz4),
    ] {
        let config = SourceConfig { encoding, patience: Duration::from_secs(2), ..going(mode) };
        let (outcome, passed) = over(&config, |_| {});
        assert_eq!(outcome, Outcome::Went);
        for damaged in somewhere(passed).take(20) {
            // `over` fails for a word that is not what it was.
            let damage = |weather: &Weather| weather.damage_at.store(damaged, Relaxed);
            let (outcome, _) = over(&config, damage);
            println!("{mode:?}, {encoding:?}: byte {damaged} of {passed}: {outcome:?}");
        }
    }
}
