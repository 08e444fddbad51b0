//! The threads of the streams that pages come over.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::io::AsyncRead;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::sleep;

use crate::postcopy::error::Trouble;
use crate::postcopy::landing::{Landing, LandingError};
use crate::postcopy::stream::{BulkFrame, FrameReader, StreamError};
use crate::postcopy::threads::split;
use crate::postcopy::transport::Connection;
use crate::postcopy::wire::{Digest, Lane, PagesHeader, Role};
use crate::protocol::Protocol;

use super::Shared;
use super::leg::Event;
use super::polite::Polite;

/// How soon requests go out that the system did not take at once.
const AGAIN: Duration = Duration::from_micros(200);

/// Takes pages in bulk until the source ends the stream.
pub(super) async fn bulk<P: Protocol>(
    shared: &Shared<'_, P>,
    events: &UnboundedSender<Event>,
    index: u8,
    connection: Connection,
    patience: Duration,
) -> Result<(), Trouble> {
    let (reader, _writer) = split(connection)?;
    let reader = Polite::new(reader, &shared.tally.urgent, &shared.tally.come);
    let mut reader = FrameReader::new(reader, Lane::BulkToSink).with_patience(patience);
    if let Err(trouble) = follow(shared, events, index, &mut reader).await {
        // Before the stream ends: what the source makes of that is told by another.
        let _ = events.send(Event::Failed(trouble));
    }
    Ok(())
}

async fn follow<P: Protocol, R: AsyncRead + Unpin>(
    shared: &Shared<'_, P>,
    events: &UnboundedSender<Event>,
    index: u8,
    reader: &mut FrameReader<R>,
) -> Result<(), Trouble> {
    let role = Role::Bulk(index);
    let mut landing = Landing::new(&shared.berths);
    let mut digest = Digest::new();
    let (mut last_fence, mut came) = (0, 0);
    loop {
        let frame = reader.next_pages().await.map_err(|error| Trouble::stream(role, error))?;
        // Nobody listens to a connection that is given up.
        match frame {
            BulkFrame::Pages(header) => {
                shared.count(&header, &mut came, shared.guest.ram_frames())?;
                shared.take(&mut landing, &header, reader, role).await?;
                digest.merge(header.digest());
            }
            BulkFrame::Fence(number) => {
                if number <= last_fence || shared.runs.load(Relaxed) {
                    let what = format!("it sends fence {number} out of its turn");
                    return Err(Trouble::Protocol(what));
                }
                last_fence = number;
                // What came before belongs to rounds that are over.
                digest = Digest::new();
                let _ = events.send(Event::Fence(index, number));
            }
            BulkFrame::End => {
                let _ = events.send(Event::Ended(index, digest));
                return Ok(());
            }
        }
    }
}

/// Takes pages that were asked for until the source ends the stream.
pub(super) async fn urgent<P: Protocol>(
    shared: &Shared<'_, P>,
    events: &UnboundedSender<Event>,
    connection: Connection,
    patience: Duration,
) -> Result<(), Trouble> {
    let role = Role::Urgent;
    let (reader, writer) = split(connection)?;
    let mut reader = FrameReader::new(reader, Lane::UrgentToSink).with_patience(patience);
    shared.pager.connect(writer);
    let mut landing = Landing::new(&shared.berths);
    // Since when requests wait that the system does not take.
    let mut queued: Option<Instant> = None;
    let mut came = 0;
    loop {
        let frame = tokio::select! {
            frame = reader.next_pages() => frame,
            () = shared.pager.queued(), if queued.is_none() => {
                queued = Some(Instant::now());
                continue;
            }
            // Pages are taken meanwhile: the source may be unable to read before it has written.
            () = sleep(AGAIN), if queued.is_some() => {
                queued = queued.filter(|_| !shared.pager.requests().push());
                if queued.is_some_and(|since| since.elapsed() > patience) {
                    return Err(Trouble::stream(role, StreamError::Stalled(patience)));
                }
                continue;
            }
        };
        match frame.map_err(|error| Trouble::stream(role, error))? {
            BulkFrame::Pages(header) => {
                let wanted = shared.guest.ram_frames() + shared.pager.asked().requests;
                shared.count(&header, &mut came, wanted)?;
                shared.take(&mut landing, &header, &mut reader, role).await?;
            }
            BulkFrame::Fence(_) | BulkFrame::End => {
                let _ = events.send(Event::UrgentEnded);
                return Ok(());
            }
        }
    }
}

impl<P: Protocol> Shared<'_, P> {
    /// Fails for pages that the guest does not have. `came` counts what has come over a stream since the guest runs: a source
    /// that sends more than `most` has no end.
    fn count(&self, header: &PagesHeader, came: &mut u64, most: u64) -> Result<(), Trouble> {
        let pages = header.pages();
        if !self.guest.is_ram(pages) {
            let what = format!("it sends pages at {pages}, which is not RAM");
            return Err(Trouble::Protocol(what));
        }
        if self.runs.load(Relaxed) {
            *came += pages.frames();
        }
        if *came > most {
            let what = "it sends more pages than there are, or were asked for".to_owned();
            return Err(Trouble::Protocol(what));
        }
        Ok(())
    }

    async fn take<R: AsyncRead + Unpin>(
        &self,
        landing: &mut Landing<'_>,
        header: &PagesHeader,
        reader: &mut FrameReader<R>,
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
