//! Many nodes in one process, without Hocuspocus, over real links: without Redis, and with one.

#![allow(clippy::print_stdout, reason = "figures")]

#[allow(dead_code, reason = "the other half is for tests that attack a node")]
mod support;

#[path = "support/redis.rs"]
#[allow(dead_code, reason = "the other half is for tests of its failures")]
mod redis_server;

use std::sync::Arc;
use std::time::Duration;

use smartroute::cluster::view::MemberState;
use smartroute::config::Settings;
use smartroute::handle::{Command, Core};
use smartroute::store::redis::settings::RedisSettings;
use support::{Node, SECRET, settings};
use tokio::time::{Instant, sleep};

const NODES: usize = 50;

/// Descriptors that a node needs for each other one: two links, both ends of each in this process.
const DESCRIPTORS: usize = NODES * NODES * 2 + 500;

fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a local; both calls only read or write it.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    limit.rlim_cur as usize
}

/// Waits until each of these sees exactly these, active, under one hash; how long it took.
async fn agree(nodes: &[Node]) -> Duration {
    let began = Instant::now();
    loop {
        let snapshots: Vec<_> = nodes
            .iter()
            .map(|it| it.core.snapshot.load_full())
            .collect();
        let whole = snapshots.iter().all(|snapshot| {
            let members = snapshot.view.members.values();
            snapshot.hash == snapshots[0].hash
                && members.len() == nodes.len()
                && members.filter(|it| it.state == MemberState::Active).count() == nodes.len()
        });
        if whole {
            return began.elapsed();
        }
        let sizes: Vec<_> = snapshots.iter().map(|it| it.view.members.len()).collect();
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "no agreement: {sizes:?}"
        );
        sleep(Duration::from_millis(5)).await;
    }
}

/// Runs one after the other: each needs most of the descriptors there are.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn fifty_nodes_form_a_view_and_agree_again_after_ten_leave_at_once() {
    let _alone = ALONE.lock().await;
    assert!(
        descriptor_limit() >= DESCRIPTORS,
        "this test needs {DESCRIPTORS} descriptors: raise ulimit -n"
    );
    // What users have who set nothing.
    let settings = || Settings {
        ping_interval: 5_000,
        link_patience: 14_000,
        ..settings()
    };
    let mut nodes: Vec<Node> = Vec::new();
    let began = Instant::now();
    for n in 0..NODES {
        let id: &'static str = Box::leak(format!("node-{n:02}").into_boxed_str());
        let known: Vec<(&str, u16)> = nodes
            .iter()
            .rev()
            .take(3)
            .map(|it| (it.id, it.port))
            .collect();
        nodes.push(Node::seeded(id, SECRET, settings(), &known).await);
    }
    agree(&nodes).await;
    let formed = began.elapsed();
    assert!(formed < Duration::from_secs(10), "{formed:?}");
    let began = Instant::now();
    let leaving = nodes.split_off(NODES - 10);
    for node in &leaving {
        node.core.shut_down();
    }
    agree(&nodes).await;
    let agreed = began.elapsed();
    println!(
        "{NODES} nodes over TCP: a view in {formed:?}, one again {agreed:?} after 10 left at once"
    );
    drop(leaving);
}

/// What JavaScript does with nothing loaded: it turns, and lets go of what it does not own at once.
async fn turn(core: Arc<Core>) {
    let mut released = 0;
    while !core.stop.is_cancelled() {
        core.turn();
        while core.inbox.drain(usize::MAX).records().is_some() {}
        let epoch = core.snapshot.load().view.epoch;
        if epoch != released {
            released = epoch;
            let _ = core.request(Command::Released(epoch));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn with_redis_they_do_so_too_and_serve() {
    let _alone = ALONE.lock().await;
    assert!(
        descriptor_limit() >= DESCRIPTORS,
        "this test needs {DESCRIPTORS} descriptors: raise ulimit -n"
    );
    let server = redis_server::Server::start(&[]);
    let redis: RedisSettings = serde_json::from_value(serde_json::json!({
        "topology": { "kind": "standalone", "server": { "host": "127.0.0.1", "port": server.port } },
        "prefix": "fifty",
        "timeout": 3_000,
        "maxBackoff": 30_000,
    }))
    .unwrap();
    let settings = || Settings {
        ping_interval: 5_000,
        link_patience: 14_000,
        redis: Some(redis.clone()),
        ..settings()
    };
    // Who founds the cluster waits for those it was told of; one of them starts, one does not exist.
    let hints = [("node-01", 1), ("nobody", 1)];
    let mut nodes: Vec<Node> = Vec::new();
    let began = Instant::now();
    for n in 0..NODES {
        let id: &'static str = Box::leak(format!("node-{n:02}").into_boxed_str());
        let node = Node::seeded(id, SECRET, settings(), &hints).await;
        tokio::spawn(turn(Arc::clone(&node.core)));
        nodes.push(node);
    }
    agree(&nodes).await;
    serve(&nodes).await;
    let formed = began.elapsed();
    assert!(formed < Duration::from_secs(10), "{formed:?}");
    let began = Instant::now();
    let leaving = nodes.split_off(NODES - 10);
    for node in &leaving {
        node.core.request(Command::Leave).unwrap();
    }
    agree(&nodes).await;
    serve(&nodes).await;
    let agreed = began.elapsed();
    assert!(agreed < Duration::from_secs(10), "{agreed:?}");
    println!(
        "{NODES} nodes with Redis: they serve after {formed:?}, again {agreed:?} after 10 left"
    );
    drop(leaving);
}

/// Waits until each node may serve what it owns.
async fn serve(nodes: &[Node]) {
    let began = Instant::now();
    let names: Vec<String> = (0..200).map(|n| format!("doc-{n}")).collect();
    let settled = |node: &Node| {
        let snapshot = node.core.snapshot.load();
        node.core.serves()
            && names.iter().all(|name| {
                let owner = snapshot.owner(name.as_bytes());
                let own = owner.is_some_and(|it| snapshot.active[it as usize].id == node.id);
                !own || node.core.entitles(name.as_bytes())
            })
    };
    while !nodes.iter().all(settled) {
        assert!(began.elapsed() < Duration::from_secs(10), "not all serve");
        sleep(Duration::from_millis(5)).await;
    }
}
