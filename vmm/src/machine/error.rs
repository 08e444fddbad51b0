//! Why there is no machine.

use std::path::PathBuf;

use guest_mm::addr::Gpa;

use devices::bus::BusError;
use devices::virtio::device::Misfit;

use crate::boot::BootError;
use crate::config::HostPath;
use crate::control::BindError;
use crate::kvm::KvmError;
use crate::snapshot::SnapshotError;
use crate::state::StateError;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The kernel, the initrd or the command line is not usable.
    #[error("{config}: {key}{}: {source}", file.as_ref().map(|f| format!(" {}", f.display())).unwrap_or_default())]
    Boot {
        /// The config.
        config: HostPath,
        /// The key.
        key: &'static str,
        /// The file that the key names.
        file: Option<HostPath>,
        /// What is wrong.
        source: BootError,
    },
    /// A file cannot be read.
    #[error("{key} {}: {source}", path.display())]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The boot image lies on a guard page.
    #[error("the boot image needs guest-physical {gpa}, which memory.guard forbids")]
    Guarded {
        /// The page.
        gpa: Gpa,
    },
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No pool.
    #[error("memory.backing: {0}")]
    Backing(#[from] guest_mm::pool::BackingError),
    /// No template.
    #[error("memory.template: {0}")]
    Template(#[from] guest_mm::image::ImageError),
    /// No guest on it.
    #[error(transparent)]
    Guest(#[from] guest_mm::service::GuestError),
    /// A range that the tables cannot hold.
    #[error(transparent)]
    Range(#[from] guest_mm::addr::RangeError),
    /// A guard range that cannot be marked.
    #[error("memory.guard: {0}")]
    Guard(#[from] guest_mm::mark::MarkError),
    /// The boot image does not fit the pool.
    #[error("loading the boot image: {0}")]
    Load(#[from] guest_mm::fault::FaultError),
    /// No control socket.
    #[error("control.socket: {0}")]
    Control(#[from] BindError),
    /// A state that is none, or of another machine.
    #[error(transparent)]
    State(#[from] StateError),
    /// No snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The state of a device, which that cannot become.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The state of a device on the board, likewise.
    #[error("the saved state does not fit: {0}")]
    Platform(String),
    /// Two devices at one place.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// What a device stands on.
    #[error("{key} {}: {source}", path.display())]
    Device {
        /// The key.
        key: String,
        /// The file, or what else it names.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

impl MachineError {
    /// Whether the config or a file that it names is to blame, rather than the host.
    pub fn is_bad_input(&self) -> bool {
        use guest_mm::service::GuestError;
        matches!(
            self,
            MachineError::Boot { .. }
                | MachineError::File { .. }
                | MachineError::Device { .. }
                | MachineError::Guarded { .. }
                | MachineError::Guard(_)
                | MachineError::Template(_)
                | MachineError::State(_)
                | MachineError::Snapshot(
                    SnapshotError::None { .. }
                        | SnapshotError::Bad { .. }
                        | SnapshotError::Base { .. }
                )
                | MachineError::Guest(
                    GuestError::Ragged { .. }
                        | GuestError::Granule { .. }
                        | GuestError::PastImage { .. }
                )
        )
    }
}
