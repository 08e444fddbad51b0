//! `slat check`: the machine that a config describes, and who set each value. What is booted is looked into as `run` would,
//! and thrown away.

mod devices;

use std::fmt::{self, Display, Write};

use serde::Serialize;

use super::{CheckArgs, ConfigArgs, Failure, print};
use crate::config::{
    Collapse, Dedup, Image, MachineConfig, Memory, Origin, RamRange, Rate, Serial, Setting,
    Template,
};
use crate::machine::{self, Facts};

/// A vCPU's facts where there is none: those that leave a boot image the least room.
const WORST: Facts = Facts { tsc_khz: u32::MAX, one_gib_pages: false };

/// Prints the machine, or says what is wrong with its config or with a file that it names.
pub(super) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let config = looked_into(&args.config)?;
    if args.json { print(&json(&config)) } else { print(&Report(&config).to_string()) }
}

/// The machine that `args` describe, once what it boots has been looked into.
pub(super) fn looked_into(args: &ConfigArgs) -> Result<MachineConfig, Failure> {
    let config = args.load()?;
    machine::image(&config, WORST)?;
    Ok(config)
}

/// The config, and what follows from it.
#[derive(Serialize)]
struct Checked<'a> {
    #[serde(flatten)]
    config: &'a MachineConfig,
    layout: Layout,
}

#[derive(Serialize)]
struct Layout {
    ram: Vec<RamRange>,
    /// RAM for each byte of pool.
    overcommit: f64,
}

fn json(config: &MachineConfig) -> String {
    let checked = Checked {
        config,
        layout: Layout { ram: config.memory.ram().collect(), overcommit: config.overcommit() },
    };
    let mut text =
        serde_json::to_string_pretty(&checked).expect("keys are strings and no value can fail");
    text.push('\n');
    text
}

/// The machine as text.
struct Report<'a>(&'a MachineConfig);

impl Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MachineConfig {
            file,
            machine,
            memory,
            collapse,
            dedup,
            boot,
            console,
            control,
            devices,
            toml: _,
        } = self.0;
        writeln!(f, "{}: fine", file.display())?;

        writeln!(f, "\nmachine")?;
        row(f, "vcpus", &machine.vcpus)?;
        row(f, "irqchip", &machine.irqchip)?;
        row(f, "acpi", &machine.acpi)?;
        row(f, "unclaimed", &machine.unclaimed)?;
        row(f, "ring0", &machine.ring0)?;
        row(f, "cpu", &machine.cpu)?;
        row(f, "device_threads", &machine.device_threads)?;

        writeln!(f, "\nmemory")?;
        row(f, "size", &memory.size)?;
        for ram in memory.ram() {
            let range = format!("{:#x}..{:#x}", ram.start, ram.end());
            let place = if ram.start == 0 { "below" } else { "above" };
            fact(f, "", format_args!("{range} ({}, {place} the MMIO hole)", ram.length))?;
        }
        match &memory.template {
            None => line(f, "template", "none", Origin::Default)?,
            Some(template) => {
                let Template { path, bytes } = &template.value;
                line(f, "template", format_args!("{} ({bytes})", path.display()), template.origin)?;
            }
        }
        row(f, "pool", &memory.pool)?;
        fact(f, "", format_args!("{} whole blocks of 2 MiB", memory.pool.value.get() >> 21))?;
        let ratio = self.0.overcommit();
        let meaning = if ratio > 1.0 {
            "overcommit: the machine stops when the pool is used up"
        } else {
            "no overcommit"
        };
        fact(f, "", format_args!("RAM to pool {ratio:.2}, {meaning}"))?;
        row(f, "backing", &memory.backing)?;
        row(f, "pages", &memory.pages)?;
        row(f, "fault_threads", &memory.fault_threads)?;
        match memory.guard.value.as_slice() {
            [] => line(f, "guard", "none", memory.guard.origin)?,
            guards => {
                for guard in guards {
                    line(f, "guard", guard, memory.guard.origin)?;
                }
            }
        }

        writeln!(f, "\ncollapse")?;
        row(f, "background", &collapse.background)?;
        fact(f, "", what_runs(collapse, memory))?;
        row(f, "max_holes", &collapse.max_holes)?;
        row(f, "copying", &collapse.copying)?;
        rate(f, "scan_rate", &collapse.scan_rate, "blocks")?;
        rate(f, "copy_budget", &collapse.copy_budget, "blocks")?;

        writeln!(f, "\ndedup")?;
        row(f, "background", &dedup.background)?;
        fact(f, "", what_scans(dedup, memory))?;
        rate(f, "scan_rate", &dedup.scan_rate, "pages")?;
        row(f, "max_merged", &dedup.max_merged)?;
        row(f, "split_huge", &dedup.split_huge)?;

        writeln!(f, "\nboot")?;
        match &boot.image.value {
            Image::Guest(guest) => line(f, "guest", guest, boot.image.origin)?,
            Image::Kernel(kernel) => {
                line(f, "kernel", kernel.path.display(), boot.image.origin)?;
                row(f, "protocol", &kernel.protocol)?;
                row(f, "unpack", &kernel.unpack)?;
                match &kernel.initrd {
                    Some(initrd) => line(f, "initrd", initrd.value.display(), initrd.origin)?,
                    None => line(f, "initrd", "none", Origin::Default)?,
                }
            }
        }
        line(f, "cmdline", format_args!("{:?}", boot.cmdline.value), boot.cmdline.origin)?;

        writeln!(f, "\nconsole")?;
        let serial = &console.serial;
        match &serial.value {
            Serial::Stdio => line(f, "serial", "stdio", serial.origin)?,
            Serial::Off => line(f, "serial", "off", serial.origin)?,
            Serial::File(path) => line(f, "serial", path.display(), serial.origin)?,
        }

        writeln!(f, "\ncontrol")?;
        match &control.socket {
            Some(socket) => line(f, "socket", socket.value.display(), socket.origin)?,
            None => line(f, "socket", "none", Origin::Default)?,
        }
        devices::devices(f, devices)
    }
}

/// What becomes of blocks of 4 KiB pages by themselves.
fn what_runs(collapse: &Collapse, memory: &Memory) -> String {
    if !collapse.background.value {
        return "blocks of 4 KiB pages stay so, unless \"slat collapse --now\" asks".into();
    }
    let blocks: u64 = memory.ram().map(|range| range.length.get().div_ceil(2 << 20)).sum();
    let round = match collapse.scan_rate.value {
        Rate::PerSecond(rate) => {
            format!("a look at all {blocks} blocks takes {:.2} s", blocks as f64 / f64::from(rate))
        }
        Rate::Unlimited => "a thread looks at blocks without a pause, on a CPU of its own".into(),
    };
    let copies = match (collapse.copying.value, collapse.copy_budget.value) {
        (false, _) => "nothing is copied".into(),
        (true, Rate::PerSecond(budget)) => format!("at most {} MiB/s are copied", 2 * budget),
        (true, Rate::Unlimited) => "copies are not limited".to_owned(),
    };
    format!("{round}; {copies}")
}

/// What becomes of pages of the same bytes.
fn what_scans(dedup: &Dedup, memory: &Memory) -> String {
    if !dedup.background.value {
        return "pages of the same bytes stay apart".into();
    }
    let pages: u64 = memory.ram().map(|range| range.length.get() >> 12).sum();
    let round = match dedup.scan_rate.value {
        Rate::PerSecond(rate) => {
            format!("a look at all {pages} pages takes {:.2} s", pages as f64 / f64::from(rate))
        }
        Rate::Unlimited => "a thread looks at pages without a pause, on a CPU of its own".into(),
    };
    match dedup.max_merged.value {
        0 => format!("{round}; zeroes are dropped, and nothing is merged"),
        most => format!("{round}; at most {} MiB are merged", u64::from(most) >> 8),
    }
}

/// A rate, of `what`.
fn rate(f: &mut fmt::Formatter<'_>, key: &str, rate: &Setting<Rate>, what: &str) -> fmt::Result {
    line(f, key, rate.value.of(what), rate.origin)
}

fn row<T: Display>(f: &mut fmt::Formatter<'_>, key: &str, setting: &Setting<T>) -> fmt::Result {
    line(f, key, &setting.value, setting.origin)
}

/// A value with who set it.
fn line(f: &mut fmt::Formatter<'_>, key: &str, value: impl Display, origin: Origin) -> fmt::Result {
    fact(f, key, format_args!("{value} ({origin})"))
}

/// A line on its own.
fn fact(f: &mut impl Write, key: &str, what: impl Display) -> fmt::Result {
    writeln!(f, "{}", format!("  {key:<14} {what}").trim_end())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Host;

    const TEXT: &str = "[memory]\nsize = \"5G\"\npool = 1\n\n[boot]\nguest = \"hello\"\n";

    fn config(overrides: &[&str]) -> MachineConfig {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let host = Host { phys_bits: 46, runs_ring0: true };
        MachineConfig::parse(TEXT, Path::new("x.toml"), &overrides, host).unwrap()
    }

    #[test]
    fn the_report_shows_the_layout_and_who_set_what() {
        let report = Report(&config(&["machine.vcpus=2"])).to_string();
        for says in [
            "x.toml: fine",
            "vcpus          2 (--set)",
            "irqchip        kernel (default)",
            "size           5 GiB (line 2)",
            "0x0..0xc0000000 (3 GiB, below the MMIO hole)",
            "0x100000000..0x180000000 (2 GiB, above the MMIO hole)",
            "pool           2 MiB (line 3)",
            "RAM to pool 2560.00, overcommit",
            "background     false (default)",
            "blocks of 4 KiB pages stay so",
            "scan_rate      1024 blocks/s (default)",
            "guest          hello (line 6)",
            "socket         none (default)",
            "devices\n  none\n",
        ] {
            assert!(report.contains(says), "{says:?} is not in\n{report}");
        }
    }

    #[test]
    fn the_report_says_what_a_collapser_would_do() {
        for (overrides, says) in [
            (&[][..], "a look at all 2560 blocks takes 2.50 s; at most 128 MiB/s are copied"),
            (&["collapse.scan_rate=unlimited"], "without a pause, on a CPU of its own; at most"),
            (&["collapse.copy_budget=unlimited"], "takes 2.50 s; copies are not limited"),
            (&["collapse.copying=false"], "takes 2.50 s; nothing is copied"),
        ] {
            let report = Report(&config(&[&["collapse.background=true"], overrides].concat()));
            let report = report.to_string();
            assert!(report.contains(says), "{says:?} is not in\n{report}");
        }
    }

    #[test]
    fn the_report_says_what_a_scanner_would_do() {
        for (overrides, says) in [
            (&[][..], "takes 80.00 s; at most 64 MiB are merged"),
            (&["dedup.scan_rate=unlimited"], "without a pause, on a CPU of its own; at most"),
            (&["dedup.max_merged=0"], "takes 80.00 s; zeroes are dropped, and nothing is merged"),
            (&["dedup.background=false"], "pages of the same bytes stay apart"),
            (&[], "scan_rate      16384 pages/s (default)"),
            (&["dedup.split_huge=true"], "split_huge     true (--set)"),
        ] {
            let report = Report(&config(&[&["dedup.background=true"], overrides].concat()));
            let report = report.to_string();
            assert!(report.contains(says), "{says:?} is not in\n{report}");
        }
    }

    #[test]
    fn devices_are_reported_in_their_order_with_who_set_what() {
        let config = config(&[
            "hvc.con.port=off",
            "net.up.tap=tap0",
            "net.up.mac=52:54:00:12:34:56",
            "balloon.b.target=2M",
            "rng.r.rate_bytes=1M",
        ]);
        let report = Report(&config).to_string();
        for says in [
            "\nhvc.con (--set)\n  port           off (--set)\n  columns        80 (default)\n",
            "  tap            tap0 (--set)\n  mac            52:54:00:12:34:56 (--set)\n",
            "  target         2 MiB (--set)\n  deflate_on_oom true (default)\n",
            "  statistics     every 1 s (default)\n\nrng.r (--set)\n",
            "  source         /dev/urandom (default)\n  rate_bytes     1 MiB/s (--set)\n",
        ] {
            assert!(report.contains(says), "{says:?} is not in\n{report}");
        }
        let value: serde_json::Value = serde_json::from_str(&json(&config)).unwrap();
        let devices = value["devices"].as_array().unwrap();
        let families: Vec<_> = devices.iter().map(|device| device["family"].clone()).collect();
        assert_eq!(families, ["hvc", "net", "balloon", "rng"]);
        assert_eq!(devices[0]["name"], "con");
        assert_eq!(devices[0]["origin"], "flag");
        assert_eq!(devices[0]["port"]["value"], "off");
        assert_eq!(devices[1]["mac"]["value"], "52:54:00:12:34:56");
        assert_eq!(devices[2]["statistics"]["value"], 1);
        assert_eq!(devices[3]["rate_bytes"]["value"], 1 << 20);
        assert_eq!(devices[3]["source"]["origin"], "default");
    }

    #[test]
    fn json_has_every_value_with_its_origin() {
        let value: serde_json::Value = serde_json::from_str(&json(&config(&[]))).unwrap();
        assert_eq!(value["memory"]["size"]["value"], 5_u64 << 30);
        assert_eq!(value["memory"]["size"]["origin"], "file");
        assert_eq!(value["memory"]["size"]["line"], 2);
        assert_eq!(value["machine"]["irqchip"]["value"], "none");
        assert_eq!(value["machine"]["irqchip"]["origin"], "default");
        assert_eq!(value["machine"]["cpu"]["value"], "host");
        assert_eq!(value["collapse"]["background"]["value"], false);
        assert_eq!(value["collapse"]["scan_rate"]["value"], 1024);
        assert_eq!(value["dedup"]["max_merged"]["value"], 16384);
        assert_eq!(value["boot"]["image"]["value"]["guest"], "hello");
        assert!(value["control"]["socket"].is_null());
        assert_eq!(value["layout"]["ram"][1]["start"], 1_u64 << 32);
        assert_eq!(value["layout"]["overcommit"], 2560.0);
        let unlimited = json(&config(&["collapse.copy_budget=unlimited"]));
        let value: serde_json::Value = serde_json::from_str(&unlimited).unwrap();
        assert_eq!(value["collapse"]["copy_budget"]["value"], "unlimited");
        assert_eq!(value["collapse"]["copy_budget"]["origin"], "flag");
    }
}
