//! A tree of files: written, synced, read back and compared.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::noise::{Noise, word};
use crate::{Outcome, number, unfit};

/// Files in a folder.
const PER_FOLDER: u64 = 32;

/// Where Linux is told to forget what it has of files.
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

struct Tree<'a> {
    folder: &'a Path,
    seed: u64,
    files: u64,
    bytes: u64,
}

pub(crate) fn run(args: &[&str]) -> Outcome {
    let (flags, args): (Vec<&str>, Vec<&str>) = args.iter().partition(|arg| arg.starts_with("--"));
    let [folder, seed, files, bytes] = args[..] else { return Err(unfit()) };
    if flags.iter().any(|flag| !["--check", "--drop-caches"].contains(flag)) {
        return Err(unfit());
    }
    let tree = Tree {
        folder: Path::new(folder),
        seed: number("SEED", seed)?,
        files: number("FILES", files)?,
        bytes: number("BYTES", bytes)?,
    };
    let started = Instant::now();
    if !flags.contains(&"--check") {
        tree.write()?;
    }
    let written = started.elapsed();
    if flags.contains(&"--drop-caches") {
        fs::write(DROP_CACHES, "3").map_err(|error| format!("{DROP_CACHES}: {error}"))?;
    }
    let started = Instant::now();
    let (bytes, wrong) = tree.check()?;
    let line = format!(
        "files={} bytes={bytes} wrong={wrong} write_ms={} read_ms={}",
        tree.files,
        written.as_millis(),
        started.elapsed().as_millis()
    );
    Ok((line, wrong == 0))
}

impl Tree<'_> {
    fn path(&self, file: u64) -> PathBuf {
        self.folder.join(format!("{}/{}", file / PER_FOLDER, file % PER_FOLDER))
    }

    /// From half to one and a half of what was asked for, so that few end where a block does.
    fn length(&self, file: u64) -> usize {
        (self.bytes / 2 + word(!self.seed, file) % (self.bytes + 1)) as usize
    }

    fn content(&self, file: u64) -> Noise {
        Noise::new(word(self.seed, file))
    }

    fn write(&self) -> Result<(), String> {
        let mut buffer = Vec::new();
        for file in 0..self.files {
            let path = self.path(file);
            let failed = |error| format!("{}: {error}", path.display());
            if file % PER_FOLDER == 0 {
                fs::create_dir_all(path.parent().unwrap_or(self.folder)).map_err(failed)?;
            }
            buffer.resize(self.length(file), 0);
            self.content(file).fill(&mut buffer);
            File::create(&path).and_then(|mut file| file.write_all(&buffer)).map_err(failed)?;
        }
        // One sync for all of them.
        let failed = |error: std::io::Error| format!("{}: {error}", self.folder.display());
        let folder = File::open(self.folder).map_err(failed)?;
        rustix::fs::syncfs(&folder).map_err(|error| failed(error.into()))
    }

    /// Bytes that should be there, and how many of them are wrong, missing or too many.
    fn check(&self) -> Result<(u64, u64), String> {
        let (mut bytes, mut wrong) = (0, 0);
        let mut buffer = Vec::new();
        for file in 0..self.files {
            let path = self.path(file);
            let length = self.length(file);
            // One more than it should have: a single read shows both ends.
            buffer.resize(length + 1, 0);
            let got = File::open(&path).and_then(|mut file| read_up_to(&mut file, &mut buffer));
            let got = got.map_err(|error| format!("{}: {error}", path.display()))?;
            wrong += self.content(file).wrong(&buffer[..got.min(length)]);
            wrong += got.abs_diff(length) as u64;
            bytes += length as u64;
        }
        Ok((bytes, wrong))
    }
}

/// Reads until `buffer` is one byte short of full or the file ends, and once more only where it is not clear which.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got + 1 < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            more => got += more,
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_and_what_was_changed_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().to_str().unwrap();
        let args = [folder, "5", "70", "3000"];
        let (line, well) = run(&args).unwrap();
        assert!(well, "{line}");
        assert!(line.starts_with("files=70 bytes=") && line.contains(" wrong=0 "), "{line}");

        let check = [folder, "5", "70", "3000", "--check"];
        let path = scratch.path().join("2/3");
        let whole = fs::read(&path).unwrap();
        let mut changed = whole.clone();
        changed[9] ^= 1;
        for (content, wrong) in [
            (changed, 1),
            (whole[1..].to_vec(), whole.len() as u64),
            ([whole.as_slice(), b"x"].concat(), 1),
            (whole[..whole.len() - 2].to_vec(), 2),
            (whole.clone(), 0),
        ] {
            fs::write(&path, &content).unwrap();
            let (line, well) = run(&check).unwrap();
            assert_eq!(well, wrong == 0, "{line}");
            let told = line.split(' ').find_map(|word| word.strip_prefix("wrong=")).unwrap();
            // Bytes that moved are right by chance here and there.
            let told: u64 = told.parse().unwrap();
            assert!(told <= wrong && told * 10 >= wrong * 9, "{line}: {wrong}");
        }
        fs::remove_file(&path).unwrap();
        assert!(run(&check).is_err_and(|why| why.contains("/2/3: ")));
    }

    #[test]
    fn arguments_are_checked() {
        for args in [&[][..], &["a", "1", "1"], &["a", "1", "1", "1", "--chekc"]] {
            assert!(run(args).is_err_and(|why| why.contains("usage: ")), "{args:?}");
        }
        assert!(run(&["a", "1", "one", "1"]).is_err_and(|why| why.starts_with("FILES is")));
    }
}
