//! What the core tells JavaScript: records in order, one wake-up per event-loop turn.
//!
//! A record is a header of four native-endian `u32` (kind, link, stream, payload length), the
//! payload, and padding to a multiple of four, so that JavaScript reads it through one typed array.
//! The kinds stand in [`kind`]; `js/core.js` reads them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use crate::link::mux::Sink;

/// Record kinds.
pub mod kind {
    /// A peer opened a stream on an accepted link.
    pub const OPENED: u32 = 1;
    /// A message; its own kind stands in bits 8–15.
    pub const MESSAGE: u32 = 2;
    /// A message for several streams: `stream` is their number, the ids stand before the payload
    /// (and count towards its length).
    pub const MULTICAST: u32 = 3;
    /// A stream ended: `u16` code (native-endian), then the reason.
    pub const CLOSED: u32 = 4;
    /// A link is up; JSON.
    pub const LINK_UP: u32 = 5;
    /// A link is down; JSON.
    pub const LINK_DOWN: u32 = 6;
    /// A new view is to be taken.
    pub const VIEW: u32 = 7;
    /// Something an operator may want to know; JSON.
    pub const LOG: u32 = 8;
    /// Bytes to be written to a pipe (`link` is the pipe's id).
    pub const PIPE_OUT: u32 = 9;
    /// The core is done with a pipe.
    pub const PIPE_CLOSE: u32 = 10;
    /// A pipe is to be connected; JSON.
    pub const PIPE_DIAL: u32 = 11;
    /// A pipe that was full takes bytes again.
    pub const PIPE_RESUME: u32 = 12;
    /// A health check of a peer ended; JSON.
    pub const HEALTH: u32 = 13;
    /// What this node may serve has changed: `stream` is one of [`super::right`], the payload a
    /// reason.
    pub const RIGHT: u32 = 14;
    /// What is to be done about documents that move away; a JSON array of
    /// [`Effect`](crate::cluster::handoff::Effect).
    pub const HANDOFF: u32 = 15;
}

/// What became of the right to serve.
pub mod right {
    /// It waits for news.
    pub const WAITS: u32 = 0;
    /// It may, perhaps more than before.
    pub const SERVES: u32 = 1;
    /// Its lease has lapsed, or it was put out: another node may serve what it served.
    pub const LAPSED: u32 = 2;
    /// Its id belongs to a node that runs, at the address in the payload.
    pub const ID_TAKEN: u32 = 3;
    /// It is no member any more, and stays out.
    pub const LEFT: u32 = 4;
}

/// A drain hands over about so many bytes at most (a longer record comes alone).
const SEGMENT: usize = 64 * 1024;

/// Links stop reading while more than this waits for JavaScript: the peer's TCP window closes
/// instead of this process growing.
const HIGH: usize = 4 * 1024 * 1024;

/// What [`Inbox::drain`] took.
#[derive(Debug, PartialEq, Eq)]
pub enum Drain {
    /// Nothing waits.
    Empty,
    /// What waits is longer than there is room: so many bytes.
    Needs(usize),
    /// Records.
    Records {
        /// They are whole, and a multiple of four bytes.
        bytes: Vec<u8>,
        /// Others wait.
        more: bool,
    },
}

impl Drain {
    /// The records, if any were taken.
    #[must_use]
    pub fn records(self) -> Option<Vec<u8>> {
        match self {
            Self::Records { bytes, .. } => Some(bytes),
            Self::Empty | Self::Needs(_) => None,
        }
    }
}

/// A queue of records with one reader, the JavaScript thread.
#[derive(Default)]
pub struct Inbox {
    // std's Mutex: held for a memcpy, never across an await.
    queue: Mutex<Queue>,
    /// A wake-up is on its way.
    pending: AtomicBool,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Told when `queue` falls below `HIGH`.
    room: Notify,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Queue {
    segments: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Inbox {
    /// Sets what wakes JavaScript. Called once, before anything is queued.
    pub fn on_wake(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.wake.set(Box::new(wake));
    }

    /// Starts writing records. Holds the queue's lock until dropped; only then is JavaScript woken,
    /// or it would wake up to wait for the lock.
    pub fn writer(&self) -> Writer<'_> {
        Writer {
            inbox: self,
            queue: Some(self.lock()),
            wrote: false,
        }
    }

    /// Writes one record.
    pub fn push(&self, kind: u32, link: u32, stream: u32, payload: &[u8]) {
        self.writer().record(kind, link, stream, &[payload]);
    }

    /// Takes the oldest records: about 64 KiB at most, and `room` in any case.
    ///
    /// The first call of a turn clears the pending flag *before* it takes the lock, so that a
    /// record queued meanwhile wakes JavaScript again.
    pub fn drain(&self, room: usize) -> Drain {
        self.pending.store(false, Ordering::SeqCst);
        let mut queue = self.lock();
        if let Some(segment) = queue.segments.front()
            && segment.len() > room
        {
            return Drain::Needs(segment.len());
        }
        let Some(segment) = queue.segments.pop_front() else {
            return Drain::Empty;
        };
        queue.bytes -= segment.len();
        if queue.bytes < HIGH {
            self.room.notify_waiters();
        }
        Drain::Records {
            bytes: segment,
            more: !queue.segments.is_empty(),
        }
    }

    /// Waits until JavaScript has caught up enough.
    pub async fn room(&self) {
        loop {
            let notified = self.room.notified();
            if !self.is_full() {
                return;
            }
            notified.await;
        }
    }

    /// Whether so much waits for JavaScript that nothing more is to be read.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.lock().bytes >= HIGH
    }

    /// JavaScript runs `collect` itself and drains afterwards: what `collect` queues wakes nobody.
    /// Whether there is anything to drain.
    pub fn collect(&self, collect: impl FnOnce()) -> bool {
        self.pending.store(true, Ordering::SeqCst);
        collect();
        // A writer on another thread may have relied on the flag just now: only the queue tells.
        self.pending.store(false, Ordering::SeqCst);
        !self.lock().segments.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic while holding it can at worst have left a record cut short at the end of a
        // segment that `record` writes whole before it counts it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes records; see [`Inbox::writer`].
pub struct Writer<'a> {
    inbox: &'a Inbox,
    /// `None` only while this is dropped.
    queue: Option<MutexGuard<'a, Queue>>,
    wrote: bool,
}

impl Writer<'_> {
    /// Appends one record whose payload is the concatenation of `parts`.
    pub fn record(&mut self, kind: u32, link: u32, stream: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let padded = length.next_multiple_of(4);
        let Some(queue) = self.queue.as_deref_mut() else {
            return;
        };
        let fits = queue
            .segments
            .back()
            .is_some_and(|last| last.len() + 16 + padded <= SEGMENT);
        if !fits {
            queue.segments.push_back(Vec::with_capacity(16 + padded));
        }
        let segment = queue.segments.back_mut().expect("pushed above");
        for word in [kind, link, stream, length as u32] {
            segment.extend_from_slice(&word.to_ne_bytes());
        }
        for part in parts {
            segment.extend_from_slice(part);
        }
        segment.resize(segment.len() + padded - length, 0);
        queue.bytes += 16 + padded;
        self.wrote = true;
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.queue = None;
        if self.wrote
            && !self.inbox.pending.swap(true, Ordering::SeqCst)
            && let Some(wake) = self.inbox.wake.get()
        {
            wake();
        }
    }
}

/// Writes what a mux receives as records of one link. Takes the queue's lock at the first one, so
/// that a read that brought only credits costs none.
pub struct LinkSink<'a> {
    inbox: &'a Inbox,
    link: u32,
    writer: Option<Writer<'a>>,
}

impl<'a> LinkSink<'a> {
    /// A sink for the link `link`.
    pub fn new(inbox: &'a Inbox, link: u32) -> Self {
        Self {
            inbox,
            link,
            writer: None,
        }
    }

    /// Lets go of the queue's lock; JavaScript is woken when the sink is dropped. Nothing more can
    /// be recorded.
    pub fn release(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.queue = None;
        }
    }

    fn record(&mut self, kind: u32, stream: u32, parts: &[&[u8]]) {
        self.writer
            .get_or_insert_with(|| self.inbox.writer())
            .record(kind, self.link, stream, parts);
    }
}

impl Sink for LinkSink<'_> {
    fn opened(&mut self, stream: u32) {
        self.record(kind::OPENED, stream, &[]);
    }

    fn message(&mut self, stream: u32, message_kind: u8, bytes: &[u8]) {
        let kind = kind::MESSAGE | u32::from(message_kind) << 8;
        self.record(kind, stream, &[bytes]);
    }

    fn multicast(&mut self, streams: &[u32], bytes: &[u8]) {
        let ids: Vec<u8> = streams.iter().flat_map(|id| id.to_ne_bytes()).collect();
        self.record(kind::MULTICAST, streams.len() as u32, &[&ids, bytes]);
    }

    fn closed(&mut self, stream: u32, code: u16, reason: &str) {
        self.record(
            kind::CLOSED,
            stream,
            &[&code.to_ne_bytes(), reason.as_bytes()],
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn records(segment: &[u8]) -> Vec<(u32, u32, u32, Vec<u8>)> {
        let (mut at, mut seen) = (0, Vec::new());
        let word = |at: usize| u32::from_ne_bytes(segment[at..at + 4].try_into().unwrap());
        while at < segment.len() {
            let length = word(at + 12) as usize;
            let payload = segment[at + 16..at + 16 + length].to_vec();
            seen.push((word(at), word(at + 4), word(at + 8), payload));
            at += 16 + length.next_multiple_of(4);
        }
        seen
    }

    #[test]
    fn records_are_aligned_and_in_order_and_wake_once() {
        let inbox = Inbox::default();
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        inbox.on_wake(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let mut sink = LinkSink::new(&inbox, 7);
        sink.opened(1);
        sink.message(1, 3, b"abcde");
        sink.multicast(&[1, 2], b"x");
        sink.closed(1, 4401, "no");
        drop(sink);
        inbox.push(kind::VIEW, 0, 0, b"");
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
        let seen = records(&inbox.drain(usize::MAX).records().unwrap());
        let ids = [1u32.to_ne_bytes(), 2u32.to_ne_bytes()].concat();
        assert_eq!(
            seen,
            [
                (kind::OPENED, 7, 1, vec![]),
                (kind::MESSAGE | 3 << 8, 7, 1, b"abcde".to_vec()),
                (kind::MULTICAST, 7, 2, [&ids[..], b"x"].concat()),
                (
                    kind::CLOSED,
                    7,
                    1,
                    [&4401u16.to_ne_bytes()[..], b"no"].concat()
                ),
                (kind::VIEW, 0, 0, vec![]),
            ]
        );
        assert!(inbox.drain(usize::MAX).records().is_none());
        inbox.push(kind::VIEW, 0, 0, b"");
        assert_eq!(wakes.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_drain_is_bounded_and_a_long_record_comes_whole() {
        let inbox = Inbox::default();
        for _ in 0..100 {
            inbox.push(kind::MESSAGE, 1, 1, &[1; 1_500]);
        }
        inbox.push(kind::MESSAGE, 1, 1, &[2; 1 << 20]);
        let mut drained = Vec::new();
        while let Some(segment) = inbox.drain(usize::MAX).records() {
            drained.push(segment.len());
        }
        assert_eq!(
            drained,
            [43 * 1_516, 43 * 1_516, 14 * 1_516, (1 << 20) + 16]
        );
    }

    #[test]
    fn records_for_which_there_is_no_room_stay() {
        let inbox = Inbox::default();
        assert_eq!(inbox.drain(0), Drain::Empty);
        inbox.push(kind::MESSAGE, 1, 1, &[1; 5]);
        assert_eq!(inbox.drain(23), Drain::Needs(24));
        inbox.push(kind::MESSAGE, 1, 1, &[2; SEGMENT]);
        let Drain::Records { bytes, more } = inbox.drain(24) else {
            panic!("records were to be taken");
        };
        assert_eq!((bytes.len(), more), (24, true));
        assert_eq!(inbox.drain(24), Drain::Needs(16 + SEGMENT));
        assert!(matches!(
            inbox.drain(usize::MAX),
            Drain::Records { more: false, .. }
        ));
    }

    #[tokio::test]
    async fn a_full_inbox_holds_its_writers_back() {
        let inbox = Arc::new(Inbox::default());
        inbox.push(kind::MESSAGE, 1, 1, &vec![0; HIGH]);
        let waiting = tokio::spawn({
            let inbox = Arc::clone(&inbox);
            async move { inbox.room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let _ = inbox.drain(usize::MAX);
        waiting.await.unwrap();
    }
}
