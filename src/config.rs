//! What the shim passes to the core. Validated and defaulted in `js/options.js`, and only there.

use std::time::Duration;

use serde::Deserialize;

use crate::cluster::health::Policy;
use crate::cluster::view::{Member, MemberState};
use crate::store::redis::settings::RedisSettings;

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
    /// `migrationTimeout`, ms: how long one handoff may take, and streams wait for their link.
    pub migration_timeout: u64,
    /// `drainTimeout`, ms: how long a node that leaves may take to hand over.
    #[serde(default = "drain_timeout")]
    pub drain_timeout: u64,
    /// `migrationConcurrency`: handoffs at the same time.
    #[serde(default)]
    pub migration_concurrency: usize,
    /// `healthCheck`.
    pub health_check: HealthSettings,
    /// `leaseDuration`, ms: how long a member that says nothing stays one.
    pub lease_duration: u64,
    /// `stallTimeout`, ms: a node whose JavaScript has not turned for so long counts as down.
    pub stall_timeout: u64,
    /// `healthCheck.interval`, ms: time between pings on a link.
    pub ping_interval: u64,
    /// A link on which nothing came for so many ms is lost.
    pub link_patience: u64,
    /// Links are dialed through JavaScript's sockets (TLS, or no descriptors).
    pub dial_through_pipe: bool,
    /// `clusterTls` is set: links are TLS with certificates on both sides, which is JavaScript's to do.
    #[serde(default)]
    pub cluster_tls: bool,
    /// Links are read on the JavaScript thread where its event loop can watch them.
    #[serde(default)]
    pub poll_links: bool,
    /// `syncInterval`, ms: how often the member list is asked for without an occasion.
    #[serde(default)]
    pub sync_interval: u64,
    /// The Redis that keeps the member list.
    #[serde(default)]
    pub redis: Option<RedisSettings>,
    /// The cluster secret is kept in that Redis, as no node was given one.
    #[serde(default)]
    pub shared_secret: bool,
}

/// Within the 30 s that Kubernetes gives a pod.
fn drain_timeout() -> u64 {
    25_000
}

impl Settings {
    /// Whether membership is by leases. A node that serves everything itself is no member.
    #[must_use]
    pub fn leased(&self) -> bool {
        self.redis.is_some() && self.enforce_routing
    }

    /// How long a handoff may take, and streams wait for their link.
    #[must_use]
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.migration_timeout)
    }
}

/// `healthCheck`: when to check, and where.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthSettings {
    /// ms from the start of one check to the start of the next.
    pub interval: u64,
    /// ms one check may take.
    pub timeout: u64,
    /// Failed checks in a row that make a peer down.
    pub retries: u32,
    /// Growth of the pause while a peer is down.
    pub backoff_multiplier: f64,
    /// Longest pause while a peer is down, ms.
    pub max_backoff: u64,
    /// Request path of the endpoint, the same at every node.
    pub path: String,
}

impl HealthSettings {
    /// The same for the pure part.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            interval: Duration::from_millis(self.interval),
            timeout: Duration::from_millis(self.timeout),
            retries: self.retries,
            backoff_multiplier: self.backoff_multiplier,
            max_backoff: Duration::from_millis(self.max_backoff),
        }
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
