//! From exec to the guest's first byte, against the shortest program that makes the same calls to KVM; and
//! what the monitor itself keeps in memory.
#![allow(unsafe_code, reason = "the bare program hands its memory to KVM")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use crate::boot::{BootRequest, RamLayout, load};
use crate::guests;
use crate::kvm::{self, CpuPlan, Slot, Vm, failed};

use super::table::median;
use super::{BenchError, Goal, Rounds, Row, Table};

/// The argument that makes this program the baseline.
pub const BARE_HELLO: &str = "--bare-hello";
const RAM: u64 = 64 << 20;

/// The figures of `slat bench boot`.
///
/// # Errors
/// [`BenchError`]: this program cannot be started again, or says nothing.
pub fn boot(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let program = std::env::current_exe()?;
    let config = Config::new("hello", "")?;
    let mut table = Table::new("boot");
    let (mut served, mut bare) = (Vec::new(), Vec::new());
    // The first of each warms the page cache.
    for round in 0..=rounds.count() * 8 {
        if round % 8 == 0 {
            progress(&format!("start {round} of {}", rounds.count() * 8));
        }
        let figures = (
            first_byte(Command::new(&program).args(["run", "--quiet"]).arg(&config.0))?,
            first_byte(Command::new(&program).arg(BARE_HELLO))?,
        );
        if round > 0 {
            served.push(figures.0);
            bare.push(figures.1);
        }
    }
    table.rows.push(Row::against(
        "hello, from exec to its first byte",
        "ms",
        median(&mut served),
        "bare KVM program with the same calls",
        median(&mut bare),
        Goal::RatioAtMost(1.4),
    ));
    progress("resident memory");
    let resident = resident_mib(&program)?;
    let goal = Goal::AtMost(4.0);
    table.rows.push(Row::alone(
        "resident memory of the monitor itself, hello",
        "MiB",
        resident,
        goal,
    ));
    Ok(table)
}

/// Milliseconds from before the program starts to its first byte.
pub(super) fn first_byte(command: &mut Command) -> Result<f64, BenchError> {
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut byte = [0];
    let read = child.stdout.as_mut().map(|out| out.read(&mut byte));
    let took = start.elapsed();
    let said = matches!(read, Some(Ok(1)));
    // The rest goes nowhere, but is read, so that the guest ends as it would.
    if let Some(mut out) = child.stdout.take() {
        let _ = out.read_to_end(&mut Vec::new());
    }
    child.wait()?;
    if said {
        Ok(took.as_secs_f64() * 1e3)
    } else {
        Err(BenchError::Guest("it said nothing".into()))
    }
}

/// Memory of a running monitor: what is its own (anonymous) and its program's (file), without the pool
/// (shared) that is the guest's RAM. The tables and frame states are in it: they are not even taken off.
fn resident_mib(program: &Path) -> Result<f64, BenchError> {
    let config = Config::new("hello", "then=spin")?;
    let mut running = Running(
        Command::new(program)
            .args(["run", "--quiet"])
            .arg(&config.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut byte = [0];
    let out = running.0.stdout.as_mut();
    out.map(|out| out.read(&mut byte)).transpose()?;
    std::thread::sleep(Duration::from_millis(100));
    let status = fs::read_to_string(format!("/proc/{}/status", running.0.id()))?;
    let kib = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    match (kib("RssAnon"), kib("RssFile")) {
        (Some(own), Some(program)) => Ok((own + program) / 1024.0),
        _ => Err(BenchError::Guest("its status has no resident sizes".into())),
    }
}

/// A child that ends with this.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A config file that goes away with this.
struct Config(PathBuf);

impl Config {
    fn new(guest: &str, cmdline: &str) -> Result<Config, BenchError> {
        let name = format!("slat-bench-{}-{}.toml", std::process::id(), cmdline.len());
        let config = Config(std::env::temp_dir().join(name));
        let text = format!(
            "memory.size = {RAM}\nboot.guest = \"{guest}\"\nboot.cmdline = \"{cmdline}\"\n"
        );
        // Not where something is already, be it a link.
        File::create_new(&config.0)?.write_all(text.as_bytes())?;
        Ok(config)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The baseline: `hello` on anonymous memory, by as few calls as it takes. Returns the guest's verdict.
///
/// # Errors
/// What failed.
pub fn bare_hello() -> Result<u8, BenchError> {
    let kvm = kvm::open()?;
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping, placed by the kernel, and kept until the program ends.
    let memory = unsafe { mmap_anonymous(null_mut(), RAM as usize, prot, flags) }
        .map_err(std::io::Error::from)?;
    let memory = memory.cast::<u8>();
    // SAFETY: mapped for ever; no reference points into it while the guest runs.
    let vm = unsafe { Vm::new(&kvm, &[Slot { gpa: 0, hva: memory as u64, bytes: RAM }]) }?;
    let mut vcpu = vm.add_vcpu(0)?;
    let cpus = CpuPlan::new(&kvm, 1, &[], false)?;
    vcpu.set_cpuid2(&cpus.for_vcpu(0)).map_err(failed("KVM_SET_CPUID2"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))?;
    let cmdline = format!("cpus=1 tsc_khz={tsc_khz}");
    let guest =
        guests::find("hello").ok_or(BenchError::Guest("there is no guest `hello`".into()))?;
    let mut request = BootRequest::new(guest.elf, RamLayout::new(RAM)?);
    request.cmdline = &cmdline;
    let image = load(&request)?;
    image.for_each_page(|gpa, page| {
        // SAFETY: the loader keeps to RAM, which is mapped; the guest does not run yet.
        unsafe {
            std::ptr::copy_nonoverlapping(page.as_ptr(), memory.add(gpa.0 as usize), page.len());
        };
        Ok::<(), BenchError>(())
    })?;
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    image.entry.fill_sregs(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    vcpu.set_regs(&image.entry.regs()).map_err(failed("KVM_SET_REGS"))?;
    let mut console = std::io::stdout().lock();
    loop {
        match vcpu.run().map_err(failed("KVM_RUN"))? {
            VcpuExit::IoOut(0x3f8, data) => {
                console.write_all(data)?;
                console.flush()?;
            }
            VcpuExit::IoOut(0xf4, data) => return Ok(data[0]),
            VcpuExit::IoIn(_, data) => data.fill(0x60),
            VcpuExit::IoOut(..) => {}
            exit => return Err(BenchError::Guest(format!("{exit:?}"))),
        }
    }
}
