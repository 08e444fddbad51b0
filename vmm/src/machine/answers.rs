//! What a running machine tells who asks at its control socket.

use std::sync::Arc;

use guest_mm::stats::Stats;
use serde::Serialize;

use crate::control::{Command, VERSION};
use crate::map::{Document, State};

use super::memory::ServedRam;

/// The answer to [`Command::Stats`].
#[derive(Serialize)]
struct StatsAnswer<'a> {
    slat: u64,
    kind: &'static str,
    machine: &'a str,
    memory: Stats,
    pool: String,
}

/// Answers for the machine called `name` with this memory, which is kept until the answers are dropped.
pub(super) fn of(
    name: String,
    ram: &Arc<ServedRam>,
) -> impl Fn(Command) -> String + Send + 'static {
    let ram = Arc::clone(ram);
    move |command| match command {
        Command::MemoryMap => {
            Document::new(name.clone(), State::Running, ram.guest().memory_map()).to_line()
        }
        Command::Stats => {
            let (memory, pool) = (ram.guest().stats(), ram.describe_pool());
            let answer = StatsAnswer { slat: VERSION, kind: "stats", machine: &name, memory, pool };
            let mut line =
                serde_json::to_string(&answer).expect("keys are strings and no value can fail");
            line.push('\n');
            line
        }
    }
}
