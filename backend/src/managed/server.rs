//! The socket for orders: a thread for each connection, of which the agent has few.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use sealblk_api::agent::{AgentError, Answer, ErrorKind, Gone};
use sealblk_rpc::{Connection, Listener, Message};
use serde::Serialize;

use super::slots::Slots;
use crate::audit;
use crate::orders::Order;

/// How long to wait when the system has no descriptor left for a connection.
const RETRY: Duration = Duration::from_secs(1);

/// Starts to listen to orders.
pub(super) fn start(listener: Listener, slots: Arc<Slots>) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("orders".to_owned())
        .spawn(move || listen(&listener, &slots))
        .context("no thread for orders")?;
    Ok(())
}

fn listen(listener: &Listener, slots: &Arc<Slots>) {
    loop {
        let connection = match listener.accept() {
            Ok(connection) => connection,
            Err(error) => {
                tracing::error!(%error, "no connection for orders can be taken");
                thread::park_timeout(RETRY);
                continue;
            }
        };
        let slots = slots.clone();
        let spawned = thread::Builder::new()
            .name("order".to_owned())
            .spawn(move || attend(&connection, &slots));
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for an order");
        }
    }
}

/// Answers one connection until it closes.
fn attend(connection: &Connection, slots: &Slots) {
    let uid = connection.peer().ok().map(|peer| peer.uid);
    let allowed = uid.is_some_and(|uid| uid == 0 || uid == rustix::process::getuid().as_raw());
    loop {
        let message = match connection.receive() {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "an order did not arrive");
                return;
            }
        };
        let (answer, end) = if allowed {
            obey(message, slots, uid)
        } else {
            let what = "only root and the daemon's own user may give orders".to_owned();
            let refused = AgentError { kind: ErrorKind::Refused, message: what };
            (told::<()>(uid, "unknown", None, Err(refused)), false)
        };
        let sent = connection.send(&answer, &[]);
        if end {
            // Not before: nothing waits for this thread at the end.
            slots.end();
        }
        if let Err(error) = sent {
            tracing::warn!(%error, "an answer did not arrive");
            return;
        }
    }
}

/// Carries out an order; gives the answer, and whether the process ends after it.
fn obey(message: Message, slots: &Slots, uid: Option<u32>) -> (Vec<u8>, bool) {
    let order = match serde_json::from_slice(&message.bytes) {
        Ok(order) => order,
        Err(error) => {
            let message = format!("an order that makes no sense: {error}");
            let refused = AgentError { kind: ErrorKind::Invalid, message };
            return (text(&Answer::<()>::Error(refused)), false);
        }
    };
    let answer = match order {
        Order::Attach(order) => {
            let volume = order.section.name.clone();
            told(uid, "attach", Some(&volume), slots.attach(*order, message.descriptors))
        }
        Order::Park { volume } => told(uid, "park", Some(&volume), slots.park(&volume)),
        Order::Detach { volume } => told(uid, "detach", Some(&volume), slots.detach(&volume)),
        Order::List => text(&Answer::Ok(slots.list())),
        Order::End => {
            return (told(uid, "end", None, Ok(Gone { state: "absent".to_owned() })), true);
        }
    };
    (answer, false)
}

/// The answer to an order, which goes to the audit log, too.
fn told<T: Serialize>(
    uid: Option<u32>,
    action: &str,
    volume: Option<&str>,
    outcome: Result<T, AgentError>,
) -> Vec<u8> {
    let kind = outcome.as_ref().err().map(|error| &error.kind);
    audit::record(&audit::Event::AgentOrder { uid, action, volume, error: kind });
    text(&answer(outcome))
}

fn answer<T>(outcome: Result<T, AgentError>) -> Answer<T> {
    match outcome {
        Ok(told) => Answer::Ok(told),
        Err(error) => Answer::Error(error),
    }
}

fn text(answer: &impl Serialize) -> Vec<u8> {
    // Plain structs with string keys: nothing in them can fail.
    serde_json::to_vec(answer).unwrap_or_default()
}
