//! Which pages of an image its guests needed, and in what order: what a later start can have ready.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A page that was needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needed {
    /// Its number in the image.
    pub page: u32,
    /// Whether a guest stored to it, so that it needs one of its own.
    pub stored: bool,
}

/// The pages of an image in the order in which they were loaded, as far as it was noted.
#[derive(Clone, Debug, Default)]
pub struct Order(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    loaded: Vec<u32>,
    stored: BTreeSet<u32>,
}

impl Order {
    /// Pages that are noted at most: 256 MiB. A guest that needs more has begun to need all.
    const LONGEST: usize = 1 << 16;

    /// Pages from `page` on were loaded.
    pub(super) fn note(&self, page: u64, pages: u64) {
        let mut noted = self.noted();
        if noted.loaded.len() < Order::LONGEST {
            noted.loaded.extend((page..page + pages).map(|page| page as u32));
        }
    }

    /// A guest has a copy of `page` now.
    pub(super) fn note_store(&self, page: u64) {
        let mut noted = self.noted();
        if noted.stored.len() < Order::LONGEST {
            noted.stored.insert(page as u32);
        }
    }

    /// What was noted so far.
    pub fn pages(&self) -> Vec<Needed> {
        let noted = self.noted();
        let needed = |&page: &u32| Needed { page, stored: noted.stored.contains(&page) };
        noted.loaded.iter().map(needed).collect()
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
