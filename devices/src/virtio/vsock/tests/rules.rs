//! What is not as it should be, and what happens around connections.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use crate::dma::Dma;
use crate::virtio::driver::Buffer;
use crate::virtio::thread::Threads;

use super::super::wire::{EVENT, HEADER, Header, Op, RX, TX};
use super::super::{CONNECTIONS, FIRST_PORT};
use super::{BOTH, CID, Rig, device, exactly, line, rest_of};

#[test]
fn ports_where_nobody_listens_and_connections_that_are_none_are_reset() {
    let mut rig = Rig::new();
    rig.send(Op::Request, 1, 99);
    rig.expect(Op::Rst, 1, 99);
    std::fs::write(rig.path(Some(98)), "no socket").unwrap();
    rig.send(Op::Request, 1, 98);
    rig.expect(Op::Rst, 1, 98);
    for op in [Op::Response, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        rig.send(op, 2, 99);
        rig.expect(Op::Rst, 2, 99);
    }
    rig.send_data(3, 99, b"hello?");
    rig.expect(Op::Rst, 3, 99);
    rig.send(Op::Rst, 4, 99);
    rig.expect_silence();
    assert_eq!((rig.count("refused"), rig.count("connections")), (2, 0));
}

#[test]
fn packets_that_do_not_fit_end_their_connection() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let too_much = Header { len: 0, ..rig.header(Op::Rw, 0, 9) };
    for (port, number) in (1..).zip([1_u16, 2, 0, 8, u16::MAX]) {
        let mut stream = rig.connect(port, 9, &listener);
        let header = Header { src_port: port, op: number, ..too_much };
        rig.send_raw(&header.bytes());
        rig.expect(Op::Rst, port, 9);
        assert_eq!(rest_of(&mut stream), b"", "operation {number}");
    }
    // More than there is room for, of which the guest was told.
    let _stream = rig.connect(20, 9, &listener);
    let reset = (0..100).find_map(|_| {
        rig.send_data(20, 9, &[7; 60_000]);
        rig.poll().filter(|packet| packet.op() == Op::Rst)
    });
    assert!(reset.is_some());
    rig.forget_answers();
    assert_eq!(rig.count("connections"), 0);
    // Data behind what was said to be the last.
    let _stream = rig.connect(21, 9, &listener);
    rig.shut(21, 9, super::SHUTDOWN_SEND);
    rig.send_data(21, 9, b"but");
    rig.expect(Op::Rst, 21, 9);
    assert_eq!(rig.broken(), None);
}

#[test]
fn other_addresses_are_ignored_and_other_types_refused() {
    let mut rig = Rig::new();
    let _listener = rig.listen(9);
    let good = rig.header(Op::Request, 1, 9);
    for header in [
        Header { src_cid: 77, ..good },
        Header { src_cid: 1 << 32 | u64::from(CID), ..good },
        Header { dst_cid: 1, ..good },
        Header { dst_cid: u64::from(CID), ..good },
    ] {
        rig.send_raw(&header.bytes());
    }
    rig.wait("four", |rig| (rig.count("ignored") == 4).then_some(()));
    rig.expect_silence();
    rig.send_raw(&Header { kind: 2, ..good }.bytes());
    assert_eq!(rig.expect(Op::Rst, 1, 9).header.kind, 2);
    rig.send_raw(&Header { kind: 2, op: Op::Rst as u16, ..good }.bytes());
    rig.expect_silence();
}

#[test]
fn chains_that_are_no_packets_break_the_device_until_it_is_reset() {
    let mut rig = Rig::new();
    let long = Header { len: 100, ..rig.header(Op::Rw, 1, 9) };
    let short = [&long.bytes()[..], &[0; 99]].concat();
    for (packet, says) in [(&short[..43], "a header of 43 bytes"), (&short, "and has 99")] {
        rig.send_raw(packet);
        let broken = rig.wait("a break", |rig| rig.broken());
        assert!(broken.contains(says), "{broken}");
        rig.bring_up();
        rig.feed(8);
    }
    for (queue, buffer, says) in [
        (TX, Buffer::writable(0x9_0000, 64), "memory to write"),
        (RX, Buffer::readable(0x9_0000, 64), "memory to read"),
        (RX, Buffer::writable(0x9_0000, HEADER as u32 - 1), "has 43 bytes"),
        (RX, Buffer::writable(0x7000_0000, 4096), "0x70000000"),
    ] {
        rig.bring_up();
        rig.driver.add(&rig.dma.view(), queue, &[buffer]).unwrap();
        rig.driver.kick(queue);
        if queue == RX {
            rig.send(Op::Response, 1, 2);
        }
        let broken = rig.wait("a break", |rig| rig.broken());
        assert!(broken.contains(says), "{broken}");
    }
    rig.bring_up();
    rig.feed(8);
    let listener = rig.listen(9);
    let mut stream = rig.connect(1, 9, &listener);
    rig.send_data(1, 9, b"well");
    assert_eq!(exactly(&mut stream, 4), b"well");
}

#[test]
fn any_headers_leave_a_device_that_works() {
    let mut rig = Rig::new();
    let _listener = rig.listen(9);
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for _ in 0..5000 {
        let data = vec![next(256) as u8; next(300) as usize];
        let wild = next(8) == 0;
        let header = Header {
            src_port: next(3) as u32,
            dst_port: 8 + next(3) as u32,
            len: next(data.len() as u64 + 1) as u32,
            kind: if wild { next(4) as u16 } else { 1 },
            op: next(if wild { 1 << 16 } else { 9 }) as u16,
            flags: next(if wild { 1 << 32 } else { 4 }) as u32,
            buf_alloc: next(1 << 32) as u32,
            fwd_cnt: next(1 << 32) as u32,
            ..rig.header(Op::Rw, 0, 0)
        };
        rig.send_raw(&[&header.bytes()[..], &data].concat());
        while rig.poll().is_some() {}
    }
    for (guest, host) in (0..3).flat_map(|guest| (8..11).map(move |host| (guest, host))) {
        rig.send(Op::Rst, guest, host);
    }
    rig.forget_answers();
    assert_eq!(rig.count("connections"), 0);
    let listener = rig.listen(100);
    let mut stream = rig.connect(77, 100, &listener);
    rig.send_data(77, 100, b"well");
    assert_eq!(exactly(&mut stream, 4), b"well");
}

#[test]
fn programs_that_do_not_say_where_to_go_are_closed() {
    let mut rig = Rig::new();
    let long = format!("CONNECT {}1\n", "0".repeat(40));
    let wrong = ["HELLO\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", &long, "\n"];
    for greeting in wrong {
        // Whether it is closed with what it said unread, and so reset, or not, is no matter.
        let mut stream = rig.program(greeting);
        let mut said = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut said);
        assert_eq!(said, b"", "{greeting:?}");
    }
    drop(rig.program("CONNEC"));
    rig.wait("seven", |rig| (rig.count("refused") == 7).then_some(()));
    rig.expect_silence();
    let mut slow = rig.program("CON");
    std::thread::sleep(Duration::from_millis(20));
    slow.write_all(b"NECT 5").unwrap();
    rig.expect_silence();
    slow.write_all(b"5\n").unwrap();
    let host = rig.recv().ports().1;
    // The guest does not want it.
    rig.send(Op::Rst, 55, host);
    assert_eq!(rest_of(&mut slow), b"");
    // It does not want to wait.
    drop(rig.program("CONNECT 56\n"));
    let host = rig.recv().ports().1;
    rig.expect(Op::Rst, 56, host);
    assert_eq!(rig.count("connections"), 0);
}

#[test]
fn without_buffers_nobody_is_let_in_and_nothing_is_lost() {
    let mut rig = Rig::hungry();
    // More than are remembered: the guest's packets wait.
    (0..276).for_each(|port| rig.send(Op::CreditUpdate, port, 9));
    rig.wait("a full list", |rig| (rig.count("resets") == 256).then_some(()));
    let mut program = rig.program("CONNECT 5\n");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((rig.count("connections"), rig.count("resets")), (0, 256));
    rig.feed(64);
    let mut resets = 0;
    let mut asked = None;
    rig.wait("all answers", |rig| {
        if let Some(packet) = rig.poll() {
            match packet.op() {
                Op::Rst => resets += 1,
                Op::Request => asked = Some(packet.ports().1),
                other => panic!("{other:?}"),
            }
        }
        (asked.is_some() && resets == 276).then_some(())
    });
    rig.send(Op::Response, 5, asked.unwrap());
    assert_eq!(line(&mut program), format!("OK {FIRST_PORT}\n"));
}

#[test]
fn there_are_as_many_connections_as_there_may_be_and_then_no_more() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let most = CONNECTIONS as u32;
    let mut streams = Vec::new();
    for port in 0..most {
        streams.push(rig.connect(port, 9, &listener));
    }
    rig.send(Op::Request, most, 9);
    rig.expect(Op::Rst, most, 9);
    let mut waiting = rig.program("CONNECT 5\n");
    rig.expect_silence();
    rig.shut(17, 9, BOTH);
    rig.expect(Op::Rst, 17, 9);
    let host = rig.recv();
    assert_eq!(host.op(), Op::Request);
    rig.send(Op::Response, 5, host.ports().1);
    assert!(line(&mut waiting).starts_with("OK "));
    streams[1].write_all(b"still here").unwrap();
    assert_eq!(rig.read(1, 9, 10), b"still here");
}

#[test]
fn a_device_at_rest_takes_nothing_from_the_host_and_goes_on_afterwards() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let mut stream = rig.connect(1, 9, &listener);
    rig.rest();
    stream.write_all(b"wait").unwrap();
    let mut program = rig.program("CONNECT 5\n");
    rig.send_data(1, 9, b"wait, too");
    rig.expect_silence();
    stream.set_nonblocking(true).unwrap();
    assert!(std::io::Read::read(&mut stream, &mut [0; 9]).is_err());
    stream.set_nonblocking(false).unwrap();
    rig.device.resume();
    assert_eq!(exactly(&mut stream, 9), b"wait, too");
    let (mut data, mut asked) = (Vec::new(), None);
    rig.wait("both", |rig| {
        if let Some(packet) = rig.poll() {
            match packet.op() {
                Op::Rw => data.extend(packet.data),
                _ => asked = Some(packet.ports().1),
            }
        }
        (data == b"wait" && asked.is_some()).then_some(())
    });
    rig.send(Op::Response, 5, asked.unwrap());
    assert!(line(&mut program).starts_with("OK "));
}

#[test]
fn who_is_restored_hears_that_its_connections_are_gone() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    let _stream = rig.connect(1, 9, &listener);
    rig.feed_event();
    rig.rest();
    let state = serde_json::to_string(&rig.device.save()).unwrap();
    let mut state: crate::virtio::state::DeviceState = serde_json::from_str(&state).unwrap();

    std::fs::remove_file(rig.path(None)).unwrap();
    let other = device(&rig.dma, CID, &rig.path(None));
    rig.threads = Some(Threads::start(&[Arc::clone(&other)], 1).unwrap());
    other.restore(&state).unwrap();
    let before = std::mem::replace(&mut rig.device, Arc::clone(&other));
    assert_eq!(rig.event(), None, "it rests");
    other.resume();
    assert_eq!(rig.wait("the event", Rig::event), 0);
    drop(before);
    // The guest's driver goes on with the queues that it has, and kicks the new device.
    let kick = |queue: u16| other.kick(queue);
    rig.send(Op::CreditRequest, 1, 9);
    kick(TX);
    rig.expect(Op::Rst, 1, 9);
    rig.send(Op::Request, 2, 9);
    kick(TX);
    rig.expect(Op::Response, 2, 9);
    let mut again = listener.accept().unwrap().0;
    rig.send_data(2, 9, b"here I am");
    kick(TX);
    assert_eq!(exactly(&mut again, 9), b"here I am");
    rig.feed_event();
    kick(EVENT);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.event(), None, "it is told once");
    state.model.body["cid"] = 7.into();
    let text = other.restore(&state).unwrap_err().to_string();
    assert!(text.contains("CID was 7"), "{text}");
}

#[test]
fn a_reset_closes_all_connections_and_the_device_works_again() {
    let mut rig = Rig::new();
    let listener = rig.listen(9);
    for round in 0..20 {
        let mut stream = rig.connect(1, 9, &listener);
        let mut program = rig.program("CONNECT 5\n");
        assert_eq!(rig.recv().op(), Op::Request);
        stream.write_all(&[round; 100]).unwrap();
        rig.driver.write(0x70, 0);
        assert_eq!(rig.driver.status(), 0);
        // What it had not read is not read any more.
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        assert_eq!(rest_of(&mut program), b"");
        rig.bring_up();
        rig.feed(8);
    }
    let mut config = [0; 8];
    rig.driver.config(0, &mut config);
    assert_eq!(config, u64::from(CID).to_le_bytes());
}
