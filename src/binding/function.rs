//! Functions on the hot path, registered by hand: napi-derive's glue costs several times what they
//! do.

use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use napi::bindgen_prelude::Unknown;
use napi::{Env, Status, sys};

use crate::handle::Core;

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

/// Calls `ask` with the core and the arguments; a panic must not cross into C. Arguments that are
/// missing are `undefined`.
pub fn answer<T, const N: usize>(
    env: sys::napi_env,
    info: sys::napi_callback_info,
    on_panic: T,
    ask: impl FnOnce(&Core, [sys::napi_value; N]) -> T,
) -> T {
    catch_unwind(AssertUnwindSafe(|| {
        let (mut count, mut arguments, mut data) = (N, [ptr::null_mut(); N], ptr::null_mut());
        // SAFETY: out-pointers are valid; at most N arguments are written.
        unsafe {
            sys::napi_get_cb_info(
                env,
                info,
                &raw mut count,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
                &raw mut data,
            );
        }
        // SAFETY: `data` is the Arc<Core> of `function`, alive as long as that function is.
        ask(unsafe { &*data.cast::<Core>() }, arguments)
    }))
    .unwrap_or(on_panic)
}

/// Calls `use_it` with the bytes of a `Uint8Array`; `None` where the value is none.
///
/// # Safety
/// The value is an argument of the running call, and nothing else refers to its bytes meanwhile:
/// `use_it` calls no JavaScript.
pub unsafe fn with_bytes<T>(
    env: sys::napi_env,
    value: sys::napi_value,
    use_it: impl FnOnce(&mut [u8]) -> T,
) -> Option<T> {
    let (mut bytes, mut length) = (ptr::null_mut(), 0);
    // SAFETY: out-pointers are valid, or null where nothing is asked for.
    let status = unsafe {
        sys::napi_get_typedarray_info(
            env,
            value,
            ptr::null_mut(),
            &raw mut length,
            &raw mut bytes,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    if status != sys::Status::napi_ok {
        return None;
    }
    if length == 0 {
        return Some(use_it(&mut []));
    }
    // SAFETY: by the caller's word; a Uint8Array has one byte an element.
    Some(use_it(unsafe {
        std::slice::from_raw_parts_mut(bytes.cast::<u8>(), length)
    }))
}

/// A number for JavaScript.
pub fn number(env: sys::napi_env, number: f64) -> sys::napi_value {
    let mut value = ptr::null_mut();
    // SAFETY: the out-pointer is valid. On failure the value stays null, which is `undefined`.
    unsafe { sys::napi_create_double(env, number, &raw mut value) };
    value
}
