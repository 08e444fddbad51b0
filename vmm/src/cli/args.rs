//! What can be typed. The help texts are part of the interface: they teach by example.

mod bench;
mod migrate;
mod saved;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Bytes;
use crate::race::{Drive, Mode};

pub use bench::{BenchCommand, BenchOptions};
pub use migrate::{ChannelArgs, ReceiveArgs, SendArgs};
pub use saved::{RestoreArgs, SnapshotArgs};

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
    /// Start many microVMs over one template, and say what each of them and all together took.
    Clone(CloneArgs),
    /// Measure, against a baseline in the same run.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Check a config and show the machine that it describes; nothing is created.
    Check(CheckArgs),
    /// Show a machine's memory by block, while it runs or after.
    Map(MapArgs),
    /// Make huge pages out of small ones in a running machine, or see what its collapser does.
    Collapse(CollapseArgs),
    /// Ask a running guest for memory, or see how much it has given.
    Balloon(BalloonArgs),
    /// Let a running machine come to rest: no vCPU in its guest, no request under way, no memory pinned.
    Pause(SocketArgs),
    /// Let a machine go on that was paused.
    Resume(SocketArgs),
    /// Send a running machine to another host, its guest running on.
    Send(SendArgs),
    /// Build a machine for a guest that another host sends, and run it from there on.
    Receive(ReceiveArgs),
    /// Save a running machine in a folder; it goes on.
    Snapshot(SnapshotArgs),
    /// Run a machine from where it was saved.
    Restore(RestoreArgs),
    /// See the races that the memory service was built against happen.
    #[command(subcommand)]
    Race(RaceCommand),
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

    /// Say at the end where the vCPUs' time went, by exit and by address: on standard error, and in the JSON report.
    #[arg(long)]
    pub profile: bool,

    /// Say nothing but what the guest says, and errors.
    #[arg(long, short)]
    pub quiet: bool,

    /// Write the memory map at the end of the run to this file: JSON for `slat map`, or a picture if its name ends in .svg.
    #[arg(long, value_name = "FILE")]
    pub memory_map: Option<PathBuf>,

    /// Answer `slat map` and `slat collapse` at this socket while the machine runs: short for --set control.socket=PATH.
    #[arg(long, value_name = "PATH")]
    pub control: Option<String>,
}

/// `slat clone`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
A template is a file of raw memory, as large as the guest's RAM or larger. Its pages are loaded once, when the first clone
touches them, and are shared by all clones in one process; a page that a clone writes to becomes its own: 4 KiB. So a clone
costs what it writes. The config says which template: memory.template = \"file\".

The clones are built one after the other and run side by side; what they say is kept (--json has it), and the table comes
when the last has ended. One that fails is shown with its last line. The exit code is the highest of the clones'.

Without memory.pool, the pool has room for the template and for all that every clone can write; it takes memory only as it
is used. Private pages that do not lie in order cost a mapping each, of which a process has vm.max_map_count.

Examples:
  head -c 64M /dev/urandom > template.img
  slat clone configs/template.toml --set memory.template=template.img
  slat clone configs/template.toml --count 50 --set memory.template=template.img --set boot.cmdline=write=1024
  slat clone vm.toml --count 8 --json | jq '.after.pss_bytes - .before.pss_bytes'")]
pub struct CloneArgs {
    /// The config.
    #[command(flatten)]
    pub config: ConfigArgs,

    /// How many machines, 1 to 1000.
    #[arg(long, short = 'n', value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `slat map`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
A character is a block of 2 MiB, a row 128 MiB; of large guests, several blocks are a character. Colours are for terminals,
and not where NO_COLOR is set.

Examples:
  slat run configs/touch.toml --control /run/slat.sock
  slat map /run/slat.sock                   that machine, while it runs
  slat map vm.toml --json                   the running machine of a config that sets control.socket
  slat run configs/touch.toml --memory-map map.json
  slat map map.json --svg map.svg           a picture of a machine that has ended")]
pub struct MapArgs {
    /// The socket of a running machine, a config that names one, or a memory map that a run wrote.
    #[arg(value_name = "SOCKET|CONFIG|FILE")]
    pub source: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,

    /// Write a picture to this file, and no text.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `slat collapse`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
A block is 2 MiB of RAM. One that the guest touched by 4 KiB pages can become one huge page, which the CPU translates
faster: in place where its pages lie in order, else by a copy. The table [collapse] of a config says what may be done, and
whether a thread of the machine, the collapser, does it all the time.

Examples:
  slat run configs/collapse.toml --control /run/slat.sock
  slat collapse /run/slat.sock              what the collapser did so far, and why not more
  slat collapse /run/slat.sock --pause      no collapses while something is measured
  slat collapse /run/slat.sock --resume
  slat collapse /run/slat.sock --now        all RAM at once; works without a collapser, too
  slat map /run/slat.sock                   what each block is now")]
pub struct CollapseArgs {
    /// The socket of a running machine.
    pub socket: PathBuf,

    /// Let the collapser rest; a block that it is at work on is done first.
    #[arg(long, conflicts_with_all = ["resume", "now"])]
    pub pause: bool,

    /// Let the collapser go on.
    #[arg(long, conflicts_with = "now")]
    pub resume: bool,

    /// Collapse all RAM now, and say what became of it.
    #[arg(long)]
    pub now: bool,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `slat balloon`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
A balloon is a device that the guest gives pages to, and takes them back from: what is in it leaves the pool. The guest is
asked for SIZE in all; it gives what it can spare, by and by. A machine has one if its config has a table [balloon.NAME].

Examples:
  slat run configs/balloon.toml --control /run/slat.sock
  slat balloon /run/slat.sock 64M           ask the guest for 64 MiB
  slat balloon /run/slat.sock               how much it has given so far
  slat balloon /run/slat.sock 0             give all of it back
  slat map /run/slat.sock --json | jq .totals.bytes.returned")]
pub struct BalloonArgs {
    /// The socket of a running machine.
    pub socket: PathBuf,

    /// What the balloon is to hold: at most the machine's RAM, in pages of 4 KiB.
    pub size: Option<Bytes>,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `slat pause` and `slat resume`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Devices finish what they have begun and take nothing new. One that does not come to rest in time is named with its oldest
request, and the machine goes on. With --json, `pause` also prints each device's state, with its version.

Examples:
  slat run configs/blk.toml --control /run/slat.sock
  slat pause /run/slat.sock
  slat resume /run/slat.sock")]
pub struct SocketArgs {
    /// The socket of a running machine.
    pub socket: PathBuf,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `slat race`
#[derive(Clone, Debug, Subcommand)]
pub enum RaceCommand {
    /// List the races, and the variants that leave one step out.
    List(RaceListArgs),
    /// Show a race's protocol and the schedules of its replays.
    Show(RaceShowArgs),
    /// Run a race: with the protocol that ships, or with a variant to see what its step is good for.
    Run(RaceRunArgs),
}

/// `slat race list`
#[derive(Clone, Debug, Args)]
pub struct RaceListArgs {
    /// Print one JSON array instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `slat race show`
#[derive(Clone, Debug, Args)]
pub struct RaceShowArgs {
    /// The race.
    pub name: String,
}

/// `slat race run`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
The exit code is 0 when what was expected came of it: the damage of the variant, or none without one.

Examples:
  slat race run pin-vs-collapse                               the schedules of all its variants, on the protocol that ships
  slat race run pin-vs-collapse --variant pin-without-pde     a DMA write is lost, step by step
  slat race run pin-vs-collapse --variant pin-without-pde --times 100
  slat race run pin-vs-collapse --variant pin-without-pde --mode storm
  slat race run pin-vs-collapse --guest --seconds 60          a KVM guest checks every word
  slat race run pin-vs-collapse --guest --drive disk          by requests to virtio disks
  slat race run continue-vs-zap --variant install-after-unlock --mode model")]
pub struct RaceRunArgs {
    /// The race.
    pub name: String,

    /// Leave out the step that this variant leaves out.
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,

    /// Step by step, at random, or by the model checker; replay by default.
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: Option<Mode>,

    /// How long a storm may blow.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,

    /// Replay so many times, and count.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub times: Option<u32>,

    /// A storm in which a KVM guest is witness, where the race has one.
    #[arg(long)]
    pub guest: bool,

    /// The devices of that storm.
    #[arg(long, value_enum, value_name = "DRIVE", default_value = "pins", requires = "guest")]
    pub drive: Drive,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn set_may_be_repeated_and_stands_anywhere() {
        let Ok(Cli { command: Command::Run(args) }) = Cli::try_parse_from([
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

    #[test]
    fn a_collapse_needs_a_socket_and_does_one_thing() {
        let parse = |args: &[&str]| {
            Cli::try_parse_from(["slat", "collapse"].iter().chain(args)).map(|cli| cli.command)
        };
        let Ok(Command::Collapse(args)) = parse(&["s", "--pause", "--json"]) else {
            panic!("`collapse` did not parse");
        };
        assert_eq!((args.socket, args.pause, args.now, args.json), ("s".into(), true, false, true));
        for bad in [
            &[][..],
            &["a", "b"],
            &["s", "--pause", "--resume"],
            &["s", "--pause", "--now"],
            &["s", "--resume", "--now"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_map_needs_a_source_and_a_socket_a_path() {
        let parse =
            |args: &[&str]| Cli::try_parse_from(["slat"].iter().chain(args)).map(|cli| cli.command);
        let Ok(Command::Map(args)) = parse(&["map", "s", "--json", "--svg", "x.svg"]) else {
            panic!("`map` did not parse");
        };
        assert_eq!((args.source, args.json, args.svg), ("s".into(), true, Some("x.svg".into())));
        let Ok(Command::Run(args)) = parse(&["run", "x.toml", "--control", "s"]) else {
            panic!("`run` did not parse");
        };
        assert_eq!(args.control.as_deref(), Some("s"));
        for bad in
            [&["map"][..], &["map", "a", "b"], &["map", "a", "--svg"], &["run", "x", "--control"]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
