//! Debian's stock kernel, booted from its config, watched over its serial console.

use std::time::Duration;

use serde_json::Value;
use tests::{Debian, Slat, require_debian, require_guests, tree};

/// Where KVM emulates the guest's ring 0 the kernel takes about a minute, and longer on a busy host.
const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(240));

/// What its first process prints.
const USERSPACE: &str = "slat: init is up, kernel 6.1";

/// The config as `slat check` sees it.
fn check(config: &std::path::Path) -> Value {
    let output = SLAT.run(["check".as_ref(), config.as_os_str(), "--json".as_ref()]);
    assert_eq!(output.code, Some(0), "{output:?}");
    serde_json::from_str(&output.stdout).expect("what --json prints is JSON")
}

/// What the kernel says behind `prefix`, whatever time it puts before it.
fn said<'a>(console: &'a str, prefix: &str) -> Vec<&'a str> {
    let lines = console.lines().map(str::trim_end);
    lines.filter_map(|line| line.split_once(prefix).map(|(_, rest)| rest)).collect()
}

/// The memory map that the kernel of a machine with this RAM prints: RAM less what a PC keeps for its firmware.
fn memory_map(checked: &Value) -> Vec<String> {
    /// Conventional memory ends 1 KiB below 640 KiB, where the extended BIOS data area starts.
    const LOW_END: u64 = 0x9_fc00;
    const HIGH_START: u64 = 0x10_0000;
    let line =
        |start: u64, end: u64, kind: &str| format!("[mem {start:#018x}-{:#018x}] {kind}", end - 1);
    let mut map = vec![line(0, LOW_END, "usable"), line(LOW_END, HIGH_START, "reserved")];
    for range in checked["layout"]["ram"].as_array().expect("RAM is a list of ranges") {
        let start = range["start"].as_u64().expect("an address is a number");
        let length = range["length"].as_u64().expect("a length is a number");
        map.push(line(start.max(HIGH_START), start + length, "usable"));
    }
    map
}

/// The kernel gets to its first process, whose shell is told to reset the machine.
#[test]
fn debian_boots_to_its_first_process() {
    if !require_guests() || !require_debian() {
        return;
    }
    let config = tree::root().join("configs/debian.toml");
    let checked = check(&config);
    let mut debian = Debian::start(SLAT, SLAT.command::<&str>([]), &[], None);
    debian.boot();
    debian.type_in(b"reboot\n");
    let (output, report) = debian.finish();
    assert_eq!(report.text("audit"), "clean", "{output:?}");

    let console = output.stdout.as_str();
    assert!(!said(console, "Linux version 6.1").is_empty(), "no banner: {output:?}");
    let cmdline = checked["boot"]["cmdline"]["value"].as_str().expect("a command line is text");
    // Behind what tells it of its devices.
    let heard = said(console, "] Command line: ");
    assert!(heard.iter().any(|line| line.ends_with(cmdline)), "{cmdline:?}: {output:?}");
    assert_eq!(said(console, "BIOS-e820: "), memory_map(&checked), "{output:?}");

    assert!(console.contains(USERSPACE), "{output:?}");
    assert_eq!((output.code, report.text("ending")), (Some(0), "reset"), "{output:?}");
    println!("debian reached its first process and reset the machine after {:?}", output.took);
}

/// The map of a machine whose RAM goes on behind the MMIO hole. The kernel prints it before anything else, so this one is
/// stopped as soon as it has.
#[test]
fn debian_sees_the_ram_on_both_sides_of_the_mmio_hole() {
    if !require_guests() || !require_debian() {
        return;
    }
    let config = tree::root().join("configs/debian.toml");
    let overrides = ["--set", "memory.size=4G", "--set", "memory.pool=512M"];
    let mut command = SLAT.command(["check", "--json"]);
    command.arg(&config).args(overrides);
    let output = SLAT.start(command).finish();
    assert_eq!(output.code, Some(0), "{output:?}");
    let checked = serde_json::from_str(&output.stdout).expect("what --json prints is JSON");
    let expected = memory_map(&checked);
    assert_eq!(expected.len(), 4, "{expected:?}");

    let mut command = SLAT.command(["run"]);
    command.arg(&config).args(overrides);
    let mut running = SLAT.start(command);
    for line in &expected {
        running.wait_for(&format!("BIOS-e820: {line}"));
    }
    running.signal(rustix::process::Signal::TERM);
    let output = running.finish();
    assert_eq!(output.code, Some(143), "{output:?}");
    assert!(output.stderr.contains("audit clean"), "{output:?}");
}

/// What a kernel without MP tables and without devices on its command line makes of the ACPI tables. It says so before it meets
/// anything that KVM cannot emulate; this one is stopped as soon as it has.
#[test]
fn debian_finds_its_cpus_and_the_io_apic_in_the_acpi_tables() {
    if !require_guests() || !require_debian() {
        return;
    }
    let config = tree::root().join("configs/debian.toml");
    let mut command = SLAT.command(["run"]);
    command.arg(&config).args(["--set", "machine.vcpus=2"]);
    let mut running = SLAT.start(command);
    for line in [
        "ACPI: RSDP 0x00000000000E0000",
        "IOAPIC[0]: apic_id 2, version 17, address 0xfec00000, GSI 0-23",
        "ACPI: Using ACPI (MADT) for SMP configuration information",
        "smpboot: Allowing 2 CPUs, 0 hotplug CPUs",
    ] {
        running.wait_for(line);
    }
    running.signal(rustix::process::Signal::TERM);
    let output = running.finish();
    assert_eq!(output.code, Some(143), "{output:?}");
    assert!(!output.stdout.contains("ACPI Error"), "{output:?}");
    assert!(output.stderr.contains("audit clean"), "{output:?}");
}
