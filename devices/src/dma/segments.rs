//! Parts of what a driver named, and small payloads in it.

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::{Access, DmaError, Segment};

/// Fills `part` with the `len` bytes of `segments` from byte `from` on, or as many as there are.
pub fn part(segments: &[Segment], mut from: u64, mut len: u64, part: &mut Vec<Segment>) {
    part.clear();
    for segment in segments {
        if len == 0 {
            return;
        }
        let skipped = from.min(segment.len.into()) as u32;
        from -= u64::from(skipped);
        let rest = segment.split_at(skipped).1;
        let taken = rest.and_then(|rest| rest.split_at(len.min(rest.len.into()) as u32).0);
        len -= taken.map_or(0, |taken| u64::from(taken.len));
        part.extend(taken);
    }
}

/// Copies the beginning of `segments` to `into`; how many bytes that were, fewer if there are no more. What lies behind that
/// is not looked at.
///
/// # Errors
/// [`DmaError`] where the memory cannot be used.
pub fn gather<M: GuestMemory>(
    memory: &M,
    segments: &[Segment],
    into: &mut [u8],
) -> Result<usize, DmaError> {
    let mut filled = 0;
    for segment in segments {
        let rest = &mut into[filled..];
        if rest.is_empty() {
            break;
        }
        let len = rest.len().min(segment.len as usize);
        let read = memory.read_slice(&mut rest[..len], GuestAddress(segment.addr));
        read.map_err(|error| unusable(segment, Access::Read, &error))?;
        filled += len;
    }
    Ok(filled)
}

/// Copies `bytes` to the beginning of `segments`; how many bytes had room. What lies behind that is not looked at.
///
/// # Errors
/// [`DmaError`] where the memory cannot be used.
pub fn scatter<M: GuestMemory>(
    memory: &M,
    segments: &[Segment],
    bytes: &[u8],
) -> Result<usize, DmaError> {
    let mut written = 0;
    for segment in segments {
        let rest = &bytes[written..];
        if rest.is_empty() {
            break;
        }
        let len = rest.len().min(segment.len as usize);
        let put = memory.write_slice(&rest[..len], GuestAddress(segment.addr));
        put.map_err(|error| unusable(segment, Access::Write, &error))?;
        written += len;
    }
    Ok(written)
}

fn unusable(segment: &Segment, access: Access, error: &vm_memory::GuestMemoryError) -> DmaError {
    DmaError { addr: segment.addr, len: segment.len, access, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    const SEGMENTS: [Segment; 3] = [
        Segment { addr: 0x100, len: 4 },
        Segment { addr: 0x200, len: 1 },
        Segment { addr: 0x300, len: 8 },
    ];

    #[test]
    fn a_part_begins_and_ends_anywhere() {
        let mut found = vec![Segment { addr: 1, len: 1 }];
        for (from, len, expected) in [
            (0, 100, SEGMENTS.to_vec()),
            (4, 1, vec![SEGMENTS[1]]),
            (
                3,
                3,
                vec![Segment { addr: 0x103, len: 1 }, SEGMENTS[1], Segment { addr: 0x300, len: 1 }],
            ),
            (13, 5, vec![]),
            (0, 0, vec![]),
            (u64::MAX, u64::MAX, vec![]),
        ] {
            part(&SEGMENTS, from, len, &mut found);
            assert_eq!(found, expected, "{len} from {from}");
        }
    }

    #[test]
    fn what_is_scattered_is_gathered_again() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let bytes: Vec<u8> = (1..=20).collect();
        assert_eq!(scatter(&memory, &SEGMENTS, &bytes).unwrap(), 13);
        let mut back = [0; 20];
        assert_eq!(gather(&memory, &SEGMENTS, &mut back).unwrap(), 13);
        assert_eq!(back[..13], bytes[..13]);
        let outside = [Segment { addr: 0xff0, len: 32 }];
        let error = gather(&memory, &outside, &mut [0; 32]).unwrap_err();
        assert_eq!((error.addr, error.len, error.access), (0xff0, 32, Access::Read));
    }
}
