//! Which kind of kernel file this is.

use linux_loader::elf::{ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3};

use super::BootError;
use super::bzimage;

/// A kernel file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An ELF file: a vmlinux or a built-in guest.
    Elf,
    /// A Linux bzImage (also called vmlinuz).
    BzImage,
}

/// Tells the format from the magic numbers; everything else is checked by the format's own code.
///
/// # Errors
/// [`BootError::NotAKernel`].
pub fn recognise(file: &[u8]) -> Result<Format, BootError> {
    if file.starts_with(&[ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3]) {
        Ok(Format::Elf)
    } else if bzimage::has_magic(file) {
        Ok(Format::BzImage)
    } else {
        Err(BootError::NotAKernel {
            len: file.len(),
            start: file.iter().take(4).copied().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn elf_and_bzimage_are_told_apart_and_anything_else_is_named_by_its_first_bytes() {
        assert_eq!(recognise(&samples::elf()).unwrap(), Format::Elf);
        assert_eq!(recognise(&samples::bzimage(b"")).unwrap(), Format::BzImage);
        for file in [&b"#!/bin/sh"[..], b"", b"\x7fEL", &[0; 4096]] {
            recognise(file).unwrap_err();
        }
        let text = recognise(b"MZ\x90\x00").unwrap_err().to_string();
        assert!(text.contains("not a kernel") && text.contains("4d, 5a"), "{text}");
    }
}
