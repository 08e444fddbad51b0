//! A device at rest, saved, restored and reset.

use super::*;
use crate::virtio::net::host::Offloads;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn a_device_at_rest_takes_nothing_from_the_host_and_goes_on_later() {
    let (mut rig, fake) = Rig::usual();
    rig.post_and_kick(0, 16, 0x1_1000);
    fake.give(0, &frame(0, 300));
    assert!(rig.received(0).0[12..] == frame(0, 300)[12..]);
    rig.device.quiesce(soon()).unwrap();
    let wakes = rig.count("wakes");
    fake.give(0, &frame(1, 300));
    rig.send(0, &frame(2, 300), &[]);
    rig.driver.kick(1);
    a_moment();
    assert_eq!((rig.count("wakes"), rig.count("rx_packets"), fake.take(0)), (wakes, 1, None));
    rig.device.resume();
    assert!(rig.received(0).0[12..] == frame(1, 300)[12..]);
    rig.sent(0);
    assert!(fake.take(0).unwrap() == frame(2, 300));
}

#[test]
fn a_device_that_was_saved_goes_on_where_it_was() {
    let fake = Fake::new(2);
    let mut rig = Rig::new(Box::new(fake.host()), GUEST_TSO4, 16);
    assert_eq!(rig.ask(4, &[4, 0, 2, 0]), 0);
    assert_eq!(rig.ask(4, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    (0..2).for_each(|pair| rig.post_and_kick(pair, 10, 0x1_1000));
    fake.give(1, &frame(1, 300));
    assert!(rig.received(1).0[12..] == frame(1, 300)[12..]);
    rig.device.quiesce(soon()).unwrap();
    fake.give(1, &frame(2, 300));
    rig.send(1, &frame(3, 300), &[]);
    rig.driver.kick(3);
    let text = serde_json::to_string(&rig.device.save()).unwrap();
    *fake.asked.lock().unwrap() = fake::Asked::default();

    // Another device on the same memory and sockets: the old one's driver does not notice.
    let other = device(&rig.dma, 2, Box::new(fake.host()));
    rig.threads = Threads::start(&[Arc::clone(&other)], 1).unwrap();
    other.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    rig.device = Arc::clone(&other);
    a_moment();
    assert_eq!((rig.buffer(1), fake.take(1)), (None, None), "it rests until it is resumed");
    {
        let asked = fake.asked.lock().unwrap();
        let left = Offloads { checksum: true, tso4: false, tso6: true, uso: true };
        assert_eq!((asked.pairs, asked.offloads), (2, left));
    }
    other.resume();
    assert!(rig.received(1).0[12..] == frame(2, 300)[12..]);
    let sent = rig.wait(|_| fake.take(1));
    assert!(sent == frame(3, 300));
    let state = other.save();
    assert_eq!(state.model.body["mac"][5], 9);
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name() {
    let (rig, _fake) = Rig::usual();
    rig.device.quiesce(soon()).unwrap();
    let good = rig.device.save();
    let mut version = good.clone();
    version.model.version = 99;
    let mut pairs = good.clone();
    pairs.model.body["pairs"] = 2.into();
    let mut none = good.clone();
    none.model.body["pairs"] = 0.into();
    let mut mtu = good.clone();
    mtu.model.body["mtu"] = 9000.into();
    for (state, says) in [
        (version, "version 99"),
        (pairs, "2 pairs of queues, and there are 1"),
        (none, "0 pairs"),
        (mtu, "an MTU of 9000, and has 1500"),
    ] {
        let text = rig.device.restore(&state).unwrap_err().to_string();
        assert!(text.starts_with("net: ") && text.contains(says), "{text}");
    }
}

#[test]
fn a_reset_watches_nothing_and_the_next_driver_sees_no_frames_of_before() {
    let (mut rig, fake) = Rig::usual();
    for round in 0..20 {
        rig.post_and_kick(0, 16, 0x1_1000);
        fake.give(0, &frame(round, 300));
        assert!(rig.received(0).0[12..] == frame(round, 300)[12..]);
        rig.driver.write(0x70, 0);
        assert_eq!(rig.driver.status(), 0);
        let wakes = rig.count("wakes");
        (0..5).for_each(|_| fake.give(0, &frame(99, 20000)));
        if round == 0 {
            a_moment();
            assert_eq!(rig.count("wakes"), wakes);
        }
        rig.bring_up(0, 16);
    }
}
