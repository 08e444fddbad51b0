//! Real sockets on this host: greetings, TLS, peers that are wrong, silent or too many.

mod certificates;

use std::future::Future;
use std::io::{IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::addr::Gfn;
use crate::postcopy::stream::{BulkFrame, FrameReader, FrameWriter, StreamError};
use crate::postcopy::wire::{
    Hello, Lane, PAGE_BYTES, PagesHeader, Purpose, Reason, Refusal, Role, Session, Versions,
};
use certificates::{Authority, Validity};

/// What a test may take: one that hangs fails.
const DEADLINE: Duration = Duration::from_secs(60);
/// A block's.
const BYTES: usize = 512 * PAGE_BYTES;
const MIB: usize = 1 << 20;
const SHORT: Duration = Duration::from_millis(100);

fn run<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("it hangs") })
}

fn hello(role: Role) -> Hello {
    Hello { versions: Versions::SPOKEN, role, session: Session::new([3; 16]) }
}

fn loopback() -> Address {
    Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 }
}

fn in_folder(folder: &Path) -> Address {
    Address::Unix(folder.join("channel"))
}

async fn bind(address: &Address, security: &Security, limits: Limits) -> Listener {
    Listener::bind(address, security.clone(), limits).await.unwrap()
}

/// Both ends of a stream, or why there are none on either.
async fn meet(
    address: &Address,
    source: &Security,
    sink: &Security,
    role: Role,
) -> (Result<Connection, TransportError>, Result<Connection, TransportError>) {
    let limits = Limits::default();
    let mut listener = bind(address, sink, limits).await;
    let to = listener.address().clone();
    let hello = hello(role);
    let accepted = async {
        let incoming = listener.accept().await?;
        assert_eq!((incoming.hello(), incoming.version()), (&hello, 1));
        incoming.welcome().await
    };
    let (connected, accepted) = tokio::join!(connect(&to, source, &limits, &hello), accepted);
    (connected.map(|(connection, _)| connection), accepted)
}

/// Sends 16 MiB of pages and takes them; every second block by reference to a file, where that can be.
async fn pages_go_over(source: Connection, sink: Connection) {
    let block: Vec<[u8; PAGE_BYTES]> =
        (0..512_u64).map(|at| [1 + at as u8 % 9; PAGE_BYTES]).collect();
    // The pages lie in it in three pieces, the last of them first.
    let (mut file, bytes) = (tempfile::tempfile().unwrap(), block.as_flattened());
    file.write_all(&bytes[BYTES - MIB..]).unwrap();
    file.write_all(&bytes[..BYTES - MIB]).unwrap();
    let spans = [MIB as u64..MIB as u64 + 3, MIB as u64 + 3..BYTES as u64, 0..MIB as u64];
    let by_reference = matches!(source, Connection::Plain(_));
    let send = async {
        let (_read, write) = source.split().unwrap();
        let mut writer = FrameWriter::new(write, Lane::BulkToSink).with_patience(DEADLINE);
        assert_eq!(writer.sends_files(), by_reference);
        for first in (0..8).map(|block| block * 512) {
            let mut header = PagesHeader::new(Gfn::new(first), Purpose::Bulk);
            block.iter().for_each(|page| assert!(header.push_page(page).is_ok()));
            if by_reference && first % 1024 == 0 {
                let short = writer.write_pages_of(&header, file.as_fd(), &spans[1..]).await;
                assert!(matches!(short, Err(StreamError::Buffers { .. })), "{short:?}");
                writer.write_pages_of(&header, file.as_fd(), &spans).await.unwrap();
                continue;
            }
            let payload = [IoSlice::new(bytes)];
            writer.write_pages(&header, &payload).await.unwrap();
        }
        writer.write_fence(1).await.unwrap();
        writer.finish().await.unwrap();
    };
    let take = async {
        let (read, _write) = sink.split().unwrap();
        let mut reader = FrameReader::new(read, Lane::BulkToSink).with_patience(DEADLINE);
        let mut into = vec![0; BYTES];
        for _ in 0..8 {
            let BulkFrame::Pages(header) = reader.next_pages().await.unwrap() else {
                panic!("pages come");
            };
            into.fill(0);
            reader.read_payload(&header, &mut into).await.unwrap();
            assert!(into == block.as_flattened());
        }
        assert_eq!(reader.next_pages().await.unwrap(), BulkFrame::Fence(1));
        assert_eq!(reader.next_pages().await.unwrap(), BulkFrame::End);
    };
    tokio::join!(send, take);
}

#[test]
fn pages_go_over_unix_sockets_tcp_and_tls_over_both() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let tls =
        Security::Tls(authority.tls(folder.path(), &["localhost", "127.0.0.1"], Validity::Now));
    let named = Security::Tls(authority.tls_for(folder.path(), "localhost"));
    for (address, security) in [
        (in_folder(folder.path()), Security::Plain),
        (loopback(), Security::Plain),
        (loopback(), tls),
        (in_folder(folder.path()), named),
    ] {
        run(async {
            let (source, sink) = meet(&address, &security, &security, Role::Bulk(1)).await;
            pages_go_over(source.unwrap(), sink.unwrap()).await;
        });
    }
}

#[test]
fn a_socket_in_the_file_system_is_its_users_alone_and_goes_with_its_listener() {
    let folder = tempfile::tempdir().unwrap();
    let address = in_folder(folder.path());
    let path = folder.path().join("channel");
    run(async {
        let listener = bind(&address, &Security::Plain, Limits::default()).await;
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let again = Listener::bind(&address, Security::Plain, Limits::default()).await;
        assert!(matches!(again, Err(TransportError::Exists(_))));
        drop(listener);
        assert!(!path.exists());
        let (limits, hello) = (Limits::default(), hello(Role::Control));
        let nowhere = connect(&address, &Security::Plain, &limits, &hello).await;
        assert!(matches!(nowhere, Err(TransportError::Connect { .. })));
    });
}

#[test]
fn a_refusal_comes_with_its_reason() {
    run(async {
        let limits = Limits::default();
        let mut listener = bind(&loopback(), &Security::Plain, limits).await;
        let to = listener.address().clone();
        let hello = hello(Role::Control);
        let refuse = async {
            let incoming = listener.accept().await.unwrap();
            let reason = Reason::new("two migrations run already");
            incoming.refuse(Refusal::Busy, reason).await.unwrap();
        };
        let (connected, ()) = tokio::join!(connect(&to, &Security::Plain, &limits, &hello), refuse);
        let Err(TransportError::Greeting { source, .. }) = connected else {
            panic!("it is refused")
        };
        assert!(matches!(source, StreamError::Refused(Refusal::Busy, _)));
        assert!(source.to_string().contains("two migrations run already"));
    });
}

#[test]
fn without_a_common_version_both_sides_name_both_ranges() {
    run(async {
        let limits = Limits::default();
        let mut listener = bind(&loopback(), &Security::Plain, limits).await;
        let to = listener.address().clone();
        let hello = Hello { versions: Versions::new(7, 9).unwrap(), ..hello(Role::Control) };
        let (connected, accepted) =
            tokio::join!(connect(&to, &Security::Plain, &limits, &hello), listener.accept());
        let source = connected.err().unwrap().to_string();
        let sink = accepted.err().unwrap().to_string();
        for error in [&source, &sink] {
            assert!(error.contains("7 to 9") && error.contains("1 to 1"), "{error}");
        }
    });
}

#[test]
fn a_peer_that_speaks_something_else_is_named() {
    run(async {
        let mut listener = bind(&loopback(), &Security::Plain, Limits::default()).await;
        let Address::Tcp { port, .. } = *listener.address() else { unreachable!() };
        let mut peer = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        peer.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n").await.unwrap();
        let error = listener.accept().await.unwrap_err().to_string();
        assert!(error.contains("another protocol") && error.contains("tcp:127.0.0.1:"), "{error}");
    });
}

#[test]
fn silent_peers_are_let_go_in_time_and_hold_up_nobody_else() {
    let limits = Limits { handshake: SHORT, half_open: 2, ..Limits::default() };
    let folder = tempfile::tempdir().unwrap();
    run(async {
        let mut listener = bind(&in_folder(folder.path()), &Security::Plain, limits).await;
        let path = folder.path().join("channel");
        let mut silent = Vec::new();
        for _ in 0..5 {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        let address = in_folder(folder.path());
        let patient = Limits::default();
        let hello = hello(Role::Control);
        let connecting = connect(&address, &Security::Plain, &patient, &hello);
        let accepting = async {
            let mut let_go = 0;
            loop {
                match listener.accept().await {
                    Ok(incoming) => {
                        incoming.welcome().await.unwrap();
                        return let_go;
                    }
                    Err(TransportError::HandshakeTimeout { .. }) => let_go += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let (connected, let_go) = tokio::join!(connecting, accepting);
        connected.unwrap();
        assert!(let_go >= 4, "two at a time: {let_go}");
        assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0, "who was let go is told");
    });
}

#[test]
fn a_sink_that_is_silent_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let tls = Security::Tls(authority.tls_for(folder.path(), "localhost"));
    let limits = Limits { handshake: SHORT, ..Limits::default() };
    run(async {
        let path = folder.path().join("silent");
        let _silent = tokio::net::UnixListener::bind(&path).unwrap();
        for security in [Security::Plain, tls] {
            let (address, hello) = (Address::Unix(path.clone()), hello(Role::Urgent));
            let connected = connect(&address, &security, &limits, &hello).await;
            assert!(matches!(connected, Err(TransportError::HandshakeTimeout { .. })));
        }
    });
}

/// Both sides' failures of TLS.
fn failures(source: &Tls, sink: &Tls) -> (TlsFailure, TlsFailure) {
    let (source, sink) = (Security::Tls(source.clone()), Security::Tls(sink.clone()));
    let (source, sink) = run(meet(&loopback(), &source, &sink, Role::Control));
    match (source, sink) {
        (
            Err(TransportError::Tls { failure: source, .. }),
            Err(TransportError::Tls { failure: sink, .. }),
        ) => (source, sink),
        other => panic!("{other:?}"),
    }
}

const HERE: [&str; 2] = ["localhost", "127.0.0.1"];

#[test]
fn a_sink_of_another_authority_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    // The sink trusts the source all the same.
    let sink = Authority::new().tls_trusting(folder.path(), &HERE, &ours);
    let source = ours.tls(folder.path(), &HERE, Validity::Now);
    let (source, sink) = failures(&source, &sink);
    assert!(matches!(source, TlsFailure::UnknownAuthority), "{source}");
    assert!(matches!(sink, TlsFailure::RefusedByPeer(_)), "{sink}");
}

#[test]
fn a_source_of_another_authority_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let source = Authority::new().tls_trusting(folder.path(), &HERE, &ours);
    let (source, sink) = failures(&source, &ours.tls(folder.path(), &HERE, Validity::Now));
    assert!(matches!(source, TlsFailure::RefusedByPeer(_)), "{source}");
    assert!(matches!(sink, TlsFailure::UnknownAuthority), "{sink}");
}

#[test]
fn certificates_that_have_expired_or_are_not_valid_yet_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let good = ours.tls(folder.path(), &HERE, Validity::Now);
    let expired = ours.tls(folder.path(), &HERE, Validity::Past);
    let early = ours.tls(folder.path(), &HERE, Validity::Future);
    assert!(matches!(failures(&good, &expired).0, TlsFailure::Expired));
    assert!(matches!(
        failures(&expired, &good),
        (TlsFailure::RefusedByPeer(_), TlsFailure::Expired)
    ));
    assert!(matches!(failures(&good, &early).0, TlsFailure::NotYetValid));
}

#[test]
fn a_sink_of_another_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let sink = ours.tls(folder.path(), &["elsewhere.example"], Validity::Now);
    let (source, _) = failures(&ours.tls(folder.path(), &HERE, Validity::Now), &sink);
    assert!(matches!(&source, TlsFailure::WrongName(name) if name == "127.0.0.1"), "{source}");
}

#[test]
fn a_source_without_a_certificate_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let tls = ours.tls(folder.path(), &HERE, Validity::Now);
    let anonymous = ours.anonymous();
    run(async {
        let mut listener = bind(&loopback(), &Security::Tls(tls), Limits::default()).await;
        let Address::Tcp { port, .. } = *listener.address() else { unreachable!() };
        let peer = async {
            let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut stream = anonymous.connect(name, socket).await.unwrap();
            let read = stream.read(&mut [0]).await.unwrap_err();
            TlsFailure::of(read, "localhost")
        };
        let (peer, sink) = tokio::join!(peer, listener.accept());
        let Err(TransportError::Tls { failure, .. }) = sink else { panic!("it is refused") };
        assert!(matches!(failure, TlsFailure::NoCertificate), "{failure}");
        assert!(matches!(peer, TlsFailure::RefusedByPeer(_)), "{peer}");
    });
}

#[test]
fn plain_text_where_tls_is_spoken_is_refused_and_so_is_tls_where_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let tls = Security::Tls(Authority::new().tls(folder.path(), &HERE, Validity::Now));
    let (source, sink) = run(meet(&loopback(), &Security::Plain, &tls, Role::Control));
    assert!(source.is_err());
    let Err(TransportError::Tls { failure, .. }) = sink else { panic!("it is refused") };
    assert!(matches!(failure, TlsFailure::OtherProtocol(_)), "{failure}");
    let (source, sink) = run(meet(&loopback(), &tls, &Security::Plain, Role::Control));
    assert!(source.is_err());
    assert!(matches!(sink, Err(TransportError::Greeting { .. })), "{sink:?}");
}

#[test]
fn an_address_without_a_name_needs_one_for_tls() {
    let folder = tempfile::tempdir().unwrap();
    let tls = Security::Tls(Authority::new().tls(folder.path(), &HERE, Validity::Now));
    let (source, _) = run(async {
        let address = in_folder(folder.path());
        let limits = Limits::default();
        let mut listener = bind(&address, &tls, limits).await;
        let hello = hello(Role::Control);
        tokio::join!(connect(&address, &tls, &limits, &hello), listener.accept())
    });
    assert!(matches!(source, Err(TransportError::NoName(_))));
}

#[test]
fn files_that_are_no_identity_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let good = authority.files(folder.path(), &HERE, Validity::Now);
    let other = authority.files(folder.path(), &HERE, Validity::Now);
    let text = folder.path().join("text.pem");
    std::fs::write(&text, "no PEM\n").unwrap();
    let missing = folder.path().join("missing.pem");
    Tls::from_files(&good).unwrap();
    for (files, says) in [
        (TlsFiles { authority: missing.clone(), ..good.clone() }, "missing.pem"),
        (TlsFiles { authority: text.clone(), ..good.clone() }, "no certificate"),
        (TlsFiles { certificate: text.clone(), ..good.clone() }, "no certificate"),
        (TlsFiles { key: text, ..good.clone() }, "no private key"),
        (TlsFiles { key: missing, ..good.clone() }, "missing.pem"),
        (TlsFiles { key: other.key, ..good.clone() }, "no certificate and its key"),
        (TlsFiles { peer_name: Some("a b".to_owned()), ..good }, "\"a b\""),
    ] {
        let error = Tls::from_files(&files).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
