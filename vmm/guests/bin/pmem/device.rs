//! The device by hand, because `virtio-drivers` knows none of its kind: its registers, and a queue of one request at a time.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use rt::boot_params::Range;
use rt::virtio::windows::Window;
use rt::{cmdline::Cmdline, paging};

/// `virt`.
const MAGIC: u32 = 0x7472_6976;
/// The number of its kind (virtio 1.2, 5.19.1).
const PMEM: u32 = 27;
/// Descriptors of the queue.
const SIZE: usize = 4;

// Registers, table 4.1.
const MAGIC_VALUE: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const QUEUE_DESCRIPTORS: u64 = 0x80;
const QUEUE_AVAILABLE: u64 = 0x90;
const QUEUE_USED: u64 = 0xa0;
const CONFIG: u64 = 0x100;

/// Status: acknowledge, driver, features agreed on, driver ready.
const AGREED: u32 = 1 | 2 | 8;
const READY: u32 = AGREED | 4;

#[repr(C, align(16))]
struct Rings {
    descriptors: [[AtomicU64; 2]; SIZE],
    available: [AtomicU16; 2 + SIZE],
    used: Used,
    request: AtomicU32,
    answer: AtomicU32,
}

#[repr(C, align(4))]
struct Used {
    head: [AtomicU16; 2],
    ring: [[AtomicU32; 2]; SIZE],
}

static RINGS: Rings = Rings {
    descriptors: [const { [const { AtomicU64::new(0) }; 2] }; SIZE],
    available: [const { AtomicU16::new(0) }; 2 + SIZE],
    used: Used {
        head: [const { AtomicU16::new(0) }; 2],
        ring: [const { [const { AtomicU32::new(0) }; 2] }; SIZE],
    },
    request: AtomicU32::new(0),
    answer: AtomicU32::new(0),
};

/// A device that is there. Only one is driven at a time: the queue is a static.
pub struct Pmem {
    base: u64,
    done: u16,
}

impl Pmem {
    /// The `index`th of the command line's, counted from 0.
    pub fn find(line: Cmdline<'static>, index: usize) -> Option<Pmem> {
        let windows = rt::virtio::windows::listed(line).filter_map(Result::ok);
        let devices = windows.map(|Window { range, .. }| {
            paging::reach(range);
            Pmem { base: range.start, done: 0 }
        });
        devices
            .filter(|device| {
                let registers = [MAGIC_VALUE, VERSION, DEVICE_ID].map(|at| device.read(at));
                registers == [MAGIC, 2, PMEM]
            })
            .nth(index)
    }

    fn read(&self, at: u64) -> u32 {
        let register = (self.base + at) as *const u32;
        // SAFETY: a register of a window of the command line, which is mapped, aligned to 4, and no memory of this program's;
        // if there is no device the access ends the guest.
        unsafe { register.read_volatile() }
    }

    fn write(&self, at: u64, value: u32) {
        let register = (self.base + at) as *mut u32;
        // SAFETY: as in `read`.
        unsafe { register.write_volatile(value) }
    }

    fn write_address<T>(&self, at: u64, of: &T) {
        let address = core::ptr::from_ref(of) as u64;
        self.write(at, address as u32);
        self.write(at + 4, (address >> 32) as u32);
    }

    /// Where the memory is.
    pub fn region(&self) -> Range {
        let word =
            |at| u64::from(self.read(CONFIG + at + 4)) << 32 | u64::from(self.read(CONFIG + at));
        Range { start: word(0), end: word(0).saturating_add(word(8)) }
    }

    /// Agrees with the device; whether it does.
    pub fn start(&self) -> bool {
        self.write(STATUS, 0);
        self.write(STATUS, AGREED & 3);
        // VIRTIO_F_VERSION_1, and nothing else.
        for (half, features) in [(0, 0), (1, 1)] {
            self.write(DRIVER_FEATURES_SEL, half);
            self.write(DRIVER_FEATURES, features);
        }
        self.write(STATUS, AGREED);
        if self.read(STATUS) & AGREED != AGREED {
            return false;
        }
        self.write(QUEUE_NUM, SIZE as u32);
        self.write_address(QUEUE_DESCRIPTORS, &RINGS.descriptors);
        self.write_address(QUEUE_AVAILABLE, &RINGS.available);
        self.write_address(QUEUE_USED, &RINGS.used);
        self.write(QUEUE_READY, 1);
        self.write(STATUS, READY);
        self.read(STATUS) == READY
    }

    /// Sends a request of type `kind` and waits for its answer.
    pub fn ask(&mut self, kind: u32) -> u32 {
        const NEXT: u64 = 1;
        const WRITE: u64 = 2;
        RINGS.request.store(kind, Ordering::Relaxed);
        RINGS.answer.store(u32::MAX, Ordering::Relaxed);
        let describe = |index: usize, word: &AtomicU32, flags: u64, next: u64| {
            let [address, rest] = &RINGS.descriptors[index];
            address.store(core::ptr::from_ref(word) as u64, Ordering::Relaxed);
            rest.store(4 | flags << 32 | next << 48, Ordering::Relaxed);
        };
        describe(0, &RINGS.request, NEXT, 1);
        describe(1, &RINGS.answer, WRITE, 0);
        // Every entry of the ring names the first descriptor. Release: what it leads to is there before.
        self.done = self.done.wrapping_add(1);
        RINGS.available[1].store(self.done, Ordering::Release);
        self.write(QUEUE_NOTIFY, 0);
        // Acquire: the answer is there then.
        while RINGS.used.head[1].load(Ordering::Acquire) != self.done {
            spin_loop();
        }
        RINGS.answer.load(Ordering::Relaxed)
    }
}
