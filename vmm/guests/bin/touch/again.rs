//! Pages that are touched once more, when a byte is typed: what a machine costs that was saved meanwhile and goes on elsewhere.

use core::sync::atomic::Ordering::Relaxed;

use rt::boot_params::Boot;
use rt::cmdline::BadValue;
use rt::permutation::Permutation;
use rt::{println, serial, tsc};

use super::{Order, Plan, WRONG, check};

#[derive(Clone, Copy)]
enum Access {
    Write,
    Read,
}

pub(crate) struct Again {
    /// Pages to touch.
    pages: u64,
    order: Order,
    access: Access,
    /// Whether all others are read, too.
    rest: bool,
}

impl Again {
    /// None unless the command line asks for it.
    pub(crate) fn parse(boot: &Boot, all: u64) -> Result<Option<Again>, BadValue<'static>> {
        let line = boot.cmdline();
        let Some(pages) = line.number("again")? else { return Ok(None) };
        let orders =
            [("random", Order::Random(Permutation::new(all, 1))), ("seq", Order::Sequential)];
        let accesses = [("write", Access::Write), ("read", Access::Read)];
        Ok(Some(Again {
            pages: pages.min(all),
            order: line.choice("again.order", &orders, orders[0].1, "random or seq")?,
            access: line.choice("again.access", &accesses, Access::Write, "write or read")?,
            rest: line.switch("again.rest", false)?,
        }))
    }

    /// Touches them, and reports. What is there is what the last pass of `plan` has written.
    pub(crate) fn work(&self, plan: &Plan) {
        println!("touch: waits");
        serial::receive();
        println!("touch: goes on");
        let (last, now) = (plan.passes - 1, plan.passes);
        let all = plan.pages.len();
        let start = tsc::now();
        for i in 0..self.pages {
            let page = self.order.page(i, all);
            let (words, address) = (plan.pages.words(page), plan.pages.address(page));
            let (from, _) = plan.filled(address);
            let found = match self.access {
                Access::Write => words[from].swap(plan.pattern(address, from, now), Relaxed),
                Access::Read => words[from].load(Relaxed),
            };
            check(address, from, plan.pattern(address, from, last), found);
        }
        let cycles = tsc::now() - start;
        if self.rest {
            (self.pages..all).for_each(|i| plan.read_back(self.order.page(i, all), last));
        }
        println!(
            "touch: again={} wrong={} cycles={cycles} ns={}",
            self.pages,
            WRONG.load(Relaxed),
            plan.frequency.nanoseconds(cycles).unwrap_or(0),
        );
    }
}
