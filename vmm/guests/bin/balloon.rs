//! `balloon`: gives pages to a balloon and reports others as free, finds zeroes in all of them, and takes them again.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use rt::boot_params::{Boot, Range};
use rt::permutation::hash;
use rt::virtio::{Device, Devices, Failure, Memory};
use rt::{exit, println};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

rt::main!(main);

const STATISTICS: u64 = 1 << 1;
const REPORTING: u64 = 1 << 5;
const VERSION_1: u64 = 1 << 32;

/// Page numbers of one request, as many as Linux sends.
const NAMED: usize = 256;

type Queue = VirtQueue<Memory, 16>;

#[repr(C, align(4096))]
struct Page([AtomicU64; 512]);

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|failure| {
        println!("balloon: {failure}");
        failure.verdict()
    })
}

/// The device, brought up, and its queues.
struct Balloon {
    device: Device,
    inflate: Queue,
    deflate: Queue,
    statistics: Option<Queue>,
    reporting: Option<Queue>,
}

impl Balloon {
    fn new(mut device: Device) -> Result<Balloon, Failure> {
        let begun = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        device.set_status(DeviceStatus::empty());
        device.set_status(begun);
        let features = device.read_device_features() & (STATISTICS | REPORTING | VERSION_1);
        device.write_driver_features(features);
        let agreed = begun | DeviceStatus::FEATURES_OK;
        device.set_status(agreed);
        if !device.get_status().contains(agreed) {
            return Err(Failure::Wrong("the device does not agree"));
        }
        // The number of a queue is its place among those that there are.
        let mut next = 0;
        let mut queue = || {
            next += 1;
            Queue::new(&mut device, next - 1, false, false).map_err(Failure::at("queue"))
        };
        let (inflate, deflate) = (queue()?, queue()?);
        let statistics = (features & STATISTICS != 0).then(&mut queue).transpose()?;
        let reporting = (features & REPORTING != 0).then(&mut queue).transpose()?;
        device.set_status(agreed | DeviceStatus::DRIVER_OK);
        Ok(Balloon { device, inflate, deflate, statistics, reporting })
    }
}

/// How many pages the host asks for.
fn target(device: &Device) -> Result<u32, Failure> {
    device.read_config_space(0).map_err(Failure::at("configuration"))
}

fn tell_actual(device: &mut Device, pages: u32) -> Result<(), Failure> {
    device.write_config_space(4, pages).map_err(Failure::at("configuration"))
}

/// Names `pages` to `queue`, the last first.
fn name(queue: &mut Queue, device: &mut Device, pages: &[Page]) -> Result<(), Failure> {
    for pages in pages.rchunks(NAMED) {
        let number = |page: &Page| (core::ptr::from_ref(page) as u64 >> 12) as u32;
        let numbers: Vec<u8> =
            pages.iter().rev().flat_map(|page| number(page).to_le_bytes()).collect();
        queue.add_notify_wait_pop(&[&numbers], &mut [], device).map_err(Failure::at("request"))?;
    }
    Ok(())
}

/// Reports `pages` as free.
fn report(queue: &mut Queue, device: &mut Device, pages: &mut [Page]) -> Result<(), Failure> {
    for pages in pages.chunks_mut(512) {
        let (start, bytes) = (pages.as_mut_ptr().cast::<u8>(), size_of_val(pages));
        // SAFETY: the bytes of `pages`, which are borrowed mutably for as long; every byte is part of an atomic word.
        let free = unsafe { core::slice::from_raw_parts_mut(start, bytes) };
        queue.add_notify_wait_pop(&[], &mut [free], device).map_err(Failure::at("report"))?;
    }
    Ok(())
}

/// Tells of the memory that there is.
fn tell(queue: &mut Queue, device: &mut Device, bytes: u64) -> Result<(), Failure> {
    const TOTAL: u16 = 5;
    let pair = [&TOTAL.to_le_bytes()[..], &bytes.to_le_bytes()].concat().leak();
    // SAFETY: the buffer was leaked, so it stays for as long as the device may hold it.
    unsafe { queue.add(&[pair], &mut []) }.map_err(Failure::at("statistics"))?;
    device.notify(2);
    Ok(())
}

fn run(boot: &Boot) -> Result<u8, Failure> {
    let mut devices = Devices::find(boot);
    let line = boot.cmdline();
    let balloon = Balloon::new(devices.take(DeviceType::MemoryBalloon, 0)?)?;
    let Balloon { mut device, mut inflate, mut deflate, mut statistics, mut reporting } = balloon;
    let target = target(&device)?;
    let count = line.number_in("balloon.pages", 1, 1 << 20, u64::from(target.max(1024)))?;
    let reported = if reporting.is_some() { count } else { 0 };

    let new = |_| Page([const { AtomicU64::new(0) }; 512]);
    let given: Vec<Page> = (0..count).map(new).collect();
    let mut free: Vec<Page> = (0..reported).map(new).collect();
    given.iter().chain(&free).for_each(fill);
    name(&mut inflate, &mut device, &given)?;
    if let Some(queue) = &mut reporting {
        report(queue, &mut device, &mut free)?;
    }
    if let Some(queue) = &mut statistics {
        tell(queue, &mut device, boot.ram().map(Range::len).sum())?;
    }
    tell_actual(&mut device, count as u32)?;
    // What the device gave to the host comes back as it is touched.
    let dirty = given
        .iter()
        .chain(&free)
        .filter(|page| page.0.iter().any(|word| word.load(Relaxed) != 0))
        .count();
    given.iter().chain(&free).for_each(fill);
    name(&mut deflate, &mut device, &given)?;
    tell_actual(&mut device, 0)?;
    let lost = given.iter().chain(&free).filter(|page| !is_filled(page)).count();
    // The last line is for programs: keys are only ever added.
    println!(
        "balloon: target={target} given={count} reported={reported} dirty={dirty} lost={lost}"
    );
    Ok(if dirty + lost == 0 { 0 } else { exit::FAILED })
}

/// A word for each place.
fn word(at: &AtomicU64) -> u64 {
    hash(core::ptr::from_ref(at) as u64) | 1
}

fn fill(page: &Page) {
    page.0.iter().for_each(|at| at.store(word(at), Relaxed));
}

fn is_filled(page: &Page) -> bool {
    page.0.iter().all(|at| at.load(Relaxed) == word(at))
}
