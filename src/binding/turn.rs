//! What goes over once per turn of the event loop: staged records out, what waits in.

use std::sync::Arc;

use napi::bindgen_prelude::Unknown;
use napi::{Env, sys};

use super::function::{answer, function, number, with_bytes};
use crate::handle::Core;
use crate::inbox::Drain;
use crate::link::connection::Link;
use crate::link::frame::clip;

/// Kinds of staged records; `js/core.js` writes them.
mod staged {
    pub const OPEN: u32 = 1;
    pub const MESSAGE: u32 = 2;
    pub const MULTICAST: u32 = 3;
    pub const CLOSE: u32 = 4;
}

/// `(records: Uint8Array, length: number) => void`
pub fn flush<'env>(env: &Env, core: Arc<Core>) -> napi::Result<Unknown<'env>> {
    function(env, core, c"flush", on_flush)
}

/// `(room: Uint8Array, at: number) => number`
pub fn drain<'env>(env: &Env, core: Arc<Core>) -> napi::Result<Unknown<'env>> {
    function(env, core, c"drain", on_drain)
}

unsafe extern "C" fn on_flush(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    answer(env, info, (), |core, [records, length]| {
        let length = index(env, length);
        // SAFETY: an argument of this call, and no JavaScript runs in `flush_records`.
        unsafe {
            with_bytes(env, records, |records| {
                flush_records(core, &records[..length.min(records.len())]);
            })
        };
    });
    std::ptr::null_mut()
}

unsafe extern "C" fn on_drain(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    let answer = answer(env, info, 0, |core, [room, at]| {
        let at = index(env, at);
        // SAFETY: an argument of this call, and no JavaScript runs in `drain_into`.
        unsafe {
            with_bytes(env, room, |room| {
                drain_into(core, room.get_mut(at..).unwrap_or(&mut []))
            })
        }
        .unwrap_or(0)
    });
    number(env, answer as f64)
}

fn index(env: sys::napi_env, value: sys::napi_value) -> usize {
    let mut index = 0;
    // SAFETY: the out-pointer is valid. Where the value is no number it stays 0.
    unsafe { sys::napi_get_value_uint32(env, value, &raw mut index) };
    index as usize
}

fn drain_into(core: &Core, room: &mut [u8]) -> isize {
    core.turn();
    match core.inbox.drain(room.len()) {
        Drain::Empty => 0,
        Drain::Needs(size) => -(size as isize),
        Drain::Records { bytes, more } => {
            room[..bytes.len()].copy_from_slice(&bytes);
            bytes.len() as isize | isize::from(more)
        }
    }
}

fn flush_records(core: &Core, records: &[u8]) {
    let mut rest = records;
    let mut touched: Vec<Arc<Link>> = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(16) {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4"));
        let (kind, link, stream, length) = (word(0), word(4), word(8), word(12) as usize);
        let Some((payload, _)) = after.split_at_checked(length) else {
            debug_assert!(false, "record cut short");
            break;
        };
        rest = after.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        let at = touched.iter().position(|known| known.id == link);
        let link = match at {
            Some(at) => &touched[at],
            None => match core.link(link) {
                Some(found) => {
                    touched.push(found);
                    touched.last().expect("pushed")
                }
                // The link went away; its streams were told, except for new ones.
                None => {
                    if kind == staged::OPEN {
                        core.refuse_stream(link, stream);
                    }
                    continue;
                }
            },
        };
        perform(link, kind, stream, payload);
    }
    for link in touched {
        link.flush();
    }
}

fn perform(link: &Link, kind: u32, stream: u32, payload: &[u8]) {
    match kind & 0xff {
        staged::OPEN => link.open(stream),
        staged::MESSAGE => link.send(stream, (kind >> 8) as u8, payload),
        staged::MULTICAST => {
            let Some((list, bytes)) = payload.split_at_checked(stream as usize * 4) else {
                return;
            };
            let ids: Vec<u32> = list
                .chunks_exact(4)
                .map(|id| u32::from_ne_bytes(id.try_into().expect("4")))
                .collect();
            link.multicast(&ids, bytes);
        }
        staged::CLOSE => {
            if let Some((code, reason)) = payload.split_first_chunk::<2>() {
                let reason = String::from_utf8_lossy(reason);
                link.close(stream, u16::from_ne_bytes(*code), clip(&reason));
            }
        }
        _ => debug_assert!(false, "unknown staged record {kind}"),
    }
}
