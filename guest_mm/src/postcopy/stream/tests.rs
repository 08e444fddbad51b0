//! Streams in memory and over sockets: what is written is read, at whatever sizes it comes, and what is wrong is named.

use std::io::{IoSlice, IoSliceMut};
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::UnixStream;

use super::*;
use crate::addr::{Gfn, GfnRange};
use crate::postcopy::wire::*;

/// What a test may take: one that hangs fails.
const DEADLINE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

fn run<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("it hangs") })
}

type Page = [u8; PAGE_BYTES];

/// The page `number`: none at every third, which is zeroes, and the others compress.
fn page(number: u64) -> Page {
    let mut page = [0; PAGE_BYTES];
    if !number.is_multiple_of(3) {
        page[..8].copy_from_slice(&number.to_le_bytes());
        page[2048..].fill(number as u8);
    }
    page
}

/// Pages as they lie in RAM, and the header of `count` from `first` on.
fn pages(first: u64, count: u64, purpose: Purpose) -> (PagesHeader, Vec<Page>) {
    let mut header = PagesHeader::new(Gfn::new(first), purpose);
    let all: Vec<Page> = (first..first + count).map(page).collect();
    all.iter().for_each(|page| assert!(header.push_page(page).is_ok()));
    (header, all)
}

fn slices<'a>(header: &PagesHeader, all: &'a [Page]) -> Vec<IoSlice<'a>> {
    header.nonzero_runs().map(|run| IoSlice::new(all[run].as_flattened())).collect()
}

fn sent(header: &PagesHeader, payload: &[IoSlice<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    header.encode(&mut bytes).unwrap();
    payload.iter().for_each(|slice| bytes.extend_from_slice(slice));
    bytes
}

async fn next(reader: &mut FrameReader<impl tokio::io::AsyncRead + Unpin>) -> PagesHeader {
    match reader.next_pages().await.unwrap() {
        BulkFrame::Pages(header) => header,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pages_arrive_as_they_were_in_every_encoding_and_at_any_size_of_the_pipe() {
    for (encoding, pipe) in [
        (Encoding::Raw, 1 << 20),
        (Encoding::Raw, 37),
        (Encoding::Lz4, 4096),
        (Encoding::Zstd, 100),
    ] {
        let (write, read) = duplex(pipe);
        let source = async {
            let mut writer = FrameWriter::new(write, Lane::BulkToSink);
            let mut packer = Packer::new();
            for first in [0, 512, 1024 + 500] {
                let (mut header, all) = pages(first, 12, Purpose::Bulk);
                let raw = slices(&header, &all);
                match packer.pack(&mut header, encoding, &raw).unwrap() {
                    Some(packed) => {
                        let packed = [IoSlice::new(packed)];
                        writer.write_pages(&header, &packed).await.unwrap();
                    }
                    None => writer.write_pages(&header, &raw).await.unwrap(),
                }
                writer.write_fence(first).await.unwrap();
            }
            let mut zeroes = PagesHeader::new(Gfn::new(9), Purpose::Bulk);
            zeroes.push_zero().unwrap();
            writer.write_pages(&zeroes, &[]).await.unwrap();
            writer.finish().await.unwrap();
        };
        let sink = async {
            let mut reader = FrameReader::new(read, Lane::BulkToSink).with_patience(DEADLINE);
            for first in [0, 512, 1024 + 500] {
                let header = next(&mut reader).await;
                assert_eq!(header.encoding(), encoding);
                let expected: Vec<Page> = (first..first + 12).map(page).collect();
                let mut into = vec![0xee; 12 * PAGE_BYTES];
                if first == 512 {
                    // To scattered places, without the zeroes.
                    let (one, rest) = into.split_at_mut(PAGE_BYTES);
                    let mut parts =
                        [IoSliceMut::new(one), IoSliceMut::new(&mut rest[..7 * PAGE_BYTES])];
                    reader.read_into(&header, &mut parts).await.unwrap();
                    let nonzero = header.nonzero_pages().map(|gfn| page(gfn.as_u64()));
                    let nonzero: Vec<u8> = nonzero.flatten().collect();
                    assert_eq!(into[..nonzero.len()], nonzero);
                } else {
                    reader.read_payload(&header, &mut into).await.unwrap();
                    assert!(into == expected.as_flattened());
                }
                assert_eq!(reader.next_pages().await.unwrap(), BulkFrame::Fence(first));
            }
            let header = next(&mut reader).await;
            let mut into = [1; PAGE_BYTES];
            reader.read_payload(&header, &mut into).await.unwrap();
            assert_eq!(into, [0; PAGE_BYTES]);
            assert_eq!(reader.next_pages().await.unwrap(), BulkFrame::End);
        };
        run(async { tokio::join!(source, sink) });
    }
}

#[test]
fn what_does_not_shrink_stays_raw() {
    let mut noise = [0; PAGE_BYTES];
    let mut state = 1_u64;
    noise.as_chunks_mut().0.iter_mut().for_each(|word| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *word = (state ^ state >> 29).to_le_bytes();
    });
    for encoding in [Encoding::Raw, Encoding::Lz4, Encoding::Zstd] {
        let mut header = PagesHeader::new(Gfn::new(0), Purpose::Bulk);
        header.push_page(&noise).unwrap();
        let before = header.clone();
        let payload = [IoSlice::new(&noise)];
        assert!(Packer::new().pack(&mut header, encoding, &payload).unwrap().is_none());
        assert_eq!(header, before);
    }
}

#[test]
fn a_payload_is_checked_page_by_page() {
    let (header, all) = pages(1, 4, Purpose::Bulk);
    let raw = slices(&header, &all);
    let good = sent(&header, &raw);
    let payload = good.len() - header.payload_bytes();
    // Pages 1, 2 and 4.
    for (at, gfn) in [(0, 1), (4095, 1), (4096, 2), (3 * 4096 - 1, 4)] {
        let mut bytes = good.clone();
        bytes[payload + at] ^= 0x10;
        let read = async |into: &mut [u8]| {
            let mut reader = FrameReader::new(&bytes[..], Lane::BulkToSink);
            let header = next(&mut reader).await;
            reader.read_payload(&header, into).await
        };
        let result = run(read(&mut [0; 4 * PAGE_BYTES]));
        let expected = WireError::Page(Gfn::new(gfn));
        assert!(matches!(&result, Err(StreamError::Wire(error)) if *error == expected));
    }
}

#[test]
fn a_packed_payload_that_is_damaged_is_refused() {
    for encoding in [Encoding::Lz4, Encoding::Zstd] {
        let (mut header, all) = pages(0, 9, Purpose::Bulk);
        let raw = slices(&header, &all);
        let mut packer = Packer::new();
        let packed = packer.pack(&mut header, encoding, &raw).unwrap().unwrap().to_vec();
        for at in 0..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x41;
            let bytes = sent(&header, &[IoSlice::new(&damaged)]);
            let mut reader = FrameReader::new(&bytes[..], Lane::BulkToSink);
            let mut into = [0; 9 * PAGE_BYTES];
            let result = run(async {
                let header = next(&mut reader).await;
                reader.read_payload(&header, &mut into).await
            });
            match result {
                // Bits that mean nothing to the pages.
                Ok(()) => assert!(into == all.as_flattened()),
                Err(StreamError::Wire(WireError::Compressed(_) | WireError::Page(_))) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn control_messages_survive_readers_and_writers_that_are_dropped() {
    let state: Vec<u8> = (0..STATE_PART + 10).map(|at| at as u8).collect();
    let (write, read) = duplex(1000);
    let source = async {
        let mut writer = FrameWriter::new(write, Lane::ControlToSink);
        let messages = state_parts(&state).chain([Control::Ping(1), Control::Freed]);
        for message in messages {
            // Given up at once and again: what was taken goes out behind.
            let dropped = writer.write_control(&message);
            let _ = tokio::time::timeout(Duration::ZERO, dropped).await;
        }
        writer.finish().await.unwrap();
    };
    let sink = async {
        let mut reader = FrameReader::new(read, Lane::ControlToSink);
        let mut received = Vec::new();
        loop {
            match tokio::time::timeout(Duration::ZERO, reader.read_control()).await {
                Ok(Ok(message)) => received.push(message),
                Ok(Err(StreamError::Closed)) => return received,
                Ok(Err(error)) => panic!("{error}"),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let ((), received) = run(async { tokio::join!(source, sink) });
    let expected: Vec<Control> =
        state_parts(&state).chain([Control::Ping(1), Control::Freed]).collect();
    assert!(received == expected);
}

#[test]
fn a_payload_given_up_halfway_ends_the_stream_for_both_sides() {
    run(async {
        let (header, all) = pages(0, 9, Purpose::Bulk);
        let raw = slices(&header, &all);
        let (write, read) = duplex(2000);
        let mut writer = FrameWriter::new(write, Lane::BulkToSink);
        assert!(tokio::time::timeout(SHORT, writer.write_pages(&header, &raw)).await.is_err());
        assert!(matches!(writer.write_fence(1).await, Err(StreamError::Abandoned)));
        let mut reader = FrameReader::new(read, Lane::BulkToSink);
        let header = next(&mut reader).await;
        assert!(matches!(reader.next_pages().await, Err(StreamError::Abandoned)));
        drop(writer);
        let mut into = [0; 9 * PAGE_BYTES];
        let cut = reader.read_payload(&header, &mut into).await;
        assert!(matches!(cut, Err(StreamError::CutShort)));
        assert!(matches!(reader.next_pages().await, Err(StreamError::Abandoned)));
    });
}

#[test]
fn pages_nobody_wants_are_skipped() {
    let (header, all) = pages(0, 12, Purpose::Requested);
    let mut bytes = sent(&header, &slices(&header, &all));
    bytes.extend(sent(&header, &slices(&header, &all)));
    run(async {
        let mut reader = FrameReader::new(&bytes[..], Lane::UrgentToSink);
        next(&mut reader).await;
        reader.skip_payload().await.unwrap();
        let header = next(&mut reader).await;
        let mut into = [0; 12 * PAGE_BYTES];
        reader.read_payload(&header, &mut into).await.unwrap();
        assert!(into == all.as_flattened());
    });
}

#[test]
fn buffers_that_do_not_fit_are_refused_before_anything_is_read_or_written() {
    let (header, all) = pages(0, 4, Purpose::Bulk);
    let raw = slices(&header, &all);
    let bytes = sent(&header, &raw);
    run(async {
        let mut writer = FrameWriter::new(Vec::new(), Lane::BulkToSink);
        let short = writer.write_pages(&header, &raw[1..]).await;
        assert!(matches!(short, Err(StreamError::Buffers { needed: 8192, .. })), "{short:?}");
        let (urgent, _) = pages(0, 4, Purpose::Requested);
        let wrong = writer.write_pages(&urgent, &raw).await;
        assert!(matches!(wrong, Err(StreamError::Wire(WireError::WrongLane { .. }))));
        let wrong = writer.write_control(&Control::Freed).await;
        assert!(matches!(wrong, Err(StreamError::Wire(WireError::WrongLane { .. }))));
        writer.write_pages(&header, &raw).await.unwrap();
        let mut reader = FrameReader::new(&bytes[..], Lane::BulkToSink);
        let header = next(&mut reader).await;
        let mut into = [0; 4 * PAGE_BYTES];
        let long = reader.read_payload(&header, &mut into[..3 * PAGE_BYTES]).await;
        assert!(matches!(long, Err(StreamError::Buffers { .. })));
        let (one, other) = into[..2 * PAGE_BYTES].split_at_mut(100);
        let uneven = &mut [IoSliceMut::new(one), IoSliceMut::new(other)];
        let uneven = reader.read_into(&header, uneven).await;
        assert!(matches!(uneven, Err(StreamError::Buffers { .. })));
        reader.read_payload(&header, &mut into).await.unwrap();
    });
}

#[test]
fn silence_and_a_peer_that_takes_nothing_are_named() {
    run(async {
        let mut ping = Vec::new();
        Control::Ping(1).encode(&mut ping).unwrap();
        for part in [1, FrameHeader::BYTES, ping.len() - 1] {
            let (mut peer, one) = duplex(64);
            peer.write_all(&ping[..part]).await.unwrap();
            let mut reader = FrameReader::new(one, Lane::ControlToSink).with_patience(SHORT);
            assert!(matches!(reader.read_control().await, Err(StreamError::Silent(SHORT))));
        }
        // Between two frames a stream may rest.
        let (mut peer, one) = duplex(64);
        let mut reader = FrameReader::new(one, Lane::ControlToSink).with_patience(SHORT);
        let resting = tokio::time::timeout(2 * SHORT, reader.read_control()).await;
        assert!(resting.is_err(), "{resting:?}");
        peer.write_all(&ping).await.unwrap();
        assert_eq!(reader.read_control().await.unwrap(), Control::Ping(1));
        let (_peer, other) = duplex(64);
        let mut writer = FrameWriter::new(other, Lane::ControlToSource).with_patience(SHORT);
        let message = Control::Failed(Reason::new("x".repeat(200)));
        let stalled = writer.write_control(&message).await.unwrap_err();
        assert!(matches!(stalled, StreamError::Stalled(SHORT)) && stalled.is_connection_lost());
    });
}

#[test]
fn the_end_of_a_stream_is_clean_between_frames_only() {
    let mut bytes = Vec::new();
    Control::Pong(1).encode(&mut bytes).unwrap();
    for cut in 0..bytes.len() {
        let read = FrameReader::new(&bytes[..cut], Lane::ControlToSource);
        let error = run(async { { read }.read_control().await }).unwrap_err();
        let clean = matches!(error, StreamError::Closed);
        assert!(clean == (cut == 0) && error.is_connection_lost(), "{cut}: {error}");
    }
    run(async {
        let mut none = FrameReader::new(&bytes[..0], Lane::UrgentToSource);
        assert_eq!(none.read_request().await.unwrap(), None);
    });
}

#[test]
fn a_thread_outside_of_any_runtime_sends_requests_and_queues_what_the_peer_does_not_take() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let (source, sink) = runtime.block_on(async {
        let (source, mut sink) = UnixStream::pair().unwrap();
        // As a greeting does: from here on it is known that the socket can be written.
        sink.write_all(b"x").await.unwrap();
        let mut source = source;
        source.read_u8().await.unwrap();
        (source, sink)
    });
    let mut writer = FrameWriter::new(sink, Lane::UrgentToSource);
    let request = |gfn| Request { gfn: Gfn::new(gfn) };
    assert_eq!(writer.try_write_request(request(0)).unwrap(), Sent::Sent);
    let mut asked = 1;
    // Nobody reads, so the socket is full some time, and then the queue.
    let full = loop {
        match writer.try_write_request(request(asked)) {
            Ok(_) => asked += 1,
            Err(error) => break error,
        }
        assert!(asked < 1 << 24, "a socket without end");
    };
    assert!(matches!(full, StreamError::Full), "{full}");
    runtime.block_on(async {
        let mut reader = FrameReader::new(source, Lane::UrgentToSource).with_patience(DEADLINE);
        let flush = async {
            writer.flush().await.unwrap();
            writer.finish().await.unwrap();
        };
        let read = async {
            for gfn in 0..asked {
                assert_eq!(reader.read_request().await.unwrap(), Some(request(gfn)));
            }
            assert_eq!(reader.read_request().await.unwrap(), None);
        };
        tokio::time::timeout(DEADLINE, async { tokio::join!(flush, read) }).await.unwrap();
    });
}

#[test]
fn a_greeting_chooses_or_refuses() {
    let versions = Versions::new(1, 3).unwrap();
    let hello = Hello { versions, role: Role::Urgent, session: Session::new([9; 16]) };
    let answered = |welcome: Welcome| {
        run(async {
            let (mut source, mut sink) = duplex(4096);
            let answer = async {
                assert_eq!(read_hello(&mut sink).await.unwrap(), hello);
                write_welcome(&mut sink, &welcome).await.unwrap();
            };
            tokio::join!(greet(&mut source, &hello), answer).0
        })
    };
    assert_eq!(answered(Welcome::Chosen(2)).unwrap(), 2);
    assert!(matches!(answered(Welcome::Chosen(4)), Err(StreamError::Version { chosen: 4, .. })));
    let refused = answered(Welcome::Refused(Refusal::Busy, Reason::new("three are served")));
    assert!(refused.unwrap_err().to_string().contains("three are served"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn a_stream_of_any_bytes_behind_good_frames_ends_with_an_error(
        patches in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        encoding in prop::sample::select(&[Encoding::Raw, Encoding::Lz4, Encoding::Zstd][..]),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        for first in [0, 7, 600] {
            let (mut header, all) = pages(first, 5, Purpose::Bulk);
            let raw = slices(&header, &all);
            match Packer::new().pack(&mut header, encoding, &raw).unwrap() {
                Some(packed) => bytes.extend(sent(&header, &[IoSlice::new(packed)])),
                None => bytes.extend(sent(&header, &raw)),
            }
        }
        bytes.truncate(keep.index(bytes.len()) + 1);
        for (at, value) in patches {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        run(async {
            let mut reader = FrameReader::new(&bytes[..], Lane::BulkToSink);
            while let Ok(BulkFrame::Pages(header)) = reader.next_pages().await {
                let mut into = vec![0; header.count() * PAGE_BYTES];
                if reader.read_payload(&header, &mut into).await.is_err() {
                    break;
                }
                // What is taken is what was sent.
                let run: GfnRange = header.pages();
                let expected: Vec<Page> = run.iter().map(|gfn| page(gfn.as_u64())).collect();
                assert!(into == expected.as_flattened());
            }
        });
    }
}
