//! A machine that runs is sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use guest_mm::postcopy::report::{Phase, SourceReport, Watch};
use guest_mm::postcopy::source::{Dialer, Source, SourceConfig, Stays};
use guest_mm::protocol::Sound;

use crate::control::{SendState, SendStatus};
use crate::machine::Live;
use crate::vcpu::Ending;

use super::departing::Goes;

/// How often a machine that is held for its sink looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// How long a machine that has gone waits for who asks how it went.
const LINGER: Duration = Duration::from_secs(2);

/// Sends a machine, when it is asked to.
#[derive(Debug)]
pub(in crate::machine) struct Sending {
    live: Live,
    desk: Arc<Desk>,
    orders: Mutex<Option<Sender<Order>>>,
}

/// What who asks and who sends have in common.
#[derive(Debug, Default)]
struct Desk {
    status: Mutex<SendStatus>,
    cancel: AtomicBool,
    /// Somebody has read how it ended.
    read: AtomicBool,
}

/// What a machine that was handed over is to do.
enum Order {
    /// Connect again.
    Again(Dialer),
    /// Be the guest's home again: its sink is gone for good.
    TakeBack,
}

impl Desk {
    fn status(&self) -> MutexGuard<'_, SendStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sending {
    /// Sends `live`, when it is asked to.
    pub(in crate::machine) fn new(live: Live) -> Sending {
        Sending { live, desk: Arc::default(), orders: Mutex::default() }
    }

    /// Begins to send it to the sink that `dialer` names, or goes on with that.
    ///
    /// # Errors
    /// Why not, in a sentence.
    pub(in crate::machine) fn begin(
        &self,
        dialer: Dialer,
        config: SourceConfig,
        recover: bool,
    ) -> Result<(), String> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.desk.status().state;
        match state {
            SendState::Going => return Err("the machine is being sent already".into()),
            SendState::Gone => return Err("the machine has gone already".into()),
            SendState::HandedOver if !recover => {
                let why = "the guest was handed over already: recover that";
                return Err(why.into());
            }
            SendState::Here | SendState::Stayed if recover => {
                return Err("the guest is here: there is nothing to recover".into());
            }
            SendState::HandedOver => {
                let again = orders.as_ref().is_some_and(|orders| {
                    self.desk.status().state = SendState::Going;
                    orders.send(Order::Again(dialer)).is_ok()
                });
                return if again { Ok(()) } else { Err("the machine is about to end".into()) };
            }
            SendState::Here | SendState::Stayed => {}
        }
        self.desk.cancel.store(false, Ordering::Relaxed);
        let to = Some(dialer.address.to_string());
        *self.desk.status() = SendStatus { state: SendState::Going, to, ..SendStatus::default() };
        let (order, ordered) = channel();
        let (live, desk) = (self.live.clone(), Arc::clone(&self.desk));
        let work = move || send(&live, &desk, dialer, config, &ordered);
        if let Err(error) = Builder::new().name("source".into()).spawn(work) {
            self.desk.status().state = SendState::Here;
            return Err(format!("there is no thread to send the machine: {error}"));
        }
        *orders = Some(order);
        Ok(())
    }

    /// Calls it off: the machine stays, unless it was handed over.
    ///
    /// # Errors
    /// There is nothing to call off.
    pub(in crate::machine) fn cancel(&self) -> Result<(), String> {
        if self.desk.status().state != SendState::Going {
            return Err("the machine is not being sent".into());
        }
        self.desk.cancel.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets a machine that was handed over go on here, as it was when it stopped.
    ///
    /// # Errors
    /// It was not handed over, or its sink is connected.
    pub(in crate::machine) fn take_back(&self) -> Result<(), String> {
        if self.desk.status().state != SendState::HandedOver {
            return Err("the machine is not held for a sink".into());
        }
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = orders.as_ref().is_some_and(|orders| orders.send(Order::TakeBack).is_ok());
        if sent { Ok(()) } else { Err("the machine is about to end".into()) }
    }

    /// Whether the guest may run here.
    pub(in crate::machine) fn may_run(&self) -> bool {
        !matches!(self.desk.status().state, SendState::HandedOver | SendState::Gone)
    }

    /// How far it is.
    pub(in crate::machine) fn status(&self) -> SendStatus {
        let status = self.desk.status().clone();
        if status.state == SendState::Gone {
            self.desk.read.store(true, Ordering::Relaxed);
        }
        status
    }
}

/// Sends `live`, over as many connections as it takes.
fn send(
    live: &Live,
    desk: &Desk,
    mut dialer: Dialer,
    config: SourceConfig,
    orders: &Receiver<Order>,
) {
    let mut goes = Goes::new(live);
    let mut source: Source<'_, Sound> = match Source::new(live.guest(), config) {
        Ok(source) => source,
        Err(trouble) => return told(desk, SendState::Stayed, Some(trouble.to_string()), None),
    };
    loop {
        let went = source.run(&dialer, &mut goes, &mut |progress| {
            desk.status().progress = *progress;
            let ends = live.ending().is_some() || desk.cancel.load(Ordering::Relaxed);
            if ends { Watch::Cancel } else { Watch::GoOn }
        });
        match went {
            Ok(report) => {
                told(desk, SendState::Gone, None, Some(report));
                let until = Instant::now() + LINGER;
                while !desk.read.load(Ordering::Relaxed) && Instant::now() < until {
                    std::thread::sleep(LOOK);
                }
                return live.end(Ending::Moved(dialer.address.to_string()));
            }
            Err(Stays::Here(trouble)) => {
                let report = Some(source.report().clone());
                return told(desk, SendState::Stayed, Some(trouble.to_string()), report);
            }
            Err(Stays::HandedOver(trouble)) => {
                told(desk, SendState::HandedOver, Some(trouble.to_string()), None);
            }
        }
        match order(live, orders) {
            Some(Order::Again(to)) => {
                desk.cancel.store(false, Ordering::Relaxed);
                desk.status().to = Some(to.address.to_string());
                dialer = to;
            }
            Some(Order::TakeBack) => {
                // Nobody sends any more when the guest goes on.
                let report = source.report().clone();
                drop(source);
                let claimed = live.claim_disks();
                if claimed.is_ok() {
                    live.resume();
                }
                let why = match claimed {
                    Ok(()) => "it was taken back, as it was when it stopped".to_owned(),
                    Err(why) => format!("it was taken back, and rests: {why}"),
                };
                return told(desk, SendState::Stayed, Some(why), Some(report));
            }
            None => return,
        }
    }
}

/// The next order; none when the machine ends.
fn order(live: &Live, orders: &Receiver<Order>) -> Option<Order> {
    loop {
        match orders.recv_timeout(LOOK) {
            Ok(order) => return Some(order),
            Err(RecvTimeoutError::Timeout) if live.ending().is_none() => {}
            Err(_) => return None,
        }
    }
}

fn told(desk: &Desk, state: SendState, trouble: Option<String>, report: Option<SourceReport>) {
    let mut status = desk.status();
    if state == SendState::HandedOver {
        status.progress.phase = Phase::Broken;
    }
    (status.state, status.trouble, status.report) = (state, trouble, report);
}
