//! Two services, a guest on one, and what a migration asks of the two machines.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guest_mm::addr::{GfnRange, Gpa, Hva, PageSize};
use guest_mm::pool::BackingChoice;
use guest_mm::postcopy::machine::{Coming, Departing, Failure};
use guest_mm::postcopy::report::{SinkReport, Watch};
use guest_mm::postcopy::sink::{Comes, Pager, Sink, SinkConfig};
use guest_mm::postcopy::source::{Dialer, Source, SourceConfig, Stays};
use guest_mm::postcopy::transport::{Address, Limits, Security};
use guest_mm::postcopy::wire::Mode;
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm};

use crate::mill::{Mill, PAGE, Vcpu};

pub(crate) const MIB: u64 = 1 << 20;

/// What the machines say of themselves.
pub(crate) const DESCRIPTION: &[u8] = b"a mill";
pub(crate) const STATE: &[u8] = b"where it was";

/// A guest's memory on a service of its own.
pub(crate) struct Host {
    pub(crate) guest: Guest,
    pub(crate) pager: Arc<Pager>,
    mm: GuestMm,
}

impl Host {
    pub(crate) fn new(bytes: u64, pages: PageSize) -> Host {
        let mm = GuestMm::new(BackingChoice::Auto, bytes + 8 * MIB, pages).unwrap();
        let pager = Pager::new();
        let guest = mm
            .add_guest(GuestConfig {
                ram: vec![GfnRange::from_bytes(Gpa::new(0), bytes).unwrap()],
                over: Vec::new(),
                policy: FaultPolicy { pages },
                fault_threads: 2,
                on_missing: Some(pager.on_missing()),
                // Who waits for what never comes reads zeroes, and says so.
                on_stop: Box::new(|_| ()),
            })
            .unwrap();
        Host { guest, pager, mm }
    }

    pub(crate) fn base(&self) -> Hva {
        self.guest.windows().next().unwrap().1
    }

    pub(crate) fn close(self) {
        self.guest.close().unwrap();
        self.mm.audit().unwrap();
    }
}

/// The machine at the source.
pub(crate) struct From {
    pub(crate) mill: Arc<Mill>,
    pub(crate) base: Hva,
    pub(crate) pages: u64,
    pub(crate) vcpu: Option<Vcpu>,
    pub(crate) description: &'static [u8],
}

impl From {
    pub(crate) fn new(host: &Host, mill: &Arc<Mill>, pages: u64) -> From {
        let vcpu = Some(mill.run(host.base(), pages));
        let base = host.base();
        From { mill: Arc::clone(mill), base, pages, vcpu, description: DESCRIPTION }
    }
}

// SAFETY: its writers have ended when `stop` returns, and begin anew in `go_on`.
unsafe impl Departing for From {
    fn description(&self) -> Vec<u8> {
        self.description.to_vec()
    }

    fn start_tracking(&mut self) -> Result<(), Failure> {
        self.mill.take_dirty(&mut |_| {});
        Ok(())
    }

    fn take_dirty(&mut self, see: &mut dyn FnMut(GfnRange)) -> Result<(), Failure> {
        self.mill.take_dirty(see);
        Ok(())
    }

    fn stop_tracking(&mut self) {}

    fn stop(&mut self) -> Result<Vec<u8>, Failure> {
        self.mill.halt(self.vcpu.take().expect("it runs"))?;
        self.mill.keep();
        Ok(STATE.to_vec())
    }

    fn go_on(&mut self) {
        self.vcpu = Some(self.mill.run(self.base, self.pages));
    }
}

/// The machine at the sink.
pub(crate) struct To {
    pub(crate) mill: Arc<Mill>,
    pub(crate) base: Hva,
    pub(crate) pages: u64,
    pub(crate) vcpu: Arc<Mutex<Option<Vcpu>>>,
}

impl Coming for To {
    fn accept(&mut self, description: &[u8]) -> Result<(), Failure> {
        if description == DESCRIPTION { Ok(()) } else { Err("it is no mill".into()) }
    }

    fn prepare(&mut self, state: Vec<u8>) -> Result<(), Failure> {
        if state == STATE { Ok(()) } else { Err("it is another's state".into()) }
    }

    fn start(&mut self) -> Result<(), Failure> {
        *self.vcpu.lock().unwrap() = Some(self.mill.run(self.base, self.pages));
        Ok(())
    }
}

/// Where a sink listens, in a directory of its own.
pub(crate) struct Place {
    _dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sink");
        Place { _dir: dir, path }
    }

    pub(crate) fn address(&self) -> Address {
        Address::Unix(self.path.clone())
    }
}

pub(crate) fn dialer(address: Address) -> Dialer {
    Dialer { address, security: Security::Plain, limits: Limits::default() }
}

pub(crate) fn listening(address: Address) -> SinkConfig {
    let patience = Duration::from_secs(5);
    SinkConfig { address, security: Security::Plain, limits: Limits::default(), patience }
}

pub(crate) fn going(mode: Mode) -> SourceConfig {
    SourceConfig { mode, patience: Duration::from_secs(5), ..SourceConfig::default() }
}

/// Lets the other side's socket appear.
pub(crate) fn wait_for(path: &std::path::Path) {
    for _ in 0..1000 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{} does not appear", path.display());
}

/// Runs a sink beside `work`, and both to their ends.
pub(crate) fn with_sink<R>(
    host: &Host,
    machine: &mut To,
    config: &SinkConfig,
    work: impl FnOnce() -> R,
) -> (Result<SinkReport, Comes>, R) {
    let worked = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sink = scope.spawn(|| {
            let mut sink = Sink::new(&host.guest, Arc::clone(&host.pager));
            let mut left = 3000_u64;
            sink.run(config, machine, &mut |_| {
                // A test that hangs fails instead; and when nobody comes any more, nobody is waited for.
                left = left.saturating_sub(if worked.load(Ordering::Relaxed) { 60 } else { 1 });
                if left == 0 { Watch::Cancel } else { Watch::GoOn }
            })
        });
        let done = work();
        worked.store(true, Ordering::Relaxed);
        (sink.join().unwrap(), done)
    })
}

/// Sends it, once.
pub(crate) fn send(
    source: &mut Source<'_, guest_mm::protocol::Sound>,
    dialer: &Dialer,
    machine: &mut From,
) -> Result<guest_mm::postcopy::report::SourceReport, Stays> {
    source.run(dialer, machine, &mut |_| Watch::GoOn)
}

/// Pages of so many MiB.
pub(crate) const fn pages(mib: u64) -> u64 {
    mib * MIB / PAGE
}
