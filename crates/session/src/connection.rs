//! One front-end's connection, from its first message to its last.
//!
//! Contract: a refused message is answered with an error where the protocol has room for one (the
//! front-end asked for a reply and the message has no other answer); otherwise the connection is
//! closed, which is the only way left to tell. A message that isn't well-formed closes it always.
//!
//! Invariant: when [`serve`] returns, all queues are stopped and the guest's memory is let go; only
//! then is the socket closed, so a front-end that sees the end knows that nothing writes any more.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use sealblk_virtqueue::QueueHost;
use sealblk_virtqueue::blk::DiskProfile;
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::capacity::Capacity;
use crate::channel::{self, HEADER_BYTES};
use crate::event::{Event, Reporter};
use crate::handler::Handler;

/// What the next message's header says, before the `vhost` crate consumes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peeked {
    request: Option<FrontendReq>,
    need_reply: bool,
    has_payload: bool,
}

impl Peeked {
    /// A message that the `vhost` crate doesn't do for us.
    fn is_channel(self) -> bool {
        self.request == Some(FrontendReq::SET_BACKEND_REQ_FD) && !self.has_payload
    }

    fn name(self) -> String {
        self.request.map_or_else(|| "message".to_owned(), |request| format!("{request:?}"))
    }

    /// Whether an error of this message has been told to the front-end.
    fn told(self, acknowledges: bool) -> bool {
        use FrontendReq as Req;
        let answered_otherwise = matches!(
            self.request,
            None | Some(
                Req::GET_FEATURES
                    | Req::GET_PROTOCOL_FEATURES
                    | Req::GET_QUEUE_NUM
                    | Req::GET_VRING_BASE
                    | Req::GET_CONFIG
                    | Req::GET_INFLIGHT_FD
                    | Req::GET_MAX_MEM_SLOTS
                    | Req::GET_SHARED_OBJECT
                    | Req::GET_SHMEM_CONFIG
                    | Req::SET_LOG_BASE
            )
        );
        self.need_reply && acknowledges && !answered_otherwise
    }
}

/// Waits for the next message; None: the front-end has closed.
fn peek(stream: &UnixStream) -> std::io::Result<Option<Peeked>> {
    let mut header = [0; HEADER_BYTES];
    // Without room for control data the kernel drops its copies of attached descriptors; the
    // originals stay with the message.
    let got = loop {
        match recv(stream, &mut header, RecvFlags::PEEK) {
            Err(Errno::INTR) => {}
            other => break other?.0,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    // A header that trickles in is read as it comes by handle_request; here it stays unknown.
    let (words, _) = header.as_chunks::<4>();
    Ok(Some(match words {
        [request, flags, size] if got == HEADER_BYTES => Peeked {
            request: FrontendReq::try_from(u32::from_ne_bytes(*request)).ok(),
            need_reply: u32::from_ne_bytes(*flags) & VhostUserHeaderFlag::NEED_REPLY.bits() != 0,
            has_payload: *size != [0; 4],
        },
        _ => Peeked { request: None, need_reply: false, has_payload: true },
    }))
}

/// Waits for a message, and tells the front-end of the disk's size meanwhile where it should know.
/// That comes behind messages that are there already: QEMU, told in the middle of a row of them,
/// would have to look at once.
fn wait(
    stream: &UnixStream,
    capacity: &Capacity,
    handler: &Mutex<Handler<'_>>,
    reporter: &mut Reporter<'_>,
) {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let news = lock(handler).size_is_news();
        let mut fds =
            [PollFd::new(stream, PollFlags::IN), PollFd::new(capacity.news(), PollFlags::IN)];
        // Only a signal makes this fail; the events are then none.
        let _ = poll(&mut fds, news.then_some(&AT_ONCE));
        let [spoken, woken] = fds.map(|fd| !fd.revents().is_empty());
        if spoken {
            return;
        }
        if woken {
            capacity.heard();
        } else if news {
            reporter.report(&match lock(handler).tell_size() {
                Ok(sectors) => Event::SizeTold { sectors },
                Err(error) => Event::ChannelFailed { reason: error.to_string() },
            });
        }
    }
}

/// Carries out `SET_BACKEND_REQ_FD`; whether the connection goes on.
fn take_channel(
    stream: &UnixStream,
    peeked: Peeked,
    handler: &Mutex<Handler<'_>>,
    reporter: &mut Reporter<'_>,
) -> std::io::Result<bool> {
    let mut handler = lock(handler);
    let outcome = channel::receive(stream)?.and_then(|channel| handler.set_channel(channel));
    let told = peeked.told(handler.acknowledges());
    if told {
        channel::acknowledge(stream, outcome.is_err())?;
    }
    if let Err(reason) = outcome {
        reporter.report(&Event::Refused { message: peeked.name(), reason: reason.to_owned() });
        return Ok(told);
    }
    Ok(true)
}

/// Serves one front-end until it closes, is shut down or breaks the protocol. Gives the reason, if it
/// said anything at all: whoever connects just to see whether somebody listens is no event.
pub(crate) fn serve(
    stream: &UnixStream,
    disk: &DiskProfile,
    capacity: &Capacity,
    host: &mut dyn QueueHost,
    writeback: &mut bool,
    reporter: &mut Reporter<'_>,
    connected: &dyn Fn(bool),
) -> Option<String> {
    let own = match stream.try_clone() {
        Ok(own) => own,
        Err(error) => {
            reporter.report(&Event::AcceptFailed { reason: error.to_string() });
            return None;
        }
    };
    let handler = Arc::new(Mutex::new(Handler::new(disk, capacity, host, writeback)));
    let mut requests = BackendReqHandler::from_stream(own, Arc::clone(&handler));
    let mut first = true;
    let reason = loop {
        wait(stream, capacity, &handler, reporter);
        let peeked = match peek(stream) {
            Ok(Some(peeked)) => peeked,
            Ok(None) => break "it closed the connection".to_owned(),
            Err(error) => break format!("cannot read from it: {error}"),
        };
        if std::mem::take(&mut first) {
            connected(true);
            reporter.report(&Event::Connected);
        }
        if peeked.is_channel() {
            match take_channel(stream, peeked, &handler, reporter) {
                Ok(true) => continue,
                Ok(false) => break format!("sent away after the refused {}", peeked.name()),
                Err(error) => break format!("cannot speak with it: {error}"),
            }
        }
        let result = requests.handle_request();
        let (acknowledges, config_refusal) = {
            let mut handler = lock(&handler);
            (handler.acknowledges(), handler.take_config_refusal())
        };
        match result {
            Ok(()) => {
                if let Some(reason) = config_refusal {
                    reporter.report(&Event::Refused { message: peeked.name(), reason });
                }
            }
            Err(Error::Disconnected) => break "it closed the connection".to_owned(),
            Err(error) => {
                let ours = matches!(error, Error::ReqHandlerError(_));
                let reason = match error {
                    Error::ReqHandlerError(refusal) => refusal.to_string(),
                    other => other.to_string(),
                };
                let message = peeked.name();
                reporter.report(&Event::Refused { message: message.clone(), reason });
                if !(ours && peeked.told(acknowledges)) {
                    break format!("sent away after the refused {message}");
                }
            }
        }
    };
    // Stops the queues. The caller's `stream` keeps the socket open until that is done.
    drop(requests);
    drop(handler);
    connected(false);
    (!first).then_some(reason)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only this thread locks it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
