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

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use sealblk_virtqueue::QueueHost;
use sealblk_virtqueue::blk::DiskProfile;
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::event::{Event, Reporter};
use crate::handler::Handler;

/// Request, flags, size: 32 bits each (vhost-user specification, "Header").
const HEADER_BYTES: usize = 12;

/// What the next message's header says, before the `vhost` crate consumes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peeked {
    request: Option<FrontendReq>,
    need_reply: bool,
}

impl Peeked {
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
        [request, flags, _] if got == HEADER_BYTES => Peeked {
            request: FrontendReq::try_from(u32::from_ne_bytes(*request)).ok(),
            need_reply: u32::from_ne_bytes(*flags) & VhostUserHeaderFlag::NEED_REPLY.bits() != 0,
        },
        _ => Peeked { request: None, need_reply: false },
    }))
}

/// Serves one front-end until it closes, is shut down or breaks the protocol. Gives the reason, if it
/// said anything at all: whoever connects just to see whether somebody listens is no event.
pub(crate) fn serve(
    stream: &UnixStream,
    disk: &DiskProfile,
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
    let handler = Arc::new(Mutex::new(Handler::new(disk, host, writeback)));
    let mut requests = BackendReqHandler::from_stream(own, Arc::clone(&handler));
    let mut first = true;
    let reason = loop {
        let peeked = match peek(stream) {
            Ok(Some(peeked)) => peeked,
            Ok(None) => break "it closed the connection".to_owned(),
            Err(error) => break format!("cannot read from it: {error}"),
        };
        if std::mem::take(&mut first) {
            connected(true);
            reporter.report(&Event::Connected);
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
