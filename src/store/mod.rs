//! Where membership is agreed: without Redis among the [`peers`] themselves. With Redis there is one operation, the heartbeat: everything a node
//! tells and asks, in one script call. [`model`] is the reference the script is a translation of.
//!
//! The types are what crosses the wire, as JSON that Lua's `cjson` reads and writes exactly:
//! integers below 10^14 (it prints 14 digits), texts, and maps by id. No lists in a reply or in the
//! state, because `cjson` writes an empty one as `{}`; an incarnation is a decimal text, because it
//! may be any `u64`; what the registry need not understand of a member is an opaque text.

pub mod counters;
pub mod model;
pub mod peers;
pub mod redis;
pub mod registry;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::view::MemberState;

/// A `u64` as decimal text.
pub(crate) mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// What a node asks for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Want {
    /// To become a member. Sent until the first `renewed`, never after: a renewal for a member the
    /// registry does not know is refused, so a late one cannot bring a departed node back.
    Join,
    /// To stay a member.
    Renew,
    /// To stay a member that owns nothing.
    Drain,
    /// To be no member, at once. The node has stopped serving before it asks.
    Leave,
}

/// Names a view: its epoch, and a mark that no other view has, of this or another life of the
/// store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Known {
    /// 0: no view yet.
    pub epoch: u64,
    /// Opaque; made by the registry, see [`model::Registry::apply`].
    pub mark: String,
}

/// One process of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Eviction {
    /// The process that is meant; another one of the same id is untouched.
    #[serde(with = "text")]
    pub incarnation: u64,
    /// Told to the node: why it is out.
    pub reason: String,
    /// Let it hand its documents over first (it becomes `leaving` and leaves by itself).
    #[serde(default)]
    pub drain: bool,
    /// Out at once, although it may serve until its lease lapses: G1 does not hold meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Nodes that were refused because they agree on something else: [`Request::agreement`] by id.
pub type Strangers = BTreeMap<String, String>;

/// An incarnation in a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation(#[serde(with = "text")] pub u64);

/// A heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The caller.
    pub id: String,
    /// Its process.
    #[serde(with = "text")]
    pub incarnation: u64,
    /// Grows with every request of the incarnation; an older one arriving late changes nothing.
    pub seq: u64,
    /// [`Reply::now`] of the last reply the caller received; 0 before the first. Only a request
    /// that reaches the registry within a sixth of its lease of it changes anything but the
    /// caller's own lease: a node that has received nothing for so long knows that none of its
    /// requests, however late, expires anybody.
    pub as_of: u64,
    /// What the caller asks for itself.
    pub want: Want,
    /// Address, ports, weight: opaque JSON, handed to every member.
    pub record: String,
    /// `leaseDuration`, ms.
    pub lease: u64,
    /// `orphanTimeout`, ms: a member that renewed nothing for so long may be expired by a caller
    /// that it never knew.
    pub orphan_timeout: u64,
    /// ms after the first request to an empty registry at which the caller may found a cluster.
    pub found_after: u64,
    /// Cluster name, hash, virtual nodes, …: must equal the other members', byte for byte.
    pub agreement: String,
    /// The view the caller has installed and is a member of.
    pub known: Known,
    /// The highest epoch the caller's process has seen: views made from here on are above it.
    pub floor: u64,
    /// The caller's whole view: sent only in answer to [`Outcome::Behind`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<StoredView>,
    /// Joining members that the caller can speak to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub admit: BTreeMap<String, Incarnation>,
    /// Members that the caller saw reset and refuse at one address, and does not speak to. Missing
    /// here is withdrawn.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gone: BTreeMap<String, Incarnation>,
    /// Documents to pin to a node; an empty id removes the pin.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<String, String>,
    /// Nodes to put out by hand; they stay out until they restart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evict: BTreeMap<String, Eviction>,
}

/// How the registry answered. The caller's lease is renewed by `Renewed` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The caller is a member, for its lease from now.
    Renewed,
    /// The caller has left, as it asked.
    Left,
    /// The registry's view is older than the caller's (flushed, an old replica): it wants
    /// [`Request::view`]. Nothing changed.
    Behind,
    /// This incarnation is out and never comes back; `detail` says why. Nothing changed.
    Departed,
    /// It was put out by hand; `detail` says why. It is to stop and to say so by [`Want::Leave`];
    /// otherwise it is out when its lease lapses. Nothing changed.
    Evicted,
    /// Another incarnation holds the id; `detail` is its record. Nothing changed for the caller.
    IdTaken,
    /// The members' agreement differs; `detail` is theirs. Nothing changed.
    Mismatch,
    /// A later request of this incarnation came first; `last_seq` is its number. Nothing changed.
    Stale,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// [`Request::seq`].
    pub seq: u64,
    /// The registry's clock, ms.
    pub now: u64,
    /// What became of the request.
    pub outcome: Outcome,
    /// See [`Outcome`]; otherwise empty.
    #[serde(default)]
    pub detail: String,
    /// Whether admissions, pins and evictions of the request were carried out.
    #[serde(default)]
    pub effective: bool,
    /// With [`Outcome::IdTaken`]: ms until the holder's lease lapses.
    #[serde(default)]
    pub lease_left: u64,
    /// With [`Outcome::Stale`]: the highest number seen of this incarnation.
    #[serde(default)]
    pub last_seq: u64,
    /// The registry's view.
    pub known: Known,
    /// The whole view, where the caller's [`Request::known`] differs and the outcome lets it see it
    /// (`renewed`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<StoredView>,
    /// With [`Outcome::Renewed`]: who was refused with [`Outcome::Mismatch`] of late.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub strangers: Strangers,
}

/// A view as the registry keeps and hands it out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredView {
    /// Members by id.
    pub members: BTreeMap<String, StoredMember>,
    /// Document name to node id.
    #[serde(default)]
    pub pins: BTreeMap<String, String>,
}

/// A member of a [`StoredView`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredMember {
    /// Its process.
    #[serde(with = "text")]
    pub incarnation: u64,
    /// [`Request::record`].
    pub record: String,
    /// Where it stands.
    pub state: MemberState,
    /// Its `leaseDuration`, ms.
    pub lease: u64,
    /// Epoch of the first view in which it was admitted; 0 while it is joining.
    pub since: u64,
    /// Epoch it had installed when this view was made, at least.
    pub known: u64,
}

/// The numbered rules of "Who is a member", so that the simulation can take one away and show that
/// it is needed. Nothing but the simulation sets one.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Rule {
    Deadline = 1,
    Heard = 2,
    EarlyEviction = 3,
    Frozen = 4,
    Newcomers = 5,
    Behind = 6,
    Incarnations = 7,
    // What this design adds to the rules, see `cluster::members` and `store::model`.
    /// The time of an answer is when the question was asked.
    Asked,
    /// Only a request that follows its last reply closely changes the view.
    Fresh,
    /// Whoever said "sealed" gains nothing meanwhile.
    HoldBack,
    /// Frozen from the deadline on, without a gap.
    Continuous,
    /// A view is settled by reports of exactly that view.
    Exact,
    /// Half of every view that the accused can have installed.
    History,
    /// A caller expires only members that have installed a view with it.
    Since,
    /// Documents are kept only through views that all give them to us.
    Chain,
}
