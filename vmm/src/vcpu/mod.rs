//! Virtual CPUs: a thread each, from its first instruction to the end of the machine.

mod ending;
mod gate;
mod kick;
mod lapic;
mod report;
mod ring0;
mod run;
mod threads;

pub use ending::Ending;
pub use ending::Stage;
pub use gate::{Gate, Task};
pub use kick::Kick;
pub use lapic::set_virtual_wire;
pub use report::CpuReport;
pub use run::{Devices, Progress, Vcpu};
pub use threads::Threads;
