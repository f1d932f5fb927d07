//! Many idle daemons at once, an encrypted volume each: what a node full of quiet guests pays.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sealblk_tests::{Daemon, TestVolume};

use crate::cpu::process_ns;
use crate::interrupt;
use crate::memory::Resident;
use crate::results::{IdleDaemons, Spread};
use crate::status::Status;

const WINDOW: Duration = Duration::from_secs(5);
const DATA_BYTES: u64 = 16 << 20;

/// Starts `count` and watches them do nothing.
pub(crate) fn measure(count: usize, status: &mut Status) -> Result<IdleDaemons> {
    let mut daemons = Vec::new();
    for number in 0..count {
        interrupt::check()?;
        status.show(&format!("{count} idle daemons"), &format!("starting {}", number + 1));
        let volume = TestVolume::formatted(DATA_BYTES, 4096)?;
        let socket = volume.scratch.file("vu.sock");
        let daemon = Daemon::with_args(&socket, volume.volume_args())
            .with_context(|| format!("idle daemon {}", number + 1))?;
        // In this order: the daemon goes before its volume.
        daemons.push((daemon, volume));
    }
    let used = || daemons.iter().map(|(daemon, _)| process_ns(daemon.pid()?)).sum::<Result<u64>>();
    // Their start is over when nothing moves any more, or never.
    for _ in 0..20 {
        let before = used()?;
        rest(Duration::from_millis(100));
        if used()? == before {
            break;
        }
    }
    status.show(&format!("{count} idle daemons"), "watching");
    let (begin, before) = (Instant::now(), used()?);
    rest(WINDOW);
    let (cpu_ns, window) = (used()? - before, begin.elapsed());
    let residents = daemons
        .iter()
        .map(|(daemon, _)| Resident::of(daemon.pid()?))
        .collect::<Result<Vec<_>>>()?;
    let spread = |part: fn(&Resident) -> u64| {
        let all: Vec<f64> = residents.iter().map(|one| part(one) as f64).collect();
        Spread::of(&all).context("no daemon")
    };
    Ok(IdleDaemons {
        count,
        cpu_ns,
        window_ns: u64::try_from(window.as_nanos())?,
        rss_bytes: spread(|one| one.all)?,
        pss_bytes: spread(|one| one.proportional)?,
    })
}

fn rest(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "nothing shall happen for so long")]
    std::thread::sleep(time);
}
