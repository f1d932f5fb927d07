//! The iSCSI driver against a real target: `tgtd`, which `make setup` installs.
#![cfg(feature = "iscsi")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod target;

use std::time::Duration;

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
