//! Tests of the whole crate: known answers, crash points, hostile headers, the real cryptsetup.

mod age;
mod copies;
mod crash;
mod faults;
mod interop;
mod kat;
mod keyslots;
mod luks1;
mod properties;
mod reencrypt;
mod rotation;
mod rules;
mod signatures;

use std::io;
use std::path::PathBuf;
use std::process::Command;

use sealblk_cipher::{Algorithm, Implementation, SegmentSpec, decrypt_in_place, sector_cipher};
use sealblk_secret::SecretBytes;
use serde_json::Value;

use crate::luks2::{Binary, Luks2, Metadata, Place};
use crate::{
    FormatParams, Header, KdfLimits, KmsToken, LuksError, Plan, Policy, ReadAt, SlotKdf, Step,
    Unlocked, format,
};

const OLD: &str = "the first passphrase";
const NEW: &str = "another passphrase";

fn secret(text: &str) -> SecretBytes {
    SecretBytes::copy_from(text.as_bytes()).unwrap()
}

/// Reproducible "random" bytes (splitmix64).
fn rng(seed: u64) -> impl FnMut(&mut [u8]) -> io::Result<()> {
    let mut state = seed;
    move |buf| {
        for byte in buf {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (z ^ (z >> 31)) as u8;
        }
        Ok(())
    }
}

fn kat_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/kat").join(name)
}

/// A known-answer file, unpacked.
fn kat(name: &str) -> Vec<u8> {
    let output = Command::new("xz").arg("-dc").arg(kat_path(name)).output().unwrap();
    assert!(output.status.success(), "xz -dc {name}");
    output.stdout
}

fn params(volume_bytes: u64) -> FormatParams {
    FormatParams {
        volume_bytes,
        algorithm: Algorithm::Aes256XtsPlain64,
        sector_bytes: 512,
        kdf: SlotKdf::default(),
        label: "label".into(),
        subsystem: "sealblk".into(),
        token: Some(KmsToken { key_id: "secret/7".into() }),
        created_at: None,
    }
}

const VOLUME_BYTES: u64 = (16 << 20) + (64 << 10);

/// A volume formatted by us, opened by [`OLD`].
fn volume() -> Vec<u8> {
    let mut image = vec![0; VOLUME_BYTES as usize];
    execute(&mut image, &format(&params(VOLUME_BYTES), &secret(OLD), &mut rng(1)).unwrap());
    image
}

fn execute(image: &mut [u8], plan: &Plan) {
    for step in plan.steps() {
        if let Step::Write { offset_bytes, data } = step {
            let at = *offset_bytes as usize;
            image[at..at + data.len()].copy_from_slice(data);
        }
    }
}

fn load(mut image: &[u8]) -> Result<Header, LuksError> {
    Header::load(&mut image, &Policy::default())
}

fn unlock(mut image: &[u8], passphrase: &str) -> Result<Unlocked, LuksError> {
    load(image)?.unlock(&mut image, &secret(passphrase), &KdfLimits::default())
}

/// Decrypts all segments as the guest would read them.
fn plaintext(image: &[u8], specs: &[SegmentSpec]) -> Vec<u8> {
    let mut plain = Vec::new();
    for spec in specs {
        assert_eq!(spec.start * 512, plain.len() as u64);
        let start = spec.volume_start as usize * 512;
        let mut data = image[start..start + spec.sectors as usize * 512].to_vec();
        let (algorithm, key) = spec.crypt.as_ref().unwrap();
        let mut cipher =
            sector_cipher(*algorithm, key, spec.sector_bytes, Implementation::Auto).unwrap();
        decrypt_in_place(cipher.as_mut(), spec.iv_start, &mut data);
        plain.extend_from_slice(&data);
    }
    plain
}

/// The metadata of a valid header, to be changed.
fn json_of(mut image: &[u8]) -> Value {
    Luks2::load(&mut image).unwrap().metadata.raw
}

/// Both copies rewritten with this JSON and valid checksums, whatever the JSON says.
fn with_json(image: &[u8], json: &Value) -> Vec<u8> {
    let mut io = image;
    let header = Luks2::load(&mut io).unwrap();
    let mut image = image.to_vec();
    for offset_bytes in [0, header.binary.hdr_size] {
        let copy = header
            .binary
            .image(&Place { offset_bytes, salt: [7; 64] }, json.to_string().as_bytes());
        let at = offset_bytes as usize;
        image[at..at + copy.len()].copy_from_slice(&copy);
    }
    image
}

fn message<T>(result: Result<T, LuksError>) -> String {
    match result {
        Ok(_) => "it was accepted".into(),
        Err(error) => error.to_string(),
    }
}
