//! `vsock`: talks over a virtio socket device: connects to a program of the host, which has to send back what it gets, or waits
//! for such programs and sends back what they send.
#![no_std]
#![no_main]

extern crate alloc;

mod asker;
mod echo;
mod line;

use rt::boot_params::Boot;
use rt::cmdline::{BadValue, Cmdline, Expected};
use rt::tsc::Frequency;
use rt::virtio::{Devices, Failure};
use rt::{exit, println};
use virtio_drivers::transport::DeviceType;

use line::{BUFFER, Line};

rt::main!(main);

/// Connections at a time, at most.
const MOST: u64 = 64;
/// The last port there is.
const LAST_PORT: u64 = 0xffff_fffe;

/// What the guest is there for.
enum Job {
    /// Connect to this port of the host.
    Connect(u32),
    /// Wait at this port for programs of the host.
    Listen(u32),
}

fn main(boot: &Boot) -> u8 {
    run(boot).unwrap_or_else(|failure| {
        println!("vsock: {failure}");
        failure.verdict()
    })
}

fn run(boot: &Boot) -> Result<u8, Failure> {
    let mut devices = Devices::find(boot);
    let line = boot.cmdline();
    let job = Job::parse(line)?;
    let connections = line.number_in("vsock.connections", 1, MOST, 1)? as usize;
    let bytes = line.number_in("vsock.bytes", 0, 1 << 50, 1 << 20)?;
    let size = line.number_in("vsock.size", 1, BUFFER.into(), 4096)? as usize;
    let seconds = line.number_in("vsock.seconds", 0, 1 << 20, 0)?;
    let index = line.number_in("vsock.index", 0, u64::MAX, 0)? as usize;
    let frequency = Frequency::find(line)?;
    let end = (seconds != 0).then(|| frequency.after(seconds * 1000));
    let line = Line::new(devices.take(DeviceType::Socket, index)?, end)?;
    println!("vsock: context {}", line.cid());
    let good = match job {
        Job::Connect(port) => asker::ask(line, frequency, port, connections, bytes, size)?,
        Job::Listen(port) => echo::echo(line, port, connections, size)?,
    };
    Ok(if good { 0 } else { exit::FAILED })
}

impl Job {
    fn parse(line: Cmdline<'static>) -> Result<Job, BadValue<'static>> {
        let port = |key| match line.get(key) {
            Some(_) => line.number_in(key, 0, LAST_PORT, 0).map(|port| Some(port as u32)),
            None => Ok(None),
        };
        match (port("vsock.port")?, port("vsock.listen")?) {
            (Some(port), None) => Ok(Job::Connect(port)),
            (None, Some(port)) => Ok(Job::Listen(port)),
            _ => {
                let expected = Expected::Words("either vsock.port=PORT or vsock.listen=PORT");
                Err(BadValue { key: "vsock", value: "", expected })
            }
        }
    }
}
