//! Guests that drive virtio devices with drivers of others: what they see, and what is in the files then.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::{
    Output, Report, Running, Scratch, Slat, assert_ended, require_guests, require_taps, skip, tree,
    with_taps,
};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

const SECTOR: usize = 512;

fn run(config: &Path, sets: &[&str]) -> (Output, Report) {
    SLAT.run_machine(SLAT.machine(config, sets))
}

/// An empty disk of so many MiB.
fn disk(scratch: &Scratch, name: &str, mib: u64) -> PathBuf {
    let path = scratch.write(name, b"");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(mib << 20).unwrap();
    path
}

/// A word of a sector.
fn word(disk: &[u8], sector: usize, word: usize) -> u64 {
    let at = sector * SECTOR + 8 * word;
    u64::from_le_bytes(disk[at..at + 8].try_into().unwrap())
}

/// The shipped config, by every way to a file, from memory of every page size, with more vCPUs than one and while a thread
/// makes huge pages of the buffers' small ones.
#[test]
fn blk_finds_all_that_it_wrote_whatever_is_done_to_memory() {
    if !require_guests() {
        return;
    }
    let config = tree::root().join("configs/blk.toml");
    for more in [
        &["disk.scratch.io=sync"][..],
        &["disk.scratch.io=uring"],
        &["memory.pages=2m"],
        &["machine.vcpus=2"],
        &["machine.device_threads=2", "disk.scratch.queue_size=16"],
        &["collapse.background=true", "collapse.max_holes=511", "collapse.scan_rate=unlimited"],
    ] {
        let scratch = Scratch::new();
        let file = format!("disk.scratch.file={}", disk(&scratch, "disk.img", 16).display());
        let (output, report) = run(&config, &[&[&*file], more].concat());
        if output.code == Some(1) && output.stdout.is_empty() && more[0].ends_with("uring") {
            assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
            skip(output.stderr.trim_end());
            continue;
        }
        assert_ended(
            &output,
            0,
            &["writable disk \"scratch\" of 32768 sectors", " wrong=0 errors=0 "],
        );
        assert_eq!((output.told("writes"), output.told("reads")), (4096, 4096), "{more:?}");
        assert_eq!(output.told("depth"), 16, "with indirect descriptors");
        assert_eq!(report.number("devices.0.breaks"), 0);
    }
}

/// What one machine writes is in the file, where it belongs, and another machine finds it there.
#[test]
fn what_blk_wrote_is_in_the_file_for_others() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let path = disk(&scratch, "disk.img", 8);
    let keys = "blk.ops=3000 blk.size=8K blk.pattern=random blk.salt=7";
    let config = |more: &str, mode: &str| {
        let text = format!(
            "[disk.it]\nfile = \"{}\"\n{more}\n[boot]\nguest = \"blk\"\ncmdline = \"{keys} {mode}\"\n",
            path.display()
        );
        scratch.write("blk.toml", text)
    };
    let (output, _) = run(&config("", "blk.mode=write"), &[]);
    assert_ended(&output, 0, &[" writes=3000 bytes=24576000 wrong=0 errors=0 "]);
    let written = fs::read(&path).unwrap();
    // 1024 places of 8 KiB: two rounds are whole, and the third is not.
    let rounds = (0..written.len() / SECTOR).map(|sector| {
        assert_eq!(word(&written, sector, 0), sector as u64);
        assert_eq!(word(&written, sector, 1) >> 32, 7);
        word(&written, sector, 1) as u32
    });
    let third = rounds.inspect(|round| assert!([1, 2].contains(round))).filter(|round| *round == 2);
    assert_eq!(third.count(), (3000 - 2 * 1024) * 16);

    let (output, _) = run(&config("readonly = true", "blk.mode=check"), &[]);
    assert_ended(
        &output,
        0,
        &["read-only disk \"it\"", " reads=1024 ", " wrong=0 ", " readonly=1 "],
    );
    let (output, _) = run(&config("readonly = true", "blk.mode=verify"), &[]);
    assert_ended(&output, 1, &["blk: the disk is read-only"]);
    assert_eq!(fs::read(&path).unwrap(), written);
    // A flipped bit shows.
    let mut broken = written;
    broken[5 * SECTOR + 100] ^= 4;
    fs::write(&path, broken).unwrap();
    let (output, _) = run(&config("", "blk.mode=check"), &[]);
    assert_ended(&output, 1, &["blk: wrong in sector 5, word 12: ", " wrong=1 "]);
}

#[test]
fn blk_takes_the_disk_that_it_is_told_among_others() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let disks = ["a", "b", "c"].map(|name| disk(&scratch, name, 2));
    let tables: String = (0..)
        .zip(&disks)
        .map(|(i, path)| format!("[disk.d{i}]\nfile = \"{}\"\n", path.display()))
        .collect();
    let config = scratch
        .write("blk.toml", format!("{tables}[boot]\nguest = \"blk\"\ncmdline = \"blk.index=1\"\n"));
    let (output, _) = run(&config, &[]);
    assert_ended(&output, 0, &["writable disk \"d1\" of 4096 sectors", " wrong=0 "]);
    let used = disks.map(|path| fs::read(path).unwrap().iter().any(|&byte| byte != 0));
    assert_eq!(used, [false, true, false]);
    let (output, _) = run(&config, &["boot.cmdline=blk.index=3"]);
    assert_ended(
        &output,
        1,
        &["there is no virtio device Block number 3: there is Block, Block, Block"],
    );
}

/// The shipped config; and a source that is none is found out.
#[test]
fn rng_reads_what_looks_random_and_finds_out_what_does_not() {
    if !require_guests() {
        return;
    }
    let config = tree::root().join("configs/rng.toml");
    for more in [&[][..], &["memory.pages=2m"], &["boot.cmdline=rng.size=1M rng.bytes=2M"]] {
        let (output, report) = run(&config, more);
        assert_ended(&output, 0, &[" wrong=0 repeated=0 "]);
        let counted = ["bytes", "requests"].map(|key| {
            assert_eq!(report.count(0, key), output.told(key));
            output.told(key)
        });
        assert!(counted[0] >= 1 << 20, "{counted:?}");
        assert_eq!(report.number("devices.0.breaks"), 0);
    }
    let (output, _) = run(&config, &["rng.seed.source=/dev/zero"]);
    assert_ended(&output, 1, &["rng: ones and zeroes are not even\n", " wrong=3 ", " ones=0 "]);
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..2u32 << 20).map(|i| (i >> 3) as u8).collect();
    let source = format!("rng.seed.source={}", scratch.write("source", bytes).display());
    let (output, _) = run(&config, &[&source]);
    assert_ended(&output, 1, &["rng: a request was answered with the bytes of the one before it"]);
}

/// A second's worth comes at once, and the rest as the limit has it.
#[test]
fn rng_gives_no_more_in_a_second_than_the_limit() {
    if !require_guests() {
        return;
    }
    let config = tree::root().join("configs/rng.toml");
    let sets = ["rng.seed.rate_bytes=256K", "boot.cmdline=rng.bytes=768K"];
    let (output, report) = run(&config, &sets);
    assert_ended(&output, 0, &["rng: bytes=786432 ", " wrong=0 "]);
    assert!(output.took >= Duration::from_millis(1900), "{output:?}");
    assert!(report.count(0, "held_up") > 0);
}

/// A device that is missing is named, with those that are there; what the command line lists and is none is reported.
#[test]
fn a_missing_device_is_named() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    for (guest, kind, keys) in [
        ("blk", "Block", ""),
        ("net", "Network", "net.echo=1"),
        ("console", "Console", ""),
        ("rng", "EntropySource", ""),
        ("vsock", "Socket", "vsock.port=1"),
    ] {
        let boot = format!("[boot]\nguest = \"{guest}\"\ncmdline = \"{keys}\"\n");
        let (output, _) = run(&scratch.write("none.toml", &boot), &[]);
        let said = format!(
            "{guest}: there is no virtio device {kind} number 0: the command line lists none\n"
        );
        assert_ended(&output, 1, &[&said]);
    }
    let path = disk(&scratch, "disk.img", 1);
    let text = format!(
        "[disk.it]\nfile = \"{}\"\n[boot]\nguest = \"rng\"\n\
         cmdline = \"virtio_mmio.device=4K virtio_mmio.device=4K@1M:5\"\n",
        path.display()
    );
    let (output, _) = run(&scratch.write("other.toml", text), &[]);
    let says = [
        "virtio: virtio_mmio.device=4K: expected SIZE@ADDRESS:IRQ",
        "virtio: 0x100000: this is RAM, or another device: ignored",
        "rng: there is no virtio device EntropySource number 0: there is Block\n",
    ];
    assert_ended(&output, 1, &says);
}

/// The driver has a size of its own for a queue. A device that offers less is refused with that.
#[test]
fn a_queue_that_is_too_short_for_the_driver_is_named() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let path = disk(&scratch, "disk.img", 1);
    let text = format!(
        "[disk.it]\nfile = \"{}\"\nqueue_size = 8\n[boot]\nguest = \"blk\"\n",
        path.display()
    );
    let (output, _) = run(&scratch.write("blk.toml", text), &[]);
    assert_ended(&output, 1, &["blk: setting the device up, with 16 descriptors a queue: Invalid"]);
}

/// A value that a guest cannot use is its verdict 2, in a sentence.
#[test]
fn values_that_make_no_sense_are_refused() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let path = disk(&scratch, "disk.img", 1);
    for (keys, says) in [
        (
            "blk.size=513",
            "blk: blk.size=513: expected a multiple of 512 that the disk has room for",
        ),
        ("blk.size=1K blk.depth=17", "blk: blk.depth=17: expected a number from 1 to 16"),
        ("blk.mode=erase", "blk: blk.mode=erase: expected verify, read, write or check"),
    ] {
        let text = format!(
            "[disk.it]\nfile = \"{}\"\n[boot]\nguest = \"blk\"\ncmdline = \"{keys}\"\n",
            path.display()
        );
        let (output, _) = run(&scratch.write("blk.toml", text), &[]);
        assert_ended(&output, 2, &[says]);
    }
}

/// Devices of every kind at once, served by two threads, on small pages, huge ones, and small ones that become huge: whichever the
/// guest uses does its work, and no page stays pinned.
#[test]
fn devices_of_every_kind_are_in_one_machine() {
    if !require_guests() {
        return;
    }
    let tap = require_taps();
    let scratch = Scratch::new();
    let folder = scratch.path().display();
    let text = format!(
        "[machine]\ndevice_threads = 2\n[disk.one]\nfile = \"{}\"\n{}[rng.seed]\n[hvc.main]\nport = \"file:{folder}/hvc\"\n\
         [vsock.main]\nsocket = \"{folder}/vsock\"\n[disk.two]\nfile = \"{}\"\n[boot]\nguest = \"blk\"\n",
        disk(&scratch, "one", 8).display(),
        if tap { "[net.uplink]\ntap = \"tap0\"\n" } else { "" },
        disk(&scratch, "two", 8).display(),
    );
    let config = scratch.write("all.toml", text);
    let pages = [
        &["memory.pages=4k"][..],
        &["memory.pages=2m"],
        &["collapse.background=true", "collapse.max_holes=511", "collapse.scan_rate=unlimited"],
    ];
    let jobs = [
        ("blk", "blk.ops=3000 blk.depth=16 blk.pattern=random", " wrong=0 errors=0 "),
        ("blk", "blk.index=1 blk.ops=3000 blk.size=64K", " wrong=0 errors=0 "),
        ("rng", "", " wrong=0 "),
        ("net", "net.ping=10.0.0.1", "net: pings=4 received=4 wrong=0 "),
    ];
    for more in pages {
        for (guest, cmdline, says) in jobs.iter().filter(|(guest, ..)| tap || *guest != "net") {
            let report = scratch.path().join("report.json");
            let mut command = match tap {
                true => with_taps(&[], SLAT.exe()),
                false => SLAT.command([""; 0]),
            };
            command.arg("run").arg(&config).arg("--json-report").arg(&report);
            let boot = [format!("boot.guest={guest}"), format!("boot.cmdline={cmdline}")];
            for set in boot.iter().map(String::as_str).chain(more.iter().copied()) {
                command.args(["--set", set]);
            }
            let output = Running::start(command, Duration::from_secs(120)).finish();
            assert_ended(&output, 0, &[says]);
            let report = Report::read(&report);
            assert_eq!(report.text("audit"), "clean", "{guest} {more:?}: {output:?}");
            let devices = report.at("devices").as_array().map_or(0, Vec::len);
            assert_eq!(devices, if tap { 6 } else { 5 });
            for index in 0..devices {
                assert_eq!(report.number(&format!("devices.{index}.breaks")), 0, "{output:?}");
            }
        }
    }
}
