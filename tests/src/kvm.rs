//! The gate of tests that need KVM.

use std::env;
use std::fs::OpenOptions;
use std::path::Path;

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";

/// Set to 1 by CI: a device that is there has to work.
const REFUSE_SKIPS: &str = "SLAT_REFUSE_SKIPS";

/// Whether this test can use KVM. Says so on standard output if not, so that a skipped test does not pass for one that
/// ran.
///
/// Panics where `SLAT_REFUSE_SKIPS=1` is set and the device is there but cannot be opened.
pub fn require_kvm() -> bool {
    if !Path::new(DEVICE).exists() {
        println!("SKIPPED: no {DEVICE}");
        return false;
    }
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => true,
        Err(error) if env::var_os(REFUSE_SKIPS).is_some_and(|value| value == "1") => {
            panic!("{DEVICE} is there but cannot be used: {error}")
        }
        Err(error) => {
            println!("SKIPPED: {DEVICE} cannot be used: {error}");
            false
        }
    }
}
