//! Frames straight to a client's socket.
//!
//! Of what it costs Node to send a small frame, the kernel's part is less than half; the rest is the
//! stream around the descriptor. A socket that has nothing queued and takes the frame at once needs
//! none of that. Every other case is the stream's: the caller hands it what was not taken.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use napi::bindgen_prelude::Unknown;
use napi::{Env, sys};

use super::lookup::function;
use crate::handle::Core;

/// First byte of an unfragmented binary message, RFC 6455, section 5.2.
const BINARY: u8 = 0x82;

/// `(descriptor: number, payload: Uint8Array) => number`: sends the payload as one WebSocket message.
/// How many bytes the socket took, header included; 0 where it is full or failed.
pub fn write_frame<'env>(env: &Env, core: Arc<Core>) -> napi::Result<Unknown<'env>> {
    function(env, core, c"writeFrame", on_write_frame)
}

/// The header of a message that a server sends, and its length; RFC 6455, section 5.2.
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
    // A panic must not cross into C.
    let sent = catch_unwind(AssertUnwindSafe(|| {
        let mut arguments = [ptr::null_mut(); 2];
        let mut count = arguments.len();
        let mut descriptor = -1;
        let (mut bytes, mut length) = (ptr::null_mut(), 0);
        // SAFETY: out-pointers are valid, and null where the caller does not ask; at most two
        // arguments are written. The bytes are alive while the call runs, as its argument.
        unsafe {
            sys::napi_get_cb_info(
                env,
                info,
                &raw mut count,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
                ptr::null_mut(),
            );
            let known = sys::napi_get_value_int32(env, arguments[0], &raw mut descriptor)
                == sys::Status::napi_ok
                && sys::napi_get_typedarray_info(
                    env,
                    arguments[1],
                    ptr::null_mut(),
                    &raw mut length,
                    &raw mut bytes,
                    ptr::null_mut(),
                    ptr::null_mut(),
                ) == sys::Status::napi_ok;
            if !known || descriptor < 0 {
                return 0;
            }
            let payload = if length == 0 {
                &[][..]
            } else {
                std::slice::from_raw_parts(bytes.cast::<u8>(), length)
            };
            send(descriptor, payload)
        }
    }))
    .unwrap_or(0);
    let mut value = ptr::null_mut();
    // SAFETY: the out-pointer is valid. On failure the value stays null, which is `undefined`.
    unsafe { sys::napi_create_double(env, sent as f64, &raw mut value) };
    value
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
