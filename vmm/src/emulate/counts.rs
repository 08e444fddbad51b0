//! What was done for the vCPUs of a machine, and why each time KVM had to go on.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use iced_x86::Mnemonic;

/// Counts of all vCPUs of a machine.
#[derive(Debug, Default)]
pub struct Counts(Mutex<Emulated>);

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Emulated {
    /// Instructions that KVM had no emulation for, by name.
    pub assisted: BTreeMap<String, u64>,
    /// Instructions of ring 0 that were carried out here because KVM would have emulated them.
    pub interpreted: u64,
    /// The time that took, in microseconds.
    pub interpreted_us: u64,
    /// What KVM was left to do meanwhile, by instruction.
    pub left_to_kvm: BTreeMap<String, u64>,
}

impl Counts {
    /// One more that KVM had no emulation for.
    pub(super) fn assisted(&self, mnemonic: Mnemonic) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.assisted.entry(name(mnemonic)).or_default() += 1;
    }

    /// A vCPU's interpreter has ended.
    pub(super) fn interpreted(
        &self,
        instructions: u64,
        time: Duration,
        left: impl Iterator<Item = (String, u64)>,
    ) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.interpreted += instructions;
        all.interpreted_us += u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        for (name, count) in left {
            *all.left_to_kvm.entry(name).or_default() += count;
        }
    }

    /// All of them.
    pub fn all(&self) -> Emulated {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Its name as assemblers write it.
pub(super) fn name(mnemonic: Mnemonic) -> String {
    format!("{mnemonic:?}").to_lowercase()
}
