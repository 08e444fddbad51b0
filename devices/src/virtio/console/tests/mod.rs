//! A console worked by the driver of this crate, its thread running, over pipes, files and sockets.

mod sockets;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::fcntl_getfl;
use rustix::pipe::pipe;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::{Dma, Plain};
use crate::virtio::device::Device;
use crate::virtio::driver::{Buffer, Driver};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::state::DeviceState;
use crate::virtio::thread::Threads;

use super::host::{Files, Port};
use super::wire::{RX, Size, TX};
use super::{Console, KEPT};

const DATA: u64 = 0x10_0000;
const SIZE: Size = Size { columns: 80, rows: 25 };
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    dma: Plain,
    device: Arc<Device<Plain>>,
    driver: Driver<Plain>,
    threads: Option<Threads>,
}

fn device(dma: &Plain, port: impl Port + 'static) -> Arc<Device<Plain>> {
    let model = Console::new(dma, SIZE, Box::new(port));
    Arc::new(Device::new("hvc", dma.clone(), Box::new(model), Interrupt::default()).unwrap())
}

impl Rig {
    fn new(port: impl Port + 'static) -> Rig {
        let dma = Plain::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
        let device = device(&dma, port);
        let threads = Threads::start(&[Arc::clone(&device)], 1).unwrap();
        let mut driver = Driver::new(Arc::clone(&device));
        assert!(driver.bring_up(0x1000, 64) <= DATA);
        Rig { dma, device, driver, threads: Some(threads) }
    }

    /// Puts `text` into the transmit queue, in buffers of up to `cut` bytes.
    fn say(&mut self, at: u64, text: &[u8], cut: u32) {
        let view = self.dma.view();
        view.write_slice(text, GuestAddress(at)).unwrap();
        let ends = (0..text.len() as u32).step_by(cut as usize);
        let buffers: Vec<_> = ends
            .map(|from| {
                let len = cut.min(text.len() as u32 - from);
                Buffer::readable(at + u64::from(from), len)
            })
            .collect();
        self.driver.add(&view, TX, &buffers).unwrap();
        self.driver.kick(TX);
    }

    fn room(&mut self, at: u64, len: u32) {
        self.driver.add(&self.dma.view(), RX, &[Buffer::writable(at, len)]).unwrap();
        self.driver.kick(RX);
    }

    fn poll(&mut self, queue: u16) -> Option<u32> {
        self.driver.poll(&self.dma.view(), queue).map(|(_, written)| written)
    }

    /// Waits for the next buffer that is done.
    fn end(&mut self, queue: u16) -> u32 {
        let begin = Instant::now();
        loop {
            if let Some(written) = self.poll(queue) {
                return written;
            }
            assert!(begin.elapsed() < PATIENCE, "no answer: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }

    fn memory(&self, at: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.dma.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn count(&self, name: &str) -> u64 {
        let report = self.device.report();
        report.counts.iter().find(|count| count.0 == name).unwrap().1
    }

    fn wait_for(&self, name: &str, least: u64) {
        let begin = Instant::now();
        while self.count(name) < least {
            assert!(begin.elapsed() < PATIENCE, "{name}: {:?}", self.device.report());
            std::thread::yield_now();
        }
    }

    fn rest(&self) {
        self.device.quiesce(Instant::now() + PATIENCE).unwrap();
    }
}

/// A console over two pipes: what types, and what shows.
fn piped() -> (Rig, File, File) {
    let (input, keyboard) = pipe().unwrap();
    let (screen, output) = pipe().unwrap();
    (Rig::new(Files::pair(input, output).unwrap()), keyboard.into(), screen.into())
}

fn exactly(from: &mut impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at) as u8).collect()
}

#[test]
fn what_is_written_is_shown_and_what_is_typed_is_read() {
    let (mut rig, mut keyboard, mut screen) = piped();
    rig.say(DATA, b"login: ", 3);
    assert_eq!(rig.end(TX), 0);
    assert_eq!(exactly(&mut screen, 7), b"login: ");
    rig.room(DATA + 0x1000, 64);
    keyboard.write_all(b"root\n").unwrap();
    assert_eq!(rig.end(RX), 5);
    assert_eq!(rig.memory(DATA + 0x1000, 5), b"root\n");
}

#[test]
fn what_is_typed_before_there_are_buffers_waits_for_them() {
    let (mut rig, mut keyboard, _screen) = piped();
    let text = pattern(5000);
    keyboard.write_all(&text).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let mut read = Vec::new();
    while read.len() < text.len() {
        rig.room(DATA, 700);
        let len = rig.end(RX);
        read.extend(rig.memory(DATA, len));
    }
    assert!(read == text);
}

#[test]
fn an_output_that_is_full_holds_the_guest_up_and_loses_nothing() {
    let (mut rig, _keyboard, mut screen) = piped();
    // More than the pipe and the console take together, in one buffer.
    let text = pattern(1 << 20);
    rig.say(DATA, &text, 1 << 20);
    rig.wait_for("held_up", 1);
    assert_eq!(rig.poll(TX), None);
    assert!(exactly(&mut screen, text.len()) == text);
    assert_eq!(rig.end(TX), 0);
    assert_eq!((rig.count("bytes_output"), rig.count("bytes_lost")), (1 << 20, 0));
}

#[test]
fn what_the_host_has_not_taken_is_flushed_at_the_end() {
    let (mut rig, _keyboard, mut screen) = piped();
    let text = pattern(KEPT + KEPT / 2);
    rig.say(DATA, &text, 10_000);
    rig.end(TX);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        screen.read_to_end(&mut all).unwrap();
        all
    });
    drop(rig);
    assert!(reader.join().unwrap() == text);
}

#[test]
fn without_anybody_at_the_other_end_output_is_lost_and_input_ends() {
    let (mut rig, keyboard, screen) = piped();
    drop((keyboard, screen));
    rig.room(DATA, 64);
    for _ in 0..3 {
        rig.say(DATA, b"hello?", 6);
        rig.end(TX);
    }
    assert_eq!((rig.count("bytes_lost"), rig.count("failed")), (18, 1));
    assert_eq!(rig.poll(RX), None);
    assert_eq!(rig.device.report().broken, None);
    let mut nowhere = Rig::new(Files::none());
    nowhere.say(DATA, b"hello?", 6);
    nowhere.end(TX);
    assert_eq!(nowhere.count("bytes_lost"), 6);
}

#[test]
fn plain_files_are_read_to_their_end_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let (script, log) = (folder.path().join("script"), folder.path().join("log"));
    std::fs::write(&script, b"echo one\necho two\n").unwrap();
    let input = File::open(&script).unwrap().into();
    let mut rig = Rig::new(Files::pair(input, File::create(&log).unwrap().into()).unwrap());
    let mut read = Vec::new();
    while read.len() < 18 {
        rig.room(DATA, 5);
        let len = rig.end(RX);
        read.extend(rig.memory(DATA, len));
    }
    assert_eq!(read, b"echo one\necho two\n");
    rig.say(DATA, b"one\ntwo\n", 8);
    rig.end(TX);
    assert_eq!(std::fs::read(&log).unwrap(), b"one\ntwo\n");
    let mut rig = Rig::new(Files::output(File::create(&log).unwrap()).unwrap());
    rig.say(DATA, b"three\n", 2);
    rig.end(TX);
    assert_eq!(std::fs::read(&log).unwrap(), b"three\n");
}

#[test]
fn others_who_have_the_same_file_open_find_it_as_it_was() {
    let (theirs, _writer) = pipe().unwrap();
    let (stream, _peer) = UnixStream::pair().unwrap();
    let before = (fcntl_getfl(&theirs).unwrap(), fcntl_getfl(&stream).unwrap());
    let ours = theirs.try_clone().unwrap();
    let port = Files::pair(ours, stream.try_clone().unwrap().into()).unwrap();
    assert_eq!(fcntl_getfl(&theirs).unwrap(), before.0, "it was opened again");
    drop(port);
    assert_eq!(fcntl_getfl(&stream).unwrap(), before.1, "a socket cannot be, and is put right");
}

#[test]
fn another_size_is_told_and_characters_of_an_emergency_are_shown() {
    let (mut rig, _keyboard, mut screen) = piped();
    let mut space = [0; 12];
    rig.driver.config(0, &mut space);
    assert_eq!(space, [80, 0, 25, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let interrupts = rig.device.interrupt().count();
    for (columns, told) in [(132, 1), (132, 1), (133, 2)] {
        let resize = |console: &mut Console<Plain>| ((), console.resize(columns, 50));
        rig.device.with(resize).unwrap();
        assert_eq!(rig.device.interrupt().count(), interrupts + told);
    }
    rig.driver.config(0, &mut space[..4]);
    assert_eq!(space[..4], [133, 0, 50, 0]);
    // `emerg_wr`; before there is a driver, too.
    rig.driver.write(0x108, b'!'.into());
    rig.driver.write(0x70, 0);
    rig.driver.write(0x108, b'?'.into());
    assert_eq!(exactly(&mut screen, 2), b"!?");
}

#[test]
fn buffers_of_the_wrong_direction_break_the_device_until_it_is_reset() {
    let (mut rig, mut keyboard, mut screen) = piped();
    keyboard.write_all(b"nobody reads it").unwrap();
    for queue in [TX, RX] {
        let view = rig.dma.view();
        let buffers = [Buffer::readable(DATA, 8), Buffer::writable(DATA + 64, 8)];
        rig.driver.add(&view, queue, &buffers).unwrap();
        rig.driver.kick(queue);
        let begin = Instant::now();
        while rig.device.report().broken.is_none() {
            assert!(begin.elapsed() < PATIENCE);
        }
        rig.driver.write(0x70, 0);
        view.write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
        rig.driver.bring_up(0x1000, 64);
    }
    rig.say(DATA, b"well\n", 5);
    assert_eq!(exactly(&mut screen, 5), b"well\n");
}

#[test]
fn a_console_at_rest_takes_no_input_and_goes_on_afterwards() {
    let (mut rig, mut keyboard, mut screen) = piped();
    rig.room(DATA, 64);
    rig.rest();
    keyboard.write_all(b"wait").unwrap();
    rig.say(DATA + 0x1000, b"wait too", 8);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((rig.poll(RX), rig.poll(TX)), (None, None));
    rig.device.resume();
    assert_eq!((rig.end(RX), rig.end(TX)), (4, 0));
    assert_eq!(exactly(&mut screen, 8), b"wait too");
}

#[test]
fn a_buffer_that_was_half_sent_is_finished_by_who_is_restored() {
    let (mut rig, _keyboard, mut screen) = piped();
    let text = pattern(1 << 20);
    rig.say(DATA, &text, 1 << 20);
    rig.wait_for("held_up", 1);
    rig.device.with(|console: &mut Console<Plain>| ((), console.resize(100, 40))).unwrap();
    rig.rest();
    let state = serde_json::to_string(&rig.device.save()).unwrap();
    let (_input, _writer) = pipe().unwrap();
    let (mut other_screen, output) = {
        let (screen, output) = pipe().unwrap();
        (File::from(screen), output)
    };
    let other = device(&rig.dma, Files::output(output.into()).unwrap());
    let threads = Threads::start(&[Arc::clone(&other)], 1).unwrap();
    let state: DeviceState = serde_json::from_str(&state).unwrap();
    other.restore(&state).unwrap();
    other.resume();
    // The first has what it took from the guest before, to its end; the rest is the second's.
    rig.threads = None;
    let before = rig.device;
    rig.device = Arc::clone(&other);
    let mut driver_of_old = std::mem::replace(&mut rig.driver, Driver::new(Arc::clone(&other)));
    let sent = state.model.body["sent"].as_u64().unwrap() as usize;
    assert!(sent > 0 && sent < text.len());
    let rest = exactly(&mut other_screen, text.len() - sent);
    assert!(rest == text[sent..]);
    let mut space = [0; 4];
    rig.driver.config(0, &mut space);
    assert_eq!(space, [100, 0, 40, 0]);
    let begin = Instant::now();
    while driver_of_old.poll(&rig.dma.view(), TX).is_none() {
        assert!(begin.elapsed() < PATIENCE);
    }
    drop((driver_of_old, threads));
    let reader = std::thread::spawn(move || exactly(&mut screen, sent));
    drop(before);
    assert!(reader.join().unwrap() == text[..sent]);
}

#[test]
fn a_driver_that_comes_again_finds_a_console_that_works() {
    let (mut rig, mut keyboard, mut screen) = piped();
    for round in 0..20_u8 {
        rig.room(DATA, 64);
        rig.say(DATA + 0x1000, &[round; 3], 1);
        assert_eq!(rig.end(TX), 0);
        assert_eq!(exactly(&mut screen, 3), [round; 3]);
        rig.driver.write(0x70, 0);
        assert_eq!(rig.driver.status(), 0);
        keyboard.write_all(&[round]).unwrap();
        rig.dma.view().write_slice(&[0; 0x8000], GuestAddress(0x1000)).unwrap();
        rig.driver.bring_up(0x1000, 64);
        rig.room(DATA, 64);
        assert_eq!(rig.end(RX), 1);
        assert_eq!(rig.memory(DATA, 1), [round]);
    }
}
