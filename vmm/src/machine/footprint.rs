//! What this process takes of the host's memory.

use std::fs;
use std::io;

/// Memory of this process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Footprint {
    /// Its share of what is resident (PSS): a page that is mapped many times counts once.
    pub pss_bytes: u64,
    /// The part of that which is files in memory: the pool.
    pub pss_shmem_bytes: u64,
    /// The part that is the program itself and other files on a disk. It grows when others that run the same end.
    pub pss_file_bytes: u64,
    /// The host's page tables for it.
    pub page_table_bytes: u64,
}

impl Footprint {
    /// As it is now.
    ///
    /// # Errors
    /// `/proc` does not say.
    pub fn now() -> io::Result<Footprint> {
        let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
        let status = fs::read_to_string("/proc/self/status")?;
        let bytes = |text: &str, name: &str| {
            kib(text, name).map(|kib| kib << 10).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("/proc/self has no {name}"))
            })
        };
        Ok(Footprint {
            pss_bytes: bytes(&rollup, "Pss:")?,
            pss_shmem_bytes: bytes(&rollup, "Pss_Shmem:")?,
            pss_file_bytes: bytes(&rollup, "Pss_File:")?,
            page_table_bytes: bytes(&status, "VmPTE:")?,
        })
    }
}

/// The number in the line of `text` that starts with `name`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_footprint() {
        let footprint = Footprint::now().unwrap();
        assert!(footprint.pss_bytes > 100 << 10, "{footprint:?}");
        assert!(footprint.page_table_bytes > 0, "{footprint:?}");
    }

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let text = "Pss_Dirty:  3 kB\nPss:  7 kB\n";
        assert_eq!((kib(text, "Pss:"), kib(text, "Rss:")), (Some(7), None));
    }
}
