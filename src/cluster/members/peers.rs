//! What the machine says to its peers, and what it makes of their words.

use std::cmp::Ordering;
use std::time::Duration;

use super::{Effect, Members, Plea, Report, Standing, Vouch, is_admitted, millis};
use crate::store::Rule;

impl Members {
    pub(super) fn may_tell(&self, id: &str) -> bool {
        self.peers
            .get(id)
            .is_some_and(|peer| peer.gone.is_none() && peer.quiet_until.is_none())
    }

    pub(super) fn report(&self, now: Duration, to: u64) -> Report {
        let (epoch, hash) = self.installed();
        Report {
            incarnation: self.incarnation,
            to,
            epoch,
            hash,
            released: self.released >= epoch && !self.holds_back(now),
            sealed: false,
            admits: false,
            // Whoever is renewed through others only can relay nothing.
            reaches: !self.is_overdue(self.last_direct, now),
            ask: None,
            echo: None,
        }
    }

    pub(super) fn installed(&self) -> (u64, u64) {
        self.chain
            .last()
            .map_or((0, 0), |snapshot| (snapshot.view.epoch, snapshot.hash))
    }

    pub(super) fn ask_all(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.standing == Standing::Joining {
            self.next_ask = now + self.config.period();
            for to in self.config.hints.iter().filter(|hint| **hint != self.id) {
                let plea = Plea {
                    incarnation: self.incarnation,
                    ask: millis(now),
                };
                effects.push(Effect::Plead {
                    to: to.clone(),
                    plea,
                });
            }
            return;
        }
        if !matches!(self.standing, Standing::Member | Standing::Departing) {
            self.next_ask = Duration::MAX;
            return;
        }
        self.next_ask = now + self.config.period();
        for (id, member) in &self.stored.members {
            if *id != self.id && self.may_tell(id) {
                let mut report = self.report(now, member.incarnation);
                report.ask = Some(millis(now));
                effects.push(Effect::Tell {
                    to: id.clone(),
                    report,
                });
            }
        }
    }

    pub(super) fn on_report(
        &mut self,
        now: Duration,
        from: &str,
        report: Report,
        effects: &mut Vec<Effect>,
    ) {
        if report.to != self.incarnation
            || !matches!(self.standing, Standing::Member | Standing::Departing)
        {
            return;
        }
        let (epoch, hash) = self.installed();
        let sealed = self.is_sealed(now);
        if report.epoch > epoch {
            self.hurry(now);
        }
        let member = self.stored.members.get(from);
        let Some(member) = member.filter(|member| member.incarnation == report.incarnation) else {
            return;
        };
        let joining = !is_admitted(member);
        // At our view, or beside it: of the two the later one has both.
        let beside = match report.epoch.cmp(&epoch) {
            Ordering::Less => !joining,
            Ordering::Equal => report.hash == hash,
            Ordering::Greater => report.admits,
        };
        if report.epoch == epoch && !beside && self.config.without != Some(Rule::Behind) {
            self.conflict = Some(now);
            self.hurry(now);
        }
        let echo = report
            .echo
            .map(Duration::from_millis)
            .filter(|at| *at <= now);
        let echo = match self.config.without {
            Some(Rule::Asked) => echo.map(|_| now),
            _ => echo,
        };
        let peer = self.peers.entry(from.to_owned()).or_default();
        peer.incarnation = report.incarnation;
        // The one we vouched for has taken the place; the accusation was of its predecessor. What
        // it says before its answer to our vouch would leave us without its word.
        if peer.heir.is_some() && peer.gone.is_some() && sealed {
            if echo.is_none() {
                return;
            }
            peer.gone = None;
        }
        if let Some(echo) = echo {
            let first = peer.heard.is_none();
            peer.heard = peer.heard.max(Some(echo));
            if report.sealed && beside {
                peer.sealed = peer.sealed.max(Some(echo));
            }
            if joining && first {
                self.hurry(now);
            }
        }
        let peer = self.peers.entry(from.to_owned()).or_default();
        if report.reaches {
            let before = peer.reaches.replace(now);
            // Somebody can relay again.
            if self.is_overdue(before, now) && self.is_overdue(self.last_direct, now) {
                self.hurry(now);
            }
        }
        let peer = self.peers.entry(from.to_owned()).or_default();
        if report.released && peer.released.is_none_or(|(at, _)| report.epoch >= at) {
            peer.released = Some((report.epoch, report.hash));
        }
        if let Some(ask) = report.ask {
            self.unmet.remove(from);
            if self.may_tell(from) {
                if sealed {
                    self.permitted = Some((now, epoch));
                }
                let mut answer = self.report(now, report.incarnation);
                answer.sealed = sealed;
                answer.admits = !joining;
                answer.echo = Some(ask);
                effects.push(Effect::Tell {
                    to: from.to_owned(),
                    report: answer,
                });
            }
        }
    }

    pub(super) fn on_plea(
        &mut self,
        now: Duration,
        from: String,
        plea: &Plea,
        effects: &mut Vec<Effect>,
    ) {
        if !self.is_sealed(now) || !self.stored.members.get(&from).is_some_and(is_admitted) {
            return;
        }
        let (silence, epoch) = (self.silence(), self.known.epoch);
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        let other = |(heir, at)| heir != plea.incarnation && now < at + silence;
        if peer.gone.is_none()
            || peer.incarnation == plea.incarnation
            || peer.heir.is_some_and(other)
        {
            return;
        }
        peer.heir = Some((plea.incarnation, now));
        self.permitted = Some((now, epoch));
        effects.push(Effect::Vouch {
            to: from,
            vouch: Box::new(Vouch {
                to: plea.incarnation,
                echo: plea.ask,
                ask: millis(now),
                known: self.known.clone(),
                view: self.stored.clone(),
            }),
        });
    }

    pub(super) fn on_vouch(
        &mut self,
        now: Duration,
        from: String,
        vouch: Vouch,
        effects: &mut Vec<Effect>,
    ) {
        let asked = Duration::from_millis(vouch.echo);
        let asks = self.standing == Standing::Joining && self.config.hints.contains(&from);
        if !asks || vouch.to != self.incarnation || asked > now {
            return;
        }
        let (known, view) = (vouch.known.clone(), vouch.view.clone());
        self.vouches.insert(from, (asked, vouch));
        // Every other member of the view says the same, and is alive.
        let agree = view.members.iter().all(|(id, member)| {
            let vouch = self.vouches.get(id);
            *id == self.id
                || !is_admitted(member)
                || vouch.is_some_and(|(asked, vouch)| {
                    vouch.known == known && now < *asked + self.config.patience()
                })
        });
        let Some(own) = view.members.get(&self.id).cloned() else {
            return;
        };
        if !agree || known.epoch < self.floor {
            return;
        }
        self.incarnation = own.incarnation;
        self.standing = Standing::Member;
        self.sent.clear();
        // None of our requests is effective before a reply, and we may have been expired.
        (self.as_of, self.last_reply, self.broken) = (0, None, true);
        effects.push(Effect::Resumed {
            incarnation: own.incarnation,
        });
        let vouches = std::mem::take(&mut self.vouches);
        let install = effects.len();
        self.install(now, known, view, effects);
        for (id, (asked, vouch)) in vouches {
            let Some(member) = self.stored.members.get(&id).filter(|it| is_admitted(it)) else {
                continue;
            };
            let mut answer = self.report(now, member.incarnation);
            (answer.sealed, answer.echo) = (true, Some(vouch.ask));
            let peer = self.peers.entry(id.clone()).or_default();
            (peer.heard, peer.sealed) = (Some(asked), Some(asked));
            self.unmet.insert(id.clone());
            // Before the first question.
            effects.insert(
                install,
                Effect::Tell {
                    to: id,
                    report: answer,
                },
            );
        }
        self.permitted = Some((now, self.known.epoch));
    }
}
