//! Properties of a state's bytes:
//! * what was written reads back as it was;
//! * bytes that were changed or cut off anywhere are refused, and never panic;
//! * a version that is not this program's is refused as such.

use devices::virtio::device::Shape;
use devices::virtio::model::Saved;
use devices::virtio::state::{Registers, SavedQueue};
use proptest::prelude::*;
use virtio_queue::QueueState;

use super::*;
use crate::state::{Extent, NamedShape};

prop_compose! {
    fn device()(
        name in "[a-z.]{1,12}",
        words in any::<[u32; 6]>(),
        features in any::<u64>(),
        addresses in any::<[u64; 3]>(),
        indices in any::<[u16; 4]>(),
        flags in any::<[bool; 2]>(),
        body in "\\PC{0,20}",
    ) -> (NamedShape, SavedDevice) {
        let shape = Shape { device_type: words[0], features, queues: indices.to_vec() };
        let registers = Registers {
            status: words[1],
            device_features_sel: words[2],
            driver_features_sel: words[3],
            driver_features: features,
            queue_sel: words[4],
            config_generation: words[5],
        };
        let queue = SavedQueue(QueueState {
            max_size: indices[0],
            next_avail: indices[1],
            next_used: indices[2],
            event_idx_enabled: flags[0],
            size: indices[3],
            ready: flags[1],
            desc_table: addresses[0],
            avail_ring: addresses[1],
            used_ring: addresses[2],
        });
        let state = DeviceState {
            version: 1,
            device_type: words[0],
            registers,
            interrupt: words[1],
            queues: vec![queue; 2],
            model: Saved::new(3, &body),
        };
        (NamedShape { name: name.clone(), shape }, SavedDevice { name, state })
    }
}

prop_compose! {
    fn machine()(
        vcpus in prop::collection::vec(any::<[u64; 8]>(), 1..4),
        ram in prop::collection::vec(any::<[u64; 2]>(), 0..3),
        words in any::<[u64; 4]>(),
        devices in prop::collection::vec(device(), 0..3),
        bytes in any::<[u8; 10]>(),
        input in prop::collection::vec(any::<u8>(), 0..64),
        flags in any::<[bool; 3]>(),
    ) -> MachineState {
        let (shapes, devices) = devices.into_iter().unzip();
        let extents = |ranges: &[[u64; 2]]| {
            ranges.iter().map(|&[start, bytes]| Extent { start, bytes }).collect()
        };
        let [a, b, c, d, e, f, g, h, index, _] = bytes;
        MachineState {
            fingerprint: Fingerprint {
                ram: extents(&ram),
                memory: Vec::new(),
                guard: extents(&ram),
                vcpus: vcpus.len() as u8,
                cpuid: Vec::new(),
                irqchip: flags[0],
                acpi: flags[1],
                devices: shapes,
            },
            vm: VmState::sample(words[0], flags[2]),
            vcpus: vcpus.into_iter().map(VcpuState::sample).collect(),
            platform: Platform {
                serial: SerialState {
                    divisor: [a, b],
                    interrupt_enable: c,
                    interrupt_identification: d,
                    line_control: e,
                    line_status: f,
                    modem_control: g,
                    modem_status: h,
                    scratch: a,
                    input: input.clone(),
                },
                cmos: CmosState { index, ram: input },
            },
            devices,
        }
    }
}

impl MachineState {
    /// One of a machine with nothing.
    pub(crate) fn sample() -> MachineState {
        let fingerprint = Fingerprint {
            ram: Vec::new(),
            memory: Vec::new(),
            guard: Vec::new(),
            vcpus: 1,
            cpuid: Vec::new(),
            irqchip: false,
            acpi: false,
            devices: Vec::new(),
        };
        MachineState {
            fingerprint,
            vm: VmState::sample(1, true),
            vcpus: vec![VcpuState::sample([2; 8])],
            platform: Platform {
                serial: SerialState {
                    divisor: [0; 2],
                    interrupt_enable: 0,
                    interrupt_identification: 0,
                    line_control: 0,
                    line_status: 0,
                    modem_control: 0,
                    modem_status: 0,
                    scratch: 0,
                    input: Vec::new(),
                },
                cmos: CmosState { index: 0, ram: Vec::new() },
            },
            devices: Vec::new(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_state_reads_back(state in machine()) {
        prop_assert_eq!(MachineState::from_bytes(&state.to_bytes()), Ok(state));
    }

    #[test]
    fn damage_is_noticed(
        state in machine(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
        cut in any::<prop::sample::Index>(),
    ) {
        let good = state.to_bytes();
        let mut bad = good.clone();
        bad[at.index(good.len())] ^= 1 << bit;
        prop_assert!(MachineState::from_bytes(&bad).is_err(), "bit {bit} of byte {}", at.index(good.len()));
        let cut = cut.index(good.len());
        prop_assert!(MachineState::from_bytes(&good[..cut]).is_err(), "{cut} of {} bytes", good.len());
    }

    #[test]
    fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(MachineState::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_later_version_is_refused_by_its_number(state in machine(), version in 2..u32::MAX) {
        let bytes = String::from_utf8(state.to_bytes()).unwrap();
        let later = bytes.replacen("\"version\":1", &format!("\"version\":{version}"), 1);
        prop_assert_eq!(MachineState::from_bytes(later.as_bytes()), Err(StateError::Version(version)));
    }
}
