//! The native core of `@hocuspocus/extension-smartroute`.
//!
//! # Layout
//! - [`cluster`]: pure state. `ring` maps names to members, `view` is the member list with its ring.
//! - [`link`]: node-to-node connections. `frame`, `auth` and `mux` are pure; `upgrade`,
//!   `connection` and `pipe` move their bytes.
//! - [`coordinator`]: the actor that owns the member list and keeps the links dialed.
//! - [`handle`]: what everyone else holds: links, snapshot, requests.
//! - [`inbox`]: records to JavaScript, batched.
//! - [`config`], [`error`]: what the shim passes in, and how a call fails.
//! - `binding`: the only code that knows Node.
//!
//! Hocuspocus and Yjs are unknown here; the shim in `js/` knows them and decides no routes.

pub mod cluster;
pub mod config;
pub mod coordinator;
pub mod error;
pub mod handle;
pub mod inbox;
pub mod link;

#[cfg(feature = "addon")]
mod binding;
