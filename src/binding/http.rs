//! Requests to the management API and probes, for JavaScript.

use bytes::Bytes;
use napi::bindgen_prelude::{FnArgs, Function, Uint8Array};
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi_derive::napi;

use super::{parse, runtime};
use crate::http::{Event, Sent, Server};

/// Number of a request, its head and its body.
type Told = FnArgs<(u32, Option<String>, Option<Uint8Array>)>;

/// An HTTP listener of one node.
#[napi]
pub struct NativeListener {
    server: Server,
}

#[napi]
impl NativeListener {
    /// Listens; without `host` on every address. `tell` is called on the JavaScript thread with the
    /// head of a request (JSON) and its body, `null` where that is longer than is read; and, of an
    /// answer that goes on whose reader is gone, with its number and nothing else.
    /// Throws with the system's code, such as `EADDRINUSE`.
    #[napi(constructor, catch_unwind)]
    pub fn new(
        host: Option<String>,
        port: u16,
        #[napi(
            ts_arg_type = "(id: number, head?: string | null, body?: Uint8Array | null) => void"
        )]
        tell: Function<Told, ()>,
    ) -> napi::Result<Self, String> {
        let failed = |code: &str, error: &dyn std::fmt::Display| {
            napi::Error::new(code.to_owned(), error.to_string())
        };
        let host = host
            .map(|host| host.parse())
            .transpose()
            .map_err(|error| failed("EINVAL", &error))?;
        let runtime = runtime().map_err(|error| failed("ERR", &error))?;
        // Weak: a listener that nobody asks anything must not keep the process alive.
        let tell = tell
            .build_threadsafe_function::<Event>()
            .weak::<true>()
            .build_callback(|context| {
                Ok(FnArgs::from(match context.value {
                    Event::Closed(id) => (id, None, None),
                    Event::Asked(asked, body, _told) => {
                        let body = match body {
                            Sent::Whole(body) => Some(Uint8Array::from(Vec::from(body))),
                            Sent::TooLong => None,
                        };
                        (asked.id, serde_json::to_string(&asked).ok(), body)
                    }
                }))
            })
            .map_err(|error| failed("ERR", &error))?;
        let server = Server::listen(&runtime, host, port, move |event| {
            tell.call(event, ThreadsafeFunctionCallMode::NonBlocking);
        })
        .map_err(|error| failed(code_of(&error), &error))?;
        Ok(Self { server })
    }

    /// Where it listens.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn host(&self) -> String {
        self.server.address().ip().to_string()
    }

    /// Where it listens.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn port(&self) -> u16 {
        self.server.address().port()
    }

    /// Answers a request; `head` is the JSON of a `http::Head`.
    #[napi(catch_unwind)]
    pub fn answer(&self, id: u32, head: String, body: String) -> napi::Result<()> {
        self.server.answer(id, parse(&head)?, Bytes::from(body));
        Ok(())
    }

    /// Starts an answer that goes on.
    #[napi(catch_unwind)]
    pub fn open(&self, id: u32, head: String) -> napi::Result<()> {
        self.server.open(id, parse(&head)?);
        Ok(())
    }

    /// Adds to an answer that goes on.
    #[napi(catch_unwind)]
    pub fn write(&self, id: u32, text: String) {
        self.server.write(id, Bytes::from(text));
    }

    /// Bytes of an answer that were not taken yet.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn backlog(&self, id: u32) -> f64 {
        self.server.backlog(id) as f64
    }

    /// Ends an answer that goes on; `cut`: at once, with its connection.
    #[napi(catch_unwind)]
    pub fn end(&self, id: u32, cut: bool) {
        self.server.end(id, cut);
    }

    /// Nothing that was answered is repeated.
    #[napi(catch_unwind)]
    pub fn forget(&self) {
        self.server.forget();
    }

    /// Does not listen any more when this returns. Idempotent.
    #[napi(catch_unwind)]
    pub fn close(&self) {
        self.server.close();
    }
}

/// As Node calls it.
fn code_of(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, PermissionDenied};
    match error.kind() {
        AddrInUse => "EADDRINUSE",
        AddrNotAvailable => "EADDRNOTAVAIL",
        PermissionDenied => "EACCES",
        _ => "ERR_LISTEN",
    }
}
