//! Guests whose devices are memory: a balloon, and files behind RAM.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tests::{Output, Report, Scratch, Slat, assert_refused, require_guests, told, tree};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

fn run(config: &Path, sets: &[&str]) -> (Output, Report) {
    SLAT.run_machine(SLAT.machine(config, sets))
}

#[test]
fn a_guest_gives_memory_to_its_balloon_and_finds_zeroes_in_its_place() {
    if !require_guests() {
        return;
    }
    let config = tree::root().join("configs/balloon.toml");
    for sets in [
        &[][..],
        &["memory.pages=2m", "memory.backing=tmpfs"],
        &["machine.vcpus=2", "machine.device_threads=2"],
        &["collapse.background=true", "collapse.max_holes=511", "collapse.scan_rate=unlimited"],
        &["dedup.background=true", "dedup.scan_rate=unlimited"],
    ] {
        let (output, report) = run(&config, sets);
        assert_eq!(output.code, Some(0), "{sets:?}: {output:?}");
        assert!(output.stdout.contains("target=8192 given=8192 reported=8192 dirty=0 lost=0"));
        let names = ["target_pages", "inflated", "deflated", "reported", "not_ram", "failed"];
        let counts = names.map(|name| report.count(0, name));
        assert_eq!(counts, [8192, 8192, 8192, 8192, 0, 0], "{sets:?}");
        // All that was given was filled before, so all of it went, but for a page that another use had pinned or shared.
        let went = ["went_to_host", "pinned", "shared"].map(|name| report.count(0, name));
        // With their blocks went frames that the scanner had emptied before: their pages were merged, or dropped as zeroes.
        let scans = sets.contains(&"dedup.background=true");
        let emptied = ["dedup.merged", "dedup.zeroes"]
            .map(|name| if scans { report.number(name) } else { 0 });
        let all = 2 * 8192..=2 * 8192 + emptied.iter().sum::<u64>();
        assert!(all.contains(&went.iter().sum()), "{sets:?}: {went:?}, {emptied:?}");
        assert!(went[0] > 16000, "{sets:?}: {went:?}");
        assert_eq!(report.number("memory.balloon.given_back"), 2 * 8192, "{sets:?}");
        assert_eq!(report.count(0, "guest_total_bytes") >> 20, 127, "its RAM, as it tells");
    }
}

#[test]
fn a_balloon_may_have_no_reports_and_no_statistics() {
    if !require_guests() {
        return;
    }
    let config = tree::root().join("configs/balloon.toml");
    for (sets, reported) in [
        (&["balloon.main.reporting=false", "balloon.main.statistics=0"][..], 0),
        (&["balloon.main.reporting=false"], 0),
        (&["balloon.main.statistics=0"], 8192),
    ] {
        let (output, report) = run(&config, sets);
        assert_eq!(output.code, Some(0), "{sets:?}: {output:?}");
        let counts = ["inflated", "reported"].map(|name| report.count(0, name));
        assert_eq!(counts, [8192, reported], "{sets:?}");
    }
}

/// A file of words that are all different, and the sum that the guest `pmem` makes of them.
fn file(folder: &Scratch, name: &str, mib: u64) -> (PathBuf, u64) {
    let words: Vec<u64> =
        (1..=mib * MIB / 8).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let weighted = (0..).zip(&words).map(|(i, word)| word.wrapping_mul(2 * i + 1));
    (folder.write(name, bytes), weighted.fold(0, u64::wrapping_add))
}

#[test]
fn a_guest_finds_a_file_behind_its_ram_and_writes_to_pages_of_its_own() {
    if !require_guests() {
        return;
    }
    let folder = Scratch::new();
    let (path, sum) = file(&folder, "data.img", 6);
    let before = fs::read(&path).unwrap();
    let config = tree::root().join("configs/pmem.toml");
    let file = format!("pmem.data.file={}", path.display());
    let other = format!("pmem.b.file={}", path.display());
    for (sets, start, private) in [
        (&[][..], 4096, 64),
        (&["memory.pages=2m", "memory.backing=tmpfs"], 4096, 64),
        (&["memory.size=5G", "memory.pool=256M"], 6144, 64),
        (&["machine.vcpus=2", "memory.guard=[\"0x3000000+4K\"]"], 4096, 64),
        (&[&other, "pmem.b.sharing=shared"], 4096, 64),
        (&["pmem.data.sharing=shared", "boot.cmdline="], 4096, 0),
        (&[&other, "pmem.b.sharing=shared", "boot.cmdline=pmem.index=1"], 5120, 0),
    ] {
        let (output, report) = run(&config, &[&[&*file], sets].concat());
        assert_eq!(output.code, Some(0), "{sets:?}: {output:?}");
        let said = ["start", "bytes", "sum", "written", "flush", "wrong"];
        let said = said.map(|key| output.told(key));
        assert_eq!(said, [start * MIB, 6 * MIB, sum, private, 0, 0], "{sets:?}");
        let leaves = (0..3)
            .map(|size| report.number(&format!("memory.resident.image.{size}")) << (9 * size));
        let images: u64 = leaves.sum();
        assert!(images >= 6 * MIB / PAGE - private, "{sets:?}: {images}");
        let flushes = ["flushes", "unknown"].map(|name| {
            report
                .at("devices")
                .as_array()
                .unwrap()
                .iter()
                .map(|device| device["counts"][name].as_u64().unwrap())
                .sum::<u64>()
        });
        assert_eq!(flushes, [1, 1], "{sets:?}");
        assert!(fs::read(&path).unwrap() == before, "{sets:?}: the file is never written");
    }
}

#[test]
fn a_store_to_shared_memory_stops_the_guest_with_the_address() {
    if !require_guests() {
        return;
    }
    let folder = Scratch::new();
    let (path, _) = file(&folder, "data.img", 4);
    let file = format!("pmem.data.file={}", path.display());
    let config = tree::root().join("configs/pmem.toml");
    let (output, report) = run(&config, &[&file, "pmem.data.sharing=shared"]);
    assert_eq!(output.code, Some(1), "{output:?}");
    let says = "the guest was stopped: write to the read-only page at guest-physical 0x100000000";
    assert!(output.stderr.contains(says), "{output:?}");
    assert_eq!(report.text("ending"), "memory");
}

#[test]
fn clones_have_one_copy_of_a_file_and_pages_of_their_own() {
    if !require_guests() {
        return;
    }
    const CLONES: u64 = 8;
    let folder = Scratch::new();
    let (path, sum) = file(&folder, "data.img", 16);
    let template = folder.write("template.img", vec![0; 16 << 20]);
    let mut command = SLAT.command(["clone", "--json", "--count", &CLONES.to_string()]);
    command.arg(tree::root().join("configs/pmem.toml"));
    for set in [
        format!("pmem.data.file={}", path.display()),
        format!("memory.template={}", template.display()),
        "memory.size=16M".into(),
    ] {
        command.args(["--set", &set]);
    }
    let output = SLAT.start(command).finish();
    let report: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!(report["audit"], "clean", "{report:#}");
    let clones = report["clones"].as_array().unwrap();
    assert_eq!(clones.len() as u64, CLONES);
    for clone in clones {
        let said = clone["console"].as_str().unwrap();
        assert_eq!((told(said, "sum"), told(said, "wrong")), (sum, 0), "{clone:#}");
    }
    let bytes = |path: &str| report.pointer(path).and_then(Value::as_u64).unwrap();
    let grown = bytes("/after/pss_shmem_bytes") - bytes("/before/pss_shmem_bytes");
    // The file once, the template once, and what each clone wrote or was loaded with.
    let most = 16 * MIB + 16 * MIB + CLONES * 2 * MIB;
    assert!(grown < most, "{grown} bytes, not {most}: {report:#}");
}

#[test]
fn persistent_memory_that_has_no_place_is_refused_by_its_key() {
    let folder = Scratch::new();
    let (path, _) = file(&folder, "data.img", 2);
    let config = |more: &str| {
        let text =
            format!("[boot]\nguest = \"pmem\"\n[pmem.data]\nfile = \"{}\"\n{more}", path.display());
        folder.write("x.toml", text)
    };
    let hugetlb = config("[memory]\nbacking = \"hugetlb\"\n");
    let output = SLAT.run(["check".as_ref(), hugetlb.as_os_str()]);
    assert_refused("hugetlb", &output, &["pmem.data.file", "hugetlb"]);
}
