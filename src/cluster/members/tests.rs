//! One test per arrow of the standing's table, and one per bound. What the rules are worth is shown
//! by `tests/simulation.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::store::model::{self, Registry};
use crate::store::{Outcome, Reply, Request, Want};

const L: u64 = 9000;

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

/// A machine beside a real registry model, with the requests it has not answered yet.
struct Node {
    machine: Members,
    effects: Vec<Effect>,
    now: Duration,
}

/// What a registry says that has nothing to tell.
fn reply_to(request: &Request, outcome: Outcome) -> Reply {
    Reply {
        seq: request.seq,
        now: 5,
        outcome,
        detail: String::new(),
        effective: false,
        lease_left: 0,
        last_seq: 0,
        known: Known::default(),
        view: None,
        strangers: BTreeMap::new(),
    }
}

impl Node {
    fn new(id: &str, incarnation: u64) -> Self {
        let own = Member {
            id: id.into(),
            incarnation,
            address: "10.0.0.1".into(),
            port: 80,
            link_port: None,
            weight: 1.0,
            state: MemberState::Active,
        };
        let config = Config {
            lease: ms(L),
            orphan_timeout: ms(10 * L),
            hints: vec!["a".into(), "b".into()],
            agreement: String::new(),
            virtual_nodes: 8,
            without: None,
        };
        Self {
            machine: Members::new(config, &own),
            effects: Vec::new(),
            now: ms(1000),
        }
    }

    fn take(&mut self, event: Event) {
        self.machine.handle(self.now, event, &mut self.effects);
    }

    /// Time passes, and JavaScript runs.
    fn pass(&mut self, time: u64) {
        self.now += ms(time);
        self.take(Event::JsTurn);
    }

    fn requests(&mut self) -> Vec<Request> {
        let effects = std::mem::take(&mut self.effects);
        let request = |effect| match effect {
            Effect::Send(request) => Some(request),
            _ => None,
        };
        effects.into_iter().filter_map(request).collect()
    }

    fn request(&mut self) -> Request {
        self.requests().pop().expect("a heartbeat")
    }

    fn answer(&mut self, request: &Request, outcome: Outcome) {
        let reply = Reply {
            detail: model::LAPSED.into(),
            ..reply_to(request, outcome)
        };
        self.take(Event::Reply(reply));
    }

    /// A heartbeat and its reply.
    fn beat(&mut self, registry: &mut Registry) -> Outcome {
        self.pass(L / 9);
        let request = self.request();
        let now = 1_000_000 + u64::try_from(self.now.as_millis()).unwrap();
        let reply = registry.apply(&request, now);
        let outcome = reply.outcome;
        self.take(Event::Reply(reply));
        outcome
    }

    fn joining() -> Self {
        let mut node = Self::new("a", 1);
        node.take(Event::Announce);
        node
    }

    /// Alone in its cluster, and serving.
    fn member() -> (Self, Registry) {
        let (mut node, mut registry) = (Self::joining(), Registry::default());
        node.take(Event::PeerGone {
            id: "b".into(),
            incarnation: 0,
        });
        for _ in 0..3 {
            assert_eq!(node.beat(&mut registry), Outcome::Renewed);
        }
        let epoch = node.machine.snapshot().unwrap().view.epoch;
        node.take(Event::Released(epoch));
        assert!(node.machine.serving(node.now));
        assert!(node.machine.entitled(b"doc"));
        (node, registry)
    }

    /// In a view of two, of whom the other one says nothing.
    fn beside_a_silent_peer() -> Self {
        let (mut node, mut registry) = Node::member();
        let mut peer = Node::new("b", 5);
        peer.take(Event::Announce);
        peer.now = node.now;
        peer.beat(&mut registry);
        registry.members.get_mut("b").unwrap().state = MemberState::Active;
        node.beat(&mut registry);
        let (epoch, _) = node.machine.installed();
        node.take(Event::Released(epoch));
        node
    }

    fn departed(&self) -> Option<bool> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Departed { stay_out, .. } => Some(*stay_out),
            _ => None,
        })
    }
}

#[test]
fn idle_announce_joining() {
    let mut node = Node::joining();
    assert_eq!(node.machine.standing(), Standing::Joining);
    let request = node.request();
    assert_eq!((request.want, request.known.epoch), (Want::Join, 0));
    assert!(!node.machine.serving(node.now));
}

#[test]
fn idle_leave_out() {
    let mut node = Node::new("a", 1);
    node.take(Event::Leave);
    assert_eq!(node.machine.standing(), Standing::Out);
    assert!(node.requests().is_empty());
}

#[test]
fn joining_renewed_member() {
    let (mut node, _) = Node::member();
    assert_eq!(node.machine.standing(), Standing::Member);
    node.pass(L / 9);
    assert_eq!(node.request().want, Want::Renew);
}

#[test]
fn joining_vouched_for_member() {
    // b is frozen with a's earlier process in its view.
    let stored = |incarnation| StoredMember {
        incarnation,
        record: String::new(),
        state: MemberState::Active,
        lease: L,
        since: 1,
        known: 3,
    };
    let members = [("a".to_owned(), stored(7)), ("b".to_owned(), stored(8))];
    let view = StoredView {
        members: BTreeMap::from(members),
        pins: BTreeMap::new(),
    };
    let mut node = Node::joining();
    let vouch = Vouch {
        to: 1,
        echo: 1000,
        ask: 77,
        known: Known {
            epoch: 3,
            mark: "m".into(),
        },
        view,
    };
    let from = |vouch: Vouch| Event::Vouch {
        from: "b".into(),
        vouch: Box::new(vouch),
    };
    // For another process: not ours.
    let other = Vouch {
        to: 2,
        ..vouch.clone()
    };
    node.take(from(other));
    assert_eq!(node.machine.standing(), Standing::Joining);
    node.take(from(vouch));
    assert_eq!(node.machine.standing(), Standing::Member);
    assert_eq!(node.machine.incarnation(), 7);
    let answers = |effect: &Effect| matches!(effect, Effect::Tell { report, .. } if report.echo == Some(77) && report.sealed);
    assert!(node.effects.iter().any(answers));
    // Only while b's word is good.
    assert!(node.machine.serving(node.now));
    assert!(!node.machine.serving(node.now + ms(L / 3)));
}

#[test]
fn joining_departed_out() {
    let mut node = Node::joining();
    let request = node.request();
    node.answer(&request, Outcome::Departed);
    assert_eq!(node.machine.standing(), Standing::Out);
    assert_eq!(node.departed(), Some(false));
}

#[test]
fn joining_leave_departing() {
    let mut node = Node::joining();
    node.pass(L / 9);
    node.take(Event::Leave);
    node.pass(L / 9);
    assert_eq!(node.machine.standing(), Standing::Departing);
    assert_eq!(node.request().want, Want::Leave);
}

#[test]
fn joining_and_member_evicted_departing() {
    let mut node = Node::joining();
    let request = node.request();
    node.answer(&request, Outcome::Evicted);
    assert_eq!(node.machine.standing(), Standing::Departing);
    let (mut node, _) = Node::member();
    node.pass(L / 9);
    let request = node.request();
    node.answer(&request, Outcome::Evicted);
    assert_eq!(node.machine.standing(), Standing::Departing);
    assert!(!node.machine.serving(node.now));
    node.pass(L / 9);
    assert_eq!(node.request().want, Want::Leave);
}

#[test]
fn member_departed_out_rejoin_joining() {
    let (mut node, _) = Node::member();
    node.pass(L / 9);
    let request = node.request();
    node.answer(&request, Outcome::Departed);
    assert_eq!(node.machine.standing(), Standing::Out);
    assert_eq!(node.departed(), Some(false));
    assert!(!node.machine.serving(node.now));
    node.effects.clear();
    node.take(Event::Rejoin { incarnation: 2 });
    assert_eq!(node.machine.standing(), Standing::Joining);
    node.pass(L / 9);
    let join = node.request();
    assert_eq!((join.incarnation, join.want), (2, Want::Join));
    // What it has seen stays seen.
    assert!(join.floor > 0);
    assert!(!node.machine.entitled(b"doc"));
}

#[test]
fn member_leave_departing_left_out() {
    let (mut node, mut registry) = Node::member();
    node.take(Event::Leave);
    assert_eq!(node.machine.standing(), Standing::Departing);
    assert!(!node.machine.serving(node.now));
    assert_eq!(node.beat(&mut registry), Outcome::Left);
    assert_eq!(node.machine.standing(), Standing::Out);
    assert_eq!(node.departed(), Some(true));
    assert!(registry.members.is_empty());
}

#[test]
fn departing_departed_or_id_taken_out() {
    for outcome in [Outcome::Departed, Outcome::IdTaken] {
        let (mut node, _) = Node::member();
        node.take(Event::Leave);
        node.pass(L / 9);
        let request = node.request();
        node.answer(&request, outcome);
        assert_eq!(node.machine.standing(), Standing::Out);
        assert_eq!(node.departed(), Some(true));
    }
}

#[test]
fn no_turn_no_heartbeat() {
    let (mut node, _) = Node::member();
    node.pass(L / 9);
    assert_eq!(node.requests().len(), 1);
    for _ in 0..5 {
        node.now += ms(L / 9);
        node.take(Event::Tick);
    }
    assert_eq!(node.requests().len(), 0);
    node.take(Event::JsTurn);
    node.pass(L / 90);
    assert_eq!(node.requests().len(), 1);
}

#[test]
fn a_late_or_repeated_reply_renews_nothing() {
    let (mut node, mut registry) = Node::member();
    node.pass(L / 9);
    let request = node.request();
    let reply = registry.apply(&request, 2_000_000);
    node.take(Event::Reply(reply.clone()));
    let deadline = node.machine.deadline;
    node.now += ms(3000);
    node.take(Event::Reply(reply));
    assert_eq!(node.machine.deadline, deadline);
    // Seventeen unanswered requests later the first is forgotten.
    node.pass(L / 9);
    let old = node.request();
    for _ in 0..=MAX_SENT {
        node.pass(L / 9);
    }
    assert_eq!(node.machine.sent.len(), MAX_SENT);
    node.answer(&old, Outcome::Departed);
    assert_eq!(node.machine.standing(), Standing::Member);
}

#[test]
fn a_relayed_reply_counts_only_from_the_peer_that_was_asked_to_relay() {
    let mut node = Node::beside_a_silent_peer();
    let member = |id: &str| (id.to_owned(), node.machine.peers[id].clone());
    let (b, mut peer) = member("b");
    let now = node.now;
    // It reaches the registry, and we have not of late.
    (peer.heard, peer.reaches) = (Some(now), Some(now));
    node.machine.peers.insert(b.clone(), peer);
    node.machine.last_direct = None;
    node.machine.next_beat = now;
    node.effects.clear();
    node.take(Event::JsTurn);
    let relayed = node.effects.iter().find_map(|effect| match effect {
        Effect::Relay { via, request } => Some((via.clone(), request.clone())),
        _ => None,
    });
    let (via, request) = relayed.expect("a relay");
    assert_eq!(via, b);
    let before = node.machine.renewed_by;
    let reply = reply_to(&request, Outcome::Renewed);
    // Of another peer; of a request that was not given to b; as if the registry had said it.
    node.take(Event::Relayed {
        from: "c".into(),
        reply: reply.clone(),
    });
    let other = Reply {
        seq: request.seq + 1,
        ..reply.clone()
    };
    node.take(Event::Relayed {
        from: b.clone(),
        reply: other,
    });
    node.take(Event::Reply(reply.clone()));
    assert_eq!(node.machine.renewed_by, before);
    node.take(Event::Relayed { from: b, reply });
    assert_eq!(node.machine.renewed_by, request.seq);
}

#[test]
fn commands_wait_for_an_effective_request_and_are_bounded() {
    let (mut node, mut registry) = Node::member();
    for document in 0..=MAX_COMMANDS {
        node.take(Event::Pin {
            document: format!("doc-{document}"),
            node: Some("a".into()),
        });
    }
    assert_eq!(node.machine.pins.len(), MAX_COMMANDS);
    let warns = |effect: &&Effect| matches!(effect, Effect::Warn(_));
    assert_eq!(node.effects.iter().filter(warns).count(), 1);
    node.beat(&mut registry);
    assert_eq!(node.machine.pins.len(), 0);
    assert_eq!(registry.pins.len(), MAX_COMMANDS);
}

#[test]
fn a_pin_is_carried_by_one_request_at_a_time() {
    let (mut node, mut registry) = Node::member();
    node.beat(&mut registry);
    node.take(Event::Pin {
        document: "doc".into(),
        node: Some("a".into()),
    });
    node.pass(L / 9);
    let first = node.request();
    assert_eq!(first.pins.len(), 1);
    let now = 1_000_000 + u64::try_from(node.now.as_millis()).unwrap();
    let reply = registry.apply(&first, now);
    // Its reply is on its way, and so is the next request: another node has pinned it elsewhere.
    node.take(Event::Nudge);
    node.pass(L / 90);
    let second = node.request();
    assert_eq!(second.pins.len(), 0);
    registry.pins.insert("doc".into(), "b".into());
    registry.apply(&second, now + 1);
    node.take(Event::Reply(reply));
    assert_eq!(node.machine.pins.len(), 0);
    node.beat(&mut registry);
    assert_eq!(registry.pins["doc"], "b");

    // Without an answer it goes with all of them, and after one that did not carry it out with the next.
    node.take(Event::Pin {
        document: "doc".into(),
        node: Some("a".into()),
    });
    for _ in 0..4 {
        node.pass(L / 9);
    }
    let requests = node.requests();
    assert_eq!(requests.last().expect("requests").pins.len(), 1);
    node.answer(requests.last().expect("requests"), Outcome::Stale);
    node.pass(L / 9);
    assert_eq!(node.request().pins.len(), 1);
}

#[test]
fn another_view_of_our_epoch_stops_us_until_a_renewal() {
    let (mut node, mut registry) = Node::member();
    let mut join = Node::new("b", 5);
    join.take(Event::Announce);
    join.now = node.now;
    join.beat(&mut registry);
    node.beat(&mut registry);
    let (epoch, hash) = node.machine.installed();
    node.take(Event::Released(epoch));
    assert!(node.machine.serving(node.now));
    let report = Report {
        incarnation: 5,
        to: 1,
        epoch,
        hash: hash + 1,
        released: true,
        sealed: false,
        admits: false,
        reaches: true,
        ask: None,
        echo: None,
    };
    let from = "b".to_owned();
    node.take(Event::Report { from, report });
    assert!(!node.machine.serving(node.now));
    node.beat(&mut registry);
    assert!(node.machine.serving(node.now));
}

#[test]
fn the_next_wakeup_is_never_past_due_and_never_late() {
    let mut node = Node::beside_a_silent_peer();
    // Nobody answers any more: every change of `serving` falls on a wake-up.
    let mut changes = 0;
    for _ in 0..100 {
        let at = node.machine.next_wakeup();
        assert!(at > node.now);
        let before = node.machine.serving(node.now);
        assert_eq!(
            node.machine
                .serving(at.saturating_sub(Duration::from_nanos(1))),
            before
        );
        node.now = at;
        node.take(Event::JsTurn);
        changes += u32::from(node.machine.serving(at) != before);
    }
    assert_eq!(changes, 1);
}

#[test]
fn member_settled_while_removed_departing() {
    let (mut node, mut registry) = Node::member();
    node.take(Event::Evict {
        id: "a".into(),
        reason: String::new(),
        how: How::Drain,
    });
    node.beat(&mut registry);
    let (epoch, _) = node.machine.installed();
    assert_eq!(registry.members["a"].state, MemberState::Leaving);
    // It still holds documents.
    assert_eq!(node.machine.standing(), Standing::Member);
    node.take(Event::Released(epoch));
    assert_eq!(node.machine.standing(), Standing::Departing);
    assert_eq!(node.beat(&mut registry), Outcome::Left);
    assert_eq!(node.departed(), Some(true));
}

#[test]
fn a_node_that_waits_first_learns_that_its_time_is_up() {
    let mut node = Node::beside_a_silent_peer();
    node.effects.clear();
    // Neither the registry nor the peer answers: it waits from a third of the lease on, and at its end
    // what it served may be another's.
    let mut told = Vec::new();
    while node.now < ms(4 * L) {
        node.now = node.machine.next_wakeup();
        node.take(Event::JsTurn);
        told.extend(node.effects.drain(..).filter_map(|effect| match effect {
            Effect::Serving { on, lapsed } => Some((on, lapsed, node.now)),
            _ => None,
        }));
    }
    let [(false, false, waits), (false, true, lapses)] = told[..] else {
        panic!("{told:?}");
    };
    assert!(waits < lapses);
    assert_eq!(lapses, node.machine.deadline);
}

#[test]
fn whoever_is_out_hears_nothing_weaker_afterwards() {
    let (mut node, _) = Node::member();
    node.pass(L / 9);
    let request = node.request();
    // Put out early, long before its deadline.
    node.answer(&request, Outcome::Departed);
    let last = node.effects.last();
    assert!(
        matches!(last, Some(Effect::Departed { .. })),
        "{:?}",
        node.effects
    );
}
