//! How a link starts: an HTTP Upgrade on the peer's port, then the handshake of [`super::auth`].

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::{Instant, timeout_at};

use super::auth::{Acceptor, Challenge, Dialer, Identity, Refusal, RefusalCode};
use super::connection::{Reader, Writer};
use super::frame::{self, Frame, FrameError, MAX_HANDSHAKE_FRAME};

/// Request path of a link.
pub const PATH: &str = "/.smartroute/link";

/// Token in the `Upgrade` header.
pub const PROTOCOL_NAME: &str = "smartroute";

/// A handshake that takes longer has failed.
pub const TIMEOUT: Duration = Duration::from_secs(5);

const MAX_HEAD: usize = 8 * 1024;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer closed the socket half-way.
    #[error("the peer closed the connection during the handshake")]
    Closed,
    /// The peer answered the upgrade request with something else.
    #[error(
        "the peer answered with HTTP {0} instead of a link: is SmartRoute installed there, and is this its Hocuspocus port?"
    )]
    Http(u16),
    /// The peer takes links over TLS only.
    #[error(
        "the peer's links use TLS (clusterTls), this node's do not: set clusterTls on every node, or on none"
    )]
    TlsOnly,
    /// The peer's answer is not HTTP.
    #[error("the peer does not speak HTTP: is this its Hocuspocus port?")]
    NotHttp,
    /// The peer sent something that is no frame.
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    /// This node refuses the peer.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The peer refuses this node.
    #[error("refused by the peer: {0}")]
    RefusedByPeer(Refusal),
    /// The handshake took too long.
    #[error("the handshake took longer than {} s", TIMEOUT.as_secs())]
    TimedOut,
}

impl UpgradeError {
    /// Stable name of the case, for logs that are written once per case.
    #[must_use]
    pub fn code(&self) -> String {
        match self {
            // What JavaScript's sockets say where TLS is what failed.
            Self::Io(error) if error.kind() == io::ErrorKind::InvalidData => "tls".into(),
            Self::TlsOnly => "tls".into(),
            Self::Io(_) | Self::Closed | Self::TimedOut => "unreachable".into(),
            Self::Http(_) | Self::NotHttp => "not-smartroute".into(),
            Self::Frame(_) => "bad-frame".into(),
            Self::Refused(refusal) | Self::RefusedByPeer(refusal) => {
                format!("{:?}", refusal.code).to_lowercase()
            }
        }
    }
}

/// Dials: sends the upgrade request and proves who this node is, before `deadline`.
///
/// # Errors
/// [`UpgradeError`]; what this node found wrong has been told to the acceptor.
pub async fn dial(
    reader: &mut Reader,
    writer: &Writer,
    host: &str,
    identity: &Identity,
    to: &str,
    deadline: Instant,
) -> Result<(Challenge, BytesMut), UpgradeError> {
    let mut buffer = BytesMut::with_capacity(4096);
    // Until it has answered it may be anything: nobody is told why in frames.
    let upgraded = timeout_at(deadline, request(reader, writer, host, &mut buffer));
    upgraded.await.unwrap_or(Err(UpgradeError::TimedOut))?;
    let proved = timeout_at(
        deadline,
        introduce(reader, writer, &mut buffer, identity, to),
    );
    let result = proved.await.unwrap_or(Err(UpgradeError::TimedOut));
    tell(writer, &result).await;
    Ok((result?, buffer))
}

async fn request(
    reader: &mut Reader,
    writer: &Writer,
    host: &str,
    buffer: &mut BytesMut,
) -> Result<(), UpgradeError> {
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL_NAME}\r\n\r\n"
    );
    writer.write_all(request.as_bytes()).await?;
    read_response(reader, buffer).await
}

async fn introduce(
    reader: &mut Reader,
    writer: &Writer,
    buffer: &mut BytesMut,
    identity: &Identity,
    to: &str,
) -> Result<Challenge, UpgradeError> {
    let dialer = Dialer::new(identity, to, rand::random());
    write(writer, &Frame::Hello(dialer.hello())).await?;
    let body = read(reader, buffer).await?;
    let (challenge, proof) = match frame::decode(&body)? {
        Frame::Challenge(body) => dialer.answer(body)?,
        other => return Err(unproven(unexpected(&other))),
    };
    write(writer, &Frame::Auth(&proof)).await?;
    let body = read(reader, buffer).await?;
    match frame::decode(&body)? {
        Frame::Ready => Ok(challenge),
        other => Err(unexpected(&other)),
    }
}

/// Accepts up to the point where the dialer has proved who it is. The caller decides whether that
/// node may have a link, and calls [`ready`] or [`refuse`]; of an error it [`tell`]s the dialer.
///
/// # Errors
/// [`UpgradeError`].
pub async fn accept<'a>(
    reader: &mut Reader,
    writer: &Writer,
    buffer: &mut BytesMut,
    identity: &'a Identity,
    loopback: bool,
) -> Result<Acceptor<'a>, UpgradeError> {
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL_NAME}\r\n\r\n"
    );
    writer.write_all(response.as_bytes()).await?;
    authenticate(reader, writer, buffer, identity, loopback).await
}

async fn authenticate<'a>(
    reader: &mut Reader,
    writer: &Writer,
    buffer: &mut BytesMut,
    identity: &'a Identity,
    loopback: bool,
) -> Result<Acceptor<'a>, UpgradeError> {
    if !identity.secrets.are_set() && !loopback {
        return Err(Refusal::new(
            RefusalCode::NotLoopback,
            "links from other machines need a secret: set the same clusterSecret on every node",
        )
        .into());
    }
    let body = read(reader, buffer).await?;
    let acceptor = match frame::decode(&body)? {
        Frame::Hello(body) => Acceptor::new(identity, body, rand::random())?,
        other => return Err(unexpected(&other)),
    };
    write(writer, &Frame::Challenge(&acceptor.challenge())).await?;
    let body = read(reader, buffer).await?;
    match frame::decode(&body)? {
        Frame::Auth(proof) => acceptor.finish(proof)?,
        other => {
            let error = unexpected(&other);
            // The peer saw the difference first; here it is told from this side.
            if let UpgradeError::RefusedByPeer(refusal) = &error {
                match refusal.code {
                    RefusalCode::Mismatch => acceptor.agrees()?,
                    RefusalCode::Secret => return Err(acceptor.unproved().into()),
                    _ => {}
                }
            }
            return Err(error);
        }
    }
    Ok(acceptor)
}

/// Tells the dialer that the link is open.
///
/// # Errors
/// The socket's.
pub async fn ready(writer: &Writer) -> Result<(), UpgradeError> {
    write(writer, &Frame::Ready).await
}

/// Tells the peer what this node found wrong, if that is why the handshake ends.
pub async fn tell<T>(writer: &Writer, result: &Result<T, UpgradeError>) {
    match result {
        Err(UpgradeError::Refused(refusal)) => refuse(writer, refusal).await,
        Err(UpgradeError::Frame(error)) => {
            let reason = format!("bad frame: {error}");
            refuse(writer, &Refusal::new(RefusalCode::Malformed, reason)).await;
        }
        Err(UpgradeError::TimedOut) => {
            let reason = "the handshake took too long";
            refuse(writer, &Refusal::new(RefusalCode::Other, reason)).await;
        }
        _ => {}
    }
}

/// Tells the peer why not. Best effort: the link closes either way.
pub async fn refuse(writer: &Writer, refusal: &Refusal) {
    let json = serde_json::to_vec(refusal).unwrap_or_default();
    let _ = write(writer, &Frame::Refuse(&json)).await;
}

fn unexpected(frame: &Frame<'_>) -> UpgradeError {
    match frame {
        Frame::Refuse(json) => match serde_json::from_slice(json) {
            Ok(refusal) => UpgradeError::RefusedByPeer(refusal),
            Err(error) => Refusal::new(RefusalCode::Malformed, error.to_string()).into(),
        },
        _ => Refusal::new(
            RefusalCode::Malformed,
            "a frame came out of turn in the handshake",
        )
        .into(),
    }
}

/// Nothing follows from the word of somebody who has not proved that it knows the secret.
fn unproven(error: UpgradeError) -> UpgradeError {
    match error {
        UpgradeError::RefusedByPeer(refusal) if refusal.code == RefusalCode::Removed => {
            UpgradeError::RefusedByPeer(Refusal::new(RefusalCode::Other, refusal.reason))
        }
        error => error,
    }
}

async fn write(writer: &Writer, frame: &Frame<'_>) -> Result<(), UpgradeError> {
    let mut out = BytesMut::new();
    frame::encode(frame, &mut out);
    Ok(writer.write_all(&out).await?)
}

async fn read(reader: &mut Reader, buffer: &mut BytesMut) -> Result<BytesMut, UpgradeError> {
    loop {
        if let Some(body) = frame::split(buffer, MAX_HANDSHAKE_FRAME)? {
            return Ok(body);
        }
        if reader.read_buf(buffer).await? == 0 {
            return Err(UpgradeError::Closed);
        }
    }
}

/// Reads the answer to the upgrade request up to its end.
async fn read_response(reader: &mut Reader, buffer: &mut BytesMut) -> Result<(), UpgradeError> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(buffer) {
            Ok(httparse::Status::Complete(length)) => {
                let code = response.code.unwrap_or(0);
                let offers = |test: fn(&[u8]) -> bool| {
                    let mut headers = response.headers.iter();
                    headers.any(|header| {
                        header.name.eq_ignore_ascii_case("upgrade") && test(header.value)
                    })
                };
                if code == 426 && offers(|value| value.starts_with(b"TLS/")) {
                    return Err(UpgradeError::TlsOnly);
                }
                let ours = offers(|value| value.eq_ignore_ascii_case(PROTOCOL_NAME.as_bytes()));
                if code != 101 || !ours {
                    return Err(UpgradeError::Http(code));
                }
                buffer.advance(length);
                return Ok(());
            }
            Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => {}
            _ => return Err(UpgradeError::NotHttp),
        }
        if reader.read_buf(buffer).await? == 0 {
            return Err(UpgradeError::Closed);
        }
    }
}
