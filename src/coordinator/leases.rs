//! Membership with Redis, as the coordinator runs it: the machine of `cluster::members`, what it
//! says to peers over the links, and what follows for this node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use super::{Coordinator, Target};
use crate::checker;
use crate::cluster::members::{Config, Effect, Event, Members, Plea, Record, Report, Vouch};
use crate::cluster::view::{Member, MemberState};
use crate::handle::{Command, Core};
use crate::inbox::{kind, right};
use crate::link::auth::Agreement;
use crate::link::frame::GOSSIP_MAX;
use crate::link::mux::Side;
use crate::probe::Failure;
use crate::store::redis::settings::RedisSettings;
use crate::store::registry::{self, Answer, Asks};
use crate::store::{Known, Outcome, Reply, Request, Strangers, Want};

/// How long an earlier process with our id may take to answer before it counts as gone.
const PROBE: Duration = Duration::from_secs(3);

/// First byte of a message between peers; those of `store::peers` come before, that of `settled` after.
mod tag {
    /// A [`super::Report`].
    pub const REPORT: u8 = 0x10;
    /// A [`super::Request`] to be passed on to the registry.
    pub const RELAY: u8 = 0x11;
    /// The [`super::Reply`] to it.
    pub const RELAYED: u8 = 0x12;
    /// A [`super::Plea`].
    pub const PLEA: u8 = 0x13;
    /// A [`super::Vouch`].
    pub const VOUCH: u8 = 0x14;
}

/// The part of the coordinator that there is with Redis.
pub struct Leases {
    members: Members,
    asks: Asks,
    /// Peers for which a heartbeat is under way: one at a time for each.
    relaying: BTreeSet<String>,
    /// JavaScript's event-loop turn that the machine was told of last.
    turned: u64,
    /// The earlier process with our id that was looked for last, and when.
    probing: Option<(u64, Duration)>,
    /// Who was last said to be refused for what they agree on.
    strangers: Strangers,
}

impl Leases {
    fn new(core: &Arc<Core>, own: &Member, hints: Vec<String>, redis: RedisSettings) -> Self {
        let lease = Duration::from_millis(core.settings.lease_duration);
        let config = Config {
            lease,
            orphan_timeout: lease * 2,
            hints,
            agreement: serde_json::to_string(&core.identity.load().agreement).unwrap_or_default(),
            virtual_nodes: core.settings.virtual_nodes,
            without: None,
        };
        let (asks, asked) = registry::asks();
        core.spawn(registry::run(Arc::clone(core), redis, asked));
        Self {
            members: Members::new(config, own),
            asks,
            relaying: BTreeSet::new(),
            turned: 0,
            probing: None,
            strangers: Strangers::new(),
        }
    }

    /// When a tick is due.
    pub fn deadline(&self) -> Duration {
        self.members.next_wakeup()
    }

    /// Passes a peer's heartbeat on.
    fn relay(&mut self, peer: String, request: Request) {
        if !self.relaying.contains(&peer) && self.asks.ask(Some(peer.clone()), request) {
            self.relaying.insert(peer);
        }
    }
}

/// Which setting keeps this node and another one, or a cluster, apart.
fn difference(core: &Core, theirs: &str, whose: &str) -> String {
    let ours = &core.identity.load().agreement;
    let found = serde_json::from_str::<Agreement>(theirs);
    let difference = match found.ok().and_then(|theirs| ours.difference(&theirs)) {
        Some((name, ours, theirs)) => format!("{name} is {ours} here and {theirs} at {whose}"),
        // A later version's, with more to agree on.
        None => format!(
            "the settings here are {} and those at {whose} {theirs}",
            serde_json::to_string(ours).unwrap_or_default()
        ),
    };
    format!("{difference}: set the same value on every node, or give one side another redisPrefix")
}

impl Coordinator {
    /// Starts to be a member by lease.
    pub(super) fn lease(&mut self, own: Member, redis: RedisSettings) {
        let hints = self.seeds.keys().filter(|id| **id != own.id).cloned();
        self.leases = Some(Leases::new(&self.core, &own, hints.collect(), redis));
        self.dial_members();
        self.look_at_links();
        self.lease_event(Event::Announce);
    }

    /// A node that serves everything itself is no member of anything. But where it has a Redis, it must
    /// be noticed that nodes with the same one route documents.
    pub(super) fn watch(&mut self, listening: bool, redis: RedisSettings) {
        if !listening || self.watch.is_some() {
            return;
        }
        let (asks, asked) = registry::asks();
        self.core
            .spawn(registry::run(Arc::clone(&self.core), redis, asked));
        self.watch = Some(asks);
        self.look_into_redis();
    }

    /// A renewal by a node that never joined changes nothing. Members are told of it.
    pub(super) fn look_into_redis(&mut self) {
        let Some(asks) = &self.watch else { return };
        let identity = self.core.identity.load();
        let request = Request {
            id: identity.node.id.clone(),
            incarnation: identity.node.incarnation,
            seq: 1,
            as_of: 0,
            want: Want::Renew,
            record: String::new(),
            lease: self.core.settings.lease_duration,
            orphan_timeout: self.core.settings.lease_duration * 2,
            found_after: self.core.settings.lease_duration,
            agreement: serde_json::to_string(&identity.agreement).unwrap_or_default(),
            known: Known::default(),
            floor: 0,
            view: None,
            admit: BTreeMap::new(),
            gone: BTreeMap::new(),
            pins: BTreeMap::new(),
            evict: BTreeMap::new(),
        };
        asks.ask(None, request);
    }

    /// Lets the machine handle an event, and does what it asks for.
    pub(super) fn lease_event(&mut self, event: Event) {
        let now = self.now();
        let Some(leases) = &mut self.leases else {
            return;
        };
        let mut effects = Vec::new();
        let turned = self.core.turned();
        if turned > leases.turned {
            leases.turned = turned;
            leases.members.handle(now, Event::JsTurn, &mut effects);
        }
        leases.members.handle(now, event, &mut effects);
        // Before JavaScript is told of anything that follows from it.
        let right = leases.members.right(now);
        self.core.right.store(Arc::new(right));
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        let Some(leases) = &mut self.leases else {
            return;
        };
        match effect {
            Effect::Send(request) => {
                leases.asks.ask(None, request);
            }
            Effect::Relay { via, request } => self.say(&via, tag::RELAY, &request),
            Effect::Tell { to, report } => self.say(&to, tag::REPORT, &report),
            Effect::Plead { to, plea } => self.say(&to, tag::PLEA, &plea),
            Effect::Vouch { to, vouch } => self.say(&to, tag::VOUCH, &vouch),
            Effect::Resumed { incarnation } => self.become_process(incarnation),
            Effect::View(snapshot) => {
                self.epoch = snapshot.view.epoch;
                self.core.snapshot.store(snapshot);
                self.dial_members();
                self.core.inbox.push(kind::VIEW, 0, 0, &[]);
            }
            Effect::Serving { on: true, .. } | Effect::Settled(_) => {
                self.tell_right(right::SERVES, "")
            }
            Effect::Serving { lapsed: true, .. } => {
                self.core.log(
                    "error",
                    "lapsed",
                    "this node could not renew its lease in time: it stops serving, closes its sockets, and comes back by itself",
                );
                self.tell_right(right::LAPSED, "");
            }
            Effect::Serving { .. } => self.tell_right(right::WAITS, ""),
            Effect::Departed { reason, stay_out } => self.departed(&reason, stay_out),
            Effect::IdTaken { record, lease_left } => self.id_taken(&record, lease_left),
            Effect::Mismatch { theirs } => self.mismatched(theirs),
            Effect::Strangers(strangers) if leases.strangers == strangers => {}
            Effect::Strangers(strangers) => {
                for (id, agreement) in &strangers {
                    let difference = difference(&self.core, agreement, id);
                    let message = format!("{id} is kept out of this cluster: {difference}");
                    self.core.log("warn", &format!("stranger {id}"), &message);
                }
                leases.strangers = strangers;
            }
            Effect::Warn(message) => self.core.log("warn", &message, &message),
        }
    }

    /// Redis has a cluster that does not take this node.
    fn mismatched(&mut self, theirs: String) {
        // Answered to each heartbeat, and an error is written each time.
        if self.mismatch.as_ref() == Some(&theirs) {
            return;
        }
        let difference = difference(&self.core, &theirs, "the cluster in this Redis");
        let message = format!("this node cannot join: {difference}");
        self.core.log("error", "mismatch", &message);
        self.mismatch = Some(theirs);
    }

    /// `code` is one of `inbox::right`.
    pub(super) fn tell_right(&self, code: u32, reason: &str) {
        self.core
            .inbox
            .push(kind::RIGHT, 0, code, reason.as_bytes());
    }

    fn departed(&mut self, reason: &str, stay_out: bool) {
        self.tell_right(right::LAPSED, reason);
        if stay_out {
            self.core.log(
                "warn",
                "departed",
                &format!("this node is out of the cluster: {reason}"),
            );
            self.tell_right(right::LEFT, reason);
            return;
        }
        let message = format!("{reason}: this node joins again");
        self.core.log("warn", "departed", &message);
        let incarnation = self.core.identity.load().node.incarnation + 1;
        self.become_process(incarnation);
        self.lease_event(Event::Rejoin { incarnation });
    }

    /// Another incarnation from here on. What others knew of the one before is void, so its links end;
    /// they are opened again by both sides.
    fn become_process(&mut self, incarnation: u64) {
        self.core
            .change_identity(|identity| identity.node.incarnation = incarnation);
        self.dial_all(&BTreeMap::new());
        for link in self.core.links() {
            link.stop.cancel();
        }
        self.dial_members();
    }

    /// Another process has our id: a predecessor that is gone, or a node that runs.
    fn id_taken(&mut self, record: &str, lease_left: Duration) {
        let now = self.now();
        let Some(leases) = &mut self.leases else {
            return;
        };
        let Ok(holder) = serde_json::from_str::<Record>(record) else {
            return;
        };
        // It may answer later, when it is no longer stopped.
        let again = |(incarnation, at)| incarnation == holder.incarnation && now < at + PROBE * 2;
        if leases.probing.is_some_and(again) {
            return;
        }
        leases.probing = Some((holder.incarnation, now));
        let incarnation = holder.incarnation;
        let port = holder.link_port.unwrap_or(holder.port);
        let identity = self.core.identity.load_full();
        let own = &identity.node;
        if (&holder.address, port) == (&own.address, own.link_port()) {
            // We listen where it did.
            return self.predecessor_gone(incarnation);
        }
        let core = Arc::clone(&self.core);
        self.core.spawn(async move {
            let id = core.identity.load().node.id.clone();
            let turned = std::sync::atomic::AtomicU64::new(0);
            let check = checker::check(&core, &id, &holder.address, port, &turned);
            let ours = core.identity.load().node.incarnation;
            let command = match timeout(PROBE, check).await {
                // It is this process that answers there.
                Ok(Ok(alive)) if alive.incarnation == ours => Command::Predecessor { incarnation },
                Ok(Ok(_)) => Command::IdTaken {
                    by: format!("{}:{}", holder.address, holder.port),
                },
                Ok(Err(Failure::Refused)) => Command::Predecessor { incarnation },
                _ => {
                    let message = format!(
                        "an earlier process with the id {id} at {}:{} does not answer: waiting up to {} ms until its lease lapses",
                        holder.address, holder.port, lease_left.as_millis()
                    );
                    core.log("warn", "predecessor", &message);
                    return;
                }
            };
            let _ = core.request(command);
        });
    }

    /// A node with our id answers: this one does not start.
    pub(super) fn refuse_to_start(&mut self, by: &str) {
        self.leases = None;
        self.dial_all(&BTreeMap::new());
        self.tell_right(right::ID_TAKEN, by);
    }

    pub(super) fn predecessor_gone(&mut self, incarnation: u64) {
        let id = self.core.identity.load().node.id.clone();
        self.lease_event(Event::PeerGone { id, incarnation });
    }

    /// Process of a member in the installed view; 0 where it is none.
    fn incarnation_of(&self, id: &str) -> u64 {
        let members = &self.core.snapshot.load().view.members;
        members.get(id).map_or(0, |member| member.incarnation)
    }

    /// A link to a node is up.
    pub(super) fn lease_met(&mut self, peer: &str) {
        let Some(link) = self.up.get(peer).cloned() else {
            return;
        };
        let incarnation = link.incarnation.load(Ordering::Relaxed);
        let member = self.incarnation_of(peer);
        let id = peer.to_owned();
        if link.side == Side::Dialer && member != 0 && member != incarnation {
            // At the address of the one before another one answers.
            let incarnation = member;
            self.lease_event(Event::PeerGone { id, incarnation });
        } else {
            self.lease_event(Event::PeerBack { id, incarnation });
        }
    }

    /// A dialed node could not be reached. A refusal while no link of either side is up says that its
    /// process is gone: links are reset with it.
    pub(super) fn lease_unreachable(&mut self, peer: &str, refused: bool) {
        if !refused || self.up.contains_key(peer) {
            return;
        }
        let incarnation = self.incarnation_of(peer);
        let id = peer.to_owned();
        self.lease_event(Event::PeerGone { id, incarnation });
    }

    /// What a peer says.
    pub(super) fn lease_message(&mut self, from: String, bytes: &[u8]) {
        let Some((tag, json)) = bytes.split_first() else {
            return;
        };
        match *tag {
            tag::REPORT => {
                if let Ok(report) = serde_json::from_slice::<Report>(json) {
                    self.lease_event(Event::Report { from, report });
                }
            }
            tag::RELAY => {
                // Only for itself: a peer must not renew or expire in another's name.
                if let (Some(leases), Ok(request)) =
                    (&mut self.leases, serde_json::from_slice::<Request>(json))
                    && request.id == from
                {
                    leases.relay(from, request);
                }
            }
            tag::PLEA => {
                if let Ok(plea) = serde_json::from_slice::<Plea>(json) {
                    self.lease_event(Event::Plea { from, plea });
                }
            }
            tag::VOUCH => {
                if let Ok(vouch) = serde_json::from_slice::<Vouch>(json) {
                    let vouch = Box::new(vouch);
                    self.lease_event(Event::Vouch { from, vouch });
                }
            }
            tag::RELAYED => {
                if let Ok(reply) = serde_json::from_slice::<Reply>(json) {
                    self.lease_event(Event::Relayed { from, reply });
                }
            }
            _ => {}
        }
    }

    /// What Redis answered.
    pub(super) fn lease_answer(&mut self, peer: Option<String>, answer: Answer) {
        if let (Some(peer), Some(leases)) = (&peer, &mut self.leases) {
            leases.relaying.remove(peer);
        }
        // Without an answer the machine goes by the time.
        let Ok(reply) = answer else { return };
        if self.watch.is_some() {
            if reply.outcome == Outcome::Mismatch {
                self.mismatched(reply.detail);
            }
            return;
        }
        match peer {
            None => self.lease_event(Event::Reply(reply)),
            Some(peer) => self.say(&peer, tag::RELAYED, &reply),
        }
    }

    pub(super) fn say(&self, to: &str, tag: u8, what: &impl serde::Serialize) {
        let Some(link) = self.up.get(to) else { return };
        let mut bytes = vec![tag];
        if serde_json::to_writer(&mut bytes, what).is_err() {
            return;
        }
        if bytes.len() <= GOSSIP_MAX {
            link.gossip(&bytes);
        } else {
            // A view of very many members or pins: a node that is back while Redis is away, or that
            // reaches Redis through others only, waits until Redis is back.
            let message = format!(
                "a message about membership has {} bytes, {GOSSIP_MAX} are allowed: it is not sent to {to}",
                bytes.len()
            );
            self.core.log("warn", "gossip", &message);
        }
    }

    /// Links go to the members of the view, and until one of them is admitted to those of `clusterNodes`
    /// as well: a lease makes a member, but who is to found a cluster must know which of them are not
    /// there.
    pub(super) fn dial_members(&mut self) {
        let identity = self.core.identity.load_full();
        let secretless = self.core.settings.shared_secret && !identity.secrets.are_set();
        if self.leases.is_none() || secretless {
            // Every link would be refused, and the refusals told as errors.
            return;
        }
        let snapshot = self.core.snapshot.load_full();
        let mut members = snapshot.view.members.clone();
        let joining = |member: &Member| member.state == MemberState::Joining;
        if members.values().all(joining) {
            for (id, seed) in &self.seeds {
                members.entry(id.clone()).or_insert_with(|| seed.clone());
            }
        }
        let targets: BTreeMap<String, Target> = members
            .values()
            .filter(|member| member.id != identity.node.id)
            .map(|member| {
                let target = Target {
                    address: member.address.clone(),
                    port: member.link_port(),
                };
                (member.id.clone(), target)
            })
            .collect();
        self.dial_all(&targets);
        self.check_all(&snapshot.view.members);
    }
}
