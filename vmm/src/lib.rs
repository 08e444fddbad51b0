//! The microVM monitor.

pub mod config;
