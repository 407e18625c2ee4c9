//! What everyone but the coordinator holds: the links, the snapshot, and a way to ask for changes.

use std::collections::{BTreeMap, HashMap};
use std::net::TcpStream as StdTcpStream;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::checker::Report;
use crate::cluster::members::How;
use crate::cluster::right::Right;
use crate::cluster::view::{Member, Snapshot};
use crate::config::Settings;
use crate::error::Error;
use crate::inbox::{Inbox, LinkSink, kind};
use crate::link::auth::{Agreement, Identity, Refusal, RefusalCode};
use crate::link::connection::{
    KeepAlive, Link, LinkError, Reader, Service, Writer, split_pipe, split_tcp,
};
use crate::link::mux::{Side, Sink, close};
use crate::link::pipe::{Pipe, PipeEvents};
#[cfg(target_os = "linux")]
use crate::link::readiness::Readiness;
use crate::link::secrets::Secrets;
use crate::link::upgrade::{self, UpgradeError};
use crate::store::counters::Counters;
use crate::store::model::PINS;
use crate::store::peers::MAX_NAME;
use crate::store::registry::Answer;

/// Handshakes under way at once from peers that have not proved anything yet; each may hold some
/// kilobytes for `upgrade::TIMEOUT`. One more ends the oldest: an honest one is over in
/// milliseconds, so that is one that says nothing, and whoever says nothing must not keep a node out.
const MAX_HANDSHAKES: usize = 1024;

/// Requests to the coordinator. The channel holds 256; a full one makes the asker wait, or a
/// synchronous asker retry.
#[derive(Debug)]
pub enum Command {
    /// This node is (now) to be known like so.
    Announce {
        /// The node itself.
        own: Member,
        /// Whether it can be reached: only then are peers dialed.
        listening: bool,
    },
    /// A node to be dialed: a seed before this node listens, added by hand after.
    Add(Member),
    /// Takes a node out of the cluster and keeps it out until it is restarted or added again.
    Remove(String),
    /// A peer proved who it is: admit it?
    Met {
        /// What it says of itself.
        peer: Member,
        /// The answer; a refusal is told to the peer.
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Nothing is held any more that another node owns under the view of this epoch.
    Released(u64),
    /// Own nothing more, stay a member until [`Command::Drained`].
    Drain,
    /// A node that is leaving has handed everything over: leave now.
    Drained,
    /// Pin a document to a node, or to none.
    Pin {
        /// Its name.
        document: String,
        /// The node; `None` removes the pin.
        node: Option<String>,
    },
    /// A health check of a peer ended.
    Checked {
        /// The peer.
        peer: String,
        /// Which of the peer's checkers made it: one that was replaced is not heard any more.
        checker: u64,
        /// What came of it.
        report: Report,
    },
    /// A link came up or went down.
    Links,
    /// A dialed node could not be reached.
    Unreachable {
        /// Its id.
        peer: String,
        /// Its address answered, and nothing listens there.
        refused: bool,
    },
    /// A message of the membership protocol; dropped by its link where the channel is full.
    Gossip {
        /// The peer, as it proved to be.
        from: String,
        /// The message.
        bytes: Bytes,
    },
    /// A member says that this node was put out by hand.
    PutOut,
    /// Redis answered a heartbeat, of this node or of a peer that cannot reach it.
    Registry {
        /// The peer; `None` for this node's own.
        peer: Option<String>,
        /// What it answered.
        answer: Answer,
    },
    /// The list in Redis has changed.
    Nudge,
    /// The cluster's secret is known now, from Redis.
    Secret,
    /// Put a node out by hand.
    Evict {
        /// Its id.
        id: String,
        /// Told to it.
        reason: String,
        /// How.
        how: How,
    },
    /// A process with this node's id answers there.
    IdTaken {
        /// Its address.
        by: String,
    },
    /// An earlier process with this node's id is gone.
    Predecessor {
        /// Which.
        incarnation: u64,
    },
    /// Give the lease back; `inbox::right::LEFT` says when that is done.
    Leave,
    /// Leave the cluster, then stop.
    Stop,
}

/// The shared part of one node.
#[derive(Debug)]
pub struct Core {
    /// Settings of the node.
    pub settings: Settings,
    /// Records for JavaScript.
    pub inbox: Arc<Inbox>,
    /// The view with its ring, as the coordinator published it last.
    pub snapshot: ArcSwap<Snapshot>,
    /// The snapshot that JavaScript has taken; owner indices refer to it.
    pub taken: ArcSwap<Snapshot>,
    /// What this node may serve, as the coordinator published it last.
    pub right: ArcSwap<Right>,
    /// Who this node is in handshakes.
    pub identity: ArcSwap<Identity>,
    /// Ends every task of the node.
    pub stop: CancellationToken,
    /// This node leaves its cluster: its links say so when they end.
    pub leaving: Arc<AtomicBool>,
    /// The core's clock starts here.
    pub started: Instant,
    /// When JavaScript's event loop turned last, ms on the core's clock.
    turned: AtomicU64,
    commands: mpsc::Sender<Command>,
    runtime: Runtime,
    next_id: AtomicU32,
    // std's Mutex: held for one map operation, never across an await.
    links: Mutex<HashMap<u32, Arc<Link>>>,
    pipes: Mutex<HashMap<u32, Arc<Pipe>>>,
    /// What ends each handshake under way, by age.
    // std's Mutex: held for one map operation, never across an await.
    handshakes: Mutex<BTreeMap<u32, CancellationToken>>,
    /// Where the JavaScript thread finds links to read; set before the first link, where it can.
    #[cfg(target_os = "linux")]
    pub readiness: OnceLock<Arc<Readiness>>,
    /// Handshakes that failed, for metrics.
    pub refused: AtomicU64,
    /// What came of requests to the store, for metrics.
    pub store: Counters,
}

impl Core {
    /// A core and the receiving end of its coordinator's commands.
    #[must_use]
    pub fn new(
        settings: Settings,
        node: Member,
        secrets: Secrets,
        runtime: Runtime,
    ) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(256);
        let agreement = Agreement {
            cluster_name: settings.cluster_name.clone(),
            hash: "xxh3-64".into(),
            virtual_nodes: settings.virtual_nodes,
            enforce_routing: settings.enforce_routing,
            membership: settings.redis.as_ref().map_or("peers", |_| "redis").into(),
            cluster_tls: settings.cluster_tls,
        };
        let identity = Identity {
            node,
            agreement,
            secrets,
        };
        let core = Arc::new(Self {
            settings,
            inbox: Arc::new(Inbox::default()),
            snapshot: ArcSwap::default(),
            taken: ArcSwap::default(),
            right: ArcSwap::default(),
            identity: ArcSwap::from_pointee(identity),
            stop: CancellationToken::new(),
            leaving: Arc::default(),
            started: Instant::now(),
            turned: AtomicU64::new(0),
            commands,
            runtime,
            next_id: AtomicU32::new(1),
            links: Mutex::default(),
            pipes: Mutex::default(),
            handshakes: Mutex::default(),
            #[cfg(target_os = "linux")]
            readiness: OnceLock::new(),
            refused: AtomicU64::new(0),
            store: Counters::default(),
        });
        (core, receiver)
    }

    /// Asks the coordinator for a change, in order with every other request.
    ///
    /// # Errors
    /// [`Error::Destroyed`].
    pub fn request(self: &Arc<Self>, command: Command) -> Result<(), Error> {
        match self.commands.try_send(command) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::Destroyed),
            // 256 requests wait: only a caller in a tight loop gets here.
            Err(mpsc::error::TrySendError::Full(command)) => {
                let core = Arc::clone(self);
                self.runtime.spawn(async move {
                    let _ = core.commands.send(command).await;
                });
                Ok(())
            }
        }
    }

    /// Pins a document to a node, or to none. With Redis the view shows whether it was done.
    ///
    /// # Errors
    /// [`Error::PinName`], [`Error::Pins`], [`Error::Destroyed`].
    pub fn pin(self: &Arc<Self>, document: String, node: Option<String>) -> Result<(), Error> {
        for name in std::iter::once(&document).chain(&node) {
            if name.is_empty() || name.len() > MAX_NAME {
                return Err(Error::PinName);
            }
        }
        let pins = &self.snapshot.load().view.pins;
        if node.is_some() && pins.len() >= PINS && !pins.contains_key(&document) {
            return Err(Error::Pins);
        }
        self.request(Command::Pin { document, node })
    }

    /// Leaves the cluster and ends every task of the node. Idempotent.
    pub fn shut_down(self: &Arc<Self>) {
        self.leaving.store(true, Ordering::Relaxed);
        // A coordinator that is gone, or that has no room for one more request, leaves nothing.
        if self.commands.try_send(Command::Stop).is_err() {
            self.stop.cancel();
        }
    }

    /// JavaScript's event loop turns: said by its every drain, and by a timer where nothing comes.
    pub fn turn(&self) {
        let now = self.started.elapsed().as_millis() as u64;
        self.turned.store(now, Ordering::Relaxed);
    }

    /// When JavaScript's event loop turned last, ms on the core's clock; 0 before the first.
    #[must_use]
    pub fn turned(&self) -> u64 {
        self.turned.load(Ordering::Relaxed)
    }

    /// Age of JavaScript's last event-loop turn, give or take the shim's timer of 250 ms. Before the
    /// first one it counts from the start.
    #[must_use]
    pub fn loop_age(&self) -> Duration {
        let turned = Duration::from_millis(self.turned.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(turned)
    }

    /// How this node serves its links.
    #[must_use]
    pub fn service(&self) -> Service {
        let millis = std::time::Duration::from_millis;
        Service {
            keep_alive: KeepAlive {
                interval: millis(self.settings.ping_interval),
                patience: millis(self.settings.link_patience),
            },
            #[cfg(target_os = "linux")]
            readiness: self.readiness.get().cloned(),
        }
    }

    /// On the JavaScript thread: reads the links that have something. Whether there is anything to
    /// drain.
    #[cfg(target_os = "linux")]
    pub fn read_ready(&self) -> bool {
        let Some(readiness) = self.readiness.get() else {
            return false;
        };
        self.inbox.collect(|| {
            for id in readiness.ready() {
                if let Some(link) = self.link(id) {
                    link.read_now();
                }
            }
        })
    }

    /// Changes who this node is in handshakes from now on. The coordinator and the registry's task do.
    pub fn change_identity(&self, change: impl Fn(&mut Identity)) {
        self.identity.rcu(|identity| {
            let mut identity = Identity::clone(identity);
            change(&mut identity);
            identity
        });
    }

    /// Whether anything may be served now.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.right.load().serves(self.started.elapsed())
    }

    /// Whether this node may serve a document that the view taken last gives it.
    #[must_use]
    pub fn entitles(&self, document: &[u8]) -> bool {
        let identity = self.identity.load();
        self.right.load().entitles(&identity.node.id, document)
    }

    /// Whether the newest view is settled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.right.load().is_settled()
    }

    /// Makes a link that JavaScript can name.
    pub fn add_link(&self, peer: String, side: Side) -> Arc<Link> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let link = Arc::new(Link::new(
            id,
            peer,
            side,
            Arc::clone(&self.inbox),
            self.commands.clone(),
            self.started,
            self.stop.child_token(),
            Arc::clone(&self.leaving),
        ));
        lock(&self.links).insert(id, Arc::clone(&link));
        link
    }

    /// Forgets a link. Its remaining streams are closed first.
    pub fn remove_link(&self, link: &Link, reason: &str) {
        link.abandon(reason);
        lock(&self.links).remove(&link.id);
    }

    /// Answers a stream opened on a link that has gone away.
    pub fn refuse_stream(&self, link: u32, stream: u32) {
        let reason = "SmartRoute: the owner left, reconnect";
        LinkSink::new(&self.inbox, link).closed(stream, close::UNAVAILABLE, reason);
    }

    /// A link by its number.
    #[must_use]
    pub fn link(&self, id: u32) -> Option<Arc<Link>> {
        lock(&self.links).get(&id).cloned()
    }

    /// All links.
    #[must_use]
    pub fn links(&self) -> Vec<Arc<Link>> {
        lock(&self.links).values().cloned().collect()
    }

    /// Tells JavaScript (and so the operator's log) about something. `key` names what happened:
    /// the shim writes a key once until it changes.
    pub fn log(&self, level: &str, key: &str, message: &str) {
        let json = serde_json::json!({ "level": level, "key": key, "message": message });
        self.inbox
            .push(kind::LOG, 0, 0, json.to_string().as_bytes());
    }

    /// Makes a pipe for a socket of JavaScript's.
    pub fn add_pipe(&self, open: bool) -> (u32, Arc<Pipe>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let events = Box::new(InboxPipe(Arc::clone(&self.inbox)));
        let pipe = Arc::new(Pipe::new(id, open, events));
        lock(&self.pipes).insert(id, Arc::clone(&pipe));
        (id, pipe)
    }

    /// Connects through JavaScript, which may speak TLS.
    ///
    /// # Errors
    /// What JavaScript's socket failed with; `NotFound` where the name has no address.
    pub async fn dial_pipe(&self, host: &str, port: u16) -> std::io::Result<(Reader, Writer)> {
        let (id, pipe) = self.add_pipe(false);
        let json = serde_json::json!({ "host": host, "port": port });
        self.inbox
            .push(kind::PIPE_DIAL, id, 0, json.to_string().as_bytes());
        let (reader, writer) = split_pipe(Arc::clone(&pipe));
        pipe.writable().await;
        match pipe.close_reason() {
            Some(error) => Err(error),
            None => Ok((reader, writer)),
        }
    }

    /// A pipe by its number.
    #[must_use]
    pub fn pipe(&self, id: u32) -> Option<Arc<Pipe>> {
        lock(&self.pipes).get(&id).cloned()
    }

    /// Forgets a pipe whose socket is gone.
    pub fn remove_pipe(&self, id: u32, kind: std::io::ErrorKind, reason: &str) {
        if let Some(pipe) = lock(&self.pipes).remove(&id) {
            pipe.closed(kind, reason);
        }
    }

    /// Serves a socket on which a peer asked for a link. `head` holds bytes read past the request.
    ///
    /// # Errors
    /// [`Error::Takeover`] where tokio cannot use the socket.
    pub fn accept_tcp(self: &Arc<Self>, stream: StdTcpStream, head: &[u8]) -> Result<(), Error> {
        stream.set_nonblocking(true)?;
        let loopback = stream.peer_addr()?.ip().to_canonical().is_loopback();
        let guard = self.runtime.enter();
        let stream = tokio::net::TcpStream::from_std(stream)?;
        drop(guard);
        let (reader, writer) = split_tcp(stream);
        self.accept(reader, writer, head, loopback);
        Ok(())
    }

    /// The same over a socket that JavaScript keeps; answers the pipe's number.
    pub fn accept_pipe(self: &Arc<Self>, head: &[u8], loopback: bool) -> u32 {
        let (id, pipe) = self.add_pipe(true);
        let (reader, writer) = split_pipe(pipe);
        self.accept(reader, writer, head, loopback);
        id
    }

    fn accept(self: &Arc<Self>, reader: Reader, writer: Writer, head: &[u8], loopback: bool) {
        let core = Arc::clone(self);
        let head = BytesMut::from(head);
        self.runtime.spawn(async move {
            if let Err(error) = core.serve(reader, writer, head, loopback).await {
                core.refused.fetch_add(1, Ordering::Relaxed);
                let key = match &error {
                    // Several peers that are refused take no turns in the log.
                    UpgradeError::Refused(refusal) if refusal.code == RefusalCode::Mismatch => {
                        format!("accept mismatch {refusal}")
                    }
                    error => format!("accept {}", error.code()),
                };
                core.log("warn", &key, &format!("a link was refused: {error}"));
            }
        });
    }

    async fn serve(
        self: &Arc<Self>,
        mut reader: Reader,
        writer: Writer,
        mut buffer: BytesMut,
        loopback: bool,
    ) -> Result<(), UpgradeError> {
        let identity = self.identity.load_full();
        let (number, crowded_out) = self.begin_handshake();
        let handshake = async {
            let handshake = upgrade::accept(&mut reader, &writer, &mut buffer, &identity, loopback);
            timeout(upgrade::TIMEOUT, handshake)
                .await
                .unwrap_or(Err(UpgradeError::TimedOut))
        };
        // Only up to here: an open link ends by itself, and has things to tidy up.
        let acceptor = tokio::select! {
            biased;
            acceptor = handshake => acceptor,
            () = crowded_out.cancelled() => Err(UpgradeError::TimedOut),
        };
        lock(&self.handshakes).remove(&number);
        if self.stop.is_cancelled() {
            return Ok(());
        }
        upgrade::tell(&writer, &acceptor).await;
        let acceptor = acceptor?;
        if !self.settings.enforce_routing {
            // Of one mind with a node that knocked; see `coordinator::keep_knocking`.
            let reason = "this node serves every document itself, and has no links";
            upgrade::refuse(&writer, &Refusal::new(RefusalCode::Other, reason)).await;
            return Ok(());
        }
        let peer = acceptor.peer.node.clone();
        let admitted = if !loopback && is_loopback(&peer.address) {
            Err(Refusal::new(
                RefusalCode::NotLoopback,
                format!(
                    "{} says that it is reached at {}, where only its own machine reaches it: set its nodeAddress",
                    peer.id, peer.address
                ),
            ))
        } else {
            self.admit(peer.clone()).await
        };
        if let Err(refusal) = admitted {
            upgrade::refuse(&writer, &refusal).await;
            return Err(refusal.into());
        }
        upgrade::ready(&writer).await?;
        let link = self.add_link(peer.id.clone(), Side::Acceptor);
        self.link_up(&link, &peer);
        let error = link.run(reader, writer, buffer, &self.service()).await;
        self.remove_link(&link, &error.to_string());
        self.link_down(&link, &error);
        if let LinkError::Refused(_) = &error {
            // Everything else the dialer says, or sees for itself.
            let key = format!("closed {}", link.peer);
            let message = format!("the link from {} was lost: {error}", link.peer);
            self.log("warn", &key, &message);
        }
        Ok(())
    }

    /// A number for a handshake, and what ends it before its time.
    fn begin_handshake(&self) -> (u32, CancellationToken) {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        let token = self.stop.child_token();
        let mut handshakes = lock(&self.handshakes);
        if handshakes.len() >= MAX_HANDSHAKES
            && let Some((_, oldest)) = handshakes.pop_first()
        {
            oldest.cancel();
        }
        handshakes.insert(number, token.clone());
        (number, token)
    }

    async fn admit(self: &Arc<Self>, peer: Member) -> Result<(), Refusal> {
        use RefusalCode::{Closing, IdTaken};
        // A live link from the same id: two nodes claim one id, or one node tries twice. Unless the
        // earlier one is gone, which its socket tells, or its silence.
        let earlier = self
            .links()
            .into_iter()
            .find(|link| link.side == Side::Acceptor && link.peer == peer.id && link.is_up());
        if let Some(earlier) = &earlier
            && answers(earlier).await
        {
            return Err(Refusal::new(
                IdTaken,
                format!(
                    "the id {} belongs to a node that is running: give each node its own nodeId",
                    peer.id
                ),
            ));
        }
        let (answer, answered) = oneshot::channel();
        let closing = || Refusal::new(Closing, "this node is shutting down");
        let command = Command::Met { peer, answer };
        self.commands.send(command).await.map_err(|_| closing())?;
        answered.await.map_err(|_| closing())??;
        if let Some(earlier) = earlier {
            // What is left of one that is gone: until its silence is noticed, the membership would
            // speak into it, and its streams would stay.
            earlier.stop.cancel();
        }
        Ok(())
    }

    /// Tells JavaScript that a link is up.
    pub fn link_up(&self, link: &Link, peer: &Member) {
        link.incarnation.store(peer.incarnation, Ordering::Relaxed);
        let json = serde_json::json!({
            "node": peer.id,
            "incarnation": peer.incarnation.to_string(),
            "accepted": link.side == Side::Acceptor,
        });
        self.inbox
            .push(kind::LINK_UP, link.id, 0, json.to_string().as_bytes());
    }

    /// Tells JavaScript that a link is down.
    pub fn link_down(&self, link: &Link, reason: &LinkError) {
        let json = serde_json::json!({
            "node": link.peer,
            "leaving": matches!(reason, LinkError::Leaving),
            "accepted": link.side == Side::Acceptor,
            "reason": reason.to_string(),
        });
        self.inbox
            .push(kind::LINK_DOWN, link.id, 0, json.to_string().as_bytes());
    }

    /// Spawns a task of this node. Should it panic, the log says so; the rest of the node goes on.
    pub fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let core = Arc::clone(self);
        let task = self.runtime.spawn(task);
        self.runtime.spawn(async move {
            if let Err(error) = task.await {
                core.log("error", "task", &format!("a task failed: {error}"));
            }
        });
    }
}

fn is_loopback(address: &str) -> bool {
    address.eq_ignore_ascii_case("localhost")
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Whether a peer answers a ping within a second.
async fn answers(link: &Link) -> bool {
    use crate::link::frame::Frame;
    let heard = link.traffic.heard.load(Ordering::Relaxed);
    for _ in 0..20 {
        link.control(&Frame::Ping(0));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        // This node's JavaScript may be the one that stands still.
        link.read_now();
        if !link.is_up() {
            return false;
        }
        if link.traffic.heard.load(Ordering::Relaxed) > heard {
            return true;
        }
    }
    false
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pipe's signals as records.
struct InboxPipe(Arc<Inbox>);

impl PipeEvents for InboxPipe {
    fn out(&self, pipe: u32, bytes: &[u8]) {
        self.0.push(kind::PIPE_OUT, pipe, 0, bytes);
    }

    fn resume(&self, pipe: u32) {
        self.0.push(kind::PIPE_RESUME, pipe, 0, &[]);
    }

    fn close(&self, pipe: u32) {
        self.0.push(kind::PIPE_CLOSE, pipe, 0, &[]);
    }
}
