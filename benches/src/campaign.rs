//! The order of measuring: works one after the other, each in rounds in which all servers take
//! their turn; whoever is first in one round is last in the next.
//!
//! A work in which the first server differs too much from itself gets more rounds, a few.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::compare::{differences, noise, ratios, scaling};
use crate::cpu::{Clocks, Passed};
use crate::machine::SERVER;
use crate::results::{self, CipherClass, Noise, ServerSamples};
use crate::server::{Server, Timing};
use crate::servers::{Kind, Materials};
use crate::status::Status;
use crate::store::Class;
use crate::work::Work;
use crate::workqueue::Confined;

/// In which nobody uses the servers.
const IDLE_WINDOW: Duration = Duration::from_millis(1500);
/// The same on storage in the network, whose libraries do something every few seconds.
const IDLE_WINDOW_NETWORK: Duration = Duration::from_secs(10);
/// What a sample costs beside its time, about.
const SAMPLE_COST: Duration = Duration::from_millis(8);

/// What is measured, and how much of it.
#[derive(Debug)]
pub(crate) struct Campaign {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) works: Vec<Work>,
    /// Each with one queue and with two.
    pub(crate) two_queues: Vec<[Work; 2]>,
    pub(crate) rounds: usize,
    /// On top for a noisy work.
    pub(crate) extra_rounds: usize,
    /// Time for extra rounds, all together.
    pub(crate) extra_time: Duration,
    /// What starting a server costs, about: for the time that is left.
    pub(crate) start_cost: Duration,
    pub(crate) timing: Timing,
    pub(crate) polls: bool,
    pub(crate) noise_limit: f64,
    pub(crate) cipher: CipherClass,
}

impl Campaign {
    fn kinds_for_two(&self) -> Vec<Kind> {
        self.kinds.iter().filter(|kind| kind.has_queue_threads()).cloned().collect()
    }

    /// All samples of all servers, once.
    fn round_cost(&self, servers: usize, works: usize) -> Duration {
        let sample = self.timing.warm_up + self.timing.sample + SAMPLE_COST;
        sample * u32::try_from((servers + 1) * works).unwrap_or(u32::MAX)
    }

    /// How long one class takes, about, without extra rounds.
    pub(crate) fn cost(&self) -> Duration {
        let phase = |kinds: &[Kind], works: usize| {
            if works == 0 || kinds.is_empty() {
                return Duration::ZERO;
            }
            let rounds = u32::try_from(self.rounds).unwrap_or(u32::MAX);
            self.start_cost * u32::try_from(kinds.len()).unwrap_or(u32::MAX)
                + self.round_cost(kinds.len(), works) * rounds
        };
        phase(&self.kinds, self.works.len())
            + phase(&self.kinds_for_two(), 2 * self.two_queues.len())
            + IDLE_WINDOW
    }

    /// Measures everything on one kind of storage.
    pub(crate) fn measure(
        &self,
        class: Class,
        materials: &Materials,
        status: &mut Status,
        extra_left: &mut Duration,
    ) -> Result<results::Class> {
        let run = Run {
            campaign: self,
            class,
            materials,
            clocks: Clocks::default(),
            status,
            extra_left,
            names: RefCell::default(),
        };
        run.all()
    }
}

/// One class being measured.
struct Run<'a> {
    campaign: &'a Campaign,
    class: Class,
    materials: &'a Materials,
    clocks: Clocks,
    status: &'a mut Status,
    extra_left: &'a mut Duration,
    names: RefCell<Vec<results::Server>>,
}

impl Run<'_> {
    fn all(mut self) -> Result<results::Class> {
        let campaign = self.campaign;
        let mut works = Vec::new();
        let mut servers = Vec::new();
        let confined = match self.class {
            Class::Memory => Some(Confined::to(SERVER)?),
            Class::Disk | Class::Zram | Class::Rbd | Class::Iscsi => None,
        };
        if !campaign.works.is_empty() {
            servers = self.start(&campaign.kinds, 1)?;
        }
        for work in &campaign.works {
            works.extend(self.group(&mut servers, std::slice::from_ref(work))?);
        }
        self.rest(&servers)?;
        drop(servers);
        // Two queues have both processors.
        drop(confined);
        if !campaign.two_queues.is_empty() {
            let mut servers = self.start(&campaign.kinds_for_two(), 2)?;
            for pair in &campaign.two_queues {
                let group = self.group(&mut servers, pair)?;
                let Ok([one, mut two]) = <[results::Work; 2]>::try_from(group) else { continue };
                let names = self.names.borrow();
                scaling(self.class.name(), campaign.cipher, &one, &mut two, &names);
                works.extend([one, two]);
            }
        }
        let all: Vec<f64> = works.iter().flat_map(differences).collect();
        let mean = |part: fn(&Noise) -> f64| {
            works.iter().map(|work| part(&work.noise)).sum::<f64>() / works.len().max(1) as f64
        };
        let noise =
            noise(&all, campaign.noise_limit, mean(|noise| noise.steal), mean(|n| n.foreign));
        Ok(results::Class {
            class: self.class.name().into(),
            storage: self.class.description().into(),
            servers: self.names.into_inner(),
            works,
            noise,
        })
    }

    fn start(&mut self, kinds: &[Kind], queues: u16) -> Result<Vec<Server>> {
        ensure!(!kinds.is_empty(), "no server is left to measure");
        let step = format!("{}: starting the servers", self.class.name());
        let mut servers = Vec::new();
        for kind in kinds {
            self.status.show(&step, &kind.name());
            let polls = self.campaign.polls;
            servers.push(Server::start(kind, self.class, self.materials, queues, polls)?);
            self.status.advance(self.campaign.start_cost);
            let mut names = self.names.borrow_mut();
            if names.iter().all(|known| known.id != kind.id()) {
                names.push(results::Server { id: kind.id(), name: kind.name(), idle: None });
            }
        }
        Ok(servers)
    }

    /// Works that are measured in the same rounds.
    fn group(&mut self, servers: &mut [Server], works: &[Work]) -> Result<Vec<results::Work>> {
        let first = servers.first().context("no server")?.kind.id();
        let empty = |id: String| ServerSamples { server: id, samples: Vec::new() };
        let mut measured: Vec<results::Work> = works
            .iter()
            .map(|work| results::Work {
                name: work.name(),
                pattern: work.pattern,
                block_bytes: work.block_bytes,
                depth: work.depth,
                queues: work.queues,
                both_processors: work.both_processors,
                servers: servers.iter().map(|server| empty(server.kind.id())).collect(),
                again: empty(first.clone()),
                ratios: Vec::new(),
                noise: noise(&[], 0.0, 0.0, 0.0),
            })
            .collect();
        let mut passed = vec![Others::default(); works.len()];
        let cost = self.campaign.round_cost(servers.len(), works.len());
        let (mut round, mut limit) = (0, self.campaign.rounds);
        while round < limit {
            self.round(round, limit, servers, works, &mut measured, &mut passed)?;
            self.status.advance(cost);
            round += 1;
            for (work, others) in measured.iter_mut().zip(&passed) {
                let (steal, foreign) = others.parts();
                work.noise = noise(&differences(work), self.campaign.noise_limit, steal, foreign);
            }
            let most = self.campaign.rounds + self.campaign.extra_rounds;
            let noisy = measured.iter().any(|work| work.noise.noisy);
            if round == limit && noisy && limit < most && *self.extra_left >= cost {
                limit += 1;
                *self.extra_left -= cost;
                self.status.extend(cost);
            }
        }
        let names = self.names.borrow();
        for work in &mut measured {
            work.ratios = ratios(self.class.name(), self.campaign.cipher, work, &names);
        }
        Ok(measured)
    }

    fn round(
        &mut self,
        round: usize,
        rounds: usize,
        servers: &mut [Server],
        works: &[Work],
        measured: &mut [results::Work],
        passed: &mut [Others],
    ) -> Result<()> {
        // One turn more than servers: the last is the first server's second.
        for turn in turns(servers.len() + 1, round) {
            let index = if turn < servers.len() { turn } else { 0 };
            let server = servers.get_mut(index).context("no such server")?;
            for ((work, results), others) in
                works.iter().zip(measured.iter_mut()).zip(passed.iter_mut())
            {
                if !server.kind.does(work) {
                    continue;
                }
                // Works of a group are one step: they alternate.
                let name = works.last().map(Work::name).unwrap_or_default();
                let step = format!("{}: {name}", self.class.name());
                let detail = format!("round {} of {rounds}, {}", round + 1, server.kind.name());
                self.status.show(&step, &detail);
                let (sample, during) =
                    server.sample(work, self.campaign.timing, &mut self.clocks)?;
                others.add(&during);
                let cell = results.servers.get_mut(turn).unwrap_or(&mut results.again);
                cell.samples.push(sample);
            }
        }
        Ok(())
    }

    /// What the servers take while nobody uses them.
    fn rest(&mut self, servers: &[Server]) -> Result<()> {
        if servers.is_empty() {
            return Ok(());
        }
        self.status.show(&format!("{}: all servers idle", self.class.name()), "");
        let before = servers.iter().map(Server::used_ns).collect::<Result<Vec<_>>>()?;
        let begin = std::time::Instant::now();
        let window = if self.class.is_network() { IDLE_WINDOW_NETWORK } else { IDLE_WINDOW };
        #[expect(clippy::disallowed_methods, reason = "nothing shall happen for so long")]
        std::thread::sleep(window);
        let window = begin.elapsed();
        self.status.advance(window);
        let mut names = self.names.borrow_mut();
        for (server, before) in servers.iter().zip(before) {
            let used = server.used_ns()?.zip(before).map_or(0, |(now, then)| now - then);
            let idle = server.idle(used, window)?;
            if let Some(known) = names.iter_mut().find(|known| known.id == server.kind.id()) {
                known.idle = idle;
            }
        }
        Ok(())
    }
}

/// Time of all processors that others took.
#[derive(Debug, Clone, Copy, Default)]
struct Others {
    steal_ns: u64,
    foreign_ns: i64,
    total_ns: u64,
}

impl Others {
    fn add(&mut self, passed: &Passed) {
        self.steal_ns += passed.steal_ns;
        self.foreign_ns += passed.foreign_ns;
        self.total_ns += passed.total_ns;
    }

    /// Stolen and foreign parts, 0 to 1.
    fn parts(&self) -> (f64, f64) {
        let total = self.total_ns.max(1) as f64;
        (self.steal_ns as f64 / total, self.foreign_ns.max(0) as f64 / total)
    }
}

/// 0..count, in every other round backwards.
pub(crate) fn turns(count: usize, round: usize) -> Vec<usize> {
    let forwards = 0..count;
    if round.is_multiple_of(2) { forwards.collect() } else { forwards.rev().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_round_goes_backwards() {
        assert_eq!(turns(3, 0), [0, 1, 2]);
        assert_eq!(turns(3, 1), [2, 1, 0]);
    }

    #[test]
    fn others_are_parts_of_all_time() {
        let mut others = Others::default();
        let passed = Passed { steal_ns: 1, foreign_ns: -2, total_ns: 10, ..Default::default() };
        others.add(&passed);
        others.add(&Passed { foreign_ns: 6, ..passed });
        assert_eq!(others.parts(), (0.1, 0.2));
    }
}
