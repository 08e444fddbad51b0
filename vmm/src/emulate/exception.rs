//! Exceptions and software interrupts that an instruction raises.

/// Vectors (SDM vol. 3A, table 6-1).
pub(super) const DIVIDE: u8 = 0;
pub(super) const DEBUG: u8 = 1;
pub(super) const BREAKPOINT: u8 = 3;
pub(super) const INVALID_OPCODE: u8 = 6;
pub(super) const DEVICE_NOT_AVAILABLE: u8 = 7;
pub(super) const STACK: u8 = 12;
pub(super) const GENERAL_PROTECTION: u8 = 13;
pub(super) const PAGE_FAULT: u8 = 14;
pub(super) const FLOATING_POINT: u8 = 16;

/// Error code of a page fault (SDM vol. 3A, 4.7).
pub(super) mod page_fault {
    /// The translation was there, and did not allow the access.
    pub(in crate::emulate) const PRESENT: u32 = 1 << 0;
    pub(in crate::emulate) const WRITE: u32 = 1 << 1;
    pub(in crate::emulate) const USER: u32 = 1 << 2;
    pub(in crate::emulate) const RESERVED: u32 = 1 << 3;
    pub(in crate::emulate) const FETCH: u32 = 1 << 4;
}

/// What an instruction does instead of what it was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    /// The vector.
    pub(crate) vector: u8,
    /// The error code, where the vector has one.
    pub(crate) code: Option<u32>,
    /// The linear address, for a page fault: what CR2 gets.
    pub(crate) address: Option<u64>,
    /// Where it leaves RIP.
    pub(crate) kind: Kind,
}

/// Where an exception leaves RIP (SDM vol. 3A, 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// At the instruction, of which nothing has been done.
    Fault,
    /// Behind it: `int3`, `int n`, `int1`. The gate's privilege level is checked.
    Trap,
}

impl Exception {
    pub(super) const fn fault(vector: u8) -> Exception {
        Exception { vector, code: None, address: None, kind: Kind::Fault }
    }

    pub(super) const fn trap(vector: u8) -> Exception {
        Exception { vector, code: None, address: None, kind: Kind::Trap }
    }

    /// The instruction is none here.
    pub(super) const fn invalid_opcode() -> Exception {
        Exception::fault(INVALID_OPCODE)
    }

    /// A general protection exception without a selector.
    pub(super) const fn protection() -> Exception {
        Exception { code: Some(0), ..Exception::fault(GENERAL_PROTECTION) }
    }

    /// A stack exception without a selector.
    pub(super) const fn stack() -> Exception {
        Exception { code: Some(0), ..Exception::fault(STACK) }
    }

    /// A page fault at `address`.
    pub(super) const fn page_fault(address: u64, code: u32) -> Exception {
        Exception { code: Some(code), address: Some(address), ..Exception::fault(PAGE_FAULT) }
    }
}
