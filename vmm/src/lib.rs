//! The microVM monitor.
