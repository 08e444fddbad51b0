//! Which keys there are, and what may stand in each. The one list that the reader, the messages and the reference share.

use std::fmt;

use super::devices::Family;

/// A key of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Its table, or the family of devices that have it.
    pub(super) table: &'static str,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What may stand there, as the end of "it must be".
    pub(super) allowed: &'static str,
}

/// The shapes of TOML that a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Boolean,
    Text,
    /// An integer, or a string with a unit.
    Size,
    /// An integer, or a word.
    IntegerOrText,
    /// A list of strings.
    List,
    /// A string or a list of strings.
    TextOrList,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Family::named(self.table) {
            Some(family) => write!(f, "{family}.NAME.{}", self.name),
            None => write!(f, "{}.{}", self.table, self.name),
        }
    }
}

/// The tables that are there once, in the order of the reference. Behind them are those of each [`Family`] of devices.
pub(super) const TABLES: [&str; 7] =
    ["machine", "memory", "collapse", "dedup", "boot", "console", "control"];

/// Declares each key as a constant and all of them as [`KEYS`].
macro_rules! keys {
    ($($id:ident = $table:literal $name:literal $kind:ident $allowed:literal;)+) => {
        $(pub(super) const $id: Key = Key {
            table: $table,
            name: $name,
            kind: Kind::$kind,
            allowed: $allowed,
        };)+
        /// Every key, in the order of the reference.
        pub(super) const KEYS: &[Key] = &[$($id),+];
    };
}

keys! {
    VCPUS = "machine" "vcpus" Integer "an integer from 1 to 8";
    IRQCHIP = "machine" "irqchip" Text "auto, none or kernel";
    ACPI = "machine" "acpi" Boolean "true or false";
    UNCLAIMED = "machine" "unclaimed" Text "auto, stop or ignore";
    RING0 = "machine" "ring0" Text "auto, kvm or monitor";
    CPU = "machine" "cpu" TextOrList "host, emulation-safe or a list like [\"-cx16\", \"-avx\"]";
    DEVICE_THREADS = "machine" "device_threads" Integer "an integer from 1 to 8";
    SIZE = "memory" "size" Size "a size like \"64M\" or a number of bytes";
    TEMPLATE = "memory" "template" Text "the path of a file of raw memory";
    POOL = "memory" "pool" Size "a size like \"64M\" or a number of bytes";
    BACKING = "memory" "backing" Text "auto, memfd, tmpfs or hugetlb";
    PAGES = "memory" "pages" Text "4k, 2m or 1g";
    FAULT_THREADS = "memory" "fault_threads" Integer "an integer from 1 to 8";
    GUARD = "memory" "guard" List "a list of ranges like [\"0x2000000+4K\"]";
    BACKGROUND = "collapse" "background" Boolean "true or false";
    MAX_HOLES = "collapse" "max_holes" Integer "an integer from 0 to 511";
    COPYING = "collapse" "copying" Boolean "true or false";
    SCAN_RATE = "collapse" "scan_rate" IntegerOrText "an integer from 1 to 1000000 or unlimited";
    COPY_BUDGET = "collapse" "copy_budget" IntegerOrText "an integer from 1 to 1000000 or unlimited";
    DEDUP_BACKGROUND = "dedup" "background" Boolean "true or false";
    DEDUP_SCAN_RATE = "dedup" "scan_rate" IntegerOrText "an integer from 1 to 1000000 or unlimited";
    MAX_MERGED = "dedup" "max_merged" Integer "an integer from 0 to 4294967295";
    SPLIT_HUGE = "dedup" "split_huge" Boolean "true or false";
    GUEST = "boot" "guest" Text "hello, touch, smp, clone, churn, blk, net, console, rng, balloon, pmem or vsock";
    KERNEL = "boot" "kernel" Text "the path of an ELF vmlinux or a bzImage";
    PROTOCOL = "boot" "protocol" Text "auto, linux64 or pvh";
    UNPACK = "boot" "unpack" Boolean "true or false";
    INITRD = "boot" "initrd" Text "the path of a file";
    CMDLINE = "boot" "cmdline" Text "a string";
    SERIAL = "console" "serial" Text "stdio, off or file:PATH";
    SOCKET = "control" "socket" Text "the path of a socket";
    DISK_FILE = "disk" "file" Text "the path of a raw file or a block device";
    DISK_READONLY = "disk" "readonly" Boolean "true or false";
    DISK_IO = "disk" "io" Text "auto, uring or sync";
    DISK_DISCARD = "disk" "discard" Boolean "true or false";
    DISK_QUEUE_SIZE = "disk" "queue_size" Integer "a power of two from 2 to 1024";
    DISK_QUEUES = "disk" "queues" Integer "an integer from 1 to 8";
    DISK_RATE_BYTES = "disk" "rate_bytes" Size "a size like \"100M\" or unlimited";
    DISK_RATE_OPS = "disk" "rate_ops" IntegerOrText "an integer from 1 to 1000000 or unlimited";
    DISK_SERIAL = "disk" "serial" Text "at most 20 printable ASCII characters";
    NET_TAP = "net" "tap" Text "the name of an interface, 1 to 15 bytes";
    NET_MAC = "net" "mac" Text "a unicast address like \"52:54:00:12:34:56\"";
    NET_QUEUES = "net" "queues" Integer "an integer from 1 to 8";
    NET_QUEUE_SIZE = "net" "queue_size" Integer "a power of two from 2 to 1024";
    NET_OFFLOADS = "net" "offloads" Boolean "true or false";
    RNG_SOURCE = "rng" "source" Text "the path of a character device or a file";
    RNG_RATE_BYTES = "rng" "rate_bytes" Size "a size like \"100M\" or unlimited";
    HVC_PORT = "hvc" "port" Text "stdio, off, file:PATH or socket:PATH";
    HVC_COLUMNS = "hvc" "columns" Integer "an integer from 1 to 65535";
    HVC_ROWS = "hvc" "rows" Integer "an integer from 1 to 65535";
    BALLOON_TARGET = "balloon" "target" Size "a size like \"64M\" or a number of bytes";
    BALLOON_DEFLATE_ON_OOM = "balloon" "deflate_on_oom" Boolean "true or false";
    BALLOON_REPORTING = "balloon" "reporting" Boolean "true or false";
    BALLOON_STATISTICS = "balloon" "statistics" Integer "an integer from 0 to 3600";
    PMEM_FILE = "pmem" "file" Text "the path of a file";
    PMEM_SHARING = "pmem" "sharing" Text "private or shared";
    VSOCK_CID = "vsock" "cid" Integer "an integer from 3 to 4294967294";
    VSOCK_SOCKET = "vsock" "socket" Text "the path of a socket";
}

/// The keys of a table, or of a family of devices.
pub(super) fn keys_of(table: &str) -> impl Iterator<Item = &'static Key> + Clone {
    KEYS.iter().filter(move |key| key.table == table)
}

/// The key of that table and name.
pub(super) fn find(table: &str, name: &str) -> Option<&'static Key> {
    keys_of(table).find(|key| key.name == name)
}

/// The name out of `names` that `typo` is likely meant to be: one edit away, or two
/// (as swapped letters are) in four letters or more.
pub(super) fn closest<'a>(typo: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody's typo, and the distance is quadratic in it.
    if typo.len() > 64 {
        return None;
    }
    names
        .into_iter()
        .map(|name| (distance(&typo.to_lowercase(), name), name))
        .filter(|&(edits, name)| edits <= 1 || (edits == 2 && name.len() >= 4))
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace a character) that turn `a` into `b`: Levenshtein's distance, one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// `a, b and c`.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>, joint: &str) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} {joint} {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_find_the_name_that_was_meant() {
        let names = ["vcpus", "irqchip", "unclaimed", "cpu"];
        for (typo, meant) in [
            ("vcpu", Some("vcpus")),
            ("VCPUS", Some("vcpus")),
            ("irqchp", Some("irqchip")),
            ("unclamied", Some("unclaimed")),
            ("memory", None),
            ("", None),
        ] {
            assert_eq!(closest(typo, names), meant, "{typo}");
        }
    }

    #[test]
    fn distances_are_those_of_the_textbook() {
        for (a, b, edits) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), edits);
            assert_eq!(distance(b, a), edits);
        }
    }

    #[test]
    fn the_reference_has_a_section_for_every_key_and_for_no_other() {
        let reference = include_str!("../../../configs/README.md");
        let documented: Vec<&str> = reference
            .lines()
            .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
            .collect();
        let known: Vec<String> = KEYS.iter().map(Key::to_string).collect();
        assert_eq!(documented, known);
        let there = |table| TABLES.contains(&table) || Family::named(table).is_some();
        assert!(KEYS.iter().all(|key| there(key.table)));
        assert!(Family::ALL.iter().all(|family| !TABLES.contains(&family.as_str())));
    }
}
