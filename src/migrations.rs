//! The actor that owns the handoffs of one node: what `cluster::handoff` decides, on tokio. Its
//! effects are JavaScript's to carry out.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cluster::handoff::{Config, Counts, Effect, Entry, Event, Handoffs};
use crate::handle::Core;
use crate::inbox::{Inbox, kind};

/// Ids of attempts, for all nodes of a process: 0 is none.
static IDS: AtomicU64 = AtomicU64::new(1);

/// Events that wait for the actor. A full queue holds JavaScript up until there is room, which the
/// actor makes without waiting for anybody: dropping one would leave a document half moved, and
/// letting them overtake each other would, too.
const QUEUE: usize = 1_024;

/// Events taken before their effects are handed over, at most.
const BURST: usize = 256;

/// Documents that [`Migrations::list`] shows, at most.
const SHOWN: usize = 1_000;

/// What others may see, swapped whole.
#[derive(Debug, Default)]
struct Snapshot {
    counts: Counts,
    list: Vec<Entry>,
}

/// What everyone else holds.
#[derive(Debug, Clone)]
pub struct Migrations {
    events: mpsc::Sender<Event>,
    snapshot: Arc<ArcSwap<Snapshot>>,
}

impl Migrations {
    /// Starts the actor, which ends with the node.
    #[must_use]
    pub fn start(core: &Arc<Core>) -> Self {
        let config = Config {
            concurrency: core.settings.migration_concurrency,
            timeout: core.settings.patience(),
            ids: &IDS,
        };
        let (migrations, actor) = Self::new(config, Arc::clone(&core.inbox), core.started);
        core.spawn(actor.run(core.stop.clone()));
        migrations
    }

    fn new(config: Config, inbox: Arc<Inbox>, started: Instant) -> (Self, Actor) {
        let (events, receiver) = mpsc::channel(QUEUE);
        let snapshot = Arc::<ArcSwap<Snapshot>>::default();
        let actor = Actor {
            handoffs: Handoffs::new(config),
            events: receiver,
            snapshot: Arc::clone(&snapshot),
            inbox,
            started,
        };
        (Self { events, snapshot }, actor)
    }

    /// Passes an event on, in order. Not to be called from a task: it waits where the queue is full.
    /// Of no effect once the actor has ended.
    pub fn tell(&self, event: Event) {
        let _ = self.events.blocking_send(event);
    }

    /// How many documents there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.snapshot.load().counts
    }

    /// The documents as JSON; `now` is on the core's clock.
    #[must_use]
    pub fn list(&self, now: Duration) -> String {
        let snapshot = self.snapshot.load();
        let entry = |entry: &Entry| {
            serde_json::json!({
                "document": *entry.document,
                "id": entry.id,
                "to": *entry.to,
                "epoch": entry.epoch,
                "state": entry.state,
                "startedAt": now.saturating_sub(entry.since).as_millis() as u64,
                "bytes": entry.bytes,
                "attempts": entry.attempts,
            })
        };
        let list: Vec<_> = snapshot.list.iter().map(entry).collect();
        serde_json::Value::from(list).to_string()
    }
}

struct Actor {
    handoffs: Handoffs,
    events: mpsc::Receiver<Event>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    inbox: Arc<Inbox>,
    started: Instant,
}

impl Actor {
    async fn run(mut self, stop: CancellationToken) {
        let mut rng = StdRng::from_os_rng();
        loop {
            let deadline = self.handoffs.deadline();
            let deadline = deadline.and_then(|deadline| self.started.checked_add(deadline));
            let effects = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                event = self.events.recv() => {
                    let Some(event) = event else { break };
                    let now = self.started.elapsed();
                    let mut effects = self.handoffs.handle(event, now, &mut rng);
                    // They come in bursts: one record for what follows from all of it.
                    for _ in 1..BURST {
                        let Ok(event) = self.events.try_recv() else { break };
                        let now = self.started.elapsed();
                        effects.extend(self.handoffs.handle(event, now, &mut rng));
                    }
                    effects
                }
                () = sleep_until(deadline.unwrap_or(self.started)), if deadline.is_some() => {
                    self.handoffs.tick(self.started.elapsed(), &mut rng)
                }
            };
            self.publish(&effects);
        }
        self.snapshot.store(Arc::default());
    }

    fn publish(&self, effects: &[Effect]) {
        // Whoever acts on an effect finds what it followed from.
        self.snapshot.store(Arc::new(Snapshot {
            counts: self.handoffs.counts(),
            list: self.handoffs.list(SHOWN),
        }));
        if !effects.is_empty() {
            let json = serde_json::to_vec(effects).expect("it has string keys only");
            self.inbox.push(kind::HANDOFF, 0, 0, &json);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::time::sleep;

    use super::*;
    use crate::cluster::handoff::Wanted;

    struct Setup {
        migrations: Migrations,
        inbox: Arc<Inbox>,
        started: Instant,
        stop: CancellationToken,
    }

    fn start(concurrency: usize) -> Setup {
        let config = Config {
            concurrency,
            timeout: Duration::from_secs(60),
            ids: Box::leak(Box::new(AtomicU64::new(1))),
        };
        let (inbox, started) = (Arc::new(Inbox::default()), Instant::now());
        let (migrations, actor) = Migrations::new(config, Arc::clone(&inbox), started);
        let stop = CancellationToken::new();
        tokio::spawn(actor.run(stop.clone()));
        Setup {
            migrations,
            inbox,
            started,
            stop,
        }
    }

    impl Setup {
        /// As `tell`, which must not be called on a runtime's thread.
        fn tell(&self, event: Event) {
            self.migrations.events.try_send(event).unwrap();
        }

        fn want(&self, count: usize) {
            let wanted = |n| Wanted {
                document: format!("doc-{n}"),
                to: "b".into(),
            };
            self.tell(Event::Wanted {
                epoch: 1,
                documents: (0..count).map(wanted).collect(),
            });
        }

        /// The records that wait, each as its names of effects.
        fn records(&self) -> Vec<Vec<String>> {
            let mut records = Vec::new();
            while let Some(segment) = self.inbox.drain(usize::MAX).records() {
                let mut rest = &segment[..];
                while !rest.is_empty() {
                    let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
                    let (kind, length) = (word(0), word(12) as usize);
                    assert_eq!(kind, kind::HANDOFF);
                    let effects: Vec<Value> =
                        serde_json::from_slice(&rest[16..16 + length]).unwrap();
                    let name = |effect: &Value| effect["effect"].as_str().unwrap().to_owned();
                    records.push(effects.iter().map(name).collect());
                    rest = &rest[16 + length.next_multiple_of(4)..];
                }
            }
            records
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_follows_from_an_event_or_from_time_is_one_record() {
        let setup = start(1);
        setup.want(2);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(setup.records(), [["started", "prepare"]]);
        let counts = |queued, running| Counts { queued, running };
        assert_eq!(setup.migrations.counts(), counts(1, 1));
        setup.tell(Event::Prepared { id: 1 });
        sleep(Duration::from_secs(29)).await;
        assert_eq!(setup.records(), [["send"]]);
        let list = setup.migrations.list(setup.started.elapsed());
        let list: Vec<Value> = serde_json::from_str(&list).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0]["state"], "transferring");
        let age = list[0]["startedAt"].as_u64().unwrap();
        assert!((29_900..=30_000).contains(&age), "{age}");
        let expected = json!({
            "document": "doc-1", "id": null, "to": "b", "epoch": 1, "state": "queued",
            "startedAt": 30_000, "bytes": 0, "attempts": 0,
        });
        assert_eq!(list[1], expected);
        // Nobody says anything any more.
        sleep(Duration::from_secs(31)).await;
        assert_eq!(
            setup.records(),
            [["abort", "failed"], ["started", "prepare"]]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn more_events_than_a_burst_are_all_taken() {
        let setup = start(0);
        setup.want(3 * BURST);
        for n in 1..3 * BURST {
            let document = format!("doc-{n}");
            setup.tell(Event::Gone { document });
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(setup.migrations.counts().queued, 1);
        assert_eq!(setup.records(), [[""; 0]; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_actor_ends_with_its_node_and_leaves_nothing() {
        for by_event in [true, false] {
            let setup = start(1);
            setup.want(2);
            sleep(Duration::from_secs(1)).await;
            setup.records();
            if by_event {
                setup.tell(Event::Stop);
            } else {
                setup.stop.cancel();
            }
            sleep(Duration::from_secs(600)).await;
            assert_eq!(setup.migrations.counts(), Counts::default());
            assert_eq!(setup.migrations.list(setup.started.elapsed()), "[]");
            assert!(setup.records().is_empty());
        }
    }
}
