//! What is asked of a machine whose guest comes from another host, and what it answers.

use std::fmt::{self, Write};

use guest_mm::postcopy::report::Progress;
use serde::{Deserialize, Serialize};

use super::collapse::one_line;
use super::send::{Credentials, moment};

/// Where a machine is to wait for the source of its guest from now on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReceiveRequest {
    /// `unix:/path` or `tcp:host:port`.
    pub listen: String,
    /// Without these, the two sides know each other as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// What is told of a guest that comes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ReceiveStatus {
    /// Where its source may connect.
    pub listens: String,
    /// How far it is.
    pub progress: Progress,
}

impl ReceiveStatus {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let listens = one_line(&self.listens);
        writeln!(out, "listens at {listens}; {}", moment(&self.progress))
    }
}
