//! One link: its streams, its socket when there is one, and the task that reads it.
//!
//! The JavaScript thread writes straight to the socket while it takes bytes; what it does not
//! take, and everything it does not own, is the task's.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::frame::{self, Frame, FrameError, MAX_FRAME};
use super::mux::{Mux, Side, Violation};
use super::pipe::{Pipe, PipeGuard};
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
}

impl Writer {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(half) => half.try_write(bytes),
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
    /// Counters.
    pub traffic: Traffic,
    /// Ends this link; cancelled with its node, too.
    pub stop: CancellationToken,
    inbox: Arc<Inbox>,
    started: Instant,
    // std's Mutex: the JavaScript thread and the link's task take turns; held for encoding and one
    // non-blocking write, never across an await.
    state: Mutex<State>,
    /// The socket is full: the task waits for it to take bytes.
    blocked: Notify,
}

#[derive(Debug)]
struct State {
    mux: Mux,
    writer: Option<Arc<Writer>>,
}

impl Link {
    /// A link without a socket.
    #[must_use]
    pub fn new(
        id: u32,
        peer: String,
        side: Side,
        inbox: Arc<Inbox>,
        started: Instant,
        stop: CancellationToken,
    ) -> Self {
        Self {
            id,
            peer,
            side,
            traffic: Traffic::default(),
            stop,
            inbox,
            started,
            state: Mutex::new(State {
                mux: Mux::new(side),
                writer: None,
            }),
            blocked: Notify::new(),
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

    /// Opens a stream; it waits where the link is down.
    pub fn open(&self, stream: u32) {
        let now = self.now();
        self.lock().mux.open(stream, now);
    }

    /// Sends a message on a stream. Call [`Link::flush`] after the last one of a turn.
    pub fn send(&self, stream: u32, kind: u8, bytes: &[u8]) {
        let mut sink = LinkSink::new(&self.inbox, self.id);
        self.lock().mux.send(stream, kind, bytes, &mut sink);
    }

    /// Sends one message to several streams.
    pub fn multicast(&self, streams: &[u32], bytes: &[u8]) {
        let mut sink = LinkSink::new(&self.inbox, self.id);
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
        let mut state = self.lock();
        state.mux.control(frame);
        self.write_out(&mut state);
    }

    /// Ends the streams that have waited for the link since before `oldest`.
    pub fn expire(&self, patience: Duration, reason: &str) {
        let Some(oldest) = self.now().checked_sub(patience) else {
            return;
        };
        let mut sink = LinkSink::new(&self.inbox, self.id);
        self.lock().mux.expire(oldest, reason, &mut sink);
    }

    /// Ends every stream, whether or not the peer knew of it.
    pub fn abandon(&self, reason: &str) {
        let mut sink = LinkSink::new(&self.inbox, self.id);
        let mut state = self.lock();
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
        mut reader: Reader,
        writer: Writer,
        mut buffer: BytesMut,
        keep_alive: KeepAlive,
    ) -> LinkError {
        let writer = Arc::new(writer);
        {
            let mut state = self.lock();
            state.writer = Some(Arc::clone(&writer));
            state.mux.connect();
            self.write_out(&mut state);
        }
        let mut ticks = interval_at(Instant::now() + keep_alive.interval, keep_alive.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        // Reading goes on while the socket is full: two full peers would wait for each other.
        let mut full = false;
        if let Err(error) = self.receive(&mut buffer) {
            return self.lost(error);
        }
        let error = loop {
            let read = async {
                self.inbox.room().await;
                // One turn of a busy peer fits: short reads cost a system call each.
                buffer.reserve(READ);
                reader.read_buf(&mut buffer).await
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break LinkError::Shutdown,
                read = read => match read {
                    Ok(0) => break LinkError::Closed,
                    Ok(count) => {
                        heard = Instant::now();
                        self.traffic.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
                        self.traffic.heard.store(self.now().as_millis() as u64, Ordering::Relaxed);
                        if let Err(error) = self.receive(&mut buffer) {
                            break error;
                        }
                    }
                    Err(error) => break error.into(),
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
                    if heard.elapsed() > keep_alive.patience {
                        break LinkError::Silent(keep_alive.patience);
                    }
                    self.control(&Frame::Ping(self.now().as_micros() as u64));
                }
            }
        };
        self.lost(error)
    }

    fn lost(&self, error: LinkError) -> LinkError {
        let mut sink = LinkSink::new(&self.inbox, self.id);
        let mut state = self.lock();
        state.writer = None;
        let reason = format!("SmartRoute: link to {} lost, reconnect", self.peer);
        state.mux.disconnect(&reason, &mut sink);
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
            if let Frame::Pong(sent) = frame {
                let rtt = (now.as_micros() as u64).saturating_sub(sent).max(1);
                self.traffic.rtt.store(rtt, Ordering::Relaxed);
            }
            state.mux.receive(&frame, now, &mut sink)?;
        }
        // Wakes JavaScript before the credits are written: it is the one with work to do.
        drop(sink);
        self.write_out(&mut state);
        self.traffic.frames_in.fetch_add(frames, Ordering::Relaxed);
        Ok(())
    }
}
