//! Raw pages over a socket, summed up on both sides, against bare blocking writes and reads of as many bytes on the same kind of
//! socket, set up the same way.
//!
//! Rounds alternate, and the median of their ratios counts: the machines that this runs on are shared and noisy.

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
    Hello, Lane, MOST_PAGES, PAGE_BYTES, PagesHeader, Purpose, Role, Session, Versions,
};

/// More than caches hold, on each side.
const RAM: usize = 512 << 20;
const BLOCK: usize = MOST_PAGES * PAGE_BYTES;
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
        let mut rounds: Vec<(f64, f64)> =
            (0..ROUNDS).map(|_| (channel(&address, &mut ram), bare(ends(), &mut ram))).collect();
        rounds.sort_by(|one, other| (one.0 / one.1).total_cmp(&(other.0 / other.1)));
        let (pages, bare) = rounds[ROUNDS / 2];
        let (ratio, worst) = (pages / bare, rounds[0].0 / rounds[0].1);
        let best = rounds[ROUNDS - 1].0 / rounds[ROUNDS - 1].1;
        let holds = if ratio >= GOAL { "holds" } else { "MISSED" };
        println!(
            "{name:5} {pages:6.2} GB/s, bare {bare:6.2} GB/s: {ratio:.2} times ({worst:.2} to {best:.2}), goal {GOAL}: {holds}"
        );
    }
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
    let (_read, write) = connection.split();
    let mut writer = FrameWriter::new(write, Lane::BulkToSink);
    for (at, block) in memory.chunks(BLOCK).enumerate() {
        let mut header = PagesHeader::new(Gfn::new((at * MOST_PAGES) as u64), Purpose::Bulk);
        for page in block.as_chunks().0 {
            header.push_page(page).expect("a page of the block");
        }
        writer.write_pages(&header, &[IoSlice::new(block)]).await.expect("a sink that reads");
    }
    writer.finish().await.expect("a sink that reads");
}

async fn receive(connection: Connection, memory: &mut [u8]) {
    let (read, _write) = connection.split();
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
            for block in sink.chunks_mut(BLOCK) {
                read.read_exact(block).expect("bytes");
            }
        });
        ready.wait();
        let start = Instant::now();
        for block in source.chunks(BLOCK) {
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
