//! Machines that are saved, and go on.

use std::path::PathBuf;

use clap::Args;

/// `slat snapshot`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
The guest stands still while its state and memory are written; it does not see that. What lies in the folder before is
replaced when all is written, by one rename: whatever goes wrong leaves it as it was, and the machine goes on.

With --track the monitor notes what the guest changes from then on, so that the next snapshot can be one of that alone:
--base names the one before. It needs those that it builds on, in their places.

Disks are not saved: a snapshot goes with its disks as they were when it was taken.

Examples:
  slat run vm.toml --control /run/slat.sock
  slat snapshot /run/slat.sock saved                    the guest goes on
  slat snapshot /run/slat.sock saved --stop             the machine ends, to go on later: slat restore saved
  slat snapshot /run/slat.sock monday --track
  slat snapshot /run/slat.sock tuesday --base monday    what has changed since monday")]
pub struct SnapshotArgs {
    /// The socket of a running machine.
    pub socket: PathBuf,

    /// The folder to make, or the snapshot to replace.
    pub folder: PathBuf,

    /// Write only what has changed since this snapshot: the last that the machine was saved in with --track or --base.
    #[arg(long, value_name = "FOLDER")]
    pub base: Option<PathBuf>,

    /// Note what changes from now on, for a snapshot that builds on this.
    #[arg(long)]
    pub track: bool,

    /// End the machine when it is saved.
    #[arg(long)]
    pub stop: bool,

    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `slat restore`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Console, exit code and reports are as with `slat run`. The config is the snapshot's; what the guest can see of it has to stay
as it was, and everything else can be set anew: disks in other places, sockets, the pool.

All that is read is checked against its checksums: without --lazy all memory before the guest runs, with it each page before
it is used. The first lazy run writes down what it needed first, and the next has that ready ahead of the guest.

With --count many machines go on side by side in one process, from the same moment. A page of the snapshot is read once and
shown to all of them; a page that one writes to becomes its own. What they say is kept, and the table comes when the last
has ended, as with `slat clone`.

Examples:
  slat restore saved
  slat restore saved --lazy --control /run/slat.sock
  slat restore saved --lazy --count 8
  slat restore saved --set disk.root.file=copy.img --json-report report.json")]
pub struct RestoreArgs {
    /// The snapshot.
    pub folder: PathBuf,

    /// Let the guest run at once, and read its memory as it is touched.
    #[arg(long)]
    pub lazy: bool,

    /// Run this many machines from it, 1 to 1000, over the same memory.
    #[arg(long, short = 'n', value_name = "N", requires = "lazy", conflicts_with_all = ["control", "json_report"],
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: Option<u32>,

    /// With --count: print one JSON object instead of text.
    #[arg(long, requires = "count")]
    pub json: bool,

    /// Set a key of the config for this run: see `slat run`.
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    pub overrides: Vec<String>,

    /// Write what the memory service did, its audit included, to this file.
    #[arg(long, value_name = "FILE")]
    pub json_report: Option<PathBuf>,

    /// Say nothing but what the guest says, and errors.
    #[arg(long, short)]
    pub quiet: bool,

    /// Answer `slat map`, `slat snapshot` and others at this socket while the machine runs: short for --set control.socket=PATH.
    #[arg(long, value_name = "PATH")]
    pub control: Option<String>,
}
