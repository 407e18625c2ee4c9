//! The script against its model: random heartbeats to both, replies and stored state equal.
//!
//! `REDIS_SEEDS` sets how many sequences run (default 60), `REDIS_SEED` runs one.

#![allow(clippy::print_stdout)] // Figures, for `--nocapture`.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use smartroute::cluster::view::MemberState;
use smartroute::store::model::{HISTORY, PINS, Registry, TOMBSTONES, silence};
use smartroute::store::{
    Eviction, Incarnation, Known, Outcome, Reply, Request, StoredMember, StoredView, Want,
};

#[path = "support/redis.rs"]
#[allow(dead_code)]
mod support;

const SCRIPT: &str = include_str!("../src/store/registry.lua");
const KEY: &str = "{test}:smartroute:registry";
const LEASE: u64 = 9_000;
const IDS: [&str; 5] = ["a", "b", "c", "1", "ä/ \"\u{7f}"];
const DOCUMENTS: [&str; 4] = ["doc", "1", "\u{0}/\\\u{2028}", "🙂"];

/// Both registries, and one clock for them.
struct Pair {
    model: Registry,
    redis: redis::Connection,
    now: u64,
}

impl Pair {
    fn new(server: &support::Server) -> Self {
        Self {
            model: Registry::default(),
            redis: server.admin(),
            now: 1_700_000_000_000,
        }
    }

    /// The reply both gave.
    fn send(&mut self, request: &Request) -> Reply {
        let expected = self.model.apply(request, self.now);
        let text: String = redis::cmd("EVAL")
            .arg(SCRIPT)
            .arg(1)
            .arg(KEY)
            .arg(serde_json::to_string(request).unwrap())
            .arg("{test}:smartroute:changes")
            .arg("")
            .arg(60_000)
            .arg(self.now)
            .query(&mut self.redis)
            .unwrap();
        let reply: Reply = serde_json::from_str(&text).unwrap();
        assert_eq!(reply, expected, "after {request:?}");
        assert_eq!(self.stored(), self.model, "after {request:?}");
        reply
    }

    fn fields(&mut self) -> BTreeMap<String, String> {
        let mut fields = redis::cmd("HGETALL");
        fields.arg(KEY).query(&mut self.redis).unwrap()
    }

    fn stored(&mut self) -> Registry {
        let mut state = json!({ "members": {}, "pins": {}, "tombstones": {}, "history": {} });
        for (field, text) in self.fields() {
            let value: Value = serde_json::from_str(&text).unwrap();
            match (field.strip_prefix("m:"), value) {
                (Some(id), value) => state["members"][id] = value,
                (None, Value::Object(meta)) if field == "meta" => {
                    state.as_object_mut().unwrap().extend(meta);
                }
                (None, value) => state[field] = value,
            }
        }
        let state: Map<String, Value> = serde_json::from_value(state).unwrap();
        if state.contains_key("epoch") {
            serde_json::from_value(Value::Object(state)).unwrap()
        } else {
            Registry::default()
        }
    }

    /// The store loses everything, or goes back to what it was.
    fn restore(&mut self, state: &Registry, fields: &BTreeMap<String, String>) {
        self.model = state.clone();
        let _: () = redis::cmd("DEL").arg(KEY).query(&mut self.redis).unwrap();
        for (field, text) in fields {
            let mut set = redis::cmd("HSET");
            let _: () = set
                .arg(KEY)
                .arg(field)
                .arg(text)
                .query(&mut self.redis)
                .unwrap();
        }
    }
}

/// What a process remembers between its requests.
#[derive(Clone, Default)]
struct Caller {
    seq: u64,
    as_of: u64,
    known: Known,
    floor: u64,
    view: StoredView,
    behind: bool,
    /// It mostly says the same again, or no accusation would ever stand for long.
    gone: BTreeMap<String, Incarnation>,
}

fn request(
    random: &mut StdRng,
    newest: &BTreeMap<&str, u64>,
    id: &str,
    incarnation: u64,
    caller: &mut Caller,
) -> Request {
    caller.seq += 1;
    let anybody = |random: &mut StdRng| {
        let id = *IDS.choose(random).unwrap();
        let newest = newest.get(id).copied().unwrap_or(1);
        let before = u64::from(newest > 1 && random.random_bool(0.1));
        (id.to_owned(), newest - before)
    };
    let some = |random: &mut StdRng, chance: f64| {
        let mut map = BTreeMap::new();
        while random.random_bool(chance) {
            let (id, incarnation) = anybody(random);
            map.insert(id, Incarnation(incarnation));
        }
        map
    };
    if random.random_bool(0.2) {
        caller.gone = some(random, 0.5);
    }
    let usual = if caller.known.epoch == 0 {
        Want::Join
    } else {
        Want::Renew
    };
    let want = match random.random_range(0..100) {
        0..4 => Want::Join,
        4..8 => Want::Renew,
        8..10 => Want::Drain,
        10..12 => Want::Leave,
        _ => usual,
    };
    let mut request = Request {
        id: id.into(),
        incarnation,
        seq: caller.seq - u64::from(random.random_bool(0.02)),
        as_of: caller.as_of,
        want,
        record: format!(
            "{{\"of\":\"{id}\",\"n\":{}}}",
            random.random_range(0..12) / 11
        ),
        lease: *[LEASE, LEASE, LEASE, 2 * LEASE + 1].choose(random).unwrap(),
        orphan_timeout: 4 * LEASE,
        found_after: LEASE / 2,
        agreement: if random.random_bool(0.01) {
            "other"
        } else {
            "same"
        }
        .into(),
        known: caller.known.clone(),
        floor: caller.floor,
        view: None,
        admit: some(random, 0.5),
        gone: caller.gone.clone(),
        pins: BTreeMap::new(),
        evict: BTreeMap::new(),
    };
    if caller.behind || random.random_bool(0.02) {
        request.view = Some(caller.view.clone());
    }
    if random.random_bool(0.01) {
        // A view that nobody made.
        request.known.epoch += random.random_range(0..3);
    }
    while random.random_bool(0.1) {
        let document = (*DOCUMENTS.choose(random).unwrap()).to_owned();
        let node = *["", "a", "b"].choose(random).unwrap();
        request.pins.insert(document, node.into());
    }
    if random.random_bool(0.02) {
        let (id, incarnation) = anybody(random);
        let reason = "by hand".into();
        let drain = random.random_bool(0.5);
        let eviction = Eviction {
            incarnation,
            reason,
            drain,
            force: random.random_bool(0.3),
        };
        request.evict.insert(id, eviction);
    }
    request
}

/// One of the instants to come at which a comparison changes its answer, or one beside it.
fn edge(random: &mut StdRng, pair: &Pair, callers: &BTreeMap<(String, u64), Caller>) -> u64 {
    let model = &pair.model;
    let mut edges = vec![model.grace_until, model.born + LEASE / 2];
    for lease in [LEASE, 2 * LEASE + 1] {
        edges.push(model.last_effective + lease / 2);
        edges.extend(callers.values().map(|caller| caller.as_of + lease / 6));
    }
    for entry in model.members.values() {
        edges.extend([entry.lease_until, entry.renewed_at + 4 * LEASE]);
        for accusation in entry.accusations.values() {
            edges.push(accusation.since + silence(entry.lease));
        }
    }
    edges.extend(model.tombstones.values().map(|tombstone| tombstone.until));
    // Tombstones last long: seldom, or nothing else happens.
    let near = pair.now
        + if random.random_bool(0.05) {
            40 * LEASE
        } else {
            LEASE
        };
    edges.retain(|edge| (pair.now + 1..near).contains(edge));
    let edge = edges.choose(random).copied().unwrap_or(pair.now + 1);
    edge + random.random_range(0..3) - 1
}

fn run(server: &support::Server, seed: u64, outcomes: &mut BTreeMap<String, u64>) {
    let random = &mut StdRng::seed_from_u64(seed);
    let mut pair = Pair::new(server);
    pair.restore(&Registry::default(), &BTreeMap::new());
    let mut callers: BTreeMap<(String, u64), Caller> = BTreeMap::new();
    let mut copy = (Registry::default(), BTreeMap::new());
    let nodes = random.random_range(1..=IDS.len());
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    for _ in 0..150 {
        pair.now = match random.random_range(0..100) {
            0..50 => pair.now + random.random_range(0..LEASE / 9),
            50..60 => pair.now + random.random_range(0..LEASE),
            60..63 => pair.now + random.random_range(0..4 * LEASE),
            _ => edge(random, &pair, &callers),
        };
        match random.random_range(0..200) {
            0 => pair.restore(&Registry::default(), &BTreeMap::new()),
            1 => copy = (pair.model.clone(), pair.fields()),
            2 => pair.restore(&copy.0, &copy.1),
            _ => {}
        }
        let id = IDS[random.random_range(0..nodes)];
        // Mostly the newest process of each node.
        let known = newest.clone();
        let newest = newest.entry(id).or_insert(1);
        let incarnation = if random.random_bool(0.95) {
            *newest
        } else {
            random.random_range(1..=*newest + 1)
        };
        let caller = callers.entry((id.into(), incarnation)).or_default();
        let request = request(random, &known, id, incarnation, caller);
        let reply = pair.send(&request);
        *outcomes.entry(format!("{:?}", reply.outcome)).or_default() += 1;
        if random.random_bool(0.05) {
            continue; // The reply is lost.
        }
        caller.as_of = reply.now;
        caller.floor = caller.floor.max(reply.known.epoch);
        caller.behind = reply.outcome == Outcome::Behind;
        if reply.outcome == Outcome::Departed && incarnation == *newest && random.random_bool(0.5) {
            *newest += 1;
        }
        if !reply.strangers.is_empty() {
            *outcomes.entry("strangers".into()).or_default() += 1;
        }
        if reply.outcome == Outcome::Renewed {
            caller.known = reply.known;
            if let Some(view) = reply.view {
                *outcomes.entry("views".into()).or_default() += 1;
                caller.view = view;
            }
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_heartbeats() {
    let server = support::Server::start(&[]);
    let mut outcomes = BTreeMap::new();
    if let Some(seed) = setting("REDIS_SEED") {
        return run(&server, seed, &mut outcomes);
    }
    for seed in 0..setting("REDIS_SEEDS").unwrap_or(60) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            run(&server, seed, &mut outcomes);
        }));
        assert!(
            result.is_ok(),
            "seed {seed}: REDIS_SEED={seed} cargo test --no-default-features --test redis_model"
        );
    }
    println!("{outcomes:?}");
    // Nothing of it was left out.
    for outcome in [
        "Evicted",
        "Renewed",
        "Left",
        "Behind",
        "Departed",
        "IdTaken",
        "Mismatch",
        "Stale",
        "views",
        "strangers",
    ] {
        assert!(
            outcomes.get(outcome).is_some_and(|count| *count > 5),
            "{outcome}: {outcomes:?}"
        );
    }
}

fn plain(id: &str, incarnation: u64, seq: u64, want: Want, as_of: u64) -> Request {
    Request {
        id: id.into(),
        incarnation,
        seq,
        as_of,
        want,
        record: "{}".into(),
        lease: LEASE,
        orphan_timeout: 10 * LEASE,
        found_after: 0,
        agreement: "same".into(),
        known: Known::default(),
        floor: 0,
        view: None,
        admit: BTreeMap::new(),
        gone: BTreeMap::new(),
        pins: BTreeMap::new(),
        evict: BTreeMap::new(),
    }
}

/// Nodes that remember what members do, incarnation 1 of each.
struct Nodes {
    pair: Pair,
    seq: u64,
    known: BTreeMap<&'static str, Known>,
}

impl Nodes {
    /// `ids`, all admitted, each with the view installed in which the last one was.
    fn with(server: &support::Server, ids: &[&'static str]) -> Self {
        let mut nodes = Self {
            pair: Pair::new(server),
            seq: 0,
            known: BTreeMap::new(),
        };
        for id in ids {
            nodes.beat(id, &[], &[]);
            nodes.beat(ids[0], &[id], &[]);
        }
        nodes.pass(2 * LEASE, ids);
        nodes
    }

    fn beat(&mut self, id: &'static str, admit: &[&str], gone: &[&str]) -> Reply {
        self.seq += 1;
        let want = if self.known.contains_key(id) {
            Want::Renew
        } else {
            Want::Join
        };
        let mut request = plain(id, 1, self.seq, want, self.pair.now);
        let all = |ids: &[&str]| {
            ids.iter()
                .map(|id| ((*id).into(), Incarnation(1)))
                .collect()
        };
        request.known = self.known.get(id).cloned().unwrap_or_default();
        request.admit = all(admit);
        request.gone = all(gone);
        let reply = self.pair.send(&request);
        self.known.insert(id, reply.known.clone());
        reply
    }

    fn pass(&mut self, time: u64, ids: &[&'static str]) {
        let end = self.pair.now + time;
        while self.pair.now < end {
            self.pair.now = end.min(self.pair.now + LEASE / 9);
            for id in ids {
                self.beat(id, &[], &[]);
            }
        }
    }

    fn has(&self, id: &str) -> bool {
        self.pair.model.members.contains_key(id)
    }
}

// What random heartbeats seldom meet: the very moment, and the very epoch.

#[test]
fn early_eviction_at_its_moment() {
    let server = support::Server::start(&[]);
    let mut nodes = Nodes::with(&server, &["a", "b", "c", "d"]);
    let epoch = nodes.pair.model.epoch;
    for id in ["a", "b"] {
        nodes.beat(id, &[], &["d"]);
    }
    let accused = nodes.pair.now;
    for pass in [LEASE / 9, LEASE / 3, silence(LEASE) - 1] {
        nodes.pair.now = accused + pass;
        nodes.beat("a", &[], &["d"]);
        assert!(nodes.has("d"), "{pass}");
    }
    nodes.pair.now = accused + silence(LEASE);
    nodes.beat("a", &[], &["d"]);
    assert!(!nodes.has("d"));
    assert!(
        nodes.pair.model.tombstones["d/1"]
            .reason
            .contains("crashed")
    );
    assert_eq!(nodes.pair.model.epoch, epoch + 1);
}

#[test]
fn no_early_eviction_by_a_history_that_does_not_reach_back() {
    let server = support::Server::start(&[]);
    let mut nodes = Nodes::with(&server, &["a", "b", "c", "d"]);
    for number in 0..HISTORY + 1 {
        nodes.seq += 1;
        let mut request = plain("a", 1, nodes.seq, Want::Renew, nodes.pair.now);
        request.known = nodes.known["a"].clone();
        request.pins = BTreeMap::from([("doc".into(), format!("node-{number}"))]);
        let reply = nodes.pair.send(&request);
        nodes.known.insert("a", reply.known);
    }
    for _ in 0..8 {
        nodes.beat("a", &[], &["d"]);
        nodes.beat("b", &[], &["d"]);
        nodes.pair.now += LEASE / 9;
        assert!(nodes.has("d"));
    }
    nodes.pass(LEASE / 3, &["a", "b"]);
    assert!(!nodes.has("d"), "its lease lapsed");
}

#[test]
fn a_lapsed_member_is_put_out_by_the_last_one_it_knew() {
    let server = support::Server::start(&[]);
    let mut nodes = Nodes::with(&server, &["a", "b"]);
    let members = &nodes.pair.model.members;
    assert_eq!(members["a"].known, members["b"].since);
    nodes.pass(LEASE - 1, &["b"]);
    assert!(nodes.has("a"));
    nodes.pass(1, &["b"]);
    assert!(!nodes.has("a"));
}

/// A store that lost everything, and a newcomer that had seen higher epochs came first.
#[test]
fn a_store_that_admitted_nobody_is_behind_every_member() {
    let server = support::Server::start(&[]);
    let mut nodes = Nodes::with(&server, &["a", "b"]);
    nodes.pair.restore(&Registry::default(), &BTreeMap::new());
    let mut join = plain("c", 1, 1, Want::Join, nodes.pair.now);
    join.floor = 1_000;
    join.found_after = LEASE;
    assert_eq!(nodes.pair.send(&join).outcome, Outcome::Renewed);
    assert_eq!(nodes.beat("a", &[], &[]).outcome, Outcome::Behind);
}

#[test]
fn bounds() {
    let server = support::Server::start(&[]);
    let mut pair = Pair::new(&server);
    pair.send(&plain("a", 1, 1, Want::Join, 0));
    let mut seq = 1;
    for start in (0..PINS + 100).step_by(1_000) {
        seq += 1;
        let mut request = plain("a", 1, seq, Want::Renew, pair.now);
        request.pins = (start..start + 1_000)
            .map(|number| (format!("document-{number}"), "a".to_owned()))
            .collect();
        assert!(pair.send(&request).effective);
    }
    assert_eq!(pair.model.pins.len(), PINS);
    pair.restore(&Registry::default(), &BTreeMap::new());
    pair.send(&plain("a", 1, 1, Want::Join, 0));
    for incarnation in 1..=TOMBSTONES as u64 + 20 {
        pair.now += incarnation % 3;
        pair.send(&plain("b", incarnation, 1, Want::Join, 0));
        pair.send(&plain("b", incarnation, 2, Want::Leave, 0));
    }
    assert_eq!(pair.model.tombstones.len(), TOMBSTONES);
}

/// Numbers and texts at the edges of what Lua and JSON share.
#[test]
fn extremes() {
    let server = support::Server::start(&[]);
    let mut pair = Pair::new(&server);
    let mut join = plain("a", u64::MAX, 99_999_999_999_999, Want::Join, 0);
    join.floor = 99_999_999;
    join.lease = u64::from(i32::MAX.unsigned_abs());
    join.record = "{\"weight\":0.1,\"x\":\"\\u0000\u{7f}\u{2028}é\"}".into();
    assert_eq!(pair.send(&join).known.epoch, 100_000_000);
    let mut behind = plain("b", 1, 1, Want::Join, pair.now);
    behind.known = Known {
        epoch: 99_999_999_999,
        mark: "m".into(),
    };
    assert_eq!(pair.send(&behind).outcome, Outcome::Behind);
    behind.seq = 2;
    let member = StoredMember {
        incarnation: u64::MAX - 1,
        record: String::new(),
        state: MemberState::Leaving,
        lease: LEASE,
        since: 5,
        known: 9,
    };
    behind.view = Some(StoredView {
        members: BTreeMap::from([("".into(), member)]),
        pins: BTreeMap::from([("".into(), "".into())]),
    });
    assert_eq!(pair.send(&behind).known.epoch, 100_000_000_000);
}

/// A later version adds fields: they are kept, and nothing else changes.
#[test]
fn what_a_later_version_adds_is_kept() {
    let server = support::Server::start(&[]);
    let mut pair = Pair::new(&server);
    pair.send(&plain("a", 1, 1, Want::Join, 0));
    let fields = pair.fields();
    let more = |text: &str| text.replacen('{', "{\"later\":{\"deep\":\"é\"},", 1);
    for (field, text) in [("meta", &fields["meta"]), ("m:a", &fields["m:a"])] {
        let mut set = redis::cmd("HSET");
        set.arg(KEY).arg(field).arg(more(text));
        set.arg("later").arg("{\"x\":1}");
        let _: () = set.query(&mut pair.redis).unwrap();
    }
    let request = plain("a", 1, 2, Want::Renew, pair.now);
    let mut json = serde_json::to_value(&request).unwrap();
    json["later"] = json!([1]);
    // As a later version says it, and as this one does.
    pair.model.apply(&request, pair.now);
    let mut eval = redis::cmd("EVAL");
    eval.arg(SCRIPT).arg(1).arg(KEY).arg(json.to_string());
    eval.arg("c").arg("").arg(60_000).arg(pair.now);
    let _: String = eval.query(&mut pair.redis).unwrap();
    let reply = pair.send(&plain("a", 1, 3, Want::Renew, pair.now));
    assert_eq!(reply.outcome, Outcome::Renewed);
    let fields = pair.fields();
    for field in ["meta", "m:a"] {
        let value: Value = serde_json::from_str(&fields[field]).unwrap();
        assert_eq!(value["later"]["deep"], "é", "{field}");
    }
    assert_eq!(fields["later"], "{\"x\":1}");
    // And what it answers can be read.
    let mut json = serde_json::to_value(&reply).unwrap();
    json["later"] = json!({});
    assert_eq!(serde_json::from_value::<Reply>(json).unwrap(), reply);
}

/// Nothing is written by a node whose format this script does not know, or by a script that fails.
#[test]
fn another_format_is_left_alone() {
    let server = support::Server::start(&[]);
    let mut redis = server.admin();
    let mut set = redis::cmd("HSET");
    let _: () = set
        .arg(KEY)
        .arg("meta")
        .arg("{\"format\":2}")
        .query(&mut redis)
        .unwrap();
    let request = serde_json::to_string(&plain("a", 1, 1, Want::Join, 0)).unwrap();
    let mut eval = redis::cmd("EVAL");
    eval.arg(SCRIPT)
        .arg(1)
        .arg(KEY)
        .arg(request)
        .arg("c")
        .arg("")
        .arg(60_000);
    let error = eval.query::<String>(&mut redis).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has format 2 and this node writes format 1"),
        "{error}"
    );
    let fields: BTreeMap<String, String> =
        redis::cmd("HGETALL").arg(KEY).query(&mut redis).unwrap();
    assert_eq!(fields.len(), 1);
}
