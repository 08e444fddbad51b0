//! The pages that a machine needed first when it was restored lazily: the next has them ready before it asks.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use guest_mm::image::Needed;

use crate::state::checksum;

use super::WORKING_SET;

/// What stands behind the number of a page that the guest stored to.
const STORED: &str = " w";

/// Bytes that are read of it at most: some 100,000 pages, which are more than are noted.
const LONGEST: u64 = 1 << 20;

/// Pages of the file of memory, the first first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSet(pub Vec<Needed>);

impl WorkingSet {
    /// That of the snapshot in `folder` with this id, if one was written. What is damaged, or of another, is none: it is a hint.
    pub fn read(folder: &Path, id: &str) -> Option<WorkingSet> {
        let mut text = String::new();
        let file = File::open(folder.join(WORKING_SET)).ok()?;
        file.take(LONGEST).read_to_string(&mut text).ok()?;
        let (header, lines) = text.split_once('\n')?;
        if header != WorkingSet::header(id, lines) {
            return None;
        }
        let needed = |line: &str| {
            let number = line.strip_suffix(STORED);
            let page = number.unwrap_or(line).parse().ok()?;
            Some(Needed { page, stored: number.is_some() })
        };
        lines.lines().map(needed).collect::<Option<_>>().map(WorkingSet)
    }

    /// Writes it beside the snapshot.
    ///
    /// # Errors
    /// What the system says; what was there is there still.
    pub fn write(&self, folder: &Path, id: &str) -> io::Result<()> {
        let line = |needed: &Needed| {
            format!("{}{}\n", needed.page, if needed.stored { STORED } else { "" })
        };
        let lines: String = self.0.iter().map(line).collect();
        let text = format!("{}\n{lines}", WorkingSet::header(id, &lines));
        let beside: PathBuf = folder.join(format!("{WORKING_SET}.{}", std::process::id()));
        let written =
            fs::write(&beside, text).and_then(|()| fs::rename(&beside, folder.join(WORKING_SET)));
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        written
    }

    fn header(id: &str, lines: &str) -> String {
        format!("slat-working-set 2 {id} {}", checksum(lines.as_bytes()))
    }
}
