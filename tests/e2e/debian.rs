//! Debian's stock kernel at work: files, memory, a network and a person at its terminal, while the monitor does with its memory
//! all that it can. A boot takes a minute where no processor runs ring 0, so a few boots see all.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{
    Debian, Report, Running, Scratch, Slat, Terminal, require_debian, require_guests, require_taps,
    tree, with_taps,
};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(900));

/// Every part of the memory service at work in the background.
const BUSY: [&str; 3] =
    ["collapse.background=true", "collapse.max_holes=511", "dedup.background=true"];

/// The report's counts of the device of this name.
fn count(report: &Report, device: &str, name: &str) -> u64 {
    let devices = report.at("devices").as_array().expect("devices are a list");
    let at = devices.iter().position(|told| told["name"] == device);
    let at = at.unwrap_or_else(|| panic!("no device {device} in {devices:#?}"));
    report.number(&format!("devices.{at}.counts.{name}"))
}

/// No driver of the guest did what a device does not allow.
fn assert_no_breaks(report: &Report) {
    let devices = report.at("devices").as_array().expect("devices are a list").len();
    for at in 0..devices {
        assert_eq!(report.number(&format!("devices.{at}.breaks")), 0, "device {at}");
    }
}

/// The program that the guest has, run outside.
fn outside(args: &[&str]) -> String {
    let mut command = Command::new(tree::root().join("configs/debian/guest-tool"));
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = Running::start(command, Duration::from_secs(120)).finish();
    assert_eq!(output.code, Some(0), "{output:?}");
    output.stdout.trim_end().to_owned()
}

/// The number after `key=` in a line.
fn value(line: &str, key: &str) -> f64 {
    let value = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {key}= in {line:?}"))
}

/// What was written to the disk is read back right while pages collapse, merge and go back to the host; and a person can work
/// at the terminal.
#[test]
fn debian_keeps_its_files_and_its_user_while_its_memory_is_moved() {
    if !require_guests() || !require_debian() {
        return;
    }
    let command = SLAT.command::<&str>([]);
    let mut debian = Debian::start(SLAT, command, &BUSY, Some(Terminal::new()));
    debian.boot();

    // A line that is mended before it ends: a wrong letter, and one that was left out.
    debian.type_in(b"echo adx\x7f\x1b[Dbc\x1b[C\r");
    assert!(debian.wait_for("\nabcd\r"), "the shell has no line editing");
    // `go` comes from the process that sleeps, or rather from what it was before.
    debian.type_in(b"sh -c 'echo go; exec sleep 1000'\r");
    assert!(debian.wait_for("\ngo\r"), "nothing sleeps");
    debian.type_in(b"\x03");
    // 128 and the number of SIGINT.
    assert!(debian.wait_for("guest# "), "Ctrl-C ends no sleep");
    debian.type_in(b"echo \"slept $?\"\r");
    assert!(debian.wait_for("\nslept 130\r"), "Ctrl-C ends no sleep");
    debian.type_in(b"sleep 1 & wait; echo \"waited $?\"\r");
    assert!(debian.wait_for("\nwaited 0\r"), "the shell does not hear of its children's end");
    assert!(debian.wait_for("guest# "), "there is no prompt");

    let free = debian.tell("free");
    let memory = free.line("Mem");
    let numbers: Vec<u64> = memory.split_whitespace().map(|word| word.parse().unwrap()).collect();
    // Of 256 MiB the kernel keeps some; what is used and what is free are parts of the rest.
    assert!((180 << 10..256 << 10).contains(&numbers[0]), "{memory}");
    assert!(numbers[1] + numbers[2] <= numbers[0], "{memory}");

    let files = debian.tell("filetree /tree 7 150 64000 --drop-caches");
    assert_eq!((files.number("filetree", "files"), files.number("filetree", "wrong")), (150, 0));
    // Pages of four contents, and time to find them.
    let memory = debian.tell("memory 32 2 4 5");
    assert_eq!(memory.number("memory", "wrong"), 0, "{}", memory.text);
    let files = debian.tell("filetree /tree 7 150 64000 --drop-caches --check");
    assert_eq!(files.number("filetree", "wrong"), 0, "{}", files.text);

    let inside = debian.tell("compress 8 15");
    let inside = inside.line("compress");
    let outside = outside(&["compress", "8", "15"]);
    for key in ["median_cycles", "best_cycles", "median_ns", "best_ns"] {
        println!(
            "compress {key}: inside {:.3} of outside",
            value(inside, key) / value(&outside, key)
        );
    }
    assert_eq!(value(inside, "packed"), value(&outside, "packed"));

    let (_, report) = debian.end("poweroff");
    assert_no_breaks(&report);
    assert!(count(&report, "disk.root", "bytes_written") > 9 << 20, "a sync reaches the disk");
    assert!(count(&report, "balloon.free", "reported") > 0, "free pages are reported");
}

/// The host's side of the transfer, in the guest's network, and then the monitor in its place.
const SERVED: &str = r#"
tool=$1 log=$2
shift 2
timeout 900 "$tool" transfer --listen 10.0.0.1:7000 >"$log" 2>&1 </dev/null &
exec "$@"
"#;

/// Two processors, and a network to the host: pings come back, and bytes come as they were sent, both ways.
#[test]
fn debian_on_two_vcpus_has_a_network() {
    if !require_guests() || !require_debian() || !require_taps() {
        return;
    }
    let log = tests::Scratch::new();
    let log = log.path().join("transfer.log");
    let mut command = with_taps(&[], "bash");
    command.args(["-c", SERVED, "served"]);
    command.arg(tree::root().join("configs/debian/guest-tool")).arg(&log).arg(SLAT.exe());
    let sets = ["machine.vcpus=2", "net.lan.tap=tap0", "collapse.background=true"];
    let mut debian = Debian::start(SLAT, command, &sets, None);
    debian.boot();
    let nproc = debian.tell("nproc");
    assert!(nproc.text.lines().any(|line| line.trim_end() == "2"), "{}", nproc.text);
    let ping = debian.tell("ping -c 3 10.0.0.1");
    assert!(ping.text.contains("3 packets transmitted, 3 packets received, 0% packet loss"));
    let transfer = debian.tell("transfer 10.0.0.1:7000 16");
    let told = ["sent", "received", "wrong"].map(|key| transfer.number("transfer", key));
    assert_eq!(told, [16 << 20, 16 << 20, 0], "{}", transfer.text);
    println!("transfer: {}", transfer.line("transfer"));
    let (output, report) = debian.end("poweroff");
    let served = tree::text(&log);
    assert!(served.contains("received=16777216 wrong=0 "), "{served}: {output:?}");
    assert_no_breaks(&report);
    assert!(
        count(&report, "net.lan", "rx_packets") > 3 && count(&report, "net.lan", "tx_packets") > 3
    );
}

/// Less memory than the guest was promised: what it frees goes back and serves what it touches next.
#[test]
fn debian_lives_on_less_than_its_ram() {
    if !require_guests() || !require_debian() {
        return;
    }
    let sets = ["memory.pool=128M", "dedup.background=true", "balloon.free.deflate_on_oom=true"];
    let mut debian = Debian::start(SLAT, SLAT.command::<&str>([]), &sets, None);
    debian.boot();
    for _ in 0..3 {
        let memory = debian.tell("memory 40 1 0 0");
        assert_eq!(memory.number("memory", "wrong"), 0, "{}", memory.text);
        // Linux reports pages that have been free for two seconds.
        debian.tell("sleep 3");
    }
    let (_, report) = debian.end("exit");
    assert_no_breaks(&report);
    assert!(count(&report, "balloon.free", "reported") > 0, "free pages are reported");
    assert!(report.number("memory.balloon.given_back") > 0);
}

/// A running machine's answers at its control socket.
struct Control(String);

impl Control {
    fn ask(&self, command: &str, args: &[&str]) -> Value {
        let output = SLAT.run([&[command, &self.0, "--json"], args].concat());
        assert_eq!(output.code, Some(0), "{output:?}");
        serde_json::from_str(&output.stdout).expect("one JSON object")
    }

    /// A part of the map's `totals.bytes`, in MiB.
    fn map(&self, part: &str) -> u64 {
        let map = self.ask("map", &[]);
        map["totals"]["bytes"][part].as_u64().unwrap_or_else(|| panic!("no {part} in {map}")) >> 20
    }

    /// What is resident when the guest has reported all that is free: it does so for two seconds after the last was freed.
    fn resident_at_rest(&self) -> u64 {
        let started = Instant::now();
        let mut resident = self.map("resident");
        loop {
            sleep(Duration::from_secs(4));
            let last = std::mem::replace(&mut resident, self.map("resident"));
            if last.abs_diff(resident) <= 1 {
                return resident;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "it reports for ever");
        }
    }

    /// Looks until `is_so`.
    fn wait_until(&self, what: &str, is_so: impl Fn(&Control) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            let so_far = || format!("{what}: {:#}", self.ask("map", &[])["totals"]);
            assert!(started.elapsed() < Duration::from_secs(120), "{}", so_far());
            sleep(Duration::from_millis(200));
        }
        println!("{what}: {:.1} s", started.elapsed().as_secs_f64());
    }
}

/// The number in column `column` of what `free` says of memory, in MiB: all, used, free.
fn free(debian: &mut Debian, column: usize) -> u64 {
    let free = debian.tell("free");
    let number = free.line("Mem").split_whitespace().nth(column);
    let kib: Option<u64> = number.and_then(|number| number.parse().ok());
    kib.unwrap_or_else(|| panic!("no memory in {}", free.text)) / 1024
}

/// The map shows what a program touches, what is reported as free after its end, and what goes into the balloon because somebody
/// asks for it; and the guest has that much less.
#[test]
fn the_map_shows_what_debian_gives_back() {
    const MUCH: u64 = 32;
    /// Of that, what has to be seen: pages go back in blocks, and the kernel does things of its own.
    const SEEN: u64 = 20;
    const UNTIL_TOLD: &str =
        "until [ -s /tmp/told ]; do sleep 1; done; cat /tmp/told; rm /tmp/told";
    if !require_guests() || !require_debian() {
        return;
    }
    let scratch = Scratch::new();
    let control = Control(scratch.path().join("control").display().to_string());
    let socket = format!("control.socket={}", control.0);
    let mut debian = Debian::start(SLAT, SLAT.command::<&str>([]), &[&socket], None);
    debian.boot();

    let before = control.resident_at_rest();
    debian.tell(&format!("{{ memory {MUCH} 1 0 8 >/tmp/told & }}"));
    control.wait_until("what is touched is resident", |control| {
        control.map("resident") >= before + SEEN
    });
    let memory = debian.tell(UNTIL_TOLD);
    assert_eq!(memory.number("memory", "wrong"), 0, "{}", memory.text);
    control.wait_until("what is free is reported and leaves", |control| {
        control.map("resident") + SEEN <= before + MUCH && control.map("returned") >= SEEN
    });

    let (had, returned) = (free(&mut debian, 2), control.map("returned"));
    let size = format!("{MUCH}M");
    let asked = control.ask("balloon", &[&size]);
    assert_eq!(asked["balloons"][0]["target"].as_u64(), Some(MUCH << 20), "{asked}");
    let holds = |control: &Control, mib: u64| {
        control.ask("balloon", &[])["balloons"][0]["actual"].as_u64() == Some(mib << 20)
    };
    control.wait_until("the balloon fills", |control| holds(control, MUCH));
    // Pages that were reported before are not returned a second time.
    assert!(control.map("returned") >= returned.max(MUCH), "{}", control.map("returned"));
    let has = free(&mut debian, 2);
    assert!(has + SEEN <= had, "{has} MiB are free, of {had} before");
    let refused = SLAT.run(["balloon", &control.0, "1G"]);
    assert!(refused.stderr.contains("more than the RAM of this machine, 256 MiB"), "{refused:?}");
    control.ask("balloon", &["0"]);
    control.wait_until("the balloon is empty", |control| holds(control, 0));
    assert!(free(&mut debian, 2) >= has + SEEN);

    let (_, report) = debian.end("poweroff");
    assert_no_breaks(&report);
}
