//! The machine: what it is, and which processors a thread may use.

use std::fs::read_to_string;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sealblk_tests::run;

use crate::results::{CipherClass, Machine};

/// The client's processor.
pub(crate) const CLIENT: usize = 0;
/// The processor of all servers, of which one has work at a time.
pub(crate) const SERVER: usize = 1;

impl Machine {
    /// Fails on a machine that can't give client and server a processor each.
    pub(crate) fn look() -> Result<Self> {
        let allowed = sched_getaffinity(None)?;
        ensure!(
            allowed.is_set(CLIENT) && allowed.is_set(SERVER),
            "needs processors {CLIENT} and {SERVER}: one for the client, one for the server"
        );
        let cpuinfo = read_to_string("/proc/cpuinfo")?;
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        let has = |flag: &str| flags.split(' ').any(|one| one == flag);
        let cipher_class = match (has("aes"), has("vaes") && has("vpclmulqdq"), has("avx512f")) {
            (false, ..) => CipherClass::None,
            (true, false, _) => CipherClass::AesNi,
            (true, true, false) => CipherClass::Vaes256,
            (true, true, true) => CipherClass::Vaes512,
        };
        let found =
            ["aes", "vaes", "vpclmulqdq", "avx2", "avx512f"].into_iter().filter(|flag| has(flag));
        let numbers: Vec<String> = ["cpu family", "model\t"]
            .into_iter()
            .map(|name| field(name).unwrap_or_else(|| "?".into()))
            .collect();
        let model = field("model name").unwrap_or_else(|| "?".into());
        Ok(Self {
            date: said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            processor: format!("{model} (family {}, model {})", numbers[0], numbers[1]),
            processors: allowed.count() as usize,
            instructions: found.collect::<Vec<_>>().join(" "),
            cipher_class,
            kernel: read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            qemu: said("qemu-storage-daemon", &["--version"]),
            sealblk: said("git", &["describe", "--always", "--dirty"]),
        })
    }
}

/// First line of a program's output; figures without it are still figures.
fn said(program: &str, args: &[&str]) -> String {
    let output = run(program, args).map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").to_owned()
}

/// Ties the calling thread to processors, and with it all that it starts from now on.
pub(crate) fn pin(processors: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    processors.iter().for_each(|&processor| set.set(processor));
    sched_setaffinity(None, &set).with_context(|| format!("can't use processors {processors:?}"))
}
