//! A set of small integers that finds its first member in a few loads: a bitmap with a bitmap of its
//! non-zero words above it, and so on up to one word.

/// The set.
#[derive(Debug)]
pub(crate) struct BitTree {
    /// `levels[0]` has a bit a member; bit `i` of `levels[k + 1]` says that word `i` of `levels[k]` is
    /// not zero. The last level is one word.
    levels: Vec<Box<[u64]>>,
}

impl BitTree {
    /// An empty set of integers below `capacity`.
    pub(crate) fn new(capacity: usize) -> BitTree {
        let mut levels = Vec::new();
        let mut words = capacity.div_ceil(64).max(1);
        loop {
            levels.push(vec![0; words].into_boxed_slice());
            if words == 1 {
                return BitTree { levels };
            }
            words = words.div_ceil(64);
        }
    }

    /// Whether `member` is in it.
    pub(crate) fn contains(&self, member: usize) -> bool {
        self.levels[0].get(member / 64).is_some_and(|word| word >> (member % 64) & 1 == 1)
    }

    /// Adds `member`, which is not in it.
    pub(crate) fn insert(&mut self, member: usize) {
        debug_assert!(!self.contains(member), "inserted twice");
        let mut index = member;
        for level in &mut self.levels {
            let word = &mut level[index / 64];
            let was_zero = *word == 0;
            *word |= 1 << (index % 64);
            if !was_zero {
                return;
            }
            index /= 64;
        }
    }

    /// Takes `member` out; whether it was in.
    pub(crate) fn remove(&mut self, member: usize) -> bool {
        if !self.contains(member) {
            return false;
        }
        let mut index = member;
        for level in &mut self.levels {
            let word = &mut level[index / 64];
            *word &= !(1 << (index % 64));
            if *word != 0 {
                break;
            }
            index /= 64;
        }
        true
    }

    /// The smallest member.
    pub(crate) fn first(&self) -> Option<usize> {
        let mut index = 0;
        for level in self.levels.iter().rev() {
            let word = level[index];
            if word == 0 {
                return None;
            }
            index = index * 64 + word.trailing_zeros() as usize;
        }
        Some(index)
    }
}
