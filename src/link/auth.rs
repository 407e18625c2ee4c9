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
//!
//! Where a node knows several secrets, HELLO has a key for each, and the acceptor proves the newest
//! that both know. Nobody on the way can make it an older one: the keys are part of what is proved.

use serde::{Deserialize, Serialize};

use super::frame::PROTOCOL;
pub use super::secrets::PROOF;
pub(crate) use super::secrets::hex;
use super::secrets::{Secret, Secrets};
use crate::cluster::view::Member;

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
    /// Whether `clusterTls` is set. Left out where it is not, as by versions that do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cluster_tls: bool,
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
            (
                "clusterTls",
                set(self.cluster_tls).into(),
                set(theirs.cluster_tls).into(),
            ),
        ];
        pairs.into_iter().find(|(_, ours, theirs)| ours != theirs)
    }
}

fn set(option: bool) -> &'static str {
    if option { "set" } else { "not set" }
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
    /// One for each secret it knows; 16 hexadecimal digits that mean something to who knows it, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
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
    /// The cluster's secrets.
    pub secrets: Secrets,
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
        let nonce = hex(&nonce);
        let hello = Hello {
            protocol: PROTOCOL,
            node: identity.node.clone(),
            to: to.to_owned(),
            agreement: identity.agreement.clone(),
            keys: identity.secrets.keys(&nonce),
            nonce,
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
        let parts = [&self.hello[..], text];
        let proved = |secret: &&Secret| secret.proves(ACCEPTOR, &parts, proof);
        let secret = self.identity.secrets.iter().find(proved);
        let secret = secret.ok_or_else(|| unproved(&challenge.node.id))?;
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
        Ok((challenge, secret.prove(DIALER, &parts)))
    }
}

/// A handshake from the acceptor's side, after its CHALLENGE.
#[derive(Debug)]
pub struct Acceptor<'a> {
    identity: &'a Identity,
    /// The secret of this link.
    secret: &'a Secret,
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
        let secrets = &identity.secrets;
        let shared = secrets.shared(&peer.keys, &peer.nonce);
        Ok(Self {
            identity,
            secret: shared.unwrap_or_else(|| secrets.oldest()),
            hello: body.to_vec(),
            challenge,
            peer,
            protocol,
        })
    }

    /// Body of the CHALLENGE frame.
    #[must_use]
    pub fn challenge(&self) -> Vec<u8> {
        let parts = [&self.hello[..], &self.challenge];
        let proof = self.secret.prove(ACCEPTOR, &parts);
        [&proof[..], &self.challenge].concat()
    }

    /// Checks the AUTH body. Only after this may anything the dialer said be acted on.
    ///
    /// # Errors
    /// A [`Refusal`] that names the difference.
    pub fn finish(&self, proof: &[u8]) -> Result<(), Refusal> {
        let own = &self.identity.node;
        let parts = [&self.hello[..], &self.challenge];
        if !self.secret.proves(DIALER, &parts, proof) {
            return Err(self.unproved());
        }
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

    /// What is to be said of a dialer that has not proved anything.
    #[must_use]
    pub fn unproved(&self) -> Refusal {
        unproved(&self.peer.node.id)
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

fn unproved(peer: &str) -> Refusal {
    Refusal::new(
        RefusalCode::Secret,
        format!(
            "{peer} did not prove that it knows the cluster secret: set the same clusterSecret on every node"
        ),
    )
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
                cluster_tls: false,
            },
            secrets: Secrets::new([secret]),
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

    fn knows(id: &str, secrets: &[&str]) -> Identity {
        let mut identity = identity(id, "");
        identity.secrets = Secrets::new(secrets);
        identity
    }

    #[test]
    fn one_secret_in_common_is_enough_and_the_newest_is_proved() {
        for (ours, theirs, by) in [
            (vec!["new", "old"], vec!["old"], "old"),
            (vec!["old"], vec!["new", "old"], "old"),
            (vec!["new", "old"], vec!["new"], "new"),
            (vec!["new"], vec!["new", "old"], "new"),
            (vec!["new", "old"], vec!["new", "old"], "new"),
        ] {
            let (a, b) = (knows("a", &ours), knows("b", &theirs));
            let dialing = Dialer::new(&a, "b", [1; 32]);
            let accepting = Acceptor::new(&b, dialing.hello(), [2; 32]).unwrap();
            assert_eq!(accepting.secret, Secrets::new([by]).newest());
            let (_, proof) = dialing.answer(&accepting.challenge()).unwrap();
            accepting.finish(&proof).unwrap();
        }
        for (ours, theirs) in [
            (vec!["new", "old"], vec!["third"]),
            (vec!["third"], vec!["new", "old"]),
        ] {
            let refused = shake(&knows("a", &ours), "b", &knows("b", &theirs));
            assert_eq!(code(refused), RefusalCode::Secret);
        }
    }

    /// A HELLO without `keys`, as versions that know one secret send it.
    fn keyless(dialing: &mut Dialer<'_>) {
        let mut hello: Hello = serde_json::from_slice(&dialing.hello).unwrap();
        hello.keys.clear();
        dialing.hello = json(&hello);
    }

    #[test]
    fn a_version_with_one_secret_links_while_it_is_the_oldest() {
        let (a, b) = (identity("a", "old"), knows("b", &["new", "old"]));
        let mut dialing = Dialer::new(&a, "b", [1; 32]);
        keyless(&mut dialing);
        let accepting = Acceptor::new(&b, dialing.hello(), [2; 32]).unwrap();
        let (_, proof) = dialing.answer(&accepting.challenge()).unwrap();
        accepting.finish(&proof).unwrap();
        // And where it accepts: it proves the one it has.
        let dialing = Dialer::new(&b, "a", [1; 32]);
        let mut accepting = Acceptor::new(&a, dialing.hello(), [2; 32]).unwrap();
        accepting.secret = a.secrets.oldest();
        let (_, proof) = dialing.answer(&accepting.challenge()).unwrap();
        accepting.finish(&proof).unwrap();
    }

    #[test]
    fn nobody_on_the_way_makes_two_nodes_use_an_older_secret() {
        let (a, b) = (knows("a", &["new", "old"]), knows("b", &["new", "old"]));
        let dialing = Dialer::new(&a, "b", [1; 32]);
        let mut tampered = Dialer::new(&a, "b", [1; 32]);
        keyless(&mut tampered);
        let accepting = Acceptor::new(&b, tampered.hello(), [2; 32]).unwrap();
        assert_eq!(accepting.secret, b.secrets.oldest(), "the attempt");
        let refused = dialing.answer(&accepting.challenge()).map(drop);
        assert_eq!(code(refused), RefusalCode::Secret);
        // Nor does another accepted secret pass where this one was agreed on.
        let accepting = Acceptor::new(&b, dialing.hello(), [2; 32]).unwrap();
        let parts = [dialing.hello(), &accepting.challenge[..]];
        let proof = b.secrets.oldest().prove(DIALER, &parts);
        assert_eq!(code(accepting.finish(&proof)), RefusalCode::Secret);
    }

    #[test]
    fn a_replayed_proof_is_refused() {
        let (a, b) = (knows("a", &["s", "t"]), knows("b", &["s", "t"]));
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
    fn cluster_tls_is_agreed_on_and_left_out_where_it_is_not_set() {
        let (a, mut b) = (identity("a", "s"), identity("b", "s"));
        let said = |identity: &Identity| String::from_utf8(json(&identity.agreement)).unwrap();
        assert!(!said(&b).contains("clusterTls"));
        b.agreement.cluster_tls = true;
        assert!(said(&b).ends_with(r#","clusterTls":true}"#));
        let refusal = shake(&a, "b", &b).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::Mismatch);
        let named = "clusterTls is not set here and set at b";
        assert!(refusal.reason.contains(named), "{refusal}");
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
