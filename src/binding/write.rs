//! Frames straight to a client's socket.
//!
//! Of what it costs Node to send a small frame, the kernel's part is less than half; the rest is the
//! stream around the descriptor. A socket that has nothing queued and takes the frame at once needs
//! none of that. Every other case is the stream's: the caller hands it what was not taken.

use std::sync::Arc;

use napi::bindgen_prelude::Unknown;
use napi::{Env, sys};

use super::function::{answer, function, number, with_bytes};
use crate::handle::Core;

/// First byte of an unfragmented binary message, RFC 6455, section 5.2.
#[cfg(any(target_os = "linux", test))]
const BINARY: u8 = 0x82;

/// `(descriptor: number, payload: Uint8Array) => number`: sends the payload as one WebSocket message.
/// How many bytes the socket took, header included; 0 where it is full or failed.
pub fn write_frame<'env>(env: &Env, core: Arc<Core>) -> napi::Result<Unknown<'env>> {
    function(env, core, c"writeFrame", on_write_frame)
}

/// The header of a message that a server sends, and its length; RFC 6455, section 5.2.
#[cfg(any(target_os = "linux", test))]
fn header(length: usize) -> ([u8; 10], usize) {
    let mut header = [0; 10];
    header[0] = BINARY;
    let used = match length {
        0..126 => {
            header[1] = length as u8;
            2
        }
        126..65_536 => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    (header, used)
}

#[cfg(target_os = "linux")]
fn send(descriptor: i32, payload: &[u8]) -> usize {
    let (header, used) = header(payload.len());
    let mut parts = [
        libc::iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: used,
        },
        libc::iovec {
            iov_base: payload.as_ptr().cast_mut().cast(),
            iov_len: payload.len(),
        },
    ];
    // SAFETY: a message header of zeros is an empty one, on every libc.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    // SAFETY: `message` and what it points to live until the call returns, which only reads them.
    let sent = unsafe {
        libc::sendmsg(
            descriptor,
            &raw const message,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).unwrap_or(0)
}

#[cfg(not(target_os = "linux"))]
fn send(_: i32, _: &[u8]) -> usize {
    0
}

unsafe extern "C" fn on_write_frame(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    let sent = answer(env, info, 0, |_, [socket, payload]| {
        let mut descriptor = -1;
        // SAFETY: the out-pointer is valid.
        unsafe { sys::napi_get_value_int32(env, socket, &raw mut descriptor) };
        if descriptor < 0 {
            return 0;
        }
        // SAFETY: an argument of this call, and no JavaScript runs in `send`.
        unsafe { with_bytes(env, payload, |payload| send(descriptor, payload)) }.unwrap_or(0)
    });
    number(env, sent as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_shortest_form() {
        let of = |length| {
            let (bytes, used) = header(length);
            bytes[..used].to_vec()
        };
        assert_eq!(of(0), [0x82, 0]);
        assert_eq!(of(125), [0x82, 125]);
        assert_eq!(of(126), [0x82, 126, 0, 126]);
        assert_eq!(of(65_535), [0x82, 126, 255, 255]);
        assert_eq!(of(65_536), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
