//! Frames, both ways.

use super::*;

/// A header that asks for a checksum at 34 + 16, and for segments of 1448 bytes of TCP over IPv4.
const ASKING: [u8; 10] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0];

#[test]
fn a_frame_goes_out_with_its_header_however_it_is_cut_into_buffers() {
    let (mut rig, fake) = Rig::usual();
    for cuts in [&[][..], &[12], &[5, 3, 4, 1000], &[1]] {
        let mut sent = frame(3, 4000);
        sent[..10].copy_from_slice(&ASKING);
        rig.send(0, &sent, cuts);
        rig.driver.kick(1);
        rig.sent(0);
        assert!(fake.take(0).unwrap() == sent, "{cuts:?}");
    }
    assert_eq!((rig.count("tx_packets"), rig.count("tx_bytes")), (4, 16000));
}

#[test]
fn a_frame_comes_in_with_its_header_and_the_number_of_its_buffers() {
    let (mut rig, fake) = Rig::usual();
    rig.post_and_kick(0, 16, 0x1_0100);
    for len in [14, 60, 1514] {
        let mut given = frame(9, len);
        given[..10].copy_from_slice(&ASKING);
        // What an interface leaves there is not for the driver.
        given[10..12].copy_from_slice(&[0xaa, 0xaa]);
        fake.give(0, &given);
        let (got, buffers) = rig.received(0);
        given[10..12].copy_from_slice(&[1, 0]);
        assert!(got == given && buffers == 1);
    }
    assert_eq!((rig.count("rx_packets"), rig.count("rx_bytes")), (3, 14 + 60 + 1514));
}

#[test]
fn a_large_frame_lies_in_several_buffers_and_small_ones_take_one_each() {
    for without in [0, EVENT_IDX] {
        let fake = Fake::new(1);
        let mut rig = Rig::new(Box::new(fake.host()), without, 64);
        for round in 0..20_u8 {
            let have = rig.posted[0].len();
            rig.post_and_kick(0, 64 - have, 4096);
            let lengths = [60, 65000, 4084, 4085, 1514, 9000];
            for (tag, &len) in (round..).zip(&lengths) {
                fake.give(0, &frame(tag, len));
            }
            for (tag, &len) in (round..).zip(&lengths) {
                let (got, buffers) = rig.received(0);
                assert_eq!(usize::from(buffers), (12 + len).div_ceil(4096));
                assert!(got[12..] == frame(tag, len)[12..], "{tag}: {len}");
            }
        }
        assert_eq!(rig.count("rx_dropped"), 0);
        assert_eq!(rig.count("rx_spilled"), 1, "after the first, large ones are expected");
    }
}

#[test]
fn a_large_frame_that_nobody_expected_comes_whole_or_not_at_all() {
    let fake = Fake::new(1);
    let mut rig = Rig::new(Box::new(fake.host()), 0, 64);
    rig.post_and_kick(0, 60, 4096);
    fake.give(0, &frame(1, 65000));
    let (got, buffers) = rig.received(0);
    assert!(got[12..] == frame(1, 65000)[12..] && buffers == 16);
    assert_eq!(rig.count("rx_spilled"), 1);

    // The first buffer promises more than the others hold.
    rig.bring_up(0, 64);
    rig.post(0, 1, 4096);
    rig.post_and_kick(0, 20, 2000);
    fake.give(0, &frame(2, 60000));
    fake.give(0, &frame(3, 1000));
    fake.give(0, &frame(4, 30000));
    rig.wait_for("rx_dropped", 1);
    // Now room for the largest is made in advance, as soon as the driver brings it.
    rig.post_and_kick(0, 40, 2000);
    for (tag, len) in [(3, 1000), (4, 30000)] {
        let (got, _) = rig.received(0);
        assert!(got[12..] == frame(tag, len)[12..], "{tag}");
    }
    assert_eq!((rig.count("rx_spilled"), rig.count("rx_dropped")), (1, 1));
}

#[test]
fn without_merging_a_frame_has_one_buffer_and_is_lost_if_that_is_too_small() {
    let fake = Fake::new(1);
    let mut rig = Rig::new(Box::new(fake.host()), MRG_RXBUF, 16);
    rig.post_and_kick(0, 3, 200);
    for (tag, len) in [(1, 100), (2, 1000), (3, 188), (4, 189), (5, 20)] {
        fake.give(0, &frame(tag, len));
    }
    for (tag, len) in [(1, 100), (3, 188), (5, 20)] {
        let (got, buffers) = rig.received(0);
        assert!(got[12..] == frame(tag, len)[12..] && buffers == 1, "{tag}");
    }
    assert_eq!((rig.count("rx_packets"), rig.count("rx_dropped")), (3, 2));
}

#[test]
fn frames_wait_for_buffers_and_wake_nobody_meanwhile() {
    for without in [0, EVENT_IDX, MRG_RXBUF] {
        let fake = Fake::new(1);
        let mut rig = Rig::new(Box::new(fake.host()), without | GUEST_TSO4 | 1 << 8 | 1 << 54, 16);
        for tag in 0..50 {
            fake.give(0, &frame(tag, 1000));
        }
        a_moment();
        assert_eq!(rig.count("wakes"), 0, "nothing is watched");
        for tag in 0..50 {
            rig.post_and_kick(0, 1, 2000);
            assert!(rig.received(0).0[12..] == frame(tag, 1000)[12..]);
        }
        a_moment();
        let wakes = rig.count("wakes");
        assert!(wakes <= 50, "{wakes}");
        // The last of them is taken back: what comes now waits again.
        fake.give(0, &frame(50, 1000));
        a_moment();
        fake.give(0, &frame(51, 1000));
        a_moment();
        assert!(rig.count("wakes") <= wakes + 1);
        rig.post_and_kick(0, 2, 2000);
        for tag in 50..52 {
            assert!(rig.received(0).0[12..] == frame(tag, 1000)[12..]);
        }
        assert_eq!(rig.count("rx_dropped"), 0);
    }
}

#[test]
fn too_few_buffers_for_any_frame_wait_for_more_unless_half_of_the_ring_is_filled() {
    let (mut rig, fake) = Rig::usual();
    fake.give(0, &frame(1, 1000));
    rig.post_and_kick(0, 7, 1536);
    a_moment();
    assert_eq!((rig.count("rx_packets"), rig.count("wakes")), (0, 0));
    // 2.7.10: the kick is asked for behind all seven. One is not going to come for those that are there.
    let rings = rig.driver.rings(0);
    let event = rig.memory(rings.used + 4 + 8 * u64::from(rings.size), 2);
    assert_eq!(event, [7, 0]);
    rig.post_and_kick(0, 1, 1536);
    assert!(rig.received(0).0[12..] == frame(1, 1000)[12..]);
    rig.post_and_kick(0, 9, 1536);
    fake.give(0, &frame(2, 60000));
    fake.give(0, &frame(3, 20000));
    let (got, buffers) = rig.received(0);
    assert!(got[12..] == frame(3, 20000)[12..] && buffers == 14);
    assert_eq!(rig.count("rx_dropped"), 1);
}

#[test]
fn frames_of_a_burst_are_told_of_together() {
    let fake = Fake::new(1);
    let mut rig = Rig::new(Box::new(fake.host()), GUEST_TSO4 | 1 << 8 | 1 << 54, 64);
    for tag in 0..40 {
        fake.give(0, &frame(tag, 100));
    }
    rig.post_and_kick(0, 64, 2048);
    for tag in 0..40 {
        assert!(rig.received(0).0[12..] == frame(tag, 100)[12..]);
    }
    rig.wait_for("rx_packets", 40);
    a_moment();
    let interrupts = rig.device.report().interrupts;
    assert!((1..=4).contains(&interrupts), "{interrupts}");
    for tag in 0..40 {
        rig.send(0, &frame(tag, 100), &[]);
    }
    rig.driver.kick(1);
    (0..40).for_each(|_| rig.sent(0));
    a_moment();
    let since = rig.device.report().interrupts - interrupts;
    assert!((1..=4).contains(&since), "{since}");
    for tag in 0..40 {
        assert!(fake.take(0).unwrap() == frame(tag, 100));
    }
}

#[test]
fn an_interrupt_that_is_wanted_amid_the_buffers_of_a_frame_comes() {
    let fake = Fake::new(1);
    let mut rig = Rig::new(Box::new(fake.host()), 0, 64);
    let rings = rig.driver.rings(0);
    // Sixteen buffers each.
    for (used_event, len, interrupts) in [(5_u16, 65000, 1), (40, 65000, 0), (40, 65000, 1)] {
        let have = rig.posted[0].len();
        rig.post_and_kick(0, 64 - have, 4096);
        let at = GuestAddress(rings.available + 4 + 2 * u64::from(rings.size));
        rig.dma.view().write_obj(used_event, at).unwrap();
        let before = rig.device.report().interrupts;
        fake.give(0, &frame(1, len));
        assert_eq!(rig.received(0).1, 16);
        a_moment();
        assert_eq!(rig.device.report().interrupts - before, interrupts, "{used_event}");
    }
}

#[test]
fn what_the_host_does_not_take_yet_waits_in_order() {
    let fake = Fake::new(1);
    let mut rig = Rig::new(Box::new(fake.host()), 0, 64);
    for tag in 0..60 {
        rig.send(0, &frame(tag, 60000), &[30000]);
        rig.driver.kick(1);
        if tag >= 31 {
            // The ring is full of descriptors.
            let taken = rig.wait(|_| fake.take(0));
            assert!(taken == frame(tag - 31, 60000), "{tag}");
            rig.sent(0);
        }
    }
    a_moment();
    assert!(rig.count("tx_packets") < 60, "a socket keeps less than that");
    for tag in 29..60 {
        let taken = rig.wait(|_| fake.take(0));
        assert!(taken == frame(tag, 60000), "{tag}");
    }
    assert_eq!((rig.count("tx_packets"), rig.count("tx_dropped")), (60, 0));
}

#[test]
fn a_frame_that_no_interface_takes_is_dropped_and_the_next_goes() {
    let (mut rig, fake) = Rig::usual();
    rig.send(0, &frame(1, 70000), &[]);
    rig.send(0, &frame(2, 100), &[]);
    rig.driver.kick(1);
    rig.sent(0);
    rig.sent(0);
    assert!(fake.take(0).unwrap() == frame(2, 100));
    assert_eq!((rig.count("tx_packets"), rig.count("tx_dropped")), (1, 1));
}
