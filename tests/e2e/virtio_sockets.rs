//! A guest with a socket device, and programs of the host at real Unix sockets: bytes go both ways, and come as they were.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tests::{Output, Report, Running, Scratch, Slat, require_guests, tree};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(LIMIT);
const LIMIT: Duration = Duration::from_secs(60);

/// A machine of the shipped config that runs, with its sockets in a folder of its own.
struct Machine {
    running: Running,
    scratch: Scratch,
}

fn socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("vm.vsock")
}

/// Where the guest finds `port` of the host.
fn listen(scratch: &Scratch, port: u32) -> UnixListener {
    UnixListener::bind(format!("{}_{port}", socket(scratch).display())).unwrap()
}

impl Machine {
    fn start(scratch: Scratch, cmdline: &str, sets: &[&str]) -> Machine {
        let mut command = SLAT.machine(&tree::root().join("configs/vsock.toml"), sets);
        command.arg("--json-report").arg(scratch.path().join("report.json"));
        command.args(["--set", &format!("vsock.main.socket={}", socket(&scratch).display())]);
        if !cmdline.is_empty() {
            command.args(["--set", &format!("boot.cmdline={cmdline} vsock.seconds=50")]);
        }
        Machine { running: SLAT.start(command), scratch }
    }

    /// Waits for the end: what was said, and what the device counted.
    fn finish(self, code: i32, says: &[&str]) -> (Output, Report) {
        let output = self.running.finish();
        assert_eq!((output.code, output.timed_out), (Some(code), false), "{output:?}");
        for part in says {
            assert!(output.stdout.contains(part), "{part:?} is not said: {output:?}");
        }
        let report = Report::read(&self.scratch.path().join("report.json"));
        assert_eq!((report.text("audit"), report.number("devices.0.breaks")), ("clean", 0));
        assert!(!socket(&self.scratch).exists(), "the socket is gone");
        (output, report)
    }
}

/// Sends back what comes, until no more does, as `change` has it: how many bytes came.
fn echo(mut stream: UnixStream, mut change: impl FnMut(&mut [u8])) -> u64 {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut all, mut bytes) = (0, vec![0; 30_000]);
    loop {
        let came = stream.read(&mut bytes).unwrap();
        if came == 0 {
            return all;
        }
        all += came as u64;
        change(&mut bytes[..came]);
        stream.write_all(&bytes[..came]).unwrap();
    }
}

/// The shipped config, with packets of every size, on memory of both page sizes.
#[test]
fn what_a_guest_sends_to_the_host_comes_back() {
    if !require_guests() {
        return;
    }
    for (cmdline, sets, connections, bytes) in [
        ("", &[][..], 2, 4 << 20),
        (
            "vsock.port=7 vsock.connections=9 vsock.bytes=1000001 vsock.size=60001",
            &[],
            9,
            1_000_001,
        ),
        (
            "vsock.port=7 vsock.connections=3 vsock.bytes=20001 vsock.size=7",
            &["memory.pages=2m", "machine.vcpus=2"],
            3,
            20_001,
        ),
        ("vsock.port=7 vsock.bytes=0", &["vsock.main.cid=4294967294"], 1, 0),
    ] {
        let scratch = Scratch::new();
        let listener = listen(&scratch, 7);
        let machine = Machine::start(scratch, cmdline, sets);
        let echoes: Vec<_> = (0..connections)
            .map(|_| listener.accept().unwrap().0)
            .map(|stream| thread::spawn(|| echo(stream, |_| ())))
            .collect();
        for echo in echoes {
            assert_eq!(echo.join().unwrap(), bytes, "{cmdline}: the end is heard behind all bytes");
        }
        let all = connections * bytes;
        let (_, report) =
            machine.finish(0, &[&format!(" sent={all} received={all} wrong=0 cut=0 ")]);
        let counted =
            ["by_guest", "bytes_from_guest", "bytes_to_guest", "resets", "refused", "ignored"]
                .map(|what| report.count(0, what));
        assert_eq!(counted, [connections, all, all, 0, 0, 0]);
    }
}

/// One that does not read for a while holds up nobody else.
#[test]
fn a_program_that_is_slow_holds_up_nobody_else() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let listener = listen(&scratch, 7);
    let cmdline = "vsock.port=7 vsock.connections=3 vsock.bytes=3M";
    let machine = Machine::start(scratch, cmdline, &[]);
    let (slow, _) = listener.accept().unwrap();
    let others = [(); 2].map(|()| listener.accept().unwrap().0);
    for other in others.map(|stream| thread::spawn(|| echo(stream, |_| ()))) {
        assert_eq!(other.join().unwrap(), 3 << 20);
    }
    assert_eq!(echo(slow, |_| ()), 3 << 20);
    machine.finish(0, &["vsock: connections=3 ", " wrong=0 cut=0 "]);
}

#[test]
fn a_byte_that_is_changed_or_missing_shows() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let listener = listen(&scratch, 7);
    let machine = Machine::start(scratch, "vsock.port=7 vsock.bytes=100000", &[]);
    let mut at = 0;
    let flip = |bytes: &mut [u8]| {
        if let Some(byte) = 77_777_usize.checked_sub(at).and_then(|at| bytes.get_mut(at)) {
            *byte ^= 0x10;
        }
        at += bytes.len();
    };
    echo(listener.accept().unwrap().0, flip);
    machine.finish(1, &[" received=100000 wrong=1 cut=0 "]);

    let scratch = Scratch::new();
    let listener = listen(&scratch, 7);
    let machine = Machine::start(scratch, "vsock.port=7 vsock.bytes=1000", &[]);
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = [0; 1000];
    stream.read_exact(&mut bytes).unwrap();
    stream.write_all(&bytes[..999]).unwrap();
    drop(stream);
    machine.finish(1, &[" sent=1000 received=999 wrong=0 "]);
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let _other = listen(&scratch, 70);
    let machine = Machine::start(scratch, "vsock.port=7", &[]);
    let (_, report) = machine.finish(1, &["vsock: connection 0 was refused\n", " cut=1 "]);
    assert_eq!(report.count(0, "refused"), 1);
}

/// Connects to `port` of the guest.
fn connect(socket: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
    stream
}

/// Sends `bytes` bytes to `port` of the guest, says that there are no more, and checks that they all come back.
fn converse(socket: &Path, port: u32, bytes: usize, salt: usize) {
    let mut stream = connect(socket, port);
    let data: Vec<u8> = (0..bytes).map(|i| (i * 7 + salt + (i >> 8) * 31) as u8).collect();
    let mut back = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    back.read_line(&mut line).unwrap();
    let own = line.strip_prefix("OK ").unwrap_or_else(|| panic!("{line:?}"));
    assert!(own.trim_end().parse::<u32>().unwrap() >= 1 << 30, "{line:?}");
    thread::scope(|scope| {
        scope.spawn(|| {
            stream.write_all(&data).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut came = Vec::new();
        back.read_to_end(&mut came).unwrap();
        assert!(came == data, "{} of {bytes} bytes came back, or not as they were", came.len());
    });
}

#[test]
fn programs_of_the_host_have_back_from_a_guest_what_they_send() {
    if !require_guests() {
        return;
    }
    for (keys, sets) in [("", &[][..]), (" vsock.size=61000", &["memory.pages=2m"])] {
        let cmdline = format!("vsock.listen=52 vsock.connections=7{keys}");
        let mut machine = Machine::start(Scratch::new(), &cmdline, sets);
        machine.running.wait_for("vsock: waiting at port 52\n");
        let path = socket(&machine.scratch);
        // Three at once, then some after each other.
        thread::scope(|scope| {
            for salt in 0..3 {
                let path = &path;
                scope.spawn(move || converse(path, 52, 3 << 20, salt));
            }
        });
        for (bytes, salt) in [(0, 3), (1, 4), (100_000, 5)] {
            converse(&path, 52, bytes, salt);
        }
        // Where the guest does not listen, the connection ends without a word.
        let mut wrong = connect(&path, 53);
        let mut said = Vec::new();
        match wrong.read_to_end(&mut said) {
            Ok(_) => assert_eq!(said, b""),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        converse(&path, 52, 5, 6);
        let all = (9 << 20) + 100_006;
        let told = format!("vsock: answered=7 received={all} sent={all} refused=1 cut=0\n");
        let (_, report) = machine.finish(0, &[&told]);
        assert_eq!([report.count(0, "by_host"), report.count(0, "bytes_to_guest")], [8, all]);
    }
}

/// A program that goes amid what it sends leaves the guest and the others as they were.
#[test]
fn a_program_that_goes_takes_nobody_with_it() {
    if !require_guests() {
        return;
    }
    let cmdline = "vsock.listen=52 vsock.connections=12";
    let mut machine = Machine::start(Scratch::new(), cmdline, &[]);
    machine.running.wait_for("vsock: waiting at port 52\n");
    let path = socket(&machine.scratch);
    for _ in 0..11 {
        let mut stream = connect(&path, 52);
        stream.read_exact(&mut [0; 2]).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        // Nobody reads what comes back, so that there is no room at some time.
        let started = Instant::now();
        while stream.write_all(&[7; 10_000]).is_ok() {
            assert!(started.elapsed() < LIMIT, "the guest takes everything");
        }
    }
    converse(&path, 52, 1 << 20, 1);
    let (output, _) = machine.finish(1, &["vsock: answered=12 "]);
    assert!(output.stdout.trim_end().ends_with(" refused=0 cut=11"), "{output:?}");
}
