//! Writing both header copies so that one is always valid.

use super::copies::CopyState;
use super::{Binary, Luks2, Metadata, Place};
use crate::error::LuksError;
use crate::io::{Plan, Random};

impl Luks2 {
    /// Appends the writes that make `metadata` the header: `seqid` one higher, the copy that does
    /// not count first, flush, the other, flush. With both copies good that is the primary first,
    /// as cryptsetup does it. A salt is the copy's own and stays; a damaged copy gets a fresh one.
    pub(super) fn commit(
        &self,
        plan: &mut Plan,
        metadata: &Metadata,
        random: &mut Random<'_>,
    ) -> Result<(), LuksError> {
        let seqid = self.binary.seqid.checked_add(1).ok_or_else(|| {
            LuksError::NoRoom(
                "another change: seqid is at its maximum, which only a forged header has".into(),
            )
        })?;
        let binary = Binary { seqid, ..self.binary.clone() };
        let json = metadata.to_text();
        if json.len() as u64 >= metadata.config.json_size {
            return Err(LuksError::NoRoom(format!(
                "{} bytes of JSON: the area holds {} with its NUL",
                json.len(),
                metadata.config.json_size
            )));
        }
        let [primary, secondary] = &self.copies;
        let order = if primary.is_good() && !secondary.is_good() {
            [secondary, primary]
        } else {
            [primary, secondary]
        };
        for copy in order {
            let place = self.place_of(copy, random)?;
            plan.write(place.offset_bytes, binary.image(&place, &json));
            plan.flush();
        }
        Ok(())
    }

    /// Where a copy goes, with its salt.
    pub(super) fn place_of(
        &self,
        copy: &CopyState,
        random: &mut Random<'_>,
    ) -> Result<Place, LuksError> {
        Ok(match copy {
            CopyState::Good(place) | CopyState::Stale { place, .. } => *place,
            CopyState::Damaged { offset_bytes, .. } => {
                let mut salt = [0; 64];
                random(&mut salt).map_err(LuksError::Random)?;
                Place { offset_bytes: *offset_bytes, salt }
            }
        })
    }
}
