//! The link between two nodes: authenticated, framed, multiplexed.
//!
//! `frame` is the wire, `auth` the handshake, `mux` the streams (all three pure); `upgrade` and
//! `connection` move their bytes, over tokio's sockets or over a `pipe` to one of JavaScript's.

pub mod auth;
pub mod connection;
pub mod frame;
pub mod mux;
pub mod pipe;
#[cfg(target_os = "linux")]
pub mod readiness;
pub mod secrets;
pub mod upgrade;
