//! `blk`: writes patterns to a virtio disk with many requests in flight, reads them back, and checks every word.
//!
//! Discard and write-zeroes are not among what it does: the driver's crate has neither.
#![no_std]
#![no_main]

extern crate alloc;

mod flight;
mod plan;

use alloc::vec;

use rt::boot_params::Boot;
use rt::histogram::Histogram;
use rt::sectors::SECTOR;
use rt::tsc::{self, Frequency};
use rt::virtio::{Device, Devices, Failure, Memory};
use rt::{exit, println};
use virtio_drivers::Error;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::DeviceType;

use flight::{Counts, Flight};
use plan::{Mode, Plan};

rt::main!(main);

type Disk = VirtIOBlk<Memory, Device>;

static READS: Histogram = Histogram::new();
static WRITES: Histogram = Histogram::new();

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|failure| {
        println!("blk: {failure}");
        failure.verdict()
    })
}

fn run(boot: &Boot) -> Result<u8, Failure> {
    let mut devices = Devices::find(boot);
    let line = boot.cmdline();
    let index = line.number_in("blk.index", 0, u64::MAX, 0)? as usize;
    let device = devices.take(DeviceType::Block, index)?;
    let mut disk = Disk::new(device)
        .map_err(Failure::at("setting the device up, with 16 descriptors a queue"))?;
    let sectors = disk.capacity();
    describe(&mut disk)?;
    let plan = Plan::parse(line, sectors)?;
    expect_refusals(&mut disk, sectors)?;
    if disk.readonly() && plan.mode.writes() {
        return Err(Failure::Wrong(
            "the disk is read-only: blk.mode=read and blk.mode=check are what it is good for",
        ));
    }

    let frequency = Frequency::find(line)?;
    let start = tsc::now();
    let mut flight = Flight::new(&plan, frequency);
    plan.run(&mut disk, &mut flight, frequency)?;
    let flush = tsc::now();
    if plan.mode.writes() {
        disk.flush().map_err(Failure::at("flush"))?;
    }
    let end = tsc::now();
    let counts = flight.counts;
    report(&counts, disk.readonly(), end - start, end - flush, frequency);
    Ok(if counts.wrong == 0 && counts.errors == 0 { 0 } else { exit::FAILED })
}

/// Says what disk it is.
fn describe(disk: &mut Disk) -> Result<(), Failure> {
    let mut id = [0; 20];
    let len = match disk.device_id(&mut id) {
        Ok(len) => len,
        // Optional, as far as the standard goes.
        Err(Error::Unsupported) => 0,
        Err(error) => return Err(Failure::Driver("device id", error)),
    };
    let kind = if disk.readonly() { "read-only" } else { "writable" };
    match core::str::from_utf8(&id[..len]) {
        Ok(id) => println!("blk: {kind} disk \"{id}\" of {} sectors", disk.capacity()),
        Err(_) => println!("blk: {kind} disk {:02x?} of {} sectors", &id[..len], disk.capacity()),
    }
    Ok(())
}

/// What a disk must not do: serve what lies behind its end, and take a write if it is read-only.
fn expect_refusals(disk: &mut Disk, sectors: u64) -> Result<(), Failure> {
    let mut buffer = vec![0; 2 * SECTOR];
    let end = sectors as usize;
    if disk.read_blocks(end, &mut buffer[..SECTOR]).is_ok() {
        return Err(Failure::Wrong("a read of the sector behind the last one succeeded"));
    }
    if disk.read_blocks(end - 1, &mut buffer).is_ok() {
        return Err(Failure::Wrong("a read across the end of the disk succeeded"));
    }
    if disk.readonly() {
        disk.read_blocks(0, &mut buffer).map_err(Failure::at("read"))?;
        if disk.write_blocks(0, &buffer).is_ok() {
            return Err(Failure::Wrong("a write to a read-only disk succeeded"));
        }
    }
    Ok(())
}

fn report(counts: &Counts, readonly: bool, cycles: u64, flush: u64, frequency: Frequency) {
    let requests = counts.reads + counts.writes;
    for (what, times) in [("reads", &READS), ("writes", &WRITES)] {
        if times.max() == 0 {
            continue;
        }
        let of = |cycles| frequency.nanoseconds(cycles).unwrap_or(0);
        println!(
            "blk: {what}: p50 {} ns, p90 {} ns, p99 {} ns, longest {} ns",
            of(times.percentile(50)),
            of(times.percentile(90)),
            of(times.percentile(99)),
            of(times.max()),
        );
    }
    // The last line is for programs: keys are only ever added.
    println!(
        "blk: requests={requests} reads={} writes={} bytes={} wrong={} errors={} depth={} readonly={} cycles={cycles} \
         flush_cycles={flush} ns={} requests_per_s={} bytes_per_s={} read_p50_cycles={} read_p99={} write_p50={} write_p99={}",
        counts.reads,
        counts.writes,
        counts.bytes,
        counts.wrong,
        counts.errors,
        counts.depth,
        u8::from(readonly),
        frequency.nanoseconds(cycles).unwrap_or(0),
        frequency.per_second(requests, cycles).unwrap_or(0),
        frequency.per_second(counts.bytes, cycles).unwrap_or(0),
        READS.percentile(50),
        READS.percentile(99),
        WRITES.percentile(50),
        WRITES.percentile(99),
    );
}

/// Where the cycles of a request are counted.
fn times(write: bool) -> &'static Histogram {
    if write { &WRITES } else { &READS }
}

impl Mode {
    fn writes(self) -> bool {
        matches!(self, Mode::Verify | Mode::Write)
    }
}
