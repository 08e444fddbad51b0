//! virtio devices (OASIS virtio 1.2).
//!
//! ```text
//! F3   balloon  blk  net  console  pmem  rng  vsock   the models, the same files in each:
//!                                                     mod.rs      the model        wire.rs   what the driver sees
//!                                                     host.rs     the host's side  state.rs  what is saved
//!                                                     tests.rs
//! F3   driver                                       a driver in this process, for tests and benchmarks
//! F2   mmio  thread                                 registers for vCPUs; threads that wait for kicks and files
//! F1   device                                       a model with its queues, status, lock
//! F0   model  queue  gate  interrupt  watch  rate   what a model is, and what it works with
//!      timer  state  backlog
//! ```

pub mod backlog;
pub mod balloon;
pub mod blk;
pub mod console;
pub mod device;
pub mod driver;
mod gate;
pub mod interrupt;
pub mod mmio;
pub mod model;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod rate;
pub mod rng;
pub mod state;
pub mod thread;
pub mod timer;
pub mod vsock;
pub mod watch;
