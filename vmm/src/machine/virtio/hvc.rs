//! `[hvc.NAME]`

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use devices::dma::Pinning;
use devices::virtio::console::Console;
use devices::virtio::console::host::{Files, Port, Socket};
use devices::virtio::console::wire::Size;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::config::{self, Hvc};
use crate::control::{Listener, SocketFile};
use crate::machine::MachineError;

use super::Boxed;

/// A console, and what it leaves to the machine.
pub(super) struct Made {
    pub(super) model: Boxed,
    /// The file of its socket.
    pub(super) file: Option<SocketFile>,
    /// Where what is typed goes, if it leads to standard input.
    pub(super) keys: Option<OwnedFd>,
}

/// The console that `hvc` describes.
pub(super) fn model(name: &str, hvc: &Hvc, dma: &Pinning) -> Result<Made, MachineError> {
    let failed = |path: &config::HostPath| {
        let path = path.to_path_buf();
        move |source| MachineError::Device { key: format!("hvc.{name}.port"), path, source }
    };
    let system = |source| MachineError::System { what: "standard input and output", source };
    let (mut file, mut keys) = (None, None);
    let port: Box<dyn Port> = match &hvc.port.value {
        config::Port::Off => Box::new(Files::none()),
        config::Port::Stdio => {
            // What is typed is looked at for the escape first, and comes by a pipe.
            let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
            let (typed, typing) = pipe_with(flags).map_err(|errno| system(errno.into()))?;
            keys = Some(typing);
            let output = io::stdout().as_fd().try_clone_to_owned().map_err(system)?;
            Box::new(Files::pair(typed, output).map_err(system)?)
        }
        config::Port::File(path) => {
            let output = File::create(&**path).map_err(failed(path))?;
            Box::new(Files::output(output).map_err(failed(path))?)
        }
        config::Port::Socket(path) => {
            let bound =
                Listener::bind(path).map_err(|error| failed(path)(io::Error::other(error)))?;
            let (listener, made) = bound.into_parts();
            file = Some(made);
            Box::new(Socket::new(listener).map_err(failed(path))?)
        }
    };
    let size = Size { columns: hvc.columns.value, rows: hvc.rows.value };
    Ok(Made { model: Box::new(Console::new(dma, size, port)), file, keys })
}
