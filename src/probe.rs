//! One health check of a peer: connect, ask its health endpoint, judge the answer. And the other
//! end: what the endpoint says. docs/PROTOCOL.md, "Health", is this as text.
//!
//! ```text
//! GET <path>?nonce=<64 hex>&proof=<64 hex>   →
//!                                            ←  200, SmartRoute-Health: 1, SmartRoute-Proof: <64 hex>
//!                                               { node, cluster, incarnation, loopAge }
//! ```
//! Both proofs are HMAC-SHA256 with the cluster secret: the asker's over its nonce, so that a stranger
//! is told nothing about the node; the answer's over nonce and body, so that a stranger cannot pose
//! as a healthy node and an old answer cannot be played again.

use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use crate::cluster::health::Verdict;
use crate::link::auth::Identity;
use crate::link::connection::{Reader, Writer};
use crate::link::secrets::{MAX_SECRETS, PROOF, Secret, Secrets, hex, unhex};

/// Header that every answer of a health endpoint has: stock Hocuspocus answers 200 to any path.
pub const MARK: &str = "SmartRoute-Health";

/// Header of the answer's proof.
pub const PROOF_HEADER: &str = "SmartRoute-Proof";

/// Head and body of an answer; a longer one is none of ours. A node id is 255 bytes at most, and six
/// times that as escaped JSON.
const MAX_ANSWER: usize = 8 * 1024;

/// Characters of a peer's own words that are repeated in a reason.
const MAX_SHOWN: usize = 64;

const ASK: &[u8] = b"smartroute-health-1 ask";
const ANSWER: &[u8] = b"smartroute-health-1 answer";

/// Whom a check is for.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Host and port for the `Host` header.
    pub authority: &'a str,
    /// Request path of the endpoint.
    pub path: &'a str,
    /// Id of the node that should answer.
    pub node: &'a str,
    /// Cluster it should belong to.
    pub cluster: &'a str,
    /// The cluster's secrets.
    pub secrets: &'a Secrets,
    /// A peer whose JavaScript has not turned for so long is down.
    pub stall: Duration,
}

/// What a peer that passed said of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alive {
    /// Its incarnation.
    pub incarnation: u64,
    /// Age of its last JavaScript event-loop turn when it answered.
    pub loop_age: Duration,
}

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The name of the peer has no address.
    #[error("its address cannot be resolved: {0}")]
    Dns(String),
    /// The peer's host is there and nothing listens on the port, at none of its addresses.
    #[error("connection refused")]
    Refused,
    /// The peer's host ended the connection with a reset.
    #[error("connection reset")]
    Reset,
    /// The connection could not be made, or failed, in another way.
    #[error("{0}")]
    Unreachable(String),
    /// No connection within the time.
    #[error("no connection within {} ms", .0.as_millis())]
    NotConnected(Duration),
    /// A connection, but no whole answer within the time.
    #[error("connected, but no answer within {} ms", .0.as_millis())]
    NoAnswer(Duration),
    /// The same, and the peer's process has answered on its link meanwhile: its JavaScript was last
    /// known to turn so long ago.
    #[error(
        "its process runs, but its JavaScript has not answered for {} ms: its event loop is blocked, or its server does not call smartRoute.handleRequest",
        .0.as_millis()
    )]
    Blocked(Duration),
    /// The same for longer than `stallTimeout`, by the peer's own word or by that of its link.
    #[error("its process runs, but its JavaScript has stood still for {} ms, longer than stallTimeout", .0.as_millis())]
    Stalled(Duration),
    /// Something else answers there.
    #[error(
        "something answers there with HTTP {0}, but SmartRoute is not there: is this its Hocuspocus port, and does a server of its own call smartRoute.handleRequest?"
    )]
    NotSmartRoute(u16),
    /// What answers there is no HTTP server.
    #[error("what answers there does not speak HTTP: is this its Hocuspocus port?")]
    NotHttp,
    /// SmartRoute is there and gives no health answer.
    #[error("SmartRoute is there, but answers HTTP {0}: {1}")]
    Unwilling(u16, &'static str),
    /// The answer is not proved, or the peer says that ours is not.
    #[error(
        "a node answers there that did not prove that it knows the cluster secret: set the same clusterSecret on every node"
    )]
    Secret,
    /// Another node answers.
    #[error("another node answers there: {0}")]
    WrongNode(String),
    /// A node of another cluster answers.
    #[error("a node of another cluster answers there: {0}")]
    WrongCluster(String),
    /// The answer is not what an endpoint of this version says.
    #[error("its answer is no health answer: {0}")]
    BadAnswer(String),
    /// The check says nothing about the peer: this node itself stood still meanwhile.
    #[error("this node itself stood still during the check")]
    Void,
}

impl Failure {
    /// A failed connection.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                Self::Reset
            }
            // What a pipe says where JavaScript could not resolve the name.
            ErrorKind::NotFound => Self::Dns(error.to_string()),
            _ => Self::Unreachable(error.to_string()),
        }
    }

    /// What it means for the peer's health.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Stalled(_) => Verdict::Stalled,
            Self::Void => Verdict::Void,
            _ => Verdict::Failed,
        }
    }
}

/// Body of a health answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    node: String,
    cluster: String,
    /// As text: JSON numbers of JavaScript end at 2^53.
    incarnation: String,
    /// ms.
    loop_age: u64,
}

/// Checks a peer over a socket that `connect` makes; all of it within `limit`.
///
/// # Errors
/// A [`Failure`]: the peer is not there, or not who it should be.
pub async fn check(
    target: Target<'_>,
    limit: Duration,
    connect: impl Future<Output = Result<(Reader, Writer), Failure>>,
) -> Result<Alive, Failure> {
    let deadline = Instant::now() + limit;
    let (reader, writer) = timeout_at(deadline, connect)
        .await
        .map_err(|_| Failure::NotConnected(limit))??;
    timeout_at(deadline, ask(target, reader, &writer))
        .await
        .map_err(|_| Failure::NoAnswer(limit))?
}

/// Connects by TCP. The name is resolved at each call: pods change their address.
///
/// # Errors
/// [`Failure::Dns`], or what the last address failed with; [`Failure::Refused`] only where every
/// address refused.
pub async fn connect(address: &str, port: u16) -> Result<TcpStream, Failure> {
    let dns = |error: io::Error| Failure::Dns(error.to_string());
    let addresses = lookup_host((address, port)).await.map_err(dns)?;
    let mut failure = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => match Failure::from_io(&error) {
                Failure::Refused if failure.is_some() => {}
                other => failure = Some(other),
            },
        }
    }
    Err(failure.unwrap_or_else(|| Failure::Dns("the name has no address".into())))
}

/// The query of a question: one proof for each secret, the oldest first, because an endpoint of a
/// version that knows one secret only reads the first.
fn query(secrets: &Secrets, nonce: &str) -> String {
    let prove = |secret: &Secret| hex(&secret.prove(ASK, &[nonce.as_bytes()]));
    let proofs = secrets.iter().rev().map(prove);
    proofs.fold(format!("nonce={nonce}"), |query, proof| {
        format!("{query}&proof={proof}")
    })
}

async fn ask(target: Target<'_>, mut reader: Reader, writer: &Writer) -> Result<Alive, Failure> {
    let nonce = hex(&rand::random::<[u8; PROOF]>());
    let request = format!(
        "GET {}?{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: application/json\r\n\r\n",
        target.path,
        query(target.secrets, &nonce),
        target.authority,
    );
    let failed = |error: io::Error| Failure::from_io(&error);
    writer.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut buffer = BytesMut::with_capacity(2048);
    let mut head = None;
    loop {
        if head.is_none() {
            head = read_head(&buffer)?;
        }
        if let Some(head) = &head
            && buffer.len() >= head.end + head.length
        {
            let body = &buffer[head.end..head.end + head.length];
            return judge(target, &nonce, head.proof.as_deref(), body);
        }
        if buffer.len() > MAX_ANSWER {
            return Err(Failure::BadAnswer(format!("more than {MAX_ANSWER} bytes")));
        }
        if reader.read_buf(&mut buffer).await.map_err(failed)? == 0 {
            return Err(match head {
                None if buffer.is_empty() => {
                    Failure::Unreachable("the connection was closed without an answer".into())
                }
                None => Failure::NotHttp,
                Some(_) => Failure::BadAnswer("it ends too early".into()),
            });
        }
    }
}

/// The head of an answer that is worth reading on.
struct Head {
    /// Where the body begins.
    end: usize,
    /// Length of the body.
    length: usize,
    proof: Option<Vec<u8>>,
}

/// Reads the head of an answer; `None` where there is not all of it yet.
fn read_head(buffer: &[u8]) -> Result<Option<Head>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let end = match response.parse(buffer) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Failure::NotHttp),
    };
    let header = |name: &str| {
        response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value)
    };
    let status = response.code.unwrap_or(0);
    match (status, header(MARK)) {
        (_, None) => return Err(Failure::NotSmartRoute(status)),
        (_, Some(version)) if version != b"1" => {
            let version = shown(&String::from_utf8_lossy(version));
            return Err(Failure::BadAnswer(format!("of version {version}")));
        }
        (200, _) => {}
        (403, _) => return Err(Failure::Secret),
        (404, _) => return Err(Failure::Unwilling(404, "its linkPort answers checks")),
        (426, _) => {
            let why = "its links use TLS (clusterTls), this node's do not";
            return Err(Failure::Unwilling(426, why));
        }
        (503, _) => return Err(Failure::Unwilling(503, "it is starting or shutting down")),
        (other, _) => return Err(Failure::Unwilling(other, "no health answer")),
    }
    let length = header("content-length")
        .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok())
        .filter(|length| *length <= MAX_ANSWER)
        .ok_or_else(|| Failure::BadAnswer("no length, or too long a one".into()))?;
    Ok(Some(Head {
        end,
        length,
        proof: header(PROOF_HEADER).and_then(unhex),
    }))
}

fn judge(
    target: Target<'_>,
    nonce: &str,
    proof: Option<&[u8]>,
    body: &[u8],
) -> Result<Alive, Failure> {
    let parts = [nonce.as_bytes(), body];
    // Compared in time that does not depend on where they differ.
    let by = |proof| {
        target
            .secrets
            .iter()
            .any(|one| one.proves(ANSWER, &parts, proof))
    };
    if !proof.is_some_and(by) {
        return Err(Failure::Secret);
    }
    let bad = |detail: String| Failure::BadAnswer(detail);
    let body: Body = serde_json::from_slice(body).map_err(|error| bad(error.to_string()))?;
    if body.cluster != target.cluster {
        return Err(Failure::WrongCluster(shown(&body.cluster)));
    }
    if body.node != target.node {
        return Err(Failure::WrongNode(shown(&body.node)));
    }
    let incarnation = body.incarnation.parse();
    let incarnation = incarnation.map_err(|_| bad("its incarnation is no number".into()))?;
    let loop_age = Duration::from_millis(body.loop_age);
    if loop_age > target.stall {
        return Err(Failure::Stalled(loop_age));
    }
    Ok(Alive {
        incarnation,
        loop_age,
    })
}

/// What an endpoint answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// HTTP status: 200, or 403 where the asker does not know the secret.
    pub status: u16,
    /// JSON.
    pub body: String,
    /// Value of the proof header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// Answers the query of a request to the health endpoint (what stands after `?`). Only who knows the
/// secret learns more than that SmartRoute is there.
#[must_use]
pub fn answer(identity: &Identity, query: &str, loop_age: Duration) -> Answer {
    let values = |name: &'static str| {
        query
            .split('&')
            .filter_map(move |pair| pair.strip_prefix(name)?.strip_prefix('='))
    };
    let bare = |status| Answer {
        status,
        body: r#"{"smartroute":1}"#.into(),
        proof: None,
    };
    let proofs: Vec<_> = values("proof")
        .take(MAX_SECRETS)
        .map(|proof| unhex(proof.as_bytes()).unwrap_or_default())
        .collect();
    let nonce = values("nonce").next();
    let Some(nonce) = nonce.filter(|_| !proofs.is_empty()) else {
        // A person, or a liveness probe.
        return bare(200);
    };
    let proved = |secret: &&Secret| {
        let parts = [nonce.as_bytes()];
        proofs.iter().any(|proof| secret.proves(ASK, &parts, proof))
    };
    // The newest that both know, as on a link.
    let secret = identity.secrets.iter().find(proved);
    let Some(secret) = secret.filter(|_| nonce.len() == 2 * PROOF) else {
        return bare(403);
    };
    let body = Body {
        node: identity.node.id.clone(),
        cluster: identity.agreement.cluster_name.clone(),
        incarnation: identity.node.incarnation.to_string(),
        loop_age: u64::try_from(loop_age.as_millis()).unwrap_or(u64::MAX),
    };
    let body = serde_json::to_string(&body).expect("it has string keys only");
    let proof = secret.prove(ANSWER, &[nonce.as_bytes(), body.as_bytes()]);
    Answer {
        status: 200,
        proof: Some(hex(&proof)),
        body,
    }
}

/// A peer's own words in a reason: short, on one line, without control characters.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(MAX_SHOWN).collect();
    short.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::auth;

    const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn identity(secret: &str) -> Identity {
        let mut identity = auth::tests::identity("node-1", secret);
        identity.node.incarnation = 1_764_000_000_000_123;
        identity
    }

    fn query(secret: &str) -> String {
        super::query(&Secrets::new([secret]), NONCE)
    }

    /// The wire format: a change breaks checks between versions. The digits are those of Python's
    /// `hmac` over the same parts.
    #[test]
    fn golden_answer() {
        let query = query("secret");
        assert_eq!(
            query.rsplit('=').next(),
            Some("851ef70952fcd50072c897e39cd5ecbeffb729cbf028896a1579c0a0b8e32a52")
        );
        let answer = answer(&identity("secret"), &query, Duration::from_micros(12_345));
        assert_eq!(
            answer,
            Answer {
                status: 200,
                body: r#"{"node":"node-1","cluster":"test","incarnation":"1764000000000123","loopAge":12}"#.into(),
                proof: Some("b0e3312935a3a04b685c6ee60a217be603e5c8647f0f2d19cc1d5869a8aae76e".into()),
            }
        );
    }

    #[test]
    fn a_stranger_learns_nothing_about_the_node() {
        let bare = |status| Answer {
            status,
            body: r#"{"smartroute":1}"#.into(),
            proof: None,
        };
        let zero = format!("nonce={NONCE}&proof={}", "0".repeat(64));
        let short = super::query(&Secrets::new(["secret"]), "00");
        let late = format!(
            "nonce={NONCE}{}&{}",
            "&proof=00".repeat(MAX_SECRETS),
            &query("secret")[71..]
        );
        let cases = [
            ("", 200),
            ("proof=00", 200),
            (zero.as_str(), 403),
            (short.as_str(), 403),
            (late.as_str(), 403),
            ("nonce=&proof=", 403),
            ("nonce=zz&proof=zz", 403),
            (&query("another"), 403),
            (&query(""), 403),
        ];
        for (query, status) in cases {
            assert_eq!(
                answer(&identity("secret"), query, Duration::ZERO),
                bare(status),
                "{query}"
            );
        }
    }

    fn target(secrets: &Secrets) -> Target<'_> {
        Target {
            authority: "x:80",
            path: "/.smartroute/health",
            node: "node-1",
            cluster: "test",
            secrets,
            stall: Duration::from_secs(10),
        }
    }

    #[test]
    fn an_answer_counts_for_its_nonce_its_body_and_its_secret_only() {
        let answer = answer(&identity("secret"), &query("secret"), Duration::ZERO);
        let (body, proof) = (
            answer.body,
            unhex(answer.proof.unwrap().as_bytes()).unwrap(),
        );
        let judged = |secret: &str, nonce: &str, body: &str, proof: Option<&[u8]>| {
            judge(
                target(&Secrets::new([secret])),
                nonce,
                proof,
                body.as_bytes(),
            )
        };
        assert!(judged("secret", NONCE, &body, Some(&proof)).is_ok());
        let younger = body.replace(r#""loopAge":0"#, r#""loopAge":1"#);
        let replayed = "ff".repeat(32);
        for result in [
            judged("another", NONCE, &body, Some(&proof)),
            judged("secret", &replayed, &body, Some(&proof)),
            judged("secret", NONCE, &younger, Some(&proof)),
            judged("secret", NONCE, &body, Some(&proof[1..])),
            judged("secret", NONCE, &body, None),
        ] {
            assert_eq!(result, Err(Failure::Secret));
        }
    }

    #[test]
    fn while_secrets_are_exchanged_one_in_common_is_enough() {
        for (asker, endpoint, by) in [
            (vec!["new", "old"], vec!["old"], Some("old")),
            (vec!["old"], vec!["new", "old"], Some("old")),
            (vec!["new", "old"], vec!["new", "old"], Some("new")),
            (vec!["new"], vec!["old"], None),
            (vec!["new", "old"], vec!["third", "fourth"], None),
        ] {
            let (asker, mut identity) = (Secrets::new(asker), identity(""));
            identity.secrets = Secrets::new(endpoint);
            let answer = answer(&identity, &super::query(&asker, NONCE), Duration::ZERO);
            let Some(by) = by else {
                assert_eq!((answer.status, answer.proof), (403, None));
                continue;
            };
            let proof = unhex(answer.proof.unwrap().as_bytes());
            let judged = |secrets| {
                judge(
                    target(secrets),
                    NONCE,
                    proof.as_deref(),
                    answer.body.as_bytes(),
                )
            };
            assert!(judged(&asker).is_ok());
            assert!(judged(&Secrets::new([by])).is_ok(), "{by}");
        }
        // The endpoint of a version with one secret reads the first proof only.
        let asked = super::query(&Secrets::new(["new", "old"]), NONCE);
        assert!(asked.starts_with(&query("old")) && asked.len() > query("old").len());
    }

    #[test]
    fn a_peers_words_are_cut_and_escaped() {
        let shown = shown(&"\u{1b}[2J\n".repeat(100));
        assert!(
            shown.len() < 500 && !shown.contains(char::is_control),
            "{shown}"
        );
    }
}
