//! What a running machine tells who asks at its control socket.

use std::sync::Arc;

use serde_json::json;

use crate::control::{Command, VERSION};
use crate::map::{Document, State};

use super::memory::ServedRam;

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
            let stats = json!({
                "slat": VERSION,
                "kind": "stats",
                "machine": name,
                "memory": ram.guest().stats(),
                "pool": ram.describe_pool(),
            });
            format!("{stats}\n")
        }
    }
}
