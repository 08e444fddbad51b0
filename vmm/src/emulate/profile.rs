//! Where a guest's time goes: by exit, and by place.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that count as one place, in bytes.
const PLACE: u64 = 64;
/// Places that are told.
const TOLD: usize = 30;

/// What the vCPUs of a machine have put together.
#[derive(Debug, Default)]
pub struct Profile(Mutex<Spent>);

#[derive(Debug, Default)]
struct Spent {
    exits: BTreeMap<&'static str, u64>,
    /// By ring and by the place's first address.
    places: HashMap<(u8, u64), Duration>,
}

/// One vCPU's part of it, given to the rest when it is dropped.
#[derive(Debug)]
pub struct Profiler {
    all: Arc<Profile>,
    spent: Spent,
    last: Instant,
}

/// A profile as it is told.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct ProfileReport {
    /// KVM's exits, by reason.
    pub exits: BTreeMap<&'static str, u64>,
    /// The places where most time was spent, those first.
    pub places: Vec<PlaceReport>,
}

/// A place of a profile.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PlaceReport {
    /// The privilege level.
    pub ring: u8,
    /// Its first address, a multiple of 64.
    pub address: String,
    /// The time spent there, in microseconds: from one look at the vCPU to the next, for the place of the next.
    pub us: u64,
    /// The same as a part of all the time.
    pub share: f64,
}

impl Profiler {
    /// For one vCPU.
    pub fn new(all: Arc<Profile>) -> Profiler {
        Profiler { all, spent: Spent::default(), last: Instant::now() }
    }

    /// KVM came back for `reason`.
    pub fn exit(&mut self, reason: &'static str) {
        *self.spent.exits.entry(reason).or_default() += 1;
    }

    /// The vCPU is at `rip`: that is where it was since the last look.
    #[inline]
    pub fn look(&mut self, ring: u8, rip: u64) {
        let now = Instant::now();
        *self.spent.places.entry((ring, rip & !(PLACE - 1))).or_default() += now - self.last;
        self.last = now;
    }

    /// What was since the last look counts nowhere: the vCPU slept.
    pub fn skip(&mut self) {
        self.last = Instant::now();
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in &self.spent.exits {
            *all.exits.entry(reason).or_default() += count;
        }
        for (place, time) in self.spent.places.drain() {
            *all.places.entry(place).or_default() += time;
        }
    }
}

impl Profile {
    /// What there is so far.
    pub fn report(&self) -> ProfileReport {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: Duration = all.places.values().sum();
        let mut places: Vec<_> = all.places.iter().collect();
        places.sort_by_key(|(place, time)| (std::cmp::Reverse(**time), **place));
        let told = places.into_iter().take(TOLD).map(|((ring, address), time)| PlaceReport {
            ring: *ring,
            address: format!("{address:#x}"),
            us: time.as_micros() as u64,
            share: time.as_secs_f64() / total.as_secs_f64(),
        });
        ProfileReport { exits: all.exits.clone(), places: told.collect() }
    }
}

impl ProfileReport {
    /// The same for a person.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let exits = self.exits.iter().map(|(reason, count)| format!("{count:>10}  {reason}"));
        let places = self.places.iter().map(|place| {
            let PlaceReport { ring, address, us, share } = place;
            let (ms, percent) = (*us as f64 / 1e3, share * 100.0);
            format!("{ms:>10.1} ms {percent:>5.1} %  ring {ring}  {address}")
        });
        let head = |text: &str| std::iter::once(format!("profile: {text}"));
        let exits: Vec<_> = head("exits of KVM").chain(exits).collect();
        let places: Vec<_> = head("time by place").chain(places).collect();
        exits.into_iter().chain(places)
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    #[test]
    fn time_goes_to_the_place_of_the_next_look() {
        let profile = Arc::new(Profile::default());
        for ring in [0, 3] {
            let mut profiler = Profiler::new(Arc::clone(&profile));
            sleep(Duration::from_millis(5));
            profiler.look(ring, 0x1041);
            profiler.exit("io");
            sleep(Duration::from_millis(5));
            profiler.skip();
            profiler.look(ring, 0x2000);
        }
        let report = profile.report();
        assert_eq!(report.exits, BTreeMap::from([("io", 2)]));
        let first: Vec<_> = report.places[..2]
            .iter()
            .map(|place| (place.address.as_str(), place.us >= 5000))
            .collect();
        assert_eq!(first, [("0x1040", true); 2]);
        assert!(report.places[2..].iter().all(|place| place.us < 4000), "{report:?}");
        assert!((report.places.iter().map(|place| place.share).sum::<f64>() - 1.0).abs() < 1e-6);
        assert_eq!(report.lines().count(), 2 + 1 + 4);
    }
}
