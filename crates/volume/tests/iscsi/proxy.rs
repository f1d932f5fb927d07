//! A TCP proxy in front of a target that can cut and stall what passes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    stalled: bool,
    /// Both ends of each connection.
    streams: Vec<TcpStream>,
    accepted: usize,
}

#[derive(Default)]
struct Inside {
    state: Mutex<State>,
    changed: Condvar,
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    inside: Arc<Inside>,
}

impl Proxy {
    pub(crate) fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let inside = Arc::<Inside>::default();
        let shared = inside.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(to) else { continue };
                let mut state = shared.state.lock().unwrap();
                state.accepted += 1;
                for stream in [&client, &server] {
                    state.streams.push(stream.try_clone().unwrap());
                }
                drop(state);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = shared.clone();
                    std::thread::spawn(move || pass(&shared, from, to));
                }
            }
        });
        Self { address, inside }
    }

    /// Ends all connections, on both sides, and lets new ones through.
    pub(crate) fn cut(&self) {
        let mut state = self.inside.state.lock().unwrap();
        state.stalled = false;
        for stream in state.streams.drain(..) {
            let _gone = stream.shutdown(Shutdown::Both);
        }
        self.inside.changed.notify_all();
    }

    /// Passes nothing on, and closes nothing: a dead path.
    pub(crate) fn stall(&self) {
        self.inside.state.lock().unwrap().stalled = true;
    }

    pub(crate) fn go_on(&self) {
        self.inside.state.lock().unwrap().stalled = false;
        self.inside.changed.notify_all();
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.inside.state.lock().unwrap().accepted
    }
}

fn pass(inside: &Inside, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut buffer) {
        let state = inside.state.lock().unwrap();
        drop(inside.changed.wait_while(state, |state| state.stalled).unwrap());
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
