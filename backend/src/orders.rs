//! What the agent orders of an instance's daemon, and its answers.
//!
//! Contract: `RUN_DIR/orders.sock`, transport of `sealblk-rpc`, one JSON object a message; answers are
//! `Answer`s. An order may be repeated: what is done already is done. Policy is the agent's: a
//! volume's section comes complete, as a file would have it, but for the key, which comes as a
//! descriptor or is kept here.

use std::path::{Path, PathBuf};

use sealblk_api::agent::{KeyAccess, Source};
use serde::{Deserialize, Serialize};

use crate::config::VolumeSection;

/// The socket for orders.
pub(crate) fn orders_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("orders.sock")
}

/// The socket of the control API.
pub(crate) fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("control.sock")
}

/// An order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Order {
    /// Serve a volume: [`Served`]. Descriptors: the key if [`AttachOrder::key`] says so, then the
    /// device if [`AttachOrder::device`] does.
    Attach(Box<AttachOrder>),
    /// End the session, close the volume, keep its key: `Gone`.
    Park { volume: String },
    /// The same, and forget it: `Gone`.
    Detach { volume: String },
    /// [`Disks`]
    List,
    /// Let go of everything and end, without being started again: `Gone` is sent before.
    End,
}

/// A volume to be served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttachOrder {
    /// Its section; `name` is the volume's UUID, `key` and `plain` aren't used.
    pub(crate) section: VolumeSection,
    pub(crate) key: OrderKey,
    /// An open descriptor of the device or file that `section.uri` names comes along: opened by the
    /// agent for reading and writing (unless `read_only`), with `O_DIRECT`, and claimed by it
    /// (`O_EXCL` on a block device).
    #[serde(default)]
    pub(crate) device: bool,
    pub(crate) record: Record,
}

/// Where the passphrase is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OrderKey {
    /// The first descriptor's whole content.
    Descriptor,
    /// The daemon has it: the volume is parked, or served already.
    Kept,
}

/// What the agent wants told again by [`Order::List`], also after it was restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) source: Source,
    #[serde(default)]
    pub(crate) key_id: Option<String>,
    #[serde(default)]
    pub(crate) key_access: KeyAccess,
}

/// A volume that is served: its socket listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Served {
    pub(crate) socket: String,
    /// Size of the disk, in bytes.
    pub(crate) capacity_bytes: u64,
    pub(crate) serial: String,
    pub(crate) read_only: bool,
    pub(crate) luks_version: u8,
    pub(crate) luks_uuid: String,
}

/// Answer to [`Order::List`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Disks {
    /// The process that serves.
    pub(crate) pid: u32,
    pub(crate) volumes: Vec<ListedDisk>,
}

/// A volume of the daemon's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListedDisk {
    pub(crate) volume: String,
    /// `serving`, `parked`, or `failed` (it could not be taken up again after a crash).
    pub(crate) state: String,
    pub(crate) socket: String,
    pub(crate) connected: bool,
    pub(crate) record: Record,
    #[serde(default)]
    pub(crate) trouble: Option<String>,
}
