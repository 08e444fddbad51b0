//! Which requests are made, in which order.
//!
//! The disk is so many places of `blk.size` bytes, visited in the order of `blk.pattern`, again and again until `blk.ops`
//! visits were made or `blk.seconds` are over. A write's sequence is `blk.salt` and the round in which it is made, so what
//! a run leaves behind depends on its keys only, and another run can check it.

use rt::cmdline::{BadValue, Cmdline, Expected};
use rt::permutation::Permutation;
use rt::sectors::SECTOR;
use rt::tsc::{Deadline, Frequency};
use rt::virtio::Failure;

use crate::Disk;
use crate::flight::{Flight, Op, Work};

/// What is done at each place.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    /// Write; at the end of each round read and check all that it wrote.
    Verify,
    Read,
    Write,
    /// Read, and check for what `blk.mode=write` with the same keys has written.
    Check,
}

#[derive(Clone, Copy)]
enum Order {
    Sequential,
    Random(Permutation),
}

pub(crate) struct Plan {
    pub(crate) mode: Mode,
    /// Bytes of a request.
    pub(crate) size: usize,
    /// Requests in flight, at most.
    pub(crate) depth: usize,
    order: Order,
    places: u64,
    ops: u64,
    seconds: Option<u64>,
    salt: u64,
}

impl Plan {
    pub(crate) fn parse(line: Cmdline<'static>, sectors: u64) -> Result<Plan, BadValue<'static>> {
        let size = line.number_in("blk.size", SECTOR as u64, 1 << 20, 4096)?;
        let places = sectors / (size / SECTOR as u64);
        if !size.is_multiple_of(SECTOR as u64) || places == 0 {
            let expected = Expected::Words("a multiple of 512 that the disk has room for");
            return Err(BadValue {
                key: "blk.size",
                value: line.get("blk.size").unwrap_or("4096"),
                expected,
            });
        }
        let seconds = match line.number_in("blk.seconds", 0, 1 << 20, 0)? {
            0 => None,
            seconds => Some(seconds),
        };
        let ops = if seconds.is_some() { u64::MAX } else { 1024 };
        let orders =
            [("seq", Order::Sequential), ("random", Order::Random(Permutation::new(places, 0)))];
        let modes = [
            ("verify", Mode::Verify),
            ("read", Mode::Read),
            ("write", Mode::Write),
            ("check", Mode::Check),
        ];
        Ok(Plan {
            mode: line.choice("blk.mode", &modes, Mode::Verify, "verify, read, write or check")?,
            size: size as usize,
            depth: line.number_in("blk.depth", 1, 16, 8)? as usize,
            order: line.choice("blk.pattern", &orders, Order::Sequential, "seq or random")?,
            places,
            ops: line.number_in("blk.ops", 1, u64::MAX, ops)?,
            seconds,
            salt: line.number_in("blk.salt", 0, u64::from(u32::MAX), 0)?,
        })
    }

    pub(crate) fn run(
        &self,
        disk: &mut Disk,
        flight: &mut Flight,
        frequency: Frequency,
    ) -> Result<(), Failure> {
        let end = self.seconds.map(|seconds| frequency.after(seconds * 1000));
        if let Mode::Check = self.mode {
            return self.check(disk, flight, end);
        }
        let mut left = self.ops;
        for round in 0.. {
            let visits = left.min(self.places);
            let work = match self.mode {
                Mode::Read => Work::Read,
                _ => Work::Write(self.sequence(round)),
            };
            let done = self.visit(disk, flight, visits, end, |_| work)?;
            if let Mode::Verify = self.mode {
                self.visit(disk, flight, done, None, |_| Work::Check(self.sequence(round)))?;
            }
            left -= done;
            if left == 0 || done < visits {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The last write of the visit to place `i` is that of the last round that came so far.
    fn check(
        &self,
        disk: &mut Disk,
        flight: &mut Flight,
        end: Option<Deadline>,
    ) -> Result<(), Failure> {
        let written = |i| Work::Check(self.sequence((self.ops - 1 - i) / self.places));
        self.visit(disk, flight, self.ops.min(self.places), end, written).map(drop)
    }

    /// Does `work` at the first `count` places of the order; how many were begun before `end`, all of which are done.
    fn visit(
        &self,
        disk: &mut Disk,
        flight: &mut Flight,
        count: u64,
        end: Option<Deadline>,
        work: impl Fn(u64) -> Work,
    ) -> Result<u64, Failure> {
        let mut begun = 0;
        let ops = (0..count).take_while(|_| !end.is_some_and(Deadline::passed)).map(|i| {
            begun += 1;
            let place = match self.order {
                Order::Sequential => i,
                Order::Random(order) => order.apply(i),
            };
            Op { sector: place * (self.size / SECTOR) as u64, work: work(i) }
        });
        flight.run(disk, ops)?;
        Ok(begun)
    }

    fn sequence(&self, round: u64) -> u64 {
        self.salt << 32 | (round & u64::from(u32::MAX))
    }
}
