//! `net`: talks over a virtio network device: asks others for echoes, sends back what others send, streams to another guest.
#![no_std]
#![no_main]

extern crate alloc;

mod ping;
mod station;
mod stream;
mod wire;

use rt::boot_params::Boot;
use rt::cmdline::{BadValue, Cmdline, Expected};
use rt::flow;
use rt::packet::{Body, Host, Ip, MAX_DATA};
use rt::tsc::{Deadline, Frequency};
use rt::virtio::{Devices, Failure};
use rt::{exit, println};
use virtio_drivers::transport::DeviceType;

use station::Station;
use wire::Wire;

rt::main!(main);

/// What the guest is there for.
enum Job {
    /// Ask this host for so many echoes of so many bytes.
    Ping(Ip, u64, usize),
    /// Send back so many packets; none: until someone says `bye`.
    Echo(Option<u64>),
    /// Stream so many bytes to this host, in datagrams of so many.
    Stream(Ip, u64, usize),
    /// Receive a stream.
    Sink,
}

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|failure| {
        println!("net: {failure}");
        failure.verdict()
    })
}

fn run(boot: &Boot) -> Result<u8, Failure> {
    let mut devices = Devices::find(boot);
    let line = boot.cmdline();
    let job = Job::parse(line)?;
    let ip = address(line, "net.ip")?.unwrap_or(Ip([10, 0, 0, 2]));
    let port = line.number_in("net.port", 1, 65535, 7777)? as u16;
    let seconds = line.number_in("net.seconds", 0, 1 << 20, 0)?;
    let index = line.number_in("net.index", 0, u64::MAX, 0)? as usize;
    let frequency = Frequency::find(line)?;
    let wire = Wire::new(devices.take(DeviceType::Network, index)?, frequency)?;
    let me = Host { mac: wire.mac(), ip };
    println!("net: {ip} at {}", me.mac);
    let mut station = Station { wire, me, frequency, echo: None, answered: 0 };
    let end = (seconds != 0).then(|| frequency.after(seconds * 1000));
    let good = match job {
        Job::Ping(ip, count, size) => ping::ping(&mut station, ip, count, size)?,
        Job::Echo(count) => echo(&mut station, port, count, end)?,
        Job::Stream(ip, bytes, size) => stream::send(&mut station, ip, port, bytes, size)?,
        Job::Sink => stream::receive(&mut station, port, end)?,
    };
    station.wire.drain()?;
    Ok(if good { 0 } else { exit::FAILED })
}

impl Job {
    fn parse(line: Cmdline<'static>) -> Result<Job, BadValue<'static>> {
        let ping = address(line, "net.ping")?;
        let to = address(line, "net.to")?;
        let echo = line.switch("net.echo", false)?;
        let sink = line.switch("net.sink", false)?;
        let stream = line.number_in("net.stream", 1, 1 << 50, 0)?;
        let count = line.number("net.count")?;
        let max = MAX_DATA as u64;
        let jobs = [ping.is_some(), echo, sink, stream != 0];
        if jobs.iter().filter(|&&job| job).count() != 1 {
            let expected = Expected::Words(
                "exactly one of net.ping=ADDRESS, net.echo=1, net.sink=1 and net.stream=BYTES",
            );
            return Err(BadValue { key: "net", value: "", expected });
        }
        match (ping, to) {
            (Some(ip), _) => {
                let size = line.number_in("net.size", 0, max, 56)? as usize;
                Ok(Job::Ping(ip, count.unwrap_or(4), size))
            }
            (None, _) if echo => Ok(Job::Echo(count.filter(|&count| count != 0))),
            (None, _) if sink => Ok(Job::Sink),
            (None, Some(ip)) => {
                let least = flow::HEADER as u64 + 8;
                let size = line.number_in("net.size", least, max, 1472)? & !7;
                Ok(Job::Stream(ip, stream, size as usize))
            }
            (None, None) => {
                let expected = Expected::Words("the address to stream to");
                Err(BadValue { key: "net.to", value: "", expected })
            }
        }
    }
}

fn address(line: Cmdline<'static>, key: &'static str) -> Result<Option<Ip>, BadValue<'static>> {
    let Some(value) = line.get(key) else { return Ok(None) };
    match Ip::parse(value) {
        Some(ip) => Ok(Some(ip)),
        None => {
            let expected = Expected::Words("an address like 10.0.0.1");
            Err(BadValue { key, value, expected })
        }
    }
}

/// Sends back what comes, until `count` packets were, `end` has come, or someone sends the datagram `bye`.
fn echo(
    station: &mut Station,
    port: u16,
    count: Option<u64>,
    end: Option<Deadline>,
) -> Result<bool, Failure> {
    station.echo = Some(port);
    let bye = |body: Body<'_>| matches!(body, Body::Udp { to, data: b"bye", .. } if to == port);
    loop {
        let said = station.turn(|packet| bye(packet.body).then_some(()))?;
        let enough = count.is_some_and(|count| station.answered >= count);
        if said.is_some() || enough || end.is_some_and(Deadline::passed) {
            break;
        }
    }
    let (sent, received) = (station.wire.sent, station.wire.received);
    // The last line is for programs: keys are only ever added.
    println!(
        "net: answered={} frames_in={} bytes_in={} frames_out={} bytes_out={}",
        station.answered, received.frames, received.bytes, sent.frames, sent.bytes,
    );
    Ok(true)
}
