//! The JavaScript thread's event loop watches the node's links: libuv, which Node exports, polls
//! the one descriptor that stands for all of them. Where that is not possible (another runtime,
//! another system) tokio reads, at the price of a second wake-up per message.
//!
//! | from   | event                                   | to      |
//! |--------|-----------------------------------------|---------|
//! | –      | `start`                                 | polling |
//! | polling| `close`, or the environment is torn down | closing |
//! | closing| libuv is done with the handle           | – (freed) |

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use napi::{Env, sys};

use crate::handle::Core;
use crate::link::readiness::Readiness;

/// `UV_READABLE`.
const READABLE: c_int = 1;

/// `UV_POLL` in `uv_handle_type`; [`Uv::load`] checks that libuv calls it so.
const POLL: c_int = 8;

/// Start of a `uv_poll_t`, whose size only libuv knows.
#[repr(C)]
struct Handle {
    data: *mut c_void,
}

type OnPoll = unsafe extern "C" fn(*mut Handle, c_int, c_int);
type OnClose = unsafe extern "C" fn(*mut Handle);

/// The functions of libuv that are used here; its ABI is stable through version 1.
struct Uv {
    handle_size: unsafe extern "C" fn(c_int) -> usize,
    poll_init: unsafe extern "C" fn(*mut sys::uv_loop_s, *mut Handle, c_int) -> c_int,
    poll_start: unsafe extern "C" fn(*mut Handle, c_int, OnPoll) -> c_int,
    close: unsafe extern "C" fn(*mut Handle, OnClose),
    unref: unsafe extern "C" fn(*mut Handle),
}

impl Uv {
    /// `None` where the process does not export libuv.
    fn load() -> Option<Self> {
        // SAFETY: the symbols have these signatures in every libuv 1 (uv.h).
        unsafe {
            let name: unsafe extern "C" fn(c_int) -> *const c_char =
                symbol(c"uv_handle_type_name")?;
            let name = name(POLL);
            if name.is_null() || CStr::from_ptr(name) != c"poll" {
                return None;
            }
            Some(Self {
                handle_size: symbol(c"uv_handle_size")?,
                poll_init: symbol(c"uv_poll_init")?,
                poll_start: symbol(c"uv_poll_start")?,
                close: symbol(c"uv_close")?,
                unref: symbol(c"uv_unref")?,
            })
        }
    }
}

/// A function among what is loaded.
///
/// # Safety
/// `F` is a function pointer of the signature that the symbol has.
unsafe fn symbol<F: Copy>(name: &CStr) -> Option<F> {
    // SAFETY: a look-up by name.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if address.is_null() {
        return None;
    }
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: of the same size, and by the caller's word of that type.
    Some(unsafe { std::mem::transmute_copy(&address) })
}

/// What the callbacks need. Belongs to the JavaScript thread. The handle's `data` counts as one
/// owner, until [`on_closed`]; a [`Poll`] is the other, as either may go first.
struct Watch {
    core: Arc<Core>,
    env: sys::napi_env,
    /// The function that drains.
    drain: sys::napi_ref,
    uv: Uv,
    /// Allocated with the size that libuv names.
    handle: Box<[u64]>,
    hook: Cell<sys::napi_async_cleanup_hook_handle>,
    closing: Cell<bool>,
}

impl Watch {
    fn handle(&self) -> *mut Handle {
        self.handle.as_ptr().cast_mut().cast()
    }

    fn close(&self) {
        if !self.closing.replace(true) {
            // SAFETY: the handle was initialized and is not closing yet.
            unsafe { (self.uv.close)(self.handle(), on_closed) };
        }
    }
}

/// The watch of one node. Not `Send`: it is the JavaScript thread's.
pub struct Poll(Rc<Watch>);

impl Poll {
    /// Starts watching; links made from now on are read by this thread, which then calls `drain`.
    /// `None` where that is not possible.
    pub fn start(env: &Env, core: &Arc<Core>, drain: sys::napi_value) -> Option<Self> {
        let uv = Uv::load()?;
        let readiness = Arc::new(Readiness::new().ok()?);
        let env = env.raw();
        let (mut uv_loop, mut reference) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: `env` is the environment of the running call, `drain` a function in it.
        let found = unsafe {
            sys::napi_get_uv_event_loop(env, &raw mut uv_loop) == sys::Status::napi_ok
                && sys::napi_create_reference(env, drain, 1, &raw mut reference)
                    == sys::Status::napi_ok
        };
        if !found {
            return None;
        }
        // SAFETY: asks for a number.
        let words = unsafe { (uv.handle_size)(POLL) }.div_ceil(size_of::<u64>());
        let watch = Rc::new(Watch {
            core: Arc::clone(core),
            env,
            drain: reference,
            uv,
            handle: vec![0; words.max(1)].into_boxed_slice(),
            hook: Cell::new(ptr::null_mut()),
            closing: Cell::new(false),
        });
        let handle = watch.handle();
        // SAFETY: the memory has the size libuv asked for, at its alignment; the loop is the one of
        // this thread.
        if unsafe { (watch.uv.poll_init)(uv_loop, handle, readiness.descriptor()) } != 0 {
            // SAFETY: made above, in this environment.
            unsafe { sys::napi_delete_reference(env, reference) };
            return None;
        }
        let data = Rc::into_raw(Rc::clone(&watch)).cast_mut().cast::<c_void>();
        // SAFETY: the handle is initialized; `data` is its first field, and the user's.
        let started = unsafe {
            (*handle).data = data;
            (watch.uv.unref)(handle);
            let mut hook = ptr::null_mut();
            sys::napi_add_async_cleanup_hook(env, Some(on_teardown), data, &raw mut hook);
            watch.hook.set(hook);
            (watch.uv.poll_start)(handle, READABLE, on_readable) == 0
        };
        if !started {
            watch.close();
            return None;
        }
        let _ = core.readiness.set(readiness);
        Some(Self(watch))
    }

    /// Stops watching. Idempotent.
    pub fn close(&self) {
        self.0.close();
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.close();
    }
}

unsafe extern "C" fn on_readable(handle: *mut Handle, _: c_int, _: c_int) {
    // SAFETY: libuv calls with the handle it was given, whose data is the watch.
    let watch = unsafe { &*(*handle).data.cast::<Watch>() };
    // A panic must not unwind into libuv.
    let waits = catch_unwind(AssertUnwindSafe(|| watch.core.read_ready()));
    if !waits.unwrap_or(true) || watch.closing.get() {
        return;
    }
    let env = watch.env;
    // SAFETY: this is the JavaScript thread, outside of any call; the scope bounds the handles made
    // here. `watch` may be closed by the call, but is freed only later, by the loop.
    unsafe {
        let (mut scope, mut global, mut drain) =
            (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        if sys::napi_open_handle_scope(env, &raw mut scope) != sys::Status::napi_ok {
            return;
        }
        sys::napi_get_global(env, &raw mut global);
        sys::napi_get_reference_value(env, watch.drain, &raw mut drain);
        if !drain.is_null() {
            let mut result = ptr::null_mut();
            let status = sys::napi_make_callback(
                env,
                ptr::null_mut(),
                global,
                drain,
                0,
                ptr::null(),
                &raw mut result,
            );
            if status == sys::Status::napi_pending_exception {
                // As from any callback of Node's: an uncaught exception.
                let mut error = ptr::null_mut();
                sys::napi_get_and_clear_last_exception(env, &raw mut error);
                sys::napi_fatal_exception(env, error);
            }
        }
        sys::napi_close_handle_scope(env, scope);
    }
}

unsafe extern "C" fn on_closed(handle: *mut Handle) {
    // SAFETY: the last call for this handle, whose data is an owner of the watch.
    unsafe {
        let watch = Rc::from_raw((*handle).data.cast::<Watch>());
        sys::napi_delete_reference(watch.env, watch.drain);
        let hook = watch.hook.get();
        if !hook.is_null() {
            sys::napi_remove_async_cleanup_hook(hook);
        }
    }
}

unsafe extern "C" fn on_teardown(_: sys::napi_async_cleanup_hook_handle, data: *mut c_void) {
    // SAFETY: the hook is removed before the handle's share of the watch is given up.
    unsafe { &*data.cast::<Watch>() }.close();
}
