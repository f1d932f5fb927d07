//! Threads of this process: finding them by name, tying them to a processor, their processor time.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

/// A thread of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thread(Pid);

impl Thread {
    /// All threads that are named so.
    pub(crate) fn named(name: &str) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc/self/task")? {
            let path = entry?.path();
            // A thread may end meanwhile.
            let Ok(comm) = std::fs::read_to_string(path.join("comm")) else { continue };
            if comm.trim_end() == name {
                let tid = path.file_name().and_then(|tid| tid.to_str()?.parse().ok());
                found.push(Self(tid.and_then(Pid::from_raw).context("/proc/self/task")?));
            }
        }
        Ok(found)
    }

    /// The same thread.
    pub(crate) fn is(self, other: Self) -> bool {
        self.0 == other.0
    }

    /// Ties it to a processor.
    pub(crate) fn pin(self, processor: usize) -> Result<()> {
        pin(Some(self.0), processor)
    }

    /// Processor time it has used, to the nanosecond.
    pub(crate) fn time(self) -> Result<Duration> {
        // A thread's clock: the complement of its id, and CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED
        // (include/linux/posix-timers_types.h).
        let clock = (!self.0.as_raw_nonzero().get() << 3) | 6;
        Ok(clock_gettime(ClockId::from_raw(clock))?.into())
    }
}

/// Ties the calling thread to a processor.
pub(crate) fn pin_this(processor: usize) -> Result<()> {
    pin(None, processor)
}

fn pin(thread: Option<Pid>, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(thread, &set).with_context(|| format!("can't use processor {processor}"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_s_time_is_its_own() {
        let (go, gone) = channel::<()>();
        let (report, done) = channel();
        let busy = std::thread::Builder::new().name("bench-busy".into()).spawn(move || {
            let mut n = 0u64;
            for _ in 0..10_000_000 {
                n = std::hint::black_box(n + 1);
            }
            report.send(()).unwrap();
            gone.recv().ok();
        });
        done.recv().unwrap();
        let [thread] = Thread::named("bench-busy").unwrap()[..] else { panic!("one such thread") };
        let once = thread.time().unwrap();
        assert!(once > Duration::from_micros(100), "{once:?}");
        assert!(once < Duration::from_secs(60), "{once:?}");
        drop(go);
        busy.unwrap().join().unwrap();
    }
}
