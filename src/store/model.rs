//! The reference model of the Redis registry: what the script does, line by line, without Redis.
//!
//! # Why each step
//! The store never learns that a node has stopped; it only knows when it must have. Every step that
//! puts a member out therefore rests on one of three facts, each measured by the store's own clock:
//! - *lapse*: the lease ended, which the member counts from before its request was sent (rules 1, 2);
//! - *early eviction*: half of **every view the member can have installed** stopped speaking to it,
//!   and it renewed nothing for `h·(1+3ρ)` since (rule 3). "Half of the current view" is not enough:
//!   a member whose view is older counts its majority among fewer, so the registry remembers the
//!   member lists of the last [`HISTORY`] epochs and how far each member had come;
//! - *orphaned*: it renewed nothing for `orphanTimeout`.
//!
//! A caller puts out only members that have installed a view in which the caller was admitted
//! (`known >= since`): a frozen member (rule 4) asks those, and only those, before it goes on past
//! its deadline. Of the others it must have seen the end itself, for `h·(1+3ρ)`, by an accusation.
//!
//! A request whose `as_of` is older than a sixth of the lease renews and does nothing else. So a
//! node that has received no reply for a third of the lease can promise that none of its requests,
//! even one still on its way, changes the view; that promise is what a frozen member lives on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Known, Outcome, Reply, Request, Rule, StoredMember, StoredView, Want, text};
use crate::cluster::view::MemberState;

/// Member lists remembered for early eviction; a member further behind than that waits for its
/// lease to lapse.
pub const HISTORY: usize = 32;

/// Departed incarnations remembered; the oldest are forgotten first. They guard only against a
/// `join` that arrives late.
pub const TOMBSTONES: usize = 256;

/// Pins kept; more are ignored, and the caller finds them missing in the view.
pub const PINS: usize = 4096;

/// Refused nodes that members are told of; of more nobody hears while there are so many.
pub const REFUSED: usize = 16;

/// A tombstone is kept for so many leases …
pub const TOMBSTONE_LEASES: u64 = 20;

/// … and for so many ms at least where the process was put out by hand: one that hangs may wake
/// late, and stays out until it is restarted.
pub const EVICTED_LIFE: u64 = 24 * 3_600_000;

/// Why an incarnation is out, beside the reasons given by hand.
pub const LAPSED: &str = "its lease lapsed";
/// See [`LAPSED`].
pub const CRASHED: &str = "it crashed";
/// See [`LAPSED`].
pub const LEFT: &str = "it left";

/// A member as the registry keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its process.
    #[serde(with = "text")]
    pub incarnation: u64,
    /// Opaque.
    pub record: String,
    /// Where it stands.
    pub state: MemberState,
    /// Its `leaseDuration`, ms.
    pub lease: u64,
    /// Epoch of the first view in which it was admitted; 0 while joining.
    pub since: u64,
    /// Epoch it said it had installed, in its last request.
    pub known: u64,
    /// Number of its last request.
    pub seq: u64,
    /// Its lease lapses then, ms of the store's clock.
    pub lease_until: u64,
    /// Renewals so far.
    pub renewals: u64,
    /// When the last one was, ms.
    pub renewed_at: u64,
    /// Put out by hand: its renewals are refused, for this reason. Empty: not.
    #[serde(default)]
    pub evicted: String,
    /// Who says that it is gone, by the accuser's id.
    #[serde(default)]
    pub accusations: BTreeMap<String, Accusation>,
}

/// A standing accusation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accusation {
    /// The accuser's process.
    #[serde(with = "text")]
    pub by: u64,
    /// [`Entry::renewals`] when it was recorded: any renewal since voids it.
    pub renewals: u64,
    /// When it was recorded, ms.
    pub since: u64,
}

/// A departed incarnation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// Forgotten then, ms.
    pub until: u64,
    /// Why it is out.
    pub reason: String,
}

/// A node that was refused for what it agrees on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// [`Request::agreement`] of it.
    pub agreement: String,
    /// Members are told until then, ms.
    pub until: u64,
}

/// The stored state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// Number of the view. 0: empty store.
    pub epoch: u64,
    /// The view's unique name beside its epoch.
    pub mark: String,
    /// What all members agree on.
    pub agreement: String,
    /// Members by id.
    pub members: BTreeMap<String, Entry>,
    /// Document to node id.
    pub pins: BTreeMap<String, String>,
    /// By `id/incarnation`.
    pub tombstones: BTreeMap<String, Tombstone>,
    /// By epoch, as decimal text of ten digits (so that texts sort as numbers do): the admitted
    /// members' ids and incarnations (as text).
    pub history: BTreeMap<String, BTreeMap<String, String>>,
    /// Nobody is expired before, ms.
    pub grace_until: u64,
    /// When the store was first written, ms.
    pub born: u64,
    /// When an admitted member last made a request that could change the view, ms.
    pub last_effective: u64,
    /// Nodes that were refused of late, by id: at most [`REFUSED`].
    #[serde(default)]
    pub refused: BTreeMap<String, Refused>,
    /// See [`Rule`].
    #[serde(skip)]
    #[doc(hidden)]
    pub without: Option<Rule>,
}

/// `h·(1+3ρ)` for ρ = 1 %, in ms: by then a node that renewed or heard nothing since has stopped,
/// whatever the two clocks' rates.
#[must_use]
pub fn silence(lease: u64) -> u64 {
    lease * 103 / 300 + 1
}

fn admitted(entry: &Entry) -> bool {
    entry.state != MemberState::Joining
}

fn tombstone_key(id: &str, incarnation: u64) -> String {
    format!("{id}/{incarnation}")
}

impl Registry {
    /// Carries out one heartbeat at `now` (ms, the store's own clock).
    pub fn apply(&mut self, request: &Request, now: u64) -> Reply {
        self.tombstones.retain(|_, tombstone| tombstone.until > now);
        if self.born == 0 {
            self.born = now;
            self.grace_until = now + request.lease;
        }

        self.refused.retain(|_, refused| refused.until > now);

        // Nodes that disagree on the ring form no ring together. Each member renews within its lease,
        // and hears of it.
        if !self.members.is_empty() && self.agreement != request.agreement {
            let longest = self.members.values().map(|entry| entry.lease).max();
            if self.refused.len() < REFUSED || self.refused.contains_key(&request.id) {
                let refused = Refused {
                    agreement: request.agreement.clone(),
                    until: now + longest.unwrap_or_default(),
                };
                self.refused.insert(request.id.clone(), refused);
            }
            return self.refuse(request, now, Outcome::Mismatch, self.agreement.clone());
        }

        // A departed incarnation never returns (rule 7).
        let key = tombstone_key(&request.id, request.incarnation);
        if self.without != Some(Rule::Incarnations)
            && let Some(tombstone) = self.tombstones.get(&key)
        {
            let reason = tombstone.reason.clone();
            return self.refuse(request, now, Outcome::Departed, reason);
        }

        let fresh = self.without == Some(Rule::Fresh)
            || (request.as_of > 0 && now <= request.as_of + request.lease / 6);

        // A store behind its caller takes over the caller's view before anything else (rule 6).
        // So is one in which nobody was ever admitted, whatever epochs its newcomers have seen.
        let unknown = request.want != Want::Join && !self.members.contains_key(&request.id);
        let behind = request.known.epoch > self.epoch
            || (request.known.epoch == self.epoch && request.known.mark != self.mark)
            || (self.history.is_empty() && unknown);
        let mut changed = false;
        if behind && request.known.epoch > 0 && self.without != Some(Rule::Behind) {
            match &request.view {
                Some(view) if fresh => {
                    self.adopt(view, request, now);
                    changed = true;
                }
                _ => return self.refuse(request, now, Outcome::Behind, String::new()),
            }
        }

        let held = self.members.get(&request.id);
        let other = held.filter(|entry| entry.incarnation != request.incarnation);
        // The predecessor's end is judged as anybody else's.
        if other.is_some() && fresh && self.may_expire(request, &request.id, now) {
            self.remove(&request.id, LAPSED, request.lease, now);
            changed = true;
        } else if let Some(other) = other {
            let (record, until) = (other.record.clone(), other.lease_until);
            // Its successor's evidence counts although it is no member yet.
            self.accuse(request, now);
            let mut reply = self.refuse(request, now, Outcome::IdTaken, record);
            reply.lease_left = until.saturating_sub(now);
            return reply;
        }

        match self.members.get_mut(&request.id) {
            None => {
                let may_join = request.want == Want::Join
                    || (self.without == Some(Rule::Incarnations) && request.want == Want::Renew)
                    || (self.without == Some(Rule::Behind) && request.want == Want::Renew);
                if !may_join {
                    let reason = LAPSED.to_owned();
                    return self.refuse(request, now, Outcome::Departed, reason);
                }
                if self.members.is_empty() {
                    self.agreement.clone_from(&request.agreement);
                }
                // Views made from here on are above all that the caller has seen.
                if request.floor > self.epoch && self.without != Some(Rule::Behind) {
                    self.epoch = request.floor;
                }
                let entry = Entry {
                    incarnation: request.incarnation,
                    record: request.record.clone(),
                    // Without rule 7 a renewal simply sets the lease again.
                    state: match request.want {
                        Want::Join => MemberState::Joining,
                        _ => MemberState::Active,
                    },
                    lease: request.lease,
                    since: 0,
                    known: 0,
                    seq: request.seq,
                    lease_until: now + request.lease,
                    renewals: 1,
                    renewed_at: now,
                    evicted: String::new(),
                    accusations: BTreeMap::new(),
                };
                self.members.insert(request.id.clone(), entry);
                changed = true;
            }
            Some(entry) => {
                if request.seq <= entry.seq {
                    let last = entry.seq;
                    let mut reply = self.refuse(request, now, Outcome::Stale, String::new());
                    reply.last_seq = last;
                    return reply;
                }
                entry.seq = request.seq;
                if !entry.evicted.is_empty() && request.want != Want::Leave {
                    let reason = entry.evicted.clone();
                    return self.refuse(request, now, Outcome::Evicted, reason);
                }
                entry.lease = request.lease;
                entry.lease_until = entry.lease_until.max(now + request.lease);
                entry.renewals += 1;
                entry.renewed_at = now;
                entry.known = entry.known.max(request.known.epoch.min(self.epoch));
                if entry.record != request.record {
                    entry.record.clone_from(&request.record);
                    changed = true;
                }
                if request.want == Want::Drain && entry.state == MemberState::Active {
                    entry.state = MemberState::Leaving;
                    changed = true;
                }
                if request.want == Want::Leave {
                    self.remove(&request.id, LEFT, request.lease, now);
                    self.publish(request, now);
                    return self.refuse(request, now, Outcome::Left, String::new());
                }
            }
        }

        // After a gap nobody is expired for one full lease (rule 5).
        let caller_admitted = self.members.get(&request.id).is_some_and(admitted);
        let longest = self.members.values().map(|entry| entry.lease).max();
        let longest = longest.unwrap_or(request.lease);
        if caller_admitted {
            if now >= self.last_effective + longest / 2 && self.without != Some(Rule::Newcomers) {
                self.grace_until = self.grace_until.max(now + longest);
            }
            if fresh {
                self.last_effective = now;
            }
        }

        self.accuse(request, now);
        if fresh || self.without == Some(Rule::Frozen) {
            changed |= self.expire(request, now);
            if caller_admitted {
                changed |= self.admit(request);
                changed |= self.pin(request);
                changed |= self.evict(request, now);
            }
        }
        changed |= self.found(request, now);

        if changed {
            self.publish(request, now);
        }
        let mut reply = self.refuse(request, now, Outcome::Renewed, String::new());
        reply.effective = fresh && caller_admitted;
        if reply.known != request.known {
            reply.view = Some(self.view());
        }
        let strangers = self.refused.iter();
        reply.strangers = strangers
            .map(|(id, refused)| (id.clone(), refused.agreement.clone()))
            .collect();
        reply
    }

    /// The view as it is handed out.
    #[must_use]
    pub fn view(&self) -> StoredView {
        let members = self.members.iter().map(|(id, entry)| {
            let member = StoredMember {
                incarnation: entry.incarnation,
                record: entry.record.clone(),
                state: entry.state,
                lease: entry.lease,
                since: entry.since,
                known: entry.known,
            };
            (id.clone(), member)
        });
        StoredView {
            members: members.collect(),
            pins: self.pins.clone(),
        }
    }

    fn refuse(&self, request: &Request, now: u64, outcome: Outcome, detail: String) -> Reply {
        Reply {
            seq: request.seq,
            now,
            outcome,
            detail,
            effective: false,
            lease_left: 0,
            last_seq: 0,
            known: Known {
                epoch: self.epoch,
                mark: self.mark.clone(),
            },
            view: None,
            strangers: BTreeMap::new(),
        }
    }

    /// Takes over the whole view of a caller that is ahead: its members with fresh leases, so that
    /// all their deadlines come first. Members known only here stay, for they may be serving.
    fn adopt(&mut self, view: &StoredView, request: &Request, now: u64) {
        if self.members.is_empty() {
            self.agreement.clone_from(&request.agreement);
        }
        for (id, member) in &view.members {
            if self
                .tombstones
                .contains_key(&tombstone_key(id, member.incarnation))
            {
                continue;
            }
            let until = now + member.lease;
            match self.members.get_mut(id) {
                Some(entry) if entry.incarnation == member.incarnation => {
                    entry.lease_until = entry.lease_until.max(until);
                    if entry.state == MemberState::Joining || member.state == MemberState::Leaving {
                        entry.state = member.state;
                    }
                    entry.since = member.since;
                }
                _ => {
                    let entry = Entry {
                        incarnation: member.incarnation,
                        record: member.record.clone(),
                        state: member.state,
                        lease: member.lease,
                        since: member.since,
                        known: member.known,
                        seq: 0,
                        lease_until: until,
                        renewals: 0,
                        renewed_at: now,
                        evicted: String::new(),
                        accusations: BTreeMap::new(),
                    };
                    self.members.insert(id.clone(), entry);
                }
            }
        }
        self.pins.clone_from(&view.pins);
        self.history.clear();
        self.epoch = self.epoch.max(request.known.epoch);
        self.grace_until = self.grace_until.max(now + request.lease);
    }

    /// Records what the caller says of others, and forgets what it no longer says.
    fn accuse(&mut self, request: &Request, now: u64) {
        for (id, entry) in &mut self.members {
            let accused = request
                .gone
                .get(id)
                .is_some_and(|gone| gone.0 == entry.incarnation);
            if !accused {
                entry.accusations.remove(&request.id);
                continue;
            }
            let standing = entry.accusations.get(&request.id).is_some_and(|before| {
                before.by == request.incarnation && before.renewals == entry.renewals
            });
            if !standing {
                let accusation = Accusation {
                    by: request.incarnation,
                    renewals: entry.renewals,
                    since: now,
                };
                entry.accusations.insert(request.id.clone(), accusation);
            }
        }
    }

    /// Whether an accusation of `accused` has stood long enough.
    fn stands(&self, accused: &Entry, accusation: &Accusation, now: u64) -> bool {
        self.without == Some(Rule::EarlyEviction)
            || (accusation.renewals == accused.renewals
                && now >= accusation.since + silence(accused.lease))
    }

    /// Whether the caller may put a lapsed member out (rule 5).
    fn may_expire(&self, request: &Request, id: &str, now: u64) -> bool {
        let Some(entry) = self.members.get(id) else {
            return false;
        };
        if now < entry.lease_until {
            return false;
        }
        // A joining member holds nothing.
        if !admitted(entry) || self.without == Some(Rule::Newcomers) {
            return true;
        }
        if now < self.grace_until {
            return false;
        }
        let caller = self.members.get(&request.id);
        let knows_caller = caller.is_some_and(|caller| {
            caller.incarnation == request.incarnation
                && admitted(caller)
                && (entry.known >= caller.since || self.without == Some(Rule::Since))
        });
        let seen_gone = entry
            .accusations
            .get(&request.id)
            .is_some_and(|accusation| {
                accusation.by == request.incarnation && self.stands(entry, accusation, now)
            });
        knows_caller || seen_gone || now >= entry.renewed_at + request.orphan_timeout
    }

    /// Whether half of every view that the member can have installed accuse it (rule 3).
    fn may_evict(&self, request: &Request, id: &str, now: u64) -> bool {
        let Some(entry) = self.members.get(id) else {
            return false;
        };
        if !admitted(entry)
            || now < self.grace_until
            || !entry.accusations.contains_key(&request.id)
        {
            return false;
        }
        let mut views = 0;
        for (epoch, members) in &self.history {
            let number = epoch.parse::<u64>().unwrap_or(0);
            let skip = match self.without {
                Some(Rule::History) => number < self.epoch,
                _ => number < entry.known,
            };
            if skip {
                continue;
            }
            views += 1;
            let mut accusers = 0;
            for (accuser, accusation) in &entry.accusations {
                let current = self.members.get(accuser);
                let is_member = current.is_some_and(|accuser| {
                    accuser.incarnation == accusation.by && admitted(accuser)
                });
                let was_member = members.get(accuser) == Some(&accusation.by.to_string());
                if is_member && was_member && self.stands(entry, accusation, now) {
                    accusers += 1;
                }
            }
            if accusers * 2 < members.len() {
                return false;
            }
        }
        // The history must reach back to what the member knows.
        self.without == Some(Rule::History)
            || (entry.known > 0 && views as u64 == self.epoch - entry.known + 1)
    }

    fn expire(&mut self, request: &Request, now: u64) -> bool {
        // All are judged by the same state, then put out together.
        let out: Vec<(String, &'static str)> = self
            .members
            .keys()
            .filter(|id| **id != request.id)
            .filter_map(|id| {
                if self.may_expire(request, id, now) {
                    Some((id.clone(), LAPSED))
                } else if self.may_evict(request, id, now) {
                    Some((id.clone(), CRASHED))
                } else {
                    None
                }
            })
            .collect();
        for (id, reason) in &out {
            self.remove(id, reason, request.lease, now);
        }
        !out.is_empty()
    }

    fn remove(&mut self, id: &str, reason: &str, lease: u64, now: u64) {
        let Some(entry) = self.members.remove(id) else {
            return;
        };
        let life = lease * TOMBSTONE_LEASES;
        let (reason, life) = if entry.evicted.is_empty() {
            (reason.to_owned(), life)
        } else {
            (entry.evicted, life.max(EVICTED_LIFE))
        };
        for other in self.members.values_mut() {
            other.accusations.remove(id);
        }
        if self.tombstones.len() >= TOMBSTONES {
            let oldest = self
                .tombstones
                .iter()
                .min_by_key(|(key, tombstone)| (tombstone.until, (*key).clone()));
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.tombstones.remove(&oldest);
            }
        }
        let tombstone = Tombstone {
            until: now + life,
            reason,
        };
        self.tombstones
            .insert(tombstone_key(id, entry.incarnation), tombstone);
    }

    fn admit(&mut self, request: &Request) -> bool {
        let mut changed = false;
        for (id, incarnation) in &request.admit {
            if let Some(entry) = self.members.get_mut(id)
                && entry.incarnation == incarnation.0
                && !admitted(entry)
                && entry.evicted.is_empty()
            {
                entry.state = MemberState::Active;
                entry.since = self.epoch + 1;
                changed = true;
            }
        }
        changed
    }

    fn pin(&mut self, request: &Request) -> bool {
        let mut changed = false;
        for (document, node) in &request.pins {
            let full = self.pins.len() >= PINS && !self.pins.contains_key(document);
            if node.is_empty() {
                changed |= self.pins.remove(document).is_some();
            } else if !full && self.pins.get(document) != Some(node) {
                self.pins.insert(document.clone(), node.clone());
                changed = true;
            }
        }
        changed
    }

    fn evict(&mut self, request: &Request, now: u64) -> bool {
        let mut changed = false;
        let mut out = Vec::new();
        for (id, eviction) in &request.evict {
            let Some(entry) = self.members.get_mut(id) else {
                continue;
            };
            if entry.incarnation != eviction.incarnation {
                continue;
            }
            if eviction.drain {
                if entry.state == MemberState::Active {
                    entry.state = MemberState::Leaving;
                    changed = true;
                }
                continue;
            }
            if entry.evicted.is_empty() {
                // Out when its lease lapses; it may be serving until then.
                entry.evicted.clone_from(&eviction.reason);
            }
            if eviction.force && *id != request.id {
                out.push(id.clone());
            }
        }
        for id in &out {
            self.remove(id, LAPSED, request.lease, now);
            changed = true;
        }
        changed
    }

    /// The caller becomes the first member where nobody is left who could admit it.
    fn found(&mut self, request: &Request, now: u64) -> bool {
        let newcomers = self.without == Some(Rule::Newcomers);
        let alone = newcomers || !self.members.values().any(admitted);
        // An empty store may have lost a cluster that lives: wait for it to speak.
        let early = !newcomers && self.history.is_empty() && now < self.born + request.found_after;
        if !alone || early {
            return false;
        }
        match self.members.get_mut(&request.id) {
            Some(entry) if !admitted(entry) && entry.evicted.is_empty() => {
                entry.state = MemberState::Active;
                entry.since = self.epoch + 1;
                true
            }
            _ => false,
        }
    }

    /// Numbers the changed view. The mark names who made it and when, which no two views share.
    fn publish(&mut self, request: &Request, now: u64) {
        self.epoch += 1;
        self.mark = format!(
            "{}/{}/{}/{now}",
            request.id, request.incarnation, request.seq
        );
        let members = self.members.iter().filter(|(_, entry)| admitted(entry));
        let members: BTreeMap<String, String> = members
            .map(|(id, entry)| (id.clone(), entry.incarnation.to_string()))
            .collect();
        // Views made before anybody was admitted are nobody's majority.
        if !members.is_empty() || !self.history.is_empty() {
            self.history.insert(format!("{:010}", self.epoch), members);
        }
        if self.history.len() > HISTORY {
            self.history.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Eviction, Incarnation};

    const L: u64 = 9000;

    /// A registry, and the requests of nodes that speak to it.
    #[derive(Default)]
    struct Store {
        registry: Registry,
        callers: BTreeMap<(String, u64), (u64, u64, Known)>,
        now: u64,
    }

    impl Store {
        fn request(&mut self, id: &str, incarnation: u64, want: Want) -> Request {
            let (seq, as_of, known) = self
                .callers
                .entry((id.to_owned(), incarnation))
                .or_default();
            *seq += 1;
            Request {
                id: id.into(),
                incarnation,
                seq: *seq,
                as_of: *as_of,
                want,
                record: format!("{{\"of\":\"{id}\"}}"),
                lease: L,
                orphan_timeout: 10 * L,
                found_after: 0,
                agreement: "same".into(),
                known: known.clone(),
                floor: known.epoch,
                view: None,
                admit: BTreeMap::new(),
                gone: BTreeMap::new(),
                pins: BTreeMap::new(),
                evict: BTreeMap::new(),
            }
        }

        fn send(&mut self, request: &Request) -> Reply {
            let reply = self.registry.apply(request, self.now);
            // Both cross the wire.
            let text = serde_json::to_string(&reply).unwrap();
            let reply: Reply = serde_json::from_str(&text).unwrap();
            let caller = (request.id.clone(), request.incarnation);
            let (_, as_of, known) = self.callers.entry(caller).or_default();
            *as_of = reply.now;
            if reply.outcome == Outcome::Renewed {
                *known = reply.known.clone();
            }
            reply
        }

        fn beat(&mut self, id: &str, incarnation: u64) -> Outcome {
            let request = self.request(id, incarnation, Want::Renew);
            self.send(&request).outcome
        }

        fn gone(&mut self, id: &str, gone: &[(&str, u64)]) -> Reply {
            let mut request = self.request(id, 1, Want::Renew);
            for (gone, incarnation) in gone {
                request
                    .gone
                    .insert((*gone).into(), Incarnation(*incarnation));
            }
            self.send(&request)
        }

        /// Members `ids`, incarnation 1, all active and past every grace.
        fn with(ids: &[&str]) -> Self {
            let mut store = Self {
                now: 1_000_000,
                ..Self::default()
            };
            for id in ids {
                let join = store.request(id, 1, Want::Join);
                assert_eq!(store.send(&join).outcome, Outcome::Renewed);
                let mut admit = store.request(ids[0], 1, Want::Renew);
                admit.admit.insert((*id).into(), Incarnation(1));
                store.send(&admit);
            }
            store.pass(2 * L, ids);
            assert!(store.registry.members.values().all(admitted));
            store
        }

        /// Time passes while `ids` renew.
        fn pass(&mut self, time: u64, ids: &[&str]) {
            let until = self.now + time;
            while self.now < until {
                self.now = until.min(self.now + L / 9);
                for id in ids {
                    self.beat(id, 1);
                }
            }
        }

        fn ids(&self) -> Vec<&str> {
            self.registry.members.keys().map(String::as_str).collect()
        }
    }

    #[test]
    fn the_json_is_what_lua_reads_exactly() {
        let mut store = Store::with(&["a"]);
        let mut request = store.request("a", u64::MAX, Want::Join);
        request.gone.insert("b".into(), Incarnation(7));
        let json = serde_json::to_value(&request).unwrap();
        assert_eq!(json["incarnation"], "18446744073709551615");
        assert_eq!(json["gone"]["b"], "7");
        assert_eq!(json["want"], "join");
        assert!(json.get("view").is_none());
        let back: Request = serde_json::from_value(json).unwrap();
        assert_eq!(back, request);
        // The whole state survives, and holds no list.
        let text = serde_json::to_string(&store.registry).unwrap();
        assert!(!text.contains('['), "{text}");
        let registry: Registry = serde_json::from_str(&text).unwrap();
        assert_eq!(registry, store.registry);
    }

    #[test]
    fn a_lapsed_member_is_put_out_by_one_it_knows_and_never_returns() {
        let mut store = Store::with(&["a", "b"]);
        let epoch = store.registry.epoch;
        store.pass(L - 1, &["a"]);
        assert_eq!(store.ids(), ["a", "b"]);
        store.pass(L / 9, &["a"]);
        assert_eq!(store.ids(), ["a"]);
        assert_eq!(store.registry.epoch, epoch + 1);
        let join = store.request("b", 1, Want::Join);
        assert_eq!(store.send(&join).outcome, Outcome::Departed);
        let join = store.request("b", 2, Want::Join);
        assert_eq!(store.send(&join).outcome, Outcome::Renewed);
    }

    #[test]
    fn after_a_gap_nobody_is_put_out_for_a_lease() {
        let mut store = Store::with(&["a", "b"]);
        store.now += 3 * L;
        store.pass(L - 1, &["a"]);
        assert_eq!(store.ids(), ["a", "b"]);
        assert_eq!(store.beat("b", 1), Outcome::Renewed);
    }

    #[test]
    fn a_newcomer_puts_nobody_out_that_never_knew_it() {
        let mut store = Store::with(&["a", "b"]);
        let join = store.request("c", 1, Want::Join);
        store.send(&join);
        store.pass(3 * L, &["c"]);
        assert_eq!(store.ids(), ["a", "b", "c"]);
        assert_eq!(store.registry.members["c"].state, MemberState::Joining);
        // It saw them end.
        store.gone("c", &[("a", 1), ("b", 1)]);
        for _ in 0..5 {
            store.now += L / 9;
            store.gone("c", &[("a", 1), ("b", 1)]);
        }
        assert_eq!(store.ids(), ["c"]);
        assert_eq!(store.registry.members["c"].state, MemberState::Active);
    }

    #[test]
    fn half_of_the_view_evict_early_and_a_renewal_voids_it() {
        let mut store = Store::with(&["a", "b", "c", "d"]);
        let accuse = |store: &mut Store, by: &[&str]| {
            store.pass(L / 9, &["c"]);
            for id in by {
                store.gone(id, &[("d", 1)]);
            }
        };
        // One of four is not half, however long.
        for _ in 0..5 {
            accuse(&mut store, &["a"]);
        }
        assert_eq!(store.ids().len(), 4);
        store.beat("d", 1);
        for _ in 0..4 {
            accuse(&mut store, &["a", "b"]);
        }
        assert_eq!(store.ids().len(), 4, "h has not passed");
        store.beat("d", 1);
        for _ in 0..4 {
            accuse(&mut store, &["a", "b"]);
        }
        assert_eq!(store.ids().len(), 4, "it renewed since");
        accuse(&mut store, &["a", "b"]);
        assert_eq!(store.ids(), ["a", "b", "c"]);
        assert_eq!(store.beat("d", 1), Outcome::Departed);
    }

    #[test]
    fn a_flushed_store_takes_the_view_of_its_first_caller() {
        let mut store = Store::with(&["a", "b"]);
        let (view, epoch) = (store.registry.view(), store.registry.epoch);
        store.registry = Registry::default();
        assert_eq!(store.beat("a", 1), Outcome::Behind);
        let mut request = store.request("a", 1, Want::Renew);
        request.view = Some(view);
        let reply = store.send(&request);
        assert_eq!(reply.outcome, Outcome::Renewed);
        assert_eq!(reply.known.epoch, epoch + 1);
        assert_eq!(store.ids(), ["a", "b"]);
        assert_eq!(store.beat("b", 1), Outcome::Renewed);
    }

    #[test]
    fn a_taken_id_waits_for_its_holder_to_lapse() {
        let mut store = Store::with(&["a", "b"]);
        let join = store.request("b", 2, Want::Join);
        let reply = store.send(&join);
        assert_eq!((reply.outcome, reply.lease_left), (Outcome::IdTaken, L));
        store.pass(L + L / 9, &["a"]);
        let join = store.request("b", 2, Want::Join);
        assert_eq!(store.send(&join).outcome, Outcome::Renewed);
    }

    #[test]
    fn late_requests_and_other_rings_change_nothing() {
        let mut store = Store::with(&["a", "b"]);
        let old = store.request("a", 1, Want::Drain);
        assert_eq!(store.beat("a", 1), Outcome::Renewed);
        let before = store.registry.clone();
        let reply = store.send(&old);
        assert_eq!(
            (reply.outcome, reply.last_seq),
            (Outcome::Stale, old.seq + 1)
        );
        let mut other = store.request("c", 1, Want::Join);
        other.agreement = "other".into();
        let reply = store.send(&other);
        assert_eq!(
            (reply.outcome, reply.detail.as_str()),
            (Outcome::Mismatch, "same")
        );
        // Members hear of it for a lease.
        let refused = std::mem::take(&mut store.registry.refused);
        assert_eq!(store.registry, before);
        store.registry.refused = refused;
        let mut third = store.request("d", 1, Want::Renew);
        third.agreement = "third".into();
        store.send(&third);
        let request = store.request("b", 1, Want::Renew);
        let told = [("c", "other"), ("d", "third")].map(|(id, it)| (id.into(), it.into()));
        assert_eq!(store.send(&request).strangers, BTreeMap::from(told));
        store.pass(L, &["a", "b"]);
        let request = store.request("b", 1, Want::Renew);
        assert!(store.send(&request).strangers.is_empty());
        for node in 0..=REFUSED {
            let mut other = store.request(&format!("n{node}"), 1, Want::Join);
            other.agreement = "other".into();
            store.send(&other);
        }
        assert_eq!(store.registry.refused.len(), REFUSED);
    }

    #[test]
    fn put_out_by_force_is_out_at_once_and_for_long() {
        let mut store = Store::with(&["a", "b"]);
        let mut request = store.request("a", 1, Want::Renew);
        let eviction = |force| Eviction {
            incarnation: 1,
            reason: "hung".into(),
            drain: false,
            force,
        };
        // First one waits for the lease, then loses patience. Nobody does that to itself.
        request.evict.insert("b".into(), eviction(false));
        store.send(&request);
        assert_eq!(store.ids(), ["a", "b"]);
        let mut request = store.request("a", 1, Want::Renew);
        request.evict.insert("a".into(), eviction(true));
        request.evict.insert("b".into(), eviction(true));
        let view = store.send(&request).view.unwrap();
        assert_eq!(view.members.keys().collect::<Vec<_>>(), ["a"]);
        // A hung process may wake much later.
        store.now += EVICTED_LIFE - 1;
        let late = store.request("b", 1, Want::Renew);
        let reply = store.send(&late);
        assert_eq!(
            (reply.outcome, reply.detail.as_str()),
            (Outcome::Departed, "hung")
        );
        assert_eq!(store.beat("b", 2), Outcome::Departed, "no renewal of it");
        let join = store.request("b", 2, Want::Join);
        assert_eq!(store.send(&join).outcome, Outcome::Renewed);
    }

    #[test]
    fn put_out_by_hand_stays_out_but_holds_its_lease() {
        let mut store = Store::with(&["a", "b"]);
        let mut request = store.request("a", 1, Want::Renew);
        let eviction = Eviction {
            incarnation: 1,
            reason: "hung".into(),
            drain: false,
            force: false,
        };
        request.evict.insert("b".into(), eviction);
        assert!(store.send(&request).effective);
        let reply = {
            let request = store.request("b", 1, Want::Renew);
            store.send(&request)
        };
        assert_eq!(
            (reply.outcome, reply.detail.as_str()),
            (Outcome::Evicted, "hung")
        );
        assert_eq!(store.ids(), ["a", "b"]);
        let mut said = store.registry.clone();
        store.pass(L + L / 9, &["a", "b"]);
        assert_eq!(store.ids(), ["a"]);
        // Or as soon as it says that it has stopped.
        std::mem::swap(&mut store.registry, &mut said);
        let leave = store.request("b", 1, Want::Leave);
        assert_eq!(store.send(&leave).outcome, Outcome::Left);
        assert_eq!(store.ids(), ["a"]);
        let join = store.request("b", 1, Want::Join);
        assert_eq!(store.send(&join).detail, "hung");
    }

    #[test]
    fn drain_then_leave_and_pins() {
        let mut store = Store::with(&["a", "b"]);
        let mut request = store.request("a", 1, Want::Drain);
        request.pins.insert("doc".into(), "b".into());
        let view = store.send(&request).view.unwrap();
        assert_eq!(view.members["a"].state, MemberState::Leaving);
        assert_eq!(view.pins["doc"], "b");
        let leave = store.request("a", 1, Want::Leave);
        assert_eq!(store.send(&leave).outcome, Outcome::Left);
        assert_eq!(store.ids(), ["b"]);
        assert_eq!(store.beat("a", 1), Outcome::Departed);
    }
}
