//! Two of these monitors, and a guest that goes from one to the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::bench::BenchError;
use crate::bench::boot::Running;
use crate::bench::console::Console;
use crate::rig::told;

/// How the guest `churn` is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Churn {
    pub(super) ram_mib: u64,
    /// How much of it is changed; all, if nothing is said.
    pub(super) hot_mib: Option<u64>,
    /// How long, once it is filled.
    pub(super) seconds: u64,
}

/// What the guest says of its waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waits {
    pub(super) count: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// How a guest came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Came {
    pub(super) waits: Waits,
    /// From the request to send it until the source had no more to do.
    pub(super) total_s: f64,
    pub(super) downtime_ms: f64,
    /// From its start at the sink to its last page.
    pub(super) postcopy_s: f64,
    /// On the wire.
    pub(super) bytes: f64,
    /// Blocks in one piece.
    pub(super) huge_before: f64,
    pub(super) huge_after: f64,
    /// From its last page until they were in one piece again.
    pub(super) collapse_ms: f64,
}

/// What the guest says when its RAM is full.
pub(super) const FILLED: &str = "churn: filled";
/// How long it may take until it says so, or a machine until it listens.
pub(super) const START: Duration = Duration::from_secs(120);
/// How long the rest may take, beside the time that the guest is to run.
pub(super) const REST: Duration = Duration::from_secs(60);

impl Churn {
    /// The guest's command line.
    pub(super) fn cmdline(self) -> String {
        let hot = self.hot_mib.map(|mib| format!(" hot={mib}M")).unwrap_or_default();
        format!("seconds={}{hot}", self.seconds)
    }

    /// How long it may take to its last line.
    pub(super) fn limit(self) -> Duration {
        Duration::from_secs(self.seconds) + REST
    }
}

impl Waits {
    /// Of what the guest said last: no word may be wrong.
    pub(super) fn of(said: &str) -> Result<Waits, BenchError> {
        let field = |key| {
            let none = || BenchError::Guest(format!("`churn` says no {key}: {said:?}"));
            told(said, "churn: pages=", key).map(|number| number as f64).ok_or_else(none)
        };
        match field("wrong")? {
            0.0 => Ok(Waits {
                count: field("waits")?,
                p50_us: field("wait_p50_ns")? / 1e3,
                p99_us: field("p99")? / 1e3,
            }),
            wrong => Err(BenchError::Guest(format!("{wrong} of its words are wrong"))),
        }
    }
}

/// A folder for sockets and files, gone with this.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Result<Folder, BenchError> {
        let folder = std::env::temp_dir().join(format!("slat-bench-{name}-{}", std::process::id()));
        fs::create_dir(&folder)?;
        Ok(Folder(folder))
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Has a guest go from one machine to another while it churns.
pub(super) fn moved(churn: Churn) -> Result<Came, BenchError> {
    let program = std::env::current_exe()?;
    let folder = Folder::new("pair")?;
    let [config, here, there, listens, report] =
        ["churn.toml", "here.sock", "there.sock", "sink.sock", "report.json"]
            .map(|name| folder.file(name));
    let text = format!(
        "memory = {{ size = \"{}M\", pages = \"2m\" }}\nboot = {{ guest = \"churn\", cmdline = \"{}\" }}\n",
        churn.ram_mib,
        churn.cmdline()
    );
    fs::write(&config, text)?;
    let slat = |command: &str, control: &Path| {
        let mut slat = Command::new(&program);
        slat.args([command, "--quiet", "--control"]).arg(control).arg(&config);
        slat.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        slat
    };
    let address = format!("unix:{}", listens.display());
    let mut sink = slat("receive", &there);
    let mut sink = Running(sink.args(["--listen", &address, "--arrival"]).arg(&report).spawn()?);
    let mut told_there = Console::of(sink.0.stdout.take())?;
    listening(&mut sink.0, &listens)?;
    let mut source = Running(slat("run", &here).spawn()?);
    let mut told_here = Console::of(source.0.stdout.take())?;
    told_here.wait_for(FILLED, START)?;
    let map = said(Command::new(&program).arg("map").arg(&here).arg("--json"))?;
    let mut send = Command::new(&program);
    let send = send.arg("send").arg(&here).arg(&address);
    let sent = said(send.args(["--mode", "post-copy", "--json"]))?;
    told_there.wait_for("churn: pages=", churn.limit())?;
    let last = format!("churn: pages={}", told_there.wait_for("\n", REST)?);
    sink.0.wait()?;
    source.0.wait()?;
    let came: Value = parsed(&fs::read_to_string(&report)?)?;
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let (sent, totals) = (&sent["report"], &map["totals"]["bytes"]);
    let collapse = &came["collapse"];
    Ok(Came {
        waits: Waits::of(&last)?,
        total_s: number(&sent["progress"]["seconds"]),
        downtime_ms: number(&sent["downtime_ms"]),
        postcopy_s: number(&came["postcopy_ms"]) / 1e3,
        bytes: number(&came["progress"]["bytes"]),
        huge_before: number(&totals["huge"]) / f64::from(2 << 20),
        huge_after: ["already_huge", "promoted", "copied"]
            .iter()
            .map(|kind| number(&collapse[kind]))
            .sum(),
        collapse_ms: number(&came["collapse_ms"]),
    })
}

/// Waits until `program` listens at `socket`.
pub(super) fn listening(program: &mut Child, socket: &Path) -> Result<(), BenchError> {
    let deadline = Instant::now() + START;
    while !socket.exists() {
        if let Some(status) = program.try_wait()? {
            return Err(BenchError::Guest(format!("its monitor ended: {status}")));
        }
        if Instant::now() > deadline {
            return Err(BenchError::Guest("its monitor does not listen".into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// What a program says that succeeds: its last document.
fn said(command: &mut Command) -> Result<Value, BenchError> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(BenchError::Guest(format!("{command:?}: {text}{error}")));
    }
    // Progress is a line each; what is no line is one document.
    parsed(text.trim_end().lines().last().unwrap_or_default()).or_else(|_| parsed(&text))
}

fn parsed(text: &str) -> Result<Value, BenchError> {
    serde_json::from_str(text).map_err(|error| BenchError::Guest(format!("{error} in {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_last_line_is_read() {
        let line =
            "churn: pages=9 wrong=0 changes=7 waits=3 wait_p50_ns=40000 p90=1 p99=90000 max=1";
        let waits = Waits::of(line).unwrap();
        assert_eq!((waits.count, waits.p50_us, waits.p99_us), (3.0, 40.0, 90.0));
        assert!(Waits::of(&line.replace("wrong=0", "wrong=2")).is_err());
        assert!(Waits::of("churn: pages=9").is_err());
    }
}
