//! Guests with a network device, in a network that is the test's own: the host's kernel and other guests answer.

use std::process::Command;
use std::time::Duration;

use tests::{
    Output, Report, Running, Scratch, Slat, require_guests, require_taps, skip, tree, with_taps,
};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(LIMIT);
const LIMIT: Duration = Duration::from_secs(90);

/// The shipped config in a network of its own, with `sets` as its overrides.
fn command(options: &[&str], sets: &[&str]) -> Command {
    let mut command = with_taps(options, SLAT.exe());
    command.arg("run").arg(tree::root().join("configs/net.toml"));
    for set in sets {
        command.args(["--set", set]);
    }
    command
}

fn run(options: &[&str], sets: &[&str]) -> (Output, Report) {
    SLAT.run_machine(command(options, sets))
}

/// The shipped config, and what else a device and its memory may be like: the host's kernel answers each echo request, short or
/// as long as a frame can be, and the guest finds in it what it sent.
#[test]
fn the_host_answers_a_guests_echo_requests() {
    if !require_guests() || !require_taps() {
        return;
    }
    let long = "boot.cmdline=net.ping=10.0.0.1 net.size=1472 net.count=30";
    for (options, sets) in [
        (&[][..], &[][..]),
        (&[], &[long, "net.uplink.offloads=false", "memory.pages=2m"]),
        (&[], &[long, "net.uplink.queue_size=32", "machine.vcpus=2"]),
        (&["--queues"], &[long, "net.uplink.queues=2", "machine.device_threads=2"]),
    ] {
        let (output, report) = run(options, sets);
        assert_eq!(output.code, Some(0), "{sets:?}: {output:?}");
        let count = if sets.is_empty() { 100 } else { 30 };
        let told = format!("net: pings={count} received={count} wrong=0 ");
        assert!(output.stdout.contains(&told), "{output:?}");
        assert_eq!(report.number("devices.0.breaks"), 0);
        let packets = |way: &str| report.count(0, &format!("{way}_packets"));
        assert!(packets("rx") > count && packets("tx") > count, "with what asks for addresses");
        assert_eq!(report.count(0, "tx_dropped"), 0);
    }
}

#[test]
fn the_guests_address_is_the_configs() {
    if !require_guests() || !require_taps() {
        return;
    }
    let (output, _) = run(&[], &["net.uplink.mac=52:54:00:ab:cd:ef"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains("net: 10.0.0.2 at 52:54:00:ab:cd:ef\n"), "{output:?}");
}

/// An interface of another number of queues, or one that is none, is refused in a sentence.
#[test]
fn an_interface_that_does_not_fit_is_named() {
    if !require_guests() || !require_taps() {
        return;
    }
    for (sets, says) in [
        (&["net.uplink.queues=2"][..], "was made for another number of queues than 2"),
        (&["net.uplink.tap=lo"], "the interface lo is no TAP interface"),
    ] {
        let output = SLAT.start(command(&[], sets)).finish();
        assert_eq!((output.code, output.stdout.as_str()), (Some(2), ""), "{output:?}");
        assert!(output.stderr.starts_with("error: net.uplink.tap "), "{output:?}");
        assert!(output.stderr.contains(says), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
}

/// The two guests' command: one receives on the one interface what the other sends on the other. The exit code is 0 if those of
/// both are.
const TWO: &str = r#"
slat=$1 config=$2 out=$3
shift 3
run() { "$slat" run "$config" --json-report "$out/$1.json" "${@:2}" >"$out/$1.out" 2>&1; }
run sink --set net.uplink.tap=tap1 --set net.uplink.mac=52:54:00:00:00:03 \
  --set "boot.cmdline=net.ip=10.0.0.3 net.sink=1 net.seconds=60" "$@" &
sink=$!
run stream --set "boot.cmdline=net.ip=10.0.0.2 net.to=10.0.0.3 net.stream=2M" "$@"
stream=$?
wait $sink && exit $stream
"#;

/// What one guest streams to the other over a bridge comes there, each datagram with its checksum as it was sent.
#[test]
fn one_guest_streams_to_another_over_a_bridge() {
    if !require_guests() || !require_taps() {
        return;
    }
    let bridged = with_taps(&["--taps", "2"], "true").output().unwrap();
    if !bridged.status.success() {
        let said = String::from_utf8_lossy(&bridged.stderr);
        return skip(&format!("there is no bridge to be had: {}", said.trim_end()));
    }
    for (options, sets) in [
        (&["--taps", "2"][..], &[][..]),
        (&["--taps", "2"], &["net.uplink.offloads=false", "memory.pages=2m"]),
        (&["--taps", "2", "--queues"], &["net.uplink.queues=2", "collapse.background=true"]),
    ] {
        let scratch = Scratch::new();
        let mut command = with_taps(options, "bash");
        command.args(["-c", TWO, "two", SLAT.exe()]).arg(tree::root().join("configs/net.toml"));
        command.arg(scratch.path());
        for set in sets {
            command.args(["--set", set]);
        }
        let output = Running::start(command, LIMIT).finish();
        let file = |name: &str| tree::text(&scratch.path().join(name));
        let (sink, stream) = (file("sink.out"), file("stream.out"));
        assert_eq!(output.code, Some(0), "{sets:?}: {output:?}\n{sink}\n{stream}");
        // So many datagrams of 1472 bytes make 2 MiB.
        for (said, way) in [(sink, "sink"), (stream, "stream")] {
            let told = said.lines().find(|line| line.starts_with(&format!("net: {way}=")));
            let told = told.unwrap_or_else(|| panic!("{said}"));
            let value = |key: &str| {
                let word = told.split(' ').find_map(|word| word.strip_prefix(key));
                word.and_then(|word| word.parse::<u64>().ok()).unwrap_or_else(|| panic!("{told}"))
            };
            assert!(value(&format!("{way}=")) >= 2 << 20, "{told}");
            assert_eq!(value("datagrams="), value("received="), "{told}");
            assert_eq!(value("wrong="), 0, "{told}");
            let report = Report::read(&scratch.path().join(format!("{way}.json")));
            assert_eq!((report.text("audit"), report.number("devices.0.breaks")), ("clean", 0));
        }
    }
}
