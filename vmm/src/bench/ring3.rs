//! What a program keeps of the processor in the ring 3 of Debian's guest, beside the same program outside.
//!
//! Where the processor has VMX or SVM below KVM, ring 3 has all of it but what interrupts take. Where it has not, the
//! kernel's tick is interpreted, some hundred times a second, and that is time which the program misses.
#![allow(unsafe_code, reason = "asks for the CPU time of children")]

use std::fs;
use std::io::{Read, Write};
use std::mem::zeroed;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::boot::Running;
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
/// What is compressed, in MiB, and how often: the difference of the two is free of the program's start.
const MIB: u32 = 8;
const FEW: u32 = 3;
const MANY: u32 = 43;

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
        let (inside, outside) = (speed(|rounds| guest.compress(rounds))?, speed(outside)?);
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

/// MiB in a second of the clock, as the program has measured it, and of CPU time.
struct Speed {
    by_clock: f64,
    by_cpu: f64,
}

/// One run: the median of its rounds, and the CPU time that all of it took.
struct Run {
    median: Duration,
    cpu: Duration,
}

fn speed(mut run: impl FnMut(u32) -> Result<Run, BenchError>) -> Result<Speed, BenchError> {
    let (few, many) = (run(FEW)?, run(MANY)?);
    let cpu = many.cpu.saturating_sub(few.cpu).as_secs_f64() / f64::from(MANY - FEW);
    let mib = f64::from(MIB);
    Ok(Speed { by_clock: mib / many.median.as_secs_f64(), by_cpu: mib / cpu.max(1e-9) })
}

/// The program outside.
fn outside(rounds: u32) -> Result<Run, BenchError> {
    let before = cpu_of_children();
    let args = [MIB, rounds].map(|number| number.to_string());
    let output = Command::new(TOOL).arg("compress").args(args).output()?;
    let cpu = cpu_of_children().saturating_sub(before);
    Ok(Run { median: told(&String::from_utf8_lossy(&output.stdout))?, cpu })
}

/// `median_ns=` of what the program says.
fn told(text: &str) -> Result<Duration, BenchError> {
    let line = text.lines().rev().find(|line| line.starts_with("compress: "));
    let word =
        line.and_then(|line| line.split(' ').find_map(|word| word.strip_prefix("median_ns=")));
    let median = word.and_then(|number| number.parse().ok()).map(Duration::from_nanos);
    median.ok_or_else(|| BenchError::Guest(format!("`compress` says no median_ns: {text:?}")))
}

/// The CPU time of all children that were waited for.
fn cpu_of_children() -> Duration {
    // SAFETY: all zeroes is an `rusage`, which lives during the call; nothing else is asked of it.
    let usage = unsafe {
        let mut usage: libc::rusage = zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Debian's guest, at its prompt, on a copy of its disk.
struct Guest {
    running: Running,
    keys: ChildStdin,
    console: Receiver<Vec<u8>>,
    /// What came and has not been looked at.
    text: String,
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
        let (Some(keys), Some(mut out)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(BenchError::Guest("it has no console".into()));
        };
        let (sender, console) = channel();
        // It ends with the child's output.
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut chunk) {
                if sender.send(chunk[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let running = Running(child);
        let (text, schedule) = (String::new(), PathBuf::new());
        let mut guest = Guest { running, keys, console, text, schedule, _disk: disk };
        guest.wait_for(PROMPT, START)?;
        guest.schedule = schedule_of(&guest.running.0)?;
        Ok(guest)
    }

    /// What the console says up to `end`.
    fn wait_for(&mut self, end: &str, limit: Duration) -> Result<String, BenchError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.text.find(end) {
                let rest = self.text.split_off(at + end.len());
                return Ok(std::mem::replace(&mut self.text, rest));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.console.recv_timeout(left) {
                Ok(chunk) => self.text.push_str(&String::from_utf8_lossy(&chunk)),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(BenchError::Guest(format!("no {end:?} came within {limit:?}")));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(BenchError::Guest(format!("it ended before {end:?}")));
                }
            }
        }
    }

    fn compress(&mut self, rounds: u32) -> Result<Run, BenchError> {
        let before = self.cpu()?;
        self.keys.write_all(format!("compress {MIB} {rounds}\r").as_bytes())?;
        let said = self.wait_for(PROMPT, COMMAND)?;
        Ok(Run { median: told(&said)?, cpu: self.cpu()?.saturating_sub(before) })
    }

    /// The CPU time of the vCPU's thread so far.
    fn cpu(&self) -> Result<Duration, BenchError> {
        let text = fs::read_to_string(&self.schedule)?;
        let first = text.split(' ').next().and_then(|number| number.parse().ok());
        first.map(Duration::from_nanos).ok_or_else(|| {
            BenchError::Guest(format!("{} has no CPU time", self.schedule.display()))
        })
    }

    fn end(mut self) -> Result<(), BenchError> {
        self.keys.write_all(b"poweroff\r")?;
        // What it says until its output ends is of no interest.
        while self.console.recv_timeout(COMMAND).is_ok() {}
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
    fn the_start_of_the_program_counts_nowhere() {
        let run = |rounds: u32| {
            let cpu = Duration::from_millis(700 + 20 * u64::from(rounds));
            Ok(Run { median: Duration::from_millis(40), cpu })
        };
        let speed = speed(run).unwrap();
        assert!((speed.by_clock - 200.0).abs() < 1e-6 && (speed.by_cpu - 400.0).abs() < 1e-6);
    }
}
