//! Nodes on loopback, and what attacks them: a raw peer, a relay that can be cut, a fake acceptor.
//!
//! Everything waits for a condition, for [`PATIENCE`] at most.

use std::net::SocketAddr;
use std::process::Command as Process;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use serde_json::Value;
use smartroute::cluster::view::{Member, MemberState};
use smartroute::config::{HealthSettings, Settings};
use smartroute::coordinator;
use smartroute::handle::{Command, Core};
use smartroute::inbox::kind;
use smartroute::link::auth::{Dialer, Identity, Refusal};
use smartroute::link::connection::Link;
use smartroute::link::frame::{self, Frame, MAX_FRAME};
use smartroute::link::mux::Side;
#[cfg(target_os = "linux")]
use smartroute::link::readiness::Readiness;
use smartroute::link::secrets::Secrets;
use smartroute::link::upgrade::{PATH, PROTOCOL_NAME};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
#[cfg(target_os = "linux")]
use tokio::io::{Interest, unix::AsyncFd};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// A condition that takes longer will never hold.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub const SECRET: &str = "the cluster's secret";

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited too long: {what}"))
}

/// What a node told JavaScript.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Opened {
        link: u32,
        stream: u32,
    },
    Message {
        link: u32,
        stream: u32,
        kind: u8,
        bytes: Vec<u8>,
    },
    Multicast {
        link: u32,
        streams: Vec<u32>,
        bytes: Vec<u8>,
    },
    Closed {
        link: u32,
        stream: u32,
        code: u16,
        reason: String,
    },
    Up {
        link: u32,
        node: String,
        accepted: bool,
    },
    Down {
        link: u32,
        node: String,
        accepted: bool,
        reason: String,
    },
    /// Anything of a pipe: its number.
    Pipe(u32),
    View,
    /// A health check ended.
    Health(Value),
    Log {
        level: String,
        key: String,
        message: String,
    },
}

/// Reads the records of one drain; `src/inbox.rs` gives the format.
fn events(segment: &[u8]) -> Vec<Event> {
    let word = |at: usize| u32::from_ne_bytes(segment[at..at + 4].try_into().unwrap());
    let (mut at, mut seen) = (0, Vec::new());
    while at < segment.len() {
        let (kind, link, stream, length) = (word(at), word(at + 4), word(at + 8), word(at + 12));
        let payload = &segment[at + 16..at + 16 + length as usize];
        at += 16 + (length as usize).next_multiple_of(4);
        let json = || serde_json::from_slice::<Value>(payload).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        seen.push(match kind & 0xff {
            kind::OPENED => Event::Opened { link, stream },
            kind::MESSAGE => Event::Message {
                link,
                stream,
                kind: (kind >> 8) as u8,
                bytes: payload.to_vec(),
            },
            kind::MULTICAST => {
                let (ids, bytes) = payload.split_at(stream as usize * 4);
                let id = |id: &[u8]| u32::from_ne_bytes(id.try_into().unwrap());
                Event::Multicast {
                    link,
                    streams: ids.chunks_exact(4).map(id).collect(),
                    bytes: bytes.to_vec(),
                }
            }
            kind::CLOSED => Event::Closed {
                link,
                stream,
                code: u16::from_ne_bytes(payload[..2].try_into().unwrap()),
                reason: String::from_utf8(payload[2..].to_vec()).unwrap(),
            },
            kind::LINK_UP => Event::Up {
                link,
                node: text(&json()["node"]),
                accepted: json()["accepted"].as_bool().unwrap(),
            },
            kind::LINK_DOWN => Event::Down {
                link,
                node: text(&json()["node"]),
                accepted: json()["accepted"].as_bool().unwrap(),
                reason: text(&json()["reason"]),
            },
            kind::PIPE_OUT | kind::PIPE_CLOSE | kind::PIPE_DIAL | kind::PIPE_RESUME => {
                Event::Pipe(link)
            }
            kind::VIEW => Event::View,
            kind::HEALTH => Event::Health(json()),
            kind::LOG => Event::Log {
                level: text(&json()["level"]),
                key: text(&json()["key"]),
                message: text(&json()["message"]),
            },
            other => panic!("a record of kind {other}"),
        });
    }
    seen
}

pub fn settings() -> Settings {
    Settings {
        cluster_name: "test".into(),
        virtual_nodes: 150,
        enforce_routing: true,
        migration_timeout: 5_000,
        drain_timeout: 2_000,
        migration_concurrency: 16,
        health_check: HealthSettings {
            // Nothing is checked within a test's life, unless the test says otherwise: fake peers
            // expect links only.
            interval: u64::MAX,
            timeout: 3_000,
            retries: 3,
            backoff_multiplier: 2.0,
            max_backoff: 30_000,
            path: "/.smartroute/health".into(),
        },
        lease_duration: 14_000,
        stall_timeout: 14_000,
        ping_interval: 500,
        link_patience: 3_000,
        dial_through_pipe: false,
        cluster_tls: false,
        // tests/link_tcp_polled.rs
        sync_interval: 30_000,
        redis: None,
        shared_secret: false,
        poll_links: env!("CARGO_CRATE_NAME").ends_with("polled"),
    }
}

pub fn member(id: &str, port: u16) -> Member {
    Member {
        id: id.into(),
        incarnation: 1,
        address: "127.0.0.1".into(),
        port,
        link_port: None,
        weight: 1.0,
        state: MemberState::Active,
    }
}

/// One node: a core, its coordinator, and a public port.
pub struct Node {
    pub id: &'static str,
    pub port: u16,
    pub core: Arc<Core>,
    /// All that was drained so far.
    pub events: Vec<Event>,
    woken: Arc<Notify>,
    listener: JoinHandle<()>,
}

impl Node {
    pub async fn start(id: &'static str) -> Self {
        Self::with(id, SECRET, settings()).await
    }

    pub async fn with(id: &'static str, secret: &str, settings: Settings) -> Self {
        Self::seeded(id, secret, settings, &[]).await
    }

    /// A node with entries in `clusterNodes`.
    pub async fn seeded(
        id: &'static str,
        secret: &str,
        settings: Settings,
        seeds: &[(&str, u16)],
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = member(id, port);
        let runtime = tokio::runtime::Handle::current();
        let (core, commands) = Core::new(settings, own.clone(), Secrets::new([secret]), runtime);
        let woken = Arc::new(Notify::new());
        let wake = Arc::clone(&woken);
        core.inbox.on_wake(move || wake.notify_one());
        #[cfg(target_os = "linux")]
        if core.settings.poll_links {
            let readiness = Arc::new(Readiness::new().unwrap());
            core.readiness.set(Arc::clone(&readiness)).unwrap();
            tokio::spawn(poll(Arc::clone(&core), readiness, Arc::clone(&woken)));
        }
        tokio::spawn(coordinator::run(Arc::clone(&core), commands));
        for (seed, port) in seeds {
            core.request(Command::Add(member(seed, *port))).unwrap();
        }
        let listening = true;
        core.request(Command::Announce { own, listening }).unwrap();
        let listener = tokio::spawn(serve(listener, Arc::clone(&core)));
        Self {
            id,
            port,
            core,
            events: Vec::new(),
            woken,
            listener,
        }
    }

    /// Names another node as an entry of `clusterNodes` does.
    pub fn knows(&self, id: &str, port: u16) {
        self.core.request(Command::Add(member(id, port))).unwrap();
    }

    /// Takes what waits.
    pub fn drain(&mut self) {
        while let Some(segment) = self.core.inbox.drain(usize::MAX).records() {
            self.events.extend(events(&segment));
        }
    }

    /// Waits until `find` answers from the events so far.
    pub async fn until<T>(&mut self, what: &str, mut find: impl FnMut(&[Event]) -> Option<T>) -> T {
        let searching = async {
            loop {
                self.drain();
                if let Some(found) = find(&self.events) {
                    return found;
                }
                self.woken.notified().await;
            }
        };
        match timeout(PATIENCE, searching).await {
            Ok(found) => found,
            Err(_) => panic!("{} waited too long: {what}; {}", self.id, self.tail()),
        }
    }

    /// Waits until an event is `wanted`.
    pub async fn sees(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        self.until(what, |events| events.iter().find(|e| wanted(e)).cloned())
            .await
    }

    /// Waits until the link this node dials to `peer` is up.
    pub async fn dialed(&mut self, peer: &str) -> Arc<Link> {
        let core = Arc::clone(&self.core);
        self.until(&format!("a link to {peer}"), |_| {
            core.links()
                .into_iter()
                .find(|link| link.side == Side::Dialer && link.peer == peer && link.is_up())
        })
        .await
    }

    /// Waits until the link that `peer` dials to this node is up.
    pub async fn accepted(&mut self, peer: &str) -> Arc<Link> {
        let core = Arc::clone(&self.core);
        self.until(&format!("a link from {peer}"), |_| {
            core.links()
                .into_iter()
                .find(|link| link.side == Side::Acceptor && link.peer == peer && link.is_up())
        })
        .await
    }

    /// Waits until so many handshakes were refused here.
    pub async fn refused(&mut self, count: u64) {
        use std::sync::atomic::Ordering::Relaxed;
        let core = Arc::clone(&self.core);
        let what = format!("{count} refused handshakes");
        self.until(&what, |_| {
            (core.refused.load(Relaxed) >= count).then_some(())
        })
        .await;
        assert_eq!(self.core.refused.load(Relaxed), count);
    }

    /// No stream was opened at this node and no link accepted.
    pub fn untouched(&self) {
        for event in &self.events {
            assert!(
                !matches!(
                    event,
                    Event::Opened { .. } | Event::Message { .. } | Event::Up { accepted: true, .. }
                ),
                "{event:?}"
            );
        }
    }

    /// The identity of this node, to be forged.
    pub fn identity(&self) -> Identity {
        (**self.core.identity.load()).clone()
    }

    /// The last events, without the bulk of them.
    fn tail(&self) -> String {
        let tail = &self.events[self.events.len().saturating_sub(8)..];
        let clipped = tail.iter().cloned().map(|mut event| {
            if let Event::Message { bytes, .. } | Event::Multicast { bytes, .. } = &mut event {
                bytes.truncate(8);
            }
            event
        });
        format!("{:?}", clipped.collect::<Vec<_>>())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.core.stop.cancel();
        self.listener.abort();
    }
}

/// The event loop's part: level-triggered, as libuv's, on top of tokio's edges.
#[cfg(target_os = "linux")]
async fn poll(core: Arc<Core>, readiness: Arc<Readiness>, woken: Arc<Notify>) {
    struct Set(Arc<Readiness>);
    impl std::os::fd::AsRawFd for Set {
        fn as_raw_fd(&self) -> std::os::fd::RawFd {
            self.0.descriptor()
        }
    }
    // SAFETY: the set owns its descriptor for as long as it lives.
    let set = unsafe { AsyncFd::register_with_interest(Set(readiness), Interest::READABLE) };
    let set = set.unwrap();
    let polling = async {
        loop {
            // First, so that what becomes ready while reading is an edge again.
            set.readable().await.unwrap().clear_ready();
            while !set.get_ref().0.ready().is_empty() {
                if core.read_ready() {
                    woken.notify_one();
                }
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::select! {
        () = core.stop.cancelled() => {}
        () = polling => {}
    }
}

/// The shim's part: reads the request head, hands the socket over with what came after it.
async fn serve(listener: TcpListener, core: Arc<Core>) {
    let mut requests = JoinSet::new();
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        let core = Arc::clone(&core);
        requests.spawn(async move {
            let mut head = BytesMut::new();
            loop {
                let mut headers = [httparse::EMPTY_HEADER; 32];
                let mut request = httparse::Request::new(&mut headers);
                match request.parse(&head) {
                    Ok(httparse::Status::Complete(length)) => {
                        let ours = request.path == Some(PATH)
                            && request.headers.iter().any(|header| {
                                header.name.eq_ignore_ascii_case("upgrade")
                                    && header.value == PROTOCOL_NAME.as_bytes()
                            });
                        if ours {
                            let socket = socket.into_std().unwrap();
                            core.accept_tcp(socket, &head[length..]).unwrap();
                        } else {
                            let _ = socket.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").await;
                        }
                        return;
                    }
                    Ok(httparse::Status::Partial) if head.len() < 16 * 1024 => {}
                    _ => return,
                }
                if socket.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        });
        while requests.try_join_next().is_some() {}
    }
}

pub fn upgrade_request() -> Vec<u8> {
    format!(
        "GET {PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL_NAME}\r\n\r\n"
    )
    .into()
}

pub const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: smartroute\r\n\r\n";

pub fn encoded(frames: &[Frame<'_>]) -> BytesMut {
    let mut out = BytesMut::new();
    for frame in frames {
        frame::encode(frame, &mut out);
    }
    out
}

/// A peer that does as it is told, with a socket of its own.
pub struct Raw {
    pub socket: TcpStream,
    pub buffer: BytesMut,
}

impl Raw {
    /// Connects and gets through the HTTP part.
    pub async fn upgraded(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut raw = Self::over(socket);
        raw.write(&upgrade_request()).await;
        raw.head().await;
        raw
    }

    pub fn over(socket: TcpStream) -> Self {
        socket.set_nodelay(true).unwrap();
        let buffer = BytesMut::new();
        Self { socket, buffer }
    }

    /// Gets through the handshake as `identity`.
    pub async fn linked(port: u16, identity: &Identity, to: &str) -> Result<Self, Refusal> {
        let mut raw = Self::upgraded(port).await;
        raw.shake(identity, to).await.map(|()| raw)
    }

    pub async fn shake(&mut self, identity: &Identity, to: &str) -> Result<(), Refusal> {
        let dialer = Dialer::new(identity, to, rand::random());
        self.frames(&[Frame::Hello(dialer.hello())]).await;
        let body = self.frame().await.expect("an answer to HELLO");
        let proof = match frame::decode(&body).unwrap() {
            Frame::Challenge(body) => dialer.answer(body)?.1,
            Frame::Refuse(json) => return Err(serde_json::from_slice(json).unwrap()),
            other => panic!("{other:?} after HELLO"),
        };
        self.frames(&[Frame::Auth(&proof)]).await;
        let body = self.frame().await.expect("an answer to AUTH");
        match frame::decode(&body).unwrap() {
            Frame::Ready => Ok(()),
            Frame::Refuse(json) => Err(serde_json::from_slice(json).unwrap()),
            other => panic!("{other:?} after AUTH"),
        }
    }

    /// Writes; a peer that has hung up already is no failure of the test.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = within("a write", self.socket.write_all(bytes)).await;
    }

    pub async fn frames(&mut self, frames: &[Frame<'_>]) {
        self.write(&encoded(frames)).await;
    }

    /// Reads up to the end of an HTTP head.
    pub async fn head(&mut self) -> Vec<u8> {
        loop {
            let end = self.buffer.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                return self.buffer.split_to(end + 4).to_vec();
            }
            assert_ne!(self.read().await, 0, "an HTTP head");
        }
    }

    /// The next frame's body; `None` where the connection ended instead.
    pub async fn frame(&mut self) -> Option<BytesMut> {
        loop {
            if let Some(body) = frame::split(&mut self.buffer, MAX_FRAME).unwrap() {
                return Some(body);
            }
            if self.read().await == 0 {
                return None;
            }
        }
    }

    /// Waits for the end of the connection; the refusal that came before it, if any.
    pub async fn closed(&mut self) -> Option<Refusal> {
        let mut refusal = None;
        while let Some(body) = self.frame().await {
            if let Ok(Frame::Refuse(json)) = frame::decode(&body) {
                refusal = Some(serde_json::from_slice(json).unwrap());
            }
        }
        refusal
    }

    async fn read(&mut self) -> usize {
        let read = self.socket.read_buf(&mut self.buffer);
        // A reset is an end, too.
        within("bytes or the end", read).await.unwrap_or(0)
    }
}

/// A TCP relay in front of a node: records what the dialer and the acceptor said, and can be cut.
pub struct Relay {
    pub port: u16,
    /// Bytes of the first connection, from the dialer and from the acceptor.
    pub recorded: Arc<Mutex<(Vec<u8>, Vec<u8>)>>,
    /// Whether connections pass; those that do end when this turns false.
    passing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let recorded = Arc::new(Mutex::default());
        let (passing, pass) = watch::channel(true);
        let task = tokio::spawn(relay(listener, port, Arc::clone(&recorded), pass));
        Self {
            port: own,
            recorded,
            passing,
            task,
        }
    }

    pub fn cut(&self) {
        self.passing.send_replace(false);
    }

    pub fn mend(&self) {
        self.passing.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    listener: TcpListener,
    port: u16,
    recorded: Arc<Mutex<(Vec<u8>, Vec<u8>)>>,
    pass: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut first = true;
    loop {
        let (mut dialer, _) = listener.accept().await.unwrap();
        let record = std::mem::take(&mut first).then(|| Arc::clone(&recorded));
        let mut pass = pass.clone();
        connections.spawn(async move {
            if !*pass.borrow() {
                return;
            }
            let Ok(mut acceptor) = TcpStream::connect(("127.0.0.1", port)).await else {
                return;
            };
            let (mut there, mut back) = ([0; 16 * 1024], [0; 16 * 1024]);
            loop {
                tokio::select! {
                    () = async { drop(pass.wait_for(|passing| !passing).await) } => return,
                    count = dialer.read(&mut there) => {
                        let Ok(count @ 1..) = count else { return };
                        if let Some(record) = &record {
                            record.lock().unwrap().0.extend_from_slice(&there[..count]);
                        }
                        if acceptor.write_all(&there[..count]).await.is_err() { return }
                    }
                    count = acceptor.read(&mut back) => {
                        let Ok(count @ 1..) = count else { return };
                        if let Some(record) = &record {
                            record.lock().unwrap().1.extend_from_slice(&back[..count]);
                        }
                        if dialer.write_all(&back[..count]).await.is_err() { return }
                    }
                }
            }
        });
    }
}

/// A listener whose connections the test answers itself.
pub struct Fake {
    listener: TcpListener,
    pub port: u16,
}

impl Fake {
    pub async fn bind() -> Self {
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    pub async fn accept(&self) -> Raw {
        let (socket, _) = within("a dialer", self.listener.accept()).await.unwrap();
        Raw::over(socket)
    }

    /// Accepts, and reads the upgrade request.
    pub async fn requested(&self) -> Raw {
        let mut raw = self.accept().await;
        let head = raw.head().await;
        assert!(head.starts_with(b"GET /.smartroute/link HTTP/1.1\r\n"));
        raw
    }
}

/// Whether this process runs nothing but the test `name`. If not, runs it in one of its own, where
/// no other test moves its memory.
pub fn alone(name: &str) -> bool {
    const MARK: &str = "SMARTROUTE_TEST_ALONE";
    if std::env::var_os(MARK).is_some_and(|value| value == name) {
        return true;
    }
    let output = Process::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(MARK, name)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

/// Resident memory of this process in bytes; 0 where the system does not tell.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok())
        .unwrap_or(0)
        * 1024
}

/// Descriptors open in this process; 0 where the system does not tell.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
