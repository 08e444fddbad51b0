//! `slat race` on the real program: every race and every variant, step by step and at random, and what is no race.
//!
//! `SLAT_LONG=1` replays each a hundred times and lets the storms of the sound protocol blow for a minute; without it, five times
//! and two seconds.

use std::env;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tests::{Output, Slat, assert_refused, require_guests, require_userfaultfd};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(150));

/// Set to 1, it asks for the long form of a test that has one.
const LONG: &str = "SLAT_LONG";

/// `short`, or `long` where that is asked for.
fn length(short: u64, long: u64) -> String {
    let is_long = env::var_os(LONG).is_some_and(|value| value == "1");
    if is_long { long } else { short }.to_string()
}

/// One race at a time: two of them take the processors from each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `slat race` with `args`, which succeeds.
fn race(args: &[&str]) -> Output {
    let output = SLAT.run(["race"].iter().chain(args));
    assert_eq!(output.code, Some(0), "{args:?}: {output:?}");
    output
}

fn told(args: &[&str]) -> Value {
    let output = race(args);
    serde_json::from_str(&output.stdout).expect("--json prints JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no array"))
}

/// Every race, with those of its variants that x86 shows.
fn races() -> Vec<(String, Vec<String>)> {
    let listed = told(&["list", "--json"]);
    let shown = |race: &Value| {
        let variants = list(&race["variants"]).iter();
        let here = variants.filter(|variant| variant["shows_on_x86"] == true);
        here.map(|variant| text(&variant["name"]).to_owned()).collect()
    };
    list(&listed).iter().map(|race| (text(&race["race"]).to_owned(), shown(race))).collect()
}

/// Checks what every outcome has to say.
fn assert_outcome(outcome: &Value, race: &str, variant: &str, mode: &str) {
    assert_eq!(outcome["race"], race, "{outcome}");
    assert_eq!(outcome["variant"], variant, "{outcome}");
    assert_eq!(outcome["mode"], mode, "{outcome}");
    assert_eq!(outcome["holds"], true, "{outcome}");
    assert!(outcome["operations"].as_u64().is_some_and(|count| count > 0), "{outcome}");
    assert!(outcome["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{outcome}");
    if variant == "sound" {
        assert_eq!((&outcome["expected"], &outcome["damage"]), (&"none".into(), &Value::Null));
    } else {
        let (damage, expected) = (text(&outcome["damage"]), text(&outcome["expected"]));
        assert!(damage.starts_with(expected), "{outcome}");
    }
}

#[test]
fn the_list_names_each_race_with_its_variants() {
    let listed = told(&["list", "--json"]);
    let plain = race(&["list"]).stdout;
    assert!(list(&listed).len() >= 8, "{listed}");
    for race in list(&listed) {
        assert!(plain.contains(text(&race["race"])), "{plain}");
        assert!(!list(&race["variants"]).is_empty(), "{race}");
        for variant in list(&race["variants"]) {
            assert!(plain.contains(text(&variant["name"])), "{plain}");
            assert!(variant["shows_on_x86"].is_boolean(), "{variant}");
        }
    }
}

#[test]
fn a_race_is_shown_with_its_protocol_its_schedules_and_its_page() {
    for (name, variants) in races() {
        let shown = race(&["show", &name]).stdout;
        assert!(shown.starts_with(&name), "{shown}");
        assert!(shown.contains("\nInvariant ") && shown.contains("to its end"), "{shown}");
        assert!(shown.contains(&format!("guest_mm/docs/races/{name}.md")), "{shown}");
        for variant in variants {
            assert!(shown.contains(&format!("\n{variant}: ")), "{shown}");
        }
    }
}

/// Variants that this machine's order of loads and stores cannot show say so, and why.
#[test]
fn what_x86_cannot_show_is_left_to_the_model_checker() {
    let (name, step) = ("pin-vs-unexclusive", "pin-without-barrier");
    let here = races().into_iter().find(|race| race.0 == name).expect("the race is there").1;
    assert_eq!(here, ["pin-without-mark"]);
    let plain = race(&["list"]).stdout;
    let line = plain.lines().find(|line| line.trim_start().starts_with(step)).expect("its line");
    assert!(line.ends_with("; not on x86"), "{line}");
    let shown = race(&["show", name]).stdout;
    assert!(shown.contains(&format!("\n{step}: ")), "{shown}");
    assert!(shown.contains("by the model checker alone: the locked instruction"), "{shown}");
}

#[test]
fn what_is_no_race_is_refused_with_what_is_one() {
    for (args, says) in [
        (&["show", "pin"][..], "the races are pin-vs-collapse, "),
        (&["run", "nothing"], "the races are pin-vs-collapse, "),
        (&["run", "pin-vs-collapse", "--variant", "x"], "its variants are pin-without-pde, "),
        (&["run", "lock-vs-detach", "--guest"], "leave out --guest"),
        (&["run", "pin-vs-collapse", "--guest", "--mode", "replay"], "add --mode storm"),
        (&["run", "pin-vs-collapse", "--mode", "model"], "add --variant"),
    ] {
        let output = SLAT.run(["race"].iter().chain(args));
        assert_refused(&args.join(" "), &output, &[says]);
    }
    for args in [
        &["run"][..],
        &["run", "pin-vs-collapse", "--mode", "x"],
        &["run", "pin-vs-collapse", "--drive", "disk"],
        &["run", "pin-vs-collapse", "--guest", "--drive", "x"],
        &["show"],
        &[],
    ] {
        let output = SLAT.run(["race"].iter().chain(args));
        assert_eq!(output.code, Some(2), "{args:?}: {output:?}");
    }
}

/// In two columns, a step a row; the steps of the left side begin where its head does, and so do the right one's.
#[test]
fn a_replay_is_told_step_by_step() {
    if !require_userfaultfd() {
        return;
    }
    let _alone = alone();
    let said = race(&["run", "pin-vs-collapse", "--variant", "pin-without-pde"]).stdout;
    let rows: Vec<&str> = said.lines().collect();
    let right = rows[2].find("collapse").expect("the columns have heads");
    let at = |label: &str| {
        let found = rows.iter().position(|row| row.trim_start().starts_with(label));
        found.unwrap_or_else(|| panic!("no {label} in {said}"))
    };
    let steps = ["P1 ", "C2 ", "C5 ", "C6 ", "P2 ", "P4 ", "-- the device writes", "C7 ", "C8 "];
    assert!(steps.map(at).is_sorted(), "{said}");
    assert!(rows[at("C2 ")].find("C2") == Some(right) && rows[at("P2 ")].find("P2") == Some(2));
    assert!(!said.contains("P5 is the PDE"), "the step is left out: {said}");
    assert!(said.contains("\ndamage: a DMA write is lost: "), "{said}");

    let held = race(&["run", "pin-vs-collapse"]).stdout;
    assert!(held.contains("P5 is the PDE") && held.contains("waits for the lock"), "{held}");
    assert!(held.contains("\nheld: "), "{held}");
}

#[test]
fn each_variant_does_its_damage_whenever_it_is_replayed() {
    if !require_userfaultfd() {
        return;
    }
    let _alone = alone();
    let times = length(5, 100);
    for (name, variants) in races() {
        for variant in variants {
            let args = ["run", &name, "--variant", &variant, "--times", &times, "--json"];
            let outcome = told(&args);
            assert_outcome(&outcome, &name, &variant, "replay");
            assert_eq!(outcome["times"].to_string(), times, "{outcome}");
            assert_eq!(outcome["shown"], outcome["times"], "{outcome}");
        }
    }
}

#[test]
fn by_the_same_schedules_the_protocol_that_ships_does_none() {
    if !require_userfaultfd() {
        return;
    }
    let _alone = alone();
    let times = length(5, 100);
    for (name, variants) in races() {
        if variants.is_empty() {
            continue;
        }
        let outcome = told(&["run", &name, "--times", &times, "--json"]);
        assert_outcome(&outcome, &name, "sound", "replay");
        assert_eq!(outcome["shown"], 0, "{outcome}");
    }
}

#[test]
fn each_variant_does_its_damage_in_a_storm_of_ten_seconds() {
    if !require_userfaultfd() {
        return;
    }
    let _alone = alone();
    for (name, variants) in races() {
        for variant in variants {
            let outcome = told(&["run", &name, "--variant", &variant, "--mode", "storm", "--json"]);
            println!("{outcome}");
            assert_outcome(&outcome, &name, &variant, "storm");
        }
    }
}

#[test]
fn a_storm_on_the_protocol_that_ships_does_none() {
    if !require_userfaultfd() {
        return;
    }
    let _alone = alone();
    let seconds = length(2, 60);
    for (name, variants) in races() {
        if variants.is_empty() {
            continue;
        }
        let args = ["run", &name, "--mode", "storm", "--seconds", &seconds, "--json"];
        let outcome = told(&args);
        println!("{outcome}");
        assert_outcome(&outcome, &name, "sound", "storm");
        assert!(outcome["operations"].as_u64().is_some_and(|count| count > 100), "{outcome}");
    }
}

#[test]
fn a_guest_is_witness_to_a_lost_write() {
    if !require_guests() {
        return;
    }
    let _alone = alone();
    let variant = "pin-without-pde";
    let limit = ["--seconds", "20", "--json"];
    let args = [&["run", "pin-vs-collapse", "--variant", variant, "--guest"], &limit[..]].concat();
    assert_outcome(&told(&args), "pin-vs-collapse", variant, "storm");
}
