//! `slat race`

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stderr};
use std::process::ExitCode;
use std::time::Duration;

use guest_mm::protocol::block;
use serde_json::{Value, json};

use crate::race::{self, Announce, Mode, Order, RACES, Race, Subject, Variant, Witness, page};

use super::args::{RaceCommand, RaceRunArgs};
use super::{FAILED, Failure, print};

/// Does what `command` says; the exit code tells whether a race came out as expected.
pub(super) fn run(command: &RaceCommand) -> Result<ExitCode, Failure> {
    match command {
        RaceCommand::List(args) if args.json => print(&format!("{}\n", list_json())),
        RaceCommand::List(_) => print(&list()),
        RaceCommand::Show(args) => print(&show(race::find(&args.name)?)),
        RaceCommand::Run(args) => return run_one(args),
    }
    .map(|()| ExitCode::SUCCESS)
}

fn list() -> String {
    let mut text = String::new();
    for race in RACES {
        let _ = writeln!(text, "{:26} {}", race.name, race.what);
        for variant in race.variants {
            let Variant { name, what, origin, .. } = variant;
            let where_ = if variant.shows_on_x86() { "" } else { "; not on x86" };
            let label = variant.lacks.label();
            let _ = writeln!(text, "  {name:24} without {label}: {what} ({origin}){where_}");
        }
    }
    text
}

fn list_json() -> Value {
    let variants = |race: &Race| -> Value {
        race.variants
            .iter()
            .map(|variant| {
                json!({
                    "name": variant.name,
                    "shows_on_x86": variant.shows_on_x86(),
                    "lacks": variant.lacks.label(),
                    "what": variant.what,
                    "origin": variant.origin,
                    "damage": variant.damage,
                })
            })
            .collect()
    };
    RACES
        .iter()
        .map(|race| json!({ "race": race.name, "what": race.what, "variants": variants(race) }))
        .collect()
}

fn show(race: &Race) -> String {
    let block = block(race.name).expect("a test holds that each race has a block");
    let mut text = format!("{}\n", block.text);
    for variant in race.variants {
        let Variant { name, what, damage, .. } = variant;
        let _ = writeln!(text, "{name}: {what}; {damage}\n");
        match variant.schedule() {
            Ok(rows) => text += &format!("{}{rows}\n", race.heads()),
            Err(why) => text += &format!("  by the model checker alone: {why}\n\n"),
        }
    }
    text + &format!("guest_mm/src/{}\n{}\n", block.source, page(race.name))
}

fn run_one(args: &RaceRunArgs) -> Result<ExitCode, Failure> {
    let race = race::find(&args.name)?;
    let subject = match &args.variant {
        None => Subject::Sound,
        Some(name) => Subject::Variant(race.variant(name)?),
    };
    let witness = if args.guest { Witness::Guest(args.drive) } else { Witness::Host };
    // A guest looks on in storms only.
    let default = if args.guest { Mode::Storm } else { Mode::Replay };
    let order = Order {
        race,
        subject,
        mode: args.mode.unwrap_or(default),
        witness,
        limit: Duration::from_secs(args.seconds),
        times: args.times,
    };
    let mut failed = None;
    let mut say = |text: &str| {
        if !args.json && failed.is_none() {
            failed = print(text).err();
        }
    };
    let mut announce = Announce { text: &mut say, progress: &progress };
    let outcome = race::run(&order, &mut announce);
    clear();
    let outcome = outcome?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    if args.json {
        let json = serde_json::to_string(&outcome).map_err(|e| Failure::Output(e.into()))?;
        print(&format!("{json}\n"))?;
    } else {
        print(&format!("\n{}", outcome.text(race)))?;
    }
    Ok(ExitCode::from(if outcome.holds { 0 } else { FAILED }))
}

/// One line that is written over, for a person who waits.
fn progress(how_far: &str) {
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r\x1b[K{how_far}");
    }
}

fn clear() {
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r\x1b[K");
    }
}
