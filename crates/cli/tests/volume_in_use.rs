//! A volume that somebody holds. A program of its own: a child that another test starts has our open
//! files, and their locks, until it executes its program.
#![expect(clippy::unwrap_used, reason = "all of this is test code")]

use std::process::{Command, Output};

fn sealblk(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sealblk")).args(args).output().unwrap()
}

#[test]
fn a_volume_in_use_is_not_changed_but_may_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "secret").unwrap();
    let key = format!("file:{}", key.display());
    let volume = format!("file:{}", dir.path().join("disk.img").display());
    let run = |args: &[&str]| sealblk(&[args, &["--volume", &volume]].concat());
    let format = ["format", "--key", &key, "--size", "4M", "--kdf", "pbkdf2"];
    assert!(run(&format).status.success());
    let held = sealblk_volume::open(&volume, &sealblk_volume::OpenOptions::default()).unwrap();
    let refused = run(&["repair", "--yes"]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && why.contains("in use"), "{why}");
    assert!(run(&["inspect"]).status.success());
    drop(held);
    assert!(run(&["repair", "--yes"]).status.success());
}
