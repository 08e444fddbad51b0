//! The control queue, several pairs of queues, and the configuration space.

use super::*;
use crate::virtio::net::host::Offloads;

fn config(rig: &mut Rig) -> [u8; 12] {
    let mut space = [0; 12];
    rig.driver.config(0, &mut space);
    space
}

#[test]
fn the_configuration_space_tells_address_link_pairs_and_mtu() {
    let fake = Fake::new(2);
    let mut rig = Rig::new(Box::new(fake.host()), 0, 16);
    assert_eq!(config(&mut rig), [2, 0, 0, 0, 0, 7, 1, 0, 2, 0, 0xdc, 5]);
}

#[test]
fn commands_are_done_or_refused_and_never_break_the_device() {
    let (mut rig, _fake) = Rig::usual();
    let mut table = vec![1, 0, 2, 0, 0, 0];
    table.extend([2; 12]);
    table.extend([0; 4]);
    let good: [&[u8]; 4] = [&[0, 0, 1], &[0, 1, 0], &table, &[1, 1, 2, 0, 0, 0, 0, 9]];
    for command in good {
        assert_eq!(rig.ask(2, command), 0, "{command:?}");
    }
    assert_eq!(config(&mut rig)[..6], [2, 0, 0, 0, 0, 9]);
    table[2] = 3;
    let huge = [1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    let bad: [&[u8]; 11] = [
        &[0, 0],
        &[0, 7, 1],
        &table,
        &huge,
        &[1, 0],
        &[1, 1, 2, 0, 0, 0, 0],
        &[1, 1, 3, 0, 0, 0, 0, 9],
        &[2, 0, 1, 0],
        // There is one pair, and no command to set another number.
        &[4, 0, 1, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xff, 0xff],
    ];
    for command in bad {
        assert_eq!(rig.ask(2, command), 1, "{command:?}");
    }
    assert_eq!((rig.count("commands"), rig.count("commands_refused")), (15, 11));
    assert_eq!(rig.device.report().broken, None);
    rig.bring_up(0, 16);
    assert_eq!(config(&mut rig)[..6], MAC, "a reset brings the first address back");
}

#[test]
fn pairs_are_used_from_when_the_driver_says_so() {
    let fake = Fake::new(3);
    let mut rig = Rig::new(Box::new(fake.host()), 0, 16);
    (0..3).for_each(|pair| rig.post_and_kick(pair, 16, 0x1_1000));
    for pair in 0..3 {
        fake.give(pair, &frame(pair as u8, 300));
    }
    assert!(rig.received(0).0[12..] == frame(0, 300)[12..]);
    a_moment();
    assert_eq!(rig.count("rx_packets"), 1, "there is one pair until another number is set");
    assert_eq!(fake.asked.lock().unwrap().pairs, 1);
    for (pairs, answer) in [(0, 1), (4, 1), (3, 0)] {
        assert_eq!(rig.ask(6, &[4, 0, pairs, 0]), answer);
    }
    for pair in 1..3 {
        assert!(rig.received(pair).0[12..] == frame(pair as u8, 300)[12..]);
        rig.send(pair, &frame(9, 200), &[]);
        rig.driver.kick(2 * pair + 1);
        rig.sent(pair);
        assert!(fake.take(pair.into()).unwrap() == frame(9, 200));
    }
    assert_eq!(rig.ask(6, &[4, 0, 1, 0]), 0);
    assert_eq!(fake.asked.lock().unwrap().pairs, 1);
    let wakes = rig.count("wakes");
    fake.give(2, &frame(5, 300));
    a_moment();
    assert_eq!(rig.count("wakes"), wakes);
    fake.asked.lock().unwrap().stubborn = true;
    assert_eq!(rig.ask(6, &[4, 0, 2, 0]), 1, "the host refuses");
    fake.give(0, &frame(6, 300));
    assert!(rig.received(0).0[12..] == frame(6, 300)[12..]);
}

#[test]
fn a_driver_that_knows_of_one_pair_has_its_control_queue_behind_it() {
    let fake = Fake::new(3);
    let mut rig = Rig::new(Box::new(fake.host()), 1 << 22, 16);
    assert_eq!(rig.ask(2, &[0, 0, 1]), 0);
    rig.driver.kick(6);
    rig.driver.kick(3);
    fake.give(0, &frame(1, 300));
    rig.post_and_kick(0, 16, 0x1_1000);
    assert!(rig.received(0).0[12..] == frame(1, 300)[12..]);
}

#[test]
fn the_host_leaves_to_a_driver_what_it_accepted() {
    let all = Offloads { checksum: true, tso4: true, tso6: true, uso: true };
    for (without, left) in [
        (0, all),
        (GUEST_TSO4, Offloads { tso4: false, ..all }),
        (1 << 54, Offloads { uso: false, ..all }),
        // Without checksums nothing makes sense.
        (1 << 1, Offloads::default()),
    ] {
        let fake = Fake::new(1);
        let _rig = Rig::new(Box::new(fake.host()), without, 16);
        assert_eq!(fake.asked.lock().unwrap().offloads, left, "{without:#x}");
    }
}
