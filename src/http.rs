//! An HTTP listener beside the application and off its thread: it reads requests and writes answers
//! here, asks the JavaScript thread what to answer, and repeats what was answered a moment ago.
//!
//! # Order of one request
//! 1. `serve` looks for an answer to the same request that may be repeated still ([`Remembered`]).
//! 2. Otherwise the whole request goes out as an [`Event`], and the connection waits.
//! 3. [`Server::answer`] ends it, or [`Server::open`] starts an answer that goes on.
//!
//! Only what is read may be repeated; a request that changes something makes all of it forgotten.
//! Nothing is repeated beyond its time: where the JavaScript thread stands still, so do its answers,
//! which is what a probe is to notice.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest body that is read; a document's name is the longest thing in one.
const MAX_BODY: usize = 64 * 1024;

/// Longest head: a name of a few thousand characters is three times as long in a path.
const MAX_HEAD: usize = 32 * 1024;

/// So much of a longer body is read past: a connection that is closed before it can be reset, and
/// the answer with it.
const READ_PAST: usize = 1024 * 1024;

/// A head or a body that is not there by then is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at once; others wait until one of them ends.
const CONNECTIONS: usize = 1_024;

/// Answers kept at once, and bytes of them.
const REMEMBERED: usize = 1_024;
const REMEMBERED_BYTES: usize = 4 * 1024 * 1024;

/// Requests that JavaScript has yet to hear of; others are told to come again. More than there are
/// connections only where it stands still and they are given up.
const UNHEARD: usize = 1_024;

/// What an answer may depend on, beside method and target.
const TOLD: [&str; 5] = [
    "host",
    "authorization",
    "origin",
    "content-type",
    "sec-fetch-site",
];

/// What there is to say.
#[derive(Debug)]
pub enum Event {
    /// A request waits for its answer.
    Asked(Asked, Sent, Told),
    /// The reader of an answer that goes on is gone.
    Closed(u32),
}

/// Counts what was told and has not been heard: to be dropped by whoever hears it.
#[derive(Debug)]
pub struct Told(Arc<AtomicUsize>);

impl Told {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Head of a request.
#[derive(Debug, Clone, Serialize, PartialEq, Eq, Hash)]
pub struct Asked {
    /// By which it is answered.
    pub id: u32,
    /// `GET`.
    pub method: String,
    /// Path and query as they were sent.
    pub url: String,
    /// The first of each of [`TOLD`], as Latin-1.
    pub headers: Vec<(&'static str, String)>,
}

/// Body of a request.
#[derive(Debug)]
pub enum Sent {
    /// All of it; of what only reads, nothing.
    Whole(Bytes),
    /// It is longer than is read.
    TooLong,
}

/// Head of an answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Head {
    /// 200.
    pub status: u16,
    /// Lower case or not.
    pub headers: HashMap<String, String>,
    /// Milliseconds for which the same request may be answered the same; none: 0.
    #[serde(default)]
    pub fresh: f64,
}

enum Answer {
    Whole(Head, Bytes),
    Stream(Head, Feed),
}

/// What makes requests the same.
type Key = (String, String, Vec<(&'static str, String)>);

/// Answers that may be repeated.
#[derive(Default)]
struct Remembered {
    /// Rises with each change: what was asked before one is not repeated after it.
    changes: u64,
    answers: HashMap<Key, (Instant, Head, Bytes)>,
    /// Of bodies, and of what they answer.
    bytes: usize,
}

fn weight((method, url, headers): &Key, body: &Bytes) -> usize {
    let told = headers.iter().map(|(_, value)| value.len());
    method.len() + url.len() + told.sum::<usize>() + body.len()
}

impl Remembered {
    fn find(&self, key: &Key, now: Instant) -> Option<(Head, Bytes)> {
        let (until, head, body) = self.answers.get(key)?;
        (now < *until).then(|| (head.clone(), body.clone()))
    }

    fn keep(&mut self, key: Key, changes: u64, now: Instant, head: &Head, body: &Bytes) {
        if changes != self.changes || head.fresh <= 0.0 {
            return;
        }
        let bytes = weight(&key, body);
        if !self.has_room_for(bytes) {
            self.answers.retain(|_, (until, ..)| now < *until);
            let answers = self.answers.iter();
            self.bytes = answers.map(|(key, (.., body))| weight(key, body)).sum();
        }
        // Many that are fresh at once: those that differ are asked for anew.
        if self.has_room_for(bytes) {
            // More than a day is a mistake, and could be more than a clock can count.
            let fresh = Duration::from_secs_f64((head.fresh / 1e3).min(86_400.0));
            let answer = (now + fresh, head.clone(), body.clone());
            let former = self.answers.get(&key);
            let former = former.map_or(0, |(.., body)| weight(&key, body));
            self.bytes = self.bytes + bytes - former;
            self.answers.insert(key, answer);
        }
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.answers.len() < REMEMBERED && self.bytes + bytes <= REMEMBERED_BYTES
    }

    fn forget(&mut self) {
        self.changes += 1;
        self.answers.clear();
        self.bytes = 0;
    }
}

/// A request that waits for its answer.
struct Waiting {
    answer: oneshot::Sender<Answer>,
    connection: CancellationToken,
}

/// An answer that goes on.
struct Stream {
    chunks: mpsc::UnboundedSender<Bytes>,
    /// Bytes that were not taken yet.
    backlog: Arc<AtomicUsize>,
    connection: CancellationToken,
}

struct Shared {
    tell: Box<dyn Fn(Event) + Send + Sync>,
    unheard: Arc<AtomicUsize>,
    last: AtomicU32,
    waiting: Mutex<HashMap<u32, Waiting>>,
    streams: Mutex<HashMap<u32, Stream>>,
    remembered: Mutex<Remembered>,
}

/// No holder panics half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One listener with its connections. Dropped, it is closed.
pub struct Server {
    shared: Arc<Shared>,
    listener: Arc<Mutex<Option<TcpListener>>>,
    address: SocketAddr,
    ended: CancellationToken,
}

impl Server {
    /// Listens; `host` `None` is every address. `tell` is called on the runtime's thread.
    ///
    /// # Errors
    /// What the system says, such as that the port is in use.
    pub fn listen(
        runtime: &Runtime,
        host: Option<IpAddr>,
        port: u16,
        tell: impl Fn(Event) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let _entered = runtime.enter();
        let listener = TcpListener::from_std(bind(host, port)?)?;
        let address = listener.local_addr()?;
        let server = Self {
            shared: Arc::new(Shared {
                tell: Box::new(tell),
                unheard: Arc::default(),
                last: AtomicU32::new(0),
                waiting: Mutex::default(),
                streams: Mutex::default(),
                remembered: Mutex::default(),
            }),
            listener: Arc::new(Mutex::new(Some(listener))),
            address,
            ended: CancellationToken::new(),
        };
        runtime.spawn(accept(
            Arc::clone(&server.listener),
            Arc::clone(&server.shared),
            server.ended.clone(),
        ));
        Ok(server)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers a request. Of no effect where it is gone.
    pub fn answer(&self, id: u32, head: Head, body: Bytes) {
        if let Some(waiting) = lock(&self.shared.waiting).remove(&id) {
            let _ = waiting.answer.send(Answer::Whole(head, body));
        }
    }

    /// Starts an answer that goes on until `end`, or until its reader is gone, which is told.
    pub fn open(&self, id: u32, head: Head) {
        let Some(waiting) = lock(&self.shared.waiting).remove(&id) else {
            return (self.shared.tell)(Event::Closed(id));
        };
        let (sender, chunks) = mpsc::unbounded_channel();
        let backlog = Arc::<AtomicUsize>::default();
        let stream = Stream {
            chunks: sender,
            backlog: Arc::clone(&backlog),
            connection: waiting.connection,
        };
        lock(&self.shared.streams).insert(id, stream);
        let feed = Feed {
            shared: Arc::clone(&self.shared),
            id,
            chunks,
            backlog,
        };
        // Where nobody waits any more it is dropped here, which says so.
        let _ = waiting.answer.send(Answer::Stream(head, feed));
    }

    /// Adds to an answer that goes on.
    pub fn write(&self, id: u32, chunk: Bytes) {
        if let Some(stream) = lock(&self.shared.streams).get(&id) {
            stream.backlog.fetch_add(chunk.len(), Ordering::Relaxed);
            let _ = stream.chunks.send(chunk);
        }
    }

    /// Bytes of an answer that its reader has not taken yet.
    #[must_use]
    pub fn backlog(&self, id: u32) -> usize {
        let streams = lock(&self.shared.streams);
        let stream = streams.get(&id);
        stream.map_or(0, |stream| stream.backlog.load(Ordering::Relaxed))
    }

    /// Ends an answer that goes on: after what was written or, `cut`, with its connection, at once.
    pub fn end(&self, id: u32, cut: bool) {
        if let Some(stream) = lock(&self.shared.streams).remove(&id)
            && cut
        {
            stream.connection.cancel();
        }
    }

    /// What was answered may be wrong by now: none of it is repeated.
    pub fn forget(&self) {
        lock(&self.shared.remembered).forget();
    }

    /// Does not listen any more when this returns, so that another can, and cuts every connection.
    pub fn close(&self) {
        drop(lock(&self.listener).take());
        self.ended.cancel();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

fn bind(host: Option<IpAddr>, port: u16) -> io::Result<std::net::TcpListener> {
    match host {
        Some(host) => bind_to(SocketAddr::new(host, port)),
        None => match bind_to(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
            // No IPv6 on this machine.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                bind_to(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
            }
            bound => bound,
        },
    }
}

/// As libuv binds: an address whose last connections linger can be had again, `::` is IPv4 as well.
fn bind_to(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(511)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn accept(
    listener: Arc<Mutex<Option<TcpListener>>>,
    shared: Arc<Shared>,
    ended: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let next = || async {
        let place = Arc::clone(&room).acquire_owned().await;
        // Locked per attempt: closing must not wait for a connection.
        let accepted = poll_fn(|context| match &*lock(&listener) {
            Some(listener) => listener.poll_accept(context),
            None => Poll::Pending,
        });
        (place, accepted.await)
    };
    loop {
        let (place, accepted) = tokio::select! {
            () = ended.cancelled() => return,
            next = next() => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, Arc::clone(&shared), ended.child_token());
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            // Out of descriptors, or gone again.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, ended: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let service = {
        let ended = ended.clone();
        service_fn(move |request| serve(request, Arc::clone(&shared), ended.clone()))
    };
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = ended.cancelled() => {}
        // What is wrong with a connection is its client's to notice.
        _ = serving => {}
    }
}

/// Why there is no answer, and the connection ends.
#[derive(Debug, thiserror::Error)]
#[error("nobody answers")]
struct Unanswered;

async fn serve(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    connection: CancellationToken,
) -> Result<Response<Content>, Unanswered> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let (method, url, headers) = key_of(&request);
    let key = (method, url, headers);
    let changes = {
        let mut remembered = lock(&shared.remembered);
        if !reads {
            remembered.forget();
        } else if let Some((head, body)) = remembered.find(&key, Instant::now()) {
            return Ok(response(&head, Content::Whole(Full::new(body))));
        }
        remembered.changes
    };
    let body = if reads {
        Sent::Whole(Bytes::new())
    } else {
        match read(request.into_body()).await {
            Ok(body) => body,
            Err(Late) => return Ok(refused(StatusCode::REQUEST_TIMEOUT)),
        }
    };
    if shared.unheard.load(Ordering::Relaxed) >= UNHEARD {
        return Ok(refused(StatusCode::SERVICE_UNAVAILABLE));
    }
    let (_question, answered) = Question::ask(&shared, &key, body, connection);
    let answer = answered.await.map_err(|_| Unanswered)?;
    if !reads {
        lock(&shared.remembered).forget();
    }
    Ok(match answer {
        Answer::Whole(head, body) => {
            if reads {
                lock(&shared.remembered).keep(key, changes, Instant::now(), &head, &body);
            }
            response(&head, Content::Whole(Full::new(body)))
        }
        Answer::Stream(head, feed) => response(&head, Content::Stream(feed)),
    })
}

fn key_of(request: &Request<Incoming>) -> Key {
    let target = request.uri().path_and_query();
    let latin = |value: &HeaderValue| value.as_bytes().iter().copied().map(char::from).collect();
    let headers = TOLD
        .iter()
        .filter_map(|&name| Some((name, latin(request.headers().get(name)?))));
    (
        request.method().as_str().to_owned(),
        target.map_or("*", |target| target.as_str()).to_owned(),
        headers.collect(),
    )
}

/// It did not come whole, or not in time.
struct Late;

async fn read(body: Incoming) -> Result<Sent, Late> {
    if body.size_hint().lower() > READ_PAST as u64 {
        return Ok(Sent::TooLong);
    }
    let whole = tokio::time::timeout(PATIENCE, read_whole(body));
    whole.await.unwrap_or(Err(Late))
}

async fn read_whole(mut body: Incoming) -> Result<Sent, Late> {
    let mut whole = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Late)?.into_data() else {
            continue;
        };
        length += data.len();
        if length <= MAX_BODY {
            whole.extend_from_slice(&data);
        } else if length > READ_PAST {
            break;
        }
    }
    Ok(if length <= MAX_BODY {
        Sent::Whole(whole.into())
    } else {
        Sent::TooLong
    })
}

fn refused(status: StatusCode) -> Response<Content> {
    let headers = HashMap::from([("connection".to_owned(), "close".to_owned())]);
    let head = Head {
        status: status.as_u16(),
        headers,
        fresh: 0.0,
    };
    response(&head, Content::Whole(Full::default()))
}

fn response(head: &Head, content: Content) -> Response<Content> {
    let mut response = Response::new(content);
    *response.status_mut() =
        StatusCode::from_u16(head.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &head.headers {
        // One that cannot be sent is ours and a constant: tests would have shown it.
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// A request that waits; dropped, it does not.
struct Question {
    shared: Arc<Shared>,
    id: u32,
}

impl Question {
    fn ask(
        shared: &Arc<Shared>,
        (method, url, headers): &Key,
        body: Sent,
        connection: CancellationToken,
    ) -> (Self, oneshot::Receiver<Answer>) {
        let id = shared.last.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&shared.waiting).insert(id, Waiting { answer, connection });
        let asked = Asked {
            id,
            method: method.clone(),
            url: url.clone(),
            headers: headers.clone(),
        };
        (shared.tell)(Event::Asked(asked, body, Told::new(&shared.unheard)));
        let shared = Arc::clone(shared);
        (Self { shared, id }, answered)
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        lock(&self.shared.waiting).remove(&self.id);
    }
}

/// Body of an answer.
enum Content {
    Whole(Full<Bytes>),
    Stream(Feed),
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Stream(feed) => feed
                .poll(context)
                .map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// What an answer that goes on is made of; dropped, its reader is gone.
struct Feed {
    shared: Arc<Shared>,
    id: u32,
    chunks: mpsc::UnboundedReceiver<Bytes>,
    backlog: Arc<AtomicUsize>,
}

impl Feed {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let chunk = self.chunks.poll_recv(context);
        if let Poll::Ready(Some(chunk)) = &chunk {
            self.backlog.fetch_sub(chunk.len(), Ordering::Relaxed);
        }
        chunk
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        lock(&self.shared.streams).remove(&self.id);
        (self.shared.tell)(Event::Closed(self.id));
    }
}
