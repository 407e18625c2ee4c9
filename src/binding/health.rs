//! The health endpoint's answers, and the sign of life that they carry.

use std::io::ErrorKind;

use napi_derive::napi;

use super::NativeNode;
use crate::probe;

#[napi]
impl NativeNode {
    /// JavaScript's event loop turns. To be called every 250 ms; a drain counts as well.
    #[napi(catch_unwind)]
    pub fn turn(&self) {
        self.core.turn();
    }

    /// What a request to the health endpoint is answered, by its query. JSON: `status`, `body`, and
    /// `proof` where there is one.
    #[napi(catch_unwind)]
    pub fn health_answer(&self, query: String) -> String {
        let identity = self.core.identity.load();
        let answer = probe::answer(&identity, &query, self.core.loop_age());
        serde_json::to_string(&answer).expect("it has string keys only")
    }
}

/// What a health check makes of the code of a Node error.
pub fn error_kind(code: Option<&str>) -> ErrorKind {
    match code {
        Some("ECONNREFUSED") => ErrorKind::ConnectionRefused,
        Some("ECONNRESET") => ErrorKind::ConnectionReset,
        // `js/cluster-tls.js` says so, and why.
        Some("TLS") => ErrorKind::InvalidData,
        Some("TLS_CLOSED") => ErrorKind::UnexpectedEof,
        Some("ENOTFOUND" | "EAI_AGAIN" | "EAI_NODATA") => ErrorKind::NotFound,
        _ => ErrorKind::Other,
    }
}
