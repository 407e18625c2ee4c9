//! Clusters without Redis in virtual time: `Peers` over a network that delays, reorders, drops,
//! duplicates, partitions, and nodes that stop, resume, crash and restart.
//!
//! Each failure names its seed; `SWIM_SEED=<seed> cargo test --no-default-features --test swim_sim`
//! runs nothing but that one. Everything random comes from the seed.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a seed to replay, and figures"
)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use smartroute::cluster::settled::{self, Settling, Word};
use smartroute::cluster::view::{Member, MemberState, Snapshot, View};
use smartroute::store::peers::{Effect, Event, MAX_MESSAGE, Peers, Timings};

/// Calm enough for jitter and loss, fast enough for thousands of virtual seconds.
fn fast() -> Timings {
    Timings::derive(ms(500), ms(900), ms(2000))
}

/// What users have who set nothing.
fn defaults() -> Timings {
    Timings::derive(ms(5000), ms(9000), ms(60_000))
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

struct Node {
    peers: Peers,
    incarnation: u64,
    paused: bool,
    /// What arrives while the process is stopped waits in its sockets.
    waiting: Vec<(usize, Bytes)>,
    views: usize,
    settling: Settling,
    snapshot: Arc<Snapshot>,
    /// Documents in memory, of [`DOCUMENTS`].
    held: BTreeSet<usize>,
}

/// What clients have open, all the time and everywhere.
const DOCUMENTS: usize = 24;

fn document(number: usize) -> String {
    format!("doc-{number}")
}

enum Happening {
    Deliver {
        from: usize,
        to: usize,
        /// The processes that talk: a restart does not get its predecessor's bytes.
        link: (u64, u64),
        bytes: Bytes,
    },
    /// The same of a word about a view.
    Said {
        from: usize,
        to: usize,
        link: (u64, u64),
        word: Word,
    },
    /// JavaScript has let go of what this view takes away.
    Released {
        node: usize,
        incarnation: u64,
        epoch: u64,
    },
    /// A node looks after its dials.
    Dial(usize),
    /// The keep-alive of a link across a cut.
    Broken(usize, usize),
}

struct Sim {
    rng: StdRng,
    now: Duration,
    timings: Timings,
    nodes: BTreeMap<usize, Node>,
    queue: BTreeMap<(Duration, u64), Happening>,
    number: u64,
    links: BTreeSet<(usize, usize)>,
    /// Nodes of different groups do not hear each other.
    groups: BTreeMap<usize, usize>,
    loss: f64,
    slowest: u64,
    starts: u64,
    drained: Vec<usize>,
    messages: u64,
    /// Longest time that JavaScript takes to let go of documents, ms.
    holds: u64,
    /// No document may be in the memory of two nodes.
    one_owner: bool,
    words: u64,
}

fn name(index: usize) -> String {
    format!("node-{index:02}")
}

fn index(name: &str) -> usize {
    name["node-".len()..].parse().unwrap()
}

fn member(index: usize, incarnation: u64) -> Member {
    Member {
        id: name(index),
        incarnation,
        address: format!("10.0.0.{index}"),
        port: 8000,
        link_port: None,
        weight: 1.0,
        state: MemberState::Active,
    }
}

/// Node that a document belongs to.
fn owner(snapshot: &Snapshot, number: usize) -> Option<usize> {
    let owner = snapshot.owner(document(number).as_bytes())?;
    Some(index(&snapshot.active[owner as usize].id))
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Sim {
    fn new(seed: u64, timings: Timings) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: ms(1),
            timings,
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            number: 0,
            links: BTreeSet::new(),
            groups: BTreeMap::new(),
            loss: 0.0,
            slowest: 5,
            starts: 0,
            drained: Vec::new(),
            messages: 0,
            holds: 20,
            one_owner: false,
            words: 0,
        }
    }

    fn at(&mut self, after: Duration, what: Happening) {
        self.number += 1;
        self.queue.insert((self.now + after, self.number), what);
    }

    // ── The script ───────────────────────────────────────────────────────────────────────────────

    fn start(&mut self, node: usize, seeds: &[usize]) {
        self.starts += 1;
        let incarnation = 1000 + self.starts;
        let own = member(node, incarnation);
        let seeds = seeds.iter().map(|&seed| (name(seed), member(seed, 0)));
        let peers = Peers::new(
            self.now,
            own,
            seeds.collect(),
            true,
            self.timings,
            self.rng.random(),
        );
        let process = Node {
            peers,
            incarnation,
            paused: false,
            waiting: Vec::new(),
            views: 0,
            settling: Settling::default(),
            snapshot: Arc::default(),
            held: BTreeSet::new(),
        };
        assert!(self.nodes.insert(node, process).is_none());
        self.publish(node);
        self.at(ms(0), Happening::Dial(node));
    }

    fn start_all(&mut self, count: usize) {
        let all: Vec<usize> = (0..count).collect();
        for node in 0..count {
            self.start(node, &all);
        }
    }

    /// kill -9: the sockets of a process end with it.
    fn crash(&mut self, node: usize) {
        self.nodes.remove(&node);
        for peer in self.linked(node) {
            self.unlink(node, peer);
        }
    }

    fn leave(&mut self, node: usize) {
        self.event(node, Event::Leave);
        self.run(ms(5));
        self.crash(node);
    }

    fn pause(&mut self, node: usize) {
        self.nodes.get_mut(&node).unwrap().paused = true;
    }

    fn resume(&mut self, node: usize) {
        let process = self.nodes.get_mut(&node).unwrap();
        process.paused = false;
        for (from, bytes) in std::mem::take(&mut process.waiting) {
            let from = name(from);
            let (from, bytes) = (&from, &bytes);
            self.event(node, Event::Gossip { from, bytes });
        }
    }

    /// Each node is in one group; those not named are in group 0.
    fn cut(&mut self, groups: &[&[usize]]) {
        self.groups.clear();
        for (number, group) in groups.iter().enumerate() {
            for &node in *group {
                self.groups.insert(node, number + 1);
            }
        }
        for (a, b) in self.links.clone() {
            if !self.reaches(a, b) {
                // Silent until a keep-alive notices.
                let after = ms(self.rng.random_range(0..3000));
                self.at(after, Happening::Broken(a, b));
            }
        }
    }

    fn heal(&mut self) {
        self.groups.clear();
    }

    fn add(&mut self, at: usize, node: usize) {
        self.event(at, Event::Add(member(node, 0)));
    }

    fn remove(&mut self, at: usize, node: usize) {
        self.event(at, Event::Remove(&name(node)));
    }

    // ── The world ────────────────────────────────────────────────────────────────────────────────

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.groups.get(&a).unwrap_or(&0) == self.groups.get(&b).unwrap_or(&0)
    }

    fn linked(&self, node: usize) -> Vec<usize> {
        let ends = self.links.iter().filter(|(a, b)| *a == node || *b == node);
        ends.map(|(a, b)| if *a == node { *b } else { *a })
            .collect()
    }

    fn unlink(&mut self, a: usize, b: usize) {
        if self.links.remove(&pair(a, b)) {
            self.meet(a, b, false);
            self.meet(b, a, false);
            self.event(
                a,
                Event::Link {
                    peer: &name(b),
                    up: false,
                },
            );
            self.event(
                b,
                Event::Link {
                    peer: &name(a),
                    up: false,
                },
            );
        }
    }

    fn event(&mut self, node: usize, event: Event<'_>) {
        let Some(process) = self.nodes.get_mut(&node) else {
            return;
        };
        let incarnation = process.incarnation;
        for effect in process.peers.handle(self.now, event) {
            match effect {
                Effect::Send { to, bytes } => {
                    assert!(bytes.len() <= MAX_MESSAGE);
                    self.carry(node, incarnation, index(&to), &bytes);
                }
                Effect::Changed => {
                    self.nodes.get_mut(&node).unwrap().views += 1;
                    self.publish(node);
                }
                Effect::Drain => self.drained.push(node),
                Effect::Out | Effect::Log { .. } => {}
            }
        }
    }

    // ── What the coordinator and JavaScript make of it ───────────────────────────────────────────

    fn publish(&mut self, node: usize) {
        let process = self.nodes.get_mut(&node).unwrap();
        let (members, pins) = (process.peers.members(), process.peers.pins());
        let before = &process.snapshot.view;
        if before.members == *members && before.pins == *pins {
            return;
        }
        let view = View {
            epoch: before.epoch + 1,
            members: members.clone(),
            pins: pins.clone(),
        };
        let (epoch, incarnation) = (view.epoch, process.incarnation);
        process.snapshot = Arc::new(Snapshot::new(view, 8));
        process
            .settling
            .install(&name(node), Arc::clone(&process.snapshot));
        let after = ms(self.rng.random_range(0..=self.holds));
        let released = Happening::Released {
            node,
            incarnation,
            epoch,
        };
        self.at(after, released);
    }

    fn settle(&mut self, node: usize, effects: Vec<settled::Effect>) {
        for effect in effects {
            if let settled::Effect::Tell { to, word } = effect {
                let to = index(&to);
                let Some(peer) = self.nodes.get(&to) else {
                    continue;
                };
                let link = (word.incarnation, peer.incarnation);
                self.words += 1;
                if !self.links.contains(&pair(node, to))
                    || !self.reaches(node, to)
                    || self.rng.random_bool(self.loss)
                {
                    continue;
                }
                let delay = Duration::from_micros(self.rng.random_range(100..self.slowest * 1000));
                let from = node;
                self.at(
                    delay,
                    Happening::Said {
                        from,
                        to,
                        link,
                        word,
                    },
                );
            }
        }
        self.load(node);
    }

    /// Clients ask every node for every document: what it may serve, it loads.
    fn load(&mut self, node: usize) {
        let process = self.nodes.get_mut(&node).unwrap();
        let right = process.settling.right();
        for number in 0..DOCUMENTS {
            if right.entitles(&name(node), document(number).as_bytes()) {
                process.held.insert(number);
            }
        }
        if self.one_owner {
            for (&other, process) in &self.nodes {
                let both = &process.held & &self.nodes[&node].held;
                assert!(
                    other == node || both.is_empty(),
                    "{both:?} at {node} and {other}"
                );
            }
        }
    }

    fn released(&mut self, node: usize, incarnation: u64, epoch: u64) {
        let now = self.now;
        let process = self.nodes.get_mut(&node);
        let Some(process) = process.filter(|it| it.incarnation == incarnation) else {
            return;
        };
        if process.snapshot.view.epoch != epoch {
            return;
        }
        let snapshot = Arc::clone(&process.snapshot);
        process
            .held
            .retain(|&number| owner(&snapshot, number) == Some(node));
        let effects = process.settling.released(now, epoch);
        self.settle(node, effects);
    }

    fn said(&mut self, from: usize, to: usize, link: (u64, u64), word: &Word) {
        let talks = |node: usize, incarnation| {
            let process = self.nodes.get(&node);
            process.is_some_and(|it| it.incarnation == incarnation && !it.paused)
        };
        if talks(from, link.0) && talks(to, link.1) {
            let process = self.nodes.get_mut(&to).unwrap();
            let effects = process.settling.hear(&name(from), word);
            self.settle(to, effects);
        }
    }

    fn meet(&mut self, node: usize, peer: usize, up: bool) {
        let Some(process) = self.nodes.get_mut(&node) else {
            return;
        };
        if up {
            let effects = process.settling.met(&name(peer));
            self.settle(node, effects);
        } else {
            process.settling.lost(&name(peer));
        }
    }

    fn carry(&mut self, from: usize, incarnation: u64, to: usize, bytes: &Bytes) {
        let Some(process) = self.nodes.get(&to) else {
            return;
        };
        if !self.links.contains(&pair(from, to)) || !self.reaches(from, to) {
            return;
        }
        let link = (incarnation, process.incarnation);
        self.messages += 1;
        let copies = if self.rng.random_bool(self.loss) {
            0
        } else {
            1 + usize::from(self.rng.random_bool(self.loss / 2.0))
        };
        for _ in 0..copies {
            let slow = self.rng.random_bool(self.loss);
            let most = if slow { 200_000 } else { self.slowest * 1000 };
            let delay = Duration::from_micros(self.rng.random_range(100..most));
            let bytes = bytes.clone();
            self.at(
                delay,
                Happening::Deliver {
                    from,
                    to,
                    link,
                    bytes,
                },
            );
        }
    }

    fn dial(&mut self, node: usize) {
        let Some(process) = self.nodes.get(&node) else {
            return;
        };
        let paused = process.paused;
        let targets: Vec<String> = process.peers.dials().keys().cloned().collect();
        let own = process.peers.members()[&name(node)].clone();
        let again = ms(self.rng.random_range(50..500));
        self.at(again, Happening::Dial(node));
        if paused {
            return;
        }
        for target in targets {
            let to = index(&target);
            if self.links.contains(&pair(node, to)) {
                continue;
            }
            let peer = target.as_str();
            if !self.reaches(node, to) {
                self.event(
                    node,
                    Event::Unreachable {
                        peer,
                        refused: false,
                    },
                );
                continue;
            }
            match self.nodes.get(&to) {
                None => self.event(
                    node,
                    Event::Unreachable {
                        peer,
                        refused: true,
                    },
                ),
                Some(other) if other.paused || other.peers.refuses(&own).is_some() => {
                    self.event(
                        node,
                        Event::Unreachable {
                            peer,
                            refused: false,
                        },
                    );
                }
                Some(_) => {
                    self.links.insert(pair(node, to));
                    self.event(node, Event::Link { peer, up: true });
                    self.event(
                        to,
                        Event::Link {
                            peer: &name(node),
                            up: true,
                        },
                    );
                    self.meet(node, to, true);
                    self.meet(to, node, true);
                }
            }
        }
    }

    /// Runs the one thing that happens next, if it happens by `until`.
    fn step(&mut self, until: Duration) -> bool {
        let due = self
            .nodes
            .iter()
            .filter(|(_, node)| !node.paused)
            .filter_map(|(&id, node)| {
                let deadlines = [node.peers.deadline(), node.settling.deadline()];
                Some((deadlines.into_iter().flatten().min()?.max(self.now), id))
            })
            .min();
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        match (due, queued) {
            (Some((at, node)), queued) if at <= until && queued.is_none_or(|it| at <= it) => {
                self.now = at;
                self.event(node, Event::Tick);
                if let Some(process) = self.nodes.get_mut(&node) {
                    let effects = process.settling.tick(at);
                    self.settle(node, effects);
                }
            }
            (_, Some(at)) if at <= until => {
                self.now = at;
                let (_, what) = self.queue.pop_first().unwrap();
                match what {
                    Happening::Dial(node) => self.dial(node),
                    Happening::Released {
                        node,
                        incarnation,
                        epoch,
                    } => self.released(node, incarnation, epoch),
                    Happening::Said {
                        from,
                        to,
                        link,
                        word,
                    } => self.said(from, to, link, &word),
                    Happening::Broken(a, b) => {
                        if !self.reaches(a, b) {
                            self.unlink(a, b);
                        }
                    }
                    Happening::Deliver {
                        from,
                        to,
                        link,
                        bytes,
                    } => self.deliver(from, to, link, bytes),
                }
            }
            _ => {
                self.now = until;
                return false;
            }
        }
        for node in std::mem::take(&mut self.drained) {
            self.event(node, Event::Drained);
        }
        true
    }

    fn deliver(&mut self, from: usize, to: usize, link: (u64, u64), bytes: Bytes) {
        let alive = self
            .nodes
            .get(&from)
            .is_none_or(|node| node.incarnation == link.0);
        let Some(process) = self.nodes.get_mut(&to) else {
            return;
        };
        if !alive || process.incarnation != link.1 {
            return;
        }
        if process.paused {
            process.waiting.push((from, bytes));
            return;
        }
        let bytes = &bytes;
        self.event(
            to,
            Event::Gossip {
                from: &name(from),
                bytes,
            },
        );
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    // ── What must be true ────────────────────────────────────────────────────────────────────────

    fn hash(&self, node: usize) -> u64 {
        self.nodes[&node].snapshot.hash
    }

    /// Whether these nodes have one settled view, and each document is at its owner and nowhere else.
    fn settled(&self, nodes: &[usize]) -> bool {
        nodes.iter().all(|node| {
            let process = &self.nodes[node];
            process.settling.is_settled()
                && (0..DOCUMENTS).all(|number| {
                    let owned = owner(&process.snapshot, number) == Some(*node);
                    process.held.contains(&number) == owned
                })
        })
    }

    #[track_caller]
    fn settles(&mut self, nodes: &[usize], within: Duration) -> Duration {
        let began = self.now;
        while !self.settled(nodes) {
            if self.now - began > within {
                let state = nodes.iter().map(|node| &self.nodes[node].settling);
                panic!(
                    "{nodes:?} not settled within {within:?}: {:#?}",
                    state.collect::<Vec<_>>()
                );
            }
            self.run(ms(1));
        }
        self.now - began
    }

    fn pin(&mut self, at: usize, number: usize, node: Option<usize>) {
        let (document, node) = (document(number), node.map(name));
        self.event(at, Event::Pin { document, node });
    }

    fn sees(&self, node: usize) -> Vec<usize> {
        let members = self.nodes[&node].peers.members().values();
        let active = members.filter(|member| member.state == MemberState::Active);
        active.map(|member| index(&member.id)).collect()
    }

    /// Whether every one of `nodes` sees exactly these, all in the incarnation that runs.
    fn agreed(&self, nodes: &[usize]) -> bool {
        nodes.iter().all(|&node| {
            let members = self.nodes[&node].peers.members();
            members.len() == nodes.len()
                && nodes.iter().all(|&other| {
                    members.get(&name(other)).is_some_and(|member| {
                        member.state == MemberState::Active
                            && member.incarnation == self.nodes[&other].incarnation
                    })
                })
        })
    }

    /// Runs until these nodes have one view of exactly themselves, and keep it for a second.
    #[track_caller]
    fn agree(&mut self, nodes: &[usize], within: Duration) -> Duration {
        let began = self.now;
        loop {
            if self.agreed(nodes) {
                let took = self.now - began;
                let hashes: HashSet<u64> = nodes.iter().map(|&node| self.hash(node)).collect();
                assert_eq!(hashes.len(), 1);
                self.run(ms(1000));
                if self.agreed(nodes) {
                    return took;
                }
            }
            if self.now - began > within {
                let views: Vec<_> = nodes.iter().map(|&node| (node, self.sees(node))).collect();
                panic!("no agreement on {nodes:?} within {within:?}: {views:?}");
            }
            self.run(ms(20));
        }
    }
}

fn all(count: usize) -> Vec<usize> {
    (0..count).collect()
}

/// Runs one scenario under several seeds, or under the one of `SWIM_SEED`.
fn seeds(count: u64, scenario: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let only = std::env::var("SWIM_SEED").ok();
    let list = match only.map(|seed| seed.parse().unwrap()) {
        Some(seed) => vec![seed],
        None => (0..count).collect::<Vec<u64>>(),
    };
    for seed in list {
        if let Err(panic) = std::panic::catch_unwind(|| scenario(seed)) {
            eprintln!("failed with SWIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// Nodes that were cut off or stopped agree again within so long.
fn heals(timings: &Timings) -> Duration {
    timings.eviction() + ms(4000)
}

#[test]
fn nodes_that_list_each_other_start_with_one_view_and_keep_it() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, fast());
        sim.start_all(5);
        sim.agree(&all(5), ms(2000));
        sim.run(ms(5000));
        assert!(sim.agreed(&all(5)));
    });
}

#[test]
fn a_node_that_knows_one_other_joins_all() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, fast());
        sim.start_all(3);
        sim.agree(&all(3), ms(2000));
        sim.start(3, &[1]);
        let own = |sim: &Sim| sim.nodes[&3].peers.members()[&name(3)].state;
        assert_eq!(own(&sim), MemberState::Joining);
        while own(&sim) == MemberState::Joining {
            sim.run(ms(1));
        }
        // It owns nothing before it has the list of the cluster: its ring would be of two.
        assert_eq!(sim.sees(3), all(4));
        let took = sim.agree(&all(4), ms(2000));
        assert!(took < ms(1000), "{took:?}");
    });
}

#[test]
fn a_crash_is_seen_by_all_within_the_bound() {
    seeds(20, |seed| {
        for timings in [fast(), defaults()] {
            let mut sim = Sim::new(seed, timings);
            sim.start_all(4);
            sim.agree(&all(4), ms(5000));
            sim.crash(2);
            let took = sim.agree(&[0, 1, 3], timings.eviction());
            // Refusal is enough to suspect; it still had time to refute.
            assert!(took >= timings.suspicion, "{took:?}");
            sim.start(2, &all(4));
            sim.agree(&all(4), ms(3000));
        }
    });
}

#[test]
fn a_host_that_falls_silent_is_out_within_the_bound() {
    seeds(20, |seed| {
        for timings in [fast(), defaults()] {
            let mut sim = Sim::new(seed, timings);
            sim.start_all(4);
            sim.agree(&all(4), ms(5000));
            sim.pause(2);
            sim.agree(&[0, 1, 3], timings.eviction());
        }
    });
}

#[test]
fn the_silence_of_one_of_two_is_noticed() {
    // Nobody else's packets keep the other one probing.
    seeds(20, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.start_all(2);
        sim.agree(&all(2), ms(5000));
        let silent = usize::from(seed % 2 == 0);
        sim.pause(silent);
        sim.agree(&[1 - silent], timings.eviction());
        sim.resume(silent);
        sim.agree(&all(2), ms(3000));
        sim.pause(1 - silent);
        sim.agree(&[silent], timings.eviction());
    });
}

#[test]
fn a_quick_restart_never_leaves_the_view() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, defaults());
        sim.start_all(3);
        sim.agree(&all(3), ms(5000));
        sim.crash(1);
        sim.run(ms(500));
        sim.start(1, &all(3));
        for _ in 0..200 {
            sim.run(ms(10));
            assert_eq!(sim.sees(0), all(3));
        }
        sim.agree(&all(3), ms(3000));
    });
}

#[test]
fn a_false_suspicion_is_refuted() {
    seeds(20, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.start_all(4);
        sim.agree(&all(4), ms(2000));
        // Long enough to be suspected by everyone, too short to be given up.
        sim.pause(3);
        sim.run(timings.suspicion);
        sim.resume(3);
        for _ in 0..300 {
            sim.run(ms(20));
            assert_eq!(sim.sees(0), all(4), "one suspicion is no eviction");
        }
        // One node's opinion: its link broke, and what it dials refuses. The others know better.
        let wrong = name(2);
        for _ in 0..20 {
            sim.unlink(1, 2);
            sim.event(
                1,
                Event::Unreachable {
                    peer: &wrong,
                    refused: true,
                },
            );
            sim.run(ms(250));
            for node in all(4) {
                assert_eq!(sim.sees(node), all(4));
            }
        }
    });
}

#[test]
fn loss_delay_and_duplicates_evict_nobody() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, fast());
        sim.loss = 0.1;
        sim.start_all(6);
        sim.agree(&all(6), ms(5000));
        for _ in 0..600 {
            sim.run(ms(50));
            for node in all(6) {
                assert_eq!(sim.sees(node), all(6));
            }
        }
    });
}

#[test]
fn both_sides_of_a_partition_go_on_and_agree_when_it_heals() {
    seeds(30, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.loss = 0.02;
        sim.start_all(6);
        sim.agree(&all(6), ms(5000));
        sim.cut(&[&[0, 1, 2, 3], &[4, 5]]);
        sim.agree(&[0, 1, 2, 3], timings.eviction());
        sim.agree(&[4, 5], timings.eviction());
        sim.run(ms(sim.now.as_millis() as u64 % 5000));
        sim.heal();
        // What one side thought of the other's nodes evicts nobody there.
        for _ in 0..200 {
            sim.run(ms(10));
            for (side, nodes) in [(0..4, [0, 1, 2, 3].as_slice()), (4..6, [4, 5].as_slice())] {
                for node in side {
                    assert!(nodes.iter().all(|it| sim.sees(node).contains(it)));
                }
            }
        }
        let took = sim.agree(&all(6), ms(5000)) + ms(2000);
        assert!(took < ms(5000), "{took:?}");
    });
}

#[test]
fn a_node_stopped_past_its_eviction_comes_back() {
    seeds(20, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.start_all(3);
        sim.agree(&all(3), ms(2000));
        sim.pause(0);
        sim.agree(&[1, 2], timings.eviction());
        sim.resume(0);
        // And it accuses nobody for the time that it slept.
        for _ in 0..50 {
            sim.run(ms(20));
            for node in [1, 2] {
                assert!([1, 2].iter().all(|it| sim.sees(node).contains(it)));
            }
        }
        sim.agree(&all(3), ms(3000));
    });
}

#[test]
fn a_stopped_node_reads_the_refutation_before_it_gives_up_whom_it_suspects() {
    seeds(20, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.start_all(3);
        sim.agree(&all(3), ms(2000));
        let (peer, refused) = (name(1), true);
        sim.unlink(0, 1);
        sim.event(
            0,
            Event::Unreachable {
                peer: &peer,
                refused,
            },
        );
        sim.pause(0);
        sim.run(timings.suspicion + ms(100));
        sim.resume(0);
        for _ in 0..100 {
            for node in all(3) {
                assert!([1, 2].iter().all(|it| sim.sees(node).contains(it)));
            }
            sim.run(ms(10));
        }
    });
}

#[test]
fn news_that_was_lost_is_told_again() {
    seeds(20, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.start_all(4);
        sim.agree(&all(4), ms(2000));
        sim.loss = 1.0;
        sim.add(0, 7);
        sim.run(ms(10));
        sim.loss = 0.0;
        sim.run(timings.sync * 8);
        for node in all(4) {
            assert!(sim.nodes[&node].peers.dials().contains_key(&name(7)));
        }
    });
}

#[test]
fn a_leave_is_known_at_once() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, defaults());
        sim.start_all(5);
        sim.agree(&all(5), ms(5000));
        sim.leave(4);
        let took = sim.agree(&[0, 1, 2, 3], ms(2000));
        assert!(took < ms(100), "{took:?}");
        sim.start(4, &[0]);
        sim.agree(&all(5), ms(2000));
    });
}

#[test]
fn added_by_hand_at_one_node_it_is_dialed_by_all_and_joins_when_it_speaks() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, fast());
        sim.start_all(4);
        sim.agree(&all(4), ms(2000));
        // Node 3 does not hear of it now.
        sim.cut(&[&[3]]);
        sim.run(ms(4000));
        sim.add(0, 7);
        sim.run(ms(500));
        sim.heal();
        sim.agree(&all(4), ms(5000));
        for node in all(4) {
            let peers = &sim.nodes[&node].peers;
            assert!(peers.dials().contains_key(&name(7)), "node {node} dials it");
            assert!(!peers.members().contains_key(&name(7)), "it has not spoken");
        }
        // It knows nobody: they come to it.
        sim.start(7, &[]);
        sim.agree(&[0, 1, 2, 3, 7], ms(3000));
        // Gone and back, it is still listed; by its own leave it is not.
        sim.crash(7);
        sim.agree(&all(4), sim.timings.eviction());
        sim.start(7, &[]);
        sim.agree(&[0, 1, 2, 3, 7], ms(3000));
        sim.leave(7);
        sim.agree(&all(4), ms(2000));
        assert!(
            all(4)
                .iter()
                .all(|node| !sim.nodes[node].peers.dials().contains_key(&name(7)))
        );
    });
}

#[test]
fn removed_by_hand_it_drains_leaves_and_stays_out_until_restarted_or_added() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, fast());
        sim.start_all(4);
        sim.agree(&all(4), ms(2000));
        sim.remove(0, 2);
        let state = |sim: &Sim| sim.nodes[&0].peers.members()[&name(2)].state;
        assert_eq!(state(&sim), MemberState::Leaving);
        sim.agree(&[0, 1, 3], ms(2000));
        sim.run(ms(10_000));
        assert!(sim.agreed(&[0, 1, 3]), "it stays out");
        assert_eq!(sim.sees(2), Vec::<usize>::new(), "and owns nothing");
        sim.add(1, 2);
        sim.agree(&all(4), ms(3000));
        sim.remove(3, 2);
        sim.agree(&[0, 1, 3], ms(2000));
        sim.crash(2);
        sim.start(2, &all(4));
        sim.agree(&all(4), ms(3000));
    });
}

#[test]
fn a_removal_reaches_those_who_were_cut_off_the_removed_node_included() {
    seeds(30, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.start_all(5);
        sim.agree(&all(5), ms(2000));
        sim.cut(&[&[0, 1], &[2, 3, 4]]);
        sim.run(timings.eviction());
        sim.remove(0, 4);
        sim.run(ms(3000));
        assert_eq!(sim.sees(2), vec![2, 3, 4], "it is needed where it is");
        sim.heal();
        sim.agree(&[0, 1, 2, 3], heals(&timings));
        sim.run(ms(5000));
        assert!(sim.agreed(&[0, 1, 2, 3]));
    });
}

#[test]
fn a_hung_node_that_was_removed_is_dropped_after_the_drain_time_and_stays_out() {
    seeds(10, |seed| {
        let timings = Timings {
            suspicion: ms(60_000),
            ..fast()
        };
        let mut sim = Sim::new(seed, timings);
        sim.start_all(3);
        sim.agree(&all(3), ms(2000));
        sim.pause(2);
        sim.remove(1, 2);
        sim.agree(&[0, 1], timings.drain + ms(500));
        sim.resume(2);
        sim.run(ms(5000));
        assert!(sim.agreed(&[0, 1]));
        assert_eq!(sim.sees(2), Vec::<usize>::new());
    });
}

#[test]
fn a_listed_node_that_is_down_counts_for_the_grace_and_not_after() {
    let timings = fast();
    let mut sim = Sim::new(1, timings);
    sim.start(0, &[1, 2]);
    sim.start(1, &[0, 2]);
    sim.run(timings.grace - ms(100));
    assert_eq!((sim.sees(0), sim.sees(1)), (all(3), all(3)));
    sim.agree(&[0, 1], ms(200));
    // Who joins a cluster that no longer waits does not wait either.
    sim.crash(1);
    sim.start(1, &[0, 2]);
    sim.agree(&[0, 1], ms(500));
    sim.start(2, &[0, 1]);
    sim.agree(&all(3), ms(2000));
}

#[test]
fn a_change_of_weight_reaches_all_and_nobody_drops_out_meanwhile() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, fast());
        sim.start_all(5);
        sim.agree(&all(5), ms(2000));
        let own = Member {
            weight: 3.0,
            ..member(2, sim.nodes[&2].incarnation)
        };
        sim.event(2, Event::Own(own));
        for _ in 0..200 {
            sim.run(ms(10));
            for node in all(5) {
                assert_eq!(sim.sees(node), all(5));
            }
        }
        for node in all(5) {
            assert!((sim.nodes[&node].peers.members()[&name(2)].weight - 3.0).abs() < 1e-9);
        }
        assert_eq!(
            all(5)
                .iter()
                .map(|&node| sim.hash(node))
                .collect::<HashSet<_>>()
                .len(),
            1
        );
    });
}

#[test]
fn fifty_nodes_by_the_default_timings() {
    let mut sim = Sim::new(7, defaults());
    // Each knows five others at most: the rest is gossip.
    for node in 0..50 {
        let seeds: Vec<usize> = (0..50usize.min(node)).rev().take(5).collect();
        sim.start(node, &seeds);
    }
    let formed = sim.agree(&all(50), ms(10_000));
    let before = sim.messages;
    sim.run(ms(10_000));
    let idle = (sim.messages - before) as f64 / 50.0 / 10.0;
    for node in 40..50 {
        sim.event(node, Event::Leave);
    }
    sim.run(ms(5));
    for node in 40..50 {
        sim.crash(node);
    }
    let left = sim.agree(&all(40), ms(10_000));
    for node in 30..40 {
        sim.crash(node);
    }
    let crashed = sim.agree(&all(30), defaults().eviction());
    println!(
        "50 nodes: formed in {formed:?}, agreed {left:?} after 10 left, {crashed:?} after 10 crashed; \
         {idle:.1} messages/s per idle node"
    );
}

#[test]
fn whatever_happens_they_agree_in_the_end() {
    let count = std::env::var("SWIM_SEEDS").map_or(500, |count| count.parse().unwrap());
    seeds(count, chaos);
}

/// A random script; then the network is whole, everybody runs, and all that are not out agree.
fn chaos(seed: u64) {
    let timings = fast();
    let mut sim = Sim::new(seed, timings);
    let size = sim.rng.random_range(3..=7);
    sim.loss = [0.0, 0.02, 0.1][sim.rng.random_range(0..3)];
    // Everybody knows node 0, which knows everybody: who was removed is not dialed any more, so after
    // a restart it has to know somebody. Some know more.
    let mut known = BTreeMap::new();
    for node in 0..size {
        let more = (1..size).filter(|_| node == 0 || sim.rng.random_bool(0.5));
        let list: Vec<usize> = std::iter::once(0).chain(more.collect::<Vec<_>>()).collect();
        sim.start(node, &list);
        known.insert(node, list);
    }
    for _ in 0..sim.rng.random_range(3..12) {
        let node = sim.rng.random_range(0..size);
        let other = sim.rng.random_range(0..size);
        let running = sim.nodes.get(&node).map(|process| !process.paused);
        match (sim.rng.random_range(0..8), running) {
            (0, Some(_)) => sim.crash(node),
            (1, Some(true)) => sim.pause(node),
            (1 | 2, Some(false)) => sim.resume(node),
            (0..=2, None) => sim.start(node, &known[&node]),
            (3, Some(true)) => sim.leave(node),
            (4, Some(true)) if node != other => sim.remove(node, other),
            (5, Some(true)) if node != other => sim.add(node, other),
            (6, _) => {
                let some: Vec<usize> = (0..size).filter(|_| sim.rng.random_bool(0.4)).collect();
                sim.cut(&[&some]);
            }
            (7, _) => sim.heal(),
            _ => {}
        }
        let pause = sim.rng.random_range(0..4000);
        sim.run(ms(pause));
    }
    sim.heal();
    sim.loss = 0.0;
    for node in 0..size {
        match sim.nodes.get(&node).map(|process| process.paused) {
            None => sim.start(node, &known[&node]),
            Some(true) => sim.resume(node),
            Some(false) => {}
        }
    }
    // Whoever heard that it was removed is out; the others go on without it.
    let began = sim.now;
    loop {
        sim.run(ms(100));
        let inside: Vec<usize> = all(size)
            .into_iter()
            .filter(|node| !sim.sees(*node).is_empty())
            .collect();
        if sim.agreed(&inside) {
            sim.run(ms(2000));
            let still: Vec<usize> = all(size)
                .into_iter()
                .filter(|node| !sim.sees(*node).is_empty())
                .collect();
            if still == inside && sim.agreed(&inside) {
                return;
            }
        }
        assert!(
            sim.now - began < heals(&timings) + timings.drain,
            "no agreement: {:?}; {:#?}",
            all(size)
                .iter()
                .map(|&node| (node, sim.sees(node)))
                .collect::<Vec<_>>(),
            sim.nodes
                .values()
                .map(|node| &node.peers)
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_document_is_with_one_node_through_joins_leaves_crashes_and_pins() {
    let rounds = AtomicU64::new(0);
    let words = AtomicU64::new(0);
    seeds(60, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.one_owner = true;
        sim.loss = [0.0, 0.02, 0.1][sim.rng.random_range(0..3)];
        sim.start_all(4);
        sim.agree(&all(4), ms(5000));
        let mut inside = all(4);
        for _ in 0..30 {
            let at = inside[sim.rng.random_range(0..inside.len())];
            let other = sim.rng.random_range(0..7);
            let number = sim.rng.random_range(0..DOCUMENTS);
            match sim.rng.random_range(0..6) {
                0 if !sim.nodes.contains_key(&other) => {
                    sim.start(other, &[at]);
                    inside.push(other);
                }
                // It hands over, then leaves: the others load only what it has let go of.
                1 if inside.len() > 2 => {
                    sim.event(at, Event::Drain);
                    inside.retain(|&node| node != at);
                    let rest = inside.clone();
                    let began = sim.now;
                    while !(sim.sees(rest[0]).iter().all(|node| rest.contains(node))
                        && sim.nodes[&at].held.is_empty())
                    {
                        assert!(sim.now - began < ms(5000));
                        sim.run(ms(1));
                    }
                    sim.event(at, Event::Drained);
                    sim.run(ms(5));
                    sim.crash(at);
                }
                2 if inside.len() > 2 => {
                    sim.crash(at);
                    sim.run(ms(500));
                    sim.start(at, &inside.clone());
                }
                _ => {
                    let to = sim.rng.random_bool(0.7).then_some(other);
                    sim.pin(at, number, to);
                }
            }
            let pause = [0, 3, 30, 300, 3000][sim.rng.random_range(0..5)];
            sim.run(ms(pause));
            rounds.fetch_add(1, Ordering::Relaxed);
        }
        sim.loss = 0.0;
        sim.settles(&inside, timings.eviction() + ms(4000));
        words.fetch_add(sim.words, Ordering::Relaxed);
    });
    println!(
        "{} words in {} rounds",
        words.into_inner(),
        rounds.into_inner()
    );
}

#[test]
fn what_is_gained_waits_for_the_one_that_holds_it_and_no_longer() {
    seeds(20, |seed| {
        let mut sim = Sim::new(seed, fast());
        sim.one_owner = true;
        sim.start_all(3);
        sim.agree(&all(3), ms(2000));
        let took = sim.settles(&all(3), ms(1000));
        assert!(took < ms(100), "{took:?}");
        // A database that takes its time at every node.
        sim.holds = 2000;
        sim.start(3, &all(3));
        sim.agree(&all(4), ms(3000));
        assert!(!sim.settled(&all(4)));
        sim.settles(&all(4), ms(4000));
        // Nothing is said where nothing changes, whatever is loaded.
        sim.run(ms(50));
        let before = sim.words;
        sim.run(ms(5000));
        assert_eq!(sim.words, before);
        // Alone it waits for nobody, and where seeds are down it does not either.
        let mut sim = Sim::new(seed, fast());
        sim.start(0, &[1, 2]);
        let owned = |sim: &Sim| sim.nodes[&0].held.len();
        sim.run(ms(1000));
        assert!(owned(&sim) > 0);
        sim.run(sim.timings.grace);
        assert_eq!(owned(&sim), DOCUMENTS);
    });
}

#[test]
fn a_pin_reaches_all_survives_a_partition_and_every_restart_and_is_suspended_without_its_target() {
    seeds(20, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.start_all(4);
        sim.agree(&all(4), ms(2000));
        let at = |sim: &Sim, node: usize, number: usize| owner(&sim.nodes[&node].snapshot, number);
        sim.pin(0, 5, Some(3));
        sim.run(ms(100));
        assert!(all(4).iter().all(|&node| at(&sim, node, 5) == Some(3)));
        sim.settles(&all(4), ms(1000));
        // Each side moves it its own way, one of them later: by the clock of pins, not by time.
        sim.cut(&[&[0, 1], &[2, 3]]);
        sim.agree(&[0, 1], timings.eviction());
        sim.agree(&[2, 3], timings.eviction());
        assert_ne!(at(&sim, 0, 5), Some(3), "the ring decides meanwhile");
        assert_eq!(at(&sim, 2, 5), Some(3));
        sim.pin(2, 7, Some(2));
        sim.pin(2, 5, Some(2));
        sim.pin(2, 5, None);
        sim.pin(0, 5, Some(1));
        sim.heal();
        sim.agree(&all(4), heals(&timings));
        sim.settles(&all(4), heals(&timings));
        for node in all(4) {
            assert_eq!(sim.nodes[&node].peers.pins().get(&document(5)), None);
            assert_eq!(at(&sim, node, 7), Some(2));
        }
        // They live as long as any node does.
        for node in all(4) {
            sim.crash(node);
            sim.run(ms(500));
            sim.start(node, &all(4));
            sim.agree(&all(4), ms(3000));
        }
        sim.settles(&all(4), ms(3000));
        assert!(all(4).iter().all(|&node| at(&sim, node, 7) == Some(2)));
    });
}

#[test]
fn a_cluster_whose_last_nodes_drain_has_no_owners_and_settles() {
    seeds(10, |seed| {
        let timings = fast();
        let mut sim = Sim::new(seed, timings);
        sim.one_owner = true;
        sim.start_all(2);
        sim.agree(&all(2), ms(2000));
        sim.event(0, Event::Drain);
        sim.event(1, Event::Drain);
        sim.run(ms(200));
        for node in all(2) {
            assert_eq!(sim.nodes[&node].peers.members().len(), 2, "still members");
            assert_eq!(owner(&sim.nodes[&node].snapshot, 0), None);
            assert!(sim.nodes[&node].held.is_empty());
        }
        sim.settles(&all(2), ms(1000));
        // One says that it is done, the other hangs.
        sim.event(0, Event::Drained);
        assert_eq!(sim.nodes[&0].peers.members().len(), 1);
        sim.run(timings.drain + ms(100));
        assert_eq!(sim.nodes[&1].peers.members().len(), 1);
    });
}
