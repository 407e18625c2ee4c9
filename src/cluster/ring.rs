//! The consistent-hash ring: which member owns a document name.
//!
//! Source of the algorithm: Karger et al., "Consistent Hashing and Random Trees" (STOC 1997), with
//! virtual nodes as in libketama. The hash is XXH3-64.
//!
//! Placement is part of the product's contract: changing anything here moves documents between
//! releases, and `tests/golden_ring.rs` says so.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// One member as the ring sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RingMember<'a> {
    /// Node id; ties between equal points go to the smaller id (byte order).
    pub id: &'a str,
    /// Share of the documents relative to the other members. Finite and above 0.
    pub weight: f64,
}

/// An immutable ring. Owners are answered as indices into the member list it was built from,
/// sorted by id, so that a look-up allocates nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    /// Point hashes, ascending. Kept apart from `owners` so that a search touches only hashes.
    hashes: Box<[u64]>,
    owners: Box<[u32]>,
}

/// Number of points of a member: `virtual_nodes × weight`, rounded, at least one.
#[must_use]
pub fn points_of(weight: f64, virtual_nodes: u32) -> u32 {
    // A weight is validated long before; the clamp only keeps a wrong one from exhausting memory.
    (f64::from(virtual_nodes) * weight)
        .round()
        .clamp(1.0, 10_000_000.0) as u32
}

impl Ring {
    /// Builds the ring. `members` must be sorted by id and hold each id once; the indices that
    /// [`Ring::owner`] answers are positions in it.
    #[must_use]
    pub fn new(members: &[RingMember<'_>], virtual_nodes: u32) -> Self {
        debug_assert!(members.is_sorted_by(|a, b| a.id < b.id));
        let mut points: Vec<(u64, u32)> = Vec::new();
        for (index, member) in members.iter().enumerate() {
            // Seeds start at 1: seed 0 is the document names' hash.
            let seeds = 1..=u64::from(points_of(member.weight, virtual_nodes));
            points.extend(
                seeds.map(|seed| (xxh3_64_with_seed(member.id.as_bytes(), seed), index as u32)),
            );
        }
        Self::from_points(points)
    }

    fn from_points(mut points: Vec<(u64, u32)>) -> Self {
        // Members are sorted by id, so the index breaks ties by id.
        points.sort_unstable();
        points.dedup_by_key(|(hash, _)| *hash);
        let (hashes, owners): (Vec<u64>, Vec<u32>) = points.into_iter().unzip();
        Self {
            hashes: hashes.into(),
            owners: owners.into(),
        }
    }

    /// Index of the member that owns `name` (its UTF-8 bytes), or `None` on a ring without members.
    #[must_use]
    pub fn owner(&self, name: &[u8]) -> Option<u32> {
        let key = xxh3_64(name);
        let at = self.hashes.partition_point(|hash| *hash < key);
        // Past the last point the ring closes.
        self.owners.get(at).or_else(|| self.owners.first()).copied()
    }

    /// Number of points on the ring.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether no member has a point.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(ids: &[&str]) -> Ring {
        let members: Vec<_> = ids
            .iter()
            .map(|id| RingMember { id, weight: 1.0 })
            .collect();
        Ring::new(&members, 150)
    }

    #[test]
    fn an_empty_ring_owns_nothing() {
        assert_eq!(Ring::default().owner(b"doc"), None);
        assert_eq!(ring(&[]).owner(b"doc"), None);
    }

    #[test]
    fn weights_become_points() {
        assert_eq!(points_of(1.0, 150), 150);
        assert_eq!(points_of(0.5, 150), 75);
        assert_eq!(points_of(2.25, 150), 338);
        assert_eq!(points_of(0.000_1, 150), 1);
    }

    #[test]
    fn odd_names_are_names() {
        let (ring, again) = (ring(&["a", "b", "c"]), ring(&["a", "b", "c"]));
        let long = vec![b'x'; 1 << 20];
        for name in [
            &b""[..],
            "caf\u{e9}".as_bytes(),
            "\u{1F600}".as_bytes(),
            &long,
        ] {
            assert_eq!(ring.owner(name), again.owner(name));
            assert!(ring.owner(name).is_some());
        }
    }

    #[test]
    fn equal_points_go_to_the_smaller_id() {
        let key = xxh3_64(b"doc");
        let ring = Ring::from_points(vec![(key, 1), (key, 0), (key.wrapping_add(1), 1)]);
        assert_eq!(ring.owner(b"doc"), Some(0));
        assert_eq!(ring.len(), 2);
    }
}
