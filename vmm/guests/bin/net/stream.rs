//! Both ends of a stream: [`rt::flow`] over UDP.

use alloc::vec;

use rt::flow::{self, HEADER, Kind, Message};
use rt::packet::{Body, Host, Ip};
use rt::println;
use rt::tsc::{self, Deadline};
use rt::virtio::Failure;

use crate::station::Station;

/// Datagrams on their way without a word from the receiver, and how many it takes for it to send one.
const WINDOW: u64 = 32;
const SAY: u64 = 8;
/// Milliseconds after which datagrams that nobody has spoken of are taken for lost.
const LOST: u64 = 100;
/// Times that the end is announced, `LOST` apart.
const LAST_WORDS: u64 = 50;
/// Milliseconds that the receiver stays after the end, to say again what came.
const LINGER: u64 = 300;

/// Sends at least `bytes` to `ip`, in datagrams of `size`; whether all of it came there as it was.
pub(crate) fn send(
    station: &mut Station,
    ip: Ip,
    port: u16,
    bytes: u64,
    size: usize,
) -> Result<bool, Failure> {
    let host = station.resolve(ip)?;
    let total = bytes.div_ceil((size - HEADER) as u64);
    let mut buffer = vec![0; size];
    let (mut spoken_of, mut late) = (0, 0u64);
    let start = tsc::now();
    for sequence in 0..total {
        let patience = station.frequency.after(LOST);
        while sequence - spoken_of >= WINDOW {
            match answer(station, port, Kind::Seen)? {
                Some(seen) => spoken_of = seen.sequence.clamp(spoken_of, sequence),
                None if patience.passed() => {
                    late += 1;
                    spoken_of = sequence;
                }
                None => {}
            }
        }
        flow::fill(&mut buffer, sequence);
        station.send(host, Body::Udp { from: port, to: port, data: &buffer })?;
    }
    let done = finish(station, host, port, total)?;
    let cycles = tsc::now() - start;
    let sent = total * (size - HEADER) as u64;
    // The last line is for programs: keys are only ever added.
    println!(
        "net: stream={sent} datagrams={total} received={} wrong={} waits={late} cycles={cycles} bytes_per_s={}",
        done.count,
        done.sum,
        station.frequency.per_second(sent, cycles).unwrap_or(0),
    );
    Ok(done.count == total && done.sum == 0)
}

/// Says that there is no more, until the receiver says what came.
fn finish(station: &mut Station, host: Host, port: u16, sequence: u64) -> Result<Message, Failure> {
    for _ in 0..LAST_WORDS {
        say(station, host, port, Message { kind: Kind::Last, sequence, count: 0, sum: 0 })?;
        let patience = station.frequency.after(LOST);
        while !patience.passed() {
            if let Some(done) = answer(station, port, Kind::Done)? {
                return Ok(done);
            }
        }
    }
    Err(Failure::Wrong("the receiver never said what came"))
}

/// The next message of a kind, if one is there.
fn answer(station: &mut Station, port: u16, kind: Kind) -> Result<Option<Message>, Failure> {
    station.turn(|packet| match packet.body {
        Body::Udp { to, data, .. } if to == port => {
            Message::parse(data).filter(|message| message.kind == kind)
        }
        _ => None,
    })
}

fn say(station: &mut Station, host: Host, port: u16, message: Message) -> Result<(), Failure> {
    let mut bytes = [0; HEADER];
    message.write(&mut bytes);
    station.send(host, Body::Udp { from: port, to: port, data: &bytes })
}

#[derive(Default)]
struct Arrived {
    datagrams: u64,
    bytes: u64,
    wrong: u64,
    /// Datagrams that came after one with a larger number, or again.
    late: u64,
    /// One more than the largest number.
    next: u64,
}

/// Receives a stream on `port`; whether all of it came as it was sent.
pub(crate) fn receive(
    station: &mut Station,
    port: u16,
    end: Option<Deadline>,
) -> Result<bool, Failure> {
    let mut arrived = Arrived::default();
    let (mut start, mut last) = (None, None);
    let mut linger: Option<(Deadline, u64)> = None;
    loop {
        let message = station.turn(|packet| match packet.body {
            Body::Udp { to, data, .. } if to == port => {
                let message = Message::parse(data)?;
                let good = message.kind != Kind::Data || flow::intact(data, &message);
                Some((packet.from, message, good, data.len() - HEADER))
            }
            _ => None,
        })?;
        let Some((from, message, good, len)) = message else {
            if let Some((patience, total)) = linger
                && patience.passed()
            {
                let cycles = last.unwrap_or(0) - start.unwrap_or(0);
                return Ok(report(station, &arrived, total, cycles));
            }
            if linger.is_none() && end.is_some_and(Deadline::passed) {
                return Err(Failure::Wrong("no stream came to its end in net.seconds"));
            }
            continue;
        };
        match message.kind {
            Kind::Data if linger.is_none() => {
                start.get_or_insert(tsc::now());
                last = Some(tsc::now());
                arrived.datagrams += 1;
                arrived.bytes += len as u64;
                arrived.wrong += u64::from(!good);
                arrived.late += u64::from(message.sequence < arrived.next);
                arrived.next = arrived.next.max(message.sequence.saturating_add(1));
                if arrived.datagrams.is_multiple_of(SAY) {
                    let (sequence, count) = (arrived.next, arrived.datagrams);
                    let seen = Message { kind: Kind::Seen, sequence, count, sum: arrived.wrong };
                    say(station, from, port, seen)?;
                }
            }
            Kind::Last => {
                let (sequence, count) = (message.sequence, arrived.datagrams);
                let done = Message { kind: Kind::Done, sequence, count, sum: arrived.wrong };
                say(station, from, port, done)?;
                linger.get_or_insert((station.frequency.after(LINGER), message.sequence));
            }
            _ => {}
        }
    }
}

fn report(station: &Station, arrived: &Arrived, total: u64, cycles: u64) -> bool {
    let Arrived { datagrams, bytes, wrong, late, .. } = arrived;
    // The last line is for programs: keys are only ever added.
    println!(
        "net: sink={bytes} datagrams={total} received={datagrams} wrong={wrong} late={late} cycles={cycles} bytes_per_s={}",
        station.frequency.per_second(*bytes, cycles).unwrap_or(0),
    );
    *datagrams == total && *wrong == 0
}
