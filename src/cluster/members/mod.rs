//! The membership machine of one node that has a registry: what it may serve, when, and what it
//! tells the registry and its peers. Pure: time comes in, effects go out.
//!
//! # What makes it safe
//! The numbers are the rules' of "Who is a member" in `docs/ARCHITECTURE.md`. Let `L` be the lease,
//! `h = L/3`, ρ the bound on clock *rates* (1 %), and [`model::silence`] `= h·(1+3ρ)`, which on any clock
//! outlasts `h` on any other.
//!
//! - **Leased** (1, 2): before its deadline, `L·(1-ρ)` from before its last renewal was sent, a node
//!   cannot have lapsed. It can have been evicted early, by half of any view it can have installed;
//!   these stopped answering it, and its counter stood still, for `h·(1+3ρ)`. So it serves only if
//!   it renewed within `h`, or a majority answered *a question asked* within `h`. The time of an
//!   answer's arrival proves nothing: it may have been on its way for long.
//! - **Frozen** (4): a node that has received no reply for `silence` is *sealed*: no request of it,
//!   even one still on its way, can change the view, for the registry takes only requests that
//!   follow its last reply by less than `L/6`. A node goes on past its deadline while every other
//!   member is sealed, by an answer to a question asked within `h`, at the same view or beside it, or has been
//!   provably gone for as long as its last request can have been effective. *Beside*: the registry went
//!   away while a view was on its way, one of the two has it, and the later of their views has admitted
//!   both. It cannot have settled without both, and what would follow it neither will report. "Cannot reach the
//!   store" alone is not enough, for a request whose *reply* was lost may have expired us. For the
//!   same reason the dead count only if the condition has held from the deadline on without a gap:
//!   a node that was past its deadline once without it may have been expired by one that died.
//!   With every other member alive and sealed it may go on nevertheless, for no later view can
//!   settle without them. By that a restarted process takes its predecessor's place.
//! - **Holding back**: whoever said "sealed" has allowed the other to go on for `h`. Until that has
//!   passed it neither gains documents under a later view, nor reports that it has installed one,
//!   nor leaves.
//! - **Settled**: a document gained in a view is served once every admitted member has reported
//!   exactly this view, and that it holds only what it owns there. "This view or a later one" is
//!   not enough: a member that skipped it may own the document before and after. A document kept
//!   through several views must be owned in each of them.
//!
//! Standing of a node:
//!
//! | from        | event                               | to          |
//! |-------------|-------------------------------------|-------------|
//! | `Idle`      | announce                            | `Joining`   |
//! | `Idle`      | leave                               | `Out`       |
//! | `Joining`   | reply `renewed`                     | `Member`    |
//! | `Joining`   | every other member vouches for it   | `Member`    |
//! | `Joining`   | reply `departed`                    | `Out`       |
//! | `Joining`   | leave, reply `evicted`              | `Departing` |
//! | `Member`    | reply `departed`                    | `Out`       |
//! | `Member`    | leave, reply `evicted`              | `Departing` |
//! | `Member`    | settled while another made it leave | `Departing` |
//! | `Departing` | reply `left`, `departed`, `idTaken` | `Out`       |
//! | `Out`       | rejoin, with a new incarnation      | `Joining`   |

mod peers;
mod registry;
mod rules;
#[cfg(test)]
mod tests;
mod words;

pub use words::{Effect, Event, How, Plea, Report, Vouch};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::right::{Right, owned_in_all};
use super::view::{Member, MemberState, Snapshot};
#[cfg(doc)]
use crate::store::model;
use crate::store::{Eviction, Known, Rule, StoredMember, StoredView, text};

/// Views a document may be kept through before one settles; more, and nothing is served until one
/// does.
const MAX_CHAIN: usize = 64;

/// Requests without a reply that are remembered; the reply to an older one renews nothing.
const MAX_SENT: usize = 16;

/// Hand commands that wait for the registry; more are refused with a warning.
const MAX_COMMANDS: usize = 1024;

/// Settings of the machine.
#[derive(Debug, Clone)]
pub struct Config {
    /// `leaseDuration`. Default: `healthCheck.interval + timeout × retries`, 14 s.
    pub lease: Duration,
    /// `orphanTimeout`: how long a newcomer waits for members of the last view that neither admit
    /// it nor are seen to be gone.
    pub orphan_timeout: Duration,
    /// Ids of `clusterNodes`. In an empty store this node founds a cluster at once when all of them
    /// are joining or provably gone; after one lease when there are none; otherwise after
    /// `orphan_timeout`.
    pub hints: Vec<String>,
    /// What all members must agree on, as text.
    pub agreement: String,
    /// `virtualNodes`.
    pub virtual_nodes: u32,
    /// The rule to do without; see [`Rule`].
    #[doc(hidden)]
    pub without: Option<Rule>,
}

impl Config {
    /// `h`: how long a renewal or an answer is good for.
    fn patience(&self) -> Duration {
        self.lease / 3
    }

    /// Time between two heartbeats, and between two questions to a peer.
    fn period(&self) -> Duration {
        self.lease / 9
    }

    /// Shortest time between two heartbeats, however much there is to ask.
    fn spacing(&self) -> Duration {
        self.lease / 90
    }
}

/// What a member tells of itself through the registry: the opaque record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) address: String,
    pub(crate) port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link_port: Option<u16>,
    weight: f64,
    /// Of the process; who finds its id taken learns by whom.
    #[serde(with = "text")]
    pub(crate) incarnation: u64,
}

/// See the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not announced.
    Idle,
    /// Asks to be let in.
    Joining,
    /// In the registry's view, whatever its state there.
    Member,
    /// Serves no more, and leaves as soon as it may.
    Departing,
    /// Not a member, and does not ask.
    Out,
}

/// What is known of another process.
#[derive(Debug, Clone, Default)]
struct Peer {
    incarnation: u64,
    /// When the latest question that it answered was asked.
    heard: Option<Duration>,
    /// The same for the latest answer "sealed" at our view or beside it.
    sealed: Option<Duration>,
    /// When it last said that it reaches the registry.
    reaches: Option<Duration>,
    /// View that it last reported to hold only its own under.
    released: Option<(u64, u64)>,
    /// Since when it is provably gone, and when that was last confirmed. Nothing is said to it from
    /// then on (rule 3).
    gone: Option<(Duration, Duration)>,
    /// The process that we let take its place, and when we last said so. Nobody else may until that
    /// word is worth nothing any more.
    heir: Option<(u64, Duration)>,
    /// It is back: nothing is said to it until the registry has taken a request of this number,
    /// which withdraws the accusation.
    quiet_until: Option<u64>,
}

/// A request on its way.
#[derive(Debug, Clone)]
struct Sent {
    /// Before sending.
    at: Duration,
    /// The peer that passes it on, from which alone the reply can come.
    via: Option<String>,
}

/// A command on its way to the registry.
#[derive(Debug, Clone)]
struct Carried<T> {
    value: T,
    /// Number of the request that carries it; of evictions, which may come twice, the first one.
    since: Option<u64>,
}

/// The machine.
#[derive(Debug)]
pub struct Members {
    config: Config,
    id: String,
    incarnation: u64,
    record: Record,
    standing: Standing,
    draining: bool,
    /// Told to leave: nothing brings it back.
    left: bool,
    /// Put out by hand, for this reason.
    expelled: Option<String>,

    seq: u64,
    as_of: u64,
    /// Requests without a reply, by number. At most [`MAX_SENT`].
    sent: BTreeMap<u64, Sent>,
    last_sent: Option<Duration>,
    last_reply: Option<Duration>,
    /// The same for a reply that no peer passed on.
    last_direct: Option<Duration>,
    next_beat: Duration,
    next_ask: Duration,
    /// A JavaScript turn ended since the last heartbeat (rule 1).
    turned: bool,

    known: Known,
    /// Highest epoch ever installed by this process.
    floor: u64,
    stored: StoredView,
    /// The views since the last settled one, that one first; the last is installed.
    chain: Vec<Arc<Snapshot>>,
    /// Whether the first of them is settled.
    settled: bool,
    released: u64,

    /// Number of the last request that renewed.
    renewed_by: u64,
    /// When the last renewal was sent, and what follows from it.
    renewed: Option<Duration>,
    deadline: Duration,
    /// It was past the deadline and not frozen, or never renewed: it may have been expired.
    broken: bool,
    /// When another view of our epoch was met (rule 6).
    conflict: Option<Duration>,
    /// Since when the registry answers "behind".
    behind: Option<Duration>,
    /// When "sealed" was last said, and at which epoch.
    permitted: Option<(Duration, u64)>,
    /// Members that vouched for us, and may still take us for dead: until each has asked us
    /// something, none of our requests is effective.
    unmet: BTreeSet<String>,
    /// Answers to our plea, with the time of asking; one per hint.
    vouches: BTreeMap<String, (Duration, Vouch)>,
    was_serving: bool,
    /// Nothing was served since the last lapse, or at all.
    was_lapsed: bool,
    /// When the last event was taken.
    handled: Duration,
    peers: BTreeMap<String, Peer>,
    pins: BTreeMap<String, Carried<String>>,
    evictions: BTreeMap<String, Carried<Eviction>>,
}

impl Members {
    /// A machine for the node `own`, idle until [`Event::Announce`].
    #[must_use]
    pub fn new(config: Config, own: &Member) -> Self {
        let record = Record {
            address: own.address.clone(),
            port: own.port,
            link_port: own.link_port,
            weight: own.weight,
            incarnation: own.incarnation,
        };
        Self {
            config,
            id: own.id.clone(),
            incarnation: own.incarnation,
            record,
            standing: Standing::Idle,
            draining: false,
            left: false,
            expelled: None,
            seq: 0,
            as_of: 0,
            sent: BTreeMap::new(),
            last_sent: None,
            last_reply: None,
            last_direct: None,
            next_beat: Duration::MAX,
            next_ask: Duration::MAX,
            turned: true,
            known: Known::default(),
            floor: 0,
            stored: StoredView::default(),
            chain: Vec::new(),
            settled: false,
            released: 0,
            renewed_by: 0,
            renewed: None,
            deadline: Duration::ZERO,
            broken: false,
            conflict: None,
            behind: None,
            permitted: None,
            unmet: BTreeSet::new(),
            vouches: BTreeMap::new(),
            was_serving: false,
            was_lapsed: true,
            handled: Duration::ZERO,
            peers: BTreeMap::new(),
            pins: BTreeMap::new(),
            evictions: BTreeMap::new(),
        }
    }

    // ---- What everyone else asks ----

    /// Where this node stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// The installed view.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Arc<Snapshot>> {
        self.chain.last()
    }

    /// This process.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether the installed view is settled here.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled && self.chain.len() == 1
    }

    /// Whether anything may be served or stored at `now`. To be asked before each frame batch and
    /// each store, with the time of asking.
    #[must_use]
    pub fn serving(&self, now: Duration) -> bool {
        if self.standing != Standing::Member || self.conflict.is_some() || self.is_lapsed(now) {
            return false;
        }
        if !self.own().is_some_and(is_admitted) {
            return false;
        }
        let heard = self.config.without == Some(Rule::Heard)
            || self
                .renewed
                .is_some_and(|at| now < at + self.config.patience())
            || self.hears_majority(now);
        (now < self.deadline && heard) || self.is_frozen(now)
    }

    /// Whether the ring and the settled views give `document` to this node. Together with
    /// [`Members::serving`] the right to serve it.
    #[must_use]
    pub fn entitled(&self, document: &[u8]) -> bool {
        let skipped = match self.config.without {
            Some(Rule::Chain) => self.chain.len().saturating_sub(1),
            _ => 0,
        };
        self.settled && owned_in_all(&self.chain[skipped..], &self.id, document)
    }

    /// What may be served, for those who ask without the machine at hand.
    #[must_use]
    pub fn right(&self, now: Duration) -> Right {
        Right {
            until: self.serves_until(now),
            views: Some(self.chain.clone()),
            settled: self.settled,
        }
    }

    /// Until when [`Members::serving`] holds if nothing more is heard; zero where it does not now.
    fn serves_until(&self, now: Duration) -> Duration {
        if !self.serving(now) {
            return Duration::ZERO;
        }
        // Between these its answer does not change.
        let mut ends: Vec<Duration> = self.ends().filter(|end| *end > now).collect();
        ends.sort_unstable();
        let end = ends.into_iter().find(|end| !self.serving(*end));
        end.unwrap_or(Duration::MAX)
    }

    /// Times at which a word that lets this node serve runs out.
    fn ends(&self) -> impl Iterator<Item = Duration> {
        let heard = self.peers.values();
        let heard = heard.flat_map(|peer| [peer.heard, peer.sealed]).flatten();
        let dead = self.peers.values().filter_map(|peer| peer.gone);
        let ends = heard.chain(self.renewed).chain(dead.map(|gone| gone.1));
        let ends = ends.map(|at| at + self.config.patience());
        ends.chain([self.deadline])
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub fn next_wakeup(&self) -> Duration {
        let mut at = self.next_beat.min(self.next_ask);
        if self.was_serving || !self.was_lapsed {
            // The first time at which an answer of `serving` can change, or at which time is up.
            for end in self.ends().filter(|end| *end > self.handled) {
                at = at.min(end);
            }
        }
        at
    }

    // ---- Events ----

    /// Takes one event at `now` and appends what is to be done.
    pub fn handle(&mut self, now: Duration, event: Event, effects: &mut Vec<Effect>) {
        // First, because what the event brings must not hide that time ran out before it.
        self.handled = now;
        self.notice_lapse(now);
        match event {
            Event::Tick => {}
            Event::JsTurn => self.turned = true,
            Event::Nudge => self.hurry(now),
            Event::Reply(reply) => self.on_reply(now, None, reply, effects),
            Event::Relayed { from, reply } => self.on_reply(now, Some(&from), reply, effects),
            Event::Report { from, report } => self.on_report(now, &from, report, effects),
            Event::PeerGone { id, incarnation } => self.on_gone(now, &id, incarnation),
            Event::PeerBack { id, incarnation } => {
                let next = self.seq + 1;
                let peer = self.peers.get_mut(&id);
                if let Some(peer) = peer.filter(|peer| peer.incarnation == incarnation)
                    && peer.gone.take().is_some()
                {
                    peer.quiet_until = Some(next);
                    self.hurry(now);
                }
            }
            Event::Plea { from, plea } => self.on_plea(now, from, &plea, effects),
            Event::Vouch { from, vouch } => self.on_vouch(now, from, *vouch, effects),
            Event::Released(epoch) => {
                self.released = self.released.max(epoch);
                self.ask_all(now, effects);
            }
            Event::Announce => {
                if self.standing == Standing::Idle {
                    self.join(now);
                }
            }
            Event::Rejoin { incarnation } => {
                if self.standing == Standing::Out && !self.left {
                    self.incarnation = incarnation;
                    self.record.incarnation = incarnation;
                    self.join(now);
                }
            }
            Event::Drain => {
                self.draining = true;
                self.hurry(now);
            }
            Event::Leave => {
                self.left = true;
                match self.standing {
                    Standing::Joining | Standing::Member => {
                        self.standing = Standing::Departing;
                        self.hurry(now);
                    }
                    Standing::Idle => self.standing = Standing::Out,
                    Standing::Departing | Standing::Out => {}
                }
            }
            Event::Pin { document, node } => self.on_pin(now, document, node, effects),
            Event::Evict { id, reason, how } => self.on_evict(now, id, reason, how, effects),
        }
        self.beat(now, effects);
        if now >= self.next_ask {
            self.ask_all(now, effects);
        }
        self.settle(now, effects);
        let serving = self.serving(now);
        // A node that waits since long before its deadline must hear of that, too.
        let lapsed = self.is_lapsed(now);
        // Of a node that is out `Departed` has told: nothing weaker may follow.
        let tells = self.standing != Standing::Out;
        if tells && (serving != self.was_serving || (lapsed && !self.was_lapsed)) {
            effects.push(Effect::Serving {
                on: serving,
                lapsed,
            });
        }
        self.was_serving = serving;
        self.was_lapsed = !serving && (self.was_lapsed || lapsed);
    }

    fn join(&mut self, now: Duration) {
        self.standing = Standing::Joining;
        self.draining = false;
        self.expelled = None;
        // Replies to the earlier incarnation are nobody's now.
        self.sent.clear();
        self.as_of = 0;
        self.known = Known::default();
        self.stored = StoredView::default();
        self.chain.clear();
        self.settled = false;
        self.renewed = None;
        self.deadline = Duration::ZERO;
        self.broken = false;
        self.conflict = None;
        self.behind = None;
        self.vouches.clear();
        self.unmet.clear();
        self.was_lapsed = true;
        self.next_beat = now;
        self.next_ask = now;
    }

    fn on_gone(&mut self, now: Duration, id: &str, incarnation: u64) {
        let peer = self.peers.entry(id.to_owned()).or_default();
        if peer.incarnation != incarnation {
            if id != self.id
                && self
                    .stored
                    .members
                    .get(id)
                    .is_some_and(|m| m.incarnation != incarnation)
            {
                return;
            }
            *peer = Peer {
                incarnation,
                ..Peer::default()
            };
        }
        if let Some((_, confirmed)) = &mut peer.gone {
            *confirmed = now;
        } else {
            peer.gone = Some((now, now));
            peer.heir = None;
            self.hurry(now);
        }
    }

    fn on_pin(
        &mut self,
        now: Duration,
        document: String,
        node: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        if self.pins.len() >= MAX_COMMANDS && !self.pins.contains_key(&document) {
            effects.push(Effect::Warn(format!(
                "too many pins wait for the registry: {document} stays where it is"
            )));
            return;
        }
        let value = node.unwrap_or_default();
        self.pins.insert(document, Carried { value, since: None });
        self.hurry(now);
    }

    fn on_evict(
        &mut self,
        now: Duration,
        id: String,
        reason: String,
        how: How,
        effects: &mut Vec<Effect>,
    ) {
        let Some(member) = self.stored.members.get(&id) else {
            effects.push(Effect::Warn(format!("{id} is no member")));
            return;
        };
        let value = Eviction {
            incarnation: member.incarnation,
            reason,
            drain: how == How::Drain,
            force: how == How::Force,
        };
        // One per id: bounded by the members.
        self.evictions.insert(id, Carried { value, since: None });
        self.hurry(now);
    }
}

fn is_admitted(member: &StoredMember) -> bool {
    member.state != MemberState::Joining
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
