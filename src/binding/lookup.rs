//! What JavaScript asks for each document or frame.

use std::ptr;
use std::sync::Arc;

use napi::bindgen_prelude::Unknown;
use napi::{Env, sys};

use super::function::{answer, function};
use crate::handle::Core;

/// Names up to this length are copied to the stack.
const STACK: usize = 512;

/// Longest UTF-8 sequence: a result this close to the end of the buffer may have been cut.
const LONGEST: usize = 4;

/// `(name: string) => number`: index of a name's owner in the view taken last, or -1.
pub fn owner_of<'env>(env: &Env, core: Arc<Core>) -> napi::Result<Unknown<'env>> {
    function(env, core, c"ownerOf", on_owner_of)
}

/// `() => boolean`: whether anything may be served now.
pub fn serves<'env>(env: &Env, core: Arc<Core>) -> napi::Result<Unknown<'env>> {
    function(env, core, c"serves", on_serves)
}

/// `(name: string) => boolean`: whether a document that the view gives this node may be served.
pub fn entitles<'env>(env: &Env, core: Arc<Core>) -> napi::Result<Unknown<'env>> {
    function(env, core, c"entitles", on_entitles)
}

unsafe extern "C" fn on_owner_of(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // There is nothing in here that could panic, but -1 beats an abort.
    let index = answer(env, info, -1, |core, [name]| {
        with_utf8(env, name, |bytes| core.taken.load().owner(bytes))
            .flatten()
            .map_or(-1, |index| index as i32)
    });
    let mut value = ptr::null_mut();
    // SAFETY: the out-pointer is valid. On failure the value stays null, which is `undefined`.
    unsafe { sys::napi_create_int32(env, index, &raw mut value) };
    value
}

unsafe extern "C" fn on_serves(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    boolean(env, answer(env, info, false, |core, []| core.serves()))
}

unsafe extern "C" fn on_entitles(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    let entitled = answer(env, info, false, |core, [name]| {
        with_utf8(env, name, |bytes| core.entitles(bytes)).unwrap_or(false)
    });
    boolean(env, entitled)
}

fn boolean(env: sys::napi_env, is: bool) -> sys::napi_value {
    let mut value = ptr::null_mut();
    // SAFETY: the out-pointer is valid. On failure the value stays null, which is `undefined`.
    unsafe { sys::napi_get_boolean(env, is, &raw mut value) };
    value
}

/// Calls `read` with the UTF-8 bytes of a string; `None` where the value is none.
fn with_utf8<T>(
    env: sys::napi_env,
    value: sys::napi_value,
    read: impl FnOnce(&[u8]) -> T,
) -> Option<T> {
    let copy = |buffer: *mut u8, size: usize| {
        let mut length = 0;
        // SAFETY: `buffer` is null or has `size` bytes.
        let status = unsafe {
            sys::napi_get_value_string_utf8(env, value, buffer.cast(), size, &raw mut length)
        };
        (status == sys::Status::napi_ok).then_some(length)
    };
    let mut buffer = [0_u8; STACK];
    let length = copy(buffer.as_mut_ptr(), STACK)?;
    if length < STACK - LONGEST {
        return Some(read(&buffer[..length]));
    }
    let mut long = vec![0_u8; copy(ptr::null_mut(), 0)? + 1];
    let length = copy(long.as_mut_ptr(), long.len())?;
    Some(read(&long[..length]))
}
