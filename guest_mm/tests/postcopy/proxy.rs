//! A way between source and sink that is slow, breaks and damages.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What it does to the bytes that pass.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    /// All connections break once so many bytes have passed in all, counted in both directions; 0: never.
    pub(crate) cut_after: AtomicU64,
    /// The byte of this number is changed; 0: none.
    pub(crate) damage_at: AtomicU64,
    /// Once so many bytes have passed, nothing does any more; 0: never.
    pub(crate) mute_after: AtomicU64,
    /// Before each piece that passes, in microseconds.
    pub(crate) delay_us: AtomicU64,
    /// Bytes that pass in a millisecond, in each direction of each stream; 0: as many as come.
    pub(crate) bytes_a_ms: AtomicU64,
    passed: AtomicU64,
    /// How often it broke. A connection lasts until the next time.
    breaks: AtomicU64,
}

/// Lets connections through to a sink.
pub(crate) struct Proxy {
    pub(crate) weather: Arc<Weather>,
    path: PathBuf,
}

impl Proxy {
    /// Between `path`, where it listens, and the sink at `to`.
    pub(crate) fn new(path: &Path, to: &Path) -> Proxy {
        let ear = UnixListener::bind(path).unwrap();
        let weather = Arc::new(Weather::default());
        let (to, seen) = (to.to_owned(), Arc::clone(&weather));
        std::thread::spawn(move || {
            for near in ear.incoming() {
                let Ok(near) = near else { return };
                let Ok(far) = UnixStream::connect(&to) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let seen = Arc::clone(&seen);
                    std::thread::spawn(move || pass(from, to, &seen));
                }
            }
        });
        Proxy { weather, path: path.to_owned() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// It is whole again, and as it was made.
    pub(crate) fn mend(&self) {
        let Weather { cut_after, damage_at, mute_after, delay_us, bytes_a_ms, passed, breaks } =
            &*self.weather;
        // What was swallowed is missing: what follows it would make no sense.
        breaks.fetch_add(1, Relaxed);
        for number in [cut_after, damage_at, mute_after, delay_us, bytes_a_ms, passed] {
            number.store(0, Relaxed);
        }
    }

    /// How many bytes have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.weather.passed.load(Relaxed)
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, weather: &Weather) {
    let _ = from.set_read_timeout(Some(Duration::from_millis(10)));
    let mut bytes = vec![0; 16 << 10];
    let breaks = weather.breaks.load(Relaxed);
    let is_broken = || weather.breaks.load(Relaxed) != breaks;
    loop {
        let count = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(_) => break,
        };
        if is_broken() {
            break;
        }
        if count == 0 {
            continue;
        }
        let before = weather.passed.fetch_add(count as u64, Relaxed);
        let (cut, damage) = (weather.cut_after.load(Relaxed), weather.damage_at.load(Relaxed));
        let mut through = count;
        if cut != 0 && before + count as u64 >= cut {
            through = cut.saturating_sub(before) as usize;
            weather.breaks.fetch_add(1, Relaxed);
        }
        if damage != 0 && (before..before + count as u64).contains(&damage) {
            bytes[(damage - before) as usize] ^= 0x10;
        }
        let mute = weather.mute_after.load(Relaxed);
        if mute != 0 && before >= mute {
            continue;
        }
        let width = weather.bytes_a_ms.load(Relaxed);
        let passing = (count as u64 * 1000).checked_div(width).unwrap_or(0);
        match weather.delay_us.load(Relaxed) + passing {
            0 => {}
            delay => std::thread::sleep(Duration::from_micros(delay)),
        }
        if to.write_all(&bytes[..through]).is_err() || is_broken() {
            break;
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}
