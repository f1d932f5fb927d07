//! One session with a target: a libiscsi context, and the steps from a socket to a unit that
//! answers.
//!
//! Contract: nothing here blocks or waits; whoever owns a session polls its socket for
//! [`Session::wants`] and calls [`Session::service`] with what is ready. What ended is in
//! [`Session::take_events`], never handed over from inside a callback, so libiscsi is never called
//! from within itself.
//!
//! Invariant: a command that was given to libiscsi ends exactly once, or the session is destroyed;
//! after [`Session::destroy`] libiscsi holds no pointer to anybody's memory.
//!
//! What keeps an old write from landing after a newer one: when a connection is lost, nobody knows
//! which of the commands in flight the target still has in its queues. They are sent again only
//! when the target has let go of the old ones. First, the new session has the same initiator name
//! and ISID as the old: the target must end the old session and its tasks before it admits the new
//! (session reinstatement, RFC 7143 section 6.3.5). Second, an ABORT TASK SET is answered before
//! anything is sent again, for targets that end a session's tasks lazily. A daemon that follows one
//! that was killed does the same at its first login, for it has the same identities
//! ([`Isids`](super::login::Isids)). Without this, a write
//! that the target held back could come after its own repetition and a newer write to the same
//! blocks.
//!
//! Deliberately absent: libiscsi's reconnect. It replays from its own queues, blocks in places, and
//! makes a new ISID.
// UNSAFETY: calls a C library and gets its callbacks.
#![expect(unsafe_code, reason = "calls libiscsi")]

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::net::SocketAddr;
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::Arc;

use super::answer::{Answer, CANCELLED, Ended, GOOD, News, REDIRECT};
use super::command::Command;
use super::library::{
    self, ABORT_TASK_SET, Context, DIGEST_CRC32C, DIGEST_NONE, Direction, Functions, RESIDUAL_NONE,
    RESIDUAL_UNDERFLOW, SESSION_NORMAL, ScsiTask,
};
use super::login::{Fault, Isid, Login};
use super::unit::identity_of;

/// Tags of the session's own doings; others begin at [`FIRST_TAG`].
const CONNECT: u32 = 0;
const LOGIN: u32 = 1;
const CLEAR: u32 = 2;
const PROBE: u32 = 3;
const IDENTIFY: u32 = 4;
/// The answer to [`Session::ping`].
pub(super) const PING: u32 = 5;
/// The lowest tag for commands of the session's owner.
pub(super) const FIRST_TAG: u32 = 8;

/// Tags made at a time.
const CHUNK: u32 = 64;
/// Unit attention conditions a unit may have queued; more is no unit.
pub(super) const ATTENTIONS_MAX: u32 = 32;
/// Device Identification (SPC-5 section 7.7.6), and how much of it is compared.
pub(super) const IDENTITY_PAGE: u8 = 0x83;
pub(super) const IDENTITY_BYTES: usize = 252;
/// Portals a target may send us on to, one after the other.
const REDIRECTS_MAX: u32 = 3;

/// What a callback gets: whose end it tells, and where to put it. Never changes once made.
struct Tag {
    inbox: *const Inbox,
    value: u32,
}

/// Ends that callbacks have told.
#[derive(Default)]
struct Inbox {
    events: Cell<Vec<Event>>,
    /// libiscsi's words at the first failure: a later one, of no interest, overwrites them.
    error: Cell<Option<String>>,
}

/// Something ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event {
    pub(super) tag: u32,
    pub(super) ended: Ended,
}

/// How far the session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    Connecting,
    LoggingIn,
    Clearing,
    Probing,
    Identifying,
    Ready,
}

/// What came of one of the session's own steps.
pub(super) enum Step {
    /// More to come.
    Going,
    /// The unit answers; whether it told that it was powered on, or has another size.
    Ready { power_on: bool, capacity: bool },
    /// The portal sent us to another: its socket is another, too.
    Moved,
    /// It can't be had.
    Failed(Fault),
}

/// A session with a target.
pub(super) struct Session {
    login: Arc<Login>,
    isid: Isid,
    context: *mut Context,
    phase: Phase,
    inbox: Rc<Inbox>,
    tags: Vec<Rc<[Tag]>>,
    /// The events that `take_events` gave last: their memory is used again.
    spare: Vec<Event>,
    /// The task of PROBE or IDENTIFY.
    probe: *mut ScsiTask,
    identity: Vec<u8>,
    identity_piece: Vec<libc::iovec>,
    /// It was ready once, or somebody before us had its identity: the next login must get rid of the
    /// predecessor's tasks.
    again: bool,
    attentions: u32,
    redirects: u32,
    power_on: bool,
    capacity: bool,
}

// SAFETY: libiscsi keeps a context's state in the context and asks only that one thread at a time
// use it; the inbox and the tags are reached through the session and by callbacks that run inside
// calls on it.
unsafe impl Send for Session {}

impl Session {
    /// A session that isn't there yet.
    pub(super) fn new(login: Arc<Login>) -> Self {
        Self {
            isid: login.isids.next(),
            again: login.isids.are_inherited(),
            login,
            context: null_mut(),
            phase: Phase::Down,
            inbox: Rc::default(),
            tags: Vec::new(),
            spare: Vec::new(),
            probe: null_mut(),
            identity: vec![0; IDENTITY_BYTES],
            identity_piece: Vec::new(),
            attentions: 0,
            redirects: 0,
            power_on: false,
            capacity: false,
        }
    }

    /// Begins to connect and to log in.
    pub(super) fn start(&mut self) -> Result<(), Fault> {
        self.redirects = 0;
        self.connect(self.login.address)
    }

    fn connect(&mut self, address: SocketAddr) -> Result<(), Fault> {
        self.destroy();
        (self.attentions, self.power_on, self.capacity) = (0, false, false);
        let login = self.login.clone();
        let lib = login.library;
        let portal = CString::new(address.to_string()).map_err(|_| Fault::local("an address"))?;
        let digest = if login.header_digest { DIGEST_CRC32C } else { DIGEST_NONE };
        let tag = self.tag(CONNECT);
        // SAFETY: all strings are terminated and are copied by libiscsi; the context is new and
        // ours. Its functions' failure is only ever "too late" (logged in), which it is not.
        unsafe {
            self.context = (lib.iscsi_create_context)(login.initiator.as_ptr());
            if self.context.is_null() {
                return Err(Fault::local("no memory for a session"));
            }
            (lib.iscsi_set_noautoreconnect)(self.context, 1);
            (lib.iscsi_set_session_type)(self.context, SESSION_NORMAL);
            (lib.iscsi_set_targetname)(self.context, login.target.as_ptr());
            (lib.iscsi_set_header_digest)(self.context, digest);
            (lib.iscsi_set_isid_random)(self.context, self.isid.value, self.isid.qualifier);
            if let Some((user, secret)) = &login.chap {
                let secret = secret.as_ptr().cast();
                (lib.iscsi_set_initiator_username_pwd)(self.context, user.as_ptr(), secret);
            }
            self.phase = Phase::Connecting;
            if (lib.iscsi_connect_async)(self.context, portal.as_ptr(), plain, tag) != 0 {
                return Err(Fault::connect(self.error()));
            }
            // libiscsi makes its socket without; no child of ours may keep a connection alive.
            libc::fcntl(self.fd(), libc::F_SETFD, libc::FD_CLOEXEC);
        }
        Ok(())
    }

    /// Whether commands can be sent.
    pub(super) fn ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether there is a socket.
    pub(super) fn up(&self) -> bool {
        !self.context.is_null()
    }

    /// The socket, or -1.
    pub(super) fn fd(&self) -> c_int {
        if self.context.is_null() {
            return -1;
        }
        // SAFETY: the context is live.
        unsafe { (self.login.library.iscsi_get_fd)(self.context) }
    }

    /// `POLLIN` and `POLLOUT`, as far as libiscsi waits for them.
    pub(super) fn wants(&self) -> c_int {
        if self.context.is_null() {
            return 0;
        }
        // SAFETY: the context is live.
        unsafe { (self.login.library.iscsi_which_events)(self.context) }
    }

    /// Whether something waits to be sent, and may be (the target's window is open).
    pub(super) fn wants_out(&self) -> bool {
        self.wants() & c_int::from(libc::POLLOUT) != 0
    }

    /// Does what the socket is ready for. False: the connection is gone. (True does not mean that
    /// it is not: libiscsi cancels everything then, see [`Answer::Lost`].)
    pub(super) fn service(&mut self, ready: c_int) -> bool {
        if self.context.is_null() {
            return false;
        }
        // SAFETY: the context is live; callbacks reach only the inbox, which nobody borrows; the
        // memory of commands is kept by those who sent them (see `command`).
        unsafe { (self.login.library.iscsi_service)(self.context, ready) == 0 }
    }

    /// Queues a command; its end comes as an event with `tag`. The task is to be [freed](Self::free)
    /// by then, or after `destroy`. None: no memory, or not ready.
    ///
    /// # Safety
    /// The pieces, and the memory they name, of `command.data_bytes` in all, stay where they are
    /// and untouched until the event or `destroy`.
    pub(super) unsafe fn command(
        &mut self,
        tag: u32,
        command: &Command,
        pieces: *mut libc::iovec,
        count: usize,
    ) -> Option<*mut ScsiTask> {
        if self.context.is_null() {
            return None;
        }
        let tag = self.tag(tag);
        let lib = self.login.library;
        let mut cdb = command.cdb;
        let (len, direction) = (c_int::from(command.cdb_len), command.direction);
        let (bytes, count) = (command.data_bytes as c_int, count as c_int);
        // SAFETY: the block is copied; the pieces stay until the end (the caller's promise), which
        // is when libiscsi last looks at them. The tag lives as long as the session.
        unsafe {
            let task = (lib.scsi_create_task)(len, cdb.as_mut_ptr(), direction as c_int, bytes);
            if task.is_null() {
                return None;
            }
            match direction {
                Direction::None => {}
                Direction::In => (lib.scsi_task_set_iov_in)(task, pieces, count),
                Direction::Out => (lib.scsi_task_set_iov_out)(task, pieces, count),
            }
            let lun = self.login.lun;
            let sent =
                (lib.iscsi_scsi_command_async)(self.context, lun, task, commanded, null_mut(), tag);
            if sent != 0 {
                (lib.scsi_free_scsi_task)(task);
                return None;
            }
            Some(task)
        }
    }

    /// Gives a task's memory back.
    ///
    /// # Safety
    /// It came from `command`, its end has been told or the session been destroyed, and it is not
    /// used again.
    pub(super) unsafe fn free(&self, task: *mut ScsiTask) {
        if !task.is_null() {
            // SAFETY: the caller's promise.
            unsafe { (self.login.library.scsi_free_scsi_task)(task) };
        }
    }

    /// Asks the target for a sign of life, which comes as an event with the tag [`PING`].
    pub(super) fn ping(&mut self) -> bool {
        let tag = self.tag(PING);
        let lib = self.login.library;
        // SAFETY: the context is live; there is no payload; the tag lives as long as the session.
        self.ready()
            && unsafe { (lib.iscsi_nop_out_async)(self.context, Some(plain), null_mut(), 0, tag) }
                == 0
    }

    /// Whether anything has ended since the last time.
    pub(super) fn has_events(&self) -> bool {
        let events = self.inbox.events.take();
        let any = !events.is_empty();
        self.inbox.events.set(events);
        any
    }

    /// What has ended since the last time, in that order. Give it back with [`Self::recycle`].
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        self.inbox.events.replace(std::mem::take(&mut self.spare))
    }

    /// Takes back what `take_events` gave.
    pub(super) fn recycle(&mut self, mut events: Vec<Event>) {
        events.clear();
        self.spare = events;
    }

    /// One of the session's own steps has ended (`event.tag` is below [`PING`]).
    pub(super) fn step(&mut self, event: Event) -> Step {
        let lib = self.login.library;
        let status = event.ended.status;
        match (event.tag, self.phase) {
            (CONNECT, Phase::Connecting) if status == GOOD => {
                self.phase = Phase::LoggingIn;
                let tag = self.tag(LOGIN);
                // SAFETY: the context is live and connected; the tag lives as long as the session.
                let sent = unsafe { (lib.iscsi_login_async)(self.context, plain, tag) };
                if sent == 0 { Step::Going } else { Step::Failed(Fault::connect(self.error())) }
            }
            (CONNECT, _) => Step::Failed(Fault::connect(self.error())),
            (LOGIN, Phase::LoggingIn) if status == GOOD && self.again => {
                self.phase = Phase::Clearing;
                let (tag, lun) = (self.tag(CLEAR), self.login.lun);
                // SAFETY: as above.
                let sent = unsafe {
                    let all = u32::MAX;
                    (lib.iscsi_task_mgmt_async)(
                        self.context,
                        lun,
                        ABORT_TASK_SET,
                        all,
                        0,
                        plain,
                        tag,
                    )
                };
                if sent == 0 { Step::Going } else { Step::Failed(Fault::connect(self.error())) }
            }
            (LOGIN, Phase::LoggingIn) if status == GOOD => self.probe(),
            (LOGIN, Phase::LoggingIn) if status == REDIRECT => self.redirect(),
            (LOGIN, _) => Step::Failed(Fault::login(&self.login, &self.error())),
            // Whatever the answer is: a target without this function has ended the tasks with
            // their session.
            (CLEAR, Phase::Clearing) if status != CANCELLED => self.probe(),
            (PROBE, Phase::Probing) => self.probed(event.ended),
            (IDENTIFY, Phase::Identifying) => self.identified(event.ended),
            _ => Step::Failed(Fault::connect("the target closed the connection".to_owned())),
        }
    }

    fn redirect(&mut self) -> Step {
        // SAFETY: the context is live, and so is the string in it, until `connect` ends it.
        let address =
            unsafe { CStr::from_ptr((self.login.library.iscsi_get_target_address)(self.context)) };
        let text = address.to_string_lossy().into_owned();
        // Without its portal group, which may follow a comma.
        let place = text.split(',').next().unwrap_or_default();
        self.redirects += 1;
        match place.parse() {
            Ok(address) if self.redirects <= REDIRECTS_MAX => match self.connect(address) {
                Ok(()) => Step::Moved,
                Err(fault) => Step::Failed(fault),
            },
            _ => Step::Failed(Fault::connect(format!(
                "the portal sent us on to `{place}`, which is no address or one too many: name \
                 that portal itself"
            ))),
        }
    }

    fn probe(&mut self) -> Step {
        self.phase = Phase::Probing;
        // SAFETY: there is no data.
        match unsafe { self.command(PROBE, &Command::test_unit_ready(), null_mut(), 0) } {
            Some(task) => {
                self.probe = task;
                Step::Going
            }
            None => Step::Failed(Fault::local("no memory for a command")),
        }
    }

    /// Each new session begins with what the unit has to tell (29h and others), which would else be
    /// the answer to somebody's command.
    fn probed(&mut self, ended: Ended) -> Step {
        self.free_probe();
        match ended.answer() {
            Answer::Again(news) => {
                self.power_on |= news == News::PowerOn;
                self.capacity |= news == News::Capacity;
                self.attentions += 1;
                if self.attentions > ATTENTIONS_MAX {
                    return Step::Failed(Fault::connect("the unit is never ready".to_owned()));
                }
                self.probe()
            }
            Answer::Lost => Step::Failed(Fault::connect("the connection was lost".to_owned())),
            // LOGICAL UNIT NOT SUPPORTED: a target that has just been started may not have it yet.
            Answer::Failed(_) if ended.sense_key == 5 => Step::Failed(Fault::unit(&self.login)),
            // Not ready, or reserved: the commands themselves will tell.
            _ if self.login.identity.get().is_some() => self.identify(),
            _ => self.is_ready(),
        }
    }

    /// Asks who the unit is: behind the same number there may be another by now.
    fn identify(&mut self) -> Step {
        self.phase = Phase::Identifying;
        self.identity.fill(0);
        let (iov_base, iov_len) = (self.identity.as_mut_ptr().cast(), self.identity.len());
        self.identity_piece.clear();
        self.identity_piece.push(libc::iovec { iov_base, iov_len });
        let piece = self.identity_piece.as_mut_ptr();
        let command = Command::inquiry(Some(IDENTITY_PAGE), IDENTITY_BYTES as u16);
        // SAFETY: both vectors are the session's and not touched before the end.
        match unsafe { self.command(IDENTIFY, &command, piece, 1) } {
            Some(task) => {
                self.probe = task;
                Step::Going
            }
            None => Step::Failed(Fault::local("no memory for a command")),
        }
    }

    fn identified(&mut self, ended: Ended) -> Step {
        self.free_probe();
        match ended.answer() {
            Answer::Done { .. } if self.is_the_same() => self.is_ready(),
            Answer::Done { .. } => Step::Failed(Fault::another(&self.login)),
            Answer::Lost => Step::Failed(Fault::connect("the connection was lost".to_owned())),
            _ => Step::Failed(Fault::connect("the unit doesn't say who it is".to_owned())),
        }
    }

    fn is_the_same(&self) -> bool {
        self.login.identity.get() == Some(&identity_of(&self.identity))
    }

    fn is_ready(&mut self) -> Step {
        self.phase = Phase::Ready;
        self.again = true;
        Step::Ready { power_on: self.power_on, capacity: self.capacity }
    }

    fn free_probe(&mut self) {
        let task = std::mem::replace(&mut self.probe, null_mut());
        // SAFETY: it has ended, or the session is destroyed; the pointer is forgotten.
        unsafe { self.free(task) };
    }

    /// What libiscsi says went wrong.
    pub(super) fn error(&self) -> String {
        if let Some(text) = self.inbox.error.take() {
            return text;
        }
        if self.context.is_null() {
            return String::new();
        }
        // SAFETY: the context is live.
        unsafe { error_of(self.login.library, self.context) }
    }

    /// Ends the session at once: what the kernel has of it to send is dropped, not sent. Writes of
    /// a lost connection must not reach the target after their repetition.
    pub(super) fn abort(&mut self) {
        if !self.context.is_null() {
            // SAFETY: an address of this family and length has no more to it, and is only read;
            // all zeroes is a valid one. (connect(2): AF_UNSPEC dissolves the association; TCP
            // resets the connection.)
            unsafe {
                let mut nobody: libc::sockaddr = std::mem::zeroed();
                nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
                let len = size_of::<libc::sockaddr>() as libc::socklen_t;
                libc::connect(self.fd(), &raw const nobody, len);
            }
        }
        self.destroy();
    }

    /// Ends the session without a word, and forgets what was in flight: no event comes any more.
    pub(super) fn destroy(&mut self) {
        let context = std::mem::replace(&mut self.context, null_mut());
        self.phase = Phase::Down;
        if context.is_null() {
            return;
        }
        let lib = self.login.library;
        // SAFETY: the context is live and forgotten here. Destroying it calls back for everything
        // in flight, into the inbox, which is emptied below. The shutdown makes the target see the
        // end even while an io_uring poll still holds the socket.
        unsafe {
            libc::shutdown((lib.iscsi_get_fd)(context), libc::SHUT_RDWR);
            (lib.iscsi_destroy_context)(context);
        }
        self.free_probe();
        let mut events = self.inbox.events.take();
        events.clear();
        self.inbox.events.set(events);
        self.inbox.error.set(None);
    }

    /// The private pointer for `value`.
    fn tag(&mut self, value: u32) -> *mut c_void {
        let (chunk, index) = ((value / CHUNK) as usize, (value % CHUNK) as usize);
        while self.tags.len() <= chunk {
            let first = self.tags.len() as u32 * CHUNK;
            let inbox = Rc::as_ptr(&self.inbox);
            self.tags.push((first..first + CHUNK).map(|value| Tag { inbox, value }).collect());
        }
        (&raw const self.tags[chunk][index]).cast_mut().cast()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// The end of something that has no task.
extern "C" fn plain(context: *mut Context, status: c_int, _: *mut c_void, private: *mut c_void) {
    if !matches!(status, GOOD | CANCELLED | REDIRECT)
        && let Ok(library) = library::get()
    {
        // SAFETY: the context is live during the callback; the private pointer is a tag's, whose
        // inbox is a cell, see `tell`.
        unsafe {
            let text = error_of(library, context);
            (*(*private.cast::<Tag>()).inbox).error.set(Some(text));
        }
    }
    // SAFETY: the private pointer is a tag's, see `tell`.
    unsafe { tell(private, Ended { status, missing_bytes: Some(0), sense_key: 0, ascq: 0 }) };
}

/// The end of a command.
extern "C" fn commanded(_: *mut Context, status: c_int, task: *mut c_void, private: *mut c_void) {
    let task = task.cast::<ScsiTask>();
    let mut ended = Ended { status, missing_bytes: Some(0), sense_key: 0, ascq: 0 };
    // SAFETY: libiscsi gives the command's task, or null; it is live during the callback, and
    // nobody else looks at it now.
    if let Some(task) = unsafe { task.as_ref() }
        && status != CANCELLED
    {
        ended.missing_bytes = match task.residual_status {
            RESIDUAL_NONE => Some(0),
            RESIDUAL_UNDERFLOW => u32::try_from(task.residual).ok(),
            _ => None,
        };
        (ended.sense_key, ended.ascq) = (task.sense.key, task.sense.ascq);
    }
    // SAFETY: the private pointer is a tag's, see `tell`.
    unsafe { tell(private, ended) };
}

/// What libiscsi says went wrong last.
///
/// # Safety
/// The context is live.
unsafe fn error_of(library: &Functions, context: *mut Context) -> String {
    // SAFETY: the string lies in the context, and is copied before anything else is done.
    unsafe { CStr::from_ptr((library.iscsi_get_error)(context)) }
        .to_string_lossy()
        .trim()
        .to_owned()
}

/// Puts an end into its session's inbox.
///
/// # Safety
/// `private` came from [`Session::tag`] of a session that lives: its context does, and calls back.
/// Tags and inboxes lie behind an `Rc`, are only ever shared, and the inbox is a cell.
unsafe fn tell(private: *mut c_void, ended: Ended) {
    // SAFETY: the caller's promise.
    let (tag, inbox) = unsafe {
        let tag = &*private.cast::<Tag>();
        (tag.value, &*tag.inbox)
    };
    let mut events = inbox.events.take();
    events.push(Event { tag, ended });
    inbox.events.set(events);
}
