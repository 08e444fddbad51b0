//! Frames on their way to a guest.

use crate::addr::FrameNo;
use crate::pool::Pool;
use crate::sync::Arc;

/// A frame that is nobody's yet, to be filled and then placed: what arrives in it is not copied again.
#[derive(Debug)]
pub struct Parcel {
    pool: Arc<Pool>,
    /// None once it was opened.
    frame: Option<FrameNo>,
}

#[cfg(not(loom))]
impl Parcel {
    /// A frame of `pool`, all zeroes.
    ///
    /// # Errors
    /// None is left.
    pub(crate) fn new(pool: &Arc<Pool>) -> Result<Parcel, crate::pool::Exhausted> {
        Ok(Parcel { pool: Arc::clone(pool), frame: Some(pool.alloc_zeroed()?) })
    }

    /// Copies `bytes` into it, from `offset` on.
    ///
    /// # Panics
    /// If they do not fit the page.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(
            offset + bytes.len() <= crate::geometry::FRAME_BYTES as usize,
            "outside of the page"
        );
        let frame = self.frame.expect("it was not placed");
        self.pool.memory().write(frame, offset, bytes);
    }
}

impl Parcel {
    /// What is in it, if it belongs to `pool`.
    pub(super) fn open(mut self, pool: &Arc<Pool>) -> Option<FrameNo> {
        if !Arc::ptr_eq(&self.pool, pool) {
            return None;
        }
        self.frame.take()
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        self.frame.into_iter().for_each(|frame| self.pool.release(frame, 1));
    }
}
