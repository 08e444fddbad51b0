//! A guest that was saved with all of its memory written, and goes on when a byte is typed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, IoSliceMut, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use crate::bench::BenchError;
use crate::bench::boot::Running;
use crate::rig::told;

/// Whether the file of memory is in the host's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    Warm,
    Cold,
}

/// What a run of it took, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// From exec to its first byte.
    pub(super) first_byte_ms: f64,
    /// The guest's time for its pages.
    pub(super) touch_ms: f64,
    /// From exec until it says so.
    pub(super) end_ms: f64,
}

/// A folder with the snapshot, and a config of `hello`; it goes away with this.
pub(super) struct Saved {
    folder: PathBuf,
    program: PathBuf,
}

impl Saved {
    /// A guest `touch` with 1 GiB and `cmdline`, saved where it waits.
    pub(super) fn new(cmdline: &str) -> Result<Saved, BenchError> {
        let name = format!("slat-bench-{}-restore", std::process::id());
        let saved =
            Saved { folder: std::env::temp_dir().join(name), program: std::env::current_exe()? };
        fs::create_dir(&saved.folder)?;
        saved.config("touch", &format!("{cmdline} passes=1"))?;
        saved.config("hello", "")?;
        let socket = saved.folder.join("socket");
        let mut run = Command::new(&saved.program);
        // Written a block at a time, and restored a page at a time.
        run.args(["run", "--quiet", "--set", "memory.pages=2m"]).arg(saved.path_of("touch"));
        run.arg("--control").arg(&socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running(run.spawn()?);
        let out = running.0.stdout.take().expect("it is piped");
        if !BufReader::new(out).lines().map_while(Result::ok).any(|line| line == "touch: waits") {
            return Err(BenchError::Guest("it ended before it could be saved".into()));
        }
        let mut save = Command::new(&saved.program);
        save.arg("snapshot").arg(&socket).arg(saved.snapshot()).arg("--stop");
        let done = save.stdout(Stdio::null()).status()?;
        running.0.wait()?;
        match done.success() {
            true => Ok(saved),
            false => Err(BenchError::Guest("it could not be saved".into())),
        }
    }

    fn config(&self, guest: &str, cmdline: &str) -> io::Result<()> {
        let text = format!(
            "memory.size = \"1G\"\nboot.guest = \"{guest}\"\nboot.cmdline = \"{cmdline}\"\n"
        );
        fs::write(self.path_of(guest), text)
    }

    fn path_of(&self, guest: &str) -> PathBuf {
        self.folder.join(format!("{guest}.toml"))
    }

    /// The config of `hello` with as much memory.
    pub(super) fn hello(&self) -> PathBuf {
        self.path_of("hello")
    }

    fn snapshot(&self) -> PathBuf {
        self.folder.join("saved")
    }

    /// Lets it go on lazily: with what the last time has taught, or as if for the first time.
    pub(super) fn lazily(&self, knows: bool, cache: Cache) -> Result<Run, BenchError> {
        let working_set = self.snapshot().join("working-set");
        if !knows
            && let Err(error) = fs::remove_file(&working_set)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error.into());
        }
        if knows && !working_set.exists() {
            return Err(BenchError::Guest("it has no working set to go on with".into()));
        }
        match cache {
            Cache::Warm => self.warm()?,
            Cache::Cold => self.cool()?,
        }
        self.go_on(&["--lazy"])
    }

    /// Lets it go on with all of its memory read.
    pub(super) fn eagerly(&self) -> Result<Run, BenchError> {
        self.go_on(&[])
    }

    fn go_on(&self, more: &[&str]) -> Result<Run, BenchError> {
        let mut command = Command::new(&self.program);
        command.arg("restore").arg(self.snapshot()).args(more);
        command.args(["--quiet", "--set", "memory.pages=4k"]);
        let begun = Instant::now();
        let ms = || begun.elapsed().as_secs_f64() * 1e3;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running(command.spawn()?);
        running.0.stdin.take().expect("it is piped").write_all(b"\n")?;
        let mut out = running.0.stdout.take().expect("it is piped");
        let mut first = [0];
        out.read_exact(&mut first)?;
        let first_byte_ms = ms();
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        let mut report = None;
        for line in lines {
            if line.starts_with("touch: again=") {
                report = Some((ms(), line));
            }
        }
        let verdict = running.0.wait()?;
        let figures = report.and_then(|(end_ms, line)| {
            let ns = told(&line, "touch: again=", "ns")?;
            Some(Run { first_byte_ms, touch_ms: ns as f64 / 1e6, end_ms })
        });
        match figures {
            Some(run) if verdict.success() => Ok(run),
            _ => Err(BenchError::Guest(format!("it did not go on as it was: {verdict}"))),
        }
    }

    fn memory(&self) -> PathBuf {
        self.snapshot().join("memory")
    }

    /// Reads all of the file.
    fn warm(&self) -> io::Result<()> {
        io::copy(&mut File::open(self.memory())?, &mut io::sink()).map(drop)
    }

    /// Has the host forget the file.
    fn cool(&self) -> io::Result<()> {
        fadvise(File::open(self.memory())?, 0, None, Advice::DontNeed).map_err(Into::into)
    }

    /// Whether the host forgets it: not where it lies in memory alone.
    pub(super) fn can_be_cold(&self) -> io::Result<bool> {
        self.cool()?;
        let (file, mut page) = (File::open(self.memory())?, [0; 4096]);
        let middle = file.metadata()?.len() / 2;
        let cached =
            preadv2(&file, &mut [IoSliceMut::new(&mut page)], middle, ReadWriteFlags::NOWAIT);
        // Here at the latest an error says what is wrong with it.
        file.read_exact_at(&mut page, middle)?;
        Ok(cached == Err(rustix::io::Errno::AGAIN))
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
