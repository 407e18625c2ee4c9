//! What everyone but the coordinator holds: the links, the snapshot, and a way to ask for changes.

use std::collections::HashMap;
use std::net::TcpStream as StdTcpStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::cluster::view::{Member, Snapshot};
use crate::config::Settings;
use crate::error::Error;
use crate::inbox::{Inbox, LinkSink, kind};
use crate::link::auth::{Agreement, Identity, Refusal};
use crate::link::connection::{KeepAlive, Link, Reader, Writer, split_pipe, split_tcp};
use crate::link::mux::{Side, Sink, close};
use crate::link::pipe::{Pipe, PipeEvents};
use crate::link::upgrade::{self, UpgradeError};

/// Handshakes under way at once from peers that have not proved anything yet; each may hold some
/// kilobytes for `upgrade::TIMEOUT`. More wait, so the number is large: whoever says nothing must not
/// keep a node out.
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
    /// Makes a node a member.
    Add(Member),
    /// Takes a node out of the view and keeps it out until it is added again.
    Remove(String),
    /// A peer proved who it is: admit it?
    Met {
        /// What it says of itself.
        peer: Member,
        /// The answer; a refusal is told to the peer.
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    /// A dialed peer proved who it is.
    Reached(Member),
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
    /// Who this node is in handshakes.
    pub identity: ArcSwap<Identity>,
    /// Ends every task of the node.
    pub stop: CancellationToken,
    /// The core's clock starts here.
    pub started: Instant,
    commands: mpsc::Sender<Command>,
    runtime: Runtime,
    next_id: AtomicU32,
    // std's Mutex: held for one map operation, never across an await.
    links: Mutex<HashMap<u32, Arc<Link>>>,
    pipes: Mutex<HashMap<u32, Arc<Pipe>>>,
    handshakes: Arc<Semaphore>,
    /// Handshakes that failed, for metrics.
    pub refused: AtomicU64,
}

impl Core {
    /// A core and the receiving end of its coordinator's commands.
    #[must_use]
    pub fn new(
        settings: Settings,
        node: Member,
        secret: Vec<u8>,
        runtime: Runtime,
    ) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(256);
        let agreement = Agreement {
            cluster_name: settings.cluster_name.clone(),
            hash: "xxh3-64".into(),
            virtual_nodes: settings.virtual_nodes,
            enforce_routing: settings.enforce_routing,
        };
        let identity = Identity {
            node,
            agreement,
            secret,
        };
        let core = Arc::new(Self {
            settings,
            inbox: Arc::new(Inbox::default()),
            snapshot: ArcSwap::default(),
            taken: ArcSwap::default(),
            identity: ArcSwap::from_pointee(identity),
            stop: CancellationToken::new(),
            started: Instant::now(),
            commands,
            runtime,
            next_id: AtomicU32::new(1),
            links: Mutex::default(),
            pipes: Mutex::default(),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            refused: AtomicU64::new(0),
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

    /// How links notice that a peer is gone.
    #[must_use]
    pub fn keep_alive(&self) -> KeepAlive {
        let millis = std::time::Duration::from_millis;
        KeepAlive {
            interval: millis(self.settings.ping_interval),
            patience: millis(self.settings.link_patience),
        }
    }

    /// Makes a link that JavaScript can name.
    pub fn add_link(&self, peer: String, side: Side) -> Arc<Link> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let link = Arc::new(Link::new(
            id,
            peer,
            side,
            Arc::clone(&self.inbox),
            self.started,
            self.stop.child_token(),
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

    /// A pipe by its number.
    #[must_use]
    pub fn pipe(&self, id: u32) -> Option<Arc<Pipe>> {
        lock(&self.pipes).get(&id).cloned()
    }

    /// Forgets a pipe whose socket is gone.
    pub fn remove_pipe(&self, id: u32, reason: &str) {
        if let Some(pipe) = lock(&self.pipes).remove(&id) {
            pipe.closed(reason);
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
                let key = format!("accept {}", error.code());
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
        let handshake = async {
            let _permit = self.handshakes.acquire().await;
            let handshake = upgrade::accept(&mut reader, &writer, &mut buffer, &identity, loopback);
            timeout(upgrade::TIMEOUT, handshake)
                .await
                .map_err(|_| UpgradeError::TimedOut)?
        };
        // Only up to here: an open link ends by itself, and has things to tidy up.
        let acceptor = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            acceptor = handshake => acceptor?,
        };
        let peer = acceptor.peer.node.clone();
        if let Err(refusal) = self.admit(peer.clone()).await {
            upgrade::refuse(&writer, &refusal).await;
            return Err(refusal.into());
        }
        upgrade::ready(&writer).await?;
        let link = self.add_link(peer.id.clone(), Side::Acceptor);
        self.link_up(&link, &peer);
        let error = link.run(reader, writer, buffer, self.keep_alive()).await;
        self.remove_link(&link, &error.to_string());
        self.link_down(&link, &error.to_string());
        Ok(())
    }

    async fn admit(self: &Arc<Self>, peer: Member) -> Result<(), Refusal> {
        use crate::link::auth::RefusalCode::{Closing, IdTaken};
        // A live link from the same id and another incarnation: two nodes claim one id, unless the
        // earlier one is gone, which its socket tells within a keep-alive.
        let earlier = self
            .links()
            .into_iter()
            .find(|link| link.side == Side::Acceptor && link.peer == peer.id && link.is_up());
        if let Some(earlier) = earlier {
            let known = self.snapshot.load().view.members.get(&peer.id).cloned();
            let same = known.is_some_and(|known| known.incarnation == peer.incarnation);
            if !same && answers(&earlier).await {
                return Err(Refusal::new(
                    IdTaken,
                    format!(
                        "the id {} belongs to a node that is running: give each node its own nodeId",
                        peer.id
                    ),
                ));
            }
        }
        let (answer, answered) = oneshot::channel();
        let closing = || Refusal::new(Closing, "this node is shutting down");
        let command = Command::Met { peer, answer };
        self.commands.send(command).await.map_err(|_| closing())?;
        answered.await.map_err(|_| closing())?
    }

    /// Tells JavaScript that a link is up.
    pub fn link_up(&self, link: &Link, peer: &Member) {
        let json = serde_json::json!({
            "node": peer.id,
            "incarnation": peer.incarnation.to_string(),
            "accepted": link.side == Side::Acceptor,
        });
        self.inbox
            .push(kind::LINK_UP, link.id, 0, json.to_string().as_bytes());
    }

    /// Tells JavaScript that a link is down.
    pub fn link_down(&self, link: &Link, reason: &str) {
        let json = serde_json::json!({
            "node": link.peer,
            "accepted": link.side == Side::Acceptor,
            "reason": reason,
        });
        self.inbox
            .push(kind::LINK_DOWN, link.id, 0, json.to_string().as_bytes());
    }

    /// Spawns a task of this node.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }
}

/// Whether a peer answers a ping within a second.
async fn answers(link: &Link) -> bool {
    use crate::link::frame::Frame;
    let heard = link.traffic.heard.load(Ordering::Relaxed);
    for _ in 0..20 {
        link.control(&Frame::Ping(0));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
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
