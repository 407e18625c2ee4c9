//! How patient the membership protocol is.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::PeriodicParams;

use super::{FILL, FORGET};

/// How patient the protocol is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Time between two probes by one node.
    pub probe_period: Duration,
    /// A direct answer is due by then; after it others are asked to probe.
    pub probe_rtt: Duration,
    /// Time a suspected node has to refute.
    pub suspicion: Duration,
    /// Time between two rounds of piggybacked news, if there are any.
    pub gossip: Duration,
    /// Time between two comparisons with a random peer.
    pub sync: Duration,
    /// Longest wait of a starting node for its seeds.
    pub join: Duration,
    /// A configured node that never spoke counts as a member for so long after this node's start.
    pub grace: Duration,
    /// Longest time a removed node may take to hand over.
    pub drain: Duration,
}

impl Timings {
    /// From the documented options of `healthCheck`, so that raising them calms eviction; `suspicion`
    /// is `timeout · retries`. A process that is gone, so that its address refuses, is out after
    /// that and the time the news takes; one that fell silent after [`Timings::eviction`].
    #[must_use]
    pub fn derive(interval: Duration, suspicion: Duration, drain: Duration) -> Self {
        // A suspicion costs nothing and is refuted by the first answer; patience is in `suspicion`.
        let probe_period = (interval / 2).max(Duration::from_millis(20));
        Self {
            probe_period,
            probe_rtt: probe_period / 2,
            suspicion,
            gossip: (probe_period / 5).clamp(Duration::from_millis(10), Duration::from_millis(200)),
            sync: probe_period.clamp(Duration::from_millis(50), Duration::from_secs(1)),
            join: suspicion,
            grace: interval + suspicion,
            drain,
        }
    }

    /// Time until every linked node has dropped one that fell silent: with the defaults 26 s. Probes
    /// are random, so this is no hard bound: it is exceeded where nobody probed the node for five
    /// periods, with a probability of e⁻⁵ (SWIM, section 3.3), the round robin of each node (section
    /// 4.3) not counted.
    #[must_use]
    pub fn eviction(&self) -> Duration {
        self.probe_period * 6 + self.suspicion + self.sync * 2
    }

    pub(super) fn config(&self) -> foca::Config {
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: NonZeroUsize::new(3).expect("not 0"),
            max_transmissions: NonZeroU8::new(10).expect("not 0"),
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(FORGET),
            max_packet_size: NonZeroUsize::new(FILL).expect("not 0"),
            notify_down_members: true,
            // Comparing digests does what these two would.
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(PeriodicParams {
                frequency: self.gossip,
                num_members: NonZeroUsize::new(3).expect("not 0"),
            }),
        }
    }
}
