//! Clients that come and go at a console's socket.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::dma::Plain;
use crate::virtio::driver::Driver;
use crate::virtio::thread::Attendance;

use super::super::KEPT;
use super::super::host::Socket;
use super::super::wire::{RX, TX};
use super::{DATA, Rig, device, exactly, pattern};

fn listening(folder: &TempDir) -> (Rig, PathBuf) {
    let path = folder.path().join("console");
    (Rig::new(Socket::new(UnixListener::bind(&path).unwrap()).unwrap()), path)
}

#[test]
fn a_client_gets_what_was_written_before_and_a_second_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (mut rig, path) = listening(&folder);
    rig.say(DATA, b"booting\n", 8);
    rig.end(TX);
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(exactly(&mut client, 8), b"booting\n");
    let mut second = UnixStream::connect(&path).unwrap();
    let mut sentence = String::new();
    second.read_to_string(&mut sentence).unwrap();
    assert_eq!(sentence, "this console has a client already\n");
    rig.room(DATA, 64);
    client.write_all(b"hello\n").unwrap();
    assert_eq!(rig.end(RX), 6);
    drop(client);
    rig.room(DATA, 64);
    let mut third = UnixStream::connect(&path).unwrap();
    third.write_all(b"it is me\n").unwrap();
    assert_eq!(rig.end(RX), 9);
    rig.say(DATA, b"hello you\n", 10);
    assert_eq!(exactly(&mut third, 10), b"hello you\n");
    assert_eq!(rig.count("refused"), 1);
}

#[test]
fn what_a_client_typed_before_it_went_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (mut rig, path) = listening(&folder);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"poweroff\n").unwrap();
    drop(client);
    std::thread::sleep(Duration::from_millis(20));
    rig.room(DATA, 4);
    rig.room(DATA + 4, 64);
    assert_eq!((rig.end(RX), rig.end(RX)), (4, 5));
    assert_eq!(rig.memory(DATA, 9), b"poweroff\n");
}

#[test]
fn a_client_that_types_no_more_still_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (mut rig, path) = listening(&folder);
    rig.room(DATA, 64);
    rig.room(DATA, 64);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"uname\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.end(RX), 6);
    rig.say(DATA, b"Linux\n", 6);
    assert_eq!(exactly(&mut client, 6), b"Linux\n");
    drop(client);
    let mut next = UnixStream::connect(&path).unwrap();
    next.write_all(b"!").unwrap();
    assert_eq!(rig.end(RX), 1);
}

#[test]
fn the_latest_of_what_nobody_listened_to_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (mut rig, path) = listening(&folder);
    let text = pattern(3 * KEPT + 17);
    for (at, chunk) in text.chunks(KEPT + 1000).enumerate() {
        rig.say(DATA + (at * 2 * KEPT) as u64, chunk, 30_000);
        rig.end(TX);
    }
    let mut client = UnixStream::connect(&path).unwrap();
    assert!(exactly(&mut client, KEPT) == text[text.len() - KEPT..]);
    assert_eq!(rig.count("bytes_lost"), (2 * KEPT + 17) as u64);
}

/// Nothing wakes the thread of the devices once it has done what there is to do.
fn expect_sleep(attendance: &Attendance<Plain>, when: &str) {
    const NIGHT: Duration = Duration::from_millis(20);
    let slept = (0..100).any(|_| {
        let begin = Instant::now();
        attendance.turn(Some(NIGHT)).unwrap();
        begin.elapsed() >= NIGHT
    });
    assert!(slept, "{when}");
}

#[test]
fn what_cannot_go_on_wakes_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let dma = Plain::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
    let device = device(&dma, Socket::new(UnixListener::bind(&path).unwrap()).unwrap());
    let attendance = Attendance::new(vec![Arc::clone(&device)]).unwrap();
    let mut driver = Driver::new(Arc::clone(&device));
    driver.bring_up(0x1000, 64);
    let mut rig = Rig { dma, device, driver, threads: None };
    expect_sleep(&attendance, "nothing has happened");
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"typed").unwrap();
    expect_sleep(&attendance, "there are no buffers");
    rig.say(DATA, &pattern(2 << 20), 2 << 20);
    expect_sleep(&attendance, "the client does not read");
    rig.rest();
    // What the console has taken goes, and no more.
    client.set_nonblocking(true).unwrap();
    let mut shown = 0;
    for _ in 0..20 {
        attendance.turn(Some(Duration::ZERO)).unwrap();
        while let Ok(read) = client.read(&mut [0; 65536]) {
            shown += read;
        }
    }
    assert!(shown > KEPT && shown < 2 << 20);
    expect_sleep(&attendance, "it rests");
    rig.device.resume();
    drop(client);
    expect_sleep(&attendance, "the client has gone, and what it typed is not read");
    assert_eq!(rig.poll(TX), Some(0), "what nobody hears does not hold up");
    rig.room(DATA, 64);
    expect_sleep(&attendance, "it is read");
    assert_eq!(rig.poll(RX), Some(5));
    let client = UnixStream::connect(&path).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    rig.room(DATA, 64);
    expect_sleep(&attendance, "the client types no more");
    rig.driver.write(0x70, 0);
    drop(client);
    expect_sleep(&attendance, "there is no driver");
}
