//! What the service manager is told (`sd_notify(3)`); without one, nothing happens.

use sd_notify::NotifyState;

/// All sockets listen.
pub(crate) fn ready(volumes: usize) {
    let status = format!("serving {volumes} volume{}", if volumes == 1 { "" } else { "s" });
    send(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The agent's socket listens.
pub(crate) fn listening() {
    send(&[NotifyState::Ready, NotifyState::Status("listening")]);
}

/// The end has begun.
pub(crate) fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
