//! Checks one peer again and again: what `cluster::health` decides and `probe` does, on tokio.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::health::{Change, Health, Policy, State, Verdict};
use crate::coordinator::authority;
use crate::handle::Core;
use crate::link::connection::{Link, split_tcp};
use crate::link::frame::Frame;
use crate::probe::{self, Alive, Failure, Target};

/// The first check starts within this share of the interval.
const SPREAD: f64 = 0.1;

/// What came of one check.
#[derive(Debug, Clone)]
pub struct Report {
    /// Where the peer stands from now on.
    pub state: State,
    /// Whether that is news.
    pub change: Option<Change>,
    /// The check itself.
    pub result: Result<Alive, Failure>,
    /// How long the check took.
    pub latency: Duration,
}

/// Checks a peer until it is dropped, one check at a time.
pub async fn keep_checking<F>(
    policy: Policy,
    mut rng: impl Rng,
    mut probe: impl FnMut() -> F,
    mut report: impl FnMut(Report),
) where
    F: Future<Output = Result<Alive, Failure>>,
{
    let started = Instant::now();
    sleep(policy.interval.mul_f64(rng.random_range(0.0..SPREAD))).await;
    let mut health = Health::new(policy);
    loop {
        let began = started.elapsed();
        let result = probe().await;
        let now = started.elapsed();
        let verdict = match &result {
            Ok(_) => Verdict::Passed,
            Err(failure) => failure.verdict(),
        };
        let step = health.checked(verdict, began, now, &mut rng);
        report(Report {
            state: health.state(),
            change: step.change,
            result,
            latency: now - began,
        });
        sleep_until(started + step.next).await;
    }
}

/// One check of a member at the port its links are opened at. `turned` is when the peer's JavaScript
/// was last known to turn, ms on the core's clock; 0 while no check has passed.
///
/// # Errors
/// A [`Failure`].
pub async fn check(
    core: &Arc<Core>,
    peer: &str,
    address: &str,
    port: u16,
    turned: &AtomicU64,
) -> Result<Alive, Failure> {
    let settings = &core.settings;
    let identity = core.identity.load_full();
    let target = Target {
        authority: &authority(address, port),
        path: &settings.health_check.path,
        node: peer,
        cluster: &settings.cluster_name,
        secrets: &identity.secrets,
        stall: Duration::from_millis(settings.stall_timeout),
    };
    let limit = Duration::from_millis(settings.health_check.timeout);
    if is_busy(core, limit) {
        // Not even asked: a JavaScript that reads nothing must not be given more and more to do.
        return Err(Failure::Void);
    }
    let connect = async {
        if settings.dial_through_pipe {
            let dialed = core.dial_pipe(address, port).await;
            dialed.map_err(|error| Failure::from_io(&error))
        } else {
            probe::connect(address, port).await.map(split_tcp)
        }
    };
    // A link lives outside JavaScript on both sides: it tells a stopped process from a busy one.
    let links = ping(core, peer);
    let began = Instant::now();
    let result = probe::check(target, limit, connect).await;
    let now = core.started.elapsed();
    match result {
        Ok(alive) => {
            let at = now.saturating_sub(alive.loop_age).as_millis() as u64;
            turned.store(at.max(1), Ordering::Relaxed);
            Ok(alive)
        }
        Err(Failure::NoAnswer(_) | Failure::NotConnected(_)) if stood_still(core, began, limit) => {
            Err(Failure::Void)
        }
        Err(Failure::NoAnswer(_)) if links.iter().any(answered) => {
            let turned = turned.load(Ordering::Relaxed);
            let age = now.saturating_sub(Duration::from_millis(turned));
            Err(match turned {
                // Perhaps its server has no health endpoint at all.
                0 => Failure::Blocked(limit),
                _ if age > target.stall => Failure::Stalled(age),
                _ => Failure::Blocked(age),
            })
        }
        failed => failed,
    }
}

/// Asks a peer over its open links whether it is there; answers them with their frames so far.
fn ping(core: &Core, peer: &str) -> Vec<(Arc<Link>, u64)> {
    let sent = core.started.elapsed().as_micros() as u64;
    let mut links = core.links();
    links.retain(|link| link.peer == peer && link.is_up());
    let counted = links.into_iter().map(|link| {
        let frames = link.traffic.frames_in.load(Ordering::Relaxed);
        link.control(&Frame::Ping(sent));
        (link, frames)
    });
    counted.collect()
}

fn answered((link, before): &(Arc<Link>, u64)) -> bool {
    link.traffic.frames_in.load(Ordering::Relaxed) > *before
}

/// Whether a check that ran out of time says more about this node than about the peer: the process
/// was stopped, or the check needed JavaScript and that was busy.
fn stood_still(core: &Core, began: Instant, limit: Duration) -> bool {
    let late = began.elapsed() > limit + limit / 2 + Duration::from_secs(1);
    late || is_busy(core, limit)
}

/// Whether checks need this node's JavaScript, and it has not turned for much of a check's time.
fn is_busy(core: &Core, limit: Duration) -> bool {
    core.settings.dial_through_pipe && core.loop_age() > limit / 2 + SHIM_TIMER
}

/// JavaScript says that it turns this often where nothing else happens; `js/health.js`.
const SHIM_TIMER: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::cluster::health::tests::policy;

    const SECOND: Duration = Duration::from_secs(1);
    const GOOD: Alive = Alive {
        incarnation: 1,
        loop_age: Duration::ZERO,
    };

    /// What happened, each with its time on the paused clock.
    #[derive(Default)]
    struct Diary {
        began: Vec<Duration>,
        changes: Vec<(Duration, Change)>,
        running: usize,
    }

    /// Runs a checker for `long`; `answer` says for a check's start how long it takes and what comes.
    async fn run(
        policy: Policy,
        long: Duration,
        answer: impl Fn(Duration) -> (Duration, Result<Alive, Failure>),
    ) -> Diary {
        let diary = Mutex::new(Diary::default());
        let started = Instant::now();
        let probe = || {
            let began = started.elapsed();
            let (takes, result) = answer(began);
            let mut entry = diary.lock().unwrap();
            entry.began.push(began);
            assert_eq!(entry.running, 0, "checks of one peer overlap");
            entry.running += 1;
            let diary = &diary;
            async move {
                sleep(takes).await;
                diary.lock().unwrap().running -= 1;
                result
            }
        };
        let report = |report: Report| {
            let now = started.elapsed();
            let change = report.change.map(|change| (now, change));
            diary.lock().unwrap().changes.extend(change);
        };
        let rng = StdRng::seed_from_u64(3);
        let checking = keep_checking(policy, rng, probe, report);
        assert!(tokio::time::timeout(long, checking).await.is_err());
        diary.into_inner().unwrap()
    }

    fn gaps(times: &[Duration]) -> Vec<f64> {
        let pairs = times.windows(2);
        pairs.map(|two| (two[1] - two[0]).as_secs_f64()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_is_noticed_within_the_bound_and_a_return_at_the_next_check() {
        let (crash, restart) = (60 * SECOND, 600 * SECOND);
        let diary = run(policy(), 700 * SECOND, |now| {
            if (crash..restart).contains(&now) {
                (3 * SECOND, Err(Failure::NotConnected(3 * SECOND)))
            } else {
                (SECOND / 1000, Ok(GOOD))
            }
        })
        .await;
        let [(failed, Change::Failed), (recovered, Change::Recovered)] = diary.changes[..] else {
            panic!("{:?}", diary.changes);
        };
        // One interval until the first check, two more to the third, and its timeout; jittered.
        let took = (failed - crash).as_secs_f64();
        assert!(
            (2.0 * 4.5 + 3.0..=3.0 * 5.5 + 3.0).contains(&took),
            "{took}"
        );
        assert!(recovered - restart <= 33 * SECOND + SECOND);
        // 540 s of an outage: one check per 30 s, after the first few.
        let down = |at: &&Duration| **at > failed && **at < recovered;
        let checks = diary.began.iter().filter(down).count();
        assert!((15..=22).contains(&checks), "{checks} checks");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_longer_than_the_interval_checks_without_pause_and_without_overlap() {
        let slow = Policy {
            interval: SECOND,
            timeout: 4 * SECOND,
            ..policy()
        };
        let answer = |_| (4 * SECOND, Err(Failure::NoAnswer(4 * SECOND)));
        let diary = run(slow, 60 * SECOND, answer).await;
        for gap in &gaps(&diary.began)[..3] {
            assert_eq!(*gap, 4.0);
        }
        assert!(matches!(diary.changes[..], [(_, Change::Failed)]));
    }

    #[tokio::test(start_paused = true)]
    async fn single_failures_and_void_checks_change_nothing() {
        let bad = Mutex::new(0);
        let diary = run(policy(), 3_600 * SECOND, |_| {
            let mut count = bad.lock().unwrap();
            *count += 1;
            let result = match *count % 6 {
                0 => Ok(GOOD),
                1 | 2 => Err(Failure::Refused),
                _ => Err(Failure::Void),
            };
            (SECOND / 100, result)
        })
        .await;
        assert_eq!(diary.changes, []);
        assert!(
            gaps(&diary.began)
                .iter()
                .all(|gap| (4.5..5.6).contains(gap))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_it_stalls_is_down_at_once() {
        let diary = run(policy(), 20 * SECOND, |now| {
            let stalled = now > 12 * SECOND;
            let result = if stalled {
                Err(Failure::Stalled(20 * SECOND))
            } else {
                Ok(GOOD)
            };
            (SECOND / 100, result)
        })
        .await;
        let [(failed, Change::Failed)] = diary.changes[..] else {
            panic!("{:?}", diary.changes);
        };
        assert!(failed < 18 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_started_together_do_not_check_in_step() {
        let mut firsts = Vec::new();
        for seed in 0..20 {
            let first = Mutex::new(None);
            let started = Instant::now();
            let checking = keep_checking(
                policy(),
                StdRng::seed_from_u64(seed),
                || {
                    first.lock().unwrap().get_or_insert(started.elapsed());
                    std::future::ready(Ok(GOOD))
                },
                drop,
            );
            let _ = tokio::time::timeout(SECOND, checking).await;
            firsts.push(first.into_inner().unwrap().unwrap());
        }
        firsts.sort();
        assert!(firsts[19] <= SECOND / 2 && firsts[19] - firsts[0] > SECOND / 5);
    }
}
