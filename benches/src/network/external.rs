//! The storage's own library without a server: fio's rbd engine, libiscsi's iscsi-perf.
//!
//! A process per sample, on the servers' processor; latencies are the program's own, where it tells
//! any (iscsi-perf doesn't).

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::watch::{Watched, watch};
use crate::cpu::{Clocks, Passed};
use crate::results::{CpuNs, Sample};
use crate::server::Timing;
use crate::servers::Kind;
use crate::store::{Place, Store};
use crate::work::{DISK_BYTES, Work};

/// Bytes of the target's logical blocks.
const BLOCK_BYTES: usize = 512;

/// A program and its storage.
#[derive(Debug)]
pub(crate) enum External {
    Fio { conf: PathBuf, image: String },
    IscsiPerf { url: String },
}

/// What a program says about itself.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Said {
    iops: f64,
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
}

impl External {
    /// None if it is a server.
    pub(crate) fn new(kind: &Kind, store: &Store) -> Option<Self> {
        match (kind, &store.place) {
            (Kind::Fio, Place::Rbd(image)) => Some(Self::Fio {
                conf: image.ceph().conf().to_owned(),
                image: image.name().to_owned(),
            }),
            (Kind::IscsiPerf, Place::Iscsi(target)) => Some(Self::IscsiPerf { url: target.url() }),
            _ => None,
        }
    }

    /// Takes one sample.
    pub(crate) fn sample(
        &self,
        work: &Work,
        timing: Timing,
        clocks: &mut Clocks,
        service: Option<u32>,
    ) -> Result<(Sample, Passed)> {
        let service = service.context("storage without a service")?;
        let ours = std::process::id();
        let measured = self.measured(timing);
        let before = clocks.read(ours, Some(service))?;
        let watched = watch(&mut self.command(work, timing), measured, service)?;
        let mut passed = clocks.read(ours, Some(service))?.since(&before, ours);
        passed.foreign_ns -= watched.all_ns.cast_signed();
        let said = self.read(&watched)?;
        let per_second = |rate: f64| (rate * measured.as_nanos() as f64) as u64;
        passed.cpu = CpuNs {
            server: per_second(watched.server),
            service: per_second(watched.service),
            // Of the whole life of the program: too much by its beginning and end.
            workers: 0,
        };
        let requests = (said.iops * measured.as_secs_f64()) as u64;
        let Said { iops, p50_ns, p99_ns, p999_ns } = said;
        Ok((Sample { iops, p50_ns, p99_ns, p999_ns, requests, cpu: passed.cpu }, passed))
    }

    /// iscsi-perf knows whole seconds only.
    fn measured(&self, timing: Timing) -> Duration {
        match self {
            Self::Fio { .. } => timing.sample,
            Self::IscsiPerf { .. } => {
                Duration::from_secs(timing.sample.as_secs_f64().ceil().max(1.0) as u64)
            }
        }
    }

    fn command(&self, work: &Work, timing: Timing) -> Command {
        match self {
            Self::Fio { conf, image } => {
                let mut command = Command::new("fio");
                command.env("CEPH_CONF", conf);
                // A thread, so that all its processor time is one process's.
                command.args(["--name=bench", "--thread", "--ioengine=rbd", "--clientname=admin"]);
                command.args(["--pool=rbd", &format!("--rbdname={image}")]);
                let direction = match (work.pattern.random, work.pattern.writes_percent) {
                    (true, 0) => "randread",
                    (true, _) => "randwrite",
                    (false, 0) => "read",
                    (false, _) => "write",
                };
                command.args([
                    format!("--rw={direction}"),
                    format!("--bs={}", work.block_bytes),
                    format!("--iodepth={}", work.depth),
                    format!("--size={DISK_BYTES}"),
                    format!("--runtime={}ms", timing.sample.as_millis()),
                    format!("--ramp_time={}ms", timing.warm_up.as_millis()),
                ]);
                command.args(["--time_based", "--norandommap", "--output-format=json"]);
                command.args(["--lat_percentiles=1", "--percentile_list=50:99:99.9"]);
                command
            }
            Self::IscsiPerf { url } => {
                let mut command = Command::new("iscsi-perf");
                if work.pattern.random {
                    command.arg("-r");
                }
                let (depth, blocks) = (work.depth, work.block_bytes / BLOCK_BYTES);
                command.args(["-m", &depth.to_string(), "-b", &blocks.to_string()]);
                command.args(["-t", &self.measured(timing).as_secs().to_string(), url]);
                command
            }
        }
    }

    fn read(&self, watched: &Watched) -> Result<Said> {
        match self {
            Self::Fio { .. } => fio(&watched.output),
            Self::IscsiPerf { .. } => iscsi_perf(&watched.output),
        }
    }
}

/// fio's JSON; warnings may stand before it.
fn fio(output: &str) -> Result<Said> {
    let json = output.get(output.find('{').context("fio said nothing")?..).unwrap_or_default();
    let all: Value = serde_json::from_str(json).context("fio's answer")?;
    let job = all.pointer("/jobs/0").context("no job in fio's answer")?;
    ensure!(job.get("error") == Some(&0.into()), "fio's job failed: {:?}", job.get("error"));
    let number = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_f64);
    for direction in ["read", "write"] {
        let Some(side) = job.get(direction) else { continue };
        let iops = number(side, "/iops").unwrap_or(0.0);
        if iops <= 0.0 {
            continue;
        }
        let at = |percent: &str| -> Result<u64> {
            let value = number(side, &format!("/lat_ns/percentile/{percent}"));
            Ok(value.context("no percentile in fio's answer")? as u64)
        };
        let (p50_ns, p99_ns, p999_ns) = (at("50.000000")?, at("99.000000")?, at("99.900000")?);
        return Ok(Said { iops, p50_ns, p99_ns, p999_ns });
    }
    bail!("fio: no request came back")
}

/// `iops average 19322 (75 MB/s)`, at the end of lines that are written over each other.
fn iscsi_perf(output: &str) -> Result<Said> {
    let words = output.rsplit_once("iops average ").map(|(_, rest)| rest.split_whitespace());
    let iops = words.and_then(|mut words| words.next()?.parse().ok());
    let iops = iops.filter(|&iops| iops > 0.0);
    let iops = iops.with_context(|| format!("iscsi-perf said:\n{output}"))?;
    Ok(Said { iops, p50_ns: 0, p99_ns: 0, p999_ns: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_s_answer_is_of_the_direction_that_did_something() {
        let side = |iops: f64| {
            format!(
                r#"{{"iops":{iops},"lat_ns":{{"percentile":{{"50.000000":5,"99.000000":7,"99.900000":9}}}}}}"#
            )
        };
        let of = |error, read, write| {
            let (read, write) = (side(read), side(write));
            fio(&format!(
                r#"a warning
                {{"jobs":[{{"error":{error},"read":{read},"write":{write}}}]}}"#
            ))
        };
        let expected = Said { iops: 120.5, p50_ns: 5, p99_ns: 7, p999_ns: 9 };
        assert_eq!(of(0, 0.0, 120.5).unwrap(), expected);
        assert_eq!(of(0, 120.5, 0.0).unwrap(), expected);
        assert!(of(5, 120.5, 0.0).is_err());
        assert!(of(0, 0.0, 0.0).is_err());
        assert!(fio("").is_err());
    }

    #[test]
    fn iscsi_perf_s_last_word_counts() {
        let output = "iops current 7 (1 MB/s)\riops average 19322 (75 MB/s)   \n\nfinished.\n";
        assert_eq!(iscsi_perf(output).unwrap().iops, 19322.0);
        assert!(iscsi_perf("connected to").is_err());
        assert!(iscsi_perf("iops average 0 (0 MB/s)").is_err());
    }
}
