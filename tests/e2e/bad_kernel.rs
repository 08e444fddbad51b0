//! Kernels, initial ramdisks and command lines that cannot be booted, tried on the real program: exit code 2 and one line
//! that names config and key. The boot loader finds these, after the config itself was found fine.

use std::path::Path;

use tests::{Scratch, Slat, assert_refused, elf};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));

/// The commands that look into a kernel.
const COMMANDS: &[&str] = &["check", "run"];

/// Where the RAM of these machines ends.
const RAM_END: u64 = 64 << 20;

/// A kernel that halts at once.
fn halting(start: u64, memory: u64) -> Vec<u8> {
    const CODE: &[u8] = &[0xf4]; // hlt
    elf(start, memory, CODE)
}

/// Writes a config with `keys` under `[boot]`, and asserts that every command refuses it, naming the config and `says`.
fn assert_bad_boot(scratch: &Scratch, keys: &str, says: &[&str]) {
    let config = scratch.write("x.toml", format!("memory.size = \"64M\"\n[boot]\n{keys}\n"));
    for command in COMMANDS {
        let output = SLAT.run([command.as_ref(), config.as_os_str()]);
        let says: Vec<&str> = says.iter().copied().chain(["x.toml"]).collect();
        assert_refused(&format!("slat {command} with {keys}"), &output, &says);
    }
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    let scratch = Scratch::new();
    let whole = halting(1 << 20, 4096);
    scratch.write("empty", "");
    scratch.write("text", "this is not a kernel\n".repeat(100));
    scratch.write("magic", b"\x7fELF");
    scratch.write("header", &whole[..64]);
    scratch.write("segment", &whole[..whole.len() - 1]);
    scratch.write("zeros", vec![0; 64 << 10]);
    // The boot sector's signature, and nothing behind it.
    let mut sector = vec![0; 512];
    sector[0x1fe..].copy_from_slice(&[0x55, 0xaa]);
    scratch.write("sector", sector);
    for name in ["empty", "text", "magic", "header", "segment", "zeros", "sector"] {
        assert_bad_boot(&scratch, &format!("kernel = \"{name}\""), &["boot.kernel", name]);
    }
    assert_bad_boot(&scratch, "kernel = \".\"", &["boot.kernel", "directory"]);
}

/// However long a file is, its start says that it is no kernel.
#[test]
fn a_file_of_100_mb_that_is_no_kernel_is_refused() {
    let scratch = Scratch::new();
    grow(&scratch.write("large", ""), 100 << 20);
    assert_bad_boot(&scratch, "kernel = \"large\"", &["boot.kernel", "large"]);
    scratch.write("kernel", halting(1 << 20, 4096));
    let keys = "kernel = \"kernel\"\ninitrd = \"large\"";
    assert_bad_boot(&scratch, keys, &["boot.initrd", "large"]);
}

#[test]
fn a_kernel_that_is_cut_anywhere_is_refused() {
    let scratch = Scratch::new();
    let whole = halting(1 << 20, 4096);
    for length in 0..whole.len() {
        scratch.write("cut", &whole[..length]);
        let config = scratch.write("x.toml", "memory.size = \"64M\"\nboot.kernel = \"cut\"\n");
        let output = SLAT.run(["check".as_ref(), config.as_os_str()]);
        assert_refused(&format!("cut at {length}"), &output, &["x.toml", "boot.kernel", "cut"]);
    }
}

#[test]
fn kernels_that_reach_out_of_ram_are_refused() {
    let scratch = Scratch::new();
    for (name, start, memory) in [
        ("over", RAM_END - 4096, 8192),
        ("behind", RAM_END, 4096),
        ("hole", 0xC000_0000, 4096),
        ("wraps", u64::MAX - 4095, 8192),
    ] {
        scratch.write(name, halting(start, memory));
        assert_bad_boot(&scratch, &format!("kernel = \"{name}\""), &["boot.kernel"]);
    }
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let scratch = Scratch::new();
    scratch.write("kernel", halting(1 << 20, 4096));
    let initrd = scratch.write("initrd", "");
    grow(&initrd, RAM_END);
    assert_bad_boot(&scratch, "kernel = \"kernel\"\ninitrd = \"initrd\"", &["boot.initrd"]);
}

#[test]
fn what_is_no_initrd_is_refused() {
    let scratch = Scratch::new();
    scratch.write("kernel", halting(1 << 20, 4096));
    scratch.write("empty", "");
    for (name, says) in [("empty", "is empty"), (".", "directory"), ("nowhere", "no file")] {
        let keys = format!("kernel = \"kernel\"\ninitrd = \"{name}\"");
        assert_bad_boot(&scratch, &keys, &["boot.initrd", name, says]);
    }
}

#[test]
fn a_command_line_that_the_protocol_has_no_room_for_is_refused() {
    let scratch = Scratch::new();
    scratch.write("kernel", halting(1 << 20, 4096));
    let longest = format!("boot.kernel = \"kernel\"\nboot.cmdline = \"{}\"", "x".repeat(2047));
    let config = scratch.write("fits.toml", longest);
    assert_eq!(SLAT.run(["check".as_ref(), config.as_os_str()]).code, Some(0));
    let keys = format!("kernel = \"kernel\"\ncmdline = \"{}\"", "x".repeat(2048));
    assert_bad_boot(&scratch, &keys, &["boot.cmdline"]);
}

/// Makes a file `length` bytes long without writing them.
fn grow(path: &Path, length: u64) {
    let file = std::fs::File::options().write(true).open(path);
    file.and_then(|file| file.set_len(length)).expect("a sparse file can be made");
}
