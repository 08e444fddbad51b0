//! Builds the guest programs of `guests/` and leaves them where `src/guests.rs` embeds them; and hands the linker its script.
//!
//! The guests are bare-metal programs with link arguments and a profile of their own, so this is a second cargo. It uses the target
//! of the host toolchain: nothing has to be installed.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";
const GUESTS: [&str; 12] = [
    "hello", "touch", "smp", "clone", "churn", "blk", "net", "console", "rng", "balloon", "pmem",
    "vsock",
];

fn main() {
    let dir = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("guests");
    for input in ["Cargo.toml", "Cargo.lock", "build.rs", "link.ld", "rt", "bin"] {
        println!("cargo::rerun-if-changed={}", dir.join(input).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    sort_text();

    let out = PathBuf::from(var("OUT_DIR")).join("guests");
    let mut cargo = Command::new(var("CARGO"));
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(leaks) {
            cargo.env_remove(&name);
        }
    }
    cargo
        // Set and empty beats any configuration file: no `--cfg loom`, no coverage, no `-C target-cpu` in the guests.
        .env("CARGO_ENCODED_RUSTFLAGS", "")
        .args(["build", "--release", "--locked", "--target", TARGET])
        .arg("--manifest-path")
        .arg(dir.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&out);
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!(
            "the built-in guests do not build ({status}): see cargo's messages above; to reproduce: {cargo:?}"
        )),
        Err(error) => fail(&format!("cargo did not start, to build the built-in guests: {error}")),
    }
    for guest in GUESTS {
        let elf = out.join(TARGET).join("release").join(guest);
        println!("cargo::rustc-env=SLAT_GUEST_{}={}", guest.to_uppercase(), elf.display());
    }
}

/// Has the linker sort the functions of `slat` as `seldom.ld` says.
fn sort_text() {
    let script = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("seldom.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
}

/// What the outer cargo, or a tool that drives it (clippy, coverage), sets for its own crates only.
fn leaks(name: &str) -> bool {
    const OUTER: [&str; 8] = [
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_BUILD_",
        "CARGO_MANIFEST_",
        "DEP_",
        "LLVM_PROFILE_FILE",
    ];
    let rustc =
        name.contains("RUSTFLAGS") || (name.starts_with("RUSTC_") && name.contains("WRAPPER"));
    rustc || name == "CARGO_PRIMARY_PACKAGE" || OUTER.iter().any(|prefix| name.starts_with(prefix))
}

fn var(name: &str) -> OsString {
    env::var_os(name)
        .unwrap_or_else(|| fail(&format!("{name} is not set: build.rs is run by cargo")))
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    println!("cargo::error={message}");
    std::process::exit(1)
}
