//! The one function on the hot path, registered by hand: napi-derive's glue costs several times
//! the look-up itself.

use std::ffi::c_void;
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

/// Makes the function; it keeps the core alive until it is collected.
pub fn function<'env>(env: &Env, core: Arc<Core>) -> napi::Result<Unknown<'env>> {
    let data = Arc::into_raw(core).cast_mut().cast::<c_void>();
    let mut value = ptr::null_mut();
    // SAFETY: `env` is the environment of the running call; `data` outlives the function, whose
    // finalizer frees it.
    let status = unsafe {
        let name = c"ownerOf";
        sys::napi_create_function(
            env.raw(),
            name.as_ptr(),
            7,
            Some(owner_of),
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

unsafe extern "C" fn owner_of(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> sys::napi_value {
    // A panic must not cross into C; there is nothing in here that could, but -1 beats an abort.
    let index = catch_unwind(AssertUnwindSafe(|| {
        let (mut count, mut name, mut data) = (1, ptr::null_mut(), ptr::null_mut());
        // SAFETY: out-pointers are valid; at most one argument is written.
        unsafe {
            sys::napi_get_cb_info(
                env,
                info,
                &raw mut count,
                &raw mut name,
                ptr::null_mut(),
                &raw mut data,
            );
        }
        // SAFETY: `data` is the Arc<Core> of `function`, alive as long as this function is.
        let core = unsafe { &*data.cast::<Core>() };
        with_utf8(env, name, |bytes| core.taken.load().owner(bytes))
            .flatten()
            .map_or(-1, |index| index as i32)
    }))
    .unwrap_or(-1);
    let mut value = ptr::null_mut();
    // SAFETY: the out-pointer is valid. On failure the value stays null, which is `undefined`.
    unsafe { sys::napi_create_int32(env, index, &raw mut value) };
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
