//! What `slat run --json-report` writes.

use std::path::Path;

use serde_json::Value;

use crate::tree;

/// A report, and questions to it that every test has.
#[derive(Clone, Debug)]
pub struct Report(Value);

impl Report {
    /// Reads the report at `path`. Panics if there is none.
    pub fn read(path: &Path) -> Report {
        let text = tree::text(path);
        Report(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    /// The value at a path like `memory.pool.frames` or `memory.filled.1`. Panics if there is none.
    pub fn at(&self, path: &str) -> &Value {
        path.split('.')
            .try_fold(&self.0, |value, key| match key.parse::<usize>() {
                Ok(index) => value.get(index),
                Err(_) => value.get(key),
            })
            .unwrap_or_else(|| panic!("no {path} in {:#}", self.0))
    }

    /// The number there.
    pub fn number(&self, path: &str) -> u64 {
        self.at(path).as_u64().unwrap_or_else(|| panic!("{path} is no count: {:#}", self.0))
    }

    /// The text there.
    pub fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_else(|| panic!("{path} is no text: {:#}", self.0))
    }

    /// What device `device` has counted under `name`.
    pub fn count(&self, device: usize, name: &str) -> u64 {
        self.number(&format!("devices.{device}.counts.{name}"))
    }

    /// Frames that the guest's RAM lies on, pages of every size counted as 4 KiB.
    pub fn resident_frames(&self) -> u64 {
        (0..3)
            .map(|size| self.number(&format!("memory.resident.leaves.{size}")) * 512_u64.pow(size))
            .sum()
    }
}
