//! The microVM monitor.

pub mod cli;
pub mod config;
