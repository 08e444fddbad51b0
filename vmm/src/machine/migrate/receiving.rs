//! A machine that begins empty, and runs once its guest has come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use guest_mm::postcopy::report::{Progress, SinkReport, Watch};
use guest_mm::postcopy::sink::{Comes as NotCome, Pager, Sink, SinkConfig};
use guest_mm::protocol::Sound;

use crate::config::{Bytes, MachineConfig, Origin};
use crate::control::CollapseOutcome;
use crate::machine::{Filling, Live, Machine, MachineError, Outcome, listen};

use super::arriving::Arriving;
use super::coming::Comes;

/// How often who waits looks for a signal.
const LOOK: Duration = Duration::from_millis(50);

/// What the pool has beyond what the guest can use, where nobody has said how large it is. A page that is asked for lies there if its
/// frame is just being read to; the second block is where such a block is gathered again.
const SPARE: Bytes = Bytes::mib(4);

/// Why no guest has come.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// There is no machine for it.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The channel.
    #[error(transparent)]
    Channel(#[from] NotCome),
    /// The operator does not wait any longer: the signal's number.
    #[error("ended by signal {0} before a guest has come")]
    Signal(i32),
}

/// A guest that came, ran and ended.
#[derive(Debug)]
pub struct Received {
    /// The run.
    pub outcome: Outcome,
    /// How it came; with what went wrong, if part of it never did.
    pub came: Result<Came, String>,
}

/// How a guest came.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Came {
    /// Over the channel.
    #[serde(flatten)]
    pub channel: SinkReport,
    /// What was made of its small pages when the last one had come.
    pub collapse: CollapseOutcome,
    /// From the last page until that was done, in milliseconds.
    pub collapse_ms: f64,
}

/// Builds the machine that `config` describes, lets a guest come into it as `sink` says, and runs that to its end. `watch` hears
/// of the progress some times a second, on another thread.
///
/// # Errors
/// [`ReceiveError`]: nothing ran.
pub fn receive(
    config: &MachineConfig,
    sink: &SinkConfig,
    started: Instant,
    mut watch: impl FnMut(&Progress) + Send + 'static,
) -> Result<Received, ReceiveError> {
    let config = &roomy(config);
    let signals = listen()?;
    let pager = Pager::new();
    let arriving = Arc::new(Arriving::new(sink));
    let filling = Filling::of_guest(&arriving, pager.on_missing());
    let machine = Machine::vacant(config, filling, started)?;
    let live = machine.live();
    let machine = Arc::new(Mutex::new(Some(machine)));
    let (start, starts) = channel();
    let unwanted = Arc::new(AtomicBool::new(false));
    let thread = {
        let (sink, unwanted) = (sink.clone(), Arc::clone(&unwanted));
        let machine = Arc::clone(&machine);
        let body = move || {
            // `start` goes with the thread, so that who waits for it hears of the end.
            let mut comes = Comes { live: live.clone(), machine, start };
            let watch = |progress: &Progress| {
                arriving.note(progress);
                watch(progress);
            };
            let channel = Sink::new(live.guest(), pager).with_door(arriving.door());
            take(&live, channel, &sink, &unwanted, &mut comes, watch)
        };
        Builder::new().name("sink".into()).spawn(body)
    };
    let system = |source| MachineError::System { what: "starting a thread for the guest", source };
    let thread = thread.map_err(system)?;
    let join = || thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    loop {
        match starts.recv_timeout(LOOK) {
            Ok(()) => break,
            Err(RecvTimeoutError::Timeout) => {
                if let Some(number) = signals.next_end() {
                    unwanted.store(true, Ordering::Relaxed);
                    let _ = join();
                    return Err(ReceiveError::Signal(number));
                }
            }
            Err(RecvTimeoutError::Disconnected) => return Err(join().unwrap_err().into()),
        }
    }
    let machine = machine.lock().unwrap_or_else(PoisonError::into_inner).take();
    let machine = machine.expect("it is started once");
    let ran = machine.run_to_end(Some(&signals));
    // The rest of the guest is of no use without it; whoever still holds its memory lets go.
    unwanted.store(true, Ordering::Relaxed);
    let came = join().map_err(|error| error.to_string());
    Ok(Received { outcome: Outcome::new(ran?), came })
}

/// The same machine, with room in its pool for pages that come twice.
fn roomy(config: &MachineConfig) -> MachineConfig {
    let mut roomy = config.clone();
    let pool = &mut roomy.memory.pool;
    if pool.origin == Origin::Default {
        pool.value = Bytes::new(pool.value.get().saturating_add(SPARE.get()));
    }
    roomy
}

/// Takes the guest, until it is there or nobody wants it any more.
fn take(
    live: &Live,
    mut sink: Sink<'_, Sound>,
    config: &SinkConfig,
    unwanted: &AtomicBool,
    comes: &mut Comes,
    mut watch: impl FnMut(&Progress),
) -> Result<Came, NotCome> {
    let channel = sink.run(config, comes, &mut |progress| {
        watch(progress);
        if live.ending().is_some() {
            Watch::Ended
        } else if unwanted.load(Ordering::Relaxed) {
            Watch::Cancel
        } else {
            Watch::GoOn
        }
    })?;
    // What came page by page is translated page by page, until its blocks are one page again.
    let all_there = Instant::now();
    let collapse = live.ram().collapse_all(|| live.ending().is_some());
    Ok(Came { channel, collapse, collapse_ms: all_there.elapsed().as_secs_f64() * 1e3 })
}
