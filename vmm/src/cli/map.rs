//! `slat map`: a machine's memory by block, while it runs or after.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::config::{Host, MachineConfig};
use crate::control::{AskError, Command, ask};
use crate::map::{Document, MapError, Style, picture, text};

use super::args::MapArgs;
use super::{Failure, print, shown, write_whole};

/// Larger files are no maps: that of a guest of a TiB has 60 MiB.
const LARGEST: u64 = 1 << 30;

/// Enough of a file to know its kind.
const HEAD: usize = 4096;

/// Prints or draws the map, or says why there is none.
pub(super) fn run(args: &MapArgs) -> Result<(), Failure> {
    let document = read(&args.source)?;
    if let Some(path) = &args.svg {
        write_whole(path, picture(&document).as_bytes())?;
    }
    if args.json {
        print(&document.to_lines())
    } else if args.svg.is_none() {
        let style = Style::detect(io::stdout().is_terminal(), |name| std::env::var(name).ok());
        print(&text(&document, style))
    } else {
        Ok(())
    }
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub(super) enum MapFailure {
    /// The source is not there, or of a kind that cannot be read.
    #[error("{} {why}", shown(path))]
    Source {
        /// The source.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A file without a map in it.
    #[error("{} cannot be shown: {source}", shown(path))]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
    /// A config that names no socket.
    #[error(
        "{}: control.socket is missing: give the machine one, or run it with --control PATH and map that path",
        shown(.0)
    )]
    NoSocket(PathBuf),
    /// The machine of a config is not there.
    #[error(
        "the machine of {} is not running (nobody listens on {}): start it with \"slat run\", or map what --memory-map wrote",
        shown(config),
        shown(socket)
    )]
    NotRunning {
        /// The config.
        config: PathBuf,
        /// The socket that it names.
        socket: PathBuf,
    },
    /// The machine cannot be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// What answered is no map.
    #[error("what {} answered cannot be shown: {source}", shown(path))]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: MapError,
    },
}

impl MapFailure {
    /// Whether what was typed is to blame, rather than a machine that is not there.
    pub(super) fn is_bad_input(&self) -> bool {
        matches!(
            self,
            MapFailure::Source { .. } | MapFailure::File { .. } | MapFailure::NoSocket(_)
        )
    }
}

/// The map behind `path`, whatever that is.
fn read(path: &Path) -> Result<Document, Failure> {
    let bad = |why: &str| MapFailure::Source { path: path.to_owned(), why: why.into() };
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => bad("is not there: name a socket, a config or a memory map"),
        _ => bad(&format!("cannot be read: {error}")),
    };
    let kind = fs::metadata(path).map_err(unreadable)?.file_type();
    if kind.is_socket() {
        return Ok(answered(path, &Command::MemoryMap)?);
    }
    if kind.is_dir() {
        return Err(bad("is a directory: name a socket, a config or a memory map").into());
    }
    if !kind.is_file() {
        return Err(bad("is no socket, config or memory map").into());
    }
    let mut file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.by_ref().take(HEAD as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    match Contents::of(path, &bytes) {
        Contents::Config => of_config(path),
        Contents::Picture => {
            let why = "is a picture: maps are read from what --memory-map writes to other names";
            Err(bad(why).into())
        }
        Contents::Map => {
            file.take(LARGEST + 1 - bytes.len() as u64)
                .read_to_end(&mut bytes)
                .map_err(unreadable)?;
            if bytes.len() as u64 > LARGEST {
                return Err(bad("is larger than 1 GiB, too large for a memory map").into());
            }
            let failed = |source| MapFailure::File { path: path.to_owned(), source };
            Ok(Document::parse(&bytes).map_err(failed)?)
        }
    }
}

/// What a regular file is likely to hold.
#[derive(Debug, PartialEq, Eq)]
enum Contents {
    Map,
    Picture,
    Config,
}

impl Contents {
    /// By its first bytes; no config starts like JSON or XML. One without a sign is what its name says.
    fn of(path: &Path, head: &[u8]) -> Contents {
        match head.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => Contents::Map,
            Some(b'<') => Contents::Picture,
            _ if path.extension().is_some_and(|name| name == "json") => Contents::Map,
            _ => Contents::Config,
        }
    }
}

/// The map of the running machine of a config.
fn of_config(path: &Path) -> Result<Document, Failure> {
    let config = MachineConfig::load(path, &[], Host::of_this_cpu())?;
    let Some(socket) = config.control.socket else {
        return Err(MapFailure::NoSocket(path.to_owned()).into());
    };
    answered(&socket.value, &Command::MemoryMap).map_err(|error| match error {
        MapFailure::Ask(AskError::NotRunning(socket)) => {
            MapFailure::NotRunning { config: path.to_owned(), socket }.into()
        }
        other => other.into(),
    })
}

fn answered(path: &Path, command: &Command) -> Result<Document, MapFailure> {
    let answer = ask(path, command)?;
    Document::parse(&answer).map_err(|source| MapFailure::Answer { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_what_is_in_them() {
        for (name, head, contents) in [
            ("x.toml", "[boot]\n", Contents::Config),
            ("x", "# a config", Contents::Config),
            ("x.toml", "", Contents::Config),
            ("x", "\n {\"slat\"", Contents::Map),
            ("x.toml", "{", Contents::Map),
            ("x.json", "", Contents::Map),
            ("x.json", "[1, 2]", Contents::Map),
            ("x.json", "<svg", Contents::Picture),
        ] {
            assert_eq!(Contents::of(Path::new(name), head.as_bytes()), contents, "{name} {head:?}");
        }
    }
}
