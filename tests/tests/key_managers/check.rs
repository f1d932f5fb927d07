//! What all key managers are asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{run, sealblk_command};
use serde_json::Value;

/// A secret as it never occurs by chance.
pub(super) const SECRET: [u8; 32] = *b"\x00S3cret-9zz of the key manager\xfe\xff";

/// In lowercase hex, as os-brick has it.
pub(super) fn hex(secret: &[u8]) -> String {
    secret.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file of this content that nobody else may read.
pub(super) fn private(path: &Path, content: &str) -> Result<PathBuf> {
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(path.to_owned())
}

/// What `sealblk key check` says of a key.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) status: i32,
    pub(super) kind: Option<String>,
    /// All that it says, for people.
    pub(super) said: String,
}

pub(super) fn check(managers: &Path, key: &str) -> Result<Verdict> {
    let mut command = sealblk_command()?;
    let output = command
        .args(["key", "check", "--json", "--key", key, "--key-managers"])
        .arg(managers)
        .output()?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    ensure!(answer["key"] == key, "{answer}");
    let status = output.status.code().context("a signal ended it")?;
    ensure!(answer["ok"] == (status == 0), "{answer}");
    let said = format!("{answer:#}{}", String::from_utf8_lossy(&output.stderr));
    for secret in [hex(&SECRET), String::from_utf8_lossy(&SECRET[1..30]).into_owned()] {
        ensure!(!said.contains(&secret), "it shows the secret");
    }
    let kind = answer["kind"].as_str().map(str::to_owned);
    Ok(Verdict { status, kind, said })
}

/// The key can be got, and its passphrase is this one: it opens what the file opens.
pub(super) fn opens(managers: &Path, key: &str, passphrase: &[u8], scratch: &Path) -> Result<()> {
    let verdict = check(managers, key)?;
    ensure!(verdict.status == 0, "{}", verdict.said);
    let (image, file) = (scratch.join("opened.img"), scratch.join("passphrase"));
    fs::write(&file, passphrase)?;
    let mut command = sealblk_command()?;
    command.args(["format", "--size", "4M", "--kdf", "pbkdf2", "--key", key]);
    command.arg("--volume").arg(format!("file:{}", image.display()));
    let output = command.arg("--key-managers").arg(managers).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let opened = cryptsetup_opens(&image, &file);
    fs::remove_file(&image)?;
    opened
}

/// It can't be got: exit status, kind, and what its user is told.
pub(super) fn fails(managers: &Path, key: &str, status: i32, kind: &str, told: &str) -> Result<()> {
    let verdict = check(managers, key)?;
    ensure!(verdict.status == status && verdict.kind.as_deref() == Some(kind), "{verdict:?}");
    ensure!(verdict.said.contains(told), "{verdict:?}");
    ensure!(verdict.said.contains(&format!("key {key}: ")), "{verdict:?}");
    Ok(())
}

/// What a Python program says.
pub(super) fn python(python: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(python);
    let output = command.args(arguments).output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A script of the project's.
pub(super) fn script(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts")).join(name)
}

/// cryptsetup opens the volume with this file.
pub(super) fn cryptsetup_opens(image: &Path, passphrase: &Path) -> Result<()> {
    let option = |text: &'static str| std::ffi::OsStr::new(text);
    let [open, test, key] = ["open", "--test-passphrase", "--key-file"].map(option);
    run("cryptsetup", [open, test, key, passphrase.as_os_str(), image.as_os_str()]).map(drop)
}
