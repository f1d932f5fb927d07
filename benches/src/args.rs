//! The command line.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::servers::Kind;
use crate::store::Class;

/// Measures sealblk, encrypted and plain, beside qemu-storage-daemon and others.
#[derive(Debug, Parser)]
#[command(name = "sealblk-bench", version)]
pub(crate) struct Args {
    /// Storage to measure on; rbd and iscsi each alone [default: disk,memory]
    #[arg(long, value_enum, value_name = "CLASS", value_delimiter = ',')]
    pub(crate) class: Vec<Class>,

    /// Rounds: every server is measured once in each [default: 5]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,

    /// Rounds that a work may get on top when a server differs too much from itself [default: 3]
    #[arg(long, value_name = "N")]
    extra_rounds: Option<usize>,

    /// Length of one sample in seconds [default: 0.25; on rbd and iscsi 0.5]
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,

    /// Three rounds of at most 0.25 s and none on top: a first look
    #[arg(long, conflicts_with_all = ["full", "rounds", "extra_rounds", "seconds"])]
    quick: bool,

    /// Everything: all depths, 1 MiB requests, mixed work at each depth, 100 idle daemons; about
    /// half an hour. On rbd and iscsi: both sector sizes
    #[arg(long)]
    pub(crate) full: bool,

    /// Only works whose name contains one of these, e.g. `random read, qd 32`; repeatable
    #[arg(long, value_name = "FILTER")]
    pub(crate) work: Vec<String>,

    /// Only servers whose id contains one of these, e.g. `sealblk,raw` [ids: sealblk-4096,
    /// sealblk-512, sealblk-plain, qemu-plain-io_uring, qemu-plain-native, qemu-luks-io_uring,
    /// qemu-luks-native, textbook-4096, raw; on rbd and iscsi: sealblk-..., qemu-plain, qemu-luks,
    /// qemu-librbd-luks, fio-rbd, iscsi-perf]
    #[arg(long, value_name = "SERVERS", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// Another vhost-user-blk server, e.g. `mine=/opt/mine --sock {socket} --file {image}`
    /// ({queues} too); repeatable
    #[arg(long, value_name = "NAME=COMMAND", value_parser = Kind::other)]
    pub(crate) server: Vec<Kind>,

    /// The client sleeps until it is woken, instead of polling for completions [always on rbd and
    /// iscsi]
    #[arg(long)]
    pub(crate) sleeping_client: bool,

    /// No works with two queues
    #[arg(long)]
    pub(crate) one_queue: bool,

    /// Also start N idle encrypted daemons and see what they take [default with --full: 100]
    #[arg(long, value_name = "N")]
    pub(crate) idle_daemons: Option<usize>,

    /// fio inside a QEMU guest, on its own unless --class or --full asks for more; some 4 minutes,
    /// samples of at least 1 s [included in --full]
    #[arg(long)]
    pub(crate) guest: bool,

    /// Only rotations of a volume's key (on --class); otherwise they come last, some 2 minutes per class
    #[arg(long, conflicts_with_all = ["guest", "full", "only_layers", "no_rotation"])]
    pub(crate) rotation: bool,

    /// No rotations
    #[arg(long)]
    pub(crate) no_rotation: bool,

    /// Not the cipher and the engine by themselves
    #[arg(long)]
    pub(crate) no_layers: bool,

    /// Only the cipher and the engine by themselves
    #[arg(long, conflicts_with = "no_layers")]
    pub(crate) only_layers: bool,

    /// Measure nothing: draw the report of the results that are there already
    #[arg(long)]
    pub(crate) report: bool,

    /// Where the results go as JSON (and the report, as .html) [default: bench/result.json in cargo's target
    /// directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

impl Args {
    /// From the process's arguments.
    pub(crate) fn read() -> Result<Self> {
        let mut args = Self::parse();
        ensure!(args.rounds() > 0, "--rounds must be at least 1");
        let seconds = args.seconds();
        ensure!(seconds > 0.0 && seconds <= 600.0, "--seconds must be in 0..600");
        if args.class.iter().any(|class| class.is_network()) {
            ensure!(args.class.len() == 1, "rbd and iscsi are measured alone");
            ensure!(!args.guest && !args.rotation, "rbd and iscsi: servers only");
            (args.no_layers, args.no_rotation, args.one_queue) = (true, true, true);
            (args.sleeping_client, args.idle_daemons) = (true, Some(0));
            return Ok(args);
        }
        let guest_alone = args.guest && !args.full && args.class.is_empty();
        args.no_layers |= (guest_alone && !args.only_layers) || args.rotation;
        args.no_rotation |= args.only_layers || guest_alone;
        if args.class.is_empty() && !args.only_layers && !guest_alone {
            args.class = vec![Class::Disk, Class::Memory];
        }
        args.guest |= args.full && !args.only_layers;
        if args.full && args.idle_daemons.is_none() {
            args.idle_daemons = Some(100);
        }
        Ok(args)
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 })
    }

    pub(crate) fn extra_rounds(&self) -> usize {
        self.extra_rounds.unwrap_or(if self.quick { 0 } else { 3 })
    }

    /// Length of a sample.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.network().is_some() && !self.quick { 0.5 } else { 0.25 })
    }

    /// The kind of storage in the network that is measured, if one is.
    pub(crate) fn network(&self) -> Option<Class> {
        self.class.first().copied().filter(|class| class.is_network())
    }

    /// The servers to measure, in their order.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let wanted = |kind: &Kind| {
            self.only.is_empty() || self.only.iter().any(|part| kind.id().contains(part.as_str()))
        };
        let class = self.network().unwrap_or(Class::Disk);
        let known = Kind::for_class(class, self.full);
        known.into_iter().chain(self.server.iter().cloned()).filter(wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn storage_in_the_network_has_servers_and_samples_of_its_own() {
        let of = |args: &[&str]| Args::parse_from(["sealblk-bench"].iter().chain(args));
        let ids = |args: &[&str]| of(args).kinds().iter().map(Kind::id).collect::<Vec<_>>();
        assert_eq!(ids(&["--class=rbd", "--only=fio,512"]), ["fio-rbd"]);
        assert_eq!(ids(&["--class=rbd", "--full", "--only=fio,512"]), ["sealblk-512", "fio-rbd"]);
        assert!(ids(&["--class=iscsi"]).contains(&"iscsi-perf".to_owned()));
        let lengths = |args: &[&str]| (of(args).rounds(), of(args).seconds());
        assert_eq!(lengths(&["--class=iscsi"]), (5, 0.5));
        assert_eq!(lengths(&["--class=iscsi", "--quick"]), (3, 0.25));
        assert_eq!(lengths(&["--class=disk"]), (5, 0.25));
        assert_eq!(lengths(&["--class=rbd", "--rounds=2", "--seconds=2"]), (2, 2.0));
    }

    #[test]
    fn only_some_servers_are_measured() {
        let of = |args: &[&str]| {
            let args = Args::parse_from(["sealblk-bench"].iter().chain(args));
            args.kinds().iter().map(Kind::id).collect::<Vec<_>>()
        };
        assert_eq!(of(&["--only", "sealblk-4096,raw"]), ["sealblk-4096", "raw"]);
        assert_eq!(of(&[]).len(), Kind::known().len());
        let other = "mine=serve {socket} {image}";
        assert_eq!(of(&["--server", other, "--only", "mine"]), ["mine"]);
    }
}
