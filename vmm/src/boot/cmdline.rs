//! The kernel command line.

use linux_loader::cmdline::{Cmdline, Error};

use super::BootError;
use super::layout::{CMDLINE, CMDLINE_MAX};
use super::staging::Staging;

/// What an x86 vmlinux keeps, without the terminating zero (`COMMAND_LINE_SIZE` is 2048 with it). An ELF has no header
/// that tells.
pub(super) const ELF_LIMIT: usize = 2047;

/// Writes `text` and its terminating zero. `limit` is what the kernel takes, without the zero.
pub(super) fn place(staging: &mut Staging, text: &str, limit: usize) -> Result<(), BootError> {
    let limit = limit.min(CMDLINE_MAX - 1);
    let text = text.trim();
    if let Some((at, &byte)) =
        text.as_bytes().iter().enumerate().find(|(_, byte)| !(b' '..=b'~').contains(byte))
    {
        return Err(BootError::CmdlineByte { byte, at });
    }
    let refused = |error| match error {
        Error::TooLarge => BootError::CmdlineTooLong { len: text.len(), limit },
        other => BootError::Cmdline { reason: other.to_string().to_lowercase() },
    };
    let mut line = Cmdline::new(limit + 1).map_err(refused)?;
    line.insert_str(text).map_err(refused)?;
    let line = line.as_cstring().map_err(refused)?;
    staging.write(CMDLINE, line.as_bytes_with_nul(), "command line")
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::super::layout::RamLayout;
    use super::*;

    fn placed(text: &str, limit: usize) -> Result<Vec<u8>, BootError> {
        let mut staging = Staging::new(RamLayout::new(2 << 20)?)?;
        place(&mut staging, text, limit)?;
        let mut bytes = vec![0xaa; text.len() + 1];
        staging.memory().read_slice(&mut bytes, CMDLINE).unwrap();
        Ok(bytes)
    }

    #[test]
    fn the_line_is_zero_terminated_and_may_be_empty() {
        assert_eq!(placed("a=1 -- b", 100).unwrap(), b"a=1 -- b\0");
        assert_eq!(placed("", 0).unwrap(), b"\0");
    }

    #[test]
    fn the_limit_is_exact_and_the_message_gives_both_numbers() {
        placed(&"x".repeat(2047), ELF_LIMIT).unwrap();
        let text = placed(&"x".repeat(2048), ELF_LIMIT).unwrap_err().to_string();
        assert!(text.contains("2048 characters") && text.contains("at most 2047"), "{text}");
        // A header may promise more than there is room for.
        placed(&"x".repeat(CMDLINE_MAX), usize::MAX).unwrap_err();
    }

    #[test]
    fn bytes_that_are_not_printable_ascii_are_named() {
        for (text, byte, at) in [("a\0b", 0, 1), ("a\tb", 9, 1), ("é", 0xc3, 0)] {
            match placed(text, 100) {
                Err(BootError::CmdlineByte { byte: b, at: a }) => assert_eq!((b, a), (byte, at)),
                other => panic!("{other:?}"),
            }
        }
    }
}
