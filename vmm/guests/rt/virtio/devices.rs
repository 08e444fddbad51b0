//! The devices that there are, to be taken one by one.

use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioError, MmioTransport, MmioVersion};
use virtio_drivers::transport::{DeviceType, DeviceTypeError, Transport};

use super::windows::{self, Window};
use crate::boot_params::{Boot, Range};
use crate::{heap, paging, println};

/// A device that no driver has yet.
pub type Device = MmioTransport<'static>;

/// The devices of the command line that nobody has taken. Those that are left are reset when this goes.
pub struct Devices {
    left: Vec<Device>,
}

/// The device that was asked for is not there.
pub struct Missing {
    kind: DeviceType,
    index: usize,
    there: Vec<DeviceType>,
}

impl Devices {
    /// Gives the heap its memory and looks at every device of the command line. What is none, or none that can be driven, is
    /// reported and left out. Called once, first of all.
    pub fn find(boot: &Boot) -> Devices {
        heap::init(boot);
        let (mut left, mut seen) = (Vec::new(), Vec::new());
        for window in windows::listed(boot.cmdline()) {
            match window {
                Err(bad) => println!("virtio: {bad}: ignored"),
                Ok(Window { range, .. }) if overlaps(boot, &seen, range) => {
                    println!("virtio: {:#x}: this is RAM, or another device: ignored", range.start);
                }
                Ok(Window { range, .. }) => {
                    seen.push(range);
                    match open(range) {
                        Ok(device) => left.push(device),
                        Err(error) => println!("virtio: {:#x}: {error}: ignored", range.start),
                    }
                }
            }
        }
        Devices { left }
    }

    /// The `index`th of those of `kind` that are left, counted from 0.
    pub fn take(&mut self, kind: DeviceType, index: usize) -> Result<Device, Missing> {
        let mut places = (0..self.left.len()).filter(|&i| self.left[i].device_type() == kind);
        match places.nth(index) {
            Some(place) => Ok(self.left.remove(place)),
            None => {
                let there = self.left.iter().map(Transport::device_type).collect();
                Err(Missing { kind, index, there })
            }
        }
    }
}

fn overlaps(boot: &Boot, seen: &[Range], range: Range) -> bool {
    boot.ram().any(|ram| ram.overlaps(range)) || seen.iter().any(|other| other.overlaps(range))
}

/// Why what lies in a window cannot be driven.
enum Useless {
    Legacy,
    Transport(MmioError),
}

fn open(range: Range) -> Result<Device, Useless> {
    paging::reach(range);
    let header = NonNull::new(range.start as *mut _);
    let header = header.ok_or(Useless::Transport(MmioError::MmioRegionTooSmall))?;
    // SAFETY: (1) mapped for good, as long as the window is, and aligned to 4 (`windows`); (2) neither RAM nor part of another
    // window, so that nothing else refers to it; if there is no device the reads say so, or end the guest.
    let device = unsafe { MmioTransport::new(header, range.len() as usize) };
    let device = device.map_err(Useless::Transport)?;
    match device.version() {
        MmioVersion::Modern => Ok(device),
        MmioVersion::Legacy => Err(Useless::Legacy),
    }
}

impl fmt::Display for Useless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Useless::Legacy => f.write_str("a device of version 1, which is legacy"),
            Useless::Transport(MmioError::InvalidDeviceID(DeviceTypeError::InvalidDeviceType(
                kind,
            ))) => write!(f, "a device of kind {kind}, which no driver knows"),
            Useless::Transport(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no virtio device {:?} number {}", self.kind, self.index)?;
        match self.there.split_first() {
            None => write!(f, ": the command line lists none"),
            Some((first, rest)) => {
                write!(f, ": there is {first:?}")?;
                rest.iter().try_for_each(|kind| write!(f, ", {kind:?}"))
            }
        }
    }
}
