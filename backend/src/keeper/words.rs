//! What keeper and worker say to each other: one JSON object a message, over a socket pair.

use serde::{Deserialize, Serialize};

use crate::orders::AttachOrder;

/// Of the worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub(super) enum Word {
    /// Its sockets listen.
    Ready,
    /// Keep this: descriptors are the key, then the device if there is one.
    Keep { volume: String, order: Box<AttachOrder>, device: bool },
    /// Let go of the device.
    Park { volume: String },
    /// Let go of it.
    Drop { volume: String },
    /// Tell everything that is kept.
    Restore,
}

/// Of the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub(super) enum Reply {
    /// The word was obeyed.
    Done,
    /// It was not.
    Refused { why: String },
    /// One of what is kept; descriptors as in [`Word::Keep`].
    Volume { volume: String, order: Box<AttachOrder>, parked: bool, device: bool },
}

/// The message's bytes.
pub(super) fn bytes(said: &impl Serialize) -> Vec<u8> {
    // These types have string keys and no maps that could fail.
    serde_json::to_vec(said).unwrap_or_default()
}
