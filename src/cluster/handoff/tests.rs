use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(60);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn machine(concurrency: usize) -> Handoffs {
    Handoffs::new(Config {
        concurrency,
        timeout: TIMEOUT,
        // A test's ids must not depend on the tests beside it.
        ids: Box::leak(Box::new(AtomicU64::new(1))),
    })
}

/// The transition table, arrow by arrow, and everything that is no arrow.
#[test]
fn every_arrow() {
    use Next::{Again, End, Later, Same, To};
    use Signal::{
        Accepted, Failed, Gone, Overdue, OwnedHere, Prepared, Redirected, Released, Sealed, Turn,
    };
    use State::{Preparing, Queued, Releasing, Sealing, Sending};
    let queued = Queued { not_before: SECOND };
    let releasing = Releasing { reported: false };
    let reported = Releasing { reported: true };
    let arrows = [
        (queued, Turn, To(Preparing)),
        (queued, Redirected, Again),
        (queued, OwnedHere, End),
        (queued, Gone, End),
        (Preparing, Prepared, To(Sending)),
        (Sending, Accepted, To(Sealing)),
        (Sealing, Sealed, To(releasing)),
        (releasing, Failed, To(reported)),
        (releasing, Overdue, To(reported)),
        (releasing, Released, End),
        (releasing, Gone, End),
        (reported, Released, End),
        (reported, Gone, End),
    ];
    let every_unreleased = [Preparing, Sending, Sealing].map(|state| {
        [
            (state, Failed, Later),
            (state, Overdue, Later),
            (state, Redirected, Again),
            (state, OwnedHere, End),
            (state, Gone, End),
        ]
    });
    let arrows: Vec<_> = arrows
        .into_iter()
        .chain(every_unreleased.into_iter().flatten())
        .collect();
    let states = [queued, Preparing, Sending, Sealing, releasing, reported];
    let signals = [
        Turn, Prepared, Sealed, Accepted, Released, Failed, Overdue, Redirected, OwnedHere, Gone,
    ];
    for from in states {
        for signal in signals {
            let arrow = arrows
                .iter()
                .find(|arrow| (arrow.0, arrow.1) == (from, signal));
            let next = arrow.map_or(Same, |arrow| arrow.2);
            assert_eq!(from.after(signal), next, "{from:?} {signal:?}");
        }
    }
}

/// A machine with its clock, its randomness and what it asked for.
struct Script {
    handoffs: Handoffs,
    now: Duration,
    rng: StdRng,
    effects: Vec<Effect>,
}

impl Script {
    fn new(concurrency: usize) -> Self {
        Self {
            handoffs: machine(concurrency),
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(3),
            effects: Vec::new(),
        }
    }

    fn tell(&mut self, event: Event) -> &mut Self {
        let effects = self.handoffs.handle(event, self.now, &mut self.rng);
        self.effects.extend(effects);
        self
    }

    fn wanted(&mut self, epoch: u64, documents: &[(&str, &str)]) -> &mut Self {
        let wanted = |(document, to): &(&str, &str)| Wanted {
            document: (*document).into(),
            to: (*to).into(),
        };
        let documents = documents.iter().map(wanted).collect();
        self.tell(Event::Wanted { epoch, documents })
    }

    /// Lets `time` pass; the machine is woken when it asked to be, and never in vain for ever.
    fn pass(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while let Some(deadline) = self.handoffs.deadline()
            && deadline <= end
        {
            assert!(deadline > self.now, "due at once, again and again");
            self.now = deadline;
            let effects = self.handoffs.tick(self.now, &mut self.rng);
            self.effects.extend(effects);
        }
        self.now = end;
        self
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Documents that were started since the last look, with their ids.
    fn started(&mut self) -> Vec<(String, u64)> {
        let started = |effect| match effect {
            Effect::Prepare { document, id, .. } => Some((document, id)),
            _ => None,
        };
        self.take().into_iter().filter_map(started).collect()
    }

    /// Has the only document of a fresh script under way; answers its id.
    fn one_begun(&mut self) -> u64 {
        self.wanted(7, &[("doc", "b")]).pass(JITTER);
        self.started()[0].1
    }

    fn released(&mut self, id: u64) -> &mut Self {
        self.tell(Event::Released {
            id,
            frames_replayed: 3,
        })
    }

    fn failed(&mut self, id: u64) -> &mut Self {
        let reason = "b is gone".into();
        self.tell(Event::Failed { id, reason })
    }

    fn state(&self, document: &str) -> Option<State> {
        let handoff = self.handoffs.documents.get(document);
        handoff.map(|handoff| handoff.state)
    }

    /// Up to the question to release.
    fn one_accepted(&mut self) -> u64 {
        let id = self.one_begun();
        self.tell(Event::Prepared { id })
            .pass(TIMEOUT / 2)
            .tell(Event::Accepted { id })
            .tell(Event::Sealed { id });
        let seal = Effect::Seal { id };
        let asked = [Effect::Send { id }, seal, Effect::Release { id }];
        assert_eq!(self.take(), asked);
        id
    }
}

fn text(text: &str) -> String {
    text.to_owned()
}

#[test]
fn a_document_moves() {
    let mut script = Script::new(1);
    script.wanted(7, &[("doc", "b")]).pass(JITTER);
    let (document, id, to) = (text("doc"), 1, text("b"));
    let started = Effect::Started {
        document: document.clone(),
        id,
        to: to.clone(),
        epoch: 7,
    };
    let prepare = Effect::Prepare {
        document: document.clone(),
        id,
        to: to.clone(),
        epoch: 7,
    };
    assert_eq!(script.take(), [started, prepare]);
    script.pass(SECOND).tell(Event::Prepared { id });
    assert_eq!(script.take(), [Effect::Send { id }]);
    script
        .tell(Event::Sent { id, bytes: 5_000 })
        // Late, or told twice.
        .tell(Event::Sent { id, bytes: 4_000 })
        .pass(SECOND);
    assert_eq!(script.take(), []);
    script.tell(Event::Accepted { id });
    assert_eq!(script.take(), [Effect::Seal { id }]);
    script.tell(Event::Sealed { id });
    assert_eq!(script.take(), [Effect::Release { id }]);
    // What changes at the old owner until then follows.
    script.tell(Event::Sent { id, bytes: 5_100 });
    script.pass(SECOND).released(id);
    let [completed] = &script.take()[..] else {
        panic!("one effect");
    };
    let Effect::Completed { duration, .. } = *completed else {
        panic!("{completed:?}");
    };
    let expected = Effect::Completed {
        document,
        id,
        to,
        epoch: 7,
        bytes: 5_100,
        duration,
        frames_replayed: 3,
    };
    assert_eq!(*completed, expected);
    assert!((3_000..=3_020).contains(&duration), "{duration}");
    assert_eq!(script.handoffs.counts(), Counts::default());
    assert_eq!(script.handoffs.deadline(), None);
}

#[test]
fn a_word_that_was_not_asked_for_yet_changes_nothing() {
    let mut script = Script::new(1);
    let id = script.one_begun();
    script
        .tell(Event::Accepted { id })
        .tell(Event::Sealed { id });
    script.released(id);
    assert_eq!(script.take(), [], "nothing was sent yet");
    script.tell(Event::Prepared { id });
    script.tell(Event::Sealed { id }).released(id);
    assert_eq!(script.take(), [Effect::Send { id }], "nobody has it yet");
    script.tell(Event::Accepted { id }).released(id);
    assert_eq!(script.take(), [Effect::Seal { id }], "not sealed");
    script
        .tell(Event::Accepted { id })
        .tell(Event::Sealed { id });
    assert_eq!(script.take(), [Effect::Release { id }]);
}

#[test]
fn no_more_than_allowed_run_and_all_get_their_turn_in_order() {
    let mut script = Script::new(3);
    let names: Vec<_> = (0..20).map(|n| format!("doc-{n:02}")).collect();
    let list: Vec<_> = names.iter().map(|name| (name.as_str(), "b")).collect();
    script.wanted(1, &list).pass(SECOND);
    let mut begun = Vec::new();
    while begun.len() < names.len() {
        let started = script.started();
        let running = script.handoffs.counts().running;
        assert_eq!(running, (names.len() - begun.len()).min(3));
        assert!(!started.is_empty());
        for (document, id) in started {
            begun.push(document);
            script
                .tell(Event::Prepared { id })
                .tell(Event::Accepted { id });
            script.tell(Event::Sealed { id }).released(id);
        }
        script.pass(JITTER);
    }
    assert_eq!(begun, names);
}

#[test]
fn starts_are_spread_over_the_jitter() {
    let mut moments = BTreeSet::new();
    let mut script = Script::new(64);
    let names: Vec<_> = (0..64).map(|n| format!("doc-{n}")).collect();
    let list: Vec<_> = names.iter().map(|name| (name.as_str(), "b")).collect();
    script.wanted(1, &list);
    assert_eq!(script.take(), []);
    while let Some(deadline) = script.handoffs.deadline()
        && deadline <= JITTER
    {
        script.pass(deadline - script.now);
        moments.insert(deadline);
    }
    assert_eq!(script.started().len(), 64);
    assert!(moments.len() > 40, "{}", moments.len());
    assert!(*moments.first().unwrap() < ms(4) && *moments.last().unwrap() > ms(16));
}

#[test]
fn an_urgent_document_goes_first_and_its_pause_is_cut_short() {
    let mut script = Script::new(1);
    script.wanted(1, &[("a", "x"), ("b", "x"), ("c", "x"), ("d", "x")]);
    let urgent = |document: &str| Event::Urgent {
        document: document.into(),
    };
    script.tell(urgent("d")).tell(urgent("c")).tell(urgent("z"));
    script.pass(JITTER);
    // Among the urgent ones the order is that of the queue.
    let started = script.started();
    assert_eq!(started, [(text("c"), 1)]);
    script.failed(1).pass(JITTER);
    assert_eq!(script.started(), [(text("d"), 2)]);
    script.tell(Event::Gone {
        document: text("d"),
    });
    script.wanted(1, &[("c", "x")]).take();
    // Its second failure: the pause would be 400 ms at least.
    script.pass(SECOND);
    let id = script.started()[0].1;
    script.failed(id).pass(ms(10)).tell(urgent("c")).take();
    let paused = State::Queued {
        not_before: script.now + ms(200),
    };
    assert_eq!(script.state("c"), Some(paused));
    // Once more does not lengthen it.
    script.pass(ms(100)).tell(urgent("c"));
    script.pass(ms(100) + JITTER);
    assert_eq!(script.started().len(), 1);
}

#[test]
fn a_failed_attempt_is_aborted_reported_and_retried_later_each_time() {
    let mut script = Script::new(1);
    script.wanted(7, &[("doc", "b")]);
    for attempt in 1..12 {
        script.pass(MAX_BACKOFF + JITTER);
        let id = script.started()[0].1;
        assert_eq!(id, attempt);
        script.failed(id);
        let effects = script.take();
        let [Effect::Abort { .. }, Effect::Failed { retry_in, .. }] = effects[..] else {
            panic!("{effects:?}");
        };
        let pause = retry_in.unwrap();
        let longest = (200 << attempt).min(10_000);
        assert!((longest / 2..=longest).contains(&pause), "{pause}");
        let abort = Effect::Abort {
            id,
            reason: text("b is gone"),
        };
        let failed = Effect::Failed {
            document: text("doc"),
            id,
            to: text("b"),
            epoch: 7,
            reason: text("b is gone"),
            next: format!("retried in {pause} ms"),
            retry_in,
        };
        assert_eq!(effects, [abort, failed]);
        script.pass(ms(pause - 1));
        assert_eq!(script.started(), []);
    }
}

#[test]
fn a_document_that_fails_does_not_keep_the_others_out() {
    let mut script = Script::new(1);
    script
        .wanted(1, &[("bad", "x"), ("good", "x")])
        .pass(JITTER);
    let id = script.started()[0].1;
    script.failed(id).take();
    // Both may begin now: who failed is last.
    script.now += SECOND;
    script.tell(Event::Gone {
        document: text("none"),
    });
    script.pass(JITTER);
    assert_eq!(script.started(), [(text("good"), 2)]);
}

#[test]
fn an_attempt_that_takes_too_long_is_aborted_wherever_it_stands() {
    for (events, what) in [
        (0, "it was not stored within 60000 ms"),
        (1, "b did not take it over within 60000 ms"),
        (2, "it was not sealed within 60000 ms"),
    ] {
        let mut script = Script::new(1);
        let id = script.one_begun();
        for event in [Event::Prepared { id }, Event::Accepted { id }]
            .into_iter()
            .take(events)
        {
            // Progress does not prolong it.
            script.pass(TIMEOUT / 3).tell(event);
        }
        script.tell(Event::Sent { id, bytes: 1 }).take();
        let left = TIMEOUT - TIMEOUT / 3 * u32::try_from(events).unwrap();
        script.pass(left - JITTER);
        assert_eq!(script.take(), []);
        script.pass(JITTER);
        let effects = script.take();
        let [Effect::Abort { reason, .. }, Effect::Failed { next, .. }] = &effects[..] else {
            panic!("{effects:?}");
        };
        assert_eq!(reason, what);
        assert!(next.starts_with("retried in "), "{next}");
        // What is said of it now is late.
        script.tell(Event::Sealed { id }).released(id).failed(id);
        assert_eq!(script.take(), []);
        script.pass(SECOND);
        assert_eq!(script.started(), [(text("doc"), id + 1)]);
    }
}

#[test]
fn what_is_being_released_is_never_called_off() {
    let mut script = Script::new(1);
    let id = script.one_accepted();
    let failed = |reason: &str| Effect::Failed {
        document: text("doc"),
        id,
        to: text("b"),
        epoch: 7,
        reason: text(reason),
        next: text("waits for its store"),
        retry_in: None,
    };
    script.wanted(8, &[("doc", "c")]).wanted(9, &[]);
    assert_eq!(script.take(), []);
    script.pass(TIMEOUT - ms(1));
    assert_eq!(script.take(), [], "its time counts from the seal");
    script.pass(2 * TIMEOUT);
    let reason = "its last store did not end within 60000 ms";
    assert_eq!(script.take(), [failed(reason)], "said once");
    assert_eq!(script.handoffs.deadline(), None);
    script.failed(id).wanted(10, &[("doc", "d")]);
    assert_eq!(script.take(), []);
    assert_eq!(script.handoffs.counts().running, 1);
    script.released(id);
    let effects = script.take();
    let [Effect::Completed { to, epoch, .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!((to.as_str(), *epoch), ("b", 7), "who had accepted it");

    let mut script = Script::new(1);
    let id = script.one_accepted();
    script.failed(id).pass(3 * TIMEOUT);
    assert_eq!(script.take(), [failed("b is gone")], "said once");
    let document = text("doc");
    script.tell(Event::Gone { document }).released(id);
    assert_eq!(script.take(), []);
    assert_eq!(script.handoffs.counts(), Counts::default());
}

#[test]
fn a_new_list_replaces_the_one_before() {
    let mut script = Script::new(2);
    script.wanted(5, &[("a", "x"), ("b", "x"), ("c", "x"), ("d", "x")]);
    script.pass(JITTER);
    let ids: Vec<_> = script.started().into_iter().map(|(_, id)| id).collect();
    script.wanted(4, &[]);
    assert_eq!(script.handoffs.counts().queued, 2, "an older view's");
    script.wanted(5, &[("a", "x"), ("b", "y"), ("c", "y"), ("e", "x")]);
    let abort = |id, reason: &str| Effect::Abort {
        id,
        reason: text(reason),
    };
    assert_eq!(script.take(), [abort(ids[1], "y owns it now")]);
    let queued = |script: &Script| -> Vec<_> {
        let list = script.handoffs.list(10).into_iter();
        list.map(|entry| format!("{}→{}", entry.document, entry.to))
            .collect()
    };
    // b did nothing wrong: it keeps its place, and begins without a pause.
    assert_eq!(queued(&script), ["a→x", "b→y", "c→y", "e→x"]);
    script.pass(JITTER);
    let (document, id) = script.started().remove(0);
    assert_eq!((document.as_str(), id), ("b", 3));
    script.tell(Event::Prepared { id }).take();
    script.wanted(6, &[("c", "y")]);
    let owned = "this node owns it again";
    assert_eq!(script.take(), [abort(ids[0], owned), abort(id, owned)]);
    assert_eq!(queued(&script), ["c→y"]);
    // A running attempt for the same node goes on; the next one is of the newest view.
    script.pass(JITTER);
    let id = script.started()[0].1;
    script.wanted(9, &[("c", "y")]);
    assert_eq!(script.handoffs.list(1)[0].epoch, 6);
    script.failed(id).pass(SECOND);
    assert_eq!(script.handoffs.list(1)[0].epoch, 9);
}

#[test]
fn another_target_ends_the_pause_and_the_same_one_does_not() {
    let mut script = Script::new(1);
    let mut id = script.one_begun();
    for _ in 0..6 {
        script.failed(id).pass(MAX_BACKOFF + JITTER);
        id = script.started()[0].1;
    }
    script.failed(id).take();
    script.wanted(8, &[("doc", "b")]).pass(SECOND);
    assert_eq!(script.started(), []);
    script.wanted(8, &[("doc", "c")]).pass(JITTER);
    assert_eq!(script.started(), [(text("doc"), id + 1)]);
    assert_eq!(script.handoffs.list(1)[0].attempts, 1);
}

#[test]
fn a_document_that_is_gone_is_forgotten_without_a_word() {
    for events in 0..3 {
        let mut script = Script::new(1);
        let id = script.one_begun();
        for event in [Event::Prepared { id }, Event::Accepted { id }]
            .into_iter()
            .take(events)
        {
            script.tell(event);
        }
        script.take();
        let document = text("doc");
        script.tell(Event::Gone { document }).pass(2 * TIMEOUT);
        assert_eq!(script.take(), []);
        assert_eq!(script.handoffs.counts(), Counts::default());
        // Loaded again, and wanted again.
        script.wanted(7, &[("doc", "b")]).pass(JITTER);
        assert_eq!(script.started(), [(text("doc"), id + 1)]);
    }
}

#[test]
fn nothing_is_asked_for_after_the_stop() {
    let mut script = Script::new(1);
    let id = script.one_begun();
    script.tell(Event::Stop).tell(Event::Prepared { id });
    script.wanted(9, &[("other", "b")]).pass(2 * TIMEOUT);
    assert_eq!(script.take(), []);
    assert_eq!(script.handoffs.counts(), Counts::default());
    assert_eq!(script.handoffs.deadline(), None);
}

#[test]
fn the_list_tells_where_each_stands_and_is_bounded() {
    let mut script = Script::new(2);
    script.wanted(1, &[("a", "x"), ("b", "x"), ("c", "x"), ("d", "x")]);
    script.pass(ms(500));
    let ids: Vec<_> = script.started().into_iter().map(|(_, id)| id).collect();
    script.failed(ids[0]).pass(JITTER);
    let mut states = Vec::new();
    let id = ids[1];
    for event in [
        Event::Sent { id, bytes: 9 },
        Event::Prepared { id },
        Event::Sent { id, bytes: 9 },
        Event::Accepted { id },
        Event::Sealed { id },
    ] {
        script.tell(event);
        let entry = script.handoffs.list(9).remove(0);
        states.push((entry.state, entry.bytes, entry.id, entry.attempts));
    }
    let running = [
        ("preparing", 0),
        ("transferring", 0),
        ("transferring", 9),
        ("sealed", 9),
        ("releasing", 9),
    ];
    assert_eq!(
        states,
        running.map(|(name, sent)| (name, sent, Some(id), 1))
    );
    let list = script.handoffs.list(9);
    let shown: Vec<_> = list
        .iter()
        .map(|entry| (&*entry.document, entry.state, entry.id, entry.attempts))
        .collect();
    let expected = [
        ("b", "releasing", Some(2), 1),
        ("c", "preparing", Some(3), 1),
        ("d", "queued", None, 0),
        ("a", "queued", None, 1),
    ];
    assert_eq!(shown, expected);
    assert_eq!(list[3].since, ms(500), "queued anew when it failed");
    assert_eq!(script.handoffs.list(3), list[..3]);
}

#[test]
fn events_and_effects_are_the_json_of_the_shim() {
    let event = |json: &str| serde_json::from_str::<Event>(json);
    let wanted = r#"{"event":"wanted","epoch":3,"documents":[{"document":"d","to":"b"}]}"#;
    let documents = vec![Wanted {
        document: text("d"),
        to: text("b"),
    }];
    let expected = Event::Wanted {
        epoch: 3,
        documents,
    };
    assert_eq!(event(wanted).unwrap(), expected);
    let released = r#"{"event":"released","id":4,"framesReplayed":9}"#;
    let expected = Event::Released {
        id: 4,
        frames_replayed: 9,
    };
    assert_eq!(event(released).unwrap(), expected);
    assert_eq!(event(r#"{"event":"stop"}"#).unwrap(), Event::Stop);
    assert!(event(r#"{"event":"prepared"}"#).is_err());
    assert!(event(r#"{"event":"begun","id":1}"#).is_err());
    let failed = Effect::Failed {
        document: text("d"),
        id: 1,
        to: text("b"),
        epoch: 3,
        reason: text("r"),
        next: text("n"),
        retry_in: None,
    };
    let json = r#"{"effect":"failed","document":"d","id":1,"to":"b","epoch":3,"reason":"r","next":"n","retryIn":null}"#;
    assert_eq!(serde_json::to_string(&failed).unwrap(), json);
}

/// What the shim knows of an attempt, by the effects it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Prepare,
    Send,
    Seal,
    Release,
    Over,
}

/// The shim's side of a random run: checks that every effect is one that may come now.
#[derive(Default)]
struct Shim {
    attempts: BTreeMap<u64, (String, Asked)>,
    /// What was told to the machine of each attempt, after the question it answers.
    told: BTreeSet<(u64, &'static str)>,
    reported: BTreeSet<u64>,
    completed: BTreeSet<String>,
}

impl Shim {
    fn live(&self) -> impl Iterator<Item = (u64, &str, Asked)> {
        let attempts = self.attempts.iter();
        attempts
            .map(|(id, (document, asked))| (*id, document.as_str(), *asked))
            .filter(|(_, _, asked)| *asked != Asked::Over)
    }

    fn effect(&mut self, effect: Effect, started: &mut Option<u64>) {
        match effect {
            Effect::Started { document, id, .. } => {
                assert!(self.live().all(|(_, other, _)| other != document));
                assert!(self.attempts.keys().all(|other| *other < id));
                *started = Some(id);
                self.attempts.insert(id, (document, Asked::Prepare));
            }
            Effect::Prepare { id, .. } => assert_eq!(*started, Some(id)),
            Effect::Send { id } => {
                assert!(self.told.contains(&(id, "prepared")));
                self.step(id, Asked::Prepare, Asked::Send);
            }
            Effect::Seal { id } => {
                assert!(self.told.contains(&(id, "accepted")));
                self.step(id, Asked::Send, Asked::Seal);
            }
            Effect::Release { id } => {
                assert!(self.told.contains(&(id, "sealed")));
                self.step(id, Asked::Seal, Asked::Release);
            }
            Effect::Completed { id, document, .. } => {
                assert!(self.told.contains(&(id, "released")));
                self.step(id, Asked::Release, Asked::Over);
                self.completed.insert(document);
            }
            Effect::Abort { id, .. } => {
                let asked = &mut self.attempts.get_mut(&id).unwrap().1;
                let unreleased = matches!(asked, Asked::Prepare | Asked::Send | Asked::Seal);
                assert!(unreleased, "{asked:?}");
                *asked = Asked::Over;
            }
            Effect::Failed { id, retry_in, .. } => {
                let asked = self.attempts[&id].1;
                let expected = if retry_in.is_some() {
                    Asked::Over
                } else {
                    Asked::Release
                };
                assert_eq!(asked, expected);
                assert!(self.reported.insert(id), "reported twice");
            }
        }
    }

    fn step(&mut self, id: u64, from: Asked, to: Asked) {
        let asked = &mut self.attempts.get_mut(&id).unwrap().1;
        assert_eq!(*asked, from);
        *asked = to;
    }
}

/// A random event: mostly about ids that exist, in any order, told twice, late or of the future.
fn any_event(script: &mut Script, shim: &mut Shim, epoch: &mut u64) -> Event {
    let rng = &mut script.rng;
    let last = shim.attempts.keys().next_back().copied().unwrap_or(0);
    let live: Vec<_> = shim.live().map(|(id, ..)| id).collect();
    let id = match live.len() {
        0 => rng.random_range(0..=last + 1),
        _ if rng.random_bool(0.2) => rng.random_range(0..=last + 1),
        count => live[rng.random_range(0..count)],
    };
    let document = format!("doc-{}", rng.random_range(0..12));
    let asked = shim.attempts.get(&id).map(|(_, asked)| *asked);
    let mut note = |word, question| {
        if asked == Some(question) {
            shim.told.insert((id, word));
        }
    };
    match rng.random_range(0..20) {
        0 => {
            *epoch += rng.random_range(0..3);
            let mut documents = Vec::new();
            for n in 0..12 {
                if rng.random_bool(0.7) {
                    documents.push(Wanted {
                        document: format!("doc-{n}"),
                        to: text(if rng.random_bool(0.2) { "c" } else { "b" }),
                    });
                }
            }
            Event::Wanted {
                epoch: *epoch - u64::from(rng.random_bool(0.1)),
                documents,
            }
        }
        1 => Event::Urgent { document },
        2 => {
            for (other, asked) in shim.attempts.values_mut() {
                if *other == document {
                    *asked = Asked::Over;
                }
            }
            Event::Gone { document }
        }
        3 => Event::Failed {
            id,
            reason: text("any"),
        },
        4..8 => {
            note("prepared", Asked::Prepare);
            Event::Prepared { id }
        }
        8..11 => {
            note("sealed", Asked::Seal);
            Event::Sealed { id }
        }
        11..13 => Event::Sent {
            id,
            bytes: rng.random(),
        },
        13..16 => {
            note("accepted", Asked::Send);
            Event::Accepted { id }
        }
        _ => {
            note("released", Asked::Release);
            Event::Released {
                id,
                frames_replayed: 0,
            }
        }
    }
}

impl Handoffs {
    /// What must hold between two calls.
    fn check(&self, now: Duration) {
        assert!(self.running.len() + self.starts.len() <= self.config.concurrency);
        assert!(self.deadline().is_none_or(|deadline| deadline > now));
        let queued = self.ready.len() + self.waiting.len();
        assert_eq!(queued + self.running.len(), self.documents.len());
        for (document, handoff) in &self.documents {
            let is_queued = matches!(handoff.state, State::Queued { .. });
            assert_eq!(self.running.contains_key(&handoff.id), !is_queued);
            let ready = self.ready.get(&(!handoff.urgent, handoff.place));
            if let State::Queued { not_before } = handoff.state {
                let waiting = self.waiting.get(&(not_before, handoff.place));
                assert_eq!(ready.or(waiting), Some(document));
                assert!(ready.is_none() || waiting.is_none());
            }
        }
    }
}

/// Any events in any order at any time: nobody is asked for anything out of turn, and once the shim
/// does as it is told, everything moves.
#[test]
fn any_order_of_events() {
    for seed in 0..3_000 {
        let mut script = Script::new(1 + seed as usize % 4);
        script.rng = StdRng::seed_from_u64(seed);
        let mut shim = Shim::default();
        let mut epoch = 1;
        for _ in 0..150 {
            let event = any_event(&mut script, &mut shim, &mut epoch);
            script.tell(event);
            let pause = match script.rng.random_range(0..40) {
                0 => TIMEOUT,
                1..6 => SECOND,
                _ => ms(script.rng.random_range(0..20)),
            };
            let mut started = None;
            for effect in script.take() {
                shim.effect(effect, &mut started);
            }
            script.handoffs.check(script.now);
            script.pass(pause);
            for effect in script.take() {
                shim.effect(effect, &mut started);
            }
            script.handoffs.check(script.now);
        }
        settle(&mut script, &mut shim, epoch + 1);
    }
}

/// Everything is wanted, and every question is answered.
fn settle(script: &mut Script, shim: &mut Shim, epoch: u64) {
    let held: Vec<_> = (0..12).map(|n| format!("doc-{n}")).collect();
    let list: Vec<_> = held.iter().map(|name| (name.as_str(), "z")).collect();
    script.wanted(epoch, &list);
    shim.completed.clear();
    let mut started = None;
    for _ in 0..200 {
        for effect in script.take() {
            shim.effect(effect, &mut started);
        }
        let live: Vec<_> = shim.live().map(|(id, _, asked)| (id, asked)).collect();
        for (id, asked) in live {
            let (word, event) = match asked {
                Asked::Prepare => ("prepared", Event::Prepared { id }),
                Asked::Send => ("accepted", Event::Accepted { id }),
                Asked::Seal => ("sealed", Event::Sealed { id }),
                _ => (
                    "released",
                    Event::Released {
                        id,
                        frames_replayed: 0,
                    },
                ),
            };
            shim.told.insert((id, word));
            script.tell(event);
        }
        script.pass(JITTER);
        script.handoffs.check(script.now);
    }
    assert_eq!(shim.completed.len(), held.len());
    assert_eq!(script.handoffs.counts(), Counts::default());
    assert_eq!(script.handoffs.deadline(), None);
}
