//! Synchronisation: digests, and whole lists where they differ.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::State;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::facts::{Fact, What};
use super::identity::{Identity, Known};
use super::{Effect, FILL, MAX_MEMBERS, MAX_MESSAGE, Peers, Phase, tag};

/// Part of one node's list.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sync {
    pub(super) from: Identity,
    /// The sender no longer counts nodes that never spoke.
    pub(super) formed: bool,
    /// Whether the receiver's list is asked for in return.
    pub(super) reply: bool,
    /// The sender itself still waits for its seeds, or is out.
    pub(super) waiting: bool,
    /// Ends a whole list; otherwise more of it follows, or this is only news.
    pub(super) whole: bool,
    pub(super) members: Vec<Known>,
    pub(super) facts: Vec<Fact>,
}

impl Peers {
    /// Names who is in, who counts, and the facts; nodes with equal digests have nothing to tell each
    /// other but pins.
    pub(super) fn digest(&self) -> u64 {
        let mut alive: BTreeMap<&str, (u64, u32)> = self
            .foca
            .iter_members()
            .map(|known| (known.id().id.as_str(), known.id().order()))
            .collect();
        let own = self.foca.identity();
        if self.phase == Phase::Out {
            alive.remove(own.id.as_str());
        } else {
            alive.insert(&own.id, own.order());
        }
        let mut hasher = Xxh3::new();
        let mut part = |text: &str, one: u64, two: u64| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
            hasher.update(&one.to_le_bytes());
            hasher.update(&two.to_le_bytes());
        };
        for (id, (start, generation)) in alive {
            part(id, start, generation.into());
        }
        part("", self.counts_none_unheard().into(), 0);
        for (id, held) in &self.facts {
            part(id, held.fact.version, 0);
            part(&held.fact.by, 0, 0);
        }
        hasher.digest()
    }

    pub(super) fn send_digest(&mut self, to: &str) {
        let mut bytes = vec![tag::DIGEST];
        bytes.extend_from_slice(&self.digest().to_be_bytes());
        self.send(to.to_owned(), bytes);
        self.send_pins_digest(to);
    }

    /// Sends the whole list, those that are down included: who is taken for dead must hear of it.
    pub(super) fn send_list(&mut self, now: Duration, to: &str, reply: bool) {
        let members: Vec<Known> = self
            .foca
            .iter_membership_state()
            .filter(|known| known.id().id != self.own.id)
            .cloned()
            .collect();
        let facts = self.outgoing_facts(now);
        let (mut members, mut facts) =
            (members.into_iter().peekable(), facts.into_iter().peekable());
        loop {
            // An identity is at most its two names and 60 bytes.
            let mut room = FILL;
            let mut sync = self.sync(reply);
            while let Some(known) = members.next_if(|known| fits(&mut room, cost(known.id()))) {
                sync.members.push(known);
            }
            while let Some(fact) = facts.next_if(|fact| fits(&mut room, fact_cost(fact))) {
                sync.facts.push(fact);
            }
            let last = members.peek().is_none() && facts.peek().is_none();
            sync.reply &= last;
            sync.whole = last;
            self.send_sync(to, &sync);
            if last {
                return;
            }
        }
    }

    fn counts_none_unheard(&self) -> bool {
        self.formed && self.phase != Phase::Waiting
    }

    pub(super) fn sync(&self, reply: bool) -> Sync {
        Sync {
            from: self.foca.identity().clone(),
            formed: self.counts_none_unheard(),
            reply,
            waiting: matches!(self.phase, Phase::Waiting | Phase::Out),
            whole: false,
            members: Vec::new(),
            facts: Vec::new(),
        }
    }

    pub(super) fn send_sync(&mut self, to: &str, sync: &Sync) {
        let mut bytes = vec![tag::SYNC];
        let body = postcard::to_allocvec(sync).expect("plain data always serialises");
        bytes.extend_from_slice(&body);
        self.send(to.to_owned(), bytes);
    }

    pub(super) fn send(&mut self, to: String, bytes: Vec<u8>) {
        debug_assert!(bytes.len() <= MAX_MESSAGE);
        let bytes = bytes.into();
        self.effects.push(Effect::Send { to, bytes });
    }

    /// Tells everybody linked what this node is now.
    pub(super) fn flood_self(&mut self) {
        let sync = self.sync(false);
        for peer in self.linked.clone() {
            self.send_sync(&peer, &sync);
        }
    }

    pub(super) fn merge(&mut self, now: Duration, sync: Sync) {
        let Sync {
            from,
            formed,
            reply,
            waiting,
            whole,
            members,
            facts,
        } = sync;
        let sender = from.id.clone();
        for fact in facts {
            self.learn_fact(now, fact, Some(&sender));
        }
        let known: BTreeMap<String, Known> = self
            .foca
            .iter_membership_state()
            .map(|known| (known.id().id.clone(), known.clone()))
            .collect();
        let mut updates = vec![Known::alive(from)];
        let mut accused = Vec::new();
        for update in members {
            let id = &update.id().id;
            if *id == self.own.id {
                self.hear_of_self(now, &update);
                continue;
            }
            let alive = update.state() != State::Down;
            match known.get(id) {
                Some(mine) if mine.id() == update.id() => {
                    if alive {
                        updates.push(update);
                    } else if mine.state() != State::Down {
                        accused.push(update);
                    }
                }
                // A later start or generation of one that is known; older ones lose in foca.
                Some(_) => updates.push(update),
                None if alive && known.len() + updates.len() < MAX_MEMBERS => updates.push(update),
                // Who was forgotten stays so: otherwise no node could ever forget.
                None => {}
            }
        }
        updates.retain(|update| !self.has_left(update.id()));
        if self.phase != Phase::Out {
            self.apply(now, updates);
        }
        for update in accused {
            // Somebody takes for dead whom this node does not: a hint, never a verdict. It answers
            // for itself if it can.
            let id = update.id().id.clone();
            if self.linked.contains(&id) {
                let mut sync = self.sync(false);
                sync.members.push(update);
                self.send_sync(&id, &sync);
            } else {
                let (identity, incarnation) = (update.id().clone(), update.incarnation());
                self.apply(now, vec![Known::new(identity, incarnation, State::Suspect)]);
            }
        }
        if whole {
            // One that waits, too, may know less than the next seed does.
            if !waiting {
                self.joined(now);
            }
            self.tried(now, &sender);
            if formed {
                self.form();
            }
        }
        if reply {
            self.send_list(now, &sender, false);
        }
    }

    /// Others tell this node what they think of its id.
    pub(super) fn hear_of_self(&mut self, now: Duration, update: &Known) {
        let own = self.foca.identity();
        if self.phase == Phase::Out {
            return;
        }
        if update.id() == own {
            if update.state() == State::Down {
                self.apply(now, vec![update.clone()]);
            }
        } else if update.id().order() > own.order() {
            let start = update.id().start;
            if update.state() == State::Down {
                // A predecessor whose clock was ahead of this one's: nobody else has the id now.
                self.announce(now, start.saturating_add(1));
            } else {
                let message = format!(
                    "another process runs as {} and started later: give each node its own nodeId",
                    self.own.id
                );
                self.log("error", "twin".into(), message);
            }
        }
    }
}

pub(super) fn fits(room: &mut usize, cost: usize) -> bool {
    room.checked_sub(cost).map(|rest| *room = rest).is_some()
}

/// No less than an identity takes on the wire.
fn cost(identity: &Identity) -> usize {
    identity.id.len() + identity.address.len() + 64
}

fn fact_cost(fact: &Fact) -> usize {
    let address = match &fact.what {
        What::Listed { address, .. } => address.len(),
        What::Removed { .. } | What::Left { .. } => 0,
    };
    fact.id.len() + fact.by.len() + address + 64
}
