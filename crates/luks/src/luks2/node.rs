//! JSON values with the path that leads to them, so that every rejection names its field.
//!
//! LUKS2 writes 64-bit numbers as decimal strings, identifiers as decimal strings, binary data as
//! base64 (specification section 3).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::error::Flaw;

/// Members of an object, or of a list that names them: twice what `cryptsetup` makes of any kind
/// (`LUKS2_KEYSLOTS_MAX`, `_TOKENS_MAX`, `_SEGMENT_MAX` are 32). Checks between members take the
/// square of this.
const MAX_MEMBERS: usize = 64;

/// A value and where it stands.
#[derive(Clone)]
pub(crate) struct Node<'a> {
    pub(crate) path: String,
    pub(crate) value: &'a Value,
}

impl<'a> Node<'a> {
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { path: String::new(), value }
    }

    pub(crate) fn flaw(&self, problem: impl Into<String>) -> Flaw {
        let path = if self.path.is_empty() { "JSON" } else { &self.path };
        Flaw::new(path, problem)
    }

    fn child(&self, name: &str, value: &'a Value) -> Self {
        let name = name.escape_debug();
        let path =
            if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { path, value }
    }

    pub(crate) fn object(&self) -> Result<&'a Map<String, Value>, Flaw> {
        self.value.as_object().ok_or_else(|| self.flaw("is no object"))
    }

    /// The field `name`, which must exist.
    pub(crate) fn get(&self, name: &str) -> Result<Self, Flaw> {
        self.get_optional(name)?.ok_or_else(|| self.flaw(format!("lacks {name:?}")))
    }

    pub(crate) fn get_optional(&self, name: &str) -> Result<Option<Self>, Flaw> {
        Ok(self.object()?.get(name).map(|value| self.child(name, value)))
    }

    /// The members of an object whose keys are numbers.
    pub(crate) fn numbered(&self) -> Result<Vec<(u32, Self)>, Flaw> {
        let members = self.object()?;
        self.check_count(members.len())?;
        members
            .iter()
            .map(|(key, value)| {
                let child = self.child(key, value);
                let id = id(key).ok_or_else(|| child.flaw("is no number as a key"))?;
                Ok((id, child))
            })
            .collect()
    }

    pub(crate) fn string(&self) -> Result<&'a str, Flaw> {
        self.value.as_str().ok_or_else(|| self.flaw("is no string"))
    }

    /// A 64-bit number in a string of digits.
    pub(crate) fn u64_string(&self) -> Result<u64, Flaw> {
        let text = self.string()?;
        decimal(text)
            .ok_or_else(|| self.flaw(format!("{text:?} is no unsigned 64-bit number in digits")))
    }

    pub(crate) fn u32(&self) -> Result<u32, Flaw> {
        self.value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| self.flaw("is no unsigned 32-bit number"))
    }

    pub(crate) fn base64(&self) -> Result<Vec<u8>, Flaw> {
        STANDARD.decode(self.string()?).map_err(|_| self.flaw("is no base64"))
    }

    pub(crate) fn strings(&self) -> Result<Vec<&'a str>, Flaw> {
        let array = self.value.as_array().ok_or_else(|| self.flaw("is no array"))?;
        array
            .iter()
            .map(|value| {
                value.as_str().ok_or_else(|| self.flaw("has an element that is no string"))
            })
            .collect()
    }

    /// An array of identifiers, without repetition.
    pub(crate) fn ids(&self) -> Result<Vec<u32>, Flaw> {
        let texts = self.strings()?;
        self.check_count(texts.len())?;
        let mut ids = Vec::new();
        for text in texts {
            let id = id(text).ok_or_else(|| self.flaw(format!("{text:?} is no number")))?;
            if ids.contains(&id) {
                return Err(self.flaw(format!("names {id} twice")));
            }
            ids.push(id);
        }
        Ok(ids)
    }

    fn check_count(&self, members: usize) -> Result<(), Flaw> {
        if members <= MAX_MEMBERS {
            Ok(())
        } else {
            Err(self.flaw(format!("has {members} members, more than {MAX_MEMBERS}")))
        }
    }
}

/// An identifier: digits without leading zeroes, so that no two spellings name one object.
fn id(text: &str) -> Option<u32> {
    let number = u32::try_from(decimal(text)?).ok()?;
    (number.to_string() == text).then_some(number)
}

/// `str::parse` admits a sign.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
