//! The urgent stream's thread.

use std::sync::atomic::Ordering::Relaxed;

use crate::addr::GfnRange;
use crate::postcopy::error::Trouble;
use crate::postcopy::freight::Freight;
use crate::postcopy::stream::{FrameReader, FrameWriter, StreamError};
use crate::postcopy::threads::split;
use crate::postcopy::transport::{ReadHalf, WriteHalf};
use crate::postcopy::wire::{Encoding, Lane, Purpose, Role};
use crate::protocol::Protocol;

use super::Shared;
use super::leg::{Event, Line};

/// Most requests of a connection for each page of the guest: who misses a page that is just being placed asks once more.
const MOST_REQUESTS: u64 = 2;

/// Answers requests until the sink ends the stream.
pub(super) async fn serve<P: Protocol>(
    source: &Shared<'_, P>,
    line: &Line<'_>,
) -> Result<(), Trouble> {
    let role = Role::Urgent;
    let (reader, writer) = split(line.connect(source, role).await?)?;
    let patience = source.config.patience;
    let mut reader = FrameReader::new(reader, Lane::UrgentToSource).with_patience(patience);
    let mut writer = FrameWriter::new(writer, Lane::UrgentToSink).with_patience(patience);
    line.tell(Event::Joined);
    let answered = answer(source, &mut reader, &mut writer).await;
    // Before the stream ends: what the sink makes of that is told by another.
    line.tell_of(answered);
    Ok(())
}

async fn answer<P: Protocol>(
    source: &Shared<'_, P>,
    reader: &mut FrameReader<ReadHalf>,
    writer: &mut FrameWriter<WriteHalf>,
) -> Result<(), Trouble> {
    let role = Role::Urgent;
    let failed = |error: StreamError| Trouble::stream(role, error);
    let pages = source.guest.ram_frames();
    let mut requests = 0;
    // One page: packing it would take longer than sending it.
    let mut freight = Freight::new(Encoding::Raw);
    loop {
        let Some(request) = reader.read_request().await.map_err(failed)? else { return Ok(()) };
        requests += 1;
        if requests > MOST_REQUESTS * pages {
            let what = "it asks again and again for the pages that there are".to_owned();
            return Err(Trouble::Protocol(what));
        }
        let gfn = request.gfn;
        let page = GfnRange::new(gfn, 1).ok().filter(|&page| source.guest.is_ram(page));
        let page = page.ok_or_else(|| {
            Trouble::Protocol(format!("it asks for guest frame {gfn}, which is not RAM"))
        })?;
        // It may be under way in bulk, behind much else. It goes now, all the same. What is asked for before the plan is made is sent again.
        if source.is_handed_over() {
            let mut plan = source.plan();
            plan.remove(page);
            plan.hint(gfn);
        }
        let sent = source.ship(&mut freight, page, Purpose::Requested, writer).await;
        sent.map_err(|error| error.on(role))?;
        source.tally.requests.fetch_add(1, Relaxed);
    }
}
