//! One disk's socket: accepts one front-end after the other, until told to stop.
//!
//! Contract: [`Session::run`] returns only after a [`StopHandle::stop`], with all queues stopped; no
//! behaviour of a front-end ends it. One front-end is served at a time; another one waits in the
//! socket's backlog until the first has gone (its messages are not lost, only late).
//!
//! Deliberately absent: a thread of its own. Who calls `run` gives the thread.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use sealblk_virtqueue::QueueHost;
use sealblk_virtqueue::blk::DiskProfile;

use crate::capacity::{Capacity, CapacityHandle};
use crate::connection;
use crate::event::{Event, Observer, Reporter};
use crate::socket::{Listener, SocketError};

/// How long to wait when the system has no descriptor left for a new client.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Where the socket lies and who may connect.
#[derive(Debug, Clone)]
pub struct SocketConfig {
    /// The socket's path, at most 107 bytes.
    pub path: PathBuf,
    /// Its file mode; [`SocketConfig::MODE`] unless there is a reason.
    pub mode: u32,
    /// Its group, the one that QEMU runs in; None: the daemon's own.
    pub group: Option<u32>,
}

impl SocketConfig {
    /// Owner and group may connect. Whoever may connect has the disk.
    pub const MODE: u32 = 0o660;

    /// A socket at `path` with the usual mode and the daemon's own group.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode: Self::MODE, group: None }
    }
}

#[derive(Debug)]
struct Shared {
    /// Wakes the accept loop.
    wake: OwnedFd,
    stopping: AtomicBool,
    connected: AtomicBool,
    /// The connection being served, to be shut down at the end.
    stream: Mutex<Option<Arc<UnixStream>>>,
}

impl Shared {
    fn stream(&self) -> MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a session from another thread, and knows whether a front-end is there.
#[derive(Debug, Clone)]
pub struct StopHandle(Arc<Shared>);

impl StopHandle {
    /// Makes [`Session::run`] accept nobody else, drain the queues and return. At any time, more
    /// than once, also before `run`.
    pub fn stop(&self) {
        let stream = self.0.stream();
        self.0.stopping.store(true, Ordering::SeqCst);
        if let Some(stream) = stream.as_ref() {
            // An error means that the front-end has gone by itself.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        drop(stream);
        // Fails only when the counter is full, and then the loop is awake.
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
    }

    /// Whether a front-end is connected and has spoken.
    pub fn connected(&self) -> bool {
        self.0.connected.load(Ordering::Relaxed)
    }
}

/// A vhost-user socket and the disk behind it.
#[derive(Debug)]
pub struct Session {
    listener: Listener,
    disk: DiskProfile,
    capacity: Arc<Capacity>,
    shared: Arc<Shared>,
}

impl Session {
    /// Listens; front-ends may connect from now on, and are served by [`Session::run`]. The
    /// socket's file goes with the session.
    pub fn bind(socket: &SocketConfig, disk: DiskProfile) -> Result<Self, SocketError> {
        let listener = Listener::bind(&socket.path, socket.mode, socket.group)?;
        let fail = |source| SocketError::System {
            path: socket.path.clone(),
            what: "make an eventfd",
            source,
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| fail(errno.into()))?;
        let capacity = Capacity::new(disk.capacity_sectors).map_err(fail)?;
        let shared = Shared {
            wake,
            stopping: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            stream: Mutex::new(None),
        };
        Ok(Self { listener, disk, capacity: Arc::new(capacity), shared: Arc::new(shared) })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// To end it.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(Arc::clone(&self.shared))
    }

    /// To let it grow.
    pub fn capacity_handle(&self) -> CapacityHandle {
        CapacityHandle(Arc::clone(&self.capacity))
    }

    /// Serves one front-end after the other with `host`, until stopped. Blocks.
    pub fn run(&self, host: &mut dyn QueueHost, observer: &Observer<'_>) {
        let mut reporter = Reporter::new(observer);
        // Virtio's default where a cache can be flushed. It stays what the driver made it when a
        // front-end comes back, which doesn't repeat it.
        let mut writeback = true;
        while self.wait_for_client() {
            let stream = match self.listener.accept() {
                Ok(fd) => Arc::new(UnixStream::from(fd)),
                Err(error) if is_transient(&error) => continue,
                Err(error) => {
                    reporter.report(&Event::AcceptFailed { reason: error.to_string() });
                    self.wait_for_stop(ACCEPT_RETRY);
                    continue;
                }
            };
            {
                let mut current = self.shared.stream();
                if self.shared.stopping.load(Ordering::SeqCst) {
                    break;
                }
                *current = Some(Arc::clone(&stream));
            }
            let connected = |now| self.shared.connected.store(now, Ordering::Relaxed);
            let reason = connection::serve(
                &stream,
                &self.disk,
                &self.capacity,
                host,
                &mut writeback,
                &mut reporter,
                &connected,
            );
            *self.shared.stream() = None;
            drop(stream);
            if let Some(mut reason) = reason {
                if self.shared.stopping.load(Ordering::SeqCst) {
                    "the session was told to stop".clone_into(&mut reason);
                }
                reporter.report(&Event::Disconnected { reason });
            }
        }
    }

    /// False: stop.
    fn wait_for_client(&self) -> bool {
        let mut fds = [
            PollFd::new(self.listener.fd(), PollFlags::IN),
            PollFd::new(&self.shared.wake, PollFlags::IN),
        ];
        // Only a signal makes this fail. The listener is then asked in vain, and doesn't block.
        let _ = poll(&mut fds, None);
        !self.shared.stopping.load(Ordering::SeqCst)
    }

    fn wait_for_stop(&self, at_most: Duration) {
        let timeout = Timespec::try_from(at_most).ok();
        let mut fds = [PollFd::new(&self.shared.wake, PollFlags::IN)];
        // Early or failed: the loop looks at `stopping` anyway.
        let _ = poll(&mut fds, timeout.as_ref());
    }
}

/// The client has gone before it was accepted, or a signal came.
fn is_transient(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::INTR | Errno::CONNABORTED | Errno::AGAIN))
}
