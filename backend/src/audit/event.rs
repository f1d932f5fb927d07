//! What is audited. Names of fields and events are the schema: see docs/observability.md.

use sealblk_api::agent::ErrorKind;
use sealblk_api::{Encryption, Rotation};
use sealblk_engine::{PathNews, PathState};
use sealblk_keys::KeySource;
use sealblk_luks::{Header, Unlocked};
use sealblk_volume::VolumeEvent;
use serde::Serialize;

use super::record;

/// Longest text that comes from outside (a path of a request, an error of a key manager), in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// The status of an answer to somebody who may not ask.
const FORBIDDEN: u16 = 403;

/// Something that happened.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// The daemon begins.
    DaemonStarted { version: &'a str },
    /// The daemon ends in good order.
    DaemonEnded,
    /// A key opened a volume.
    VolumeUnlocked {
        volume: &'a str,
        /// The secret's name.
        key: &'a str,
        luks_uuid: &'a str,
        luks_version: u8,
        cipher: &'a str,
        key_bits: u32,
        /// What the volume key's digest begins with, in hex.
        volume_key: &'a str,
    },
    /// A volume is served without encryption (`plain`).
    VolumeUnencrypted { volume: &'a str },
    /// A secret could not be had, or doesn't open the volume.
    KeyFetchFailed { volume: &'a str, key: &'a str, error: &'a str },
    /// A volume is no longer served, its keys are forgotten.
    VolumeClosed {
        volume: &'a str,
        /// The last flush failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    },
    /// The data begins to move to another volume key.
    RotationStarted {
        volume: &'a str,
        #[serde(flatten)]
        keys: RotationKeys<'a>,
    },
    /// A rotation goes on: taken up by this daemon, or no longer paused.
    RotationResumed { volume: &'a str, reason: Pause },
    /// A rotation stops between two ranges.
    RotationPaused { volume: &'a str, reason: Pause },
    /// Nothing has the old volume key any more.
    RotationCompleted {
        volume: &'a str,
        #[serde(flatten)]
        keys: RotationKeys<'a>,
    },
    /// It could not begin, or was given up.
    RotationFailed { volume: &'a str, error: &'a str },
    /// The volume's LUKS header was written to, for another reason than the steps of a rotation.
    HeaderChanged { volume: &'a str, change: &'a str },
    /// The storage doesn't answer, or fails.
    StorageLost { volume: &'a str, state: &'a str },
    /// The storage works again.
    StorageBack { volume: &'a str, lost_ms: u64 },
    /// Another client has taken the volume: nothing is written any more.
    Fenced {
        volume: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<&'a str>,
    },
    /// Somebody ordered something by the control API, or was refused.
    ControlOrder {
        /// Who; none where the kernel didn't say.
        uid: Option<u32>,
        method: &'a str,
        path: &'a str,
        /// What of it, where the path doesn't say.
        #[serde(skip_serializing_if = "Option::is_none")]
        action: Option<&'a str>,
        /// The HTTP status of the answer.
        status: u16,
    },
    /// The agent ordered something of an instance's daemon, or somebody who may not.
    AgentOrder {
        uid: Option<u32>,
        action: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        volume: Option<&'a str>,
        /// Why it was not carried out.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a ErrorKind>,
    },
    /// So many lines before this one could not be written.
    Lost { lines: u64 },
}

/// The keys that take part in a rotation: fingerprints of volume keys, names of secrets.
#[derive(Debug, Serialize)]
pub(crate) struct RotationKeys<'a> {
    old_volume_key: &'a str,
    new_volume_key: &'a str,
    old_secret: &'a str,
    new_secret: &'a str,
}

impl<'a> From<&'a Rotation> for RotationKeys<'a> {
    fn from(told: &'a Rotation) -> Self {
        Self {
            old_volume_key: &told.old_volume_key,
            new_volume_key: &told.new_volume_key,
            old_secret: &told.old_secret,
            new_secret: &told.new_secret,
        }
    }
}

/// Who pauses a rotation, or lets it go on.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pause {
    /// An operator.
    Order,
    /// The schedule's window.
    Window,
    /// The daemon begins or ends.
    Daemon,
}

impl<'a> Event<'a> {
    /// A volume is open: by a key, or served without encryption.
    pub(crate) fn unlocked(
        volume: &'a str,
        key: &'a str,
        encryption: Option<&'a Encryption>,
        volume_key: &'a str,
    ) -> Self {
        match encryption {
            Some(e) => Self::VolumeUnlocked {
                volume,
                key,
                luks_uuid: &e.uuid,
                luks_version: e.luks_version,
                cipher: &e.cipher,
                key_bits: e.key_bits,
                volume_key,
            },
            None => Self::VolumeUnencrypted { volume },
        }
    }
}

/// What the digest of the volume key that `unlocked` has begins with, in hex; the new one's in the
/// middle of a rotation.
pub(crate) fn fingerprint(header: &Header, unlocked: &Unlocked) -> String {
    let report = header.report();
    let digest = report.digests.into_iter().find(|one| one.id == unlocked.digest());
    digest.map_or_else(String::new, |one| one.fingerprint)
}

/// A secret could not be had, or doesn't open the volume.
pub(crate) fn key_fetch_failed(volume: &str, key: &KeySource, error: &str) {
    record(&Event::KeyFetchFailed { volume, key: &key.to_string(), error: limited(error) });
}

/// A rotation of a volume stops between two ranges, or goes on.
pub(crate) fn paused(volume: &str, paused: bool, reason: Pause) {
    record(&match paused {
        true => Event::RotationPaused { volume, reason },
        false => Event::RotationResumed { volume, reason },
    });
}

/// A rotation has begun.
pub(crate) fn rotation_started(volume: &str, told: &Rotation) {
    record(&Event::RotationStarted { volume, keys: told.into() });
}

/// A rotation is done.
pub(crate) fn rotation_completed(volume: &str, told: &Rotation) {
    record(&Event::RotationCompleted { volume, keys: told.into() });
}

/// What a volume tells by itself.
pub(crate) fn news(volume: &str, event: &VolumeEvent) {
    match event {
        VolumeEvent::Fenced { why } => {
            record(&Event::Fenced { volume, why: Some(limited(why)) });
        }
        VolumeEvent::PathLost { .. } => {
            record(&Event::StorageLost { volume, state: "disconnected" });
        }
        VolumeEvent::PathBack { after } => {
            let lost_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            record(&Event::StorageBack { volume, lost_ms });
        }
        _ => {}
    }
}

/// Records what a disk's queues notice of its storage.
pub(crate) fn path_listener(volume: &str) -> impl Fn(PathNews) + Send + Sync + use<> {
    let volume = volume.to_owned();
    move |news| match news {
        PathNews::Lost(state) => {
            let state = match state {
                PathState::Holding => "holding",
                PathState::Reporting => "reporting",
                PathState::Fenced => "fenced",
                PathState::Ok | PathState::Silent => "silent",
            };
            record(&Event::StorageLost { volume: &volume, state });
        }
        PathNews::Back(lost) => {
            let lost_ms = u64::try_from(lost.as_millis()).unwrap_or(u64::MAX);
            record(&Event::StorageBack { volume: &volume, lost_ms });
        }
        PathNews::Fenced => record(&Event::Fenced { volume: &volume, why: None }),
    }
}

/// An order that came by the control API, or anything that was refused for who asked.
pub(crate) fn request(
    uid: Option<u32>,
    method: &str,
    path: &str,
    action: Option<&str>,
    status: u16,
) {
    if let Some(event) = order(uid, method, path, action, status) {
        record(&event);
    }
}

/// What of a request is recorded.
pub(super) fn order<'a>(
    uid: Option<u32>,
    method: &'a str,
    path: &'a str,
    action: Option<&'a str>,
    status: u16,
) -> Option<Event<'a>> {
    let changes_something = !matches!(method, "GET" | "HEAD");
    (changes_something || status == FORBIDDEN).then_some(Event::ControlOrder {
        uid,
        method,
        path: limited(path),
        action,
        status,
    })
}

/// The beginning of a text.
fn limited(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

/// An event of each kind, with all its fields.
#[cfg(test)]
pub(super) fn one_of_each() -> Vec<Event<'static>> {
    let keys = || RotationKeys {
        old_volume_key: "00",
        new_volume_key: "ff",
        old_secret: "file:/a",
        new_secret: "file:/b",
    };
    let (volume, error) = ("a", "why");
    vec![
        Event::DaemonStarted { version: "1" },
        Event::DaemonEnded,
        Event::VolumeUnlocked {
            volume,
            key: "file:/k",
            luks_uuid: "5b0f",
            luks_version: 2,
            cipher: "aes-xts-plain64",
            key_bits: 512,
            volume_key: "00ff",
        },
        Event::VolumeUnencrypted { volume },
        Event::KeyFetchFailed { volume, key: "file:/k", error },
        Event::VolumeClosed { volume, error: Some(error) },
        Event::RotationStarted { volume, keys: keys() },
        Event::RotationResumed { volume, reason: Pause::Order },
        Event::RotationPaused { volume, reason: Pause::Window },
        Event::RotationCompleted { volume, keys: keys() },
        Event::RotationFailed { volume, error },
        Event::HeaderChanged { volume, change: "mended" },
        Event::StorageLost { volume, state: "silent" },
        Event::StorageBack { volume, lost_ms: 1 },
        Event::Fenced { volume, why: Some("lock") },
        Event::ControlOrder {
            uid: Some(0),
            method: "POST",
            path: "/",
            action: Some("start"),
            status: 200,
        },
        Event::AgentOrder {
            uid: Some(0),
            action: "attach",
            volume: Some(volume),
            error: Some(&ErrorKind::Conflict),
        },
        Event::Lost { lines: 1 },
    ]
}
