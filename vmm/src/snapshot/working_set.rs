//! The pages that a machine needed first when it was restored lazily: read in one go the next time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::state::checksum;

use super::WORKING_SET;

/// Pages of the file of memory, by number, the first first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSet(pub Vec<u32>);

impl WorkingSet {
    /// That of the snapshot in `folder` with this id, if one was written. What is damaged, or of another, is none: it is a hint.
    pub fn read(folder: &Path, id: &str) -> Option<WorkingSet> {
        let text = fs::read_to_string(folder.join(WORKING_SET)).ok()?;
        let (header, numbers) = text.split_once('\n')?;
        if header != WorkingSet::header(id, numbers) {
            return None;
        }
        numbers.lines().map(|line| line.parse().ok()).collect::<Option<_>>().map(WorkingSet)
    }

    /// Writes it beside the snapshot.
    ///
    /// # Errors
    /// What the system says; what was there is there still.
    pub fn write(&self, folder: &Path, id: &str) -> io::Result<()> {
        let numbers: String = self.0.iter().map(|page| format!("{page}\n")).collect();
        let text = format!("{}\n{numbers}", WorkingSet::header(id, &numbers));
        let beside: PathBuf = folder.join(format!("{WORKING_SET}.{}", std::process::id()));
        let written =
            fs::write(&beside, text).and_then(|()| fs::rename(&beside, folder.join(WORKING_SET)));
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }

    fn header(id: &str, numbers: &str) -> String {
        format!("slat-working-set 1 {id} {}", checksum(numbers.as_bytes()))
    }
}
