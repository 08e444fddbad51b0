//! The benchmarks run and keep their contract. What they measure is not asserted here: a shared machine decides that.

use std::time::Duration;

use serde_json::Value;
use tests::{Output, Slat, require_guests, require_userfaultfd, skip, skip_unless_refused};

const SLAT: Slat = Slat::at(env!("CARGO_BIN_EXE_slat")).limit(Duration::from_secs(240));

/// The keys of a row, and no others.
const KEYS: [&str; 8] =
    ["name", "value", "unit", "baseline", "baseline_value", "ratio", "goal", "holds"];

/// Runs the benchmark `name` as quickly as it can be.
fn run(name: &str) -> Output {
    SLAT.run(["bench", name, "--quick", "--json"])
}

/// Its rows.
fn rows(name: &str, output: &Output) -> Vec<Value> {
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{output:?}");
    let table: Value = serde_json::from_str(&output.stdout).expect("one JSON object");
    assert_eq!(table["bench"], name);
    assert!(table["machine"].is_string());
    let rows = table["rows"].as_array().expect("rows").clone();
    for row in &rows {
        let mut keys: Vec<&str> =
            row.as_object().expect("a row").keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut expected = KEYS;
        expected.sort_unstable();
        assert_eq!(keys, expected);
        assert!(row["value"].as_f64().is_some_and(|value| value > 0.0), "{row}");
        assert_eq!(row["ratio"].is_null(), row["baseline_value"].is_null(), "{row}");
    }
    rows
}

fn goals(rows: &[Value]) -> Vec<&str> {
    rows.iter().filter_map(|row| row["goal"].as_str()).filter(|goal| *goal != "-").collect()
}

#[test]
fn bench_fault_has_a_row_for_each_figure_with_its_goal() {
    if !require_guests() {
        return;
    }
    let rows = rows("fault", &run("fault"));
    assert_eq!(goals(&rows), ["ratio <= 1.15", "ratio >= 30", "<= 0.7"]);
}

#[test]
fn bench_postcopy_has_a_row_for_each_figure_with_its_goal() {
    if !require_guests() {
        return;
    }
    let rows = rows("postcopy", &run("postcopy"));
    let goals = goals(&rows);
    let ours = [
        "ratio <= 1.35",
        "<= 80",
        "<= 250",
        "ratio >= 0.85",
        "ratio <= 1.1",
        "ratio <= 1.1",
        "ratio <= 1.2",
        ">= 99",
        "<= 2000",
    ];
    assert_eq!(goals[..ours.len()], ours);
    // Where QEMU is installed.
    assert!(matches!(goals[ours.len()..], [] | ["ratio <= 1"]), "{goals:?}");
}

#[test]
fn bench_boot_has_a_row_for_each_figure_with_its_goal() {
    if !require_guests() {
        return;
    }
    assert_eq!(goals(&rows("boot", &run("boot"))), ["ratio <= 1.4", "<= 4"]);
}

#[test]
fn bench_pin_has_a_row_for_each_figure_with_its_goal() {
    if !require_userfaultfd() {
        return;
    }
    let rows = rows("pin", &run("pin"));
    let expected = [
        "ratio <= 1.4",
        "ratio <= 1.4",
        "ratio >= 5",
        "ratio <= 4",
        "ratio <= 1.2",
        "ratio <= 4",
        "ratio <= 2",
        "ratio >= 5",
        "ratio >= 80",
        "ratio >= 1.9",
        "ratio >= 8",
        "ratio <= 20",
    ];
    assert_eq!(goals(&rows), expected);
}

#[test]
fn bench_dma_has_a_row_for_each_figure_with_its_goal() {
    if !require_userfaultfd() {
        return;
    }
    let output = run("dma");
    // Where there is no bridge to be had, what goes from TAP to TAP is left out.
    let left_out = output.stderr.starts_with("from TAP to TAP: not measured, ");
    if left_out {
        skip(output.stderr.trim_end());
    }
    let stderr = if left_out { String::new() } else { output.stderr };
    let rows = rows("dma", &Output { stderr, ..output });
    let expected =
        ["ratio <= 1.05", "ratio <= 1.02", "ratio >= 0.85", "ratio <= 1.02", ">= 95", ">= 100"];
    assert_eq!(goals(&rows), expected);
    // Six kinds of requests by four figures each, the bare loop, and what can be done meanwhile.
    assert_eq!(rows.len(), 6 * 4 + 1 + 4 + if left_out { 0 } else { 2 });
}

#[test]
fn bench_clone_has_a_row_for_each_figure_with_its_goal() {
    if !require_guests() {
        return;
    }
    let rows = rows("clone", &run("clone"));
    assert_eq!(goals(&rows), ["ratio <= 1.3", "ratio <= 1.2"]);
    assert_eq!(rows.len(), 6);
}

#[test]
fn bench_share_has_a_row_for_each_figure_with_its_goal() {
    if !require_userfaultfd() {
        return;
    }
    let expected = ["ratio >= 0.5", "ratio <= 1.2", "ratio <= 1.2"];
    assert_eq!(goals(&rows("share", &run("share"))), expected);
}

#[test]
fn bench_collapse_has_a_row_for_each_figure_with_its_goal() {
    if !require_userfaultfd() {
        return;
    }
    let output = run("collapse");
    if output.code == Some(1) && output.stderr.contains("CAP_SYS_ADMIN") {
        skip_unless_refused(output.stderr.trim_end());
        return;
    }
    // Hot blocks and cold ones, each accessed by the guest or not.
    let expected = [
        "ratio >= 10",
        "ratio >= 4",
        "ratio <= 1.25",
        "ratio >= 4",
        "ratio <= 1.25",
        "ratio >= 1.2",
        "ratio <= 1.25",
        "ratio >= 1.2",
        "ratio <= 1.25",
    ];
    assert_eq!(goals(&rows("collapse", &output)), expected);
}

/// Minutes of a guest at work, which debian.rs has: here it is what is said where there is none.
#[test]
fn bench_ring3_says_what_it_needs() {
    let scratch = tests::Scratch::new();
    let mut command = SLAT.command(["bench", "ring3", "--quick", "--json"]);
    command.current_dir(scratch.path());
    let output = SLAT.start(command).finish();
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
    assert!(output.stderr.contains("run configs/get-debian.sh"), "{output:?}");
}

#[test]
fn bench_restore_has_a_row_for_each_figure_with_its_goal() {
    if !require_guests() {
        return;
    }
    let rows = rows("restore", &run("restore"));
    let goals = goals(&rows);
    let (start, touches) = goals.split_at(2);
    assert_eq!(start, ["ratio <= 1.2"; 2]);
    // For each walk, and again where the host can forget a file.
    assert!([3, 6].contains(&touches.len()), "{goals:?}");
    assert!(touches.iter().all(|goal| *goal == "ratio >= 20"), "{goals:?}");
}
