use super::*;

const GIB: u64 = 1 << 30;
/// 2026-11-21 00:41:03 UTC, a Saturday.
const NOVEMBER: u64 = 1_795_221_663;

fn at(epoch: Duration) -> Cmos {
    let memory = MemorySizes { below_4g: 3 * GIB, above_4g: 5 * GIB };
    Cmos::with_clock(memory, move || epoch)
}

fn get(cmos: &mut Cmos, index: u8) -> u8 {
    cmos.write(0, &[index]);
    let mut data = [0xff];
    cmos.read(1, &mut data);
    data[0]
}

fn get_le(cmos: &mut Cmos, indices: std::ops::RangeInclusive<u8>) -> u64 {
    indices.rev().fold(0, |value, index| (value << 8) | u64::from(get(cmos, index)))
}

#[test]
fn time_is_utc_in_bcd_and_24_hours() {
    let mut cmos = at(Duration::from_secs(NOVEMBER));
    let registers = [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, DAY_OF_WEEK];
    let values = registers.map(|register| get(&mut cmos, register));
    assert_eq!(values, [0x20, 0x26, 0x11, 0x21, 0x00, 0x41, 0x03, 0x07]);
    assert_eq!(get(&mut cmos, STATUS_B), B_24_HOURS);
    assert_eq!(get(&mut cmos, STATUS_D), D_VALID);
}

#[test]
fn the_calendar_knows_leap_years_and_centuries() {
    for (epoch, (year, month, day, weekday)) in [
        (0, (1970, 1, 1, 5)),
        (951_782_400, (2000, 2, 29, 3)),
        (1_709_164_800, (2024, 2, 29, 5)),
        (1_735_689_599, (2024, 12, 31, 3)),
        (4_107_542_400, (2100, 3, 1, 2)),
        (13_574_563_200, (2400, 2, 29, 3)),
    ] {
        let utc = Utc::from_epoch(epoch);
        assert_eq!(
            (utc.year, utc.month, utc.day, utc.weekday),
            (year, month, day, weekday),
            "{epoch}"
        );
    }
}

#[test]
fn any_clock_is_converted_without_a_panic_or_a_long_loop() {
    let mut cmos = at(Duration::MAX);
    for index in 0..=0xff {
        get(&mut cmos, index);
    }
}

#[test]
fn the_update_bit_is_set_only_just_before_the_second_turns() {
    let status =
        |micros| get(&mut at(Duration::from_micros(micros)), STATUS_A) & A_UPDATE_IN_PROGRESS;
    assert_eq!(status(0), 0);
    assert_eq!(status(999_755), 0);
    assert_eq!(status(999_756), A_UPDATE_IN_PROGRESS);
    assert_eq!(status(999_999), A_UPDATE_IN_PROGRESS);
    assert_eq!(status(1_000_000), 0);
}

#[test]
fn memory_sizes_are_told_in_their_several_units_and_saturate() {
    let mut cmos = at(Duration::ZERO);
    assert_eq!(get_le(&mut cmos, 0x15..=0x16), 640);
    assert_eq!(get_le(&mut cmos, 0x17..=0x18), 0xffff);
    assert_eq!(get_le(&mut cmos, 0x30..=0x31), 0xffff);
    assert_eq!(get_le(&mut cmos, 0x34..=0x35), (3 * GIB - 16 * MIB) >> 16);
    assert_eq!(get_le(&mut cmos, 0x5b..=0x5d), (5 * GIB) >> 16);

    let memory = MemorySizes { below_4g: 8 * MIB, above_4g: 0 };
    let mut small = Cmos::with_clock(memory, || Duration::ZERO);
    assert_eq!(get_le(&mut small, 0x30..=0x31), 7 * 1024);
    assert_eq!(get_le(&mut small, 0x34..=0x35), 0);
}

#[test]
fn other_bytes_are_ram_and_the_clock_cannot_be_set() {
    let mut cmos = at(Duration::from_secs(NOVEMBER));
    cmos.write(0, &[0x0f, 0xa5]);
    assert_eq!(get(&mut cmos, 0x0f), 0xa5);
    cmos.write(0, &[SECONDS, 0x59]);
    assert_eq!(get(&mut cmos, SECONDS), 0x03);
}

#[test]
fn the_nmi_bit_of_the_index_is_not_part_of_it() {
    let mut cmos = at(Duration::ZERO);
    assert_eq!(get(&mut cmos, 0x80 | STATUS_D), D_VALID);
}
