//! The page channel.
#[cfg(not(loom))]
mod plan;
mod requests;
