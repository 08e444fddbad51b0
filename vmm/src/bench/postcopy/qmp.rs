//! QEMU's machine protocol, as far as a migration takes (QEMU docs/interop/qmp-spec).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::BenchError;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A monitor's socket.
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects, and agrees on the protocol.
    pub(super) fn connect(socket: &Path) -> Result<Qmp, BenchError> {
        let writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Qmp { reader: BufReader::new(writer.try_clone()?), writer };
        // The greeting.
        qmp.line()?;
        qmp.ask("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// What `command` returns.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, BenchError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.writer.write_all(line.as_bytes())?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                return Err(BenchError::Guest(format!("QEMU's {command}: {error}")));
            }
            // Events come in between.
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value, BenchError> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        serde_json::from_str(&line)
            .map_err(|error| BenchError::Guest(format!("QEMU says {line:?}: {error}")))
    }
}
