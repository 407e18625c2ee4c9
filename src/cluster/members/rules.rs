//! The rules, as questions to the machine's state at a time.

use std::time::Duration;

use super::{Effect, Members, Peer, Standing, is_admitted, millis};
use crate::cluster::view::MemberState;
use crate::store::{Rule, StoredMember, model};

/// Why a node that was made to hand everything over is out.
const REMOVED: &str = "it was removed from the cluster";

impl Members {
    pub(super) fn own(&self) -> Option<&StoredMember> {
        self.stored.members.get(&self.id)
    }

    /// The other admitted members of the installed view.
    pub(super) fn others(&self) -> impl Iterator<Item = (&String, &StoredMember)> {
        let members = self.stored.members.iter();
        members.filter(|(id, member)| is_admitted(member) && **id != self.id)
    }

    pub(super) fn peer(&self, id: &str, member: &StoredMember) -> Option<&Peer> {
        let peer = self.peers.get(id);
        peer.filter(|peer| peer.incarnation == member.incarnation)
    }

    /// Answered a question that was asked within `h`.
    pub(super) fn hears(&self, id: &str, member: &StoredMember, now: Duration) -> bool {
        let heard = self.peer(id, member).and_then(|peer| peer.heard);
        heard.is_some_and(|at| now < at + self.config.patience())
    }

    pub(super) fn hears_majority(&self, now: Duration) -> bool {
        let (mut all, mut heard) = (1, 1);
        for (id, member) in self.others() {
            all += 1;
            heard += usize::from(self.hears(id, member, now));
        }
        heard * 2 > all
    }

    /// `h·(1+3ρ)` for the longest lease of the view.
    pub(super) fn silence(&self) -> Duration {
        let leases = self.stored.members.values().map(|member| member.lease);
        let longest = leases.max().unwrap_or(0).max(millis(self.config.lease));
        Duration::from_millis(model::silence(longest))
    }

    /// No request of ours can change the registry's view before we receive another reply.
    pub(super) fn is_sealed(&self, now: Duration) -> bool {
        self.standing == Standing::Member
            && self.last_reply.is_none_or(|at| now >= at + self.silence())
    }

    /// We allowed a peer to go on at an earlier view than ours, and it may still do so.
    pub(super) fn holds_back(&self, now: Duration) -> bool {
        if matches!(self.config.without, Some(Rule::Frozen | Rule::HoldBack)) {
            return false;
        }
        let (epoch, _) = self.installed();
        self.permitted.is_some_and(|(at, permitted)| {
            (permitted < epoch || self.standing == Standing::Departing) && now < at + self.silence()
        })
    }

    /// Until when a peer's word lets us go on.
    pub(super) fn sealed_until(&self, id: &str, member: &StoredMember) -> Duration {
        let sealed = self.peer(id, member).and_then(|peer| peer.sealed);
        sealed.map_or(Duration::ZERO, |at| at + self.config.patience())
    }

    /// From when until when its end does: once the last request that it can have sent, less than a
    /// sixth of its lease after a reply, is not effective any more; and while the address refuses,
    /// for what we saw before a pause may long have been followed by something else.
    pub(super) fn dead_during(&self, id: &str, member: &StoredMember) -> (Duration, Duration) {
        let Some((since, confirmed)) = self.peer(id, member).and_then(|peer| peer.gone) else {
            return (Duration::MAX, Duration::ZERO);
        };
        let effective = Duration::from_millis(member.lease / 6) * 103 / 100;
        (since + effective, confirmed + self.config.patience())
    }

    /// Every other member is alive and sealed at our view or beside it: whoever took our place would
    /// need a report of one of them at a view that is later than both.
    pub(super) fn all_sealed(&self, now: Duration) -> bool {
        self.others()
            .all(|(id, member)| now < self.sealed_until(id, member))
    }

    /// Rule 4, at this moment. The dead count only where nobody can have expired us before.
    pub(super) fn is_frozen(&self, now: Duration) -> bool {
        if self.config.without == Some(Rule::Frozen) {
            return self.hears_majority(now);
        }
        let counts_dead = !self.broken || self.config.without == Some(Rule::Continuous);
        self.all_sealed(now)
            || (counts_dead
                && self.others().all(|(id, member)| {
                    let (from, to) = self.dead_during(id, member);
                    now < self.sealed_until(id, member) || (now >= from && now < to)
                }))
    }

    /// Not frozen at some moment since the deadline: between a member's last word and the time from
    /// which its end counts.
    pub(super) fn breaks(&self, now: Duration) -> bool {
        now >= self.deadline
            && self.others().any(|(id, member)| {
                let until = self.sealed_until(id, member);
                let (from, to) = self.dead_during(id, member);
                now >= until && (from > until.max(self.deadline) || now >= to)
            })
    }

    /// Past the deadline and not frozen.
    pub(super) fn is_lapsed(&self, now: Duration) -> bool {
        match self.config.without {
            Some(Rule::Frozen | Rule::Continuous) => now >= self.deadline && !self.is_frozen(now),
            _ => now >= self.deadline && !self.all_sealed(now) && (self.broken || self.breaks(now)),
        }
    }

    pub(super) fn notice_lapse(&mut self, now: Duration) {
        if self.standing != Standing::Member {
            return;
        }
        self.broken |= self.breaks(now);
        if self.is_lapsed(now) {
            // Nothing is held any more: what is served again is served by a settled view.
            let installed = self.chain.len().saturating_sub(1);
            self.chain.drain(..installed);
            self.settled = false;
        }
    }

    pub(super) fn settle(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let (epoch, hash) = self.installed();
        if epoch == 0
            || self.is_settled()
            || self.is_lapsed(now)
            || self.standing != Standing::Member
            || self.released < epoch
            || self.holds_back(now)
        {
            return;
        }
        let settled = self.others().all(|(id, member)| {
            let released = self.peer(id, member).and_then(|peer| peer.released);
            released == Some((epoch, hash))
                || (self.config.without == Some(Rule::Exact)
                    && released.is_some_and(|(at, _)| at >= epoch))
        });
        if settled {
            let installed = self.chain.len() - 1;
            self.chain.drain(..installed);
            self.settled = true;
            effects.push(Effect::Settled(epoch));
            // Removed by another's hand, and nothing is here any more.
            let leaving = |own: &StoredMember| own.state == MemberState::Leaving;
            if !self.draining && self.own().is_some_and(leaving) {
                self.expelled.get_or_insert_with(|| REMOVED.to_owned());
                self.standing = Standing::Departing;
                self.hurry(now);
            }
        }
    }
}
