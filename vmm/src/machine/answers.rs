//! What a running machine tells who asks at its control socket.

use std::sync::Arc;

use guest_mm::dedup::DedupStats;
use guest_mm::stats::Stats;
use serde::Serialize;

use crate::config::Bytes;
use crate::control::{
    Answer, Body, Command, DeviceAtRest, Paused, Progress, Resumed, SendRequest, VERSION, refusal,
};
use crate::map::{Document, State};
use crate::state::SavedDevice;

use super::balloons::balloons;
use super::collapse::told;
use super::live::Live;
use super::migrate::{Arriving, Sending, way};
use super::snapshot::Saver;

/// Who resumes a guest that may run elsewhere.
const HANDED_OVER: &str = "the guest was handed over to another host, and may run there: \"slat send --recover\" goes on with \
    that, and \"slat send --take-back\" has it here again as it was when it stopped";
/// Who wants to go on with a guest's coming where none comes.
const NOT_ARRIVING: &str = "the guest of this machine began here: name the control socket of the \"slat receive\" that it goes to";
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

/// Answers for the machine called `name`, whose memory is kept until the answers are dropped; `memory` of it is RAM.
pub(super) fn of(
    name: String,
    live: Live,
    toml: String,
    memory: Bytes,
    arriving: Option<Arc<Arriving>>,
) -> impl FnMut(Command, &mut dyn FnMut(Progress)) -> String + Send + 'static {
    let sending = Sending::new(live.clone());
    let mut saver = Saver::new(name.clone(), toml);
    move |command, tell| {
        let (ram, guest) = (live.ram(), live.guest());
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
                let has_ended = || live.ending().is_some();
                answer(Body::Collapse(ram.collapse_all(has_ended)))
            }
            Command::Pause => match live.pause() {
                Ok(()) => answer(Body::Paused(Paused { devices: devices_at_rest(&live) })),
                Err(unrest) => refusal(&unrest.to_string()),
            },
            Command::Resume if !sending.may_run() => refusal(HANDED_OVER),
            Command::Resume => match live.claim_disks() {
                Ok(()) => {
                    live.resume();
                    answer(Body::Resumed(Resumed {}))
                }
                Err(why) => refusal(&why),
            },
            Command::Send(request) => told_of(&sending, &name, begin(&sending, &request)),
            Command::SendStatus => told_of(&sending, &name, Ok(())),
            Command::SendCancel => told_of(&sending, &name, sending.cancel()),
            Command::TakeBack => told_of(&sending, &name, sending.take_back()),
            Command::Receive(request) => match &arriving {
                None => refusal(NOT_ARRIVING),
                Some(arriving) => match arriving.listen(&request) {
                    Ok(status) => answer(Body::Receiving(status)),
                    Err(why) => refusal(&why),
                },
            },
            Command::Balloon(request) => match balloons(live.virtio(), memory, request.target) {
                Ok(balloons) => answer(Body::Balloons(balloons)),
                Err(why) => refusal(&why.to_string()),
            },
            Command::Snapshot(request) => match saver.save(&live, &request, tell) {
                Ok(saved) => answer(Body::Saved(saved)),
                Err(error) => refusal(&error.to_string()),
            },
        }
    }
}

/// Begins to send the machine, or goes on with that.
fn begin(sending: &Sending, request: &SendRequest) -> Result<(), String> {
    let (dialer, config) = way(request)?;
    sending.begin(dialer, config, request.recover)
}

/// How far the machine is on its way, unless what was asked failed.
fn told_of(sending: &Sending, name: &str, asked: Result<(), String>) -> String {
    match asked {
        Ok(()) => Answer::new(name.to_owned(), Body::Sending(sending.status())).to_line(),
        Err(why) => refusal(&why),
    }
}

fn devices_at_rest(live: &Live) -> Vec<DeviceAtRest> {
    let told = |saved: SavedDevice| {
        let state = serde_json::to_value(saved.state).expect("states are plain data");
        DeviceAtRest { name: saved.name, state }
    };
    live.devices().into_iter().map(told).collect()
}
