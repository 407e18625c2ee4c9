//! The native core of `@hocuspocus/extension-smartroute`.
//!
//! # Layout
//! - [`cluster`]: pure state. `ring` maps names to members, `view` is the member list with its ring,
//!   `health` is what this node thinks of a peer, `handoff` which documents move away and how far.
//! - [`link`]: node-to-node connections. `frame`, `auth` and `mux` are pure; `upgrade`,
//!   `connection` and `pipe` move their bytes.
//! - [`store`]: where membership is agreed; pure, too.
//! - [`coordinator`]: the actor that owns the member list and keeps the links dialed.
//! - [`probe`]: one health check, and the endpoint's answer to it. [`checker`]: one peer's checks,
//!   one after the other.
//! - [`migrations`]: the actor that owns the handoffs and keeps their time.
//! - [`handle`]: what everyone else holds: links, snapshot, requests.
//! - [`http`]: requests to the management API and probes, read and answered off the JavaScript thread.
//! - [`inbox`]: records to JavaScript, batched.
//! - [`store`]: where membership is agreed; `model` is the reference of the Redis registry.
//! - [`config`], [`error`]: what the shim passes in, and how a call fails.
//! - `binding`: the only code that knows Node.
//!
//! Hocuspocus and Yjs are unknown here; the shim in `js/` knows them and decides no routes.

pub mod checker;
pub mod cluster;
pub mod config;
pub mod coordinator;
pub mod error;
pub mod handle;
pub mod http;
pub mod inbox;
pub mod link;
pub mod migrations;
pub mod probe;
pub mod store;

#[cfg(feature = "addon")]
mod binding;
