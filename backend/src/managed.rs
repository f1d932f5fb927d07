//! A daemon for an instance: volumes come and go while it runs, by the agent's orders.
//!
//! Contract: `RUN_DIR/orders.sock` and `RUN_DIR/control.sock` listen before the keeper is told that we
//! are ready; then what the process before us served is taken up again. A volume's order is carried
//! out by one thread at a time, different volumes' side by side. Everything that the order has to say
//! is in it: this process reads no configuration file.
//!
//! Deliberately absent: policy (who may, whether to format, which key): the agent's.

mod refusal;
mod server;
mod slots;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sealblk_rotation::Ages;
use sealblk_rpc::Listener;
use tokio::sync::watch;

use self::slots::Slots;
use crate::config::DaemonConfig;
use crate::daemon::{self, Signals};
use crate::keeper::Link;
use crate::status::Overview;
use crate::{audit, control, notify, orders};

/// How often to say what a long end is waiting for.
const DRAIN_REPORT: Duration = Duration::from_secs(5);

/// What the command line says of it.
#[derive(Debug, Clone)]
pub(crate) struct Managed {
    /// UUID of the server.
    pub(crate) instance: String,
    /// Directory of the sockets and claims; this daemon's alone.
    pub(crate) run_dir: PathBuf,
}

/// Serves until a signal or an order ends it.
pub(crate) async fn run(daemon: DaemonConfig, managed: Managed) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    audit::reopen_on_hangup()?;
    let link = Link::from_stdin().context("the keeper")?;
    let control = orders::control_socket(&managed.run_dir);
    let (control, control_file) = control::bind(&control, None).context("control API")?;
    let (listener, _orders_file) = bind_orders(&managed)?;
    let overview = Arc::new(Overview::new(Vec::new()));
    let (end, mut ended) = watch::channel(false);
    let kept = link.restore().context("asking the keeper what there is to serve")?;
    let ages = Ages::new(daemon.state_dir());
    let slots = Arc::new(Slots::new(&managed, ages, overview.clone(), link, end));
    slots.take_up(kept);
    server::start(listener, slots.clone())?;
    let (stop_control, stopped) = watch::channel(false);
    let served = tokio::spawn(control::serve(control, false, overview.clone(), stopped));
    slots.link().ready();
    tracing::info!(instance = managed.instance, "ready for orders");
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, "draining"),
        // An error means that the sender is gone, which can't be while `slots` is here.
        _ = ended.wait_for(|end| *end) => tracing::info!("told to end"),
        never = daemon::tick(overview.clone()) => match never {},
    }
    notify::stopping();
    overview.drain();
    let outcome = drain(slots, &mut signals).await;
    let _ = stop_control.send(true);
    // A panic in it is logged already.
    let _ = served.await;
    drop(control_file);
    tracing::info!("ended");
    audit::record(&audit::Event::DaemonEnded);
    outcome
}

/// Ends all sessions and closes all volumes; a signal meanwhile ends the process.
async fn drain(slots: Arc<Slots>, signals: &mut Signals) -> anyhow::Result<()> {
    let mut closed = tokio::task::spawn_blocking(move || slots.close_all());
    loop {
        tokio::select! {
            outcome = &mut closed => return outcome.context("closing the volumes")?,
            name = signals.next() => {
                tracing::warn!(signal = name, "told again to end: ending at once");
                std::process::exit(1);
            }
            () = tokio::time::sleep(DRAIN_REPORT) => {
                tracing::warn!("still waiting for requests in work");
            }
        }
    }
}

/// Binds the socket for orders; one that a killed process left is replaced.
fn bind_orders(managed: &Managed) -> anyhow::Result<(Listener, crate::socket::SocketFile)> {
    let path = orders::orders_socket(&managed.run_dir);
    let what = || format!("socket for orders {}", path.display());
    // Nobody else has a right to this directory, and our keeper starts one of us at a time.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(what);
        }
        _ => {}
    }
    let listener = Listener::bind(&path).with_context(what)?;
    let file = crate::socket::SocketFile::of(&path).with_context(what)?;
    Ok((listener, file))
}
