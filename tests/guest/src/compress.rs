//! Memory that is compressed: work of the processor and of memory, with hardly a system call.

use std::time::{Duration, Instant};

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

use crate::noise::word;
use crate::{Outcome, mebibytes, number, rate, unfit};

pub(crate) fn run(args: &[&str]) -> Outcome {
    let [mib, rounds] = args else { return Err(unfit()) };
    let text = text(mebibytes(mib)?);
    let rounds = number("ROUNDS", rounds)?.max(1);
    // Every page is touched before the clock runs: 1, because memory of zeroes would come untouched.
    let mut packed = vec![1; get_maximum_output_size(text.len())];
    let mut size = pack(&text, &mut packed)?;
    let mut took: Vec<(Duration, u64)> = Vec::with_capacity(rounds as usize);
    // For who looks from outside at what the rounds alone take.
    println!("compress: {rounds} rounds begin");
    for _ in 0..rounds {
        let (started, cycles) = (Instant::now(), cycles());
        size = pack(&text, &mut packed)?;
        took.push((started.elapsed(), self::cycles().wrapping_sub(cycles)));
    }
    println!("compress: {rounds} rounds end");
    let mut again = vec![1; text.len()];
    let unpacked = decompress_into(&packed[..size], &mut again).map_err(|e| e.to_string())?;
    let wrong = text.iter().zip(&again).filter(|(a, b)| a != b).count() + text.len() - unpacked;

    took.sort_unstable();
    let (best, median) = (took[0], took[took.len() / 2]);
    let rate = |(time, _): (Duration, u64)| rate(text.len() as u64, time.as_secs_f64());
    let line = format!(
        "bytes={} packed={size} rounds={rounds} wrong={wrong} median_ns={} best_ns={} median_cycles={} best_cycles={} median_mib_s={:.1} best_mib_s={:.1}",
        text.len(),
        median.0.as_nanos(),
        best.0.as_nanos(),
        median.1,
        best.1,
        rate(median),
        rate(best),
    );
    Ok((line, wrong == 0))
}

fn pack(text: &[u8], packed: &mut [u8]) -> Result<usize, String> {
    compress_into(text, packed).map_err(|error| error.to_string())
}

/// Words of few kinds, so that there is something to find: it packs to about a half.
fn text(length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 8);
    for index in 0.. {
        if text.len() >= length {
            break;
        }
        let noise = word(1, index);
        // Of 1024 words of three to eight letters.
        let (letters, count) = (word(2, noise % 1024), 3 + noise % 6);
        text.extend((0..count - 1).map(|at| b'a' + (letters >> (8 * at)) as u8 % 26));
        text.push(b' ');
    }
    text.truncate(length);
    text
}

/// The processor's count of cycles. It goes on whatever runs, as the clock does, but no kernel has a part in reading it.
fn cycles() -> u64 {
    #[allow(unsafe_code, reason = "reads a counter, which changes nothing")]
    // SAFETY: every x86-64 processor has it, and Linux does not forbid it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_compressed_and_comes_back() {
        let (line, well) = run(&["1", "3"]).unwrap();
        assert!(well && line.contains(" wrong=0 "), "{line}");
        let value = |key: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(key)).unwrap();
            word.parse::<f64>().unwrap()
        };
        assert!(value("packed=") < 0.8 * value("bytes="), "{line}");
        assert!(value("packed=") > 0.2 * value("bytes="), "{line}");
        assert!(value("best_ns=") > 0.0 && value("best_ns=") <= value("median_ns="), "{line}");
        assert!(value("best_cycles=") > 0.0, "{line}");
    }
}
