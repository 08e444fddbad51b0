//! Connections with a source, one after the other: who is let in, and the control stream, which the caller's thread serves.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Interval, interval, timeout};

use crate::postcopy::error::Trouble;
use crate::postcopy::machine::Coming;
use crate::postcopy::report::{MOST_TROUBLES, Phase, Progress, Watch};
use crate::postcopy::stream::{FrameReader, FrameWriter, StreamError};
use crate::postcopy::threads::{Over, runtime, split, start};
use crate::postcopy::transport::{
    Connection, Incoming, Limits, Listener, ReadHalf, TransportError, WriteHalf,
};
use crate::postcopy::wire::{Control, Digest, Lane, Reason, Refusal, Role};
use crate::protocol::Protocol;

use super::steps::Steps;
use super::{Door, Sink, SinkConfig, arrivals};

/// Between two looks at how far it is.
const TICK: Duration = Duration::from_millis(20);

/// How long a sink that has all is there for a source that may not know it.
const LINGER: Duration = Duration::from_secs(30);

/// What the streams' threads tell the caller's.
#[derive(Debug)]
pub(super) enum Event {
    /// The bulk stream of this index has come to the fence of this number.
    Fence(u8, u64),
    /// The bulk stream of this index has ended; the digest of what came since its last fence.
    Ended(u8, Digest),
    /// The urgent stream has ended.
    UrgentEnded,
    /// A stream has failed.
    Failed(Trouble),
}

/// Which streams may end now. One that breaks between two frames looks like one that has ended: who ends before his time is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(super) enum MayEnd {
    Nothing,
    /// The guest runs here: the source sends what is left, and ends the bulk streams.
    Bulk,
    /// All is here.
    All,
}

/// The control stream's end, and what else comes.
pub(super) struct Leg<'l> {
    reader: FrameReader<ReadHalf>,
    writer: FrameWriter<WriteHalf>,
    listener: &'l mut Listener,
    limits: Limits,
    door: &'l Door,
    events: UnboundedReceiver<Event>,
    patience: Duration,
    heard: Instant,
    ticks: Interval,
    may_end: MayEnd,
    /// Nothing more is said over the control stream.
    is_over: bool,
    /// The same source, come again: it has given this connection up.
    again: Option<Incoming>,
}

/// What comes next of the connection.
#[derive(Debug)]
pub(super) enum Next {
    /// The source says something, other than that it is there.
    Said(Control),
    /// A thread tells something.
    Told(Event),
    /// A stream of this session is there.
    Joined(Role, Connection),
    /// It is time to tell how far it is.
    Tick,
}

/// Takes connections until all is there.
pub(super) fn run<P: Protocol>(
    sink: &mut Sink<'_, P>,
    config: &SinkConfig,
    machine: &mut dyn Coming,
    watch: &mut dyn FnMut(&Progress) -> Watch,
) -> Result<(), Trouble> {
    let runtime = runtime()?;
    let bound =
        runtime.block_on(Listener::bind(&config.address, config.security.clone(), config.limits));
    let mut listener = bound.map_err(|error| Trouble::Connect(error.to_string()))?;
    let mut again = None;
    loop {
        let first = match again.take() {
            Some(incoming) => incoming,
            None => match runtime.block_on(first(sink, &mut listener, config.limits, watch))? {
                Some(incoming) => incoming,
                None => return Ok(()),
            },
        };
        let over = Over::default();
        let ended = std::thread::scope(|scope| {
            let _ends = over.when_dropped();
            let (tell, events) = unbounded_channel();
            runtime.block_on(async {
                let session = first.hello().session;
                let connection = first.welcome().await.map_err(|error| lost(&error))?;
                let (reader, writer) = split(connection)?;
                let mut leg = Leg {
                    reader: FrameReader::new(reader, Lane::ControlToSink),
                    writer: FrameWriter::new(writer, Lane::ControlToSource)
                        .with_patience(config.patience),
                    listener: &mut listener,
                    limits: config.limits,
                    door: &sink.door,
                    events,
                    patience: config.patience,
                    heard: Instant::now(),
                    ticks: interval(TICK),
                    may_end: MayEnd::Nothing,
                    is_over: false,
                    again: None,
                };
                let shared = &sink.shared;
                let serve = |role: Role, connection: Connection| {
                    let (told, failed) = (tell.clone(), tell.clone());
                    let (over, patience) = (&over, config.patience);
                    let serve = move || {
                        over.or(async {
                            match role {
                                Role::Bulk(index) => {
                                    arrivals::bulk(shared, &told, index, connection, patience).await
                                }
                                _ => arrivals::urgent(shared, &told, connection, patience).await,
                            }
                        })
                    };
                    // Nobody listens to a connection that is given up.
                    let failed = move |trouble| drop(failed.send(Event::Failed(trouble)));
                    start(scope, role, serve, failed);
                };
                let mut steps = Steps {
                    shared,
                    session,
                    known: &mut sink.session,
                    report: &mut sink.report,
                    started: &mut sink.started,
                    began: sink.began,
                    watch,
                };
                let mut went = steps.take(&mut leg, machine, serve).await;
                if let Err(trouble) = &went
                    && !trouble.is_connection_lost()
                {
                    let word = match trouble {
                        Trouble::Ended => Control::Ended,
                        other => Control::Failed(Reason::new(other)),
                    };
                    let _ = timeout(TICK, leg.say(word)).await;
                }
                // Of the streams' threads alone.
                drop(tell);
                let is_lost = went.as_ref().is_err_and(Trouble::is_connection_lost);
                if is_lost && steps.started.is_some() {
                    went = steps.hear_out(&mut leg).await.and(went);
                }
                again = leg.again.take();
                went
            })
        });
        sink.shared.pager.cut();
        match ended {
            // Whatever the source did, it has the pages that are missing.
            Err(trouble) if sink.started.is_some() && !trouble.is_of_this_side() => {
                sink.report.reconnects += 1;
                if sink.report.troubles.len() < MOST_TROUBLES {
                    sink.report.troubles.push(trouble.to_string());
                }
                sink.note(Phase::Broken, watch);
            }
            ended => return ended,
        }
    }
}

/// Waits for a source's control stream; none if nobody needs to come any more.
async fn first<P: Protocol>(
    sink: &mut Sink<'_, P>,
    listener: &mut Listener,
    limits: Limits,
    watch: &mut dyn FnMut(&Progress) -> Watch,
) -> Result<Option<Incoming>, Trouble> {
    let phase = if sink.started.is_some() { Phase::Broken } else { Phase::Connecting };
    let mut ticks = interval(TICK);
    // All is here, and only the source may not know.
    let done = sink.started.is_some() && sink.shared.guest.missing().is_empty();
    let until = done.then(|| Instant::now() + LINGER);
    loop {
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(None);
        }
        tokio::select! {
            incoming = listener.accept() => {
                // Of one that did not get so far nothing is left; the listener goes on.
                let Ok(incoming) = incoming else { continue };
                let known = sink.session.is_none_or(|it| it == incoming.hello().session);
                if known && incoming.hello().role == Role::Control {
                    return Ok(Some(incoming));
                }
                refuse(incoming, Refusal::Session, "the sink waits for another session's source");
            },
            _ = ticks.tick() => {
                sink.door.attend(listener, limits).await;
                match sink.note(phase, watch) {
                    Watch::GoOn => {}
                    Watch::Cancel => return Err(Trouble::Cancelled),
                    Watch::Ended => return Err(Trouble::Ended),
                }
            }
        }
    }
}

/// Sends a stream away, without waiting for it.
fn refuse(incoming: Incoming, why: Refusal, reason: &'static str) {
    tokio::spawn(incoming.refuse(why, Reason::new(reason)));
}

fn lost(error: &TransportError) -> Trouble {
    Trouble::Connect(error.to_string())
}

fn closed(stream: Role) -> Trouble {
    Trouble::stream(stream, StreamError::Closed)
}

impl Leg<'_> {
    /// These streams may end from now on.
    pub(super) fn let_end(&mut self, streams: MayEnd) {
        self.may_end = streams;
    }

    /// How long the source may be silent.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Says `message` to the source.
    pub(super) async fn say(&mut self, message: Control) -> Result<(), Trouble> {
        let failed = |error| Trouble::stream(Role::Control, error);
        self.writer.write_control(&message).await.map_err(failed)
    }

    /// Why the control stream failed: because of another, if that has said so.
    fn lost(&mut self, error: StreamError) -> Trouble {
        while let Ok(event) = self.events.try_recv() {
            if let Event::Failed(trouble) = event {
                return trouble;
            }
        }
        Trouble::stream(Role::Control, error)
    }

    /// Waits for a moment of a connection that is lost `since` then; whether more may come of it. No more does of a source that lives,
    /// which comes again, nor when all streams have ended.
    pub(super) async fn outlasts(
        &mut self,
        session: crate::postcopy::wire::Session,
        since: Instant,
    ) -> Result<bool, Trouble> {
        while self.again.is_none() {
            tokio::select! {
                said = self.reader.read_control(), if !self.is_over => {
                    // What a source said before it died is there at once.
                    if said.is_ok() && since.elapsed() > 2 * TICK {
                        return Ok(false);
                    }
                    self.is_over = said.is_err();
                }
                event = self.events.recv() => match event {
                    None => return Ok(false),
                    Some(Event::Failed(trouble)) if trouble.is_of_this_side() => return Err(trouble),
                    Some(_) => {}
                },
                incoming = self.listener.accept() => {
                    let Ok(incoming) = incoming else { continue };
                    let hello = *incoming.hello();
                    match hello.role {
                        _ if hello.session != session => {
                            refuse(incoming, Refusal::Busy, "the sink takes another source's guest");
                        }
                        Role::Control => self.again = Some(incoming),
                        _ => refuse(incoming, Refusal::Session, "the sink has lost this connection"),
                    }
                }
                _ = self.ticks.tick() => {
                    self.door.attend(self.listener, self.limits).await;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// What comes next, within the patience for a source's silence. Streams of `wanted` are let in, others sent away.
    pub(super) async fn next(
        &mut self,
        session: crate::postcopy::wire::Session,
        wanted: impl Fn(Role) -> bool,
    ) -> Result<Next, Trouble> {
        loop {
            tokio::select! {
                said = self.reader.read_control() => {
                    self.heard = Instant::now();
                    let said = said.map_err(|error| self.lost(error))?;
                    match said {
                        Control::Ping(number) => {
                            match self.writer.write_control(&Control::Pong(number)).await {
                                // Who has gone may have said more before: that comes, and then the end.
                                Ok(()) | Err(StreamError::Io(_)) => {}
                                Err(error) => return Err(Trouble::stream(Role::Control, error)),
                            }
                        }
                        Control::Cancel(reason) => return Err(Trouble::SourceCancelled(reason)),
                        other => return Ok(Next::Said(other)),
                    }
                }
                Some(event) = self.events.recv() => match event {
                    Event::Failed(trouble) => return Err(trouble),
                    Event::Ended(index, _) if self.may_end < MayEnd::Bulk => {
                        return Err(closed(Role::Bulk(index)));
                    }
                    Event::UrgentEnded if self.may_end < MayEnd::All => {
                        return Err(closed(Role::Urgent));
                    }
                    event => return Ok(Next::Told(event)),
                },
                incoming = self.listener.accept() => {
                    let Ok(incoming) = incoming else { continue };
                    let hello = *incoming.hello();
                    match hello.role {
                        _ if hello.session != session => {
                            refuse(incoming, Refusal::Busy, "the sink takes another source's guest");
                        }
                        Role::Control => {
                            self.again = Some(incoming);
                            return Err(closed(Role::Control));
                        }
                        role if wanted(role) => {
                            let connection = incoming.welcome().await.map_err(|error| lost(&error))?;
                            return Ok(Next::Joined(role, connection));
                        }
                        _ => refuse(incoming, Refusal::Session, "the sink has this stream already"),
                    }
                }
                _ = self.ticks.tick() => {
                    if self.heard.elapsed() > self.patience {
                        return Err(Trouble::Silent(self.patience.as_secs()));
                    }
                    self.door.attend(self.listener, self.limits).await;
                    return Ok(Next::Tick);
                }
            }
        }
    }
}
