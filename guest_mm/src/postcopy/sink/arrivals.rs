//! The threads of the streams that pages come over.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use crate::postcopy::error::Trouble;
use crate::postcopy::landing::{Landing, LandingError};
use crate::postcopy::stream::{BulkFrame, FrameReader};
use crate::postcopy::transport::{Connection, ReadHalf};
use crate::postcopy::wire::{Digest, Lane, PagesHeader, Role};
use crate::protocol::Protocol;

use super::Shared;
use super::leg::Event;

/// How soon requests go out that the system did not take at once.
const AGAIN: Duration = Duration::from_micros(200);

/// Takes pages in bulk until the source ends the stream.
pub(super) async fn bulk<P: Protocol>(
    shared: &Shared<'_, P>,
    events: &UnboundedSender<Event>,
    index: u8,
    connection: Connection,
) -> Result<(), Trouble> {
    let role = Role::Bulk(index);
    let (reader, _writer) = here(connection)?.split();
    let mut reader = FrameReader::new(reader, Lane::BulkToSink);
    let mut landing = Landing::new();
    let mut digest = Digest::new();
    loop {
        let frame = reader.next_pages().await.map_err(|error| Trouble::stream(role, error))?;
        // Nobody listens to a connection that is given up.
        match frame {
            BulkFrame::Pages(header) => {
                shared.take(&mut landing, &header, &mut reader, role).await?;
                digest.merge(header.digest());
            }
            BulkFrame::Fence(number) => {
                // What came before belongs to rounds that are over.
                digest = Digest::new();
                let _ = events.send(Event::Fence(number));
            }
            BulkFrame::End => {
                let _ = events.send(Event::Ended(digest));
                return Ok(());
            }
        }
    }
}

/// Takes pages that were asked for until the source ends the stream.
pub(super) async fn urgent<P: Protocol>(
    shared: &Shared<'_, P>,
    connection: Connection,
) -> Result<(), Trouble> {
    let role = Role::Urgent;
    let (reader, writer) = here(connection)?.split();
    let mut reader = FrameReader::new(reader, Lane::UrgentToSink);
    shared.pager.connect(writer);
    let mut landing = Landing::new();
    let mut queued = false;
    loop {
        let frame = tokio::select! {
            frame = reader.next_pages() => frame,
            () = shared.pager.queued(), if !queued => {
                queued = true;
                continue;
            }
            // Pages are taken meanwhile: the source may be unable to read before it has written.
            () = sleep(AGAIN), if queued => {
                queued = !shared.pager.requests().push();
                continue;
            }
        };
        match frame.map_err(|error| Trouble::stream(role, error))? {
            BulkFrame::Pages(header) => {
                shared.take(&mut landing, &header, &mut reader, role).await?;
            }
            BulkFrame::Fence(_) | BulkFrame::End => return Ok(()),
        }
    }
}

impl<P: Protocol> Shared<'_, P> {
    async fn take(
        &self,
        landing: &mut Landing,
        header: &PagesHeader,
        reader: &mut FrameReader<ReadHalf>,
        role: Role,
    ) -> Result<(), Trouble> {
        let (requests, onto) = (self.pager.requests(), self.onto());
        // B1 of `one-request-per-page`
        let taken = landing.take(self.guest, requests, onto, header, reader).await;
        let arrived = taken.map_err(|error| match error {
            LandingError::Stream(error) => Trouble::stream(role, error),
            LandingError::Place(error) => Trouble::Memory(error.to_string()),
        })?;
        self.landed(header, arrived);
        Ok(())
    }
}

/// The connection, woken on this thread from now on.
fn here(connection: Connection) -> Result<Connection, Trouble> {
    let failed = |source| Trouble::System { what: "moving a stream to its thread", source };
    connection.adopted().map_err(failed)
}
