use super::*;

/// Remembers what it was told; reads return the offset.
#[derive(Default)]
struct Probe {
    writes: Vec<(u64, Vec<u8>)>,
    answer: Option<Request>,
}

impl BusDevice for Probe {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data[0] = offset as u8;
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        self.writes.push((offset, data.to_vec()));
        self.answer
    }
}

fn probe() -> Arc<Mutex<Probe>> {
    Arc::default()
}

fn ports(base: u64, len: u64) -> PioRange {
    PioRange::new(base, len).unwrap()
}

#[test]
fn a_range_is_not_empty_and_ends_inside_its_space() {
    assert!(PioRange::new(0x60, 0).is_err());
    assert!(PioRange::new(0xffff, 2).is_err());
    assert!(PioRange::new(0x1_0000, 1).is_err());
    assert_eq!(PioRange::new(0xffff, 1).unwrap().last(), 0xffff);
    assert_eq!(MmioRange::new(u64::MAX, 1).unwrap().last(), u64::MAX);
    assert!(MmioRange::new(u64::MAX, 2).is_err());
    assert_eq!(MmioRange::new(0, u64::MAX).unwrap().last(), u64::MAX - 1);
}

#[test]
fn a_device_sees_offsets_into_its_own_range() {
    let (low, high) = (probe(), probe());
    let mut bus = PioBus::new();
    bus.insert(ports(0x3f8, 8), "serial", high.clone()).unwrap();
    bus.insert(ports(0x60, 1), "keyboard", low.clone()).unwrap();

    let mut data = [0; 1];
    assert_eq!(bus.read(0x3fd, &mut data), Claimed::Yes(None));
    assert_eq!(data, [5]);
    assert_eq!(bus.write(0x60, &[7]), Claimed::Yes(None));
    assert_eq!(low.lock().unwrap().writes, [(0, vec![7])]);
    assert!(high.lock().unwrap().writes.is_empty());
}

#[test]
fn an_overlap_names_both_devices_and_leaves_the_bus_as_it_was() {
    let mut bus = PioBus::new();
    bus.insert(ports(0x3f8, 8), "serial", probe()).unwrap();
    for range in [ports(0x3ff, 1), ports(0x3f0, 9), ports(0, 0x1_0000), ports(0x3fa, 2)] {
        let text = bus.insert(range, "floppy", probe()).unwrap_err().to_string();
        assert!(text.contains("floppy at") && text.contains("serial at 0x3f8..=0x3ff"), "{text}");
    }
    bus.insert(ports(0x400, 1), "after", probe()).unwrap();
    bus.insert(ports(0x3f7, 1), "before", probe()).unwrap();
    let names: Vec<_> = bus.ranges().map(|(_, name)| name).collect();
    assert_eq!(names, ["before", "serial", "after"]);
}

#[test]
fn an_unclaimed_read_is_all_ones_counted_and_remembered_once_per_address() {
    let bus = PioBus::new();
    let mut data = [0; 4];
    assert_eq!(bus.read(0x1234, &mut data), Claimed::No);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(bus.write(0x1234, &[0]), Claimed::No);
    assert_eq!(bus.write(0x80, &[0, 0]), Claimed::No);

    let report = bus.unclaimed();
    assert_eq!(report.accesses, 3);
    let read = UnclaimedAccess { addr: 0x1234, direction: Direction::Read, size: 4 };
    let write = UnclaimedAccess { addr: 0x80, direction: Direction::Write, size: 2 };
    assert_eq!(report.first, [read, write]);
}

#[test]
fn a_scan_of_the_port_space_is_counted_but_remembered_only_in_part() {
    let bus = PioBus::new();
    for port in 0..=0xffff {
        assert_eq!(bus.read(port, &mut [0]), Claimed::No);
    }
    let report = bus.unclaimed();
    assert_eq!(report.accesses, 0x1_0000);
    assert_eq!(report.first.len(), Unclaimed::REMEMBERED);
    assert_eq!(report.first[3].addr, 3);
}

#[test]
fn an_access_that_straddles_the_end_of_a_range_is_unclaimed_as_a_whole() {
    let device = probe();
    let mut bus = PioBus::new();
    bus.insert(ports(0x70, 2), "cmos", device.clone()).unwrap();
    assert_eq!(bus.write(0x71, &[1, 2]), Claimed::No);
    assert_eq!(bus.write(0x6f, &[1, 2]), Claimed::No);
    assert!(device.lock().unwrap().writes.is_empty());
}

#[test]
fn accesses_at_the_end_of_the_space_and_of_no_size_do_not_overflow() {
    let mut bus = MmioBus::new();
    bus.insert(MmioRange::new(u64::MAX - 3, 4).unwrap(), "top", probe()).unwrap();
    assert_eq!(bus.write(u64::MAX, &[1]), Claimed::Yes(None));
    assert_eq!(bus.write(u64::MAX, &[1, 2]), Claimed::No);
    assert_eq!(bus.write(u64::MAX, &[]), Claimed::No);
}

#[test]
fn a_request_reaches_the_caller() {
    let device = probe();
    device.lock().unwrap().answer = Some(Request::Exit(3));
    let mut bus = PioBus::new();
    bus.insert(ports(0xf4, 1), "exit", device).unwrap();
    assert_eq!(bus.write(0xf4, &[0]), Claimed::Yes(Some(Request::Exit(3))));
}

#[test]
fn a_bus_is_shared_by_threads_and_survives_a_device_that_panicked() {
    struct Bomb;
    impl BusDevice for Bomb {
        fn read(&mut self, _: u64, data: &mut [u8]) {
            data[0] = 1;
        }
        fn write(&mut self, _: u64, _: &[u8]) -> Option<Request> {
            panic!("a device bug, on purpose");
        }
    }
    let mut bus = PioBus::new();
    bus.insert(ports(1, 1), "bomb", Arc::new(Mutex::new(Bomb))).unwrap();
    let bus = &bus;
    std::thread::scope(|scope| {
        assert!(scope.spawn(move || drop_claim(bus.write(1, &[0]))).join().is_err());
    });
    let mut data = [0];
    assert_eq!(bus.read(1, &mut data), Claimed::Yes(None));
    assert_eq!(data, [1]);
}

fn drop_claim(_: Claimed) {}
