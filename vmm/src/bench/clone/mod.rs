//! What a machine over a template costs: its start, a store to a page that it shares, and memory.

mod bare;
mod cow;
mod start;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::config::{Host, MachineConfig};

use super::{BenchError, Rounds, Table};

/// RAM of a machine, all of it over the template.
const RAM: u64 = 64 << 20;
const PAGE: u64 = 4096;

/// The figures of `slat bench clone`; `progress` is told what is being measured.
///
/// # Errors
/// [`BenchError`]: something could not be set up or a guest failed.
pub fn clone(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let mut table = Table::new("clone");
    let template = Template::new()?;
    start::start(rounds, progress, &template, &mut table)?;
    cow::stores(rounds, progress, &template, &mut table)?;
    start::memory(progress, &template, &mut table)?;
    Ok(table)
}

/// A file without holes that goes away with this.
struct Template(PathBuf);

impl Template {
    fn new() -> Result<Template, BenchError> {
        let name = format!("slat-bench-{}.template", std::process::id());
        let template = Template(std::env::temp_dir().join(name));
        // Not where something is already, be it a link.
        let mut file = BufWriter::new(File::create_new(&template.0)?);
        for word in 1..=RAM / 8 {
            file.write_all(&word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())?;
        }
        file.flush()?;
        Ok(template)
    }

    /// The config of a machine with the built-in `guest`, over this.
    fn machine(&self, guest: &str) -> Result<MachineConfig, BenchError> {
        config(&format!("template = {:?}", self.0.display().to_string()), guest)
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The config of a machine with the built-in `guest`; `more` goes into the table of its memory.
fn config(more: &str, guest: &str) -> Result<MachineConfig, BenchError> {
    let text =
        format!("boot.guest = \"{guest}\"\n[memory]\nsize = {RAM}\nbacking = \"memfd\"\n{more}\n");
    MachineConfig::parse(&text, Path::new("the benchmark's config"), &[], Host::of_this_cpu())
        .map_err(|error| BenchError::Guest(error.to_string()))
}
