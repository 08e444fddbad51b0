//! Any sequence of operations on two guests over one image, against a map of what each has written.

use std::collections::BTreeMap;

use guest_mm::addr::{Gpa, PageSize};
use guest_mm::collapse::{CollapsePolicy, Copying};
use guest_mm::place::{Content, Placed};
use guest_mm::prot::Access;
use proptest::prelude::*;
use tests::require_userfaultfd;
use vm_memory::Bytes;

use super::super::collapse::bytes;
use super::*;

/// The image: two blocks and a part of a third.
const PAGES: u64 = 2 * 512 + 40;

#[derive(Clone, Copy, Debug)]
enum Op {
    Load { page: u64 },
    Store { page: u64 },
    DeviceReads { page: u64, pages: u64 },
    DeviceWrites { page: u64 },
    MonitorWrites { page: u64 },
    Place { page: u64 },
    Unmap { page: u64, pages: u64 },
    Collapse { copying: Copying, max_holes: u32 },
    Split { page: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    // Often the same pages, so that operations meet.
    let page = || prop_oneof![0..PAGES, (0..8u64).prop_map(|i| i * 67 + 508)];
    let pages = prop_oneof![Just(1u64), 1..600u64];
    prop_oneof![
        3 => page().prop_map(|page| Op::Load { page }),
        4 => page().prop_map(|page| Op::Store { page }),
        1 => (page(), pages.clone()).prop_map(|(page, pages)| Op::DeviceReads { page, pages }),
        1 => page().prop_map(|page| Op::DeviceWrites { page }),
        1 => page().prop_map(|page| Op::MonitorWrites { page }),
        1 => page().prop_map(|page| Op::Place { page }),
        2 => (page(), pages).prop_map(|(page, pages)| Op::Unmap { page, pages }),
        1 => (any::<bool>(), prop_oneof![Just(0u32), Just(511)]).prop_map(|(copy, max_holes)| {
            let copying = if copy { Copying::Allowed } else { Copying::Never };
            Op::Collapse { copying, max_holes }
        }),
        1 => page().prop_map(|page| Op::Split { page }),
    ]
}

/// A guest, and the words that it must find: its own, or the image's.
struct Checked {
    test: TestGuest,
    own: BTreeMap<u64, u64>,
}

impl Checked {
    fn expected(&self, at: u64) -> u64 {
        self.own.get(&at).copied().unwrap_or(word(at))
    }

    fn check(&self, page: u64) {
        for at in [page * PAGE, page * PAGE + 8] {
            assert_eq!(self.test.load(at), self.expected(at), "at {at:#x}");
        }
    }

    fn run(&mut self, op: Op, step: u64) {
        let guest = &self.test.guest;
        match op {
            Op::Load { page } => self.check(page),
            Op::Store { page } => {
                self.test.store(page * PAGE, step);
                self.own.insert(page * PAGE, step);
            }
            Op::DeviceReads { page, pages } => {
                let pages = pages.min(PAGES - page);
                let pinned = guest.pin(bytes(page * PAGE, pages * PAGE), Access::Read).unwrap();
                let mut at = page * PAGE;
                for slice in pinned.slices() {
                    for offset in (0..slice.len()).step_by(PAGE as usize) {
                        let found: u64 = slice.read_obj(offset).unwrap();
                        assert_eq!(found, self.expected(at), "a device at {at:#x}");
                        at += PAGE;
                    }
                }
            }
            Op::DeviceWrites { page } => {
                let pinned = guest.pin(bytes(page * PAGE, PAGE), Access::Write).unwrap();
                pinned.slices().next().unwrap().write_obj(step, 8).unwrap();
                drop(pinned);
                self.own.insert(page * PAGE + 8, step);
            }
            Op::MonitorWrites { page } => {
                guest.populate(range(page * PAGE, PAGE)).unwrap();
                guest.write(Gpa::new(page * PAGE), &step.to_le_bytes()).unwrap();
                self.own.insert(page * PAGE, step);
            }
            Op::Place { page } => {
                let content = [step as u8; PAGE as usize];
                let placed = guest.place(Gpa::new(page * PAGE), Content::Bytes(&content)).unwrap();
                if placed != Placed::AlreadyThere {
                    let word = u64::from_le_bytes([step as u8; 8]);
                    self.own.extend([(page * PAGE, word), (page * PAGE + 8, word)]);
                }
            }
            Op::Unmap { page, pages } => {
                let pages = pages.min(PAGES - page);
                guest.unmap(range(page * PAGE, pages * PAGE)).unwrap();
                self.own.retain(|at, _| !(page..page + pages).contains(&(at / PAGE)));
            }
            Op::Collapse { copying, max_holes } => {
                let policy = CollapsePolicy { copying, max_holes };
                guest.collapse(range(0, PAGES * PAGE), policy).unwrap();
            }
            Op::Split { page } => {
                guest.split(range(page * PAGE, PAGE), PageSize::Size4K).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn guests_and_devices_find_the_image_or_what_was_written(
        small in any::<bool>(),
        roomy in any::<bool>(),
        ops in prop::collection::vec((any::<bool>(), op()), 1..120),
    ) {
        if !require_userfaultfd() {
            return Ok(());
        }
        let template = Template::new(PAGES * PAGE);
        // Room for image and copies, in blocks or only just.
        let (mm, image) = open(if roomy { 32 * MIB } else { 14 * MIB }, &template);
        let pages = POLICIES[usize::from(!small)];
        let mut guests = [(); 2].map(|()| {
            Checked { test: add_over(&mm, &image, pages), own: BTreeMap::new() }
        });
        for (step, (other, op)) in (1..).zip(ops) {
            guests[usize::from(other)].run(op, step);
        }
        for guest in &guests {
            (0..PAGES).for_each(|page| guest.check(page));
        }
        end(&mm, guests.map(|guest| guest.test), image);
    }
}
