//! A thousand machines, started and stopped one after the other: nothing of them is left on the host.
//!
//! What leaks leaks once a run. The rest of the host goes on meanwhile and moves the same counters, so each check allows for
//! noise far below one leak a run, and waits until what others did has passed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use tests::{Scratch, Slat, require_guests};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));

const RUNS: u64 = 1000;

/// How long noise may take to pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host, as far as a machine could leave something on it.
struct Host {
    meminfo: String,
    folders: BTreeSet<PathBuf>,
    mounts: usize,
    descriptors: usize,
}

impl Host {
    fn look() -> Host {
        let list = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts can be listed");
        Host {
            meminfo: fs::read_to_string("/proc/meminfo").expect("memory can be asked for"),
            folders: ["/tmp", "/dev/shm"].into_iter().flat_map(list).map(|e| e.path()).collect(),
            mounts: mounts.lines().count(),
            descriptors: list("/proc/self/fd").count(),
        }
    }

    /// A line of `/proc/meminfo`: KiB, or pages for those that count huge pages.
    fn memory(&self, name: &str) -> i64 {
        let line = self.meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {}", self.meminfo))
    }

    /// What there is more of than `before`, in sentences.
    fn left_since(&self, before: &Host) -> Vec<String> {
        let mut left = Vec::new();
        let mut bounded = |what: &str, grown: i64, allowed: i64| {
            if grown > allowed {
                left.push(format!("{what} grew by {grown}, more than {allowed}"));
            }
        };
        let grown = |name: &str| self.memory(name) - before.memory(name);
        // KiB. A run of this guest has 100 KiB in frames alone, and more in the kernel.
        for name in ["Shmem", "SUnreclaim", "PageTables", "KernelStack"] {
            bounded(name, grown(name), 24 << 10);
        }
        bounded("used memory in KiB", -grown("MemAvailable"), 300 << 10);
        bounded("used huge pages", -grown("HugePages_Free"), 0);
        bounded("reserved huge pages", grown("HugePages_Rsvd"), 0);
        let new_files = self.folders.difference(&before.folders).count() as i64;
        bounded("the number of temporary files", new_files, RUNS as i64 / 10);
        bounded("the number of mounts", self.mounts as i64 - before.mounts as i64, 10);
        let descriptors = self.descriptors as i64 - before.descriptors as i64;
        bounded("the number of this test's open files", descriptors, 0);
        left
    }
}

/// Processes, zombies included, that are children of this one or have `mark` in their command line.
fn processes(mark: &Path) -> Vec<String> {
    let mark = mark.to_str().expect("temporary folders have plain names");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("processes can be listed").flatten() {
        let (stat, cmdline) = (entry.path().join("stat"), entry.path().join("cmdline"));
        // One that ends meanwhile is none.
        let Ok(stat) = fs::read_to_string(stat) else { continue };
        let cmdline = String::from_utf8_lossy(&fs::read(cmdline).unwrap_or_default()).into_owned();
        // Behind the name, which is in parentheses: state, parent.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent == Some(&process::id().to_string()) || cmdline.contains(mark) {
            found.push(format!("{stat}: {cmdline}"));
        }
    }
    found
}

/// The only test of this file, because it looks at all children and descriptors of its process.
#[test]
fn a_thousand_runs_leave_nothing_behind() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let config = scratch.hello("hello.toml", "");
    let run = |pages: &str| {
        let mut command = SLAT.command(["run", "--quiet", "--set", pages]);
        command.arg(&config).current_dir(scratch.path());
        command.env("TMPDIR", scratch.path()).env("HOME", scratch.path());
        SLAT.start(command)
    };
    // The first run warms the host up: it reads the program, KVM allocates what it keeps.
    let warm_up = run("memory.pages=2m").finish();
    assert_eq!(warm_up.code, Some(0), "{warm_up:?}");

    let before = Host::look();
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    for number in 0..RUNS {
        // Every tenth has its pool on a tmpfs of its own.
        let output =
            run(if number % 10 == 9 { "memory.pages=2m" } else { "memory.pages=4k" }).finish();
        assert_eq!((output.code, &*output.stderr), (Some(0), ""), "run {number}: {output:?}");
        slowest = slowest.max(output.took);
    }
    let took = started.elapsed();
    println!(
        "{RUNS} runs in {:.1} s: {:.1} ms each, the slowest {:.1} ms",
        took.as_secs_f64(),
        took.as_secs_f64() * 1e3 / RUNS as f64,
        slowest.as_secs_f64() * 1e3
    );

    // Two at once, each in a process of its own.
    for number in 0..RUNS / 20 {
        let both = [run("memory.pages=4k"), run("memory.pages=2m")];
        for output in both.map(tests::Running::finish) {
            assert_eq!((output.code, &*output.stderr), (Some(0), ""), "pair {number}: {output:?}");
        }
    }

    assert_eq!(processes(scratch.path()), [""; 0], "processes are left");
    let files: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files, std::slice::from_ref(&config), "files are left");
    let ended = Instant::now();
    loop {
        let left = Host::look().left_since(&before);
        if left.is_empty() {
            break;
        }
        assert!(ended.elapsed() < PATIENCE, "after {RUNS} runs: {left:#?}");
        thread::sleep(Duration::from_millis(500));
    }
}
