//! Every way in which a config can be bad, tried on the real program: it exits with 2 and says what is wrong in one line
//! that names file and key, whichever command reads the config.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use tests::{Scratch, Slat, assert_refused};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat"));

/// The commands that read a config. `every_command_that_reads_a_config_is_tried` fails where one is missing.
const COMMANDS: &[&str] = &["check", "run", "clone"];

const HELLO: &str = "[boot]\nguest = \"hello\"\n";

/// A file's text, and what the message has to contain. `HELLO` goes in front of those that start with a newline.
#[rustfmt::skip]
const BAD: &[(&str, &[&str])] = &[
    // [memory] size
    ("\n[memory]\nsize = 0", &[":5:", "memory.size is 0", "not be 0"]),
    ("\n[memory]\nsize = \"0G\"", &["memory.size is \"0G\"", "not be 0"]),
    ("\n[memory]\nsize = \"63K\"", &["memory.size", "multiple of 4 KiB", "try \"64K\""]),
    ("\n[memory]\nsize = 65537", &["memory.size is 65537", "try \"68K\""]),
    ("\n[memory]\nsize = \"8192T\"", &["memory.size", "at most", "bits"]),
    ("\n[memory]\nsize = \"99999999T\"", &["memory.size", "less than 2^64"]),
    ("\n[memory]\nsize = 99999999999999999999999999", &["memory.size", "less than 2^64"]),
    ("\n[memory]\nsize = 0xffffffffffffffffffffffffffffffffffffffff", &["memory.size", "2^64"]),
    ("\n[memory]\nsize = -4096", &["memory.size is -4096", "negative"]),
    ("\n[memory]\nsize = \"-64M\"", &["memory.size is \"-64M\"", "negative"]),
    ("\n[memory]\nsize = \"lots\"", &["memory.size is \"lots\"", "K, M, G or T"]),
    ("\n[memory]\nsize = 1.5", &["memory.size is 1.5", "size like"]),
    ("\n[memory]\nsize = []", &["memory.size is []", "size like"]),
    // [memory], the rest
    ("\n[memory]\npool = 0", &["memory.pool is 0", "not be 0"]),
    ("\n[memory]\npool = \"8192T\"", &["memory.pool", "at most"]),
    ("\n[memory]\nbacking = \"hugetlb\"\npages = \"4k\"", &[":6:", "memory.pages is \"4k\"", "hugetlb"]),
    ("\n[memory]\ntemplate = \"nowhere\"", &[":5:", "memory.template is \"nowhere\"", "there is no file"]),
    ("\n[memory]\ntemplate = \"/dev/zero\"", &["memory.template", "must be a regular file"]),
    ("\n[memory]\ntemplate = \"/\"", &["memory.template", "a directory"]),
    ("\n[memory]\ntemplate = \"\"", &["memory.template", "the path of a file of raw memory"]),
    ("\n[memory]\ntemplate = 1", &["memory.template is 1", "the path of a file"]),
    ("\n[memory]\ntemplate = \"/proc/self/mem\"", &["memory.template", "has 0 bytes", "multiple of 4096"]),
    ("\n[memory]\ntemplate = \"/proc/self/mem\"\nbacking = \"hugetlb\"", &["memory.template", "hugetlb, which has no 4 KiB pages"]),
    ("\n[memory]\nbacking = \"disk\"", &["memory.backing", "auto, memfd, tmpfs or hugetlb"]),
    ("\n[memory]\npages = \"4K\"", &["memory.pages", "did you mean \"4k\"?"]),
    ("\n[memory]\npages = \"1g\"", &["memory.pages is \"1g\"", "64 MiB is smaller"]),
    ("\n[memory]\nfault_threads = 0", &["memory.fault_threads is 0", "1 to 8"]),
    ("\n[memory]\nfault_threads = 9", &["memory.fault_threads is 9", "1 to 8"]),
    ("\n[memory]\nguard = [\"0x4000000+4K\"]", &["memory.guard", "inside the 64 MiB"]),
    ("\n[memory]\nguard = [\"0x1001+4K\"]", &["memory.guard", "0x1001+4K", "multiples of 4 KiB"]),
    ("\n[memory]\nguard = [\"4K+8K\", \"8K+4K\"]", &["memory.guard", "0x2000+4K must not overlap 0x1000+8K"]),
    ("\n[memory]\nguard = [\"4K\"]", &["memory.guard", "GPA+LENGTH"]),
    ("\n[memory]\nguard = [4096]", &["memory.guard is [4096]", "list of ranges"]),
    ("\n[memory]\nguard = \"4K+4K\"", &["memory.guard", "list of ranges"]),
    ("\n[memory]\nsize = \"5G\"\nguard = [\"0xC0000000+4K\"]", &["memory.guard", "inside"]),
    // [collapse]
    ("\n[dedup]\nbackground = 1", &[":5:", "dedup.background is 1", "true or false"]),
    ("\n[dedup]\nscan_rate = 0", &["dedup.scan_rate is 0", "1 to 1000000", "dedup.background = false"]),
    ("\n[dedup]\nmax_merged = -1", &["dedup.max_merged is -1", "0 to 4294967295"]),
    ("\n[dedup]\nsplit_huge = \"no\"", &["dedup.split_huge is \"no\"", "true or false"]),
    ("\n[memory]\nbacking = \"hugetlb\"\n[dedup]\nbackground = true", &["dedup.background is true", "no 4 KiB pages"]),
    ("\n[collapse]\nbackground = 1", &[":5:", "collapse.background is 1", "true or false"]),
    ("\n[collapse]\nbackground = \"yes\"", &["collapse.background is \"yes\"", "true or false"]),
    ("\n[collapse]\nmax_holes = 512", &[":5:", "collapse.max_holes is 512", "0 to 511", "nothing is there"]),
    ("\n[collapse]\nmax_holes = -1", &["collapse.max_holes is -1", "0 to 511"]),
    ("\n[collapse]\nmax_holes = \"all\"", &["collapse.max_holes is \"all\"", "0 to 511"]),
    ("\n[collapse]\ncopying = \"never\"", &["collapse.copying is \"never\"", "true or false"]),
    ("\n[collapse]\nscan_rate = 0", &["collapse.scan_rate is 0", "1 to 1000000", "collapse.background = false"]),
    ("\n[collapse]\nscan_rate = 1000001", &["collapse.scan_rate is 1000001", "1 to 1000000 or unlimited"]),
    ("\n[collapse]\nscan_rate = 4294967297", &["collapse.scan_rate is 4294967297", "1 to 1000000"]),
    ("\n[collapse]\nscan_rate = 0.5", &["collapse.scan_rate is 0.5", "an integer"]),
    ("\n[collapse]\nscan_rate = \"unlimitted\"", &["collapse.scan_rate", "did you mean \"unlimited\"?"]),
    ("\n[collapse]\nscan_rate = \"1K\"", &["collapse.scan_rate is \"1K\"", "an integer"]),
    ("\n[collapse]\ncopy_budget = 0", &["collapse.copy_budget is 0", "collapse.copying = false"]),
    ("\n[collapse]\ncopy_budget = -64", &["collapse.copy_budget is -64", "1 to 1000000"]),
    ("\n[collapse]\ncopy_budget = [64]", &["collapse.copy_budget is [64]", "unlimited"]),
    ("\n[collapse]\nmax_hole = 1", &["collapse.max_hole is unknown", "did you mean collapse.max_holes?"]),
    ("\n[colapse]\n", &["colapse is unknown", "did you mean [collapse]?"]),
    ("collapse = true\n", &["collapse is true", "a table, [collapse]"]),
    // [machine]
    ("\n[machine]\nvcpus = 0", &["machine.vcpus is 0", "1 to 8"]),
    ("\n[machine]\nvcpus = 300", &["machine.vcpus is 300", "1 to 8"]),
    ("\n[machine]\nvcpus = -1", &["machine.vcpus is -1", "1 to 8"]),
    ("\n[machine]\nvcpus = \"2\"", &["machine.vcpus is \"2\"", "an integer"]),
    ("\n[machine]\nirqchip = \"kernal\"", &["machine.irqchip", "did you mean \"kernel\"?"]),
    ("\n[machine]\nacpi = \"yes\"", &["machine.acpi is \"yes\"", "true or false"]),
    ("\n[machine]\nacpi = true", &["machine.acpi is true", "boot.guest is built in", "it must be false"]),
    ("[machine]\nirqchip = \"none\"\nacpi = true\n[boot]\nkernel = \"x.toml\"", &[":3:", "machine.acpi is true", "machine.irqchip is \"none\"", "it must be false"]),
    ("\n[machine]\nunclaimed = true", &["machine.unclaimed is true", "auto, stop or ignore"]),
    ("\n[machine]\ncpu = \"fast\"", &["machine.cpu is \"fast\"", "emulation-safe"]),
    ("\n[machine]\ncpu = [\"cx16\"]", &["machine.cpu", "minus sign"]),
    ("\n[machine]\ncpu = [\"-cx61\"]", &["machine.cpu", "did you mean", "-cx16"]),
    // [boot]
    ("", &["boot.guest is missing", "boot.kernel"]),
    ("# nothing but this\n", &["boot.guest is missing", "boot.kernel"]),
    ("[boot]\nguest = \"hello\"\nkernel = \"k\"", &[":2:", "boot.guest", "boot.kernel is set too (line 3)"]),
    ("[boot]\nguest = \"helo\"", &["boot.guest is \"helo\"", "hello, touch, smp, clone, churn, blk, net, console, rng, balloon, pmem or vsock", "did you mean \"hello\"?"]),
    ("\ninitrd = \"i\"", &["boot.initrd", "goes with boot.kernel"]),
    ("\nprotocol = \"pvh\"", &["boot.protocol", "goes with boot.kernel"]),
    ("\nunpack = false", &["boot.unpack", "goes with boot.kernel"]),
    ("\ncmdline = \"a\\u0000b\"", &["boot.cmdline", "NUL (byte 1)"]),
    ("[boot]\nkernel = \"\"", &["boot.kernel is \"\"", "the path"]),
    ("[boot]\nkernel = \"nowhere\"", &["boot.kernel is \"nowhere\"", "there is no file", "/nowhere"]),
    ("[boot]\nkernel = \".\"", &["boot.kernel is \".\"", "a directory", "regular file"]),
    ("[boot]\nkernel = \"/dev/null\"", &["boot.kernel", "a device", "regular file"]),
    ("[boot]\nkernel = \"a\\u0000b\"", &["boot.kernel", "cannot be used"]),
    ("[boot]\nkernel = \"x.toml\"\ninitrd = \"nowhere\"", &[":3:", "boot.initrd", "there is no file"]),
    ("[boot]\nkernel = \"x.toml\"\nprotocol = \"bios\"", &["boot.protocol", "auto, linux64 or pvh"]),
    ("[boot]\nkernel = \"x.toml\"\nunpack = \"yes\"", &["boot.unpack is \"yes\"", "true or false"]),
    // [console]
    ("\n[console]\nserial = \"stdout\"", &["console.serial", "stdio, off or file:PATH"]),
    ("\n[console]\nserial = \"file:\"", &["console.serial", "file:PATH"]),
    ("\n[console]\nserial = \"file:.\"", &["console.serial", "directory"]),
    ("\n[console]\nserial = \"file:no/where\"", &["console.serial", "there is no folder"]),
    // [control]
    ("\n[control]\nsocket = \"\"", &[":5:", "control.socket is \"\"", "the path of a socket"]),
    ("\n[control]\nsocket = 1", &["control.socket is 1", "the path of a socket"]),
    ("\n[control]\nsocket = \".\"", &["control.socket", "this is a directory"]),
    ("\n[control]\nsocket = \"x.toml\"", &["control.socket", "this is a file"]),
    ("\n[control]\nsocket = \"no/where\"", &["control.socket", "there is no folder"]),
    ("\n[control]\nsocket = \"a\\u0000b\"", &["control.socket"]),
    ("\n[control]\nsokcet = \"s\"", &["control.sokcet is unknown", "did you mean control.socket?"]),
    // [disk.NAME]
    ("\n[disk.root]\n", &[":4:", "disk.root.file is missing", "a raw file or a block device"]),
    ("\n[disk.root]\nfile = \"nowhere\"", &[":5:", "disk.root.file is \"nowhere\"", "there is no file"]),
    ("\n[disk.root]\nfile = \"\"", &["disk.root.file is \"\"", "the path of a raw file"]),
    ("\n[disk.root]\nfile = \".\"", &["disk.root.file", "a directory", "a regular file or a block device"]),
    ("\n[disk.root]\nfile = \"/dev/zero\"", &["disk.root.file", "a device", "a regular file or a block device"]),
    ("\n[disk.root]\nreadonly = true\nfile = \"x.toml\"", &[":6:", "disk.root.file", "multiple of 512 bytes above 0", "the nearest is 512 bytes"]),
    ("\n[disk.root]\nfile = \"a\\u0000b\"", &["disk.root.file", "cannot be used"]),
    ("\n[disk.root]\nreadonly = 1", &["disk.root.readonly is 1", "true or false"]),
    ("\n[disk.root]\nfil = \"x\"", &["disk.root.fil is unknown", "did you mean disk.root.file?", "[disk.root] takes file, readonly"]),
    ("\n[disk.root.file]", &["disk.root.file is a table", "the path of a raw file"]),
    ("\n[disk]\nfile = \"x\"", &[":5:", "disk.file is \"x\"", "like [disk.NAME]"]),
    ("\n[disk]\n", &[":4:", "disk is a table", "like [disk.NAME]"]),
    ("\n[[disk]]\n", &[":4:", "disk is [[disk]]", "like [disk.NAME]"]),
    ("\n[[disk.root]]\n", &[":4:", "disk.root is [[disk.root]]", "a table, [disk.root]"]),
    ("\n[disk.\"\"]\n", &[":4:", "disk has a device named \"\"", "1 to 32 characters out of a-z"]),
    ("\n[disk.Root]\n", &["disk has a device named \"Root\"", "try \"root\""]),
    ("\n[disk.a-name-that-is-longer-than-any-may-be]\n", &["disk has a device named", "1 to 32 characters"]),
    ("\n[rng.a]\n[rng.a]\n", &[":5:", "a is set twice"]),
    ("\n[dsik.root]\n", &[":4:", "dsik is unknown", "did you mean [disk.NAME]?"]),
    // The other devices
    ("\n[machine]\ndevice_threads = 9", &["machine.device_threads is 9", "1 to 8"]),
    ("\n[net.up]\n", &[":4:", "net.up.tap is missing", "a tap interface"]),
    ("\n[net.up]\ntap = \"sixteen-bytes-ab\"", &["net.up.tap", "1 to 15 bytes, not 16"]),
    ("\n[net.up]\ntap = \"tap%d\"", &["net.up.tap is \"tap%d\"", "without /, :, % and spaces"]),
    ("\n[net.up]\ntap = \"t\"\nmac = \"01:00:00:00:00:00\"", &[":6:", "net.up.mac", "unicast: the first byte must be even"]),
    ("\n[net.up]\ntap = \"t\"\nmac = \"52-54\"", &["net.up.mac is \"52-54\"", "52:54:00:12:34:56", "colons"]),
    ("\n[net.up]\ntap = \"t\"\nqueue_size = 300", &["net.up.queue_size is 300", "a power of two from 2 to 1024 (try 256 or 512)"]),
    ("\n[net.up]\ntap = \"t\"\nqueue_size = 2048", &["net.up.queue_size is 2048", "2 to 1024"]),
    ("\n[net.up]\ntap = \"t\"\nqueues = 0", &["net.up.queues is 0", "1 to 8"]),
    ("\n[rng.r]\nsource = \"nowhere\"", &["rng.r.source", "there is no file"]),
    ("\n[rng.r]\nsource = \".\"", &["rng.r.source", "a directory", "a character device"]),
    ("\n[rng.r]\nrate_bytes = \"fast\"", &["rng.r.rate_bytes is \"fast\"", "or unlimited"]),
    ("\n[rng.r]\nrate_bytes = 0", &["rng.r.rate_bytes is 0", "not be 0"]),
    ("\n[hvc.con]\n", &[":4:", "hvc.con.port is \"stdio\" by default", "console.serial is too (default)", "set console.serial = \"off\""]),
    ("\n[hvc.con]\nport = \"stdio\"", &[":5:", "hvc.con.port", "set console.serial = \"off\""]),
    ("\n[console]\nserial = \"off\"\n[hvc.a]\n[hvc.b]\nport = \"stdio\"", &[":8:", "hvc.b.port", "hvc.a.port is too (default)"]),
    ("\n[hvc.con]\nport = \"of\"", &["hvc.con.port is \"of\"", "did you mean \"off\"?"]),
    ("\n[hvc.con]\nport = \"socket:x.toml\"", &["hvc.con.port", "this is a file"]),
    ("\n[hvc.con]\nport = \"off\"\nrows = 0", &["hvc.con.rows is 0", "1 to 65535"]),
    ("\n[balloon.b]\ntarget = \"65M\"", &["balloon.b.target is \"65M\"", "at most memory.size, 64 MiB"]),
    ("\n[balloon.b]\ntarget = 5000", &["balloon.b.target is 5000", "try \"8K\""]),
    ("\n[balloon.b]\nstatistics = 3601", &["balloon.b.statistics is 3601", "0 to 3600"]),
    ("\n[balloon.a]\n[balloon.b]\n", &[":5:", "balloon.b is one too many", "at most one balloon", "balloon.a is there (line 4)"]),
    ("\n[pmem.p]\nfile = \"x.toml\"", &["pmem.p.file", "multiple of 2 MiB above 0 (the nearest is 2 MiB)"]),
    ("\n[pmem.p]\nsharing = \"publik\"", &["pmem.p.sharing", "private or shared"]),
    ("\n[vsock.v]\nsocket = \"s\"\ncid = 2", &["vsock.v.cid is 2", "3 to 4294967294"]),
    ("\n[vsock.v]\nsocket = \"s\"\ncid = 4294967295", &["vsock.v.cid is 4294967295", "3 to 4294967294"]),
    ("\n[vsock.v]\n", &["vsock.v.socket is missing"]),
    ("\n[vsock.v]\nsocket = \"no/where\"", &["vsock.v.socket", "there is no folder"]),
    // The file's shape
    ("\n[device]\n", &[":4:", "device is unknown", "machine, memory, collapse, dedup, boot, console and control"]),
    ("\n[memroy]\n", &["memroy is unknown", "did you mean [memory]?"]),
    ("\n[memory]\nsise = 1", &[":5:", "memory.sise is unknown", "did you mean memory.size?"]),
    ("vcpus = 1\n", &[":1:", "vcpus is unknown", "did you mean machine.vcpus?"]),
    ("memory = \"64M\"\n", &["memory is \"64M\"", "a table"]),
    ("[[boot]]\n", &["boot is", "a table"]),
    ("\n[memory]\nsize = 4096\nsize = 8192", &[":6:", "size is set twice"]),
    ("\n[boot]\n", &[":4:", "boot", "set twice"]),
    ("\n[memory\nsize = 1", &[":4:", "not TOML"]),
    ("\n[memory]\nsize = 64M", &[":5:", "not TOML"]),
    ("\n[memory]\nsize = \"64M", &[":5:", "not TOML"]),
    ("\n[memory]\nsize =", &[":5:", "not TOML"]),
    ("\u{1b}[31m", &[":1:", "not TOML"]),
];

/// Tries every command on the config at `path`, which has to be named.
fn assert_bad_file(path: &Path, says: &[&str]) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for command in COMMANDS {
        let output = SLAT.run([command.as_ref(), path.as_os_str()]);
        let says: Vec<&str> = says.iter().copied().chain([&*name]).collect();
        assert_refused(&format!("slat {command} {}", path.display()), &output, &says);
    }
}

#[test]
fn every_bad_value_is_refused_with_file_line_and_key() {
    let scratch = Scratch::new();
    for (text, says) in BAD {
        let text = match text.starts_with('\n') {
            true => format!("{HELLO}{text}"),
            false => (*text).to_owned(),
        };
        let path = scratch.write("x.toml", &text);
        assert_bad_file(&path, says);
    }
}

/// A reader that recurses would run out of stack, which no error handling catches.
#[test]
fn nesting_without_end_is_refused() {
    let scratch = Scratch::new();
    for (unit, more) in [("[", ""), ("{a=", ""), ("a.", "a = 1")] {
        let start = if more.is_empty() { "x = " } else { "" };
        let text = format!("{start}{}{more}", unit.repeat(200_000));
        let path = scratch.write("x.toml", text);
        assert_bad_file(&path, &[":1:", "not TOML", "recurs"]);
    }
}

#[test]
fn a_command_line_longer_than_any_kernel_keeps_is_refused() {
    let scratch = Scratch::new();
    let config = |length| format!("{HELLO}cmdline = \"{}\"", "x".repeat(length));
    // What the monitor puts behind it for a built-in guest counts too.
    let path = scratch.write("fits.toml", config(2000));
    assert_eq!(SLAT.run([OsString::from("check"), path.into()]).code, Some(0));
    assert_bad_file(&scratch.write("x.toml", config(2047)), &["boot.cmdline", "at most 2047"]);
    let path = scratch.write("x.toml", config(2048));
    assert_bad_file(&path, &[":3:", "boot.cmdline", "at most 2047 bytes, not 2048"]);
}

#[test]
fn what_is_no_config_file_is_refused_without_reading_it() {
    let scratch = Scratch::new();
    assert_bad_file(&scratch.path().join("missing.toml"), &["there is no such file"]);
    assert_bad_file(scratch.path(), &["this is a directory"]);
    let through_a_file = scratch.write("file", "").join("x.toml");
    assert_bad_file(&through_a_file, &["cannot be read: not a directory"]);

    let fifo = scratch.path().join("fifo.toml");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.expect("mkfifo can be started").success());
    assert_bad_file(&fifo, &["this is a FIFO"]);
    assert_bad_file(Path::new("/dev/zero"), &["this is a device"]);

    let large = scratch.path().join("large.toml");
    let file = File::create(&large).expect("a file can be made");
    file.set_len(100 << 20).expect("a sparse file can be made");
    assert_bad_file(&large, &["larger than 1 MiB"]);
    file.set_len((1 << 20) + 1).expect("a file can be cut");
    assert_bad_file(&large, &["larger than 1 MiB"]);

    let invalid = scratch.write("latin1.toml", b"[boot]\n# caf\xe9\nguest = \"hello\"\n");
    assert_bad_file(&invalid, &[":2:", "byte 12 is not UTF-8"]);
    let linked = scratch.path().join("loop.toml");
    std::os::unix::fs::symlink(&linked, &linked).expect("a link can be made");
    assert_bad_file(&linked, &["cannot be read"]);
}

#[test]
fn file_names_that_are_hard_to_print_still_make_one_line() {
    let scratch = Scratch::new();
    for name in [&b"new\nline.toml"[..], b"\xff\xfe.toml", b"esc\x1b[31m.toml"] {
        let path = scratch.path().join(OsString::from_vec(name.to_vec()));
        fs::write(&path, "x = 1").expect("a file with any name can be written");
        for command in COMMANDS {
            let output = SLAT.run([command.as_ref(), path.as_os_str()]);
            assert_refused(command, &output, &[".toml:1: x is unknown"]);
        }
    }
}

#[test]
fn bad_overrides_name_the_flag_and_the_key() {
    let scratch = Scratch::new();
    let path = scratch.hello("x.toml", "").into_os_string().into_string();
    let path = path.expect("temporary folders have plain names");
    for (set, says) in [
        ("memory.size=63K", &["memory.size is \"63K\"", "try \"64K\""][..]),
        ("machine.vcpus=300", &["machine.vcpus", "1 to 8"]),
        ("machine.vcpus=two", &["machine.vcpus is \"two\"", "an integer"]),
        ("machine.vcpu=2", &["machine.vcpu is unknown", "did you mean machine.vcpus?"]),
        ("vcpus=2", &["vcpus is unknown", "did you mean machine.vcpus?"]),
        ("memory.size", &["table.key=value"]),
        ("", &["table.key=value"]),
        ("a\nb", &["table.key=value"]),
        ("collapse.background=on", &["collapse.background is \"on\"", "true or false"]),
        ("collapse.scan_rate=-1", &["collapse.scan_rate is \"-1\"", "1 to 1000000"]),
        ("collapse.copy_budget=fast", &["collapse.copy_budget is \"fast\"", "unlimited"]),
        ("collapse.copy_budget=64M", &["collapse.copy_budget is \"64M\"", "an integer"]),
        ("memory.guard=0x1000", &["memory.guard", "GPA+LENGTH"]),
        ("machine.cpu=[\"-cx16\"", &["machine.cpu", "a list like"]),
        (
            "disk.root.file=nowhere",
            &["disk.root.file is \"nowhere\"", "there is no file \"nowhere\""],
        ),
        ("disk.root.readonly=yes", &["disk.root.readonly is \"yes\"", "true or false"]),
        ("disk.root=x", &["disk.root is \"x\"", "like disk.NAME.file"]),
        ("disk.Root.file=x", &["disk has a device named \"Root\"", "try \"root\""]),
        ("dsik.root.file=x", &["dsik.root.file is unknown", "did you mean disk.root.file?"]),
        ("boot.guest=", &["boot.guest is missing"]),
    ] {
        for command in COMMANDS {
            let output = SLAT.run([command, &*path, "--set", set]);
            assert_refused(&format!("--set {set}"), &output, says);
            let names_flag = output.stderr.contains("--set") || set == "boot.guest=";
            assert!(names_flag, "{set}: {}", output.stderr);
        }
    }
}

#[test]
fn bad_usage_exits_with_2_and_asking_for_help_with_0() {
    for args in [&["check"][..], &["nothing"], &["check", "a", "b"], &["check", "--x", "a"]] {
        let output = SLAT.run(args);
        assert_eq!(output.code, Some(2), "{args:?}: {output:?}");
        assert!(output.stderr.contains("Usage:"), "{args:?}: {output:?}");
    }
    for args in [&["--help"][..], &["check", "--help"], &["--version"]] {
        let output = SLAT.run(args);
        assert_eq!(output.code, Some(0), "{args:?}: {output:?}");
    }
}

#[test]
fn every_command_that_reads_a_config_is_tried() {
    for command in ["check", "run", "clone"] {
        let there = SLAT.run(["help", command]).code == Some(0);
        let tried = COMMANDS.contains(&command);
        assert_eq!(there, tried, "`slat {command}` and COMMANDS disagree: put it into the list");
    }
}

#[test]
fn the_shipped_configs_are_fine() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).expect("configs/ can be listed") {
        let path = entry.expect("configs/ can be listed").path();
        let lacks =
            |config: &str, file: &str| path.ends_with(config) && !folder.join(file).exists();
        let needs_download = lacks("debian.toml", "debian/vmlinuz")
            || lacks("debian.toml", "debian/root.ext4")
            || lacks("template.toml", "template.img")
            || lacks("pmem.toml", "pmem.img")
            || lacks("blk.toml", "disk.img");
        if path.extension().is_none_or(|extension| extension != "toml") || needs_download {
            continue;
        }
        let output = SLAT.run(["check".as_ref(), path.as_os_str()]);
        assert_eq!(output.code, Some(0), "{}: {}", path.display(), output.stderr);
        seen += 1;
    }
    assert!(seen >= 6, "only {seen} configs");
}
