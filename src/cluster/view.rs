//! The view: the member list every node computes owners from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::ring::{Ring, RingMember};

/// Where a member stands. Only `Active` members have points on the ring.
///
/// | from      | event                    | to        |
/// |-----------|--------------------------|-----------|
/// | –         | join                     | `Joining` |
/// | `Joining` | admitted                 | `Active`  |
/// | `Active`  | drain                    | `Leaving` |
/// | any       | leave, lapse or eviction | –         |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Known, not yet an owner.
    Joining,
    /// May own documents.
    Active,
    /// Hands its documents over; owns nothing new, still speaks.
    Leaving,
}

/// One node as a view describes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Unique id of the node in its cluster.
    pub id: String,
    /// Changes at every start of the node's process; 0 while it has not announced itself.
    pub incarnation: u64,
    /// Host name or IP address that peers and users reach the node at.
    pub address: String,
    /// Advertised port of its Hocuspocus server.
    pub port: u16,
    /// Port of its link listener, where links do not share `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_port: Option<u16>,
    /// Share of the documents relative to the other members.
    pub weight: f64,
    /// Whether the node may own documents.
    pub state: MemberState,
}

impl Member {
    /// The port links are opened at.
    #[must_use]
    pub fn link_port(&self) -> u16 {
        self.link_port.unwrap_or(self.port)
    }
}

/// The agreed member list and pins, numbered by an epoch that only grows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct View {
    /// Number of the view at this node.
    pub epoch: u64,
    /// Members by id.
    pub members: BTreeMap<String, Member>,
    /// Explicit placements: document name to node id.
    pub pins: BTreeMap<String, String>,
}

impl View {
    /// Names the view by what decides ownership: (id, incarnation, state, weight) of every member,
    /// and the pins. Two nodes with equal hashes compute equal owners.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hasher = Xxh3::new();
        // Every text is preceded by its length, so that no two lists have the same bytes.
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for member in self.members.values() {
            text(&member.id);
            text(&format!(
                "{}/{:?}/{}",
                member.incarnation, member.state, member.weight
            ));
        }
        text("pins");
        for (document, node) in &self.pins {
            text(document);
            text(node);
        }
        hasher.digest()
    }
}

/// A view with the ring computed from it: what everyone but the coordinator reads, swapped whole.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The view.
    pub view: View,
    /// [`View::hash`] of it.
    pub hash: u64,
    /// Active members by id; the ring's owners are indices into this list.
    pub active: Vec<Member>,
    ring: Ring,
}

impl Snapshot {
    /// Computes the ring of a view.
    #[must_use]
    pub fn new(view: View, virtual_nodes: u32) -> Self {
        let active: Vec<Member> = view
            .members
            .values()
            .filter(|member| member.state == MemberState::Active)
            .cloned()
            .collect();
        let ring_members: Vec<_> = active
            .iter()
            .map(|member| RingMember {
                id: &member.id,
                weight: member.weight,
            })
            .collect();
        let ring = Ring::new(&ring_members, virtual_nodes);
        Self {
            hash: view.hash(),
            view,
            active,
            ring,
        }
    }

    /// Index in [`Snapshot::active`] of the member that owns a document: its pin where the pinned
    /// node is active, otherwise the ring's answer. `None` without an active member.
    #[must_use]
    pub fn owner(&self, name: &[u8]) -> Option<u32> {
        self.pinned(name).or_else(|| self.ring.owner(name))
    }

    fn pinned(&self, name: &[u8]) -> Option<u32> {
        if self.view.pins.is_empty() {
            return None;
        }
        let node = self.view.pins.get(std::str::from_utf8(name).ok()?)?;
        let at = self.active.binary_search_by(|member| member.id.cmp(node));
        at.ok().map(|index| index as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, state: MemberState) -> Member {
        Member {
            id: id.into(),
            incarnation: 1,
            address: "127.0.0.1".into(),
            port: 80,
            link_port: None,
            weight: 1.0,
            state,
        }
    }

    fn view(members: &[Member]) -> View {
        let members = members.iter().map(|m| (m.id.clone(), m.clone()));
        View {
            epoch: 1,
            members: members.collect(),
            pins: BTreeMap::new(),
        }
    }

    #[test]
    fn only_active_members_own() {
        let snapshot = Snapshot::new(
            view(&[
                member("a", MemberState::Joining),
                member("b", MemberState::Active),
                member("c", MemberState::Leaving),
            ]),
            150,
        );
        for n in 0..100 {
            let owner = snapshot.owner(format!("doc-{n}").as_bytes()).unwrap();
            assert_eq!(snapshot.active[owner as usize].id, "b");
        }
    }

    #[test]
    fn a_pin_wins_while_its_target_is_active() {
        let mut pinned = view(&[
            member("a", MemberState::Active),
            member("b", MemberState::Active),
        ]);
        pinned.pins.insert("doc".into(), "b".into());
        pinned.pins.insert("gone".into(), "z".into());
        let plain = Snapshot::new(view(&[member("a", MemberState::Active)]), 150);
        let snapshot = Snapshot::new(pinned, 150);
        assert_eq!(snapshot.owner(b"doc"), Some(1));
        assert!(snapshot.owner(b"gone").is_some());
        assert_ne!(snapshot.hash, plain.hash);
    }

    #[test]
    fn the_hash_ignores_addresses_and_epochs_and_sees_the_rest() {
        let base = view(&[member("a", MemberState::Active)]);
        let mut moved = base.clone();
        moved.epoch = 9;
        moved.members.get_mut("a").unwrap().address = "10.0.0.1".into();
        assert_eq!(base.hash(), moved.hash());
        for change in [
            |m: &mut Member| m.weight = 2.0,
            |m: &mut Member| m.incarnation = 2,
            |m: &mut Member| m.state = MemberState::Leaving,
        ] {
            let mut other = base.clone();
            change(other.members.get_mut("a").unwrap());
            assert_ne!(base.hash(), other.hash());
        }
    }
}
