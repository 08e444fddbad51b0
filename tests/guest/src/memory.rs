//! Memory that is filled and compared, while the monitor does with it what it likes.

use std::thread;
use std::time::{Duration, Instant};

use crate::noise::word;
use crate::{Outcome, mebibytes, number, unfit};

const WORDS_OF_A_PAGE: usize = 512;

pub(crate) fn run(args: &[&str]) -> Outcome {
    let (mib, rounds, kinds, seconds) = match *args {
        [mib, rounds] => (mib, rounds, "0", "0"),
        [mib, rounds, kinds] => (mib, rounds, kinds, "0"),
        [mib, rounds, kinds, seconds] => (mib, rounds, kinds, seconds),
        _ => return Err(unfit()),
    };
    let bytes = mebibytes(mib)?;
    let (rounds, kinds) = (number("ROUNDS", rounds)?, number("KINDS", kinds)?);
    let rest = Duration::from_secs(number("SECONDS", seconds)?);
    let started = Instant::now();
    let mut memory = vec![0_u64; bytes / 8];
    // What the kernel gives is empty, whoever had it before.
    let mut wrong = memory.iter().filter(|&&word| word != 0).count();
    for round in 0..rounds {
        for (page, words) in memory.chunks_exact_mut(WORDS_OF_A_PAGE).enumerate() {
            let first = first(round, page as u64, kinds);
            words.iter_mut().zip(first..).for_each(|(at, word)| *at = word);
        }
        thread::sleep(rest);
        // What the compiler knows to be there, it would not read.
        let memory = std::hint::black_box(&mut memory);
        for (page, words) in memory.chunks_exact(WORDS_OF_A_PAGE).enumerate() {
            let first = first(round, page as u64, kinds);
            wrong += words.iter().zip(first..).filter(|&(&at, word)| at != word).count();
        }
    }
    let line = format!(
        "bytes={bytes} rounds={rounds} kinds={kinds} wrong={} ms={}",
        wrong * 8,
        started.elapsed().as_millis()
    );
    Ok((line, wrong == 0))
}

/// The first word of a page; those behind it count up. With `kinds` 0, each page is of a kind of its own.
fn first(round: u64, page: u64, kinds: u64) -> u64 {
    let kind = page.checked_rem(kinds).unwrap_or(page);
    // So that counting up does not overflow.
    word(round, kind) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_what_is_written() {
        for args in [&["2", "3"][..], &["1", "1", "7"], &["1", "2", "1", "0"]] {
            let (line, well) = run(args).unwrap();
            assert!(well && line.contains(" wrong=0 "), "{line}");
        }
        assert!(run(&["1"]).is_err());
    }

    #[test]
    fn pages_are_of_as_many_kinds_as_asked_for() {
        let kinds = |kinds| (0..100).map(move |page| first(0, page, kinds));
        let count = |kinds: Vec<u64>| kinds.into_iter().collect::<std::collections::HashSet<_>>();
        assert_eq!(count(kinds(0).collect()).len(), 100);
        assert_eq!(count(kinds(3).collect()).len(), 3);
        assert_ne!(first(0, 1, 3), first(1, 1, 3));
    }
}
