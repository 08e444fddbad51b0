//! What can be typed of machines that go from one host to another.

use std::path::PathBuf;

use clap::Args;

use crate::config::Bytes;
use crate::control::{Packing, SendMode};

use super::RunArgs;

/// The files by which the two sides of a migration know each other.
#[derive(Clone, Debug, Args)]
pub struct ChannelArgs {
    /// Certificates of those whose signature is trusted (PEM). With these three, both sides prove who they are, by TLS 1.3.
    #[arg(long, value_name = "FILE", requires_all = ["tls_cert", "tls_key"])]
    pub tls_ca: Option<PathBuf>,

    /// This side's certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    pub tls_cert: Option<PathBuf>,

    /// The key of that certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    pub tls_key: Option<PathBuf>,

    /// The name that the sink's certificate must have; by default the host of its address.
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    pub tls_name: Option<String>,
}

/// `slat send`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
The sink runs first: \"slat receive\" with a config of the same machine. Disks and networks are not sent: both hosts must
reach the same. The guest stops for its state and, in a pre-copy, for its last pages; what has not come when it runs there
comes while it runs, and pages that it waits for come first.

If the connection breaks before the guest runs there, it goes on here. If it breaks later, the guest runs there on what it
has and waits where it must, and this machine keeps what is missing: send it again with --recover. Without TLS nobody proves
who he is, and everybody can read along: for one host, or a network that only friends are on.

Examples:
  slat receive vm.toml --listen unix:/run/there.sock          in one terminal
  slat run vm.toml --control /run/slat.sock                   in another
  slat send /run/slat.sock unix:/run/there.sock               in a third
  slat send /run/slat.sock tcp:there:4000 --mode post-copy --tls-ca ca.pem --tls-cert me.pem --tls-key me.key
  slat send /run/slat.sock --recover                          after a broken connection
  slat send /run/slat.sock tcp:there:4001 --recover           by another way: see \"slat receive --recover\"
  slat send /run/slat.sock --status --json
  slat send /run/slat.sock --take-back                        the sink is gone for good: the guest goes on here, from where
                                                              it stopped")]
pub struct SendArgs {
    /// The socket of the running machine.
    pub socket: PathBuf,

    /// Where the sink listens: unix:/PATH or tcp:HOST:PORT. With --recover, by default where it did.
    #[arg(value_name = "SINK", required_unless_present_any = ["status", "cancel", "take_back", "recover"])]
    pub to: Option<String>,

    /// When pages go.
    #[arg(long, value_enum, value_name = "MODE", default_value = "hybrid")]
    pub mode: SendMode,

    /// How pages in bulk are packed.
    #[arg(long, value_enum, value_name = "HOW", default_value = "none")]
    pub compress: Packing,

    /// Streams for pages in bulk.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub streams: u8,

    /// Most bytes a second in bulk, like 200M; pages that are waited for are not held up.
    #[arg(long, value_name = "BYTES")]
    pub rate: Option<Bytes>,

    /// Most rounds before the guest stops: 1 in the hybrid mode, 30 in a pre-copy, which fails if it needs more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,

    /// How long the guest may stand still for the last round of a pre-copy, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub downtime: u64,

    /// How the two sides know each other.
    #[command(flatten)]
    pub channel: ChannelArgs,

    /// Go on with a migration whose connection broke, perhaps by another way.
    #[arg(long)]
    pub recover: bool,

    /// Begin, and do not wait for the end.
    #[arg(long)]
    pub detach: bool,

    /// Only say how far it is.
    #[arg(long, conflicts_with_all = ["to", "cancel", "take_back"])]
    pub status: bool,

    /// Call it off: the guest goes on here, unless it was handed over.
    #[arg(long, conflicts_with_all = ["to", "take_back"])]
    pub cancel: bool,

    /// Let a guest go on here that was handed over to a sink which is gone for good.
    #[arg(long, conflicts_with = "to")]
    pub take_back: bool,

    /// Print JSON: a line for each look at the progress, the last one with the report.
    #[arg(long)]
    pub json: bool,
}

/// `slat receive`
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
The config describes the same machine as the source's: what the guest can see of it is compared, and a difference is named.
Its disks have to hold the same, so both name the same files or devices. The guest runs here as soon as its state has come,
its console on standard output; from then on this is \"slat run\". Standard error shows how it comes.

If the connection breaks while pages are missing, the guest goes on with what it has, and this machine goes on listening at
the same address for \"slat send --recover\". With --recover and its control socket in the place of the config it listens at
another from then on.

Examples:
  slat receive vm.toml --listen unix:/run/there.sock
  slat receive vm.toml --listen tcp:0.0.0.0:4000 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key --control /run/slat.sock
  slat receive vm.toml --listen unix:/run/there.sock --arrival arrival.json   how long each page was waited for, what came when
  slat receive /run/slat.sock --recover tcp:0.0.0.0:4001                      by another way, after a broken connection")]
pub struct ReceiveArgs {
    /// As of `slat run`.
    #[command(flatten)]
    pub run: RunArgs,

    /// Where to listen: unix:/PATH or tcp:HOST:PORT.
    #[arg(long, value_name = "ADDRESS", required_unless_present = "recover")]
    pub listen: Option<String>,

    /// Let a machine that runs wait here for the rest of its guest: unix:/PATH or tcp:HOST:PORT. CONFIG is its control socket.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["listen", "events", "arrival"])]
    pub recover: Option<String>,

    /// How the two sides know each other.
    #[command(flatten)]
    pub channel: ChannelArgs,

    /// Say on standard error how it comes, a line of JSON for each look at it.
    #[arg(long)]
    pub events: bool,

    /// Write how the guest came to this file, as JSON: a histogram of waits for a page, and what came when.
    #[arg(long, value_name = "FILE")]
    pub arrival: Option<PathBuf>,
}
