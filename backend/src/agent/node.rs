//! All instances of the node: what each request does.
//!
//! Contract: one request at a time for each instance, any number for others beside it. What there is
//! is asked of the daemons each time: an agent that was restarted knows as much as before. After an
//! error nothing is left running that was started for the request.
//!
//! Invariant: a volume is served for one instance.

mod attach;
mod life;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use sealblk_api::agent::{
    AGENT_API, AgentError, Attach, Attached, ErrorKind, Format, Gone, Hello, Key, KeyAccess,
    Listed, ListedInstance, ListedVolume,
};
use sealblk_api::{Resize, Status};
use sealblk_keys::KeyManagers;

use super::blank::{self, New};
use super::client::{Client, Found};
use super::config::{self, AgentConfig};
use super::error::{error, internal, invalid};
use super::host::{self, Ids, Owner};
use super::key::{self, Passphrase};
use super::launch::{Launcher, Order};
use super::{check, http, page, source};
use crate::config::LogFormat;
use crate::orders::{AttachOrder, Disks, ListedDisk, OrderKey, Record, control_socket};

/// How long a daemon that lets go of everything may take until its process has ended.
const END: Duration = Duration::from_secs(30);

/// The node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) config: AgentConfig,
    ids: Ids,
    launcher: Launcher,
    program: PathBuf,
    /// A lock for each instance that was asked about.
    turns: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Whose each volume is.
    owners: Mutex<HashMap<String, String>>,
    /// By this node's own identity.
    managers: KeyManagers,
}

/// Locks; who panicked meanwhile has left nothing half done that matters.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The key managers that this node may ask; none where there is no such file.
fn key_managers(path: &Path) -> std::io::Result<KeyManagers> {
    if !path.exists() {
        return Ok(KeyManagers::none());
    }
    let managers = KeyManagers::load(Some(path)).map_err(std::io::Error::other)?;
    for warning in managers.warnings() {
        tracing::warn!("{warning}");
    }
    Ok(managers)
}

impl Node {
    /// Makes the node's directories and looks for daemons that an earlier agent left.
    ///
    /// # Errors
    /// The directories can't be made.
    pub(super) fn new(config: AgentConfig, ids: Ids, program: PathBuf) -> std::io::Result<Self> {
        let launcher = Launcher::new(&config, &ids);
        let (agent, own) = (&config.agent, own_ids());
        // QEMU's group may pass through; only the daemons make sockets here.
        let gid = ids.socket_gid.unwrap_or(ids.gid);
        host::make_dir(&agent.run_dir, Owner { uid: ids.uid, gid, mode: 0o750 })?;
        host::make_dir(&config.instances_dir(), Owner { mode: 0o711, ..own })?;
        host::make_dir(&agent.state_dir, Owner { mode: 0o700, ..own })?;
        let theirs = Owner { uid: ids.uid, gid: ids.gid, mode: 0o750 };
        host::make_dir(&agent.daemon_state_dir, theirs)?;
        let managers = key_managers(&agent.key_managers)?;
        let node = Self {
            config,
            ids,
            managers,
            launcher,
            program,
            turns: Mutex::default(),
            owners: Mutex::default(),
        };
        node.adopt();
        Ok(node)
    }

    /// For the log.
    pub(super) fn launcher(&self) -> &'static str {
        self.launcher.name()
    }

    /// Finds the daemons of an earlier agent, and clears away what is left of those that are gone.
    fn adopt(&self) {
        for instance in self.instances() {
            match self.find(&instance) {
                Ok(Some(client)) => match client.list() {
                    Ok(disks) => {
                        let mut owners = locked(&self.owners);
                        for disk in &disks.volumes {
                            owners.insert(disk.volume.clone(), instance.clone());
                        }
                        let volumes = disks.volumes.len();
                        tracing::info!(instance, pid = disks.pid, volumes, "a daemon was adopted");
                    }
                    Err(error) => tracing::warn!(instance, %error, "a daemon can't be adopted"),
                },
                Ok(None) if self.launcher.runs(&instance) => {
                    tracing::warn!(instance, "a daemon runs and doesn't listen");
                }
                Ok(None) => {
                    tracing::warn!(instance, "its daemon is gone: clearing away what it left");
                    self.clear(&instance);
                }
                Err(error) => tracing::warn!(instance, %error, "a daemon can't be adopted"),
            }
        }
    }

    /// Every instance that has a directory, in the order of their UUIDs.
    pub(super) fn instances(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.config.instances_dir()) else { return Vec::new() };
        let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let directories = entries.filter_map(Result::ok).filter(is_dir);
        let names = directories.filter_map(|entry| entry.file_name().into_string().ok());
        let mut instances: Vec<_> = names.filter(|name| check::is_uuid(name)).collect();
        instances.sort();
        instances
    }

    fn dir(&self, instance: &str) -> PathBuf {
        self.config.instances_dir().join(instance)
    }

    fn find(&self, instance: &str) -> Result<Option<Client>, AgentError> {
        match Client::find(&self.dir(instance), self.ids.uid, instance)? {
            Found::Daemon(client) => Ok(Some(client)),
            Found::Nobody => Ok(None),
        }
    }

    /// Finds the daemon; one that runs and doesn't listen is starting (again), and waited for.
    fn settled(&self, instance: &str) -> Result<Option<Client>, AgentError> {
        let begun = Instant::now();
        loop {
            match self.find(instance)? {
                Some(client) => return Ok(Some(client)),
                None if !self.launcher.runs(instance) => return Ok(None),
                None if begun.elapsed() < self.config.ready_timeout => host::pause(),
                None => {
                    let message = format!(
                        "instance {instance}: its daemon runs and doesn't listen; `forget` ends it"
                    );
                    return Err(error(ErrorKind::Timeout, message));
                }
            }
        }
    }

    /// Waits for the turn of a request for this instance.
    fn turn(&self, instance: &str) -> Arc<Mutex<()>> {
        let mut turns = locked(&self.turns);
        // Who isn't waited for is forgotten: instances come and go for years.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(instance.to_owned()).or_default().clone()
    }

    pub(super) fn hello(&self) -> Hello {
        let usable = |driver: &sealblk_volume::Driver| {
            driver.built && driver.library.as_ref().is_none_or(|library| library.found.is_ok())
        };
        let names = sealblk_volume::drivers().into_iter().filter(usable);
        let mut drivers: Vec<_> = names
            .map(|driver| match driver.scheme {
                "rbd:" => "rbd",
                "iscsi:" => "iscsi",
                _ => "file",
            })
            .map(str::to_owned)
            .collect();
        drivers.sort();
        let mut key_access = vec![KeyAccess::User];
        if self.managers.any() {
            key_access.push(KeyAccess::Deployment);
        }
        Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: AGENT_API,
            drivers,
            key_access,
            socket_dir: self.config.agent.run_dir.display().to_string(),
            state: "ready".to_owned(),
        }
    }

    pub(super) fn park(&self, instance: &str, volume: &str) -> Result<Gone, AgentError> {
        check::uuid("instance", instance)?;
        check::uuid("volume", volume)?;
        let turn = self.turn(instance);
        let _turn = locked(&turn);
        match self.settled(instance)? {
            Some(client) => client.park(volume),
            None => Ok(absent()),
        }
    }

    pub(super) fn detach(&self, instance: &str, volume: &str) -> Result<Gone, AgentError> {
        check::uuid("instance", instance)?;
        check::uuid("volume", volume)?;
        let turn = self.turn(instance);
        let _turn = locked(&turn);
        match self.settled(instance)? {
            Some(client) => {
                client.detach(volume)?;
                self.disown(volume, instance);
                if client.list()?.volumes.is_empty() {
                    self.end(instance, Some(&client));
                }
            }
            None => {
                self.disown(volume, instance);
                self.end(instance, None);
            }
        }
        Ok(absent())
    }

    pub(super) fn forget(&self, instance: &str) -> Result<Gone, AgentError> {
        check::uuid("instance", instance)?;
        let turn = self.turn(instance);
        let _turn = locked(&turn);
        // Whatever state it is in: a daemon that doesn't answer is killed.
        match self.find(instance) {
            Ok(client) => self.end(instance, client.as_ref()),
            Err(error) => {
                tracing::warn!(instance, %error, "ending its daemon the hard way");
                self.end(instance, None);
            }
        }
        if self.launcher.runs(instance) {
            return Err(internal(format!("instance {instance}: its daemon can't be ended")));
        }
        Ok(absent())
    }

    pub(super) fn list(
        &self,
        instance: Option<&str>,
        after: Option<&str>,
    ) -> Result<Listed, AgentError> {
        let chosen = self.chosen(instance, after)?;
        let (instances, next) =
            page::fill(&chosen, |instance| self.listed(instance), |listed| &listed.instance);
        Ok(Listed { instances, next })
    }

    /// Which instances a question is about.
    pub(super) fn chosen(
        &self,
        instance: Option<&str>,
        after: Option<&str>,
    ) -> Result<Vec<String>, AgentError> {
        let all = self.instances();
        if let Some(instance) = instance {
            check::uuid("instance", instance)?;
            return Ok(all.into_iter().filter(|one| one == instance).collect());
        }
        Ok(match after {
            Some(after) => {
                check::uuid("after", after)?;
                all.into_iter().filter(|one| one.as_str() > after).collect()
            }
            None => all,
        })
    }

    fn listed(&self, instance: &str) -> ListedInstance {
        let pid = self.launcher.pid(instance).unwrap_or_default();
        let without = |state: &str| ListedInstance {
            instance: instance.to_owned(),
            pid,
            state: state.to_owned(),
            volumes: Vec::new(),
        };
        let disks = self.find(instance).and_then(|client| client.map(|c| c.list()).transpose());
        match disks {
            Ok(Some(disks)) => ListedInstance {
                pid: disks.pid,
                volumes: disks.volumes.into_iter().map(listed_volume).collect(),
                ..without("running")
            },
            // A request is at it, or its keeper.
            Ok(None) if self.turn(instance).try_lock().is_err() => without("starting"),
            Ok(None) if self.launcher.runs(instance) => without("starting"),
            Ok(None) => without("lost"),
            Err(error) => {
                tracing::warn!(instance, %error, "a daemon doesn't tell what it serves");
                without("lost")
            }
        }
    }

    /// A daemon's control socket.
    pub(super) fn control(&self, instance: &str) -> PathBuf {
        control_socket(&self.dir(instance))
    }

    /// What a daemon tells of itself.
    pub(super) fn status_of(&self, instance: &str) -> Result<Status, AgentError> {
        http::get(&self.control(instance), sealblk_api::STATUS_PATH)
            .map_err(|cause| error(ErrorKind::Internal, format!("instance {instance}: {cause}")))
    }

    /// Its process, if that is known.
    pub(super) fn pid(&self, instance: &str) -> u32 {
        self.launcher.pid(instance).unwrap_or_default()
    }

    /// Whose a volume is.
    pub(super) fn owner(&self, volume: &str) -> Option<String> {
        locked(&self.owners).get(volume).cloned()
    }

    /// What a daemon serves; none: there is no daemon.
    pub(super) fn disks(&self, instance: &str) -> Result<Option<Disks>, AgentError> {
        self.find(instance)?.map(|client| client.list()).transpose()
    }

    pub(super) fn resize(&self, instance: &str, volume: &str) -> Result<Resize, AgentError> {
        check::uuid("instance", instance)?;
        check::uuid("volume", volume)?;
        let turn = self.turn(instance);
        let _turn = locked(&turn);
        if !self.dir(instance).exists() {
            return Err(error(
                ErrorKind::NotFound,
                format!("instance {instance}: it has no volumes"),
            ));
        }
        let path = sealblk_api::resize_path(volume);
        http::post(&self.control(instance), &path, None).map_err(|cause| {
            let kind =
                if cause.status == Some(404) { ErrorKind::NotFound } else { ErrorKind::Volume };
            error(kind, format!("volume {volume}: {cause}"))
        })
    }
}

fn own_ids() -> Owner {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    Owner { uid: uid.as_raw(), gid: gid.as_raw(), mode: 0o700 }
}

fn absent() -> Gone {
    Gone { state: "absent".to_owned() }
}

fn disk_of(disks: Disks, volume: &str) -> Option<ListedDisk> {
    disks.volumes.into_iter().find(|disk| disk.volume == volume)
}

fn listed_volume(disk: ListedDisk) -> ListedVolume {
    ListedVolume {
        volume: disk.volume,
        state: disk.state,
        socket: disk.socket,
        source: Some(disk.record.source),
        connected: disk.connected,
        key_id: disk.record.key_id,
        key_access: disk.record.key_access,
        trouble: disk.trouble,
    }
}

#[cfg(test)]
mod tests;
