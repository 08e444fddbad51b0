//! The microVM monitor.

pub mod boot;
pub mod cli;
pub mod config;
pub mod kvm;
pub mod ram;
pub mod vcpu;
