//! A volume that is served: its disk, its session's thread, and its end.

use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use sealblk_rotation::Ages;
use sealblk_session::StopHandle;
use sealblk_volume::{Handed, Volume};

use crate::config::VolumeConfig;
use crate::orders::Served;
use crate::status::{Overview, View};
use crate::{daemon, disk};

/// How long somebody who asks for `status` may keep a closed volume open.
const LET_GO: Duration = Duration::from_secs(10);

/// A session that runs.
pub(super) struct Running {
    stop: StopHandle,
    thread: JoinHandle<anyhow::Result<()>>,
    view: Weak<View>,
    volume: Weak<dyn Volume>,
    at_start: Served,
}

impl Running {
    /// Opens the volume, binds its socket, and lets its session run.
    pub(super) fn start(
        config: VolumeConfig,
        ages: &Ages,
        handed: Option<Handed>,
        overview: &Overview,
    ) -> anyhow::Result<Self> {
        let mut disk = disk::open(config, ages, handed)?;
        let session = daemon::bind(&disk)?;
        daemon::tell_protection();
        let stop = session.stop_handle();
        disk.growth.told_by(session.capacity_handle());
        let (name, volume) = (disk.name.clone(), disk.volume());
        let view = disk.view(stop.clone());
        let thread = thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || {
                let span = tracing::info_span!("disk", name = disk.name);
                let _entered = span.enter();
                tracing::info!(socket = %session.path().display(), "listening");
                session.run(&mut disk.host, &daemon::log_event);
                let outcome = disk.close();
                // The socket goes last: a successor finds it free only when the volume is.
                drop(session);
                outcome
            })
            .context("no thread for its session")?;
        let view = overview.add(view);
        let status = view.status(false);
        let encryption = status.encryption.unwrap_or_default();
        let at_start = Served {
            socket: status.socket,
            capacity_bytes: status.capacity_bytes,
            serial: status.serial,
            read_only: status.read_only,
            luks_version: encryption.luks_version,
            luks_uuid: encryption.uuid,
        };
        tracing::debug!(disk = name, "serving");
        Ok(Self { stop, thread, view: Arc::downgrade(&view), volume, at_start })
    }

    /// What is told of it; the size as it is now.
    pub(super) fn served(&self) -> Served {
        let capacity = self.view.upgrade().map(|view| view.status(false).capacity_bytes);
        Served {
            capacity_bytes: capacity.unwrap_or(self.at_start.capacity_bytes),
            ..self.at_start.clone()
        }
    }

    /// Its session has not ended.
    pub(super) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// QEMU is there.
    pub(super) fn connected(&self) -> bool {
        self.stop.connected()
    }

    /// Begins the end.
    pub(super) fn tell_to_stop(&self) {
        self.stop.stop();
    }

    /// Ends the session and waits until the volume is closed. The overview must not have it any more.
    ///
    /// # Errors
    /// The last flush failed, or somebody kept the volume open.
    pub(super) fn stop(self, name: &str) -> anyhow::Result<()> {
        self.stop.stop();
        let outcome = self.thread.join().unwrap_or_else(|_| {
            Err(anyhow!("its session failed badly, which is a defect; see the log"))
        });
        let deadline = Instant::now() + LET_GO;
        while self.volume.strong_count() > 0 && Instant::now() < deadline {
            #[expect(
                clippy::disallowed_methods,
                reason = "no event tells that the last one let go"
            )]
            thread::sleep(Duration::from_millis(1));
        }
        outcome?;
        ensure!(
            self.volume.strong_count() == 0,
            "volume {name} is still in use in this process, which is a defect"
        );
        Ok(())
    }
}
