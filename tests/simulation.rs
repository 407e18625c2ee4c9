//! Deterministic simulation of membership with a registry. Operation scripts, seeded, over the real
//! machines: 10,000 seeds (`SIM_SEEDS`), then one script per rule of "Who is a member" with the
//! interleaving that it answers, which must fail without the rule.
//!
//! A failure prints its seed; `SIM_SEED=n cargo test --no-default-features --test simulation seeds`
//! replays it with a trace.

#[path = "support/cluster.rs"]
mod cluster;

use std::sync::atomic::{AtomicU64, Ordering};

use cluster::{LEASE, Op, STORE, World};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use smartroute::store::Rule;

/// Time in which operations happen, and in which everything must be well again after it, ms.
const TROUBLE: u64 = 6 * LEASE;
const RECOVERY: u64 = 5 * LEASE;

/// What a seed does.
fn script(seed: u64, without: Option<Rule>, trace: bool) -> World {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
    let nodes = rng.random_range(3..=7);
    let mut world = World::new(seed, nodes, without, trace);
    for node in 0..nodes {
        world.plan(rng.random_range(0..500), Op::Start(node));
    }
    world.run(LEASE);
    if world.violation.is_none()
        && let Err(reason) = world.whole()
    {
        world.violation = Some(format!("the cluster does not form: {reason}"));
    }
    let calm = rng.random_bool(0.3);
    // Wrong evidence of an end: eviction withstands it (rule 3). A frozen member or a newcomer has
    // nothing else to go by, so it comes alone, and about one node.
    let slander = rng.random_bool(0.1).then(|| rng.random_range(0..nodes));
    for _ in 0..rng.random_range(1..=8) {
        let at = rng.random_range(0..TROUBLE);
        let node = slander.unwrap_or(rng.random_range(0..nodes));
        let peer = (node + rng.random_range(1..nodes)) % nodes;
        let time = rng.random_range(LEASE / 6..3 * LEASE);
        let until = at + time;
        let kind = rng.random_range(0..19);
        match if slander.is_some() { 19 } else { kind } {
            0 | 1 => {
                world.plan(at, Op::Cut(node, STORE));
                world.plan(at, Op::Cut(STORE, node));
                world.plan(until, Op::Mend(node, STORE));
                world.plan(until, Op::Mend(STORE, node));
            }
            2 => {
                // Only the replies are lost.
                world.plan(at, Op::Cut(STORE, node));
                world.plan(until, Op::Mend(STORE, node));
            }
            3 | 4 => {
                // Redis is away, for each node from about then to about then.
                for node in 0..nodes {
                    let at = at + rng.random_range(0..LEASE / 4);
                    let until = until + rng.random_range(0..LEASE / 4);
                    if rng.random_bool(0.8) {
                        world.plan(at, Op::Cut(node, STORE));
                    }
                    world.plan(at, Op::Cut(STORE, node));
                    world.plan(until, Op::Mend(node, STORE));
                    world.plan(until, Op::Mend(STORE, node));
                }
            }
            5 => {
                world.plan(at, Op::Cut(node, peer));
                if rng.random() {
                    world.plan(at, Op::Cut(peer, node));
                }
                world.plan(until, Op::Mend(node, peer));
                world.plan(until, Op::Mend(peer, node));
            }
            6 => {
                for peer in (0..nodes).filter(|peer| *peer != node) {
                    world.plan(at, Op::Cut(node, peer));
                    world.plan(at, Op::Cut(peer, node));
                    world.plan(until, Op::Mend(node, peer));
                    world.plan(until, Op::Mend(peer, node));
                }
            }
            7 | 8 => world.plan(at, Op::Pause(node, time)),
            9 | 10 => {
                world.plan(at, Op::Crash(node));
                if rng.random() {
                    world.plan(until, Op::Start(node));
                }
            }
            11 => {
                // Crash and restart at once.
                world.plan(at, Op::Crash(node));
                world.plan(at + rng.random_range(10..2000), Op::Start(node));
            }
            12 => world.plan(at, Op::Hang(node, time)),
            13 if !calm => world.plan(at, Op::Flush),
            14 if !calm => {
                world.plan(at.saturating_sub(rng.random_range(0..2 * LEASE)), Op::Copy);
                world.plan(at, Op::Rollback);
            }
            15 => {
                world.plan(at, Op::Drain(node));
                world.plan(at + time / 4, Op::Leave(node));
                if rng.random() {
                    world.plan(until, Op::Crash(node));
                    world.plan(until + 100, Op::Start(node));
                }
            }
            16 if nodes < STORE => world.plan(at, Op::Start(nodes)),
            17 => {
                if rng.random() {
                    world.plan(at, Op::Evict(node, peer, false));
                } else {
                    world.plan(at, Op::Pin(node, rng.random_range(0..16), peer));
                }
            }
            19 => {
                // Cut off, in a way that looks like its end to some.
                let store = if rng.random() { STORE } else { STORE - 1 };
                for peer in (0..=store).filter(|peer| *peer != node) {
                    world.part(at, node, peer);
                    world.mend(until, node, peer);
                }
                for peer in (0..nodes).filter(|peer| *peer != node) {
                    if rng.random_bool(0.8) {
                        let after = at + rng.random_range(0..1000);
                        world.plan(after, Op::Accuse(peer, node));
                        world.plan(until - 1, Op::Acquit(peer, node));
                    }
                }
            }
            _ => {
                let (loss, twice) = (rng.random_range(0..30), rng.random_range(0..20));
                let long = rng.random_range(0..20);
                let length = rng.random_range(LEASE / 9..2 * LEASE);
                world.plan(at, Op::Weather(loss, twice, long, length));
                world.plan(until, Op::Weather(0, 0, 0, 0));
            }
        }
    }
    world.run(TROUBLE);
    world.plan(0, Op::MendAll);
    // What was planned to go on beyond the end does not: but nodes that are to start again may.
    world.run(3 * LEASE);
    world.plan(0, Op::MendAll);
    world.run(RECOVERY);
    if world.violation.is_none()
        && let Err(reason) = world.whole()
    {
        world.violation = Some(format!("not whole at the end: {reason}"));
    }
    world
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn seeds() {
    if let Some(seed) = number("SIM_SEED") {
        let world = script(seed, None, true);
        let trace = world.trace.unwrap_or_default().join("\n");
        assert!(world.violation.is_none(), "{trace}\n{:?}", world.violation);
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(10_000);
    let (next, served, excepted) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let failures = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let world = script(seed, None, false);
                    served.fetch_add(world.served, Ordering::Relaxed);
                    excepted.fetch_add(world.excepted, Ordering::Relaxed);
                    if let Some(violation) = world.violation {
                        failures.lock().unwrap().push((seed, violation));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    assert!(
        failures.is_empty(),
        "{} of {seeds} seeds fail; SIM_SEED=n replays:\n{}",
        failures.len(),
        failures
            .iter()
            .take(40)
            .map(|(seed, violation)| format!("SIM_SEED={seed}: {violation}"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    assert!(
        served.into_inner() > seeds * 100,
        "too little was served to show anything"
    );
}

// ---- One script per rule ----

/// The script, on three nodes, holds with every rule, and not without this one.
fn needs(rule: Rule, script: impl Fn(&mut World)) {
    needs_of(3, rule, script);
}

fn needs_of(nodes: usize, rule: Rule, script: impl Fn(&mut World)) {
    for seed in 0..20 {
        let mut world = World::formed(seed, nodes, None);
        script(&mut world);
        assert_eq!(world.violation, None, "{}", world.trace.unwrap().join("\n"));
    }
    let found = (0..20).find_map(|seed| {
        let mut world = World::formed(seed, nodes, Some(rule));
        script(&mut world);
        world.violation
    });
    assert!(found.is_some(), "nothing goes wrong without rule {rule:?}");
}

/// Rule 1, the deadline. n0's heartbeats arrive at once and the replies take most of a lease. The
/// store is then cut from n0, which still speaks to its peers. The store gives n0's lease away one
/// lease after the last heartbeat *arrived*; a deadline that counts from the reply is later.
#[test]
fn rule_1_the_deadline_counts_from_before_sending() {
    needs(Rule::Deadline, |world| {
        world.plan(0, Op::Slow(STORE, 0, 8000));
        world.plan(10_000, Op::Cut(0, STORE));
        // Its peers do not relay: they hear it, and it hears them, without their word on the store.
        world.run(30_000);
    });
}

/// Rule 2. n0 is cut from everybody, and its peers' connections to it are reset and refused. They
/// evict it after `h`; its lease would last three times as long.
#[test]
fn rule_2_a_node_that_hears_nobody_stops_within_h() {
    needs(Rule::Heard, |world| {
        world.part(0, 0, STORE);
        for peer in [1, 2] {
            world.part(0, 0, peer);
            world.plan(300, Op::Accuse(peer, 0));
        }
        world.run(30_000);
    });
}

/// Rule 3. As before, but n0 still reaches the store: it lives, and its counter says so. Without
/// the wait the two evict it at once, while it serves.
#[test]
fn rule_3_a_node_that_renews_is_not_evicted() {
    needs(Rule::EarlyEviction, |world| {
        for peer in [1, 2] {
            world.part(0, 0, peer);
            world.plan(300, Op::Accuse(peer, 0));
        }
        world.run(30_000);
    });
}

/// Rule 4. n0 and n2 are cut from the store and from n1, and answer each other. They are most of
/// the view, but n1 reaches the store, where it takes their places.
#[test]
fn rule_4_a_node_is_frozen_only_with_all_others() {
    needs(Rule::Frozen, |world| {
        for node in [0, 2] {
            world.part(0, node, STORE);
            world.part(0, node, 1);
        }
        world.run(30_000);
    });
}

/// Rule 5. Redis is away from all three, which go on, frozen. A newcomer that none of them knows
/// reaches it, finds three lapsed leases, and would take everything.
#[test]
fn rule_5_a_newcomer_puts_nobody_out() {
    needs(Rule::Newcomers, |world| {
        for node in 0..3 {
            world.part(0, node, STORE);
            world.part(0, node, 3);
        }
        world.plan(2000, Op::Start(3));
        world.run(40_000);
    });
}

/// Rule 6. Redis is flushed. Without the callers' views it starts again at epoch 1, and nodes that
/// have seen later ones are told of earlier ones.
#[test]
fn rule_6_a_flushed_store_learns_from_its_callers() {
    needs(Rule::Behind, |world| {
        world.plan(0, Op::Flush);
        world.run(20_000);
    });
}

/// Rule 7. n0 is evicted early, as under rule 2, then reaches the store again while its own clock
/// says that its lease still holds. If its renewal put it back it would go on where it stopped,
/// beside those that took over.
#[test]
fn rule_7_an_evicted_incarnation_stays_out() {
    needs(Rule::Incarnations, |world| {
        world.part(0, 0, STORE);
        for peer in [1, 2] {
            world.part(0, 0, peer);
            world.plan(100, Op::Accuse(peer, 0));
        }
        world.mend(6500, 0, STORE);
        world.run(30_000);
    });
}

// ---- One script for each thing that the rules' text does not say and that they need ----

/// Rule 2 by the time of asking. As rule 2, but answers that the peers gave before they turned away
/// are on their way for six seconds. Their arrival says nothing about now.
#[test]
fn a_late_answer_is_no_recent_one() {
    needs(Rule::Asked, |world| {
        for peer in [1, 2] {
            world.plan(0, Op::Slow(peer, 0, 6000));
            world.plan(10_000, Op::Cut(0, peer));
            world.plan(10_100, Op::Accuse(peer, 0));
        }
        world.part(10_000, 0, STORE);
        world.run(30_000);
    });
}

/// Rule 3 by every view that the accused may have. n0, whose JavaScript hangs and which therefore
/// does not renew, knows three members, of which n1 answers it: a majority. Two newcomers and n2 are
/// half of five, but the five are not n0's view. It wakes up before its deadline.
#[test]
fn half_of_a_view_that_the_accused_never_saw_is_not_half() {
    needs(Rule::History, |world| {
        world.plan(0, Op::Hang(0, 7500));
        for newcomer in [3, 4] {
            world.part(0, 0, newcomer);
            world.plan(0, Op::Start(newcomer));
        }
        world.part(1500, 0, 2);
        for accuser in [2, 3, 4] {
            world.plan(1600, Op::Accuse(accuser, 0));
        }
        world.run(20_000);
    });
}

/// Settled by reports of exactly that view. Documents of n0 are pinned to n1, then back; n0 sees
/// only the second change and holds them throughout, n1 sees only the first. That n0 has come to a
/// later view than n1's does not say that it ever let go.
#[test]
fn a_later_view_does_not_settle_an_earlier_one() {
    needs(Rule::Exact, |world| {
        world.plan(0, Op::Cut(STORE, 0));
        world.part(0, 0, 1);
        world.part(0, 0, 2);
        for document in 0..16 {
            world.plan(100, Op::Pin(2, document, 1));
            world.plan(3000, Op::Pin(2, document, 0));
        }
        world.plan(2500, Op::Cut(STORE, 1));
        world.part(2500, 1, 2);
        world.plan(4000, Op::Mend(STORE, 0));
        world.mend(4200, 0, 1);
        world.run(10_000);
    });
}

/// A document is kept only through views that all give it to us. As before, but n0 sees both
/// changes and lets go in between.
#[test]
fn what_was_let_go_is_not_kept() {
    needs(Rule::Chain, |world| {
        for document in 0..16 {
            world.plan(0, Op::Pin(2, document, 1));
            world.plan(3000, Op::Pin(2, document, 0));
        }
        world.plan(2500, Op::Cut(STORE, 1));
        world.run(10_000);
    });
}

/// Rule 5, "a view it belonged to": to the *member's*. The request by which n3 is admitted arrives,
/// its reply does not, and then the store is away from all but n3. The three are frozen in a view
/// that n3 is not admitted in, and do not ask it.
#[test]
fn a_member_that_never_saw_us_is_not_ours_to_expire() {
    needs(Rule::Since, |world| {
        world.plan(0, Op::Start(3));
        for node in 0..3 {
            world.part(0, 3, node);
            world.mend(4000, 3, node);
            world.plan(4000, Op::Cut(STORE, node));
            world.part(6000, node, STORE);
            world.part(6000, node, 3);
        }
        world.run(40_000);
    });
}

/// Rule 4 without a gap. n0 is alone past its deadline, and n1 expires it by a request whose reply
/// is lost. Then the two meet, both without the store, and n1 dies. n3, which the store admits once
/// n1 has lapsed, takes everything: that all others are dead is no leave for n0 to go on.
#[test]
fn the_dead_may_have_expired_us() {
    needs_of(2, Rule::Continuous, |world| {
        world.part(0, 0, STORE);
        world.part(0, 0, 1);
        world.part(0, 0, 3);
        world.plan(8300, Op::Cut(STORE, 1));
        world.part(10_300, 1, STORE);
        world.mend(10_400, 0, 1);
        world.plan(12_000, Op::Start(3));
        world.plan(16_000, Op::Crash(1));
        world.run(50_000);
    });
}

/// Rule 4, holding back. n0 is expired by a request whose reply is lost, then all three meet
/// without the store, and go on. The two that reach it again first learn that they own n0's
/// documents, while their word to n0 still stands.
#[test]
fn a_word_given_is_kept() {
    needs(Rule::HoldBack, |world| {
        world.part(0, 0, STORE);
        for peer in [1, 2] {
            world.part(0, 0, peer);
            world.plan(8300, Op::Cut(STORE, peer));
            world.part(10_300, peer, STORE);
            world.mend(10_400, 0, peer);
            world.mend(17_000, peer, STORE);
        }
        world.run(30_000);
    });
}

/// Rule 4, sealed. Requests of n1 are on their way for twenty seconds. It dies, n0 goes on frozen,
/// and then they arrive, one of them after the grace that the first began.
#[test]
fn a_late_request_expires_nobody() {
    needs_of(2, Rule::Fresh, |world| {
        world.part(0, 0, STORE);
        world.part(0, 0, 3);
        world.plan(0, Op::Cut(STORE, 1));
        world.plan(0, Op::Slow(1, STORE, 20_000));
        world.plan(16_000, Op::Crash(1));
        world.plan(17_000, Op::Start(3));
        world.run(70_000);
    });
}

// ---- What must go on ----

/// G6: Redis is away for ten leases; nobody stops, and a crash meanwhile stops nobody else.
#[test]
fn redis_away_stops_nothing() {
    for seed in 0..10 {
        let mut world = World::formed(seed, 4, None);
        for node in 0..4 {
            world.part(node as u64 * 100, node, STORE);
        }
        world.run(1000);
        assert_eq!(world.idle_seconds(4 * LEASE, 0), [0; 0]);
        world.plan(0, Op::Crash(3));
        assert_eq!(world.idle_seconds(6 * LEASE, 1), [0; 0]);
        world.plan(0, Op::MendAll);
        assert_eq!(world.idle_seconds(4 * LEASE, 2), [0; 0]);
        assert_eq!(world.violation, None);
        world.whole().unwrap();
    }
}

/// Rule 4, beside: Redis goes away while a view is on its way. Those that have it and those that have
/// not go on with what both views give them.
#[test]
fn redis_away_between_two_views_stops_nothing() {
    let mut between = 0;
    for seed in 0..30 {
        let mut world = World::new(seed, 4, None, true);
        for node in 0..3 {
            world.plan(10 * node as u64, Op::Start(node));
        }
        world.run(2 * LEASE);
        world.plan(0, Op::Start(3));
        // From when n0 knows of the newcomer: before the others do, at the same time, or later.
        let epoch = world.epoch(0);
        while world.epoch(0) < epoch + 1 + seed % 2 {
            world.run(10);
        }
        world.run(seed * 7 % 50);
        for node in 0..4 {
            world.part(0, node, STORE);
        }
        world.run(LEASE / 2);
        let epochs: Vec<_> = (0..3).map(|node| world.epoch(node)).collect();
        let apart = epochs.iter().any(|epoch| *epoch != epochs[0]);
        between += usize::from(apart);
        for node in 0..3 {
            let idle = world.idle_seconds(3 * LEASE, node);
            assert_eq!(idle, [0; 0], "seed {seed}, n{node}: {epochs:?}");
        }
        world.plan(0, Op::MendAll);
        world.run(4 * LEASE);
        assert_eq!(world.violation, None);
        world.whole().unwrap();
    }
    assert!(between >= 3, "{between} of 30 were between two views");
}

/// Rule 4: while Redis is away a crashed node that restarts takes its place in the frozen view, and
/// serves. With another member dead it may not, for that one may have expired it.
#[test]
fn a_restart_resumes_its_place_in_the_frozen_view() {
    for seed in 0..10 {
        let mut world = World::formed(seed, 3, None);
        for node in 0..3 {
            world.part(node as u64 * 100, node, STORE);
        }
        world.run(2 * LEASE);
        let epoch = world.epoch(0);
        world.plan(0, Op::Crash(2));
        world.plan(2000, Op::Start(2));
        world.run(LEASE);
        assert!(world.is_serving(2), "{}", world.trace.unwrap().join("\n"));
        assert_eq!(world.epoch(2), epoch);
        assert_eq!(world.idle_seconds(3 * LEASE, 2), [0; 0]);
        world.plan(0, Op::Crash(1));
        world.run(LEASE);
        assert!(!world.is_serving(2));
        assert!(world.is_serving(0), "{}", world.trace.unwrap().join("\n"));
        world.plan(0, Op::MendAll);
        world.run(4 * LEASE);
        assert_eq!(world.violation, None);
        world.whole().unwrap();
    }
}

/// A member that reaches Redis relays for one that does not: it stays, and serves.
#[test]
fn a_peer_relays_heartbeats() {
    let mut world = World::formed(1, 3, None);
    world.part(0, 0, STORE);
    world.run(1000);
    assert_eq!(world.idle_seconds(10 * LEASE, 0), [0; 0]);
    assert!(world.is_member(0));
}

/// Redis is back, empty, and only one node reaches it: it relays for the others, who have gone on by
/// its word, before that word runs out; none of them relays for another, though all are renewed.
#[test]
fn the_first_that_reaches_the_store_again_relays_for_all() {
    for seed in 1..=50 {
        let mut world = World::formed(seed, 5, None);
        for node in 0..5 {
            world.part(0, node, STORE);
        }
        world.run(2 * LEASE);
        // Empty, so that its first view is another one, and those that lack it ask as fast as they may.
        world.plan(0, Op::Flush);
        world.mend(0, 4, STORE);
        for tenth in 0..LEASE / 20 {
            world.run(100);
            let idle = (0..5).find(|node| !world.is_serving(*node));
            assert_eq!(idle, None, "seed {seed}, after {} ms", tenth * 100);
        }
        assert_eq!(world.violation, None);
    }
}

/// A node whose JavaScript hangs stops renewing and loses its documents (rule 1).
#[test]
fn a_hung_node_is_out_and_comes_back() {
    let mut world = World::formed(1, 3, None);
    let epoch = world.epoch(1);
    world.plan(0, Op::Hang(0, 3 * LEASE));
    world.run(2 * LEASE);
    assert!(!world.is_member(0));
    assert!(world.epoch(1) > epoch);
    world.run(4 * LEASE);
    world.whole().unwrap();
    let mut world = World::formed(1, 3, Some(Rule::Deadline));
    world.plan(0, Op::Hang(0, 3 * LEASE));
    world.run(2 * LEASE);
    assert!(world.is_member(0));
}

/// A crash is noticed by all: out within little more than `h`, not a whole lease.
#[test]
fn a_crash_is_evicted_early() {
    let mut world = World::formed(1, 5, None);
    world.plan(0, Op::Crash(4));
    world.run(LEASE * 6 / 10);
    assert!(!world.is_member(4));
    world.whole().unwrap();
}

/// One that is wrongly taken for gone is spoken to again after the accusation is withdrawn.
#[test]
fn an_acquitted_node_stays() {
    let mut world = World::formed(1, 3, None);
    world.plan(0, Op::Accuse(1, 0));
    world.plan(2000, Op::Acquit(1, 0));
    world.run(3 * LEASE);
    assert_eq!(world.violation, None);
    world.whole().unwrap();
}

/// How many of the general seeds notice that a rule is gone: `SIM_SEEDS=1000 cargo test
/// --no-default-features --test simulation mutants -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement; minutes"]
#[allow(clippy::print_stderr)]
fn mutants() {
    use Rule::{Behind, Deadline, EarlyEviction, Frozen, Heard, Incarnations, Newcomers};
    let seeds = number("SIM_SEEDS").unwrap_or(1000);
    let rules = [
        Deadline,
        Heard,
        EarlyEviction,
        Frozen,
        Newcomers,
        Behind,
        Incarnations,
    ];
    for rule in rules.map(Some).into_iter().chain([None]) {
        let worlds: Vec<World> = (0..seeds).map(|seed| script(seed, rule, false)).collect();
        let found = worlds
            .iter()
            .filter(|world| world.violation.is_some())
            .count();
        let first = worlds.iter().position(|world| world.violation.is_some());
        let excepted = worlds.iter().filter(|world| world.excepted > 0).count();
        eprintln!(
            "without {rule:?}: {found} of {seeds} fail, first {first:?}, {excepted} excepted"
        );
    }
}
