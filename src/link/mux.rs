//! The streams of one link: credit, queues, chunking and fair interleaving. Pure: the connection
//! moves the bytes, the caller brings the time.
//!
//! | state of a stream | event               | to        |
//! |-------------------|---------------------|-----------|
//! | –                 | `open` / OPEN       | open      |
//! | open              | `close`, queue left | ending    |
//! | ending            | queue sent          | – (CLOSE) |
//! | open              | `close`, no queue   | – (CLOSE) |
//! | open, ending      | CLOSE, link lost    | –         |

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{self, CHUNK, Frame, MULTICAST_MAX, MULTICAST_STREAMS};

/// Bytes a sender may have under way on one stream before the receiver grants more.
pub const WINDOW: u32 = 256 * 1024;

/// The connection's out-buffer is filled up to this and no further; the rest waits in the streams'
/// own queues, where a slow stream delays nobody else.
pub const OUT_HIGH: usize = 256 * 1024;

/// Largest message a stream carries; what would be longer closes the stream with 1009.
pub const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// A stream takes another message while less than this waits in its queue, its longest message not
/// counted: a large document under way must not make the next keystroke one too many. Past that the
/// stream is closed, as its reader is too slow. Nothing leaves the queue within a turn of the event
/// loop, so this is also the most that one turn may send: its longest message, and 64 MiB.
pub const STREAM_QUEUE: usize = 64 * 1024 * 1024;

/// The same for all streams of a link together.
pub const LINK_QUEUE: usize = 512 * 1024 * 1024;

/// What a stream is closed with that would wait for more than that.
const FULL: &str =
    "SmartRoute: more than 64 MiB wait on this stream, or 512 MiB on its link; reconnect";

/// Most streams one link carries: far above the sockets a node can hold.
pub const MAX_STREAMS: usize = 1 << 18;

/// What a queued message costs beside its bytes, so that a queue of empty ones is bounded too.
const MESSAGE_COST: usize = 64;

/// Close codes the mux itself gives. All but 1009 are retried by every provider.
pub mod close {
    /// A message exceeds [`super::MAX_MESSAGE`].
    pub const TOO_BIG: u16 = 1009;
    /// The owner cannot be reached; the client should reconnect.
    pub const UNAVAILABLE: u16 = 1012;
    /// A queue is full; the client should reconnect.
    pub const OVERLOADED: u16 = 1013;
}

/// Which end of the link this is. Only the dialer opens streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opened the link: the edge of its streams.
    Dialer,
    /// Accepted the link: the owner of its streams.
    Acceptor,
}

/// Where received things go. Calls come in wire order.
pub trait Sink {
    /// The peer opened a stream.
    fn opened(&mut self, stream: u32);
    /// A whole message arrived.
    fn message(&mut self, stream: u32, kind: u8, bytes: &[u8]);
    /// One message for several streams arrived (big-endian ids).
    fn multicast(&mut self, streams: &[u32], bytes: &[u8]);
    /// The stream is gone; nothing more comes from it.
    fn closed(&mut self, stream: u32, code: u16, reason: &str);
}

/// What a peer did that no correct peer does. Closes the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// OPEN from the side that does not open, or of an id used before.
    #[error("stream {0} opened out of turn")]
    Open(u32),
    /// More streams than a link carries.
    #[error("more than {MAX_STREAMS} streams")]
    Streams,
    /// A frame for a stream that was never opened.
    #[error("frame for stream {0}, which was never opened")]
    UnknownStream(u32),
    /// More bytes than were granted.
    #[error("stream {0} sent more than its credit")]
    Credit(u32),
    /// Chunks of two messages of a stream are mixed.
    #[error("stream {0} changed the kind of a message half-way")]
    Kind(u32),
    /// A handshake frame on an open link.
    #[error("handshake frame on an open link")]
    Handshake,
}

#[derive(Debug)]
struct Queued {
    kind: u8,
    bytes: Bytes,
}

#[derive(Debug)]
struct Stream {
    /// OPEN was encoded (dialer) or received (acceptor).
    opened: bool,
    /// When the stream was opened here; bounds how long it waits for its link.
    since: Duration,
    /// Bytes the peer still takes.
    credit: u32,
    /// Messages that wait for credit or for room in the out-buffer.
    queue: VecDeque<Queued>,
    queued: usize,
    /// Longest message that was queued since the queue was empty.
    longest: usize,
    /// Whether the stream stands in `Mux::ready`.
    ready: bool,
    /// Close once the queue is sent.
    ending: Option<(u16, String)>,
    /// Chunks received of a message that is not complete, and its kind.
    partial: BytesMut,
    partial_kind: Option<u8>,
    /// Bytes received that have not been granted again.
    received: u32,
    /// The local reader is slow: grant nothing.
    paused: bool,
}

impl Stream {
    fn new(since: Duration, opened: bool) -> Self {
        Self {
            opened,
            since,
            credit: WINDOW,
            queue: VecDeque::new(),
            queued: 0,
            longest: 0,
            ready: false,
            ending: None,
            partial: BytesMut::new(),
            partial_kind: None,
            received: 0,
            paused: false,
        }
    }
}

/// The streams of one link and the bytes that wait to be written.
#[derive(Debug)]
pub struct Mux {
    side: Side,
    connected: bool,
    streams: HashMap<u32, Stream>,
    /// Streams with something to send and credit to send it, in turn.
    ready: VecDeque<u32>,
    /// Encoded frames; the connection writes them.
    out: BytesMut,
    /// Bytes in all queues.
    queued: usize,
    /// Bytes in all messages that are not whole yet.
    partial: usize,
    /// Highest stream id opened so far; ids at or below it that are unknown were closed.
    last: u32,
    /// Times a stream had something to send and no credit, for metrics.
    pub stalls: u64,
}

impl Mux {
    /// A mux without a connection: streams opened now wait for it.
    #[must_use]
    pub fn new(side: Side) -> Self {
        Self {
            side,
            connected: false,
            streams: HashMap::new(),
            ready: VecDeque::new(),
            out: BytesMut::new(),
            queued: 0,
            partial: 0,
            last: 0,
            stalls: 0,
        }
    }

    /// The connection is up; whatever waited may go.
    pub fn connect(&mut self) {
        self.connected = true;
        let mut waiting: Vec<u32> = self.streams.keys().copied().collect();
        waiting.sort_unstable();
        for id in waiting {
            self.announce(id);
            self.schedule(id);
        }
        self.pump();
    }

    /// Tells the peer of a stream. In the order of ids, and so before anything is sent on any of
    /// them: a later stream may well speak first.
    fn announce(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && self.connected
            && !stream.opened
        {
            stream.opened = true;
            frame::encode(&Frame::Open { stream: id }, &mut self.out);
        }
    }

    /// The connection is lost: every stream the peer knew of is gone; those it never heard of wait
    /// for the next connection.
    pub fn disconnect(&mut self, reason: &str, sink: &mut impl Sink) {
        self.connected = false;
        self.out.clear();
        self.ready.clear();
        let gone = self.take_streams(|stream| stream.opened);
        for id in gone {
            sink.closed(id, close::UNAVAILABLE, reason);
        }
        for stream in self.streams.values_mut() {
            stream.ready = false;
        }
    }

    /// Ends the streams that have waited for a connection since before `oldest`.
    pub fn expire(&mut self, oldest: Duration, reason: &str, sink: &mut impl Sink) {
        if self.connected {
            return;
        }
        for id in self.take_streams(|stream| stream.since < oldest) {
            sink.closed(id, close::UNAVAILABLE, reason);
        }
    }

    fn take_streams(&mut self, which: impl Fn(&Stream) -> bool) -> Vec<u32> {
        let mut ids: Vec<u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| which(stream))
            .map(|(id, _)| *id)
            .collect();
        ids.sort_unstable();
        for id in &ids {
            self.forget(*id);
        }
        ids
    }

    fn forget(&mut self, id: u32) {
        if let Some(stream) = self.streams.remove(&id) {
            self.queued -= stream.queued;
            self.partial -= stream.partial.len();
        }
    }

    /// Opens a stream (dialer only). The id must be above every id opened before.
    pub fn open(&mut self, id: u32, now: Duration) {
        debug_assert!(self.side == Side::Dialer && id > self.last);
        self.last = id;
        self.streams.insert(id, Stream::new(now, false));
        self.announce(id);
    }

    /// Sends a message, or queues it. Messages of one stream never overtake each other. A message
    /// for a stream that is gone is dropped: its closing has been told.
    pub fn send(&mut self, id: u32, kind: u8, bytes: &[u8], sink: &mut impl Sink) {
        if self.direct(id, bytes.len()) {
            let stream = self.streams.get_mut(&id).expect("direct checked it");
            stream.credit -= bytes.len() as u32;
            encode_data(id, kind, true, bytes, &mut self.out);
        } else {
            self.enqueue(id, kind, Bytes::copy_from_slice(bytes), sink);
        }
    }

    /// Sends one kind-0 message to many streams, as one frame to all of them that can take it now.
    pub fn multicast(&mut self, ids: &[u32], bytes: &[u8], sink: &mut impl Sink) {
        let mut together: Vec<u32> = Vec::with_capacity(ids.len());
        let mut shared: Option<Bytes> = None;
        for &id in ids {
            if bytes.len() <= MULTICAST_MAX && self.could_send(id, bytes.len()) {
                // At once: a stream may stand here twice.
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.credit -= bytes.len() as u32;
                }
                together.push(id);
            } else {
                let bytes = shared.get_or_insert_with(|| Bytes::copy_from_slice(bytes));
                self.enqueue(id, 0, bytes.clone(), sink);
            }
        }
        for batch in together.chunks(MULTICAST_STREAMS) {
            let mut list = Vec::with_capacity(batch.len() * 4);
            for &id in batch {
                list.extend_from_slice(&id.to_be_bytes());
            }
            let streams = &list[..];
            frame::encode(&Frame::Multicast { streams, bytes }, &mut self.out);
        }
    }

    /// Whether a message may go straight into the out-buffer.
    fn direct(&self, id: u32, length: usize) -> bool {
        length <= CHUNK && self.could_send(id, length)
    }

    fn could_send(&self, id: u32, length: usize) -> bool {
        self.connected
            && self.out.len() < OUT_HIGH
            && self.streams.get(&id).is_some_and(|stream| {
                stream.queue.is_empty()
                    && stream.ending.is_none()
                    && stream.credit as usize >= length
            })
    }

    fn enqueue(&mut self, id: u32, kind: u8, bytes: Bytes, sink: &mut impl Sink) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.ending.is_some() {
            return;
        }
        let full = stream.queued.saturating_sub(stream.longest) >= STREAM_QUEUE
            || self.queued >= LINK_QUEUE;
        if full || bytes.len() > MAX_MESSAGE {
            let (code, reason) = if full {
                (close::OVERLOADED, FULL)
            } else {
                (close::TOO_BIG, "SmartRoute: message too big")
            };
            self.fail(id, code, reason, sink);
            return;
        }
        if stream.queue.is_empty() {
            stream.longest = 0;
        }
        stream.longest = stream.longest.max(bytes.len());
        stream.queued += bytes.len() + MESSAGE_COST;
        self.queued += bytes.len() + MESSAGE_COST;
        stream.queue.push_back(Queued { kind, bytes });
        self.schedule(id);
        self.pump();
    }

    /// Ends a stream at once and tells both sides.
    fn fail(&mut self, id: u32, code: u16, reason: &str, sink: &mut impl Sink) {
        self.abort(id, code, reason);
        sink.closed(id, code, reason);
    }

    /// Ends a stream at once, whatever waits in its queue.
    fn abort(&mut self, id: u32, code: u16, reason: &str) {
        if let Some(stream) = self.streams.get(&id)
            && stream.opened
            && self.connected
        {
            let stream = id;
            frame::encode(
                &Frame::Close {
                    stream,
                    code,
                    reason,
                },
                &mut self.out,
            );
        }
        self.forget(id);
    }

    /// Ends a stream once all that was sent on it before is on its way.
    pub fn close(&mut self, id: u32, code: u16, reason: &str) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.queue.is_empty() {
            self.abort(id, code, reason);
        } else if stream.ending.is_none() {
            stream.ending = Some((code, reason.to_owned()));
        }
    }

    /// The local reader of a stream is slow (`true`) or keeps up again.
    pub fn pause(&mut self, id: u32, paused: bool) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.paused = paused;
            Self::grant(stream, id, 1, &mut self.out);
        }
    }

    fn grant(stream: &mut Stream, id: u32, at_least: u32, out: &mut BytesMut) {
        if !stream.paused && stream.received >= at_least {
            let bytes = std::mem::take(&mut stream.received);
            frame::encode(&Frame::Credit { stream: id, bytes }, out);
        }
    }

    fn schedule(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.ready || stream.queue.is_empty() || !self.connected {
            return;
        }
        if stream.credit == 0 {
            self.stalls += 1;
            return;
        }
        stream.ready = true;
        self.ready.push_back(id);
    }

    /// Moves queued chunks into the out-buffer, one per stream and turn, while there is room.
    pub fn pump(&mut self) {
        while self.out.len() < OUT_HIGH {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.ready = false;
            let Some(head) = stream.queue.front_mut() else {
                continue;
            };
            let length = head.bytes.len().min(CHUNK).min(stream.credit as usize);
            let chunk = head.bytes.split_to(length);
            let (kind, last) = (head.kind, head.bytes.is_empty());
            if last {
                stream.queue.pop_front();
            }
            let freed = if last { length + MESSAGE_COST } else { length };
            stream.credit -= length as u32;
            stream.queued -= freed;
            self.queued -= freed;
            encode_data(id, kind, last, &chunk, &mut self.out);
            if stream.queue.is_empty()
                && let Some((code, reason)) = stream.ending.take()
            {
                self.abort(id, code, &reason);
            } else {
                self.schedule(id);
            }
        }
    }

    /// Handles one frame of an open link. `ping` answers go into the out-buffer.
    ///
    /// # Errors
    /// [`Violation`]: the link must be closed.
    pub fn receive(
        &mut self,
        frame: &Frame<'_>,
        now: Duration,
        sink: &mut impl Sink,
    ) -> Result<(), Violation> {
        match *frame {
            Frame::Open { stream } => {
                if self.side == Side::Dialer || stream <= self.last {
                    return Err(Violation::Open(stream));
                }
                if self.streams.len() >= MAX_STREAMS {
                    return Err(Violation::Streams);
                }
                self.last = stream;
                self.streams.insert(stream, Stream::new(now, true));
                sink.opened(stream);
            }
            Frame::Data {
                stream: id,
                kind,
                last,
                bytes,
            } => self.receive_data(id, kind, last, bytes, sink)?,
            Frame::Multicast { streams, bytes } => {
                let mut ids = Vec::with_capacity(streams.len() / 4);
                let mut list = streams;
                while let Ok(id) = list.try_get_u32() {
                    if let Some(stream) = known(&mut self.streams, self.last, id)? {
                        if stream.partial_kind.is_some() {
                            return Err(Violation::Kind(id));
                        }
                        receive_bytes(stream, id, bytes.len())?;
                        Self::grant(stream, id, WINDOW / 2, &mut self.out);
                        ids.push(id);
                    }
                }
                if !ids.is_empty() {
                    sink.multicast(&ids, bytes);
                }
            }
            Frame::Close {
                stream,
                code,
                reason,
            } => {
                if known(&mut self.streams, self.last, stream)?.is_some() {
                    self.forget(stream);
                    sink.closed(stream, code, reason);
                }
            }
            Frame::Credit { stream: id, bytes } => {
                if let Some(stream) = known(&mut self.streams, self.last, id)? {
                    stream.credit = match stream.credit.checked_add(bytes) {
                        Some(credit) if credit <= WINDOW => credit,
                        _ => return Err(Violation::Credit(id)),
                    };
                    self.schedule(id);
                    self.pump();
                }
            }
            Frame::Ping(number) => {
                // A peer that does not read gets no answers to pile up: it is not waiting for any.
                if self.out.len() <= 2 * OUT_HIGH {
                    frame::encode(&Frame::Pong(number), &mut self.out);
                }
            }
            // The connection takes these before the mux sees them.
            Frame::Pong(_) | Frame::View { .. } | Frame::Gossip(_) => {}
            Frame::Hello(_)
            | Frame::Challenge(_)
            | Frame::Auth(_)
            | Frame::Ready
            | Frame::Refuse(_) => return Err(Violation::Handshake),
        }
        Ok(())
    }

    fn receive_data(
        &mut self,
        id: u32,
        kind: u8,
        last: bool,
        bytes: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), Violation> {
        let Some(stream) = known(&mut self.streams, self.last, id)? else {
            return Ok(());
        };
        if *stream.partial_kind.get_or_insert(kind) != kind {
            return Err(Violation::Kind(id));
        }
        receive_bytes(stream, id, bytes.len())?;
        let whole = last && stream.partial.is_empty();
        if !whole {
            let too_big = stream.partial.len() + bytes.len() > MAX_MESSAGE;
            if too_big || self.partial + bytes.len() > LINK_QUEUE {
                let (code, reason) = if too_big {
                    (close::TOO_BIG, "SmartRoute: message too big")
                } else {
                    (close::OVERLOADED, FULL)
                };
                self.fail(id, code, reason, sink);
                return Ok(());
            }
            stream.partial.extend_from_slice(bytes);
            self.partial += bytes.len();
        }
        if last {
            stream.partial_kind = None;
            if whole {
                sink.message(id, kind, bytes);
            } else {
                let message = std::mem::take(&mut stream.partial);
                self.partial -= message.len();
                sink.message(id, kind, &message);
            }
        }
        Self::grant(stream, id, WINDOW / 2, &mut self.out);
        Ok(())
    }

    /// Appends a frame that belongs to no stream.
    pub fn control(&mut self, frame: &Frame<'_>) {
        if self.connected {
            frame::encode(frame, &mut self.out);
        }
    }

    /// Bytes to be written now.
    #[must_use]
    pub fn out(&self) -> &[u8] {
        &self.out
    }

    /// `count` bytes of [`Mux::out`] were written.
    pub fn wrote(&mut self, count: usize) {
        self.out.advance(count);
        if self.out.is_empty() && self.out.capacity() < CHUNK {
            // Advancing eats capacity; start over instead of growing in small steps.
            self.out = BytesMut::with_capacity(OUT_HIGH / 4);
        }
        self.pump();
    }

    /// Streams open on this link.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether no stream is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Bytes that wait in queues and in the out-buffer.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.queued + self.out.len()
    }
}

/// A stream by id; `None` where it was closed meanwhile, so that what is still under way for it is
/// dropped.
fn known(
    streams: &mut HashMap<u32, Stream>,
    last: u32,
    id: u32,
) -> Result<Option<&mut Stream>, Violation> {
    if id > last {
        return Err(Violation::UnknownStream(id));
    }
    Ok(streams.get_mut(&id))
}

fn receive_bytes(stream: &mut Stream, id: u32, count: usize) -> Result<(), Violation> {
    stream.received = u32::try_from(count)
        .ok()
        .and_then(|count| stream.received.checked_add(count))
        .filter(|received| *received <= WINDOW)
        .ok_or(Violation::Credit(id))?;
    Ok(())
}

fn encode_data(stream: u32, kind: u8, last: bool, bytes: &[u8], out: &mut BytesMut) {
    frame::encode(
        &Frame::Data {
            stream,
            kind,
            last,
            bytes,
        },
        out,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::frame::MAX_FRAME;

    #[derive(Debug, Default, PartialEq)]
    struct Seen(Vec<Event>);

    #[derive(Debug, PartialEq, Clone)]
    enum Event {
        Opened(u32),
        Message(u32, u8, Vec<u8>),
        Multicast(Vec<u32>, Vec<u8>),
        Closed(u32, u16, String),
    }

    impl Sink for Seen {
        fn opened(&mut self, stream: u32) {
            self.0.push(Event::Opened(stream));
        }
        fn message(&mut self, stream: u32, kind: u8, bytes: &[u8]) {
            self.0.push(Event::Message(stream, kind, bytes.to_vec()));
        }
        fn multicast(&mut self, streams: &[u32], bytes: &[u8]) {
            self.0
                .push(Event::Multicast(streams.to_vec(), bytes.to_vec()));
        }
        fn closed(&mut self, stream: u32, code: u16, reason: &str) {
            self.0.push(Event::Closed(stream, code, reason.into()));
        }
    }

    const T: Duration = Duration::ZERO;

    /// Both ends of a link with everything written carried over.
    struct Pair {
        edge: Mux,
        owner: Mux,
        at_edge: Seen,
        at_owner: Seen,
    }

    impl Pair {
        fn new() -> Self {
            let (mut edge, mut owner) = (Mux::new(Side::Dialer), Mux::new(Side::Acceptor));
            edge.connect();
            owner.connect();
            Self {
                edge,
                owner,
                at_edge: Seen::default(),
                at_owner: Seen::default(),
            }
        }

        /// Carries bytes both ways until nothing moves.
        fn settle(&mut self) {
            while carry(&mut self.edge, &mut self.owner, &mut self.at_owner)
                | carry(&mut self.owner, &mut self.edge, &mut self.at_edge)
            {}
        }
    }

    fn carry(from: &mut Mux, to: &mut Mux, sink: &mut Seen) -> bool {
        let mut wire = BytesMut::from(from.out());
        from.wrote(wire.len());
        let moved = !wire.is_empty();
        while let Some(body) = frame::split(&mut wire, MAX_FRAME).unwrap() {
            to.receive(&frame::decode(&body).unwrap(), T, sink).unwrap();
        }
        moved
    }

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let mut pair = Pair::new();
        pair.edge.open(1, T);
        let big: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let mut none = Seen::default();
        pair.edge.send(1, 1, b"meta", &mut none);
        pair.edge.send(1, 0, &big, &mut none);
        pair.edge.send(1, 0, b"after", &mut none);
        pair.settle();
        pair.owner.multicast(&[1], b"to all", &mut none);
        pair.owner.close(1, 4401, "no");
        pair.settle();
        assert_eq!(
            pair.at_owner.0,
            [
                Event::Opened(1),
                Event::Message(1, 1, b"meta".to_vec()),
                Event::Message(1, 0, big),
                Event::Message(1, 0, b"after".to_vec()),
            ]
        );
        assert_eq!(
            pair.at_edge.0,
            [
                Event::Multicast(vec![1], b"to all".to_vec()),
                Event::Closed(1, 4401, "no".into()),
            ]
        );
        assert!(none.0.is_empty() && pair.edge.is_empty() && pair.owner.is_empty());
        assert_eq!(pair.edge.backlog() + pair.owner.backlog(), 0);
    }

    #[test]
    fn a_huge_message_does_not_hold_up_another_stream() {
        let mut pair = Pair::new();
        let mut none = Seen::default();
        pair.edge.open(1, T);
        pair.edge.open(2, T);
        pair.edge.send(1, 0, &vec![1; 40 << 20], &mut none);
        pair.edge.send(2, 0, b"small", &mut none);
        // It waits for one out-buffer, not for forty megabytes.
        for _ in 0..2 {
            carry(&mut pair.edge, &mut pair.owner, &mut pair.at_owner);
        }
        let small = Event::Message(2, 0, b"small".to_vec());
        assert!(pair.at_owner.0.contains(&small));
        pair.settle();
        assert_eq!(pair.at_owner.0.len(), 4);
    }

    #[test]
    fn a_paused_reader_stops_only_its_own_stream() {
        let mut pair = Pair::new();
        let mut none = Seen::default();
        for id in [1, 2] {
            pair.edge.open(id, T);
            pair.edge.send(id, 1, b"meta", &mut none);
        }
        pair.settle();
        pair.edge.pause(1, true);
        for _ in 0..1_000 {
            pair.owner.multicast(&[1, 2], &[7; 1_000], &mut none);
            pair.settle();
        }
        let count = |seen: &Seen, id: u32| {
            let has = |event: &&Event| match event {
                Event::Multicast(ids, _) => ids.contains(&id),
                Event::Message(stream, ..) => *stream == id,
                _ => false,
            };
            seen.0.iter().filter(has).count()
        };
        assert_eq!(count(&pair.at_edge, 2), 1_000);
        assert!(count(&pair.at_edge, 1) <= WINDOW as usize / 1_000);
        assert!(pair.owner.stalls > 0);
        pair.edge.pause(1, false);
        pair.settle();
        assert_eq!(count(&pair.at_edge, 1), 1_000);
        assert!(none.0.is_empty());
    }

    #[test]
    fn a_reader_that_never_comes_back_costs_a_bounded_queue() {
        let mut pair = Pair::new();
        let mut none = Seen::default();
        pair.edge.open(1, T);
        pair.edge.send(1, 1, b"meta", &mut none);
        pair.settle();
        pair.edge.pause(1, true);
        let message = vec![0; 1 << 20];
        for _ in 0..STREAM_QUEUE / message.len() + 20 {
            pair.owner.send(1, 0, &message, &mut none);
            assert!(pair.owner.backlog() <= STREAM_QUEUE + 2 * message.len() + OUT_HIGH);
        }
        assert_eq!(none.0, [Event::Closed(1, close::OVERLOADED, FULL.into())]);
        pair.settle();
        assert_eq!(pair.owner.backlog(), 0);
        assert!(matches!(
            pair.at_edge.0.last(),
            Some(Event::Closed(1, close::OVERLOADED, _))
        ));
    }

    #[test]
    fn a_keystroke_behind_a_large_document_is_not_one_too_many() {
        let mut pair = Pair::new();
        let mut none = Seen::default();
        pair.edge.open(1, T);
        pair.edge.send(1, 0, b"before", &mut none);
        pair.edge.send(1, 0, &vec![3; STREAM_QUEUE * 2], &mut none);
        pair.edge.send(1, 0, b"after", &mut none);
        assert!(none.0.is_empty());
        pair.settle();
        assert_eq!(pair.at_owner.0.len(), 4);
    }

    #[test]
    fn one_turn_may_send_64_mib_beside_its_longest_message() {
        let mut pair = Pair::new();
        let mut none = Seen::default();
        pair.edge.open(1, T);
        pair.edge.send(1, 0, &vec![3; 50_000_000], &mut none);
        let message = vec![0; 1 << 20];
        for _ in 0..63 {
            pair.edge.send(1, 0, &message, &mut none);
        }
        assert!(none.0.is_empty(), "{:?}", none.0);
        pair.settle();
        assert_eq!(pair.at_owner.0.len(), 1 + 64);
        assert!(FULL.len() <= 123, "a close reason holds no more");
    }

    #[test]
    fn a_stream_named_twice_in_a_multicast_pays_and_receives_twice() {
        let mut pair = Pair::new();
        let mut none = Seen::default();
        pair.edge.open(1, T);
        pair.edge.send(1, 1, b"meta", &mut none);
        pair.settle();
        let message = vec![5; MULTICAST_MAX];
        // The window holds four of them: two go together, and the next two, and one waits.
        for _ in 0..2 {
            pair.owner.multicast(&[1, 1], &message, &mut none);
        }
        pair.owner.multicast(&[1], &message, &mut none);
        assert_eq!(pair.owner.streams[&1].credit, 0);
        pair.settle();
        let received: usize = pair
            .at_edge
            .0
            .iter()
            .map(|event| match event {
                Event::Multicast(ids, bytes) => ids.len() * bytes.len(),
                Event::Message(_, _, bytes) => bytes.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(received, 5 * MULTICAST_MAX);
        assert!(none.0.is_empty());
    }

    #[test]
    fn a_close_waits_for_what_was_sent_before() {
        let mut pair = Pair::new();
        let mut none = Seen::default();
        pair.edge.open(1, T);
        pair.edge.send(1, 0, &vec![3; 1 << 20], &mut none);
        pair.edge.close(1, 1000, "bye");
        pair.edge.send(1, 0, b"too late", &mut none);
        pair.settle();
        assert_eq!(pair.at_owner.0.len(), 3);
        assert_eq!(pair.at_owner.0[2], Event::Closed(1, 1000, "bye".into()));
    }

    #[test]
    fn streams_opened_while_the_link_is_down_wait_for_it_and_expire() {
        let mut pair = Pair::new();
        let mut none = Seen::default();
        pair.edge.open(1, T);
        pair.edge.send(1, 1, b"known to the peer", &mut none);
        pair.settle();
        pair.edge.disconnect("link lost", &mut pair.at_edge);
        assert_eq!(
            pair.at_edge.0,
            [Event::Closed(1, close::UNAVAILABLE, "link lost".into())]
        );
        pair.edge.open(2, Duration::from_secs(10));
        pair.edge.send(2, 1, b"one", &mut none);
        pair.edge.send(2, 0, b"two", &mut none);
        pair.edge.open(3, Duration::from_secs(11));
        pair.edge.send(3, 1, b"three", &mut none);
        pair.edge
            .expire(Duration::from_secs(11), "no link", &mut pair.at_edge);
        assert_eq!(
            pair.at_edge.0[1],
            Event::Closed(2, close::UNAVAILABLE, "no link".into())
        );
        let mut owner = Mux::new(Side::Acceptor);
        owner.connect();
        pair.owner = owner;
        pair.at_owner = Seen::default();
        pair.edge.connect();
        pair.settle();
        assert_eq!(
            pair.at_owner.0,
            [Event::Opened(3), Event::Message(3, 1, b"three".to_vec())]
        );
        assert!(none.0.is_empty());
    }

    #[test]
    fn violations_are_told_apart_from_late_frames() {
        let mut none = Seen::default();
        let mut owner = Mux::new(Side::Acceptor);
        owner.connect();
        let data = |stream, kind, last, bytes| Frame::Data {
            stream,
            kind,
            last,
            bytes,
        };
        let mut receive = |frame: Frame<'_>| owner.receive(&frame, T, &mut none);
        assert_eq!(
            receive(data(1, 0, true, b"x")),
            Err(Violation::UnknownStream(1))
        );
        receive(Frame::Open { stream: 5 }).unwrap();
        assert_eq!(receive(Frame::Open { stream: 5 }), Err(Violation::Open(5)));
        // 3 is below 5: it may have been closed here a moment ago.
        receive(data(3, 0, true, b"late")).unwrap();
        receive(data(5, 0, false, b"half")).unwrap();
        assert_eq!(receive(data(5, 1, true, b"x")), Err(Violation::Kind(5)));
        let bytes = u32::MAX;
        assert_eq!(
            receive(Frame::Credit { stream: 5, bytes }),
            Err(Violation::Credit(5))
        );
        assert_eq!(receive(Frame::Ready), Err(Violation::Handshake));
        let chunk = vec![0; CHUNK];
        receive(Frame::Open { stream: 6 }).unwrap();
        owner.pause(6, true);
        let mut result = Ok(());
        for _ in 0..=WINDOW as usize / CHUNK {
            result = owner.receive(&data(6, 0, false, &chunk), T, &mut none);
        }
        assert_eq!(result, Err(Violation::Credit(6)));
        let mut edge = Mux::new(Side::Dialer);
        assert_eq!(
            edge.receive(&Frame::Open { stream: 1 }, T, &mut none),
            Err(Violation::Open(1))
        );
    }
}
