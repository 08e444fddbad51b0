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
pub const ALL: [Guest; 12] = [
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
    Guest {
        name: "churn",
        summary: "changes words of its RAM at random for a time, and times each change",
        elf: include_bytes!(env!("SLAT_GUEST_CHURN")),
        keys: &[
            Key { name: "seconds", values: "10|N", meaning: "how long, once all pages are filled" },
            Key { name: "hot", values: "BYTES", meaning: "change so many bytes' pages only" },
            Key {
                name: "wait_us",
                values: "15|N",
                meaning: "count the changes that take more microseconds than these",
            },
            Key { name: "limit", values: "BYTES", meaning: "use so much RAM only" },
        ],
    },
    Guest {
        name: "blk",
        summary: "writes patterns to a virtio disk with many requests in flight, reads them back, and checks every word",
        elf: include_bytes!(env!("SLAT_GUEST_BLK")),
        keys: &[
            Key {
                name: "blk.mode",
                values: "verify|read|write|check",
                meaning: "write and check; read whatever is there; only write; only check what such a write left",
            },
            Key {
                name: "blk.ops",
                values: "1024|N",
                meaning: "places to visit, in rounds over the disk",
            },
            Key { name: "blk.size", values: "4096|BYTES", meaning: "bytes of a request" },
            Key { name: "blk.depth", values: "8|1..16", meaning: "requests in flight" },
            Key { name: "blk.pattern", values: "seq|random", meaning: "order of the places" },
            Key { name: "blk.seconds", values: "0|N", meaning: "stop after so long; 0: never" },
            Key { name: "blk.salt", values: "0|N", meaning: "another number, other bytes" },
            Key { name: "blk.index", values: "0|N", meaning: "which disk" },
        ],
    },
    Guest {
        name: "net",
        summary: "over a virtio network device, asks for echoes, sends back what comes, or streams to another guest",
        elf: include_bytes!(env!("SLAT_GUEST_NET")),
        keys: &[
            Key { name: "net.ip", values: "10.0.0.2|ADDRESS", meaning: "its own address" },
            Key { name: "net.ping", values: "ADDRESS", meaning: "send echo requests there" },
            Key {
                name: "net.echo",
                values: "0|1",
                meaning: "send back echo requests and UDP, until net.count= or the datagram \"bye\"",
            },
            Key { name: "net.stream", values: "BYTES", meaning: "send so much to net.to=" },
            Key { name: "net.to", values: "ADDRESS", meaning: "a guest with net.sink=1" },
            Key { name: "net.sink", values: "0|1", meaning: "receive a stream and check it" },
            Key {
                name: "net.count",
                values: "4|N",
                meaning: "echo requests to send; to answer with net.echo=1, where the default is no end",
            },
            Key {
                name: "net.size",
                values: "56|1472|BYTES",
                meaning: "data of an echo; of a datagram",
            },
            Key { name: "net.port", values: "7777|PORT", meaning: "of UDP, on both sides" },
            Key {
                name: "net.seconds",
                values: "0|N",
                meaning: "stop waiting after so long; 0: never",
            },
            Key { name: "net.index", values: "0|N", meaning: "which device" },
        ],
    },
    Guest {
        name: "console",
        summary: "answers each line on a virtio console with the same in capitals, and ends after the line bye",
        elf: include_bytes!(env!("SLAT_GUEST_CONSOLE")),
        keys: &[
            Key { name: "console.lines", values: "1|N", meaning: "lines to write at the start" },
            Key { name: "console.index", values: "0|N", meaning: "which console" },
        ],
    },
    Guest {
        name: "rng",
        summary: "reads bytes from a virtio entropy device, and checks that they look random",
        elf: include_bytes!(env!("SLAT_GUEST_RNG")),
        keys: &[
            Key { name: "rng.bytes", values: "64K|BYTES", meaning: "to read" },
            Key { name: "rng.size", values: "4096|BYTES", meaning: "of a request" },
            Key { name: "rng.index", values: "0|N", meaning: "which device" },
        ],
    },
    Guest {
        name: "balloon",
        summary: "gives pages to a virtio balloon and reports free ones, finds zeroes in all of them, and takes them again",
        elf: include_bytes!(env!("SLAT_GUEST_BALLOON")),
        keys: &[Key {
            name: "balloon.pages",
            values: "1024|N",
            meaning: "to give, and as many to report; by default the balloon's target, if that is more",
        }],
    },
    Guest {
        name: "pmem",
        summary: "reads virtio persistent memory, writes to it, checks that all else stayed, and flushes it",
        elf: include_bytes!(env!("SLAT_GUEST_PMEM")),
        keys: &[
            Key { name: "pmem.write", values: "0|N", meaning: "pages to write to" },
            Key { name: "pmem.index", values: "0|N", meaning: "which device" },
        ],
    },
    Guest {
        name: "vsock",
        summary: "over a virtio socket device, checks that a program of the host sends back what it gets, or does so itself",
        elf: include_bytes!(env!("SLAT_GUEST_VSOCK")),
        keys: &[
            Key { name: "vsock.port", values: "PORT", meaning: "connect to that port of the host" },
            Key { name: "vsock.listen", values: "PORT", meaning: "wait there for the host" },
            Key {
                name: "vsock.connections",
                values: "1|1..64",
                meaning: "to make, all at once; to serve before the end",
            },
            Key {
                name: "vsock.bytes",
                values: "1M|BYTES",
                meaning: "to send on each, with vsock.port=",
            },
            Key { name: "vsock.size", values: "4096|1..64K", meaning: "bytes of a packet" },
            Key {
                name: "vsock.seconds",
                values: "0|N",
                meaning: "fail if it is not over after so long; 0: never",
            },
            Key { name: "vsock.index", values: "0|N", meaning: "which device" },
        ],
    },
];

/// The built-in guest called `name`.
pub fn find(name: &str) -> Option<&'static Guest> {
    static GUESTS: [Guest; 12] = ALL;
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
            assert!(elf.len() < 128 << 10, "{}: {} bytes", guest.name, elf.len());
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
