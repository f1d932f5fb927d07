//! The baseline does what it is compared for: it serves a disk, and what lies on the volume is
//! AES-256-XTS with the tweak plain64, by a formula written here.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use std::ffi::OsString;
use std::path::Path;

use aes::Aes256;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, Key, KeyInit};
use sealblk_tests::{Client, ClientOptions, Daemon};
use tempfile::TempDir;

const DISK_BYTES: u64 = 8 << 20;

fn key() -> [u8; 64] {
    std::array::from_fn(|n| (n as u8).wrapping_mul(0x3b) ^ 0xc5)
}

/// A server on a fresh volume in a directory on a real file system, for O_DIRECT.
fn server(sector_bytes: usize, queues: u16) -> (Daemon, TempDir) {
    let directory = TempDir::with_prefix_in("sealblk-textbook-", "/var/tmp").unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::File::create(at("volume")).unwrap().set_len(DISK_BYTES).unwrap();
    let hex: String = key().iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(at("key"), hex + "\n").unwrap();
    let args: Vec<OsString> = vec![
        "--volume".into(),
        at("volume").into(),
        "--key-hex-file".into(),
        at("key").into(),
        "--sector-size".into(),
        sector_bytes.to_string().into(),
        "--queues".into(),
        queues.to_string().into(),
        "--socket".into(),
        at("socket").into(),
    ];
    let program = env!("CARGO_BIN_EXE_sealblk-textbook");
    (Daemon::of_others(program, &at("socket"), args).unwrap(), directory)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n + seed).wrapping_mul(0x9e37_79b1) >> 13) as u8).collect()
}

/// Decrypts what lies on the volume from `offset` (IEEE 1619: C = E(P ^ T) ^ T, T doubled per
/// block).
fn decrypted(volume: &Path, offset: usize, len: usize, sector_bytes: usize) -> Vec<u8> {
    let key = key();
    let (data, tweak) = key.split_at(32);
    let data = Aes256::new(<&Key<Aes256>>::try_from(data).unwrap());
    let tweak = Aes256::new(<&Key<Aes256>>::try_from(tweak).unwrap());
    let mut bytes = std::fs::read(volume).unwrap()[offset..offset + len].to_vec();
    for (index, sector) in bytes.chunks_exact_mut(sector_bytes).enumerate() {
        let number = ((offset + index * sector_bytes) / 512) as u128;
        let mut t = aes::Block::from(number.to_le_bytes());
        tweak.encrypt_block(&mut t);
        let mut t = u128::from_le_bytes(t.into());
        for block in sector.chunks_exact_mut(16) {
            let sealed = u128::from_le_bytes((&*block).try_into().unwrap());
            let mut work = aes::Block::from((sealed ^ t).to_le_bytes());
            data.decrypt_block(&mut work);
            let plain = u128::from_le_bytes(work.into()) ^ t;
            block.copy_from_slice(&plain.to_le_bytes());
            t = (t << 1) ^ ((t >> 127) * 0x87);
        }
    }
    bytes
}

#[test]
fn what_is_written_is_read_back_and_lies_encrypted_on_the_volume() {
    for sector_bytes in [512, 4096] {
        let (daemon, directory) = server(sector_bytes, 1);
        let mut client = Client::simple(daemon.socket()).unwrap();
        assert_eq!(client.capacity_bytes().unwrap(), DISK_BYTES);
        let offset = 5 * 4096;
        let plain = pattern(64 << 10, sector_bytes);
        client.write(offset as u64, &plain).unwrap();
        client.flush().unwrap();
        assert_eq!(client.read(offset as u64, plain.len()).unwrap(), plain);
        let volume = directory.path().join("volume");
        assert_eq!(decrypted(&volume, offset, plain.len(), sector_bytes), plain);
    }
}

#[test]
fn a_request_past_the_end_is_an_error_and_the_next_one_works() {
    let (daemon, _directory) = server(4096, 1);
    let mut client = Client::simple(daemon.socket()).unwrap();
    assert!(client.read(DISK_BYTES, 4096).is_err());
    assert!(client.read(DISK_BYTES - 4096, 4096).is_ok());
}

#[test]
fn every_queue_is_served_and_so_is_the_next_connection() {
    let (daemon, _directory) = server(4096, 2);
    for turn in 0..2 {
        let options = ClientOptions { queues: 2, ..ClientOptions::default() };
        let mut client = Client::connect(daemon.socket(), options).unwrap();
        for queue in 0..2 {
            let plain = pattern(4096, 7 * queue + turn);
            client.fill(0, &plain).unwrap();
            // More than one in flight, and one behind the other.
            for tag in 0..32 {
                client.start_write(queue, 4096 * tag as u64, 0, 4096, tag).unwrap();
            }
            let mut done = 0;
            while done < 32 {
                let completed = client.complete(queue, 1).unwrap();
                assert!(completed.iter().all(|one| one.result == 0));
                done += completed.len();
            }
            assert_eq!(client.read(31 * 4096, 4096).unwrap(), plain);
        }
    }
}
