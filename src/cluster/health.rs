//! What one node thinks of one peer, from the checks it made of it. Pure: verdicts in, transitions
//! and pauses out. One node's opinion moves no documents.

use std::time::Duration;

use rand::Rng;

/// Pauses are drawn from this much around their length, so that the nodes of a cluster that
/// started together do not check in step.
const JITTER: f64 = 0.1;

/// When to check, and what to make of failures. Defaults stand in `js/options.js`.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// From the start of one check to the start of the next one.
    pub interval: Duration,
    /// How long one check may take. It may be longer than `interval`: the next check then starts as
    /// soon as this one has ended.
    pub timeout: Duration,
    /// Failed checks in a row that make a peer down; 0 counts as 1.
    pub retries: u32,
    /// While a peer is down, each failed check multiplies the time to the next one by this.
    pub backoff_multiplier: f64,
    /// Longest time between two checks of a peer that is down. One below `interval` counts as
    /// `interval`: a peer that is down is never checked more often than a healthy one.
    pub max_backoff: Duration,
}

/// What one check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The peer answered as it should.
    Passed,
    /// It did not.
    Failed,
    /// Its JavaScript has stood still for too long, by its own word or that of its link.
    Stalled,
    /// Nothing: the check went wrong here, not there.
    Void,
}

/// Where a peer stands.
///
/// | from | verdict | to | change |
/// |---|---|---|---|
/// | `Unknown(n)`, `Failing(n)` | failed, `n + 1 < retries` | the same with `n + 1` | |
/// | `Unknown(n)`, `Failing(n)` | failed, `n + 1 = retries` | `Down(0)` | `Failed` |
/// | `Healthy` | failed, `retries > 1` | `Failing(1)` | |
/// | `Healthy` | failed, `retries = 1` | `Down(0)` | `Failed` |
/// | `Unknown(n)`, `Failing(n)`, `Healthy` | stalled | `Down(0)` | `Failed` |
/// | `Unknown(n)`, `Failing(n)`, `Healthy` | passed | `Healthy` | |
/// | `Down(n)` | failed, stalled | `Down(n + 1)` | |
/// | `Down(n)` | passed | `Healthy` | `Recovered` |
/// | any | void | the same | |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Never healthy so far; failed checks in a row.
    Unknown(u32),
    /// The last check passed.
    Healthy,
    /// Was healthy; failed checks in a row.
    Failing(u32),
    /// Failed too often; failed checks since then.
    Down(u32),
}

impl State {
    /// Its name in records to JavaScript.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown(_) => "unknown",
            Self::Healthy => "healthy",
            Self::Failing(_) => "failing",
            Self::Down(_) => "down",
        }
    }
}

/// A transition that is worth an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The peer is down from now on.
    Failed,
    /// The peer is up again.
    Recovered,
}

/// What follows from a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Whether the peer went down or came back.
    pub change: Option<Change>,
    /// When the next check starts.
    pub next: Duration,
}

/// The health of one peer.
#[derive(Debug)]
pub struct Health {
    policy: Policy,
    state: State,
}

impl Health {
    /// Nothing is known of the peer.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Unknown(0),
        }
    }

    /// Where the peer stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes the verdict of the check that ran from `began` to `now`. The caller starts the next
    /// one at [`Step::next`], which is never before `now`: checks of one peer do not overlap.
    pub fn checked(
        &mut self,
        verdict: Verdict,
        began: Duration,
        now: Duration,
        rng: &mut impl Rng,
    ) -> Step {
        let (state, change) = self.after(verdict);
        self.state = state;
        let pause = self
            .pause()
            .mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER));
        let next = began.saturating_add(pause).max(now);
        Step { change, next }
    }

    fn after(&self, verdict: Verdict) -> (State, Option<Change>) {
        use State::{Down, Failing, Healthy, Unknown};
        let down = (Down(0), Some(Change::Failed));
        let retries = self.policy.retries;
        match (self.state, verdict) {
            (state, Verdict::Void) => (state, None),
            (Unknown(_) | Failing(_) | Healthy, Verdict::Passed) => (Healthy, None),
            (Down(_), Verdict::Passed) => (Healthy, Some(Change::Recovered)),
            (Unknown(_) | Failing(_) | Healthy, Verdict::Stalled) => down,
            (Unknown(n), Verdict::Failed) if n + 1 < retries => (Unknown(n + 1), None),
            (Failing(n), Verdict::Failed) if n + 1 < retries => (Failing(n + 1), None),
            (Healthy, Verdict::Failed) if 1 < retries => (Failing(1), None),
            (Unknown(_) | Failing(_) | Healthy, Verdict::Failed) => down,
            (Down(n), Verdict::Failed | Verdict::Stalled) => (Down(n.saturating_add(1)), None),
        }
    }

    /// Time from the start of one check to the start of the next, before jitter.
    fn pause(&self) -> Duration {
        let Policy { interval, .. } = self.policy;
        let State::Down(failures) = self.state else {
            return interval;
        };
        let longest = self.policy.max_backoff.max(interval);
        // The check that found the peer down is the first one that lengthens the pause. In floating
        // point, where a long outage reaches infinity instead of overflowing.
        let exponent = i32::try_from(failures.saturating_add(1)).unwrap_or(i32::MAX);
        let grown = interval.as_secs_f64() * self.policy.backoff_multiplier.powi(exponent);
        if grown < longest.as_secs_f64() {
            Duration::from_secs_f64(grown)
        } else {
            longest
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use Change::{Failed, Recovered};
    use State::{Down, Failing, Healthy, Unknown};

    const SECOND: Duration = Duration::from_secs(1);

    /// The documented defaults.
    pub(crate) fn policy() -> Policy {
        Policy {
            interval: 5 * SECOND,
            timeout: 3 * SECOND,
            retries: 3,
            backoff_multiplier: 2.0,
            max_backoff: 30 * SECOND,
        }
    }

    /// The transition table, arrow by arrow, with the retries it needs.
    #[test]
    fn every_arrow() {
        let arrows = [
            (3, Unknown(0), Verdict::Failed, Unknown(1), None),
            (3, Unknown(1), Verdict::Failed, Unknown(2), None),
            (3, Unknown(2), Verdict::Failed, Down(0), Some(Failed)),
            (1, Unknown(0), Verdict::Failed, Down(0), Some(Failed)),
            (3, Unknown(1), Verdict::Passed, Healthy, None),
            (3, Unknown(0), Verdict::Stalled, Down(0), Some(Failed)),
            (3, Unknown(1), Verdict::Void, Unknown(1), None),
            (3, Healthy, Verdict::Passed, Healthy, None),
            (3, Healthy, Verdict::Failed, Failing(1), None),
            (1, Healthy, Verdict::Failed, Down(0), Some(Failed)),
            (3, Healthy, Verdict::Stalled, Down(0), Some(Failed)),
            (3, Healthy, Verdict::Void, Healthy, None),
            (3, Failing(1), Verdict::Failed, Failing(2), None),
            (3, Failing(2), Verdict::Failed, Down(0), Some(Failed)),
            (3, Failing(2), Verdict::Passed, Healthy, None),
            (3, Failing(1), Verdict::Stalled, Down(0), Some(Failed)),
            (3, Failing(1), Verdict::Void, Failing(1), None),
            (3, Down(0), Verdict::Failed, Down(1), None),
            (3, Down(4), Verdict::Stalled, Down(5), None),
            (3, Down(9), Verdict::Passed, Healthy, Some(Recovered)),
            (3, Down(9), Verdict::Void, Down(9), None),
            (3, Down(u32::MAX), Verdict::Failed, Down(u32::MAX), None),
        ];
        let mut rng = StdRng::seed_from_u64(1);
        for (retries, from, verdict, to, change) in arrows {
            let mut health = Health::new(Policy {
                retries,
                ..policy()
            });
            health.state = from;
            let step = health.checked(verdict, SECOND, 2 * SECOND, &mut rng);
            assert_eq!(
                (health.state(), step.change),
                (to, change),
                "{from:?} {verdict:?}"
            );
        }
    }

    /// Pauses after each of `verdicts`, as multiples of the interval that they stand for.
    fn pauses(policy: &Policy, seed: u64, verdicts: &[Verdict]) -> Vec<f64> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut health = Health::new(policy.clone());
        let next = verdicts.iter().map(|verdict| {
            let step = health.checked(*verdict, Duration::ZERO, Duration::ZERO, &mut rng);
            step.next.as_secs_f64()
        });
        next.collect()
    }

    #[test]
    fn pauses_grow_only_while_down_up_to_the_limit_and_jitter_by_a_tenth() {
        let verdicts: Vec<_> = [Verdict::Passed]
            .into_iter()
            .chain([Verdict::Failed; 8])
            .chain([Verdict::Passed])
            .collect();
        let base = [5.0, 5.0, 5.0, 10.0, 20.0, 30.0, 30.0, 30.0, 30.0, 5.0];
        let (mut shortest, mut longest) = (f64::MAX, 0.0_f64);
        for seed in 0..300 {
            for (pause, base) in pauses(&policy(), seed, &verdicts).into_iter().zip(base) {
                shortest = shortest.min(pause / base);
                longest = longest.max(pause / base);
            }
        }
        assert!((0.9..0.91).contains(&shortest), "{shortest}");
        assert!((1.09..1.1001).contains(&longest), "{longest}");
    }

    #[test]
    fn a_limit_below_the_interval_means_the_interval_and_nothing_overflows() {
        let short = Policy {
            max_backoff: SECOND,
            ..policy()
        };
        for pause in pauses(&short, 1, &[Verdict::Failed; 6]) {
            assert!((4.5..=5.5).contains(&pause), "{pause}");
        }
        let steep = Policy {
            backoff_multiplier: f64::MAX,
            ..policy()
        };
        for pause in pauses(&steep, 1, &[Verdict::Failed; 40]).split_off(2) {
            assert!((27.0..=33.0).contains(&pause), "{pause}");
        }
    }

    #[test]
    fn a_check_that_took_longer_than_the_interval_is_followed_at_once() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut health = Health::new(policy());
        let began = 100 * SECOND;
        let step = health.checked(Verdict::Failed, began, 120 * SECOND, &mut rng);
        assert_eq!(step.next, 120 * SECOND);
        let step = health.checked(Verdict::Failed, began, 101 * SECOND, &mut rng);
        assert!(step.next >= began + 9 * SECOND / 2 && step.next <= began + 11 * SECOND / 2);
    }
}
