//! Raw pages over a socket, summed up on both sides, against bare blocking writes and reads of as many bytes on the same kind of
//! socket, set up the same way.
//!
//! Rounds alternate, and the median of their ratios counts: the machines that this runs on are shared and noisy. Where other work
//! takes the processors, the ratio of processor time says more: two that are free do both sides' sums at once.

use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Instant;

use guest_mm::addr::Gfn;
use guest_mm::postcopy::stream::{BulkFrame, FrameReader, FrameWriter};
use guest_mm::postcopy::transport::{Address, Connection, Limits, Listener, Security, connect};
use guest_mm::postcopy::wire::{
    Hello, Lane, PAGE_BYTES, PagesHeader, Purpose, Role, Session, Versions,
};
use rustix::time::{ClockId, clock_gettime};

/// More than caches hold, on each side.
const RAM: usize = 512 << 20;
/// Pages of a frame: they stay in a core's cache between their summing up and their sending.
const PAGES: usize = 64;
/// Bytes of one bare write.
const CHUNK: usize = PAGES * PAGE_BYTES;
const ROUNDS: usize = 9;
const GOAL: f64 = 0.85;
/// What [`guest_mm`] gives a Unix socket.
const UNIX_BUFFER: usize = 4 << 20;

/// The two ends' memory.
struct Ram {
    source: Vec<u8>,
    sink: Vec<u8>,
}

fn main() {
    let source = (0..RAM / 8).flat_map(|at| (at as u64 | 1 << 63).to_le_bytes()).collect();
    let mut ram = Ram { source, sink: vec![1; RAM] };
    let folder = tempfile::tempdir().expect("a folder");
    let unix = Address::Unix(folder.path().join("bulk"));
    let tcp = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
    for (name, address, ends) in [("unix", unix, bare_unix as fn() -> Ends), ("tcp", tcp, bare_tcp)]
    {
        let mut rounds: Vec<Round> = (0..ROUNDS)
            .map(|_| Round {
                pages: timed(|| channel(&address, &mut ram)),
                bare: timed(|| bare(ends(), &mut ram)),
            })
            .collect();
        let mut processor: Vec<f64> = rounds.iter().map(|r| r.bare.1 / r.pages.1).collect();
        processor.sort_by(f64::total_cmp);
        rounds.sort_by(|one, other| one.ratio().total_cmp(&other.ratio()));
        let (middle, worst, best) = (&rounds[ROUNDS / 2], &rounds[0], &rounds[ROUNDS - 1]);
        println!(
            "{name:5} {:.2} GB/s, bare {:.2} GB/s: {:.2} times ({:.2} to {:.2}); by processor time {:.2}; goal {GOAL}: {}",
            middle.pages.0,
            middle.bare.0,
            middle.ratio(),
            worst.ratio(),
            best.ratio(),
            processor[ROUNDS / 2],
            if middle.ratio() >= GOAL { "holds" } else { "MISSED" },
        );
    }
}

/// GB/s and seconds of processor time, of pages and of bare bytes.
struct Round {
    pages: (f64, f64),
    bare: (f64, f64),
}

impl Round {
    fn ratio(&self) -> f64 {
        self.pages.0 / self.bare.0
    }
}

/// What `run` says, and the processor time that it took, in seconds.
fn timed(run: impl FnOnce() -> f64) -> (f64, f64) {
    let now = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let start = now();
    (run(), now() - start)
}

/// GB/s of pages that are summed up, framed, read to where they stay and checked.
fn channel(address: &Address, ram: &mut Ram) -> f64 {
    let (at, listens) = mpsc::channel();
    let ready = Barrier::new(2);
    let hello = Hello {
        versions: Versions::SPOKEN,
        role: Role::Bulk(0),
        session: Session::random().expect("random bytes"),
    };
    let limits = Limits::default();
    thread::scope(|scope| {
        let (source, sink) = (&ram.source, &mut ram.sink);
        let ready = &ready;
        scope.spawn(move || {
            runtime().block_on(async {
                let bind = Listener::bind(address, Security::Plain, limits).await;
                let mut listener = bind.expect("a listener");
                at.send(listener.address().clone()).expect("a source that waits");
                let incoming = listener.accept().await.expect("a source");
                let connection = incoming.welcome().await.expect("a source that waits");
                ready.wait();
                receive(connection, sink).await;
            });
        });
        let sending = scope.spawn(move || {
            runtime().block_on(async {
                let to = listens.recv().expect("a sink");
                let connected = connect(&to, &Security::Plain, &limits, &hello).await;
                ready.wait();
                let start = Instant::now();
                send(connected.expect("a sink").0, source).await;
                start
            })
        });
        sending.join().expect("a source that ends")
    })
    .elapsed()
    .as_secs_f64()
    .recip()
        * RAM as f64
        / 1e9
}

async fn send(connection: Connection, memory: &[u8]) {
    let (_read, write) = connection.split().expect("a runtime that takes it");
    let mut writer = FrameWriter::new(write, Lane::BulkToSink);
    for (at, block) in memory.chunks(CHUNK).enumerate() {
        let mut header = PagesHeader::new(Gfn::new((at * PAGES) as u64), Purpose::Bulk);
        for page in block.as_chunks().0 {
            header.push_page(page).expect("a page of the block");
        }
        writer.write_pages(&header, &[IoSlice::new(block)]).await.expect("a sink that reads");
    }
    writer.finish().await.expect("a sink that reads");
}

async fn receive(connection: Connection, memory: &mut [u8]) {
    let (read, _write) = connection.split().expect("a runtime that takes it");
    let mut reader = FrameReader::new(read, Lane::BulkToSink);
    loop {
        match reader.next_pages().await.expect("frames") {
            BulkFrame::Pages(header) => {
                let at = header.first().as_u64() as usize * PAGE_BYTES;
                let into = &mut memory[at..at + header.count() * PAGE_BYTES];
                reader.read_payload(&header, into).await.expect("pages");
            }
            BulkFrame::Fence(_) => {}
            BulkFrame::End => return,
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What is written to, and what is read from.
type Ends = (Box<dyn Write + Send>, Box<dyn Read + Send>);

fn bare_unix() -> Ends {
    let (write, read) = UnixStream::pair().expect("sockets");
    rustix::net::sockopt::set_socket_send_buffer_size(&write, UNIX_BUFFER).expect("a buffer");
    (Box::new(write), Box::new(read))
}

fn bare_tcp() -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let to = listener.local_addr().expect("its address");
    let write = TcpStream::connect(to).expect("a connection");
    write.set_nodelay(true).expect("an option");
    (Box::new(write), Box::new(listener.accept().expect("a connection").0))
}

/// GB/s of bare bytes.
fn bare((mut write, mut read): Ends, ram: &mut Ram) -> f64 {
    let ready = Barrier::new(2);
    thread::scope(|scope| {
        let (source, sink) = (&ram.source, &mut ram.sink);
        let ready = &ready;
        scope.spawn(move || {
            ready.wait();
            for block in sink.chunks_mut(CHUNK) {
                read.read_exact(block).expect("bytes");
            }
        });
        ready.wait();
        let start = Instant::now();
        for block in source.chunks(CHUNK) {
            write.write_all(block).expect("a reader");
        }
        start
    })
    .elapsed()
    .as_secs_f64()
    .recip()
        * RAM as f64
        / 1e9
}
