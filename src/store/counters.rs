//! What came of this node's requests to the store, for operators.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::redis::error::StoreError;
use super::registry::Answer;

/// Counters since the start; all zero without a store.
#[derive(Debug, Default)]
pub struct Counters {
    /// Heartbeats sent, also those passed on for peers.
    requests: AtomicU64,
    /// Those of them that failed.
    errors: AtomicU64,
    /// Round trip of the last one that was answered in microseconds; 0 before the first.
    rtt: AtomicU64,
    /// Milliseconds on the core's clock when the last answer came; 0 before the first.
    answered: AtomicU64,
    // std's Mutex: held for one assignment, never across an await.
    /// What went wrong last; `None` while requests are answered.
    trouble: Mutex<Option<String>>,
}

impl Counters {
    /// A heartbeat that was sent at `sent` ended at `now`, both on the core's clock.
    pub fn note(&self, sent: Duration, now: Duration, answer: &Answer) {
        self.requests.fetch_add(1, Relaxed);
        if answer.is_err() {
            self.errors.fetch_add(1, Relaxed);
            return;
        }
        let rtt = now.saturating_sub(sent).as_micros() as u64;
        self.rtt.store(rtt.max(1), Relaxed);
        self.answered.store(now.as_millis() as u64, Relaxed);
    }

    /// What is wrong since the last request of any kind; `None`: nothing.
    pub fn trouble(&self, error: Option<&StoreError>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) =
            error.map(ToString::to_string);
    }

    /// As JavaScript reads it.
    #[must_use]
    pub fn json(&self, now: Duration) -> serde_json::Value {
        let answered = self.answered.load(Relaxed);
        let age = (now.as_millis() as u64).saturating_sub(answered);
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::json!({
            "requests": self.requests.load(Relaxed),
            "errors": self.errors.load(Relaxed),
            "rtt": self.rtt.load(Relaxed),
            "answeredAgo": (answered > 0).then_some(age),
            "trouble": trouble.as_deref(),
        })
    }
}
