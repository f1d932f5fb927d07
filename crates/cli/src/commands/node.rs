//! `sealblk --node`: what the agent of this node tells, and orders to it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use sealblk_api::agent::{
    AgentRequest, Answer, Listed, ListedInstance, NodeStatus, Rotated, Select, Source,
};
use sealblk_api::{RotationOrder, RotationState};
use sealblk_rpc::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::{Node, NodeCommand, NodeRotate, NodeSelect};
use crate::console::Console;
use crate::failure::Failure;
use crate::size::human;
use crate::table::{Align, Table};

/// How long the agent may take: an order for all volumes of a node is one for each of them.
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn run(args: &Node, console: &mut Console<'_>) -> Result<(), Failure> {
    let agent = Agent::connect(&args.agent_socket)?;
    match &args.command {
        NodeCommand::Status(of) => {
            let status = agent.status(of.instance.as_deref())?;
            show(&status, args.json, render_status, console)
        }
        NodeCommand::List(of) => {
            let listed = agent.list(of.instance.as_deref())?;
            show(&listed, args.json, render_list, console)
        }
        NodeCommand::Rotate(rotate) => {
            let (select, order) = order(rotate);
            let rotated: Rotated = agent.ask(&AgentRequest::Rotate { select, order })?;
            show(&rotated, args.json, render_rotated, console)?;
            match rotated.volumes.iter().filter(|volume| volume.error.is_some()).count() {
                0 => Ok(()),
                failed => Err(anyhow!("{failed} volumes did not take the order").into()),
            }
        }
    }
}

fn show<T: Serialize>(
    answer: &T,
    json: bool,
    render: fn(&T) -> String,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    if json {
        let value = serde_json::to_value(answer).context("an answer as JSON")?;
        writeln!(console.out, "{value:#}")?;
    } else {
        console.out.write_all(render(answer).as_bytes())?;
    }
    Ok(())
}

fn order(rotate: &NodeRotate) -> (Select, RotationOrder) {
    let select = |of: &NodeSelect| Select {
        all: of.all,
        instance: of.instance.clone(),
        volume: of.volume.clone(),
    };
    match rotate {
        NodeRotate::Start(start) => (
            select(&start.select),
            RotationOrder::Start {
                new_key: start.new_key.as_ref().map(ToString::to_string),
                rate_bytes: start.rate,
                hotzone_bytes: start.hotzone,
                header_backup: None,
                keep_luks2: false,
            },
        ),
        NodeRotate::Pause(of) => (select(of), RotationOrder::Pause),
        NodeRotate::Resume(of) => (select(of), RotationOrder::Resume),
        NodeRotate::Throttle(throttle) => {
            (select(&throttle.select), RotationOrder::Throttle { rate_bytes: throttle.rate.0 })
        }
    }
}

/// A connection to the agent.
struct Agent(Connection);

impl Agent {
    fn connect(socket: &Path) -> anyhow::Result<Self> {
        let connection = Connection::connect_within(socket, Some(LIMIT)).with_context(|| {
            format!("{}: cannot be reached: does sealblk-agent run?", socket.display())
        })?;
        Ok(Self(connection))
    }

    fn ask<T: DeserializeOwned>(&self, request: &AgentRequest) -> anyhow::Result<T> {
        let answer = self.0.call(&serde_json::to_vec(request)?, &[]).context("sealblk-agent")?;
        match serde_json::from_slice(&answer.bytes).context("the agent's answer makes no sense")? {
            Answer::Ok(answer) => Ok(answer),
            Answer::Error(error) => Err(anyhow!(error.message)),
        }
    }

    /// All parts.
    fn list(&self, instance: Option<&str>) -> anyhow::Result<Listed> {
        let mut whole = Listed::default();
        let mut after = None;
        loop {
            let instance = instance.map(str::to_owned);
            let part: Listed = self.ask(&AgentRequest::List { instance, after })?;
            whole.instances.extend(part.instances);
            after = part.next;
            if after.is_none() {
                return Ok(whole);
            }
        }
    }

    fn status(&self, instance: Option<&str>) -> anyhow::Result<NodeStatus> {
        let mut whole = NodeStatus::default();
        let mut after = None;
        loop {
            let instance = instance.map(str::to_owned);
            let part: NodeStatus = self.ask(&AgentRequest::Status { instance, after })?;
            whole.instances.extend(part.instances);
            (whole.version, whole.rotations) = (part.version, part.rotations);
            after = part.next;
            if after.is_none() {
                return Ok(whole);
            }
        }
    }
}

const LEFT: Align = Align::Left;

fn render_list(listed: &Listed) -> String {
    let mut table = Table::new(&[
        ("INSTANCE", LEFT),
        ("DAEMON", LEFT),
        ("VOLUME", LEFT),
        ("STATE", LEFT),
        ("QEMU", LEFT),
        ("SOURCE", LEFT),
    ]);
    for instance in &listed.instances {
        let daemon = daemon(instance);
        if instance.volumes.is_empty() {
            let none = || "-".to_owned();
            table.row(vec![instance.instance.clone(), daemon, none(), none(), none(), none()]);
            continue;
        }
        for volume in &instance.volumes {
            table.row(vec![
                instance.instance.clone(),
                daemon.clone(),
                volume.volume.clone(),
                volume.trouble.as_ref().map_or_else(
                    || volume.state.clone(),
                    |trouble| format!("{}: {trouble}", volume.state),
                ),
                if volume.connected { "connected" } else { "-" }.to_owned(),
                volume.source.as_ref().map_or_else(|| "-".to_owned(), shown),
            ]);
        }
    }
    table.render(0)
}

fn daemon(instance: &ListedInstance) -> String {
    match instance.state.as_str() {
        "running" => format!("pid {}", instance.pid),
        state => state.to_uppercase(),
    }
}

fn shown(source: &Source) -> String {
    match source {
        Source::Device { path } | Source::File { path } => path.clone(),
        Source::Rbd { image, .. } => format!("rbd:{image}"),
        // It may have a secret in it.
        Source::Iscsi { uri } => uri
            .rsplit_once('@')
            .map_or_else(|| uri.clone(), |(_, place)| format!("iscsi://{place}")),
    }
}

fn render_status(status: &NodeStatus) -> String {
    let rotations = &status.rotations;
    let limit = match rotations.limit {
        0 => "no limit".to_owned(),
        limit => format!("at most {limit} at once"),
    };
    let mut text = format!(
        "sealblk-agent {}: {} instances; rotations: {} under way, {} waiting, {limit}\n\n",
        status.version,
        status.instances.len(),
        rotations.running,
        rotations.queued,
    );
    let mut table = Table::new(&[
        ("INSTANCE", LEFT),
        ("VOLUME", LEFT),
        ("SESSION", LEFT),
        ("SIZE", Align::Right),
        ("STORAGE", LEFT),
        ("ROTATION", LEFT),
    ]);
    for instance in &status.instances {
        let Some(daemon) = &instance.status else {
            text.push_str(&format!(
                "{}: {}\n",
                instance.instance,
                instance.trouble.as_deref().unwrap_or("its daemon tells nothing"),
            ));
            continue;
        };
        for volume in &daemon.volumes {
            let rotation = volume.rotation.as_ref();
            table.row(vec![
                instance.instance.clone(),
                volume.name.clone(),
                volume.state.as_str().to_owned(),
                human(volume.capacity_bytes),
                volume.storage.state.as_str().to_owned(),
                rotation
                    .filter(|rotation| rotation.state != RotationState::None)
                    .map_or_else(|| "-".to_owned(), crate::progress::phrase),
            ]);
        }
    }
    text.push_str(&table.render(0));
    text
}

fn render_rotated(rotated: &Rotated) -> String {
    let mut table = Table::new(&[("INSTANCE", LEFT), ("VOLUME", LEFT), ("ROTATION", LEFT)]);
    for volume in &rotated.volumes {
        let state = match (&volume.error, volume.queued) {
            (Some(error), _) => format!("{}: {error}", volume.state.as_str()),
            (None, true) => "waits for its turn".to_owned(),
            (None, false) => volume.state.as_str().to_owned(),
        };
        table.row(vec![volume.instance.clone(), volume.volume.clone(), state]);
    }
    table.render(0)
}

#[cfg(test)]
mod tests {
    use sealblk_api::agent::{ListedVolume, NodeRotations, RotatedVolume};

    use super::*;

    #[test]
    fn instances_are_listed_with_their_volumes() {
        let volume = ListedVolume {
            volume: "v".into(),
            state: "serving".into(),
            connected: true,
            source: Some(Source::Iscsi { uri: "iscsi://u%hidden@h/iqn.x/1".into() }),
            ..ListedVolume::default()
        };
        let of = |instance: &str, state: &str, volumes| ListedInstance {
            instance: instance.into(),
            pid: 7,
            state: state.into(),
            volumes,
        };
        let instances = vec![of("a", "running", vec![volume]), of("b", "lost", Vec::new())];
        let text = render_list(&Listed { instances, next: None });
        assert_eq!(
            text,
            "INSTANCE  DAEMON  VOLUME  STATE    QEMU       SOURCE\n\
             a         pid 7   v       serving  connected  iscsi://h/iqn.x/1\n\
             b         LOST    -       -        -          -\n"
        );
    }

    #[test]
    fn what_waits_and_what_failed_is_told() {
        let rotations = NodeRotations { running: 1, queued: 2, limit: 0 };
        let status = NodeStatus { version: "1".into(), rotations, ..NodeStatus::default() };
        let text = render_status(&status);
        assert!(text.contains("1 under way, 2 waiting, no limit"), "{text}");
        let volumes = vec![
            RotatedVolume { volume: "v".into(), queued: true, ..RotatedVolume::default() },
            RotatedVolume { volume: "w".into(), error: Some("no".into()), ..Default::default() },
        ];
        let text = render_rotated(&Rotated { volumes });
        assert!(text.contains("waits for its turn") && text.contains("none: no"), "{text}");
    }
}
