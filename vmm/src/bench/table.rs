//! What a benchmark prints.

use std::fmt::Write;

use serde::{Serialize, Serializer};

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Told for orientation.
    None,
    /// The ratio to the baseline is at most this.
    RatioAtMost(f64),
    /// The ratio to the baseline is at least this.
    RatioAtLeast(f64),
    /// The figure itself is at most this.
    AtMost(f64),
    /// The figure itself is at least this.
    AtLeast(f64),
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it is compared with.
    pub baseline: String,
    /// The baseline's figure, in the same unit.
    pub baseline_value: Option<f64>,
    /// Figure over baseline, or the other way round where more is better: as the goal has it.
    pub ratio: Option<f64>,
    /// What it should be.
    pub goal: Goal,
    /// Whether this run met the goal; true where there is none.
    pub holds: bool,
}

/// All figures of a benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Its name.
    pub bench: &'static str,
    /// The machine, in a line.
    pub machine: String,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_string())
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Goal::None => f.write_str("-"),
            Goal::RatioAtMost(goal) => write!(f, "ratio <= {goal}"),
            Goal::RatioAtLeast(goal) => write!(f, "ratio >= {goal}"),
            Goal::AtMost(goal) => write!(f, "<= {goal}"),
            Goal::AtLeast(goal) => write!(f, ">= {goal}"),
        }
    }
}

impl Row {
    /// A figure beside its baseline; the ratio is `value / baseline_value`.
    pub fn against(
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        baseline: impl Into<String>,
        baseline_value: f64,
        goal: Goal,
    ) -> Row {
        Row::alone(name, unit, value, goal).beside(baseline, baseline_value, value / baseline_value)
    }

    /// A cost whose baseline is the slower way; the ratio is `baseline_value / value`: how many times faster.
    pub fn faster_than(
        name: impl Into<String>,
        unit: &'static str,
        value: f64,
        baseline: impl Into<String>,
        baseline_value: f64,
        goal: Goal,
    ) -> Row {
        Row::alone(name, unit, value, goal).beside(baseline, baseline_value, baseline_value / value)
    }

    /// The same with a ratio of its own: the median of the rounds' ratios is quieter than that of two medians.
    #[must_use]
    pub fn with_ratio(self, ratio: f64, goal: Goal) -> Row {
        let holds = goal.is_met(self.value, Some(ratio));
        Row { ratio: Some(ratio), goal, holds, ..self }
    }

    /// A figure alone.
    pub fn alone(name: impl Into<String>, unit: &'static str, value: f64, goal: Goal) -> Row {
        Row {
            name: name.into(),
            value,
            unit,
            baseline: String::new(),
            baseline_value: None,
            ratio: None,
            goal,
            holds: goal.is_met(value, None),
        }
    }

    fn beside(self, baseline: impl Into<String>, baseline_value: f64, ratio: f64) -> Row {
        Row {
            baseline: baseline.into(),
            baseline_value: Some(baseline_value),
            ratio: Some(ratio),
            holds: self.goal.is_met(self.value, Some(ratio)),
            ..self
        }
    }
}

impl Goal {
    fn is_met(self, value: f64, ratio: Option<f64>) -> bool {
        match (self, ratio) {
            (Goal::None, _) => true,
            (Goal::RatioAtMost(goal), Some(ratio)) => ratio <= goal,
            (Goal::RatioAtLeast(goal), Some(ratio)) => ratio >= goal,
            (Goal::AtMost(goal), _) => value <= goal,
            (Goal::AtLeast(goal), _) => value >= goal,
            // A ratio that was not measured meets nothing; neither does a NaN above.
            (_, None) => false,
        }
    }
}

impl Table {
    /// A table without rows, for this machine.
    pub fn new(bench: &'static str) -> Table {
        Table { bench, machine: machine(), rows: Vec::new() }
    }

    /// As text, a figure a line.
    pub fn text(&self) -> String {
        let mut text = format!("{} on {}\n", self.bench, self.machine);
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        for row in &self.rows {
            let _ = write!(text, "{:width$}  {:>12} {:<8}", row.name, figure(row.value), row.unit);
            if let (Some(baseline), Some(ratio)) = (row.baseline_value, row.ratio) {
                let _ =
                    write!(text, " {:>8} x  {} {}", figure(ratio), row.baseline, figure(baseline));
            }
            if row.goal != Goal::None {
                let verdict = if row.holds { "holds" } else { "DOES NOT HOLD" };
                let _ = write!(text, "  [{}: {verdict}]", row.goal);
            }
            text.push('\n');
        }
        text
    }
}

/// Three significant digits, and no exponent. By comparisons: a logarithm would bring the mathematics
/// library into every start of this program.
fn figure(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size >= 100.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 || size == 0.0 => 2,
        _ if size >= 0.1 => 3,
        _ if size >= 0.01 => 4,
        _ => 6,
    };
    format!("{value:.decimals$}")
}

/// The machine in a line: processors, kernel, hypervisor.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let name = rustix::system::uname();
    let model = std::fs::read_to_string("/proc/cpuinfo").ok();
    let model = model.as_deref().and_then(|info| {
        info.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
    });
    format!(
        "{cpus} x {}, Linux {}",
        model.unwrap_or("unknown CPU"),
        name.release().to_string_lossy()
    )
}

/// The middle of some figures.
///
/// # Panics
/// If there are none.
pub(super) fn median(figures: &mut [f64]) -> f64 {
    assert!(!figures.is_empty(), "a benchmark has rounds");
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_was_not_measured_does_not_hold() {
        assert!(!Row::alone("x", "us", 1.0, Goal::RatioAtMost(2.0)).holds);
        assert!(!Row::against("x", "us", f64::NAN, "y", 1.0, Goal::RatioAtMost(2.0)).holds);
        assert!(Row::against("x", "us", 2.0, "y", 1.0, Goal::RatioAtMost(2.0)).holds);
        assert!(Row::faster_than("x", "us", 2.0, "y", 70.0, Goal::RatioAtLeast(30.0)).holds);
    }

    #[test]
    fn the_contract_of_the_json_is_kept() {
        let mut table = Table::new("fault");
        table.rows.push(Row::against("a", "us", 3.0, "b", 2.0, Goal::RatioAtMost(1.15)));
        let json = serde_json::to_value(&table).unwrap();
        for key in ["bench", "machine", "rows"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["name", "value", "unit", "baseline", "baseline_value", "ratio", "goal", "holds"]
        {
            assert!(json["rows"][0].get(key).is_some(), "{key}");
        }
        assert_eq!(json["rows"][0]["goal"], "ratio <= 1.15");
        assert_eq!(json["rows"][0]["holds"], false);
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(
            ["38.4", "1234", "0.0312"].map(String::from),
            [38.41, 1234.4, 0.03123].map(figure)
        );
    }
}
