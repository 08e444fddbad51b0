//! Machines in tests.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guest_mm::addr::Gpa;

use crate::config::{Host, MachineConfig};
use crate::kvm;

use super::console::{Speech, Transcript};
use super::{Commons, Filling, Live, Machine};

/// No guest of a test needs longer.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn config(folder: &Path, text: &str) -> MachineConfig {
    let host = Host::of_this_cpu();
    MachineConfig::parse(text, &folder.join("x.toml"), &[], host).expect("a good config")
}

pub(super) fn build(config: &MachineConfig, said: &Transcript, is_empty: bool) -> Machine {
    let kvm = kvm::open().expect("KVM is there");
    let commons = Arc::new(Commons::new(&config.memory).expect("a pool"));
    let speech = Speech::Kept(said.clone());
    let started = Instant::now();
    let machine = match is_empty {
        true => Machine::empty(&kvm, &commons, config, speech, Filling::default(), started),
        false => Machine::on(&kvm, &commons, config, speech, started),
    };
    machine.expect("a machine")
}

/// What the memory of a guest at rest holds, where it is not zeroes.
pub(super) fn memory(live: &Live) -> Vec<(Gpa, Vec<u8>)> {
    let mut pages = Vec::new();
    for range in live.fingerprint().ram.clone() {
        for gpa in (range.start..range.start + range.bytes).step_by(4096) {
            let mut page = vec![0; 4096];
            let there = live.guest().read(Gpa::new(gpa), &mut page).is_ok();
            if there && page.iter().any(|&byte| byte != 0) {
                pages.push((Gpa::new(gpa), page));
            }
        }
    }
    pages
}

/// Waits until `ready` likes what the machine has said.
pub(super) fn wait_until(live: &Live, said: &Transcript, ready: impl Fn(&str) -> bool) {
    let begun = Instant::now();
    while !ready(&said.text()) {
        assert!(begun.elapsed() < LIMIT, "{}", said.text());
        assert!(live.ending().is_none(), "{:?} {}", live.ending(), said.text());
        thread::sleep(Duration::from_millis(1));
    }
}
