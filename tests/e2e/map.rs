//! `slat map` on the real program: of a machine that runs, of one that has ended, and of what is neither.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tests::{Output, Running, Scratch, Slat, assert_refused, impostor, require_kvm};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));

/// What makes `hello` run until it is told to end.
const SPIN: [&str; 2] = ["--set", "boot.cmdline=then=spin"];

/// The first thing that it says.
const HELLO: &str = "hello from a slat guest";

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name)
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("the tests' paths are plain")
}

/// Starts a machine that spins, and waits for its first words.
fn spin(arguments: &[&str]) -> Running {
    let arguments = [&["run"], arguments, &SPIN].concat();
    let mut machine = SLAT.start(SLAT.command(arguments));
    machine.wait_for(HELLO);
    machine
}

/// Ends it as an operator does; its books have to be right.
fn stop(machine: Running) {
    machine.signal(Signal::TERM);
    let output = machine.finish();
    assert_eq!(output.code, Some(128 + 15), "{output:?}");
    assert!(output.stderr.contains("audit clean"), "{output:?}");
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
    let machine = spin(&[&[utf8(&quickstart), "--control", utf8(&socket)][..], &guard].concat());
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
    stop(machine);
    assert!(stopping.elapsed() < Duration::from_secs(4), "{:?}", stopping.elapsed());
    assert!(!socket.exists(), "the socket is gone");
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
    let machine = spin(&[utf8(&path)]);
    assert!(succeeded(SLAT.run(["map", utf8(&path)])).contains("vm.toml: running"));
    stop(machine);
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
    let set = ["--set", "boot.cmdline=order=random passes=2"];
    let run = [&["run", utf8(&touch), "--control", utf8(&socket)][..], &set].concat();
    let machine = SLAT.start(SLAT.command(run));
    let started = Instant::now();
    let mut resident = Vec::new();
    loop {
        let output = SLAT.run(["map", utf8(&socket), "--json"]);
        if output.code == Some(0) {
            let map = json(output);
            resident.push(map["totals"]["bytes"]["resident"].as_u64().expect("a number"));
        } else if !resident.is_empty() {
            // It has ended.
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{} maps", resident.len());
    }
    let output = machine.finish();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stderr.contains("audit clean"), "{output:?}");
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
        let output = impostor(&listener, answer, || SLAT.run([Path::new("map"), &path]));
        assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
        assert!(output.stderr.contains(says), "{output:?}");
    }
    drop(listener);
    let output = SLAT.run([Path::new("map"), &path]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("nobody listens"), "{output:?}");
}
