//! The processes that end below the first one, and the signals by which it is asked for the end of the machine.

#![allow(unsafe_code, reason = "signals of the first process, which no crate of the tree has")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// How the machine is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    PowerOff,
    Reset,
}

/// The signals that are waited for, not delivered.
#[derive(Clone, Copy)]
pub(super) struct Children {
    signals: libc::sigset_t,
}

/// What busybox's `halt`, `poweroff` and `reboot` send to the first process; a halt would leave the monitor with nothing to do.
const ENDS: [(libc::c_int, End); 3] =
    [(libc::SIGUSR1, End::PowerOff), (libc::SIGUSR2, End::PowerOff), (libc::SIGTERM, End::Reset)];

impl Children {
    /// From here on none of them is missed. A process that is started has the mask too, until it calls [`deliver`](Self::deliver).
    pub(super) fn watch() -> io::Result<Children> {
        let mut signals = MaybeUninit::uninit();
        // SAFETY: the set is written before it is read, and outlives each call.
        let signals = unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            libc::sigaddset(signals.as_mut_ptr(), libc::SIGCHLD);
            for (signal, _) in ENDS {
                libc::sigaddset(signals.as_mut_ptr(), signal);
            }
            signals.assume_init()
        };
        let children = Children { signals };
        children.mask(libc::SIG_BLOCK)?;
        Ok(children)
    }

    /// Has the signals delivered again, in a process that begins: a shell that never hears of its children's end waits for ever.
    pub(super) fn deliver(&self) -> io::Result<()> {
        self.mask(libc::SIG_UNBLOCK)
    }

    fn mask(&self, how: libc::c_int) -> io::Result<()> {
        // SAFETY: the set lives during the call.
        match unsafe { libc::sigprocmask(how, &raw const self.signals, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until process `shell` has ended or a signal asks for the end. Orphans, which become the first process's, are reaped.
    pub(super) fn until(&self, shell: u32) -> End {
        loop {
            let mut signal = 0;
            // SAFETY: both live during the call.
            if unsafe { libc::sigwait(&raw const self.signals, &raw mut signal) } != 0 {
                continue;
            }
            if let Some(&(_, end)) = ENDS.iter().find(|(ends, _)| *ends == signal) {
                return end;
            }
            // One signal may stand for many that ended.
            while let Some(ended) = reap(libc::WNOHANG) {
                if ended == shell {
                    return End::PowerOff;
                }
            }
        }
    }
}

/// The next child that has ended, if there is one.
fn reap(options: libc::c_int) -> Option<u32> {
    // SAFETY: no status is asked for.
    let ended = unsafe { libc::waitpid(-1, ptr::null_mut(), options) };
    u32::try_from(ended).ok().filter(|&id| id > 0)
}

/// Ends all processes but this one, and waits until they have.
pub(super) fn end_all() {
    // SAFETY: only the first process of the machine calls this, and a signal to all spares it.
    unsafe {
        libc::kill(-1, libc::SIGKILL);
    }
    while reap(0).is_some() {}
}
