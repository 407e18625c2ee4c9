//! Random and bent frames for everything of the link that reads what a peer wrote: `frame`, `auth`
//! and `mux`. Deterministic: a failure names its seed.
//!
//! What must hold: no panic; every error is a `FrameError`, a `Violation` or a `Refusal`; memory
//! stays within what the windows allow; one stream's messages are whole and in order.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use smartroute::cluster::view::{Member, MemberState};
use smartroute::link::auth::{Acceptor, Agreement, Dialer, Identity};
use smartroute::link::frame::{self, CHUNK, Frame, FrameError, MAX_FRAME, MULTICAST_MAX};
use smartroute::link::mux::{
    LINK_QUEUE, Mux, OUT_HIGH, STREAM_QUEUE, Side, Sink, Violation, WINDOW,
};
use smartroute::link::secrets::Secrets;

/// Counts the bytes that the current thread holds, so that tests beside this one do not matter.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends has no counter left; nobody reads it either.
    let _ = HELD.try_with(|held| held.set(held.get() + change));
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn held() -> usize {
    HELD.with(Cell::get).max(0) as usize
}

const T: Duration = Duration::ZERO;

/// Checks what a mux tells: every stream is opened once, speaks only while it is open.
#[derive(Default)]
struct Watch {
    /// Streams that are open, with the number their next message must bear.
    open: HashMap<u32, u32>,
    /// Streams that were closed here; while their last messages are on their way, they may still be
    /// spoken to.
    ended: HashSet<u32>,
    /// Streams whose messages are numbered: those of a peer that behaves.
    numbered: bool,
    messages: usize,
}

impl Watch {
    fn end(&mut self, stream: u32) -> bool {
        let known = self.open.remove(&stream).is_some();
        self.ended.extend(known.then_some(stream));
        known
    }

    fn speaks(&mut self, stream: u32, bytes: &[u8]) {
        if self.ended.contains(&stream) {
            return;
        }
        self.messages += 1;
        let next = self.open.get_mut(&stream);
        let next = next.expect("a message of a stream that is not open");
        if self.numbered {
            assert_eq!(
                bytes[..4],
                next.to_be_bytes(),
                "stream {stream} out of order"
            );
            assert!(bytes[4..].iter().all(|byte| *byte == stream as u8));
            *next += 1;
        }
    }
}

impl Sink for Watch {
    fn opened(&mut self, stream: u32) {
        assert!(
            self.open.insert(stream, 0).is_none(),
            "stream {stream} opened twice"
        );
    }

    fn message(&mut self, stream: u32, _: u8, bytes: &[u8]) {
        self.speaks(stream, bytes);
    }

    fn multicast(&mut self, streams: &[u32], bytes: &[u8]) {
        assert!(!streams.is_empty() && bytes.len() <= MULTICAST_MAX);
        for stream in streams {
            self.speaks(*stream, bytes);
        }
    }

    fn closed(&mut self, stream: u32, _: u16, _: &str) {
        let known = self.open.remove(&stream).is_some() || self.ended.remove(&stream);
        assert!(known, "stream {stream} closed twice");
    }
}

/// Why bytes ended a link.
#[derive(Debug)]
enum End {
    #[allow(dead_code, reason = "printed where a test fails")]
    Frame(FrameError),
    #[allow(dead_code, reason = "printed where a test fails")]
    Violation(Violation),
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<Violation> for End {
    fn from(error: Violation) -> Self {
        Self::Violation(error)
    }
}

/// Feeds bytes to a mux as a connection does.
fn feed(mux: &mut Mux, buffer: &mut BytesMut, bytes: &[u8], sink: &mut Watch) -> Result<(), End> {
    buffer.extend_from_slice(bytes);
    while let Some(body) = frame::split(buffer, MAX_FRAME)? {
        mux.receive(&frame::decode(&body)?, T, sink)?;
    }
    Ok(())
}

/// A frame for a mux on which streams up to `last` were opened; once in a while one that no
/// correct peer would send.
fn any_frame(random: &mut StdRng, side: Side, last: u32, out: &mut BytesMut) {
    let wrong = random.random_ratio(1, 150);
    let stream = match random.random_range(0..3) {
        0 if wrong => random.random(),
        1 if wrong => last.wrapping_add(1),
        _ => random.random_range(last.saturating_sub(20)..=last),
    };
    let mut bytes = vec![0; random.random_range(0..200)];
    random.fill_bytes(&mut bytes);
    if random.random_ratio(1, 10) {
        bytes.resize(random.random_range(0..=CHUNK), 0);
    }
    // Long messages on odd streams, multicasts to even ones: the two must not mix.
    let ids: Vec<u8> = (0..random.random_range(1..6))
        .flat_map(|_| {
            let id = random.random_range(last.saturating_sub(20)..=last);
            let odd_allowed = u32::from(!wrong);
            (id & !odd_allowed).to_be_bytes()
        })
        .collect();
    let frame = match random.random_range(0..100) {
        0 if wrong => *[
            Frame::Hello(&bytes),
            Frame::Challenge(&bytes),
            Frame::Auth(&bytes),
            Frame::Ready,
            Frame::Refuse(&bytes),
        ]
        .choose(random)
        .unwrap(),
        0..10 if side == Side::Acceptor || wrong => Frame::Open {
            stream: if wrong { stream } else { last + 1 },
        },
        10..60 => Frame::Data {
            stream,
            kind: u8::from(wrong),
            last: stream.is_multiple_of(2) || random.random_ratio(1, 3),
            bytes: &bytes,
        },
        60..75 => Frame::Multicast {
            streams: &ids,
            bytes: &bytes,
        },
        75..80 => Frame::Close {
            stream,
            code: random.random(),
            reason: reason(random.random_range(0..80)),
        },
        80..90 => Frame::Credit {
            stream,
            bytes: if wrong { random.random() } else { 0 },
        },
        90..94 => Frame::Ping(random.random()),
        94..96 => Frame::Pong(random.random()),
        96..98 => Frame::Gossip(&bytes),
        _ => Frame::View {
            epoch: random.random(),
            hash: random.random(),
        },
    };
    frame::encode(&frame, out);
}

fn reason(length: usize) -> &'static str {
    const LONGEST: &str =
        "ééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééé";
    &LONGEST[..2 * length]
}

/// Bends a frame as a broken or hostile peer might: bits, lengths, cuts, copies.
fn bend(random: &mut StdRng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = random.random_range(0..bytes.len());
    match random.random_range(0..6) {
        0 => bytes[at] ^= 1 << random.random_range(0..8),
        1 => bytes[at] = random.random(),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, random.random()),
        4 => {
            let copy = bytes[at..].to_vec();
            bytes.extend_from_slice(&copy);
        }
        _ => {
            let prefix = random.random::<u32>() >> random.random_range(0..32);
            let length = bytes.len().min(4);
            bytes[..length].copy_from_slice(&prefix.to_be_bytes()[..length]);
        }
    }
}

/// What a mux may hold, given how many streams are open: a window of chunks for each on the way in
/// (twice, as a buffer grows by doubling), the out-buffer, and the book-keeping.
fn allowed(streams: usize) -> usize {
    streams * (2 * WINDOW as usize + 4096) + 4 * OUT_HIGH + MAX_FRAME
}

#[test]
fn bytes_that_are_frames_are_the_only_bytes_of_those_frames() {
    let mut random = StdRng::seed_from_u64(10);
    let mut decoded = 0;
    for round in 0..100_000_u32 {
        let mut body = vec![0; random.random_range(0..40)];
        random.fill_bytes(&mut body);
        if let Some(tag) = body.first_mut()
            && round % 4 != 0
        {
            let tags = [
                0x01, 0x02, 0x03, 0x04, 0x05, 0x10, 0x11, 0x12, 0x13, 0x14, 0x20, 0x21, 0x30,
            ];
            *tag = *tags.choose(&mut random).unwrap();
        }
        if body.first() == Some(&0x11) && body.len() > 6 {
            body[6] &= 3;
        }
        let Ok(frame) = frame::decode(&body) else {
            continue;
        };
        decoded += 1;
        let mut again = BytesMut::new();
        frame::encode(&frame, &mut again);
        assert_eq!(again[4..], body, "{frame:?} has two spellings");
        assert_eq!(again[..4], (body.len() as u32).to_be_bytes());
    }
    assert!(decoded > 1_000, "only {decoded} were frames");
}

#[test]
fn random_bytes_are_split_or_refused_within_the_limit() {
    let mut random = StdRng::seed_from_u64(11);
    for _ in 0..2_000 {
        let mut buffer = BytesMut::new();
        let before = held();
        let limit = random.random_range(1..MAX_FRAME);
        for _ in 0..random.random_range(1..20) {
            let mut bytes = vec![0; random.random_range(0..2_000)];
            random.fill_bytes(&mut bytes);
            if random.random() {
                let length = random.random_range(0..=limit as u32 + 1);
                bytes.splice(..0, length.to_be_bytes());
            }
            buffer.extend_from_slice(&bytes);
            match frame::split(&mut buffer, limit) {
                Ok(Some(body)) => assert!(!body.is_empty() && body.len() <= limit),
                Ok(None) => {}
                Err(FrameError::TooLong(length, most)) => {
                    assert!(length > limit && most == limit);
                    break;
                }
                Err(FrameError::Empty) => break,
                Err(other) => panic!("{other:?} from split"),
            }
        }
        let more = held().saturating_sub(before);
        assert!(
            more <= 2 * (limit + 50_000),
            "{more} bytes for frames of {limit}"
        );
    }
}

#[test]
fn a_mux_takes_any_frames_and_stays_within_its_windows() {
    let mut violations = 0;
    for seed in 0..500 {
        let mut random = StdRng::seed_from_u64(seed);
        let side = if seed % 3 == 0 {
            Side::Dialer
        } else {
            Side::Acceptor
        };
        let before = held();
        let mut mux = Mux::new(side);
        let mut watch = Watch::default();
        mux.connect();
        let mut last = 0;
        if side == Side::Dialer {
            for id in 1..=random.random_range(1..10) {
                mux.open(id, T);
                mux.send(id, 1, b"meta", &mut watch);
                watch.open.insert(id, 0);
                last = id;
            }
        }
        let mut buffer = BytesMut::new();
        for _ in 0..300 {
            let mut bytes = BytesMut::new();
            any_frame(&mut random, side, last, &mut bytes);
            let mut bytes = bytes.to_vec();
            // Later in an episode, so that there is something to break.
            if random.random_ratio(1, 400) {
                bend(&mut random, &mut bytes);
            }
            let result = feed(&mut mux, &mut buffer, &bytes, &mut watch);
            last = last.max(watch.open.keys().copied().max().unwrap_or(0));
            // The local side goes on talking, and its socket takes what it likes.
            let id = random.random_range(0..=last);
            match random.random_range(0..8) {
                0 => mux.send(id, 0, &vec![0; random.random_range(0..40_000)], &mut watch),
                1 => mux.pause(id, random.random()),
                2 if random.random_ratio(1, 4) => {
                    mux.close(id, 1000, "enough");
                    watch.end(id);
                }
                3 => {
                    // Ids that are closed or unknown are among them.
                    let recent = last.saturating_sub(20)..=last;
                    let ids: Vec<u32> = recent.step_by(2).collect();
                    mux.multicast(&ids, &[0; 500], &mut watch);
                }
                _ => mux.wrote(random.random_range(0..=mux.out().len())),
            }
            // A stream that is closing here may still be known, never the other way round.
            assert!(
                mux.len() >= watch.open.len(),
                "seed {seed}: a stream is lost"
            );
            let queued = mux.backlog();
            let most = allowed(mux.len()) + queued;
            let more = held().saturating_sub(before);
            assert!(more <= most, "seed {seed}: {more} bytes of {most}");
            if result.is_err() {
                violations += 1;
                break;
            }
        }
        // A link that ends lets go of every stream, and says so of each that it had told of.
        mux.disconnect("gone", &mut watch);
        mux.expire(Duration::MAX, "gone", &mut watch);
        assert!(
            watch.open.is_empty(),
            "seed {seed}: {:?} never closed",
            watch.open
        );
        assert_eq!((mux.len(), mux.backlog()), (0, 0), "seed {seed}");
        drop((mux, watch, buffer));
        let more = held().saturating_sub(before);
        assert!(more < 4096, "seed {seed}: {more} bytes leaked");
    }
    assert!(
        (50..500).contains(&violations),
        "{violations} of 500 ended by violation"
    );
}

/// One direction of a wire: bytes written and not yet read.
#[derive(Default)]
struct Wire {
    bytes: VecDeque<u8>,
    buffer: BytesMut,
}

impl Wire {
    fn take(&mut self, random: &mut StdRng, mux: &mut Mux) {
        let count = random.random_range(0..=mux.out().len());
        self.bytes.extend(&mux.out()[..count]);
        mux.wrote(count);
    }

    fn give(&mut self, random: &mut StdRng, mux: &mut Mux, watch: &mut Watch) -> Result<(), End> {
        let count = random.random_range(0..=self.bytes.len());
        let bytes: Vec<u8> = self.bytes.drain(..count).collect();
        feed(mux, &mut self.buffer, &bytes, watch)
    }
}

/// Two streams of which the later speaks first.
#[test]
fn streams_may_speak_in_any_order() {
    let mut watch = Watch::default();
    let (mut edge, mut owner) = (Mux::new(Side::Dialer), Mux::new(Side::Acceptor));
    edge.connect();
    owner.connect();
    edge.open(1, T);
    edge.open(2, T);
    edge.send(2, 1, b"first", &mut watch);
    edge.send(1, 1, b"second", &mut watch);
    let bytes = edge.out().to_vec();
    let result = feed(&mut owner, &mut BytesMut::new(), &bytes, &mut watch);
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(watch.messages, 2);
}

fn numbered(stream: u32, number: u32, length: usize) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(4 + length, stream as u8);
    bytes
}

/// Two muxes that behave, however the wire cuts their bytes and whoever pauses, closes or cuts the
/// link: never a violation, nothing lost, nothing out of order.
#[test]
fn two_honest_muxes_never_offend_each_other() {
    let mut messages = 0;
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(1_000_000 + seed);
        let (mut edge, mut owner) = (Mux::new(Side::Dialer), Mux::new(Side::Acceptor));
        let numbering = || Watch {
            numbered: true,
            ..Watch::default()
        };
        let (mut at_edge, mut at_owner) = (numbering(), numbering());
        let (mut there, mut back) = (Wire::default(), Wire::default());
        edge.connect();
        owner.connect();
        let mut last = 0;
        // The number of the next message of each stream, by its sender.
        let (mut from_edge, mut from_owner) = (HashMap::new(), HashMap::new());
        for _ in 0..400 {
            let id = random.random_range(0..=last);
            let length = match random.random_range(0..20) {
                0 => random.random_range(0..600_000),
                1..4 => random.random_range(0..70_000),
                _ => random.random_range(0..300),
            };
            match random.random_range(0..12) {
                0 if last < 12 => {
                    last += 1;
                    edge.open(last, T);
                    at_edge.open.insert(last, 0);
                    // Whoever opens a stream speaks on it at once.
                    edge.send(last, 0, &numbered(last, 0, length), &mut at_edge);
                    from_edge.insert(last, 1);
                }
                1..4 => {
                    if let Some(number) = from_edge.get_mut(&id) {
                        edge.send(id, 0, &numbered(id, *number, length), &mut at_edge);
                        *number += 1;
                    }
                }
                4..6 if at_owner.open.contains_key(&id) => {
                    let number: &mut u32 = from_owner.entry(id).or_default();
                    owner.send(id, 0, &numbered(id, *number, length), &mut at_owner);
                    *number += 1;
                }
                6 => edge.pause(id, random.random()),
                7 => owner.pause(id, random.random()),
                8 if random.random_ratio(1, 8) && at_edge.end(id) => {
                    edge.close(id, 1000, "edge");
                    from_edge.remove(&id);
                }
                9 if random.random_ratio(1, 8) && at_owner.end(id) => {
                    owner.close(id, 4000, "owner");
                }
                10 if random.random_ratio(1, 40) => {
                    edge.disconnect("cut", &mut at_edge);
                    owner.disconnect("cut", &mut at_owner);
                    assert!(owner.is_empty() && at_owner.open.is_empty());
                    owner = Mux::new(Side::Acceptor);
                    at_owner.ended.clear();
                    from_owner.clear();
                    (there, back) = (Wire::default(), Wire::default());
                    from_edge.retain(|id, _| at_edge.open.contains_key(id));
                    edge.connect();
                    owner.connect();
                }
                _ => {}
            }
            there.take(&mut random, &mut edge);
            back.take(&mut random, &mut owner);
            // A closed stream's remaining messages still arrive at the side that did not close.
            let result = there.give(&mut random, &mut owner, &mut at_owner);
            assert!(result.is_ok(), "seed {seed}: {result:?} at the owner");
            let result = back.give(&mut random, &mut edge, &mut at_edge);
            assert!(result.is_ok(), "seed {seed}: {result:?} at the edge");
            from_edge.retain(|id, _| at_edge.open.contains_key(id));
            for mux in [&edge, &owner] {
                assert!(mux.out().len() <= 2 * OUT_HIGH + MAX_FRAME, "seed {seed}");
            }
        }
        // Everybody reads again: all that was sent on open streams arrives.
        for id in 0..=last {
            edge.pause(id, false);
            owner.pause(id, false);
        }
        for _ in 0..100_000 {
            if edge.out().is_empty()
                && owner.out().is_empty()
                && there.bytes.is_empty()
                && back.bytes.is_empty()
            {
                break;
            }
            there.take(&mut random, &mut edge);
            back.take(&mut random, &mut owner);
            there.give(&mut random, &mut owner, &mut at_owner).unwrap();
            back.give(&mut random, &mut edge, &mut at_edge).unwrap();
        }
        assert_eq!(
            edge.backlog() + owner.backlog(),
            0,
            "seed {seed}: something is stuck"
        );
        for (id, sent) in &from_edge {
            if *sent > 0 && at_edge.open.contains_key(id) {
                assert_eq!(
                    at_owner.open.get(id),
                    Some(sent),
                    "seed {seed}: stream {id}"
                );
            }
        }
        messages += at_edge.messages + at_owner.messages;
    }
    assert!(messages > 1_500, "only {messages} messages");
}

fn identity(id: &str) -> Identity {
    Identity {
        node: Member {
            id: id.into(),
            incarnation: 1,
            address: "127.0.0.1".into(),
            port: 80,
            link_port: None,
            weight: 1.0,
            state: MemberState::Active,
        },
        agreement: Agreement {
            cluster_name: "test".into(),
            hash: "xxh3-64".into(),
            virtual_nodes: 150,
            enforce_routing: true,
            membership: "peers".into(),
            cluster_tls: false,
        },
        secrets: Secrets::new(["secret"]),
    }
}

/// No bent word of a handshake passes, whichever of the four it is and whoever bent it.
#[test]
fn a_handshake_with_a_bent_word_never_passes() {
    let (a, b) = (identity("a"), identity("b"));
    for seed in 0..4_000 {
        let mut random = StdRng::seed_from_u64(2_000_000 + seed);
        let dialer = Dialer::new(&a, "b", random.random());
        let mut hello = dialer.hello().to_vec();
        let bent = seed % 3;
        if bent == 0 {
            bend(&mut random, &mut hello);
        }
        let Ok(acceptor) = Acceptor::new(&b, &hello, random.random()) else {
            assert!(bent == 0, "seed {seed}");
            continue;
        };
        let mut challenge = acceptor.challenge();
        if bent == 1 {
            bend(&mut random, &mut challenge);
        }
        let unchanged = hello == dialer.hello() && challenge == acceptor.challenge();
        let Ok((_, proof)) = dialer.answer(&challenge) else {
            assert!(!unchanged, "seed {seed}: a good handshake was refused");
            // And what would the acceptor say to a guess?
            assert!(acceptor.finish(&random.random::<[u8; 32]>()).is_err());
            continue;
        };
        assert!(unchanged, "seed {seed}: the dialer took a bent word");
        let mut proof = proof.to_vec();
        if bent == 2 {
            bend(&mut random, &mut proof);
        }
        let same = acceptor.finish(&proof).is_ok();
        assert_eq!(
            same,
            proof == dialer.answer(&challenge).unwrap().1,
            "seed {seed}"
        );
    }
}

#[test]
fn a_peer_that_only_asks_costs_no_more_than_one_that_talks() {
    let mut watch = Watch::default();
    let mut mux = Mux::new(Side::Acceptor);
    mux.connect();
    // Nothing is written: the peer does not read.
    let before = held();
    let mut result = Ok(());
    for number in 0..1_000_000 {
        result = mux.receive(&Frame::Ping(number), T, &mut watch);
        if result.is_err() {
            break;
        }
    }
    let more = held().saturating_sub(before);
    assert!(more <= 4 * OUT_HIGH, "{more} bytes of answers, {result:?}");
}

#[test]
fn a_peer_that_opens_streams_without_end_is_stopped() {
    let mut watch = Watch::default();
    let mut mux = Mux::new(Side::Acceptor);
    mux.connect();
    for stream in 1..=300_000 {
        if mux.receive(&Frame::Open { stream }, T, &mut watch).is_err() {
            return;
        }
    }
    panic!("{} streams are open on one link", mux.len());
}

#[test]
#[ignore = "holds half a gigabyte; run with --ignored"]
fn messages_that_are_never_whole_are_bounded_on_the_link_too() {
    let mut watch = Watch::default();
    let mut mux = Mux::new(Side::Acceptor);
    mux.connect();
    let before = held();
    let chunk = vec![0; CHUNK];
    for stream in 1..=1_000 {
        let mut result = mux.receive(&Frame::Open { stream }, T, &mut watch);
        // 1.6 MB a stream, read and granted all the time, and no end of the message in sight.
        for _ in 0..100 {
            let frame = Frame::Data {
                stream,
                kind: 0,
                last: false,
                bytes: &chunk,
            };
            result = result.and_then(|()| mux.receive(&frame, T, &mut watch));
            mux.wrote(mux.out().len());
        }
        let more = held().saturating_sub(before);
        if result.is_err() {
            return;
        }
        assert!(
            more <= 2 * LINK_QUEUE,
            "{more} bytes in messages that are not whole"
        );
    }
}

#[test]
fn a_queue_of_tiny_messages_is_bounded_by_what_it_takes() {
    let mut watch = Watch::default();
    // The link is down: everything waits.
    let mut mux = Mux::new(Side::Dialer);
    mux.open(1, T);
    watch.open.insert(1, 0);
    let before = held();
    for length in [0, 1] {
        for _ in 0..2_000_000 {
            mux.send(1, 0, &[0; 1][..length], &mut watch);
        }
        let more = held().saturating_sub(before);
        let most = 2 * STREAM_QUEUE;
        assert!(
            more <= most,
            "{more} bytes wait as {} bytes of messages",
            mux.backlog()
        );
    }
}
