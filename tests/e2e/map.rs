//! `slat map` on the real program: of a machine that runs, of one that has ended, and of what is neither.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Output, Scratch, Slat, assert_refused, require_kvm};

const EXE: &str = env!("CARGO_BIN_EXE_slat");
const SLAT: Slat = Slat::at(EXE);

/// How long a machine may take to come or go.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name)
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("the tests' paths are plain")
}

/// What makes `hello` run until it is told to end.
const SPIN: [&str; 2] = ["--set", "boot.cmdline=then=spin"];

/// A machine that runs beside the test. Killed when dropped.
struct Running(Child);

impl Running {
    /// Starts it, and waits for its socket.
    fn start(arguments: &[&str], socket: &Path) -> Running {
        let child = Command::new(EXE)
            .arg("run")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("slat can be started");
        let mut running = Running(child);
        let until = Instant::now() + PATIENCE;
        while !socket.exists() {
            if let Some(status) = running.0.try_wait().expect("the child can be waited for") {
                panic!("{status}: {}", running.said());
            }
            assert!(Instant::now() < until, "no socket");
            sleep(Duration::from_millis(1));
        }
        running
    }

    /// Ends it with SIGTERM.
    fn stop(&mut self) -> ExitStatus {
        let pid = self.0.id() as i32;
        let pid = rustix::process::Pid::from_raw(pid).expect("a child has an id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(Instant::now() < until, "SIGTERM does not end it");
            sleep(Duration::from_millis(1));
        }
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        let mut stderr = self.0.stderr.take().expect("standard error is a pipe");
        stderr.read_to_string(&mut text).expect("standard error is text");
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn succeeded(output: Output) -> String {
    assert_eq!(output.code, Some(0), "{output:?}");
    output.stdout
}

fn json(output: Output) -> Value {
    serde_json::from_str(&succeeded(output)).expect("--json prints JSON")
}

/// The file of a finished run of `config`, written to `name`.
fn finished(scratch: &Scratch, name: &str, arguments: &[&str]) -> PathBuf {
    let path = scratch.path().join(name);
    let mut all = vec!["run", "--quiet", "--set", "console.serial=off"];
    all.extend(["--memory-map", utf8(&path)]);
    all.extend(arguments);
    let output = SLAT.run(all);
    assert_eq!(output.code, Some(0), "{output:?}");
    path
}

/// Asserts that every tag of `svg` is closed in order, every attribute quoted, and no character stands for itself that may
/// not.
fn assert_well_formed(svg: &str) {
    let mut open = Vec::new();
    let mut rest = svg.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>").expect("XML");
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "a bare > in {:?}", &rest[..at]);
        for entity in rest[..at].split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;", "quot;"];
            assert!(known.iter().any(|known| entity.starts_with(known)), "&{entity}");
        }
        let end = at + rest[at..].find('>').expect("a tag ends");
        let tag = &rest[at + 1..end];
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().expect("a tag has a name"));
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest:?}");
}

#[test]
fn a_running_machine_shows_its_memory_and_leaves_no_socket() {
    if !require_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path().join("s");
    let quickstart = config("quickstart.toml");
    let guard = ["--set", "memory.guard=0x2000000+4K"];
    let arguments = [&[utf8(&quickstart), "--control", utf8(&socket)][..], &guard, &SPIN].concat();
    let mut machine = Running::start(&arguments, &socket);
    let file = fs::metadata(&socket).expect("the socket is there");
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);

    let text = succeeded(SLAT.run(["map", utf8(&socket)]));
    assert!(text.contains("quickstart.toml: running, 64 MiB of RAM"), "{text}");
    let row = text.lines().find(|line| line.starts_with("0x00000000")).expect("a row at 0");
    let blocks: Vec<char> = row.split_whitespace().nth(1).expect("blocks").chars().collect();
    assert_eq!(blocks.len(), 32, "{row}");
    assert!(matches!(blocks[0], '1'..='4' | '░' | '▒' | '▓' | '█'), "boot pages: {row}");
    assert_eq!(blocks[16], 'g', "{row}");
    assert!(!text.contains('\x1b'), "no colours in a pipe");

    let map = json(SLAT.run(["map", utf8(&socket), "--json"]));
    assert_eq!(map["slat"], 1);
    assert_eq!(map["state"], "running");
    assert_eq!(map["totals"]["bytes"]["ram"], 64 << 20);
    assert_eq!(map["totals"]["bytes"]["guard"], 4096);
    let first = &map["blocks"][0];
    assert!(first["small"].as_u64() > Some(0) && first["huge"] == 0, "{first}");
    assert_eq!(map["blocks"][16]["guard"], 1);

    let picture = scratch.path().join("x.svg");
    let drawn = succeeded(SLAT.run(["map", utf8(&socket), "--svg", utf8(&picture)]));
    assert_eq!(drawn, "");
    let picture = fs::read_to_string(&picture).expect("the picture is there");
    assert_well_formed(&picture);
    assert!(picture.contains("quickstart.toml") && picture.contains(">g</text>"), "{picture}");

    // What `slat map` does not ask for.
    for (request, says) in [
        ("{\"slat\":1,\"command\":\"stats\"}\n", "\"kind\":\"stats\""),
        ("{\"slat\":1,\"command\":\"dance\"}\n", "\"error\":\"there is no command"),
    ] {
        let mut client = UnixStream::connect(&socket).expect("the machine listens");
        client.write_all(request.as_bytes()).expect("the machine reads");
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).expect("the machine answers");
        let value: Value = serde_json::from_str(&answer).expect("in JSON");
        assert_eq!(value["slat"], 1);
        assert!(answer.contains(says), "{answer}");
    }

    // A second machine does not take the socket, and a client that says nothing does not keep the first one.
    let second = SLAT.run(["run", utf8(&quickstart), "--control", utf8(&socket)]);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains("the socket of a machine that runs"), "{second:?}");
    let _silent = UnixStream::connect(&socket).expect("the machine listens");
    let stopping = Instant::now();
    machine.stop();
    assert!(stopping.elapsed() < Duration::from_secs(4), "{:?}", stopping.elapsed());
    assert!(!socket.exists(), "the socket is gone");
    let said = machine.said();
    assert!(said.contains("audit clean"), "{said}");
}

#[test]
fn a_config_leads_to_its_machine_or_says_that_it_does_not_run() {
    if !require_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path().join("s");
    let path = scratch.hello("vm.toml", "[control]\nsocket = \"s\"\n");
    let assert_not_running = || {
        let output = SLAT.run(["map", utf8(&path)]);
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
        for part in ["vm.toml is not running", "slat run", "--memory-map"] {
            assert!(output.stderr.contains(part), "{output:?}");
        }
    };
    assert_not_running();
    // A stale socket is nobody's, and does not keep a machine from starting.
    drop(UnixListener::bind(&socket).expect("a socket can be made"));
    assert_not_running();
    let stale = fs::metadata(&socket).expect("it is stale").permissions().mode();
    let mut machine = Running::start(&[&[utf8(&path)][..], &SPIN].concat(), &socket);
    let until = Instant::now() + PATIENCE;
    while fs::metadata(&socket).is_ok_and(|file| file.permissions().mode() == stale) {
        assert!(Instant::now() < until, "the stale socket is not replaced");
        sleep(Duration::from_millis(1));
    }
    assert!(succeeded(SLAT.run(["map", utf8(&path)])).contains("vm.toml: running"));
    machine.stop();
    assert_not_running();
}

#[test]
fn maps_of_a_guest_that_faults_are_whole_and_do_not_disturb_it() {
    if !require_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let socket = scratch.path().join("s");
    let touch = config("touch.toml");
    let set = ["--set", "boot.cmdline=order=random passes=2", "--set", "console.serial=off"];
    let arguments = [&[utf8(&touch), "--control", utf8(&socket)][..], &set].concat();
    let mut machine = Running::start(&arguments, &socket);
    let mut resident = Vec::new();
    let status = loop {
        if let Some(status) = machine.0.try_wait().expect("the child can be waited for") {
            break status;
        }
        let output = SLAT.run(["map", utf8(&socket), "--json"]);
        // It may have ended since.
        if output.code == Some(0) {
            let map = json(output);
            resident.push(map["totals"]["bytes"]["resident"].as_u64().expect("a number"));
        }
    };
    assert_eq!(status.code(), Some(0));
    let said = machine.said();
    assert!(said.contains("audit clean"), "{said}");
    assert!(resident.len() > 3 && resident.is_sorted(), "{resident:?}");
}

#[test]
fn a_finished_machine_shows_how_it_ended() {
    if !require_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let touch = config("touch-blocks.toml");
    let path = finished(&scratch, "map.json", &[utf8(&touch), "--set", "memory.size=64M"]);
    let map = json(SLAT.run(["map", utf8(&path), "--json"]));
    assert_eq!(map["state"], "finished");
    let bytes = &map["totals"]["bytes"];
    assert!(bytes["huge"].as_u64() >= Some(60 << 20), "{bytes}");
    assert_eq!(bytes["untouched"], 0, "{bytes}");
    let text = succeeded(SLAT.run(["map", utf8(&path)]));
    assert!(text.contains("touch-blocks.toml: finished") && text.contains("HHHHHHHH"), "{text}");
    let printed = fs::read_to_string(&path).expect("the file is there");
    assert_eq!(succeeded(SLAT.run(["map", utf8(&path), "--json"])), printed, "the same JSON");
}

#[test]
fn a_run_draws_the_picture_that_map_draws() {
    if !require_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let touch = config("touch.toml");
    let path = finished(&scratch, "map.svg", &[utf8(&touch), "--set", "memory.size=16M"]);
    let picture = fs::read_to_string(&path).expect("the picture is there");
    assert_well_formed(&picture);
    assert!(picture.contains("touch.toml") && picture.contains("4 KiB pages"), "{picture}");
    let again = SLAT.run(["map", utf8(&path)]);
    assert_refused("a picture", &again, &["map.svg is a picture"]);
}

#[test]
fn what_is_no_source_is_refused_in_a_sentence() {
    let scratch = Scratch::new();
    let huge = scratch.path().join("huge.json");
    File::create(&huge).and_then(|file| file.set_len((1 << 30) + 1)).expect("a file with a hole");
    let map = "{\"slat\":1,\"kind\":\"memory-map\",\"machine\":\"x\",\"state\":\"finished\",\"taken_unix\":0,\
               \"block_bytes\":2097152,\"blocks\":[{\"gpa\":0,\"pages\":512,\"small\":600,\"huge\":0,\"giant\":0,\
               \"missing\":0,\"guard\":0,\"poison\":0,\"scattered\":0}]}";
    for (name, contents, says) in [
        ("words.json", "hello", &["words.json cannot be shown", "not JSON"][..]),
        ("empty.json", "", &["empty.json", "empty or cut short"]),
        ("cut.json", &map[..90], &["cut.json", "cut short", "--memory-map"]),
        ("other.json", "{\"a\": [1, 2]}", &["other.json", "not a memory map"]),
        ("list.json", "[1, 2]", &["list.json", "not a memory map"]),
        ("later.json", "{\"slat\": 2}", &["later.json", "version 2"]),
        ("overfull.json", map, &["overfull.json", "block at 0x0", "more pages"]),
        ("binary.json", "\u{0}\u{1}", &["binary.json", "not JSON"]),
        ("x.svg", "<svg/>", &["x.svg is a picture"]),
        ("bad.toml", "[memory]\nsize = 1", &["bad.toml", "boot.guest is missing"]),
        ("words", "hello", &["words:1:", "not TOML"]),
        ("new\nline.json", "x", &["new?line.json", "not JSON"]),
    ] {
        let path = scratch.write(name, contents);
        assert_refused(name, &SLAT.run([Path::new("map"), &path]), says);
    }
    for (path, says) in [
        (huge.as_path(), &["huge.json is larger than 1 GiB"][..]),
        (scratch.path(), &["is a directory"]),
        (Path::new("/dev/null"), &["/dev/null is no socket, config or memory map"]),
        (Path::new("/no/where.json"), &["/no/where.json is not there"]),
        (&config("quickstart.toml"), &["control.socket is missing", "--control"]),
    ] {
        assert_refused("map", &SLAT.run([Path::new("map"), path]), says);
    }
}

#[test]
fn a_socket_of_something_else_fails_the_job() {
    let scratch = Scratch::new();
    let path = scratch.path().join("s");
    let listener = UnixListener::bind(&path).expect("a socket can be made");
    for (answer, says) in [
        (&b"220 mail ready\n"[..], "not a memory map"),
        (b"ready\n", "not JSON"),
        (b"{\"slat\":1,\"error\":\"no\"}\n", "the monitor said: no"),
        (b"", "not running"),
    ] {
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = listener.accept().expect("slat comes");
                let mut request = [0; 64];
                let _ = client.read(&mut request);
                let _ = client.write_all(answer);
            });
            SLAT.run([Path::new("map"), &path])
        });
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
        assert!(output.stderr.contains(says), "{output:?}");
    }
    drop(listener);
    let output = SLAT.run([Path::new("map"), &path]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("nobody listens"), "{output:?}");
}
