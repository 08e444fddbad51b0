//! Devices whose queues stop for memory that is elsewhere, and go on when it has come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use crate::dma::elsewhere::{Elsewhere, PAGE, PATIENCE, RAM};
use crate::dma::{Dma, Pinning};
use crate::virtio::device::Device;
use crate::virtio::driver::{Buffer, Driver, Rings, write_descriptor};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::rate::Limiter;
use crate::virtio::rng::Rng;
use crate::virtio::rng::host::{Source, URANDOM};
use crate::virtio::thread::Threads;

/// Data that is here, and data that is elsewhere at first.
const HERE: u64 = 0x10_0000;
const AWAY: u64 = 0x30_0000;

fn rng(memory: &Elsewhere) -> Arc<Device<Pinning>> {
    let dma = memory.dma();
    let source = Source::open(std::path::Path::new(URANDOM)).unwrap();
    let model = Rng::new(&dma, source, Limiter::new(None, None)).unwrap();
    Arc::new(Device::new("rng", dma, Box::new(model), Interrupt::default()).unwrap())
}

/// The next answer at the driver's queue 0.
fn end(driver: &mut Driver<Pinning>, memory: &Elsewhere) -> (u16, u32) {
    let begin = Instant::now();
    loop {
        if let Some(end) = driver.poll(&memory.dma().view(), 0) {
            return end;
        }
        assert!(begin.elapsed() < PATIENCE, "no answer");
        std::thread::yield_now();
    }
}

fn ask(driver: &mut Driver<Pinning>, memory: &Elsewhere, at: u64, len: u32) -> u16 {
    let head = driver.add(&memory.dma().view(), 0, &[Buffer::writable(at, len)]).unwrap();
    driver.kick(0);
    head
}

#[test]
fn a_queue_stops_before_what_is_elsewhere_and_its_thread_serves_the_others() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let memory = Elsewhere::new();
    memory.leave(AWAY, 2 * PAGE);
    let (stopped, other) = (rng(&memory), rng(&memory));
    let threads = Threads::start(&[Arc::clone(&stopped), Arc::clone(&other)], 1).unwrap();
    let mut slow = Driver::new(Arc::clone(&stopped));
    let mut fast = Driver::new(Arc::clone(&other));
    assert!(slow.bring_up(0x1000, 16) <= 0x4000 && fast.bring_up(0x4000, 16) <= HERE);
    // The second is in order behind the first, and the third beside them.
    let first = ask(&mut slow, &memory, AWAY + 64, 2 * 4096 - 128);
    let second = ask(&mut slow, &memory, HERE, 64);
    assert_eq!([memory.asked(), memory.asked()], [AWAY, AWAY + PAGE]);
    let third = ask(&mut fast, &memory, HERE + PAGE, 64);
    assert_eq!(end(&mut fast, &memory), (third, 64));
    memory.come(AWAY, 1);
    // It rests at once though it waits, and what comes meanwhile does not wake it.
    stopped.quiesce(Instant::now() + PATIENCE).unwrap();
    memory.come(AWAY + PAGE, 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(slow.poll(&memory.dma().view(), 0), None);
    stopped.resume();
    assert_eq!(end(&mut slow, &memory), (first, 2 * 4096 - 128));
    assert_eq!(end(&mut slow, &memory), (second, 64));
    let mut page = [1; PAGE as usize];
    memory.dma().view().read_slice(&mut page, GuestAddress(AWAY)).unwrap();
    assert!(page[..64] == [1; 64] && page[64..] != [1; PAGE as usize - 64]);
    assert!(memory.is_quiet(), "a page is asked for twice");
    drop(threads);
    [&stopped, &other].into_iter().for_each(|device| device.retire());
    drop((slow, fast, stopped, other));
    memory.close();
}

#[test]
fn a_reset_ends_the_wait_of_a_queue() {
    if !::tests::require_userfaultfd() {
        return;
    }
    let memory = Elsewhere::new();
    memory.leave(AWAY, PAGE);
    let device = rng(&memory);
    let threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
    let mut driver = Driver::new(Arc::clone(&device));
    driver.bring_up(0x1000, 16);
    ask(&mut driver, &memory, AWAY, 64);
    assert_eq!(memory.asked(), AWAY);
    driver.write(0x70, 0);
    assert_eq!(driver.status(), 0);
    memory.dma().view().write_slice(&[0; 0x3000], GuestAddress(0x1000)).unwrap();
    driver.bring_up(0x1000, 16);
    let head = ask(&mut driver, &memory, HERE, 64);
    assert_eq!(end(&mut driver, &memory), (head, 64));
    memory.come(AWAY, 1);
    let first: u8 = memory.dma().view().read_obj(GuestAddress(AWAY)).unwrap();
    assert_eq!((first, driver.poll(&memory.dma().view(), 0)), (1, None));
    drop(threads);
    device.retire();
    drop((driver, device));
    memory.close();
}

/// Its rings, a table of descriptors and the buffers come one after the other, when it needs them.
#[test]
fn a_device_that_has_moved_finds_its_rings_and_tables_when_they_come() {
    if !::tests::require_userfaultfd() {
        return;
    }
    const TABLE: u64 = 0x20_0000;
    let (here, there) = (Elsewhere::new(), Elsewhere::new());
    let device = rng(&here);
    let threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
    let mut driver = Driver::new(Arc::clone(&device));
    driver.bring_up(0x1000, 16);
    device.quiesce(Instant::now() + PATIENCE).unwrap();
    let table = Rings::at(TABLE, 16);
    let head = {
        let dma = here.dma();
        let view = dma.view();
        view.write_slice(&[5; 4096], GuestAddress(HERE)).unwrap();
        view.write_slice(&[6; 4096], GuestAddress(AWAY)).unwrap();
        write_descriptor(&view, table, 0, Buffer::writable(HERE, 32), 1 | 2, 1);
        write_descriptor(&view, table, 1, Buffer::writable(AWAY, 32), 2, 0);
        let head = driver.add(&view, 0, &[Buffer::readable(TABLE, 32)]).unwrap();
        write_descriptor(&view, driver.rings(0), head, Buffer::readable(TABLE, 32), 4, 0);
        head
    };
    driver.kick(0);
    let state = device.save();
    drop(threads);
    let moved = rng(&there);
    there.leave(0, RAM);
    let threads = Threads::start(&[Arc::clone(&moved)], 1).unwrap();
    moved.restore(&state).unwrap();
    moved.resume();
    let mut came = Vec::new();
    let begin = Instant::now();
    while came.len() < 4 {
        came.extend(there.serve(&here, Duration::from_millis(50)));
        assert!(begin.elapsed() < PATIENCE, "only {came:x?} were asked for");
    }
    assert_eq!(came, [0x1000, TABLE, HERE, AWAY], "each when it is needed");
    assert_eq!(end(&mut driver, &there), (head, 64));
    let mut page = [0; PAGE as usize];
    there.dma().view().read_slice(&mut page, GuestAddress(AWAY)).unwrap();
    assert!(page[..32] != [6; 32] && page[32..] == [6; PAGE as usize - 32]);
    drop(threads);
    [&device, &moved].into_iter().for_each(|device| device.retire());
    drop((driver, device, moved));
    here.close();
    there.close();
}
