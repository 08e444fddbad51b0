//! The guest: it adds to words all over its memory, and finds each as it left it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest_mm::addr::{Gfn, GfnRange, Hva};

pub(crate) const PAGE: u64 = 4096;

/// What the guest knows: the word at the beginning of each page.
#[derive(Debug)]
pub(crate) struct Mill {
    words: Mutex<Vec<u64>>,
    /// The words as they were when it was last told to remember them.
    kept: Mutex<Vec<u64>>,
    /// Pages that it wrote since somebody asked.
    dirty: Mutex<BTreeSet<u64>>,
    turns: AtomicU64,
    stop: AtomicBool,
}

/// A vCPU that runs. It ends when this is dropped: a test that fails leaves nobody in memory that goes.
#[derive(Debug)]
pub(crate) struct Vcpu {
    mill: Arc<Mill>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

/// How long a vCPU may wait for a page when a test has failed.
const PATIENCE: Duration = Duration::from_secs(30);

impl Drop for Vcpu {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.mill.stop.store(true, Ordering::Relaxed);
        let since = Instant::now();
        while !thread.is_finished() {
            if since.elapsed() > PATIENCE {
                // Nobody prints what the test has said; its memory cannot go.
                eprintln!("a test has failed, and its vCPU waits for a page that does not come");
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("the guest was let run, and ended: {:?}", thread.join());
    }
}

impl Mill {
    /// `pages` pages, all zeroes.
    pub(crate) fn new(pages: u64) -> Arc<Mill> {
        Arc::new(Mill {
            words: Mutex::new(vec![0; pages as usize]),
            kept: Mutex::default(),
            dirty: Mutex::default(),
            turns: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        })
    }

    /// Makes the words of these pages numbers of their own, in memory whose window begins at `base`.
    pub(crate) fn fill(&self, base: Hva, pages: impl Iterator<Item = u64>) {
        for page in pages {
            store(base, page, self.number(page));
        }
    }

    /// Knows `page` as one with a number of its own, which it is told.
    pub(crate) fn number(&self, page: u64) -> u64 {
        let number = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        self.words.lock().unwrap()[page as usize] = number;
        number
    }

    /// Runs in memory whose window begins at `base`, on pages below `pages`, until it is stopped.
    pub(crate) fn run(self: &Arc<Self>, base: Hva, pages: u64) -> Vcpu {
        self.stop.store(false, Ordering::Relaxed);
        let mill = Arc::clone(self);
        let thread = std::thread::spawn(move || {
            while !mill.stop.load(Ordering::Relaxed) {
                mill.turn(base, pages)?;
            }
            Ok(())
        });
        Vcpu { mill: Arc::clone(self), thread: Some(thread) }
    }

    /// Adds to one word.
    fn turn(&self, base: Hva, pages: u64) -> Result<(), String> {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        // A walk through all pages that looks like no walk.
        let page = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) % pages;
        let mut words = self.words.lock().unwrap();
        let (found, word) = (load(base, page), &mut words[page as usize]);
        if found != *word {
            return Err(format!("turn {turn}: page {page} holds {found:#x}, not {word:#x}"));
        }
        *word = word.wrapping_add(1);
        store(base, page, *word);
        self.dirty.lock().unwrap().insert(page);
        Ok(())
    }

    /// Ends the vCPU.
    pub(crate) fn halt(&self, mut vcpu: Vcpu) -> Result<(), String> {
        assert!(std::ptr::eq(self, &*vcpu.mill), "of another guest");
        self.stop.store(true, Ordering::Relaxed);
        let thread = vcpu.thread.take().expect("it is taken by its end alone");
        thread.join().expect("a vCPU does not panic")
    }

    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// What was written since this was last asked.
    pub(crate) fn take_dirty(&self, see: &mut dyn FnMut(GfnRange)) {
        for page in std::mem::take(&mut *self.dirty.lock().unwrap()) {
            see(GfnRange::new(Gfn::new(page), 1).unwrap());
        }
    }

    /// Compares every page with what is known of it.
    pub(crate) fn check(&self, base: Hva) {
        assert_eq!(self.wrong(base, |_| true), 0);
    }

    /// Of the pages that `see` wants, how many are not what is known of them.
    pub(crate) fn wrong(&self, base: Hva, see: impl Fn(u64) -> bool) -> usize {
        let words = self.words.lock().unwrap();
        let wrong = |&(page, &word): &(usize, &u64)| {
            let found = see(page as u64).then(|| load(base, page as u64));
            let is_wrong = found.is_some_and(|found| found != word);
            if is_wrong {
                println!("page {page} holds {found:#x?}, not {word:#x}");
            }
            is_wrong
        };
        words.iter().enumerate().filter(wrong).count()
    }

    /// What it knows now, by page.
    pub(crate) fn words(&self) -> Vec<u64> {
        self.words.lock().unwrap().clone()
    }

    /// Remembers what it knows now.
    pub(crate) fn keep(&self) {
        let now = self.words();
        *self.kept.lock().unwrap() = now;
    }

    /// Knows what it was told to remember, and nothing that came after.
    pub(crate) fn rewind(&self) {
        let kept = self.kept.lock().unwrap().clone();
        *self.words.lock().unwrap() = kept;
    }
}

fn pointer(base: Hva, page: u64) -> *mut u64 {
    base.add(page * PAGE).as_u64() as *mut u64
}

fn load(base: Hva, page: u64) -> u64 {
    // SAFETY: the window is mapped for as long as the guest lives, which outlives every vCPU; an access that the table does not
    // translate waits for a fault thread.
    unsafe { pointer(base, page).read_volatile() }
}

fn store(base: Hva, page: u64, value: u64) {
    // SAFETY: as in `load`.
    unsafe { pointer(base, page).write_volatile(value) }
}
