//! The life of an instance's daemon: its directory, its start, its end.
//!
//! Contract: whoever calls has the instance's turn.

use super::*;

impl Node {
    /// After an attach that failed: nothing is left running that serves nothing.
    pub(super) fn tidy(&self, instance: &str, volume: &str) {
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
    pub(super) fn start(&self, instance: &str) -> Result<Client, AgentError> {
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

    pub(super) fn make_dir(&self, instance: &str) -> std::io::Result<PathBuf> {
        let instances =
            host::make_dir(&self.config.instances_dir(), Owner { mode: 0o711, ..own_ids() })?;
        let theirs = Owner { uid: self.ids.uid, gid: self.ids.gid, mode: 0o700 };
        host::make_dir_in(instances, Path::new(instance), theirs)?;
        Ok(self.dir(instance))
    }

    pub(super) fn arguments(&self, instance: &str, dir: &Path) -> Vec<String> {
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
    pub(super) fn end(&self, instance: &str, client: Option<&Client>) {
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
    pub(super) fn clear(&self, instance: &str) {
        match std::fs::remove_dir_all(self.dir(instance)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(instance, %error, "its directory can't be removed");
            }
            _ => {}
        }
    }
}
