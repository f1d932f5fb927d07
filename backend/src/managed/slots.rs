//! The volumes of the instance, and what happens to each.
//!
//! Invariant: a volume that is served or parked is in the keeper's hands before its order is
//! answered; one that is neither is not. A `Busy` slot belongs to the thread that made it so.

mod serving;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use sealblk_api::agent::{AgentError, ErrorKind, Gone};
use sealblk_block::in_one_line;
use sealblk_keys::{Held, KeySource};
use sealblk_rotation::Ages;
use sealblk_volume::Handed;
use tokio::sync::watch;

use self::serving::Running;
use super::Managed;
use super::refusal::{of_opening, refusal};
use crate::config::{Protection, RotationSection, protected_volume};
use crate::keeper::{Kept, Link};
use crate::orders::{AttachOrder, Disks, ListedDisk, OrderKey, Served};
use crate::status::Overview;

/// Before a volume that can't be taken up again is tried the next time.
const RETRY: Duration = Duration::from_secs(2);

/// Volumes of an instance are few; more is a mistake.
const MAX_VOLUMES: usize = 256;

/// All volumes of the instance.
pub(crate) struct Slots {
    run_dir: PathBuf,
    ages: Ages,
    overview: Arc<Overview>,
    link: Link,
    end: watch::Sender<bool>,
    slots: Mutex<BTreeMap<String, Slot>>,
    changed: Condvar,
}

/// A volume that was ordered.
struct Slot {
    order: AttachOrder,
    key: Held,
    device: Option<Arc<OwnedFd>>,
    state: State,
}

enum State {
    /// A thread is at work on it.
    Busy,
    Serving(Running),
    Parked,
    /// It was served by a process before us, and can't be taken up yet: why.
    Failed(String),
}

impl Slots {
    pub(super) fn new(
        managed: &Managed,
        ages: Ages,
        overview: Arc<Overview>,
        link: Link,
        end: watch::Sender<bool>,
    ) -> Self {
        Self {
            run_dir: managed.run_dir.clone(),
            ages,
            overview,
            link,
            end,
            slots: Mutex::new(BTreeMap::new()),
            changed: Condvar::new(),
        }
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody is at work on this volume.
    fn idle(&self, volume: &str) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        let mut slots = self.lock();
        while slots.get(volume).is_some_and(|slot| matches!(slot.state, State::Busy)) {
            slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
        slots
    }

    /// Serves a volume.
    pub(super) fn attach(
        &self,
        order: AttachOrder,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Served, AgentError> {
        let name = order.section.name.clone();
        let refuse = |kind, what: &str| refusal(kind, &name, what);
        let mut descriptors = descriptors.into_iter();
        let handed_key = match order.key {
            OrderKey::Descriptor => Some(take_key(&name, &order, descriptors.next())?),
            OrderKey::Kept => None,
        };
        let device = match (order.device, descriptors.next()) {
            (true, Some(device)) => Some(Arc::new(device)),
            (true, None) => return Err(refuse(ErrorKind::Invalid, "no device came along")),
            (false, _) => None,
        };
        let mut slots = self.idle(&name);
        let before = slots.get(&name);
        if let Some(Slot { state: State::Serving(running), order: had, .. }) = before
            && running.is_alive()
        {
            if had.section.uri != order.section.uri || had.record.source != order.record.source {
                let what = "it is served already, from another place: detach it first";
                return Err(refuse(ErrorKind::Conflict, what));
            }
            return Ok(running.served());
        }
        if before.is_none() && slots.len() >= MAX_VOLUMES {
            return Err(refuse(ErrorKind::Invalid, "the instance has too many volumes already"));
        }
        let key = match (handed_key, before) {
            (Some(key), _) => key,
            (None, Some(slot)) => slot.key.clone(),
            (None, None) => {
                let what = "no key came along, and none is kept here: it was not parked by this \
                            daemon, or the daemon was started anew since";
                return Err(refuse(ErrorKind::KeyMissing, what));
            }
        };
        let busy = Slot { order: order.clone(), key: key.clone(), device, state: State::Busy };
        let device = busy.device.clone();
        let before = slots.insert(name.clone(), busy);
        drop(slots);
        // A session that ended by itself is a slot to be cleared first.
        let before = before.map(|slot| self.stop_remains(slot));
        let outcome = self.start(&order, &key, device.as_ref());
        let mut slots = self.lock();
        let answer = match outcome {
            Ok(running) => {
                let device = device.as_ref().map(|device| device.as_fd());
                self.link.keep(&order, key.as_fd(), device);
                let served = running.served();
                if let Some(slot) = slots.get_mut(&name) {
                    slot.state = State::Serving(running);
                }
                Ok(served)
            }
            Err(error) => {
                // What was there before, parked or failed, is there again.
                match before {
                    Some(before) => slots.insert(name.clone(), before),
                    None => slots.remove(&name),
                };
                Err(of_opening(&name, &error))
            }
        };
        drop(slots);
        self.changed.notify_all();
        answer
    }

    /// A slot whose session ended by itself: what is left of it is cleared away.
    fn stop_remains(&self, mut slot: Slot) -> Slot {
        if let State::Serving(running) = std::mem::replace(&mut slot.state, State::Parked) {
            slot.device = None;
            let name = slot.order.section.name.clone();
            self.overview.remove(&name);
            if let Err(error) = running.stop(&name) {
                tracing::error!(disk = name, "{}", in_one_line(error.as_ref()));
            }
            self.link.park(&name);
        }
        slot
    }

    /// Opens it and lets its session run.
    fn start(
        &self,
        order: &AttachOrder,
        key: &Held,
        device: Option<&Arc<OwnedFd>>,
    ) -> anyhow::Result<Running> {
        let protection = Protection::Key(KeySource::Held(key.clone()));
        let config =
            protected_volume(order.section.clone(), protection, &RotationSection::default())
                .map_err(anyhow::Error::msg)?;
        let handed = device.map(|device| Handed {
            file: device.clone(),
            claim: self.run_dir.join(format!("{}.claim", order.section.name)),
        });
        Running::start(config, &self.ages, handed, &self.overview)
    }

    /// Lets go of the device and keeps the key.
    pub(super) fn park(&self, volume: &str) -> Result<Gone, AgentError> {
        let Some(running) = self.make_busy(volume) else { return Ok(gone("absent")) };
        let outcome = self.stop(volume, running);
        self.link.park(volume);
        if let Some(slot) = self.lock().get_mut(volume) {
            slot.state = State::Parked;
        }
        self.changed.notify_all();
        outcome.map(|()| gone("parked"))
    }

    /// Lets go of everything.
    pub(super) fn detach(&self, volume: &str) -> Result<Gone, AgentError> {
        let Some(running) = self.make_busy(volume) else { return Ok(gone("absent")) };
        let outcome = self.stop(volume, running);
        self.link.drop_volume(volume);
        self.lock().remove(volume);
        self.changed.notify_all();
        // It has no claim any more, and whoever comes makes another.
        let _ = std::fs::remove_file(self.run_dir.join(format!("{volume}.claim")));
        outcome.map(|()| gone("absent"))
    }

    /// What is served of it, which is the caller's from now on; the outer none: there is no such
    /// volume.
    fn make_busy(&self, volume: &str) -> Option<Option<Running>> {
        let mut slots = self.idle(volume);
        let slot = slots.get_mut(volume)?;
        slot.device = None;
        match std::mem::replace(&mut slot.state, State::Busy) {
            State::Serving(running) => Some(Some(running)),
            _ => Some(None),
        }
    }

    /// Ends its session, flushes and closes it. Whatever the outcome, it is closed.
    fn stop(&self, volume: &str, running: Option<Running>) -> Result<(), AgentError> {
        let Some(running) = running else { return Ok(()) };
        self.overview.remove(volume);
        running.stop(volume).map_err(|error| of_opening(volume, &error))
    }

    /// Ends the process.
    pub(super) fn end(&self) {
        // Nobody listens only when it is ending already.
        let _ = self.end.send(true);
    }

    /// All volumes.
    pub(super) fn list(&self) -> Disks {
        let slots = self.lock();
        let listed = slots.iter().map(|(name, slot)| {
            let (state, trouble) = match &slot.state {
                State::Busy => ("starting", None),
                State::Serving(running) if running.is_alive() => ("serving", None),
                State::Serving(_) => ("failed", Some("its session ended by itself".to_owned())),
                State::Parked => ("parked", None),
                State::Failed(why) => ("failed", Some(why.clone())),
            };
            ListedDisk {
                volume: name.clone(),
                state: state.to_owned(),
                socket: slot.order.section.socket.display().to_string(),
                connected: matches!(&slot.state, State::Serving(running) if running.connected()),
                record: slot.order.record.clone(),
                trouble,
            }
        });
        Disks { pid: std::process::id(), volumes: listed.collect() }
    }

    /// Takes up what the process before us had; what can't be had now is tried again and again, as
    /// its guest waits.
    pub(super) fn take_up(self: &Arc<Self>, kept: Vec<Kept>) {
        for Kept { volume, order, parked, key, device } in kept {
            let device = device.map(Arc::new);
            let state = if parked { State::Parked } else { State::Busy };
            let slot = Slot { order: *order, key, device, state };
            self.lock().insert(volume.clone(), slot);
            if parked {
                continue;
            }
            let slots = Arc::downgrade(self);
            let name = volume.clone();
            let spawned =
                thread::Builder::new().name("open".to_owned()).spawn(move || retry(&slots, &name));
            if let Err(error) = spawned {
                let why = format!("no thread to open it: {error}");
                tracing::error!(disk = volume, "{why}");
                self.settle(&volume, State::Failed(why));
            }
        }
    }

    /// One attempt to take up a volume; false: another one is needed.
    fn take_up_one(&self, volume: &str) -> bool {
        let (order, key, device) = match self.lock().get_mut(volume) {
            // Somebody has parked it, taken it up or detached it since.
            None => return true,
            Some(Slot { state: State::Serving(_) | State::Parked, .. }) => return true,
            Some(slot) => {
                slot.state = State::Busy;
                (slot.order.clone(), slot.key.clone(), slot.device.clone())
            }
        };
        let outcome = self.start(&order, &key, device.as_ref());
        match outcome {
            Ok(running) => {
                self.settle(volume, State::Serving(running));
                true
            }
            Err(error) => {
                let why = in_one_line(error.context("taking it up again").as_ref());
                tracing::error!(disk = volume, "{why}; trying again");
                self.settle(volume, State::Failed(why));
                false
            }
        }
    }

    fn settle(&self, volume: &str, state: State) {
        if let Some(slot) = self.lock().get_mut(volume) {
            slot.state = state;
        }
        self.changed.notify_all();
    }

    /// Ends all sessions; the keeper, which ends with us, isn't told.
    pub(super) fn close_all(&self) -> anyhow::Result<()> {
        let names: Vec<String> = self.lock().keys().cloned().collect();
        let mut outcome = Ok(());
        let running = names.iter().filter_map(|name| Some((name, self.make_busy(name)??)));
        let running: Vec<_> = running.collect();
        for (_, running) in &running {
            running.tell_to_stop();
        }
        for (name, running) in running {
            self.overview.remove(name);
            let stopped = running.stop(name).with_context(|| format!("volume {name}"));
            if let Err(error) = stopped {
                tracing::error!("{}", in_one_line(error.as_ref()));
                outcome = Err(error);
            }
        }
        outcome
    }
}

fn retry(slots: &Weak<Slots>, volume: &str) {
    loop {
        match slots.upgrade() {
            Some(slots) if !slots.take_up_one(volume) => {}
            _ => return,
        }
        thread::park_timeout(RETRY);
    }
}

fn gone(state: &str) -> Gone {
    Gone { state: state.to_owned() }
}

/// The passphrase from a descriptor, kept under the name that the key manager has for it.
fn take_key(
    volume: &str,
    order: &AttachOrder,
    descriptor: Option<OwnedFd>,
) -> Result<Held, AgentError> {
    let refuse = |what: &str| refusal(ErrorKind::Invalid, volume, what);
    let descriptor = descriptor.ok_or_else(|| refuse("no key came along"))?;
    let passphrase = sealblk_keys::read_handed(&descriptor)
        .map_err(|error| refuse(&format!("the key that came along: {error}")))?;
    let name = order.record.key_id.as_deref().unwrap_or(volume);
    Held::new(name, &passphrase).map_err(|error| refuse(&format!("keeping its key: {error}")))
}
