//! The storage path of a disk: whether its volume answers, told by all its queues, in one place.
//!
//! Contract: queues call in only when something is wrong, or was; while all is well they look at
//! one flag. A loss is the disk's: it begins with the first queue that gets no answer (or a bad
//! one) and ends when no queue is without. It is one event in the log when it begins, when it gets
//! worse, and when it ends, however many queues there are.
//! Invariant: a disk that was fenced stays so.
//!
//! Deliberately absent: what happens to the I/O (`path`, `hold`).

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A volume that fails and works in turn (one bad sector) is told of no more often than this.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What a guest gets from the volume at the moment, from good to bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathState {
    /// It answers.
    #[default]
    Ok,
    /// I/O at the volume neither completes nor fails.
    Silent,
    /// I/O fails, and is kept to be tried again.
    Holding,
    /// I/O fails, and the guest is told.
    Reporting,
    /// Another client has taken the volume: nothing is written any more.
    Fenced,
}

/// The storage path at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathView {
    /// What the guest gets.
    pub state: PathState,
    /// For how long it has not been `Ok`; none: it is.
    pub since: Option<Duration>,
    /// Losses so far, the present one included.
    pub losses: u64,
    /// How long they lasted in all, the present one included.
    pub lost: Duration,
}

/// What is worth being told of beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathNews {
    /// A loss has begun, or got worse: what the guest gets now.
    Lost(PathState),
    /// It is over; how long it lasted.
    Back(Duration),
    /// Another client has taken the volume.
    Fenced,
}

/// Who is told. Called by queue threads: it must not wait.
struct Listener(Box<dyn Fn(PathNews) + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

/// Some queue tells the guest of failures: any success ends that.
const REPORTING: u8 = 1;
/// The volume was taken by another client.
const FENCED: u8 = 2;

/// The storage path of one disk.
#[derive(Debug)]
pub struct StoragePath {
    disk: String,
    flags: AtomicU8,
    losses: Mutex<Losses>,
    listener: OnceLock<Listener>,
}

#[derive(Debug)]
struct Losses {
    queues: Box<[Queue]>,
    fenced: bool,
    /// Since when the disk's path is lost.
    since: Option<Instant>,
    count: u64,
    /// How long those lasted that have ended.
    ended: Duration,
    /// I/Os of the present loss that were kept, and that ended with an error.
    held: u64,
    failed: u64,
    /// How bad the log says that it is.
    told: PathState,
    told_at: Option<Instant>,
    /// Losses that the log doesn't have.
    untold: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Queue {
    state: PathState,
    since: Option<Instant>,
}

/// What a queue knows of a failure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) queue: u16,
    pub(crate) state: PathState,
    /// None: there is no answer.
    pub(crate) errno: Option<i32>,
    /// Requests of the queue that are in work.
    pub(crate) waiting: usize,
    /// The I/O is kept.
    pub(crate) held: bool,
}

impl StoragePath {
    pub(crate) fn new(disk: &str, queues: u16) -> Self {
        let losses = Losses {
            queues: vec![Queue::default(); usize::from(queues)].into(),
            fenced: false,
            since: None,
            count: 0,
            ended: Duration::ZERO,
            held: 0,
            failed: 0,
            told: PathState::Ok,
            told_at: None,
            untold: 0,
        };
        Self {
            disk: disk.to_owned(),
            flags: AtomicU8::new(0),
            losses: Mutex::new(losses),
            listener: OnceLock::new(),
        }
    }

    /// Tells `listener` of whatever the log is told of, from now on. Queue threads call it: it must
    /// not wait. There is one; a second one is not heard.
    pub fn listen(&self, listener: impl Fn(PathNews) + Send + Sync + 'static) {
        let _ = self.listener.set(Listener(Box::new(listener)));
    }

    fn tell(&self, news: PathNews) {
        if let Some(Listener(listener)) = self.listener.get() {
            listener(news);
        }
    }

    /// What is known now.
    pub fn view(&self) -> PathView {
        let losses = self.lock();
        let since = losses.since.map(|at| at.elapsed());
        PathView {
            state: losses.state(),
            since,
            losses: losses.count,
            lost: losses.ended + since.unwrap_or_default(),
        }
    }

    /// Whether a success is worth telling of.
    #[inline]
    pub(crate) fn is_reporting(&self) -> bool {
        self.flags.load(Relaxed) & REPORTING != 0
    }

    /// Whether another client has taken the volume.
    #[inline]
    pub(crate) fn is_fenced(&self) -> bool {
        self.flags.load(Relaxed) & FENCED != 0
    }

    /// For how long a queue has had no answer.
    pub(crate) fn age(&self, queue: u16) -> Duration {
        let losses = self.lock();
        let since = losses.queues.get(usize::from(queue)).and_then(|queue| queue.since);
        since.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// A queue has trouble, or still has.
    #[cold]
    pub(crate) fn trouble(&self, trouble: Trouble) {
        let now = Instant::now();
        let mut losses = self.lock();
        if losses.fenced {
            return;
        }
        let before = losses.state();
        if let Some(queue) = losses.queues.get_mut(usize::from(trouble.queue)) {
            queue.state = trouble.state;
            queue.since.get_or_insert(now);
        }
        if losses.since.is_none() {
            losses.since = Some(now);
            losses.count += 1;
        }
        match (trouble.errno, trouble.held) {
            (None, _) => {}
            (Some(_), true) => losses.held += 1,
            (Some(_), false) => losses.failed += 1,
        }
        if trouble.state == PathState::Reporting {
            self.flags.fetch_or(REPORTING, Relaxed);
        }
        let state = losses.state();
        if state <= losses.told {
            return;
        }
        let soon = losses.told_at.is_some_and(|at| now.duration_since(at) < TELL_EVERY);
        let news = before != PathState::Ok && before != state;
        if losses.told == PathState::Ok && soon && !news {
            // Another attempt of the queue brings it up again, should this last.
            return;
        }
        let others = losses.untold;
        losses.told = state;
        losses.told_at = Some(now);
        losses.untold = 0;
        drop(losses);
        self.tell_trouble(&trouble, before, others);
        self.tell(PathNews::Lost(state));
    }

    fn tell_trouble(&self, trouble: &Trouble, before: PathState, others: u64) {
        let (disk, queue, waiting) = (self.disk.as_str(), trouble.queue, trouble.waiting);
        let Some(errno) = trouble.errno else {
            tracing::warn!(
                disk,
                queue,
                waiting,
                others,
                "the volume doesn't answer: requests wait in it"
            );
            return;
        };
        let error = io::Error::from_raw_os_error(errno);
        let what = match (trouble.state, before) {
            (PathState::Reporting, PathState::Holding) => {
                "the volume fails for longer than `hold_limit`: what was held ends with an error, \
                 and the guest is told of every failure until the volume works"
            }
            (PathState::Reporting, _) => "the volume fails: the guest is told",
            _ => "the volume fails: requests are held and tried again until it works",
        };
        tracing::warn!(disk, queue, %error, waiting, others, "{what}");
    }

    /// The volume answered a queue; `still_held`: some of its I/O is kept.
    #[cold]
    pub(crate) fn answered(&self, queue: u16, still_held: bool) {
        self.ends("the volume works again", |index, state| match state {
            // The queue that was told of a failure may have no I/O that could tell of the end.
            PathState::Reporting => true,
            PathState::Silent => index == usize::from(queue),
            PathState::Holding => index == usize::from(queue) && !still_held,
            PathState::Ok | PathState::Fenced => false,
        });
        let reports = |queue: &Queue| queue.state == PathState::Reporting;
        if !self.lock().queues.iter().any(reports) {
            self.flags.fetch_and(!REPORTING, Relaxed);
        }
    }

    /// A queue was stopped: it doesn't wait for the volume any more.
    #[cold]
    pub(crate) fn left(&self, queue: u16) {
        self.ends("the queues that the volume fails are stopped", |index, _| {
            index == usize::from(queue)
        });
    }

    fn ends(&self, how: &'static str, ends: impl Fn(usize, PathState) -> bool) {
        let mut losses = self.lock();
        if losses.fenced {
            return;
        }
        for (index, queue) in losses.queues.iter_mut().enumerate() {
            if ends(index, queue.state) {
                *queue = Queue::default();
            }
        }
        if losses.state() != PathState::Ok {
            return;
        }
        let Some(since) = losses.since.take() else { return };
        let lasted = since.elapsed();
        losses.ended += lasted;
        let (held, failed) = (std::mem::take(&mut losses.held), std::mem::take(&mut losses.failed));
        let told = std::mem::take(&mut losses.told) != PathState::Ok;
        if !told {
            losses.untold += 1;
        }
        drop(losses);
        if told {
            let seconds = format_args!("{:.3}", lasted.as_secs_f64());
            tracing::info!(disk = self.disk, %seconds, held, failed, "{how}");
            self.tell(PathNews::Back(lasted));
        }
    }

    /// Another client has taken the volume.
    #[cold]
    pub(crate) fn fence(&self) {
        let mut losses = self.lock();
        if std::mem::replace(&mut losses.fenced, true) {
            return;
        }
        self.flags.fetch_or(FENCED, Relaxed);
        if losses.since.is_none() {
            losses.since = Some(Instant::now());
            losses.count += 1;
        }
        drop(losses);
        tracing::error!(
            disk = self.disk,
            "its lock was taken by another client: nothing is written any more, and every request \
             ends with an error. If the guest runs elsewhere now, end this daemon; if not, see who \
             holds the volume before this daemon is started anew"
        );
        self.tell(PathNews::Fenced);
    }

    fn lock(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Losses {
    fn state(&self) -> PathState {
        if self.fenced {
            return PathState::Fenced;
        }
        self.queues.iter().map(|queue| queue.state).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(queue: u16, state: PathState) -> Trouble {
        let errno = (state != PathState::Silent).then_some(libc::EIO);
        Trouble { queue, state, errno, waiting: 1, held: state == PathState::Holding }
    }

    fn seen(path: &StoragePath) -> (PathState, u64) {
        let view = path.view();
        assert_eq!(view.since.is_some(), view.state != PathState::Ok);
        (view.state, view.losses)
    }

    #[test]
    fn a_loss_is_the_disks_and_lasts_until_every_queue_has_its_answer() {
        let path = StoragePath::new("a", 2);
        assert_eq!(seen(&path), (PathState::Ok, 0));
        path.trouble(trouble(0, PathState::Silent));
        path.trouble(trouble(1, PathState::Holding));
        path.trouble(trouble(0, PathState::Holding));
        assert_eq!(seen(&path), (PathState::Holding, 1));
        path.answered(1, false);
        path.answered(0, true);
        assert_eq!(seen(&path), (PathState::Holding, 1));
        path.answered(0, false);
        assert_eq!(seen(&path), (PathState::Ok, 1));
        let lost = path.view().lost;
        assert!(lost > Duration::ZERO);
        assert_eq!(path.view().lost, lost, "it doesn't grow while all is well");
        path.trouble(trouble(1, PathState::Reporting));
        assert_eq!(seen(&path), (PathState::Reporting, 2));
    }

    #[test]
    fn who_listens_hears_of_the_loss_and_of_its_end_once() {
        let path = StoragePath::new("a", 2);
        let heard = std::sync::Arc::new(Mutex::new(Vec::new()));
        let ear = heard.clone();
        path.listen(move |news| ear.lock().unwrap_or_else(PoisonError::into_inner).push(news));
        path.trouble(trouble(0, PathState::Silent));
        path.trouble(trouble(1, PathState::Silent));
        path.trouble(trouble(1, PathState::Holding));
        path.answered(0, false);
        path.answered(1, false);
        path.fence();
        path.fence();
        let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        let [first, worse, PathNews::Back(_), last] = heard[..] else { panic!("{heard:?}") };
        assert_eq!(first, PathNews::Lost(PathState::Silent));
        assert_eq!(worse, PathNews::Lost(PathState::Holding));
        assert_eq!(last, PathNews::Fenced);
    }

    #[test]
    fn a_success_of_any_queue_ends_what_was_reported_to_another() {
        let path = StoragePath::new("a", 2);
        path.trouble(trouble(1, PathState::Reporting));
        assert!(path.is_reporting());
        path.answered(0, false);
        assert!(!path.is_reporting());
        assert_eq!(seen(&path), (PathState::Ok, 1));
        // But it says nothing of I/O that is lost in another part of the storage.
        path.trouble(trouble(1, PathState::Silent));
        path.answered(0, false);
        assert_eq!(seen(&path), (PathState::Silent, 2));
        path.left(1);
        assert_eq!(seen(&path), (PathState::Ok, 2));
    }

    #[test]
    fn the_age_is_that_of_a_queues_own_trouble() {
        let path = StoragePath::new("a", 2);
        path.trouble(trouble(0, PathState::Silent));
        path.trouble(trouble(0, PathState::Holding));
        assert!(path.age(0) > Duration::ZERO);
        assert_eq!(path.age(1), Duration::ZERO);
        path.answered(0, false);
        assert_eq!(path.age(0), Duration::ZERO);
    }

    #[test]
    fn nothing_mends_a_fenced_disk() {
        let path = StoragePath::new("a", 1);
        path.trouble(trouble(0, PathState::Holding));
        path.fence();
        path.fence();
        path.answered(0, false);
        path.left(0);
        path.trouble(trouble(0, PathState::Reporting));
        assert!(path.is_fenced());
        assert_eq!(seen(&path), (PathState::Fenced, 1));
    }
}
