//! What it costs to make a block of 4 KiB pages one huge page: beside the kernel, which does it with
//! `MADV_COLLAPSE`, and beside the copying and the system calls that no way can leave out.

mod block;
mod served;

use std::hint::black_box;

use block::{Accessed, Scattered, SmallBlock};
use served::{InPlace, OutOfPlace};

use super::turns::{in_turns, time};
use super::{BenchError, Goal, Rounds, Row, Table};

/// Blocks that are promoted in a round.
const IN_PLACE: u64 = 32;
/// Blocks that are copied in a round. A window of such a block is 512 mappings.
const OUT_OF_PLACE: u64 = 8;
/// More memory than the caches hold.
const STREAM_BYTES: usize = 256 << 20;

/// The figures of `slat bench collapse`; `progress` is told what is being measured.
///
/// # Errors
/// [`BenchError`]: something could not be set up, or a block did not collapse.
pub fn collapse(rounds: Rounds, progress: &dyn Fn(&str)) -> Result<Table, BenchError> {
    let mut table = Table::new("collapse");
    let mut bench = Bench { rounds: rounds.count(), stream: vec![1; STREAM_BYTES / 8] };
    progress("promotion");
    bench.promotion(&mut table)?;
    progress("copies of hot blocks");
    let hot = bench.copies(Caches::Hot)?;
    progress("copies of cold blocks");
    let cold = bench.copies(Caches::Cold)?;
    for (caches, figures, goal) in
        [("hot", &hot, Goal::RatioAtLeast(4.0)), ("cold", &cold, Goal::RatioAtLeast(1.2))]
    {
        figures.rows(&mut table, caches, goal);
    }
    Ok(table)
}

/// Where the bytes of a block are when it is collapsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caches {
    Hot,
    Cold,
}

struct Bench {
    rounds: usize,
    stream: Vec<u64>,
}

/// Microseconds a block.
#[derive(Debug)]
struct Copies {
    accessed: f64,
    accessed_by_hand: f64,
    fresh: f64,
    fresh_by_hand: f64,
    kernel: f64,
}

impl Bench {
    fn promotion(&self, table: &mut Table) -> Result<(), BenchError> {
        let blocks = InPlace::new(IN_PLACE)?;
        let a_block = |ns: f64| ns / 1e3 / IN_PLACE as f64;
        let mut splits = Vec::new();
        let [promoted, kernel] = in_turns(
            self.rounds,
            [
                &mut || {
                    blocks.refill()?;
                    let (promotion, done) = time(|| blocks.promote());
                    done?;
                    let (split, done) = time(|| blocks.split());
                    done?;
                    splits.push(a_block(split));
                    Ok(a_block(promotion))
                },
                &mut || {
                    let small =
                        (0..IN_PLACE).map(|_| SmallBlock::new()).collect::<Result<Vec<_>, _>>()?;
                    let (ns, done) = time(|| small.iter().try_for_each(SmallBlock::collapse));
                    done?;
                    Ok(a_block(ns))
                },
            ],
        )?;
        let baseline = "MADV_COLLAPSE of a memfd block";
        table.rows.extend([
            Row::faster_than(
                "promotion of a block, huge in both mappings after it",
                "us",
                promoted,
                baseline,
                kernel,
                Goal::RatioAtLeast(10.0),
            ),
            Row::alone("promotions", "blocks/s", 1e6 / promoted, Goal::None),
            Row::alone("split of a block", "us", super::table::median(&mut splits), Goal::None),
        ]);
        Ok(())
    }

    fn copies(&mut self, caches: Caches) -> Result<Copies, BenchError> {
        let Bench { rounds, stream } = self;
        let stream = std::cell::RefCell::new(stream);
        let chill = || stream.borrow_mut().iter_mut().for_each(|word| *word = black_box(*word + 1));
        let served = OutOfPlace::new(OUT_OF_PLACE)?;
        let scattered = Scattered::new(OUT_OF_PLACE)?;
        // Caches are readied for each block, the time of each taken by itself.
        let each_block =
            |ready: &dyn Fn(u64) -> Result<(), BenchError>,
             collapse: &dyn Fn(u64) -> Result<(), BenchError>| {
                if caches == Caches::Cold {
                    chill();
                }
                let mut ns = 0.0;
                for block in 0..OUT_OF_PLACE {
                    if caches == Caches::Hot {
                        ready(block)?;
                    }
                    let (took, done) = time(|| collapse(block));
                    done?;
                    ns += took;
                }
                Ok(ns / 1e3 / OUT_OF_PLACE as f64)
            };
        let served_way = |accessed| {
            served.scatter(accessed)?;
            each_block(&|block| served.warm(block), &|block| served.collapse(block))
        };
        let by_hand = |accessed| {
            scattered.scatter(accessed)?;
            let warm = |block| {
                scattered.warm(block);
                Ok(())
            };
            each_block(&warm, &|block| Ok(scattered.gather(block)?))
        };
        let [accessed, accessed_by_hand, fresh, fresh_by_hand, kernel] = in_turns(
            *rounds,
            [
                &mut || served_way(Accessed::Yes),
                &mut || by_hand(Accessed::Yes),
                &mut || served_way(Accessed::No),
                &mut || by_hand(Accessed::No),
                &mut || {
                    let small = (0..OUT_OF_PLACE)
                        .map(|_| SmallBlock::new())
                        .collect::<Result<Vec<_>, _>>()?;
                    let warm = |block: u64| {
                        small[block as usize].warm();
                        Ok(())
                    };
                    each_block(&warm, &|block| Ok(small[block as usize].collapse()?))
                },
            ],
        )?;
        Ok(Copies { accessed, accessed_by_hand, fresh, fresh_by_hand, kernel })
    }
}

impl Copies {
    fn rows(&self, table: &mut Table, caches: &str, goal: Goal) {
        let kernel = format!("MADV_COLLAPSE of a {caches} memfd block");
        let parts = "512 memcpy and the window's system calls";
        let accessed = format!("copy collapse of a {caches} block that the guest has accessed");
        let fresh = format!("copy collapse of a {caches} block that it has not");
        let beside = |name: String| name + ", beside its parts";
        let least = Goal::RatioAtMost(1.25);
        table.rows.extend([
            Row::faster_than(&accessed, "us", self.accessed, &kernel, self.kernel, goal),
            Row::against(
                beside(accessed),
                "us",
                self.accessed,
                parts,
                self.accessed_by_hand,
                least,
            ),
            Row::faster_than(&fresh, "us", self.fresh, &kernel, self.kernel, goal),
            Row::against(beside(fresh), "us", self.fresh, parts, self.fresh_by_hand, least),
        ]);
        let rate = 1e6 / self.accessed;
        let name = format!("copy collapses of {caches} blocks");
        table.rows.push(Row::alone(name, "blocks/s", rate, Goal::None));
    }
}
