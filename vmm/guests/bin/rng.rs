//! `rng`: reads bytes from a virtio entropy device, and checks that they look like entropy.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;

use rt::boot_params::Boot;
use rt::randomness::Tally;
use rt::tsc::{self, Frequency};
use rt::virtio::{Device, Devices, Failure, Memory};
use rt::{exit, println};
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

rt::main!(main);

/// The least request of which two never are the same by chance.
const LEAST_REQUEST: u64 = 16;

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|failure| {
        println!("rng: {failure}");
        failure.verdict()
    })
}

fn run(boot: &Boot) -> Result<u8, Failure> {
    let mut devices = Devices::find(boot);
    let line = boot.cmdline();
    let bytes = line.number_in("rng.bytes", Tally::LEAST, 1 << 40, 64 << 10)?;
    let size = line.number_in("rng.size", LEAST_REQUEST, 1 << 20, 4096)?;
    let index = line.number_in("rng.index", 0, u64::MAX, 0)? as usize;
    let frequency = Frequency::find(line)?;
    let device = devices.take(DeviceType::EntropySource, index)?;
    let mut rng = VirtIORng::<Memory, Device>::new(device)
        .map_err(Failure::at("setting the device up, with 8 descriptors a queue"))?;

    let mut tally = Tally::default();
    let (mut now, mut before) = (vec![0; size as usize], vec![0; size as usize]);
    let (mut requests, mut cycles, mut repeated) = (0u64, 0, 0u64);
    while tally.bytes() < bytes {
        // A device that says that it wrote, and did not, leaves what was there.
        now.fill(0);
        let start = tsc::now();
        let len = rng.request_entropy(&mut now).map_err(Failure::at("request"))?;
        cycles += tsc::now() - start;
        requests += 1;
        let Some(read) = now.get(..len).filter(|read| !read.is_empty()) else {
            println!("rng: a request of {size} bytes was answered with {len}");
            return Ok(exit::FAILED);
        };
        // A device may give less than it was asked for. Of few bytes it is no wonder if they are those of last time.
        if len as u64 >= LEAST_REQUEST && before[..len] == *read {
            repeated += 1;
        }
        tally.add(read);
        core::mem::swap(&mut now, &mut before);
    }
    let checks = [
        (repeated == 0, "a request was answered with the bytes of the one before it"),
        (tally.bits_are_even(), "ones and zeroes are not even"),
        (tally.bytes_are_even(), "the values of bytes are not as even as those of random bytes"),
    ];
    let wrong = checks.iter().filter(|(holds, _)| !holds);
    wrong.clone().for_each(|(_, what)| println!("rng: {what}"));
    let wrong = wrong.count();
    // The last line is for programs: keys are only ever added.
    println!(
        "rng: bytes={} requests={requests} wrong={wrong} repeated={repeated} ones={} chi_square={} cycles={cycles} \
         bytes_per_s={}",
        tally.bytes(),
        tally.ones(),
        tally.chi_square(),
        frequency.per_second(tally.bytes(), cycles).unwrap_or(0),
    );
    Ok(if wrong == 0 { 0 } else { exit::FAILED })
}
