//! The command line of `sealblk --node`: what is asked of this node's agent.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use sealblk_keys::KeySource;

use super::rotate::{Limit, limit};
use crate::size;

/// By this flag, wherever it stands, a command line is one of these.
pub(crate) const NODE_FLAG: &str = "--node";

/// Asks the agent of this node about all its instances, and gives orders for their rotations.
#[derive(Debug, Parser)]
#[command(name = "sealblk --node", bin_name = "sealblk --node", arg_required_else_help = true)]
pub(crate) struct Node {
    /// The agent's socket
    #[arg(long, global = true, value_name = "PATH", default_value = sealblk_api::agent::AGENT_SOCKET)]
    pub(crate) agent_socket: PathBuf,

    /// The agent's answer, as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: NodeCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Show what all daemons of the node tell
    Status(NodeInstance),
    /// Show instances and their volumes
    List(NodeInstance),
    /// Order something for rotations of many volumes
    #[command(subcommand)]
    Rotate(NodeRotate),
}

#[derive(Debug, Args)]
pub(crate) struct NodeInstance {
    /// Only this server (its UUID)
    #[arg(long, value_name = "UUID")]
    pub(crate) instance: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeRotate {
    /// Begin; what is beyond the node's limits waits for its turn
    Start(NodeStart),
    /// Stop between two ranges, or take out of the queue
    Pause(NodeSelect),
    /// Go on after `pause`
    Resume(NodeSelect),
    /// Change the limit of the speed
    Throttle(NodeThrottle),
}

/// Whose rotations.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("select").required(true))]
pub(crate) struct NodeSelect {
    /// Of all volumes of this node
    #[arg(long, group = "select")]
    pub(crate) all: bool,

    /// Of a server's volumes (its UUID)
    #[arg(long, value_name = "UUID", group = "select")]
    pub(crate) instance: Option<String>,

    /// Of one volume (its UUID)
    #[arg(long, value_name = "UUID", group = "select")]
    pub(crate) volume: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NodeStart {
    #[command(flatten)]
    pub(crate) select: NodeSelect,

    /// With --volume: the secret that opens it afterwards; its daemon must be able to read it
    #[arg(long, value_name = "SOURCE", conflicts_with_all = ["all", "instance"])]
    pub(crate) new_key: Option<KeySource>,

    /// Most bytes per second of each, e.g. 100M
    #[arg(long, value_name = "BYTES/s", value_parser = size::parse)]
    pub(crate) rate: Option<u64>,

    /// Longest range to be in work at a time, e.g. 4M
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    pub(crate) hotzone: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct NodeThrottle {
    #[command(flatten)]
    pub(crate) select: NodeSelect,

    /// Most bytes per second of each, e.g. 100M, or `none`
    #[arg(long, value_name = "BYTES/s|none", value_parser = limit)]
    pub(crate) rate: Limit,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Node::command().debug_assert();
    }

    #[test]
    fn an_order_says_for_whom_it_is() {
        let parse = |line: &str| Node::try_parse_from(line.split(' ')).is_ok();
        for good in [
            "sealblk status",
            "sealblk --agent-socket /s list --instance x --json",
            "sealblk rotate start --all --rate 100M",
            "sealblk rotate start --volume v --new-key file:/k",
            "sealblk rotate throttle --instance i --rate none",
        ] {
            assert!(parse(good), "{good}");
        }
        for bad in [
            "sealblk rotate start",
            "sealblk rotate pause --all --volume v",
            "sealblk rotate start --all --new-key file:/k",
            "sealblk rotate throttle --all",
        ] {
            assert!(!parse(bad), "{bad}");
        }
    }
}
