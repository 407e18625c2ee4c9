//! The link over real TCP, first in peace, then under attack.
//!
//! `cargo test --no-default-features --test link_tcp`. Where a test is about time and moves few
//! bytes, tokio's clock is paused: it runs on as soon as everything waits for a timer.

mod support;

use std::time::Duration;

use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use smartroute::link::auth::{Acceptor, Dialer, Identity, Refusal, RefusalCode};
use smartroute::link::connection::Link;
use smartroute::link::frame::{self, CHUNK, Frame, MAX_FRAME, MAX_HANDSHAKE_FRAME};
use smartroute::link::mux::{OUT_HIGH, WINDOW, close};
use smartroute::link::secrets::Secrets;
use smartroute::link::upgrade::TIMEOUT;
use support::*;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Two nodes; `a` names `b`, and `b` learns of `a` by its link.
async fn pair() -> (Node, Node) {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    a.knows("b", b.port);
    b.accepted("a").await;
    a.dialed("b").await;
    a.accepted("b").await;
    b.dialed("a").await;
    (a, b)
}

fn message(stream: u32, kind: u8, bytes: &[u8]) -> impl Fn(&Event) -> bool {
    move |event| {
        matches!(event, Event::Message { stream: s, kind: k, bytes: b, .. }
            if *s == stream && *k == kind && b == bytes)
    }
}

fn opened(wanted: u32) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Opened { stream, .. } if *stream == wanted)
}

fn closed(wanted: u32) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Closed { stream, .. } if *stream == wanted)
}

fn down(accepted: bool) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Down { accepted: a, .. } if *a == accepted)
}

fn close_code(event: &Event) -> u16 {
    match event {
        Event::Closed { code, .. } => *code,
        other => panic!("{other:?}"),
    }
}

/// Messages of a stream, in order, multicast ones included.
fn messages(events: &[Event], wanted: u32) -> Vec<&[u8]> {
    let bytes = |event| match event {
        &Event::Message {
            stream, ref bytes, ..
        } if stream == wanted => Some(&bytes[..]),
        Event::Multicast { streams, bytes, .. } if streams.contains(&wanted) => Some(&bytes[..]),
        _ => None,
    };
    events.iter().filter_map(bytes).collect()
}

/// A stranger's identity that would be let in by `node`.
fn stranger(node: &Node, id: &str) -> Identity {
    let mut identity = node.identity();
    // Nothing listens on port 1: the node's own dialing is refused at once.
    identity.node = member(id, 1);
    identity
}

/// A stranger with an open stream, 1, on a link accepted by `node`.
async fn intruder(node: &mut Node, id: &str) -> (Raw, std::sync::Arc<Link>) {
    let identity = stranger(node, id);
    let mut raw = Raw::linked(node.port, &identity, node.id).await.unwrap();
    let data = data(1, 1, true, b"meta");
    raw.frames(&[Frame::Open { stream: 1 }, data]).await;
    let link = node.accepted(id).await;
    let number = link.id;
    node.sees(
        "the stranger's stream",
        |event| matches!(event, Event::Message { link, stream: 1, .. } if *link == number),
    )
    .await;
    (raw, link)
}

fn data(stream: u32, kind: u8, last: bool, bytes: &[u8]) -> Frame<'_> {
    Frame::Data {
        stream,
        kind,
        last,
        bytes,
    }
}

// In peace

#[tokio::test]
async fn two_nodes_link_both_ways_and_everything_crosses() {
    let (mut a, mut b) = pair().await;
    let edge = a.dialed("b").await;
    let owner = b.accepted("a").await;
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 31) as u8).collect();

    for stream in [1, 2] {
        edge.open(stream);
        edge.send(stream, 1, b"meta");
        edge.send(stream, 0, &[stream as u8; 100]);
    }
    edge.send(1, 0, &big);
    edge.send(1, 7, b"");
    edge.flush();
    b.sees("the end of stream 1", message(1, 7, b"")).await;
    b.sees("stream 2", message(2, 0, &[2; 100])).await;
    assert_eq!(messages(&b.events, 1), [b"meta", &[1; 100][..], &big, b""]);
    assert_eq!(messages(&b.events, 2), [b"meta", &[2; 100][..]]);

    owner.multicast(&[1, 2], b"to both");
    owner.send(2, 3, b"to one");
    owner.multicast(&[2, 1], &big);
    owner.flush();
    a.until("the long multicast", |events| {
        let got = |stream| messages(events, stream).len();
        (got(1) == 2 && got(2) == 3).then_some(())
    })
    .await;
    assert_eq!(messages(&a.events, 1), [&b"to both"[..], &big]);
    assert_eq!(messages(&a.events, 2), [b"to both", &b"to one"[..], &big]);
    a.sees("one record for both", |event| {
        matches!(event, Event::Multicast { streams, bytes, .. }
            if streams == &[1, 2] && bytes == b"to both")
    })
    .await;

    edge.close(1, 4401, "Unauthorized");
    edge.flush();
    let end = b.sees("stream 1 closed", closed(1)).await;
    assert_eq!(close_code(&end), 4401);
    owner.send(2, 0, b"last words");
    owner.close(2, 1000, "bye");
    owner.flush();
    a.sees("stream 2 closed", closed(2)).await;
    assert_eq!(messages(&a.events, 2).last(), Some(&&b"last words"[..]));
    assert_eq!((edge.load().0, owner.load().0), (0, 0));

    // The other direction is a link of its own, with streams of its own.
    let back = b.dialed("a").await;
    back.open(1);
    back.send(1, 0, b"the other way");
    back.flush();
    a.sees("the other way", message(1, 0, b"the other way"))
        .await;
}

#[tokio::test]
async fn bytes_that_came_with_the_upgrade_request_are_part_of_the_handshake() {
    let mut b = Node::start("b").await;
    let identity = stranger(&b, "x");
    let dialer = Dialer::new(&identity, "b", rand::random());
    let socket = tokio::net::TcpStream::connect(("127.0.0.1", b.port));
    let mut raw = Raw::over(socket.await.unwrap());
    let hello = encoded(&[Frame::Hello(dialer.hello())]);
    raw.write(&[&upgrade_request()[..], &hello].concat()).await;
    raw.head().await;
    let body = raw.frame().await.unwrap();
    let Frame::Challenge(challenge) = frame::decode(&body).unwrap() else {
        panic!("{body:?}");
    };
    let (_, proof) = dialer.answer(challenge).unwrap();
    // The first stream comes with the proof, before READY: it must not be lost either.
    let first = [
        Frame::Auth(&proof),
        Frame::Open { stream: 3 },
        data(3, 1, true, b"early"),
    ];
    raw.frames(&first).await;
    b.sees("the early message", message(3, 1, b"early")).await;
}

#[tokio::test]
async fn fifty_megabytes_each_way_at_once_do_not_lock_up() {
    let (mut a, mut b) = pair().await;
    let (edge, owner) = (a.dialed("b").await, b.accepted("a").await);
    for stream in 1..=4 {
        edge.open(stream);
        edge.send(stream, 1, b"meta");
    }
    edge.flush();
    b.sees("the last stream", opened(4)).await;
    // One message of 38 MB, and three streams of small ones that must not wait for it.
    let big = vec![7; 38_000_000];
    for link in [&edge, &owner] {
        link.send(1, 0, &big);
        for n in 0..1_000_u32 {
            for stream in 2..=4 {
                link.send(stream, 0, &n.to_be_bytes().repeat(1_000));
            }
        }
        link.flush();
    }
    // Until here nobody has read; both sockets are full or about to be.
    let small = |events: &[Event], stream: u32| -> Vec<u32> {
        let long = |bytes: &&&[u8]| bytes.len() == 4_000;
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let all = messages(events, stream);
        all.iter().filter(long).map(|bytes| number(bytes)).collect()
    };
    let whole = |events: &[Event]| {
        let lengths = messages(events, 1);
        let big = lengths.iter().any(|bytes| bytes.len() == big.len());
        (big && (2..=4).all(|stream| small(events, stream).len() == 1_000)).then_some(())
    };
    tokio::join!(a.until("50 MB", whole), b.until("50 MB", whole));
    for node in [&a, &b] {
        for stream in 2..=4 {
            let got = small(&node.events, stream);
            assert!(got.into_iter().eq(0..1_000), "stream {stream} out of order");
        }
        let closed = |event: &Event| matches!(event, Event::Closed { .. });
        assert!(!node.events.iter().any(closed));
    }
}

/// Two nodes that both write first and read afterwards would wait for each other for ever.
#[tokio::test]
async fn a_node_whose_socket_is_full_goes_on_reading() {
    let mut b = Node::start("b").await;
    let (mut raw, link) = intruder(&mut b, "x").await;
    for stream in 2..=100 {
        raw.frames(&[Frame::Open { stream }]).await;
    }
    b.sees("the last stream", opened(100)).await;
    let bytes = vec![3; WINDOW as usize];
    for stream in 1..=100 {
        link.send(stream, 0, &bytes);
    }
    link.flush();
    let (_, waiting, _) = link.load();
    assert!(waiting > 0, "the kernel took 25 MB");
    // 19 MB of frames that need no credit, from a peer that reads nothing until they are out.
    let frames = encoded(&[Frame::View { epoch: 1, hash: 1 }; 1_000]);
    for _ in 0..900 {
        raw.write(&frames).await;
    }
    raw.frames(&[data(1, 0, true, b"the end")]).await;
    b.sees("the end", message(1, 0, b"the end")).await;
    // And then it reads.
    let mut got = 0;
    while got < 100 * bytes.len() {
        let body = raw.frame().await.expect("a frame");
        if let Frame::Data { bytes, .. } = frame::decode(&body).unwrap() {
            got += bytes.len();
        }
    }
    assert!(link.is_up());
}

#[tokio::test]
async fn a_slow_reader_delays_nobody_else() {
    let (mut a, mut b) = pair().await;
    let (edge, owner) = (a.dialed("b").await, b.accepted("a").await);
    for stream in [1, 2, 3] {
        edge.open(stream);
        edge.send(stream, 1, b"meta");
    }
    edge.flush();
    b.sees("the last stream", opened(3)).await;
    edge.pause(1, true);
    let text = |n: u32| n.to_be_bytes().repeat(1_000);
    let count = 3_000;
    for n in 0..count {
        owner.multicast(&[1, 2, 3], &text(n));
    }
    owner.flush();
    a.until("12 MB on the streams that are read", |events| {
        let whole = |stream| messages(events, stream).len() == count as usize;
        (whole(2) && whole(3)).then_some(())
    })
    .await;
    let got = messages(&a.events, 1).len();
    assert!(
        got <= WINDOW as usize / 4_000,
        "{got} messages despite the pause"
    );
    assert!(owner.load().2 > 0, "no stall was counted");
    // Other traffic of the link goes on, too.
    edge.send(3, 0, b"a word");
    edge.flush();
    b.sees("a word", message(3, 0, b"a word")).await;
    edge.pause(1, false);
    a.until("the rest", |events| {
        (messages(events, 1).len() == count as usize).then_some(())
    })
    .await;
    let in_order = messages(&a.events, 1)
        .iter()
        .zip(0..)
        .all(|(bytes, n)| *bytes == text(n));
    assert!(in_order);
    // A reader that never comes back costs its own stream only.
    edge.pause(1, true);
    for round in 1..=180 {
        for n in 0..100 {
            owner.multicast(&[1, 2], &text(n));
        }
        owner.flush();
        // In step with the reader that does keep up.
        a.until("the reader that keeps up", |events| {
            (messages(events, 2).len() == (count + 100 * round) as usize).then_some(())
        })
        .await;
    }
    let end = b.sees("the stuck stream closed here", closed(1)).await;
    assert_eq!(close_code(&end), close::OVERLOADED);
    let end = a.sees("the stuck stream closed there", closed(1)).await;
    assert_eq!(close_code(&end), close::OVERLOADED);
    let others = |event: &Event| closed(2)(event) || closed(3)(event);
    assert!(!a.events.iter().chain(&b.events).any(others));
}

// Links that break

#[tokio::test]
async fn a_cut_link_closes_what_the_peer_knew_and_delivers_what_it_did_not() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    let relay = Relay::to(b.port).await;
    a.knows("b", relay.port);
    let edge = a.dialed("b").await;
    b.accepted("a").await;
    edge.open(1);
    edge.send(1, 1, b"meta");
    edge.open(2);
    edge.flush();
    b.sees("stream 1", message(1, 1, b"meta")).await;
    b.sees("stream 2, which has said nothing", opened(2)).await;

    relay.cut();
    for node in [&mut a, &mut b] {
        for stream in [1, 2] {
            let end = node.sees("the stream closed", closed(stream)).await;
            assert_eq!(close_code(&end), close::UNAVAILABLE);
        }
    }
    a.sees("the link down", down(false)).await;
    b.sees("the link down", down(true)).await;
    let big = vec![9; 1_000_000];
    edge.open(3);
    edge.send(3, 1, b"three");
    edge.send(3, 0, &big);
    edge.send(3, 0, b"after");
    edge.open(4);
    edge.send(4, 1, b"changed my mind");
    edge.close(4, 1000, "");
    edge.open(5);
    edge.send(1, 0, b"nobody there");
    edge.flush();

    relay.mend();
    b.sees("stream 3", message(3, 0, b"after")).await;
    edge.send(3, 0, b"and on");
    edge.flush();
    b.sees("stream 3", message(3, 0, b"and on")).await;
    // 4 may be heard of, but must not stay; 5 was opened and has something to say only now.
    edge.send(5, 1, b"late");
    edge.flush();
    b.sees("stream 5", message(5, 1, b"late")).await;
    assert_eq!(edge.load().0, 2);
    let expected = [b"three", &big[..], b"after", b"and on"];
    assert_eq!(messages(&b.events, 3), expected);
    assert_eq!(messages(&b.events, 1), [b"meta"]);
    assert!(!a.events.iter().any(closed(3)));
}

#[tokio::test]
async fn a_link_that_is_removed_hangs_up_whoever_still_holds_it_and_opens_no_stream() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    a.knows("b", b.port);
    let edge = a.dialed("b").await;
    b.accepted("a").await;
    // As the coordinator does with a node that left. What is not hung up stays readable, and the
    // JavaScript thread's event loop would spin.
    edge.stop.cancel();
    a.core.remove_link(&edge, "it left");
    b.sees("the link down", down(true)).await;
    // Found before it was removed, used after.
    edge.open(1);
    edge.send(1, 1, b"meta");
    edge.flush();
    let end = a.sees("stream 1 closed", closed(1)).await;
    assert_eq!(close_code(&end), close::UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn streams_outwait_a_dead_peer_by_the_migration_timeout_at_most() {
    for silent in [false, true] {
        let mut settings = settings();
        settings.migration_timeout = 1_000;
        let mut a = Node::with("a", SECRET, settings).await;
        let fake = Fake::bind().await;
        let port = fake.port;
        // A silent peer accepts (its kernel does) and says nothing; a dead one refuses.
        let listener = silent.then_some(fake);
        a.knows("ghost", port);
        let core = std::sync::Arc::clone(&a.core);
        let link = a.until("a link", |_| core.links().into_iter().next()).await;
        link.open(1);
        link.send(1, 1, b"hello?");
        link.flush();
        let began = Instant::now();
        let end = a.sees("the stream closed", closed(1)).await;
        assert_eq!(close_code(&end), close::UNAVAILABLE);
        let waited = began.elapsed().as_millis();
        assert!(
            (1_000..=1_500).contains(&waited),
            "{waited} ms, silent: {silent}"
        );
        drop(listener);
    }
}

#[tokio::test]
async fn a_peer_killed_at_any_byte_of_a_frame_ends_its_streams() {
    let mut b = Node::start("b").await;
    let frames = encoded(&[
        data(1, 0, false, &[5; 64]),
        Frame::Credit {
            stream: 1,
            bytes: 0,
        },
        Frame::Multicast {
            streams: &[0, 0, 0, 1],
            bytes: b"x",
        },
    ]);
    // 0 ends between two frames; odd ones with a reset, as a killed process does.
    for cut in (0..frames.len()).step_by(7) {
        let id = format!("x{cut}");
        let (mut raw, link) = intruder(&mut b, &id).await;
        raw.write(&frames[..cut]).await;
        if cut % 2 == 1 {
            raw.socket.set_zero_linger().unwrap();
        }
        drop(raw);
        let number = link.id;
        let end = b
            .sees(
                "the stream closed",
                |event| matches!(event, Event::Closed { link, stream: 1, .. } if *link == number),
            )
            .await;
        assert_eq!(close_code(&end), close::UNAVAILABLE);
        b.sees(
            "the link down",
            |event| matches!(event, Event::Down { link, .. } if *link == number),
        )
        .await;
        assert!(b.core.link(number).is_none(), "the link is still known");
    }
}

#[tokio::test]
async fn a_node_that_stops_hangs_up_on_everyone() {
    // Which of two tasks sees the stop first is up to tokio: once is not enough.
    for _ in 0..20 {
        let mut b = Node::start("b").await;
        let (mut raw, link) = intruder(&mut b, "x").await;
        let mut waiting = Raw::upgraded(b.port).await;
        b.core.stop.cancel();
        raw.closed().await;
        waiting.closed().await;
        assert!(!link.is_up());
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_given_up_after_the_patience() {
    let mut b = Node::start("b").await;
    let (mut raw, _) = intruder(&mut b, "x").await;
    let began = Instant::now();
    // It reads, and answers no ping.
    raw.closed().await;
    let waited = began.elapsed();
    assert!(
        waited >= Duration::from_secs(3) && waited < Duration::from_secs(5),
        "{waited:?}"
    );
    let end = b.sees("the link down", down(true)).await;
    assert!(
        format!("{end:?}").contains("nothing heard for 3000 ms"),
        "{end:?}"
    );
    b.sees("its stream closed", closed(1)).await;
}

// Strangers at the door

/// Bytes that no handshake begins with, and why.
fn garbage(node: &Node) -> Vec<(String, Vec<u8>)> {
    let identity = stranger(node, "x");
    let dialer = Dialer::new(&identity, node.id, [7; 32]);
    let hello = encoded(&[Frame::Hello(dialer.hello())]);
    let prefixed = |length: u32, body: &[u8]| [&length.to_be_bytes()[..], body].concat();
    let mut all: Vec<(String, Vec<u8>)> = vec![
        ("nothing".into(), vec![]),
        ("an empty frame".into(), prefixed(0, b"")),
        ("the longest length".into(), prefixed(u32::MAX, b"\x01")),
        (
            "one byte too long".into(),
            prefixed(MAX_HANDSHAKE_FRAME as u32 + 1, b"\x01"),
        ),
        (
            "a HELLO of the greatest length that is none".into(),
            prefixed(MAX_HANDSHAKE_FRAME as u32, &[1; MAX_HANDSHAKE_FRAME]),
        ),
        (
            "JSON nested without end".into(),
            prefixed(8_000, &[b"\x01", &b"[".repeat(7_999)[..]].concat()),
        ),
        ("an unknown type".into(), prefixed(1, b"\xee")),
        ("HELLO in HELLO".into(), [&hello[..], &hello].concat()),
        (
            "HELLO, then nonsense".into(),
            [&hello[..], b"nonsense!"].concat(),
        ),
    ];
    let streams = [0, 0, 0, 1];
    for frame in [
        Frame::Hello(b""),
        Frame::Hello(b"{}"),
        Frame::Hello(b"\xff\xfe"),
        Frame::Challenge(&[0; 64]),
        Frame::Auth(&[0; 32]),
        Frame::Ready,
        Frame::Refuse(b""),
        Frame::Refuse(b"{}"),
        Frame::Refuse(br#"{"code":"secret","reason":"no, you"}"#),
        Frame::Refuse(br#"{"code":"who-knows","reason":"later version"}"#),
        Frame::Open { stream: 1 },
        data(1, 0, true, b"x"),
        Frame::Multicast {
            streams: &streams,
            bytes: b"x",
        },
        Frame::Close {
            stream: 1,
            code: 1000,
            reason: "",
        },
        Frame::Credit {
            stream: 1,
            bytes: 1,
        },
        Frame::Ping(1),
        Frame::Pong(1),
        Frame::View { epoch: 1, hash: 1 },
    ] {
        let bytes = encoded(&[frame]);
        all.push((format!("{frame:?} first"), bytes.to_vec()));
        all.push((format!("{frame:?} for AUTH"), [&hello[..], &bytes].concat()));
    }
    for cut in (1..hello.len()).step_by(23) {
        all.push((format!("HELLO cut at {cut}"), hello[..cut].to_vec()));
    }
    for at in (0..hello.len()).step_by(11) {
        let mut bent = hello.to_vec();
        bent[at] ^= 0x15;
        all.push((format!("HELLO with byte {at} bent"), bent));
    }
    let mut random = StdRng::seed_from_u64(4);
    for seed in 0..100 {
        let mut bytes = vec![0; random.random_range(1..5_000)];
        random.fill_bytes(&mut bytes);
        if seed % 2 == 0 && bytes.len() > 8 {
            // Half of them with a length that is allowed and a type that exists.
            bytes[..4].copy_from_slice(&random.random_range(1..8_192_u32).to_be_bytes());
            bytes[4] = random.random_range(1..6);
        }
        all.push((format!("random bytes {seed}"), bytes));
    }
    all
}

/// Sends every kind of garbage; each ends its connection at once, with a word where there can be.
async fn pelt(b: &mut Node) -> u64 {
    let all = garbage(b);
    let before = b.core.refused.load(std::sync::atomic::Ordering::Relaxed);
    let count = all.len() as u64;
    for (what, bytes) in all {
        let mut raw = Raw::upgraded(b.port).await;
        raw.write(&bytes).await;
        // What is wrong as it stands is not waited on; the rest might still become a handshake.
        let wrong = [
            " first",
            " for AUTH",
            " long",
            " length",
            " type",
            "empty frame",
        ];
        let malformed = [" first", " long", " length", " type", "empty frame"];
        if !wrong.iter().any(|end| what.ends_with(end)) {
            let _ = raw.socket.shutdown().await;
        }
        let refusal = timeout(TIMEOUT / 2, raw.closed()).await;
        let refusal = refusal.unwrap_or_else(|_| panic!("left hanging by {what}"));
        if malformed.iter().any(|end| what.ends_with(end)) && !what.starts_with("Refuse") {
            let refusal = refusal.unwrap_or_else(|| panic!("no reason given for {what}"));
            assert_eq!(refusal.code, RefusalCode::Malformed, "{what}");
        }
    }
    b.refused(before + count).await;
    before + count
}

#[tokio::test]
async fn garbage_for_a_handshake_ends_the_connection_and_nothing_else() {
    let (mut a, mut b) = pair().await;
    let edge = a.dialed("b").await;
    edge.open(1);
    edge.send(1, 1, b"before");
    edge.flush();
    b.sees("a stream before", message(1, 1, b"before")).await;
    let known = b.events.len();
    pelt(&mut b).await;
    for event in &b.events[known..] {
        assert!(matches!(event, Event::Log { .. }), "{event:?}");
    }
    // The shim writes each key once: their number is what an operator sees.
    let mut keys: Vec<_> = b.events[known..]
        .iter()
        .map(|event| match event {
            Event::Log { key, .. } => key.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    keys.sort_unstable();
    keys.dedup();
    assert!(keys.len() <= 8, "{keys:?}");
    edge.send(1, 0, b"after");
    edge.flush();
    b.sees("the same stream after", message(1, 0, b"after"))
        .await;
}

#[tokio::test]
async fn oversized_and_endless_handshakes_leave_memory_flat() {
    if !alone("oversized_and_endless_handshakes_leave_memory_flat") {
        return;
    }
    let mut b = Node::start("b").await;
    pelt(&mut b).await;
    b.events.clear();
    let before = resident();
    for _ in 0..5 {
        pelt(&mut b).await;
        b.events.clear();
        // A length that is never made good, with megabytes behind it.
        let mut raw = Raw::upgraded(b.port).await;
        raw.write(&(MAX_HANDSHAKE_FRAME as u32).to_be_bytes()).await;
        for _ in 0..100 {
            raw.write(&[1; 64 * 1024]).await;
        }
        raw.closed().await;
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
}

#[tokio::test]
async fn a_wrong_or_missing_secret_is_refused_by_both_sides_and_said_once() {
    for (ours, theirs) in [("right", "wrong"), ("", "right"), ("right", "")] {
        let mut a = Node::with("a", ours, settings()).await;
        let mut b = Node::with("b", theirs, settings()).await;
        a.knows("b", b.port);
        // Two attempts.
        a.until("two refusals", |events| {
            let log = |event: &&Event| matches!(event, Event::Log { .. });
            (events.iter().filter(log).count() >= 2).then_some(())
        })
        .await;
        b.until("two refusals", |events| {
            let log = |event: &&Event| matches!(event, Event::Log { .. });
            (events.iter().filter(log).count() >= 2).then_some(())
        })
        .await;
        for (node, key) in [(&a, "dial b secret"), (&b, "accept secret")] {
            node.untouched();
            for event in &node.events {
                match event {
                    Event::View => {}
                    Event::Log {
                        key: found,
                        message,
                        ..
                    } => {
                        assert_eq!(found, key);
                        assert!(message.contains("clusterSecret"), "{message}");
                        assert!(!message.contains("right") && !message.contains("wrong"));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        // A dialer that does not care whether the acceptor knows the secret gets no further.
        let mut raw = Raw::upgraded(b.port).await;
        let identity = stranger(&a, "x");
        let dialer = Dialer::new(&identity, "b", rand::random());
        raw.frames(&[Frame::Hello(dialer.hello())]).await;
        raw.frame().await.expect("a challenge");
        let stream = Frame::Open { stream: 1 };
        raw.frames(&[Frame::Auth(&[0; 32]), stream]).await;
        let refusal = raw.closed().await.expect("a reason");
        assert_eq!(refusal.code, RefusalCode::Secret);
        b.drain();
        b.untouched();
    }
}

#[tokio::test]
async fn without_a_secret_only_loopback_may_link() {
    let mut b = Node::with("b", "", settings()).await;
    let identity = stranger(&b, "x");
    let dialer = Dialer::new(&identity, "b", rand::random());
    let hello = encoded(&[Frame::Hello(dialer.hello())]);
    b.core.accept_pipe(&hello, false);
    b.sees(
        "the refusal",
        |event| matches!(event, Event::Log { key, .. } if key == "accept notloopback"),
    )
    .await;
    b.untouched();
    assert!(Raw::linked(b.port, &identity, "b").await.is_ok());
}

/// A good handshake and a stream, as a wire-tap sees them: from the dialer, from the acceptor.
async fn tapped(a: &mut Node, b: &mut Node) -> (Vec<u8>, Vec<u8>) {
    let relay = Relay::to(b.port).await;
    a.knows("b", relay.port);
    let edge = a.dialed("b").await;
    edge.open(1);
    edge.send(1, 1, b"open, sesame");
    edge.flush();
    b.sees("the stream", message(1, 1, b"open, sesame")).await;
    let recorded = relay.recorded.lock().unwrap().clone();
    // The node moves away from the relay.
    a.core
        .request(smartroute::handle::Command::Remove("b".into()))
        .unwrap();
    b.sees("the link down", down(true)).await;
    recorded
}

#[tokio::test]
async fn a_replayed_handshake_opens_nothing() {
    let (mut a, mut b) = (Node::start("a").await, Node::start("b").await);
    let (from_dialer, from_acceptor) = tapped(&mut a, &mut b).await;
    // It has heard of a, and dials it on its own.
    b.dialed("a").await;
    b.drain();
    let known = b.events.len();
    // All of it at once, and from a fresh connection in the right rhythm.
    for eager in [true, false] {
        let socket = tokio::net::TcpStream::connect(("127.0.0.1", b.port));
        let mut raw = Raw::over(socket.await.unwrap());
        if eager {
            raw.write(&from_dialer).await;
            raw.head().await;
        } else {
            let end = 4 + from_dialer
                .windows(4)
                .position(|w| w == b"\r\n\r\n")
                .unwrap();
            raw.write(&from_dialer[..end]).await;
            raw.head().await;
            let mut rest = BytesMut::from(&from_dialer[end..]);
            let hello = frame::split(&mut rest, MAX_FRAME).unwrap().unwrap();
            raw.frames(&[frame::decode(&hello).unwrap()]).await;
            raw.frame().await.expect("a challenge");
            raw.write(&rest).await;
        }
        let refusal = raw.closed().await.expect("a reason");
        assert_eq!(refusal.code, RefusalCode::Secret);
    }
    b.refused(2).await;
    for event in &b.events[known..] {
        assert!(
            matches!(event, Event::Log { key, .. } if key == "accept secret" || key.contains(" a ")),
            "{event:?}"
        );
    }

    // And from the other end: a dialer does not fall for a recorded acceptor.
    let fake = Fake::bind().await;
    let mut c = Node::start("a").await;
    c.knows("b", fake.port);
    let mut raw = fake.requested().await;
    raw.write(&from_acceptor).await;
    c.sees(
        "the refusal",
        |event| matches!(event, Event::Log { key, .. } if key == "dial b secret"),
    )
    .await;
    assert!(
        !c.events
            .iter()
            .any(|event| matches!(event, Event::Up { .. }))
    );
}

#[tokio::test]
async fn a_peer_that_claims_anothers_id_is_refused_and_the_other_stays() {
    let (mut a, mut b) = pair().await;
    let edge = a.dialed("b").await;
    edge.open(1);
    edge.send(1, 1, b"mine");
    edge.flush();
    b.sees("the stream", message(1, 1, b"mine")).await;
    let known = b.events.len();

    // Somebody without the secret, as `a` to the last bit.
    let mut forged = a.identity();
    forged.secrets = Secrets::new(["guess"]);
    assert_eq!(refused_by(&b, &forged, "guess").await, RefusalCode::Secret);
    // Another node of the cluster that was given the same id.
    let mut twin = a.identity();
    twin.node.incarnation = 2;
    assert_eq!(refused_by(&b, &twin, SECRET).await, RefusalCode::IdTaken);
    // A copy to the last bit, with the secret: the one that is linked stays.
    assert_eq!(
        refused_by(&b, &a.identity(), SECRET).await,
        RefusalCode::IdTaken
    );
    // The id of the node it dials.
    let mut twin = b.identity();
    twin.node.incarnation = 2;
    assert_eq!(refused_by(&b, &twin, SECRET).await, RefusalCode::IdTaken);
    assert_eq!(
        refused_by(&b, &b.identity(), SECRET).await,
        RefusalCode::OwnNode
    );
    b.refused(5).await;
    for event in &b.events[known..] {
        assert!(matches!(event, Event::Log { .. }), "{event:?}");
    }
    assert_eq!(b.core.snapshot.load().view.members.len(), 2);
    edge.send(1, 0, b"still mine");
    edge.flush();
    b.sees("the rightful node", message(1, 0, b"still mine"))
        .await;
}

#[tokio::test]
async fn whoever_comes_in_the_place_of_a_peer_that_is_gone_ends_what_is_left_of_it() {
    let mut settings = settings();
    settings.link_patience = 60_000;
    let mut b = Node::with("b", SECRET, settings).await;
    // It answers no ping: its machine has lost power, say.
    let (mut gone, _) = intruder(&mut b, "x").await;
    let mut identity = stranger(&b, "x");
    identity.node.incarnation = 2;
    let mut back = Raw::linked(b.port, &identity, b.id).await.unwrap();
    within("the old link ended", gone.closed()).await;
    b.sees("its stream closed", closed(1)).await;
    back.frames(&[Frame::Open { stream: 7 }]).await;
    b.sees("the new stream", opened(7)).await;
}

/// The refusal of `node` to a dialer that ignores the acceptor's proof, so that the node's own
/// judgement counts.
async fn refused_by(node: &Node, identity: &Identity, secret: &str) -> RefusalCode {
    let mut raw = Raw::upgraded(node.port).await;
    let dialer = Dialer::new(identity, node.id, rand::random());
    raw.frames(&[Frame::Hello(dialer.hello())]).await;
    let body = raw.frame().await.expect("a challenge");
    let Frame::Challenge(challenge) = frame::decode(&body).unwrap() else {
        panic!("{body:?}");
    };
    let proof = forge(secret, dialer.hello(), challenge);
    raw.frames(&[Frame::Auth(&proof), Frame::Open { stream: 1 }])
        .await;
    raw.closed().await.expect("a reason").code
}

/// Proof B as `docs/PROTOCOL.md` gives it, whatever the acceptor proved.
fn forge(secret: &str, hello: &[u8], challenge: &[u8]) -> Vec<u8> {
    use hmac::{Hmac, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    for part in [b"smartroute-link-1 dialer", hello, &challenge[32..]] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

#[tokio::test]
async fn a_link_that_reaches_its_own_node_or_the_wrong_one_says_so() {
    let (mut a, b) = (Node::start("a").await, Node::start("b").await);
    a.knows("mirror", a.port);
    a.knows("c", b.port);
    // The own id in `clusterNodes` is no mistake.
    a.knows("a", a.port);
    let own = a
        .sees(
            "a word on the mirror",
            |event| matches!(event, Event::Log { key, .. } if key == "dial mirror ownnode"),
        )
        .await;
    assert!(
        format!("{own:?}").contains("leads back to this node, a"),
        "{own:?}"
    );
    let wrong = a
        .sees(
            "a word on the wrong node",
            |event| matches!(event, Event::Log { key, .. } if key == "dial c wrongnode"),
        )
        .await;
    assert!(
        format!("{wrong:?}").contains("given for c leads to b"),
        "{wrong:?}"
    );
    a.untouched();
    assert!(
        !a.events
            .iter()
            .any(|event| matches!(event, Event::Up { .. }))
    );
}

#[tokio::test(start_paused = true)]
async fn a_handshake_in_drips_is_cut_off_in_time() {
    let mut b = Node::start("b").await;
    let identity = stranger(&b, "x");
    let dialer = Dialer::new(&identity, "b", rand::random());
    let hello = encoded(&[Frame::Hello(dialer.hello())]);
    for whole_hello in [false, true] {
        let began = Instant::now();
        let mut raw = Raw::upgraded(b.port).await;
        let bytes = if whole_hello {
            raw.write(&hello).await;
            raw.frame().await.expect("a challenge");
            encoded(&[Frame::Auth(&[0; 32])])
        } else {
            hello.clone()
        };
        // One byte less than needed, so that only the clock can end it.
        let drip = async {
            for byte in bytes[..bytes.len() - 1].chunks(1) {
                if raw.socket.write_all(byte).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(400)).await;
            }
        };
        let _ = timeout(Duration::from_secs(7), drip).await;
        raw.closed().await;
        b.until("the log", |events| {
            let late = |event: &&Event| format!("{event:?}").contains("longer than 5 s");
            (events.iter().filter(late).count() == 1 + usize::from(whole_hello)).then_some(())
        })
        .await;
        let waited = began.elapsed();
        assert!(
            waited >= TIMEOUT && waited < TIMEOUT + Duration::from_secs(3),
            "{waited:?}"
        );
    }
    b.untouched();
}

#[tokio::test(start_paused = true)]
async fn two_hundred_silent_connections_cost_little_and_end() {
    if !alone("two_hundred_silent_connections_cost_little_and_end") {
        return;
    }
    let mut b = Node::start("b").await;
    Raw::upgraded(b.port).await.closed().await;
    let (memory, files) = (resident(), descriptors());
    let mut peak = 0;
    for round in 1..=3 {
        let began = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..200 {
            let socket = tokio::net::TcpStream::connect(("127.0.0.1", b.port));
            let mut raw = Raw::over(socket.await.unwrap());
            raw.write(&upgrade_request()).await;
            silent.push(raw);
        }
        peak = peak.max(resident());
        for raw in &mut silent {
            // Not `closed`, which gives up earlier than the last of them is due.
            let mut bytes = Vec::new();
            let end = tokio::io::AsyncReadExt::read_to_end(&mut raw.socket, &mut bytes);
            timeout(Duration::from_secs(60), end)
                .await
                .expect("an end")
                .unwrap();
        }
        let waited = began.elapsed();
        assert!(
            waited <= TIMEOUT * 5,
            "{waited:?} until the last was closed"
        );
        b.refused(1 + 200 * round).await;
        drop(silent);
    }
    let grown = peak.max(resident()).saturating_sub(memory);
    assert!(grown < 8 << 20, "{grown} bytes more");
    assert!(
        descriptors() <= files + 4,
        "{} descriptors, {files} before",
        descriptors()
    );
    b.untouched();
}

#[tokio::test(start_paused = true)]
async fn silent_connections_do_not_keep_a_node_out() {
    let (mut a, b) = (Node::start("a").await, Node::start("b").await);
    // As many as they like, each dialed again as soon as it is closed.
    let mut crowd = JoinSet::new();
    let port = b.port;
    for _ in 0..1_200 {
        crowd.spawn(async move {
            loop {
                let socket = tokio::net::TcpStream::connect(("127.0.0.1", port));
                let mut socket = socket.await.unwrap();
                let _ = socket.write_all(&upgrade_request()).await;
                let mut bytes = Vec::new();
                let _ = tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut bytes).await;
            }
        });
    }
    sleep(Duration::from_secs(12)).await;
    a.knows("b", b.port);
    a.dialed("b").await;
}

// A fake node at the other end of a dialed link

#[tokio::test(start_paused = true)]
async fn a_dialer_survives_whatever_answers() {
    let mut a = Node::start("a").await;
    let fake = Fake::bind().await;
    a.knows("evil", fake.port);
    let with = |bytes: &[u8]| [SWITCHING, bytes].concat();
    let refuse = |json: &[u8]| with(&encoded(&[Frame::Refuse(json)]));
    let endless = [
        b"HTTP/1.1 101 Switching Protocols\r\nX: ",
        &b"y".repeat(1 << 20)[..],
    ]
    .concat();
    let many = [b"HTTP/1.1 101 OK\r\n", &b"A: b\r\n".repeat(500)[..]].concat();
    let answers: Vec<(&str, Vec<u8>)> = vec![
        ("unreachable", vec![]),
        ("unreachable", SWITCHING[..40].to_vec()),
        ("unreachable", SWITCHING.to_vec()),
        ("unreachable", with(&[0, 0, 0])),
        ("unreachable", with(&[0, 0, 1, 0, 2])),
        ("not-smartroute", b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec()),
        (
            "not-smartroute",
            b"HTTP/1.1 200 OK\r\nUpgrade: smartroute\r\n\r\n".to_vec(),
        ),
        (
            "not-smartroute",
            b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\n\r\n".to_vec(),
        ),
        (
            "tls",
            b"HTTP/1.1 426 X\r\nUpgrade: TLS/1.3\r\n\r\n".to_vec(),
        ),
        (
            "not-smartroute",
            b"HTTP/1.1 426 X\r\nUpgrade: smartroute\r\n\r\n".to_vec(),
        ),
        ("not-smartroute", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
        ("not-smartroute", vec![0xff; 1_000]),
        ("not-smartroute", endless),
        ("not-smartroute", many),
        ("bad-frame", with(&[0xff; 64])),
        ("bad-frame", with(&[0, 0, 0, 0])),
        ("bad-frame", with(&[0, 0, 0, 1, 0xee])),
        ("malformed", with(&encoded(&[Frame::Ready]))),
        ("malformed", with(&encoded(&[Frame::Ping(1)]))),
        ("malformed", with(&encoded(&[Frame::Open { stream: 1 }]))),
        ("malformed", with(&encoded(&[Frame::Hello(b"{}")]))),
        ("malformed", with(&encoded(&[Frame::Challenge(b"short")]))),
        (
            "malformed",
            with(&encoded(&[Frame::Challenge(&[b'{'; 100])])),
        ),
        ("malformed", refuse(b"?")),
        (
            "mismatch",
            refuse(br#"{"code":"mismatch","reason":"too old"}"#),
        ),
        (
            "other",
            refuse(br#"{"code":"not-yet-invented","reason":"?"}"#),
        ),
    ];
    // Silence is no answer either. First, as a peer that is not there is logged only after a while.
    let mut raw = fake.requested().await;
    assert!(
        raw.closed().await.is_none(),
        "it may be anything, and is told nothing"
    );
    said(&mut a, "unreachable", "silence").await;
    let mut raw = fake.requested().await;
    raw.write(SWITCHING).await;
    let refusal = raw.closed().await.expect("a reason");
    assert_eq!(refusal.code, RefusalCode::Other);
    assert_eq!(refusal.reason, "the handshake took too long");
    said(&mut a, "unreachable", "silence after the upgrade").await;

    for (code, answer) in answers {
        let what = String::from_utf8_lossy(&answer[..answer.len().min(90)]).into_owned();
        let mut raw = fake.requested().await;
        raw.write(&answer).await;
        let _ = raw.socket.shutdown().await;
        let refusal = raw.closed().await.map(|refusal| refusal.code);
        let ours = matches!(code, "bad-frame" | "malformed");
        assert_eq!(refusal, ours.then_some(RefusalCode::Malformed), "{what:?}");
        said(&mut a, code, &what).await;
    }

    // Acceptors that go through the motions, with something wrong with them.
    let right = stranger(&a, "evil");
    let mut ignorant = right.clone();
    ignorant.secrets = Secrets::new(["guess"]);
    let mut other = right.clone();
    other.node.id = "somebody else".into();
    let mut unlike = right.clone();
    unlike.agreement.virtual_nodes = 7;
    for (code, identity) in [
        ("secret", ignorant),
        ("wrongnode", other),
        ("mismatch", unlike),
        ("ownnode", a.identity()),
    ] {
        let mut raw = fake.requested().await;
        raw.write(SWITCHING).await;
        let hello = raw.frame().await.unwrap();
        let Frame::Hello(hello) = frame::decode(&hello).unwrap() else {
            panic!("{hello:?}");
        };
        let acceptor = Acceptor::new(&identity, hello, rand::random()).unwrap();
        // READY at once: nobody may take it for an answer to what was not asked.
        let challenge = acceptor.challenge();
        let frames = [Frame::Challenge(&challenge), Frame::Ready];
        raw.frames(&frames).await;
        let refusal = raw.closed().await;
        let refusal = refusal.unwrap_or_else(|| panic!("the acceptor was not told: {code}"));
        assert_eq!(format!("{:?}", refusal.code).to_lowercase(), code);
        said(&mut a, code, code).await;
    }
    assert!(
        !a.events
            .iter()
            .any(|event| matches!(event, Event::Up { .. }))
    );

    // The last one does everything right until the link is open.
    for _ in 0..2 {
        let mut raw = fake.requested().await;
        raw.write(SWITCHING).await;
        let hello = raw.frame().await.unwrap();
        let Frame::Hello(hello) = frame::decode(&hello).unwrap() else {
            panic!("{hello:?}");
        };
        let acceptor = Acceptor::new(&right, hello, rand::random()).unwrap();
        raw.frames(&[Frame::Challenge(&acceptor.challenge())]).await;
        let auth = raw.frame().await.unwrap();
        let Frame::Auth(proof) = frame::decode(&auth).unwrap() else {
            panic!("{auth:?}");
        };
        acceptor.finish(proof).unwrap();
        raw.frames(&[Frame::Ready, Frame::Open { stream: 1 }]).await;
        raw.closed().await;
        a.sees("the link down", |event| {
            matches!(event, Event::Down { reason, .. } if reason.contains("stream 1 opened out of turn"))
        })
        .await;
        a.events
            .retain(|event| !matches!(event, Event::Down { .. }));
    }
    assert!(
        !a.events
            .iter()
            .any(|event| matches!(event, Event::Opened { .. }))
    );
}

/// Waits until the dialer has logged that case, and forgets it.
async fn said(a: &mut Node, code: &str, what: &str) {
    let key = format!("dial evil {code}");
    let logged = |event: &Event| matches!(event, Event::Log { .. });
    let first = a
        .until(what, |events| events.iter().find(|e| logged(e)).cloned())
        .await;
    assert!(
        matches!(&first, Event::Log { key: found, .. } if *found == key),
        "{key} expected for {what:?}, {first:?}"
    );
    a.events.retain(|event| !logged(event));
}

// Peers that are let in and misbehave

#[tokio::test]
async fn a_violation_on_an_open_link_ends_that_link_with_a_reason() {
    let mut b = Node::start("b").await;
    let (_, bystander) = {
        let identity = stranger(&b, "bystander");
        let raw = Raw::linked(b.port, &identity, "b").await.unwrap();
        let link = b.accepted("bystander").await;
        (Box::leak(Box::new(raw)), link)
    };
    let chunk = vec![0; CHUNK];
    let flood: Vec<Frame<'_>> = (0..=WINDOW as usize / CHUNK)
        .map(|_| data(1, 0, false, &chunk))
        .collect();
    let list = |ids: &[u32]| {
        ids.iter()
            .flat_map(|id| id.to_be_bytes())
            .collect::<Vec<u8>>()
    };
    let (unknown, twice) = (list(&[1, 99]), list(&[1, 1]));
    let prefixed = |length: u32, body: &[u8]| [&length.to_be_bytes()[..], body].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (encoded(&[Frame::Ready]).to_vec(), "handshake frame"),
        (encoded(&[Frame::Hello(b"{}")]).to_vec(), "handshake frame"),
        (
            encoded(&[Frame::Auth(&[0; 32])]).to_vec(),
            "handshake frame",
        ),
        (
            encoded(&[Frame::Open { stream: 1 }]).to_vec(),
            "stream 1 opened out of turn",
        ),
        (
            encoded(&[Frame::Open { stream: 0 }]).to_vec(),
            "stream 0 opened out of turn",
        ),
        (
            encoded(&[data(9, 0, true, b"")]).to_vec(),
            "stream 9, which was never opened",
        ),
        (
            encoded(&[Frame::Close {
                stream: 9,
                code: 1000,
                reason: "",
            }])
            .to_vec(),
            "stream 9, which was never opened",
        ),
        (
            encoded(&[Frame::Credit {
                stream: 9,
                bytes: 1,
            }])
            .to_vec(),
            "stream 9, which was never opened",
        ),
        (
            encoded(&[Frame::Multicast {
                streams: &unknown,
                bytes: b"x",
            }])
            .to_vec(),
            "stream 99, which was never opened",
        ),
        (
            encoded(&[Frame::Credit {
                stream: 1,
                bytes: 1,
            }])
            .to_vec(),
            "stream 1 sent more than its credit",
        ),
        (
            encoded(&[Frame::Credit {
                stream: 1,
                bytes: u32::MAX,
            }])
            .to_vec(),
            "stream 1 sent more than its credit",
        ),
        (
            encoded(&[data(1, 0, false, b"x"), data(1, 1, true, b"y")]).to_vec(),
            "changed the kind",
        ),
        (
            encoded(&[
                data(1, 1, false, b"x"),
                Frame::Multicast {
                    streams: &twice,
                    bytes: b"y",
                },
            ])
            .to_vec(),
            "changed the kind",
        ),
        (prefixed(0, b""), "empty frame"),
        (prefixed(MAX_FRAME as u32 + 1, b""), "where at most"),
        (prefixed(u32::MAX, b""), "where at most"),
        (prefixed(1, b"\x7f"), "unknown frame type 0x7f"),
        (prefixed(2, b"\x10\x00"), "malformed frame of type 0x10"),
        (
            prefixed(5, b"\x12\x00\x00\x00\x00"),
            "malformed frame of type 0x12",
        ),
        (
            prefixed(5, b"\x12\xff\xff\xff\xff"),
            "malformed frame of type 0x12",
        ),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "where at most"),
    ];
    for (number, (bytes, reason)) in cases.into_iter().enumerate() {
        let id = format!("x{number}");
        let (mut raw, link) = intruder(&mut b, &id).await;
        raw.write(&bytes).await;
        let said = raw.closed().await.expect("a reason on the wire");
        assert_eq!(said.code, RefusalCode::Malformed);
        assert!(said.reason.contains(reason), "{reason}: {said:?}");
        let end = b
            .sees(
                reason,
                |event| matches!(event, Event::Down { node, .. } if *node == id),
            )
            .await;
        assert!(format!("{end:?}").contains(reason), "{reason}: {end:?}");
        let number = link.id;
        b.sees("its stream closed", |event| {
            matches!(event, Event::Closed { link, code: close::UNAVAILABLE, .. } if *link == number)
        })
        .await;
    }
    // More than was granted, by a reader that is paused: without it the credit comes back.
    let (mut raw, link) = intruder(&mut b, "greedy").await;
    link.pause(1, true);
    raw.frames(&flood).await;
    raw.closed().await;
    b.sees("the greedy peer gone", |event| {
        matches!(event, Event::Down { node, reason, .. }
            if node == "greedy" && reason.contains("stream 1 sent more than its credit"))
    })
    .await;
    assert!(bystander.is_up());
}

#[tokio::test]
async fn random_frames_on_an_open_link_hurt_only_that_link() {
    let (mut a, mut b) = pair().await;
    let edge = a.dialed("b").await;
    edge.open(1);
    edge.send(1, 1, b"before");
    edge.flush();
    let mut random = StdRng::seed_from_u64(5);
    for number in 0..60 {
        let id = format!("x{number}");
        let (mut raw, _) = intruder(&mut b, &id).await;
        let mut bytes = vec![0; random.random_range(1..20_000)];
        random.fill_bytes(&mut bytes);
        if number % 2 == 0 {
            // A frame of every type in turn with a random body.
            let tag = [0x10, 0x11, 0x12, 0x13, 0x14, 0x20, 0x21, 0x30][number / 2 % 8];
            let length = random.random_range(1..64_u32);
            bytes.truncate(4 + length as usize);
            bytes.resize(4 + length as usize, 0);
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            bytes[4] = tag;
        }
        raw.write(&bytes).await;
        let _ = raw.socket.shutdown().await;
        raw.closed().await;
        b.sees(
            "the link down",
            |event| matches!(event, Event::Down { node, .. } if *node == id),
        )
        .await;
    }
    edge.send(1, 0, b"after");
    edge.flush();
    b.sees("the honest stream", message(1, 0, b"after")).await;
}

#[tokio::test]
async fn pings_without_end_that_nobody_reads_the_answers_to_are_bounded() {
    let mut b = Node::start("b").await;
    let (mut raw, link) = intruder(&mut b, "x").await;
    let pings = encoded(&[Frame::Ping(0); 10_000]);
    // 26 MB, far more than the kernel buffers between two sockets.
    let flood = async {
        for _ in 0..200 {
            if raw.socket.write_all(&pings).await.is_err() {
                break;
            }
        }
    };
    // Not reading on, and hanging up, are both fine.
    let _ = timeout(Duration::from_secs(2), flood).await;
    let (_, waiting, _) = link.load();
    assert!(
        waiting <= 4 * OUT_HIGH,
        "{waiting} bytes wait for a peer that does not read"
    );
}

#[tokio::test]
async fn a_dialer_that_ends_its_link_with_a_reason_is_quoted_in_the_log() {
    let mut b = Node::start("b").await;
    let (mut raw, _link) = intruder(&mut b, "x").await;
    let refusal = Refusal::new(RefusalCode::Malformed, "it does not add up");
    let json = serde_json::to_vec(&refusal).unwrap();
    raw.frames(&[Frame::Refuse(&json)]).await;
    b.sees("the reason", |event| {
        matches!(event, Event::Log { key, message, .. }
            if key == "closed x" && message.ends_with("closed by the peer: it does not add up"))
    })
    .await;
    // The same before the link is open.
    let identity = stranger(&b, "y");
    let dialer = Dialer::new(&identity, "b", rand::random());
    let mut raw = Raw::upgraded(b.port).await;
    raw.frames(&[Frame::Hello(dialer.hello()), Frame::Refuse(&json)])
        .await;
    b.sees("the other reason", |event| {
        matches!(event, Event::Log { message, .. }
            if message == "a link was refused: refused by the peer: it does not add up")
    })
    .await;
}

#[tokio::test]
async fn a_refusal_from_a_later_version_is_readable() {
    let json = br#"{"code":"not-yet-invented","reason":"why","more":[1]}"#;
    let refusal: Refusal = serde_json::from_slice(json).unwrap();
    assert_eq!(refusal.code, RefusalCode::Other);
}
