//! Echo requests, one after the other.

use alloc::vec;

use rt::histogram::Histogram;
use rt::packet::{Body, Ip};
use rt::permutation::hash;
use rt::println;
use rt::tsc;
use rt::virtio::Failure;

use crate::station::Station;

/// Milliseconds to wait for a reply.
const PATIENCE: u64 = 1000;
const ID: u16 = 0x51a7;

static ROUND_TRIPS: Histogram = Histogram::new();

/// Sends `count` requests with `size` bytes of data to `ip`; whether each was answered with its own data.
pub(crate) fn ping(
    station: &mut Station,
    ip: Ip,
    count: u64,
    size: usize,
) -> Result<bool, Failure> {
    let host = station.resolve(ip)?;
    println!("net: {ip} is at {}", host.mac);
    let mut data = vec![0; size];
    let (mut received, mut wrong) = (0u64, 0u64);
    for number in 0..count {
        (0..).zip(data.iter_mut()).for_each(|(i, byte)| *byte = hash(number << 16 | i) as u8);
        let sequence = number as u16;
        let start = tsc::now();
        station.send(host, Body::Echo { request: true, id: ID, sequence, data: &data })?;
        let patience = station.frequency.after(PATIENCE);
        let answer = loop {
            let reply = |body: Body<'_>| match body {
                Body::Echo { request: false, id: ID, sequence: of, data: echoed } => {
                    (of == sequence).then_some(echoed == data)
                }
                _ => None,
            };
            match station.turn(|packet| reply(packet.body))? {
                None if patience.passed() => break None,
                None => {}
                answer => break answer,
            }
        };
        match answer {
            Some(same) => {
                ROUND_TRIPS.record(tsc::now() - start);
                received += 1;
                wrong += u64::from(!same);
            }
            None => println!("net: no reply to request {number}"),
        }
    }
    // The last line is for programs: keys are only ever added.
    println!(
        "net: pings={count} received={received} wrong={wrong} p50_cycles={} p99={} max={} p50_ns={}",
        ROUND_TRIPS.percentile(50),
        ROUND_TRIPS.percentile(99),
        ROUND_TRIPS.max(),
        station.frequency.nanoseconds(ROUND_TRIPS.percentile(50)).unwrap_or(0),
    );
    Ok(received == count && wrong == 0)
}
