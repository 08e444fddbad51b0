//! What an entry allows, and what is attempted.

use std::fmt;

/// What a leaf lets the guest do. Only combinations that the format can express everywhere: write
/// without read is an EPT misconfiguration (SDM vol. 3C, 29.3.3.1), execute-only an option of some CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Prot {
    /// Read.
    R,
    /// Read and execute.
    Rx,
    /// Read and write.
    Rw,
    /// Read, write and execute: what RAM is given.
    Rwx,
}

/// What was attempted on a guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// A load or an instruction fetch: a window cannot tell them apart.
    Read,
    /// A store.
    Write,
}

impl Prot {
    /// Every combination.
    pub const ALL: [Prot; 4] = [Prot::R, Prot::Rx, Prot::Rw, Prot::Rwx];

    /// Whether `access` is allowed.
    pub const fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.writable(),
        }
    }

    /// Whether stores are allowed.
    pub const fn writable(self) -> bool {
        matches!(self, Prot::Rw | Prot::Rwx)
    }

    /// Whether instruction fetches are allowed.
    pub const fn executable(self) -> bool {
        matches!(self, Prot::Rx | Prot::Rwx)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
        })
    }
}
