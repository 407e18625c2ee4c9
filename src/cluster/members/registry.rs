//! What the machine says to the registry, and what it makes of the replies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Effect, MAX_CHAIN, MAX_SENT, Members, Peer, Record, Sent, Standing, millis};
use crate::cluster::view::{Member, MemberState, Snapshot, View};
use crate::store::{
    Incarnation, Known, Outcome, Reply, Request, Rule, StoredMember, StoredView, Want, model,
};

impl Members {
    pub(super) fn asks(&self) -> bool {
        matches!(
            self.standing,
            Standing::Joining | Standing::Member | Standing::Departing
        )
    }

    /// Nothing came since then where a reply should have.
    pub(super) fn is_overdue(&self, last: Option<Duration>, now: Duration) -> bool {
        last.is_none_or(|at| now >= at + self.config.period() * 2)
    }

    /// Asks for a heartbeat as soon as spacing allows.
    pub(super) fn hurry(&mut self, now: Duration) {
        if !self.asks() {
            return;
        }
        let after = self.last_sent.map_or(now, |at| at + self.config.spacing());
        self.next_beat = self.next_beat.min(after.max(now));
    }

    pub(super) fn beat(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if !self.asks() || now < self.next_beat {
            return;
        }
        if self.config.without == Some(Rule::Deadline) {
            self.turned = true;
        }
        // A node that no longer runs JavaScript must lose its lease.
        if !std::mem::take(&mut self.turned) {
            self.next_beat = now + self.config.spacing();
            return;
        }
        let request = self.number(now, None);
        self.last_sent = Some(now);
        self.next_beat = now + self.config.period();
        if self.is_overdue(self.last_direct, now) && self.standing != Standing::Joining {
            let reaches = |peer: &Peer| {
                peer.reaches
                    .is_some_and(|at| now < at + self.config.patience())
            };
            let via = self.peers.iter().filter(|(id, _)| self.may_tell(id));
            let via = via.filter(|(_, peer)| reaches(peer));
            let via = via.max_by_key(|(_, peer)| peer.reaches);
            if let Some(via) = via.map(|(id, _)| id.clone()) {
                // Numbered apart: whichever comes second is late, and says so.
                let request = self.number(now, Some(via.clone()));
                effects.push(Effect::Relay { via, request });
            }
        }
        effects.push(Effect::Send(request));
    }

    /// A new request, remembered as sent at `now`.
    pub(super) fn number(&mut self, now: Duration, via: Option<String>) -> Request {
        self.seq += 1;
        self.sent.insert(self.seq, Sent { at: now, via });
        if self.sent.len() > MAX_SENT {
            self.sent.pop_first();
        }
        self.request(now)
    }

    pub(super) fn request(&mut self, now: Duration) -> Request {
        let seq = self.seq;
        // One request at a time: carried out once more, a pin would undo what others have wanted since.
        // Where nothing is answered, any of them may be the one that arrives.
        let unanswered = self.is_overdue(self.last_direct, now);
        let mut pins = BTreeMap::new();
        for (document, pin) in &mut self.pins {
            if unanswered || pin.since.is_none() {
                pin.since = Some(seq);
                pins.insert(document.clone(), pin.value.clone());
            }
        }
        for eviction in self.evictions.values_mut() {
            eviction.since.get_or_insert(seq);
        }
        let want = match self.standing {
            Standing::Departing if !self.holds_back(now) => Want::Leave,
            Standing::Joining => Want::Join,
            _ if self.draining || self.standing == Standing::Departing => Want::Drain,
            _ => Want::Renew,
        };
        // A node that may have been expired lets the others speak first.
        let may_seed = self
            .behind
            .is_some_and(|since| !self.is_lapsed(now) || now >= since + self.config.lease);
        let gone = self.peers.iter().filter(|(_, peer)| peer.gone.is_some());
        Request {
            id: self.id.clone(),
            incarnation: self.incarnation,
            seq,
            as_of: if self.unmet.is_empty() { self.as_of } else { 0 },
            want,
            record: serde_json::to_string(&self.record).unwrap_or_default(),
            lease: millis(self.config.lease),
            orphan_timeout: millis(self.config.orphan_timeout),
            found_after: self.found_after(),
            agreement: self.config.agreement.clone(),
            known: self.known.clone(),
            floor: self.floor,
            view: may_seed.then(|| self.stored.clone()),
            admit: self.admissions(now),
            gone: gone
                .map(|(id, peer)| (id.clone(), Incarnation(peer.incarnation)))
                .collect(),
            pins,
            evict: self
                .evictions
                .iter()
                .map(|(id, eviction)| (id.clone(), eviction.value.clone()))
                .collect(),
        }
    }

    /// Joining members that answer us.
    pub(super) fn admissions(&self, now: Duration) -> BTreeMap<String, Incarnation> {
        let joining = self.stored.members.iter().filter(|(id, member)| {
            member.state == MemberState::Joining && **id != self.id && self.hears(id, member, now)
        });
        joining
            .map(|(id, member)| (id.clone(), Incarnation(member.incarnation)))
            .collect()
    }

    /// See [`Config::hints`].
    pub(super) fn found_after(&self) -> u64 {
        if self.config.hints.iter().all(|hint| *hint == self.id) {
            return millis(self.config.lease);
        }
        let accounted = |hint: &String| {
            let joins = |member: &StoredMember| member.state == MemberState::Joining;
            *hint == self.id
                || self.stored.members.get(hint).is_some_and(joins)
                || self.peers.get(hint).is_some_and(|peer| peer.gone.is_some())
        };
        if self.config.hints.iter().all(accounted) {
            0
        } else {
            millis(self.config.orphan_timeout)
        }
    }

    pub(super) fn on_reply(
        &mut self,
        now: Duration,
        from: Option<&str>,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        // A reply that was not asked for, or not of this peer, or came twice, or too late to matter.
        let asked = |sent: &Sent| sent.via.as_deref() == from;
        if !self.sent.get(&reply.seq).is_some_and(asked) {
            return;
        }
        let Some(Sent { at: sent, .. }) = self.sent.remove(&reply.seq) else {
            return;
        };
        self.as_of = self.as_of.max(reply.now);
        self.last_reply = Some(now);
        if from.is_none() {
            if self.is_overdue(self.last_direct, now) {
                // Others may have waited for somebody who can relay.
                self.next_ask = self.next_ask.min(now);
            }
            self.last_direct = Some(now);
        }
        self.note_pins(&reply);
        // Overtaken by a renewal: it tells of a time before.
        let overtaken = reply.seq < self.renewed_by;
        match reply.outcome {
            Outcome::IdTaken | Outcome::Mismatch if overtaken => {}
            Outcome::Renewed => self.on_renewed(now, sent, reply, effects),
            Outcome::Left => self.depart("it left".into(), effects),
            Outcome::Behind => {
                self.behind.get_or_insert(now);
                self.hurry(now);
            }
            Outcome::Departed => self.depart(reply.detail, effects),
            Outcome::Evicted => {
                self.expelled.get_or_insert(reply.detail);
                if matches!(self.standing, Standing::Joining | Standing::Member) {
                    self.standing = Standing::Departing;
                }
                self.hurry(now);
            }
            Outcome::IdTaken if self.standing == Standing::Joining => {
                effects.push(Effect::IdTaken {
                    record: reply.detail,
                    lease_left: Duration::from_millis(reply.lease_left),
                });
            }
            Outcome::IdTaken => self.depart("another process has its id".into(), effects),
            Outcome::Mismatch => effects.push(Effect::Mismatch {
                theirs: reply.detail,
            }),
            Outcome::Stale => {
                self.seq = self.seq.max(reply.last_seq);
                self.hurry(now);
            }
        }
    }

    /// Pins that the request carried are set, or are carried by the next one. So are those of earlier
    /// ones: requests are carried out in order.
    fn note_pins(&mut self, reply: &Reply) {
        if reply.outcome == Outcome::Renewed && reply.effective {
            self.pins.retain(|_, pin| pin.since != Some(reply.seq));
        }
        for pin in self.pins.values_mut() {
            pin.since = pin.since.filter(|since| *since > reply.seq);
        }
    }

    pub(super) fn on_renewed(
        &mut self,
        now: Duration,
        sent: Duration,
        reply: Reply,
        effects: &mut Vec<Effect>,
    ) {
        if self.standing == Standing::Joining {
            self.standing = Standing::Member;
        }
        if !reply.strangers.is_empty() {
            effects.push(Effect::Strangers(reply.strangers));
        }
        self.behind = None;
        self.renewed_by = self.renewed_by.max(reply.seq);
        // Before sending, for the registry may have counted from any moment since (rule 1).
        let from = match self.config.without {
            Some(Rule::Deadline) => now,
            _ => sent,
        };
        self.renewed = self.renewed.max(Some(from));
        self.deadline = self.deadline.max(from + self.config.lease * 99 / 100);
        if now < self.deadline {
            self.broken = false;
        }
        if self.conflict.is_some_and(|met| sent > met) {
            self.conflict = None;
        }
        if reply.effective {
            let waits = |since: Option<u64>| since.is_none_or(|since| since > reply.seq);
            self.evictions.retain(|_, eviction| waits(eviction.since));
        }
        for peer in self.peers.values_mut() {
            if peer.quiet_until.is_some_and(|seq| reply.seq >= seq) {
                peer.quiet_until = None;
            }
        }
        let Some(view) = reply.view else { return };
        let newer = reply.known.epoch > self.known.epoch
            || self.known.epoch == 0
            || self.config.without == Some(Rule::Behind);
        let own = view.members.get(&self.id);
        if newer && own.is_some_and(|own| own.incarnation == self.incarnation) {
            self.install(now, reply.known, view, effects);
        }
    }

    pub(super) fn install(
        &mut self,
        now: Duration,
        known: Known,
        stored: StoredView,
        effects: &mut Vec<Effect>,
    ) {
        let joined = stored
            .members
            .keys()
            .any(|id| !self.stored.members.contains_key(id));
        self.floor = self.floor.max(known.epoch);
        self.known = known;
        self.stored = stored;
        let members = self.stored.members.iter().map(|(id, member)| {
            let record: Record = serde_json::from_str(&member.record).unwrap_or(Record {
                // Every node reads the same text, so all fall back alike.
                address: String::new(),
                port: 0,
                link_port: None,
                weight: 1.0,
                incarnation: member.incarnation,
            });
            let member = Member {
                id: id.clone(),
                incarnation: member.incarnation,
                address: record.address,
                port: record.port,
                link_port: record.link_port,
                weight: record.weight,
                state: member.state,
            };
            (id.clone(), member)
        });
        let view = View {
            epoch: self.known.epoch,
            members: members.collect(),
            pins: self.stored.pins.clone(),
        };
        let snapshot = Arc::new(Snapshot::new(view, self.config.virtual_nodes));
        self.chain.push(snapshot.clone());
        if self.chain.len() > MAX_CHAIN {
            self.chain.drain(..self.chain.len() - 1);
            self.settled = false;
        }
        // What is known of a process is kept while it is a member; hints and our own predecessor too.
        let (stored, hints, own) = (&self.stored, &self.config.hints, &self.id);
        self.peers.retain(|id, peer| match stored.members.get(id) {
            Some(member) if id != own => member.incarnation == peer.incarnation,
            _ => hints.contains(id) && id != own,
        });
        for (id, member) in &self.stored.members {
            if *id != self.id {
                let peer = self.peers.entry(id.clone()).or_default();
                peer.incarnation = member.incarnation;
                // It was said of an earlier view.
                peer.sealed = None;
            }
        }
        self.unmet.retain(|id| stored.members.contains_key(id));
        effects.push(Effect::View(snapshot));
        self.ask_all(now, effects);
        // A newcomer waits to be admitted, and the admission waits for its answer.
        if joined {
            self.next_beat = self.next_beat.min(now + self.config.spacing() * 2);
        }
    }

    pub(super) fn depart(&mut self, reason: String, effects: &mut Vec<Effect>) {
        if matches!(self.standing, Standing::Out | Standing::Idle) {
            return;
        }
        // Whoever wanted to go or was put out stays out; a node that was only late comes back.
        let by_hand = self.standing == Standing::Departing;
        let late = [model::LAPSED, model::CRASHED].contains(&reason.as_str());
        let stay_out = by_hand || !late;
        let reason = self.expelled.take().unwrap_or(reason);
        self.standing = Standing::Out;
        self.sent.clear();
        self.next_beat = Duration::MAX;
        self.next_ask = Duration::MAX;
        effects.push(Effect::Departed { reason, stay_out });
    }
}
