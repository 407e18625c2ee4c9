//! What goes in and out of the machine, and between two of them.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::view::Snapshot;
use crate::store::{Known, Reply, Request, StoredView, Strangers, text};

/// What one node tells another over the link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Process of the sender.
    #[serde(with = "text")]
    pub incarnation: u64,
    /// Process it is meant for; another one ignores it.
    #[serde(with = "text")]
    pub to: u64,
    /// Epoch of the sender's view.
    pub epoch: u64,
    /// [`View::hash`](crate::cluster::view::View::hash) of it.
    #[serde(with = "text")]
    pub hash: u64,
    /// Whether the sender holds only what it owns under this view.
    pub released: bool,
    /// An answer only: no request of the sender can change the registry's view any more.
    #[serde(default)]
    pub sealed: bool,
    /// An answer only: the sender's view has admitted the process that asked.
    #[serde(default)]
    pub admits: bool,
    /// The sender had a reply from the registry of late, through nobody else, and can relay a heartbeat.
    #[serde(default)]
    pub reaches: bool,
    /// A question: to be answered at once with this in `echo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask: Option<u64>,
    /// The question this answers: the receiver's own clock, ms, when it asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<u64>,
}

/// Asks a member of the frozen view for the place of a predecessor (rule 4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plea {
    /// The process that asks.
    #[serde(with = "text")]
    pub incarnation: u64,
    /// Its own clock, ms.
    pub ask: u64,
}

/// "Your predecessor is gone, I cannot reach the registry, and this is the view."
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vouch {
    /// Process it is meant for.
    #[serde(with = "text")]
    pub to: u64,
    /// The question it answers.
    pub echo: u64,
    /// The member's own question, to be answered as a report's: its clock, ms.
    pub ask: u64,
    /// Name of the view.
    pub known: Known,
    /// The view; the predecessor is in it.
    pub view: StoredView,
}

/// How a member is put out by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It hands over first, and leaves by itself.
    Drain,
    /// Its renewals are refused: it is out when its lease lapses, or when it says that it stopped.
    Wait,
    /// At once, although it may serve until its lease lapses.
    Force,
}

/// What happens to the machine.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A turn of the JavaScript event loop has ended.
    JsTurn,
    /// The registry's view has changed (pub/sub): worth a heartbeat.
    Nudge,
    /// An answer of the registry.
    Reply(Reply),
    /// One that a peer passed on: to the request that it was given, or it is none.
    Relayed {
        /// The peer.
        from: String,
        /// What the registry answered.
        reply: Reply,
    },
    /// A peer's report.
    Report {
        /// Its id.
        from: String,
        /// What it says.
        report: Report,
    },
    /// A node's connection was reset and its address then refused another, or another incarnation
    /// answers there, or it says itself that it is no member any more. To be repeated at each new
    /// refusal, several times within `h`: it counts for rule 4 only while it is fresh.
    PeerGone {
        /// Its id; our own for an earlier process of ours.
        id: String,
        /// The process that is gone.
        incarnation: u64,
    },
    /// That process speaks again: it was not gone.
    PeerBack {
        /// Its id.
        id: String,
        /// The process.
        incarnation: u64,
    },
    /// A process started with the id of a member that is gone, and cannot reach the registry.
    Plea {
        /// Its id.
        from: String,
        /// What it says.
        plea: Plea,
    },
    /// A member's answer to our plea.
    Vouch {
        /// Its id.
        from: String,
        /// What it says.
        vouch: Box<Vouch>,
    },
    /// Everything not owned under the view of this epoch has been let go.
    Released(u64),
    /// Command: become a member.
    Announce,
    /// Command: become a member again, as another process would.
    Rejoin {
        /// The new incarnation.
        incarnation: u64,
    },
    /// Command: own nothing more, stay a member.
    Drain,
    /// Command: stop serving and leave.
    Leave,
    /// Command: pin a document to a node, or to none.
    Pin {
        /// Its name.
        document: String,
        /// The node; `None` removes the pin.
        node: Option<String>,
    },
    /// Command: put a member out by hand.
    Evict {
        /// Its id.
        id: String,
        /// Told to it.
        reason: String,
        /// How.
        how: How,
    },
}

/// What the machine wants done, in order.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Send a heartbeat to the registry.
    Send(Request),
    /// Send it through a peer too, which passes it on as it is and passes the reply back.
    Relay {
        /// The peer.
        via: String,
        /// The heartbeat.
        request: Request,
    },
    /// Tell a peer.
    Tell {
        /// Its id.
        to: String,
        /// What.
        report: Report,
    },
    /// Ask a node of [`Config::hints`](super::Config::hints) to let us take our predecessor's place while the registry is
    /// away.
    Plead {
        /// Its id.
        to: String,
        /// What to say.
        plea: Plea,
    },
    /// Answer such a plea.
    Vouch {
        /// The id of both.
        to: String,
        /// What to say.
        vouch: Box<Vouch>,
    },
    /// We are our predecessor now: links are to say so.
    Resumed {
        /// Its incarnation.
        incarnation: u64,
    },
    /// A new view. Let go of what it takes away, then say [`Event::Released`].
    View(Arc<Snapshot>),
    /// This node may serve from now on, or may not. The word for one frame batch or store is
    /// [`Members::serving`](super::Members::serving), whose answer depends on the time.
    Serving {
        /// Whether it may.
        on: bool,
        /// Past its deadline: documents must be set aside for the heir.
        lapsed: bool,
    },
    /// The view of this epoch is settled here.
    Settled(u64),
    /// This incarnation is out.
    Departed {
        /// Why.
        reason: String,
        /// By its own wish or by hand: it stays out. Otherwise it may [`Event::Rejoin`].
        stay_out: bool,
    },
    /// Another process has our id. Probe it: if it answers, this node refuses to start.
    IdTaken {
        /// Its record.
        record: String,
        /// Until its lease lapses.
        lease_left: Duration,
    },
    /// The members agree on something else.
    Mismatch {
        /// On what.
        theirs: String,
    },
    /// Nodes were refused that agree on something else than the members do. Repeated for a while.
    Strangers(Strangers),
    /// To be logged.
    Warn(String),
}
