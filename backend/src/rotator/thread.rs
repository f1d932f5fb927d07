//! The thread of one rotation, from the first keyslot to the last wipe.
//!
//! Its stack holds round keys, so it is protected like a queue's.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use sealblk_api::{Rotation as Told, RotationState};
use sealblk_block::in_one_line;
use sealblk_keys::KeySource;
use sealblk_luks::{Header, Policy, Rotation, RotationNotes, Unlocked};
use sealblk_rotation::{
    BackupError, Beginning, Begun, Gate, HeaderBackup, HeaderLock, Job, Outcome, Reader, begin,
    known_age, params, run,
};
use sealblk_secret::{protect_stack, wipe_stack};

use super::gate::DiskGate;
use super::memory::Memory;
use super::{Inner, Start, Task};
use crate::aging::wall_clock;
use crate::audit;

/// In place of a file: no backup is made.
const NO_BACKUP: &str = "none";

/// Its stack: as a queue thread's, it counts as locked memory.
const STACK_BYTES: usize = 512 << 10;

pub(super) fn spawn(inner: Arc<Inner>, task: Task) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("rotation".to_owned()).stack_size(STACK_BYTES).spawn(
        move || {
            let span = tracing::info_span!("rotation", disk = inner.parts.name);
            let _entered = span.enter();
            if let Err(error) = protect_stack() {
                tracing::warn!(%error, "parts of the keys may be swapped out: raise LimitMEMLOCK");
            }
            rotate(&inner, task);
            inner.lock().running = false;
            if let Some(tell) = inner.when_ended.get() {
                tell();
            }
            // The stack's memory may serve another thread next.
            wipe_stack();
        },
    )
}

fn rotate(inner: &Inner, task: Task) {
    let mut gate = DiskGate(inner.parts.board.key_switch());
    let (begun, new_key, answer) = match task {
        Task::Resume(unlocked, rotation) => {
            tracing::info!(done_bytes = rotation.done_bytes(), "the rotation goes on");
            audit::paused(&inner.parts.name, false, audit::Pause::Daemon);
            if let Err(error) = disarm_backup(inner) {
                // It is not where it was, or not ours: nothing that we could keep from harm.
                let error = in_one_line(&error);
                tracing::warn!(error, "the header's backup must not be put back");
            }
            (Begun { unlocked: *unlocked, rotation: *rotation }, None, None)
        }
        Task::Start(start) => match start_anew(inner, &mut gate, &start) {
            Ok(begun) => (begun, start.new_key, Some(start.answer)),
            Err(error) => {
                let why = in_one_line(error.as_ref());
                tracing::error!(why, "the rotation can't begin");
                failed(inner, &why);
                inner.lock().running = false;
                // Whoever asked may have gone.
                let _ = start.answer.send(Err(why));
                return;
            }
        },
    };
    let Begun { unlocked, rotation } = begun;
    tell(inner, |told| describe(inner, told, &unlocked, &rotation));
    if let Some(answer) = answer {
        audit::rotation_started(&inner.parts.name, &inner.lock().told);
        let _ = answer.send(Ok(()));
    }
    let watch = inner.lock().watch.clone();
    let outcome = run(Job {
        volume: &inner.parts.volume,
        unlocked: &unlocked,
        rotation,
        gate: &mut gate,
        controls: &inner.controls,
        watch: &watch,
        ages: Some(&inner.parts.ages),
    });
    drop(unlocked);
    match outcome {
        Ok(Outcome::Completed) => completed(inner, new_key),
        Ok(Outcome::Stopped | Outcome::Ended) => {
            tracing::info!("the rotation stops here, and goes on with the next start");
            audit::paused(&inner.parts.name, true, audit::Pause::Daemon);
        }
        Err(error) => {
            failed(inner, &in_one_line(&error));
            tell(inner, |told| {
                told.state = RotationState::Failed;
                told.ended_at = Some(wall_clock());
                told.trouble = Some(in_one_line(&error));
            });
        }
    }
}

fn failed(inner: &Inner, error: &str) {
    let volume = inner.parts.name.as_str();
    audit::record(&audit::Event::RotationFailed { volume, error });
    inner.lock().failures += 1;
}

fn tell(inner: &Inner, change: impl FnOnce(&mut Told)) {
    // The description reads the volume: not while the lock is held.
    let mut told = inner.lock().told.clone();
    change(&mut told);
    inner.lock().told = told;
}

/// Fetches the keys, makes the new one, and gives the data path both.
fn start_anew(inner: &Inner, gate: &mut DiskGate, start: &Start) -> anyhow::Result<Begun> {
    let parts = &inner.parts;
    let key = inner.lock().key.clone();
    let fetch = |source: &KeySource| parts.key_managers.fetch(source);
    let old = fetch(&key)?;
    let new = start.new_key.as_ref().map(fetch).transpose().context("the new key")?;
    if let Some(warning) = new.as_ref().and_then(|new| new.warning.as_ref()) {
        tracing::warn!("{warning}");
    }
    let header = Header::load(&mut Reader(&*parts.volume), &Policy::default())?;
    let age = known_age(&header, false, &parts.ages).age;
    drop(header);
    let backup = make_backup(inner, start)?;
    {
        let mut state = inner.lock();
        state.header_backup = backup.as_ref().map(|backup| backup.path().to_owned());
        inner.keep_memory(&state);
    }
    let beginning = Beginning {
        passphrase: &old.passphrase,
        new_passphrase: new.as_ref().map(|new| &new.passphrase),
        kdf: None,
        notes: RotationNotes {
            old_key_id: Some(key.to_string()),
            new_key_id: Some(start.new_key.as_ref().unwrap_or(&key).to_string()),
            started_at: wall_clock(),
            generation: age.rotations + 1,
        },
        keep_luks2: start.keep_luks2,
    };
    let zone_bytes = inner.controls.wishes().zone_bytes;
    let begun = {
        let _lock = HeaderLock::take(parts.volume.uri(), &mut || {});
        let params = params(&*parts.volume, zone_bytes);
        begin(&*parts.volume, &beginning, params)
    };
    if begun.is_err() {
        // Only what was made here: the backup of a rotation that stands is somebody's last hope.
        shred_backup(inner);
        Memory::forget(&parts.state_dir, &parts.uuid);
    }
    let begun = begun?;
    if let Some(backup) = &backup {
        // Up to here it could be put back; from here on, no more.
        let disarmed =
            backup.refresh(&mut Reader(&*parts.volume)).and_then(|()| backup.data_moves());
        if let Err(error) = disarmed {
            // The rotation has begun: better without a backup than with one that destroys.
            let error = in_one_line(&error);
            tracing::error!(error, "the header's backup can't be disarmed, so it is destroyed");
            shred_backup(inner);
        }
    }
    gate.publish(&begun.rotation.segments()?).map_err(|error| anyhow!(error))?;
    tracing::info!(
        zone_bytes,
        resilience = begun.rotation.resilience(),
        new_secret = start.new_key.is_some(),
        "the rotation begins"
    );
    Ok(begun)
}

/// The header as it is now, in a file: before the first change.
fn make_backup(inner: &Inner, start: &Start) -> anyhow::Result<Option<HeaderBackup>> {
    let parts = &inner.parts;
    let path = match &start.header_backup {
        Some(path) if path.as_os_str() == NO_BACKUP => return Ok(None),
        Some(path) => path.clone(),
        None => HeaderBackup::default_path(&parts.state_dir, &parts.uuid),
    };
    let made = sealblk_volume::make_state_dir(&parts.state_dir)
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(HeaderBackup::create(&path, &mut Reader(&*parts.volume))?));
    let made = made.with_context(|| {
        format!(
            "backing up the header to {}: nothing was changed; name another file, or `{NO_BACKUP}`",
            path.display()
        )
    })?;
    tracing::info!(file = %path.display(), "the header is backed up");
    Ok(Some(made))
}

/// Data moves on: the backup must not be put back. (It says so already, unless the daemon died just
/// before.)
fn disarm_backup(inner: &Inner) -> Result<(), BackupError> {
    let path = inner.lock().header_backup.clone();
    let Some(path) = path else { return Ok(()) };
    match HeaderBackup::adopt(&path, &inner.parts.uuid)? {
        Some(backup) => backup.data_moves(),
        None => Ok(()),
    }
}

/// What the backup could bring back must not come back.
fn shred_backup(inner: &Inner) {
    let Some(path) = inner.lock().header_backup.take() else { return };
    match HeaderBackup::adopt(&path, &inner.parts.uuid) {
        Ok(None) => {}
        Ok(Some(backup)) => match backup.shred() {
            Ok(()) => tracing::info!(file = %path.display(), "the header's backup is destroyed"),
            Err(error) => {
                let error = in_one_line(&error);
                tracing::error!(file = %path.display(), error,
                    "the header's backup still holds the old key: destroy it");
            }
        },
        Err(error) => {
            let error = in_one_line(&error);
            tracing::warn!(error, "what has the name of the header's backup stays");
        }
    }
}

/// Names of everything that takes part.
fn describe(inner: &Inner, told: &mut Told, unlocked: &Unlocked, rotation: &Rotation) {
    *told = Told {
        state: RotationState::Running,
        resilience: rotation.resilience().to_owned(),
        ..Told::default()
    };
    let parts = &inner.parts;
    let Ok(header) = Header::load(&mut Reader(&*parts.volume), &Policy::default()) else { return };
    let report = header.report();
    let [old, new] = [unlocked.old_digest(), Some(unlocked.digest())].map(|digest| {
        let found = report.digests.iter().find(|one| Some(one.id) == digest);
        found.map_or_else(String::new, |one| one.fingerprint.clone())
    });
    (told.old_volume_key, told.new_volume_key) = (old, new);
    if let Ok(Some(notes)) = header.rotation_notes() {
        told.old_secret = notes.old_key_id.unwrap_or_default();
        told.new_secret = notes.new_key_id.unwrap_or_default();
        told.started_at = Some(notes.started_at);
    }
}

/// All data has the new key, and nothing of the old one is left.
fn completed(inner: &Inner, new_key: Option<KeySource>) {
    let parts = &inner.parts;
    tell(inner, |told| {
        told.state = RotationState::Completed;
        told.ended_at = Some(wall_clock());
    });
    let header = Header::load(&mut Reader(&*parts.volume), &Policy::default());
    shred_backup(inner);
    Memory::forget(&parts.state_dir, &parts.uuid);
    let mut state = inner.lock();
    if let Ok(header) = header {
        state.aging.age = known_age(&header, false, &parts.ages).age;
    }
    tracing::info!("the rotation is complete: the old volume key opens nothing any more");
    audit::rotation_completed(&parts.name, &state.told);
    if let Some(key) = new_key {
        tracing::warn!(
            old = %state.key,
            new = %key,
            "the old secret no longer opens the volume: the configuration must name the new one"
        );
        state.key = key;
    }
}
