//! Drivers that no device should have to meet: those that break each rule, and drivers at random.

mod fuzz;
mod hostile;
mod rig;
