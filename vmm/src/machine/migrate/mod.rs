//! A machine that goes to another host, or comes from one.
//!
//! ```text
//!   departing.rs   what the page channel asks of a machine that goes; coming.rs, of one that comes
//!   sending.rs     a machine that runs is sent: the thread beside it, and what it tells who asks
//!   way.rs         what was asked for, as the channel wants it
//!   receiving.rs   a machine that begins empty, and runs once its guest has come; arriving.rs, what who asks it is told
//! ```

mod arriving;
mod coming;
mod departing;
mod receiving;
mod sending;
mod way;

pub(super) use arriving::Arriving;
pub use receiving::{Came, ReceiveError, Received, receive};
pub(super) use sending::Sending;
pub use way::security;
pub(super) use way::way;
