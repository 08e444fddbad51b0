//! The built-in guests: bare-metal programs that come with the monitor, for its tests and benchmarks.
//!
//! They live in `vmm/guests/` (its README has the ABI) and are built by `build.rs`. A guest's verdict is the byte that it
//! writes to the debug-exit port, 0xf4; besides those of its own, every guest has the verdicts 2 (a command-line value that
//! it does not understand), 101 (an exception, reported on the console) and 102 (a panic, likewise).

/// A key of a guest's command line.
#[derive(Debug)]
pub struct Key {
    /// Before the `=`.
    pub name: &'static str,
    /// What may follow it, the default first.
    pub values: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

/// A guest program.
#[derive(Debug)]
pub struct Guest {
    /// What a config file calls it.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Its ELF64 image: to be loaded at its physical addresses and entered by the 64-bit Linux boot protocol.
    pub elf: &'static [u8],
    /// The keys that an operator may give. `cpus` and `tsc_khz`, which the monitor appends, are not among them.
    pub keys: &'static [Key],
}

/// Every built-in guest.
pub const ALL: [Guest; 4] = [
    Guest {
        name: "hello",
        summary: "says who it is and ends the way it is asked to",
        elf: include_bytes!(env!("SLAT_GUEST_HELLO")),
        keys: &[
            Key { name: "exit", values: "0..255", meaning: "the verdict" },
            Key {
                name: "then",
                values: "exit|halt|reset|triple|jump|echo|spin",
                meaning: "how to end: verdict, cli+hlt, i8042 reset, triple fault, jump to undefined bytes, echo the console \
                          until Ctrl-D and exit, loop for ever",
            },
            Key { name: "read", values: "ADDRESS", meaning: "read the byte there and print it" },
            Key {
                name: "write",
                values: "ADDRESS",
                meaning: "write 0x5a there, read it back and print it",
            },
        ],
    },
    Guest {
        name: "touch",
        summary: "walks all RAM: times the first touch of every page and checks what it wrote",
        elf: include_bytes!(env!("SLAT_GUEST_TOUCH")),
        keys: &[
            Key {
                name: "order",
                values: "seq|rev|random|stride",
                meaning: "of the pages; stride: neighbours in time lie 512 pages apart",
            },
            Key {
                name: "stride",
                values: "4096|BYTES",
                meaning: "distance of the pages that are touched",
            },
            Key { name: "limit", values: "BYTES", meaning: "walk so much RAM only" },
            Key { name: "passes", values: "1|N", meaning: "write (and verify) so many times" },
            Key {
                name: "fill",
                values: "word|page",
                meaning: "write one word of each page, or all 512",
            },
            Key {
                name: "first",
                values: "write|read",
                meaning: "the kind of access that first touches a page",
            },
            Key {
                name: "zero",
                values: "1|0",
                meaning: "check that what is written for the first time was zero",
            },
            Key { name: "verify", values: "1|0", meaning: "read everything back after each pass" },
            Key {
                name: "dma",
                values: "ADDRESS",
                meaning: "share limit= bytes from there on with devices until they say stop; see the guests' README",
            },
            Key { name: "slots", values: "4|N", meaning: "devices, with dma=" },
        ],
    },
    Guest {
        name: "smp",
        summary: "all CPUs touch the same pages at the same time, and every increment must be there at the end",
        elf: include_bytes!(env!("SLAT_GUEST_SMP")),
        keys: &[
            Key {
                name: "passes",
                values: "2|N",
                meaning: "times that every CPU touches every page",
            },
            Key { name: "limit", values: "BYTES", meaning: "use so much RAM only" },
            Key {
                name: "order",
                values: "mixed|same|own",
                meaning: "within a 2 MiB block: every CPU in the same order, in one of its own, or by turns",
            },
        ],
    },
    Guest {
        name: "clone",
        summary: "reads what a template filled its RAM with, writes pages of its own, and checks that all else stayed",
        elf: include_bytes!(env!("SLAT_GUEST_CLONE")),
        keys: &[
            Key { name: "write", values: "0|N", meaning: "pages to write to" },
            Key {
                name: "order",
                values: "seq|random",
                meaning: "write to neighbours, or to pages anywhere",
            },
            Key { name: "limit", values: "BYTES", meaning: "use so much RAM only" },
        ],
    },
];

/// The built-in guest called `name`.
pub fn find(name: &str) -> Option<&'static Guest> {
    static GUESTS: [Guest; 4] = ALL;
    GUESTS.iter().find(|guest| guest.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<const N: usize>(elf: &[u8], at: usize) -> [u8; N] {
        elf[at..at + N].try_into().unwrap()
    }

    #[test]
    fn guests_are_found_by_name() {
        for guest in &ALL {
            assert_eq!(find(guest.name).map(|found| found.elf.len()), Some(guest.elf.len()));
        }
        assert!(find("nobody").is_none());
    }

    #[test]
    fn images_are_small_static_elf64_at_one_mebibyte() {
        for guest in &ALL {
            let elf = guest.elf;
            assert_eq!(&elf[..5], b"\x7fELF\x02", "{}", guest.name);
            assert_eq!(u16::from_le_bytes(field(elf, 16)), 2, "{}: ET_EXEC", guest.name);
            assert!(elf.len() < 96 << 10, "{}: {} bytes", guest.name, elf.len());
            let headers = u64::from_le_bytes(field(elf, 32)) as usize;
            let count = usize::from(u16::from_le_bytes(field(elf, 56)));
            let first = (0..count)
                .map(|i| headers + 56 * i)
                .filter(|&at| u32::from_le_bytes(field(elf, at)) == 1)
                .map(|at| u64::from_le_bytes(field(elf, at + 24)))
                .min();
            assert_eq!(first, Some(0x10_0000), "{}: lowest load address", guest.name);
        }
    }
}
