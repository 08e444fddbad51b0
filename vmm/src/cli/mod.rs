//! The command line. [`main`] is all that the program is.
//!
//! Exit codes: 0 done, 1 the job failed, 2 bad usage or bad config. An error is one sentence on standard error.

mod args;
mod balloon;
mod bench;
mod check;
mod clone;
mod collapse;
mod map;
mod pause;
mod question;
mod race;
mod receive;
mod restore;
mod run;
mod send;
mod snapshot;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

pub use args::{
    BenchCommand, BenchOptions, ChannelArgs, CheckArgs, Cli, CloneArgs, CollapseArgs, Command,
    ConfigArgs, MapArgs, RaceCommand, RaceListArgs, RaceRunArgs, RaceShowArgs, ReceiveArgs,
    RestoreArgs, RunArgs, SendArgs, SnapshotArgs,
};

use crate::bench::{BARE_HELLO, BenchError, bare_hello};
use crate::config::{ConfigError, Host, MachineConfig};
use crate::control::Command as Request;
use crate::machine::{MachineError, ReceiveError};
use crate::race::LabError;
use map::MapFailure;
use question::AskFailure;

/// The job failed.
const FAILED: u8 = 1;

/// The usage or the config is bad.
const BAD_INPUT: u8 = 2;

/// Runs the program: reads the arguments, does what they say, reports errors.
pub fn main() -> ExitCode {
    let started = Instant::now();
    // The benchmark's baseline, before anything else that this program does.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == BARE_HELLO) {
        return match bare_hello() {
            Ok(verdict) => ExitCode::from(verdict),
            Err(error) => Failure::Bench(error).report(),
        };
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that has gone away is no reason to fail louder.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let done = match &cli.command {
        Command::Check(args) => check::run(args).map(|()| ExitCode::SUCCESS),
        Command::Bench(command) => bench::run(command).map(|()| ExitCode::SUCCESS),
        Command::Map(args) => map::run(args).map(|()| ExitCode::SUCCESS),
        Command::Collapse(args) => collapse::run(args).map(|()| ExitCode::SUCCESS),
        Command::Balloon(args) => balloon::run(args).map(|()| ExitCode::SUCCESS),
        Command::Pause(args) => pause::run(args, &Request::Pause).map(|()| ExitCode::SUCCESS),
        Command::Resume(args) => pause::run(args, &Request::Resume).map(|()| ExitCode::SUCCESS),
        Command::Snapshot(args) => snapshot::run(args).map(|()| ExitCode::SUCCESS),
        Command::Restore(args) => restore::run(args, started),
        Command::Race(command) => race::run(command),
        Command::Clone(args) => clone::run(args),
        Command::Send(args) => send::run(args),
        Command::Receive(args) => receive::run(args, started),
        Command::Run(args) => run::run(args, started),
    };
    match done {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Why a command did not succeed.
#[derive(Debug)]
enum Failure {
    /// The config is bad.
    Config(ConfigError),
    /// Nothing could be measured.
    Bench(BenchError),
    /// There is no memory map.
    Map(MapFailure),
    /// A machine did not do what it was asked to.
    Ask(AskFailure),
    /// A race could not be run.
    Race(LabError),
    /// The machine could not be built or run.
    Machine(MachineError),
    /// No guest has come.
    Receive(ReceiveError),
    /// The page channel cannot be had as it was asked for.
    Channel(String),
    /// It is not said where to.
    NoSink,
    /// The config of clones has no template.
    NoTemplate(PathBuf),
    /// A file could not be written.
    Write {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The output could not be written.
    Output(io::Error),
}

impl Failure {
    /// Says it in one line, and gives the exit code.
    fn report(&self) -> ExitCode {
        let (what, code) = match self {
            Failure::Config(error) => (error.to_string(), BAD_INPUT),
            Failure::Bench(error) => (error.to_string(), FAILED),
            Failure::Map(error) if error.is_bad_input() => (error.to_string(), BAD_INPUT),
            Failure::Map(error) => (error.to_string(), FAILED),
            Failure::Ask(error) if error.is_bad_input() => (error.to_string(), BAD_INPUT),
            Failure::Ask(error) => (error.to_string(), FAILED),
            Failure::Race(error) if error.is_bad_input() => (error.to_string(), BAD_INPUT),
            Failure::Race(error) => (error.to_string(), FAILED),
            Failure::Machine(error) if error.is_bad_input() => (error.to_string(), BAD_INPUT),
            Failure::Machine(error) => (error.to_string(), FAILED),
            Failure::Receive(ReceiveError::Machine(error)) if error.is_bad_input() => {
                (error.to_string(), BAD_INPUT)
            }
            Failure::Receive(error) => (error.to_string(), FAILED),
            Failure::Channel(what) => (what.clone(), BAD_INPUT),
            Failure::NoSink => {
                let what = "say where the sink listens: unix:/PATH or tcp:HOST:PORT";
                (what.to_owned(), BAD_INPUT)
            }
            Failure::NoTemplate(config) => {
                let config = shown(config);
                let what = "memory.template is missing: clones lie over the file that it names";
                (format!("{config}: {what}"), BAD_INPUT)
            }
            Failure::Write { path, source } => {
                (format!("{} cannot be written: {source}", shown(path)), FAILED)
            }
            // `slat check … | head`: the reader has what it wanted.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Failure::Output(error) => {
                (format!("standard output cannot be written: {error}"), FAILED)
            }
        };
        // Not `eprintln`, which panics where standard error is closed.
        let _ = writeln!(io::stderr(), "error: {what}");
        ExitCode::from(code)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Config(error)
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        Failure::Bench(error)
    }
}

impl From<MapFailure> for Failure {
    fn from(error: MapFailure) -> Self {
        Failure::Map(error)
    }
}

impl From<AskFailure> for Failure {
    fn from(error: AskFailure) -> Self {
        Failure::Ask(error)
    }
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Self {
        Failure::Race(error)
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        Failure::Machine(error)
    }
}

impl ConfigArgs {
    /// The machine that these arguments describe, on this host.
    ///
    /// # Errors
    /// As [`MachineConfig::load`].
    pub fn load(&self) -> Result<MachineConfig, ConfigError> {
        MachineConfig::load(&self.config, &self.overrides, Host::of_this_cpu())
    }
}

/// Writes a command's whole output at once.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Writes a whole file or none: beside it first, then in its place. What is no regular file, like `/dev/stdout`, is written
/// where it is.
fn write_whole(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    let failed = |source| Failure::Write { path: path.to_owned(), source };
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return fs::write(path, contents).map_err(failed);
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    fs::write(&beside, contents).and_then(|()| fs::rename(&beside, path)).map_err(|source| {
        // What is left of a disk that is full, say.
        let _ = fs::remove_file(&beside);
        failed(source)
    })
}

/// `path` on one line.
fn shown(path: &Path) -> String {
    path.display().to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
