//! The terminal's table of fio inside a guest.

use crate::report::line;
use crate::results::{GuestWork, Spread};

/// Nothing where no guest was measured. From `noise_limit` on a difference of a server to itself
/// counts as noise (0.05 = 5 %).
pub(crate) fn print(works: &[GuestWork], noise_limit: f64) {
    let Some(first) = works.first() else { return };
    line(format!("\n=== fio inside a guest ({}), disk storage", first.accelerator));
    line(
        "Samples of 1 s at least. The guest's emulated processor is the limit: judge no server by it",
    );
    for servers in works.chunk_by(|one, next| one.work == next.work) {
        let Some(first) = servers.first() else { continue };
        let noise = noise(servers).map_or_else(String::new, |noise| {
            let mark = if noise > noise_limit { "   NOISY" } else { "" };
            format!("   [A/A {:.1} %]{mark}", noise * 100.0)
        });
        line(format!("\n  {}{noise}", first.work));
        line(format!(
            "    {:<36} {:>22} {:>8} {:>8}   {}",
            "", "requests/s", "p50 us", "p99 us", "/ sealblk-plain"
        ));
        servers.iter().for_each(print_server);
    }
}

fn print_server(one: &GuestWork) {
    let Spread { median, min, max } = one.iops;
    let iops = format!("{median:.0} ({min:.0}..{max:.0})");
    let ratio = one.over_plain.map_or_else(String::new, |ratio| {
        format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max)
    });
    let (p50, p99) = (one.p50_ns.median / 1e3, one.p99_ns.median / 1e3);
    line(format!("    {:<36} {iops:>22} {p50:>8.0} {p99:>8.0}   {ratio}", one.server));
}

/// How far the medians of the first server's two turns differ.
fn noise(servers: &[GuestWork]) -> Option<f64> {
    let again = servers.iter().find(|one| one.server.ends_with(" again"))?;
    Some((again.iops.median / servers.first()?.iops.median - 1.0).abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(server: &str, iops: f64) -> GuestWork {
        let spread = |value| Spread { median: value, min: value, max: value };
        GuestWork {
            work: "4 KiB random read, qd 1".into(),
            server: server.into(),
            iops: spread(iops),
            p50_ns: spread(5e5),
            p99_ns: spread(1e6),
            over_plain: None,
            accelerator: "tcg".into(),
        }
    }

    #[test]
    fn noise_is_between_the_turns_of_the_first_server() {
        let servers = [work("a", 2000.0), work("b", 9000.0), work("a again", 1500.0)];
        assert_eq!(noise(&servers), Some(0.25));
        assert_eq!(noise(&servers[..2]), None);
    }
}
