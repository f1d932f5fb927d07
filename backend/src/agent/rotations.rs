//! Rotations of the node's volumes: orders for many at once, limits, and the schedule.
//!
//! Contract: no more rotations run at once than the limits say, whoever ordered them; what is beyond
//! waits here in the order in which it came, and begins by itself. What waits, and which rotations
//! the schedule began, is in a file, so that another agent goes on with it. The daemons have no
//! schedule of their own (docs/decisions/0022): their keys' ages are asked, and who is due is ordered.
//!
//! Invariant: who looks how much room there is holds `turn` until the order is given.
//! Deliberately absent: progress, which the daemons tell; secrets, of which an order has none.

mod memory;
mod room;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sealblk_api::agent::{
    AgentError, ErrorKind, InstanceStatus, NodeRotations, NodeStatus, Rotated, RotatedVolume,
    Select,
};
use sealblk_api::{Rotation, RotationOrder, RotationState, VolumeStatus, rotation_path};
use sealblk_rotation::{CLOCK_SET_AFTER, Due, decide};

use self::memory::{Memory, Waiting};
use self::room::{Room, is_running, is_under_way};
use super::error::{error, invalid};
use super::node::{Node, locked};
use super::{check, http, page, source};
use crate::aging::wall_clock;

/// How often it is looked whether there is room, while somebody waits for it.
const OFTEN: Duration = Duration::from_secs(1);
/// How often it is looked whether a key is due, or a window ends.
const SELDOM: Duration = sealblk_rotation::ASK_AGAIN;
/// How long after a rotation failed the schedule tries again, in seconds.
const AFTER_FAILURE: u64 = 3600;

/// The node's rotations.
#[derive(Debug)]
pub(super) struct Rotations {
    node: Arc<Node>,
    path: PathBuf,
    /// For who orders; see above.
    turn: Mutex<()>,
    memory: Mutex<Memory>,
    changed: Condvar,
}

/// A volume as its daemon tells of it.
#[derive(Debug, Clone)]
struct Seen {
    instance: String,
    backend: String,
    status: VolumeStatus,
}

impl Seen {
    fn volume(&self) -> &str {
        &self.status.name
    }

    fn state(&self) -> RotationState {
        self.status.rotation.as_ref().map_or(RotationState::None, |rotation| rotation.state)
    }
}

impl Rotations {
    pub(super) fn new(node: Arc<Node>) -> Self {
        let path = node.config.agent.state_dir.join("rotations.json");
        let memory = Mutex::new(Memory::load(&path));
        Self { node, path, turn: Mutex::default(), memory, changed: Condvar::new() }
    }

    /// Looks after them for as long as the process lives.
    pub(super) fn look_after(&self) {
        loop {
            let pause = {
                let memory = locked(&self.memory);
                let often = !memory.waiting.is_empty();
                if often { OFTEN } else { SELDOM }
            };
            let memory = locked(&self.memory);
            drop(self.changed.wait_timeout(memory, pause));
            let idle = locked(&self.memory).is_empty();
            if idle && self.node.config.rotation.schedule.max_key_age.is_none() {
                continue;
            }
            let _turn = locked(&self.turn);
            let seen = self.survey();
            self.keep_to_schedule(&seen, wall_clock());
            self.begin_what_waits(&seen, wall_clock());
        }
    }

    /// Every volume that is served.
    fn survey(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        for instance in self.node.instances() {
            let Ok(Some(disks)) = self.node.disks(&instance) else { continue };
            let backends: BTreeMap<_, _> = disks
                .volumes
                .into_iter()
                .map(|disk| (disk.volume, source::backend(&disk.record.source)))
                .collect();
            let Ok(status) = self.node.status_of(&instance) else { continue };
            seen.extend(status.volumes.into_iter().map(|status| Seen {
                instance: instance.clone(),
                backend: backends.get(&status.name).cloned().unwrap_or_default(),
                status,
            }));
        }
        seen
    }

    fn room(&self, seen: &[Seen]) -> Room {
        let rotation = &self.node.config.rotation;
        let mut room = Room::new(rotation.max_running, rotation.max_running_per_backend);
        for one in seen.iter().filter(|one| is_running(one.state())) {
            room.take(&one.backend);
        }
        room
    }

    /// Changes what is remembered, on disk, too.
    fn remember(&self, change: impl FnOnce(&mut Memory)) {
        let mut memory = locked(&self.memory);
        let before = memory.clone();
        change(&mut memory);
        if *memory != before {
            memory.save(&self.path);
            self.changed.notify_all();
        }
    }

    fn post(
        &self,
        instance: &str,
        volume: &str,
        order: &RotationOrder,
    ) -> Result<Rotation, String> {
        let body = serde_json::to_string(order).map_err(|cause| cause.to_string())?;
        http::post(&self.node.control(instance), &rotation_path(volume), Some(&body))
            .map_err(|cause| cause.to_string())
    }

    /// An order of an operator's.
    pub(super) fn rotate(
        &self,
        select: &Select,
        order: &RotationOrder,
    ) -> Result<Rotated, AgentError> {
        check_select(select, order)?;
        let _turn = locked(&self.turn);
        let seen = self.survey();
        let mut room = self.room(&seen);
        let meant = |one: &&Seen| {
            select.all
                || select.instance.as_deref().is_some_and(|instance| instance == one.instance)
                || select.volume.as_deref().is_some_and(|volume| volume == one.volume())
        };
        let chosen: Vec<_> = seen.iter().filter(meant).collect();
        if chosen.is_empty() && !select.all {
            let name = select.volume.as_ref().or(select.instance.as_ref());
            let name = name.map(String::as_str).unwrap_or_default();
            let message = format!("{name}: nothing of this name is served on this node");
            return Err(error(ErrorKind::NotFound, message));
        }
        let one_by_one = chosen.into_iter().filter_map(|one| {
            let alone = select.volume.is_some();
            self.rotate_one(one, order, alone, &mut room)
        });
        Ok(Rotated { volumes: one_by_one.collect() })
    }

    /// None: the order is not for this volume, and it was not named.
    fn rotate_one(
        &self,
        one: &Seen,
        order: &RotationOrder,
        alone: bool,
        room: &mut Room,
    ) -> Option<RotatedVolume> {
        let (instance, volume, state) = (&one.instance, one.volume(), one.state());
        let answer = |queued, state, error| RotatedVolume {
            instance: instance.clone(),
            volume: volume.to_owned(),
            queued,
            state,
            error,
        };
        let concerned = match order {
            // What is under way already is that.
            RotationOrder::Start { .. } if is_under_way(state) && !alone => return None,
            RotationOrder::Start { .. } if is_running(state) => {
                return Some(answer(false, state, None));
            }
            RotationOrder::Start { .. } => one.status.rotation.is_some(),
            RotationOrder::Resume => {
                matches!(state, RotationState::Paused | RotationState::Scheduled)
            }
            RotationOrder::Pause => {
                let waited = locked(&self.memory).waits(volume);
                // From now on it is the operator's, not the schedule's.
                self.remember(|memory| memory.forget(volume));
                if !is_under_way(state) {
                    return (waited || alone).then(|| answer(false, state, None));
                }
                true
            }
            RotationOrder::Throttle { .. } => is_under_way(state),
        };
        if !concerned && !alone {
            return None;
        }
        let needs_room = matches!(order, RotationOrder::Start { .. } | RotationOrder::Resume);
        if needs_room && !room.has(&one.backend) {
            let waiting = Waiting {
                instance: instance.clone(),
                volume: volume.to_owned(),
                order: order.clone(),
                by_schedule: false,
            };
            self.remember(|memory| memory.wait(waiting));
            tracing::info!(instance, volume, "rotation: waits for its turn");
            return Some(answer(true, state, None));
        }
        match self.post(instance, volume, order) {
            Ok(rotation) => {
                if needs_room {
                    room.take(&one.backend);
                    self.remember(|memory| memory.forget(volume));
                }
                Some(answer(false, rotation.state, None))
            }
            Err(why) => Some(answer(false, state, Some(why))),
        }
    }

    /// Begins what waits, as far as there is room.
    fn begin_what_waits(&self, seen: &[Seen], now: u64) {
        let windows = &self.node.config.rotation.schedule.windows;
        let open = now >= CLOCK_SET_AFTER && windows.are_open_at(now);
        let mut room = self.room(seen);
        let waiting = locked(&self.memory).waiting.clone();
        for one in waiting {
            let (instance, volume) = (&one.instance, &one.volume);
            let Some(now) = seen.iter().find(|seen| seen.volume() == volume) else {
                // A parked volume comes back; one that is gone doesn't.
                if self.node.owner(volume).is_none() {
                    self.remember(|memory| memory.forget(volume));
                }
                continue;
            };
            if is_running(now.state()) {
                self.remember(|memory| memory.done_waiting(volume));
                continue;
            }
            if (one.by_schedule && !open) || !room.has(&now.backend) {
                continue;
            }
            let begun = self.post(&now.instance, volume, &one.order);
            self.remember(|memory| {
                memory.done_waiting(volume);
                match (&begun, one.by_schedule) {
                    (Ok(_), true) => {
                        memory.scheduled.insert(volume.clone());
                        memory.held.remove(volume);
                    }
                    (Err(_), true) => {
                        memory.not_before.insert(volume.clone(), wall_clock() + AFTER_FAILURE);
                    }
                    _ => {}
                }
            });
            match begun {
                Ok(_) => {
                    room.take(&now.backend);
                    let by_schedule = one.by_schedule;
                    tracing::info!(instance, volume, by_schedule, "rotation: its turn has come");
                }
                Err(error) => tracing::error!(instance, volume, error, "rotation: can't begin"),
            }
        }
    }

    /// Has those wait whose keys are too old, and holds those whose window has ended.
    fn keep_to_schedule(&self, seen: &[Seen], now: u64) {
        let schedule = &self.node.config.rotation.schedule;
        let open = now >= CLOCK_SET_AFTER && schedule.windows.are_open_at(now);
        for one in seen.iter().filter(|one| !one.status.read_only) {
            let (volume, state) = (one.volume(), one.state());
            let (ours, held, waits, not_before, first_seen) = {
                let memory = locked(&self.memory);
                (
                    memory.scheduled.contains(volume),
                    memory.held.contains(volume),
                    memory.waits(volume),
                    memory.not_before.get(volume).copied().unwrap_or_default(),
                    memory.first_seen.get(volume).copied(),
                )
            };
            let enqueue = |order| {
                let waiting = Waiting {
                    instance: one.instance.clone(),
                    volume: volume.to_owned(),
                    order,
                    by_schedule: true,
                };
                self.remember(|memory| memory.wait(waiting));
            };
            if ours && !is_under_way(state) {
                let failed = state == RotationState::Failed;
                self.remember(|memory| {
                    memory.forget(volume);
                    if failed {
                        memory.not_before.insert(volume.to_owned(), now + AFTER_FAILURE);
                    }
                });
            } else if ours && is_running(state) && !open {
                match self.post(&one.instance, volume, &RotationOrder::Pause) {
                    Ok(_) => {
                        self.remember(|memory| {
                            memory.held.insert(volume.to_owned());
                        });
                        tracing::info!(volume, "rotation: held until its window opens");
                    }
                    Err(error) => tracing::warn!(volume, error, "rotation: can't be held"),
                }
            } else if ours && held && open && !waits {
                enqueue(RotationOrder::Resume);
            }
            if is_under_way(state) || waits || now < not_before || one.status.rotation.is_none() {
                continue;
            }
            let since = one.status.key_age.as_ref().and_then(|age| age.volume_key_since);
            let decision = decide(now, since.or(first_seen), schedule, false);
            if let Some(since) = decision.remember_since {
                self.remember(|memory| {
                    memory.first_seen.insert(volume.to_owned(), since);
                });
            }
            if decision.due == Due::Yes && decision.run_now {
                enqueue(RotationOrder::Start {
                    new_key: None,
                    rate_bytes: None,
                    hotzone_bytes: None,
                    header_backup: None,
                    keep_luks2: false,
                });
            }
        }
        let known: Vec<_> = seen.iter().map(Seen::volume).collect();
        let gone = |volume: &String| {
            !known.contains(&volume.as_str()) && self.node.owner(volume).is_none()
        };
        self.remember(|memory| memory.retain(|volume| !gone(volume)));
    }

    /// What all daemons tell.
    pub(super) fn status(
        &self,
        instance: Option<&str>,
        after: Option<&str>,
    ) -> Result<NodeStatus, AgentError> {
        let chosen = self.node.chosen(instance, after)?;
        let (instances, next) =
            page::fill(&chosen, |one| self.status_of(one), |status| &status.instance);
        Ok(NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instances,
            rotations: self.counted(),
            next,
        })
    }

    fn status_of(&self, instance: &str) -> InstanceStatus {
        let of = |status, trouble| InstanceStatus {
            instance: instance.to_owned(),
            pid: self.node.pid(instance),
            status,
            trouble,
        };
        match self.node.status_of(instance) {
            Ok(mut status) => {
                for volume in &mut status.volumes {
                    self.tell_schedule(volume);
                }
                let whole = of(Some(status), None);
                if page::len(&whole) <= page::ROOM {
                    return whole;
                }
                let socket = self.node.control(instance);
                let what =
                    format!("too long for an answer: ask its control socket, {}", socket.display());
                of(None, Some(what))
            }
            Err(cause) => of(None, Some(cause.message)),
        }
    }

    /// What the daemon doesn't know of its keys: when they are due.
    fn tell_schedule(&self, volume: &mut VolumeStatus) {
        let state = volume.rotation.as_ref().map_or(RotationState::None, |rotation| rotation.state);
        if volume.read_only || volume.rotation.is_none() {
            return;
        }
        let Some(age) = &mut volume.key_age else { return };
        let first_seen = locked(&self.memory).first_seen.get(&volume.name).copied();
        let since = age.volume_key_since.or(first_seen);
        let schedule = &self.node.config.rotation.schedule;
        let decision = decide(wall_clock(), since, schedule, is_under_way(state));
        age.due_at = decision.due_at;
        age.next_run_at = decision.next_run_at;
    }

    /// How many run and wait.
    pub(super) fn counted(&self) -> NodeRotations {
        let running = self.survey().iter().filter(|one| is_running(one.state())).count();
        NodeRotations {
            running: u32::try_from(running).unwrap_or(u32::MAX),
            queued: self.queued(),
            limit: self.node.config.rotation.max_running,
        }
    }

    /// How many wait.
    pub(super) fn queued(&self) -> u32 {
        u32::try_from(locked(&self.memory).waiting.len()).unwrap_or(u32::MAX)
    }
}

fn check_select(select: &Select, order: &RotationOrder) -> Result<(), AgentError> {
    let said = [select.all, select.instance.is_some(), select.volume.is_some()];
    if said.iter().filter(|said| **said).count() != 1 {
        return Err(invalid("`select` has one of `all`, `instance` and `volume`"));
    }
    if let Some(instance) = &select.instance {
        check::uuid("instance", instance)?;
    }
    if let Some(volume) = &select.volume {
        check::uuid("volume", volume)?;
    }
    match order {
        RotationOrder::Start { new_key, header_backup, .. }
            if select.volume.is_none() && (new_key.is_some() || header_backup.is_some()) =>
        {
            Err(invalid("`new_key` and `header_backup` are for one `volume`"))
        }
        _ => Ok(()),
    }
}
