//! What a running machine tells who asks at its control socket.

use std::sync::Arc;

use guest_mm::dedup::DedupStats;
use guest_mm::stats::Stats;
use serde::Serialize;

use crate::control::{Answer, Body, Command, Paused, Resumed, VERSION, refusal};
use crate::map::{Document, State};

use super::collapse::told;
use super::memory::ServedRam;
use super::pause::Restful;

/// Who asks for a collapser where there is none.
const NO_COLLAPSER: &str = "no collapser runs in this machine: give it collapse.background = true";

/// The answer to [`Command::Stats`].
#[derive(Serialize)]
struct StatsAnswer<'a> {
    slat: u64,
    kind: &'static str,
    machine: &'a str,
    memory: Stats,
    dedup: Option<DedupStats>,
    pool: String,
}

/// Answers for the machine called `name` with this memory, which is kept until the answers are dropped.
pub(super) fn of(
    name: String,
    ram: &Arc<ServedRam>,
    restful: Restful,
) -> impl Fn(Command) -> String + Send + 'static {
    let ram = Arc::clone(ram);
    move |command| {
        let guest = ram.guest();
        let answer = |body| Answer::new(name.clone(), body).to_line();
        let collapser = || match guest.collapser_stats() {
            Some(stats) => answer(Body::Collapser(told(stats))),
            None => refusal(NO_COLLAPSER),
        };
        match command {
            Command::MemoryMap => {
                Document::new(name.clone(), State::Running, guest.memory_map()).to_line()
            }
            Command::Stats => {
                let answer = StatsAnswer {
                    slat: VERSION,
                    kind: "stats",
                    machine: &name,
                    memory: guest.stats(),
                    dedup: ram.dedup_stats(),
                    pool: ram.describe_pool(),
                };
                let mut line =
                    serde_json::to_string(&answer).expect("keys are strings and no value can fail");
                line.push('\n');
                line
            }
            Command::Collapser => collapser(),
            Command::PauseCollapser => {
                guest.pause_collapser();
                collapser()
            }
            Command::ResumeCollapser => {
                guest.resume_collapser();
                collapser()
            }
            Command::Collapse => {
                let has_ended = || restful.stage.ending().is_some();
                answer(Body::Collapse(ram.collapse_all(has_ended)))
            }
            Command::Pause => match restful.pause() {
                Ok(devices) => answer(Body::Paused(Paused { devices })),
                Err(unrest) => refusal(&unrest.to_string()),
            },
            Command::Resume => {
                restful.resume();
                answer(Body::Resumed(Resumed {}))
            }
        }
    }
}
