//! A guest with a virtio console: what it writes is read, and what is typed is heard, wherever the console leads.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tests::{Report, Running, Scratch, Slat, require_guests, tree};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(LIMIT);
const LIMIT: Duration = Duration::from_secs(60);

/// The shipped config, its files in `scratch`, with `sets` as its overrides.
fn command(scratch: &Scratch, sets: &[&str]) -> Command {
    let (log, report) = (scratch.path().join("console.log"), scratch.path().join("report.json"));
    let mut command = SLAT.machine(&tree::root().join("configs/console.toml"), sets);
    command.arg("--json-report").arg(report);
    command.args(["--set", &format!("console.serial=file:{}", log.display())]);
    command
}

/// Waits for the end, with `code`; the guest's memory has to be given back, and what it said of itself is returned.
fn finish(running: Running, scratch: &Scratch, code: i32) -> (String, Report) {
    let output = running.finish();
    assert_eq!((output.code, output.timed_out), (Some(code), false), "{output:?}");
    let report = Report::read(&scratch.path().join("report.json"));
    assert_eq!((report.text("audit"), report.number("devices.0.breaks")), ("clean", 0));
    (tree::text(&scratch.path().join("console.log")), report)
}

/// Waits until `path` is a file with `text` in it.
fn wait_for(path: &Path, text: &str) {
    let started = Instant::now();
    while !fs::read_to_string(path).is_ok_and(|all| all.contains(text)) {
        assert!(started.elapsed() < LIMIT, "{text:?} never comes to {}", path.display());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_line_of_standard_input_is_answered() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let mut command = command(&scratch, &["boot.cmdline=console.lines=2"]);
    command.stdin(Stdio::piped());
    let mut running = SLAT.start(command);
    running.wait_for("line 1 of 2 from a slat guest\nline 2 of 2 from a slat guest\n");
    running.type_in(b"hello\n");
    running.wait_for("guest\nHELLO\n");
    // More than any buffer on the way has.
    let lines: String = (0..20_000).map(|i| format!("line number {i}\n")).collect();
    running.type_in(lines.as_bytes());
    running.type_in(b"bye\n");
    running.wait_for("BYE\n");
    let heard = running.stdout();
    let (_, answers) = heard.split_once("HELLO\n").unwrap();
    assert!(answers == lines.to_uppercase() + "BYE\n", "{} bytes: {answers:.200}", answers.len());
    let (said, report) = finish(running, &scratch, 0);
    assert!(said.contains("\nconsole: lines=20002 "), "{said}");
    assert_eq!(report.count(0, "bytes_lost"), 0);
}

/// A client of a console's socket.
struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Client {
    fn new(path: &Path) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        Client { stream, lines }
    }

    fn type_in(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }
}

/// Who connects has the console; who comes second is told so; when the first goes, the next one can come.
#[test]
fn clients_of_a_socket_come_and_go() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("console.sock");
    let port = format!("hvc.main.port=socket:{}", path.display());
    let running = SLAT.start(command(&scratch, &[&port]));
    wait_for(&scratch.path().join("console.log"), "console: 80x25");
    let mut first = Client::new(&path);
    assert_eq!(first.line(), "line 1 of 1 from a slat guest\n", "kept for who comes");
    first.type_in("one\ntwo\n");
    assert_eq!([first.line(), first.line()], ["ONE\n", "TWO\n"]);

    let mut second = Client::new(&path);
    assert_eq!(second.line(), "this console has a client already\n");
    assert_eq!(second.line(), "", "and the connection is closed");
    first.type_in("three\n");
    assert_eq!(first.line(), "THREE\n");
    drop(first);
    for word in (0..20).map(|i| format!("again {i}")) {
        ask_anew(&path, &word);
    }
    ask_anew(&path, "bye");
    let (said, report) = finish(running, &scratch, 0);
    assert!(said.contains("\nconsole: lines=24 "), "{said}");
    assert!(report.count(0, "refused") >= 1);
    assert!(!path.exists(), "the socket is gone");
}

/// Connects, types `word`, waits for the answer, and leaves. Until the monitor has heard that the client before has left, the
/// console is taken.
fn ask_anew(path: &Path, word: &str) {
    let started = Instant::now();
    loop {
        let mut client = Client::new(path);
        client.type_in(&format!("{word}\n"));
        let line = client.line();
        if line == format!("{}\n", word.to_uppercase()) {
            return;
        }
        assert_eq!(line, "this console has a client already\n");
        assert!(started.elapsed() < LIMIT, "the console stays taken");
    }
}

#[test]
fn what_is_written_to_a_file_is_all_there() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.path().join("out");
    let port = format!("hvc.main.port=file:{}", path.display());
    let running = SLAT.start(command(&scratch, &[&port, "boot.cmdline=console.lines=5000"]));
    wait_for(&path, "line 5000 of 5000 from a slat guest\n");
    running.signal(Signal::TERM);
    finish(running, &scratch, 143);
    let lines = (1..=5000).map(|i| format!("line {i} of 5000 from a slat guest\n"));
    assert!(fs::read_to_string(path).unwrap() == lines.collect::<String>());
}

/// A terminal: the end that a person types at, and the end that programs have.
fn terminal(columns: u16, rows: u16) -> (OwnedFd, OwnedFd) {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let program = rustix::fs::open(name, flags, Mode::empty()).unwrap();
    resize(&program, columns, rows);
    (person, program)
}

fn resize(terminal: &OwnedFd, columns: u16, rows: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

/// The terminal is raw, its size is the console's, and when it changes the guest is told.
#[test]
fn a_guest_is_told_of_the_terminals_size_and_of_each_new_one() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let (person, program) = terminal(100, 40);
    let mut command = command(&scratch, &[]);
    command.stdin(Stdio::from(program.try_clone().unwrap()));
    command.stdout(Stdio::from(program.try_clone().unwrap()));
    let running = SLAT.start(command);
    let log = scratch.path().join("console.log");
    wait_for(&log, "console: 100x40\n");
    for (columns, rows) in [(132, 50), (1, 1), (65535, 65535), (80, 25)] {
        resize(&program, columns, rows);
        // It is nobody's controlling terminal, so that the kernel tells nobody.
        running.signal(Signal::WINCH);
        wait_for(&log, &format!("console: now {columns}x{rows}\n"));
    }
    let modes = tcgetattr(&program).unwrap().local_modes;
    assert!(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO), "{modes:?}");
    let mut person = fs::File::from(person);
    // Ctrl-C is a byte, and Ctrl-A twice is one.
    person.write_all(b"a\x03\x01\x01b\rbye\r").unwrap();
    let (said, _) = finish(running, &scratch, 0);
    assert!(said.ends_with(" columns=80 rows=25 resized=4\n"), "{said}");
    assert!(said.contains("console: lines=2 read=9 "), "{said}");
    drop(program);
    let mut shown = Vec::new();
    // A terminal that no program has any more ends with an error.
    let _ = person.read_to_end(&mut shown);
    let shown = String::from_utf8_lossy(&shown);
    assert_eq!(shown, "line 1 of 1 from a slat guest\r\nA\x03\x01B\r\nBYE\r\n");
}

/// A size that is written down is not the terminal's, and stays.
#[test]
fn a_size_in_the_config_stays() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let (_person, program) = terminal(100, 40);
    let mut command = command(&scratch, &["hvc.main.columns=132"]);
    command.stdin(Stdio::piped()).stdout(Stdio::from(program.try_clone().unwrap()));
    let mut running = SLAT.start(command);
    wait_for(&scratch.path().join("console.log"), "console: 132x40\n");
    resize(&program, 90, 30);
    running.signal(Signal::WINCH);
    running.type_in(b"bye\n");
    let (said, _) = finish(running, &scratch, 0);
    assert!(said.ends_with(" columns=132 rows=40 resized=0\n"), "{said}");
}
