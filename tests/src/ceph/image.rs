//! An RBD image of a test's own, with what an operator or a second client does to it.
//!
//! Invariant: it is gone when its value is dropped, even when a client still holds it or died with
//! it: that client is blocklisted first.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Ceph, CephUser};

/// Who holds an image's exclusive lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    /// The lock's cookie, "auto 140...": librbd's own lock.
    pub id: String,
    /// "client.4123"
    pub locker: String,
    /// "127.0.0.1:0/1234567"
    pub address: String,
}

/// An image in the pool `rbd`.
#[derive(Debug)]
pub struct RbdImage {
    ceph: Ceph,
    name: String,
    features: Option<String>,
}

impl RbdImage {
    pub(super) fn create(ceph: &Ceph, size_bytes: u64, features: Option<&str>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Process ids come again, and an image whose test was killed may still be there.
        let clock = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let name = format!("t{}-{number}-{:x}", std::process::id(), clock.tv_nsec);
        let image = Self { ceph: ceph.clone(), name, features: features.map(Into::into) };
        let size = format!("{size_bytes}B");
        image.rbd(&["create", "--size", &size], &image.feature_args())?;
        Ok(image)
    }

    fn feature_args(&self) -> Vec<&str> {
        self.features.as_deref().map_or(vec![], |list| vec!["--image-feature", list])
    }

    /// `rbd BEFORE rbd/NAME AFTER`; its output.
    fn rbd(&self, before: &[&str], after: &[&str]) -> Result<Vec<u8>> {
        let spec = self.spec();
        let all = [before, &[&spec], after].concat();
        Ok(self.ceph.rbd(&all)?.stdout)
    }

    fn json(&self, command: &[&str]) -> Result<Value> {
        Ok(serde_json::from_slice(&self.rbd(command, &["--format", "json"])?)?)
    }

    /// Its name in the pool.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// "rbd/NAME"
    pub fn spec(&self) -> String {
        format!("rbd/{}", self.name)
    }

    /// The cluster it is in.
    pub fn ceph(&self) -> &Ceph {
        &self.ceph
    }

    /// As our programs name it, with the administrator's key.
    pub fn uri(&self) -> String {
        format!("rbd:rbd/{}?conf={}", self.name, self.ceph.conf().display())
    }

    /// As our programs name it, with another user's key.
    pub fn uri_as(&self, user: &CephUser) -> String {
        format!("{}&user={}&keyring={}", self.uri(), user.id, user.keyring.display())
    }

    /// As QEMU names it.
    pub fn qemu(&self) -> String {
        format!("rbd:rbd/{}:conf={}", self.name, self.ceph.conf().display())
    }

    /// Replaces content and size by those of a file; nobody may have it open.
    pub fn import(&self, file: &Path) -> Result<()> {
        self.rbd(&["rm", "--no-progress"], &[])?;
        let from = file.to_str().context("not UTF-8")?;
        self.rbd(&["import", "--no-progress", from], &self.feature_args())?;
        Ok(())
    }

    /// Writes its content to a new file: what Ceph itself makes of it.
    pub fn export(&self, file: &Path) -> Result<PathBuf> {
        self.rbd(&["export", "--no-progress"], &[file.to_str().context("not UTF-8")?])?;
        Ok(file.to_owned())
    }

    /// Grows or shrinks it; a client that has it open is told.
    pub fn resize(&self, size_bytes: u64) -> Result<()> {
        let size = format!("{size_bytes}B");
        self.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", &size], &[])?;
        Ok(())
    }

    /// A snapshot, unprotected; it goes with the image.
    pub fn snap_create(&self, snapshot: &str) -> Result<()> {
        let spec = format!("{}@{snapshot}", self.spec());
        self.ceph.rbd(&["snap", "create", "--no-progress", &spec])?;
        Ok(())
    }

    /// Size, features, snapshots and so on, as `rbd info` tells.
    pub fn info(&self) -> Result<Value> {
        self.json(&["info"])
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> Result<u64> {
        self.info()?.get("size").and_then(Value::as_u64).context("no size in rbd info")
    }

    /// Addresses of the clients that have it open for writing (and of some that died less than
    /// half a minute ago).
    pub fn watchers(&self) -> Result<Vec<String>> {
        let status = self.json(&["status"])?;
        let list = status.get("watchers").and_then(Value::as_array).context("no watchers")?;
        let address = |watcher: &Value| watcher.get("address")?.as_str().map(Into::into);
        Ok(list.iter().filter_map(address).collect())
    }

    /// Who has the exclusive lock.
    pub fn lock_owner(&self) -> Result<Option<LockOwner>> {
        let list = self.json(&["lock", "ls"])?;
        let Some(lock) = list.get(0) else { return Ok(None) };
        let field = |name: &str| -> Result<String> {
            let value = lock.get(name).and_then(Value::as_str);
            Ok(value.with_context(|| format!("no {name} in {lock}"))?.to_owned())
        };
        let (id, locker, address) = (field("id")?, field("locker")?, field("address")?);
        Ok(Some(LockOwner { id, locker, address }))
    }

    /// What an evacuation does: takes the exclusive lock from its owner, whose writes are refused
    /// from now on (blocklisted). Fails if nobody has it.
    pub fn break_lock(&self) -> Result<LockOwner> {
        let owner = self.lock_owner()?.context("nobody has the lock")?;
        self.rbd(&["lock", "rm"], &[&owner.id, &owner.locker])?;
        Ok(owner)
    }

    fn remove(&self) -> Result<()> {
        let simple = || self.rbd(&["rm", "--no-progress"], &[]);
        if simple().is_ok() {
            return Ok(());
        }
        self.rbd(&["snap", "purge", "--no-progress"], &[]).ok();
        if self.lock_owner()?.is_some() {
            self.break_lock()?;
        }
        for watcher in self.watchers()? {
            self.ceph.ceph(&["osd", "blocklist", "add", &watcher])?;
        }
        simple().map(drop)
    }
}

impl Drop for RbdImage {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            crate::wait::progress(format_args!("{} is not removed: {error:#}", self.name));
        }
    }
}
