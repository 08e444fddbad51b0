use super::*;

fn error(text: &str) -> String {
    Document::parse(text, Path::new("x.toml")).unwrap_err().to_string()
}

fn flag_error(assignment: &str) -> String {
    let mut raw = Document::parse("", Path::new("x.toml")).unwrap();
    raw.set(assignment).unwrap_err().to_string()
}

#[test]
fn every_kind_of_mistake_names_line_key_and_what_is_allowed() {
    for (text, says) in [
        (
            "[machine]\nvcpu = 1",
            "x.toml:2: machine.vcpu is unknown (did you mean machine.vcpus?): \
             [machine] takes vcpus, irqchip, acpi, unclaimed, ring0, cpu and device_threads",
        ),
        (
            "\n[memroy]\nsize = 1",
            "x.toml:2: memroy is unknown (did you mean [memory]?): \
             the tables are machine, memory, collapse, dedup, boot, console and control, and for \
             devices disk.NAME, net.NAME, rng.NAME, hvc.NAME, balloon.NAME, pmem.NAME and vsock.NAME",
        ),
        (
            "vcpus = 2",
            "x.toml:1: vcpus is unknown (did you mean machine.vcpus?): \
             the tables are machine, memory, collapse, dedup, boot, console and control, and for \
             devices disk.NAME, net.NAME, rng.NAME, hvc.NAME, balloon.NAME, pmem.NAME and vsock.NAME",
        ),
        (
            "[machine]\nvcpus = \"two\"",
            "x.toml:2: machine.vcpus is \"two\": it must be an integer from 1 to 8",
        ),
        (
            "[machine]\nvcpus = 1.5",
            "x.toml:2: machine.vcpus is 1.5: it must be an integer from 1 to 8",
        ),
        ("[[memory]]", "x.toml:1: memory is [[memory]]: it must be a table, [memory]"),
        ("memory = 3", "x.toml:1: memory is 3: it must be a table, [memory]"),
        ("[boot.unpack]", "x.toml:1: boot.unpack is a table: it must be true or false"),
        (
            "[machine]\nvcpus = 1\nirqchip = \"none\"\nvcpus = 2",
            "x.toml:4: vcpus is set twice: remove one of the two",
        ),
    ] {
        assert_eq!(error(text), says);
    }
}

#[test]
fn what_is_not_toml_is_told_by_line_and_column() {
    let error = error("[machine]\nvcpus = = 1");
    assert!(error.starts_with("x.toml:2: column 9: this is not TOML: "), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn the_topmost_mistake_is_reported() {
    assert!(error("[memory]\nzzz = 1\n[boot]\naaa = 1").contains(":2: memory.zzz"));
}

#[test]
fn flags_are_checked_like_the_file_and_named_in_errors() {
    for (assignment, says) in [
        ("memory.size", "--set: \"memory.size\" is not of the form table.key=value"),
        (
            "memory.sise=1M",
            "--set: memory.sise is unknown (did you mean memory.size?): \
             [memory] takes size, template, pool, backing, pages, fault_threads and guard",
        ),
        (
            "size=1M",
            "--set: size is unknown (did you mean memory.size?): \
             the tables are machine, memory, collapse, dedup, boot, console and control, and for \
             devices disk.NAME, net.NAME, rng.NAME, hvc.NAME, balloon.NAME, pmem.NAME and vsock.NAME",
        ),
        ("machine.vcpus=two", "--set: machine.vcpus is \"two\": it must be an integer from 1 to 8"),
    ] {
        assert_eq!(flag_error(assignment), says);
    }
}

#[test]
fn a_flag_replaces_and_an_empty_one_takes_out() {
    let mut raw = Document::parse("[boot]\ncmdline = \"a\"", Path::new("x.toml")).unwrap();
    raw.set("boot.cmdline=b=c").unwrap();
    let written = raw.keys.get(&schema::CMDLINE).unwrap();
    assert!(matches!(&written.value, Value::Text(text) if text == "b=c"));
    assert_eq!(written.origin, Origin::Flag);
    raw.set("boot.cmdline=").unwrap();
    assert!(raw.keys.get(&schema::CMDLINE).is_none());
}

#[test]
fn lists_on_the_command_line_go_by_commas_or_as_toml() {
    for text in ["machine.cpu=-cx16,-avx", "machine.cpu=[\"-cx16\", '-avx']"] {
        let mut raw = Document::parse("", Path::new("x.toml")).unwrap();
        raw.set(text).unwrap();
        let written = raw.keys.get(&schema::CPU).unwrap();
        assert!(matches!(&written.value, Value::List(l) if l == &["-cx16", "-avx"]));
    }
}

#[test]
fn devices_stand_in_the_order_of_the_file_and_those_of_flags_behind() {
    let text = "[disk.b]
file = 'x'
[net.a]
[disk.a]
queues = 2
[machine]
vcpus = 1";
    let mut raw = Document::parse(text, Path::new("x.toml")).unwrap();
    raw.set("rng.c.source=/dev/random").unwrap();
    raw.set("disk.a.queues=3").unwrap();
    raw.set("disk.b.file=").unwrap();
    raw.set("hvc.d.port=").unwrap();
    let names: Vec<String> = raw.devices.iter().map(DeviceTable::path).collect();
    assert_eq!(names, ["disk.b", "net.a", "disk.a", "rng.c"]);
    let origins: Vec<Origin> = raw.devices.iter().map(|device| device.origin).collect();
    assert_eq!(origins[2], Origin::File { line: 4, column: 7 });
    assert_eq!(origins[3], Origin::Flag);
    let queues = raw.devices[2].keys.get(&schema::DISK_QUEUES).unwrap();
    assert!(matches!(queues.value, Value::Integer(3)));
    assert!(raw.devices[0].keys.get(&schema::DISK_FILE).is_none());
}

#[test]
fn mistakes_in_devices_name_the_device() {
    for (text, says) in [
        (
            "[disk]",
            "x.toml:1: disk is a table: it must be tables with the names of devices, like [disk.NAME]",
        ),
        (
            "[[disk]]",
            "x.toml:1: disk is [[disk]]: it must be tables with the names of devices, like [disk.NAME]",
        ),
        (
            "disk = 1",
            "x.toml:1: disk is 1: it must be tables with the names of devices, like [disk.NAME]",
        ),
        (
            "[disk]
file = 'a'",
            "x.toml:2: disk.file is \"a\": it must be in a table with the name of a device, like [disk.NAME]",
        ),
        ("[[disk.a]]", "x.toml:1: disk.a is [[disk.a]]: it must be a table, [disk.a]"),
        (
            "[disk]
a = 1",
            "x.toml:2: disk.a is 1: it must be a table, [disk.a]",
        ),
        (
            "[disk.\"\"]",
            "x.toml:1: disk has a device named \"\": it must be 1 to 32 characters out of a-z, 0-9, - and _",
        ),
        (
            "[disk.Root]",
            "x.toml:1: disk has a device named \"Root\": \
             it must be 1 to 32 characters out of a-z, 0-9, - and _ (try \"root\")",
        ),
        (
            "[net.up]
mtu = 1",
            "x.toml:2: net.up.mtu is unknown: [net.up] takes tap, mac, queues, queue_size and offloads",
        ),
        (
            "[disk.a]
readonly = 1",
            "x.toml:2: disk.a.readonly is 1: it must be true or false",
        ),
        (
            "[disk.a]
[disk.a]",
            "x.toml:2: a is set twice: remove one of the two",
        ),
    ] {
        assert_eq!(error(text), says);
    }
    assert!(
        error(
            "[disk.a]
fle = 1"
        )
        .contains("disk.a.fle is unknown (did you mean disk.a.file?)")
    );
    assert!(error("[dsk.a]").contains("dsk is unknown (did you mean [disk.NAME]?)"));
    assert!(error("readonly = 1").contains("(did you mean disk.NAME.readonly?)"));
    assert!(
        error(
            "[net.b]
[disk.a]
x = 1
[net.c]
y = 1"
        )
        .contains(":3: disk.a.x")
    );
}

#[test]
fn flags_for_devices_have_three_parts() {
    for (assignment, says) in [
        ("disk.a=x", "--set: disk.a is \"x\": it must be a key of a device, like disk.NAME.file"),
        ("disk.A.file=x", "--set: disk has a device named \"A\": it must be"),
        ("disk..file=x", "--set: disk has a device named \"\": it must be"),
        ("disk.a.fil=x", "--set: disk.a.fil is unknown (did you mean disk.a.file?)"),
        ("disk.a.file.b=x", "--set: disk.a.file.b is unknown"),
        ("dsk.a.file=x", "--set: dsk.a.file is unknown (did you mean disk.a.file?)"),
        ("disk.a.queues=x", "--set: disk.a.queues is \"x\": it must be an integer from 1 to 8"),
    ] {
        assert!(flag_error(assignment).starts_with(says), "{}", flag_error(assignment));
    }
}
