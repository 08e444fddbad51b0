//! `slat clone` on the real program: memory that is only read exists once, and a clone costs what it writes.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tests::{Output, Scratch, Slat, assert_refused, require_guests, tree};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

const MIB: u64 = 1 << 20;
/// RAM of a clone.
const RAM: u64 = 64 * MIB;
const CLONES: u64 = 50;
/// A clone's page tables, if it maps all of its RAM by small pages.
const TABLES: u64 = RAM / 512;

/// A template of 64 MiB, no two words of it alike, and a folder that it lies in.
struct Template {
    _folder: Scratch,
    path: PathBuf,
    words: Vec<u64>,
}

impl Template {
    fn new() -> Template {
        let words: Vec<u64> = (1..=RAM / 8).map(hash).collect();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let folder = Scratch::new();
        let path = folder.write("template.img", bytes);
        Template { _folder: folder, path, words }
    }

    fn clone(&self, count: u64, sets: &[&str]) -> Output {
        let mut command = SLAT.command(["clone", "--json", "--count", &count.to_string()]);
        command.arg(tree::root().join("configs/template.toml"));
        command.arg("--set").arg(format!("memory.template={}", self.path.display()));
        for set in sets {
            command.args(["--set", set]);
        }
        SLAT.start(command).finish()
    }

    /// What the guest `clone` makes of the file's bytes from `from` on.
    fn sum(&self, from: u64) -> u64 {
        let pages = self.words[(from / 8) as usize..].chunks(512);
        (from..).step_by(4096).zip(pages).fold(0, |sum, (address, words)| {
            let inner = (0..)
                .zip(words)
                .fold(0u64, |sum, (i, &word)| sum.wrapping_add(word.wrapping_mul(2 * i + 1)));
            sum.wrapping_add(inner.wrapping_mul(hash(address)))
        })
    }
}

/// As in the guests' `rt/permutation.rs`.
fn hash(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The number after `key=` in the last line that a clone said.
fn told(clone: &Value, key: &str) -> u64 {
    tests::told(clone["console"].as_str().expect("what it said"), key)
}

fn number(report: &Value, pointer: &str) -> u64 {
    report.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer}"))
}

/// What the process took more with the clones than before them, its program left out: that is shared with others that run
/// it, and is all the more its own when they end.
fn growth(report: &Value) -> u64 {
    let took = |when: &str| {
        let bytes = |part: &str| number(report, &format!("/{when}/pss_{part}bytes"));
        bytes("") - bytes("file_")
    };
    took("after") - took("before")
}

/// Runs 50 clones that write `written` pages each; all must find the template, and keep what they wrote.
fn fifty(template: &Template, written: u64) -> Value {
    let output = template.clone(CLONES, &[&format!("boot.cmdline=write={written}")]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{}", output.stdout);
    let report = json(&output);
    assert_eq!(report["audit"], "clean");
    let clones = report["clones"].as_array().unwrap();
    assert_eq!(clones.len() as u64, CLONES);
    let from = told(&clones[0], "from");
    let sum = template.sum(from);
    for clone in clones {
        assert_eq!((clone["exit_code"].as_u64(), &clone["audit"]), (Some(0), &"clean".into()));
        assert_eq!((told(clone, "wrong"), told(clone, "written")), (0, written), "{clone}");
        assert_eq!((told(clone, "from"), told(clone, "sum")), (from, sum), "{clone}");
        assert_eq!(told(clone, "pages"), (RAM - from) / 4096, "all RAM above the image is read");
    }
    report
}

/// The bound of the first: the template once, what the clones have of their own (their boot images: 27 pages each), 32 page
/// tables for each clone, which it needs where it came before the template was loaded around it, and a quarter of a MiB for its
/// threads, VM and books, of which about 110 KiB are used. A second copy of the template would break it.
#[test]
fn fifty_clones_keep_what_they_only_read_once_and_pay_for_what_they_write() {
    if !require_guests() {
        return;
    }
    let template = Template::new();
    let mut table = Vec::new();
    for written in [0, 64, 1024] {
        let report = fifty(&template, written);
        let private = number(&report, "/private_bytes");
        assert!(number(&report, "/loaded_bytes") <= RAM);
        let bound = RAM + private + CLONES * (MIB / 4 + TABLES);
        assert!(growth(&report) <= bound, "{} of {bound} bytes", growth(&report));
        println!(
            "{written:>5} pages written: {:>11} bytes more, {private:>11} private",
            growth(&report)
        );
        table.push((written, growth(&report), private));
    }
    let (_, nothing, boot) = table[0];
    assert!(nothing < 2 * RAM, "50 clones that write nothing take {nothing} bytes");
    for &(written, growth, private) in &table[1..] {
        let pages = CLONES * written;
        assert_eq!(private - boot, pages * 4096, "a written page is a page of the clone's own");
        // An eighth is for the books of pages out of their block's place. What differs between two runs is how many clones
        // came early enough to need page tables, and 2 MiB.
        let noise = CLONES * TABLES + 2 * MIB;
        let least = (pages * 4096).saturating_sub(noise);
        let most = pages * (4096 + 512) + noise;
        let more = growth.saturating_sub(nothing);
        assert!((least..=most).contains(&more), "{written} pages: {more} not in {least}..={most}");
    }
}

/// Blocks at a time, on huge pages where there are any; several vCPUs; and pages anywhere.
#[test]
fn clones_of_every_kind_find_their_template() {
    if !require_guests() {
        return;
    }
    let template = Template::new();
    for sets in [
        &["memory.pages=2m", "boot.cmdline=write=300 order=random"][..],
        &["machine.vcpus=2", "memory.fault_threads=2", "boot.cmdline=write=300 order=random"],
        &[
            "memory.backing=memfd",
            "memory.pages=2m",
            "collapse.background=true",
            "boot.cmdline=write=2000",
        ],
    ] {
        let output = template.clone(4, sets);
        assert_eq!(output.code, Some(0), "{sets:?}: {output:?}");
        let report = json(&output);
        assert_eq!(report["audit"], "clean", "{sets:?}");
        let clones = report["clones"].as_array().unwrap();
        let sum = template.sum(told(&clones[0], "from"));
        assert!(clones.iter().all(|clone| told(clone, "sum") == sum && told(clone, "wrong") == 0));
    }
}

#[test]
fn a_pool_that_is_too_small_is_said_for_each_clone() {
    if !require_guests() {
        return;
    }
    let output = Template::new().clone(2, &["memory.pool=66M", "boot.cmdline=write=1024"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let report = json(&output);
    assert_eq!(report["audit"], "clean");
    let clones = report["clones"].as_array().unwrap();
    let stopped = clones.iter().filter(|clone| {
        let reason = clone["reason"].as_str().unwrap();
        clone["ending"] == "pool-exhausted" && reason.contains("the pool of 66 MiB is exhausted")
    });
    assert!(stopped.count() > 0, "{report:#}");
}

#[test]
fn a_signal_ends_all_clones_and_the_books_are_right() {
    if !require_guests() {
        return;
    }
    let template = Template::new();
    let mut command = SLAT.command(["clone", "-n", "3"]);
    command.arg(tree::root().join("configs/template.toml"));
    command.arg("--set").arg(format!("memory.template={}", template.path.display()));
    command.args(["--set", "boot.guest=hello", "--set", "boot.cmdline=then=spin"]);
    let running = SLAT.start(command);
    std::thread::sleep(Duration::from_millis(500));
    running.signal(Signal::TERM);
    let output = running.finish();
    assert_eq!(output.code, Some(128 + 15), "{output:?}");
    assert_eq!(output.stdout.matches("hello: command line").count(), 3, "{}", output.stdout);
    assert!(output.stdout.contains("\naudit        clean\n"), "{}", output.stdout);
}

#[test]
fn clones_without_a_template_or_of_none_are_refused() {
    let config = tree::root().join("configs/quickstart.toml");
    let output = SLAT.run(["clone".as_ref(), config.as_os_str()]);
    assert_refused("no template", &output, &["quickstart.toml: memory.template is missing"]);
    for count in ["0", "1001", "many"] {
        let output = SLAT.run(["clone", "x.toml", "--count", count]);
        assert_eq!(output.code, Some(2), "{count}: {output:?}");
        assert!(output.stderr.contains("--count"), "{count}: {output:?}");
    }
}
