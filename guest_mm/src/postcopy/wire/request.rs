//! The sink asks for a page that its guest waits for.

use super::fields::Fields;
use super::frame::{self, FrameHeader, Kind, Lane};
use super::{WireError, checksum};
use crate::addr::Gfn;

/// Bytes of its body.
pub(super) const BODY_BYTES: usize = 16;

/// A page that is wanted now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// Which.
    pub gfn: Gfn,
}

impl Request {
    /// Its length: header and body.
    pub const BYTES: usize = FrameHeader::BYTES + BODY_BYTES;

    /// As bytes.
    pub fn encode(self) -> [u8; Request::BYTES] {
        let mut bytes = [0; Request::BYTES];
        let (header, body) = bytes.split_at_mut(FrameHeader::BYTES);
        body[..8].copy_from_slice(&self.gfn.as_u64().to_le_bytes());
        let half = [Kind::Request as u8, 0, 0, 0, BODY_BYTES as u8, 0, 0, 0];
        header[..8].copy_from_slice(&half);
        header[8..].copy_from_slice(&checksum::body_checksum(half, body).to_le_bytes());
        bytes
    }

    /// From a whole frame.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn decode(bytes: &[u8]) -> Result<Request, WireError> {
        let (header, body) = frame::split(bytes, Lane::UrgentToSource)?;
        Request::from_checked(&header, body)
    }

    /// From the body of a frame whose header has been read.
    ///
    /// # Errors
    /// [`WireError`], whatever the bytes are.
    pub fn from_body(header: &FrameHeader, body: &[u8]) -> Result<Request, WireError> {
        header.check(body)?;
        Request::from_checked(header, body)
    }

    fn from_checked(header: &FrameHeader, body: &[u8]) -> Result<Request, WireError> {
        let (kind, lane) = (header.kind(), header.lane());
        if kind != Kind::Request {
            return Err(WireError::WrongLane { kind, lane });
        }
        let mut fields = Fields::new(kind.name(), body);
        let gfn = fields.gfn()?;
        fields.reserved::<8>()?;
        fields.end()?;
        Ok(Request { gfn })
    }
}
