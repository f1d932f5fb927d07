//! Providers against servers that follow a script.

mod barbican;
mod kmip;
mod replay;
mod server;
mod tls;
mod vault;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Failure;
use crate::patience::Limits;
use crate::{Fetched, KeyErrorKind};

/// For servers that answer: attempts follow each other at once.
fn limits() -> Limits {
    Limits { first_pause: Duration::from_micros(10), ..Limits::default() }
}

/// For servers that don't.
fn impatient() -> Limits {
    let short = Duration::from_millis(40);
    Limits { connect: short, exchange: short, total: 2 * short, first_pause: short }
}

fn secret_file(dir: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.join(name);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
    std::io::Write::write_all(&mut file, content).unwrap();
    path
}

fn passphrase(fetched: Result<Fetched, Failure>) -> String {
    String::from_utf8(fetched.unwrap().passphrase.expose().to_vec()).unwrap()
}

/// The failure's text, if it is of this kind.
fn failed(fetched: Result<Fetched, Failure>, kind: KeyErrorKind) -> String {
    let failure = fetched.unwrap_err();
    assert_eq!(failure.kind, kind, "{}", failure.what);
    failure.what
}
