//! `slat balloon`: what a machine says of its balloons, and what it does not let be asked of them. Guests that give memory are in
//! debian.rs.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Output, Running, Scratch, Slat, require_guests};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

/// A machine that runs until it is ended, with this table in its config, and its socket.
fn machine(scratch: &Scratch, table: &str) -> (Running, String) {
    let text = format!(
        "memory.size = \"64M\"\nboot.guest = \"touch\"\nboot.cmdline = \"passes=1000000000\"\n{table}"
    );
    let config = scratch.write("x.toml", text);
    let socket = scratch.path().join("control");
    let (config, path) = (config.display().to_string(), socket.display().to_string());
    let machine = SLAT.start(SLAT.command(["run", &config, "--control", &path]));
    let started = Instant::now();
    while !socket.exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "the machine has no socket");
        std::thread::sleep(Duration::from_millis(5));
    }
    (machine, path)
}

fn end(machine: Running) {
    machine.signal(rustix::process::Signal::TERM);
    assert_eq!(machine.finish().code, Some(143));
}

fn assert_refused(output: &Output, code: i32, says: &str) {
    assert_eq!((output.code, output.stdout.as_str()), (Some(code), ""), "{output:?}");
    assert!(output.stderr.contains(says) && output.stderr.lines().count() == 1, "{output:?}");
}

#[test]
fn a_balloon_tells_what_is_asked_for_and_takes_what_it_can_be() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let (machine, socket) = machine(&scratch, "[balloon.main]\ntarget = \"8M\"\n");
    let ask = |args: &[&str]| SLAT.run([&["balloon", &socket], args].concat());
    let asked = ask(&[]);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    assert!(asked.stdout.ends_with("x.toml: 8 MiB asked for, 0 bytes given\n"), "{asked:?}");
    let asked = ask(&["16M", "--json"]);
    let told: Value = serde_json::from_str(&asked.stdout).expect("one JSON object");
    assert_eq!(told["kind"], "balloon", "{told}");
    let balloon = &told["balloons"][0];
    assert_eq!(
        (&balloon["name"], &balloon["target"]),
        (&"balloon.main".into(), &(16 << 20).into())
    );

    let more = "a balloon of 65 MiB is more than the RAM of this machine, 64 MiB";
    assert_refused(&ask(&["65M"]), 1, more);
    assert_refused(&ask(&["100"]), 1, "a balloon is of pages of 4 KiB, which 100 bytes are not");
    // What was refused has changed nothing.
    assert!(ask(&[]).stdout.contains("16 MiB asked for"));
    let unfit = ask(&["much"]);
    assert_eq!(unfit.code, Some(2), "{unfit:?}");
    assert!(unfit.stderr.contains("it must be a number of bytes"), "{unfit:?}");
    end(machine);
}

#[test]
fn a_machine_without_a_balloon_says_so() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let (machine, socket) = machine(&scratch, "");
    for args in [&[][..], &["16M"]] {
        let output = SLAT.run([&["balloon", &socket], args].concat());
        assert_refused(&output, 1, "this machine has no balloon: give it a table [balloon.NAME]");
    }
    end(machine);
}
