//! Defaults, and rules between keys. What is refused is in `tests/e2e/bad_config.rs`.

use std::path::Path;

use super::*;
use crate::config::{EMULATION_SAFE, Rate};

fn parse(text: &str, overrides: &[&str]) -> Result<MachineConfig, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    let host = Host { phys_bits: 46, runs_ring0: true };
    MachineConfig::parse(text, Path::new("configs/x.toml"), &overrides, host)
}

fn hello(overrides: &[&str]) -> MachineConfig {
    parse("boot.guest = 'hello'", overrides).unwrap()
}

fn refusal(overrides: &[&str]) -> String {
    let refused = parse("boot.guest = 'hello'", overrides);
    refused.unwrap_err().to_string()
}

#[test]
fn a_guest_is_all_that_a_config_needs() {
    let config = hello(&[]);
    assert_eq!(config.machine.vcpus.value, 1);
    assert_eq!(config.machine.irqchip.value, Irqchip::None);
    assert_eq!(config.machine.unclaimed.value, Unclaimed::Stop);
    assert_eq!(config.machine.cpu.value, CpuModel::Host);
    assert_eq!(config.memory.size.value, Bytes::mib(64));
    assert_eq!(config.memory.pool.value, Bytes::mib(64));
    assert_eq!(config.memory.backing.value, Backing::Auto);
    assert_eq!(config.memory.pages.value, PageSize::Size4K);
    assert_eq!(config.memory.fault_threads.value, 1);
    assert!(config.memory.guard.value.is_empty());
    assert_eq!(config.boot.image.value, Image::Guest(BuiltinGuest::Hello));
    assert_eq!(config.boot.cmdline.value, "");
    assert_eq!(config.console.serial.value, Serial::Stdio);
    assert_eq!(config.control.socket, None);
    assert_eq!(config.memory.size.origin, Origin::Default);
    let on_line_1 = Origin::File { line: 1, column: 6 };
    assert_eq!(config.boot.image.origin, on_line_1);
}

#[test]
fn auto_is_decided_by_what_runs_on_how_many_vcpus() {
    let kernel = format!("boot.kernel = {:?}", file!().rsplit('/').next().unwrap());
    for (text, overrides, irqchip, unclaimed) in [
        ("boot.guest = 'smp'", &[][..], Irqchip::None, Unclaimed::Stop),
        ("boot.guest = 'smp'", &["machine.vcpus=2"], Irqchip::Kernel, Unclaimed::Stop),
        ("boot.guest = 'smp'", &["machine.irqchip=kernel"], Irqchip::Kernel, Unclaimed::Stop),
        ("boot.guest = 'smp'", &["machine.unclaimed=ignore"], Irqchip::None, Unclaimed::Ignore),
        (&kernel, &[], Irqchip::Kernel, Unclaimed::Ignore),
        (&kernel, &["machine.irqchip=auto"], Irqchip::Kernel, Unclaimed::Ignore),
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/resolve/x.toml");
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let host = Host { phys_bits: 46, runs_ring0: true };
        let config = MachineConfig::parse(text, &file, &overrides, host).unwrap();
        let decided = (config.machine.irqchip.value, config.machine.unclaimed.value);
        assert_eq!(decided, (irqchip, unclaimed), "{text} {overrides:?}");
    }
}

#[test]
fn a_kernel_with_an_interrupt_controller_has_acpi_and_nothing_else_can() {
    let kernel = &*format!("boot.kernel={}/Cargo.toml", env!("CARGO_MANIFEST_DIR"));
    let acpi = |overrides: &[&str]| {
        let config = parse("boot.guest = 'hello'", overrides);
        config.map(|config| config.machine.acpi.value).map_err(|error| error.to_string())
    };
    for (overrides, expected) in [
        (&[][..], false),
        (&["machine.irqchip=kernel"], false),
        (&["machine.acpi=false"], false),
        (&["boot.guest=", kernel], true),
        (&["boot.guest=", kernel, "machine.irqchip=none"], false),
        (&["boot.guest=", kernel, "machine.acpi=false"], false),
    ] {
        assert_eq!(acpi(overrides), Ok(expected), "{overrides:?}");
    }
    for (overrides, says) in [
        (&["machine.acpi=true"][..], "built in and reads no ACPI tables: it must be false"),
        (
            &["boot.guest=", kernel, "machine.irqchip=none", "machine.acpi=true"],
            "machine.irqchip is \"none\"",
        ),
        (&["boot.guest=", kernel, "machine.acpi=1"], "true or false"),
    ] {
        let refused = acpi(overrides).unwrap_err();
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn the_pool_is_whole_blocks_and_may_be_smaller_or_larger_than_ram() {
    for (overrides, pool) in [
        (&["memory.size=63M"][..], Bytes::mib(64)),
        (&["memory.size=4K"], Bytes::mib(2)),
        (&["memory.pool=1"], Bytes::mib(2)),
        (&["memory.pool=33M"], Bytes::mib(34)),
        (&["memory.pool=1G"], Bytes::gib(1)),
    ] {
        assert_eq!(hello(overrides).memory.pool.value, pool, "{overrides:?}");
    }
}

#[test]
fn hugetlb_brings_huge_pages_unless_small_ones_are_asked_for() {
    let config = hello(&["memory.backing=hugetlb"]);
    assert_eq!(config.memory.pages.value, PageSize::Size2M);
    let refused = refusal(&["memory.backing=hugetlb", "memory.pages=4k"]);
    assert!(refused.contains("no 4 KiB pages"), "{refused}");
}

#[test]
fn nothing_collapses_unless_it_is_asked_for_and_rates_may_have_no_limit() {
    let off = hello(&[]).collapse;
    assert_eq!((off.background.value, off.max_holes.value, off.copying.value), (false, 0, true));
    let rates = |overrides: &[&str]| {
        let collapse = hello(overrides).collapse;
        (collapse.scan_rate.value.limit(), collapse.copy_budget.value.limit())
    };
    assert_eq!(rates(&[]), (Some(1024), Some(64)));
    assert_eq!(rates(&["collapse.scan_rate=unlimited"]), (None, Some(64)));
    assert_eq!(rates(&["collapse.copy_budget=0x10"]), (Some(1024), Some(16)));
    let text = "boot.guest = 'hello'\n[collapse]\nbackground = true\nscan_rate = 'unlimited'";
    let on = parse(text, &["collapse.max_holes=511", "collapse.copying=false"]).unwrap().collapse;
    assert_eq!((on.background.value, on.max_holes.value, on.copying.value), (true, 511, false));
    assert_eq!(on.scan_rate.value, Rate::Unlimited);
    assert_eq!(on.background.origin, Origin::File { line: 3, column: 1 });
}

#[test]
fn nothing_is_merged_unless_it_is_asked_for_and_never_on_hugetlb() {
    let off = hello(&[]).dedup;
    assert_eq!((off.background.value, off.split_huge.value), (false, false));
    assert_eq!((off.max_merged.value, off.scan_rate.value.limit()), (16384, Some(16384)));
    let text = "boot.guest = 'hello'\n[dedup]\nbackground = true\nmax_merged = 0";
    let on = parse(text, &["dedup.split_huge=true", "dedup.scan_rate=unlimited"]).unwrap().dedup;
    assert_eq!((on.background.value, on.split_huge.value), (true, true));
    assert_eq!((on.max_merged.value, on.scan_rate.value), (0, Rate::Unlimited));
    assert_eq!(on.background.origin, Origin::File { line: 3, column: 1 });
    for (sets, says) in [
        (&["dedup.background=true", "memory.backing=hugetlb"][..], "no 4 KiB pages to share"),
        (&["dedup.max_merged=-1"], "an integer from 0 to 4294967295"),
        (&["dedup.scan_rate=0"], "nothing is looked at with dedup.background = false"),
        (&["dedup.scan_rate=unlimitd"], "did you mean \"unlimited\"?"),
        (&["dedup.split_huge=1"], "true or false"),
    ] {
        let refused = refusal(sets);
        assert!(refused.contains(says), "{says:?} is not in {refused}");
    }
}

#[test]
fn ram_may_fill_the_address_space_and_no_more() {
    assert_eq!(hello(&["memory.size=65535G"]).memory.size.value, Bytes::gib(65535));
    let refused = refusal(&["memory.size=64T"]);
    assert!(refused.contains("at most 65535 GiB: addresses here have 46 bits"), "{refused}");
}

#[test]
fn guards_come_back_sorted() {
    let config = hello(&["memory.guard=48M+1M,0x2000000+4K"]);
    let shown: Vec<String> = config.memory.guard.value.iter().map(Guard::to_string).collect();
    assert_eq!(shown, ["0x2000000+4K", "0x3000000+1M"]);
}

#[test]
fn features_are_hidden_by_name_and_only_once() {
    let hidden = |overrides: &[&str]| hello(overrides).machine.cpu.value.hidden();
    assert!(hidden(&[]).is_empty());
    let two = hidden(&["machine.cpu=-cx16,-avx,-cx16"]);
    assert_eq!(two.iter().map(|f| f.name).collect::<Vec<_>>(), ["cx16", "avx"]);
    assert_eq!(two[0].mask(), 1 << 13);
    let safe = hidden(&["machine.cpu=emulation-safe"]);
    assert_eq!(safe.len(), EMULATION_SAFE.len());
}

#[test]
fn paths_start_from_the_config_and_in_a_flag_from_here() {
    let refused = |text: &str, overrides: &[&str]| parse(text, overrides).unwrap_err().to_string();
    let in_file = refused("boot.kernel = 'nowhere'", &[]);
    assert!(in_file.contains("\"configs/nowhere\""), "{in_file}");
    let in_flag = refused("", &["boot.kernel=nowhere"]);
    assert!(in_flag.starts_with("--set: boot.kernel"), "{in_flag}");
    assert!(in_flag.ends_with("there is no file \"nowhere\""), "{in_flag}");
}

#[test]
fn the_socket_lies_beside_the_config_and_in_a_flag_here() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/x.toml");
    let host = Host { phys_bits: 46, runs_ring0: true };
    let text = "boot.guest = 'hello'\ncontrol.socket = 's'";
    let socket = |overrides: &[String]| {
        let config = MachineConfig::parse(text, &file, overrides, host).unwrap();
        config.control.socket.map(|socket| socket.value.0)
    };
    assert_eq!(socket(&[]), Some(file.with_file_name("s")));
    assert_eq!(socket(&["control.socket=t".into()]), Some("t".into()));
    assert_eq!(socket(&["control.socket=".into()]), None);
}

#[test]
fn a_flag_can_swap_the_guest_for_a_kernel() {
    let kernel = format!("boot.kernel={}/Cargo.toml", env!("CARGO_MANIFEST_DIR"));
    let both = refusal(&[&kernel]);
    assert!(both.contains("boot.kernel is set too (--set)"), "{both}");
    let config = hello(&["boot.guest=", &kernel]);
    assert!(matches!(config.boot.image.value, Image::Kernel(_)));
}
