//! The terminal's table of fio inside a guest.

use crate::report::line;
use crate::results::{GuestWork, Spread};

/// Nothing where no guest was measured.
pub(crate) fn print(works: &[GuestWork]) {
    let Some(first) = works.first() else { return };
    line(format!("\n=== fio inside a guest ({}), disk storage", first.accelerator));
    line("Its emulated processor is the limit: servers differ less here than they do");
    let mut last = "";
    for one in works {
        if one.work != last {
            line(format!("\n  {}", one.work));
            line(format!(
                "    {:<36} {:>22} {:>8} {:>8}   {}",
                "", "requests/s", "p50 us", "p99 us", "/ sealblk-plain"
            ));
            last = &one.work;
        }
        let Spread { median, min, max } = one.iops;
        let iops = format!("{median:.0} ({min:.0}..{max:.0})");
        let ratio = one.over_plain.map_or_else(String::new, |ratio| {
            format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max)
        });
        let (p50, p99) = (one.p50_ns.median / 1e3, one.p99_ns.median / 1e3);
        line(format!("    {:<36} {iops:>22} {p50:>8.0} {p99:>8.0}   {ratio}", one.server));
    }
}
