//! The functions on the hot path, registered by hand: napi-derive's glue costs several times what
//! they do.

use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use napi::bindgen_prelude::Unknown;
use napi::{Env, Status, sys};

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

type Callback = unsafe extern "C" fn(sys::napi_env, sys::napi_callback_info) -> sys::napi_value;

/// Makes a function; it keeps the core alive until it is collected.
pub fn function<'env>(
    env: &Env,
    core: Arc<Core>,
    name: &CStr,
    callback: Callback,
) -> napi::Result<Unknown<'env>> {
    let data = Arc::into_raw(core).cast_mut().cast::<c_void>();
    let mut value = ptr::null_mut();
    // SAFETY: `env` is the environment of the running call; `data` outlives the function, whose
    // finalizer frees it.
    let status = unsafe {
        sys::napi_create_function(
            env.raw(),
            name.as_ptr(),
            name.count_bytes() as isize,
            Some(callback),
            data,
            &raw mut value,
        )
    };
    if status != sys::Status::napi_ok {
        free(data);
        return Err(napi::Error::from_status(Status::from(status)));
    }
    // SAFETY: as above; `value` is the function just made.
    let status = unsafe {
        sys::napi_add_finalizer(
            env.raw(),
            value,
            data,
            Some(finalize),
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    if status != sys::Status::napi_ok {
        // The function exists and may be called: leak rather than dangle.
        return Err(napi::Error::from_status(Status::from(status)));
    }
    // SAFETY: `value` is a value of this environment.
    Ok(unsafe { Unknown::from_raw_unchecked(env.raw(), value) })
}

fn free(data: *mut c_void) {
    // SAFETY: `data` came from Arc::into_raw in `function` and is freed once.
    drop(unsafe { Arc::from_raw(data.cast::<Core>()) });
}

unsafe extern "C" fn finalize(_: sys::napi_env, data: *mut c_void, _: *mut c_void) {
    free(data);
}

unsafe extern "C" fn on_owner_of(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // There is nothing in here that could panic, but -1 beats an abort.
    let index = answer(env, info, -1, |core, name| {
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
    boolean(env, answer(env, info, false, |core, _| core.serves()))
}

unsafe extern "C" fn on_entitles(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    let entitled = answer(env, info, false, |core, name| {
        with_utf8(env, name, |bytes| core.entitles(bytes)).unwrap_or(false)
    });
    boolean(env, entitled)
}

/// Calls `ask` with the core and the first argument; a panic must not cross into C.
fn answer<T>(
    env: sys::napi_env,
    info: sys::napi_callback_info,
    on_panic: T,
    ask: impl FnOnce(&Core, sys::napi_value) -> T,
) -> T {
    catch_unwind(AssertUnwindSafe(|| {
        let (mut count, mut argument, mut data) = (1, ptr::null_mut(), ptr::null_mut());
        // SAFETY: out-pointers are valid; at most one argument is written.
        unsafe {
            sys::napi_get_cb_info(
                env,
                info,
                &raw mut count,
                &raw mut argument,
                ptr::null_mut(),
                &raw mut data,
            );
        }
        // SAFETY: `data` is the Arc<Core> of `function`, alive as long as that function is.
        ask(unsafe { &*data.cast::<Core>() }, argument)
    }))
    .unwrap_or(on_panic)
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
