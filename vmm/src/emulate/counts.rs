//! How often which instruction was carried out.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use iced_x86::Mnemonic;

/// Instructions by name, of all vCPUs of a machine.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<String, u64>>);

impl Counts {
    /// One more.
    pub(super) fn note(&self, mnemonic: Mnemonic) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(name(mnemonic)).or_default() += 1;
    }

    /// All of them.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Its name as assemblers write it.
pub(super) fn name(mnemonic: Mnemonic) -> String {
    format!("{mnemonic:?}").to_lowercase()
}
