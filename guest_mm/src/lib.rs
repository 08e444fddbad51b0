//! The guest memory service: every page of guest-physical memory behind second-stage tables of its own.
//!
//! ```text
//! F5   service  audit  stats  map  vm_memory        the face, and whether its books are right
//!      postcopy                                     the page channel: pages that go from one host to another
//! F4   mirrors                                      windows that a table is mirrored into: uffd, fake
//!      pin  place  dedup  lift                      claims of devices; pages that arrive, are the same, or are sent
//! F3   fault  collapse  share  unmap  protect       the operations; they do not know each other
//!      split  mark  copy  dirty
//! F2   table  image  mirror  wait  space            the radix tree, what RAM lies over, what keeps a window in step, who
//!                                                   waits for pages, one guest
//! F1   pool                                         frames, who owns and who pins them, how their bytes are reached
//! F0   addr  entry  prot  geometry  sync  tally     words and numbers; threads that work by themselves
//!      protocol  background  schedule  notes
//! ```
//!
//! A [`GuestMm`] has a pool and any number of guests. [`Service::add_guest`] makes a [`Guest`] of some RAM, all of it untouched;
//! [`Guest::windows`] says where that RAM is in this process, for KVM's memory slots. From then on each access that the window
//! does not translate is served by a fault thread: a zeroed page, a block or a GiB, as [`FaultPolicy`] has it. What cannot be
//! served stops the guest through [`GuestConfig::on_stop`], with the address and the reason.
//!
//! A device pins what it uses: [`Guest::pin`] for a range, [`Guest::pin_batch`] for many. While a pin is held its frames stay where
//! they are, and are nobody else's though the guest should lose them. [`Guest::collapse`] makes blocks of small pages, and
//! [`Guest::start_collapser`] a thread that looks for them. [`Guest::give_back`] is for a balloon: memory goes to the host.
//!
//! The table is the truth; the window is a cache of it, and may hold less but never more. The protocols that keep it so are
//! written at the top of the modules that run them, and are model-checked.
//!
//! `docs/architecture.md` shows the rooms and the lives of a fault, a pin and a collapse, `docs/protocols.md` the races and their rules,
//! `docs/promises.md` what is promised and which test keeps it, `docs/decisions/` why it is so.
//!
//! # Known holes
//! * What vCPUs write is noted by the hypervisor, and not here.
//! * A pinned range whose frames lie in several runs allocates a list of them; a batch that was made large enough does not.
//! * A write through a slice of a pin that was taken for reading is not noticed.
//! * A window withholds writes only: the right to execute is kept in the tables and not enforced.
//! * Pages that are unmapped stay in the pool. Only what the guest itself gives back goes to the host.

// The models use a part of it.
#![cfg_attr(loom, allow(dead_code))]

// F0
pub mod addr;
#[cfg(not(loom))]
mod background;
pub mod entry;
pub mod geometry;
pub mod notes;
pub mod prot;
pub mod protocol;
#[cfg(not(loom))]
mod schedule;
mod sync;
mod tally;
// F1
pub mod pool;
// F2
pub mod image;
pub mod mirror;
mod space;
pub use space::{Answer, FaultPolicy, Sharing};
pub mod table;
pub mod wait;
// F3
pub mod collapse;
#[cfg(not(loom))]
pub mod copy;
#[cfg(not(loom))]
mod dirty;
pub mod fault;
#[cfg(not(loom))]
pub mod lift;
pub mod mark;
pub mod protect;
pub mod share;
pub mod split;
pub mod unmap;
// on top of them
#[cfg(not(loom))]
pub mod dedup;
pub mod pin;
pub mod place;
// F4
pub mod mirrors;
// F5
#[cfg(not(loom))]
pub mod audit;
#[cfg(not(loom))]
pub mod map;
pub mod postcopy;
#[cfg(not(loom))]
pub mod service;
#[cfg(not(loom))]
pub mod stats;
#[cfg(not(loom))]
pub mod vm_memory;
#[cfg(not(loom))]
pub use collapse::CollapserConfig;
#[cfg(not(loom))]
pub use dedup::DedupConfig;
#[cfg(not(loom))]
pub use service::{Guest, GuestConfig, GuestMm, ImageRam, Pinner, Reclaimer, Service};
#[cfg(not(loom))]
pub use vm_memory::GuestView;

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod property;
