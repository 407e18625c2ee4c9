//! Which views are settled without Redis, as the coordinator runs it: `cluster::settled` over the
//! links, and what JavaScript is told of it.

use std::sync::Arc;

use super::Coordinator;
use crate::cluster::right::Right;
use crate::cluster::settled::{Effect, Word};
use crate::cluster::view::Snapshot;
use crate::inbox::right;

/// First byte of a [`Word`]; those of `store::peers` and of leases are others.
pub const TAG: u8 = 0x20;

impl Coordinator {
    /// A new view: what may be served of it; nothing where this node was put out.
    pub(super) fn install(&mut self, snapshot: Arc<Snapshot>, expelled: bool) {
        if !self.core.settings.enforce_routing {
            self.core.right.store(Arc::new(Right::unlimited()));
            return;
        }
        let id = self.core.identity.load().node.id.clone();
        self.settling.install(&id, snapshot);
        if expelled {
            return;
        }
        self.core.right.store(Arc::new(self.settling.right()));
    }

    pub(super) fn perform_settling(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Tell { to, word } => self.say(&to, TAG, &word),
                // Of a node that was put out nothing is served again.
                Effect::Settled if !self.core.serves() => {}
                Effect::Settled => {
                    // Before JavaScript is told of it.
                    self.core.right.store(Arc::new(self.settling.right()));
                    self.tell_right(right::SERVES, "");
                }
            }
        }
    }

    /// What a peer says.
    pub(super) fn word(&mut self, from: &str, json: &[u8]) {
        if let Ok(word) = serde_json::from_slice::<Word>(json) {
            let effects = self.settling.hear(from, &word);
            self.perform_settling(effects);
        }
    }
}
