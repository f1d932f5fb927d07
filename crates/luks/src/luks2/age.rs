//! The `sealblk-age` token: since when the volume key and the secret have been in use. It travels
//! with the header, so it survives every move of the volume.
//!
//! Contract: a hint from storage that is not trusted. A token that can't be understood makes the age
//! unknown and the volume no worse. Times are seconds since 1970, UTC, as the writer's clock had
//! them; whoever reads them has to bear times in the future. Where a time isn't known exactly the
//! older one is noted: a key is rotated too early rather than too late.
//! Deliberately absent: a clock; LUKS1, which has no place for it.

use serde::Serialize;
use serde_json::{Value, json};

use super::node::Node;
use super::{Luks2, Metadata};
use crate::error::{Flaw, LuksError};
use crate::io::{Plan, Random, ReadAt};

/// Its type.
pub(crate) const AGE_TOKEN: &str = "sealblk-age";

/// `LUKS2_TOKENS_MAX`: cryptsetup knows no token with a higher number.
const MAX_TOKENS: u32 = 32;

/// Since when keys have been in use, as far as anybody noted it. Public data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct KeyAge {
    /// Since when the volume key has, in seconds since 1970, UTC.
    pub volume_key_since: Option<u64>,
    /// Since when the secret has; the youngest one, when there are several.
    pub secret_since: Option<u64>,
    /// How often the volume key was rotated.
    pub rotations: u64,
}

impl KeyAge {
    /// That of a volume made at `now`, in seconds since 1970, UTC.
    pub fn new_at(now: u64) -> Self {
        Self { volume_key_since: Some(now), secret_since: Some(now), rotations: 0 }
    }

    pub(super) fn to_json(self) -> Value {
        let mut json = json!({"type": AGE_TOKEN, "keyslots": []});
        let fields =
            [("volume_key_since", self.volume_key_since), ("secret_since", self.secret_since)];
        for (name, since) in fields {
            if let Some(since) = since {
                json[name] = Value::from(since.to_string());
            }
        }
        json["rotations"] = Value::from(self.rotations.to_string());
        json
    }

    /// What the header's token says, if it has one.
    ///
    /// # Errors
    /// What is wrong with it, or that there are several.
    pub(super) fn of(metadata: &Metadata) -> Result<Option<Self>, String> {
        let mut ours = metadata.tokens.iter().filter(|(_, token)| token.kind == AGE_TOKEN);
        match (ours.next(), ours.next()) {
            (None, _) => Ok(None),
            (Some((id, _)), None) => {
                Self::read(metadata, *id).map(Some).map_err(|flaw| flaw.to_string())
            }
            _ => Err(format!("the header has several {AGE_TOKEN} tokens")),
        }
    }

    fn read(metadata: &Metadata, id: u32) -> Result<Self, Flaw> {
        let token = Node::root(&metadata.raw).get("tokens")?.get(&id.to_string())?;
        let number = |name| token.get_optional(name)?.map(|node| node.u64_string()).transpose();
        Ok(Self {
            volume_key_since: number("volume_key_since")?,
            secret_since: number("secret_since")?,
            rotations: number("rotations")?.unwrap_or(0),
        })
    }
}

/// Makes `age` the JSON's one and only token of its type.
pub(super) fn put(raw: &mut Value, age: KeyAge) -> Result<(), LuksError> {
    let no_tokens = || LuksError::BadParameter("the header has no tokens".into());
    let tokens = raw.get_mut("tokens").and_then(Value::as_object_mut).ok_or_else(no_tokens)?;
    tokens.retain(|_, token| token.get("type").and_then(Value::as_str) != Some(AGE_TOKEN));
    let id = (0..MAX_TOKENS)
        .map(|id| id.to_string())
        .find(|id| !tokens.contains_key(id))
        .ok_or_else(|| LuksError::NoRoom(format!("another token: all {MAX_TOKENS} are taken")))?;
    tokens.insert(id, age.to_json());
    Ok(())
}

/// Notes in `raw`, the header that ends a rotation of `before`, that keys have changed. `started_at`
/// is when the rotation began (0: nobody noted it): the first sectors have had the new key since
/// then. A header that has no room for it goes without.
pub(super) fn after_rotation(
    raw: &mut Value,
    before: &Metadata,
    started_at: u64,
    new_secret: bool,
) {
    let known = KeyAge::of(before).ok().flatten().unwrap_or_default();
    let since = Some(started_at).filter(|started| *started > 0);
    let age = KeyAge {
        volume_key_since: since.or(known.volume_key_since),
        secret_since: if new_secret { since } else { known.secret_since },
        rotations: known.rotations.saturating_add(1),
    };
    // Whatever else happens, the rotation must end.
    let _ = put(raw, age);
}

impl Luks2 {
    pub(crate) fn key_age(&self) -> Result<Option<KeyAge>, String> {
        KeyAge::of(&self.metadata)
    }

    /// Plans a header that notes `age`.
    pub(crate) fn set_key_age(
        &self,
        io: &mut dyn ReadAt,
        age: KeyAge,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        let mut raw = self.metadata.raw.clone();
        put(&mut raw, age)?;
        let metadata = self.revalidated(raw)?;
        let mut script = self.script(random)?;
        script.commit(&metadata)?;
        script.flush();
        Ok(script.finish().0)
    }
}
