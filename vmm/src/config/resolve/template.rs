//! `memory.template`: a file that RAM is private over.

use std::fs;
use std::path::PathBuf;

use crate::config::error::quoted;
use crate::config::file::reason;
use crate::config::machine::{Backing, Setting, Template};
use crate::config::raw::Raw;
use crate::config::schema::TEMPLATE;
use crate::config::{Bytes, ConfigError, HostPath, MachineConfig, Origin};

use super::PAGE;
use super::read::existing_file;

/// The template for RAM of `size`, if there is to be one.
pub(super) fn template(
    raw: &Raw,
    size: Bytes,
    backing: Backing,
) -> Result<Option<Setting<Template>>, ConfigError> {
    let Some(written) = raw.get(&TEMPLATE) else { return Ok(None) };
    let bad = |why: String| raw.bad(&TEMPLATE, written, why);
    if backing == Backing::Hugetlb {
        return Err(bad(
            "memory.backing is hugetlb, which has no 4 KiB pages, as a template needs them (try \"auto\")".into(),
        ));
    }
    let path = existing_file(raw, &TEMPLATE, written)?;
    let at = quoted(&path.to_string_lossy());
    let found = fs::metadata(&*path)
        .map_err(|error| bad(format!("{at} cannot be used: {}", reason(&error))))?;
    let bytes = Bytes::new(found.len());
    if bytes.get() == 0 || !bytes.is_multiple_of(PAGE) {
        return Err(bad(format!(
            "{at} has {} bytes, which is not a multiple of 4096 above 0: it is cut off, or no raw memory",
            bytes.get()
        )));
    }
    if bytes < size {
        return Err(bad(format!(
            "{at} has {bytes}, which is less than the {size} of memory.size that lie over it"
        )));
    }
    Ok(Some(Setting { value: Template { path, bytes }, origin: written.origin }))
}

impl MachineConfig {
    /// RAM, and what else the guest has pages of its own in, begins as the image in `file`, of `bytes`; or as zeroes and as its files,
    /// without one. What the config says of a template does not count. A pool that nobody chose is as large as that takes.
    pub fn lay_over(&mut self, file: Option<(PathBuf, Bytes)>) {
        let origin = self.memory.pool.origin;
        self.memory.template = file.map(|(path, bytes)| Setting {
            value: Template { path: HostPath(path), bytes },
            origin: Origin::Default,
        });
        if origin == Origin::Default {
            self.memory.pool.value = super::room_for_all(self);
        }
    }
}
