//! One connection with a sink: its streams' threads, and the control stream, which the caller's thread serves.

use std::thread::Scope;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Interval, interval, timeout};

use crate::postcopy::error::Trouble;
use crate::postcopy::machine::Departing;
use crate::postcopy::report::{Phase, Progress, Watch};
use crate::postcopy::stream::{FrameReader, FrameWriter, StreamError};
use crate::postcopy::threads::{Over, runtime, split, start};
use crate::postcopy::transport::{Connection, ReadHalf, WriteHalf, connect};
use crate::postcopy::wire::{Control, Digest, Hello, Lane, Reason, Role, Versions};
use crate::protocol::Protocol;

use super::bulk::{self, Order};
use super::journey::Journey;
use super::{Dialer, Shared, Source, urgent};

/// Between two looks at what there is to tell, and two signs of life.
const TICK: Duration = Duration::from_millis(100);

/// How long a sink is waited for that has been told the last word.
const PARTS: Duration = Duration::from_secs(1);

/// What the streams' threads tell the caller's.
#[derive(Debug)]
pub(super) enum Event {
    /// A stream is there.
    Joined,
    /// A bulk stream has sent all that it was to send, with this digest.
    Drained(Digest),
    /// A stream has failed.
    Failed(Trouble),
}

/// What a stream's thread has of the connection.
pub(super) struct Line<'l> {
    dialer: &'l Dialer,
    events: UnboundedSender<Event>,
    over: &'l Over,
}

impl Line<'_> {
    /// A stream for `role`.
    pub(super) async fn connect<P: Protocol>(
        &self,
        source: &Shared<'_, P>,
        role: Role,
    ) -> Result<Connection, Trouble> {
        let Dialer { address, security, limits } = self.dialer;
        let hello = Hello { versions: Versions::SPOKEN, role, session: source.session };
        let (connection, _version) = connect(address, security, limits, &hello)
            .await
            .map_err(|error| Trouble::Connect(error.to_string()))?;
        Ok(connection)
    }

    /// Tells how a stream's work ended, if not well.
    pub(super) fn tell_of(&self, ended: Result<(), Trouble>) {
        ended.err().into_iter().for_each(|trouble| self.tell(Event::Failed(trouble)));
    }

    pub(super) fn tell(&self, event: Event) {
        // Nobody listens any more: then nobody wants to know.
        let _ = self.events.send(event);
    }
}

/// The control stream's end, and what the other threads tell.
pub(super) struct Leg {
    reader: FrameReader<ReadHalf>,
    writer: FrameWriter<WriteHalf>,
    events: UnboundedReceiver<Event>,
    orders: Vec<UnboundedSender<Order>>,
    patience: Duration,
    /// When the sink last said something.
    heard: Instant,
    ticks: Interval,
    pings: u64,
    /// Those that were answered.
    pongs: u64,
}

/// What comes next of the connection.
#[derive(Debug)]
pub(super) enum Next {
    /// The sink says something, other than that it is there.
    Said(Control),
    /// A thread tells something.
    Told(Event),
    /// It is time to tell how far it is.
    Tick,
}

/// Runs one connection from its beginning to its end.
pub(super) fn run<P: Protocol>(
    source: &mut Source<'_, P>,
    dialer: &Dialer,
    machine: &mut dyn Departing,
    watch: &mut dyn FnMut(&Progress) -> Watch,
) -> Result<(), Trouble> {
    source.note(Phase::Connecting, watch);
    let runtime = runtime()?;
    let (tell, events) = unbounded_channel();
    let over = Over::default();
    let line = Line { dialer, events: tell, over: &over };
    let Source { shared, moved, cancelled, report, began } = source;
    let shared = &*shared;
    std::thread::scope(|scope| {
        let _ends = over.when_dropped();
        runtime.block_on(async {
            let (reader, writer) = split(line.connect(shared, Role::Control).await?)?;
            let patience = shared.config.patience;
            let mut leg = Leg {
                reader: FrameReader::new(reader, Lane::ControlToSource),
                writer: FrameWriter::new(writer, Lane::ControlToSink).with_patience(patience),
                events,
                orders: Vec::new(),
                patience,
                heard: Instant::now(),
                ticks: interval(TICK),
                pings: 0,
                pongs: 0,
            };
            let start = |leg: &mut Leg| start_streams(scope, shared, &line, leg);
            let mut journey = Journey { shared, moved, cancelled, report, began: *began, watch };
            let went = journey.go(&mut leg, machine, start).await;
            if let (Err(trouble), None) = (&went, &*journey.moved) {
                // The sink may not be there to hear it. Once the guest is the sink's, nothing is called off.
                let reason = Reason::new(trouble);
                let _ = timeout(TICK, leg.say(Control::Cancel(reason))).await;
            }
            went
        })
    })
}

/// Starts a thread for each stream but the control stream. They end when the connection does.
fn start_streams<'scope, 'env, P: Protocol>(
    scope: &'scope Scope<'scope, 'env>,
    shared: &'env Shared<'_, P>,
    line: &'env Line<'_>,
    leg: &mut Leg,
) {
    let failed = |trouble| line.tell(Event::Failed(trouble));
    for index in 0..shared.config.bulk_streams {
        let (order, orders) = unbounded_channel();
        leg.orders.push(order);
        let serve = move || line.over.or(bulk::serve(shared, line, index, orders));
        start(scope, Role::Bulk(index), serve, failed);
    }
    let serve = move || line.over.or(urgent::serve(shared, line));
    start(scope, Role::Urgent, serve, failed);
}

impl Leg {
    /// Says `message` to the sink.
    pub(super) async fn say(&mut self, message: Control) -> Result<(), Trouble> {
        match self.writer.write_control(&message).await {
            // A sink that has gone may have said why.
            Err(error @ StreamError::Io(_)) => {
                let word = timeout(TICK, self.last_word()).await.ok().flatten();
                Err(word.unwrap_or(Trouble::stream(Role::Control, error)))
            }
            written => written.map_err(|error| Trouble::stream(Role::Control, error)),
        }
    }

    /// What the sink has said before it ended the stream.
    async fn last_word(&mut self) -> Option<Trouble> {
        loop {
            let said = self.reader.read_control().await.ok()?;
            if let Err(trouble) = goes_on(said) {
                return Some(trouble);
            }
        }
    }

    /// Lets the sink end the connection, which has been told the last word. Who closes a socket in which there is something to read may take
    /// from the other what that has not read yet (a TCP reset), and who writes to a closed one reads no more.
    pub(super) async fn part(&mut self) {
        let _ = timeout(PARTS, self.last_word()).await;
    }

    /// Orders it of every bulk stream.
    pub(super) fn order(&self, order: Order) {
        for orders in &self.orders {
            // A stream that has ended has said why.
            let _ = orders.send(order);
        }
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

    /// What comes next, within the sink's patience for silence.
    pub(super) async fn next(&mut self) -> Result<Next, Trouble> {
        loop {
            tokio::select! {
                said = self.reader.read_control() => {
                    self.heard = Instant::now();
                    let said = said.map_err(|error| self.lost(error))?;
                    match said {
                        Control::Pong(number) if number <= self.pings && number == self.pongs + 1 => {
                            self.pongs = number;
                        }
                        other => return goes_on(other).map(Next::Said),
                    }
                }
                Some(event) = self.events.recv() => match event {
                    Event::Failed(trouble) => return Err(trouble),
                    event => return Ok(Next::Told(event)),
                },
                _ = self.ticks.tick() => {
                    if self.heard.elapsed() > self.patience {
                        return Err(Trouble::Silent(self.patience.as_secs()));
                    }
                    self.pings += 1;
                    self.say(Control::Ping(self.pings)).await?;
                    return Ok(Next::Tick);
                }
            }
        }
    }
}

/// What the sink says, unless that is the end.
fn goes_on(said: Control) -> Result<Control, Trouble> {
    match said {
        Control::Ended => Err(Trouble::Ended),
        Control::Failed(reason) => Err(Trouble::SinkFailed(reason)),
        Control::Refuse(reason) => Err(Trouble::Refused(reason)),
        other => Ok(other),
    }
}
