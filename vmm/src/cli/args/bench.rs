//! The arguments of `slat bench`.

use clap::{Args, Subcommand};

/// `slat bench`
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// What a page fault of the guest costs, and how fast memory is populated.
    Fault(BenchOptions),
    /// How long `hello` takes from exec to its first byte, and what the monitor keeps in memory.
    Boot(BenchOptions),
    /// What it costs a device to pin guest memory, beside the least that it can cost and other ways to do it.
    Pin(BenchOptions),
    /// What it costs to make a block of 4 KiB pages one huge page, beside what the kernel takes for it.
    Collapse(BenchOptions),
    /// What it costs to pin each request's pages: a disk beside one whose memory is pinned for good, and one that pins nothing.
    Dma(BenchOptions),
    /// What a machine over a template costs: its start, a store to a page of the template, its memory.
    Clone(BenchOptions),
    /// What it costs to find pages of the same bytes, to merge them, and to part them again.
    Share(BenchOptions),
    /// What a migration by post-copy costs the guest and how long it takes, beside bare loops and, where it is installed, QEMU.
    Postcopy(BenchOptions),
    /// What it takes to go on lazily from a snapshot: the start, and the pages that are needed first.
    Restore(BenchOptions),
    /// What a program keeps of the processor in the guest that configs/get-debian.sh fetches, beside the same program outside.
    Ring3(BenchOptions),
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
