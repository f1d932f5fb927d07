//! `sealblk rotate --volume URI`: a rotation by ourselves, of a volume that nobody uses.
//!
//! Contract: the same steps and the same states on the volume as in the daemon. Interrupted anywhere,
//! the same command goes on. Until it ends both secrets open the volume.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use sealblk_api::{Rotation as Told, RotationState};
use sealblk_keys::{Fetched, KeySource};
use sealblk_luks::{Header, Policy, Rotation, RotationNotes, RotationStatus, Unlocked};
use sealblk_rotation::{
    Beginning, Begun, Controls, HeaderBackup, HeaderLock, Job, NoGuests, Outcome, Phase, Progress,
    Reader, RotationError, TakenUp, Watch, ZONE_BYTES, ZONE_BYTES_MAX, begin, params, take_up,
    unlock,
};
use sealblk_secret::{protect_stack, wipe_stack};
use sealblk_volume::{OpenOptions, Volume};

use super::watch::Display;
use crate::args::RotateHow;
use crate::commands::header::refusal;
use crate::console::Console;
use crate::failure::Failure;
use crate::keyfile;
use crate::size::human;
use crate::target;

/// From one look at the progress to the next.
const INTERVAL: Duration = Duration::from_millis(100);

/// One that was killed holds its volume until the kernel has finished its last writes.
const LOCK_WAIT: Duration = Duration::from_secs(10);

pub(super) fn run(
    uri: &str,
    key: &KeySource,
    how: &RotateHow,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let zone_bytes = how.hotzone.unwrap_or(ZONE_BYTES);
    if zone_bytes > ZONE_BYTES_MAX {
        return Err(anyhow!("--hotzone is at most {}", human(ZONE_BYTES_MAX)).into());
    }
    let current = keyfile::fetch(key, console)?;
    let new = match &how.new_key {
        Some(source) => Some(keyfile::fetch(source, console)?),
        None => None,
    };
    let options = OpenOptions { lock_wait: LOCK_WAIT, ..OpenOptions::default() };
    let volume = target::open(uri, &options)?;
    let this = Offline { uri, volume, key, current, new, how, zone_bytes };
    let header = this.load()?;
    let ready = match header.rotation_status()? {
        RotationStatus::None | RotationStatus::ConvertBack | RotationStatus::Staged => {
            Some(this.begin(&header, console)?)
        }
        _ => this.go_on(&header, console)?,
    };
    match ready {
        Some(ready) => this.drive(ready, console),
        None => {
            writeln!(console.out, "{uri}: the rotation was at its end; it is completed")?;
            this.discard_backup(&header.uuid())
        }
    }
}

/// What was given.
struct Offline<'a> {
    uri: &'a str,
    volume: Arc<dyn Volume>,
    key: &'a KeySource,
    current: Fetched,
    new: Option<Fetched>,
    how: &'a RotateHow,
    zone_bytes: u64,
}

/// A rotation that can go on.
struct Ready {
    unlocked: Unlocked,
    rotation: Rotation,
    backup: Option<HeaderBackup>,
    /// What doesn't change any more while it runs.
    told: Told,
}

impl Offline<'_> {
    fn load(&self) -> Result<Header, Failure> {
        let header = Header::load(&mut Reader(&*self.volume), &Policy::default());
        Ok(header.with_context(|| self.uri.to_owned())?)
    }

    fn backup_path(&self, uuid: &str) -> PathBuf {
        let default = || HeaderBackup::default_path(Path::new("."), uuid);
        self.how.header_backup.clone().unwrap_or_else(default)
    }

    fn lock(&self, console: &mut Console<'_>) -> Result<HeaderLock, Failure> {
        let mut note = Ok(());
        let lock = HeaderLock::take(self.uri, &mut || {
            note =
                console.note("waiting for another program (cryptsetup?) to let go of the header");
        })?;
        note?;
        Ok(lock)
    }

    fn begin(&self, header: &Header, console: &mut Console<'_>) -> Result<Ready, Failure> {
        let uri = self.uri;
        let same = |new: &Fetched| self.current.passphrase.ct_eq(new.passphrase.expose());
        if self.new.as_ref().is_some_and(same) {
            return Err(Failure::Refused(format!(
                "{uri}: both keys are the same; without --new-key the volume key alone is replaced"
            )));
        }
        // A wrong passphrase changes nothing, and asks nothing.
        unlock(&*self.volume, header, &[&self.current.passphrase])
            .with_context(|| format!("{uri}: key {}", self.key))?;
        console.confirm(&self.question(), self.how.yes)?;
        let _lock = self.lock(console)?;
        let mut reader = Reader(&*self.volume);
        let path = self.backup_path(&header.uuid());
        let backup = HeaderBackup::create(&path, &mut reader).map_err(refusal)?;
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let notes = RotationNotes {
            old_key_id: Some(self.key.to_string()),
            new_key_id: Some(self.how.new_key.as_ref().unwrap_or(self.key).to_string()),
            started_at: since_epoch.map_or(0, |time| time.as_secs()),
            ..RotationNotes::default()
        };
        let beginning = Beginning {
            passphrase: &self.current.passphrase,
            new_passphrase: self.new.as_ref().map(|new| &new.passphrase),
            kdf: None,
            notes,
            keep_luks2: self.how.keep_luks2,
        };
        let params = params(&*self.volume, self.zone_bytes);
        let Begun { unlocked, rotation } = begin(&*self.volume, &beginning, params)
            .with_context(|| format!("{uri}: beginning the rotation"))?;
        // It holds both keys from now on, and must not be put back any more.
        backup.refresh(&mut reader)?;
        backup.data_moves()?;
        let told = self.told(&rotation, Some(&backup))?;
        Ok(Ready { unlocked, rotation, backup: Some(backup), told })
    }

    /// Takes up what an earlier one left; none if nothing is left to be moved.
    fn go_on(&self, header: &Header, console: &mut Console<'_>) -> Result<Option<Ready>, Failure> {
        let uri = self.uri;
        let new = self.new.as_ref().map(|new| &new.passphrase);
        let passphrases: Vec<_> =
            [Some(&self.current.passphrase), new].into_iter().flatten().collect();
        let unlocked = unlock(&*self.volume, header, &passphrases)
            .with_context(|| format!("{uri}: taking up its rotation"))?;
        let path = self.backup_path(&header.uuid());
        let backup = HeaderBackup::adopt(&path, &header.uuid()).map_err(refusal)?;
        // Whoever began may have died before he said so.
        if let Some(backup) = &backup {
            backup.data_moves()?;
        }
        let params = params(&*self.volume, self.zone_bytes);
        let TakenUp { rotation, done, .. } = {
            let _lock = self.lock(console)?;
            take_up(&*self.volume, &unlocked, params, None)
                .with_context(|| format!("{uri}: taking up its rotation"))?
        };
        for line in done {
            console.note(&line)?;
        }
        let Some(rotation) = rotation else {
            return Ok(None);
        };
        if let Some(new) = &self.how.new_key
            && header.rotation_notes()?.and_then(|notes| notes.new_key_id) != Some(new.to_string())
        {
            console.note(&format!(
                "warning: a rotation is under way that was begun without {new}: it goes on, and \
                 {new} will open nothing unless it does now"
            ))?;
        }
        console.note(&format!("going on at {}", human(rotation.done_bytes())))?;
        let told = self.told(&rotation, backup.as_ref())?;
        Ok(Some(Ready { unlocked, rotation, backup, told }))
    }

    fn question(&self) -> String {
        let mut text = format!("All data of {} is re-encrypted with a new volume key.", self.uri);
        if let Some(new) = &self.how.new_key {
            text.push_str(&format!(
                " Until that ends {key} and {new} both open it; afterwards only {new} does: whoever \
                 serves the volume must name {new} as its key before his next start.",
                key = self.key
            ));
        }
        text
    }

    fn told(&self, rotation: &Rotation, backup: Option<&HeaderBackup>) -> Result<Told, Failure> {
        let header = self.load()?;
        let notes = header.rotation_notes()?.unwrap_or_default();
        let (old, new) = crate::commands::inspect::fingerprints(&header.report());
        Ok(Told {
            state: RotationState::Running,
            done_bytes: rotation.done_bytes(),
            total_bytes: rotation.total_bytes(),
            limit_bytes: self.how.rate,
            hotzone_bytes: self.zone_bytes,
            resilience: rotation.resilience().to_owned(),
            old_volume_key: old.unwrap_or_default(),
            new_volume_key: new.unwrap_or_default(),
            old_secret: notes.old_key_id.unwrap_or_default(),
            new_secret: notes.new_key_id.unwrap_or_default(),
            started_at: Some(notes.started_at).filter(|&at| at > 0),
            header_backup: backup.map(|backup| backup.path().display().to_string()),
            ..Told::default()
        })
    }

    /// Moves all data, or what can be moved until somebody interrupts.
    fn drive(&self, ready: Ready, console: &mut Console<'_>) -> Result<(), Failure> {
        let Ready { unlocked, rotation, backup, told } = ready;
        let interrupted = interrupts()?;
        let (controls, progress) = (Controls::default(), Watch::default());
        controls.change(|wishes| {
            wishes.rate_bytes = self.how.rate;
            wishes.zone_bytes = self.zone_bytes;
        });
        let mut display = Display::new(false);
        let mut gate = NoGuests;
        let outcome = thread::scope(|scope| {
            let job = Job {
                volume: &self.volume,
                unlocked: &unlocked,
                rotation,
                gate: &mut gate,
                controls: &controls,
                watch: &progress,
                ages: None,
            };
            let driver = scope.spawn(|| {
                // Its stack holds round keys. Where it can't be locked (the limit on locked memory)
                // it is kept out of dumps, and wiped, all the same.
                let _ = protect_stack();
                let outcome = sealblk_rotation::run(job);
                wipe_stack();
                outcome
            });
            let mut shown = Ok(());
            while !driver.is_finished() {
                if interrupted.load(Ordering::Relaxed) || shown.is_err() {
                    // What can't be shown any more need not go on unseen.
                    controls.change(|wishes| wishes.stop = true);
                } else {
                    shown = display.show(&now(&told, &progress.progress()), console);
                }
                thread::park_timeout(INTERVAL);
            }
            let outcome =
                driver.join().map_err(|_| anyhow!("a defect: the rotation's thread died"));
            shown.and(Ok(outcome?))
        })?;
        if progress.progress().total_bytes > 0 {
            display.show(&now(&told, &progress.progress()), console)?;
        }
        display.end(console)?;
        self.conclude(outcome, backup, console)
    }

    fn conclude(
        &self,
        outcome: Result<Outcome, RotationError>,
        backup: Option<HeaderBackup>,
        console: &mut Console<'_>,
    ) -> Result<(), Failure> {
        let uri = self.uri;
        let again = "the same command goes on with it";
        match outcome {
            Ok(Outcome::Completed) => {
                let opens = self.how.new_key.as_ref().unwrap_or(self.key);
                writeln!(console.out, "{uri}: completed; {opens} opens it, the old volume key is gone")?;
                match backup {
                    Some(backup) => Ok(backup.finish(false).context(LEFT)?),
                    None => Ok(()),
                }
            }
            Ok(Outcome::Stopped | Outcome::Ended) => Err(anyhow!(
                "{uri}: stopped between two ranges; {again}. Until it is completed, serve the volume \
                 with either secret"
            )
            .into()),
            Err(error) => Err(anyhow!(error).context(format!("{uri}: the rotation stopped; {again}")).into()),
        }
    }

    /// After the end of one that an earlier process began.
    fn discard_backup(&self, uuid: &str) -> Result<(), Failure> {
        match HeaderBackup::adopt(&self.backup_path(uuid), uuid).map_err(refusal)? {
            Some(backup) => Ok(backup.finish(false).context(LEFT)?),
            None => Ok(()),
        }
    }
}

const LEFT: &str = "the rotation is completed, but the header's backup, with the old key, is left";

/// How far it is, in the API's words.
fn now(told: &Told, progress: &Progress) -> Told {
    let (done, rate) = (progress.done_bytes, progress.rate_bytes);
    let left = told.total_bytes.saturating_sub(done);
    Told {
        state: match progress.phase {
            Phase::Running => RotationState::Running,
            Phase::Throttled => RotationState::Throttled,
            Phase::Paused => RotationState::Paused,
            Phase::Stuck => RotationState::Stuck,
            Phase::Done => RotationState::Completed,
        },
        done_bytes: done,
        rate_bytes: rate,
        eta_seconds: left.checked_div(rate),
        trouble: progress.trouble.clone(),
        ..told.clone()
    }
}

/// Set by the first Ctrl-C or SIGTERM; the second ends the process at once, which loses nothing.
fn interrupts() -> anyhow::Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::flag;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset.
        flag::register_conditional_shutdown(signal, 1, interrupted.clone())?;
        flag::register(signal, interrupted.clone())?;
    }
    Ok(interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_the_apis_words() {
        let told = Told { total_bytes: 1000, old_secret: "file:/k".into(), ..Told::default() };
        let progress = Progress {
            phase: Phase::Throttled,
            done_bytes: 400,
            total_bytes: 1000,
            rate_bytes: 100,
            ..Progress::default()
        };
        let now = now(&told, &progress);
        assert_eq!((now.state, now.eta_seconds), (RotationState::Throttled, Some(6)));
        assert_eq!(now.old_secret, "file:/k");
        let standing = Progress { rate_bytes: 0, ..progress };
        assert_eq!(super::now(&told, &standing).eta_seconds, None);
    }
}
