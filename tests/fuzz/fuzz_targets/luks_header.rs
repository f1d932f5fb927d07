//! Whatever lies where a header should be, reading it ends in a header or a reason, and so does
//! everything that can be asked of a header that was accepted.
//!
//! The first byte chooses what the rest is: the volume's first bytes as they are, or the JSON area
//! of a LUKS2 header that is given the right checksum here (no fuzzer guesses a SHA-256).
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use sealblk_luks::{Header, Plan, Policy, ReadAt, Step, probe, repair};
use sha2::{Digest, Sha256};

const BINARY_BYTES: usize = 4096;
const HEADER_BYTES: usize = 16384;
/// Offset and length of the checksum in the binary header (LUKS2 specification, section 2.1).
const CHECKSUM: std::ops::Range<usize> = 448..448 + 32;

/// A volume that begins with these bytes and is zeroes from there on.
struct Sparse(Vec<u8>);

impl ReadAt for Sparse {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset_bytes.checked_add(buf.len() as u64) {
            Some(end) if end <= self.size_bytes() => {}
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        buf.fill(0);
        let start = usize::try_from(offset_bytes).unwrap_or(usize::MAX).min(self.0.len());
        let end = (start + buf.len()).min(self.0.len());
        buf[..end - start].copy_from_slice(&self.0[start..end]);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        64 << 20
    }
}

fn with_checksum(json: &[u8]) -> Vec<u8> {
    let mut header = vec![0; HEADER_BYTES];
    header[..6].copy_from_slice(b"LUKS\xba\xbe");
    header[7] = 2;
    header[8..16].copy_from_slice(&(HEADER_BYTES as u64).to_be_bytes());
    header[23] = 1;
    header[72..78].copy_from_slice(b"sha256");
    header[168..204].copy_from_slice(b"00000000-1111-2222-3333-444444444444");
    let len = json.len().min(HEADER_BYTES - BINARY_BYTES - 1);
    header[BINARY_BYTES..BINARY_BYTES + len].copy_from_slice(&json[..len]);
    let checksum = Sha256::digest(&header);
    header[CHECKSUM].copy_from_slice(&checksum);
    header
}

/// In place of random numbers.
fn sevens(buf: &mut [u8]) -> io::Result<()> {
    buf.fill(7);
    Ok(())
}

/// No plan leaves the volume.
fn check(plan: &Plan, size_bytes: u64) {
    for step in plan.steps() {
        if let Step::Write { offset_bytes, data } = step {
            let end = offset_bytes.checked_add(data.len() as u64);
            assert!(end.is_some_and(|end| end <= size_bytes), "a write to {offset_bytes}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [mode, data @ ..] = data else { return };
    let bytes = if mode & 1 == 0 { data.to_vec() } else { with_checksum(data) };
    let mut volume = Sparse(bytes);
    let _ = probe(&mut volume);
    if let Ok(header) = Header::load(&mut volume, &Policy::default()) {
        let _ = header.refusals();
        let _ = header.key_age();
        let _ = header.obstacles(volume.size_bytes());
        let _ = serde_json::to_string(&header.report()).unwrap();
        // What a daemon asks before it takes up a rotation, and what it plans without a key.
        let _ = header.rotation_status();
        let _ = header.rotation_notes();
        let _ = header.is_luks1_for_now_luks2();
        let plans = [
            header.abandon_rotation(&mut volume, &mut sevens),
            header.clean_up_rotation(&mut volume, &mut sevens),
            header.finish_conversion(&mut volume, &mut sevens),
            header.keep_luks2(&mut volume, &mut sevens),
        ];
        for plan in plans.into_iter().flatten() {
            check(&plan, volume.size_bytes());
        }
    }
    if let Ok((_, plan)) = repair(&mut volume, false, &mut sevens) {
        assert!(plan.steps().len() < 64);
        check(&plan, volume.size_bytes());
    }
});
