//! One link: its streams, its socket when there is one, and the task that reads it.
//!
//! The JavaScript thread writes straight to the socket while it takes bytes, and reads it where
//! its event loop can watch it (see [`super::readiness`]); what it does not take, what it has no
//! time to read, and everything it does not own, is the task's.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
#[cfg(target_os = "linux")]
use tokio::io::Interest;
#[cfg(target_os = "linux")]
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::auth::{Refusal, RefusalCode};
use super::frame::{self, Frame, FrameError, MAX_FRAME, clip};
use super::mux::{Mux, OUT_HIGH, Side, Sink, Violation, close};
use super::pipe::{Pipe, PipeGuard};
#[cfg(target_os = "linux")]
use super::readiness::Readiness;
use crate::handle::Command;
use crate::inbox::{Inbox, LinkSink};

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer closed the socket.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer sent something that is no frame.
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    /// The peer sent a frame out of turn.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    /// The peer closed it and says why.
    #[error("closed by the peer: {0}")]
    Refused(String),
    /// The peer's node leaves the cluster.
    #[error("the node leaves")]
    Leaving,
    /// Nothing was heard for too long.
    #[error("nothing heard for {} ms", .0.as_millis())]
    Silent(Duration),
    /// This node closed it.
    #[error("closed by this node")]
    Shutdown,
}

/// Room for one read.
const READ: usize = 32 * 1024;

/// When to ask a peer whether it is there, and when to stop waiting.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    /// Time between pings.
    pub interval: Duration,
    /// A link on which nothing came for so long is lost.
    pub patience: Duration,
}

/// The readable half of a socket.
#[derive(Debug)]
pub enum Reader {
    /// tokio owns the descriptor.
    Tcp(OwnedReadHalf),
    /// JavaScript owns the socket.
    Pipe(Arc<Pipe>),
}

impl Reader {
    /// Reads once into the buffer; 0 at the end.
    ///
    /// # Errors
    /// The socket's.
    pub async fn read_buf(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            // OwnedReadHalf rather than try_read: a short read then needs no second system call.
            Self::Tcp(half) => half.read_buf(buffer).await,
            Self::Pipe(pipe) => pipe.read_buf(buffer).await,
        }
    }
}

/// The writable half of a socket.
#[derive(Debug)]
pub enum Writer {
    /// tokio owns the descriptor.
    Tcp(OwnedWriteHalf),
    /// JavaScript owns the socket.
    Pipe(PipeGuard),
    /// The JavaScript thread reads the socket: tokio only hears when it takes bytes again.
    #[cfg(target_os = "linux")]
    Shared(AsyncFd<std::net::TcpStream>),
}

impl Writer {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write(bytes),
            #[cfg(target_os = "linux")]
            Self::Shared(socket) => io::Write::write(&mut socket.get_ref(), bytes),
            Self::Pipe(pipe) => pipe.0.try_write(bytes),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.writable().await,
            Self::Pipe(pipe) => {
                pipe.0.writable().await;
                Ok(())
            }
            #[cfg(target_os = "linux")]
            Self::Shared(socket) => loop {
                let mut guard = socket.writable().await?;
                // Writing happens elsewhere, so the guard does not know whether its news is old.
                if takes_bytes(socket.get_ref())? {
                    return Ok(());
                }
                guard.clear_ready();
            },
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The socket's.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn takes_bytes(socket: &std::net::TcpStream) -> io::Result<bool> {
    let mut asked = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(socket),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid entry; a timeout of 0 never blocks.
    match unsafe { libc::poll(&raw mut asked, 1, 0) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready > 0),
    }
}

/// Splits a socket of either kind.
#[must_use]
pub fn split_tcp(stream: TcpStream) -> (Reader, Writer) {
    // Frames are written once per event-loop turn; Nagle would only add delay.
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    (Reader::Tcp(read), Writer::Tcp(write))
}

/// Splits a pipe.
#[must_use]
pub fn split_pipe(pipe: Arc<Pipe>) -> (Reader, Writer) {
    (
        Reader::Pipe(Arc::clone(&pipe)),
        Writer::Pipe(PipeGuard(pipe)),
    )
}

/// Counters of a link since the node started.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes read from the peer.
    pub bytes_in: AtomicU64,
    /// Bytes written to the peer.
    pub bytes_out: AtomicU64,
    /// Frames read from the peer.
    pub frames_in: AtomicU64,
    /// Messages handed over for the peer; a long one crosses in several frames.
    pub frames_out: AtomicU64,
    /// Last measured round trip in microseconds; 0 before the first.
    pub rtt: AtomicU64,
    /// Milliseconds on the core's clock when anything was last heard; 0 before the first.
    pub heard: AtomicU64,
}

/// One link, dialed or accepted.
#[derive(Debug)]
pub struct Link {
    /// Its number in records to and from JavaScript.
    pub id: u32,
    /// Id of the node at the other end.
    pub peer: String,
    /// Which end this is.
    pub side: Side,
    /// Process of that node that was met last; 0 before the first.
    pub incarnation: AtomicU64,
    /// Counters.
    pub traffic: Traffic,
    /// Ends this link; cancelled with its node, too.
    pub stop: CancellationToken,
    /// The node leaves its cluster: links that end say so.
    leaving: Arc<AtomicBool>,
    inbox: Arc<Inbox>,
    /// Where gossip goes, and word of the link's being up or down.
    coordinator: mpsc::Sender<Command>,
    started: Instant,
    // std's Mutex: the JavaScript thread and the link's task take turns; held for encoding and one
    // non-blocking write, never across an await.
    state: Mutex<State>,
    /// The socket is full: the task waits for it to take bytes.
    blocked: Notify,
    // std's Mutex: contended only when the task reads in the place of a JavaScript thread that
    // does not come; held for one non-blocking read and what it brought. Taken before `state`.
    #[cfg(target_os = "linux")]
    shared: Mutex<Option<Shared>>,
    /// A shared socket failed, or sent what is no frame.
    #[cfg(target_os = "linux")]
    failed: Notify,
}

#[derive(Debug)]
struct State {
    mux: Mux,
    writer: Option<Arc<Writer>>,
    /// No socket comes any more: whoever found the link before it was removed opens nothing on it.
    abandoned: bool,
}

/// The reading side of a socket that the JavaScript thread reads.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Shared {
    writer: Arc<Writer>,
    readiness: Arc<Readiness>,
    /// What was read and is no whole frame yet.
    buffer: BytesMut,
    /// Why nothing more is read.
    error: Option<LinkError>,
}

#[cfg(target_os = "linux")]
impl Shared {
    fn socket(&self) -> Option<&std::net::TcpStream> {
        match &*self.writer {
            Writer::Shared(socket) => Some(socket.get_ref()),
            _ => None,
        }
    }

    /// Reads once. `None` where nothing waits.
    fn read(&mut self) -> Result<Option<usize>, LinkError> {
        self.buffer.reserve(READ);
        let room = self.buffer.spare_capacity_mut();
        let Writer::Shared(socket) = &*self.writer else {
            return Ok(None);
        };
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(socket.get_ref());
        // SAFETY: `room` is writable for its length, and recv writes no more than that.
        let count = unsafe { libc::recv(descriptor, room.as_mut_ptr().cast(), room.len(), 0) };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error.into()),
            };
        };
        if count == 0 {
            return Err(LinkError::Closed);
        }
        // SAFETY: recv has written the first `count` bytes.
        unsafe { self.buffer.set_len(self.buffer.len() + count) };
        Ok(Some(count))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(socket) = self.socket() {
            self.readiness.remove(socket);
        }
    }
}

/// How a link is served; the same for all of a node.
#[derive(Debug, Clone)]
pub struct Service {
    /// How it is noticed that the peer is gone.
    pub keep_alive: KeepAlive,
    /// Where the JavaScript thread looks for sockets to read, if it can.
    #[cfg(target_os = "linux")]
    pub readiness: Option<Arc<Readiness>>,
}

/// Who reads a link's socket.
#[derive(Debug)]
enum Source {
    /// The link's task.
    Task(Reader, BytesMut),
    /// The JavaScript thread.
    #[cfg(target_os = "linux")]
    JavaScript,
}

impl Link {
    /// A link without a socket.
    #[must_use]
    #[allow(clippy::too_many_arguments)] // one caller, `Core::add_link`
    pub fn new(
        id: u32,
        peer: String,
        side: Side,
        inbox: Arc<Inbox>,
        coordinator: mpsc::Sender<Command>,
        started: Instant,
        stop: CancellationToken,
        leaving: Arc<AtomicBool>,
    ) -> Self {
        Self {
            id,
            peer,
            side,
            incarnation: AtomicU64::new(0),
            traffic: Traffic::default(),
            stop,
            leaving,
            inbox,
            coordinator,
            started,
            state: Mutex::new(State {
                mux: Mux::new(side),
                writer: None,
                abandoned: false,
            }),
            blocked: Notify::new(),
            #[cfg(target_os = "linux")]
            shared: Mutex::new(None),
            #[cfg(target_os = "linux")]
            failed: Notify::new(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Mux has no invariant that a panic between two of its statements could break for memory
        // safety; a wrong credit is caught as a violation by the peer.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream; it waits where the link is down, and is closed at once where that was removed.
    pub fn open(&self, stream: u32) {
        let now = self.now();
        let mut sink = LinkSink::new(&self.inbox, self.id);
        let mut state = self.lock();
        if state.abandoned {
            let reason = format!("SmartRoute: {} left, reconnect", self.peer);
            sink.closed(stream, close::UNAVAILABLE, &reason);
        } else {
            state.mux.open(stream, now);
        }
    }

    /// Sends a message on a stream. Call [`Link::flush`] after the last one of a turn.
    pub fn send(&self, stream: u32, kind: u8, bytes: &[u8]) {
        let mut sink = LinkSink::new(&self.inbox, self.id);
        self.traffic.frames_out.fetch_add(1, Ordering::Relaxed);
        self.lock().mux.send(stream, kind, bytes, &mut sink);
    }

    /// Sends one message to several streams.
    pub fn multicast(&self, streams: &[u32], bytes: &[u8]) {
        let mut sink = LinkSink::new(&self.inbox, self.id);
        self.traffic.frames_out.fetch_add(1, Ordering::Relaxed);
        self.lock().mux.multicast(streams, bytes, &mut sink);
    }

    /// Ends a stream.
    pub fn close(&self, stream: u32, code: u16, reason: &str) {
        self.lock().mux.close(stream, code, reason);
    }

    /// The reader of a stream is slow, or keeps up again.
    pub fn pause(&self, stream: u32, paused: bool) {
        let mut state = self.lock();
        state.mux.pause(stream, paused);
        self.write_out(&mut state);
    }

    /// Appends a frame that belongs to no stream, and writes.
    pub fn control(&self, frame: &Frame<'_>) {
        self.traffic.frames_out.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        state.mux.control(frame);
        self.write_out(&mut state);
    }

    /// Sends a message of the membership protocol. Dropped where the link is down or where twice a
    /// full buffer waits for the socket: the protocol repeats what matters. Whether it is on its way.
    pub fn gossip(&self, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        if state.writer.is_none() || state.mux.out().len() > 2 * OUT_HIGH {
            return false;
        }
        self.traffic.frames_out.fetch_add(1, Ordering::Relaxed);
        state.mux.control(&Frame::Gossip(bytes));
        self.write_out(&mut state);
        true
    }

    /// Tells the coordinator; what it has no room for is dropped, and found out or repeated later.
    fn tell(&self, command: Command) {
        let _ = self.coordinator.try_send(command);
    }

    /// Ends the streams that have waited for the link since before `oldest`.
    pub fn expire(&self, patience: Duration, reason: &str) {
        let Some(oldest) = self.now().checked_sub(patience) else {
            return;
        };
        let mut sink = LinkSink::new(&self.inbox, self.id);
        self.lock().mux.expire(oldest, reason, &mut sink);
    }

    /// Ends every stream, whether or not the peer knew of it, and takes no other.
    pub fn abandon(&self, reason: &str) {
        self.stop_reading();
        let mut sink = LinkSink::new(&self.inbox, self.id);
        let mut state = self.lock();
        state.abandoned = true;
        state.writer = None;
        state.mux.disconnect(reason, &mut sink);
        state.mux.expire(Duration::MAX, reason, &mut sink);
    }

    /// Writes what the socket takes.
    pub fn flush(&self) {
        self.write_out(&mut self.lock());
    }

    fn write_out(&self, state: &mut State) {
        let Some(writer) = &state.writer else {
            return;
        };
        while !state.mux.out().is_empty() {
            match writer.try_write(state.mux.out()) {
                Ok(count) if count > 0 => {
                    self.traffic
                        .bytes_out
                        .fetch_add(count as u64, Ordering::Relaxed);
                    state.mux.wrote(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked.notify_one();
                    return;
                }
                // The reader sees the same failure and ends the link.
                _ => return,
            }
        }
    }

    /// Whether the link has a socket.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.lock().writer.is_some()
    }

    /// Streams open on the link, bytes that wait to be written, times a stream had no credit.
    #[must_use]
    pub fn load(&self) -> (usize, usize, u64) {
        let state = self.lock();
        (state.mux.len(), state.mux.backlog(), state.mux.stalls)
    }

    /// Serves the link over a socket that has passed the handshake, until it fails or
    /// [`Link::stop`] is cancelled. `buffer` holds what was read past the handshake.
    ///
    /// # Errors
    /// Why it ended, always.
    pub async fn run(
        &self,
        reader: Reader,
        writer: Writer,
        mut buffer: BytesMut,
        service: &Service,
    ) -> LinkError {
        let keep_alive = service.keep_alive;
        let (reader, writer) = match share(reader, writer, service) {
            Ok(halves) => halves,
            Err(error) => return error.into(),
        };
        let writer = Arc::new(writer);
        {
            let mut state = self.lock();
            state.writer = Some(Arc::clone(&writer));
            state.mux.connect();
            self.write_out(&mut state);
        }
        self.heard();
        self.tell(Command::Links);
        if let Err(error) = self.receive(&mut buffer) {
            return self.lost(error);
        }
        let mut source = match self.source(reader, &writer, buffer, service) {
            Ok(source) => source,
            Err(error) => return self.lost(error.into()),
        };
        let mut ticks = interval_at(Instant::now() + keep_alive.interval, keep_alive.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Reading goes on while the socket is full: two full peers would wait for each other.
        let mut full = false;
        let error = loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break LinkError::Shutdown,
                read = self.read(&mut source) => if let Err(error) = read {
                    break error;
                },
                () = self.blocked.notified(), if !full => full = true,
                writable = writer.writable(), if full => {
                    if let Err(error) = writable {
                        break error.into();
                    }
                    full = false;
                    self.flush();
                }
                _ = ticks.tick() => {
                    // A JavaScript thread that is stuck must not look like a dead peer, nor this
                    // node like one to its peer.
                    self.read_now();
                    if self.inbox.is_full() {
                        self.heard();
                    }
                    if self.silence() > keep_alive.patience {
                        break LinkError::Silent(keep_alive.patience);
                    }
                    self.control(&Frame::Ping(self.now().as_micros() as u64));
                }
            }
        };
        self.lost(error)
    }

    fn source(
        &self,
        reader: Option<Reader>,
        writer: &Arc<Writer>,
        buffer: BytesMut,
        service: &Service,
    ) -> io::Result<Source> {
        if let Some(reader) = reader {
            return Ok(Source::Task(reader, buffer));
        }
        #[cfg(target_os = "linux")]
        if let Some(readiness) = &service.readiness {
            let shared = Shared {
                writer: Arc::clone(writer),
                readiness: Arc::clone(readiness),
                buffer,
                error: None,
            };
            let mut place = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            let shared = place.insert(shared);
            if let Some(socket) = shared.socket() {
                shared.readiness.add(self.id, socket)?;
            }
            return Ok(Source::JavaScript);
        }
        let _ = (writer, service);
        unreachable!("a socket without a reader is a shared one")
    }

    /// Waits for bytes and handles them; where JavaScript reads, for its failure.
    async fn read(&self, source: &mut Source) -> Result<(), LinkError> {
        match source {
            Source::Task(reader, buffer) => {
                self.inbox.room().await;
                // One turn of a busy peer fits: short reads cost a system call each.
                buffer.reserve(READ);
                let count = reader.read_buf(buffer).await?;
                if count == 0 {
                    return Err(LinkError::Closed);
                }
                self.arrived(count);
                self.receive(buffer)
            }
            #[cfg(target_os = "linux")]
            Source::JavaScript => {
                self.failed.notified().await;
                let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
                // Without an error the notification is left from an earlier socket of this link.
                let error = shared.as_mut().and_then(|shared| shared.error.take());
                error.map_or(Ok(()), Err)
            }
        }
    }

    /// Reads what has arrived on a shared socket, once: more is left for the next turn. Nothing
    /// where the link's task reads, or while JavaScript has enough to do.
    #[cfg(target_os = "linux")]
    pub fn read_now(&self) {
        let mut place = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(shared) = place.as_mut() else {
            return;
        };
        if shared.error.is_some() || self.inbox.is_full() {
            return;
        }
        let result = match shared.read() {
            Ok(None) => return,
            Ok(Some(count)) => {
                self.arrived(count);
                self.receive(&mut shared.buffer)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            if let Some(socket) = shared.socket() {
                shared.readiness.remove(socket);
            }
            shared.error = Some(error);
            self.failed.notify_one();
        }
    }

    /// There is nothing that JavaScript reads.
    #[cfg(not(target_os = "linux"))]
    pub fn read_now(&self) {}

    fn arrived(&self, count: usize) {
        self.traffic
            .bytes_in
            .fetch_add(count as u64, Ordering::Relaxed);
        self.heard();
    }

    fn heard(&self) {
        // At least 1: 0 stands for never.
        let now = (self.now().as_millis() as u64).max(1);
        self.traffic.heard.store(now, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        let heard = Duration::from_millis(self.traffic.heard.load(Ordering::Relaxed));
        self.now().saturating_sub(heard)
    }

    /// Comes first where a socket ends, so that a read on the JavaScript thread is over and none
    /// follows: what it brought would belong to streams that are gone. And a socket that is watched
    /// and not read would keep its event loop spinning, however long others hold the link.
    fn stop_reading(&self) {
        #[cfg(target_os = "linux")]
        self.shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    fn lost(&self, error: LinkError) -> LinkError {
        self.stop_reading();
        let mut sink = LinkSink::new(&self.inbox, self.id);
        let mut state = self.lock();
        let refusal = match &error {
            LinkError::Frame(_) | LinkError::Violation(_) => {
                Some(Refusal::new(RefusalCode::Malformed, error.to_string()))
            }
            LinkError::Shutdown if self.leaving.load(Ordering::Relaxed) => {
                Some(Refusal::new(RefusalCode::Closing, "the node leaves"))
            }
            _ => None,
        };
        if let Some(refusal) = refusal {
            let json = serde_json::to_vec(&refusal).unwrap_or_default();
            state.mux.control(&Frame::Refuse(&json));
            // What the socket takes: the peer is not worth waiting for.
            self.write_out(&mut state);
        }
        state.writer = None;
        let reason = format!("SmartRoute: link to {} lost, reconnect", self.peer);
        state.mux.disconnect(&reason, &mut sink);
        drop(state);
        self.tell(Command::Links);
        error
    }

    fn receive(&self, buffer: &mut BytesMut) -> Result<(), LinkError> {
        let now = self.now();
        let mut sink = LinkSink::new(&self.inbox, self.id);
        let mut state = self.lock();
        let mut frames = 0;
        while let Some(body) = frame::split(buffer, MAX_FRAME)? {
            frames += 1;
            let frame = frame::decode(&body)?;
            match frame {
                Frame::Pong(sent) => {
                    let rtt = (now.as_micros() as u64).saturating_sub(sent).max(1);
                    self.traffic.rtt.store(rtt, Ordering::Relaxed);
                }
                Frame::Refuse(json) => return Err(refusal_of(json)),
                _ => {}
            }
            if let Frame::Gossip(bytes) = frame {
                let (from, bytes) = (self.peer.clone(), Bytes::copy_from_slice(bytes));
                self.tell(Command::Gossip { from, bytes });
            }
            state.mux.receive(&frame, now, &mut sink)?;
        }
        // A pipe records what it writes.
        sink.release();
        self.write_out(&mut state);
        // Wakes JavaScript last: the first thing it does is to ask for both locks.
        drop(state);
        drop(sink);
        self.traffic.frames_in.fetch_add(frames, Ordering::Relaxed);
        Ok(())
    }
}

/// What a peer says on closing: short, and text.
fn refusal_of(json: &[u8]) -> LinkError {
    match serde_json::from_slice::<Refusal>(json) {
        Ok(refusal) if refusal.code == RefusalCode::Closing => LinkError::Leaving,
        Ok(refusal) => LinkError::Refused(clip(&refusal.reason).to_owned()),
        Err(_) => LinkError::Refused("without a reason that can be read".into()),
    }
}

/// Hands a socket of tokio's to the JavaScript thread for reading, where it reads any. Without a
/// reader afterwards it is shared.
#[cfg(target_os = "linux")]
fn share(
    reader: Reader,
    writer: Writer,
    service: &Service,
) -> io::Result<(Option<Reader>, Writer)> {
    match (reader, writer) {
        (Reader::Tcp(read), Writer::Tcp(write)) if service.readiness.is_some() => {
            let socket = read.reunite(write).map_err(io::Error::other)?.into_std()?;
            // SAFETY: a TcpStream owns its descriptor until it is dropped.
            let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE) }?;
            Ok((None, Writer::Shared(socket)))
        }
        (reader, writer) => Ok((Some(reader), writer)),
    }
}

#[cfg(not(target_os = "linux"))]
fn share(reader: Reader, writer: Writer, _: &Service) -> io::Result<(Option<Reader>, Writer)> {
    Ok((Some(reader), writer))
}
