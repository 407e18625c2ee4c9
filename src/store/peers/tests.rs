use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn timings() -> Timings {
    Timings::derive(ms(400), ms(600), ms(5000))
}

fn member(id: &str) -> Member {
    Member {
        id: id.into(),
        incarnation: 7,
        address: "127.0.0.1".into(),
        port: 80,
        link_port: None,
        weight: 1.0,
        state: MemberState::Active,
    }
}

fn start(id: &str, seeds: &[&str]) -> Peers {
    let seed = |id: &&str| {
        let incarnation = 0;
        let member = Member {
            incarnation,
            ..member(id)
        };
        ((*id).to_owned(), member)
    };
    let seeds = seeds.iter().map(seed).collect();
    Peers::new(ms(0), member(id), seeds, true, timings(), 1)
}

/// Carries messages among nodes until nobody has anything to say; answers the other effects.
fn carry(nodes: &mut [Peers], now: Duration, first: Vec<Effect>, from: usize) -> Vec<Effect> {
    let mut queue: Vec<(usize, Effect)> = first.into_iter().map(|it| (from, it)).collect();
    let mut others = Vec::new();
    while !queue.is_empty() {
        let (sender, effect) = queue.remove(0);
        let Effect::Send { to, bytes } = effect else {
            others.push(effect);
            continue;
        };
        assert!(bytes.len() <= MAX_MESSAGE);
        let from = nodes[sender].own.id.clone();
        if let Some(at) = nodes.iter().position(|node| node.own.id == to) {
            let (from, bytes) = (&from, &bytes);
            let more = nodes[at].handle(now, Event::Gossip { from, bytes });
            queue.extend(more.into_iter().map(|it| (at, it)));
        }
    }
    others
}

/// Links all of them, and lets them talk.
fn link(nodes: &mut [Peers], now: Duration) {
    let ids: Vec<String> = nodes.iter().map(|node| node.own.id.clone()).collect();
    for at in 0..nodes.len() {
        for peer in ids.iter().filter(|id| **id != ids[at]) {
            let effects = nodes[at].handle(now, Event::Link { peer, up: true });
            carry(nodes, now, effects, at);
        }
    }
}

/// Two nodes of one cluster.
fn two() -> [Peers; 2] {
    let mut nodes = [start("a", &["b"]), start("b", &["a"])];
    link(&mut nodes, ms(1));
    assert_eq!(
        (nodes[0].phase, nodes[1].phase),
        (Phase::Joined, Phase::Joined)
    );
    nodes
}

fn state(peers: &Peers, id: &str) -> Option<MemberState> {
    peers.members().get(id).map(|member| member.state)
}

fn pin(document: &str, node: Option<&str>) -> Event<'static> {
    Event::Pin {
        document: document.into(),
        node: node.map(Into::into),
    }
}

#[test]
fn it_waits_only_for_seeds_it_can_reach() {
    assert_eq!(start("a", &[]).phase, Phase::Joined);
    assert_eq!(start("a", &["a"]).phase, Phase::Joined);
    let waiting = start("a", &["b"]);
    assert_eq!(waiting.phase, Phase::Waiting);
    assert_eq!(state(&waiting, "a"), Some(MemberState::Joining));
    let unconnected = Peers::new(ms(0), member("a"), waiting.seeds, false, timings(), 1);
    assert_eq!(unconnected.phase, Phase::Joined);
    assert_eq!(unconnected.deadline(), None);
}

#[test]
fn waiting_ends_by_a_members_list() {
    let mut nodes = [start("a", &[]), start("b", &["a", "c"])];
    link(&mut nodes, ms(1));
    assert_eq!(nodes[1].phase, Phase::Joined);
    assert_eq!(state(&nodes[1], "b"), Some(MemberState::Active));
    // a is a cluster that counts nobody who never spoke: nor does b, then.
    assert_eq!(state(&nodes[1], "c"), None);
}

#[test]
fn waiting_outlasts_the_list_of_one_that_waits_and_ends_when_every_seed_was_tried() {
    let mut nodes = [start("a", &["b", "c"]), start("b", &["a", "c"])];
    link(&mut nodes, ms(1));
    assert_eq!(
        (nodes[0].phase, nodes[1].phase),
        (Phase::Waiting, Phase::Waiting)
    );
    let refused = false;
    nodes[0].handle(ms(2), Event::Unreachable { peer: "c", refused });
    assert_eq!(
        (nodes[0].phase, nodes[1].phase),
        (Phase::Joined, Phase::Waiting)
    );
    // Not heard of yet, so it counts.
    assert_eq!(state(&nodes[0], "c"), Some(MemberState::Active));
}

#[test]
fn waiting_ends_with_its_time() {
    let mut peers = start("a", &["b"]);
    for now in (0..timings().join.as_millis() as u64).step_by(100) {
        assert_eq!(peers.handle(ms(now), Event::Tick), []);
    }
    let effects = peers.handle(timings().join, Event::Tick);
    assert_eq!(
        (peers.phase, effects),
        (Phase::Joined, vec![Effect::Changed])
    );
}

#[test]
fn removed_it_leaves_when_it_has_drained() {
    let mut nodes = two();
    let effects = nodes[0].handle(ms(2), Event::Remove("b"));
    let others = carry(&mut nodes, ms(2), effects, 0);
    assert!(others.contains(&Effect::Drain));
    assert_eq!(nodes[1].phase, Phase::Leaving);
    assert_eq!(state(&nodes[0], "b"), Some(MemberState::Leaving));
    assert_eq!(nodes[0].refuses(&member("b")), None, "it may hand over");
    let effects = nodes[1].handle(ms(3), Event::Drained);
    carry(&mut nodes, ms(3), effects, 1);
    assert_eq!(nodes[1].phase, Phase::Out);
    assert_eq!(state(&nodes[0], "b"), None);
    assert!(nodes[0].refuses(&member("b")).is_some());
    let incarnation = 8;
    let restarted = Member {
        incarnation,
        ..member("b")
    };
    assert_eq!(nodes[0].refuses(&restarted), None);
    // And it is not a second time that it leaves.
    assert_eq!(nodes[1].handle(ms(4), Event::Leave), []);
}

#[test]
fn put_out_it_is_out_at_once_and_stays_out_until_it_restarts() {
    let mut nodes = two();
    // It hangs: nothing reaches it.
    let effects = nodes[0].handle(ms(2), Event::Evict("b"));
    assert_eq!(state(&nodes[0], "b"), None, "at once");
    assert!(!nodes[0].dials().contains_key("b"));
    let refusal = nodes[0].refuses(&member("b")).unwrap();
    assert_eq!(refusal.code, RefusalCode::Removed);
    assert_eq!(nodes[1].phase, Phase::Joined);
    // It wakes, and hears of it: in what was still under way, or by being refused.
    let mut refused = nodes[1].handle(ms(3), Event::PutOut);
    assert!(refused.contains(&Effect::Out));
    assert_eq!(nodes[1].phase, Phase::Out);
    assert!(nodes[1].is_expelled());
    assert_eq!(nodes[1].members()["b"].state, MemberState::Leaving);
    refused = nodes[1].handle(ms(4), Event::PutOut);
    assert_eq!(refused, []);
    assert!(!carry(&mut nodes, ms(4), effects, 0).contains(&Effect::Out));
    // Late lists do not bring it back, and a day is long.
    let hour = ms(3_600_000);
    nodes[0].handle(hour * 2, Event::Tick);
    assert!(nodes[0].refuses(&member("b")).is_some());
    let incarnation = 8;
    let restarted = Member {
        incarnation,
        ..member("b")
    };
    assert_eq!(nodes[0].refuses(&restarted), None);
    // Or until it is wanted again.
    let effects = nodes[0].handle(hour * 2, Event::Add(member("b")));
    carry(&mut nodes, hour * 2, effects, 0);
    assert!(!nodes[1].is_expelled());
}

#[test]
fn put_out_it_hears_of_it_by_the_list() {
    let mut nodes = two();
    let effects = nodes[0].handle(ms(2), Event::Evict("b"));
    assert!(carry(&mut nodes, ms(2), effects, 0).contains(&Effect::Out));
    assert!(nodes[1].is_expelled());
}

#[test]
fn removed_it_leaves_at_the_drain_deadline_at_the_latest() {
    let mut nodes = two();
    let effects = nodes[0].handle(ms(2), Event::Remove("b"));
    carry(&mut nodes, ms(2), effects, 0);
    let due = ms(2) + timings().drain;
    for now in (100..due.as_millis() as u64).step_by(100) {
        let effects = nodes[1].handle(ms(now), Event::Tick);
        carry(&mut nodes, ms(now), effects, 1);
    }
    assert_eq!(nodes[1].phase, Phase::Leaving);
    let effects = nodes[1].handle(due, Event::Tick);
    carry(&mut nodes, due, effects, 1);
    assert_eq!(nodes[1].phase, Phase::Out);
    assert_eq!(state(&nodes[0], "b"), None);
}

#[test]
fn a_drain_of_its_own_is_told_and_ends_with_a_leave() {
    let mut nodes = two();
    let state_ = MemberState::Leaving;
    let own = Member {
        state: state_,
        ..member("b")
    };
    let effects = nodes[1].handle(ms(2), Event::Own(own));
    carry(&mut nodes, ms(2), effects, 1);
    assert_eq!(nodes[1].phase, Phase::Leaving);
    assert_eq!(state(&nodes[0], "b"), Some(state_));
    let effects = nodes[1].handle(ms(3), Event::Leave);
    carry(&mut nodes, ms(3), effects, 1);
    assert_eq!(nodes[1].phase, Phase::Out);
    assert_eq!(state(&nodes[0], "b"), None);
    let refusal = nodes[0].refuses(&member("b")).unwrap();
    assert!(refusal.reason.contains("has left"), "{refusal}");
}

#[test]
fn out_it_comes_back_when_it_is_added() {
    let mut nodes = two();
    let effects = nodes[1].handle(ms(2), Event::Leave);
    carry(&mut nodes, ms(2), effects, 1);
    assert_eq!(state(&nodes[0], "b"), None);
    let effects = nodes[0].handle(ms(3), Event::Add(member("b")));
    carry(&mut nodes, ms(3), effects, 0);
    assert_eq!(nodes[1].phase, Phase::Joined);
    for node in &nodes {
        assert_eq!(state(node, "a"), Some(MemberState::Active));
        assert_eq!(state(node, "b"), Some(MemberState::Active));
    }
}

#[test]
fn a_restart_whose_clock_is_behind_takes_over_once_its_predecessor_is_down() {
    let mut nodes = [start("a", &["b"]), start("b", &["a"])];
    let incarnation = 1_000_000;
    let ahead = Member {
        incarnation,
        ..member("b")
    };
    let identity = Identity::new(&ahead, incarnation, 0);
    nodes[0].apply(ms(0), vec![Known::alive(identity.clone())]);
    nodes[0].handle(ms(0), Event::Tick);
    assert_eq!(nodes[0].members()["b"].incarnation, incarnation);
    link(&mut nodes, ms(1));
    assert_eq!(
        nodes[0].members()["b"].incarnation,
        incarnation,
        "it may be alive"
    );
    nodes[0].apply(ms(2), vec![Known::down(identity)]);
    nodes[0].linked.clear();
    nodes[1].linked.clear();
    link(&mut nodes, ms(3));
    assert_eq!(nodes[0].members()["b"].incarnation, 7);
}

#[test]
fn what_is_added_by_hand_is_bounded_and_who_left_is_forgotten_first() {
    let mut peers = start("a", &[]);
    let add =
        |peers: &mut Peers, n: usize| peers.handle(ms(1), Event::Add(member(&format!("n{n}"))));
    peers.learn_fact(
        ms(1),
        facts::Fact {
            id: "gone".into(),
            version: 1,
            by: "z".into(),
            left_for: 1000,
            what: What::Left {
                incarnation: 1,
                removed: false,
            },
        },
        None,
    );
    for n in 0..MAX_FACTS {
        add(&mut peers, n);
    }
    assert_eq!(peers.facts.len(), MAX_FACTS);
    assert!(!peers.facts.contains_key("gone"));
    let effects = add(&mut peers, MAX_FACTS);
    assert!(
        matches!(&effects[..], [Effect::Log { key, .. }] if key == "facts"),
        "{effects:?}"
    );
    assert_eq!(peers.facts.len(), MAX_FACTS);
}

#[test]
fn who_left_is_forgotten_by_all_at_once() {
    let mut nodes = two();
    let effects = nodes[1].handle(ms(2), Event::Leave);
    carry(&mut nodes, ms(2), effects, 1);
    let late = FORGET - ms(1000);
    let mut third = [nodes.into_iter().next().unwrap(), start("c", &[])];
    third[0].handle(late, Event::Tick);
    link(&mut third, late);
    assert!(third[1].facts.contains_key("b"), "it is told");
    for step in 1..40 {
        let now = late + ms(step * 100);
        for at in 0..2 {
            let effects = third[at].handle(now, Event::Tick);
            carry(&mut third, now, effects, at);
        }
    }
    assert!(third.iter().all(|node| node.facts.is_empty()), "{third:?}");
}

#[test]
fn an_incarnation_that_left_is_not_taken_from_a_late_list() {
    let mut nodes = two();
    let late = nodes[1].foca.identity().clone();
    let effects = nodes[1].handle(ms(2), Event::Leave);
    carry(&mut nodes, ms(2), effects, 1);
    // c never knew b; d has not heard that it left.
    let mut nodes = [nodes.into_iter().next().unwrap(), start("c", &[])];
    link(&mut nodes, ms(3));
    let mut d = start("d", &[]);
    let mut sync = d.sync(false);
    sync.members.push(Known::alive(late));
    d.send_sync("c", &sync);
    let Some(Effect::Send { bytes, .. }) = d.effects.pop() else {
        panic!()
    };
    nodes[1].handle(
        ms(4),
        Event::Gossip {
            from: "d",
            bytes: &bytes,
        },
    );
    assert_eq!(
        nodes[1].members().keys().collect::<Vec<_>>(),
        ["a", "c", "d"]
    );
    // Nor does it probe it, or tell others of it.
    assert!(
        nodes[1]
            .foca
            .iter_members()
            .all(|known| known.id().id != "b")
    );
}

#[test]
fn a_long_list_goes_in_several_messages_and_only_the_last_ends_the_wait() {
    let mut big = start("a", &[]);
    let many =
        (0..500).map(|n| Known::alive(Identity::new(&member(&format!("node-{n:04}")), 7, 0)));
    big.apply(ms(0), many.collect());
    big.handle(ms(0), Event::Tick);
    big.effects.clear();
    let mut joiner = start("z", &["a"]);
    big.linked.insert("z".into());
    big.send_list(ms(1), "z", false);
    let parts: Vec<Effect> = std::mem::take(&mut big.effects);
    assert!(parts.len() > 2);
    for (n, part) in parts.iter().enumerate() {
        let Effect::Send { bytes, .. } = part else {
            panic!("{part:?}")
        };
        assert!(bytes.len() <= MAX_MESSAGE);
        assert_eq!(joiner.phase, Phase::Waiting, "part {n}");
        joiner.handle(ms(1), Event::Gossip { from: "a", bytes });
    }
    assert_eq!(joiner.phase, Phase::Joined);
    assert_eq!(joiner.members().len(), 502);
}

#[test]
fn messages_of_version_1() {
    // Other versions of this software have to read these very bytes.
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let mut peers = start("a", &[]);
    peers.handle(
        ms(1),
        Event::Link {
            peer: "b",
            up: true,
        },
    );
    let effects = peers.handle(ms(1), Event::Remove("b"));
    let Some(Effect::Send { bytes, .. }) = effects.first() else {
        panic!("{effects:?}")
    };
    let identity = "0161".to_owned()
        + "07"
        + "00"
        + "07"
        + "09"
        + "3132372e302e302e31"
        + "50"
        + "00"
        + "80808080808080"
        + "f83f"
        + "01";
    let fact = "0162".to_owned() + "01" + "0161" + "80dddb01" + "01" + "00";
    let flags = "01" /* formed */.to_owned() + "00" /* reply */ + "00" /* waiting */ + "00" /* whole */;
    assert_eq!(
        hex(bytes),
        "02".to_owned() + &identity + &flags + "00" + "01" + &fact
    );
    peers.effects.clear();
    peers.send_digest("b");
    let Some(Effect::Send { bytes, .. }) = peers.effects.first() else {
        panic!()
    };
    assert_eq!((bytes[0], bytes.len()), (1, 9));
}

#[test]
fn no_message_breaks_it() {
    use rand::{Rng, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(5);
    let mut nodes = two();
    // Real messages of every kind, bent.
    let mut messages = vec![vec![], vec![0], vec![1], vec![2], vec![4], vec![9, 9]];
    for round in 1..40u64 {
        let now = ms(round * 100);
        if round == 5 {
            nodes[0].handle(now, Event::Add(member("c")));
        }
        if round == 9 {
            nodes[0].handle(now, Event::Remove("d"));
            nodes[0].handle(now, pin("doc", Some("b")));
        }
        nodes[0].send_list(now, "b", true);
        nodes[0].send_pins(now, "b", true);
        for effect in nodes[0].handle(now, Event::Tick) {
            if let Effect::Send { bytes, .. } = effect {
                messages.push(bytes.to_vec());
            }
        }
    }
    for kind in [
        tag::SWIM,
        tag::DIGEST,
        tag::SYNC,
        tag::PINS_DIGEST,
        tag::PINS,
    ] {
        let real = |bytes: &Vec<u8>| bytes.first() == Some(&kind) && bytes.len() > 1;
        assert!(messages.iter().any(real), "none of kind {kind}: {nodes:?}");
    }
    for round in 0..40_000u64 {
        let mut bytes = messages[random.random_range(0..messages.len())].clone();
        for _ in 0..random.random_range(0..4) {
            if bytes.is_empty() {
                break;
            }
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..4) {
                0 => bytes[at] ^= 1 << random.random_range(0..8),
                1 => bytes[at] = random.random(),
                2 => bytes.truncate(at),
                _ => bytes.insert(at, random.random()),
            }
        }
        let now = ms(4000 + round);
        for effect in nodes[1].handle(
            now,
            Event::Gossip {
                from: "a",
                bytes: &bytes,
            },
        ) {
            if let Effect::Send { bytes, .. } = effect {
                assert!(bytes.len() <= MAX_MESSAGE);
            }
        }
        assert!(nodes[1].members().contains_key("b"));
    }
}

#[test]
fn waiting_and_joined_drain_leaving_until_drained_or_the_deadline() {
    let mut waiting = start("a", &["b"]);
    waiting.handle(ms(1), Event::Drain);
    assert_eq!(waiting.phase, Phase::Leaving);
    for early in [true, false] {
        let mut nodes = two();
        let effects = nodes[1].handle(ms(2), Event::Drain);
        carry(&mut nodes, ms(2), effects, 1);
        for node in &nodes {
            assert_eq!(state(node, "b"), Some(MemberState::Leaving));
        }
        // Not again, and nobody else ends it.
        assert_eq!(nodes[1].handle(ms(3), Event::Drain), []);
        assert_eq!(nodes[0].handle(ms(3), Event::Drained), []);
        let due = ms(2) + timings().drain;
        let ends = if early { ms(4) } else { due };
        for now in (4..due.as_millis() as u64).step_by(100).map(ms) {
            if now < ends {
                let effects = nodes[1].handle(now, Event::Tick);
                carry(&mut nodes, now, effects, 1);
            }
        }
        assert_eq!(nodes[1].phase, Phase::Leaving);
        let event = if early { Event::Drained } else { Event::Tick };
        let effects = nodes[1].handle(ends, event);
        carry(&mut nodes, ends, effects, 1);
        assert_eq!(nodes[1].phase, Phase::Out);
        assert_eq!(state(&nodes[0], "b"), None);
    }
}

#[test]
fn a_pin_is_known_to_all_until_it_is_removed_and_the_later_word_wins() {
    let mut nodes = two();
    let effects = nodes[0].handle(ms(2), pin("doc", Some("b")));
    assert!(effects.contains(&Effect::Changed));
    carry(&mut nodes, ms(2), effects, 0);
    // The same again is no news.
    assert_eq!(nodes[1].handle(ms(3), pin("doc", Some("b"))), []);
    assert_eq!(nodes[1].pins()["doc"], "b");
    // Said without hearing of each other: the later clock wins, then the author.
    let first = nodes[0].handle(ms(4), pin("doc", None));
    let second = nodes[1].handle(ms(4), pin("doc", Some("a")));
    carry(&mut nodes, ms(5), first, 0);
    carry(&mut nodes, ms(5), second, 1);
    for node in &nodes {
        assert_eq!(node.pins()["doc"], "a");
    }
    // A node that was away hears of removals, too.
    let effects = nodes[0].handle(ms(6), pin("doc", None));
    carry(&mut nodes, ms(6), effects, 0);
    let mut away = start("c", &[]);
    away.handle(ms(0), pin("doc", Some("c")));
    away.handle(ms(0), pin("own", Some("c")));
    let [a, _] = nodes;
    let mut nodes = [a, away];
    link(&mut nodes, ms(7));
    for node in &nodes {
        assert_eq!(node.pins().get("doc"), None);
        assert_eq!(node.pins()["own"], "c");
    }
    assert_eq!(nodes[0].pins.digest(), nodes[1].pins.digest());
}

#[test]
fn a_removal_is_forgotten_and_a_pin_is_not() {
    let mut peers = start("a", &[]);
    peers.handle(ms(1), pin("gone", Some("a")));
    peers.handle(ms(1), pin("kept", Some("a")));
    peers.handle(ms(2), pin("gone", None));
    let before = peers.pins.digest();
    peers.pins.expire(FORGET);
    assert_eq!(peers.pins.digest(), before);
    peers.pins.expire(FORGET + ms(2));
    assert_ne!(peers.pins.digest(), before);
    assert_eq!(peers.pins().keys().collect::<Vec<_>>(), ["kept"]);
}

#[test]
fn pins_are_bounded_and_two_parts_of_a_cluster_keep_the_same_ones() {
    use crate::store::model::PINS;
    let mut nodes = [start("a", &[]), start("b", &[])];
    for (at, count) in [(0, PINS), (1, PINS / 2)] {
        for n in 0..count {
            let effects = nodes[at].handle(ms(1), pin(&format!("doc-{at}-{n}"), Some("a")));
            assert_eq!(effects, [Effect::Changed]);
        }
    }
    let effects = nodes[0].handle(ms(1), pin("more", Some("a")));
    assert!(matches!(&effects[..], [Effect::Log { key, .. }] if key == "pins"));
    nodes[0].handle(ms(1), pin("doc-0-0", Some("b")));
    link(&mut nodes, ms(2));
    assert_eq!(nodes[0].pins(), nodes[1].pins());
    assert_eq!(nodes[0].pins().len(), PINS);
    assert_eq!(nodes[0].pins.digest(), nodes[1].pins.digest());
    assert!(nodes[1].pins().contains_key("doc-0-0"), "the newest of all");
}

#[test]
fn who_counts_the_unheard_hears_from_one_that_does_not_at_once() {
    // c never starts; b knows nothing of it, so a need not wait for it either.
    let mut nodes = [start("a", &["b", "c"]), start("b", &["a"])];
    let refused = true;
    nodes[0].handle(ms(1), Event::Unreachable { peer: "c", refused });
    link(&mut nodes, ms(1));
    assert_eq!(state(&nodes[0], "b"), Some(MemberState::Active));
    assert_eq!(nodes[0].members(), nodes[1].members());
}
