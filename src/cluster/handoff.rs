//! The handoffs of one node: documents that it holds and other nodes own, one machine per document
//! and the queue they wait in. Pure: time and randomness come in, effects go out.
//!
//! - **Who is next.** The queue is first in, first out, except that documents that somebody waits
//!   for come first. A document whose attempt failed is queued anew, so that it cannot keep the
//!   others out; one whose attempt was called off by a new view keeps its place.
//! - **When.** A free place is taken after up to [`JITTER`], so that the nodes of a cluster do not
//!   begin all at once when a view changes. After a failure a document waits from [`MIN_BACKOFF`]
//!   to [`MAX_BACKOFF`], twice as long each time.
//! - **Late words.** Every attempt has its own id. What is said about an id that is over changes
//!   nothing, and neither does a word that the state does not ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// Longest delay between a free place and the start that takes it.
pub const JITTER: Duration = Duration::from_millis(20);

/// Shortest pause after a failure, and the longest that a document waits which somebody asks for.
pub const MIN_BACKOFF: Duration = Duration::from_millis(200);

/// Longest pause after a failure.
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Settings of the machine.
#[derive(Debug, Clone)]
pub struct Config {
    /// `migrationConcurrency`: handoffs that run at the same time.
    pub concurrency: usize,
    /// `migrationTimeout`: how long an attempt may take until it is accepted, and after that how
    /// long its release may take before that is reported.
    pub timeout: Duration,
    /// Where ids come from. Shared by the machines of a process: an id is never used twice there.
    pub ids: &'static AtomicU64,
}

/// A document that another node owns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Wanted {
    /// Its name.
    pub document: String,
    /// The node that owns it.
    pub to: String,
}

/// What the shim tells; JSON with the variant's name in `event`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Event {
    /// All documents held here that other nodes own under a view. Replaces the list before it; an
    /// older view's is ignored.
    Wanted {
        /// The view.
        epoch: u64,
        /// In the order in which they are to be queued.
        documents: Vec<Wanted>,
    },
    /// Somebody waits for a document.
    Urgent {
        /// Its name.
        document: String,
    },
    /// The document is stored as far as it was dirty.
    Prepared {
        /// The attempt.
        id: u64,
    },
    /// Its frames go back to the edges.
    Sealed {
        /// The attempt.
        id: u64,
    },
    /// Part of it is sent.
    Sent {
        /// The attempt.
        id: u64,
        /// All bytes sent so far.
        bytes: u64,
    },
    /// The new owner has all of it, and hears of every change.
    Accepted {
        /// The attempt.
        id: u64,
    },
    /// It is not held here any more, and no store of it can start.
    Released {
        /// The attempt.
        id: u64,
        /// Frames that came back to the edges and were sent again.
        frames_replayed: u64,
    },
    /// The attempt came to nothing.
    Failed {
        /// The attempt.
        id: u64,
        /// Why.
        reason: String,
    },
    /// A document is not held any more, without a handoff.
    Gone {
        /// Its name.
        document: String,
    },
    /// The node shuts down: forget everything, ask for nothing more.
    Stop,
}

/// What the shim is asked to do, or told; JSON with the variant's name in `effect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(
    tag = "effect",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Effect {
    /// News: an attempt begins.
    Started {
        /// What moves.
        document: String,
        /// The attempt.
        id: u64,
        /// Where to.
        to: String,
        /// The view that says so.
        epoch: u64,
    },
    /// Store the document if it is dirty, then say `prepared`.
    Prepare {
        /// What moves.
        document: String,
        /// The attempt.
        id: u64,
        /// Where to.
        to: String,
        /// The view that says so.
        epoch: u64,
    },
    /// Send it, and what changes in it from then on; it is served as ever.
    Send {
        /// The attempt.
        id: u64,
    },
    /// Let nothing more in.
    Seal {
        /// The attempt.
        id: u64,
    },
    /// Let go of it.
    Release {
        /// The attempt.
        id: u64,
    },
    /// News: the document has moved.
    Completed {
        /// What moved.
        document: String,
        /// The attempt.
        id: u64,
        /// Where to.
        to: String,
        /// The view under which it moved.
        epoch: u64,
        /// Bytes sent.
        bytes: u64,
        /// From the attempt's start, ms.
        duration: u64,
        /// See [`Event::Released`].
        frames_replayed: u64,
    },
    /// The attempt is over: unseal the document and go on serving it.
    Abort {
        /// The attempt.
        id: u64,
        /// Why.
        reason: String,
    },
    /// News: an attempt failed, or its release takes too long.
    Failed {
        /// What was to move.
        document: String,
        /// The attempt.
        id: u64,
        /// Where to.
        to: String,
        /// The view under which it was to move.
        epoch: u64,
        /// Why.
        reason: String,
        /// What happens next, for people.
        next: String,
        /// ms until it is tried again; `None`: this attempt goes on.
        retry_in: Option<u64>,
    },
}

/// Where a document stands. *Owned here* and *redirected* are what a new list makes of it: not in
/// it, or for another node. *Overdue*: `migrationTimeout` is over, which never means "released".
///
/// | from | signal | to | effects |
/// |---|---|---|---|
/// | – | in the list | `Queued` | |
/// | `Queued` | its turn | `Preparing` | started, prepare |
/// | `Queued` | redirected | `Queued`, for now | |
/// | `Queued` | owned here, gone | – | |
/// | `Preparing` | prepared | `Sending` | send |
/// | `Sending` | accepted | `Sealing` | seal |
/// | `Sealing` | sealed | `Releasing` | release |
/// | `Preparing`, `Sending`, `Sealing` | failed, overdue | `Queued`, for later | abort, failed |
/// | `Preparing`, `Sending`, `Sealing` | redirected | `Queued`, for now | abort |
/// | `Preparing`, `Sending`, `Sealing` | owned here | – | abort |
/// | `Preparing`, `Sending`, `Sealing` | gone | – | |
/// | `Releasing` | failed, overdue: the first of them | `Releasing`, reported | failed |
/// | `Releasing` | released | – | completed |
/// | `Releasing` | gone | – | |
/// | any | any other | the same | |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Waits for its turn.
    Queued {
        /// It has none before.
        not_before: Duration,
    },
    /// Is stored while it is served as ever.
    Preparing,
    /// Is sent and loaded by the new owner, however long that takes: it is served here as ever.
    Sending,
    /// The new owner has it, and nothing more is let in.
    Sealing,
    /// The new owner waits for this node to be done with it. Cannot be called off.
    Releasing {
        /// It was said that this takes too long.
        reported: bool,
    },
}

/// What happens to one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Turn,
    Prepared,
    Sealed,
    Accepted,
    Released,
    Failed,
    Overdue,
    Redirected,
    OwnedHere,
    Gone,
}

/// What becomes of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Same,
    To(State),
    /// Queued anew after a pause.
    Later,
    /// Queued in the place it had, for another node.
    Again,
    /// Forgotten.
    End,
}

impl State {
    fn after(self, signal: Signal) -> Next {
        use Next::{Again, End, Later, Same, To};
        use State::{Preparing, Queued, Releasing, Sealing, Sending};
        match (self, signal) {
            (Queued { .. }, Signal::Turn) => To(Preparing),
            (Queued { .. } | Preparing | Sending | Sealing, Signal::Redirected) => Again,
            (Queued { .. } | Preparing | Sending | Sealing, Signal::OwnedHere) => End,
            (_, Signal::Gone) => End,
            (Preparing, Signal::Prepared) => To(Sending),
            (Sending, Signal::Accepted) => To(Sealing),
            (Sealing, Signal::Sealed) => To(Releasing { reported: false }),
            (Preparing | Sending | Sealing, Signal::Failed | Signal::Overdue) => Later,
            (Releasing { reported: false }, Signal::Failed | Signal::Overdue) => {
                To(Releasing { reported: true })
            }
            (Releasing { .. }, Signal::Released) => End,
            (Queued { .. }, Signal::Prepared | Signal::Failed | Signal::Overdue)
            | (Queued { .. } | Preparing, Signal::Sealed | Signal::Accepted)
            | (Queued { .. } | Preparing | Sending | Sealing, Signal::Released)
            | (Preparing | Sending | Sealing | Releasing { .. }, Signal::Turn)
            | (Sending | Sealing | Releasing { .. }, Signal::Prepared)
            | (Sending, Signal::Sealed)
            | (Sealing, Signal::Accepted)
            | (Releasing { .. }, Signal::Sealed | Signal::Accepted)
            | (Releasing { .. }, Signal::Redirected | Signal::OwnedHere)
            | (Releasing { reported: true }, Signal::Failed | Signal::Overdue) => Same,
        }
    }
}

/// One document.
#[derive(Debug)]
struct Handoff {
    /// The node it is for; while it is released, the one that has accepted it.
    to: Arc<str>,
    /// The view of the last list it was in.
    epoch: u64,
    /// Which list that was.
    list: u64,
    state: State,
    /// Its place in the queue, kept while an attempt runs.
    place: u64,
    /// Since when it has that place.
    queued: Duration,
    urgent: bool,
    /// Attempts for this node so far.
    attempts: u32,
    /// The attempt that runs; of no meaning while it is queued.
    id: u64,
}

/// An attempt that runs.
#[derive(Debug)]
struct Attempt {
    document: Arc<str>,
    /// The view it began under.
    epoch: u64,
    began: Duration,
    /// `None` once it has been reported.
    deadline: Option<Duration>,
    bytes: u64,
}

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Wait for their turn.
    pub queued: usize,
    /// Have an attempt that runs.
    pub running: usize,
}

/// One document as others may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub document: Arc<str>,
    /// The attempt that runs.
    pub id: Option<u64>,
    /// Where to.
    pub to: Arc<str>,
    /// The view that says so.
    pub epoch: u64,
    /// `queued`, `preparing`, `transferring`, `sealed` or `releasing`.
    pub state: &'static str,
    /// When the attempt began, or when the document was queued.
    pub since: Duration,
    /// Sent by this attempt.
    pub bytes: u64,
    /// Attempts so far, this one included.
    pub attempts: u32,
}

/// All handoffs of one node. As many documents as the shim holds, at most.
#[derive(Debug)]
pub struct Handoffs {
    config: Config,
    stopped: bool,
    /// The view of the last list.
    epoch: u64,
    /// Lists taken so far.
    lists: u64,
    /// Places given out so far.
    places: u64,
    documents: BTreeMap<Arc<str>, Handoff>,
    /// Attempts that run, by id.
    running: BTreeMap<u64, Attempt>,
    /// May begin: the urgent ones first (`false` sorts first), then by place.
    ready: BTreeMap<(bool, u64), Arc<str>>,
    /// In a pause: by its end, then by place.
    waiting: BTreeMap<(Duration, u64), Arc<str>>,
    /// When each free place that there is somebody for is taken; sorted.
    starts: Vec<Duration>,
}

/// One call's surroundings.
struct Turn<'a, R> {
    now: Duration,
    rng: &'a mut R,
    effects: Vec<Effect>,
}

impl Handoffs {
    /// Nothing is to be handed over yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            stopped: false,
            epoch: 0,
            lists: 0,
            places: 0,
            documents: BTreeMap::new(),
            running: BTreeMap::new(),
            ready: BTreeMap::new(),
            waiting: BTreeMap::new(),
            starts: Vec::new(),
        }
    }

    /// Takes what the shim says.
    pub fn handle(&mut self, event: Event, now: Duration, rng: &mut impl Rng) -> Vec<Effect> {
        if self.stopped {
            return Vec::new();
        }
        let effects = Vec::new();
        let mut turn = Turn { now, rng, effects };
        match event {
            Event::Wanted { epoch, documents } => self.wanted(epoch, documents, &mut turn),
            Event::Urgent { document } => self.urgent(&document, now),
            Event::Prepared { id } => self.said(id, Signal::Prepared, "", &mut turn),
            Event::Sealed { id } => self.said(id, Signal::Sealed, "", &mut turn),
            Event::Sent { id, bytes } => self.sent(id, bytes),
            Event::Accepted { id } => self.said(id, Signal::Accepted, "", &mut turn),
            Event::Released {
                id,
                frames_replayed,
            } => self.released(id, frames_replayed, &mut turn),
            Event::Failed { id, reason } => self.said(id, Signal::Failed, &reason, &mut turn),
            Event::Gone { document } => {
                self.signal(&Arc::from(document), Signal::Gone, "", &mut turn);
            }
            Event::Stop => {
                let config = self.config.clone();
                *self = Self::new(config);
                self.stopped = true;
                return Vec::new();
            }
        }
        self.advance(&mut turn);
        turn.effects
    }

    /// To be called at [`Self::deadline`].
    pub fn tick(&mut self, now: Duration, rng: &mut impl Rng) -> Vec<Effect> {
        let effects = Vec::new();
        let mut turn = Turn { now, rng, effects };
        self.advance(&mut turn);
        turn.effects
    }

    /// When something is due next; after the last call's time.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let start = self.starts.first().copied();
        // Who is in a pause need not be looked at before there is a place.
        let pause = self.waiting.first_key_value().map(|((end, _), _)| *end);
        let pause = pause.filter(|_| self.places_left() > 0);
        let overdue = self.running.values().filter_map(|attempt| attempt.deadline);
        overdue.chain(start).chain(pause).min()
    }

    /// How many there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            queued: self.documents.len() - self.running.len(),
            running: self.running.len(),
        }
    }

    /// Up to `limit` documents: first those that run, then the others in the order of their turns.
    #[must_use]
    pub fn list(&self, limit: usize) -> Vec<Entry> {
        let running = self.running.values().map(|attempt| &attempt.document);
        let queued = self.ready.values().chain(self.waiting.values());
        let documents = running.chain(queued).take(limit);
        documents.map(|document| self.entry(document)).collect()
    }

    fn entry(&self, document: &Arc<str>) -> Entry {
        let handoff = &self.documents[document];
        let attempt = self.running.get(&handoff.id);
        let bytes = attempt.map_or(0, |attempt| attempt.bytes);
        Entry {
            document: Arc::clone(document),
            id: attempt.map(|_| handoff.id),
            to: Arc::clone(&handoff.to),
            epoch: attempt.map_or(handoff.epoch, |attempt| attempt.epoch),
            state: match handoff.state {
                State::Queued { .. } => "queued",
                State::Preparing => "preparing",
                State::Sending => "transferring",
                State::Sealing => "sealed",
                State::Releasing { .. } => "releasing",
            },
            since: attempt.map_or(handoff.queued, |attempt| attempt.began),
            bytes,
            attempts: handoff.attempts,
        }
    }

    fn wanted<R: Rng>(&mut self, epoch: u64, list: Vec<Wanted>, turn: &mut Turn<'_, R>) {
        if epoch < self.epoch {
            return;
        }
        self.epoch = epoch;
        self.lists += 1;
        for Wanted { document, to } in list {
            let document: Arc<str> = document.into();
            let Some(handoff) = self.documents.get_mut(&document) else {
                self.add(document, to.into(), turn.now);
                continue;
            };
            handoff.list = self.lists;
            handoff.epoch = epoch;
            // Who has accepted it is to have it, and hands it on.
            if *handoff.to != *to && !matches!(handoff.state, State::Releasing { .. }) {
                handoff.to = to.into();
                self.signal(&document, Signal::Redirected, "", turn);
            }
        }
        let absent = self
            .documents
            .iter()
            .filter(|(_, handoff)| handoff.list != self.lists)
            .map(|(document, _)| Arc::clone(document));
        for document in absent.collect::<Vec<_>>() {
            self.signal(&document, Signal::OwnedHere, "", turn);
        }
    }

    fn add(&mut self, document: Arc<str>, to: Arc<str>, now: Duration) {
        self.places += 1;
        let handoff = Handoff {
            to,
            epoch: self.epoch,
            list: self.lists,
            state: State::Queued { not_before: now },
            place: self.places,
            queued: now,
            urgent: false,
            attempts: 0,
            id: 0,
        };
        self.documents.insert(Arc::clone(&document), handoff);
        self.enqueue(&document, now, now);
    }

    /// Somebody waits: the place at the front is for as long as the document is here, the shorter
    /// pause for the one under way only. A target that always fails is to be left alone for longer.
    fn urgent(&mut self, document: &str, now: Duration) {
        let Some((document, _)) = self.documents.get_key_value(document) else {
            return;
        };
        let document = Arc::clone(document);
        self.dequeue(&document);
        let handoff = self.documents.get_mut(&document).expect("found above");
        handoff.urgent = true;
        if let State::Queued { not_before } = handoff.state {
            self.enqueue(&document, not_before.min(now + MIN_BACKOFF), now);
        }
    }

    fn sent(&mut self, id: u64, bytes: u64) {
        let Some(attempt) = self.running.get_mut(&id) else {
            return;
        };
        if self.documents[&attempt.document].state != State::Preparing {
            attempt.bytes = attempt.bytes.max(bytes);
        }
    }

    fn released<R: Rng>(&mut self, id: u64, frames_replayed: u64, turn: &mut Turn<'_, R>) {
        let Some(attempt) = self.running.get(&id) else {
            return;
        };
        let document = Arc::clone(&attempt.document);
        let completed = Effect::Completed {
            document: document.to_string(),
            id,
            to: self.documents[&document].to.to_string(),
            epoch: attempt.epoch,
            bytes: attempt.bytes,
            duration: millis(turn.now.saturating_sub(attempt.began)),
            frames_replayed,
        };
        self.signal(&document, Signal::Released, "", turn);
        if !self.documents.contains_key(&document) {
            turn.effects.push(completed);
        }
    }

    /// The shim says something about an attempt.
    fn said<R: Rng>(&mut self, id: u64, signal: Signal, reason: &str, turn: &mut Turn<'_, R>) {
        if let Some(attempt) = self.running.get(&id) {
            let document = Arc::clone(&attempt.document);
            self.signal(&document, signal, reason, turn);
        }
    }

    /// Takes one arrow of [`State`]'s table. `reason` is that of a failure.
    fn signal<R: Rng>(
        &mut self,
        document: &Arc<str>,
        signal: Signal,
        reason: &str,
        turn: &mut Turn<'_, R>,
    ) {
        let Some(handoff) = self.documents.get(document) else {
            return;
        };
        match handoff.state.after(signal) {
            Next::Same => {}
            Next::To(state) => self.enter(document, state, reason, turn),
            Next::Later => {
                let id = handoff.id;
                let pause = backoff(handoff.attempts, turn.rng);
                turn.abort(id, reason.to_owned());
                let next = format!("retried in {} ms", millis(pause));
                self.report(document, reason, next, Some(millis(pause)), turn);
                self.running.remove(&id);
                self.places += 1;
                let handoff = self.documents.get_mut(document).expect("found above");
                handoff.place = self.places;
                handoff.queued = turn.now;
                self.enqueue(document, turn.now + pause, turn.now);
            }
            Next::Again => {
                self.dequeue(document);
                let handoff = self.documents.get_mut(document).expect("found above");
                handoff.attempts = 0;
                if self.running.remove(&handoff.id).is_some() {
                    turn.abort(handoff.id, format!("{} owns it now", handoff.to));
                }
                self.enqueue(document, turn.now, turn.now);
            }
            Next::End => {
                self.dequeue(document);
                let handoff = self.documents.remove(document).expect("found above");
                let ran = self.running.remove(&handoff.id).is_some();
                if ran && signal == Signal::OwnedHere {
                    turn.abort(handoff.id, "this node owns it again".to_owned());
                }
            }
        }
    }

    fn enter<R: Rng>(
        &mut self,
        document: &Arc<str>,
        state: State,
        reason: &str,
        turn: &mut Turn<'_, R>,
    ) {
        self.dequeue(document);
        let handoff = self.documents.get_mut(document).expect("its state changes");
        handoff.state = state;
        match state {
            State::Preparing => self.begin(document, turn),
            State::Sending => turn.effects.push(Effect::Send { id: handoff.id }),
            State::Sealing => turn.effects.push(Effect::Seal { id: handoff.id }),
            State::Releasing { reported: false } => {
                turn.effects.push(Effect::Release { id: handoff.id });
                self.set_deadline(document, Some(turn.now + self.config.timeout));
            }
            State::Releasing { reported: true } => {
                self.set_deadline(document, None);
                let next = "waits for its store".to_owned();
                self.report(document, reason, next, None, turn);
            }
            State::Queued { .. } => {}
        }
    }

    fn begin<R: Rng>(&mut self, document: &Arc<str>, turn: &mut Turn<'_, R>) {
        let handoff = self.documents.get_mut(document).expect("its state changes");
        let id = self.config.ids.fetch_add(1, Ordering::Relaxed);
        handoff.id = id;
        handoff.attempts += 1;
        let epoch = handoff.epoch;
        let attempt = Attempt {
            document: Arc::clone(document),
            epoch,
            began: turn.now,
            deadline: Some(turn.now + self.config.timeout),
            bytes: 0,
        };
        self.running.insert(id, attempt);
        turn.effects.push(Effect::Started {
            document: document.to_string(),
            id,
            to: handoff.to.to_string(),
            epoch,
        });
        turn.effects.push(Effect::Prepare {
            document: document.to_string(),
            id,
            to: handoff.to.to_string(),
            epoch,
        });
    }

    fn set_deadline(&mut self, document: &Arc<str>, deadline: Option<Duration>) {
        let id = self.documents[document].id;
        if let Some(attempt) = self.running.get_mut(&id) {
            attempt.deadline = deadline;
        }
    }

    fn report<R: Rng>(
        &self,
        document: &Arc<str>,
        reason: &str,
        next: String,
        retry_in: Option<u64>,
        turn: &mut Turn<'_, R>,
    ) {
        let handoff = &self.documents[document];
        turn.effects.push(Effect::Failed {
            document: document.to_string(),
            id: handoff.id,
            to: handoff.to.to_string(),
            epoch: self.running[&handoff.id].epoch,
            reason: reason.to_owned(),
            next,
            retry_in,
        });
    }

    /// Puts a document into the queue, in its place.
    fn enqueue(&mut self, document: &Arc<str>, not_before: Duration, now: Duration) {
        let handoff = self.documents.get_mut(document).expect("it is to be moved");
        handoff.state = State::Queued { not_before };
        let (place, document) = (handoff.place, Arc::clone(document));
        if not_before > now {
            self.waiting.insert((not_before, place), document);
        } else {
            self.ready.insert((!handoff.urgent, place), document);
        }
    }

    /// Takes it out, if it is queued.
    fn dequeue(&mut self, document: &Arc<str>) {
        let handoff = &self.documents[document];
        if let State::Queued { not_before } = handoff.state {
            self.waiting.remove(&(not_before, handoff.place));
            self.ready.remove(&(!handoff.urgent, handoff.place));
        }
    }

    fn places_left(&self) -> usize {
        self.config.concurrency - self.running.len()
    }

    /// Does what is due, and plans what comes next.
    fn advance<R: Rng>(&mut self, turn: &mut Turn<'_, R>) {
        let now = turn.now;
        let overdue = self
            .running
            .values()
            .filter(|attempt| attempt.deadline.is_some_and(|deadline| deadline <= now))
            .map(|attempt| Arc::clone(&attempt.document));
        for document in overdue.collect::<Vec<_>>() {
            let reason = self.what_takes_long(&document);
            self.signal(&document, Signal::Overdue, &reason, turn);
        }
        while let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
        {
            let document = first.remove();
            let handoff = &self.documents[&document];
            self.ready
                .insert((!handoff.urgent, handoff.place), document);
        }
        let due = self.starts.partition_point(|start| *start <= now);
        for _ in self.starts.drain(..due).collect::<Vec<_>>() {
            if let Some(document) = self.ready.values().next().cloned() {
                self.signal(&document, Signal::Turn, "", turn);
            }
        }
        let starts = self.ready.len().min(self.places_left());
        self.starts.truncate(starts);
        while self.starts.len() < starts {
            // Not at once, or there would be something due now.
            let jitter = turn.rng.random_range(Duration::from_millis(1)..=JITTER);
            let start = now + jitter;
            let at = self.starts.partition_point(|other| *other <= start);
            self.starts.insert(at, start);
        }
    }

    fn what_takes_long(&self, document: &Arc<str>) -> String {
        let handoff = &self.documents[document];
        let what = match handoff.state {
            State::Queued { .. } | State::Preparing => "it was not stored".to_owned(),
            State::Sending => format!("{} did not take it over", handoff.to),
            State::Sealing => "it was not sealed".to_owned(),
            State::Releasing { .. } => "its last store did not end".to_owned(),
        };
        format!("{what} within {} ms", millis(self.config.timeout))
    }
}

impl<R> Turn<'_, R> {
    fn abort(&mut self, id: u64, reason: String) {
        self.effects.push(Effect::Abort { id, reason });
    }
}

/// The pause after the `attempts`th attempt failed: the upper half of what it may be at most, so
/// that documents which failed together do not come back together.
fn backoff(attempts: u32, rng: &mut impl Rng) -> Duration {
    let longest = 2_u32
        .checked_pow(attempts)
        .and_then(|factor| MIN_BACKOFF.checked_mul(factor))
        .map_or(MAX_BACKOFF, |pause| pause.min(MAX_BACKOFF));
    rng.random_range((longest / 2).max(MIN_BACKOFF)..=longest)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
