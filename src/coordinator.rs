//! The actor that owns the member list: runs the membership protocol over the links, publishes each
//! new view with its ring in one swap, and keeps a dialing task per node to dial.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::checker::{self, Report};
use crate::cluster::health::Change;
use crate::cluster::members::{self, How};
use crate::cluster::settled::Settling;
use crate::cluster::view::{Member, Snapshot, View};
use crate::handle::{Command, Core};
use crate::inbox::{kind, right};
use crate::link::auth::{Challenge, RefusalCode};
use crate::link::connection::{Link, LinkError, Reader, Writer, split_tcp};
use crate::link::mux::Side;
use crate::link::upgrade::{self, UpgradeError};
use crate::probe::Failure;
use crate::store::peers::{Effect, Event, Peers, Target, Timings};
use crate::store::registry;

mod leases;
mod settled;

use leases::Leases;

/// JavaScript that has not turned for so long cannot have read what peers said: it reads the links.
/// It says that it turns every 250 ms.
const HALT: Duration = Duration::from_millis(500);

/// First pause before a link is dialed again; doubles up to `MAX_BACKOFF`, each jittered by half.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// How often waiting streams are looked at.
const EXPIRY: Duration = Duration::from_millis(200);

/// A peer that cannot be reached is logged after so long.
const GRACE: Duration = Duration::from_secs(3);

/// Requests handled before a new view is published, at most.
const BURST: usize = 256;

/// A link that lived so long starts over with the shortest pause.
const STABLE: Duration = Duration::from_secs(10);

struct Dial {
    target: Target,
    link: Arc<Link>,
}

/// The health checks of one peer.
struct Check {
    address: String,
    port: u16,
    /// Reports of an earlier checker for the same id are not heard any more.
    number: u64,
    stop: CancellationToken,
}

/// Owns the member list of one node.
struct Coordinator {
    core: Arc<Core>,
    /// `clusterNodes`.
    seeds: BTreeMap<String, Member>,
    /// Who is a member, once this node is announced: without Redis.
    peers: Option<Peers>,
    /// What is settled of its views.
    settling: Settling,
    /// Who is a member with Redis, once this node listens.
    leases: Option<Leases>,
    /// Whether this node can be dialed, so that it may be a member of anything.
    listening: bool,
    dials: HashMap<String, Dial>,
    /// Where a node that serves everything itself has no links, but knocks; see [`keep_knocking`].
    knocks: HashMap<String, (Target, CancellationToken)>,
    /// What such a node asks Redis, see [`Coordinator::watch`].
    watch: Option<registry::Asks>,
    /// What the cluster in Redis was last said to agree on instead.
    mismatch: Option<String>,
    checks: HashMap<String, Check>,
    /// Checkers started so far.
    checkers: u64,
    /// A link that is up to each peer that has one, whoever dialed it.
    up: BTreeMap<String, Arc<Link>>,
    /// The membership has changed since the last view.
    changed: bool,
    /// Requests handled since then.
    unpublished: usize,
    epoch: u64,
}

/// Runs the coordinator until the node stops.
pub async fn run(core: Arc<Core>, mut commands: mpsc::Receiver<Command>) {
    let stop = core.stop.clone();
    let started = core.started;
    let mut coordinator = Coordinator {
        core,
        seeds: BTreeMap::new(),
        peers: None,
        settling: Settling::default(),
        leases: None,
        listening: false,
        dials: HashMap::new(),
        knocks: HashMap::new(),
        watch: None,
        mismatch: None,
        checks: HashMap::new(),
        checkers: 0,
        up: BTreeMap::new(),
        changed: false,
        unpublished: 0,
        epoch: 0,
    };
    loop {
        let deadline = match &coordinator.leases {
            Some(leases) => Some(leases.deadline()),
            None => {
                let peers = coordinator.peers.as_ref().and_then(Peers::deadline);
                let settling = coordinator.settling.deadline();
                peers.into_iter().chain(settling).min()
            }
        };
        let halted = coordinator.is_halted();
        let deadline = match deadline {
            // Looked at again soon; SWIM moves its timers by what it missed.
            Some(_) if halted => Some(Instant::now() + HALT / 10),
            deadline => deadline.and_then(|deadline| started.checked_add(deadline)),
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            command = commands.recv() => match command {
                Some(Command::Stop) | None => break,
                Some(command) => {
                    coordinator.handle(command);
                    // News comes in bursts, and a ring is computed per view: one for all of it.
                    if !commands.is_empty() && coordinator.unpublished < BURST {
                        coordinator.unpublished += 1;
                        continue;
                    }
                }
            },
            () = sleep_until(deadline.unwrap_or(started)), if deadline.is_some() => {
                if halted {
                    continue;
                }
                // Word of a link may have found the channel full.
                coordinator.look_at_links();
                coordinator.tell(Event::Tick);
                coordinator.lease_event(members::Event::Tick);
                let effects = coordinator.settling.tick(coordinator.now());
                coordinator.perform_settling(effects);
            }
        }
        coordinator.publish();
    }
    // The others learn it now rather than by silence.
    coordinator.tell(Event::Leave);
    stop.cancel();
    for (_, dial) in coordinator.dials.drain() {
        dial.link.stop.cancel();
        coordinator
            .core
            .remove_link(&dial.link, "SmartRoute: this node is shutting down");
    }
}

/// Runs the coordinator, or what stands for it in tests. Should it panic, nobody knows any more who
/// is a member: this node then serves nothing, rather than go on half alive.
pub async fn supervise(core: Arc<Core>, actor: impl Future<Output = ()> + Send + 'static) {
    let Err(error) = tokio::spawn(actor).await else {
        return;
    };
    let message = format!("the coordinator failed, this node stops: restart it ({error})");
    core.log("error", "coordinator", &message);
    // Without enforcement it serves everything, whoever is a member.
    if core.settings.enforce_routing {
        core.right.store(Arc::default());
        core.inbox.push(kind::RIGHT, 0, right::LAPSED, &[]);
    }
    core.stop.cancel();
}

impl Coordinator {
    fn now(&self) -> Duration {
        self.core.started.elapsed()
    }

    /// Without Redis: whether JavaScript stands still. The same node then answers no peer, which is
    /// right: it serves nobody. A lease ends by itself.
    fn is_halted(&self) -> bool {
        self.leases.is_none() && self.core.turned() > 0 && self.core.loop_age() > HALT
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Announce { own, listening } => self.announce(own, listening),
            // With Redis only a lease makes a member: these are hints.
            Command::Add(member) if self.core.settings.leased() => {
                self.seeds.insert(member.id.clone(), member);
                self.core.inbox.push(kind::VIEW, 0, 0, &[]);
            }
            Command::Remove(id) if self.core.settings.leased() => {
                self.seeds.remove(&id);
                let reason = "it was removed with removeClusterNode".to_owned();
                self.lease_event(members::Event::Evict {
                    id,
                    reason,
                    how: How::Drain,
                });
                self.core.inbox.push(kind::VIEW, 0, 0, &[]);
            }
            Command::Add(member) if self.listening => self.tell(Event::Add(member)),
            Command::Add(member) => {
                self.seeds.insert(member.id.clone(), member);
                self.start_over();
            }
            Command::Remove(id) if self.listening => self.tell(Event::Remove(&id)),
            Command::Remove(id) => {
                self.seeds.remove(&id);
                self.start_over();
            }
            Command::Met { peer, answer } => {
                let refusal = self.peers.as_ref().and_then(|peers| peers.refuses(&peer));
                let _ = answer.send(refusal.map_or(Ok(()), Err));
            }
            // The silence of peers is this node's own; what has changed is seen afterwards.
            Command::Links | Command::Unreachable { .. } | Command::Gossip { .. }
                if self.is_halted() => {}
            Command::Links => self.look_at_links(),
            Command::Unreachable { peer, refused } => {
                self.tell(Event::Unreachable {
                    peer: &peer,
                    refused,
                });
                self.lease_unreachable(&peer, refused);
            }
            Command::Gossip { from, bytes } => {
                // What a peer says first may overtake the word that its link is up.
                if !self.up.contains_key(&from) {
                    self.look_at_links();
                }
                if let Some((&settled::TAG, word)) = bytes.split_first() {
                    return self.word(&from, word);
                }
                self.tell(Event::Gossip {
                    from: &from,
                    bytes: &bytes,
                });
                if self.leases.is_some() {
                    self.lease_message(from, &bytes);
                }
            }
            Command::PutOut => self.tell(Event::PutOut),
            Command::Released(epoch) => {
                self.lease_event(members::Event::Released(epoch));
                let effects = self.settling.released(self.now(), epoch);
                self.perform_settling(effects);
            }
            Command::Drain => {
                self.tell(Event::Drain);
                self.lease_event(members::Event::Drain);
            }
            Command::Drained if self.leases.is_some() => self.handle(Command::Leave),
            Command::Drained => self.tell(Event::Drained),
            Command::Pin { document, node } if self.core.settings.leased() => {
                self.lease_event(members::Event::Pin { document, node });
            }
            Command::Pin { document, node } => self.tell(Event::Pin { document, node }),
            Command::Registry { peer, answer } => self.lease_answer(peer, answer),
            Command::Nudge if self.watch.is_some() => self.look_into_redis(),
            Command::Nudge => self.lease_event(members::Event::Nudge),
            Command::Leave => {
                self.core.leaving.store(true, Ordering::Relaxed);
                self.lease_event(members::Event::Leave);
            }
            Command::Secret => self.dial_members(),
            Command::Evict { id, .. } if !self.core.settings.leased() => {
                self.tell(Event::Evict(&id));
            }
            Command::Evict { id, reason, how } => {
                self.lease_event(members::Event::Evict { id, reason, how });
            }
            Command::IdTaken { by } => self.refuse_to_start(&by),
            Command::Predecessor { incarnation } => self.predecessor_gone(incarnation),
            Command::Checked {
                peer,
                checker,
                report,
            } => self.checked(&peer, checker, &report),
            Command::Stop => unreachable!("it ends the loop"),
        }
    }

    fn announce(&mut self, own: Member, listening: bool) {
        self.core
            .change_identity(|identity| identity.node = own.clone());
        if let Some(redis) = self.core.settings.redis.clone() {
            if !self.core.settings.leased() {
                self.watch(listening, redis);
            } else {
                // Nothing is known, nor owned, before there is a lease.
                if listening && !std::mem::replace(&mut self.listening, true) {
                    self.lease(own, redis);
                }
                return;
            }
        }
        let before = self.epoch;
        if self.listening {
            self.tell(Event::Own(own));
            self.publish();
        } else {
            self.listening = listening;
            self.start(own);
        }
        if self.epoch == before {
            // JavaScript waits for a view that is not older than this.
            self.core.inbox.push(kind::VIEW, 0, 0, &[]);
        }
    }

    /// Nothing has left this node before it listens: its seeds, and even its id, may still change.
    fn start_over(&mut self) {
        if let Some(peers) = &self.peers {
            self.start(peers.own().clone());
        }
    }

    fn start(&mut self, own: Member) {
        let settings = &self.core.settings;
        let millis = Duration::from_millis;
        let suspicion = settings
            .lease_duration
            .saturating_sub(settings.ping_interval);
        let timings = Timings::derive(
            millis(settings.ping_interval),
            millis(suspicion.max(1)),
            millis(settings.drain_timeout),
        );
        // Without enforcement every node serves everything itself, and has no links.
        let connected = self.listening && settings.enforce_routing;
        self.peers = Some(Peers::new(
            self.now(),
            own,
            self.seeds.clone(),
            connected,
            timings,
            rand::random(),
        ));
        self.changed = true;
        self.publish();
        self.up.clear();
        self.look_at_links();
    }

    /// Lets the membership handle an event, and does what it asks for.
    fn tell(&mut self, event: Event<'_>) {
        let now = self.now();
        let Some(peers) = &mut self.peers else {
            return;
        };
        for effect in peers.handle(now, event) {
            match effect {
                Effect::Send { to, bytes } => {
                    if let Some(link) = self.up.get(&to) {
                        link.gossip(&bytes);
                    }
                }
                Effect::Changed => self.changed = true,
                // JavaScript sees by the view that this node leaves, and says when it may.
                Effect::Drain => {}
                Effect::Out => {
                    self.core.right.store(Arc::default());
                    self.tell_right(right::LAPSED, "");
                    self.tell_right(right::LEFT, "");
                }
                Effect::Log {
                    level,
                    key,
                    message,
                } => self.core.log(level, &key, &message),
            }
        }
    }

    /// Compares the links that are up with those that were.
    fn look_at_links(&mut self) {
        let mut up: BTreeMap<String, Arc<Link>> = BTreeMap::new();
        for link in self.core.links() {
            if link.is_up() {
                up.insert(link.peer.clone(), link);
            }
        }
        let before = std::mem::replace(&mut self.up, up);
        for peer in before.keys() {
            if !self.up.contains_key(peer) {
                self.settling.lost(peer);
                self.tell(Event::Link { peer, up: false });
            }
        }
        let new: Vec<String> = self
            .up
            .keys()
            .filter(|peer| !before.contains_key(*peer))
            .cloned()
            .collect();
        for peer in new {
            self.tell(Event::Link {
                peer: &peer,
                up: true,
            });
            self.lease_met(&peer);
            let effects = self.settling.met(&peer);
            self.perform_settling(effects);
        }
    }

    fn publish(&mut self) {
        self.unpublished = 0;
        if !std::mem::take(&mut self.changed) {
            return;
        }
        // Nothing is owned before this node is announced: it could not say who it is.
        let Some(peers) = &self.peers else {
            return;
        };
        let (members, targets) = (peers.members().clone(), peers.dials().clone());
        let pins = peers.pins().clone();
        let expelled = peers.is_expelled();
        if self.listening {
            self.check_all(&members);
        }
        let dials = match (self.listening, self.core.settings.enforce_routing) {
            (true, true) => self.dial_all(&targets),
            // With Redis they are told there, and may not have the secret from it yet.
            (true, false) if self.core.settings.redis.is_none() => {
                self.knock_all(&targets);
                false
            }
            _ => false,
        };
        let before = self.core.snapshot.load_full();
        if before.view.members == members && before.view.pins == pins {
            // The same view with other links: JavaScript takes their numbers with it.
            if dials {
                self.core.inbox.push(kind::VIEW, 0, 0, &[]);
            }
            return;
        }
        self.epoch += 1;
        let view = View {
            epoch: self.epoch,
            members,
            pins,
        };
        let back = !expelled && self.epoch > 1 && !self.core.serves();
        let snapshot = Arc::new(Snapshot::new(view, self.core.settings.virtual_nodes));
        self.install(Arc::clone(&snapshot), expelled);
        self.core.snapshot.store(snapshot);
        self.core.inbox.push(kind::VIEW, 0, 0, &[]);
        if back {
            self.tell_right(right::SERVES, "");
        }
    }

    /// One checking task per other member; none for those that left or moved.
    fn check_all(&mut self, members: &BTreeMap<String, Member>) {
        self.checks.retain(|id, check| {
            let stays = members.get(id).is_some_and(|member| {
                member.address == check.address && member.link_port() == check.port
            });
            if !stays {
                check.stop.cancel();
            }
            stays
        });
        let identity = self.core.identity.load_full();
        for member in members.values() {
            if member.id == identity.node.id || self.checks.contains_key(&member.id) {
                continue;
            }
            self.checkers += 1;
            let check = Check {
                address: member.address.clone(),
                port: member.link_port(),
                number: self.checkers,
                stop: self.core.stop.child_token(),
            };
            self.core.spawn(check_peer(
                Arc::clone(&self.core),
                member.id.clone(),
                check.address.clone(),
                check.port,
                check.number,
                check.stop.clone(),
            ));
            self.checks.insert(member.id.clone(), check);
        }
    }

    /// Tells JavaScript of a check. What this node thinks of a peer changes no view.
    fn checked(&self, peer: &str, checker: u64, report: &Report) {
        if self.checks.get(peer).map(|check| check.number) != Some(checker)
            || matches!(report.result, Err(Failure::Void))
        {
            return;
        }
        let stalled = self.core.loop_age().as_millis() > self.core.settings.stall_timeout.into();
        // Nobody reads the inbox for now: only what is news may make it longer.
        if report.change.is_none() && stalled {
            return;
        }
        let change = report.change.map(|change| match change {
            Change::Failed => "failed",
            Change::Recovered => "recovered",
        });
        let json = serde_json::json!({
            "node": peer,
            "state": report.state.name(),
            "change": change,
            "healthy": report.result.is_ok(),
            "latency": report.latency.as_micros() as f64 / 1000.0,
            "reason": report.result.as_ref().err().map(ToString::to_string),
        });
        self.core
            .inbox
            .push(kind::HEALTH, 0, 0, json.to_string().as_bytes());
    }

    /// One knocking task per node.
    fn knock_all(&mut self, targets: &BTreeMap<String, Target>) {
        self.knocks.retain(|id, (target, stop)| {
            let stays = targets.get(id) == Some(target);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for (id, target) in targets {
            if self.knocks.contains_key(id) {
                continue;
            }
            let stop = self.core.stop.child_token();
            let task = keep_knocking(
                Arc::clone(&self.core),
                id.clone(),
                target.clone(),
                stop.clone(),
            );
            self.core.spawn(task);
            self.knocks.insert(id.clone(), (target.clone(), stop));
        }
    }

    /// One dialing task per node to dial; none for those that are not to be dialed any more, or that
    /// moved. Whether any link was added or removed.
    fn dial_all(&mut self, targets: &BTreeMap<String, Target>) -> bool {
        let gone: Vec<String> = self
            .dials
            .iter()
            .filter(|(id, dial)| targets.get(*id) != Some(&dial.target))
            .map(|(id, _)| id.clone())
            .collect();
        let mut changed = !gone.is_empty();
        for id in gone {
            if let Some(dial) = self.dials.remove(&id) {
                dial.link.stop.cancel();
                let reason = format!("SmartRoute: {id} left the cluster, reconnect");
                self.core.remove_link(&dial.link, &reason);
            }
            if !targets.contains_key(&id) {
                // Its own links to this node end too.
                for link in self.core.links() {
                    if link.side == Side::Acceptor && link.peer == id {
                        link.stop.cancel();
                    }
                }
            }
        }
        for (id, target) in targets {
            if self.dials.contains_key(id) {
                continue;
            }
            let dial = Dial {
                target: target.clone(),
                link: self.core.add_link(id.clone(), Side::Dialer),
            };
            let task = keep_dialing(
                Arc::clone(&self.core),
                Arc::clone(&dial.link),
                target.address.clone(),
                target.port,
            );
            self.core.spawn(task);
            self.dials.insert(id.clone(), dial);
            changed = true;
        }
        changed
    }
}

/// Checks one peer until it leaves, moves, or this node stops.
async fn check_peer(
    core: Arc<Core>,
    peer: String,
    address: String,
    port: u16,
    checker: u64,
    stop: CancellationToken,
) {
    let turned = AtomicU64::new(0);
    let probe = || checker::check(&core, &peer, &address, port, &turned);
    let report = |report| {
        let peer = peer.clone();
        let command = Command::Checked {
            peer,
            checker,
            report,
        };
        let _ = core.request(command);
    };
    let policy = core.settings.health_check.policy();
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = checker::keep_checking(policy, StdRng::from_os_rng(), probe, report) => {}
    }
}

/// A socket that has passed the handshake, what the peer said of itself, and bytes read past it.
type Established = (Reader, Writer, Challenge, BytesMut);

/// Keeps a link to one peer: dials until it is up, serves it, dials again.
async fn keep_dialing(core: Arc<Core>, link: Arc<Link>, address: String, port: u16) {
    let dialing = async {
        let mut pause = Duration::ZERO;
        loop {
            let established = tokio::select! {
                established = establish(&core, &link, &address, port, &mut pause) => established,
                () = expire(&core, &link) => unreachable!("it never ends"),
            };
            let began = Instant::now();
            serve(&core, &link, established).await;
            if began.elapsed() > STABLE {
                pause = MIN_BACKOFF;
            }
        }
    };
    tokio::select! {
        biased;
        () = link.stop.cancelled() => {}
        () = dialing => {}
    }
}

/// Says at one node's door who this node is, now and then: it serves every document itself, so a node
/// that routes them must refuse it, and both must say so. With its like it has nothing to do.
async fn keep_knocking(core: Arc<Core>, peer: String, target: Target, stop: CancellationToken) {
    use RefusalCode::{Mismatch, Secret};
    let interval = Duration::from_millis(core.settings.ping_interval);
    let Target { address, port } = target;
    let knocking = async {
        loop {
            if let Err(error) = attempt(&core, &peer, &address, port).await
                && let UpgradeError::Refused(refusal) | UpgradeError::RefusedByPeer(refusal) =
                    &error
                && matches!(refusal.code, Mismatch | Secret)
            {
                let key = format!("dial {peer} {}", error.code());
                let message = format!("{peer} does not run as this node does: {error}");
                core.log("warn", &key, &message);
            }
            sleep(interval.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = knocking => {}
    }
}

/// Dials until the link is up. `pause` is the time before the next attempt.
async fn establish(
    core: &Arc<Core>,
    link: &Link,
    address: &str,
    port: u16,
    pause: &mut Duration,
) -> Established {
    let down_since = Instant::now();
    loop {
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        // A refusal counts for a third of a lease.
        let longest = MAX_BACKOFF.min(Duration::from_millis(core.settings.lease_duration / 6));
        *pause = (*pause * 2).clamp(MIN_BACKOFF, longest.max(MIN_BACKOFF));
        let error = match attempt(core, &link.peer, address, port).await {
            Ok(established) => return established,
            Err(error) => error,
        };
        // Nodes of a cluster never start at the same moment: that is no news.
        if error.code() != "unreachable" || down_since.elapsed() > GRACE {
            let key = format!("dial {} {}", link.peer, error.code());
            let host = authority(address, port);
            let message = format!("no link to {} at {host}: {error}", link.peer);
            core.log("warn", &key, &message);
        }
        let refused = matches!(&error, UpgradeError::Io(error) if error.kind() == ErrorKind::ConnectionRefused);
        if matches!(&error, UpgradeError::RefusedByPeer(refusal) if refusal.code == RefusalCode::Removed)
        {
            let _ = core.request(Command::PutOut);
        }
        let peer = link.peer.clone();
        let _ = core.request(Command::Unreachable { peer, refused });
    }
}

async fn attempt(
    core: &Arc<Core>,
    peer: &str,
    address: &str,
    port: u16,
) -> Result<Established, UpgradeError> {
    let deadline = Instant::now() + upgrade::TIMEOUT;
    let connected = timeout_at(deadline, connect(core, address, port)).await;
    let (mut reader, writer) = connected.unwrap_or(Err(UpgradeError::TimedOut))?;
    let identity = core.identity.load_full();
    let host = authority(address, port);
    let dialed = upgrade::dial(&mut reader, &writer, &host, &identity, peer, deadline);
    let (challenge, buffer) = dialed.await?;
    Ok((reader, writer, challenge, buffer))
}

/// Ends streams that have waited for the link too long.
async fn expire(core: &Core, link: &Link) {
    let reason = format!("SmartRoute: no link to {}, reconnect", link.peer);
    loop {
        sleep(EXPIRY).await;
        link.expire(core.settings.patience(), &reason);
    }
}

async fn serve(core: &Arc<Core>, link: &Link, established: Established) {
    let (reader, writer, challenge, buffer) = established;
    core.link_up(link, &challenge.node);
    let error = link.run(reader, writer, buffer, &core.service()).await;
    core.link_down(link, &error);
    if !matches!(error, LinkError::Shutdown | LinkError::Leaving) {
        let key = format!("lost {}", link.peer);
        let message = format!("the link to {} was lost: {error}", link.peer);
        core.log("warn", &key, &message);
    }
}

async fn connect(
    core: &Arc<Core>,
    address: &str,
    port: u16,
) -> Result<(Reader, Writer), UpgradeError> {
    if !core.settings.dial_through_pipe {
        // Names are resolved at each attempt: pods change their address.
        return Ok(split_tcp(TcpStream::connect((address, port)).await?));
    }
    Ok(core.dial_pipe(address, port).await?)
}

/// Host and port as HTTP writes them.
pub(crate) fn authority(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::right::Right;
    use crate::link::auth::tests::identity;
    use crate::link::secrets::Secrets;

    #[tokio::test]
    async fn a_coordinator_that_panics_leaves_no_right_to_serve() {
        let settings = serde_json::json!({
            "clusterName": "test", "virtualNodes": 150, "enforceRouting": true, "migrationTimeout": 1,
            "healthCheck": {
                "interval": 1, "timeout": 1, "retries": 1, "backoffMultiplier": 1.0, "maxBackoff": 1,
                "path": "/",
            },
            "leaseDuration": 1, "stallTimeout": 1, "pingInterval": 1, "linkPatience": 1,
            "dialThroughPipe": false,
        });
        let own = identity("a", "").node;
        let settings = serde_json::from_value(settings).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let (core, _commands) = Core::new(settings, own, Secrets::new([""]), runtime);
        // As membership without leases does.
        core.right.store(Arc::new(Right::unlimited()));
        supervise(Arc::clone(&core), async {}).await;
        assert!(core.serves(), "its end is no failure");
        supervise(Arc::clone(&core), async { panic!("on purpose") }).await;
        assert!(!core.serves());
        assert!(core.stop.is_cancelled());
        // JavaScript is told, so that it closes its sockets and sets aside what is not stored.
        let records = core.inbox.drain(usize::MAX).records().unwrap();
        let word = |at: usize| u32::from_ne_bytes(records[at..at + 4].try_into().unwrap());
        let (mut at, mut told) = (0, false);
        while at < records.len() {
            told |= (word(at) & 0xff, word(at + 8)) == (kind::RIGHT, right::LAPSED);
            at += 16 + (word(at + 12) as usize).next_multiple_of(4);
        }
        assert!(told);
    }
}
