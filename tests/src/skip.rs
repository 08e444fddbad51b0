//! Tests that this machine has nothing for: they say so, where no one overlooks it.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::thread;

/// Set to 1 by CI: what is there has to work, and what can be fetched has to be there.
const REFUSE_SKIPS: &str = "SLAT_REFUSE_SKIPS";

/// A file to which every skip adds a line: the test runner keeps the output of tests that pass to itself.
const SKIP_LOG: &str = "SLAT_SKIP_LOG";

/// Says that this test does not run, and why: on standard output and in the file that `SLAT_SKIP_LOG` names.
pub fn skip(reason: &str) {
    println!("SKIPPED: {reason}");
    let Some(log) = env::var_os(SKIP_LOG) else { return };
    let thread = thread::current();
    let line = format!("SKIPPED: {reason} ({})\n", thread.name().unwrap_or("a test"));
    let file = OpenOptions::new().create(true).append(true).open(&log);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .unwrap_or_else(|error| panic!("{}: {error}", Path::new(&log).display()));
}

/// As [`skip`], for what a machine that refuses skips must have.
///
/// Panics where `SLAT_REFUSE_SKIPS=1` is set.
pub fn skip_unless_refused(reason: &str) {
    let refused = env::var_os(REFUSE_SKIPS).is_some_and(|value| value == "1");
    assert!(!refused, "{reason}, and {REFUSE_SKIPS} is set");
    skip(reason);
}

/// Whether this test can use KVM. A device that is there and cannot be used is no excuse where skips are refused.
pub fn require_kvm() -> bool {
    require_device(Path::new("/dev/kvm"))
}

/// Whether this test can have a userfaultfd for guest memory; likewise.
pub fn require_userfaultfd() -> bool {
    require_device(Path::new("/dev/userfaultfd"))
}

/// Whether this test can run a guest: both of these.
pub fn require_guests() -> bool {
    require_kvm() && require_userfaultfd()
}

fn require_device(device: &Path) -> bool {
    let shown = device.display();
    if !device.exists() {
        skip(&format!("no {shown}"));
        return false;
    }
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => true,
        Err(error) => {
            skip_unless_refused(&format!("{shown} cannot be used: {error}"));
            false
        }
    }
}
