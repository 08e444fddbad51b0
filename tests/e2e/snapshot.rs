//! `slat snapshot` and `slat restore` on the real program: guests that check themselves are saved in the middle of their work, go
//! on, and go on once more in another process; and what goes wrong leaves what was there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tests::{
    Debian, Output, Running, Scratch, Slat, assert_ended, assert_refused, require_debian,
    require_guests, skip, told,
};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

/// A machine that runs with a control socket, in a folder of its own.
struct Machine {
    scratch: Scratch,
    running: Running,
}

impl Machine {
    /// Starts the machine of `config`, and waits until it says `mark`.
    fn start(config: &str, mark: &str) -> Machine {
        let scratch = Scratch::new();
        fs::write(scratch.path().join("disk.img"), vec![0; 16 << 20]).expect("room for a disk");
        let config = scratch.write("x.toml", config);
        let mut command = SLAT.command(["run"]);
        command.arg(config).arg("--control").arg(scratch.path().join("socket"));
        let mut running = SLAT.start(command);
        running.wait_for(mark);
        Machine { scratch, running }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn command(&self, folder: &str, more: &[&str]) -> Command {
        let mut command = SLAT.command(["snapshot"]);
        command.arg(self.path("socket")).arg(self.path(folder)).args(more);
        command
    }

    fn snapshot(&self, folder: &str, more: &[&str]) -> Output {
        SLAT.start(self.command(folder, more)).finish()
    }

    /// The same; it has to be taken.
    fn save(&self, folder: &str, more: &[&str]) -> Value {
        let output = self.snapshot(folder, &[more, &["--json"]].concat());
        assert_eq!(output.code, Some(0), "{output:?}");
        serde_json::from_str(&output.stdout).expect("one line of JSON")
    }

    fn restore(&self, folder: &str, more: &[&str]) -> Output {
        restore(&self.path(folder), more)
    }
}

fn restore(folder: &Path, more: &[&str]) -> Output {
    let mut command = SLAT.command(["restore"]);
    command.arg(folder).args(more);
    SLAT.start(command).finish()
}

/// The guest found what it had written before it was saved.
fn assert_right(output: &Output) {
    assert_eq!(output.code, Some(0), "{output:?}");
    assert_eq!(told(&output.stdout, "wrong"), 0, "{output:?}");
    assert!(output.stderr.contains("audit clean"), "{output:?}");
}

const TOUCH: &str =
    "memory.size = '64M'\n[boot]\nguest = 'touch'\ncmdline = 'passes=60 fill=page'\n";

#[test]
fn a_guest_goes_on_where_it_was_saved_in_one_process_and_in_others() {
    if !require_guests() {
        return;
    }
    let machine = Machine::start(TOUCH, "pass 3");
    let saved = machine.save("saved", &[]);
    assert!(saved["pages"].as_u64().is_some_and(|pages| pages > 10_000), "{saved}");
    assert_eq!((&saved["kind"], &saved["stopped"]), (&"saved".into(), &false.into()));
    for more in [&[][..], &["--lazy"], &["--lazy"]] {
        assert_right(&machine.restore("saved", more));
        let learnt = machine.path("saved/working-set").exists();
        assert_eq!(learnt, !more.is_empty(), "the first lazy one writes down what it needed");
    }
    assert_right(&machine.running.finish());
}

#[test]
fn two_vcpus_are_saved_together() {
    if !require_guests() {
        return;
    }
    let config =
        "memory.size = '16M'\nmachine.vcpus = 2\n[boot]\nguest = 'smp'\ncmdline = 'passes=1000'\n";
    let machine = Machine::start(config, "by the MP table");
    sleep(Duration::from_millis(300));
    machine.save("saved", &["--stop"]);
    let output = machine.running.finish();
    assert_ended(&output, 0, &["saved, and ended", "audit clean"]);
    for more in [&[][..], &["--lazy"]] {
        assert_right(&restore(&machine.scratch.path().join("saved"), more));
    }
}

#[test]
fn a_disk_at_work_goes_on_with_it() {
    if !require_guests() {
        return;
    }
    let config = "[boot]\nguest = 'blk'\ncmdline = 'blk.ops=1000000 blk.seconds=4 blk.depth=16'\n\
                  [disk.data]\nfile = 'disk.img'\n[rng.entropy]\n";
    let machine = Machine::start(config, "writable disk");
    sleep(Duration::from_millis(500));
    machine.save("saved", &["--stop"]);
    assert_ended(&machine.running.finish(), 0, &["saved, and ended"]);
    let output = restore(&machine.scratch.path().join("saved"), &[]);
    assert_ended(&output, 0, &["wrong=0 errors=0", "audit clean"]);
}

#[test]
fn snapshots_that_build_on_one_another_hold_what_changed() {
    if !require_guests() {
        return;
    }
    // A page in sixteen is written over and over again, after all of them were once.
    let config = "memory.size = '64M'\n[boot]\nguest = 'touch'\ncmdline = 'passes=300 stride=64K fill=page'\n";
    let machine = Machine::start(config, "pass 3");
    let full = machine.save("0", &["--track"])["pages"].as_u64().expect("a number");
    for (folder, base) in [("1", "0"), ("2", "1")] {
        sleep(Duration::from_millis(100));
        let base = machine.path(base).display().to_string();
        let changed = machine.save(folder, &["--base", &base])["pages"].as_u64().expect("a number");
        assert!(changed > 0 && changed <= full, "{changed} pages, after {full}");
    }
    // Only over the last.
    let output = machine.snapshot("3", &["--base", &machine.path("0").display().to_string()]);
    assert_ended(&output, 1, &["what has changed since", "--track"]);
    for folder in ["0", "1", "2"] {
        for more in [&[][..], &["--lazy"]] {
            assert_right(&machine.restore(folder, more));
        }
    }
    assert_right(&machine.running.finish());
}

#[test]
fn what_is_damaged_or_of_another_machine_is_refused_before_anything_runs() {
    if !require_guests() {
        return;
    }
    let machine = Machine::start(TOUCH, "pass 1");
    machine.save("saved", &[]);
    let refused = |what: &str, more: &[&str], says: &[&str]| {
        assert_refused(what, &machine.restore("saved", more), says);
    };
    refused("more RAM", &["--set", "memory.size=128M"], &["67108864 bytes of RAM", "134217728"]);
    refused("a device", &["--set", "rng.x.rate_bytes=1M"], &["0 devices", "has 1"]);
    assert_refused("no folder", &machine.restore("nowhere", &[]), &["nowhere is no snapshot"]);
    let change = |name: &str, at: Option<usize>| {
        let path = machine.path("saved").join(name);
        let good = fs::read(&path).expect("it is there");
        let mut bad = good.clone();
        bad[at.unwrap_or(good.len() / 2)] ^= 1;
        fs::write(&path, bad).expect("it can be written");
        move || fs::write(&path, &good).expect("it can be written")
    };
    for name in ["manifest", "state", "parts", "sums", "config.toml"] {
        let mend = change(name, None);
        refused(name, &[], &["saved cannot be used", name]);
        mend();
    }
    // The guest's image lies at 1 MiB.
    let mend = change("memory", Some(0x10_0000));
    refused("memory", &[], &["page 256 has another checksum"]);
    let lazy = machine.restore("saved", &["--lazy"]);
    assert_ended(&lazy, 1, &["page 256 of the image", "is damaged"]);
    mend();
    let mend = change("sums", Some(0x100 * 8));
    let lazy = machine.restore("saved", &["--lazy"]);
    assert_ended(&lazy, 1, &["the checksums", "they are not what was written"]);
    mend();
    assert_right(&machine.restore("saved", &["--lazy"]));
}

/// A tmpfs of some MiB, unmounted when this is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, mib: u32) -> Option<Small> {
        fs::create_dir(&at).expect("a folder can be made");
        let options = std::ffi::CString::new(format!("size={mib}m")).expect("no NUL");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &at, "tmpfs", flags, options.as_c_str()).ok()?;
        Some(Small(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_leaves_the_old_snapshot_and_a_machine_that_goes_on() {
    if !require_guests() {
        return;
    }
    let machine = Machine::start(TOUCH, "pass 1");
    let Some(small) = Small::mount(machine.path("small"), 24) else {
        return skip("no right to mount a tmpfs");
    };
    let little = Machine::start(
        "memory.size = '8M'\n[boot]\nguest = 'touch'\ncmdline = 'passes=300'\n",
        "pass 1",
    );
    let folder = small.0.join("saved").display().to_string();
    let save = |machine: &Machine| {
        SLAT.run([Path::new("snapshot"), &machine.path("socket"), Path::new(&folder)])
    };
    assert_eq!(save(&little).code, Some(0));
    let output = save(&machine);
    assert_ended(&output, 1, &["cannot be written", "No space left on device"]);
    let left: Vec<_> = fs::read_dir(&small.0).expect("a folder").collect();
    assert_eq!(left.len(), 1, "nothing is left beside it: {left:?}");
    assert_right(&restore(Path::new(&folder), &[]));
    assert_right(&machine.running.finish());
    assert_right(&little.running.finish());
}

#[test]
fn a_machine_that_is_killed_while_it_is_saved_leaves_the_old_snapshot() {
    if !require_guests() {
        return;
    }
    let config = "memory.size = '512M'\n[boot]\nguest = 'touch'\ncmdline = 'passes=1000000 fill=page verify=0'\n";
    let machine = Machine::start(config, "pass 1");
    let before = machine.save("saved", &[]);
    let new = machine.path(".saved.slat-new/memory");
    let asked = SLAT.start(machine.command("saved", &[]));
    let begun = Instant::now();
    while !fs::metadata(&new).is_ok_and(|new| std::os::unix::fs::MetadataExt::blocks(&new) > 0) {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing is written");
    }
    machine.running.signal(Signal::KILL);
    assert_eq!(machine.running.finish().code, None);
    let asked = asked.finish();
    assert_ne!(asked.code, Some(0), "{asked:?}");
    let manifest = fs::read_to_string(machine.scratch.path().join("saved/manifest")).expect("text");
    assert!(manifest.contains(before["id"].as_str().expect("an id")), "{manifest}");
    // It is whole: so it runs, and can be saved to the same place, where the other has left something.
    let socket = machine.scratch.path().join("other");
    let mut command = SLAT.command(["restore"]);
    command.arg(machine.scratch.path().join("saved")).arg("--control").arg(&socket);
    let mut again = SLAT.start(command);
    again.wait_for("pass ");
    let folder = machine.scratch.path().join("saved");
    let output = SLAT.run([Path::new("snapshot"), &socket, &folder]);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(!machine.scratch.path().join(".saved.slat-new").exists());
    again.signal(Signal::TERM);
    assert_eq!(again.finish().code, Some(143));
}

/// Debian's kernel in the middle of its check of a tree of files: it goes on elsewhere, and finds every byte.
#[test]
fn debian_goes_on_with_its_check_of_files() {
    if !require_guests() || !require_debian() {
        return;
    }
    let slat = SLAT.limit(Duration::from_secs(300));
    let command = slat.command::<&str>([]);
    let scratch = Scratch::new();
    let socket = scratch.path().join("socket").display().to_string();
    let set = format!("control.socket={socket}");
    let mut debian = Debian::start(slat, command, &[&set], None);
    debian.boot();
    let files = debian.tell("filetree /tree 7 50 64000 --drop-caches");
    assert_eq!(files.number("filetree", "wrong"), 0, "{}", files.text);
    debian.type_in(b"filetree /tree 7 50 64000 --drop-caches --check; echo \"=end=$?\"\r");
    sleep(Duration::from_millis(200));
    let folder = scratch.path().join("saved").display().to_string();
    let output = SLAT.run(["snapshot", &socket, &folder, "--stop"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    let said = debian.goes_on_from(slat, Path::new(&folder), &set);
    assert!(!said.contains("=end=0"), "it was saved too late: {said}");
    assert!(debian.wait_for("filetree: files=50"), "the check did not end");
    assert!(debian.wait_for("wrong=0 "), "what was read is wrong");
    assert!(debian.wait_for("=end=0"), "the check failed");
    assert!(debian.wait_for("guest# "), "there is no prompt");
    debian.end("poweroff");
}
