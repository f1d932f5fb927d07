//! The iSCSI driver against a real target: `tgtd`, which `make setup` installs.
#![cfg(feature = "iscsi")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod loss;
mod proxy;
mod reserve;
mod rig;
mod target;

use std::time::Duration;

use rig::{Rig, STEP};
use sealblk_block::ErrorKind;
use sealblk_volume::{OpenOptions, conformance, open};
use target::{Like, Target, USER};

fn patient() -> OpenOptions {
    OpenOptions { lock_wait: Duration::from_secs(10), ..OpenOptions::default() }
}

#[test]
fn a_unit_conforms() {
    let target = Target::new(Like::default());
    let uri = target.uri();
    conformance::run(&|| open(&uri, &patient()).unwrap());
    assert!(!open(&uri, &patient()).unwrap().geometry().discard);
}

#[test]
fn a_thin_unit_with_large_blocks_and_header_digests_conforms() {
    let target = Target::new(Like { block_bytes: 4096, thin: true, ..Like::default() });
    let uri = format!("{}?header_digest=crc32c", target.uri());
    conformance::run(&|| open(&uri, &patient()).unwrap());
    let geometry = open(&uri, &patient()).unwrap().geometry();
    assert_eq!((geometry.block_bytes, geometry.size_bytes), (4096, 16 << 20));
    assert!(geometry.discard);
}

#[test]
fn a_unit_behind_chap_conforms() {
    let target = Target::new(Like { chap: true, thin: true, ..Like::default() });
    let secret = target.dir.path().join("secret");
    let uri = target.uri().replace("://", &format!("://{USER}@"));
    let uri = format!("{uri}?secret=file:{}", secret.display());
    conformance::run(&|| open(&uri, &patient()).unwrap());
}

fn refusal(uri: &str) -> (ErrorKind, String) {
    let error = open(uri, &OpenOptions::default()).err().expect("it opened");
    assert!(!error.to_string().contains(target::SECRET), "{error}");
    (error.kind, sealblk_block::in_one_line(&error))
}

#[test]
fn what_cannot_be_opened_says_why() {
    let target = Target::new(Like { chap: true, ..Like::default() });
    let wrong = target.dir.path().join("wrong");
    std::fs::write(&wrong, "not the secret").unwrap();
    let (kind, text) = refusal(&target.uri());
    assert_eq!(kind, ErrorKind::Permission, "{text}");
    assert!(text.contains("without CHAP") && text.contains(&target.name()), "{text}");

    let with = |user: &str, secret: &str| {
        let uri = target.uri().replace("://", &format!("://{user}@"));
        format!("{uri}?secret=file:{}/{secret}", target.dir.path().display())
    };
    let (kind, text) = refusal(&with(USER, "wrong"));
    assert_eq!(kind, ErrorKind::Permission, "{text}");
    for part in [USER, &target.name(), "compare user and secret"] {
        assert!(text.contains(part), "{text}");
    }
    let (kind, text) = refusal(&with(USER, "missing"));
    assert_eq!(kind, ErrorKind::NotFound, "{text}");
    assert!(text.contains("CHAP secret"), "{text}");

    let right = with(USER, "secret");
    let (kind, text) = refusal(&right.replace("/1?", "/7?"));
    assert_eq!(kind, ErrorKind::NotFound, "{text}");
    let (kind, text) = refusal(&right.replace("sealblk:", "other:"));
    assert_eq!(kind, ErrorKind::NotFound, "{text}");
    let (_, text) = refusal(&right.replace("/1?", "/0?"));
    assert!(text.contains("no disk"), "{text}");

    let port = target.port;
    let uri = target.uri();
    drop(target);
    let (kind, text) = refusal(&uri);
    assert_eq!(kind, ErrorKind::Io, "{text}");
    for part in [&format!(":{port}"), "refused", "is the target running"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_protected_unit_is_for_reading_only() {
    let target = Target::new(Like { read_only: true, ..Like::default() });
    let (kind, text) = refusal(&target.uri());
    assert_eq!(kind, ErrorKind::Permission, "{text}");
    let reader = OpenOptions { read_only: true, ..OpenOptions::default() };
    let mut rig = Rig::new(&target.uri(), &reader, 1);
    assert!(rig.volume.geometry().read_only);
    let second = open(&target.uri(), &reader).unwrap();
    assert!(second.write_at(0, b"x").is_err());
    let (write, read) = (rig.write(0, 0), rig.read(0, 0));
    assert_eq!(rig.run(write), Err(libc::EROFS));
    assert_eq!(rig.run(read), Ok(STEP as u32));
}

#[test]
fn a_unit_is_held_exclusively_on_this_host() {
    let target = Target::new(Like::default());
    let held = open(&target.uri(), &OpenOptions::default()).unwrap();
    for read_only in [false, true] {
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let error = open(&target.uri(), &options).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    }
    drop(held);
    open(&target.uri(), &patient()).unwrap();
}

/// Also proves the layout of libiscsi's structures: the errno comes from the sense data.
#[test]
fn what_lies_behind_the_end_is_refused_by_the_target() {
    let target = Target::new(Like::default());
    let mut rig = Rig::new(&target.uri(), &patient(), 1);
    let size = rig.volume.geometry().size_bytes;
    let (write, read) = (rig.write(0, size), rig.read(0, size));
    assert_eq!(rig.run(write), Err(libc::ENOSPC));
    assert_eq!(rig.run(read), Err(libc::EIO));
    let ok = rig.write(0, 0);
    assert_eq!(rig.run(ok), Ok(STEP as u32), "the session lives on");
}
