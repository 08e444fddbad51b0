//! Bytes over TCP, there and back: whoever receives compares each with what it has to be, and the sum of all with the sender's.
//!
//! The one that connects sends the number of bytes and a seed, then the stream of that seed and its sum, and gets back how many
//! were wrong. Then the other sends as many of the next seed.

use std::hash::Hasher;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use twox_hash::XxHash3_64;

use crate::noise::Noise;
use crate::{Outcome, mebibytes, rate, unfit};

/// Bytes of a system call.
const CHUNK: usize = 256 << 10;

/// The stream that goes there has this seed, and the one that comes back the next.
const SEED: u64 = 0x51a7;

pub(crate) fn run(args: &[&str]) -> Outcome {
    let outcome = match args {
        ["--listen", at] => listen(at),
        [at, mib] => call(at, mebibytes(mib)? as u64),
        _ => return Err(unfit()),
    };
    outcome.map_err(|error| error.to_string())
}

fn listen(at: &str) -> std::io::Result<(String, bool)> {
    let listener = TcpListener::bind(at)?;
    println!("transfer: listening on {}", listener.local_addr()?);
    let (mut peer, from) = listener.accept()?;
    let (length, seed) = (get(&mut peer)?, get(&mut peer)?);
    let received = receive(&mut peer, length, seed)?;
    put(&mut peer, received.wrong)?;
    let sent = send(&mut peer, length, seed + 1)?;
    let line = told(&sent, &received);
    Ok((format!("{line} from={}", from.ip()), sent.wrong + received.wrong == 0))
}

fn call(at: &str, length: u64) -> std::io::Result<(String, bool)> {
    let mut peer = TcpStream::connect(at)?;
    put(&mut peer, length)?;
    put(&mut peer, SEED)?;
    let sent = send(&mut peer, length, SEED)?;
    let received = receive(&mut peer, length, SEED + 1)?;
    put(&mut peer, received.wrong)?;
    Ok((told(&sent, &received), sent.wrong + received.wrong == 0))
}

/// What became of one way.
struct Way {
    bytes: u64,
    wrong: u64,
    seconds: f64,
}

fn told(sent: &Way, received: &Way) -> String {
    format!(
        "sent={} received={} wrong={} send_mib_s={:.2} receive_mib_s={:.2}",
        sent.bytes,
        received.bytes,
        sent.wrong + received.wrong,
        rate(sent.bytes, sent.seconds),
        rate(received.bytes, received.seconds)
    )
}

/// Sends a stream and its sum, and hears how many bytes of it were wrong.
fn send(peer: &mut TcpStream, length: u64, seed: u64) -> std::io::Result<Way> {
    let started = Instant::now();
    let (mut noise, mut sum) = (Noise::new(seed), XxHash3_64::new());
    let mut buffer = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let chunk = &mut buffer[..left.min(CHUNK as u64) as usize];
        noise.fill(chunk);
        sum.write(chunk);
        peer.write_all(chunk)?;
        left -= chunk.len() as u64;
    }
    put(peer, sum.finish())?;
    let wrong = get(peer)?;
    Ok(Way { bytes: length, wrong, seconds: started.elapsed().as_secs_f64() })
}

/// Receives a stream and its sum.
fn receive(peer: &mut TcpStream, length: u64, seed: u64) -> std::io::Result<Way> {
    let started = Instant::now();
    let (mut noise, mut sum) = (Noise::new(seed), XxHash3_64::new());
    let mut buffer = vec![0; CHUNK];
    let (mut left, mut wrong) = (length, 0);
    while left > 0 {
        let most = left.min(CHUNK as u64) as usize;
        let got = match peer.read(&mut buffer[..most])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            got => &buffer[..got],
        };
        wrong += noise.wrong(got);
        sum.write(got);
        left -= got.len() as u64;
    }
    // Bytes that are all right and a sum that is not: then the sum is what came wrong.
    let sums_differ = get(peer)? != sum.finish();
    let wrong = wrong.max(u64::from(sums_differ));
    Ok(Way { bytes: length, wrong, seconds: started.elapsed().as_secs_f64() })
}

fn put(peer: &mut TcpStream, value: u64) -> std::io::Result<()> {
    peer.write_all(&value.to_le_bytes())
}

fn get(peer: &mut TcpStream) -> std::io::Result<u64> {
    let mut value = [0; 8];
    peer.read_exact(&mut value)?;
    Ok(u64::from_le_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection of the test to itself.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_stream_comes_as_it_was_sent() {
        let (mut near, mut far) = pair();
        let length = 3 * CHUNK as u64 + 5;
        let receiver = std::thread::spawn(move || {
            let way = receive(&mut far, length, 9).unwrap();
            put(&mut far, way.wrong).unwrap();
            way
        });
        let sent = send(&mut near, length, 9).unwrap();
        let received = receiver.join().unwrap();
        assert_eq!((sent.bytes, sent.wrong), (length, 0));
        assert_eq!((received.bytes, received.wrong), (length, 0));
        assert!(told(&sent, &received).starts_with("sent=786437 received=786437 wrong=0 "));
    }

    #[test]
    fn wrong_bytes_and_a_wrong_sum_are_counted() {
        for (harm, bad_sum, wrong) in [(&[0, 50][..], 0, 2), (&[], 1, 1)] {
            let (mut near, mut far) = pair();
            let mut bytes = vec![0; 100];
            Noise::new(3).fill(&mut bytes);
            let mut sum = XxHash3_64::new();
            sum.write(&bytes);
            harm.iter().for_each(|&at: &usize| bytes[at] ^= 0x80);
            near.write_all(&bytes).unwrap();
            put(&mut near, sum.finish() + bad_sum).unwrap();
            assert_eq!(receive(&mut far, 100, 3).unwrap().wrong, wrong);
        }
    }

    #[test]
    fn one_that_listens_answers_one_that_calls() {
        // A port that was free a moment ago.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let at = free.clone();
        let listener = std::thread::spawn(move || listen(&at).unwrap());
        let (line, well) = loop {
            match call(&free, 1 << 20) {
                Ok(told) => break told,
                Err(_) => std::thread::yield_now(),
            }
        };
        assert!(well && line.starts_with("sent=1048576 received=1048576 wrong=0 "), "{line}");
        let (line, well) = listener.join().unwrap();
        assert!(well && line.ends_with(" from=127.0.0.1"), "{line}");
    }
}
