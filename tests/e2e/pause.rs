//! A machine that is paused in the middle of its work: nothing of it moves, its devices tell their state, and it goes on as if
//! nothing had been.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::{Scratch, Slat, require_guests};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(120));

/// The answer of a machine to `slat COMMAND SOCKET --json`.
fn ask(command: &str, socket: &str) -> Value {
    let output = SLAT.run([command, socket, "--json"]);
    assert_eq!(output.code, Some(0), "{output:?}");
    serde_json::from_str(&output.stdout).expect("one JSON object")
}

#[test]
fn a_machine_is_paused_with_its_disk_at_work_and_loses_nothing() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let disk = scratch.write("disk.img", vec![0; 16 << 20]);
    let config = scratch.write(
        "pause.toml",
        "[boot]\nguest = \"blk\"\ncmdline = \"blk.ops=1000000 blk.seconds=8 blk.depth=16\"\n\
         [disk.data]\nfile = \"disk.img\"\n[rng.entropy]\n[collapse]\nbackground = true\n",
    );
    let socket = scratch.path().join("control").display().to_string();
    let report = scratch.path().join("report.json").display().to_string();
    let config = config.display().to_string();
    let run = ["run", &config, "--control", &socket, "--json-report", &report];
    let mut machine = SLAT.start(SLAT.command(run));
    machine.wait_for("blk: writable disk");

    let contents = || std::fs::read(&disk).expect("the disk is a file");
    for _ in 0..5 {
        sleep(Duration::from_millis(100));
        let paused = ask("pause", &socket);
        assert_eq!(paused["kind"], "paused", "{paused}");
        let devices = paused["devices"].as_array().expect("devices");
        let names: Vec<_> = devices.iter().filter_map(|device| device["name"].as_str()).collect();
        assert_eq!(names, ["disk.data", "rng.entropy"]);
        let state = &devices[0]["state"];
        assert_eq!((&state["version"], &state["device_type"]), (&1.into(), &2.into()), "{state}");
        // Every request that was taken was answered.
        let queue = &state["queues"][0];
        assert!(queue["ready"] == true && queue["next_avail"] == queue["next_used"], "{queue}");
        let before = contents();
        sleep(Duration::from_millis(50));
        assert!(contents() == before, "a machine at rest writes nothing");
        // Devices hold nothing of the guest's memory: by the map's sum, and by each of its blocks.
        let map = ask("map", &socket);
        assert_eq!(map["totals"]["bytes"]["pinned"].as_u64(), Some(0), "{:#}", map["totals"]);
        let blocks = map["blocks"].as_array().expect("blocks");
        let pinned: Option<u64> = blocks.iter().map(|block| block["pinned"].as_u64()).sum();
        assert_eq!((pinned, blocks.is_empty()), (Some(0), false), "{map}");
        // What rests, rests.
        assert_eq!(ask("pause", &socket)["kind"], "paused");
        assert_eq!(ask("resume", &socket)["kind"], "resumed");
        // For a part of its time the guest only reads back what it wrote.
        let resumed = Instant::now();
        while contents() == before {
            assert!(resumed.elapsed() < Duration::from_secs(20), "it goes on");
            sleep(Duration::from_millis(5));
        }
    }
    let output = machine.finish();
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains("wrong=0 errors=0"), "{output:?}");
    let report: Value =
        serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
    assert_eq!(report["audit"], "clean");
    assert_eq!(report["devices"][0]["broken"], Value::Null);
}

#[test]
fn a_machine_that_is_paused_can_be_ended() {
    if !require_guests() {
        return;
    }
    let scratch = Scratch::new();
    let config =
        scratch.write("x.toml", "boot.guest = \"touch\"\nboot.cmdline = \"passes=1000000\"\n");
    let socket = scratch.path().join("control").display().to_string();
    let config = config.display().to_string();
    let machine = SLAT.start(SLAT.command(["run", &config, "--control", &socket]));
    while !std::path::Path::new(&socket).exists() {
        sleep(Duration::from_millis(5));
    }
    let output = SLAT.run(["pause", &socket]);
    let told = format!("{config}: paused: no vCPU is in the guest, and no memory is pinned\n");
    assert_eq!((output.code, output.stdout), (Some(0), told));
    machine.signal(rustix::process::Signal::TERM);
    assert_eq!(machine.finish().code, Some(143));
}
