//! The microVM monitor.

pub mod guests;
