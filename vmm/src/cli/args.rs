//! What can be typed. The help texts are part of the interface: they teach by example.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A KVM microVM monitor on a guest memory service.
#[derive(Debug, Parser)]
#[command(
    name = "slat",
    version,
    arg_required_else_help = true,
    after_help = "\
Exit codes: 0 done, 1 the job failed, 2 bad usage or bad config."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the microVM that a config describes; its console is on standard output.
    Run(RunArgs),
    /// Measure, against a baseline in the same run.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Check a config and show the machine that it describes; nothing is created.
    Check(CheckArgs),
}

/// A config file and what is changed in it: what `check` and `run` share.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The config file; configs/README.md documents its keys.
    pub config: PathBuf,

    /// Set a key of the config for this run.
    ///
    /// The value goes without quotes, lists by commas or as TOML, and an empty value brings the default back. Paths start
    /// from the current folder. May be repeated; the last one wins.
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `slat check`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  slat check configs/quickstart.toml
  slat check configs/quickstart.toml --set memory.size=8G --set machine.vcpus=4
  slat check configs/debian.toml --json | jq .layout.ram")]
pub struct CheckArgs {
    /// The config.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `slat run`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
The guest's console is on standard output, everything else on standard error. The exit code is the guest's verdict.

Examples:
  slat run configs/quickstart.toml
  slat run configs/touch.toml --set memory.size=1G --set memory.pages=2m
  slat run configs/overcommit.toml --json-report report.json
  slat run configs/smp.toml --quiet --memory-map map.svg")]
pub struct RunArgs {
    /// The config.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// Write what the memory service did, its audit included, to this file.
    #[arg(long, value_name = "FILE")]
    pub json_report: Option<PathBuf>,

    /// Say nothing but what the guest says, and errors.
    #[arg(long, short)]
    pub quiet: bool,

    /// Write the memory map at the end of the run to this file.
    #[arg(long, value_name = "FILE")]
    pub memory_map: Option<PathBuf>,
}

/// `slat map`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  slat map configs/debian.toml              where RAM will lie
  slat map map.json --svg map.svg           a picture of what `slat run --memory-map` wrote
  slat map /run/slat.sock --json            a running machine")]
pub struct MapArgs {
    /// A config, a memory map that a run wrote, or the socket of a running machine.
    #[arg(value_name = "CONFIG|FILE|SOCKET")]
    pub source: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// Write a picture to this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `slat bench`
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// What a page fault of the guest costs, and how fast memory is populated.
    Fault(BenchOptions),
    /// How long `hello` takes from exec to its first byte, and what the monitor keeps in memory.
    Boot(BenchOptions),
}

/// What every benchmark takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Every figure comes with its baseline from the same run, and as a ratio.

Examples:
  slat bench fault
  slat bench fault --quick --json | jq '.rows[] | select(.holds | not)'")]
pub struct BenchOptions {
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// Fewer rounds: seconds instead of minutes, wider error bars.
    #[arg(long)]
    pub quick: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The commands whose arguments are ready before they are.
    #[derive(Debug, Parser)]
    enum All {
        Run(RunArgs),
        Map(MapArgs),
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
        All::command().debug_assert();
    }

    #[test]
    fn set_may_be_repeated_and_stands_anywhere() {
        let Ok(All::Run(args)) = All::try_parse_from([
            "slat",
            "run",
            "--set",
            "memory.size=1M",
            "x.toml",
            "-q",
            "--set",
            "boot.cmdline=a b",
        ]) else {
            panic!("`run` did not parse");
        };
        assert_eq!(args.config.overrides, ["memory.size=1M", "boot.cmdline=a b"]);
        assert_eq!(args.config.config, PathBuf::from("x.toml"));
        assert!(args.quiet);
    }
}
