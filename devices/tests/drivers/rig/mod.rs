//! A guest's memory with two devices on it: one that is attacked, and a disk beside it that must go on.

pub(crate) mod kinds;
pub(crate) mod program;

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::dma::Pinning;
use devices::virtio::device::Device;
use devices::virtio::driver::{Buffer, Driver, Rings, write_descriptor};
use devices::virtio::interrupt::Interrupt;
use devices::virtio::thread::Attendance;
use guest_mm::addr::{Gfn, GfnRange, PageSize};
use guest_mm::entry::Marker;
use guest_mm::pool::BackingChoice;
use guest_mm::{FaultPolicy, Guest, GuestConfig, GuestMm, GuestView, Pinner};
use vm_memory::{Bytes, GuestAddress};

use kinds::Kind;

/// RAM, and where things lie in it.
pub(crate) const RAM: u64 = 16 << 20;
pub(crate) const VICTIM: u64 = 0x10_0000;
const NEIGHBOUR: u64 = 0x20_0000;
const FRAME: u64 = 0x30_0000;
pub(crate) const DATA: u64 = 0x40_0000;
pub(crate) const GUARD: u64 = 0x80_0000;
pub(crate) const MISSING: u64 = 0x90_0000;
/// RAM that nobody has touched.
pub(crate) const ABSENT: u64 = 0xa0_0000;
/// Descriptors of each queue that is brought up.
pub(crate) const SIZE: u16 = 16;

/// Status: the device needs a reset.
pub(crate) const NEEDS_RESET: u32 = 0x40;

pub(crate) struct Rig {
    pub(crate) victim: Driver<Pinning>,
    pub(crate) device: Arc<Device<Pinning>>,
    neighbour: Driver<Pinning>,
    attendance: Attendance<Pinning>,
    pinner: Pinner,
    pub(crate) kind: &'static Kind,
    guest: Guest,
    _service: GuestMm,
    pub(crate) host: kinds::Host,
    _other: kinds::Host,
}

impl Rig {
    /// A fresh guest with a device of `kind`, brought up.
    pub(crate) fn new(kind: &'static Kind) -> Rig {
        let page = |at: u64| GfnRange::new(Gfn::new(at >> 12), 1).expect("a page");
        let service = GuestMm::new(BackingChoice::Auto, RAM, PageSize::Size4K).expect("a pool");
        let guest = service
            .add_guest(GuestConfig {
                ram: vec![GfnRange::new(Gfn::new(0), RAM >> 12).expect("RAM")],
                over: Vec::new(),
                on_missing: None,
                policy: FaultPolicy { pages: PageSize::Size4K },
                fault_threads: 1,
                on_stop: Box::new(|_| {}),
            })
            .expect("a guest");
        guest.mark(page(GUARD), Marker::Guard).expect("a guard page");
        guest.mark(page(MISSING), Marker::Missing).expect("a missing page");
        let pinner = guest.pinner();
        let dma = Pinning::new(pinner.clone());
        let (model, host) = (kind.make)(&dma, &guest);
        let device = |name, model| {
            let device = Device::new(name, dma.clone(), model, Interrupt::default());
            Arc::new(device.expect("a device"))
        };
        let device_ = device(kind.name, model);
        let (disk, other_host) = (kinds::BLK.make)(&dma, &guest);
        let neighbour = device("neighbour", disk);
        let attendance = Attendance::new(vec![Arc::clone(&device_), Arc::clone(&neighbour)]);
        let mut rig = Rig {
            victim: Driver::new(Arc::clone(&device_)),
            device: device_,
            neighbour: Driver::new(neighbour),
            attendance: attendance.expect("something to wait with"),
            pinner,
            kind,
            guest,
            _service: service,
            host,
            _other: other_host,
        };
        rig.neighbour.bring_up(NEIGHBOUR, SIZE);
        rig.bring_up();
        rig
    }

    pub(crate) fn memory(&self) -> GuestView<'_> {
        self.pinner.view()
    }

    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Clears the victim's rings and brings it up.
    pub(crate) fn bring_up(&mut self) {
        let zeroes = vec![0; (NEIGHBOUR - VICTIM) as usize];
        self.memory().write_slice(&zeroes, GuestAddress(VICTIM)).expect("rings");
        self.victim.bring_up(VICTIM, SIZE);
        self.turn();
    }

    /// Lets the device thread's work be done, as far as it can be.
    pub(crate) fn turn(&self) {
        for _ in 0..20 {
            self.attendance.turn(Some(Duration::ZERO)).expect("waiting works");
        }
    }

    /// The rings of the queue that is attacked.
    pub(crate) fn rings(&self) -> Rings {
        self.victim.rings(self.kind.queue)
    }

    /// Writes descriptor `index` of them.
    pub(crate) fn describe(&self, index: u16, buffer: Buffer, flags: u32, next: u16) {
        write_descriptor(&self.memory(), self.rings(), index, buffer, flags as u16, next);
    }

    /// Writes heads into the available ring from its start on, and its index.
    pub(crate) fn offer(&mut self, heads: &[u16], index: u16) {
        let rings = self.rings();
        for (at, head) in (0..).zip(heads) {
            self.put(rings.available + 4 + 2 * at, *head);
        }
        self.put(rings.available + 2, index);
        let queue = self.kind.queue;
        self.victim.kick(queue);
        self.turn();
    }

    pub(crate) fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory().write_obj(value, GuestAddress(at)).expect("RAM");
    }

    /// Whether the disk beside it still reads what it holds.
    pub(crate) fn neighbour_reads(&mut self) -> bool {
        let memory = self.pinner.view();
        memory.write_slice(&[0; 64], GuestAddress(FRAME)).expect("RAM");
        memory.write_obj(1_u64.to_le(), GuestAddress(FRAME + 8)).expect("RAM");
        memory.write_slice(&[0; 512], GuestAddress(FRAME + 0x1000)).expect("RAM");
        let request = [
            Buffer::readable(FRAME, 16),
            Buffer::writable(FRAME + 0x1000, 512),
            Buffer::writable(FRAME + 0x2000, 1),
        ];
        let Some(head) = self.neighbour.add(&memory, 0, &request) else { return false };
        self.neighbour.kick(0);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(10) {
            self.turn();
            if let Some(done) = self.neighbour.poll(&memory, 0) {
                let mut read = [0; 512];
                memory.read_slice(&mut read, GuestAddress(FRAME + 0x1000)).expect("RAM");
                return done == (head, 513) && read == kinds::SECTOR;
            }
        }
        false
    }

    /// What is left when the devices go: the books of the memory.
    pub(crate) fn end(self) -> String {
        let Rig { victim, device, neighbour, attendance, pinner, guest, .. } = self;
        device.retire();
        drop((victim, device, neighbour, attendance, pinner));
        match guest.close() {
            Ok(()) => "clean".into(),
            Err(error) => error.to_string(),
        }
    }
}
