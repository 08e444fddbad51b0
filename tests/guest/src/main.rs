//! What runs in a Linux guest: its first process, and the runs that tests start there.
//!
//! One process does each, because a process, a page fault and a system call cost much where KVM emulates the guest's ring 0,
//! while what is computed in user mode runs at full speed. The runs are for both sides: outside of a guest the same program
//! gives what to compare with. configs/get-debian.sh builds it without shared libraries and puts it into Debian's guest.

mod compress;
mod filetree;
mod init;
mod memory;
mod noise;
mod transfer;

use std::process::ExitCode;

/// A line to print and whether all was well, or what went wrong.
type Outcome = Result<(String, bool), String>;

const USAGE: &str = "usage: guest-tool RUN ARGUMENTS, or a link with the run's name
  filetree FOLDER SEED FILES BYTES [--check] [--drop-caches]
      writes FILES files of BYTES bytes on average (not with --check), syncs, reads all back and compares
  transfer HOST:PORT MIB    sends MIB to one that listens, has as many back, and compares
  transfer --listen HOST:PORT
      answers one of these; port 0 is any that is free
  compress MIB ROUNDS       compresses memory, and says how long a round took
  memory MIB ROUNDS [KINDS [SECONDS]]
      fills memory with pages of KINDS contents, rests for SECONDS, and compares, in ROUNDS";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let Some((&path, args)) = args.split_first() else { return usage() };
    if std::process::id() == 1 {
        init::run(path);
    }
    // Called by its own name, the first argument is the run; else the name it was called by.
    let called = path.rsplit('/').next().unwrap_or_default();
    let (run, args) = match args.split_first() {
        Some((&run, args)) if called == "guest-tool" => (run, args),
        _ => (called, args),
    };
    let outcome = match run {
        "filetree" => filetree::run(args),
        "transfer" => transfer::run(args),
        "compress" => compress::run(args),
        "memory" => memory::run(args),
        _ => return usage(),
    };
    match outcome {
        Ok((line, well)) => {
            println!("{run}: {line}");
            if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            eprintln!("{run}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// The number that the argument `name` is.
fn number(name: &str, text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{name} is {text:?}: expected a number"))
}

/// `MIB` as bytes that memory can have.
fn mebibytes(text: &str) -> Result<usize, String> {
    let bytes = number("MIB", text)?.checked_mul(1 << 20).filter(|&bytes| bytes > 0);
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or_else(|| format!("MIB is {text}: expected more than 0 and less than all addresses"))
}

/// What to say to arguments that fit no run.
fn unfit() -> String {
    format!("these arguments fit no run\n{USAGE}")
}

/// MiB in a second.
fn rate(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 / f64::from(1 << 20) / seconds.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert_eq!(number("FILES", "12"), Ok(12));
        assert!(number("FILES", "-1").is_err_and(|why| why.starts_with("FILES is \"-1\"")));
        assert_eq!(mebibytes("3"), Ok(3 << 20));
        for bad in ["0", "x", "99999999999999999"] {
            assert!(mebibytes(bad).is_err(), "{bad}");
        }
    }
}
