//! What the shim passes to the core. Validated and defaulted in `js/options.js`, and only there.

use std::time::Duration;

use serde::Deserialize;

use crate::cluster::view::{Member, MemberState};

/// Settings of one node, fixed for its life.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// `clusterName`.
    pub cluster_name: String,
    /// `virtualNodes`.
    pub virtual_nodes: u32,
    /// `enforceRouting`.
    pub enforce_routing: bool,
    /// `migrationTimeout`, ms: how long streams wait for their link.
    pub migration_timeout: u64,
    /// `healthCheck.interval`, ms: time between pings on a link.
    pub ping_interval: u64,
    /// A link on which nothing came for so many ms is lost.
    pub link_patience: u64,
    /// Links are dialed through JavaScript's sockets (TLS, or no descriptors).
    pub dial_through_pipe: bool,
}

impl Settings {
    /// How long streams wait for their link.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.migration_timeout)
    }
}

/// A node as the shim names it: the own one, or an entry of `clusterNodes`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSpec {
    /// `id`.
    pub id: String,
    /// `address`.
    pub address: String,
    /// `port`.
    pub port: u16,
    /// `linkPort`.
    #[serde(default)]
    pub link_port: Option<u16>,
    /// `weight`.
    pub weight: f64,
}

impl NodeSpec {
    /// The node as a member that may own documents.
    #[must_use]
    pub fn into_member(self, incarnation: u64) -> Member {
        Member {
            id: self.id,
            incarnation,
            address: self.address,
            port: self.port,
            link_port: self.link_port,
            weight: self.weight,
            state: MemberState::Active,
        }
    }
}
