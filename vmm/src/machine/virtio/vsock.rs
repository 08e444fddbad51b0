//! `[vsock.NAME]`

use std::io;

use devices::dma::Pinning;
use devices::virtio::vsock::Vsock;
use devices::virtio::vsock::host::Host;

use crate::config;
use crate::control::{Listener, SocketFile};
use crate::machine::MachineError;

use super::Boxed;

/// The sockets that `vsock` describes, and the file to which programs connect.
pub(super) fn model(
    name: &str,
    vsock: &config::Vsock,
    dma: &Pinning,
) -> Result<(Boxed, SocketFile), MachineError> {
    let path = &vsock.socket.value;
    let failed = |source| MachineError::Device {
        key: format!("vsock.{name}.socket"),
        path: path.to_path_buf(),
        source,
    };
    let (listener, file) =
        Listener::bind(path).map_err(|error| failed(io::Error::other(error)))?.into_parts();
    let host = Host::new(listener, path).map_err(failed)?;
    Ok((Box::new(Vsock::new(dma, vsock.cid.value, host)), file))
}
