//! The `sealblk-rotation` token: what a restart must know of a rotation that the rest of the header
//! does not say.
//!
//! Contract: its `keyslots` are the temporary ones, which are removed at the end. LUKS2 keeps that
//! list true whoever removes a keyslot, so a number that is used again by somebody else is never
//! taken for one of ours. What it says is a hint from storage that is not trusted: keyslots in it
//! are removed only when another one opens the same key, areas in it are wiped only where nothing lies.

use serde_json::{Value, json};

use super::super::model::Area;
use super::super::{Luks2, Metadata};
use super::state::{Reencryption, State};
use crate::error::LuksError;
use crate::header::RotationStatus;

/// Its type.
pub(crate) const ROTATION_TOKEN: &str = "sealblk-rotation";

/// How far a rotation is, as far as the token must say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The new key has keyslots and no data yet.
    Staged,
    /// The header's re-encryption says the rest.
    Running,
    /// All data has the new key; material of the old one is still to be wiped.
    Wiping,
}

impl Stage {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Staged, "staged"), (Self::Running, "running"), (Self::Wiping, "wipe-pending")];

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(stage, _)| *stage == self).map_or("", |(_, name)| name)
    }
}

/// What the token holds. Public data: identifiers, no secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RotationToken {
    pub(crate) stage: Stage,
    /// The new key's.
    pub(crate) digest: u32,
    /// Keyslots that only the time of the rotation needs.
    pub(crate) temporary: Vec<u32>,
    pub(crate) notes: RotationNotes,
    /// Areas to be wiped.
    pub(crate) wipe: Vec<Area>,
}

/// What the caller wants to find again after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RotationNotes {
    /// The key manager's name for the secret that opened the volume before.
    pub old_key_id: Option<String>,
    /// The one that opens it afterwards; the same when only the volume key is replaced.
    pub new_key_id: Option<String>,
    /// Seconds since 1970, UTC.
    pub started_at: u64,
    /// The caller's count of rotations of this volume.
    pub generation: u64,
}

impl RotationToken {
    /// Only a new secret needs keyslots for the time of the rotation. Asked before they are removed.
    pub(super) fn changes_secret(&self) -> bool {
        !self.temporary.is_empty()
    }

    pub(super) fn to_json(&self) -> Value {
        let ids = |list: &[u32]| list.iter().map(u32::to_string).collect::<Vec<_>>();
        let mut json = json!({
            "type": ROTATION_TOKEN,
            "keyslots": ids(&self.temporary),
            "stage": self.stage.name(),
            "digest": self.digest.to_string(),
            "started_at": self.notes.started_at.to_string(),
            "generation": self.notes.generation.to_string(),
        });
        for (name, id) in [("old_kid", &self.notes.old_key_id), ("new_kid", &self.notes.new_key_id)]
        {
            if let Some(id) = id {
                json[name] = Value::from(id.as_str());
            }
        }
        if !self.wipe.is_empty() {
            let areas = self.wipe.iter().map(
                |area| json!({"offset": area.offset.to_string(), "size": area.size.to_string()}),
            );
            json["wipe"] = areas.collect();
        }
        json
    }

    /// The token of this header with its number.
    ///
    /// # Errors
    /// What is wrong with it, or that there are several.
    pub(crate) fn of(metadata: &Metadata) -> Result<Option<(u32, Self)>, String> {
        let mut ours = metadata.tokens.iter().filter(|(_, token)| token.kind == ROTATION_TOKEN);
        let (first, more) = (ours.next(), ours.next());
        let Some((id, token)) = first else {
            return Ok(None);
        };
        if more.is_some() {
            return Err(format!("the header has several {ROTATION_TOKEN} tokens"));
        }
        let raw = metadata.raw.pointer(&format!("/tokens/{id}")).unwrap_or(&Value::Null);
        let text = |name: &str| raw.get(name).and_then(Value::as_str);
        let number = |name: &str| {
            let parsed = text(name).and_then(|text| text.parse::<u64>().ok());
            parsed.ok_or_else(|| format!("token {id} ({ROTATION_TOKEN}) lacks a number {name:?}"))
        };
        let stage = text("stage").unwrap_or("");
        let stage = Stage::ALL.into_iter().find(|(_, name)| *name == stage);
        let (stage, _) =
            stage.ok_or_else(|| format!("token {id} ({ROTATION_TOKEN}) has no known stage"))?;
        let digest = u32::try_from(number("digest")?).unwrap_or(u32::MAX);
        let owned = |name: &str| text(name).map(String::from);
        let notes = RotationNotes {
            old_key_id: owned("old_kid"),
            new_key_id: owned("new_kid"),
            started_at: number("started_at")?,
            generation: number("generation")?,
        };
        let wipe = match raw.get("wipe") {
            None => Vec::new(),
            Some(list) => areas(list)
                .ok_or_else(|| format!("token {id} ({ROTATION_TOKEN}) has a mangled wipe list"))?,
        };
        let temporary = token.keyslots.clone();
        Ok(Some((*id, Self { stage, digest, temporary, notes, wipe })))
    }
}

fn areas(list: &Value) -> Option<Vec<Area>> {
    let area = |value: &Value| {
        let number = |name| value.get(name)?.as_str()?.parse().ok();
        Some(Area { offset: number("offset")?, size: number("size")? })
    };
    list.as_array()?.iter().map(area).collect()
}

impl Luks2 {
    pub(crate) fn has_rotation_token(&self) -> bool {
        self.metadata.tokens.values().any(|token| token.kind == ROTATION_TOKEN)
    }

    pub(crate) fn rotation_notes(&self) -> Result<Option<RotationNotes>, LuksError> {
        Ok(self.rotation_token()?.map(|(_, token)| token.notes))
    }

    pub(crate) fn rotation_status(&self) -> Result<RotationStatus, LuksError> {
        let found =
            Reencryption::of(&self.metadata).map_err(|reason| LuksError::Refused(vec![reason]))?;
        Ok(match found.map(|found| found.state()) {
            Some(State::Clean { done }) => RotationStatus::Clean { done_bytes: done },
            Some(State::Crash { start, len, .. }) => {
                RotationStatus::Crash { start_bytes: start, len_bytes: len }
            }
            Some(State::Finished) => RotationStatus::Finished,
            None => match self.rotation_token()? {
                None if self.origin()?.is_some() => RotationStatus::ConvertBack,
                None => RotationStatus::None,
                Some((_, token)) if token.stage == Stage::Staged => RotationStatus::Staged,
                Some(_) => RotationStatus::WipePending,
            },
        })
    }
}
