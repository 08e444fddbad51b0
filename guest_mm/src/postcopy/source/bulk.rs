//! A bulk stream's thread.

use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::postcopy::error::Trouble;
use crate::postcopy::freight::Freight;
use crate::postcopy::stream::{FrameWriter, StreamError};
use crate::postcopy::threads::split;
use crate::postcopy::transport::WriteHalf;
use crate::postcopy::wire::{Digest, Lane, Purpose, Role};
use crate::protocol::Protocol;
use crate::schedule::Courtesy;

use super::Shared;
use super::leg::{Event, Line};

/// What a bulk stream is to do next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// Send what the plan has for it, to its end.
    Drain,
    /// Send a fence.
    Fence(u64),
    /// End the stream.
    Finish,
}

/// Most pages of a frame: a block, which the sink places whole.
const AT_ONCE: u64 = 512;

/// Serves the bulk stream `index` until its orders end.
pub(super) async fn serve<P: Protocol>(
    source: &Shared<'_, P>,
    line: &Line<'_>,
    index: u8,
    mut orders: UnboundedReceiver<Order>,
) -> Result<(), Trouble> {
    let role = Role::Bulk(index);
    let (_reader, writer) = split(line.connect(source, role).await?)?;
    let mut writer =
        FrameWriter::new(writer, Lane::BulkToSink).with_patience(source.config.patience);
    line.tell(Event::Joined);
    let sent = follow(source, line, index, &mut orders, &mut writer).await;
    // Before the stream ends: what the sink makes of that is told by another.
    line.tell_of(sent);
    Ok(())
}

/// Does as it is ordered.
async fn follow<P: Protocol>(
    source: &Shared<'_, P>,
    line: &Line<'_>,
    index: u8,
    orders: &mut UnboundedReceiver<Order>,
    writer: &mut FrameWriter<WriteHalf>,
) -> Result<(), Trouble> {
    let role = Role::Bulk(index);
    let failed = |error: StreamError| Trouble::stream(role, error);
    let mut freight = Freight::new(source.config.encoding);
    let mut pace = Pace::new(source);
    let mut courtesy = Courtesy::new(&source.tally.requests);
    let streams = usize::from(source.config.bulk_streams);
    while let Some(order) = orders.recv().await {
        match order {
            Order::Drain => {
                let mut digest = Digest::new();
                loop {
                    let taken = source.plan().take(index.into(), streams, AT_ONCE);
                    let Some(range) = taken else { break };
                    courtesy.give_way();
                    // A peer that always has room must not keep this from hearing that the connection is over.
                    tokio::task::yield_now().await;
                    let sent = source.ship(&mut freight, range, Purpose::Bulk, writer);
                    let shipped = sent.await.map_err(|error| error.on(role))?;
                    digest.merge(shipped.digest);
                    pace.after(shipped.bytes).await;
                }
                line.tell(Event::Drained(digest));
            }
            Order::Fence(number) => writer.write_fence(number).await.map_err(failed)?,
            Order::Finish => return writer.finish().await.map_err(failed),
        }
    }
    Ok(())
}

/// Keeps a stream's share of the rate.
struct Pace {
    bytes_a_second: Option<f64>,
    due: Instant,
}

impl Pace {
    fn new<P: Protocol>(source: &Shared<'_, P>) -> Pace {
        let streams = f64::from(source.config.bulk_streams);
        let share = |rate: std::num::NonZeroU64| rate.get() as f64 / streams;
        Pace { bytes_a_second: source.config.rate.map(share), due: Instant::now() }
    }

    /// Waits as long as `bytes` take. What was not used is not saved up.
    async fn after(&mut self, bytes: u64) {
        let Some(rate) = self.bytes_a_second else { return };
        self.due = self.due.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate);
        tokio::time::sleep_until(self.due.into()).await;
    }
}
