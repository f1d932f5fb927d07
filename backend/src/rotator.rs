//! A disk's rotations: who orders them, the thread that runs one, and what is told of it.
//!
//! Contract: one rotation per disk at a time, on a thread that lives as long as it does. Orders come
//! from the control API and block until it is known whether they can be carried out; the schedule
//! asks [`Rotator::tick`] now and then. [`Rotator::stop`] comes before the disk's queues end, so that
//! a rotation stops between two zones.
//! Invariant: the secrets that it fetches are gone when a rotation has begun; both volume keys are
//! in its thread's hands only, and go with it.

mod gate;
mod memory;
mod reserve;
mod thread;

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use sealblk_api::{Rotation as Told, RotationOrder, RotationState};
use sealblk_engine::Switchboard;
use sealblk_keys::{KeyManagers, KeySource};
use sealblk_luks::{Header, KeyAge, Policy, Rotation, Unlocked};
use sealblk_rotation::{
    Ages, Controls, Phase, Place, Reader, Watch, Wishes, ZONE_BYTES, ZONE_BYTES_MAX, carry_out,
    decide, known_age, random,
};
use sealblk_volume::Volume;

use self::memory::Memory;
pub(crate) use self::reserve::Busy;
use crate::aging::{Aging, wall_clock};
use crate::audit;
use crate::config::RotationPolicy;
use crate::control::Refused;

/// Shorter zones than this cost more in header changes than they move, in bytes.
const ZONE_BYTES_MIN: u64 = 64 << 10;

/// Why another can't be started.
const UNDER_WAY: &str = "a rotation is under way already";

/// What a rotator is made of.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) volume: Arc<dyn Volume>,
    pub(crate) board: Switchboard,
    pub(crate) key: KeySource,
    pub(crate) key_managers: Arc<KeyManagers>,
    pub(crate) policy: RotationPolicy,
    pub(crate) ages: Ages,
    /// Where header backups go, and what must not be forgotten.
    pub(crate) state_dir: PathBuf,
    /// The volume's, from its header.
    pub(crate) uuid: String,
    pub(crate) aging: Aging,
}

/// The rotations of one disk.
#[derive(Clone)]
pub(crate) struct Rotator(Arc<Inner>);

struct Inner {
    parts: Parts,
    controls: Controls,
    state: Mutex<State>,
    /// Called by the thread of a rotation that has ended.
    when_ended: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// What changes.
struct State {
    /// What is told, apart from what the rotation's thread counts.
    told: Told,
    /// Rotations that failed or could not begin.
    failures: u64,
    /// Where the thread tells how far it is.
    watch: Watch,
    thread: Option<JoinHandle<()>>,
    running: bool,
    /// No rotation may begin: see [`reserve`].
    reserved: bool,
    /// The process ends.
    stopping: bool,
    /// It keeps to windows.
    by_schedule: bool,
    paused: bool,
    /// Outside of its window.
    window_closed: bool,
    /// The file with the header as it was, if one was made.
    header_backup: Option<PathBuf>,
    key: KeySource,
    aging: Aging,
    /// A failed beginning by schedule is not repeated before this time.
    not_before: u64,
}

/// How a rotation's thread begins.
enum Task {
    /// From the start; the answer is whether it has begun.
    Start(Start),
    /// Where another process left it.
    Resume(Box<Unlocked>, Box<Rotation>),
}

/// A new rotation.
struct Start {
    new_key: Option<KeySource>,
    header_backup: Option<PathBuf>,
    keep_luks2: bool,
    answer: std::sync::mpsc::SyncSender<Result<(), String>>,
}

impl Rotator {
    pub(crate) fn new(parts: Parts) -> Self {
        let (policy, key, aging) = (&parts.policy, parts.key.clone(), parts.aging.clone());
        let controls = Controls::default();
        controls.change(|wishes| {
            wishes.rate_bytes = policy.rate_bytes;
            wishes.zone_bytes = policy.hotzone_bytes.unwrap_or(ZONE_BYTES);
            wishes.guest_latency_max = policy.guest_latency_max;
        });
        let state = State {
            told: Told::default(),
            failures: 0,
            watch: Watch::default(),
            thread: None,
            running: false,
            reserved: false,
            stopping: false,
            by_schedule: false,
            paused: false,
            window_closed: false,
            header_backup: None,
            key,
            aging,
            not_before: 0,
        };
        let state = Mutex::new(state);
        Self(Arc::new(Inner { parts, controls, state, when_ended: OnceLock::new() }))
    }

    /// Goes on with a rotation that the header tells of.
    pub(crate) fn resume(&self, unlocked: Unlocked, rotation: Rotation) {
        let parts = &self.0.parts;
        let Memory { paused, by_schedule, header_backup, rate_bytes, hotzone_bytes } =
            Memory::recall(&parts.state_dir, &parts.uuid);
        self.0.controls.change(|wishes| {
            wishes.rate_bytes = rate_bytes.or(wishes.rate_bytes);
            let zone_bytes = hotzone_bytes.unwrap_or(wishes.zone_bytes);
            wishes.zone_bytes = zone_bytes.clamp(ZONE_BYTES_MIN, ZONE_BYTES_MAX);
        });
        let open = parts.policy.schedule.windows.are_open_at(wall_clock());
        {
            let mut state = self.0.lock();
            state.by_schedule = by_schedule;
            state.paused = paused;
            state.window_closed = by_schedule && !open;
            state.header_backup = header_backup;
            self.0.apply_pause(&state);
        }
        let task = Task::Resume(Box::new(unlocked), Box::new(rotation));
        if let Err(why) = self.spawn(task) {
            tracing::error!(disk = self.0.parts.name, why, "the rotation can't go on");
        }
    }

    /// What is told of it.
    pub(crate) fn told(&self) -> Told {
        let state = self.0.lock();
        let (progress, wishes) = (state.watch.progress(), self.0.controls.wishes());
        let mut told = state.told.clone();
        told.header_backup = state.header_backup.as_ref().map(|path| path.display().to_string());
        told.limit_bytes = wishes.rate_bytes;
        told.failures = state.failures;
        if told.state == RotationState::None {
            return told;
        }
        told.done_bytes = progress.done_bytes;
        told.total_bytes = progress.total_bytes;
        told.hotzone_bytes = progress.zone_bytes;
        told.parked_us_max = u64::try_from(progress.held_max.as_micros()).unwrap_or(u64::MAX);
        if state.running {
            told.rate_bytes = progress.rate_bytes;
            told.state = match progress.phase {
                Phase::Running => RotationState::Running,
                Phase::Throttled => RotationState::Throttled,
                Phase::Paused if state.window_closed && !state.paused => RotationState::Scheduled,
                Phase::Paused => RotationState::Paused,
                Phase::Stuck => RotationState::Stuck,
                Phase::Done => RotationState::Running,
            };
            told.trouble = progress.trouble.or(told.trouble);
            let left = told.total_bytes.saturating_sub(told.done_bytes);
            told.eta_seconds = left.checked_div(told.rate_bytes);
        }
        told
    }

    /// How old the keys are, and what the schedule makes of it.
    pub(crate) fn key_age(&self) -> sealblk_api::KeyAge {
        self.0.lock().aging.status(wall_clock())
    }

    /// Carries out an order of the control API; blocks.
    pub(crate) fn order(&self, order: RotationOrder) -> Result<Told, Refused> {
        let conflict = |why: &str| Err(Refused::Conflict(why.to_owned()));
        match order {
            RotationOrder::Start {
                new_key,
                rate_bytes,
                hotzone_bytes,
                header_backup,
                keep_luks2,
            } => {
                let parsed = new_key.as_deref().map(str::parse::<KeySource>).transpose();
                let new_key = parsed.map_err(|e| Refused::Conflict(format!("the new key: {e}")))?;
                if matches!(new_key, Some(KeySource::Fd(_))) {
                    return conflict(
                        "the new key: whoever asks knows none of this process's \
                                     descriptors",
                    );
                }
                if let Some(bytes) = hotzone_bytes
                    && !(ZONE_BYTES_MIN..=ZONE_BYTES_MAX).contains(&bytes)
                {
                    return conflict("a hotzone has 64 KiB to 256 MiB");
                }
                {
                    let mut state = self.0.lock();
                    if state.running {
                        // It keeps its limits, and whose it is.
                        return conflict(UNDER_WAY);
                    }
                    state.by_schedule = false;
                }
                self.0.controls.change(|wishes| {
                    wishes.rate_bytes = rate_bytes.or(wishes.rate_bytes);
                    wishes.zone_bytes = hotzone_bytes.unwrap_or(wishes.zone_bytes);
                });
                self.start(new_key, header_backup.map(PathBuf::from), keep_luks2)
                    .map_err(Refused::Conflict)?;
            }
            RotationOrder::Pause | RotationOrder::Resume => {
                let mut state = self.0.lock();
                if !state.running {
                    return conflict("no rotation is under way");
                }
                state.paused = matches!(order, RotationOrder::Pause);
                if !state.paused {
                    // Who says so now means now.
                    (state.by_schedule, state.window_closed) = (false, false);
                }
                self.0.apply_pause(&state);
                self.0.keep_memory(&state);
                audit::paused(&self.0.parts.name, state.paused, audit::Pause::Order);
            }
            RotationOrder::Throttle { rate_bytes } => {
                self.0.controls.change(|wishes| wishes.rate_bytes = rate_bytes);
                let state = self.0.lock();
                if state.running {
                    self.0.keep_memory(&state);
                }
            }
        }
        Ok(self.told())
    }

    /// Starts a rotation and waits until it has begun.
    fn start(
        &self,
        new_key: Option<KeySource>,
        header_backup: Option<PathBuf>,
        keep_luks2: bool,
    ) -> Result<(), String> {
        let (answer, answered) = sync_channel(1);
        self.spawn(Task::Start(Start { new_key, header_backup, keep_luks2, answer }))?;
        answered.recv().unwrap_or_else(|_| Err("its thread ended badly; see the log".to_owned()))
    }

    fn spawn(&self, task: Task) -> Result<(), String> {
        let mut state = self.0.lock();
        if state.stopping {
            return Err("the daemon ends".to_owned());
        }
        if state.running {
            return Err(UNDER_WAY.to_owned());
        }
        if state.reserved {
            return Err("the volume is about to grow: try again".to_owned());
        }
        if self.0.parts.volume.geometry().read_only {
            return Err("it is served read-only".to_owned());
        }
        if let Some(ended) = state.thread.take() {
            // It has nothing left to do.
            let _ = ended.join();
        }
        state.running = true;
        match &task {
            Task::Start(_) => {
                state.watch = Watch::default();
                (state.paused, state.window_closed) = (false, false);
                self.0.apply_pause(&state);
            }
            Task::Resume(_, rotation) => {
                state.watch = Watch::at(rotation.done_bytes(), rotation.total_bytes());
                state.told.state = RotationState::Running;
            }
        }
        let inner = self.0.clone();
        let spawned = thread::spawn(inner, task);
        match spawned {
            Ok(thread) => {
                state.thread = Some(thread);
                Ok(())
            }
            Err(error) => {
                state.running = false;
                Err(format!("no thread for it: {error}"))
            }
        }
    }

    /// Whether there is anything to be decided by [`Self::tick`].
    pub(crate) fn is_scheduled(&self) -> bool {
        let schedule = &self.0.parts.policy.schedule;
        schedule.max_key_age.is_some() || !schedule.windows.are_any_time()
    }

    /// Lets the schedule decide; when to ask again at the latest, in seconds since 1970, if that is
    /// sooner than usual.
    pub(crate) fn tick(&self) -> Option<u64> {
        let now = wall_clock();
        let schedule = &self.0.parts.policy.schedule;
        let (since, under_way, not_before) = {
            let state = self.0.lock();
            if state.stopping || state.running && !state.by_schedule {
                return None;
            }
            (state.aging.age.volume_key_since, state.running, state.not_before)
        };
        let decision = decide(now, since, schedule, under_way);
        if let Some(oddity) = decision.oddity {
            tracing::warn!(disk = self.0.parts.name, "{oddity}");
        }
        if let Some(since) = decision.remember_since {
            self.remember(since);
        }
        match (under_way, decision.run_now) {
            (true, run) => {
                let mut state = self.0.lock();
                if state.window_closed == run {
                    tracing::info!(
                        disk = self.0.parts.name,
                        "the rotation's window {}",
                        if run { "opens" } else { "closes" }
                    );
                    audit::paused(&self.0.parts.name, !run, audit::Pause::Window);
                }
                state.window_closed = !run;
                self.0.apply_pause(&state);
            }
            (false, true) if now >= not_before => self.start_by_schedule(now),
            (false, _) => {}
        }
        decision.stop_at.or(decision.next_run_at).filter(|at| *at > now)
    }

    fn start_by_schedule(&self, now: u64) {
        /// A rotation that could not begin is tried again after this time, in seconds.
        const AGAIN: u64 = 3600;
        let name = &self.0.parts.name;
        tracing::info!(disk = name, "the volume key is due: its rotation begins");
        self.0.lock().by_schedule = true;
        if let Err(why) = self.start(None, None, false) {
            tracing::error!(disk = name, why, "a due rotation could not begin; again in an hour");
            self.0.lock().not_before = now + AGAIN;
        }
    }

    /// Notes since when a key is known whose age nobody knew.
    fn remember(&self, since: u64) {
        let parts = &self.0.parts;
        let age = KeyAge { volume_key_since: Some(since), ..self.0.lock().aging.age };
        let noted = Header::load(&mut Reader(&*parts.volume), &Policy::default())
            .map_err(anyhow::Error::from)
            .and_then(|header| {
                match known_age(&header, parts.volume.geometry().read_only, &parts.ages).place {
                    Place::Directory => parts.ages.write(&header.uuid(), &age)?,
                    Place::Header => {
                        let io = &mut Reader(&*parts.volume);
                        let plan = header.set_key_age(io, age, &mut random)?;
                        carry_out(&*parts.volume, &plan)?;
                        parts.volume.flush()?;
                    }
                }
                Ok(())
            });
        match noted {
            Ok(()) => {
                self.0.lock().aging.age = age;
                let change = "the keys' age is noted";
                audit::record(&audit::Event::HeaderChanged { volume: &parts.name, change });
            }
            Err(error) => {
                let error = sealblk_block::in_one_line(error.as_ref());
                tracing::warn!(disk = parts.name, error, "the keys' first sight can't be noted");
            }
        }
    }

    /// Stops the rotation between two zones and waits for its thread.
    pub(crate) fn stop(&self) {
        let thread = {
            let mut state = self.0.lock();
            state.stopping = true;
            self.0.controls.change(|wishes| wishes.stop = true);
            state.thread.take()
        };
        if let Some(thread) = thread {
            // A panic in it is logged already.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has ended the process, or was a test.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next daemon must know.
    fn keep_memory(&self, state: &State) {
        let wishes = self.controls.wishes();
        let memory = Memory {
            rate_bytes: wishes.rate_bytes,
            hotzone_bytes: Some(wishes.zone_bytes),
            paused: state.paused,
            by_schedule: state.by_schedule,
            header_backup: state.header_backup.clone(),
        };
        if let Err(error) = memory.keep(&self.parts.state_dir, &self.parts.uuid) {
            let dir = self.parts.state_dir.display();
            tracing::warn!(disk = self.parts.name, %dir, %error,
                "a restart will not know that the rotation is paused or whose it is");
        }
    }

    fn apply_pause(&self, state: &State) {
        let pause = state.paused || state.window_closed;
        self.controls.change(|wishes: &mut Wishes| wishes.pause = pause);
    }
}
