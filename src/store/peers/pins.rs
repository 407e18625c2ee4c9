//! Pins: explicit placements, one last-writer-wins register per document, as the facts are.

use std::collections::BTreeMap;
use std::time::Duration;

use rand10::RngExt;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::identity::check_name;
use super::lists::fits;
use super::{FILL, FORGET, Peers, tag};
use crate::store::model::PINS;

/// The register of one document. The highest (version, by) wins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Pin {
    document: String,
    version: u64,
    by: String,
    /// Milliseconds until a removal is forgotten.
    left_for: u64,
    /// `None`: the pin was removed.
    node: Option<String>,
}

impl Pin {
    fn stamp(&self) -> (u64, &str) {
        (self.version, &self.by)
    }

    /// Equal at no two registers: of too many, every node drops the same.
    fn age(&self) -> (u64, &str, &str) {
        (self.version, &self.by, &self.document)
    }

    fn sound(&self) -> bool {
        check_name(&self.document).is_ok()
            && check_name(&self.by).is_ok()
            && self.node.as_deref().is_none_or(|id| check_name(id).is_ok())
    }

    fn cost(&self) -> usize {
        self.document.len() + self.by.len() + self.node.as_ref().map_or(0, String::len) + 64
    }

    fn hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        for text in [&self.document, &self.by] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&self.version.to_le_bytes());
        hasher.digest()
    }
}

/// Part of one node's registers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Pinned {
    /// The receiver's are asked for in return.
    reply: bool,
    pins: Vec<Pin>,
}

/// All registers: at most [`PINS`] pins, and as many removals. What is older than that many goes.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// With the time at which a removal is forgotten.
    held: BTreeMap<String, (Pin, Duration)>,
    /// Document to node.
    placed: BTreeMap<String, String>,
    /// Sum of the registers' hashes: whether two nodes have the same is asked all the time.
    digest: u64,
}

impl Pins {
    pub(super) fn placed(&self) -> &BTreeMap<String, String> {
        &self.placed
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    /// Takes a register if it is newer than what is here. Whether it was, and whether another had to go.
    fn take(&mut self, now: Duration, pin: Pin) -> (bool, bool) {
        let held = self.held.get(&pin.document);
        if held.is_some_and(|(held, _)| held.stamp() >= pin.stamp()) {
            return (false, false);
        }
        let pinned = pin.node.is_some();
        let grows = held.is_none_or(|(held, _)| held.node.is_some() != pinned);
        let removals = self.held.len() - self.placed.len();
        let of_kind = if pinned { self.placed.len() } else { removals };
        let full = grows && of_kind >= PINS;
        if full {
            let of_kind = self.held.values().map(|(held, _)| held);
            let of_kind = of_kind.filter(|held| held.node.is_some() == pinned);
            let oldest = of_kind.min_by_key(|held| held.age());
            let oldest = oldest.filter(|oldest| oldest.age() < pin.age());
            let Some(document) = oldest.map(|oldest| oldest.document.clone()) else {
                return (false, true);
            };
            self.remove(&document);
        }
        self.remove(&pin.document);
        self.digest = self.digest.wrapping_add(pin.hash());
        if let Some(node) = &pin.node {
            self.placed.insert(pin.document.clone(), node.clone());
        }
        let expires = now + Duration::from_millis(pin.left_for).min(FORGET);
        self.held.insert(pin.document.clone(), (pin, expires));
        (true, full)
    }

    fn remove(&mut self, document: &str) {
        if let Some((pin, _)) = self.held.remove(document) {
            self.digest = self.digest.wrapping_sub(pin.hash());
            self.placed.remove(document);
        }
    }

    pub(super) fn expire(&mut self, now: Duration) {
        let over = |(pin, expires): &(Pin, Duration)| pin.node.is_none() && *expires <= now;
        let gone = self.held.iter().filter(|(_, held)| over(held));
        let gone: Vec<String> = gone.map(|(document, _)| document.clone()).collect();
        for document in gone {
            self.remove(&document);
        }
    }
}

impl Peers {
    /// This node pins a document, or removes its pin.
    pub(super) fn state_pin(&mut self, now: Duration, document: String, node: Option<String>) {
        let placed = self.pins.placed();
        if placed.get(&document) == node.as_ref() {
            return;
        }
        if node.is_some() && placed.len() >= PINS && !placed.contains_key(&document) {
            let message = format!("{PINS} documents are pinned: {document} is not");
            self.log("warn", "pins".into(), message);
            return;
        }
        let pin = Pin {
            document,
            version: self.clock.saturating_add(1),
            by: self.own.id.clone(),
            left_for: FORGET.as_millis() as u64,
            node,
        };
        self.learn_pins(now, vec![pin], None);
    }

    pub(super) fn learn_pins(&mut self, now: Duration, pins: Vec<Pin>, from: Option<&str>) {
        let mut news = Vec::new();
        let mut full = false;
        for pin in pins {
            if !pin.sound() || (pin.node.is_none() && pin.left_for == 0) {
                continue;
            }
            self.clock = self.clock.max(pin.version);
            let (newer, at_bound) = self.pins.take(now, pin.clone());
            full |= at_bound && pin.node.is_some();
            if newer {
                news.push(pin);
            }
        }
        if full {
            // Two parts of a cluster had so many of their own.
            let message =
                format!("more than {PINS} documents are pinned: the oldest pins are dropped");
            self.log("warn", "pins".into(), message);
        }
        if news.is_empty() {
            return;
        }
        self.pinned = true;
        self.dirty = true;
        // Those that were cut off hear of it by the digest.
        for peer in self.linked.clone() {
            if Some(peer.as_str()) != from {
                self.send_some_pins(&peer, news.clone(), false);
            }
        }
    }

    pub(super) fn send_pins_digest(&mut self, to: &str) {
        if self.pins.held.is_empty() {
            return;
        }
        let mut bytes = vec![tag::PINS_DIGEST];
        bytes.extend_from_slice(&self.pins.digest().to_be_bytes());
        self.send(to.to_owned(), bytes);
    }

    pub(super) fn merge_pins(&mut self, now: Duration, pinned: Pinned, from: &str) {
        self.learn_pins(now, pinned.pins, Some(from));
        if pinned.reply {
            self.send_pins(now, from, false);
        }
    }

    /// Sends all registers. What a link has no room for is sent next time, so each time another comes
    /// first.
    pub(super) fn send_pins(&mut self, now: Duration, to: &str, reply: bool) {
        let outgoing = |(pin, expires): &(Pin, Duration)| Pin {
            left_for: expires.saturating_sub(now).as_millis() as u64,
            ..pin.clone()
        };
        let mut pins: Vec<Pin> = self.pins.held.values().map(outgoing).collect();
        if !pins.is_empty() {
            let first = self.rng.random_range(0..pins.len());
            pins.rotate_left(first);
        }
        self.send_some_pins(to, pins, reply);
    }

    fn send_some_pins(&mut self, to: &str, pins: Vec<Pin>, reply: bool) {
        let mut pins = pins.into_iter().peekable();
        loop {
            let mut room = FILL;
            let mut part = Vec::new();
            while let Some(pin) = pins.next_if(|pin| fits(&mut room, pin.cost())) {
                part.push(pin);
            }
            let last = pins.peek().is_none();
            let pinned = Pinned {
                reply: reply && last,
                pins: part,
            };
            let mut bytes = vec![tag::PINS];
            bytes.extend(postcard::to_allocvec(&pinned).expect("plain data always serialises"));
            self.send(to.to_owned(), bytes);
            if last {
                return;
            }
        }
    }
}
