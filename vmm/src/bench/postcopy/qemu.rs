//! The same guest, and QEMU's post-copy.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::BenchError;
use crate::bench::boot::Running;
use crate::bench::console::Console;
use crate::guests;

use super::pair::{Churn, FILLED, Folder, REST, START, Waits, listening};
use super::qmp::Qmp;

const QEMU: &str = "qemu-system-x86_64";

/// How a guest came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Came {
    pub(super) waits: Waits,
    /// As QEMU has it, from its beginning to the last page.
    pub(super) total_s: f64,
}

/// Whether there is a QEMU.
pub(super) fn is_here() -> bool {
    let version = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// A machine of QEMU's.
struct Machine {
    _running: Running,
    console: Console,
    qmp: Qmp,
}

impl Machine {
    fn start(
        churn: Churn,
        khz: u32,
        kernel: &Path,
        socket: &Path,
        more: &[&str],
    ) -> Result<Machine, BenchError> {
        let qmp = format!("unix:{},server=on,wait=off", socket.display());
        let mut child = Command::new(QEMU)
            .args(["-machine", "pc", "-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio", "-m", &format!("{}M", churn.ram_mib)])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-qmp", &qmp])
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", &format!("{} tsc_khz={khz}", churn.cmdline())])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let console = Console::of(child.stdout.take())?;
        let mut running = Running(child);
        listening(&mut running.0, socket)?;
        let mut qmp = Qmp::connect(socket)?;
        let capabilities = ["postcopy-ram", "postcopy-preempt"]
            .map(|name| json!({ "capability": name, "state": true }));
        qmp.ask("migrate-set-capabilities", &json!({ "capabilities": capabilities }))?;
        Ok(Machine { _running: running, console, qmp })
    }
}

/// Has a guest go from one QEMU to another while it churns.
pub(super) fn moved(churn: Churn, khz: u32) -> Result<Came, BenchError> {
    let folder = Folder::new("qemu")?;
    let [kernel, here, there, way] =
        ["churn.elf", "here.sock", "there.sock", "way.sock"].map(|name| folder.file(name));
    let guest = guests::find("churn").expect("it is built in");
    fs::write(&kernel, guest.elf)?;
    let to = format!("unix:{}", way.display());
    let mut sink = Machine::start(churn, khz, &kernel, &there, &["-incoming", "defer"])?;
    sink.qmp.ask("migrate-incoming", &json!({ "uri": to }))?;
    let mut source = Machine::start(churn, khz, &kernel, &here, &[])?;
    source.console.wait_for(FILLED, START)?;
    // Else it keeps to 128 MiB/s.
    let unlimited = json!({ "max-bandwidth": 1_u64 << 40, "max-postcopy-bandwidth": 0 });
    source.qmp.ask("migrate-set-parameters", &unlimited)?;
    source.qmp.ask("migrate", &json!({ "uri": to }))?;
    let total_s = follow(&mut source.qmp)?;
    sink.console.wait_for("churn: pages=", churn.limit())?;
    let last = format!("churn: pages={}", sink.console.wait_for("\n", REST)?);
    Ok(Came { waits: Waits::of(&last)?, total_s })
}

/// Switches over as soon as that can be, and waits for the end; how long it took in all, in seconds.
fn follow(qmp: &mut Qmp) -> Result<f64, BenchError> {
    let deadline = Instant::now() + REST;
    let mut switched = false;
    loop {
        let told = qmp.ask("query-migrate", &json!({}))?;
        match told["status"].as_str().unwrap_or_default() {
            "completed" => {
                let total = told["total-time"].as_f64();
                return total.map(|ms| ms / 1e3).ok_or_else(|| trouble(&told));
            }
            "active" if !switched => {
                qmp.ask("migrate-start-postcopy", &json!({}))?;
                switched = true;
            }
            "failed" | "cancelled" | "postcopy-paused" => return Err(trouble(&told)),
            _ => {}
        }
        if Instant::now() > deadline {
            return Err(trouble(&told));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn trouble(told: &Value) -> BenchError {
    BenchError::Guest(format!("QEMU's migration does not end: {told}"))
}
