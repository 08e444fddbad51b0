//! Kernels of a few bytes.

/// Bytes of headers in front of the code.
const HEADERS: u64 = 64 + 56;

/// An ELF64 kernel of one segment: `code` in `memory` bytes from guest-physical `start`, where it is also entered.
pub fn elf(start: u64, memory: u64, code: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    // Identification: 64 bits, little-endian, version 1.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC for x86-64, version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [start, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    file.extend([0; 4]); // flags
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes()); // sizes and counts of headers
    }
    // One PT_LOAD, readable and executable.
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [HEADERS, start, start, code.len() as u64, memory, 0x1000] {
        file.extend(word.to_le_bytes()); // offset, vaddr, paddr, file size, memory size, alignment
    }
    assert_eq!(file.len() as u64, HEADERS);
    file.extend(code);
    file
}
