//! The wire format of a link: length-prefixed, versioned by the handshake, bounded.
//!
//! `docs/PROTOCOL.md` specifies it; this file is that table as code. Every integer is big-endian.

use bytes::{Buf, BufMut, BytesMut};

/// Lowest and highest protocol version this build speaks. A link uses the highest both sides know.
pub const PROTOCOL: (u16, u16) = (1, 1);

/// Largest payload of one data frame; longer messages are cut into chunks of this size so that
/// streams interleave.
pub const CHUNK: usize = 16 * 1024;

/// Largest message that crosses as one multicast frame. Longer ones go to each stream in chunks.
pub const MULTICAST_MAX: usize = 64 * 1024;

/// Most streams one multicast frame may name.
pub const MULTICAST_STREAMS: usize = 8 * 1024;

/// Largest frame body after the handshake. A longer length prefix closes the link unread.
pub const MAX_FRAME: usize = 1 + 4 + 4 * MULTICAST_STREAMS + MULTICAST_MAX;

/// Largest frame body before a peer has proved that it knows the cluster secret.
pub const MAX_HANDSHAKE_FRAME: usize = 8 * 1024;

/// Longest close reason, in bytes (what a WebSocket close frame can carry).
pub const MAX_REASON: usize = 123;

/// Largest gossip message.
pub const GOSSIP_MAX: usize = 16 * 1024;

/// Frame types on the wire.
mod tag {
    pub const HELLO: u8 = 0x01;
    pub const CHALLENGE: u8 = 0x02;
    pub const AUTH: u8 = 0x03;
    pub const READY: u8 = 0x04;
    pub const REFUSE: u8 = 0x05;
    pub const OPEN: u8 = 0x10;
    pub const DATA: u8 = 0x11;
    pub const MULTICAST: u8 = 0x12;
    pub const CLOSE: u8 = 0x13;
    pub const CREDIT: u8 = 0x14;
    pub const PING: u8 = 0x20;
    pub const PONG: u8 = 0x21;
    pub const VIEW: u8 = 0x30;
    pub const GOSSIP: u8 = 0x31;
}

/// Bit of a data frame's flags: this chunk ends its message.
const LAST: u8 = 1;

/// One frame, borrowed from the read buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Dialer's first word: JSON of [`super::auth::Hello`].
    Hello(&'a [u8]),
    /// Acceptor's answer: a 32-byte proof, then JSON of [`super::auth::Challenge`].
    Challenge(&'a [u8]),
    /// Dialer's 32-byte proof.
    Auth(&'a [u8]),
    /// The link is open.
    Ready,
    /// The handshake failed; JSON of [`super::auth::Refusal`]. The link closes after it.
    Refuse(&'a [u8]),
    /// The dialer opens a stream. Ids grow, and are never used twice on a link.
    Open {
        /// Stream id, chosen by the dialer.
        stream: u32,
    },
    /// A chunk of a message.
    Data {
        /// Stream id.
        stream: u32,
        /// What the message is; see `docs/PROTOCOL.md`, "Messages". The core passes it through.
        kind: u8,
        /// Whether this chunk ends the message.
        last: bool,
        /// The chunk.
        bytes: &'a [u8],
    },
    /// One whole message for many streams, of kind 0.
    Multicast {
        /// Big-endian stream ids.
        streams: &'a [u8],
        /// The message.
        bytes: &'a [u8],
    },
    /// Ends a stream in both directions.
    Close {
        /// Stream id.
        stream: u32,
        /// WebSocket close code the client is to see.
        code: u16,
        /// WebSocket close reason.
        reason: &'a str,
    },
    /// The receiver takes so many more bytes on a stream.
    Credit {
        /// Stream id.
        stream: u32,
        /// Bytes granted on top of what was granted before.
        bytes: u32,
    },
    /// Asks for a [`Frame::Pong`] with the same number.
    Ping(u64),
    /// Answer to a ping.
    Pong(u64),
    /// The view all later frames of this sender were sent under.
    View {
        /// Epoch of the view.
        epoch: u64,
        /// Hash of the view.
        hash: u64,
    },
    /// A message of the membership protocol; see [`crate::store::peers`].
    Gossip(&'a [u8]),
}

/// Why bytes are no frame. Each closes the link; no state has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length prefix exceeds the limit of this phase of the link.
    #[error("frame of {0} bytes where at most {1} are allowed")]
    TooLong(usize, usize),
    /// The frame type is none of this protocol version.
    #[error("unknown frame type 0x{0:02x}")]
    UnknownType(u8),
    /// The body is shorter or longer than its type asks for, or not UTF-8 where text is due.
    #[error("malformed frame of type 0x{0:02x}")]
    Malformed(u8),
    /// A frame without even a type.
    #[error("empty frame")]
    Empty,
}

/// Splits the next whole frame body off `buffer`. `None` until it is complete.
///
/// # Errors
/// [`FrameError::TooLong`] or [`FrameError::Empty`] as soon as the length prefix is read.
pub fn split(buffer: &mut BytesMut, limit: usize) -> Result<Option<BytesMut>, FrameError> {
    let Some(prefix) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*prefix) as usize;
    if length > limit {
        return Err(FrameError::TooLong(length, limit));
    }
    if length == 0 {
        return Err(FrameError::Empty);
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length)))
}

/// Reads one frame body.
///
/// # Errors
/// [`FrameError`] where the body is none.
pub fn decode(body: &[u8]) -> Result<Frame<'_>, FrameError> {
    let (&kind, mut rest) = body.split_first().ok_or(FrameError::Empty)?;
    let bad = || FrameError::Malformed(kind);
    let frame = match kind {
        tag::HELLO => Frame::Hello(std::mem::take(&mut rest)),
        tag::CHALLENGE => Frame::Challenge(std::mem::take(&mut rest)),
        tag::AUTH => Frame::Auth(std::mem::take(&mut rest)),
        tag::READY => Frame::Ready,
        tag::REFUSE => Frame::Refuse(std::mem::take(&mut rest)),
        tag::OPEN => Frame::Open {
            stream: rest.try_get_u32().map_err(|_| bad())?,
        },
        tag::DATA => {
            let stream = rest.try_get_u32().map_err(|_| bad())?;
            let kind = rest.try_get_u8().map_err(|_| bad())?;
            let flags = rest.try_get_u8().map_err(|_| bad())?;
            if flags & !LAST != 0 || rest.len() > CHUNK {
                return Err(bad());
            }
            Frame::Data {
                stream,
                kind,
                last: flags & LAST != 0,
                bytes: std::mem::take(&mut rest),
            }
        }
        tag::MULTICAST => {
            let count = rest.try_get_u32().map_err(|_| bad())? as usize;
            if count == 0 || count > MULTICAST_STREAMS || rest.len() < count * 4 {
                return Err(bad());
            }
            let (streams, bytes) = rest.split_at(count * 4);
            if bytes.len() > MULTICAST_MAX {
                return Err(bad());
            }
            rest = &[];
            Frame::Multicast { streams, bytes }
        }
        tag::CLOSE => {
            let stream = rest.try_get_u32().map_err(|_| bad())?;
            let code = rest.try_get_u16().map_err(|_| bad())?;
            if rest.len() > MAX_REASON {
                return Err(bad());
            }
            Frame::Close {
                stream,
                code,
                reason: std::str::from_utf8(std::mem::take(&mut rest)).map_err(|_| bad())?,
            }
        }
        tag::CREDIT => Frame::Credit {
            stream: rest.try_get_u32().map_err(|_| bad())?,
            bytes: rest.try_get_u32().map_err(|_| bad())?,
        },
        tag::PING => Frame::Ping(rest.try_get_u64().map_err(|_| bad())?),
        tag::PONG => Frame::Pong(rest.try_get_u64().map_err(|_| bad())?),
        tag::VIEW => Frame::View {
            epoch: rest.try_get_u64().map_err(|_| bad())?,
            hash: rest.try_get_u64().map_err(|_| bad())?,
        },
        tag::GOSSIP if rest.len() > GOSSIP_MAX => return Err(bad()),
        tag::GOSSIP => Frame::Gossip(std::mem::take(&mut rest)),
        other => return Err(FrameError::UnknownType(other)),
    };
    if rest.is_empty() {
        Ok(frame)
    } else {
        Err(bad())
    }
}

/// Appends one frame with its length prefix.
pub fn encode(frame: &Frame<'_>, out: &mut BytesMut) {
    let start = out.len();
    out.put_u32(0);
    match *frame {
        Frame::Hello(json) => put(out, tag::HELLO, json),
        Frame::Challenge(bytes) => put(out, tag::CHALLENGE, bytes),
        Frame::Auth(bytes) => put(out, tag::AUTH, bytes),
        Frame::Ready => put(out, tag::READY, &[]),
        Frame::Refuse(json) => put(out, tag::REFUSE, json),
        Frame::Open { stream } => put(out, tag::OPEN, &stream.to_be_bytes()),
        Frame::Data {
            stream,
            kind,
            last,
            bytes,
        } => {
            out.put_u8(tag::DATA);
            out.put_u32(stream);
            out.put_u8(kind);
            out.put_u8(if last { LAST } else { 0 });
            out.put_slice(bytes);
        }
        Frame::Multicast { streams, bytes } => {
            out.put_u8(tag::MULTICAST);
            out.put_u32((streams.len() / 4) as u32);
            out.put_slice(streams);
            out.put_slice(bytes);
        }
        Frame::Close {
            stream,
            code,
            reason,
        } => {
            out.put_u8(tag::CLOSE);
            out.put_u32(stream);
            out.put_u16(code);
            out.put_slice(clip(reason).as_bytes());
        }
        Frame::Credit { stream, bytes } => {
            out.put_u8(tag::CREDIT);
            out.put_u32(stream);
            out.put_u32(bytes);
        }
        Frame::Ping(number) => put(out, tag::PING, &number.to_be_bytes()),
        Frame::Pong(number) => put(out, tag::PONG, &number.to_be_bytes()),
        Frame::View { epoch, hash } => {
            out.put_u8(tag::VIEW);
            out.put_u64(epoch);
            out.put_u64(hash);
        }
        Frame::Gossip(bytes) => put(out, tag::GOSSIP, bytes),
    }
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn put(out: &mut BytesMut, kind: u8, body: &[u8]) {
    out.put_u8(kind);
    out.put_slice(body);
}

/// The longest prefix of a reason that fits a close frame without cutting a character.
#[must_use]
pub fn clip(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Frame<'static>] = &[
        Frame::Hello(b"{}"),
        Frame::Challenge(b"0123"),
        Frame::Auth(b"0123"),
        Frame::Ready,
        Frame::Refuse(b"{}"),
        Frame::Open { stream: 7 },
        Frame::Data {
            stream: 7,
            kind: 3,
            last: true,
            bytes: b"abc",
        },
        Frame::Data {
            stream: u32::MAX,
            kind: 0,
            last: false,
            bytes: b"",
        },
        Frame::Multicast {
            streams: &[0, 0, 0, 1, 0, 0, 0, 2],
            bytes: b"abc",
        },
        Frame::Close {
            stream: 7,
            code: 4401,
            reason: "Unauthorized",
        },
        Frame::Credit {
            stream: 7,
            bytes: 9,
        },
        Frame::Ping(1),
        Frame::Pong(2),
        Frame::View { epoch: 3, hash: 4 },
        Frame::Gossip(b"abc"),
    ];

    #[test]
    fn every_frame_survives_the_wire_however_it_is_cut() {
        let mut wire = BytesMut::new();
        for frame in ALL {
            encode(frame, &mut wire);
        }
        for step in [1, 2, 3, 5, wire.len()] {
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(body) = split(&mut buffer, MAX_FRAME).unwrap() {
                    seen.push(body);
                }
            }
            assert!(buffer.is_empty());
            let decoded: Vec<_> = seen.iter().map(|body| decode(body).unwrap()).collect();
            assert_eq!(decoded, ALL);
        }
    }

    #[test]
    fn wire_bytes_of_version_1() {
        // Another implementation, or the next version of this one, must write these very bytes.
        let golden = [
            "0000000501".to_owned() + "7b7d7b7d",
            "0000000510".to_owned() + "00000007",
            "0000000a11".to_owned() + "00000007" + "03" + "01" + "616263",
            "0000001012".to_owned() + "00000002" + "00000001" + "00000002" + "616263",
            "0000000a13".to_owned() + "00000007" + "1131" + "6e6f" + "21",
            "0000000914".to_owned() + "00000007" + "00000009",
            "0000000920".to_owned() + "0000000000000001",
            "0000001130".to_owned() + "0000000000000003" + "0000000000000004",
            "0000000431".to_owned() + "616263",
        ];
        let frames = [
            Frame::Hello(b"{}{}"),
            ALL[5],
            ALL[6],
            ALL[8],
            Frame::Close {
                stream: 7,
                code: 4401,
                reason: "no!",
            },
            ALL[10],
            ALL[11],
            ALL[13],
            ALL[14],
        ];
        for (frame, golden) in frames.iter().zip(golden) {
            let mut wire = BytesMut::new();
            encode(frame, &mut wire);
            let hex: String = wire.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, golden, "{frame:?}");
        }
    }

    #[test]
    fn bad_bytes_are_named() {
        let mut long = BytesMut::from(&u32::MAX.to_be_bytes()[..]);
        assert_eq!(
            split(&mut long, MAX_FRAME),
            Err(FrameError::TooLong(u32::MAX as usize, MAX_FRAME))
        );
        assert_eq!(
            split(&mut BytesMut::from(&[0, 0, 0, 0][..]), 9),
            Err(FrameError::Empty)
        );
        for (body, error) in [
            (&b""[..], FrameError::Empty),
            (b"\xff", FrameError::UnknownType(0xff)),
            (b"\x10\x00", FrameError::Malformed(0x10)),
            (b"\x10\0\0\0\x01\0", FrameError::Malformed(0x10)),
            (b"\x11\0\0\0\x01\0\x02", FrameError::Malformed(0x11)),
            (b"\x12\0\0\0\0", FrameError::Malformed(0x12)),
            (b"\x12\xff\xff\xff\xff", FrameError::Malformed(0x12)),
            (b"\x13\0\0\0\x01\x11\x31\xff", FrameError::Malformed(0x13)),
        ] {
            assert_eq!(decode(body), Err(error), "{body:?}");
        }
        let mut gossip = vec![0x31; 1 + GOSSIP_MAX];
        assert!(decode(&gossip).is_ok());
        gossip.push(0);
        assert_eq!(decode(&gossip), Err(FrameError::Malformed(0x31)));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "\u{e9}".repeat(100);
        assert_eq!(clip(&reason).len(), 122);
        assert_eq!(clip("short"), "short");
    }
}
