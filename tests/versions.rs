//! Two versions of SmartRoute in one cluster, as during a rolling upgrade or downgrade: a simulated later
//! one meets this one over real sockets, from either side.
//!
//! `cargo test --no-default-features --test versions`

#[allow(dead_code, reason = "the other half is for tests that attack a node")]
mod support;

use bytes::BytesMut;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use smartroute::link::auth::{Acceptor, Dialer, PROOF, RefusalCode};
use smartroute::link::frame::{self, Frame, PROTOCOL};
use support::*;

/// A proof as `docs/PROTOCOL.md` gives it.
fn proof(side: &str, hello: &[u8], challenge: &[u8]) -> [u8; PROOF] {
    let label = format!("smartroute-link-1 {side}");
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    for part in [label.as_bytes(), hello, challenge] {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// What a node says of itself, with what a later version may add to it.
fn later(id: &str, port: u16) -> (Value, Value) {
    let node = json!({
        "id": id, "incarnation": 1, "address": "127.0.0.1", "port": port, "weight": 1.0,
        "state": "active", "later": { "zone": "eu" },
    });
    let agreement = json!({
        "clusterName": "test", "hash": "xxh3-64", "virtualNodes": 150, "enforceRouting": true,
        "membership": "peers", "later": [1],
    });
    (node, agreement)
}

fn nonce() -> String {
    "5a".repeat(32)
}

/// A HELLO of a version that speaks `protocol`, and the answer to it.
async fn dial(node: &Node, protocol: [u16; 2]) -> (Raw, Vec<u8>, BytesMut) {
    let (own, agreement) = later("later", 1);
    let hello = json!({
        "protocol": protocol, "node": own, "to": node.id, "nonce": nonce(),
        "agreement": agreement, "later": true,
    });
    let hello = hello.to_string().into_bytes();
    let mut raw = Raw::upgraded(node.port).await;
    raw.frames(&[Frame::Hello(&hello)]).await;
    let answer = raw.frame().await.expect("an answer to HELLO");
    (raw, hello, answer)
}

#[tokio::test]
async fn a_later_version_that_dials_speaks_the_lower_one() {
    let mut node = Node::start("b").await;
    let (mut raw, hello, answer) = dial(&node, [1, PROTOCOL.1 + 1]).await;
    let Frame::Challenge(body) = frame::decode(&answer).unwrap() else {
        panic!("{answer:?}");
    };
    let (proved, text) = body.split_at(PROOF);
    assert_eq!(proved, proof("acceptor", &hello, text));
    let challenge: Value = serde_json::from_slice(text).unwrap();
    assert_eq!(challenge["protocol"], PROTOCOL.1);
    let auth = proof("dialer", &hello, text);
    raw.frames(&[Frame::Auth(&auth)]).await;
    let ready = raw.frame().await.expect("READY");
    assert!(matches!(frame::decode(&ready).unwrap(), Frame::Ready));
    // And the link works. Kinds of gossip that only the later version knows are ignored.
    let data = Frame::Data {
        stream: 1,
        kind: 1,
        last: true,
        bytes: b"a frame of version 1",
    };
    let gossip = Frame::Gossip(&[0xee, 1, 2, 3]);
    raw.frames(&[gossip, Frame::Open { stream: 1 }, data]).await;
    node.sees(
        "its message",
        |event| matches!(event, Event::Message { bytes, .. } if bytes == b"a frame of version 1"),
    )
    .await;
    node.accepted("later").await;
}

#[tokio::test]
async fn a_version_that_has_nothing_in_common_is_refused_and_told_both_ranges() {
    let mut node = Node::start("b").await;
    let next = PROTOCOL.1 + 1;
    let (mut raw, _, answer) = dial(&node, [next, next + 1]).await;
    let Frame::Refuse(json) = frame::decode(&answer).unwrap() else {
        panic!("{answer:?}");
    };
    let refusal: smartroute::link::auth::Refusal = serde_json::from_slice(json).unwrap();
    assert_eq!(refusal.code, RefusalCode::Protocol);
    let said = format!(
        "later speaks link protocols {next} to {}, this node {} to {}",
        next + 1,
        PROTOCOL.0,
        PROTOCOL.1
    );
    assert!(refusal.reason.contains(&said), "{refusal}");
    assert_eq!(raw.closed().await, None);
    let key = "accept protocol";
    node.sees("it here, too", |event| {
        matches!(event, Event::Log { key: found, message, .. } if found == key && message.contains(&said))
    })
    .await;
    node.untouched();
}

/// How a later version that is dialed answers.
enum Answer {
    Speaks(u16),
    Refuses,
}

async fn dialed(node: &mut Node, fake: &Fake, answer: Answer) -> Raw {
    let mut raw = fake.requested().await;
    raw.write(SWITCHING).await;
    let body = raw.frame().await.unwrap();
    let Frame::Hello(hello) = frame::decode(&body).unwrap() else {
        panic!("{body:?}");
    };
    let said: Value = serde_json::from_slice(hello).unwrap();
    assert_eq!(said["protocol"], json!([PROTOCOL.0, PROTOCOL.1]));
    let protocol = match answer {
        Answer::Speaks(protocol) => protocol,
        Answer::Refuses => {
            let json = br#"{"code":"protocol","reason":"too old for me","later":1}"#;
            raw.frames(&[Frame::Refuse(json)]).await;
            return raw;
        }
    };
    let (own, agreement) = later("later", fake.port);
    let text = json!({
        "protocol": protocol, "node": own, "nonce": nonce(), "agreement": agreement, "later": {},
    });
    let text = text.to_string().into_bytes();
    let challenge = [&proof("acceptor", hello, &text)[..], &text].concat();
    raw.frames(&[Frame::Challenge(&challenge)]).await;
    let Some(body) = raw.frame().await else {
        panic!("{} hung up", node.id);
    };
    match frame::decode(&body).unwrap() {
        Frame::Auth(auth) => {
            assert_eq!(auth, proof("dialer", hello, &text));
            raw.frames(&[Frame::Ready]).await;
        }
        Frame::Refuse(_) => {}
        other => panic!("{other:?}"),
    }
    raw
}

#[tokio::test]
async fn a_later_version_that_is_dialed_chooses_the_lower_one() {
    let mut node = Node::start("a").await;
    let fake = Fake::bind().await;
    node.knows("later", fake.port);
    for (answer, said) in [
        (Answer::Refuses, "too old for me"),
        // What was not offered cannot be chosen.
        (
            Answer::Speaks(PROTOCOL.1 + 1),
            "later chose link protocol 2, this node speaks 1 to 1",
        ),
    ] {
        drop(dialed(&mut node, &fake, answer).await);
        node.sees(said, |event| {
            matches!(event, Event::Log { key, message, .. } if key == "dial later protocol" && message.contains(said))
        })
        .await;
    }
    let mut raw = dialed(&mut node, &fake, Answer::Speaks(PROTOCOL.1)).await;
    let link = node.dialed("later").await;
    link.open(1);
    link.send(1, 1, b"a frame of version 1");
    link.flush();
    loop {
        let body = raw.frame().await.expect("the message");
        if let Frame::Data { bytes, .. } = frame::decode(&body).unwrap() {
            assert_eq!(bytes, b"a frame of version 1");
            break;
        }
    }
}

/// The handshake of version 1, letter by letter: what was released must go on being understood, and what
/// is sent must be what released versions understand.
#[tokio::test]
async fn the_handshake_of_version_1() {
    let node = Node::start("b").await;
    let hello = r#"{"protocol":[1,1],"node":{"id":"a","incarnation":7,"address":"10.0.0.1","port":8000,"linkPort":9000,"weight":1.5,"state":"joining"},"to":"b","nonce":"5a5a","agreement":{"clusterName":"test","hash":"xxh3-64","virtualNodes":150,"enforceRouting":true,"membership":"peers"}}"#;
    let identity = node.identity();
    let acceptor = Acceptor::new(&identity, hello.as_bytes(), [0xa5; 32]).unwrap();
    assert_eq!(acceptor.peer.node.link_port(), 9000);
    let expected = format!(
        r#"{{"protocol":1,"node":{{"id":"b","incarnation":1,"address":"127.0.0.1","port":{},"weight":1.0,"state":"active"}},"nonce":"{}","agreement":{{"clusterName":"test","hash":"xxh3-64","virtualNodes":150,"enforceRouting":true,"membership":"peers"}}}}"#,
        node.port,
        "a5".repeat(32),
    );
    let challenge = acceptor.challenge();
    assert_eq!(std::str::from_utf8(&challenge[PROOF..]).unwrap(), expected);
    assert_eq!(
        challenge[..PROOF],
        proof("acceptor", hello.as_bytes(), expected.as_bytes())
    );
    acceptor
        .finish(&proof("dialer", hello.as_bytes(), expected.as_bytes()))
        .unwrap();
    let dialer = Dialer::new(&identity, "c", [0x5a; 32]);
    let expected = expected
        .replace(r#"{"protocol":1,"#, r#"{"protocol":[1,1],"#)
        .replace(r#""nonce":"a5"#, r#""to":"c","nonce":"a5"#)
        .replace("a5", "5a");
    // Added since: the keys of the secrets, which the first nodes of this version ignore. Their digits
    // are those of Python's `hmac`.
    let keys = r#","keys":["1b6d16f324b2bdcb"]}"#;
    let expected = format!("{}{keys}", expected.strip_suffix('}').unwrap());
    assert_eq!(std::str::from_utf8(dialer.hello()).unwrap(), expected);
}
