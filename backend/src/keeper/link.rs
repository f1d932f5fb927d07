//! The worker's end.
//!
//! Contract: every call returns when the keeper has obeyed: after a `park` the keeper's descriptor of
//! the device is closed, too. A keeper that is gone is no reason to stop serving: it is said once in
//! the log, and calls succeed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use sealblk_keys::Held;
use sealblk_rpc::{Connection, Message};

use super::words::{self, Reply, Word};
use crate::orders::AttachOrder;

/// The keeper does nothing that takes time.
const LIMIT: Duration = Duration::from_secs(10);

/// A volume as the keeper has it.
pub(crate) struct Kept {
    pub(crate) volume: String,
    pub(crate) order: Box<AttachOrder>,
    pub(crate) parked: bool,
    pub(crate) key: Held,
    pub(crate) device: Option<OwnedFd>,
}

/// The connection to the keeper.
pub(crate) struct Link {
    connection: Mutex<Connection>,
    lost: AtomicBool,
}

impl Link {
    /// Takes the connection from standard input, which becomes /dev/null.
    pub(crate) fn from_stdin() -> anyhow::Result<Self> {
        let connection = std::io::stdin().as_fd().try_clone_to_owned()?;
        let null = std::fs::File::open("/dev/null").context("/dev/null")?;
        rustix::stdio::dup2_stdin(&null).context("standard input")?;
        Ok(Self::new(Connection::from_descriptor(connection)))
    }

    pub(super) fn new(connection: Connection) -> Self {
        Self { connection: Mutex::new(connection), lost: AtomicBool::new(false) }
    }

    /// The sockets listen.
    pub(crate) fn ready(&self) {
        self.tell(&Word::Ready, &[]);
    }

    /// Keeps a volume that is served now.
    pub(crate) fn keep(
        &self,
        order: &AttachOrder,
        key: BorrowedFd<'_>,
        device: Option<BorrowedFd<'_>>,
    ) {
        let word = Word::Keep {
            volume: order.section.name.clone(),
            order: Box::new(order.clone()),
            device: device.is_some(),
        };
        let mut descriptors = vec![key];
        descriptors.extend(device);
        self.tell(&word, &descriptors);
    }

    /// Lets go of a volume's device.
    pub(crate) fn park(&self, volume: &str) {
        self.tell(&Word::Park { volume: volume.to_owned() }, &[]);
    }

    /// Lets go of a volume.
    pub(crate) fn drop_volume(&self, volume: &str) {
        self.tell(&Word::Drop { volume: volume.to_owned() }, &[]);
    }

    /// What the worker before had.
    pub(crate) fn restore(&self) -> anyhow::Result<Vec<Kept>> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.set_timeout(Some(LIMIT))?;
        connection.send(&words::bytes(&Word::Restore), &[])?;
        let mut all = Vec::new();
        loop {
            let message = connection.receive()?.context("the keeper closed")?;
            let Message { bytes, descriptors } = message;
            match serde_json::from_slice(&bytes)? {
                Reply::Done => return Ok(all),
                Reply::Refused { why } => bail!("{why}"),
                Reply::Volume { volume, order, parked, device } => {
                    let mut descriptors = descriptors.into_iter();
                    let name = order.record.key_id.clone().unwrap_or_else(|| volume.clone());
                    let key = descriptors.next().context("no key came along")?;
                    let key = Held::from_descriptor(&name, key)?;
                    let device = device.then(|| descriptors.next()).flatten();
                    all.push(Kept { volume, order, parked, key, device });
                }
            }
        }
    }

    fn tell(&self, word: &Word, descriptors: &[BorrowedFd<'_>]) {
        if self.lost.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.try_tell(word, descriptors) {
            self.lost.store(true, Ordering::Relaxed);
            tracing::error!(
                "the keeper is gone ({error:#}): disks are served on, but nothing starts this \
                 process again if it dies; hard-reboot the instance when it suits"
            );
        }
    }

    fn try_tell(&self, word: &Word, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.set_timeout(Some(LIMIT))?;
        let answer = connection.call(&words::bytes(word), descriptors)?;
        match serde_json::from_slice(&answer.bytes)? {
            Reply::Done => Ok(()),
            Reply::Refused { why } => bail!("{why}"),
            Reply::Volume { .. } => bail!("an answer to another question"),
        }
    }
}
