//! What can be asked.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::{Value, json};

use super::receive::ReceiveRequest;
use super::send::SendRequest;

/// The version of the protocol, in the field `slat` of every line.
pub const VERSION: u64 = 1;

/// Bytes of a request at most, its newline included.
pub const LONGEST: usize = 4096;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// What each block of the memory holds.
    MemoryMap,
    /// What the memory service did.
    Stats,
    /// What the collapser did.
    Collapser,
    /// The collapser is to rest.
    PauseCollapser,
    /// The collapser is to go on.
    ResumeCollapser,
    /// All RAM is to be collapsed now.
    Collapse,
    /// The machine is to rest.
    Pause,
    /// The machine is to go on.
    Resume,
    /// The machine is to go to another host.
    Send(SendRequest),
    /// How far it is with that.
    SendStatus,
    /// It is to stay.
    SendCancel,
    /// It was handed over, and is to go on here all the same.
    TakeBack,
    /// The source of its guest may connect elsewhere.
    Receive(ReceiveRequest),
    /// The machine is to be saved.
    Snapshot(SnapshotRequest),
    /// What its balloons hold, or are to hold.
    Balloon(BalloonRequest),
}

/// Where a machine is to be saved, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// The folder, from the root on: the machine runs in a folder of its own.
    pub folder: PathBuf,
    /// The snapshot that has what has not changed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// Changes are to be noted from now on, for one that builds on this.
    #[serde(default)]
    pub track: bool,
    /// The machine is to end then.
    #[serde(default)]
    pub stop: bool,
}

/// What is asked of balloons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonRequest {
    /// The bytes that the guest is asked for from now on, by all of its balloons together. Without it nothing is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
}

/// Why a line is no request. Goes back to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// More than [`LONGEST`] bytes.
    #[error("a request is one line of at most {LONGEST} bytes")]
    TooLong,
    /// Not JSON.
    #[error("a request is one line of JSON like {}", Command::MemoryMap.to_line().trim_end())]
    NotJson,
    /// JSON of another shape.
    #[error("a request is an object with the number \"slat\" and the string \"command\"")]
    Shape,
    /// A machine is to go, and it is not said where or how.
    #[error(
        "a request to send needs \"to\", \"streams\" and \"downtime_ms\", each of the right kind: {0}"
    )]
    Send(String),
    /// A source is to be waited for, and it is not said where.
    #[error("a request to receive needs \"listen\", of the right kind: {0}")]
    Receive(String),
    /// A snapshot of what or where.
    #[error("a snapshot's request needs \"folder\", and may have \"base\", \"track\" and \"stop\"")]
    Snapshot,
    /// A balloon's target that is no number.
    #[error("a balloon's request may have the number \"target\", in bytes")]
    Balloon,
    /// A version that is not spoken.
    #[error("version {0} is not spoken here, only {VERSION}")]
    Version(u64),
    /// No such command.
    #[error("there is no command {0:?}, but {known}", known = known())]
    Unknown(String),
}

/// The words of all commands.
fn known() -> String {
    let names = Command::ALL.map(|command| command.name());
    format!("{}, {SEND}, {RECEIVE}, {SNAPSHOT} and {BALLOON}", names.join(", "))
}

/// The words of the commands that say more.
const SEND: &str = "send";
const RECEIVE: &str = "receive";
const SNAPSHOT: &str = "snapshot";
const BALLOON: &str = "balloon";

/// The fields of a request that are known.
#[derive(Deserialize)]
struct Line {
    slat: u64,
    command: String,
}

impl Command {
    /// Every command that is one word.
    pub const ALL: [Command; 11] = [
        Command::MemoryMap,
        Command::Stats,
        Command::Collapser,
        Command::PauseCollapser,
        Command::ResumeCollapser,
        Command::Collapse,
        Command::Pause,
        Command::Resume,
        Command::SendStatus,
        Command::SendCancel,
        Command::TakeBack,
    ];

    /// Its word.
    pub const fn name(&self) -> &'static str {
        match self {
            Command::MemoryMap => "memory-map",
            Command::Stats => "stats",
            Command::Collapser => "collapser",
            Command::PauseCollapser => "collapse-pause",
            Command::ResumeCollapser => "collapse-resume",
            Command::Collapse => "collapse",
            Command::Pause => "pause",
            Command::Resume => "resume",
            Command::Send(_) => SEND,
            Command::SendStatus => "send-status",
            Command::SendCancel => "send-cancel",
            Command::TakeBack => "take-back",
            Command::Receive(_) => RECEIVE,
            Command::Snapshot(_) => SNAPSHOT,
            Command::Balloon(_) => BALLOON,
        }
    }

    /// The request that asks for it, its newline included.
    pub fn to_line(&self) -> String {
        let mut line = json!({ "slat": VERSION, "command": self.name() });
        let more = match self {
            Command::Send(request) => serde_json::to_value(request),
            Command::Receive(request) => serde_json::to_value(request),
            Command::Snapshot(request) => serde_json::to_value(request),
            Command::Balloon(request) => serde_json::to_value(request),
            _ => Ok(Value::Null),
        };
        if let (Value::Object(line), Ok(Value::Object(more))) = (&mut line, more) {
            line.extend(more);
        }
        format!("{line}\n")
    }

    /// What `line`, with or without its newline, asks for. Fields that are not known are passed over: a later version may
    /// have more.
    ///
    /// # Errors
    /// [`BadRequest`].
    pub fn parse(line: &[u8]) -> Result<Command, BadRequest> {
        if line.len() > LONGEST {
            return Err(BadRequest::TooLong);
        }
        let bytes = line;
        let line: Line = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
            Category::Data => BadRequest::Shape,
            _ => BadRequest::NotJson,
        })?;
        if line.slat != VERSION {
            return Err(BadRequest::Version(line.slat));
        }
        if line.command == SEND {
            let request = serde_json::from_slice(bytes);
            return request.map(Command::Send).map_err(|error| BadRequest::Send(error.to_string()));
        }
        if line.command == RECEIVE {
            let request = serde_json::from_slice(bytes);
            let bad = |error: serde_json::Error| BadRequest::Receive(error.to_string());
            return request.map(Command::Receive).map_err(bad);
        }
        if line.command == SNAPSHOT {
            let request = serde_json::from_slice(bytes).map_err(|_| BadRequest::Snapshot)?;
            return Ok(Command::Snapshot(request));
        }
        if line.command == BALLOON {
            let request = serde_json::from_slice(bytes).map_err(|_| BadRequest::Balloon)?;
            return Ok(Command::Balloon(request));
        }
        let found = Command::ALL.into_iter().find(|command| command.name() == line.command);
        found.ok_or_else(|| BadRequest::Unknown(line.command.chars().take(32).collect()))
    }
}

impl BadRequest {
    /// The response, its newline included.
    pub fn to_line(&self) -> String {
        refusal(&self.to_string())
    }
}

/// The response that says `error`, its newline included.
pub fn refusal(error: &str) -> String {
    let mut line = json!({ "slat": VERSION, "error": error }).to_string();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_command_reads_back() {
        for command in Command::ALL {
            assert_eq!(Command::parse(command.to_line().as_bytes()), Ok(command));
        }
    }

    #[test]
    fn what_is_to_be_sent_reads_back() {
        let request = SendRequest {
            to: "tcp:there:1".into(),
            mode: super::super::SendMode::PreCopy,
            packing: super::super::Packing::Zstd,
            streams: 3,
            rate: Some(7),
            rounds: None,
            downtime_ms: 20,
            credentials: None,
            recover: true,
        };
        let command = Command::Send(request);
        assert_eq!(Command::parse(command.to_line().as_bytes()), Ok(command));
        let bare = b"{\"slat\":1,\"command\":\"send\"}";
        assert!(matches!(Command::parse(bare), Err(BadRequest::Send(_))));
    }

    #[test]
    fn where_to_listen_reads_back() {
        let request = ReceiveRequest { listen: "unix:/x \"y\"".into(), credentials: None };
        let command = Command::Receive(request);
        assert_eq!(Command::parse(command.to_line().as_bytes()), Ok(command));
        let bad = Command::parse(b"{\"slat\":1,\"command\":\"receive\"}");
        assert!(matches!(bad, Err(BadRequest::Receive(_))), "{bad:?}");
    }

    #[test]
    fn a_snapshot_reads_back_with_what_it_says() {
        let full = SnapshotRequest {
            folder: "/a b/\"c\"".into(),
            base: Some("/old".into()),
            track: true,
            stop: false,
        };
        let short = SnapshotRequest { folder: "/x".into(), ..SnapshotRequest::default() };
        for request in [full, short] {
            let command = Command::Snapshot(request);
            assert_eq!(Command::parse(command.to_line().as_bytes()), Ok(command));
        }
        let bare = b"{\"slat\":1,\"command\":\"snapshot\",\"folder\":\"/x\"}";
        assert!(matches!(Command::parse(bare), Ok(Command::Snapshot(_))));
        let bad = b"{\"slat\":1,\"command\":\"snapshot\"}";
        assert_eq!(Command::parse(bad), Err(BadRequest::Snapshot));
    }

    #[test]
    fn a_balloon_reads_back_with_its_target_or_without() {
        for target in [None, Some(0), Some(64 << 20), Some(u64::MAX)] {
            let command = Command::Balloon(BalloonRequest { target });
            assert_eq!(Command::parse(command.to_line().as_bytes()), Ok(command));
        }
        for bad in ["-1", "\"64M\"", "1.5", "18446744073709551616"] {
            let line = format!("{{\"slat\":1,\"command\":\"balloon\",\"target\":{bad}}}");
            assert_eq!(Command::parse(line.as_bytes()), Err(BadRequest::Balloon), "{bad}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_by_name() {
        let unknown = |name: &str| BadRequest::Unknown(name.into());
        let name = "y".repeat(100);
        let long = format!("{{\"slat\":1,\"command\":\"{name}\"}}");
        for (line, error) in [
            ("", BadRequest::NotJson),
            ("memory-map", BadRequest::NotJson),
            ("{\"slat\":1,\"command\":\"stats\"", BadRequest::NotJson),
            ("{\"slat\":1,\"command\":\"stats\"} x", BadRequest::NotJson),
            ("[]", BadRequest::Shape),
            ("{}", BadRequest::Shape),
            ("{\"slat\":\"1\",\"command\":\"stats\"}", BadRequest::Shape),
            ("{\"slat\":1,\"command\":[]}", BadRequest::Shape),
            ("{\"slat\":-1,\"command\":\"stats\"}", BadRequest::Shape),
            ("{\"slat\":2,\"command\":\"stats\"}", BadRequest::Version(2)),
            ("{\"slat\":1,\"command\":\"\"}", unknown("")),
            (&long, unknown(&"y".repeat(32))),
        ] {
            assert_eq!(Command::parse(line.as_bytes()), Err(error), "{line}");
        }
        assert_eq!(Command::parse(&[b' '; LONGEST + 1]), Err(BadRequest::TooLong));
        let more = b"{\"slat\":1,\"command\":\"stats\",\"since\":[3]}\r\n";
        assert_eq!(Command::parse(more), Ok(Command::Stats));
    }

    /// The answer to whatever comes is one short line of JSON.
    fn assert_answer_is_bounded(line: &[u8]) -> Result<(), TestCaseError> {
        if let Err(error) = Command::parse(line) {
            let answer = error.to_line();
            prop_assert!(answer.len() < 512, "{} bytes", answer.len());
            prop_assert_eq!(answer.matches('\n').count(), 1);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&answer).is_ok());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_short_answer(line in prop::collection::vec(any::<u8>(), 0..2 * LONGEST)) {
            assert_answer_is_bounded(&line)?;
        }

        #[test]
        fn almost_requests_get_a_short_answer(
            slat in "[0-9a-z\"\\[{-]{0,4}",
            command in "\\PC{0,60}",
            nested in 0_usize..LONGEST,
            cut in any::<prop::sample::Index>(),
        ) {
            let line = format!("{{\"slat\":{slat},\"command\":{command:?},\"x\":{}}}", "[".repeat(nested));
            assert_answer_is_bounded(line.as_bytes())?;
            assert_answer_is_bounded(&line.as_bytes()[..cut.index(line.len())])?;
        }
    }
}
