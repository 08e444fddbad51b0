//! What is asked of a machine that is to go to another host, and what it answers.

use std::fmt::{self, Write};
use std::path::PathBuf;

use guest_mm::postcopy::report::{Phase, Progress, SourceReport};
use serde::{Deserialize, Serialize};

use super::collapse::one_line;

/// When pages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SendMode {
    /// All of them while the guest runs here, again and again; it stops for the last.
    PreCopy,
    /// All of them after the guest: it stops for its state alone, and waits for pages there.
    PostCopy,
    /// Once while it runs here, and what it wrote meanwhile after it.
    #[default]
    Hybrid,
}

/// How pages are packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// Not at all.
    #[default]
    None,
    /// Fast.
    Lz4,
    /// Small.
    Zstd,
}

/// The files by which the two sides know each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Credentials {
    /// Certificates of those whose signature is trusted.
    pub authority: PathBuf,
    /// This side's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The name in the sink's certificate, if it is not the host of its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_name: Option<String>,
}

/// Where a machine is to go, and how. Paths begin at the root.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SendRequest {
    /// `unix:/path` or `tcp:host:port`.
    pub to: String,
    /// When pages go.
    #[serde(default)]
    pub mode: SendMode,
    /// How they are packed.
    #[serde(default)]
    pub packing: Packing,
    /// Streams for pages in bulk.
    pub streams: u8,
    /// Most bytes a second in bulk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Most rounds before the guest stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
    /// How long it may stand still for the last round of a pre-copy, in milliseconds.
    pub downtime_ms: u64,
    /// Without these, nobody proves who he is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// It is to go on with what broke off.
    #[serde(default)]
    pub recover: bool,
}

/// Where a machine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendState {
    /// Here: nobody has sent it.
    #[default]
    Here,
    /// On its way.
    Going,
    /// At the sink, or about to run there; the connection is gone.
    HandedOver,
    /// At the sink, all of it.
    Gone,
    /// Here, again: it could not go.
    Stayed,
}

/// What is told of a machine that is sent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SendStatus {
    /// Where it is.
    pub state: SendState,
    /// Where it goes.
    pub to: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// What went wrong, in a sentence.
    pub trouble: Option<String>,
    /// What was done, when it is over.
    pub report: Option<SourceReport>,
}

impl SendStatus {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let to = one_line(self.to.as_deref().unwrap_or("nowhere"));
        match self.state {
            SendState::Here => write!(out, "it was not sent")?,
            SendState::Going => write!(out, "on its way to {to}: {}", moment(&self.progress))?,
            SendState::HandedOver => write!(
                out,
                "handed over to {to}, and the connection is gone: {}; send it again with --recover",
                moment(&self.progress)
            )?,
            SendState::Gone => write!(out, "gone to {to}")?,
            SendState::Stayed => write!(out, "it stays")?,
        }
        if let Some(trouble) = &self.trouble {
            write!(out, " ({})", one_line(trouble))?;
        }
        writeln!(out)?;
        let Some(report) = &self.report else { return Ok(()) };
        let row =
            |out: &mut String, what: &str, value: String| writeln!(out, "{value:>16}  {what}");
        let Progress { pages, bytes, requests, seconds, rounds, .. } = report.progress;
        row(out, "in all", format!("{seconds:.3} s"))?;
        row(out, "downtime", format!("{:.1} ms", report.downtime_ms))?;
        row(out, "pages sent, of which zeroes", format!("{pages}, {}", report.zero_pages))?;
        row(out, "on the wire", format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)))?;
        row(out, "rounds before it stopped", rounds.to_string())?;
        row(out, "pages missing when it ran there", report.missing_at_start.to_string())?;
        row(out, "of them asked for", requests.to_string())
    }
}

/// `progress` on one line.
pub fn moment(progress: &Progress) -> String {
    let Progress { phase, rounds, pages, bytes, left, requests, seconds } = *progress;
    let mib = |pages: u64| pages as f64 / 256.0;
    let rate = bytes as f64 / f64::from(1 << 20) / seconds.max(1e-3);
    let what = match phase {
        Phase::Connecting => "connecting".to_owned(),
        Phase::PreCopy => format!("pre-copy, round {rounds}"),
        Phase::SwitchOver => "switch-over".to_owned(),
        Phase::PostCopy => format!("post-copy, {requests} pages asked for"),
        Phase::Broken => "the connection is gone".to_owned(),
        Phase::Done => "done".to_owned(),
    };
    format!(
        "{what}: {:.1} MiB of memory done, {:.1} MiB left, {rate:.0} MiB/s, {seconds:.1} s",
        mib(pages),
        mib(left)
    )
}
