//! The urgent stream's thread.

use std::sync::atomic::Ordering::Relaxed;

use crate::addr::GfnRange;
use crate::postcopy::error::Trouble;
use crate::postcopy::freight::Freight;
use crate::postcopy::stream::{FrameReader, FrameWriter, StreamError};
use crate::postcopy::wire::{Encoding, Lane, Purpose, Role};
use crate::protocol::Protocol;

use super::Shared;
use super::leg::{Event, Line};

/// Answers requests until the sink ends the stream.
pub(super) async fn serve<P: Protocol>(
    source: &Shared<'_, P>,
    line: &Line<'_>,
) -> Result<(), Trouble> {
    let role = Role::Urgent;
    let (reader, writer) = line.connect(source, role).await?.split();
    let mut reader = FrameReader::new(reader, Lane::UrgentToSource);
    let mut writer =
        FrameWriter::new(writer, Lane::UrgentToSink).with_patience(source.config.patience);
    let failed = |error: StreamError| Trouble::stream(role, error);
    line.tell(Event::Joined);
    // One page: packing it would take longer than sending it.
    let mut freight = Freight::new(Encoding::Raw);
    loop {
        let Some(request) = reader.read_request().await.map_err(failed)? else { return Ok(()) };
        let gfn = request.gfn;
        let page = GfnRange::new(gfn, 1).ok().filter(|&page| source.guest.is_ram(page));
        let page = page.ok_or_else(|| {
            Trouble::Protocol(format!("it asks for guest frame {gfn}, which is not RAM"))
        })?;
        {
            // It may be under way in bulk, behind much else. It goes now, all the same.
            let mut plan = source.plan();
            plan.remove(page);
            plan.hint(gfn);
        }
        let sent = freight.send(source.guest, page, Purpose::Requested, &mut writer).await;
        source.count(sent.map_err(|error| error.on(role))?);
        source.tally.requests.fetch_add(1, Relaxed);
    }
}
