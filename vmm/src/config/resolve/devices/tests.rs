//! Defaults of devices, and rules between them. What is refused by itself is in `tests/e2e/bad_config.rs`.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::config::{
    ByteRate, Bytes, ConfigError, Device, DeviceKind, DiskIo, Host, HostPath, Irqchip,
    MachineConfig, Origin, Port, Rate, Sharing,
};

/// A folder with files of some sizes, and a config beside them.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, length) in
            [("sectors", 1024), ("odd", 1000), ("empty", 0), ("huge", 4 << 20), ("uneven", 3 << 20)]
        {
            File::create(folder.path().join(name)).unwrap().set_len(length).unwrap();
        }
        Folder(folder)
    }

    fn path(&self, name: &str) -> HostPath {
        HostPath(self.0.path().join(name))
    }

    fn parse(&self, text: &str) -> Result<MachineConfig, ConfigError> {
        let text = format!("boot.guest = 'hello'\n{text}");
        let host = Host { phys_bits: 46, runs_ring0: true };
        MachineConfig::parse(&text, &self.0.path().join("x.toml"), &[], host)
    }

    fn devices(&self, text: &str) -> Vec<Device> {
        self.parse(text).unwrap().devices
    }

    fn refusal(&self, text: &str) -> String {
        self.parse(text).unwrap_err().to_string()
    }
}

#[test]
fn what_is_not_written_is_filled_in() {
    let folder = Folder::new();
    let devices = folder.devices(
        "[vsock.v]\nsocket = 's'\n[disk.d]\nfile = 'sectors'\n[net.n]\ntap = 'tap0'\n[rng.r]\n\
         [hvc.h]\nport = 'off'\n[balloon.b]\n[pmem.p]\nfile = 'huge'",
    );
    assert_eq!(devices[1].origin, Origin::File { line: 4, column: 7 });
    let kinds: Vec<&DeviceKind> = devices.iter().map(|device| &device.kind).collect();
    let [
        DeviceKind::Vsock(vsock),
        DeviceKind::Disk(disk),
        DeviceKind::Net(net),
        DeviceKind::Rng(rng),
        DeviceKind::Hvc(hvc),
        DeviceKind::Balloon(balloon),
        DeviceKind::Pmem(pmem),
    ] = kinds[..]
    else {
        panic!("{devices:?}");
    };
    assert_eq!((vsock.cid.value, &vsock.socket.value), (3, &folder.path("s")));
    assert_eq!(disk.file.value.path, folder.path("sectors"));
    assert_eq!(disk.file.value.bytes, Bytes::new(1024));
    assert_eq!((disk.readonly.value, disk.discard.value), (false, true));
    assert_eq!((disk.queue_size.value, disk.queues.value), (256, 1));
    assert_eq!((disk.io.value, disk.rate_ops.value), (DiskIo::Auto, Rate::Unlimited));
    assert_eq!((disk.rate_bytes.value, &*disk.serial.value), (ByteRate::Unlimited, "d"));
    assert_eq!((&*net.tap.value, net.mac.value.octets()[0] & 3), ("tap0", 2));
    assert_eq!((net.queues.value, net.queue_size.value, net.offloads.value), (1, 256, true));
    assert_eq!(rng.source.value, HostPath("/dev/urandom".into()));
    assert_eq!((&hvc.port.value, hvc.columns.value, hvc.rows.value), (&Port::Off, 80, 25));
    assert_eq!((balloon.target.value, balloon.statistics.value), (Bytes::new(0), 1));
    assert!(balloon.deflate_on_oom.value && balloon.reporting.value);
    assert_eq!((pmem.sharing.value, pmem.file.value.bytes), (Sharing::Private, Bytes::mib(4)));
}

#[test]
fn a_guest_still_polls_beside_a_device() {
    let config = Folder::new().parse("[rng.r]").unwrap();
    assert_eq!(config.machine.irqchip.value, Irqchip::None);
    assert_eq!(config.machine.device_threads.value, 1);
}

#[test]
fn rates_ports_and_targets_are_what_is_written() {
    let folder = Folder::new();
    let devices = folder.devices(
        "console.serial = 'off'\n[disk.d]\nfile = 'sectors'\nrate_bytes = '100M'\nrate_ops = 500\n\
         [rng.r]\nrate_bytes = 4096\nsource = 'odd'\n[hvc.a]\nrows = 50\n[hvc.b]\nport = 'socket:s'\n\
         [hvc.c]\nport = 'file:f'\n[balloon.b]\ntarget = '64M'\nstatistics = 0",
    );
    let DeviceKind::Disk(disk) = &devices[0].kind else { panic!("{devices:?}") };
    assert_eq!(disk.rate_bytes.value.limit(), Some(Bytes::mib(100)));
    assert_eq!(disk.rate_ops.value, Rate::PerSecond(500));
    let DeviceKind::Rng(rng) = &devices[1].kind else { panic!("{devices:?}") };
    assert_eq!(rng.rate_bytes.value, ByteRate::PerSecond(Bytes::kib(4)));
    let ports: Vec<&Port> = devices
        .iter()
        .filter_map(|device| match &device.kind {
            DeviceKind::Hvc(hvc) => Some(&hvc.port.value),
            _ => None,
        })
        .collect();
    assert_eq!(
        ports,
        [&Port::Stdio, &Port::Socket(folder.path("s")), &Port::File(folder.path("f"))]
    );
}

#[test]
fn sizes_of_files_are_whole() {
    let folder = Folder::new();
    for (text, says) in [
        (
            "[disk.d]\nfile = 'odd'",
            "has 1000 bytes, which is not a multiple of 512 bytes above 0 (the nearest are 512 bytes and 1 KiB)",
        ),
        ("[disk.d]\nfile = 'empty'", "has 0 bytes, which is not a multiple of 512 bytes above 0"),
        (
            "[pmem.p]\nfile = 'uneven'",
            "has 3 MiB, which is not a multiple of 2 MiB above 0 (the nearest are 2 MiB and 4 MiB)",
        ),
        ("[pmem.p]\nfile = '/dev/null'", "a device, and it must be a regular file"),
    ] {
        let refused = folder.refusal(text);
        assert!(refused.contains(says), "{says:?} is not in {refused}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_unless_it_is_only_read() {
    let folder = Folder::new();
    let path = folder.path("huge");
    fs::set_permissions(&*path, Permissions::from_mode(0o444)).unwrap();
    if File::options().write(true).open(&*path).is_ok() {
        return ::tests::skip("permissions of files mean nothing to this user");
    }
    let refused = folder.refusal("[disk.d]\nfile = 'huge'");
    let says = "cannot be written: permission denied (try readonly = true)";
    assert!(refused.contains(says), "{says:?} is not in {refused}");
    folder.devices(
        "[disk.d]\nfile = 'huge'\nreadonly = true\n[pmem.p]\nfile = 'huge'\nsharing = 'shared'",
    );
}

/// Where each lies, and the pool that has room for all.
#[test]
fn persistent_memory_lies_behind_ram_and_the_pool_has_room_for_it() {
    let folder = Folder::new();
    let text =
        "memory.size = '4G'\n[pmem.p]\nfile = 'huge'\n[pmem.q]\nfile = 'huge'\nsharing = 'shared'";
    let config = folder.parse(text).unwrap();
    let places: Vec<u64> = config.pmem().map(|(_, pmem)| pmem.range.start >> 30).collect();
    assert_eq!(places, [5, 6]);
    assert_eq!(
        config.memory.pool.value,
        Bytes::new((4 << 30) + (12 << 20)),
        "the private one twice"
    );
    assert!((config.overcommit() - 1.0).abs() < 1e-9);
    let config = folder.parse(&format!("memory.pool = '2G'\n{text}")).unwrap();
    assert_eq!(config.memory.pool.value, Bytes::gib(2));
    assert!(config.overcommit() > 2.0);
}

#[test]
fn persistent_memory_that_no_address_reaches_is_refused_by_its_key() {
    let folder = Folder::new();
    let text = "boot.guest = 'hello'\nmemory.size = '62G'\nmemory.pool = '1G'\n[pmem.p]\nfile = 'huge'\n\
                [pmem.q]\nfile = 'huge'";
    let parse = |phys_bits| {
        MachineConfig::parse(
            text,
            &folder.0.path().join("x.toml"),
            &[],
            Host { phys_bits, runs_ring0: true },
        )
    };
    assert_eq!(parse(37).unwrap().pmem().count(), 2);
    let refused = parse(36).unwrap_err().to_string();
    assert!(refused.contains("pmem.q.file"), "{refused}");
    assert!(
        refused.contains(
            "its 4 MiB behind memory.size, 62 GiB, are more than addresses of 36 bits reach"
        ),
        "{refused}"
    );
    let hugetlb = folder.refusal("memory.backing = 'hugetlb'\n[pmem.p]\nfile = 'huge'");
    assert!(hugetlb.contains("pmem.p.file") && hugetlb.contains("hugetlb"), "{hugetlb}");
}

#[test]
fn a_serial_is_the_name_as_far_as_it_fits() {
    let folder = Folder::new();
    let name = "a-name-of-twenty-6-chars";
    let devices = folder.devices(&format!("[disk.{name}]\nfile = 'sectors'"));
    let DeviceKind::Disk(disk) = &devices[0].kind else { panic!("{devices:?}") };
    assert_eq!(disk.serial.value, name[..20]);
    let refused = folder.refusal("[disk.d]\nfile = 'sectors'\nserial = 'x23456789012345678901'");
    assert!(refused.contains("at most 20 printable ASCII characters, not 21"), "{refused}");
    let refused = folder.refusal("[disk.d]\nfile = 'sectors'\nserial = 'ü'");
    assert!(refused.contains("at most 20 printable ASCII characters"), "{refused}");
}

#[test]
fn there_are_at_most_16_devices_and_the_17th_is_named() {
    let folder = Folder::new();
    let tables = |count: u32| (0..count).map(|n| format!("[rng.r{n}]\n")).collect::<String>();
    assert_eq!(folder.devices(&tables(16)).len(), 16);
    let refused = folder.refusal(&tables(17));
    let says = "x.toml:18: rng.r16 is one too many: a machine has at most 16 devices";
    assert!(refused.ends_with(says), "{refused}");
}

#[test]
fn an_address_stays_that_of_its_config_and_name() {
    let folder = Folder::new();
    let mac = |file: &Path, name: &str| {
        let text = format!("boot.guest = 'hello'\n[net.{name}]\ntap = 't'");
        let config =
            MachineConfig::parse(&text, file, &[], Host { phys_bits: 46, runs_ring0: true })
                .unwrap();
        let DeviceKind::Net(net) = &config.devices[0].kind else { panic!("{config:?}") };
        net.mac.value
    };
    // Any file that is there will do as the config.
    let (here, around) = (folder.path("odd"), folder.path("./odd"));
    assert_eq!(mac(&here, "a"), mac(&around, "a"));
    assert_ne!(mac(&here, "a"), mac(&here, "b"));
    assert_ne!(mac(&here, "a"), mac(&folder.path("huge"), "a"));
}
