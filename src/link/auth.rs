//! The handshake: who the peer is, whether it knows the cluster secret, whether the two nodes may
//! form a ring. Pure: bytes in, bytes out; the connection moves them.
//!
//! ```text
//! dialer                                   acceptor
//!   HELLO      who I am, whom I expect  →
//!              ←  CHALLENGE  proof A, who I am
//!   AUTH       proof B                  →
//!              ←  READY  (or REFUSE, at any point)
//! ```
//! Proof A and B are HMAC-SHA256 over a label and both JSON texts, each with a fresh 32-byte nonce
//! in it: neither can be replayed, and neither can be reflected as the other.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::frame::PROTOCOL;
use crate::cluster::view::Member;

/// Length of a proof in bytes.
pub const PROOF: usize = 32;

/// What two nodes must agree on before they may share a ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agreement {
    /// `clusterName` of the node.
    pub cluster_name: String,
    /// Hash of ring points and names.
    pub hash: String,
    /// `virtualNodes` of the node.
    pub virtual_nodes: u32,
    /// `enforceRouting` of the node.
    pub enforce_routing: bool,
    /// Where the member list is kept: `redis` or `peers`.
    #[serde(default)]
    pub membership: String,
}

impl Agreement {
    /// The first value that differs: its name, ours, theirs.
    #[must_use]
    pub fn difference(&self, theirs: &Self) -> Option<(&'static str, String, String)> {
        let pairs = [
            (
                "clusterName",
                self.cluster_name.clone(),
                theirs.cluster_name.clone(),
            ),
            ("hash", self.hash.clone(), theirs.hash.clone()),
            (
                "virtualNodes",
                self.virtual_nodes.to_string(),
                theirs.virtual_nodes.to_string(),
            ),
            (
                "enforceRouting",
                self.enforce_routing.to_string(),
                theirs.enforce_routing.to_string(),
            ),
            (
                "place of the member list (option redis)",
                self.membership.clone(),
                theirs.membership.clone(),
            ),
        ];
        pairs.into_iter().find(|(_, ours, theirs)| ours != theirs)
    }
}

/// The dialer's first word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Lowest and highest protocol version it speaks.
    pub protocol: (u16, u16),
    /// Itself.
    pub node: Member,
    /// Id of the node it means to reach.
    pub to: String,
    /// 64 hexadecimal digits, fresh for each handshake.
    pub nonce: String,
    /// Its ring parameters.
    pub agreement: Agreement,
}

/// The acceptor's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Challenge {
    /// Protocol version of this link.
    pub protocol: u16,
    /// Itself.
    pub node: Member,
    /// 64 hexadecimal digits, fresh for each handshake.
    pub nonce: String,
    /// Its ring parameters.
    pub agreement: Agreement,
}

/// Why a handshake failed. Said to the peer and to the own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Stable name of the case.
    pub code: RefusalCode,
    /// One sentence that names the values and the fix.
    pub reason: String,
}

/// The cases of a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// Not a handshake of this protocol.
    Malformed,
    /// No protocol version in common.
    Protocol,
    /// The proof is wrong: another secret, or a replay.
    Secret,
    /// No secret is configured and the peer is not on a loopback address.
    NotLoopback,
    /// The link reached the node it started from.
    OwnNode,
    /// Another node answers at this address.
    WrongNode,
    /// The id belongs to a node that is connected and alive.
    IdTaken,
    /// Ring parameters differ.
    Mismatch,
    /// The node is shutting down.
    Closing,
    /// The dialer was removed from the cluster, or put out: it stays out until it is restarted.
    Removed,
    /// Something this version does not know; kept so that a newer peer's refusal is readable.
    #[serde(other)]
    Other,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(code: RefusalCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }
}

/// What this node says of itself in every handshake.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The node itself.
    pub node: Member,
    /// Its ring parameters.
    pub agreement: Agreement,
    /// The cluster secret; empty where none is configured.
    pub secret: Vec<u8>,
}

/// A handshake from the dialer's side.
#[derive(Debug)]
pub struct Dialer<'a> {
    identity: &'a Identity,
    to: &'a str,
    hello: Vec<u8>,
}

impl<'a> Dialer<'a> {
    /// Starts a handshake with the node `to`.
    #[must_use]
    pub fn new(identity: &'a Identity, to: &'a str, nonce: [u8; 32]) -> Self {
        let hello = Hello {
            protocol: PROTOCOL,
            node: identity.node.clone(),
            to: to.to_owned(),
            nonce: hex(&nonce),
            agreement: identity.agreement.clone(),
        };
        Self {
            identity,
            to,
            hello: json(&hello),
        }
    }

    /// Body of the HELLO frame.
    #[must_use]
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// Checks a CHALLENGE body; answers the acceptor's word and the body of the AUTH frame.
    ///
    /// # Errors
    /// A [`Refusal`]: the acceptor is not who was asked for, does not know the secret, or differs.
    pub fn answer(&self, body: &[u8]) -> Result<(Challenge, [u8; PROOF]), Refusal> {
        let (proof, text) = body
            .split_at_checked(PROOF)
            .ok_or_else(|| malformed("CHALLENGE is too short"))?;
        let challenge: Challenge =
            serde_json::from_slice(text).map_err(|error| malformed(&error.to_string()))?;
        verify(
            &self.identity.secret,
            ACCEPTOR,
            &self.hello,
            text,
            proof,
            &challenge.node.id,
        )?;
        let own = &self.identity.node;
        if challenge.node.id == own.id && challenge.node.incarnation == own.incarnation {
            return Err(own_node(self.to, &own.id));
        }
        if challenge.node.id != self.to {
            return Err(wrong_node(self.to, &challenge.node.id));
        }
        agree(&self.identity.agreement, &challenge.agreement, self.to)?;
        if !(PROTOCOL.0..=PROTOCOL.1).contains(&challenge.protocol) {
            return Err(Refusal::new(
                RefusalCode::Protocol,
                format!(
                    "{} chose link protocol {}, this node speaks {} to {}",
                    self.to, challenge.protocol, PROTOCOL.0, PROTOCOL.1
                ),
            ));
        }
        let proof = prove(&self.identity.secret, DIALER, &self.hello, text);
        Ok((challenge, proof))
    }
}

/// A handshake from the acceptor's side, after its CHALLENGE.
#[derive(Debug)]
pub struct Acceptor<'a> {
    identity: &'a Identity,
    hello: Vec<u8>,
    challenge: Vec<u8>,
    /// What the dialer said of itself. To be believed only after [`Acceptor::finish`].
    pub peer: Hello,
    /// Protocol version of this link.
    pub protocol: u16,
}

impl<'a> Acceptor<'a> {
    /// Reads a HELLO body.
    ///
    /// # Errors
    /// A [`Refusal`]: the HELLO is none, is meant for another node, or comes from this very node.
    pub fn new(identity: &'a Identity, body: &[u8], nonce: [u8; 32]) -> Result<Self, Refusal> {
        let peer: Hello =
            serde_json::from_slice(body).map_err(|error| malformed(&error.to_string()))?;
        let protocol = peer.protocol.1.min(PROTOCOL.1);
        if protocol < peer.protocol.0 || protocol < PROTOCOL.0 {
            return Err(Refusal::new(
                RefusalCode::Protocol,
                format!(
                    "{} speaks link protocols {} to {}, this node {} to {}",
                    peer.node.id, peer.protocol.0, peer.protocol.1, PROTOCOL.0, PROTOCOL.1
                ),
            ));
        }
        let challenge = json(&Challenge {
            protocol,
            node: identity.node.clone(),
            nonce: hex(&nonce),
            agreement: identity.agreement.clone(),
        });
        Ok(Self {
            identity,
            hello: body.to_vec(),
            challenge,
            peer,
            protocol,
        })
    }

    /// Body of the CHALLENGE frame.
    #[must_use]
    pub fn challenge(&self) -> Vec<u8> {
        let proof = prove(
            &self.identity.secret,
            ACCEPTOR,
            &self.hello,
            &self.challenge,
        );
        [&proof[..], &self.challenge].concat()
    }

    /// Checks the AUTH body. Only after this may anything the dialer said be acted on.
    ///
    /// # Errors
    /// A [`Refusal`] that names the difference.
    pub fn finish(&self, proof: &[u8]) -> Result<(), Refusal> {
        let own = &self.identity.node;
        verify(
            &self.identity.secret,
            DIALER,
            &self.hello,
            &self.challenge,
            proof,
            &self.peer.node.id,
        )?;
        if self.peer.node.id == own.id {
            return Err(if self.peer.node.incarnation == own.incarnation {
                own_node(&self.peer.to, &own.id)
            } else {
                Refusal::new(
                    RefusalCode::IdTaken,
                    format!(
                        "two nodes run with the id {}: give each its own nodeId",
                        own.id
                    ),
                )
            });
        }
        if self.peer.to != own.id {
            return Err(wrong_node(&self.peer.to, &own.id));
        }
        self.agrees()
    }

    /// Whether the two may share a ring.
    ///
    /// # Errors
    /// A [`Refusal`] that names the difference.
    pub fn agrees(&self) -> Result<(), Refusal> {
        let (peer, own) = (&self.peer, self.identity);
        agree(&own.agreement, &peer.agreement, &peer.node.id)
    }
}

const DIALER: &[u8] = b"smartroute-link-1 dialer";
const ACCEPTOR: &[u8] = b"smartroute-link-1 acceptor";

fn mac(secret: &[u8], label: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    for part in std::iter::once(&label).chain(parts) {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

/// HMAC-SHA256 with the cluster secret over a label, which says what for, and some parts.
pub(crate) fn keyed(secret: &[u8], label: &[u8], parts: &[&[u8]]) -> [u8; PROOF] {
    mac(secret, label, parts).finalize().into_bytes().into()
}

/// Whether `proof` is [`keyed`] of the same, in time that does not depend on where they differ.
pub(crate) fn proves(secret: &[u8], label: &[u8], parts: &[&[u8]], proof: &[u8]) -> bool {
    mac(secret, label, parts).verify_slice(proof).is_ok()
}

fn prove(secret: &[u8], label: &[u8], hello: &[u8], challenge: &[u8]) -> [u8; PROOF] {
    keyed(secret, label, &[hello, challenge])
}

fn verify(
    secret: &[u8],
    label: &[u8],
    hello: &[u8],
    challenge: &[u8],
    proof: &[u8],
    peer: &str,
) -> Result<(), Refusal> {
    if proves(secret, label, &[hello, challenge], proof) {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::Secret,
        format!(
            "{peer} did not prove that it knows the cluster secret: set the same clusterSecret on every node"
        ),
    ))
}

fn agree(ours: &Agreement, theirs: &Agreement, peer: &str) -> Result<(), Refusal> {
    match ours.difference(theirs) {
        None => Ok(()),
        Some((name, ours, theirs)) => Err(Refusal::new(
            RefusalCode::Mismatch,
            format!(
                "{name} is {ours} here and {theirs} at {peer}: set the same value on every node"
            ),
        )),
    }
}

fn wrong_node(expected: &str, found: &str) -> Refusal {
    Refusal::new(
        RefusalCode::WrongNode,
        format!("the address given for {expected} leads to {found}: correct it in clusterNodes"),
    )
}

fn own_node(expected: &str, own: &str) -> Refusal {
    Refusal::new(
        RefusalCode::OwnNode,
        format!(
            "the address given for {expected} leads back to this node, {own}: correct it in clusterNodes"
        ),
    )
}

fn malformed(detail: &str) -> Refusal {
    Refusal::new(
        RefusalCode::Malformed,
        format!("not a SmartRoute handshake: {detail}"),
    )
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("handshake values have string keys only")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for; `None` for anything else.
pub(crate) fn unhex(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cluster::view::MemberState;

    pub(crate) fn identity(id: &str, secret: &str) -> Identity {
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
            },
            secret: secret.into(),
        }
    }

    fn shake(dialer: &Identity, to: &str, acceptor: &Identity) -> Result<(), Refusal> {
        let dialing = Dialer::new(dialer, to, [1; 32]);
        let accepting = Acceptor::new(acceptor, dialing.hello(), [2; 32])?;
        let (_, proof) = dialing.answer(&accepting.challenge())?;
        accepting.finish(&proof)
    }

    fn code(result: Result<(), Refusal>) -> RefusalCode {
        result.unwrap_err().code
    }

    #[test]
    fn equal_secrets_meet() {
        shake(&identity("a", "s"), "b", &identity("b", "s")).unwrap();
        shake(&identity("a", ""), "b", &identity("b", "")).unwrap();
    }

    #[test]
    fn another_secret_or_none_is_refused_by_both_sides() {
        for (ours, theirs) in [("s", "t"), ("s", ""), ("", "t")] {
            let (a, b) = (identity("a", ours), identity("b", theirs));
            assert_eq!(code(shake(&a, "b", &b)), RefusalCode::Secret);
            // A dialer that does not check the acceptor is still refused by it.
            let dialing = Dialer::new(&a, "b", [1; 32]);
            let accepting = Acceptor::new(&b, dialing.hello(), [2; 32]).unwrap();
            assert_eq!(code(accepting.finish(&[0; 32])), RefusalCode::Secret);
            assert_eq!(code(accepting.finish(&[])), RefusalCode::Secret);
        }
    }

    #[test]
    fn a_replayed_proof_is_refused() {
        let (a, b) = (identity("a", "s"), identity("b", "s"));
        let dialing = Dialer::new(&a, "b", [1; 32]);
        let first = Acceptor::new(&b, dialing.hello(), [2; 32]).unwrap();
        let (_, proof) = dialing.answer(&first.challenge()).unwrap();
        let second = Acceptor::new(&b, dialing.hello(), [3; 32]).unwrap();
        assert_eq!(code(second.finish(&proof)), RefusalCode::Secret);
    }

    #[test]
    fn a_proof_cannot_be_reflected() {
        let (a, b) = (identity("a", "s"), identity("b", "s"));
        let dialing = Dialer::new(&a, "b", [1; 32]);
        let accepting = Acceptor::new(&b, dialing.hello(), [2; 32]).unwrap();
        let reflected = &accepting.challenge()[..PROOF];
        assert_eq!(code(accepting.finish(reflected)), RefusalCode::Secret);
    }

    #[test]
    fn identities_are_checked() {
        let (a, b, c) = (identity("a", "s"), identity("b", "s"), identity("c", "s"));
        assert_eq!(code(shake(&a, "b", &c)), RefusalCode::WrongNode);
        assert_eq!(code(shake(&a, "a", &a)), RefusalCode::OwnNode);
        let mut twin = a.clone();
        twin.node.incarnation = 2;
        assert_eq!(code(shake(&twin, "a", &a)), RefusalCode::IdTaken);
        // A stranger that claims an id cannot prove it.
        assert_eq!(
            code(shake(&identity("a", "guess"), "b", &b)),
            RefusalCode::Secret
        );
    }

    #[test]
    fn differing_parameters_are_named_with_both_values() {
        let (a, mut b) = (identity("a", "s"), identity("b", "s"));
        b.agreement.virtual_nodes = 100;
        let refusal = shake(&a, "b", &b).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Mismatch);
        assert!(
            refusal
                .reason
                .contains("virtualNodes is 150 here and 100 at b")
        );
    }

    #[test]
    fn versions_meet_at_the_lower_and_refuse_without_overlap() {
        let (a, b) = (identity("a", "s"), identity("b", "s"));
        let mut hello: Hello =
            serde_json::from_slice(Dialer::new(&a, "b", [1; 32]).hello()).unwrap();
        hello.protocol = (1, 9);
        assert_eq!(
            Acceptor::new(&b, &json(&hello), [2; 32]).unwrap().protocol,
            1
        );
        hello.protocol = (8, 9);
        let refusal = Acceptor::new(&b, &json(&hello), [2; 32]).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Protocol);
    }

    #[test]
    fn garbage_is_malformed() {
        let b = identity("b", "s");
        for body in [&b""[..], b"{}", b"\xff\xfe", b"[1,2,3]"] {
            let refusal = Acceptor::new(&b, body, [2; 32]).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Malformed);
        }
        let refusal = Dialer::new(&b, "a", [1; 32]).answer(b"short").unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Malformed);
    }
}
