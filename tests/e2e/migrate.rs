//! Two programs, and a machine that goes from one to the other while its guest works.

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Debian, Output, Running, Scratch, Slat, require_debian, require_guests};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

/// A folder with a config, and the sockets of machines in it.
struct Site {
    scratch: Scratch,
    config: PathBuf,
}

impl Site {
    fn new(config: &str) -> Site {
        let scratch = Scratch::new();
        let config = scratch.write("vm.toml", config);
        Site { scratch, config }
    }

    /// `touch` on 64 MiB, for some seconds.
    fn touching(passes: u64) -> Site {
        Site::new(&format!(
            "[memory]\nsize = \"64M\"\n[boot]\nguest = \"touch\"\n\
             cmdline = \"order=random kinds=7 passes={passes}\"\n"
        ))
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    fn run(&self, name: &str) -> Running {
        let config = self.config.display().to_string();
        let (control, report) = (self.path(name), self.path(&format!("{name}.json")));
        let args = ["run", &config, "--control", &control, "--json-report", &report];
        started(&args, &control)
    }

    fn receive(&self, name: &str, more: &[&str]) -> Running {
        let config = self.config.display().to_string();
        let (control, report) = (self.path(name), self.path(&format!("{name}.json")));
        let listen = format!("unix:{}", self.path(&format!("{name}.in")));
        let args = ["receive", &config, "--listen", &listen, "--control", &control];
        let args = [&args[..], &["--json-report", &report], more].concat();
        let running = started(&args, &self.path(&format!("{name}.in")));
        assert!(Path::new(&control).exists());
        running
    }

    fn send(&self, from: &str, to: &str, more: &[&str]) -> Output {
        let (socket, sink) = (self.path(from), format!("unix:{}", self.path(&format!("{to}.in"))));
        SLAT.run([&["send", &socket, &sink, "--json"], more].concat())
    }

    /// The report of the machine that ended as `name`.
    fn report(&self, name: &str) -> Value {
        let text = std::fs::read(self.path(&format!("{name}.json"))).expect("a report");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// Checks that the machine `name` ended there: it went on elsewhere.
    fn assert_moved(&self, name: &str, running: Running) {
        let output = running.finish();
        assert_eq!(output.code, Some(0), "{output:?}");
        let report = self.report(name);
        assert_eq!((&report["ending"], &report["audit"]), (&"moved".into(), &"clean".into()));
    }
}

/// Starts the program, and waits for `socket`.
fn started(args: &[&str], socket: &str) -> Running {
    let mut running = SLAT.start(SLAT.command(args));
    while !Path::new(socket).exists() {
        assert!(running.age() < Duration::from_secs(60), "{args:?}: no {socket}");
        if running.has_ended() {
            panic!("{args:?} ended: {:?}", running.finish());
        }
        sleep(Duration::from_millis(5));
    }
    running
}

/// The last line of `slat send --json`, which has the report.
fn sent(output: &Output) -> Value {
    assert_eq!(output.code, Some(0), "{output:?}");
    let line = output.stdout.lines().last().expect("a line");
    let told: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(told["state"], "gone", "{told}");
    told
}

#[test]
fn a_guest_goes_by_every_mode_and_finds_every_word() {
    if !require_guests() {
        return;
    }
    for (mode, more) in [
        ("post-copy", &[][..]),
        ("hybrid", &["--compress", "lz4"]),
        ("pre-copy", &["--downtime", "5000", "--streams", "2"]),
        ("post-copy", &["--rate", "200M", "--compress", "zstd"]),
    ] {
        let site = Site::touching(3000);
        let mut there = site.receive("there", &["--arrival", &site.path("arrival.json")]);
        let mut here = site.run("here");
        here.wait_for("touch: pass 3:");
        let told = sent(&site.send("here", "there", &[&["--mode", mode], more].concat()));
        println!("{mode}: {}", told["report"]);
        site.assert_moved("here", here);
        there.wait_for("touch: pass");
        let output = there.finish();
        assert_eq!(output.code, Some(0), "{output:?}");
        assert!(output.stdout.contains(" wrong=0 "), "{output:?}");
        assert_eq!(site.report("there")["audit"], "clean");
        let arrival = std::fs::read_to_string(site.path("arrival.json")).expect("what came");
        let arrival: Value = serde_json::from_str(&arrival).expect("JSON");
        let asked = arrival["waits"]["count"].as_u64().expect("a count");
        assert!(mode != "pre-copy" || asked == 0, "{arrival}");
    }
}

#[test]
fn a_guest_goes_there_and_back_while_it_works() {
    if !require_guests() {
        return;
    }
    let site = Site::touching(6000);
    let mut at = site.run("0");
    at.wait_for("touch: pass 3:");
    for hop in 1..=4 {
        let (from, to) = ((hop - 1).to_string(), hop.to_string());
        let mut next = site.receive(&to, &[]);
        let mode = ["post-copy", "hybrid"][hop % 2];
        sent(&site.send(&from, &to, &["--mode", mode]));
        site.assert_moved(&from, at);
        next.wait_for("touch: pass");
        at = next;
    }
    assert_found_all(at);
}

#[test]
fn a_machine_that_is_another_is_refused_and_the_guest_stays() {
    if !require_guests() {
        return;
    }
    let site = Site::touching(5000);
    let mut here = site.run("here");
    here.wait_for("touch: pass 1:");
    for (set, reason) in [("memory.size=32M", "memory"), ("machine.vcpus=2", "vCPU")] {
        let there = site.receive("there", &["--set", set]);
        let output = site.send("here", "there", &[]);
        assert_eq!(output.code, Some(1), "{set}: {output:?}");
        let told: Value =
            serde_json::from_str(output.stdout.lines().last().expect("a line")).expect("JSON");
        assert_eq!(told["state"], "stayed", "{told}");
        let error = told["trouble"].as_str().expect("a reason");
        assert!(error.to_lowercase().contains(&reason.to_lowercase()), "{set}: {error}");
        let refused = there.finish();
        assert_eq!(refused.code, Some(1), "{refused:?}");
    }
    // Nobody listens: a guest that has nowhere to go stays, too.
    let output = site.send("here", "nowhere", &[]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let output = here.finish();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains(" wrong=0 "), "{output:?}");
}

#[test]
fn what_cannot_be_sent_is_said_and_how() {
    let output = SLAT.run(["send", "/nowhere/socket", "unix:/x"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    let output = SLAT.run(["send", "/nowhere/socket"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    for args in [
        &["receive", "/nowhere/socket"][..],
        &["receive", "/nowhere/socket", "--recover", "unix:/x"],
    ] {
        let output = SLAT.run(args.iter().copied());
        assert_eq!(output.code, Some(2), "{output:?}");
    }
    let site = Site::touching(1);
    let config = site.config.display().to_string();
    for (listen, reason) in [("here", "unix:/PATH"), ("tcp:host", "tcp:HOST:PORT")] {
        let output = SLAT.run(["receive", &config, "--listen", listen]);
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(output.stderr.contains(reason), "{output:?}");
    }
    let output = SLAT.run([
        "receive",
        &config,
        "--listen",
        "unix:/x",
        "--tls-ca",
        "/no",
        "--tls-cert",
        "/no",
        "--tls-key",
        "/no",
    ]);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("/no"), "{output:?}");
}

/// A way to a sink, until it breaks.
struct Way {
    path: PathBuf,
    ends: Arc<Mutex<Vec<UnixStream>>>,
}

impl Way {
    fn new(path: PathBuf, to: PathBuf) -> Way {
        let ear = UnixListener::bind(&path).expect("a socket");
        let ends = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&ends);
        std::thread::spawn(move || {
            for near in ear.incoming() {
                let (Ok(near), Ok(far)) = (near, UnixStream::connect(&to)) else { return };
                for (from, into) in [(&near, &far), (&far, &near)] {
                    let own = |socket: &UnixStream| socket.try_clone().expect("a descriptor");
                    let (mut from, mut into) = (own(from), own(into));
                    kept.lock().unwrap().extend([own(&from), own(&into)]);
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Way { path, ends }
    }

    fn breaks(&self) {
        std::fs::remove_file(&self.path).expect("it is there");
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// A guest that has just begun to run at `there`, and waits: the way to it broke.
fn cut_off(site: &Site) -> (Running, Running) {
    let there = site.receive("there", &[]);
    let mut here = site.run("here");
    here.wait_for("touch: pass 3:");
    let path = |name: &str| PathBuf::from(site.path(name));
    let way = Way::new(path("way.in"), path("there.in"));
    let slowly = ["--rate", "8M", "--mode", "post-copy", "--detach"];
    assert_eq!(site.send("here", "way", &slowly).code, Some(0));
    until(site, |status| status["progress"]["phase"] == "post-copy");
    way.breaks();
    until(site, |status| status["state"] == "handed-over");
    (here, there)
}

/// Waits until what is told of sending the machine `here` is as `wanted`.
fn until(site: &Site, wanted: impl Fn(&Value) -> bool) {
    let since = Instant::now();
    loop {
        let output = SLAT.run(["send", &site.path("here"), "--status", "--json"]);
        assert_eq!(output.code, Some(0), "{output:?}");
        let status = serde_json::from_str(&output.stdout).expect("JSON");
        if wanted(&status) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{status}");
        sleep(Duration::from_millis(5));
    }
}

/// The guest finds every word at its end.
fn assert_found_all(there: Running) {
    let output = there.finish();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains(" wrong=0 "), "{output:?}");
}

#[test]
fn a_guest_whose_connection_broke_is_recovered_by_another_way() {
    if !require_guests() {
        return;
    }
    let site = Site::touching(3000);
    let (here, there) = cut_off(&site);
    let (socket, other) = (site.path("there"), format!("unix:{}", site.path("other.in")));
    // Where it cannot listen, it says so, and goes on where it did.
    let nowhere = format!("unix:{}", site.path("no/folder/other.in"));
    for (address, reason) in [(&*nowhere, "listened on"), ("there", "unix:/PATH")] {
        let output = SLAT.run(["receive", &socket, "--recover", address]);
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.stderr.contains(reason), "{output:?}");
        assert!(Path::new(&site.path("there.in")).exists());
    }
    // A machine whose guest began here has no source.
    let output = SLAT.run(["receive", &site.path("here"), "--recover", &other]);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.stderr.contains("began here"), "{output:?}");
    let output = SLAT.run(["receive", &socket, "--recover", &other]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains(&format!("listens at {other}")), "{output:?}");
    assert!(!Path::new(&site.path("there.in")).exists(), "it listens where it did, too");
    let told = sent(&site.send("here", "other", &["--recover"]));
    assert!(told["report"]["reconnects"].as_u64() > Some(0), "{told}");
    site.assert_moved("here", here);
    assert_found_all(there);
}

#[test]
fn a_guest_that_waits_for_what_is_missing_can_be_asked_and_loses_nothing() {
    if !require_guests() {
        return;
    }
    let site = Site::touching(3000);
    let (here, there) = cut_off(&site);
    let (socket, folder) = (site.path("there"), site.path("saved"));
    // It rests, if KVM lets go of an access that waits; or it says what it waits for.
    let paused = SLAT.run(["pause", &socket]);
    println!("{paused:?}");
    match paused.code {
        Some(0) => assert!(paused.stdout.contains("paused"), "{paused:?}"),
        _ => assert!(paused.stderr.contains("pages that have not come"), "{paused:?}"),
    }
    let saved = SLAT.run(["snapshot", &socket, &folder]);
    assert_eq!(saved.code, Some(1), "{saved:?}");
    assert!(saved.stderr.contains("pages of the guest have not come"), "{saved:?}");
    assert!(!Path::new(&folder).exists());
    assert_eq!(SLAT.run(["resume", &socket]).code, Some(0));
    // By the way that broke, which is whole again.
    let path = |name: &str| PathBuf::from(site.path(name));
    let _way = Way::new(path("way.in"), path("there.in"));
    sent(&SLAT.run(["send", &site.path("here"), "--recover", "--json"]));
    site.assert_moved("here", here);
    // Now that all is there it rests, and is saved.
    let saved = SLAT.run(["snapshot", &socket, &folder]);
    assert_eq!(saved.code, Some(0), "{saved:?}");
    assert_found_all(there);
}

/// A sink that is killed before it has the guest leaves it where it is; one that is killed later leaves it standing, and it can
/// be taken back.
#[test]
fn a_sink_that_dies_never_makes_two_guests_of_one() {
    if !require_guests() {
        return;
    }
    let site = Site::touching(100_000);
    let mut here = site.run("here");
    here.wait_for("touch: pass 3:");
    let socket = site.path("here");
    let status = || {
        let output = SLAT.run(["send", &socket, "--status", "--json"]);
        assert_eq!(output.code, Some(0), "{output:?}");
        serde_json::from_str::<Value>(&output.stdout).expect("JSON")
    };
    let until = |state: &str| {
        let since = Instant::now();
        while status()["state"] != state {
            assert!(since.elapsed() < Duration::from_secs(30), "not {state}: {}", status());
            sleep(Duration::from_millis(10));
        }
    };
    // While pages of the pre-copy go.
    let there = site.receive("there", &[]);
    let slowly = ["--rate", "20M", "--mode", "pre-copy", "--detach"];
    assert_eq!(site.send("here", "there", &slowly).code, Some(0));
    sleep(Duration::from_millis(500));
    drop(there);
    until("stayed");
    let passes = || here.stdout().matches("touch: pass").count();
    let before = passes();
    let since = Instant::now();
    while passes() == before {
        assert!(since.elapsed() < Duration::from_secs(30), "the guest does not go on");
        sleep(Duration::from_millis(10));
    }
    // While pages are missing there.
    let _ = std::fs::remove_file(site.path("there.in"));
    let there = site.receive("there", &[]);
    let slowly = ["--rate", "4M", "--mode", "post-copy", "--detach"];
    assert_eq!(site.send("here", "there", &slowly).code, Some(0));
    // Before it has gone over all of its memory: then all of that is there.
    let since = Instant::now();
    while status()["progress"]["phase"] != "post-copy" {
        assert!(since.elapsed() < Duration::from_secs(30), "{}", status());
        sleep(Duration::from_millis(1));
    }
    drop(there);
    until("handed-over");
    let refused = SLAT.run(["resume", &socket]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("take-back"), "{refused:?}");
    let before = passes();
    sleep(Duration::from_millis(300));
    assert_eq!(passes(), before, "it runs at the source, too");
    assert_eq!(SLAT.run(["send", &socket, "--take-back"]).code, Some(0));
    until("stayed");
    let since = Instant::now();
    while passes() == before {
        assert!(since.elapsed() < Duration::from_secs(30), "the guest was not taken back");
        sleep(Duration::from_millis(10));
    }
    here.signal(rustix::process::Signal::TERM);
    let output = here.finish();
    assert_eq!(output.code, Some(128 + 15), "{output:?}");
}

/// Debian writes and reads its files, and is elsewhere in the middle of it: there, and back.
#[test]
fn debian_goes_there_and_back_in_the_middle_of_its_file_check() {
    if !require_guests() || !require_debian() {
        return;
    }
    let slat = SLAT.limit(Duration::from_secs(600));
    let site = Scratch::new();
    let path = |name: &str| site.path().join(name).display().to_string();
    let control = format!("control.socket={}", path("0"));
    let mut debian = Debian::start(slat, slat.command::<&str>([]), &[&control], None);
    debian.boot();
    debian.tell("filetree /tree 7 100 64000 --drop-caches");
    for hop in 1..=2 {
        let listen = format!("unix:{}", path(&format!("{hop}.in")));
        let control = format!("control.socket={}", path(&hop.to_string()));
        let mut next = debian.receiver(slat, &listen, &[&control]);
        while !Path::new(&path(&format!("{hop}.in"))).exists() {
            let listens = next.age() < Duration::from_secs(60) && !next.has_ended();
            assert!(listens, "nobody listens");
            sleep(Duration::from_millis(20));
        }
        debian.begin("filetree /tree 7 100 64000 --drop-caches --check");
        sleep(Duration::from_millis(300));
        let from = path(&(hop - 1).to_string());
        let mode = ["hybrid", "post-copy"][hop % 2];
        let output = slat.run(["send", &from, &listen, "--mode", mode, "--json"]);
        let told = sent(&output);
        println!("{mode}: {}", told["report"]);
        debian.moved(next);
        let files = debian.result();
        assert_eq!((files.code, files.number("filetree", "wrong")), (0, 0), "{}", files.text);
    }
    debian.end("poweroff");
}
