//! What the host has: users and groups, directories, and the time to try again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Group, User};
use rustix::fs::{CWD, Mode, OFlags};

use super::config::AgentSection;
use crate::config::ConfigError;

/// How often something is tried again that no event tells of.
const AGAIN: Duration = Duration::from_millis(5);

/// Waits for a moment.
#[expect(
    clippy::disallowed_methods,
    reason = "no event tells that a process listens, or a unit ends"
)]
pub(super) fn pause() {
    std::thread::sleep(AGAIN);
}

/// Whom daemons run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ids {
    /// The agent is root, and daemons are not.
    pub(super) root: bool,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The group of volumes' sockets.
    pub(super) socket_gid: Option<u32>,
    pub(super) socket_group: Option<String>,
}

impl Ids {
    /// Looks them up.
    ///
    /// # Errors
    /// The host has no such user or group.
    pub(super) fn find(agent: &AgentSection) -> Result<Self, ConfigError> {
        let root = rustix::process::geteuid().is_root();
        let usual = root.then(|| "kvm".to_owned());
        let socket_group =
            agent.socket_owner_group.clone().or(usual).filter(|name| !name.is_empty());
        let socket_gid = socket_group.as_deref().map(group).transpose()?;
        let socket_group = socket_gid.map(|gid| gid.to_string());
        if !root {
            let (uid, gid) =
                (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            return Ok(Self { root, uid, gid, socket_gid, socket_group });
        }
        let uid = user(&agent.user)?;
        let gid = group(&agent.group)?;
        Ok(Self { root, uid, gid, socket_gid, socket_group })
    }
}

/// A user by name or number.
pub(super) fn user(name: &str) -> Result<u32, ConfigError> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(ConfigError(format!(
            "there is no user {name:?}: `useradd --system --shell /usr/sbin/nologin {name}` makes it"
        ))),
        Err(cause) => Err(ConfigError(format!("looking for user {name:?}: {cause}"))),
    }
}

/// A group by name or number.
pub(super) fn group(name: &str) -> Result<u32, ConfigError> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(ConfigError(format!(
            "there is no group {name:?}: `groupadd --system {name}` makes it"
        ))),
        Err(cause) => Err(ConfigError(format!("looking for group {name:?}: {cause}"))),
    }
}

/// A directory's owner and rights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
}

/// Makes a directory that isn't there, parents and all, and gives it its owner and mode. One that is
/// there gets them, too, but must be a directory and no link to one.
pub(super) fn make_dir(path: &Path, owner: Owner) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        let ours = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mode: 0o755,
        };
        make_dir(parent, ours)?;
    }
    make_dir_in(CWD, path, owner)
}

/// The same in a directory that is open.
pub(super) fn make_dir_in(parent: impl AsFd, name: &Path, owner: Owner) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&dir)?;
    if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid) {
        let (uid, gid) =
            (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        rustix::fs::fchown(&dir, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(owner.mode))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn ours(mode: u32) -> Owner {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Owner { uid: uid.as_raw(), gid: gid.as_raw(), mode }
    }

    #[test]
    fn a_directory_has_the_mode_asked_for_and_is_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        make_dir(&path, ours(0o700)).unwrap();
        make_dir(&path, ours(0o711)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o711);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(make_dir(&link, ours(0o700)).is_err());
    }

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!((user("root").unwrap(), group("root").unwrap()), (0, 0));
        assert_eq!(user("4711").unwrap(), 4711);
        assert!(user("no such user").unwrap_err().to_string().contains("useradd"));
        assert!(group("no such group").is_err());
    }
}
