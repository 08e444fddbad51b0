//! The order in which locks are taken, checked where debug assertions are on: a thread that takes one out of order
//! panics there and then, though nobody was in its way this time.

use std::cell::RefCell;

use crate::geometry::Level;

use super::Rank;

/// More than a thread ever holds at a time.
const MOST: usize = 16;

/// The ranks of the locks that a thread holds. An array: a thread that allocates nothing else shall not begin with this.
#[derive(Debug)]
struct Ranks {
    ranks: [Rank; MOST],
    held: usize,
}

impl Ranks {
    fn held(&self) -> &[Rank] {
        &self.ranks[..self.held]
    }

    fn push(&mut self, rank: Rank) {
        assert!(self.held < MOST, "a thread holds too many locks: {:?}", self.ranks);
        self.ranks[self.held] = rank;
        self.held += 1;
    }

    /// Takes out the last `rank`: a parent is let go before its child, so it need not be the last of all.
    fn remove(&mut self, rank: Rank) {
        if let Some(at) = self.held().iter().rposition(|&held| held == rank) {
            self.ranks.copy_within(at + 1..self.held, at);
            self.held -= 1;
        }
    }
}

thread_local! {
    static HELD: RefCell<Ranks> = const { RefCell::new(Ranks { ranks: [Rank::Last; MOST], held: 0 }) };
}

/// That a lock is held, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Mark(Rank);

impl Mark {
    /// A lock of `rank` is taken.
    ///
    /// # Panics
    /// If the thread holds one that stands behind it, or beside it.
    pub(crate) fn take(rank: Rank) -> Mark {
        HELD.with_borrow_mut(|held| {
            if let Some(&last) = held.held().iter().max().filter(|&&last| rank <= last)
                && !std::thread::panicking()
            {
                panic!(
                    "a lock of rank {rank:?} is taken by a thread that holds one of rank {last:?}"
                );
            }
            held.push(rank);
        });
        Mark(rank)
    }

    /// As [`Mark::take`], for the one exception: the directory above a frozen page table, whose lock is held. Nobody
    /// who holds the directory waits for a frozen table.
    pub(crate) fn take_above_frozen(rank: Rank) -> Mark {
        HELD.with_borrow_mut(|held| {
            let below = |depth| held.held().contains(&Rank::Table(depth + 1));
            let child = matches!(rank, Rank::Table(depth) if below(depth));
            let last = held.held().iter().max().copied();
            let expected = child && last <= Some(Rank::table(Level::PT));
            assert!(
                expected || std::thread::panicking(),
                "a lock of rank {rank:?} is taken, and the table below is not locked: {:?}",
                held.held()
            );
            held.push(rank);
        });
        Mark(rank)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| held.remove(self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_children_and_are_let_go_first() {
        let parent = Mark::take(Rank::table(Level::PD));
        let child = Mark::take(Rank::table(Level::PT));
        drop(parent);
        let books = Mark::take(Rank::Last);
        drop(books);
        drop(child);
        let _again = Mark::take(Rank::table(Level::ROOT));
    }

    #[test]
    #[should_panic(expected = "is taken by a thread that holds one of rank")]
    fn a_parent_behind_its_child_is_noticed() {
        let _child = Mark::take(Rank::table(Level::PT));
        let _parent = Mark::take(Rank::table(Level::PD));
    }

    #[test]
    #[should_panic(expected = "is taken by a thread that holds one of rank")]
    fn two_tables_of_one_level_are_noticed() {
        let _one = Mark::take(Rank::table(Level::PT));
        let _other = Mark::take(Rank::table(Level::PT));
    }

    #[test]
    fn the_directory_above_a_frozen_table_may_be_taken() {
        let _child = Mark::take(Rank::table(Level::PT));
        let _parent = Mark::take_above_frozen(Rank::table(Level::PD));
    }

    #[test]
    #[should_panic(expected = "the table below is not locked")]
    fn only_there() {
        let _books = Mark::take(Rank::Last);
        let _parent = Mark::take_above_frozen(Rank::table(Level::PD));
    }
}
