//! Programs: ours (built once, or found in `SEALBLK_BIN_DIR`) and the machine's; the known answers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};

/// Runs a program to its end; its output if it succeeded, else an error that holds it.
pub fn run<I, S>(program: impl AsRef<OsStr>, args: I) -> Result<Output>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("can't run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where our own programs are. Whoever starts many test binaries builds once and says where.
fn bin_dir() -> Result<&'static Path> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build = || -> Result<PathBuf> {
        if let Some(dir) = std::env::var_os("SEALBLK_BIN_DIR") {
            return Ok(dir.into());
        }
        let packages = ["-p", "sealblk-backend", "-p", "sealblk-cli"];
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--profile", "test-fast"])
            .args(packages)
            .current_dir(root())
            .status()
            .context("can't run cargo")?;
        ensure!(status.success(), "building sealblkd and sealblk failed");
        let target = std::env::var_os("CARGO_TARGET_DIR");
        Ok(target.map_or_else(|| root().join("target"), PathBuf::from).join("test-fast"))
    };
    match DIR.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
        Ok(dir) => Ok(dir),
        Err(error) => bail!("{error}"),
    }
}

/// The daemon's path.
pub fn sealblkd_program() -> Result<PathBuf> {
    Ok(bin_dir()?.join("sealblkd"))
}

/// The agent's path.
pub(crate) fn agent_program() -> Result<PathBuf> {
    Ok(bin_dir()?.join("sealblk-agent"))
}

/// The operator's command, ready for arguments.
pub fn sealblk_command() -> Result<Command> {
    let mut command = Command::new(bin_dir()?.join("sealblk"));
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs the operator's command; fails if it does.
pub fn sealblk<I, S>(args: I) -> Result<Output>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    run(bin_dir()?.join("sealblk"), args)
}

/// A file of the known answers.
pub fn kat(name: &str) -> PathBuf {
    root().join("tests/kat").join(name)
}

/// Unpacks a known answer `name` (without `.xz`) into `directory`.
pub fn unpack_kat(name: &str, directory: &Path) -> Result<PathBuf> {
    let target = directory.join(name);
    let output = run("xz", [OsStr::new("-dkc"), kat(&format!("{name}.xz")).as_os_str()])?;
    std::fs::write(&target, output.stdout)?;
    Ok(target)
}
