//! LUKS1 headers (LUKS1 on-disk format specification 1.2.3), as cryptsetup and qemu-img make them.
//!
//! Contract: one copy, no checksum, so a change is a sequence of single-sector writes, each of
//! which leaves a valid header; sectors (512 bytes) are assumed to be written whole. Layouts differ
//! between creators (payload at 4096, 4040, 2056 sectors): everything is read from the header.
//! To be re-encrypted, a volume is LUKS2 for a while: [`convert`].

mod assemble;
mod convert;
mod edit;
mod phdr;
mod remains;
mod report;
mod unlock;

pub(crate) use assemble::{GridSlot, Parts};
pub(crate) use phdr::Luks1;
