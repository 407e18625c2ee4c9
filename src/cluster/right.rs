//! What this node may serve at a moment: asked by JavaScript before each batch of frames and each
//! store, of a snapshot that the coordinator publishes. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::view::Snapshot;

/// A node's right to serve, as far as is known now.
#[derive(Debug, Clone, Default)]
pub struct Right {
    /// Nothing is served from this time on, on the core's clock, unless a later right says so. It is
    /// compared at the moment of serving: a process that was paused finds it passed.
    pub until: Duration,
    /// A document is this node's if it is in each of these: the view that settled last and all since.
    /// `None` where no earlier owner has to let go of anything first.
    pub views: Option<Vec<Arc<Snapshot>>>,
    /// The first of `views` is settled.
    pub settled: bool,
}

impl Right {
    /// Serves what the view gives it, for as long as the process lives: membership without leases.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            until: Duration::MAX,
            views: None,
            settled: true,
        }
    }

    /// Whether anything may be served at `now`.
    #[must_use]
    pub fn serves(&self, now: Duration) -> bool {
        now < self.until
    }

    /// Whether `id` may serve a document that the newest view gives it.
    #[must_use]
    pub fn entitles(&self, id: &str, document: &[u8]) -> bool {
        let Some(views) = &self.views else {
            return true;
        };
        self.settled && owned_in_all(views, id, document)
    }

    /// Whether the newest view itself is settled: nobody holds what it gives to another node.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.views
            .as_ref()
            .is_none_or(|views| self.settled && views.len() == 1)
    }
}

/// Whether each of these views gives a document to `id`.
#[must_use]
pub fn owned_in_all(views: &[Arc<Snapshot>], id: &str, document: &[u8]) -> bool {
    views.iter().all(|snapshot| {
        let owner = snapshot.owner(document);
        owner.is_some_and(|owner| snapshot.active[owner as usize].id == id)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster::view::{Member, MemberState, View};

    fn view(ids: &[&str]) -> Arc<Snapshot> {
        let members = ids.iter().map(|id| {
            let member = Member {
                id: (*id).into(),
                incarnation: 1,
                address: "127.0.0.1".into(),
                port: 1,
                link_port: None,
                weight: 1.0,
                state: MemberState::Active,
            };
            ((*id).to_owned(), member)
        });
        let (members, pins) = (members.collect(), BTreeMap::new());
        let epoch = 1;
        Arc::new(Snapshot::new(
            View {
                epoch,
                members,
                pins,
            },
            150,
        ))
    }

    #[test]
    fn a_right_ends_at_its_time_and_not_before() {
        let right = Right {
            until: Duration::from_secs(1),
            ..Right::unlimited()
        };
        assert!(right.serves(Duration::from_millis(999)));
        assert!(!right.serves(Duration::from_secs(1)));
        assert!(!Right::default().serves(Duration::ZERO));
        assert!(Right::unlimited().serves(Duration::from_secs(1 << 40)));
    }

    #[test]
    fn a_document_must_be_owned_in_every_view_since_the_settled_one() {
        let (before, after) = (view(&["a", "b"]), view(&["a", "b", "c"]));
        let names: Vec<String> = (0..200).map(|n| format!("doc-{n}")).collect();
        let owned = |snapshot: &Snapshot, name: &str, id: &str| {
            snapshot.active[snapshot.owner(name.as_bytes()).unwrap() as usize].id == id
        };
        let mut right = Right {
            until: Duration::MAX,
            views: Some(vec![Arc::clone(&before), Arc::clone(&after)]),
            settled: true,
        };
        for name in &names {
            // A newcomer gains everything it has, so it serves nothing yet.
            assert!(!right.entitles("c", name.as_bytes()));
            let kept = owned(&before, name, "a") && owned(&after, name, "a");
            assert_eq!(right.entitles("a", name.as_bytes()), kept);
        }
        assert!(!right.is_settled());
        right.views = Some(vec![Arc::clone(&after)]);
        assert!(right.is_settled());
        for name in &names {
            assert_eq!(
                right.entitles("c", name.as_bytes()),
                owned(&after, name, "c")
            );
        }
        right.settled = false;
        assert!(!right.is_settled());
        assert!(
            !names
                .iter()
                .any(|name| right.entitles("a", name.as_bytes()))
        );
        assert!(Right::unlimited().entitles("a", b"doc"));
        assert!(Right::unlimited().is_settled());
    }
}
