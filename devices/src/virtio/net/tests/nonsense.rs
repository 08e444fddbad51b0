//! Drivers that make no sense, and hosts that leave.

use super::*;

#[test]
fn buffers_that_make_no_sense_break_the_device_and_a_reset_mends_it() {
    let (mut rig, fake) = Rig::usual();
    let at = BUFFERS;
    let beyond = RAM as u64 - 6;
    let cases: [(u16, &[Buffer], &str); 8] = [
        (0, &[Buffer::writable(at, 11)], "without room for a frame's header"),
        (0, &[Buffer::readable(at, 12), Buffer::writable(at, 2000)], "memory to read"),
        (0, &[Buffer::writable(beyond, 0x1_0100)], "queue 0"),
        (1, &[Buffer::readable(at, 11)], "without a whole header"),
        (1, &[Buffer::readable(at, 100), Buffer::writable(at, 1)], "memory to write"),
        (1, &[Buffer::readable(beyond, 100)], "queue 1"),
        (2, &[Buffer::readable(at, 3)], "no room for its answer"),
        (2, &[Buffer::readable(at, 1), Buffer::writable(at + 8, 1)], "no command"),
    ];
    for (round, (queue, buffers, says)) in (0_u8..).zip(cases) {
        rig.driver.add(&rig.dma.view(), queue, buffers).unwrap();
        rig.driver.kick(queue);
        let why = rig.breaks();
        assert!(why.contains(says), "{why}");
        rig.bring_up(0, 16);
        fake.give(0, &frame(round, 500));
        rig.post_and_kick(0, 16, 0x1_1000);
        assert!(rig.received(0).0[12..] == frame(round, 500)[12..]);
        rig.bring_up(0, 16);
    }
}

#[test]
fn buffers_larger_or_in_more_pieces_than_any_frame_are_used_as_far_as_one_goes() {
    let fake = Fake::new(1);
    let mut rig = Rig::new(Box::new(fake.host()), GUEST_TSO4 | 1 << 8 | 1 << 54, 64);
    let pieces: Vec<_> =
        (0..32).map(|piece| Buffer::writable(BUFFERS + 0x100 * piece, 100)).collect();
    rig.driver.add(&rig.dma.view(), 0, &pieces).unwrap();
    rig.driver.add(&rig.dma.view(), 0, &[Buffer::writable(BUFFERS + 0x10000, 8 << 20)]).unwrap();
    fake.give(0, &frame(1, 1500));
    fake.give(0, &frame(2, 1500));
    rig.driver.kick(0);
    for written in [1512, 1512] {
        let got = rig.wait(|rig| rig.driver.poll(&rig.dma.view(), 0));
        assert_eq!(got.1, written);
    }
    assert!(rig.memory(BUFFERS + 0x200, 100) == frame(1, 1500)[200..300]);
    assert!(rig.memory(BUFFERS + 0x10000 + 12, 1500) == frame(2, 1500)[12..]);
}

#[test]
fn a_host_that_has_gone_breaks_the_device() {
    for kick in [0, 1] {
        let (mut rig, fake) = Rig::usual();
        if kick == 0 {
            rig.post_and_kick(0, 16, 0x1_1000);
            a_moment();
        }
        drop(fake);
        if kick == 1 {
            a_moment();
            assert_eq!(
                rig.device.report().broken,
                None,
                "nobody looks while nothing is to be done"
            );
            rig.send(0, &frame(1, 100), &[]);
            rig.driver.kick(1);
        }
        let why = rig.breaks();
        assert!(why.contains("the interface has gone"), "{why}");
        let wakes = rig.count("wakes");
        a_moment();
        assert_eq!(rig.count("wakes"), wakes, "it is not watched any more");
    }
}

#[test]
fn what_no_device_can_be_is_refused_when_it_is_made() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
    let dma = Plain::new(memory);
    let good = Config { mac: MAC, queues: 1, queue_size: 64, offloads: true };
    for (config, says) in [
        (Config { queues: 0, ..good }, "0 pairs"),
        (Config { queues: 2, ..good }, "2 pairs of queues over an interface of 1"),
        (Config { queue_size: 48, ..good }, "not a power of two"),
        (Config { mac: [1, 0, 0, 0, 0, 1], ..good }, "of a group"),
    ] {
        let host = Box::new(Fake::new(1).host());
        let error = Net::new(&dma, config, host).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
