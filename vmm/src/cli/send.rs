//! `slat send`: a running machine goes to another host.

use std::io::{IsTerminal, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::control::{
    Answer, Body, Command, Credentials, SendRequest, SendState, SendStatus, moment,
};

use super::args::{ChannelArgs, SendArgs};
use super::question::answer;
use super::{FAILED, Failure, print};

/// How often the machine is asked how far it is.
const ASK: Duration = Duration::from_millis(100);

/// Has the machine sent, and waits until it is there. The exit code says whether it is.
pub(super) fn run(args: &SendArgs) -> Result<ExitCode, Failure> {
    let command = match &args.to {
        _ if args.status => Command::SendStatus,
        _ if args.cancel => Command::SendCancel,
        _ if args.take_back => Command::TakeBack,
        Some(to) => Command::Send(request(args, to)),
        None if args.recover => {
            // Where it was on its way to.
            let told = answer(&args.socket, &Command::SendStatus)?;
            let to = status(&told).and_then(|status| status.to.clone()).ok_or(Failure::NoSink)?;
            Command::Send(request(args, &to))
        }
        None => return Err(Failure::NoSink),
    };
    let waits = matches!(command, Command::Send(_)) && !args.detach;
    let mut told = answer(&args.socket, &command)?;
    let mut line = Line::default();
    while waits && let Some(status) = status(&told) {
        if status.state != SendState::Going {
            break;
        }
        if args.json {
            print(&told.to_line())?;
        } else {
            line.show(&moment(&status.progress));
        }
        std::thread::sleep(ASK);
        told = answer(&args.socket, &Command::SendStatus)?;
    }
    line.end();
    print(&if args.json { told.to_line() } else { told.text() })?;
    let state = status(&told).map(|status| status.state);
    let failed = waits && state != Some(SendState::Gone);
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn status(told: &Answer) -> Option<&SendStatus> {
    match &told.body {
        Body::Sending(status) => Some(status),
        _ => None,
    }
}

fn request(args: &SendArgs, to: &str) -> SendRequest {
    SendRequest {
        to: absolute_address(to),
        mode: args.mode,
        packing: args.compress,
        streams: args.streams,
        rate: args.rate.map(crate::config::Bytes::get),
        rounds: args.rounds,
        downtime_ms: args.downtime,
        credentials: args.channel.credentials(),
        recover: args.recover,
    }
}

/// The machine runs in a folder of its own: what is typed here begins here.
pub(super) fn absolute_address(to: &str) -> String {
    match to.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => format!("unix:{}", absolute(Path::new(path)).display()),
        _ => to.to_owned(),
    }
}

fn absolute(path: &Path) -> PathBuf {
    // Of an empty path; which is refused by who opens it.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl ChannelArgs {
    /// The files that are named, if any is.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        let ChannelArgs { tls_ca, tls_cert, tls_key, tls_name } = self;
        Some(Credentials {
            authority: absolute(tls_ca.as_ref()?),
            certificate: absolute(tls_cert.as_ref()?),
            key: absolute(tls_key.as_ref()?),
            peer_name: tls_name.clone(),
        })
    }
}

/// A line of a terminal that is written again and again.
#[derive(Default)]
pub(super) struct Line {
    shown: bool,
}

impl Line {
    pub(super) fn show(&mut self, text: &str) {
        if stderr().is_terminal() {
            // A reader that has gone away is no reason to fail.
            let _ = write!(stderr(), "\r\x1b[2K{text}");
            self.shown = true;
        }
    }

    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(stderr(), "\r\x1b[2K");
        }
    }
}
