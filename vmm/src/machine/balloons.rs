//! The balloons of a running machine, for its operator.

use std::sync::Arc;

use devices::dma::Pinning;
use devices::virtio::balloon::Balloon;
use devices::virtio::balloon::wire::PAGE;
use devices::virtio::device::{ConfigIs, Device};

use crate::config::Bytes;
use crate::control::{BalloonSize, Balloons};

/// Why a balloon cannot be what it is asked to be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BalloonError {
    /// There is none.
    #[error("this machine has no balloon: give it a table [balloon.NAME]")]
    None,
    /// More than there is.
    #[error("a balloon of {asked} is more than the RAM of this machine, {ram}")]
    MoreThanRam {
        /// What was asked for.
        asked: Bytes,
        /// What there is.
        ram: Bytes,
    },
    /// No pages.
    #[error("a balloon is of pages of 4 KiB, which {0} are not")]
    NotPages(Bytes),
}

/// What the balloons among `devices` hold; with a `target` in bytes, the guest, whose RAM is `ram`, is asked for that first.
///
/// # Errors
/// [`BalloonError`]: nothing is changed.
pub(super) fn balloons(
    devices: &[Arc<Device<Pinning>>],
    ram: Bytes,
    target: Option<u64>,
) -> Result<Balloons, BalloonError> {
    let is_balloon = |device: &&Arc<Device<Pinning>>| {
        device.with(|_: &mut Balloon| ((), ConfigIs::Same)).is_some()
    };
    let found: Vec<_> = devices.iter().filter(is_balloon).collect();
    let shares = match target {
        Some(target) => shares(found.len() as u64, ram, Bytes::new(target))?.map(Some).collect(),
        None if found.is_empty() => return Err(BalloonError::None),
        None => vec![None; found.len()],
    };
    let told = found.iter().zip(shares).filter_map(|(device, share)| {
        device.with(|balloon: &mut Balloon| {
            let changed = share.map_or(ConfigIs::Same, |pages| balloon.set_target(pages));
            let bytes = |pages: u32| u64::from(pages) * PAGE;
            let (target, actual) = (bytes(balloon.target()), bytes(balloon.actual()));
            (BalloonSize { name: device.name().to_owned(), target, actual }, changed)
        })
    });
    Ok(Balloons { balloons: told.collect() })
}

/// The pages that each of `count` balloons is asked for: the same, as far as that goes.
fn shares(count: u64, ram: Bytes, asked: Bytes) -> Result<impl Iterator<Item = u32>, BalloonError> {
    if count == 0 {
        return Err(BalloonError::None);
    }
    if asked > ram {
        return Err(BalloonError::MoreThanRam { asked, ram });
    }
    if !asked.is_multiple_of(Bytes::new(PAGE)) {
        return Err(BalloonError::NotPages(asked));
    }
    let pages = asked.get() / PAGE;
    let (each, rest) = (pages / count, pages % count);
    // A driver counts pages in 32 bits.
    let share = move |index| u32::try_from(each + u64::from(index < rest)).unwrap_or(u32::MAX);
    Ok((0..count).map(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(count: u64, asked: u64) -> Result<Vec<u32>, BalloonError> {
        shares(count, Bytes::mib(1), Bytes::new(asked)).map(Iterator::collect)
    }

    #[test]
    fn balloons_share_what_is_asked_for() {
        assert_eq!(of(1, 0), Ok(vec![0]));
        assert_eq!(of(1, 1 << 20), Ok(vec![256]));
        assert_eq!(of(3, 1 << 20), Ok(vec![86, 85, 85]));
    }

    #[test]
    fn what_no_balloon_can_be_is_refused() {
        let refused = |count, asked| of(count, asked).unwrap_err().to_string();
        assert_eq!(
            refused(1, (1 << 20) + 4096),
            "a balloon of 1028 KiB is more than the RAM of this machine, 1 MiB"
        );
        assert_eq!(refused(1, 100), "a balloon is of pages of 4 KiB, which 100 bytes are not");
        assert!(refused(0, 4096).starts_with("this machine has no balloon"));
        assert_eq!(balloons(&[], Bytes::mib(1), None), Err(BalloonError::None));
    }
}
