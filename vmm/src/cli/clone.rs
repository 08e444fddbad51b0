//! `slat clone`

use std::fmt::Write;
use std::process::ExitCode;

use crate::machine::{CloneReport, Clones, ClonesReport};

use super::args::CloneArgs;
use super::check::looked_into;
use super::{Failure, print};

/// Runs the clones, and tells what they took; the highest of their exit codes.
pub(super) fn run(args: &CloneArgs) -> Result<ExitCode, Failure> {
    let config = looked_into(&args.config)?;
    if config.memory.template.is_none() {
        return Err(Failure::NoTemplate(args.config.config.clone()));
    }
    let report = Clones { config: &config, count: args.count }.run()?;
    tell(&report, args.json)
}

/// Tells what machines took that ran side by side; the highest of their exit codes.
pub(super) fn tell(report: &ClonesReport, json: bool) -> Result<ExitCode, Failure> {
    if json {
        let json = serde_json::to_string(report).map_err(|e| Failure::Output(e.into()))?;
        print(&format!("{json}\n"))?;
    } else {
        print(&text(report))?;
    }
    let books = u8::from(report.audit != "clean");
    let worst = report.clones.iter().map(|clone| clone.exit_code).max().unwrap_or(0);
    Ok(ExitCode::from(worst.max(books)))
}

/// The table for people.
fn text(report: &ClonesReport) -> String {
    let mut text = String::from("clone  first output  private  faults  ending\n");
    for clone in &report.clones {
        let first =
            clone.first_output_us.map_or("-".into(), |us| format!("{:.1} ms", us as f64 / 1e3));
        let _ = writeln!(
            text,
            "{:>5}  {first:>12}  {:>7}  {:>6}  {}",
            clone.clone,
            size(clone.private_bytes),
            clone.faults,
            ending(clone),
        );
    }
    let ClonesReport { before, after, .. } = report;
    let grown = |before: u64, after: u64| {
        format!("{} -> {} (+{})", size(before), size(after), size(after.saturating_sub(before)))
    };
    let _ = writeln!(
        text,
        "\ntemplate     {}: {} of {} loaded, once for all",
        report.template,
        size(report.loaded_bytes),
        size(report.template_bytes),
    );
    let count = report.clones.len() as u64;
    let each = report.private_bytes / count.max(1);
    let _ = writeln!(text, "private      {}, {} a clone", size(report.private_bytes), size(each));
    let _ = writeln!(text, "process PSS  {}", grown(before.pss_bytes, after.pss_bytes));
    let tables = grown(before.page_table_bytes, after.page_table_bytes);
    let _ = writeln!(text, "page tables  {tables}");
    let _ = writeln!(text, "pool         {}", report.pool);
    let _ = writeln!(text, "audit        {}", report.audit);
    text
}

/// How a clone ended; one that failed with its last words.
fn ending(clone: &CloneReport) -> String {
    let mut said = clone.reason.clone();
    if clone.audit != "clean" {
        let _ = write!(said, "; audit: {}", clone.audit);
    }
    if clone.exit_code != 0
        && let Some(last) = clone.console.lines().last()
    {
        let printable = last.chars().filter(|c| !c.is_control()).take(120);
        let _ = write!(said, "; it said last: {}", printable.collect::<String>());
    }
    said
}

/// Bytes, in the largest unit that leaves a digit before the point.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64),
        _ => format!("{:.2} GiB", bytes as f64 / (1 << 30) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = [0, 1023, 4096, (1 << 20) - 1, 3 << 19, 5 << 30].map(size);
        assert_eq!(shown, ["0 B", "1023 B", "4 KiB", "1023 KiB", "1.5 MiB", "5.00 GiB"]);
    }
}
