//! Every shipped config with a built-in guest, run as its comments say, and what each of them shows.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::{Output, Report, Running, Scratch, Slat, assert_ended, require_guests, skip, tree};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

/// The configs that are run here. `every_config_with_a_built_in_guest_is_run` fails where one is missing.
const RUN: &[&str] = &[
    "collapse.toml",
    "dedup.toml",
    "guard.toml",
    "overcommit.toml",
    "quickstart.toml",
    "smp.toml",
    "template.toml",
    "touch-blocks.toml",
    "touch.toml",
];

/// Those of guests that drive virtio devices are run by `virtio_guests.rs`, its neighbours and `memory_devices.rs`.
const RUN_WITH_DEVICES: &[&str] = &[
    "balloon.toml",
    "blk.toml",
    "console.toml",
    "net.toml",
    "pmem.toml",
    "rng.toml",
    "vsock.toml",
];

/// Frames of a 2 MiB block.
const BLOCK: u64 = 512;

fn configs() -> PathBuf {
    tree::root().join("configs")
}

/// Runs a shipped config, with `sets` as its overrides; the report's audit has to be clean.
fn run(config: &str, sets: &[&str]) -> (Output, Report) {
    let (output, report, _) = run_and_map(config, sets);
    (output, report)
}

/// The same with the memory map at the end.
fn run_and_map(config: &str, sets: &[&str]) -> (Output, Report, Report) {
    let scratch = Scratch::new();
    let map = scratch.path().join("map.json");
    let mut command = SLAT.machine(&configs().join(config), sets);
    command.arg("--memory-map").arg(&map);
    let (output, report) = SLAT.run_machine(command);
    (output, report, Report::read(&map))
}

/// What the memory service says has to fit what the guest says that it touched: each of these pages once, and what the
/// guest itself lies on.
fn assert_touched(output: &Output, report: &Report) {
    let (pages, frames) = (output.told("pages"), report.resident_frames());
    let of_the_guest = frames.checked_sub(pages);
    assert!(of_the_guest.is_some_and(|frames| frames <= BLOCK), "{pages} touched, {frames} there");
    assert_eq!(report.number("memory.pool.used"), frames);
    assert_eq!(report.number("memory.refused"), 0);
}

#[test]
fn quickstart_says_hello_and_one_line_of_what_it_took() {
    if !require_guests() {
        return;
    }
    let (output, report) = run("quickstart.toml", &[]);
    assert_ended(&output, 0, &["hello from a slat guest\n"]);
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    let frames = format!("{} frames in use", report.resident_frames());
    let says =
        [" faults, ", &frames, "first guest output after ", " ms", "audit clean", "verdict 0"];
    assert_ended(&output, 0, &says);
    assert_eq!(report.text("ending"), "verdict");
    assert_eq!(report.number("console.written"), output.stdout.len() as u64);
    assert!(report.number("first_output_us") <= output.took.as_micros() as u64);
    assert_eq!(report.number("unclaimed.ports") + report.number("unclaimed.memory"), 0);
}

#[test]
fn touch_takes_a_fault_and_a_frame_for_each_page() {
    if !require_guests() {
        return;
    }
    let (output, report) = run("touch.toml", &[]);
    assert_ended(&output, 0, &[" wrong=0 ", "cpus=1"]);
    assert_touched(&output, &report);
    assert_eq!(output.told("pages").div_ceil(BLOCK), 128, "all blocks of 256 MiB");
    // Nobody else can have touched a page first, so each was a violation of its own.
    let filled = report.number("memory.filled.0");
    assert!(filled >= output.told("pages"), "{filled} filled: {output:?}");
    assert_eq!(report.number("memory.filled.1"), 0);
}

#[test]
fn touch_blocks_takes_a_fault_for_each_block() {
    if !require_guests() {
        return;
    }
    let (output, report) = run("touch-blocks.toml", &[]);
    assert_ended(&output, 0, &[" wrong=0 "]);
    assert_eq!(report.resident_frames(), 256 << 8, "whole blocks of 256 MiB");
    assert_eq!(report.number("memory.resident.leaves.1"), 128);
    let filled = report.number("memory.filled.1");
    assert!((120..=128).contains(&filled), "{filled} filled: {output:?}");
}

/// All blocks but the first, in which the guest itself lies and which it does not fill. On a host that is busy with other
/// things the guest may end before the collapser is through; then it is asked to stay longer.
#[test]
fn what_was_touched_by_small_pages_is_made_of_huge_ones_while_the_guest_runs() {
    if !require_guests() {
        return;
    }
    for more in [&[][..], &["boot.cmdline=fill=page passes=400"]] {
        let (output, report, map) = run_and_map("collapse.toml", more);
        assert_ended(&output, 0, &[" wrong=0 "]);
        assert_touched(&output, &report);
        assert_eq!(report.number("memory.filled.1"), 0, "no fault filled a block");
        let promoted = report.number("memory.collapser.promoted");
        let collapsed = promoted + report.number("memory.collapser.copied");
        assert!(promoted > 0, "{output:?}");
        assert_eq!(report.number("memory.collapser.failed"), 0);
        assert_eq!(report.at("memory.collapser.paused"), false);
        assert_eq!(report.number("memory.resident.leaves.1"), collapsed);
        let says = format!("pages filled ahead, {collapsed} blocks collapsed; ");
        assert_ended(&output, 0, &[&says]);
        let blocks = map.at("blocks").as_array().expect("a list").iter();
        let huge: Vec<bool> = blocks.map(|block| block["huge"] == BLOCK).collect();
        assert_eq!(huge.iter().filter(|&&huge| huge).count() as u64, collapsed);
        if huge == [&[false][..], &[true; 31]].concat() {
            return;
        }
    }
    panic!("the collapser does not get through");
}

/// On a host that is busy with other things the guest may end before the scanner has come by twice; then it is asked to stay
/// longer.
#[test]
fn pages_of_the_same_bytes_become_one_while_the_guest_writes_and_checks_them() {
    if !require_guests() {
        return;
    }
    for more in [&[][..], &["boot.cmdline=fill=page kinds=8 passes=60"]] {
        let (output, report, map) = run_and_map("dedup.toml", more);
        assert_ended(&output, 0, &[" wrong=0 "]);
        assert_eq!(report.number("dedup.failed"), 0);
        assert_eq!(report.at("dedup.paused"), false);
        let (merged, zeroes) = (report.number("dedup.merged"), report.number("dedup.zeroes"));
        let says = format!("ahead, {merged} pages merged, {zeroes} of zeroes dropped; ");
        assert_ended(&output, 0, &[&says]);
        let saved = report.number("dedup.saved_pages");
        let shared: u64 = map.number("totals.bytes.shared") / 4096;
        assert_eq!(shared, saved + report.number("dedup.shared_frames"), "{output:?}");
        // The scanner may keep frames that no page is any more.
        let used = report.number("memory.pool.used");
        assert!(used + saved >= report.resident_frames(), "{output:?}");
        if merged > 1000 && zeroes > 100 && saved > 100 {
            return;
        }
    }
    panic!("the scanner does not get through");
}

#[test]
fn holes_are_filled_as_far_as_the_config_says_and_pages_stay_where_no_collapser_is() {
    if !require_guests() {
        return;
    }
    // A page in 64, so every block but the guest's own has 504 holes, and that one not many fewer.
    let sparse = "boot.cmdline=stride=256K fill=page passes=300";
    let (output, report) = run("collapse.toml", &[sparse, "collapse.max_holes=400"]);
    assert_ended(&output, 0, &[" wrong=0 ", ", 0 blocks collapsed; "]);
    assert_eq!(report.number("memory.resident.leaves.1"), 0);
    let (output, report) = run("collapse.toml", &[sparse, "collapse.max_holes=511"]);
    let huge = report.number("memory.resident.leaves.1");
    let says = format!(", {huge} blocks collapsed; ");
    assert_ended(&output, 0, &[" wrong=0 ", &says]);
    assert!(huge > 0, "{output:?}");
    let (output, report) = run("collapse.toml", &["collapse.background=false"]);
    assert_ended(&output, 0, &[" wrong=0 "]);
    assert!(!output.stderr.contains("collapsed"), "{output:?}");
    assert!(report.at("memory.collapser").is_null());
    assert_eq!(report.number("memory.resident.leaves.1"), 0);
}

#[test]
fn touch_on_two_vcpus_finds_every_word_as_well() {
    if !require_guests() {
        return;
    }
    for sets in [&["machine.vcpus=2"][..], &["machine.vcpus=2", "memory.fault_threads=2"]] {
        let (output, report) = run("touch.toml", sets);
        assert_ended(&output, 0, &[" wrong=0 ", "cpus=2"]);
        assert_touched(&output, &report);
    }
}

#[test]
fn touch_in_every_order_is_the_same_memory_in_the_end() {
    if !require_guests() {
        return;
    }
    let mut seen = BTreeSet::new();
    for order in ["seq", "rev", "random", "stride"] {
        let cmdline = format!("boot.cmdline=order={order} limit=16M fill=page passes=2");
        let (output, report) = run("touch.toml", &["memory.size=32M", &cmdline]);
        assert_ended(&output, 0, &[" wrong=0 "]);
        assert_touched(&output, &report);
        seen.insert((output.told("pages"), report.resident_frames()));
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

/// Below the image's end, off a page, past RAM, with no room for the notes: each is refused in a sentence, and nothing runs.
#[test]
fn touch_refuses_to_share_memory_that_it_does_not_have() {
    if !require_guests() {
        return;
    }
    for dma in ["0x100000", "0x400800", "0x4000000", "0x1e00000"] {
        let cmdline = format!("boot.cmdline=dma={dma}");
        let (output, _) = run("touch.toml", &["memory.size=32M", &cmdline]);
        assert_ended(&output, 2, &[&format!("touch: dma={dma}: expected the address of a page")]);
    }
}

#[test]
fn smp_loses_no_increment_and_finds_its_cpus_in_the_mp_table() {
    if !require_guests() {
        return;
    }
    let (output, report) = run("smp.toml", &[]);
    assert_ended(&output, 0, &["smp: 4 cpus by the command line, 4 by the MP table", " wrong=0 "]);
    assert_eq!(output.told("cpus"), 4);
    assert_touched(&output, &report);
    for vcpus in [2, 8] {
        let set = format!("machine.vcpus={vcpus}");
        let (output, _) = run("smp.toml", &[&set, "memory.size=16M", "boot.cmdline=order=same"]);
        assert_ended(&output, 0, &[&format!("{vcpus} by the MP table"), " wrong=0 "]);
    }
}

/// Whatever the pool lies on. What this host does not have is refused in one sentence, before anything runs.
#[test]
fn every_backing_is_memory_or_says_what_it_lacks() {
    if !require_guests() {
        return;
    }
    let config = configs().join("touch.toml");
    for (backing, pages) in
        [("memfd", "4k"), ("memfd", "2m"), ("tmpfs", "4k"), ("tmpfs", "2m"), ("hugetlb", "2m")]
    {
        let mut command = SLAT.command(["run", "--set", "memory.size=8M"]);
        command.arg(&config).args(["--set", &format!("memory.backing={backing}")]);
        command.args(["--set", &format!("memory.pages={pages}")]);
        let output = SLAT.start(command).finish();
        if output.code == Some(1) && output.stdout.is_empty() {
            assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
            assert!(output.stderr.starts_with("error: memory.backing: "), "{output:?}");
            skip(output.stderr.trim_end());
        } else {
            assert_ended(&output, 0, &[" wrong=0 ", backing, "audit clean"]);
        }
    }
}

/// A pool that is larger than all huge pages of the host: the refusal comes at once, and is no crash later on.
#[test]
fn more_huge_pages_than_there_are_is_refused_with_the_remedy() {
    if !require_guests() {
        return;
    }
    let config = configs().join("quickstart.toml");
    let mut command = SLAT.command(["run", "--set", "memory.backing=hugetlb"]);
    command.arg(config).args(["--set", "memory.size=64G"]);
    let output = SLAT.start(command).finish();
    assert_ended(&output, 1, &["error: memory.backing: ", "vm.nr_hugepages"]);
    assert_eq!((output.stdout.as_str(), output.stderr.lines().count()), ("", 1), "{output:?}");
}

#[test]
fn overcommit_stops_with_the_address_when_the_pool_is_empty() {
    if !require_guests() {
        return;
    }
    let (output, report) = run("overcommit.toml", &[]);
    let says = [
        "error: the guest was stopped: write of guest-physical 0x",
        "the pool of 32 MiB is exhausted",
    ];
    assert_ended(&output, 1, &says);
    assert_eq!(report.text("ending"), "pool-exhausted");
    assert_eq!(report.number("memory.refused"), 1);
    assert_eq!(report.resident_frames(), (32 << 20) >> 12, "the whole pool is used");
    // With room enough it is the same guest that ends well: overcommit by itself is no fault.
    let (output, _) = run("overcommit.toml", &["boot.cmdline=limit=24M"]);
    assert_ended(&output, 0, &[" wrong=0 "]);
}

#[test]
fn a_guard_page_stops_who_touches_it_and_nobody_else() {
    if !require_guests() {
        return;
    }
    let (output, report) = run("guard.toml", &[]);
    assert_ended(
        &output,
        1,
        &["error: the guest was stopped: read of the guard page", "0x2000000"],
    );
    assert_eq!(report.text("ending"), "marked-page");
    assert_eq!(report.number("memory.refused"), 1);
    let (output, _) = run("guard.toml", &["boot.cmdline=write=0x2000ffe"]);
    assert_ended(&output, 1, &["write of the guard page"]);
    let (output, _) = run("guard.toml", &["boot.cmdline=write=0x2001000 read=0x1ffffff"]);
    assert_ended(&output, 0, &["hello: write 0x2001000: 0x5a"]);
}

/// A guest over a file reads the file's bytes, its own boot image and what it wrote; the file stays as it was.
#[test]
fn a_guest_over_a_template_finds_it_and_leaves_it_as_it_was() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    // The last page is not zero, nor is what the boot image lies over.
    let bytes: Vec<u8> = (0..64u32 << 20).map(|i| (i >> 12 ^ i) as u8 | 1).collect();
    let template = scratch.write("template.img", &bytes);
    let set = format!("memory.template={}", template.display());
    for more in [&[][..], &["memory.pages=2m"], &["memory.backing=memfd"], &["machine.vcpus=2"]] {
        let (output, report) = run("template.toml", &[&[&*set], more].concat());
        assert_ended(&output, 0, &[" written=64 wrong=0 ", "audit clean"]);
        assert!(report.number("memory.unshared") >= 64, "{more:?}");
    }
    assert_eq!(fs::read(&template).unwrap(), bytes);
    let check = SLAT.run([
        "check".as_ref(),
        configs().join("template.toml").as_os_str(),
        "--set".as_ref(),
        set.as_ref(),
    ]);
    let line = format!("template       {} (64 MiB) (--set)", template.display());
    assert_ended(&check, 0, &[&line, "pool           128 MiB (default)", "no overcommit"]);
    // A file that is cut before it is used is refused with both sizes.
    let output = SLAT.run([
        "run".as_ref(),
        configs().join("template.toml").as_os_str(),
        "--set".as_ref(),
        set.as_ref(),
        "--set".as_ref(),
        "memory.size=65M".as_ref(),
    ]);
    assert_ended(&output, 2, &["has 64 MiB, which is less than the 65 MiB of memory.size"]);
}

/// Both work hard, each in a process of its own: neither sees the other.
#[test]
fn two_machines_at_once_do_not_disturb_each_other() {
    if !require_guests() {
        return;
    }
    let config = configs().join("touch.toml");
    let args = ["run".as_ref(), config.as_os_str(), "--set".as_ref(), "memory.size=64M".as_ref()];
    let both = [(); 2].map(|()| SLAT.start(SLAT.command(args)));
    for output in both.map(Running::finish) {
        assert_ended(&output, 0, &[" wrong=0 ", "audit clean"]);
    }
}

#[test]
fn every_config_with_a_built_in_guest_is_run() {
    let mut there = Vec::new();
    for path in tree::files(&configs()) {
        let is_config = path.extension().is_some_and(|extension| extension == "toml");
        if is_config && tree::text(&path).contains("\nguest = ") {
            there.push(path.file_name().and_then(|name| name.to_str()).unwrap().to_owned());
        }
    }
    let mut run = [RUN, RUN_WITH_DEVICES].concat();
    run.sort_unstable();
    assert_eq!(there, run);
}

/// One line of what each config shows stands in the table of the README.
#[test]
fn every_config_is_in_the_readme() {
    let readme = tree::text(&configs().join("README.md"));
    for entry in fs::read_dir(configs()).expect("configs/ can be listed") {
        let path = entry.expect("configs/ can be listed").path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if Path::new(name).extension().is_some_and(|extension| extension == "toml") {
            assert!(readme.contains(&format!("| [{name}]({name}) |")), "{name} is not listed");
        }
    }
}
