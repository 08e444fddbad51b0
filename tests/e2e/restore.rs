//! `slat restore --lazy` on the real program: what was needed first is ready the next time, and many machines go on from one snapshot
//! over the same memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tests::{Output, Scratch, Slat, assert_ended, require_guests, told};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

const MIB: u64 = 1 << 20;
/// RAM of a machine.
const RAM: u64 = 64 * MIB;

/// A snapshot of the guest `touch`, taken once it had said `mark`.
struct Saved {
    scratch: Scratch,
}

impl Saved {
    fn new(cmdline: &str, mark: &str) -> Saved {
        let scratch = Scratch::new();
        let text = format!("memory.size = {RAM}\n[boot]\nguest = 'touch'\ncmdline = '{cmdline}'\n");
        let config = scratch.write("x.toml", text);
        let socket = scratch.path().join("socket");
        let mut command = SLAT.command(["run"]);
        command.arg(config).arg("--control").arg(&socket);
        let mut running = SLAT.start(command);
        running.wait_for(mark);
        let saved = Saved { scratch };
        let folder = saved.folder();
        let arguments = [Path::new("snapshot"), &socket, &folder, Path::new("--stop")];
        let output = SLAT.run(arguments);
        assert_eq!(output.code, Some(0), "{output:?}");
        assert_ended(&running.finish(), 0, &["saved, and ended"]);
        saved
    }

    fn folder(&self) -> PathBuf {
        self.scratch.path().join("saved")
    }

    fn working_set(&self) -> PathBuf {
        self.folder().join("working-set")
    }

    /// Goes on lazily; a byte is typed.
    fn restore(&self, more: &[&str]) -> Output {
        let mut command = SLAT.command(["restore", "--lazy"]);
        command.arg(self.folder()).args(more).stdin(Stdio::piped());
        let mut running = SLAT.start(command);
        if !more.contains(&"--count") {
            running.type_in(b"\n");
        }
        running.finish()
    }

    /// The same, and what the memory service did.
    fn report(&self, more: &[&str]) -> Value {
        let path = self.scratch.path().join("report.json");
        let json = path.display().to_string();
        let output = self.restore(&[more, &["--json-report", &json]].concat());
        assert_eq!(output.code, Some(0), "{output:?}");
        assert_eq!(told(&output.stdout, "wrong"), 0, "{output:?}");
        let report = fs::read_to_string(path).expect("a report");
        serde_json::from_str(&report).expect("JSON")
    }
}

fn number(report: &Value, pointer: &str) -> u64 {
    report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer}"))
}

/// Pages that the guest stores to, or only reads, anywhere or side by side; and all others afterwards.
#[test]
fn what_was_needed_first_is_ready_the_next_time() {
    if !require_guests() {
        return;
    }
    for (access, order) in
        [("write", "random"), ("write", "seq"), ("read", "random"), ("read", "seq")]
    {
        let cmdline = format!("again=2048 again.order={order} again.access={access}");
        let saved = Saved::new(&cmdline, "touch: waits");
        let first = saved.report(&[]);
        let text = fs::read_to_string(saved.working_set()).expect("it was written down");
        let stored = text.lines().filter(|line| line.ends_with(" w")).count();
        assert_eq!(stored >= 2048, access == "write", "{stored} pages were stored to");
        assert_eq!(number(&first, "/memory/placed"), 0);
        let second = saved.report(&[]);
        let faults = |report| number(report, "/memory/messages/messages");
        assert!(faults(&second) < faults(&first), "{} of {}", faults(&second), faults(&first));
        if access == "write" {
            assert!(number(&second, "/memory/placed") > 0, "{second:#}");
        }
        assert_eq!(fs::read_to_string(saved.working_set()).expect("text"), text, "it stays");
    }
}

#[test]
fn a_damaged_record_is_as_none_and_a_machine_that_does_not_fit_waits_for_nothing() {
    if !require_guests() {
        return;
    }
    let saved = Saved::new("again=2048 again.rest=1", "touch: waits");
    saved.report(&[]);
    let good = fs::read_to_string(saved.working_set()).expect("it was written down");
    // Damaged, it is as none: the run writes another down.
    fs::write(saved.working_set(), good.replacen('1', "2", 1)).expect("it can be written");
    saved.report(&[]);
    let again = fs::read_to_string(saved.working_set()).expect("it was written down");
    assert_eq!(again.lines().next().map(str::len), good.lines().next().map(str::len));
    // What does not fit ends before anything runs, with the thread that makes pages ready.
    let folder = saved.folder().display().to_string();
    let output = SLAT.run(["restore", "--lazy", &folder, "--set", "memory.guard=['0xa00000+4K']"]);
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("guard pages"), "{output:?}");
}

/// Each of them reads all of its memory many times. What is not read twice is there once; what one of them stores to is its own.
#[test]
fn machines_of_one_snapshot_share_what_they_only_read() {
    if !require_guests() {
        return;
    }
    const COUNT: u64 = 6;
    let saved = Saved::new("fill=page reads=120", "touch: reads");
    for knows in [false, true] {
        assert_eq!(saved.working_set().exists(), knows);
        let output = saved.restore(&["--count", "6", "--json"]);
        assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{output:?}");
        let report: Value = serde_json::from_str(&output.stdout).expect("one line of JSON");
        assert_eq!(report["audit"], "clean");
        let machines = report["clones"].as_array().expect("machines");
        assert_eq!(machines.len() as u64, COUNT);
        for machine in machines {
            assert_eq!((&machine["exit_code"], &machine["audit"]), (&0.into(), &"clean".into()));
            let said = machine["console"].as_str().expect("what it said");
            assert_eq!(told(said, "wrong"), 0, "{said}");
        }
        let loaded = number(&report, "/loaded_bytes");
        assert!((RAM - 4 * MIB..=RAM).contains(&loaded), "all is read: {loaded}");
        let took = |when: &str| {
            let bytes = |part: &str| number(&report, &format!("/{when}/pss_{part}bytes"));
            bytes("") - bytes("file_")
        };
        let grown = took("after") - took("before");
        let private = number(&report, "/private_bytes");
        // As of clones: page tables, and a quarter of a MiB for its threads, VM and books.
        let bound = RAM + private + COUNT * (MIB / 4 + RAM / 512);
        println!("{grown} bytes more for {COUNT} machines of {RAM}, {private} private");
        assert!(grown <= bound, "{grown} of {bound} bytes");
        assert!(grown < COUNT * RAM / 3, "{grown} bytes are not well below {COUNT} copies");
    }
}

#[test]
fn many_at_once_are_lazy_and_have_no_socket() {
    for (more, says) in [
        (&["--count", "2"][..], "--lazy"),
        (&["--count", "0", "--lazy"], "--count"),
        (&["--count", "2", "--lazy", "--control", "x"], "--control"),
        (&["--json", "--lazy"], "--count"),
    ] {
        let mut command = SLAT.command(["restore", "saved"]);
        command.args(more);
        let output = SLAT.start(command).finish();
        assert_eq!(output.code, Some(2), "{more:?}: {output:?}");
        assert!(output.stderr.contains(says), "{more:?}: {output:?}");
    }
}
