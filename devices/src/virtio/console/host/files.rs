//! Files that are there from the start: standard input and output, a file to write to, or nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, openat};

use super::{Port, Unheard};

/// A port over files.
#[derive(Debug, Default)]
pub struct Files {
    input: Option<NonBlocking>,
    output: Option<NonBlocking>,
}

impl Files {
    /// A port that leads nowhere.
    pub fn none() -> Files {
        Files::default()
    }

    /// Input from `input` and output to `output`: duplicates of standard input and output, or the ends of pipes.
    ///
    /// # Errors
    /// They cannot be made not to block.
    pub fn pair(input: OwnedFd, output: OwnedFd) -> io::Result<Files> {
        let input = Some(NonBlocking::new(input)?);
        Ok(Files { input, output: Some(NonBlocking::new(output)?) })
    }

    /// Output to `file`, and no input.
    ///
    /// # Errors
    /// It cannot be made not to block.
    pub fn output(file: File) -> io::Result<Files> {
        Ok(Files { input: None, output: Some(NonBlocking::new(file.into())?) })
    }
}

impl Port for Files {
    fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(|file| file.file.as_fd())
    }

    fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(|file| file.file.as_fd())
    }

    fn close_input(&mut self) {
        self.input = None;
    }

    fn close_output(&mut self) {
        self.output = None;
    }

    fn unheard(&self) -> Unheard {
        Unheard::Lost
    }
}

/// A file that does not block.
#[derive(Debug)]
struct NonBlocking {
    file: OwnedFd,
    /// What the file was like before, if that is others' business: they have it open, too.
    before: Option<OFlags>,
}

impl NonBlocking {
    /// Whether a file blocks is said where it was opened, for all who got it from there: the shell that started this program,
    /// say. So it is opened again where that is possible.
    fn new(file: OwnedFd) -> io::Result<NonBlocking> {
        let flags = fcntl_getfl(&file)?;
        if flags.contains(OFlags::NONBLOCK) {
            return Ok(NonBlocking { file, before: None });
        }
        let kind = FileType::from_raw_mode(fstat(&file)?.st_mode);
        if matches!(kind, FileType::CharacterDevice | FileType::Fifo) {
            let how = flags & OFlags::RWMODE | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            if let Ok(file) = openat(CWD, path, how, Mode::empty()) {
                return Ok(NonBlocking { file, before: None });
            }
        }
        fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        Ok(NonBlocking { file, before: Some(flags) })
    }
}

impl Drop for NonBlocking {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // Nothing can be done about it.
            let _ = fcntl_setfl(&self.file, before);
        }
    }
}
