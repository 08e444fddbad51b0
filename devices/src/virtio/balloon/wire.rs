//! What the driver of a balloon sees: features, queues, the configuration space, requests (virtio 1.2, section 5.5).

use crate::dma::Segment;

/// The driver tells of its memory (5.5.3).
pub const F_STATS_VQ: u64 = 1 << 1;
/// The driver may take pages back when it has no others.
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The driver tells of pages that are free.
pub const F_REPORTING: u64 = 1 << 5;

/// Descriptors of each queue. A page that the driver gives takes four bytes of a buffer, and a report of free pages up to 32
/// descriptors.
pub const QUEUE_SIZE: u16 = 128;
/// Bytes of a page, whatever pages the guest has.
pub const PAGE: u64 = 4096;
/// Bytes of a page's number.
pub const NUMBER: usize = 4;
/// Pages that one chain may name: 64 times as many as Linux does.
pub const MOST_NAMED: u64 = 16384;
/// Pages that one report may be of, 1 GiB; more of it is ignored, as a device may (5.5.6.7).
pub const MOST_REPORTED: u64 = 1 << 18;

/// What a queue is for (5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Pages that the driver gives.
    Inflate,
    /// Pages that it takes again.
    Deflate,
    /// Statistics of its memory.
    Statistics,
    /// Pages that are free.
    Reporting,
}

/// What a balloon offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The driver may take pages back when it has no others.
    pub deflate_on_oom: bool,
    /// Free pages may be reported.
    pub reporting: bool,
    /// Statistics are wanted.
    pub statistics: bool,
}

impl Offer {
    /// The features of such a balloon. Pages may be used again before the host is told (`VIRTIO_BALLOON_F_MUST_TELL_HOST`
    /// is not offered), because they are filled when they are touched; and the host fills them with nothing but zeroes
    /// (`VIRTIO_BALLOON_F_PAGE_POISON` is not, so a guest that poisons its free pages does not report them).
    pub fn features(self) -> u64 {
        let pairs = [
            (self.statistics, F_STATS_VQ),
            (self.deflate_on_oom, F_DEFLATE_ON_OOM),
            (self.reporting, F_REPORTING),
        ];
        pairs.into_iter().filter(|pair| pair.0).fold(0, |features, pair| features | pair.1)
    }

    /// How many queues it has.
    pub fn queues(self) -> usize {
        2 + usize::from(self.statistics) + usize::from(self.reporting)
    }
}

/// What queue `index` is for, when the driver has accepted `features`. The number of a queue is its place among those that
/// there are: Linux counts so, and leaves none out for what it did not accept.
pub fn role(features: u64, index: u16) -> Option<Role> {
    let statistics = (features & F_STATS_VQ != 0).then_some(Role::Statistics);
    let reporting = (features & F_REPORTING != 0).then_some(Role::Reporting);
    let roles = [Some(Role::Inflate), Some(Role::Deflate), statistics, reporting];
    roles.into_iter().flatten().nth(index.into())
}

/// The queue for `role`, likewise.
pub fn queue(features: u64, sought: Role) -> Option<u16> {
    (0..4).find(|&index| role(features, index) == Some(sought))
}

/// The configuration space, 5.5.4: how many pages are wanted, and how many the driver has given.
pub fn config(target: u32, actual: u32) -> [u8; 8] {
    let mut space = [0; 8];
    space[..4].copy_from_slice(&target.to_le_bytes());
    space[4..].copy_from_slice(&actual.to_le_bytes());
    space
}

/// What `actual` is after a write to the configuration space: the only field that a driver writes (5.5.4).
pub fn written(actual: u32, offset: u64, data: &[u8]) -> u32 {
    let mut bytes = actual.to_le_bytes();
    for (at, &byte) in (0..8).zip(data) {
        let field = offset.checked_add(at).and_then(|at| at.checked_sub(4));
        if let Some(place) = field.and_then(|at| bytes.get_mut(at as usize)) {
            *place = byte;
        }
    }
    u32::from_le_bytes(bytes)
}

/// The whole pages of `segment`: the first, and how many. A part of a page says nothing.
pub fn whole_pages(segment: Segment) -> (u64, u64) {
    let first = segment.addr.div_ceil(PAGE);
    // The end of a segment was checked when it was taken from its chain.
    let end = segment.addr.wrapping_add(segment.len.into()) / PAGE;
    (first, end.saturating_sub(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_was_not_accepted_leaves_no_number_out() {
        use Role::{Deflate, Inflate, Reporting, Statistics};
        for (features, roles) in [
            (0, vec![Inflate, Deflate]),
            (F_STATS_VQ, vec![Inflate, Deflate, Statistics]),
            (F_REPORTING, vec![Inflate, Deflate, Reporting]),
            (F_STATS_VQ | F_REPORTING, vec![Inflate, Deflate, Statistics, Reporting]),
        ] {
            let found: Vec<Role> = (0..9).filter_map(|index| role(features, index)).collect();
            assert_eq!(found, roles, "{features:#x}");
            assert_eq!(queue(features, *roles.last().unwrap()), Some(roles.len() as u16 - 1));
        }
        assert_eq!(queue(F_STATS_VQ, Reporting), None);
    }

    #[test]
    fn parts_of_pages_are_left_out() {
        for (addr, len, pages) in [
            (0x1000, 0x2000, (1, 2)),
            (0x1001, 0x1fff, (2, 1)),
            (0x1fff, 0x1002, (2, 1)),
            (0x1001, 0x1000, (2, 0)),
            (0x1001, 1, (2, 0)),
            (u64::MAX - 0x1fff, 0x1fff, (0xf_ffff_ffff_fffe, 1)),
        ] {
            assert_eq!(whole_pages(Segment { addr, len }), pages, "{addr:#x}+{len:#x}");
        }
    }

    #[test]
    fn only_the_second_word_is_the_drivers_to_write() {
        assert_eq!(written(7, 4, &9_u32.to_le_bytes()), 9);
        assert_eq!(written(7, 0, &[1, 1, 1, 1, 2]), 2);
        assert_eq!(written(0x0403_0201, 6, &[9]), 0x0409_0201);
        assert_eq!(written(7, 8, &[1]), 7);
        assert_eq!(written(7, u64::MAX, &[1; 1]), 7);
    }
}
