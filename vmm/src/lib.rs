//! The microVM monitor.

pub mod boot;
