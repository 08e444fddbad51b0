//! Commands in a network of their own, with TAP interfaces: `configs/with-tap.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::running::piped;
use crate::{skip, tree};

fn script() -> PathBuf {
    tree::root().join("configs/with-tap.sh")
}

/// A command that runs `program` in a network of its own, with the interfaces that `options` ask for; arguments of the program
/// can be added. No input, outputs piped.
pub fn with_taps(options: &[&str], program: &str) -> Command {
    let mut command = piped(script().to_str().expect("the tree's path is UTF-8"));
    command.args(options).arg(program);
    command
}

/// Whether this test can have TAP interfaces, in a network of its own.
pub fn require_taps() -> bool {
    let device = Path::new("/dev/net/tun");
    if !device.exists() {
        skip(&format!("no {}", device.display()));
        return false;
    }
    let tried = with_taps(&[], "true").output();
    let tried = tried.unwrap_or_else(|error| panic!("{}: {error}", script().display()));
    if !tried.status.success() {
        let said = String::from_utf8_lossy(&tried.stderr);
        skip(&format!("there is no TAP interface to be had: {}", said.trim_end()));
    }
    tried.status.success()
}
