//! Clients of every kind, on real sockets.

use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::client::{AskError, ask};
use super::*;

/// More than a socket's buffers hold.
const LARGE: usize = 4 << 20;

/// A server whose `stats` are short and whose map is [`LARGE`].
fn server(folder: &Path, patience: Duration) -> (PathBuf, Server) {
    let path = folder.join("s");
    let listener = Listener::bind(&path).unwrap();
    let answer = |command, _: &mut dyn FnMut(Progress)| match command {
        Command::Stats => "{\"slat\":1}\n".to_owned(),
        Command::MemoryMap => format!("\"{}\"\n", "m".repeat(LARGE)),
        _ => refusal("not here"),
    };
    let server = Server::with_patience(listener, patience, Box::new(answer)).unwrap();
    (path, server)
}

fn line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn clients_are_answered_one_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let (path, server) = server(folder.path(), PATIENCE);
    for _ in 0..20 {
        assert_eq!(ask(&path, &Command::Stats).unwrap(), b"{\"slat\":1}\n");
    }
    assert_eq!(ask(&path, &Command::MemoryMap).unwrap().len(), LARGE + 3);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(ask(&path, &Command::MemoryMap).is_ok()));
        }
    });
    drop(server);
    assert!(!path.exists());
    assert!(matches!(ask(&path, &Command::Stats), Err(AskError::NotRunning(_))));
}

#[test]
fn what_is_no_request_gets_an_error_and_the_next_client_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _server) = server(folder.path(), PATIENCE);
    let long = vec![b' '; 3 * LONGEST];
    let exact =
        [vec![b' '; LONGEST - 30], b"{\"slat\":1,\"command\":\"stats\"}\n".to_vec()].concat();
    for (request, says) in [
        (&b"dance\n"[..], "one line of JSON"),
        (b"{\"slat\":1,\"command\":\"dance\"}\n", "no command \\\"dance\\\""),
        (b"{\"slat\":7,\"command\":\"stats\"}\n", "version 7"),
        (b"\n", "one line of JSON"),
        (&long, "at most 4096 bytes"),
        (&exact, "{\"slat\":1}"),
    ] {
        let mut client = UnixStream::connect(&path).unwrap();
        // The server may have seen enough, and hung up, before all is written.
        let _ = client.write_all(request);
        let answer = line(&client);
        assert!(answer.contains(says), "{answer}");
        assert!(serde_json::from_str::<serde_json::Value>(&answer).is_ok(), "{answer}");
    }
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"{\"slat\":1,\"command\":\"stats\"}").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(line(&client), "{\"slat\":1}\n", "a line may end with the stream");
    assert!(ask(&path, &Command::Stats).is_ok());
}

#[test]
fn who_dawdles_is_let_go_and_the_next_one_served() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _server) = server(folder.path(), Duration::from_millis(100));
    let started = Instant::now();
    // One says nothing, one says half, one does not read its answer, one goes at once.
    let silent = UnixStream::connect(&path).unwrap();
    let mut half = UnixStream::connect(&path).unwrap();
    half.write_all(b"{\"slat\":").unwrap();
    let mut deaf = UnixStream::connect(&path).unwrap();
    deaf.write_all(Command::MemoryMap.to_line().as_bytes()).unwrap();
    drop(UnixStream::connect(&path).unwrap());
    assert_eq!(ask(&path, &Command::Stats).unwrap(), b"{\"slat\":1}\n");
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    for client in [silent, half] {
        assert!(line(&client).contains("no request came"));
    }
    drop(deaf);
}

#[test]
fn no_client_keeps_the_machine_from_ending() {
    for request in [&b""[..], b"{\"slat\":", b"{\"slat\":1,\"command\":\"memory-map\"}\n"] {
        let folder = tempfile::tempdir().unwrap();
        let (path, server) = server(folder.path(), Duration::from_secs(60));
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(request).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let stopping = Instant::now();
        drop(server);
        assert!(stopping.elapsed() < Duration::from_secs(5), "{:?}", stopping.elapsed());
        assert!(!path.exists());
    }
}

#[test]
fn an_answer_that_panics_takes_only_its_thread_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = Listener::bind(&path).unwrap();
    let server =
        Server::start(listener, |_, _: &mut dyn FnMut(Progress)| panic!("on purpose")).unwrap();
    assert!(ask(&path, &Command::Stats).is_err());
    drop(server);
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_clients_send_they_get_one_line_or_none_and_the_service_goes_on(
        requests in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (path, _server) = server(folder.path(), PATIENCE);
        for request in requests {
            let mut client = UnixStream::connect(&path).unwrap();
            let _ = client.write_all(&request);
            let _ = client.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = client.take(1 << 20).read_to_end(&mut answer);
            prop_assert!(answer.is_empty() || answer.ends_with(b"\n"));
            prop_assert!(answer.len() < 512);
        }
        prop_assert_eq!(ask(&path, &Command::Stats).unwrap(), b"{\"slat\":1}\n");
    }
}
