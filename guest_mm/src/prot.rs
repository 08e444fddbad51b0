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
    /// Read; a write is given a copy of the page, with [`Prot::Rw`].
    Rc,
    /// Read and execute; a write is given a copy of the page, with [`Prot::Rwx`].
    Rxc,
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
    /// The rights of RAM.
    pub const RAM: Prot = Prot::Rwx;

    /// Every combination.
    pub const ALL: [Prot; 6] = [Prot::R, Prot::Rx, Prot::Rw, Prot::Rwx, Prot::Rc, Prot::Rxc];

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
        matches!(self, Prot::Rx | Prot::Rwx | Prot::Rxc)
    }

    /// Whether a store is given a copy of the page to go to.
    pub const fn copies_on_write(self) -> bool {
        matches!(self, Prot::Rc | Prot::Rxc)
    }

    /// What is left of it for a page that others use too: the same, but that a store goes to a copy.
    #[must_use]
    pub const fn shared(self) -> Prot {
        match self {
            Prot::Rw => Prot::Rc,
            Prot::Rwx => Prot::Rxc,
            other => other,
        }
    }

    /// What a copy of a page is given that allowed this.
    #[must_use]
    pub const fn exclusive(self) -> Prot {
        match self {
            Prot::Rc => Prot::Rw,
            Prot::Rxc => Prot::Rwx,
            other => other,
        }
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
