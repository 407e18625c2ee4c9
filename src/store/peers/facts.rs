//! Facts about nodes: added, removed or gone on purpose. One last-writer-wins register per node id.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::identity::{Identity, Known, check_name, check_weight};
use super::{Effect, FORGET, FORGET_REMOVED, MAX_FACTS, Peers, Phase, Timer};
use crate::cluster::view::MemberState;

/// What somebody did to a node on purpose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum What {
    /// Added by hand: everyone dials it.
    Listed {
        address: String,
        port: u16,
        link_port: Option<u16>,
        weight: u64,
    },
    /// Removed by hand: this incarnation hands over and stays out.
    Removed { incarnation: u64 },
    /// Gone for good, by its own word; `removed` if by hand.
    Left { incarnation: u64, removed: bool },
}

/// The register of one node id. The highest (version, by) wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Fact {
    pub(super) id: String,
    pub(super) version: u64,
    pub(super) by: String,
    /// Milliseconds until a `Left` is forgotten; durations travel, clocks are never compared.
    pub(super) left_for: u64,
    pub(super) what: What,
}

impl Fact {
    pub(super) fn stamp(&self) -> (u64, &str) {
        (self.version, &self.by)
    }

    pub(super) fn sound(&self) -> bool {
        check_name(&self.id).is_ok()
            && check_name(&self.by).is_ok()
            && match &self.what {
                What::Listed {
                    address, weight, ..
                } => check_name(address).is_ok() && check_weight(*weight).is_ok(),
                What::Removed { .. } | What::Left { .. } => true,
            }
    }
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) fact: Fact,
    /// When a removed node has to be gone.
    pub(super) drained: Duration,
    /// When a `Left` is forgotten, and a `Removed` seed no longer dialed.
    pub(super) expires: Duration,
}

fn remembered(what: &What) -> Duration {
    match what {
        What::Left { removed: true, .. } => FORGET_REMOVED,
        _ => FORGET,
    }
}

pub(super) fn removed_text(id: &str) -> String {
    format!("{id} was removed from this cluster: add it again with addClusterNode, or restart it")
}

impl Peers {
    pub(super) fn has_left(&self, identity: &Identity) -> bool {
        matches!(
            self.facts.get(&identity.id).map(|held| &held.fact.what),
            Some(What::Left { incarnation, .. }) if *incarnation == identity.incarnation
        )
    }

    pub(super) fn outgoing_facts(&self, now: Duration) -> Vec<Fact> {
        let outgoing = |held: &Held| Fact {
            left_for: held.expires.saturating_sub(now).as_millis() as u64,
            ..held.fact.clone()
        };
        self.facts.values().map(outgoing).collect()
    }

    /// This node states a fact.
    pub(super) fn state_fact(&mut self, now: Duration, id: String, what: What) {
        let fact = Fact {
            id,
            version: self.clock.saturating_add(1),
            by: self.own.id.clone(),
            left_for: remembered(&what).as_millis() as u64,
            what,
        };
        self.learn_fact(now, fact, None);
    }

    pub(super) fn learn_fact(&mut self, now: Duration, fact: Fact, from: Option<&str>) {
        let newer = self
            .facts
            .get(&fact.id)
            .is_none_or(|held| fact.stamp() > held.fact.stamp());
        if !newer || !fact.sound() {
            return;
        }
        let left_for = Duration::from_millis(fact.left_for).min(remembered(&fact.what));
        if matches!(fact.what, What::Left { .. }) && left_for.is_zero() {
            return;
        }
        if !self.facts.contains_key(&fact.id) && !self.make_room() {
            let message = format!(
                "{MAX_FACTS} nodes were added or removed by hand; nothing is remembered of {}",
                fact.id
            );
            self.log("warn", "facts".into(), message);
            return;
        }
        self.clock = self.clock.max(fact.version);
        let id = fact.id.clone();
        // Those that were cut off hear of it by the digest.
        let mut sync = self.sync(false);
        sync.facts.push(fact.clone());
        for peer in self.linked.clone() {
            if Some(peer.as_str()) != from {
                self.send_sync(&peer, &sync);
            }
        }
        let drained = now + self.timings.drain;
        let what = fact.what.clone();
        let held = Held {
            fact,
            drained,
            expires: now + left_for,
        };
        self.facts.insert(id.clone(), held);
        self.dirty = true;
        match what {
            What::Listed { .. } => {
                if id == self.own.id && self.phase == Phase::Out {
                    self.phase = Phase::Joined;
                    self.expelled = false;
                    // It drained before; what it says of itself now is that it is back.
                    self.own.state = MemberState::Active;
                    self.announce(now, self.foca.identity().start);
                }
            }
            What::Removed { incarnation } => {
                self.set_timer(drained, Timer::Drain(id.clone()));
                if id != self.own.id || incarnation != self.own.incarnation {
                    return;
                }
                if self.drain(now) {
                    self.effects.push(Effect::Drain);
                    self.log("warn", "removed".into(), removed_text(&id));
                }
            }
            What::Left { incarnation, .. }
                if id == self.own.id && incarnation == self.own.incarnation =>
            {
                self.put_out(now);
            }
            What::Left { incarnation, .. } => {
                let gone = self
                    .foca
                    .iter_members()
                    .find(|known| known.id().id == id && known.id().incarnation == incarnation)
                    .map(|known| known.id().clone());
                if let Some(identity) = gone {
                    self.apply(now, vec![Known::down(identity)]);
                }
            }
        }
    }

    /// Room for one more fact, if need be by forgetting who left.
    pub(super) fn make_room(&mut self) -> bool {
        if self.facts.len() < MAX_FACTS {
            return true;
        }
        let oldest = self
            .facts
            .iter()
            .filter(|(_, held)| matches!(held.fact.what, What::Left { .. }))
            .min_by_key(|(_, held)| held.expires)
            .map(|(id, _)| id.clone());
        oldest.is_some_and(|id| self.facts.remove(&id).is_some())
    }

    pub(super) fn expire(&mut self, now: Duration) {
        self.facts
            .retain(|_, held| !matches!(held.fact.what, What::Left { .. }) || held.expires > now);
        self.pins.expire(now);
    }
}
