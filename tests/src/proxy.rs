//! A TCP proxy on loopback whose path can be cut, closed, stalled, or cut in mid-transfer.
//!
//! Contract: an order has taken effect when its method returns. One thread serves all connections
//! and waits in poll(2) alone. A connection that the target refuses is reset towards the client.
//! Bytes are neither changed nor reordered. The port stays the same for the proxy's life.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::sockopt::set_socket_linger;

use crate::iscsi::free_port;

const BUFFER: usize = 64 << 10;

enum Order {
    Cut,
    Refuse(bool),
    Stall(bool),
    DropAfter(u64),
    End,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    open: AtomicU64,
    cut: AtomicU64,
    to_target: AtomicU64,
    to_client: AtomicU64,
}

/// What went through a proxy so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyCounts {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections that the proxy has cut.
    pub cut: u64,
    /// Bytes towards the target.
    pub to_target_bytes: u64,
    /// Bytes towards clients.
    pub to_client_bytes: u64,
}

/// The proxy; its connections end with it.
pub struct Proxy {
    address: SocketAddr,
    orders: Sender<(Order, Sender<Result<()>>)>,
    wake: Arc<OwnedFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy to `target` on a port of its own.
    pub fn to(target: SocketAddr) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let counters = Arc::new(Counters::default());
        let (orders, receiver) = channel();
        let mut server = Server {
            target,
            address,
            listener: Some(listen(address)?),
            pairs: Vec::new(),
            stalled: false,
            left: None,
            counters: Arc::clone(&counters),
        };
        let waker = Arc::clone(&wake);
        let serve = move || server.serve(&waker, &receiver);
        let thread = Some(std::thread::Builder::new().name("proxy".into()).spawn(serve)?);
        Ok(Self { address, orders, wake, counters, thread })
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets all connections now, on both sides. New ones are accepted.
    pub fn cut(&self) -> Result<()> {
        self.order(Order::Cut)
    }

    /// While on, nobody listens: who connects is refused. Connections that exist stay.
    pub fn refuse(&self, on: bool) -> Result<()> {
        self.order(Order::Refuse(on))
    }

    /// While on, no byte moves and no connection ends: a path that died silently. Who connects gets
    /// a connection (from the kernel) that is as silent.
    pub fn stall(&self, on: bool) -> Result<()> {
        self.order(Order::Stall(on))
    }

    /// Lets `bytes` more pass towards the target, over all connections, and then cuts them all,
    /// once.
    pub fn drop_after(&self, bytes: u64) -> Result<()> {
        self.order(Order::DropAfter(bytes))
    }

    /// What went through so far.
    pub fn counts(&self) -> ProxyCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        ProxyCounts {
            accepted: of(&self.counters.accepted),
            open: of(&self.counters.open),
            cut: of(&self.counters.cut),
            to_target_bytes: of(&self.counters.to_target),
            to_client_bytes: of(&self.counters.to_client),
        }
    }

    fn order(&self, order: Order) -> Result<()> {
        let (done, wait) = channel();
        self.orders.send((order, done)).ok().context("the proxy has ended")?;
        rustix::io::write(&*self.wake, &1_u64.to_ne_bytes())?;
        wait.recv_timeout(Duration::from_secs(30)).context("the proxy does not answer")?
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let ended = self.order(Order::End).is_ok();
        if let Some(thread) = self.thread.take()
            && ended
        {
            thread.join().ok();
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// One direction of a connection.
struct Half {
    buffer: Box<[u8]>,
    filled: std::ops::Range<usize>,
    ended: bool,
}

impl Half {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER].into(), filled: 0..0, ended: false }
    }

    /// Moves at most a buffer's worth; at most `left` bytes. An error ends the connection.
    fn pump(
        &mut self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        left: &mut Option<u64>,
        count: &AtomicU64,
    ) -> std::io::Result<()> {
        if self.filled.is_empty() && !self.ended {
            match from.read(&mut self.buffer) {
                Ok(0) => {
                    self.ended = true;
                    to.shutdown(Shutdown::Write).ok();
                }
                Ok(len) => self.filled = 0..len,
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        while !self.filled.is_empty() && *left != Some(0) {
            let allowed = left.map_or(BUFFER, |left| usize::try_from(left).unwrap_or(BUFFER));
            let end = self.filled.end.min(self.filled.start + allowed);
            match to.write(&self.buffer[self.filled.start..end]) {
                Ok(written) => {
                    self.filled.start += written;
                    count.fetch_add(written as u64, Ordering::AcqRel);
                    if let Some(left) = left {
                        *left -= written as u64;
                    }
                }
                Err(error) if is_transient(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.ended && self.filled.is_empty()
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

struct Pair {
    client: TcpStream,
    target: TcpStream,
    up: Half,
    down: Half,
}

impl Pair {
    /// What to wait for: at the client's socket, at the target's.
    fn interest(&self) -> (PollFlags, PollFlags) {
        let wanted = |half: &Half| match half {
            half if !half.filled.is_empty() => (PollFlags::empty(), PollFlags::OUT),
            half if !half.ended => (PollFlags::IN, PollFlags::empty()),
            _ => (PollFlags::empty(), PollFlags::empty()),
        };
        let ((from_client, to_target), (from_target, to_client)) =
            (wanted(&self.up), wanted(&self.down));
        (from_client | to_client, from_target | to_target)
    }

    /// Ends both sides with a reset instead of an end of stream.
    fn reset(self) {
        for socket in [&self.client, &self.target] {
            set_socket_linger(socket, Some(Duration::ZERO)).ok();
        }
    }
}

struct Server {
    target: SocketAddr,
    address: SocketAddr,
    listener: Option<TcpListener>,
    pairs: Vec<Pair>,
    stalled: bool,
    left: Option<u64>,
    counters: Arc<Counters>,
}

impl Server {
    fn serve(&mut self, wake: &OwnedFd, orders: &Receiver<(Order, Sender<Result<()>>)>) {
        loop {
            if self.wait(wake).is_err() {
                return;
            }
            let mut count = [0; 8];
            rustix::io::read(wake, &mut count).ok();
            while let Ok((order, done)) = orders.try_recv() {
                let end = matches!(order, Order::End);
                let result = self.obey(order);
                done.send(result).ok();
                if end {
                    return;
                }
            }
            if !self.stalled {
                self.accept();
                self.pump();
            }
        }
    }

    fn wait(&self, wake: &OwnedFd) -> Result<()> {
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        if !self.stalled {
            if let Some(listener) = &self.listener {
                fds.push(PollFd::new(listener, PollFlags::IN));
            }
            for pair in &self.pairs {
                let (client, target) = pair.interest();
                // A socket of which nothing is wanted would report its end over and over.
                for (socket, flags) in [(&pair.client, client), (&pair.target, target)] {
                    if !flags.is_empty() {
                        fds.push(PollFd::new(socket, flags));
                    }
                }
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Cut => self.cut(),
            Order::Refuse(true) => self.listener = None,
            Order::Refuse(false) if self.listener.is_none() => {
                self.listener = Some(listen(self.address)?);
            }
            Order::Stall(on) => self.stalled = on,
            Order::DropAfter(bytes) => self.left = Some(bytes),
            Order::Refuse(false) | Order::End => {}
        }
        Ok(())
    }

    fn cut(&mut self) {
        self.counters.cut.fetch_add(self.pairs.len() as u64, Ordering::AcqRel);
        self.pairs.drain(..).for_each(Pair::reset);
        self.counters.open.store(0, Ordering::Release);
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        while let Ok((client, _)) = listener.accept() {
            self.counters.accepted.fetch_add(1, Ordering::AcqRel);
            let Ok(target) = TcpStream::connect(self.target) else {
                set_socket_linger(&client, Some(Duration::ZERO)).ok();
                continue;
            };
            for socket in [&client, &target] {
                socket.set_nonblocking(true).ok();
                socket.set_nodelay(true).ok();
            }
            self.pairs.push(Pair { client, target, up: Half::new(), down: Half::new() });
        }
        self.counters.open.store(self.pairs.len() as u64, Ordering::Release);
    }

    fn pump(&mut self) {
        let (left, counters) = (&mut self.left, &*self.counters);
        let unlimited = &mut None;
        for mut pair in std::mem::take(&mut self.pairs) {
            let Pair { client, target, up, down } = &mut pair;
            let moved = up
                .pump(client, target, left, &counters.to_target)
                .and_then(|()| down.pump(target, client, unlimited, &counters.to_client));
            match moved {
                Err(_) => pair.reset(),
                Ok(()) if pair.up.done() && pair.down.done() => {}
                Ok(()) => self.pairs.push(pair),
            }
        }
        if self.left == Some(0) {
            self.left = None;
            self.cut();
        }
        self.counters.open.store(self.pairs.len() as u64, Ordering::Release);
    }
}
