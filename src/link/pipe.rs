//! A link's bytes where tokio cannot own the socket: TLS servers, Windows, descriptors that Node
//! does not give away. JavaScript feeds received bytes in and writes what comes out.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

/// Bytes handed to JavaScript that its socket has not taken yet; more must wait.
const OUT_WINDOW: usize = 256 * 1024;

/// Bytes fed in that the link has not read yet; above it JavaScript is asked to pause the socket.
const IN_HIGH: usize = 1024 * 1024;

/// Where a pipe's outgoing bytes and signals go.
pub trait PipeEvents: Send + Sync {
    /// Bytes for the socket.
    fn out(&self, pipe: u32, bytes: &[u8]);
    /// The socket may be read again.
    fn resume(&self, pipe: u32);
    /// The link is done with the socket.
    fn close(&self, pipe: u32);
}

/// One socket that JavaScript owns.
pub struct Pipe {
    id: u32,
    events: Box<dyn PipeEvents>,
    // std's Mutex: held for a memcpy, never across an await.
    state: Mutex<State>,
    /// Bytes came in, or the socket closed.
    readable: Notify,
    /// The socket took bytes, opened or closed.
    writable: Notify,
}

#[derive(Default)]
struct State {
    open: bool,
    closed: Option<(io::ErrorKind, String)>,
    input: BytesMut,
    paused: bool,
    /// Bytes under way to the socket.
    out: usize,
}

impl std::fmt::Debug for Pipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipe")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Pipe {
    /// A pipe for the socket that JavaScript knows as `id`; `open` where it is connected already.
    #[must_use]
    pub fn new(id: u32, open: bool, events: Box<dyn PipeEvents>) -> Self {
        let state = State {
            open,
            ..State::default()
        };
        Self {
            id,
            events,
            state: Mutex::new(state),
            readable: Notify::new(),
            writable: Notify::new(),
        }
    }

    /// The socket received bytes. `false`: pause it until `resume`.
    pub fn feed(&self, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        state.input.extend_from_slice(bytes);
        state.paused = state.input.len() > IN_HIGH;
        let go_on = !state.paused;
        drop(state);
        self.readable.notify_one();
        go_on
    }

    /// The socket is connected.
    pub fn opened(&self) {
        self.lock().open = true;
        self.writable.notify_one();
    }

    /// The socket took `count` bytes.
    pub fn wrote(&self, count: usize) {
        let mut state = self.lock();
        state.out = state.out.saturating_sub(count);
        drop(state);
        self.writable.notify_one();
    }

    /// The socket is gone; `kind` where JavaScript's error has one that matters.
    pub fn closed(&self, kind: io::ErrorKind, reason: &str) {
        self.lock()
            .closed
            .get_or_insert_with(|| (kind, reason.to_owned()));
        self.readable.notify_one();
        self.writable.notify_one();
    }

    /// Reads what came in; 0 bytes where the socket closed after all of it was read.
    ///
    /// # Errors
    /// `ConnectionReset`, and `InvalidData` or `UnexpectedEof` where TLS did not come about; whatever
    /// else ended the socket is its end.
    pub async fn read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            {
                let mut state = self.lock();
                if !state.input.is_empty() {
                    let input = state.input.split();
                    if std::mem::take(&mut state.paused) {
                        self.events.resume(self.id);
                    }
                    buffer.extend_from_slice(&input);
                    return Ok(input.len());
                }
                match &state.closed {
                    Some((kind, reason)) if says_why(*kind) => {
                        return Err(io::Error::new(*kind, reason.clone()));
                    }
                    Some(_) => return Ok(0),
                    None => {}
                }
            }
            self.readable.notified().await;
        }
    }

    /// Writes what fits now.
    ///
    /// # Errors
    /// `WouldBlock` where nothing fits, `BrokenPipe` where the socket is gone.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        if let Some((_, reason)) = &state.closed {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, reason.clone()));
        }
        let room = OUT_WINDOW.saturating_sub(state.out);
        if room == 0 || !state.open {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(room);
        state.out += count;
        drop(state);
        self.events.out(self.id, &bytes[..count]);
        Ok(count)
    }

    /// Waits until [`Pipe::try_write`] may succeed, or fails for good.
    pub async fn writable(&self) {
        loop {
            let notified = self.writable.notified();
            {
                let state = self.lock();
                if state.closed.is_some() || (state.open && state.out < OUT_WINDOW) {
                    return;
                }
            }
            notified.await;
        }
    }

    /// Why the socket closed, once it has.
    pub fn close_reason(&self) -> Option<io::Error> {
        let (kind, reason) = self.lock().closed.clone()?;
        Some(io::Error::new(kind, reason))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a reader is to be told how the socket ended.
fn says_why(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionReset, InvalidData, UnexpectedEof};
    matches!(kind, ConnectionReset | InvalidData | UnexpectedEof)
}

/// Lets go of a pipe when its link ends.
#[derive(Debug)]
pub struct PipeGuard(pub std::sync::Arc<Pipe>);

impl Drop for PipeGuard {
    fn drop(&mut self) {
        self.0.closed(io::ErrorKind::Other, "link closed");
        self.0.events.close(self.0.id);
    }
}
