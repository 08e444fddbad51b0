//! The microVM monitor: from a config file to a machine that runs, and to a report of how it ended.
//!
//! ```text
//! cli                      what can be typed, what is said, exit codes
//! bench                    figures beside a baseline of the same run
//! race                     the races that the memory service was built against, made to happen: replays, storms, models
//! machine  rig             a whole machine: built, run, taken down with its books checked; or just the vCPUs and a console
//! snapshot                 a machine in a folder
//! state                    all that a machine is beside its memory, as it is saved
//! vcpu                     a thread for each vCPU, and how a run ends
//! emulate                  instructions that KVM does not carry out, and ring 0 where no processor runs it
//! boot  kvm  guests        what is booted; the hypervisor; the bare-metal guests that come along
//! map  control             the memory map as text, JSON and picture; the socket of a running machine
//! config                   TOML with an origin for every value, and errors that name file, line and key
//! ```
//!
//! Imports point down, and modules of one line do not know each other. Memory is `guest_mm`'s, device models are `devices`'.
//! [`ram::Ram`] is all that a vCPU knows of its memory.
//!
//! `slat` is [`cli::main`] and nothing else; the library is there for tests and benchmarks.

pub mod bench;
pub mod boot;
pub mod cli;
pub mod config;
pub mod control;
pub mod emulate;
pub mod guests;
pub mod kvm;
pub mod machine;
pub mod map;
pub mod race;
pub mod ram;
pub mod rig;
pub mod snapshot;
pub mod state;
pub mod vcpu;
