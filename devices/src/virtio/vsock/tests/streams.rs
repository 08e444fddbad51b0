//! Bytes go through, as they should, and connections do not stand in each other's way.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use super::super::wire::{Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::{BUFFER, FIRST_PORT};
use super::{BOTH, Rig, exactly, line, pattern, rest_of};

#[test]
fn the_guest_connects_to_the_host_and_bytes_go_both_ways() {
    let mut rig = Rig::new();
    let listener = rig.listen(52);
    let mut stream = rig.connect(1000, 52, &listener);
    let text = pattern(100_000, 1);
    for chunk in text.chunks(30_000) {
        rig.send_data(1000, 52, chunk);
    }
    assert!(exactly(&mut stream, text.len()) == text);
    let back = text.clone();
    let writer = std::thread::spawn(move || {
        stream.write_all(&back).unwrap();
        stream
    });
    assert!(rig.read(1000, 52, text.len()) == text);
    let mut stream = writer.join().unwrap();
    rig.shut(1000, 52, BOTH);
    rig.expect(Op::Rst, 1000, 52);
    assert_eq!(rest_of(&mut stream), b"");
    assert_eq!((rig.count("connections"), rig.count("resets")), (0, 0));
}

#[test]
fn a_program_connects_to_the_guest_and_bytes_go_both_ways() {
    let mut rig = Rig::new();
    // What comes right behind the greeting is the guest's already.
    let mut first = rig.program("CONNECT 80\nGET /");
    let host = rig.recv();
    assert_eq!((host.op(), host.ports()), (Op::Request, (80, FIRST_PORT)));
    rig.expect_silence();
    rig.send(Op::Response, 80, FIRST_PORT);
    assert_eq!(line(&mut first), format!("OK {FIRST_PORT}\n"));
    assert_eq!(rig.read(80, FIRST_PORT, 5), b"GET /");
    rig.send_data(80, FIRST_PORT, b"200");
    assert_eq!(exactly(&mut first, 3), b"200");
    let _second = rig.program("CONNECT 80\n");
    rig.expect(Op::Request, 80, FIRST_PORT + 1);
    drop(first);
    let packet = rig.expect(Op::Shutdown, 80, FIRST_PORT);
    assert_eq!(packet.header.flags, BOTH);
    rig.send(Op::Rst, 80, FIRST_PORT);
    rig.wait("one connection", |rig| (rig.count("connections") == 1).then_some(()));
}

#[test]
fn many_connections_carry_their_own_bytes() {
    const MANY: u32 = 60;
    let mut rig = Rig::new();
    let listener = rig.listen(7);
    let echo = std::thread::spawn(move || {
        let threads: Vec<_> = (0..MANY)
            .map(|_| {
                let mut stream = listener.accept().unwrap().0;
                std::thread::spawn(move || {
                    let mut bytes = [0; 5000];
                    while let Ok(read @ 1..) = stream.read(&mut bytes) {
                        stream.write_all(&bytes[..read]).unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    (0..MANY).for_each(|port| rig.send(Op::Request, port, 7));
    let texts: Vec<_> = (0..MANY).map(|port| pattern(20_000, port as usize)).collect();
    let mut sent = 0;
    let mut back: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut open = 0;
    let mut ended = 0;
    while ended < MANY {
        if open == MANY && sent < 5 {
            for port in 0..MANY {
                let chunk = &texts[port as usize][sent * 4000..][..4000];
                rig.send_data(port, 7, chunk);
            }
            sent += 1;
        }
        let Some(packet) = rig.poll() else { continue };
        let (port, _) = packet.ports();
        match packet.op() {
            Op::Response => open += 1,
            Op::Rw => {
                let so_far = back.entry(port).or_default();
                so_far.extend(packet.data);
                if so_far.len() == 20_000 {
                    rig.shut(port, 7, BOTH);
                }
            }
            Op::Rst => ended += 1,
            Op::CreditUpdate => {}
            other => panic!("{other:?}"),
        }
    }
    for port in 0..MANY {
        assert!(back[&port] == texts[port as usize], "port {port}");
    }
    echo.join().unwrap();
    assert_eq!(rig.count("connections"), 0);
}

#[test]
fn a_program_that_says_no_more_still_hears() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let mut stream = rig.connect(5, 9, &listener);
    stream.write_all(b"the last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.read(5, 9, 14), b"the last words");
    assert_eq!(rig.expect(Op::Shutdown, 5, 9).header.flags, SHUTDOWN_SEND);
    rig.send_data(5, 9, b"I see");
    assert_eq!(exactly(&mut stream, 5), b"I see");
    drop(stream);
    assert_eq!(rig.expect(Op::Shutdown, 5, 9).header.flags, BOTH);
    rig.shut(5, 9, BOTH);
    rig.expect(Op::Rst, 5, 9);
}

#[test]
fn a_guest_that_says_no_more_still_hears() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let mut stream = rig.connect(5, 9, &listener);
    rig.send_data(5, 9, b"the last words");
    rig.shut(5, 9, SHUTDOWN_SEND);
    assert_eq!(rest_of(&mut stream), b"the last words");
    stream.write_all(b"I see").unwrap();
    assert_eq!(rig.read(5, 9, 5), b"I see");
    // What is said once lasts.
    rig.shut(5, 9, SHUTDOWN_RECEIVE);
    rig.expect(Op::Rst, 5, 9);
    assert!(stream.write_all(b"nobody hears it").is_err());
}

#[test]
fn what_a_program_wrote_before_it_went_arrives() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let mut stream = rig.connect(5, 9, &listener);
    let text = pattern(100_000, 3);
    stream.write_all(&text).unwrap();
    drop(stream);
    assert!(rig.read(5, 9, text.len()) == text);
    assert_eq!(rig.expect(Op::Shutdown, 5, 9).header.flags, BOTH);
    // What the guest sends before it has heard of it goes nowhere, and is no fault.
    rig.send_data(5, 9, b"too late");
    rig.send(Op::Rst, 5, 9);
    rig.wait("no connection", |rig| (rig.count("connections") == 0).then_some(()));
    assert_eq!(rig.count("resets"), 0);
}

#[test]
fn a_program_that_does_not_read_holds_up_its_own_connection_only() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let mut slow = rig.connect(1, 9, &listener);
    let mut fast = rig.connect(2, 9, &listener);
    // As much as the guest was told there is room for.
    let text = pattern(4 << 20, 5);
    let (mut sent, mut forwarded) = (0_usize, 0_u32);
    let mut send = |rig: &mut Rig, forwarded: u32| {
        while sent < text.len() {
            let room = (BUFFER - (sent as u32).wrapping_sub(forwarded)) as usize;
            let some = room.min(64 << 10).min(text.len() - sent);
            if some == 0 {
                return false;
            }
            rig.send_data(1, 9, &text[sent..][..some]);
            sent += some;
        }
        true
    };
    loop {
        assert!(!send(&mut rig, forwarded), "a socket does not take 4 MiB");
        rig.send(Op::CreditRequest, 1, 9);
        let update = rig.recv();
        assert_eq!(update.op(), Op::CreditUpdate);
        if update.header.fwd_cnt == forwarded {
            break;
        }
        forwarded = update.header.fwd_cnt;
    }
    rig.send_data(2, 9, b"meanwhile");
    assert_eq!(exactly(&mut fast, 9), b"meanwhile");
    fast.write_all(b"and back").unwrap();
    let back = rig.wait("the other's bytes", |rig| rig.poll().filter(|it| it.op() == Op::Rw));
    assert_eq!((back.ports(), back.data), ((2, 9), b"and back".to_vec()));

    let len = text.len();
    let reader = std::thread::spawn(move || exactly(&mut slow, len));
    while !send(&mut rig, forwarded) {
        let update = rig.expect(Op::CreditUpdate, 1, 9);
        forwarded = update.header.fwd_cnt;
    }
    assert!(reader.join().unwrap() == text);
}

#[test]
fn a_guest_that_does_not_read_holds_up_its_own_connection_only() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let mut other = rig.connect(2, 9, &listener);
    rig.buf_alloc = 1000;
    let mut stream = rig.connect(1, 9, &listener);
    let text = pattern(5000, 7);
    stream.write_all(&text).unwrap();
    assert!(rig.read(1, 9, 1000) == text[..1000]);
    rig.expect(Op::CreditRequest, 1, 9);
    rig.expect_silence();
    other.write_all(b"meanwhile").unwrap();
    assert_eq!(rig.read(2, 9, 9), b"meanwhile");
    // It reads now: 3000 bytes, and the rest.
    rig.buf_alloc = 3000;
    rig.send(Op::CreditUpdate, 1, 9);
    assert!(rig.read(1, 9, 3000) == text[1000..4000]);
    rig.expect(Op::CreditRequest, 1, 9);
    rig.send(Op::CreditUpdate, 1, 9);
    assert!(rig.read(1, 9, 1000) == text[4000..]);
}

/// A driver that asks for credit as soon as it was told of it gets its data as well.
#[test]
fn a_guest_that_asks_for_credit_without_end_gets_data_in_turn() {
    let mut rig = Rig::hungry();
    let listener = rig.listen(9);
    rig.feed(1);
    rig.send(Op::Request, 1, 9);
    let first = rig.wait("the response", Rig::poll_only);
    assert_eq!(first.op(), Op::Response);
    let mut stream = listener.accept().unwrap().0;
    stream.write_all(&pattern(200_000, 13)).unwrap();
    let mut data = 0;
    for _ in 0..20 {
        rig.send(Op::CreditRequest, 1, 9);
        // It is heard before there is a buffer for an answer.
        std::thread::sleep(Duration::from_millis(3));
        rig.feed(1);
        data += usize::from(rig.wait("a packet", Rig::poll_only).op() == Op::Rw);
    }
    assert!((9..=11).contains(&data), "{data} of 20 packets had data");
}

#[test]
fn data_that_has_not_gone_goes_before_the_end_is_told() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let mut stream = rig.connect(1, 9, &listener);
    let text = pattern(BUFFER as usize + 100_000, 11);
    let mut sent = 0;
    // More than the socket takes at once, as credit permits.
    let mut forwarded = 0;
    while sent < text.len() {
        let some = (BUFFER as usize - (sent - forwarded)).min(60_000).min(text.len() - sent);
        if some == 0 {
            break;
        }
        rig.send_data(1, 9, &text[sent..][..some]);
        sent += some;
        rig.send(Op::CreditRequest, 1, 9);
        forwarded = rig.recv().header.fwd_cnt as usize;
        while let Some(packet) = rig.poll() {
            forwarded = packet.header.fwd_cnt as usize;
        }
    }
    rig.shut(1, 9, BOTH);
    assert!(rest_of(&mut stream) == text[..sent]);
    rig.wait("the end", |rig| rig.poll().filter(|packet| packet.op() == Op::Rst));
}

#[test]
fn what_a_guest_sent_before_it_went_is_read_however_late() {
    let mut rig = Rig::by_hand();
    let listener = rig.listen(9);
    let mut slow = rig.connect(1, 9, &listener);
    // As much as the socket and the device take.
    let text = pattern(4 << 20, 13);
    let (mut sent, mut forwarded) = (0, 0);
    while sent - forwarded < BUFFER as usize {
        let some = (BUFFER as usize - (sent - forwarded)).min(60_000);
        rig.send_data(1, 9, &text[sent..][..some]);
        sent += some;
        rig.send(Op::CreditRequest, 1, 9);
        let mut told = rig.recv();
        // An update of its own accord may come before.
        while let Some(next) = rig.wait("the queue", |rig| Some(rig.poll())) {
            told = next;
        }
        forwarded = told.header.fwd_cnt as usize;
    }
    rig.shut(1, 9, BOTH);
    rig.send(Op::Rst, 1, 9);
    // The ports are free for another.
    let mut again = rig.connect(1, 9, &listener);
    rig.expect_sleep("nobody reads");
    rig.rest();
    let reader = std::thread::spawn(move || rest_of(&mut slow));
    rig.wait("all that was sent", |_| reader.is_finished().then_some(()));
    assert!(reader.join().unwrap() == text[..sent]);
    rig.device.resume();
    rig.send_data(1, 9, b"and more");
    rig.wait("it", |rig| (rig.count("bytes_from_guest") == sent as u64 + 8).then_some(()));
    assert_eq!(exactly(&mut again, 8), b"and more");
    assert_eq!((rig.count("connections"), rig.count("resets")), (1, 0));
}

#[test]
fn what_cannot_go_on_wakes_nobody() {
    let mut rig = Rig::by_hand();
    let listener = rig.listen(9);
    rig.expect_sleep("nothing has happened");
    // A program that has gone, and a guest that does not read what it left.
    rig.buf_alloc = 10;
    let mut gone = rig.connect(1, 9, &listener);
    gone.write_all(&[1; 100]).unwrap();
    rig.read(1, 9, 10);
    drop(gone);
    rig.expect(Op::CreditRequest, 1, 9);
    rig.expect_sleep("there is no credit");
    rig.buf_alloc = 1 << 20;
    // A program that does not read.
    let _deaf = rig.connect(2, 9, &listener);
    (0..4).for_each(|_| rig.send_data(2, 9, &[2; 60_000]));
    rig.expect_sleep("a socket is full");
    rig.forget_answers();
    // One that says no more, and one that waits for the guest, or has not said what it wants.
    let silent = rig.connect(3, 9, &listener);
    silent.shutdown(Shutdown::Write).unwrap();
    rig.expect(Op::Shutdown, 3, 9);
    let _asks = rig.program("CONNECT 5\n");
    let _dawdles = rig.program("CONN");
    rig.expect(Op::Request, 5, FIRST_PORT);
    rig.expect_sleep("half is closed, and half is begun");
    drop(silent);
    assert_eq!(rig.expect(Op::Shutdown, 3, 9).header.flags, BOTH);
    rig.expect_sleep("the guest has to answer");
    // At rest, everything that can happen.
    rig.rest();
    let mut typed = rig.program("CONNECT 7\n");
    typed.write_all(b"early").unwrap();
    rig.send_data(2, 9, b"late");
    rig.expect_sleep("it rests");
    drop(typed);
    rig.expect_sleep("it rests still");
}

#[test]
fn without_buffers_nothing_wakes_anybody() {
    let mut rig = Rig::by_hand();
    let listener = rig.listen(9);
    let mut streams: Vec<_> = (0..3).map(|port| rig.connect(port, 9, &listener)).collect();
    // The guest gives none of them back.
    for (stream, byte) in streams.iter_mut().zip(1..) {
        stream.write_all(&[byte; 200_000]).unwrap();
    }
    let mut taken = 0;
    rig.wait("all buffers", |rig| {
        taken += usize::from(rig.poll_only().is_some());
        (taken == 64).then_some(())
    });
    rig.expect_sleep("there are no buffers");
    streams.pop();
    let _program = rig.program("CONNECT 5\n");
    rig.expect_sleep("there are no buffers still");
    rig.feed(64);
    rig.wait("more", Rig::poll_only);
}
