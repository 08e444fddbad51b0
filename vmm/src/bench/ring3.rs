//! What a program keeps of the processor in the ring 3 of Debian's guest, beside the same program outside.
//!
//! Where the processor has VMX or SVM below KVM, ring 3 has all of it but what interrupts take. Where it has not, the
//! kernel's tick is interpreted, some hundred times a second, and that is time which the program misses.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use super::boot::Running;
use super::console::Console;
use super::table::median;
use super::{BenchError, Goal, Rounds, Row, Table};

/// What configs/get-debian.sh makes, from the folder where `configs` is.
const CONFIG: &str = "configs/debian.toml";
const DISK: &str = "configs/debian/root.ext4";
const TOOL: &str = "configs/debian/guest-tool";

const PROMPT: &str = "guest# ";
/// How long the guest has for its start, and for a command.
const START: Duration = Duration::from_secs(600);
const COMMAND: Duration = Duration::from_secs(300);
/// How long a command has until it says something.
const FIRST_WORD: Duration = Duration::from_secs(60);
/// What is compressed, in MiB, and how often.
const MIB: u32 = 8;
const TIMES: u32 = 60;
/// What the program says when that begins, and when it has ended.
const BEGIN: &str = " rounds begin";
const END: &str = " rounds end";

/// The figures of `slat bench ring3`.
///
/// # Errors
/// [`BenchError`]: Debian was not fetched, or its guest does not come up.
pub fn ring3(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    for file in [CONFIG, DISK, TOOL] {
        if !Path::new(file).exists() {
            return Err(BenchError::NotFetched(file));
        }
    }
    progress("Debian's guest comes up");
    let mut guest = Guest::start()?;
    let mut figures: [Vec<f64>; 4] = Default::default();
    let mut ratios: [Vec<f64>; 2] = Default::default();
    let rounds = rounds.count();
    for round in 0..rounds {
        progress(&format!("turn {} of {rounds}", round + 1));
        let (inside, outside) = (guest.compress()?, outside()?);
        let turn = [inside.by_clock, outside.by_clock, inside.by_cpu, outside.by_cpu];
        figures.iter_mut().zip(turn).for_each(|(all, figure)| all.push(figure));
        ratios[0].push(inside.by_clock / outside.by_clock);
        ratios[1].push(inside.by_cpu / outside.by_cpu);
    }
    guest.end()?;
    let [clock, outside_clock, cpu, outside_cpu] = figures.map(|mut all| median(&mut all));
    let [clock_ratio, cpu_ratio] = ratios.map(|mut all| median(&mut all));
    let goal = Goal::RatioAtLeast(0.9);
    let mut table = Table::new("ring3");
    let row = |name: &str, unit, inside, outside, ratio| {
        Row::against(name, unit, inside, "the same program outside", outside, goal)
            .with_ratio(ratio, goal)
    };
    table.rows.push(row("compress in ring 3", "MiB/s", clock, outside_clock, clock_ratio));
    table.rows.push(row(
        "compress in ring 3, by the CPU time of the vCPU's thread",
        "MiB/s",
        cpu,
        outside_cpu,
        cpu_ratio,
    ));
    Ok(table)
}

/// MiB in a second of the clock, as the program has measured it, and of CPU time, as the host's kernel has.
struct Speed {
    by_clock: f64,
    by_cpu: f64,
}

impl Speed {
    /// Of what the program `said` at its end, and the CPU time of all its rounds.
    fn of(said: &str, cpu: Duration) -> Result<Speed, BenchError> {
        let mib = f64::from(MIB);
        let by_cpu = mib * f64::from(TIMES) / cpu.as_secs_f64().max(1e-9);
        Ok(Speed { by_clock: mib / told(said)?.as_secs_f64(), by_cpu })
    }
}

/// The program outside.
fn outside() -> Result<Speed, BenchError> {
    let args = [MIB, TIMES].map(|number| number.to_string());
    let mut child = Command::new(TOOL).arg("compress").args(args).stdout(Stdio::piped()).spawn()?;
    let schedule = PathBuf::from(format!("/proc/{}/schedstat", child.id()));
    let mut console = Console::of(child.stdout.take())?;
    let mut running = Running(child);
    let speed = follow(&mut console, &schedule, "best_mib_s=")?;
    running.0.wait()?;
    Ok(speed)
}

/// `median_ns=` of what the program says.
fn told(text: &str) -> Result<Duration, BenchError> {
    let line = text.lines().rev().find(|line| line.starts_with("compress: "));
    let word =
        line.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("median_ns=")));
    let median = word.and_then(|number| number.parse().ok()).map(Duration::from_nanos);
    median.ok_or_else(|| BenchError::Guest(format!("`compress` says no median_ns: {text:?}")))
}

/// The CPU time of a thread, from its `schedstat` (Linux Documentation/scheduler/sched-stats.rst).
fn cpu(schedule: &Path) -> Result<Duration, BenchError> {
    let text = fs::read_to_string(schedule)?;
    let first = text.split(' ').next().and_then(|number| number.parse().ok());
    let none = || BenchError::Guest(format!("{} has no CPU time", schedule.display()));
    first.map(Duration::from_nanos).ok_or_else(none)
}

/// Follows the program, which runs on the thread with this `schedule`, until it says `last`.
fn follow(console: &mut Console, schedule: &Path, last: &str) -> Result<Speed, BenchError> {
    console.wait_for(BEGIN, FIRST_WORD).map_err(|error| match error {
        BenchError::Guest(what) => {
            BenchError::Guest(format!("{what}; if it is an older one, run configs/get-debian.sh"))
        }
        other => other,
    })?;
    let before = cpu(schedule)?;
    console.wait_for(END, COMMAND)?;
    let after = cpu(schedule)?;
    Speed::of(&console.wait_for(last, COMMAND)?, after.saturating_sub(before))
}

/// Debian's guest, at its prompt, on a copy of its disk.
struct Guest {
    running: Running,
    keys: ChildStdin,
    console: Console,
    /// What the kernel says of the vCPU's thread.
    schedule: PathBuf,
    _disk: Copied,
}

impl Guest {
    fn start() -> Result<Guest, BenchError> {
        let disk = Copied::of(Path::new(DISK))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["run", "--quiet", CONFIG, "--set"])
            .arg(format!("disk.root.file={}", disk.0.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (keys, out) = (child.stdin.take(), child.stdout.take());
        let running = Running(child);
        let keys = keys.ok_or_else(|| BenchError::Guest("it has no console".into()))?;
        let mut console = Console::of(out)?;
        console.wait_for(PROMPT, START)?;
        let schedule = schedule_of(&running.0)?;
        Ok(Guest { running, keys, console, schedule, _disk: disk })
    }

    fn compress(&mut self) -> Result<Speed, BenchError> {
        self.keys.write_all(format!("compress {MIB} {TIMES}\r").as_bytes())?;
        follow(&mut self.console, &self.schedule, PROMPT)
    }

    fn end(mut self) -> Result<(), BenchError> {
        self.keys.write_all(b"poweroff\r")?;
        // What it says until its output ends is of no interest.
        self.console.drain(COMMAND);
        self.running.0.wait()?;
        Ok(())
    }
}

/// The file with the CPU time of the thread that runs the first vCPU.
fn schedule_of(monitor: &Child) -> Result<PathBuf, BenchError> {
    for thread in fs::read_dir(format!("/proc/{}/task", monitor.id()))? {
        let thread = thread?.path();
        if fs::read_to_string(thread.join("comm"))?.trim_end() == "vcpu0" {
            return Ok(thread.join("schedstat"));
        }
    }
    Err(BenchError::Guest("its monitor has no thread vcpu0".into()))
}

/// A copy of a file, gone with this.
struct Copied(PathBuf);

impl Copied {
    fn of(file: &Path) -> Result<Copied, BenchError> {
        let copy =
            Copied(std::env::temp_dir().join(format!("slat-bench-{}.disk", std::process::id())));
        // Not where something is already, be it a link.
        std::io::copy(&mut fs::File::open(file)?, &mut fs::File::create_new(&copy.0)?)?;
        Ok(copy)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_line_is_found_between_the_others() {
        let said = "compress 8 3\r\ncompress: bytes=8 wrong=0 median_ns=1500 best_ns=1\r\nguest# ";
        assert_eq!(told(said).unwrap(), Duration::from_nanos(1500));
        assert!(told("compress: bytes=8\nguest# ").is_err());
        assert!(told("sh: compress: not found").is_err());
    }

    #[test]
    fn speed_is_by_the_median_round_and_by_all_of_their_cpu_time() {
        let said = "compress: median_ns=40000000 best_ns=1";
        let speed = Speed::of(said, Duration::from_secs(4)).unwrap();
        assert!((speed.by_clock - 200.0).abs() < 1e-6 && (speed.by_cpu - 120.0).abs() < 1e-6);
    }
}
