//! The exclusive lock of an image, held from open to close.
//!
//! The lock belongs to a client (an address with a nonce) and stands until that client lets go of it,
//! or until its watch on the image is gone, some 30 s after it has died. A daemon that was killed must
//! not keep its guest waiting for so long. So each claim leaves a note on this host (who held which
//! image), held by a lock of the kernel's. Whoever gets that lock knows that the process that wrote the
//! note is dead, and may break its claim at once. Breaking shuts the old client out of the cluster
//! (blocklist) before the new one writes anything: a write that is still on its way can't land later.
// UNSAFETY: calls librbd.
#![expect(unsafe_code, reason = "calls librbd")]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealblk_block::{ErrorKind, VolumeError};

use super::cluster::{check, text};
use super::image::Image;
use super::library::LOCK_MODE_EXCLUSIVE;
use crate::lock::lock_file;
use crate::{OpenOptions, RbdName, make_state_dir};

/// How often it is looked whether another client has let go. No event tells of that without the lock.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Owners and watchers that are looked at.
const LIST_MAX: usize = 16;

/// Longest note that is read, in bytes.
const NOTE_MAX: u64 = 4096;

/// An image that is ours.
pub(super) struct Claim {
    image: Arc<Image>,
    /// Keeps the lock on the note.
    _note: Option<File>,
}

impl Claim {
    pub(super) fn take(
        image: Arc<Image>,
        name: &RbdName,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        let deadline = Instant::now() + options.lock_wait;
        let (note, predecessor) = match Note::open(&image, name, options)? {
            Some(note) => (Some(note.file), note.predecessor),
            None => (None, String::new()),
        };
        let this = Self { image, _note: note };
        while let Some(owner) = this.owner()? {
            if !predecessor.is_empty() && is_named(&predecessor, &owner) {
                this.break_lock(&owner)?;
            } else if this.watches(&owner)? {
                if Instant::now() >= deadline {
                    let what = format!(
                        "in use by another client, {owner} (`rbd lock ls`); if that host is dead, \
                         its lock goes by itself 30 s later"
                    );
                    return Err(VolumeError::new(ErrorKind::Busy, this.image.uri(), what));
                }
                #[expect(
                    clippy::disallowed_methods,
                    reason = "no event tells that a lock is free"
                )]
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            // Whoever is dead loses it to us: librbd breaks its lock.
            break;
        }
        let uri = this.image.uri();
        // SAFETY: the image is open.
        let taken = unsafe {
            (this.image.api().rbd_lock_acquire)(this.image.handle(), LOCK_MODE_EXCLUSIVE)
        };
        match -taken {
            libc::EBUSY | libc::EAGAIN | libc::EROFS => {
                let what = "another client took its exclusive lock at the same moment";
                Err(VolumeError::new(ErrorKind::Busy, uri, what))
            }
            libc::EPERM | libc::EACCES => {
                let what = "the cluster's user may not lock it: it needs the capabilities \
                            `profile rbd` on the monitors and on the pool";
                Err(VolumeError::new(ErrorKind::Permission, uri, what))
            }
            _ => {
                check(uri, "taking its exclusive lock", taken)?;
                Ok(this)
            }
        }
    }

    /// Address of the client that has the lock, if one has.
    fn owner(&self) -> Result<Option<String>, VolumeError> {
        let mut mode = 0;
        let mut owners = [ptr::null_mut(); LIST_MAX];
        let mut count = LIST_MAX;
        let api = self.image.api();
        // SAFETY: the image is open; at most `count` pointers are written, and how many.
        let asked = unsafe {
            let list = owners.as_mut_ptr();
            (api.rbd_lock_get_owners)(self.image.handle(), &raw mut mode, list, &raw mut count)
        };
        if asked == -libc::ENOENT {
            return Ok(None);
        }
        check(self.image.uri(), "asking who has its lock", asked)?;
        let first = owners[..count.min(LIST_MAX)].first().map(|owner| {
            // SAFETY: a string that ends in NUL, ours until the list is given back.
            unsafe { CStr::from_ptr(*owner) }.to_string_lossy().into_owned()
        });
        // SAFETY: the list that was given.
        unsafe { (api.rbd_lock_get_owners_cleanup)(owners.as_mut_ptr(), count) };
        Ok(first)
    }

    /// Whether that client still watches the image, which it does while it lives.
    fn watches(&self, client: &str) -> Result<bool, VolumeError> {
        const NONE: super::library::Watcher =
            super::library::Watcher { addr: ptr::null_mut(), id: 0, cookie: 0 };
        let mut watchers = [NONE; LIST_MAX];
        let mut count = LIST_MAX;
        let api = self.image.api();
        // SAFETY: the image is open; at most `count` entries are written, and how many.
        let asked = unsafe {
            (api.rbd_watchers_list)(self.image.handle(), watchers.as_mut_ptr(), &raw mut count)
        };
        if asked == -libc::ERANGE {
            // So many that one of them will be the owner.
            return Ok(true);
        }
        check(self.image.uri(), "asking who has it open", asked)?;
        let found = watchers[..count.min(LIST_MAX)].iter().any(|watcher| {
            // SAFETY: a string that ends in NUL, ours until the list is given back.
            is_named(&unsafe { CStr::from_ptr(watcher.addr) }.to_string_lossy(), client)
        });
        // SAFETY: the list that was given.
        unsafe { (api.rbd_watchers_list_cleanup)(watchers.as_mut_ptr(), count) };
        Ok(found)
    }

    fn break_lock(&self, owner: &str) -> Result<(), VolumeError> {
        let uri = self.image.uri();
        let c_owner = text(uri, owner)?;
        // SAFETY: the image is open, and the string lives during the call.
        let broken = unsafe {
            let api = self.image.api();
            (api.rbd_lock_break)(self.image.handle(), LOCK_MODE_EXCLUSIVE, c_owner.as_ptr())
        };
        // It may have run out meanwhile.
        if broken == -libc::ENOENT {
            return Ok(());
        }
        check(uri, &format!("breaking the lock of its dead predecessor {owner}"), broken)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.image.is_fenced() {
            // Failing leaves a lock that goes when the image is closed, or with our watch.
            // SAFETY: the image is open.
            let _ = unsafe { (self.image.api().rbd_lock_release)(self.image.handle()) };
        }
    }
}

/// Who held the image, and the lock of the kernel's that says whether it lives.
struct Note {
    file: File,
    /// What the note said before it was ours.
    predecessor: String,
}

impl Note {
    /// Takes the note of this image and writes our own address into it. None where there is no place
    /// for notes.
    fn open(
        image: &Image,
        name: &RbdName,
        options: &OpenOptions,
    ) -> Result<Option<Self>, VolumeError> {
        let Some(dir) = &options.state_dir else { return Ok(None) };
        let uri = image.uri();
        let (fsid, id) = (image.cluster().fsid(uri)?, image.id()?);
        let namespace = name.namespace.as_deref().unwrap_or_default();
        // Names of pools may have slashes in them; fsid and id are plain.
        let place = format!("{}-{}", name.pool, namespace).replace('/', "_");
        let path = dir.join(format!("rbd-{fsid}-{place}-{id}.claim"));
        let open = || {
            make_state_dir(dir)?;
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.custom_flags(libc::O_NOFOLLOW).open(&path)
        };
        // A directory that can't be written to costs time after a crash, and nothing else.
        let Ok(mut file) = open() else { return Ok(None) };
        lock_file(file.as_fd(), false, options.lock_wait).map_err(|error| {
            VolumeError::io(uri, "in use by another program on this host (served already?)", error)
        })?;
        let mut predecessor = String::new();
        let address = image.cluster().address(uri)?;
        let mut exchange = || {
            (&file).take(NOTE_MAX).read_to_string(&mut predecessor)?;
            file.rewind()?;
            file.set_len(0)?;
            file.write_all(address.as_bytes())?;
            // Only a crash of the host could lose it, and then nobody reads it in time.
            Ok(())
        };
        exchange().map_err(|error: io::Error| {
            VolumeError::io(uri, format!("keeping a note in {}", path.display()), error)
        })?;
        Ok(Some(Self { file, predecessor }))
    }
}

/// Whether a client's list of addresses (`v1:ADDR/NONCE`, several in brackets) names the address that a
/// lock or a watch shows (one of them, without its kind).
fn is_named(addresses: &str, one: &str) -> bool {
    fn parts(list: &str) -> impl Iterator<Item = &str> {
        let list = list.trim_matches(['[', ']', '\n', ' ']);
        list.split(',').map(|address| {
            let address = address.trim();
            let kind = ["v1:", "v2:", "any:"].iter().find_map(|kind| address.strip_prefix(kind));
            kind.unwrap_or(address)
        })
    }
    parts(one).any(|one| !one.is_empty() && one.contains('/') && parts(addresses).any(|a| a == one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_known_by_address_and_nonce() {
        assert!(is_named("127.0.0.1:0/77", "127.0.0.1:0/77"));
        assert!(is_named("[v2:10.0.0.1:0/5,v1:10.0.0.1:0/5]\n", "v1:10.0.0.1:0/5"));
        assert!(!is_named("127.0.0.1:0/77", "127.0.0.1:0/7"));
        assert!(!is_named("127.0.0.1:0/77", "127.0.0.2:0/77"));
        assert!(!is_named("", ""));
    }
}
