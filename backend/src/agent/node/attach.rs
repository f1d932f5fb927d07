//! Serving a volume: whose it is, its key, its device, and the order to the daemon.
//!
//! Contract: what can fail without a daemon is done before one is started; the device is opened last.

use super::*;

impl Node {
    pub(in crate::agent) fn attach(
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

    pub(super) fn attach_in_turn(
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
    pub(super) fn settled_disk(
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
    pub(super) fn key_of(
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

    pub(super) fn order(
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
    pub(super) fn own(&self, volume: &str, instance: &str) -> Result<(), AgentError> {
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

    pub(super) fn disown(&self, volume: &str, instance: &str) {
        let mut owners = locked(&self.owners);
        if owners.get(volume).is_some_and(|owner| owner == instance) {
            owners.remove(volume);
        }
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
