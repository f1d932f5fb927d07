//! `GET /metrics` of the agent: what all daemons count, on one page, and its own counters.
//!
//! Contract: Prometheus' text format (version 0.0.4). Each family is there once, with all its
//! samples together; a daemon's samples have the label `instance` in front, the server's UUID. (Set
//! `honor_labels: true` in the scrape configuration, or it becomes `exported_instance`.) A daemon that
//! doesn't answer is missing, and counted.
//!
//! Invariant: one page at a time is made, and a client that is slow costs nobody else anything.

mod page;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use sealblk_api::METRICS_PATH;

use self::page::{Page, label};
use super::counters::Counters;
use super::http;
use super::node::Node;
use super::rotations::Rotations;

/// Clients at once.
const MAX_CLIENTS: usize = 8;
/// How long one may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest request, in bytes.
const MAX_REQUEST: u64 = 8 << 10;

/// What is told.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) node: Arc<Node>,
    pub(super) rotations: Arc<Rotations>,
    pub(super) counters: Arc<Counters>,
}

impl Metrics {
    /// Answers for as long as the process lives.
    pub(super) fn serve(self: Arc<Self>, listener: &TcpListener) {
        let clients = Arc::new(AtomicUsize::new(0));
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                super::host::pause();
                continue;
            };
            if clients.fetch_add(1, SeqCst) >= MAX_CLIENTS {
                clients.fetch_sub(1, SeqCst);
                continue;
            }
            let (metrics, clients) = (self.clone(), clients.clone());
            let spawned = std::thread::Builder::new().name("metrics".into()).spawn(move || {
                if let Err(error) = metrics.answer(&stream) {
                    tracing::debug!(%error, "a scrape broke off");
                }
                clients.fetch_sub(1, SeqCst);
            });
            if let Err(error) = spawned {
                tracing::warn!(%error, "cannot start a thread for a scrape");
            }
        }
    }

    fn answer(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut request = Vec::new();
        let mut piece = [0; 1024];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            let len = (&mut stream).take(MAX_REQUEST).read(&mut piece)?;
            request.extend_from_slice(&piece[..len]);
            if len == 0 || request.len() as u64 > MAX_REQUEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let mut words = line.split(|byte| *byte == b' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (status, body) = match (method, path) {
            (b"GET", path) if path == METRICS_PATH.as_bytes() => ("200 OK", self.page()),
            (b"GET", _) => ("404 Not Found", "there is /metrics\n".to_owned()),
            _ => ("405 Method Not Allowed", "GET, please\n".to_owned()),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n\
             {body}",
            crate::metrics::CONTENT_TYPE,
            body.len(),
        )
    }

    /// The page.
    fn page(&self) -> String {
        let mut page = Page::default();
        let mut silent = 0;
        let mut states = std::collections::BTreeMap::new();
        for state in ["serving", "parked", "failed", "starting"] {
            states.insert(state.to_owned(), 0u64);
        }
        let instances = self.node.instances();
        for instance in &instances {
            match http::get_text(&self.node.control(instance), METRICS_PATH) {
                Ok(text) => page.add(&text, &[("instance", instance)]),
                Err(_) => silent += 1,
            }
            if let Ok(Some(disks)) = self.node.disks(instance) {
                for disk in disks.volumes {
                    *states.entry(disk.state).or_default() += 1;
                }
            }
        }
        let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
            let mut text = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for (labels, value) in samples {
                text.push_str(&format!("{name}{labels} {value}\n"));
            }
            page.add(&text, &[]);
        };
        let version = format!("{{{}}}", label("version", env!("CARGO_PKG_VERSION")));
        family(
            "sealblk_agent_build_info",
            "gauge",
            "Version of the agent; always 1.",
            vec![(version, 1)],
        );
        family(
            "sealblk_agent_instances",
            "gauge",
            "Instances that have a daemon.",
            vec![(String::new(), instances.len() as u64)],
        );
        family(
            "sealblk_agent_instances_silent",
            "gauge",
            "Instances whose daemon does not tell its metrics.",
            vec![(String::new(), silent)],
        );
        let states =
            states.into_iter().map(|(state, n)| (format!("{{{}}}", label("state", &state)), n));
        family("sealblk_agent_volumes", "gauge", "Volumes by state.", states.collect());
        let requests = self.counters.requests().into_iter().map(|(op, outcome, count)| {
            (format!("{{{},{}}}", label("op", op), label("outcome", &outcome)), count)
        });
        family(
            "sealblk_agent_requests_total",
            "counter",
            "Requests by operation and outcome: ok, or the kind of the error.",
            requests.collect(),
        );
        let rotations = self.rotations.counted();
        family(
            "sealblk_agent_rotations_running",
            "gauge",
            "Rotations under way on this node.",
            vec![(String::new(), rotations.running.into())],
        );
        family(
            "sealblk_agent_rotations_queued",
            "gauge",
            "Rotations that wait for their turn.",
            vec![(String::new(), rotations.queued.into())],
        );
        page.render()
    }
}
