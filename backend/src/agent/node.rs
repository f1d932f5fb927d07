//! All instances of the node: what each request does.
//!
//! Contract: one request at a time for each instance, any number for others beside it. What there is
//! is asked of the daemons each time: an agent that was restarted knows as much as before. After an
//! error nothing is left running that was started for the request.
//!
//! Invariant: a volume is served for one instance.

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

    pub(super) fn attach(
        &self,
        request: &Attach,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Attached, AgentError> {
        check_attach(request, &descriptors)?;
        let turn = self.turn(&request.instance);
        let _turn = locked(&turn);
        self.own(&request.volume, &request.instance)?;
        let result = self.attach_in_turn(request, descriptors);
        if result.is_err() {
            self.tidy(&request.instance, &request.volume);
        }
        result
    }

    fn attach_in_turn(
        &self,
        request: &Attach,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Attached, AgentError> {
        let (agent, volume) = (&self.config.agent, &request.volume);
        let client = self.settled(&request.instance)?;
        let known = match &client {
            Some(client) => self.settled_disk(client, volume)?,
            None => None,
        };
        if let (Some(client), Some(known)) = (&client, &known)
            && known.state == "serving"
        {
            if known.record.source != request.source {
                let message = format!(
                    "volume {volume}: it is served already, from another source: park or detach it \
                     first"
                );
                return Err(error(ErrorKind::Conflict, message));
            }
            let uri = source::place(volume, &request.source, agent)?.uri;
            let order = self.order(request, uri, OrderKey::Kept, false, &known.record)?;
            let served = client.attach(order, &[], self.config.ready_timeout)?;
            return Ok(answer(served, false));
        }
        let place = source::place(volume, &request.source, agent)?;
        let key = self.key_of(request, descriptors, known.as_ref())?;
        if let (Some(client), Some("failed")) = (&client, known.as_ref().map(|k| k.state.as_str()))
        {
            // What can't be taken up holds its device all the same, which is opened anew below.
            client.park(volume)?;
        }
        let record = Record {
            source: request.source.clone(),
            key_id: request.key_id.clone(),
            key_access: request.key_access,
        };
        let how = if key.is_some() { OrderKey::Descriptor } else { OrderKey::Kept };
        let order = self.order(request, place.uri.clone(), how, place.local, &record)?;
        let formatted = request.format == Format::IfBlank
            && blank::format_if_blank(&New {
                volume,
                uri: &place.uri,
                key_id: request.key_id.as_deref(),
                passphrase: key.as_ref().map(Passphrase::bytes),
                allowed: agent.format_new_volumes,
            })?;
        let device = match place.local {
            true => Some(source::open(volume, &place, &request.source, request.read_only, agent)?),
            false => None,
        };
        let client = match client {
            Some(client) => client,
            None => self.start(&request.instance)?,
        };
        let along: Vec<BorrowedFd<'_>> =
            key.iter().map(AsFd::as_fd).chain(device.iter().map(AsFd::as_fd)).collect();
        let served = client.attach(order, &along, self.config.ready_timeout).inspect_err(|cause| {
            // It may still come to serve it, and nobody would know.
            if cause.kind == ErrorKind::Timeout
                && let Err(error) = client.detach(volume)
            {
                tracing::error!(instance = request.instance, volume, %error, "cannot be taken back");
            }
        })?;
        Ok(answer(served, formatted))
    }

    /// What a daemon has of a volume, once nobody is at work on it.
    fn settled_disk(
        &self,
        client: &Client,
        volume: &str,
    ) -> Result<Option<ListedDisk>, AgentError> {
        let begun = Instant::now();
        loop {
            match disk_of(client.list()?, volume) {
                Some(disk) if disk.state == "starting" => {
                    if begun.elapsed() > self.config.ready_timeout {
                        let message = format!(
                            "volume {volume}: its daemon is still at work on an earlier order"
                        );
                        return Err(error(ErrorKind::Timeout, message));
                    }
                    host::pause();
                }
                disk => return Ok(disk),
            }
        }
    }

    /// The passphrase that goes to the daemon; none: the daemon has it.
    fn key_of(
        &self,
        request: &Attach,
        descriptors: Vec<OwnedFd>,
        known: Option<&ListedDisk>,
    ) -> Result<Option<Passphrase>, AgentError> {
        let volume = &request.volume;
        // The same key need not be fetched again.
        let same = known
            .is_some_and(|known| request.key_id.is_some() && known.record.key_id == request.key_id);
        if same && matches!(request.key, Key::Source { .. }) {
            return Ok(None);
        }
        if request.key == Key::Kept && known.is_none() {
            let message = format!(
                "volume {volume}: its key isn't kept on this node: it must come with the request"
            );
            return Err(error(ErrorKind::KeyMissing, message));
        }
        key::obtain(request, descriptors, &self.config.agent, &self.managers)
    }

    fn order(
        &self,
        request: &Attach,
        uri: String,
        key: OrderKey,
        device: bool,
        record: &Record,
    ) -> Result<AttachOrder, AgentError> {
        let volume = &request.volume;
        let group = self.ids.socket_group.clone();
        let mut section = self.config.section(volume, uri, request.read_only, group);
        section.limits = request.limits;
        if let Some(serial) = &request.serial {
            section.serial = Some(serial.clone());
        }
        section.queues = request.queues.or(section.queues);
        config::check_section(&section)
            .map_err(|what| invalid(format!("volume {volume}: {what}")))?;
        Ok(AttachOrder { section, key, device, record: record.clone() })
    }

    /// Notes that a volume is this instance's.
    fn own(&self, volume: &str, instance: &str) -> Result<(), AgentError> {
        let other = match locked(&self.owners).get(volume) {
            Some(owner) if owner != instance => owner.clone(),
            _ => String::new(),
        };
        let taken = || {
            let message =
                format!("volume {volume}: it is served for instance {other}: detach it there");
            Err(error(ErrorKind::Conflict, message))
        };
        if !other.is_empty() {
            let turn = self.turn(&other);
            // Waiting for it here could be waiting for each other.
            let _turn = match turn.try_lock() {
                Ok(turn) => turn,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return taken(),
            };
            let client = self.settled(&other)?;
            let disks = client.map(|client| client.list()).transpose()?;
            if disks.is_some_and(|disks| disk_of(disks, volume).is_some()) {
                return taken();
            }
            locked(&self.owners).remove(volume);
        }
        match locked(&self.owners).entry(volume.to_owned()).or_insert_with(|| instance.to_owned()) {
            owner if owner == instance => Ok(()),
            owner => {
                let message = format!("volume {volume}: it is being served for instance {owner}");
                Err(error(ErrorKind::Conflict, message))
            }
        }
    }

    fn disown(&self, volume: &str, instance: &str) {
        let mut owners = locked(&self.owners);
        if owners.get(volume).is_some_and(|owner| owner == instance) {
            owners.remove(volume);
        }
    }

    /// After an attach that failed: nothing is left running that serves nothing.
    fn tidy(&self, instance: &str, volume: &str) {
        let Ok(client) = self.find(instance) else { return };
        let Some(client) = client else {
            self.disown(volume, instance);
            if !self.launcher.runs(instance) {
                self.clear(instance);
            }
            return;
        };
        match client.list() {
            Ok(disks) if disks.volumes.is_empty() => {
                self.disown(volume, instance);
                self.end(instance, Some(&client));
            }
            Ok(disks) => {
                if disk_of(disks, volume).is_none() {
                    self.disown(volume, instance);
                }
            }
            Err(error) => tracing::warn!(instance, %error, "what is left is not known"),
        }
    }

    /// Starts an instance's daemon and waits until it takes orders.
    fn start(&self, instance: &str) -> Result<Client, AgentError> {
        let begun = Instant::now();
        if !self.launcher.runs(instance) {
            self.clear(instance);
            let dir = self.make_dir(instance).map_err(|cause| {
                let dir = self.dir(instance);
                internal(format!("instance {instance}: {} can't be made: {cause}", dir.display()))
            })?;
            let args = self.arguments(instance, &dir);
            self.launcher.start(&Order { instance, program: &self.program, args: &args })?;
        }
        let failed = loop {
            match self.find(instance) {
                Ok(Some(client)) => {
                    tracing::info!(instance, took = ?begun.elapsed(), "a daemon was started");
                    return Ok(client);
                }
                Ok(None) if !self.launcher.runs(instance) => {
                    break internal(format!(
                        "instance {instance}: its daemon ended at once; see its log"
                    ));
                }
                Ok(None) if begun.elapsed() < self.config.ready_timeout => host::pause(),
                Ok(None) => {
                    let limit = self.config.ready_timeout.as_secs();
                    let message = format!(
                        "instance {instance}: its daemon wasn't ready within {limit} s, and was ended"
                    );
                    break error(ErrorKind::Timeout, message);
                }
                Err(error) => break error,
            }
        };
        self.end(instance, None);
        Err(failed)
    }

    fn make_dir(&self, instance: &str) -> std::io::Result<PathBuf> {
        let instances =
            host::make_dir(&self.config.instances_dir(), Owner { mode: 0o711, ..own_ids() })?;
        let theirs = Owner { uid: self.ids.uid, gid: self.ids.gid, mode: 0o700 };
        host::make_dir_in(instances, Path::new(instance), theirs)?;
        Ok(self.dir(instance))
    }

    fn arguments(&self, instance: &str, dir: &Path) -> Vec<String> {
        let agent = &self.config.agent;
        let mut args = vec![
            "--instance".to_owned(),
            instance.to_owned(),
            "--run-dir".to_owned(),
            dir.display().to_string(),
            "--state-dir".to_owned(),
            agent.daemon_state_dir.display().to_string(),
        ];
        let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
        if let Some(level) = &agent.log_level {
            option("--log-level", level.clone());
        }
        if agent.log_format == LogFormat::Json {
            option("--log-format", "json".to_owned());
        }
        if let Some(path) = &agent.audit_log {
            option("--audit-log", path.display().to_string());
        }
        args
    }

    /// Has a daemon let go of everything and end, one way or another.
    fn end(&self, instance: &str, client: Option<&Client>) {
        let limit = match client.map(Client::end) {
            Some(Ok(_)) => END,
            Some(Err(error)) => {
                tracing::warn!(instance, %error, "its daemon doesn't take the order to end");
                Duration::ZERO
            }
            None => Duration::ZERO,
        };
        self.launcher.finish(instance, limit);
        self.clear(instance);
        locked(&self.owners).retain(|_, owner| owner != instance);
    }

    /// Removes what a daemon that has ended may have left.
    fn clear(&self, instance: &str) {
        match std::fs::remove_dir_all(self.dir(instance)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(instance, %error, "its directory can't be removed");
            }
            _ => {}
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

fn answer(served: crate::orders::Served, formatted: bool) -> Attached {
    Attached {
        socket: served.socket,
        capacity_bytes: served.capacity_bytes,
        serial: served.serial,
        read_only: served.read_only,
        luks_version: served.luks_version,
        luks_uuid: served.luks_uuid,
        formatted,
        state: "serving".to_owned(),
    }
}

/// What shows without looking at the host.
fn check_attach(request: &Attach, descriptors: &[OwnedFd]) -> Result<(), AgentError> {
    check::uuid("instance", &request.instance)?;
    check::uuid("volume", &request.volume)?;
    if let Some(key_id) = &request.key_id {
        check::text("key_id", key_id)?;
    }
    let expected = usize::from(request.key == Key::Descriptor);
    if descriptors.len() != expected {
        let came = descriptors.len();
        return Err(invalid(format!(
            "volume {}: {came} descriptors came along; with this `key` it must be {expected}",
            request.volume
        )));
    }
    if request.read_only && request.format != Format::Never {
        return Err(invalid("`read_only` and `format` exclude each other"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
