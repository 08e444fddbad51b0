//! The start state on a real vCPU: a guest of a few bytes looks at what it was handed and reloads a segment from the GDT.

// KVM takes guest memory as a raw address; nothing else here is unsafe.
#![allow(unsafe_code)]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::GuestMemoryBackend;

use super::samples::{self, ELF_ENTRY, ELF_START, PVH_ENTRY};
use super::*;

const EXIT_PORT: u16 = 0xf4;
const GOOD: u8 = 7;
const RAM: u64 = 4 << 20;
/// Room for one of the checks below.
const ROOM: usize = 0x20;

/// Loads DS with the data selector and says `GOOD`; 1 when the comparison before it failed. Same bytes in both modes.
#[rustfmt::skip]
const VERDICT: &[u8] = &[
    0x75, 0x0c,                   // jne bad
    0xb8, 0x18, 0x00, 0x00, 0x00, // mov eax, 0x18
    0x8e, 0xd8,                   // mov ds, eax
    0xb0, GOOD,                   // mov al, GOOD
    0xe6, EXIT_PORT as u8,        // out EXIT_PORT, al
    0xf4,                         // hlt
    0xb0, 0x01,                   // bad: mov al, 1
    0xe6, EXIT_PORT as u8,        // out EXIT_PORT, al
];
/// cmp dword [rsi + 0x202], "HdrS"
const LOOK_AT_ZERO_PAGE: &[u8] = &[0x81, 0xbe, 0x02, 0x02, 0, 0, b'H', b'd', b'r', b'S'];
/// cmp dword [ebx], XEN_HVM_START_MAGIC_VALUE
const LOOK_AT_START_INFO: &[u8] = &[0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33];

fn kernel() -> Vec<u8> {
    let mut code = vec![0xf4; 2 * ROOM];
    let mut put = |at: u64, parts: [&[u8]; 2]| {
        let part = parts.concat();
        let at = (at - ELF_START) as usize;
        code[at..at + part.len()].copy_from_slice(&part);
    };
    put(ELF_START, [LOOK_AT_ZERO_PAGE, VERDICT]);
    put(ELF_START + ROOM as u64, [LOOK_AT_START_INFO, VERDICT]);
    assert_eq!(code.len(), samples::CODE.len());
    let mut file = samples::patched(samples::elf(), samples::ehdr::ENTRY, &ELF_START.to_le_bytes());
    let at = file.windows(code.len()).position(|bytes| bytes == samples::CODE).unwrap();
    file[at..at + code.len()].copy_from_slice(&code);
    file
}

/// The verdict of the guest, started by `protocol`; nothing without KVM.
fn run(protocol: Protocol) -> Option<u8> {
    if !::tests::require_kvm() {
        return None;
    }
    let kvm = Kvm::new().unwrap();
    let file = kernel();
    let image =
        load(&BootRequest { protocol, ..BootRequest::new(&file, RamLayout::new(RAM).unwrap()) })
            .unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    image.for_each_page(|at, page| memory.write_slice(page, at)).unwrap();

    let vm = kvm.create_vm().unwrap();
    let slot = kvm_userspace_memory_region {
        memory_size: RAM,
        userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        ..kvm_userspace_memory_region::default()
    };
    // SAFETY: the slot is one mapping of RAM bytes, which outlives the VM: `memory` is dropped after `vcpu` and `vm`.
    unsafe { vm.set_user_memory_region(slot) }.unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap()).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    image.entry.fill_sregs(&mut sregs);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&image.entry.regs()).unwrap();
    match vcpu.run().unwrap() {
        VcpuExit::IoOut(EXIT_PORT, data) => Some(data[0]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_started_by_the_64_bit_protocol_finds_its_zero_page_and_gdt() {
    assert!(matches!(run(Protocol::Linux64), None | Some(GOOD)));
}

#[test]
fn a_guest_started_by_pvh_finds_its_start_info_and_gdt() {
    assert_eq!((ELF_ENTRY, u64::from(PVH_ENTRY)), (ELF_START + 0x10, ELF_START + ROOM as u64));
    assert!(matches!(run(Protocol::Pvh), None | Some(GOOD)));
}
