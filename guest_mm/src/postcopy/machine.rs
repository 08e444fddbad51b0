//! What a migration asks of the two machines: all that is not memory.

use crate::addr::GfnRange;

/// Why a machine did not do what it was asked for.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The machine at the source.
///
/// # Safety
/// After a [`stop`](Departing::stop) that succeeded, nobody writes to the guest's memory until [`go_on`](Departing::go_on) is
/// called: pages are sent from where they lie, in every [`Source::run`](super::source::Source::run) until the sink has them all.
/// Only the source calls `go_on`, or who has ended the last [`Source`](super::source::Source) of this guest.
#[allow(unsafe_code, reason = "who implements it promises what the compiler cannot see")]
pub unsafe trait Departing {
    /// What the sink has to be to take it, in whatever form the two monitors agree on.
    fn description(&self) -> Vec<u8>;

    /// Notes which pages are written from now on, by vCPUs and by devices.
    ///
    /// # Errors
    /// The hypervisor cannot.
    fn start_tracking(&mut self) -> Result<(), Failure>;

    /// Calls `see` for pages that were written, or lost, since this was last asked.
    ///
    /// # Errors
    /// The hypervisor does not say.
    fn take_dirty(&mut self, see: &mut dyn FnMut(GfnRange)) -> Result<(), Failure>;

    /// Notes nothing any more.
    fn stop_tracking(&mut self);

    /// Brings vCPUs and devices to rest: nobody uses the memory, and nothing is pinned. The machine's state, but for its memory.
    ///
    /// # Errors
    /// It goes on.
    fn stop(&mut self) -> Result<Vec<u8>, Failure>;

    /// Lets it go on after [`Departing::stop`]: it stays here.
    fn go_on(&mut self);
}

/// The machine at the sink.
pub trait Coming {
    /// Whether this machine can be the one that is described.
    ///
    /// # Errors
    /// Why it cannot. The source is told.
    fn accept(&mut self, description: &[u8]) -> Result<(), Failure>;

    /// Takes the state. Nothing runs yet; the memory may be used from now on, and waits where it has not come.
    ///
    /// # Errors
    /// It does not fit. The source is told, and goes on.
    fn prepare(&mut self, state: Vec<u8>) -> Result<(), Failure>;

    /// Lets it run.
    ///
    /// # Errors
    /// It cannot. The source keeps what it has.
    fn start(&mut self) -> Result<(), Failure>;
}
