//! What one guest streams to another over UDP: numbered datagrams with a checksum, and what came of them.
//!
//! ```text
//!   byte 0   kind: "slatdata", "slatseen", "slatlast", "slatdone"
//!        8   sequence       of the datagram; in the others: one more than the largest
//!       16   count          seen, done: datagrams that came
//!       24   sum            data: over the words behind; done: datagrams that were wrong
//!       32   data           whole words
//! ```
//!
//! All numbers have 64 bits, the least byte first. The sender waits for `seen` when too much is on its way; after the last
//! datagram it says `last`, until it is told `done`. The sum is that of the words, word i times 2i + 1, and of the sequence.

use crate::permutation::hash;

/// Bytes before the data.
pub const HEADER: usize = 32;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data.
    Data,
    /// So much of it came.
    Seen,
    /// There is no more.
    Last,
    /// So much came in all.
    Done,
}

/// A message without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// The number of the datagram, or of all.
    pub sequence: u64,
    /// Datagrams that came.
    pub count: u64,
    /// Of the data, or datagrams that were wrong.
    pub sum: u64,
}

const KINDS: [(Kind, &[u8; 8]); 4] = [
    (Kind::Data, b"slatdata"),
    (Kind::Seen, b"slatseen"),
    (Kind::Last, b"slatlast"),
    (Kind::Done, b"slatdone"),
];

impl Message {
    /// Reads a message. None: it is none.
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let (words, _) = bytes.get(..HEADER)?.as_chunks::<8>();
        let (kind, _) = KINDS.iter().find(|(_, name)| **name == words[0])?;
        let number = |word: usize| u64::from_le_bytes(words[word]);
        Some(Message { kind: *kind, sequence: number(1), count: number(2), sum: number(3) })
    }

    /// Writes it to the start of `bytes`.
    pub fn write(&self, bytes: &mut [u8]) {
        let name = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or(&[0; 8], |(_, n)| *n);
        bytes[..8].copy_from_slice(name);
        for (bytes, number) in
            bytes[8..HEADER].chunks_exact_mut(8).zip([self.sequence, self.count, self.sum])
        {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
    }
}

/// Makes the datagram of `sequence` that fills `bytes`.
pub fn fill(bytes: &mut [u8], sequence: u64) {
    let mut next = hash(sequence);
    for word in bytes[HEADER..].chunks_exact_mut(8) {
        next = next.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&next.to_le_bytes());
    }
    let sum = sum(&bytes[HEADER..], sequence);
    Message { kind: Kind::Data, sequence, count: 0, sum }.write(bytes);
}

/// Is the data of this datagram what its header says?
pub fn intact(bytes: &[u8], message: &Message) -> bool {
    sum(&bytes[HEADER..], message.sequence) == message.sum
}

fn sum(data: &[u8], sequence: u64) -> u64 {
    let (words, _) = data.as_chunks::<8>();
    (0u64..).zip(words).fold(sequence, |sum, (i, word)| {
        sum.wrapping_add(u64::from_le_bytes(*word).wrapping_mul(2 * i + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        for (kind, _) in KINDS {
            let message = Message { kind, sequence: 1, count: 2 << 40, sum: u64::MAX };
            let mut bytes = [0; HEADER];
            message.write(&mut bytes);
            assert_eq!(Message::parse(&bytes), Some(message));
            assert_eq!(Message::parse(&bytes[1..]), None);
        }
        assert_eq!(Message::parse(b"slatdat!01234567012345670123456701234567"), None);
    }

    #[test]
    fn a_datagram_that_changed_or_has_another_number_is_not_intact() {
        let mut bytes = vec![0; HEADER + 64];
        fill(&mut bytes, 5);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.sequence), (Kind::Data, 5));
        assert!(intact(&bytes, &message));
        assert!(!intact(&bytes, &Message { sequence: 6, ..message }));
        for at in HEADER..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            assert!(!intact(&broken, &message), "{at}");
        }
    }
}
