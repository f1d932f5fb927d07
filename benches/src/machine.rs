//! The machine: what it is, which processor a process may use, how much of it a process has used.

use std::fs::read_to_string;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sealblk_tests::run;

/// The client's processor.
pub(crate) const CLIENT: usize = 0;
/// The processor of all servers, of which one has work at a time.
pub(crate) const SERVER: usize = 1;

/// Where the figures come from.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    /// What of the instruction set AES-XTS can use.
    pub(crate) instructions: String,
    pub(crate) kernel: String,
    pub(crate) qemu: String,
    pub(crate) commit: String,
}

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
        let found = ["aes", "vaes", "vpclmulqdq", "avx2", "avx512f"]
            .into_iter()
            .filter(|flag| flags.split(' ').any(|one| one == *flag));
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
            kernel: read_to_string("/proc/sys/kernel/osrelease")?.trim().into(),
            qemu: said("qemu-storage-daemon", &["--version"]),
            commit: said("git", &["describe", "--always", "--dirty"]),
        })
    }
}

/// First line of a program's output; figures without it are still figures.
fn said(program: &str, args: &[&str]) -> String {
    let output = run(program, args).map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").to_owned()
}

/// Ties the calling thread to a processor, and with it all that it starts from now on.
pub(crate) fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).with_context(|| format!("can't use processor {processor}"))
}

/// Processor time that a process has used so far: user and system, all its threads, those that
/// have ended and the kernel's io_uring workers among them (they are threads of the process).
/// Counted in ticks of 10 ms.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let text = read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = ticks(&text).with_context(|| format!("/proc/{pid}/stat: {text}"))?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(Duration::from_nanos(ticks * (1_000_000_000 / per_second)))
}

/// utime and stime, fields 14 and 15 of proc(5)'s stat. The second field, in parentheses, may hold
/// anything.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_user_and_system() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 31 11 0 0 20 0 1 0 99";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("12 (a) S 1 2"), None);
    }

    #[test]
    fn a_busy_process_uses_time() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        let mut n = 0_u64;
        while cpu_time(pid).unwrap() < before + Duration::from_millis(20) {
            n = std::hint::black_box(n + 1);
        }
        assert!(n > 0);
    }
}
