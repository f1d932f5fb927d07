//! Volumes that are LUKS2 only for the time of a rotation: the mark in the header, and the grid.
//!
//! LUKS1 cannot be re-encrypted, so such a volume is converted before and converted back after. The
//! token `sealblk-luks1` says so to whoever comes after a restart, with the two things that LUKS2
//! has no place for: the one hash of LUKS1, and where its eight keyslots have their material (the
//! grid). Invariant R12: the keyslot that stays lies on the grid, and is made with that hash, so
//! that the way back rewrites headers only. What the token says is from storage that is not trusted:
//! whatever is made of it is checked as a header that was read.

use serde_json::{Value, json};

use super::edit::{AREA_ALIGN, area_bytes, insert, remove, revalidated};
use super::model::Area;
use super::{Luks2, Metadata};
use crate::error::LuksError;
use crate::hash::Hash;
use crate::header::RotationStatus;
use crate::io::{Plan, Random, ReadAt};

/// The token's type.
pub(crate) const ORIGIN_TOKEN: &str = "sealblk-luks1";

/// Tokens of ours begin like this; LUKS1 has no place for any.
pub(super) const OUR_TOKENS: &str = "sealblk-";

const SECTOR_BYTES: u64 = 512;

/// What a LUKS1 header was like, as far as LUKS2 does not say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Of keyslots and digest.
    pub(crate) hash: Hash,
    /// Where each keyslot, in use or not, has its material, in sectors.
    pub(crate) grid: [u32; 8],
}

impl Origin {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "type": ORIGIN_TOKEN,
            "keyslots": [],
            "hash": self.hash.name(),
            "grid": self.grid.map(|sector| sector.to_string()),
        })
    }

    /// The token of this header with its number.
    ///
    /// # Errors
    /// That it is mangled, or that there are several.
    pub(super) fn of(metadata: &Metadata) -> Result<Option<(u32, Self)>, String> {
        let mut ours = metadata.tokens.iter().filter(|(_, token)| token.kind == ORIGIN_TOKEN);
        let (first, more) = (ours.next(), ours.next());
        let Some((id, _)) = first else {
            return Ok(None);
        };
        if more.is_some() {
            return Err(format!("the header has several {ORIGIN_TOKEN} tokens"));
        }
        let raw = metadata.raw.pointer(&format!("/tokens/{id}")).unwrap_or(&Value::Null);
        let hash = raw.get("hash").and_then(Value::as_str).and_then(Hash::from_name);
        let sector = |value: &Value| value.as_str()?.parse::<u32>().ok();
        let grid = raw.get("grid").and_then(Value::as_array);
        let grid: Option<Vec<u32>> = grid.and_then(|list| list.iter().map(sector).collect());
        match (hash, grid.and_then(|grid| <[u32; 8]>::try_from(grid).ok())) {
            (Some(hash), Some(grid)) => Ok(Some((*id, Self { hash, grid }))),
            _ => Err(format!("token {id} ({ORIGIN_TOKEN}) lacks a known hash or eight places")),
        }
    }

    /// The place of a LUKS1 keyslot as an area, for a key of `key_bytes`.
    pub(super) fn place(&self, number: usize, key_bytes: u32) -> Area {
        let offset = u64::from(self.grid[number]) * SECTOR_BYTES;
        Area { offset, size: area_bytes(key_bytes) }
    }

    /// A place of the grid in which nothing lies.
    pub(super) fn free_place(
        &self,
        metadata: &Metadata,
        hdr_size: u64,
        key_bytes: u32,
    ) -> Result<Area, LuksError> {
        let start = 2 * hdr_size;
        let end = start + metadata.config.keyslots_size;
        let free = |area: &Area| {
            let overlaps = |other: &Area| {
                area.offset < other.offset + other.size && other.offset < area.offset + area.size
            };
            area.offset >= start
                && area.offset + area.size <= end
                && area.offset.is_multiple_of(AREA_ALIGN)
                && !metadata.keyslots.values().filter_map(|k| k.area).any(|other| overlaps(&other))
        };
        (0..self.grid.len()).map(|n| self.place(n, key_bytes)).find(free).ok_or_else(|| {
            LuksError::NoRoom(
                "the new volume key's keyslot, which must lie where LUKS1 has one to end as LUKS1 \
                 again: remove a keyslot that is not needed, or let the volume stay LUKS2"
                    .into(),
            )
        })
    }
}

impl Luks2 {
    pub(crate) fn origin(&self) -> Result<Option<Origin>, LuksError> {
        Ok(self.origin_token()?.map(|(_, origin)| origin))
    }

    pub(super) fn origin_token(&self) -> Result<Option<(u32, Origin)>, LuksError> {
        Origin::of(&self.metadata).map_err(|reason| LuksError::Refused(vec![reason]))
    }

    /// Whether there is one, be it mangled.
    pub(crate) fn has_origin_token(&self) -> bool {
        self.metadata.tokens.values().any(|token| token.kind == ORIGIN_TOKEN)
    }

    /// A rotation must not be under way: it goes on from a header of its own.
    pub(super) fn check_convertible(&self) -> Result<(), LuksError> {
        match self.rotation_status()? {
            RotationStatus::ConvertBack => Ok(()),
            RotationStatus::None => Err(LuksError::Conversion(
                "nothing says that this volume began as LUKS1, so it is not made LUKS1".into(),
            )),
            _ => Err(LuksError::Conversion(
                "a rotation is staged, under way or not cleaned up: end that first".into(),
            )),
        }
    }

    /// Plans the header without the mark.
    pub(crate) fn keep_luks2(
        &self,
        io: &mut dyn ReadAt,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        self.check_convertible()?;
        let mut raw = self.metadata.raw.clone();
        if let Some((id, _)) = self.origin_token()? {
            remove(&mut raw, "tokens", id);
        }
        let mut script = self.script(random)?;
        script.commit(&revalidated(raw, self.binary.hdr_size)?)?;
        script.flush();
        Ok(script.finish().0)
    }
}

/// Adds the mark.
pub(super) fn mark(raw: &mut Value, id: u32, origin: &Origin) -> Result<(), LuksError> {
    insert(raw, "tokens", id, origin.to_json())
}
