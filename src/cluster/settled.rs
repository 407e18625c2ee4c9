//! When a view is settled where views have no agreed number, as without Redis. Pure.
//!
//! A view is settled at a node when this node and every other member that has spoken hold only what
//! they own under it. Each says so by a [`Word`], once JavaScript has let go of the rest. A word names
//! the view by its hash. Views come back, and their hashes with them (a pin and its removal, a
//! suspicion and its refutation), so a word counts only if it was said after this node had installed
//! the view: in it comes back the number that this node gave its view. Until a view is settled a node
//! serves what it owned in the settled one before it and in every one since.
//!
//! Why that is enough: whoever gains a document under a later view needs our word about that one, said
//! after it was installed there; and under it we have let go of the document.
//!
//! | from      | event                                            | to        |
//! |-----------|--------------------------------------------------|-----------|
//! | –         | first view                                       | holding   |
//! | holding   | released                                         | waiting   |
//! | waiting   | the last word that was missing (at once if none) | settled   |
//! | any       | a view of another hash                           | holding   |
//! | any       | a view of the same hash                          | no change |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::right::Right;
use super::view::{Member, Snapshot};

/// Time between two questions to a member whose word is missing: messages may be lost with a link,
/// or while the peer's process stood still.
const ASK: Duration = Duration::from_millis(500);

/// Views a document may be kept through before one settles; more, and nothing is served until one
/// does.
const MAX_CHAIN: usize = 64;

/// "I hold only what I own under this view."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Process of the sender.
    pub incarnation: u64,
    /// The sender's own number of the view.
    pub number: u64,
    /// [`Snapshot::hash`] of it.
    pub hash: u64,
    /// Process and number of the receiver's last word that the sender had heard.
    pub echo: Option<(u64, u64)>,
    /// To be answered even where it is no news.
    pub asks: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell a linked peer; it is repeated where it is lost.
    Tell {
        /// Its id.
        to: String,
        /// What.
        word: Word,
    },
    /// The newest view is settled: [`Settling::right`] has grown.
    Settled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// Documents of others are held here, as far as is known.
    #[default]
    Holding,
    /// Words of others are missing.
    Waiting,
    Settled,
}

/// The views of one node since the last settled one, and what others said of the newest.
#[derive(Debug, Default)]
pub struct Settling {
    id: String,
    newest: Option<Arc<Snapshot>>,
    /// The view settled last and the different ones since, in no order that matters.
    chain: Vec<Arc<Snapshot>>,
    /// One of `chain` is settled.
    based: bool,
    phase: Phase,
    /// Of the newest view: its epoch, or that of an earlier one with nothing but the same hash between.
    number: u64,
    /// Members whose word about the newest view counts.
    agreed: BTreeSet<String>,
    linked: BTreeSet<String>,
    /// Process and number of each linked peer's last word.
    heard: BTreeMap<String, (u64, u64)>,
    next_ask: Option<Duration>,
    effects: Vec<Effect>,
}

impl Settling {
    /// The node `id` has this view now.
    pub fn install(&mut self, id: &str, snapshot: Arc<Snapshot>) {
        let before = self.newest.replace(Arc::clone(&snapshot));
        if self.id == id && before.is_some_and(|before| before.hash == snapshot.hash) {
            return;
        }
        id.clone_into(&mut self.id);
        self.number = snapshot.view.epoch;
        self.phase = Phase::Holding;
        self.agreed.clear();
        self.next_ask = None;
        // A hash names an assignment: one of each is enough.
        if self.chain.iter().all(|view| view.hash != snapshot.hash) {
            self.chain.push(snapshot);
        }
        if self.chain.len() > MAX_CHAIN {
            self.chain.drain(..MAX_CHAIN);
            self.based = false;
        }
    }

    /// Nothing is held here any more that another node owns under the view of this epoch.
    pub fn released(&mut self, now: Duration, epoch: u64) -> Vec<Effect> {
        let newest = self.newest.as_ref().map(|newest| newest.view.epoch);
        if newest == Some(epoch) && self.phase == Phase::Holding {
            self.phase = Phase::Waiting;
            self.next_ask = Some(now + ASK);
            for peer in self.linked.clone() {
                self.tell(peer, false);
            }
            self.settle();
        }
        self.take()
    }

    /// A link to a peer is up.
    pub fn met(&mut self, peer: &str) -> Vec<Effect> {
        self.linked.insert(peer.to_owned());
        if self.phase != Phase::Holding {
            self.tell(peer.to_owned(), self.phase == Phase::Waiting);
        }
        self.take()
    }

    /// The last link to a peer is lost.
    pub fn lost(&mut self, peer: &str) {
        self.linked.remove(peer);
        self.heard.remove(peer);
    }

    /// A peer's word.
    pub fn hear(&mut self, from: &str, word: &Word) -> Vec<Effect> {
        let heard = self.heard.get(from).copied();
        let late = heard.is_some_and(|(incarnation, number)| {
            incarnation == word.incarnation && number > word.number
        });
        if late || !self.linked.contains(from) {
            return Vec::new();
        }
        let said = (word.incarnation, word.number);
        self.heard.insert(from.to_owned(), said);
        let Some(newest) = self.newest.clone().filter(|view| view.hash == word.hash) else {
            return Vec::new();
        };
        let member = newest.view.members.get(from);
        let speaks = member.is_some_and(|member| member.incarnation == word.incarnation);
        if speaks && word.echo == Some((self.incarnation(), self.number)) {
            self.agreed.insert(from.to_owned());
        }
        if self.phase != Phase::Holding && (word.asks || heard != Some(said)) {
            self.tell(from.to_owned(), false);
        }
        self.settle();
        self.take()
    }

    /// Time has passed; due at [`Settling::deadline`].
    pub fn tick(&mut self, now: Duration) -> Vec<Effect> {
        if self.next_ask.is_some_and(|at| at <= now) {
            self.next_ask = Some(now + ASK);
            let missing: Vec<String> = self.missing().map(|member| member.id.clone()).collect();
            for peer in missing {
                if self.linked.contains(&peer) {
                    self.tell(peer, true);
                }
            }
        }
        self.take()
    }

    /// When [`Settling::tick`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.next_ask
    }

    /// What this node may serve: without a lease there is no end to it.
    #[must_use]
    pub fn right(&self) -> Right {
        Right {
            until: Duration::MAX,
            views: Some(self.chain.clone()),
            settled: self.based,
        }
    }

    /// Whether the newest view is settled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Settled
    }

    fn incarnation(&self) -> u64 {
        let newest = self.newest.as_ref();
        let own = newest.and_then(|newest| newest.view.members.get(&self.id));
        own.map_or(0, |own| own.incarnation)
    }

    /// The other members that have spoken, and whose word does not count yet.
    fn missing(&self) -> impl Iterator<Item = &Member> {
        let members = self.newest.iter().flat_map(|it| it.view.members.values());
        members.filter(|member| {
            member.incarnation != 0 && member.id != self.id && !self.agreed.contains(&member.id)
        })
    }

    fn settle(&mut self) {
        if self.phase != Phase::Waiting || self.missing().next().is_some() {
            return;
        }
        self.phase = Phase::Settled;
        self.next_ask = None;
        self.chain = self.newest.iter().cloned().collect();
        self.based = true;
        self.effects.push(Effect::Settled);
    }

    fn tell(&mut self, to: String, asks: bool) {
        let Some(newest) = &self.newest else { return };
        let word = Word {
            incarnation: self.incarnation(),
            number: self.number,
            hash: newest.hash,
            echo: self.heard.get(&to).copied(),
            asks,
        };
        self.effects.push(Effect::Tell { to, word });
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::view::{MemberState, View};

    const NOW: Duration = Duration::ZERO;

    /// A view of these (id, incarnation), in which `doc` is pinned to one of them.
    fn view(epoch: u64, members: &[(&str, u64)], pin: Option<&str>) -> Arc<Snapshot> {
        let members = members.iter().map(|&(id, incarnation)| {
            let member = Member {
                id: id.into(),
                incarnation,
                address: "127.0.0.1".into(),
                port: 1,
                link_port: None,
                weight: 1.0,
                state: MemberState::Active,
            };
            (id.to_owned(), member)
        });
        let view = View {
            epoch,
            members: members.collect(),
            pins: pin
                .map(|node| ("doc".to_owned(), node.to_owned()))
                .into_iter()
                .collect(),
        };
        Arc::new(Snapshot::new(view, 8))
    }

    const BOTH: &[(&str, u64)] = &[("a", 1), ("b", 2)];

    /// Two linked nodes, and what is on its way between them.
    struct Pair {
        nodes: [Settling; 2],
        wire: Vec<(usize, Word)>,
        cut: bool,
    }

    impl Pair {
        fn new() -> Self {
            let mut pair = Self {
                nodes: Default::default(),
                wire: Vec::new(),
                cut: false,
            };
            for (at, peer) in [(0, "b"), (1, "a")] {
                let effects = pair.nodes[at].met(peer);
                pair.take(at, effects);
            }
            pair
        }

        fn take(&mut self, at: usize, effects: Vec<Effect>) {
            for effect in effects {
                if let Effect::Tell { to, word } = effect
                    && !self.cut
                {
                    assert_eq!(to, ["b", "a"][at]);
                    self.wire.push((1 - at, word));
                }
            }
        }

        fn install(&mut self, at: usize, snapshot: Arc<Snapshot>) {
            self.nodes[at].install(["a", "b"][at], snapshot);
        }

        fn release(&mut self, at: usize, epoch: u64) {
            let effects = self.nodes[at].released(NOW, epoch);
            self.take(at, effects);
        }

        fn carry(&mut self) {
            while !self.wire.is_empty() {
                let (to, word) = self.wire.remove(0);
                let effects = self.nodes[to].hear(["b", "a"][to], &word);
                self.take(to, effects);
            }
        }

        fn settled(&self) -> [bool; 2] {
            [0, 1].map(|at| self.nodes[at].is_settled())
        }

        fn serves(&self) -> [bool; 2] {
            [(0, "a"), (1, "b")].map(|(at, id)| self.nodes[at].right().entitles(id, b"doc"))
        }

        /// Both at one settled view, with `doc` at a.
        fn at_a() -> Self {
            let mut pair = Self::new();
            for at in [0, 1] {
                pair.install(at, view(1, BOTH, Some("a")));
                pair.release(at, 1);
            }
            pair.carry();
            assert_eq!((pair.settled(), pair.serves()), ([true; 2], [true, false]));
            pair
        }
    }

    #[test]
    fn alone_a_view_is_settled_once_it_is_released_and_who_never_spoke_is_not_waited_for() {
        let mut node = Settling::default();
        assert!(!node.right().entitles("a", b"doc"));
        node.install("a", view(1, &[("a", 1), ("b", 0)], Some("a")));
        assert!(!node.right().entitles("a", b"doc"), "holding");
        assert_eq!(node.released(NOW, 2), [], "another view");
        assert_eq!(node.released(NOW, 1), [Effect::Settled]);
        assert!(node.right().entitles("a", b"doc"));
        assert!(node.right().serves(Duration::MAX - Duration::from_nanos(1)));
        assert_eq!(node.deadline(), None);
    }

    #[test]
    fn a_document_moves_after_the_one_let_go_of_it_and_before_the_other_serves_it() {
        let mut pair = Pair::at_a();
        pair.install(0, view(2, BOTH, Some("b")));
        assert_eq!(pair.serves(), [false, false]);
        pair.install(1, view(2, BOTH, Some("b")));
        pair.release(1, 2);
        pair.carry();
        assert_eq!((pair.settled(), pair.serves()), ([false; 2], [false; 2]));
        pair.release(0, 2);
        pair.carry();
        assert_eq!((pair.settled(), pair.serves()), ([true; 2], [false, true]));
    }

    #[test]
    fn what_was_said_of_a_view_counts_no_more_when_the_view_comes_back() {
        let mut pair = Pair::at_a();
        // b gains it, and the word about the view between is lost.
        for at in [0, 1] {
            pair.install(at, view(2, BOTH, Some("b")));
            pair.release(at, 2);
        }
        pair.carry();
        assert_eq!(pair.serves(), [false, true]);
        pair.cut = true;
        pair.install(0, view(3, BOTH, Some("a")));
        pair.release(0, 3);
        assert_eq!(pair.serves(), [false, true], "b has not heard of it yet");
        pair.cut = false;
        pair.install(1, view(3, BOTH, Some("a")));
        assert_eq!(pair.serves(), [false, false], "b still holds it");
        pair.release(1, 3);
        pair.carry();
        let effects = pair.nodes[0].tick(ASK);
        pair.take(0, effects);
        pair.carry();
        assert_eq!((pair.settled(), pair.serves()), ([true; 2], [true, false]));
    }

    #[test]
    fn kept_in_every_view_since_the_settled_one_it_is_served_on() {
        let mut pair = Pair::at_a();
        pair.install(0, view(2, &[("a", 1), ("b", 2), ("c", 3)], Some("a")));
        assert_eq!(pair.serves(), [true, false]);
        assert!(!pair.nodes[0].is_settled());
        pair.install(0, view(3, BOTH, Some("b")));
        pair.install(0, view(4, BOTH, Some("a")));
        assert_eq!(pair.serves(), [false, false], "it was another's between");
        for epoch in 5..80 {
            pair.install(0, view(epoch, &[("a", 1), ("b", epoch)], Some("a")));
        }
        assert!(pair.nodes[0].right().views.unwrap().len() <= MAX_CHAIN);
        assert!(!pair.nodes[0].right().settled);
    }

    #[test]
    fn a_lost_word_is_asked_for() {
        let mut pair = Pair::new();
        for at in [0, 1] {
            pair.install(at, view(1, BOTH, None));
        }
        pair.cut = true;
        pair.release(0, 1);
        pair.release(1, 1);
        pair.cut = false;
        assert_eq!(pair.nodes[0].deadline(), Some(ASK));
        assert_eq!(pair.nodes[0].tick(ASK / 2), []);
        let effects = pair.nodes[0].tick(ASK);
        pair.take(0, effects);
        pair.carry();
        assert_eq!(pair.settled(), [true; 2]);
        assert_eq!(pair.nodes[0].deadline(), None);
    }

    #[test]
    fn a_view_of_the_same_hash_changes_nothing() {
        let mut pair = Pair::at_a();
        pair.install(0, view(7, BOTH, Some("a")));
        assert!(pair.nodes[0].is_settled());
        let mut node = Settling::default();
        node.install("a", view(1, &[("a", 1)], None));
        node.install("a", view(2, &[("a", 1)], None));
        assert_eq!(node.released(NOW, 1), [], "JavaScript has not taken it");
        assert_eq!(node.released(NOW, 2), [Effect::Settled]);
    }

    #[test]
    fn the_word_of_another_process_or_of_a_stranger_counts_for_nothing() {
        let mut node = Settling::default();
        node.met("b");
        node.install("a", view(1, BOTH, None));
        node.released(NOW, 1);
        let hash = node.newest.as_ref().unwrap().hash;
        let word = |incarnation, echo| Word {
            incarnation,
            number: 9,
            hash,
            echo: Some(echo),
            asks: false,
        };
        node.hear("b", &word(3, (1, 1)));
        node.hear("b", &word(2, (8, 1)));
        node.hear("b", &word(2, (1, 0)));
        node.hear("c", &word(2, (1, 1)));
        assert!(!node.is_settled());
        // Overtaken by what the same process said later.
        let late = Word {
            number: 8,
            ..word(2, (1, 1))
        };
        assert_eq!(node.hear("b", &late), []);
        assert_eq!(node.hear("b", &word(2, (1, 1))), [Effect::Settled]);
    }
}
