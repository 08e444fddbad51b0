//! Asking a running machine: a line protocol on a Unix socket.
//!
//! One connection, one request line, one response line, both JSON with the protocol's version. Before the response of what takes
//! long come lines that say how far it is:
//!
//! ```json
//! → {"slat": 1, "command": "memory-map"}
//! ← {"slat": 1, "kind": "memory-map", "machine": "x.toml", "state": "running", …}
//! → {"slat": 1, "command": "stats"}
//! ← {"slat": 1, "kind": "stats", "memory": {…}, "pool": "…"}
//! → {"slat": 1, "command": "collapse-pause"}
//! ← {"slat": 1, "kind": "collapser", "machine": "x.toml", "paused": true, …}
//! → {"slat": 1, "command": "pause"}
//! ← {"slat": 1, "kind": "paused", "machine": "x.toml", "devices": […]}
//! → {"slat": 1, "command": "send", "to": "tcp:there:4000", "mode": "hybrid", "streams": 1, "downtime_ms": 300}
//! ← {"slat": 1, "kind": "sending", "machine": "x.toml", "state": "going", …}
//! → {"slat": 1, "command": "send-status"}
//! ← {"slat": 1, "kind": "sending", "machine": "x.toml", "state": "gone", "report": {…}, …}
//! → {"slat": 1, "command": "receive", "listen": "tcp:0.0.0.0:4001"}
//! ← {"slat": 1, "kind": "receiving", "machine": "x.toml", "listens": "tcp:0.0.0.0:4001", …}
//! → {"slat": 1, "command": "snapshot", "folder": "/vm/saved", "track": true}
//! ← {"slat": 1, "progress": {"done": 512, "of": 16384}}
//! ← …
//! ← {"slat": 1, "kind": "saved", "machine": "x.toml", "folder": "/vm/saved", …}
//! → {"slat": 1, "command": "balloon", "target": 67108864}
//! ← {"slat": 1, "kind": "balloon", "machine": "x.toml", "balloons": [{"name": …, "target": …, "actual": …}]}
//! → {"slat": 1, "command": "dance"}
//! ← {"slat": 1, "error": "there is no command \"dance\", but …"}
//! ```
//!
//! ```text
//!   request.rs   what can be asked            server.rs   the thread that answers
//!   socket.rs    the socket's file            client.rs   who asks
//!   collapse.rs  what is answered about collapses
//!   pause.rs     what is answered about a machine at rest; snapshot.rs, about one that was saved
//!   send.rs      what is asked of a machine that is to go to another host, and what it answers
//!   receive.rs   likewise, of one whose guest comes from another host
//!   balloon.rs   what is answered about balloons
//! ```
//!
//! What is promised: a request is at most [`LONGEST`] bytes; a client has [`PATIENCE`] from its connection to its answer (what takes
//! long takes as long as it does), and no client can keep the machine from ending. Clients are served one after the other. Only the user that runs the machine
//! can connect (mode 0600).
//!
//! The answers come from who starts the server: this module knows no machine.

mod balloon;
mod client;
mod collapse;
mod pause;
mod receive;
mod request;
mod send;
mod server;
mod snapshot;
mod socket;

pub use balloon::{BalloonSize, Balloons};
pub use client::{AskError, ask, ask_and_watch};
pub use collapse::{Answer, BadAnswer, Body, CollapseOutcome, Collapser};
pub use pause::{DeviceAtRest, Paused, Resumed};
pub use receive::{ReceiveRequest, ReceiveStatus};
pub use request::{
    BadRequest, BalloonRequest, Command, LONGEST, SnapshotRequest, VERSION, refusal,
};
pub use send::{Credentials, Packing, SendMode, SendRequest, SendState, SendStatus, moment};
pub use server::{PATIENCE, Progress, Server};
pub use snapshot::Saved;
pub use socket::{BindError, Listener, SocketFile};
