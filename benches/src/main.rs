//! `make bench`: what encryption costs, with one client for every server.
//!
//! Every server is pinned to one processor and the client to another; servers take turns within a
//! round, and ratios compare samples of the same round. docs/benchmarks.md tells the method, its
//! limits and the last results.

mod args;
mod campaign;
mod compare;
mod cpu;
mod guest;
mod idle_daemons;
mod interrupt;
mod layers;
mod load;
mod machine;
mod memory;
mod network;
mod plots;
mod raw;
mod report;
mod results;
mod rotation;
mod server;
mod servers;
mod startup;
mod statistics;
mod status;
mod store;
mod targets;
mod work;
mod workqueue;
mod zram;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::args::Args;
use crate::campaign::Campaign;
use crate::machine::{CLIENT, SERVER, pin};
use crate::network::cluster::Cluster;
use crate::results::{FORMAT, Layers, Machine, Plan, Results};
use crate::server::Timing;
use crate::servers::Materials;
use crate::status::Status;
use crate::store::Class;
use crate::work::Work;

/// A sample's beginning, which doesn't count: processors and pollers wake up.
const WARM_UP: Duration = Duration::from_millis(50);
/// From here on the same server differs too much from itself.
const NOISE_LIMIT: f64 = 0.05;
/// For extra rounds, all together.
const EXTRA_TIME: Duration = Duration::from_secs(90);
/// What the layers take, about.
const LAYERS_COST: Duration = Duration::from_secs(100);
/// What starting a server costs, about; on storage in the network with its image or target.
const START_COST: Duration = Duration::from_secs(2);
const START_COST_NETWORK: Duration = Duration::from_secs(6);
/// What an idle daemon's start costs, about.
const IDLE_DAEMON_COST: Duration = Duration::from_millis(120);

fn main() -> Result<()> {
    let args = Args::read()?;
    let json = args.output.clone().unwrap_or_else(|| default_output(&args));
    let html = json.with_extension("html");
    if args.report {
        plots::from_file(&json, &html)?;
        report::line(format!("Report: {}", html.display()));
        return Ok(());
    }
    interrupt::listen()?;
    let machine = Machine::look()?;
    pin(&[CLIENT])?;
    let (campaign, notes) = campaign(&args, &machine);
    let plan = Plan {
        rounds: campaign.rounds,
        extra_rounds: campaign.extra_rounds,
        seconds: args.seconds(),
        warm_up_seconds: WARM_UP.as_secs_f64(),
        full: args.full,
        client_polls: campaign.polls,
        client_processor: CLIENT,
        server_processor: SERVER,
        noise_limit: NOISE_LIMIT,
    };
    let mut results = Results {
        format: FORMAT,
        machine,
        plan,
        classes: Vec::new(),
        layers: Layers::default(),
        guest: Vec::new(),
        rotations: Vec::new(),
        idle_daemons: None,
    };
    let measured = measure(&args, &campaign, notes, &mut results);
    // What was measured before something failed is worth something.
    if measured.is_ok() || !results.classes.is_empty() || !results.rotations.is_empty() {
        report::print(&results);
        write(&results, &json).with_context(|| json.display().to_string())?;
        plots::write_html(&results, &html)?;
        report::line(format!("All figures: {}\nReport: {}", json.display(), html.display()));
    }
    measured
}

/// What to measure, and what can't be.
fn campaign(args: &Args, machine: &Machine) -> (Campaign, Vec<String>) {
    let mut notes = Vec::new();
    let mut kinds = args.kinds();
    kinds.retain(|kind| match kind.missing() {
        Some(why) => {
            notes.push(format!("without {}: {why}", kind.name()));
            false
        }
        None => true,
    });
    let mut works = match args.network() {
        Some(_) => Work::network(),
        None => Work::all(args.full),
    };
    works.retain(|work| work.is_wanted(&args.work));
    let mut two_queues = Work::two_queues(args.full);
    two_queues.retain(|pair| !args.one_queue && pair.iter().any(|one| one.is_wanted(&args.work)));
    let campaign = Campaign {
        kinds,
        works,
        two_queues,
        rounds: args.rounds(),
        extra_rounds: args.extra_rounds(),
        extra_time: EXTRA_TIME,
        start_cost: if args.network().is_some() { START_COST_NETWORK } else { START_COST },
        timing: Timing { warm_up: WARM_UP, sample: Duration::from_secs_f64(args.seconds()) },
        polls: !args.sleeping_client,
        noise_limit: NOISE_LIMIT,
        cipher: machine.cipher_class,
    };
    (campaign, notes)
}

fn measure(
    args: &Args,
    campaign: &Campaign,
    notes: Vec<String>,
    results: &mut Results,
) -> Result<()> {
    let idle = args.idle_daemons.unwrap_or(0);
    let layers_cost = if args.no_layers { Duration::ZERO } else { LAYERS_COST };
    let classes = u32::try_from(args.class.len())?;
    let servers = if args.rotation { Duration::ZERO } else { campaign.cost() * classes };
    let rotation = if args.no_rotation { Duration::ZERO } else { rotation::COST * classes };
    let planned = servers
        + rotation
        + IDLE_DAEMON_COST * u32::try_from(idle)?
        + layers_cost
        + if args.guest { guest::cost(campaign) } else { Duration::ZERO };
    let mut status = Status::new(planned);
    workqueue::restore();
    let removed = zram::remove_left_overs();
    if removed > 0 {
        status.say(&format!("removed {removed} zram devices that a killed run left"));
    }
    notes.iter().for_each(|note| status.say(note));
    let materials = Materials::new()?;
    let _cluster = match args.network() {
        Some(Class::Rbd) => {
            status.show("rbd: starting a Ceph cluster", "");
            Some(Cluster::start()?)
        }
        _ => None,
    };
    if !args.no_layers {
        results.layers = measure_layers(&mut status)?;
        status.advance(layers_cost);
    }
    let mut extra_left = campaign.extra_time;
    for &class in args.class.iter().filter(|_| !args.rotation) {
        results.classes.push(campaign.measure(class, &materials, &mut status, &mut extra_left)?);
    }
    for &class in args.class.iter().filter(|_| !args.no_rotation) {
        rotation::measure(class, &materials, &mut status, &mut results.rotations)?;
    }
    if idle > 0 {
        results.idle_daemons = Some(idle_daemons::measure(idle, &mut status)?);
    }
    if args.guest {
        results.guest = guest::measure(campaign, &materials, &mut status)?;
    }
    status.clear();
    status.say(&format!("measured for {} s", status.elapsed().as_secs()));
    Ok(())
}

/// The cipher and the engine, each by itself.
fn measure_layers(status: &mut Status) -> Result<Layers> {
    let cipher = layers::cipher::measure(layers::cipher::Plan::default(), |what| {
        status.show("cipher", what);
    })?;
    let engine = layers::engine::measure(&layers::engine::Plan::usual(SERVER, CLIENT), |what| {
        status.show("engine", what);
    })?;
    Ok(Layers { cipher, engine })
}

/// Runs on storage in the network have files of their own: they are `make` targets of their own.
fn default_output(args: &Args) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target").into(), PathBuf::from);
    let name = args.network().map_or("result", Class::name);
    target.join(format!("bench/{name}.json"))
}

fn write(results: &Results, path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut text = serde_json::to_string_pretty(results)?;
    text.push('\n');
    Ok(std::fs::write(path, text)?)
}
