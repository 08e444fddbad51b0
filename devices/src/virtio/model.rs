//! What a device model is: the part behind the transport.

use std::any::Any;
use std::fmt;

use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use crate::dma::Dma;

use super::interrupt::{Interrupt, USED_BUFFER};
use super::queue::{Broken, Queue};
use super::watch::Watch;

/// A device's number (virtio 1.2, chapter 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceType(pub u32);

/// Whether a queue has been served to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is left is looked at again only if that is said"]
pub enum Progress {
    /// Nothing is left to do, or the model will be told when there is.
    Done,
    /// More is there; the model let others have their turn.
    More,
}

/// Chains of one queue that a model serves before other queues and devices have their turn: a storm of requests at one
/// device must not starve the others of its thread.
pub const TURN: u32 = 256;

/// A device model. Its methods run under its device's lock, on the device thread but where it is said otherwise.
/// `Any`, for [`super::device::Device::with`].
pub trait Model<D: Dma>: Any + fmt::Debug + Send {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// The features that it offers, beside those of every device.
    fn features(&self) -> u64;

    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads its configuration space from `offset` on; what is not there stays as it is, which is zeroes. On a vCPU's
    /// thread.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to it. On a vCPU's thread.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready, and has accepted `features`: now files may be watched. On a vCPU's thread.
    ///
    /// # Errors
    /// It cannot work like that.
    fn start(&mut self, features: u64, io: &mut Io<'_, '_, D>) -> Result<(), Broken>;

    /// The driver says that something is in queue `queue`. It may say so though nothing is.
    ///
    /// # Errors
    /// The device is broken until it is reset.
    fn kicked(&mut self, queue: u16, io: &mut Io<'_, '_, D>) -> Result<Progress, Broken>;

    /// A file that it watches is ready; or was, not long ago.
    ///
    /// # Errors
    /// As [`Model::kicked`].
    fn ready(&mut self, _token: u32, _io: &mut Io<'_, '_, D>) -> Result<(), Broken> {
        Ok(())
    }

    /// The requests that are under way, of which the oldest is told; `None` when nothing is pinned any more.
    fn in_flight(&self) -> Option<InFlight> {
        None
    }

    /// Takes no input from the host until [`Model::resume`]: the device rests. What is under way goes on. On any thread.
    fn pause(&mut self, _watch: &Watch) {}

    /// Goes on. On any thread.
    fn resume(&mut self, _watch: &Watch) {}

    /// Forgets the driver: watches nothing but what it needs to see requests end, and drops what is queued. Requests under
    /// way cannot be called back: they keep what they have pinned until they end, and tell nobody. On any thread.
    fn reset(&mut self, watch: &Watch);

    /// Lets requests go that have ended after [`Model::reset`]. On any thread.
    fn reap(&mut self) {}

    /// Its own state, for [`Model::restore`]: what the driver cannot see in the queues. At rest.
    fn save(&self) -> Saved;

    /// Becomes what `saved` says, in place of [`Model::start`]'s first state. [`Model::start`] follows if the driver was
    /// ready.
    ///
    /// # Errors
    /// A sentence: it is of another version, or not its own.
    fn restore(&mut self, saved: &Saved) -> Result<(), String>;

    /// What it did, by name.
    fn stats(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A model's state.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Saved {
    /// The version of `body`'s form, of each kind of device by itself.
    pub version: u16,
    /// The state.
    pub body: Value,
}

impl Saved {
    /// `state`, of the form `version`.
    pub fn new(version: u16, state: &impl serde::Serialize) -> Saved {
        let body = serde_json::to_value(state).expect("states are plain data");
        Saved { version, body }
    }

    /// The state, if it is of the form `version`.
    ///
    /// # Errors
    /// A sentence: it is of another.
    pub fn read<T: serde::de::DeserializeOwned>(&self, version: u16) -> Result<T, String> {
        if self.version != version {
            return Err(format!(
                "it has version {}, and this program reads {version}",
                self.version
            ));
        }
        serde_json::from_value(self.body.clone()).map_err(|error| error.to_string())
    }
}

/// Requests that are under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// How many.
    pub requests: usize,
    /// What the oldest is.
    pub oldest: String,
}

/// What a model works with during a burst.
#[derive(Debug)]
pub struct Io<'a, 'v, D: Dma> {
    /// To hold buffers for longer than the burst.
    pub dma: &'a D,
    /// Memory during the burst.
    pub memory: &'a D::View<'v>,
    /// The device's queues.
    pub queues: &'a mut [Queue],
    /// What the model waits for.
    pub watch: &'a Watch,
    pub(super) interrupt: &'a Interrupt,
    pub(super) kicks: &'a [EventFd],
}

impl<D: Dma> Io<'_, '_, D> {
    /// Tells the driver that queue `queue` has used buffers, if it wants to hear of it.
    ///
    /// # Errors
    /// The ring cannot be read, or the interrupt not be raised.
    pub fn signal(&mut self, queue: u16) -> Result<(), Broken> {
        if self.queues[usize::from(queue)].wants_interrupt(self.memory)? {
            let raised = self.interrupt.raise(USED_BUFFER);
            return raised
                .map_err(|error| Broken::Host(format!("the interrupt cannot be raised: {error}")));
        }
        Ok(())
    }

    /// Lets [`Model::kicked`] be called for queue `queue` when others have had their turn: what [`Progress::More`] is, where
    /// that cannot be said.
    pub fn again(&self, queue: u16) {
        // It is full: then it is signalled.
        let _ = self.kicks[usize::from(queue)].write(1);
    }
}
