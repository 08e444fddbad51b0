//! More CPUs: started with INIT-SIPI-SIPI, one at a time, then all at work on one closure.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use crate::boot_params::{Boot, Range};
use crate::cmdline::BadValue;
use crate::mp_table::MAX_CPUS;
use crate::{exit, mp_table, tsc};

/// Bytes of stack for each.
pub const STACK_SIZE: usize = 16 << 10;

/// Local APIC in xAPIC mode, as reset leaves it (SDM vol. 3, 12.4.1).
const APIC: u64 = 0xfee0_0000;
const APIC_ID: u64 = 0x20;
const APIC_VERSION: u64 = 0x30;
const SPURIOUS: u64 = 0xf0;
/// Software enable, and the vector that reset leaves. Interrupts stay off, so it is never used.
const SPURIOUS_ENABLE: u32 = 1 << 8 | 0xff;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
/// Delivery mode INIT, level asserted.
const ICR_INIT: u32 = 0x4500;
/// Delivery mode start-up, level asserted; the vector is the page number of the code.
const ICR_STARTUP: u32 = 0x4600;
const ICR_PENDING: u32 = 1 << 12;

/// Cycles to wait for a started CPU before the second SIPI, and then before giving up: at any frequency from 1 to 5 GHz,
/// about 10 ms and 1 s or more.
const PATIENCE: [u64; 2] = [50_000_000, 5_000_000_000];

/// What `entry.S` gives to the CPU that is being started.
#[repr(C)]
struct ApBoot {
    rip: AtomicU64,
    cs: AtomicU64,
    rflags: AtomicU64,
    rsp: AtomicU64,
    ss: AtomicU64,
    tr: AtomicU64,
    index: AtomicU64,
}

unsafe extern "C" {
    safe static ap_boot: ApBoot;
    static trampoline: u8;
    static trampoline_end: u8;
    static stacks: u8;
}

/// CPUs that came up besides the first.
static STARTED: AtomicU32 = AtomicU32::new(0);
/// CPUs besides the first that have done their work.
static FINISHED: AtomicU32 = AtomicU32::new(0);
/// The work: a closure, and the function that calls it.
static CLOSURE: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static CALL: AtomicUsize = AtomicUsize::new(0);

/// Why a CPU is missing.
#[derive(Debug)]
pub enum StartError {
    /// Nothing answers where the local APIC should be.
    NoApic,
    /// No page of RAM below 1 MiB is left for the trampoline.
    NoLowPage,
    /// The CPU with this APIC ID did not come up.
    Silent(u8),
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            StartError::NoApic => {
                write!(f, "no local APIC at {APIC:#x}: other CPUs cannot be started")
            }
            StartError::NoLowPage => {
                write!(f, "no free page of RAM below 1 MiB for the CPUs' first instructions")
            }
            StartError::Silent(id) => write!(f, "the CPU with APIC ID {id} did not start"),
        }
    }
}

/// How many CPUs the monitor says there are: the key `cpus`, else one.
pub fn count(boot: &Boot) -> Result<usize, BadValue<'static>> {
    boot.cmdline().number_in("cpus", 1, MAX_CPUS as u64, 1).map(|n| n as usize)
}

/// Runs `work(index)` on `cpus` CPUs at once, the caller being CPU 0, and returns when all have finished. Called once.
///
/// APIC IDs are those of the MP table if there is one, else 0, 1, 2...
pub fn run<F: Fn(usize) + Sync>(boot: &Boot, cpus: usize, work: &F) -> Result<(), StartError> {
    CLOSURE.store((work as *const F).cast_mut().cast(), Ordering::Relaxed);
    CALL.store(call::<F> as *const () as usize, Ordering::Relaxed);
    if cpus > 1 {
        start_others(boot, cpus)?;
    }
    work(0);
    // Acquire pairs with the release in `ap_start`: what the others wrote is seen, and none is inside `work` any more,
    // which is what lets it be a borrow.
    while FINISHED.load(Ordering::Acquire) != cpus as u32 - 1 {
        core::hint::spin_loop();
    }
    Ok(())
}

fn call<F: Fn(usize) + Sync>(closure: *const (), index: usize) {
    // SAFETY: `run` stores a `&F` beside this `call::<F>`, and does not return while a CPU is in here.
    unsafe { (*closure.cast::<F>())(index) }
}

/// First Rust code of another CPU, at CPL 3 on a stack of its own.
pub(crate) extern "C" fn ap_start(index: usize) -> ! {
    // Release pairs with the acquire in `start`: `ap_boot` has been read and may be written for the next CPU.
    STARTED.fetch_add(1, Ordering::Release);
    // SAFETY: `run` stored a `fn(*const (), usize)` here before it started this CPU.
    let call: fn(*const (), usize) = unsafe { core::mem::transmute(CALL.load(Ordering::Relaxed)) };
    call(CLOSURE.load(Ordering::Relaxed), index);
    FINISHED.fetch_add(1, Ordering::Release);
    exit::halt()
}

fn start_others(boot: &Boot, cpus: usize) -> Result<(), StartError> {
    // An address that nothing answers reads as all ones.
    if apic_read(APIC_VERSION) == u32::MAX {
        return Err(StartError::NoApic);
    }
    // Reset leaves it software-disabled (SDM vol. 3, 12.4.7.1), and not every monitor sends the IPIs of such an APIC.
    apic_write(SPURIOUS, SPURIOUS_ENABLE);
    let page = place_trampoline(boot).ok_or(StartError::NoLowPage)?;
    let me = (apic_read(APIC_ID) >> 24) as u8;
    let table = mp_table::find();
    let listed = table.iter().flat_map(|t| t.ids().iter().copied());
    // The numbers after those of the table serve when there is no table; a monitor whose table is short is told so by `smp`.
    let known = table.as_ref().map_or(0, |t| t.ids().len() as u8);
    let ids = listed.chain(known..=u8::MAX).filter(|&id| id != me);
    for (index, id) in (1..cpus).zip(ids) {
        start(index, id, page)?;
    }
    Ok(())
}

/// Copies the real-mode code to the highest free page of base memory.
fn place_trampoline(boot: &Boot) -> Option<u64> {
    let free = |page: &u64| {
        let range = Range { start: *page, end: page + 4096 };
        let in_ram = boot.ram().any(|ram| ram.start <= range.start && range.end <= ram.end);
        in_ram && !boot.occupied().iter().any(|o| o.overlaps(range))
    };
    // Not page 0: the BIOS data area tells where the MP table is. Not above 640 KiB: that is no base memory.
    let page = (1..0xa0).rev().map(|number| number << 12).find(free)?;
    let from = &raw const trampoline;
    // SAFETY: (1) the symbols bound one piece of data in `entry.S`, shorter than a page; (2) the page is RAM that e820 gives
    // away, holds nothing we still need, and lies below the image.
    unsafe {
        let len = (&raw const trampoline_end).offset_from_unsigned(from);
        core::ptr::copy_nonoverlapping(from, page as *mut u8, len);
    }
    Some(page)
}

/// SDM vol. 3, 10.4.4.1, without its fixed delays, which are for processors of the last century.
fn start(index: usize, id: u8, page: u64) -> Result<(), StartError> {
    let before = STARTED.load(Ordering::Relaxed);
    let stack_top = (&raw const stacks) as u64 + ((index + 1) * STACK_SIZE) as u64;
    ap_boot.rsp.store(stack_top - 8, Ordering::Relaxed);
    ap_boot.tr.store(0x30 + 16 * index as u64, Ordering::Relaxed);
    ap_boot.index.store(index as u64, Ordering::Relaxed);
    // Everything above, and the trampoline, before the IPI that lets the other CPU read it.
    fence(Ordering::SeqCst);
    send_ipi(id, ICR_INIT);
    for patience in PATIENCE {
        // A CPU that runs already ignores the second one.
        send_ipi(id, ICR_STARTUP | (page >> 12) as u32);
        let sent = tsc::now();
        while tsc::now() - sent < patience {
            if STARTED.load(Ordering::Acquire) != before {
                return Ok(());
            }
            core::hint::spin_loop();
        }
    }
    Err(StartError::Silent(id))
}

fn send_ipi(id: u8, command: u32) {
    apic_write(ICR_HIGH, u32::from(id) << 24);
    apic_write(ICR_LOW, command);
    while apic_read(ICR_LOW) & ICR_PENDING != 0 {
        core::hint::spin_loop();
    }
}

fn apic_read(register: u64) -> u32 {
    // SAFETY: mapped by the static tables; the registers read here have no side effects.
    unsafe { ((APIC + register) as *const u32).read_volatile() }
}

fn apic_write(register: u64, value: u32) {
    // SAFETY: as for `apic_read`; the ICR starts other CPUs, at code and on stacks made for them.
    unsafe { ((APIC + register) as *mut u32).write_volatile(value) }
}

/// Where all CPUs meet, again and again.
pub struct Barrier {
    cpus: u32,
    arrived: AtomicU32,
    round: AtomicU32,
}

impl Barrier {
    /// For `cpus` CPUs.
    pub fn new(cpus: usize) -> Barrier {
        Barrier { cpus: cpus as u32, arrived: AtomicU32::new(0), round: AtomicU32::new(0) }
    }

    /// Returns on every CPU once every CPU is here.
    pub fn wait(&self) {
        let round = self.round.load(Ordering::Relaxed);
        // AcqRel: the last to arrive has seen what all the others did, and passes it on with the release below.
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.cpus {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            return;
        }
        while self.round.load(Ordering::Acquire) == round {
            core::hint::spin_loop();
        }
    }
}
