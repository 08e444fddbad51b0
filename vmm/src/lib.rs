//! The microVM monitor.

pub mod bench;
pub mod boot;
pub mod cli;
pub mod config;
pub mod control;
pub mod guests;
pub mod kvm;
pub mod machine;
pub mod map;
pub mod ram;
pub mod vcpu;
