//! Processor time: of a process, of the kernel's own threads, of the whole machine.
//!
//! A process counts with all its threads, those that have ended and its io_uring workers
//! (`iou-wrk`) included: the kernel makes them threads of the process. What kworkers, ksoftirqd or
//! a loop device's thread do belongs to no process; it is summed up apart, whoever it was for. All
//! in nanoseconds, except for the whole machine, which the kernel counts in ticks of 10 ms.

use std::collections::HashMap;
use std::fs::{read_dir, read_to_string};

use anyhow::{Context, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::results::CpuNs;

/// A reading of all clocks.
#[derive(Debug)]
pub(crate) struct Reading {
    server_ns: u64,
    own_ns: u64,
    workers_ns: u64,
    service_ns: u64,
    machine: Ticks,
}

/// What passed between two readings.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passed {
    pub(crate) cpu: CpuNs,
    /// Of all processors, in nanoseconds: the hypervisor gave it to others.
    pub(crate) steal_ns: u64,
    /// Used by nobody whom we know; rounding of ticks can make it negative.
    pub(crate) foreign_ns: i64,
    /// All processors' time, idle or not.
    pub(crate) total_ns: u64,
}

/// The clocks, with the kernel's threads that are known so far.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    /// Whether a process number is a kernel thread's.
    known: HashMap<u32, bool>,
}

impl Clocks {
    /// Reads all for the server with this process number (the benchmark's own for the raw client),
    /// and for the process that keeps the data, if one does.
    pub(crate) fn read(&mut self, server: u32, service: Option<u32>) -> Result<Reading> {
        Ok(Reading {
            server_ns: process_ns(server)?,
            own_ns: process_ns(std::process::id())?,
            workers_ns: self.kernel_threads_ns()?,
            service_ns: service.map_or(Ok(0), process_ns)?,
            machine: Ticks::read()?,
        })
    }

    /// Sum over the kernel's threads; those that come later count from their beginning.
    fn kernel_threads_ns(&mut self) -> Result<u64> {
        let mut sum = 0;
        for entry in read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if !*self.known.entry(pid).or_insert_with(|| is_kernel_thread(pid)) {
                continue;
            }
            // It may have ended in between.
            let text = read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
            sum += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(sum)
    }
}

impl Reading {
    /// From an earlier reading of the same server to this one.
    pub(crate) fn since(&self, before: &Self, server: u32) -> Passed {
        let cpu = CpuNs {
            server: self.server_ns.saturating_sub(before.server_ns),
            workers: self.workers_ns.saturating_sub(before.workers_ns),
            service: self.service_ns.saturating_sub(before.service_ns),
        };
        // The raw client is this process: count it once.
        let is_ours = server == std::process::id();
        let own = if is_ours { 0 } else { self.own_ns.saturating_sub(before.own_ns) };
        let ticks = |get: fn(&Ticks) -> u64| {
            get(&self.machine).saturating_sub(get(&before.machine)) * tick_ns()
        };
        let known = cpu.server + cpu.workers + cpu.service + own;
        Passed {
            cpu,
            steal_ns: ticks(|ticks| ticks.steal),
            foreign_ns: ticks(|ticks| ticks.busy).cast_signed() - known.cast_signed(),
            total_ns: ticks(|ticks| ticks.busy + ticks.idle + ticks.steal),
        }
    }
}

/// Processor time that a process has used so far.
pub(crate) fn process_ns(pid: u32) -> Result<u64> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))
        .and_then(|clock| clock.now())
        .with_context(|| format!("no processor time of process {pid}"))?;
    let (seconds, nanoseconds) = (u64::try_from(clock.tv_sec())?, u64::try_from(clock.tv_nsec())?);
    Ok(seconds * 1_000_000_000 + nanoseconds)
}

/// `PF_KTHREAD` of the kernel's include/linux/sched.h, in proc(5)'s ninth field of stat. The
/// second field, in parentheses, may hold anything.
fn is_kernel_thread(pid: u32) -> bool {
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & 0x0020_0000 != 0)
}

fn tick_ns() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

/// The first line of /proc/stat, all processors together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    idle: u64,
    steal: u64,
}

impl Ticks {
    fn read() -> Result<Self> {
        let text = read_to_string("/proc/stat")?;
        Self::parse(&text).context("/proc/stat is not what proc(5) says")
    }

    /// user nice system idle iowait irq softirq steal
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.lines().next()?.split_whitespace();
        (fields.next()? == "cpu").then_some(())?;
        let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = ticks[..] else {
            return None;
        };
        Some(Self { busy: user + nice + system + irq + softirq, idle: idle + iowait, steal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_time_as_precise_as_a_clock() {
        let pid = std::process::id();
        let before = process_ns(pid).unwrap();
        let mut n = 0_u64;
        while process_ns(pid).unwrap() < before + 100_000 {
            n = std::hint::black_box(n + 1);
        }
        assert!(n > 0);
        assert!(process_ns(u32::MAX / 2 - 1).is_err(), "a process that isn't there has no time");
    }

    #[test]
    fn kernel_threads_are_told_from_processes() {
        assert!(!is_kernel_thread(std::process::id()));
        assert!(!is_kernel_thread(0), "no process has that number");
        // Where process numbers are a container's own there is no kthreadd.
        if read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd") {
            assert!(is_kernel_thread(2));
        }
    }

    #[test]
    fn the_machine_s_time_is_busy_idle_or_stolen() {
        let stat = "cpu  1 2 3 40 50 6 7 8 0 0\ncpu0 1 2 3";
        assert_eq!(Ticks::parse(stat), Some(Ticks { busy: 19, idle: 90, steal: 8 }));
        assert_eq!(Ticks::parse("cpu  1 2 3"), None);
        assert_eq!(Ticks::parse("intr 1"), None);
    }

    #[test]
    fn what_neither_we_nor_the_server_used_is_foreign() {
        let reading = |server_ns, own_ns, workers_ns, busy| Reading {
            server_ns,
            own_ns,
            workers_ns,
            service_ns: server_ns,
            machine: Ticks { busy, idle: 0, steal: 0 },
        };
        let (before, after) = (reading(5, 5, 5, 10), reading(15, 25, 35, 11));
        let other = after.since(&before, 0);
        assert_eq!(other.cpu, CpuNs { server: 10, workers: 30, service: 10 });
        assert_eq!(other.foreign_ns, tick_ns().cast_signed() - 70);
        let ours = after.since(&before, std::process::id());
        assert_eq!(ours.foreign_ns, tick_ns().cast_signed() - 50);
    }
}
