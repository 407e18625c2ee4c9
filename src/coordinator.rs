//! The actor that owns the member list. It takes requests one at a time, publishes each new view
//! with its ring in one swap, and keeps a dialing task per peer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::view::{Member, Snapshot, View};
use crate::handle::{Command, Core};
use crate::inbox::kind;
use crate::link::auth::{Challenge, Refusal, RefusalCode};
use crate::link::connection::{Link, LinkError, Reader, Writer, split_pipe, split_tcp};
use crate::link::mux::Side;
use crate::link::upgrade::{self, UpgradeError};

/// First pause before a link is dialed again; doubles up to `MAX_BACKOFF`, each jittered by half.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// How often waiting streams are looked at.
const EXPIRY: Duration = Duration::from_millis(200);

/// A peer that cannot be reached is logged after so long.
const GRACE: Duration = Duration::from_secs(3);

/// A link that lived so long starts over with the shortest pause.
const STABLE: Duration = Duration::from_secs(10);

struct Dial {
    address: String,
    port: u16,
    link: Arc<Link>,
}

/// Owns the member list of one node.
struct Coordinator {
    core: Arc<Core>,
    /// This node, once it is announced.
    own: Option<Member>,
    /// Peers are dialed only by a node that they can dial back.
    listening: bool,
    members: BTreeMap<String, Member>,
    /// Ids that were removed by hand; their nodes are refused.
    removed: BTreeSet<String>,
    dials: HashMap<String, Dial>,
    epoch: u64,
}

/// Runs the coordinator until the node stops.
pub async fn run(core: Arc<Core>, mut commands: mpsc::Receiver<Command>) {
    let stop = core.stop.clone();
    let mut coordinator = Coordinator {
        core,
        own: None,
        listening: false,
        members: BTreeMap::new(),
        removed: BTreeSet::new(),
        dials: HashMap::new(),
        epoch: 0,
    };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            command = commands.recv() => match command {
                Some(command) => coordinator.handle(command),
                None => break,
            },
        }
    }
    for (_, dial) in coordinator.dials.drain() {
        dial.link.stop.cancel();
        coordinator
            .core
            .remove_link(&dial.link, "SmartRoute: this node is shutting down");
    }
}

impl Coordinator {
    fn handle(&mut self, command: Command) {
        match command {
            Command::Announce { own, listening } => {
                self.listening |= listening;
                let mut identity = (**self.core.identity.load()).clone();
                identity.node = own.clone();
                self.core.identity.store(Arc::new(identity));
                if let Some(before) = self.own.replace(own.clone()) {
                    self.members.remove(&before.id);
                }
                self.members.insert(own.id.clone(), own);
            }
            Command::Add(member) => {
                self.removed.remove(&member.id);
                if self.own.as_ref().is_some_and(|own| own.id == member.id) {
                    return;
                }
                self.members.insert(member.id.clone(), member);
            }
            Command::Remove(id) => {
                if self.own.as_ref().is_some_and(|own| own.id == id) {
                    return;
                }
                self.members.remove(&id);
                // Its own links to this node end too; it may not open them again.
                for link in self.core.links() {
                    if link.side == Side::Acceptor && link.peer == id {
                        link.stop.cancel();
                    }
                }
                self.removed.insert(id);
            }
            Command::Met { peer, answer } => {
                if self.removed.contains(&peer.id) {
                    let reason = format!(
                        "{} was removed from this cluster: add it again with addClusterNode",
                        peer.id
                    );
                    let _ = answer.send(Err(Refusal::new(RefusalCode::Other, reason)));
                    return;
                }
                let _ = answer.send(Ok(()));
                self.learn(peer, true);
            }
            Command::Reached(peer) => self.learn(peer, false),
        }
        self.publish();
    }

    /// Takes what a node says of itself over what was configured for it, except for the address it
    /// is reached at, which worked.
    fn learn(&mut self, peer: Member, may_join: bool) {
        match self.members.get_mut(&peer.id) {
            Some(known) => {
                if (known.weight - peer.weight).abs() > f64::EPSILON {
                    let message = format!(
                        "{} has weight {} by its own word and {} by clusterNodes here; its own word counts",
                        peer.id, peer.weight, known.weight
                    );
                    self.core
                        .log("warn", &format!("weight {}", peer.id), &message);
                }
                known.weight = peer.weight;
                known.incarnation = peer.incarnation;
            }
            None if may_join => {
                let message = format!(
                    "{} at {}:{} joined; it is not in clusterNodes here",
                    peer.id, peer.address, peer.port
                );
                self.core
                    .log("info", &format!("joined {}", peer.id), &message);
                self.members.insert(peer.id.clone(), peer);
            }
            None => {}
        }
    }

    fn publish(&mut self) {
        // Nothing is owned before this node is announced: it could not say who it is.
        if self.own.is_none() {
            return;
        }
        let dials = self.listening && self.core.settings.enforce_routing && self.dial_all();
        if self.core.snapshot.load().view.members == self.members {
            // The same view with other links: JavaScript takes their numbers with it.
            if dials {
                self.core.inbox.push(kind::VIEW, 0, 0, &[]);
            }
            return;
        }
        self.epoch += 1;
        let view = View {
            epoch: self.epoch,
            members: self.members.clone(),
            pins: BTreeMap::new(),
        };
        let snapshot = Snapshot::new(view, self.core.settings.virtual_nodes);
        self.core.snapshot.store(Arc::new(snapshot));
        self.core.inbox.push(kind::VIEW, 0, 0, &[]);
    }

    /// One dialing task per other member; none for those that left or moved. Whether any link was
    /// added or removed.
    fn dial_all(&mut self) -> bool {
        let own = self.own.as_ref().map(|own| own.id.clone());
        let gone: Vec<String> = self
            .dials
            .iter()
            .filter(|(id, dial)| {
                self.members.get(*id).is_none_or(|member| {
                    member.address != dial.address || member.link_port() != dial.port
                })
            })
            .map(|(id, _)| id.clone())
            .collect();
        let mut changed = !gone.is_empty();
        for id in gone {
            if let Some(dial) = self.dials.remove(&id) {
                dial.link.stop.cancel();
                let reason = format!("SmartRoute: {id} left the cluster, reconnect");
                self.core.remove_link(&dial.link, &reason);
            }
        }
        for member in self.members.values() {
            if Some(&member.id) == own.as_ref() || self.dials.contains_key(&member.id) {
                continue;
            }
            let dial = Dial {
                address: member.address.clone(),
                port: member.link_port(),
                link: self.core.add_link(member.id.clone(), Side::Dialer),
            };
            let task = keep_dialing(
                Arc::clone(&self.core),
                Arc::clone(&dial.link),
                dial.address.clone(),
                dial.port,
            );
            self.core.spawn(task);
            self.dials.insert(member.id.clone(), dial);
            changed = true;
        }
        changed
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
        *pause = (*pause * 2).clamp(MIN_BACKOFF, MAX_BACKOFF);
        let attempt = timeout(upgrade::TIMEOUT, attempt(core, link, address, port)).await;
        let error = match attempt.unwrap_or(Err(UpgradeError::TimedOut)) {
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
    }
}

async fn attempt(
    core: &Arc<Core>,
    link: &Link,
    address: &str,
    port: u16,
) -> Result<Established, UpgradeError> {
    let (mut reader, writer) = connect(core, address, port).await?;
    let identity = core.identity.load_full();
    let host = authority(address, port);
    let (challenge, buffer) =
        upgrade::dial(&mut reader, &writer, &host, &identity, &link.peer).await?;
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
    let _ = core.request(Command::Reached(challenge.node.clone()));
    core.link_up(link, &challenge.node);
    let error = link.run(reader, writer, buffer, core.keep_alive()).await;
    core.link_down(link, &error.to_string());
    if !matches!(error, LinkError::Shutdown) {
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
    let (id, pipe) = core.add_pipe(false);
    let json = serde_json::json!({ "host": address, "port": port });
    core.inbox
        .push(kind::PIPE_DIAL, id, 0, json.to_string().as_bytes());
    let (reader, writer) = split_pipe(Arc::clone(&pipe));
    pipe.writable().await;
    if let Some(reason) = pipe.close_reason() {
        return Err(std::io::Error::other(reason).into());
    }
    Ok((reader, writer))
}

fn authority(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}
