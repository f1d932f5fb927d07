//! fio's command line, and its answer: terse output of version 3, one line per job.
//!
//! Contract: a command prints one line with [`ANSWER`] for each job; if fio fails, a line that
//! [`Figures::parse`] refuses, so that nobody waits for an answer that never comes. Terse rather
//! than JSON, which has some 200 lines per job and a slow serial line to travel.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};

use crate::server::Timing;
use crate::work::{DISK_BYTES, Work};

/// In every line of an answer.
pub(super) const ANSWER: &str = "3;fio-";
/// As many letters as `/dev/vd?` has.
pub(super) const MOST_DISKS: usize = 26;

/// Fields before those of reads: format, version, job, group, error.
const READS: usize = 5;
/// The fields of reads are followed by as many of writes.
const DIRECTION_FIELDS: usize = 41;
/// Of a direction: KiB and KiB/s come before.
const IOPS: usize = 2;
/// Of a direction: where twenty percentiles begin, and end.
const PERCENTILES: std::ops::Range<usize> = 12..32;

/// One turn of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    /// fio's name for it, which comes back with the answer.
    pub(super) name: usize,
    /// The guest's disk, counted from 0.
    pub(super) disk: usize,
}

/// A line of shell that measures a work on one disk after the other.
pub(super) fn command(work: &Work, jobs: &[Job], timing: Timing) -> String {
    let direction = if writes(work) { "randwrite" } else { "randread" };
    let mut line = format!(
        "fio --output-format=terse --terse-version=3 --lat_percentiles=1 --percentile_list=50:99 \
         --thread --ioengine=libaio --direct=1 --norandommap --time_based --runtime={}ms \
         --ramp_time={}ms --size={DISK_BYTES} --bs={} --iodepth={} --rw={direction}",
        timing.sample.as_millis(),
        timing.warm_up.as_millis(),
        work.block_bytes,
        work.depth,
    );
    for Job { name, disk } in jobs {
        let letter = ('a'..='z').nth(*disk).unwrap_or('?');
        let _ = write!(line, " --name={name} --stonewall --filename=/dev/vd{letter}");
    }
    line + " || echo '3;fio-failed'"
}

fn writes(work: &Work) -> bool {
    work.pattern.writes_percent > 0
}

/// What fio measured in one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    /// Requests per second.
    pub(super) iops: f64,
    /// Latencies from submission to completion, which fio gives in whole microseconds.
    pub(super) p50_ns: f64,
    pub(super) p99_ns: f64,
}

impl Figures {
    /// The job's name and its figures.
    pub(super) fn parse(line: &str, work: &Work) -> Result<(usize, Self)> {
        let parse = || {
            let fields: Vec<&str> = line.trim().split(';').collect();
            let base = READS + if writes(work) { DIRECTION_FIELDS } else { 0 };
            let field = |index: usize| fields.get(index).copied().context("a field is missing");
            ensure!(field(0)? == "3", "not terse output of version 3");
            ensure!(field(4)? == "0", "fio's job failed with error {}", field(4)?);
            let percentile = |label: &str| -> Result<f64> {
                let range = base + PERCENTILES.start..base + PERCENTILES.end;
                let fields = fields.get(range).context("percentiles are missing")?;
                let value =
                    fields.iter().find_map(|one| one.strip_prefix(label)?.strip_prefix('='));
                Ok(1e3 * value.context("a percentile is missing")?.parse::<f64>()?)
            };
            let (p50_ns, p99_ns) = (percentile("50.000000%")?, percentile("99.000000%")?);
            let iops = field(base + IOPS)?.parse()?;
            ensure!(iops > 0.0, "no request came back");
            Ok((field(2)?.parse()?, Self { iops, p50_ns, p99_ns }))
        };
        parse().with_context(|| format!("can't use fio's answer {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const READ: &str = "\
        3;fio-3.33;0;0;0;29940;99468;24760;301;4;12062;9.509378;147.582844;252;14395;\
        1274.723168;1909.484586;50.000000%=585;99.000000%=10158;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;\
        0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;256;14401;1284.224371;\
        1915.341009;0;0;0.000000%;0.000000;0.000000;0;0;0;0;0;0;0.000000;0.000000;0;0;\
        0.000000;0.000000;50.000000%=0;99.000000%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;\
        0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0;0;0.000000;0.000000;0;0;0.000000%;\
        0.000000;0.000000;0.000000%;24.333333%;240;0;0;0.0%;0.0%;0.0%;0.0%;0.0%;100.0%;0.0%;\
        0.00%;0.00%;0.00%;0.00%;0.00%;0.00%;0.00%;28.22%;50.70%;0.71%;5.19%;7.47%;6.59%;1.53%;\
        0.00%;0.00%;0.00%;0.00%;0.00%;0.00%;0.00%;0.00%;vda;10522;0;0;0;3871;0;3871;22.17%";
    const WRITE: &str = "\
        3;fio-3.33;1;0;0;0;0;0;0;0;0;0.000000;0.000000;0;0;0.000000;0.000000;50.000000%=0;\
        99.000000%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;\
        0%=0;0%=0;0%=0;0%=0;0;0;0.000000;0.000000;0;0;0.000000%;0.000000;0.000000;33796;\
        112279;27963;301;5;4478;23.053488;170.432042;1;15016;1116.251420;1629.038321;\
        50.000000%=518;99.000000%=9502;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;\
        0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;0%=0;28;15025;1139.509965;1636.573618;0;0;0.000000%;\
        0.000000;0.000000;7.333333%;34.666667%;961;0;0;0.0%;0.0%;0.0%;0.0%;0.0%;100.0%;0.0%;\
        0.38%;0.55%;0.01%;0.00%;0.00%;0.01%;0.05%;48.68%;19.37%;6.81%;8.91%;10.85%;4.16%;\
        0.61%;0.00%;0.00%;0.00%;0.00%;0.00%;0.00%;0.00%;0.00%;vda;0;9881;0;0;0;1680;1680;\
        20.34%";

    fn work(writes: bool) -> Work {
        let fits = |work: &Work| work.depth == 32 && (work.pattern.writes_percent == 100) == writes;
        Work::all(false).into_iter().find(fits).unwrap()
    }

    #[test]
    fn answers_of_fio_3_33_are_understood() {
        let expected = Figures { iops: 24760.0, p50_ns: 585e3, p99_ns: 10158e3 };
        assert_eq!(Figures::parse(READ, &work(false)).unwrap(), (0, expected));
        let expected = Figures { iops: 27963.0, p50_ns: 518e3, p99_ns: 9502e3 };
        assert_eq!(Figures::parse(&format!("{WRITE}\r"), &work(true)).unwrap(), (1, expected));
    }

    #[test]
    fn other_answers_are_refused() {
        let refused = |line: &str, why: &str| {
            let error = format!("{:#}", Figures::parse(line, &work(false)).unwrap_err());
            assert!(error.contains(why), "{error}");
        };
        refused("3;fio-failed", "a field is missing");
        refused("", "not terse output");
        refused(WRITE, "no request came back");
        refused(&READ.replacen("3;", "5;", 1), "not terse output");
        refused(&READ.replacen(";0;0;0;", ";0;0;5;", 1), "failed with error 5");
        refused(&READ.replacen("99.000000%", "98.000000%", 1), "a percentile is missing");
        refused(&READ[..READ.len() / 8], "missing");
    }

    #[test]
    fn a_command_names_each_disk_in_its_turn() {
        let timing =
            Timing { warm_up: Duration::from_millis(250), sample: Duration::from_millis(1500) };
        let jobs = [Job { name: 2, disk: 0 }, Job { name: 1, disk: 1 }];
        let command = command(&work(true), &jobs, timing);
        let ends = " --name=2 --stonewall --filename=/dev/vda --name=1 --stonewall \
                    --filename=/dev/vdb || echo '3;fio-failed'";
        assert!(command.ends_with(ends), "{command}");
        for part in ["--rw=randwrite", "--iodepth=32", "--bs=4096", "=1500ms", "=250ms"] {
            assert!(command.contains(part), "{part} in {command}");
        }
    }
}
