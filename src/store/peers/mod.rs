//! Membership without Redis: SWIM (crate foca) over the links, and what SWIM alone does not carry.
//! Pure: time, randomness and bytes come in, effects go out.
//!
//! foca finds out who is alive. Around it stand three things of our own:
//! - **Synchronisation.** Each node tells a random linked peer a digest of its list now and then, and
//!   both exchange whole lists where they differ. Piggybacked updates reach whoever listens at the
//!   time; this reaches those that did not. Source: memberlist's push/pull, and its rule that a
//!   remote "dead" is no more than a hint (`mergeState`).
//! - **Facts**: nodes added, removed or gone on purpose, one last-writer-wins register per node id
//!   (Lamport clock, ties by author). They flood over the links rather than through foca's custom
//!   broadcasts: those are dropped after so many transmissions, and a node cut off meanwhile would
//!   never hear of a removal. **Pins** are kept the same way, one register per document.
//! - **Start**: a node of `clusterNodes` counts as a member before it has spoken, as if it had just
//!   crashed, for [`Timings::grace`]: all nodes start with one list, so they start with one ring. A
//!   node added by hand is dialed by everyone and becomes a member by its own announcement only: the
//!   documents of a running cluster do not wait for a node that is not there.
//!
//! | phase of this node | event                                            | to       |
//! |--------------------|--------------------------------------------------|----------|
//! | –                  | start with seeds to reach                        | waiting  |
//! | –                  | start without                                    | joined   |
//! | waiting            | a member's list, every seed tried, `join` up     | joined   |
//! | waiting, joined    | removed by hand, drain                           | leaving  |
//! | joined, leaving    | leave                                            | out      |
//! | any but out        | put out by hand                                  | out      |
//! | leaving            | drained, `drain` up                              | out      |
//! | out                | added by hand                                    | joined   |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

mod facts;
mod identity;
mod lists;
mod pins;
mod timings;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use foca::{Foca, NoCustomBroadcast, Notification, PostcardCodec, State};
use rand10::SeedableRng;
use rand10::rngs::SmallRng;
use rand10::seq::IteratorRandom;

use self::facts::{Held, What, removed_text};
use self::identity::{Identity, Known};
use self::lists::Sync;
use self::pins::{Pinned, Pins};
pub use self::timings::Timings;
use crate::cluster::view::{Member, MemberState};
use crate::link::auth::{Refusal, RefusalCode};

/// Largest message; what a link's GOSSIP frame carries.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Bytes of members or facts that one message is filled with; longer lists go in several.
const FILL: usize = 12 * 1024;

/// Facts kept. A full store forgets who left, oldest first, then refuses what is new.
const MAX_FACTS: usize = 1024;

/// Lists of more members are not believed: no cluster of ours is near.
const MAX_MEMBERS: usize = 4096;

/// Bytes of an id, an address, or the name of a pinned document; `js/options.js` allows no longer ones.
pub const MAX_NAME: usize = 1024;

/// Nodes that are down or left, and pins that were removed, are remembered so long …
const FORGET: Duration = Duration::from_secs(3600);

/// … and those that were put out by hand so long: one that hangs may wake late.
const FORGET_REMOVED: Duration = Duration::from_secs(24 * 3600);

/// First byte of a message.
mod tag {
    /// A packet of foca's.
    pub const SWIM: u8 = 0;
    /// `u64` digest of the sender's list.
    pub const DIGEST: u8 = 1;
    /// A [`super::Sync`].
    pub const SYNC: u8 = 2;
    /// `u64` digest of the sender's pins; who has none sends none.
    pub const PINS_DIGEST: u8 = 3;
    /// A [`super::Pinned`].
    pub const PINS: u8 = 4;
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// Nothing but time; due at [`Peers::deadline`].
    Tick,
    /// A message of a peer that proved who it is.
    Gossip {
        /// Id of the peer.
        from: &'a str,
        /// The message.
        bytes: &'a [u8],
    },
    /// A link to or from a peer is up; `up` false: it was the last one, and is lost.
    Link {
        /// Id of the peer.
        peer: &'a str,
        /// Whether there is a link now.
        up: bool,
    },
    /// A dialed node could not be reached.
    Unreachable {
        /// Id of the node.
        peer: &'a str,
        /// Its address answered, and nothing listens there: the process is gone.
        refused: bool,
    },
    /// This node says something else of itself (weight, address, state) from now on.
    Own(Member),
    /// Add a node by hand.
    Add(Member),
    /// Remove a node by hand.
    Remove(&'a str),
    /// This node is to own nothing more, and to leave by [`Event::Drained`].
    Drain,
    /// Put a node out by hand, at once: it hangs, and hands nothing over.
    Evict(&'a str),
    /// A peer says that this node was removed or put out.
    PutOut,
    /// This node has handed everything over that it was to hand over.
    Drained,
    /// Pin a document to a node, or to none.
    Pin {
        /// Its name.
        document: String,
        /// The node; `None` removes the pin.
        node: Option<String>,
    },
    /// This node stops.
    Leave,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a message over a link to this node; drop it where there is none, or where it is full:
    /// everything is repeated until it is known.
    Send {
        /// Id of the node.
        to: String,
        /// At most [`MAX_MESSAGE`] bytes.
        bytes: Bytes,
    },
    /// [`Peers::members`], [`Peers::dials`] or [`Peers::pins`] has changed.
    Changed,
    /// This node was removed by hand: hand over, then tell by [`Event::Drained`]. It leaves after
    /// [`Timings::drain`] in any case.
    Drain,
    /// This node was put out by hand, and others may serve already what it has.
    Out,
    /// Tell the operator.
    Log {
        /// `info`, `warn` or `error`.
        level: &'static str,
        /// What happened, for telling it once.
        key: String,
        /// The message.
        message: String,
    },
}

/// See the table at the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Joined,
    Leaving,
    Out,
}

#[derive(Debug, Clone)]
enum Timer {
    Swim(foca::Timer<Identity>),
    Sync,
    Join,
    Grace,
    /// A node that drains, or was removed, has to be gone.
    Drain(String),
}

/// Where a node is to be dialed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host name or address.
    pub address: String,
    /// Port for links.
    pub port: u16,
}

/// The membership of one node in a cluster without Redis.
pub struct Peers {
    foca: Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>,
    rng: SmallRng,
    timings: Timings,
    /// What this node says of itself.
    own: Member,
    phase: Phase,
    /// It is out because somebody else put it out.
    expelled: bool,
    /// `clusterNodes`.
    seeds: BTreeMap<String, Member>,
    /// Seeds that gave their list, or could not be reached.
    tried: BTreeSet<String>,
    /// Nodes that ever said that they have joined.
    spoke: BTreeSet<String>,
    /// Nodes that never spoke no longer count.
    formed: bool,
    linked: BTreeSet<String>,
    facts: BTreeMap<String, Held>,
    pins: Pins,
    /// The pins have changed since the last refresh.
    pinned: bool,
    /// Lamport clock of the facts and pins.
    clock: u64,
    /// By (deadline, number): equal deadlines fire in the order they were set.
    timers: BTreeMap<(Duration, u64), Timer>,
    next_timer: u64,
    /// foca's current timers carry this; without one it has no peers.
    token: Option<foca::TimerToken>,
    members: BTreeMap<String, Member>,
    dials: BTreeMap<String, Target>,
    effects: Vec<Effect>,
    dirty: bool,
}

impl fmt::Debug for Peers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Peers")
            .field("own", &self.own)
            .field("phase", &self.phase)
            .field(
                "known",
                &self.foca.iter_membership_state().collect::<Vec<_>>(),
            )
            .field("linked", &self.linked)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// What foca asks for while it handles one thing.
#[derive(Default)]
struct Outbox {
    sends: Vec<(Identity, Vec<u8>)>,
    timers: Vec<(foca::Timer<Identity>, Duration)>,
    changed: bool,
    renewed: bool,
}

impl foca::Runtime<Identity> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        self.changed = true;
        self.renewed |= matches!(notification, Notification::Rejoin(_));
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.sends.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: foca::Timer<Identity>, after: Duration) {
        self.timers.push((event, after));
    }
}

impl Peers {
    /// A node that starts at `now`. With `connected` false it has no links and takes its list as it
    /// is. `seed` seeds every random choice.
    #[must_use]
    pub fn new(
        now: Duration,
        own: Member,
        seeds: BTreeMap<String, Member>,
        connected: bool,
        timings: Timings,
        seed: u64,
    ) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut seeds = seeds;
        seeds.remove(&own.id);
        let alone = seeds.is_empty();
        let phase = if connected && !alone {
            Phase::Waiting
        } else {
            Phase::Joined
        };
        let identity = Identity::new(&said(&own, phase), own.incarnation, 0);
        let foca = Foca::new(
            identity,
            timings.config(),
            SmallRng::from_rng(&mut rng),
            PostcardCodec,
        );
        let mut peers = Self {
            foca,
            rng,
            timings,
            own,
            phase,
            expelled: false,
            formed: alone,
            seeds,
            tried: BTreeSet::new(),
            spoke: BTreeSet::new(),
            linked: BTreeSet::new(),
            facts: BTreeMap::new(),
            pins: Pins::default(),
            pinned: false,
            clock: 0,
            timers: BTreeMap::new(),
            next_timer: 0,
            token: None,
            members: BTreeMap::new(),
            dials: BTreeMap::new(),
            effects: Vec::new(),
            dirty: true,
        };
        if connected {
            peers.set_timer(now + timings.sync, Timer::Sync);
            if !alone {
                peers.set_timer(now + timings.join, Timer::Join);
                peers.set_timer(now + timings.grace, Timer::Grace);
            }
        }
        peers.refresh(now);
        peers.effects.clear();
        peers
    }

    /// What this node says of itself.
    #[must_use]
    pub fn own(&self) -> &Member {
        &self.own
    }

    /// The members as this node sees them, itself included.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }

    /// Whom to keep a link to.
    #[must_use]
    pub fn dials(&self) -> &BTreeMap<String, Target> {
        &self.dials
    }

    /// Explicit placements: document to node, whether or not that is a member.
    #[must_use]
    pub fn pins(&self) -> &BTreeMap<String, String> {
        self.pins.placed()
    }

    /// When [`Event::Tick`] is due next.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// Whether a node that wants to link is kept out, and why. One that was removed is let in until it
    /// has left: it has to hand over, and to hear of its removal in the first place.
    #[must_use]
    pub fn refuses(&self, peer: &Member) -> Option<Refusal> {
        match self.facts.get(&peer.id)?.fact.what {
            What::Left {
                incarnation,
                removed,
            } if incarnation == peer.incarnation => Some(if removed {
                Refusal::new(RefusalCode::Removed, removed_text(&peer.id))
            } else {
                let reason = format!(
                    "{} has left this cluster: restart it to join again",
                    peer.id
                );
                Refusal::new(RefusalCode::Other, reason)
            }),
            _ => None,
        }
    }

    /// Whether somebody else put this node out: it may not even store what it has.
    #[must_use]
    pub fn is_expelled(&self) -> bool {
        self.expelled
    }

    /// Handles one event.
    pub fn handle(&mut self, now: Duration, event: Event<'_>) -> Vec<Effect> {
        match event {
            Event::Tick => {}
            Event::Gossip { from, bytes } => self.gossip(now, from, bytes),
            Event::Link { peer, up: true } => self.link_up(now, peer),
            Event::Link { peer, up: false } => {
                self.linked.remove(peer);
            }
            Event::Unreachable { peer, refused } => self.unreachable(now, peer, refused),
            Event::Own(own) => self.change_own(now, own),
            Event::Add(member) => {
                if member.id != self.own.id {
                    let what = What::Listed {
                        address: member.address,
                        port: member.port,
                        link_port: member.link_port,
                        weight: member.weight.to_bits(),
                    };
                    self.state_fact(now, member.id, what);
                }
            }
            Event::Remove(id) => {
                if id != self.own.id {
                    let incarnation = self.incarnation_of(id);
                    self.state_fact(now, id.to_owned(), What::Removed { incarnation });
                }
            }
            Event::Drain => {
                self.drain(now);
            }
            Event::Pin { document, node } => self.state_pin(now, document, node),
            Event::Evict(id) => {
                if id != self.own.id {
                    let what = What::Left {
                        incarnation: self.incarnation_of(id),
                        removed: true,
                    };
                    self.state_fact(now, id.to_owned(), what);
                }
            }
            Event::PutOut => self.put_out(now),
            Event::Drained => {
                if self.phase == Phase::Leaving {
                    self.leave(now);
                }
            }
            Event::Leave => self.leave(now),
        }
        self.run_timers(now);
        if self.dirty {
            self.refresh(now);
        }
        std::mem::take(&mut self.effects)
    }

    // ── Time ─────────────────────────────────────────────────────────────────────────────────────

    fn set_timer(&mut self, at: Duration, timer: Timer) {
        self.next_timer += 1;
        self.timers.insert((at, self.next_timer), timer);
    }

    fn run_timers(&mut self, now: Duration) {
        if let Some(first) = self.deadline()
            && let Some(late) = now.checked_sub(first)
            && late > self.timings.probe_period
        {
            // This process was stopped. Its peers' answers still wait to be read: nobody is to be
            // accused of silence before that.
            let timers = std::mem::take(&mut self.timers);
            let shifted = timers.into_iter().map(|((at, n), it)| ((at + late, n), it));
            self.timers = shifted.collect();
        }
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Timer::Swim(timer) => {
                    let mut out = Outbox::default();
                    let result = self.foca.handle_timer(timer, &mut out);
                    self.settle(now, out, result);
                    // RemoveDown tells nobody.
                    self.dirty = true;
                }
                Timer::Sync => {
                    self.expire(now);
                    self.dirty = true;
                    if let Some(peer) = self.linked.iter().choose(&mut self.rng).cloned() {
                        self.send_digest(&peer);
                    }
                    self.set_timer(now + self.timings.sync, Timer::Sync);
                }
                Timer::Join => self.joined(now),
                Timer::Grace => self.form(),
                Timer::Drain(id) => {
                    if id == self.own.id && self.phase == Phase::Leaving {
                        self.leave(now);
                    }
                    self.dirty = true;
                }
            }
        }
    }

    fn joined(&mut self, now: Duration) {
        if self.phase == Phase::Waiting {
            self.phase = Phase::Joined;
            self.announce(now, self.foca.identity().start);
        }
    }

    fn tried(&mut self, now: Duration, seed: &str) {
        self.tried.insert(seed.to_owned());
        if self.seeds.keys().all(|seed| self.tried.contains(seed)) {
            self.joined(now);
        }
    }

    /// Others are asked at once whether they count the same nodes: until they do, no view is agreed.
    fn form(&mut self) {
        if !self.formed {
            self.formed = true;
            self.dirty = true;
            for peer in self.linked.clone() {
                self.send_digest(&peer);
            }
        }
    }

    // ── SWIM ─────────────────────────────────────────────────────────────────────────────────────

    /// Takes what foca asked for.
    fn settle(&mut self, now: Duration, out: Outbox, result: Result<(), foca::Error>) {
        for (to, packet) in out.sends {
            let mut bytes = Vec::with_capacity(packet.len() + 1);
            bytes.push(tag::SWIM);
            bytes.extend_from_slice(&packet);
            self.send(to.id, bytes);
        }
        for (timer, after) in out.timers {
            if let foca::Timer::ProbeRandomMember(token) = &timer {
                self.token = Some(*token);
            }
            self.set_timer(now + after, Timer::Swim(timer));
        }
        self.dirty |= out.changed;
        if out.renewed {
            self.flood_self();
            self.reconnect(now);
        }
        // Late or repeated packets and probes that a pause interrupted end here; SWIM goes on. What
        // cannot be read is worth a line: its sender runs something else.
        if let Err(foca::Error::Decode(error)) = result {
            let message = format!("a gossip message could not be read: {error}");
            self.log("warn", "gossip".into(), message);
        }
    }

    /// After a change of identity foca probes nobody until it next looks at its list: two nodes that
    /// did so at once would wait for each other.
    fn reconnect(&mut self, now: Duration) {
        self.apply(now, Vec::new());
    }

    fn apply(&mut self, now: Duration, updates: Vec<Known>) {
        let mut out = Outbox::default();
        let result = self.foca.apply_many(updates.into_iter(), true, &mut out);
        self.settle(now, out, result);
    }

    fn gossip(&mut self, now: Duration, from: &str, bytes: &[u8]) {
        let Some((&kind, body)) = bytes.split_first() else {
            return;
        };
        match kind {
            tag::SWIM if self.phase == Phase::Out => {}
            tag::SWIM => {
                let mut out = Outbox::default();
                let result = self.foca.handle_data(body, &mut out);
                self.settle(now, out, result);
            }
            tag::DIGEST if body == self.digest().to_be_bytes() => {}
            tag::DIGEST => self.send_list(now, from, true),
            tag::PINS_DIGEST if body == self.pins.digest().to_be_bytes() => {}
            tag::PINS_DIGEST => self.send_pins(now, from, true),
            tag::PINS => match postcard::from_bytes::<Pinned>(body) {
                Ok(pinned) => self.merge_pins(now, pinned, from),
                Err(_) => {
                    let message = format!("the pins of {from} could not be read");
                    self.log("warn", format!("pins {from}"), message);
                }
            },
            tag::SYNC => match postcard::from_bytes::<Sync>(body) {
                Ok(sync) if sync.from.id == from => self.merge(now, sync),
                _ => {
                    let message = format!("the member list of {from} could not be read");
                    self.log("warn", format!("list {from}"), message);
                }
            },
            // A later version's: it knows how to do without.
            _ => {}
        }
    }

    fn link_up(&mut self, now: Duration, peer: &str) {
        if !self.linked.insert(peer.to_owned()) {
            return;
        }
        if self.phase == Phase::Waiting {
            self.send_list(now, peer, true);
        } else {
            self.send_digest(peer);
        }
    }

    fn unreachable(&mut self, now: Duration, peer: &str, refused: bool) {
        self.tried(now, peer);
        if !refused || self.linked.contains(peer) {
            return;
        }
        // Nothing listens where the node was: that says as much as a probe without an answer.
        let Some(alive) = self
            .foca
            .iter_members()
            .find(|known| known.id().id == peer && known.state() == State::Alive)
            .cloned()
        else {
            return;
        };
        let (id, incarnation) = (alive.id().clone(), alive.incarnation());
        self.apply(
            now,
            vec![Known::new(id.clone(), incarnation, State::Suspect)],
        );
        if let Some(token) = self.token {
            let timer = foca::Timer::ChangeSuspectToDown {
                member_id: id,
                incarnation,
                token,
            };
            self.set_timer(now + self.timings.suspicion, Timer::Swim(timer));
        }
    }

    /// Changes what this node says of itself, or only the number it says it under.
    fn announce(&mut self, now: Duration, start: u64) {
        let generation = self.foca.identity().generation.saturating_add(1);
        let identity = Identity::new(&said(&self.own, self.phase), start, generation);
        let mut out = Outbox::default();
        let result = self.foca.change_identity(identity, &mut out);
        self.settle(now, out, result);
        self.reconnect(now);
        self.flood_self();
        self.dirty = true;
    }

    fn change_own(&mut self, now: Duration, own: Member) {
        if own.state == MemberState::Leaving && self.phase == Phase::Joined {
            self.phase = Phase::Leaving;
        }
        if own != self.own {
            self.own = own;
            if self.phase == Phase::Out {
                return;
            }
            self.announce(now, self.foca.identity().start);
        }
    }

    /// Whether this node did not do so already.
    fn drain(&mut self, now: Duration) -> bool {
        let drains = matches!(self.phase, Phase::Joined | Phase::Waiting);
        if drains {
            self.phase = Phase::Leaving;
            let own = self.own.id.clone();
            self.set_timer(now + self.timings.drain, Timer::Drain(own));
            self.announce(now, self.foca.identity().start);
        }
        drains
    }

    fn leave(&mut self, now: Duration) {
        if self.phase == Phase::Out {
            return;
        }
        let removed = self.removed_here();
        self.phase = Phase::Out;
        let incarnation = self.own.incarnation;
        let what = What::Left {
            incarnation,
            removed,
        };
        self.state_fact(now, self.own.id.clone(), what);
        let mut out = Outbox::default();
        let result = self.foca.leave_cluster(&mut out);
        self.settle(now, out, result);
        self.dirty = true;
    }

    /// Others go on without this node since it was put out, and it learns of that now.
    fn put_out(&mut self, now: Duration) {
        if self.phase == Phase::Out {
            return;
        }
        self.phase = Phase::Out;
        self.expelled = true;
        let mut out = Outbox::default();
        let result = self.foca.leave_cluster(&mut out);
        self.settle(now, out, result);
        self.effects.push(Effect::Out);
        self.log("warn", "removed".into(), removed_text(&self.own.id));
        self.dirty = true;
    }

    /// The process of a node that is known, whatever became of it; 0 where there is none.
    fn incarnation_of(&self, id: &str) -> u64 {
        let mut known = self.foca.iter_membership_state();
        known
            .find(|known| known.id().id == id)
            .map_or(0, |known| known.id().incarnation)
    }

    fn removed_here(&self) -> bool {
        let removed = What::Removed {
            incarnation: self.own.incarnation,
        };
        self.facts
            .get(&self.own.id)
            .is_some_and(|held| held.fact.what == removed)
    }

    // ── What others see ──────────────────────────────────────────────────────────────────────────

    fn log(&mut self, level: &'static str, key: String, message: String) {
        self.effects.push(Effect::Log {
            level,
            key,
            message,
        });
    }

    fn refresh(&mut self, now: Duration) {
        self.dirty = false;
        let members = self.compute_members(now);
        let dials = self.compute_dials(now);
        let joined: Vec<Member> = self
            .foca
            .iter_members()
            .filter(|known| known.id().state != MemberState::Joining)
            .map(|known| known.id().member())
            .collect();
        for member in joined {
            if self.spoke.insert(member.id.clone()) {
                self.greet(&member);
            }
        }
        if self.seeds.keys().all(|id| self.spoke.contains(id)) {
            self.form();
        }
        if std::mem::take(&mut self.pinned) || members != self.members || dials != self.dials {
            self.members = members;
            self.dials = dials;
            self.effects.push(Effect::Changed);
        }
    }

    /// Says what is worth saying about a node seen for the first time.
    fn greet(&mut self, member: &Member) {
        let id = &member.id;
        match self.seeds.get(id) {
            Some(seed) if (seed.weight - member.weight).abs() > f64::EPSILON => {
                let message = format!(
                    "{id} has weight {} by its own word and {} by clusterNodes here; its own word counts",
                    member.weight, seed.weight
                );
                self.log("warn", format!("weight {id}"), message);
            }
            Some(_) => {}
            None => {
                let message = format!(
                    "{id} at {}:{} joined; it is not in clusterNodes here",
                    member.address, member.port
                );
                self.log("info", format!("joined {id}"), message);
            }
        }
    }

    /// The address that was configured or added by hand counts where there is one: a node may be
    /// reached otherwise from here than it says, and a link that works is not to be replaced.
    fn placed(&self, mut member: Member) -> Member {
        if let Some(seed) = self.seeds.get(&member.id) {
            member.address.clone_from(&seed.address);
            member.port = seed.port;
            member.link_port = seed.link_port;
        } else if let Some(What::Listed {
            address,
            port,
            link_port,
            ..
        }) = self.facts.get(&member.id).map(|held| &held.fact.what)
        {
            member.address.clone_from(address);
            (member.port, member.link_port) = (*port, *link_port);
        }
        member
    }

    fn compute_members(&self, now: Duration) -> BTreeMap<String, Member> {
        let own = said(&self.own, self.phase);
        let own = (own.id.clone(), own);
        if self.phase == Phase::Out {
            return BTreeMap::from([own]);
        }
        let mut members = BTreeMap::new();
        for known in self.foca.iter_members() {
            let identity = known.id();
            let mut member = self.placed(identity.member());
            if member.state == MemberState::Joining && self.counts_unheard(&member.id) {
                // It counted before it spoke: that is not to change for the moment it takes to join.
                member.state = MemberState::Active;
            }
            let held = self.facts.get(&identity.id);
            match held.map(|held| &held.fact.what) {
                Some(What::Removed { incarnation }) if *incarnation == identity.incarnation => {
                    if held.is_some_and(|held| now >= held.drained) {
                        continue;
                    }
                    member.state = MemberState::Leaving;
                }
                Some(What::Left { incarnation, .. }) if *incarnation == identity.incarnation => {
                    continue;
                }
                _ => {}
            }
            members.insert(member.id.clone(), member);
        }
        for (id, seed) in &self.seeds {
            if self.counts_unheard(id) && !self.spoke.contains(id) && !members.contains_key(id) {
                members.insert(id.clone(), seed.clone());
            }
        }
        members.extend([own]);
        members
    }

    /// Whether a node counts although it has not said that it has joined: it is of `clusterNodes`, this
    /// node has not been up for long, and nobody says that it is gone on purpose.
    fn counts_unheard(&self, id: &str) -> bool {
        !self.formed
            && self.seeds.contains_key(id)
            && !matches!(
                self.facts.get(id).map(|held| &held.fact.what),
                Some(What::Removed { .. } | What::Left { .. })
            )
    }

    fn compute_dials(&self, now: Duration) -> BTreeMap<String, Target> {
        let mut dials = BTreeMap::new();
        let mut dial = |member: &Member| {
            let (address, port) = (member.address.clone(), member.link_port());
            dials.insert(member.id.clone(), Target { address, port });
        };
        // Those that are down, too: it may be the network that is.
        for known in self.foca.iter_membership_state() {
            let member = known.id().member();
            if self.refuses(&member).is_none() {
                dial(&self.placed(member));
            }
        }
        for (id, held) in &self.facts {
            if let What::Listed {
                address,
                port,
                link_port,
                ..
            } = &held.fact.what
            {
                let (address, port) = (address.clone(), link_port.unwrap_or(*port));
                dials.entry(id.clone()).or_insert(Target { address, port });
            }
        }
        // A seed that left may come back. One that was removed has to come by itself, but may have
        // been cut off and not know.
        for (id, seed) in &self.seeds {
            let over = self.facts.get(id).is_some_and(|held| match held.fact.what {
                What::Removed { .. } => now >= held.expires,
                What::Left { removed, .. } => removed,
                What::Listed { .. } => false,
            });
            let (address, port) = (seed.address.clone(), seed.link_port());
            if !over || dials.contains_key(id) {
                dials.insert(id.clone(), Target { address, port });
            }
        }
        dials.remove(&self.own.id);
        dials
    }
}

/// What a node says of itself: what it was told to, and how far it has come.
fn said(own: &Member, phase: Phase) -> Member {
    let state = match phase {
        Phase::Waiting => MemberState::Joining,
        Phase::Joined => own.state,
        Phase::Leaving | Phase::Out => MemberState::Leaving,
    };
    Member {
        state,
        ..own.clone()
    }
}
