//! Writing both header copies so that one is always valid and durable.
//!
//! Contract: every header write goes through a [`Script`], which carries from one change to the
//! next what must not be forgotten: the sequence number, which copy is written first, and whether
//! the copy written last may still be in a volatile cache. Invariant R1 (docs/on-disk.md): there
//! are never unflushed writes to both copies. It holds by construction: [`Script::commit`] puts a
//! flush in front when one is owed, and whoever flushes for another reason pays the debt.

use super::copies::CopyState;
use super::{Binary, Luks2, Metadata, Place};
use crate::error::LuksError;
use crate::io::{Plan, Random};

/// Where the two copies stand.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    binary: Binary,
    /// In the order of writing: the copy that does not count first.
    places: [Place; 2],
    /// The last copy written is perhaps not durable.
    owed: bool,
}

impl Chain {
    /// The chain that continues a header just loaded. A salt is the copy's own and stays; a damaged
    /// copy gets a fresh one. Who wrote the copies may have died before flushing the second, so a
    /// flush is owed from the start.
    pub(super) fn of(header: &Luks2, random: &mut Random<'_>) -> Result<Self, LuksError> {
        let [primary, secondary] = &header.copies;
        let order = if primary.is_good() && !secondary.is_good() {
            [secondary, primary]
        } else {
            [primary, secondary]
        };
        let places = [header.place_of(order[0], random)?, header.place_of(order[1], random)?];
        Ok(Self { binary: header.binary.clone(), places, owed: true })
    }

    /// Whether `metadata` has room in the JSON area.
    pub(super) fn check_room(metadata: &Metadata) -> Result<(), LuksError> {
        let bytes = metadata.to_text().len() as u64;
        let room = metadata.config.json_size;
        if bytes < room {
            return Ok(());
        }
        Err(LuksError::NoRoom(format!("{bytes} bytes of JSON: the area holds {room} with its NUL")))
    }
}

/// A plan in the making, and the chain it continues.
pub(super) struct Script {
    chain: Chain,
    plan: Plan,
}

impl Script {
    pub(super) fn new(chain: Chain) -> Self {
        Self { chain, plan: Plan::default() }
    }

    /// A write outside of the header copies.
    pub(super) fn write(&mut self, offset_bytes: u64, data: Vec<u8>) {
        self.plan.write(offset_bytes, data);
    }

    /// A flush; pays what is owed.
    pub(super) fn flush(&mut self) {
        self.plan.flush();
        self.chain.owed = false;
    }

    /// Makes `metadata` the header: `seqid` one higher, first copy, flush, second copy. The flush
    /// of the second is owed.
    pub(super) fn commit(&mut self, metadata: &Metadata) -> Result<(), LuksError> {
        Chain::check_room(metadata)?;
        let chain = &mut self.chain;
        let seqid = chain.binary.seqid.checked_add(1).ok_or_else(|| {
            LuksError::NoRoom(
                "another change: seqid is at its maximum, which only a forged header has".into(),
            )
        })?;
        if chain.owed {
            self.plan.flush();
        }
        chain.binary.seqid = seqid;
        let json = metadata.to_text();
        let [first, second] = chain.places;
        self.plan.write(first.offset_bytes, chain.binary.image(&first, &json));
        self.plan.flush();
        self.plan.write(second.offset_bytes, chain.binary.image(&second, &json));
        chain.owed = true;
        // From here both are equal: the primary goes first, as with cryptsetup.
        chain.places.sort_by_key(|place| place.offset_bytes);
        Ok(())
    }

    pub(super) fn finish(self) -> (Plan, Chain) {
        (self.plan, self.chain)
    }
}

impl Luks2 {
    /// A script that continues this header.
    pub(super) fn script(&self, random: &mut Random<'_>) -> Result<Script, LuksError> {
        Ok(Script::new(Chain::of(self, random)?))
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
