//! `slat receive`: a machine that another host sends.

use std::io::{Write, stderr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest_mm::postcopy::report::{Phase, Progress};
use guest_mm::postcopy::sink::SinkConfig;
use guest_mm::postcopy::transport::{Address, Limits};

use crate::control::{Command, ReceiveRequest, moment};
use crate::machine::{Came, Received, receive, security};

use super::args::ReceiveArgs;
use super::question::answer;
use super::send::{Line, absolute_address};
use super::{Failure, print, run};

/// How long a source may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Builds the machine, lets a guest come into it and runs that; the exit code is the guest's verdict.
pub(super) fn run(args: &ReceiveArgs, started: Instant) -> Result<ExitCode, Failure> {
    if let Some(address) = &args.recover {
        return recover(args, address).map(|()| ExitCode::SUCCESS);
    }
    let mut args = args.clone();
    let run = &mut args.run;
    run.config.overrides.extend(run.control.iter().map(|path| format!("control.socket={path}")));
    let config = args.run.config.load()?;
    let listen = args.listen.as_deref().unwrap_or_default();
    let address: Address = listen.parse().map_err(|e| Failure::Channel(format!("{e}")))?;
    let security = security(args.channel.credentials().as_ref()).map_err(Failure::Channel)?;
    let sink = SinkConfig { address, security, limits: Limits::default(), patience: PATIENCE };
    let events = args.events;
    let (quiet, mut line, mut last) = (args.run.quiet, Line::default(), None);
    let watch = move |progress: &Progress| {
        let before = last.replace((progress.phase, Instant::now()));
        if events {
            let text = serde_json::to_string(progress).expect("keys are strings");
            // A reader that has gone away is no reason to fail.
            let _ = writeln!(stderr(), "{text}");
        } else if !quiet {
            match progress.phase {
                // The guest's console may be on the same terminal.
                Phase::PostCopy | Phase::SwitchOver => line.end(),
                Phase::Done | Phase::Broken => {
                    line.end();
                    if before.is_none_or(|(phase, _)| phase != progress.phase) {
                        let _ = writeln!(stderr(), "slat: {}", moment(progress));
                    }
                }
                Phase::Connecting | Phase::PreCopy => line.show(&moment(progress)),
            }
        }
    };
    let Received { outcome, came } =
        receive(&config, &sink, started, watch).map_err(Failure::Receive)?;
    if let (Some(path), Ok(report)) = (&args.arrival, &came) {
        run::write_json(path, report)?;
    }
    if !args.run.quiet {
        match &came {
            Ok(report) => told(report),
            Err(why) => {
                let _ = writeln!(stderr(), "slat: {why}");
            }
        }
    }
    run::finish(&args.run, &config, outcome)
}

/// Has a running machine wait at `address` for the source of its guest.
fn recover(args: &ReceiveArgs, address: &str) -> Result<(), Failure> {
    let listen = absolute_address(address);
    let request = ReceiveRequest { listen, credentials: args.channel.credentials() };
    print(&answer(&args.run.config.config, &Command::Receive(request))?.text())
}

/// What a person wants to know.
fn told(came: &Came) {
    let Came { channel: report, collapse, collapse_ms } = came;
    let us = |share| report.waits.quantile(share).unwrap_or(0);
    let _ = writeln!(
        stderr(),
        "slat: the guest came in {:.3} s; {} pages were asked for and waited for: half of them {} us at most, 99 % {} us; {} \
         blocks came whole, {} became so within {collapse_ms:.0} ms of the last page",
        report.progress.seconds,
        report.progress.requests,
        us(0.5),
        us(0.99),
        report.huge_blocks,
        collapse.promoted + collapse.copied
    );
}
