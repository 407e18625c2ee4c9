//! The registry's client with real servers: what each kind of trouble is called, and that every one
//! of them passes without a restart.

#![allow(clippy::print_stdout)] // Figures, for `--nocapture`.

use std::collections::BTreeMap;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use redis::Value;
use smartroute::store::redis::error::{Failure, StoreError};
use smartroute::store::redis::settings::{Nat, RedisSettings, Tls, Topology};
use smartroute::store::redis::{News, Registry, open};
use smartroute::store::{Known, Outcome, Reply, Request, Want};
use support::{Cluster, PATIENCE, Server, endpoint, free_port, settings, until};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

#[path = "support/redis.rs"]
#[allow(dead_code)]
mod support;

const LEASE: u64 = 9_000;
const KEY: &str = "{test}:smartroute:registry";
const SECRET: &str = "{test}:smartroute:secret";
const PASSWORD: &str = "hunter2-and-more";

/// One node: a registry, its subscription, and what a member remembers.
struct Node {
    id: &'static str,
    registry: Registry,
    news: watch::Receiver<News>,
    changes: JoinHandle<()>,
    seq: u64,
    as_of: u64,
    known: Known,
    last: Option<Reply>,
}

impl Node {
    fn new(id: &'static str, settings: RedisSettings) -> Self {
        let (registry, changes, news) = open(settings).unwrap();
        Self {
            id,
            registry,
            news,
            changes: tokio::spawn(changes.run()),
            seq: 0,
            as_of: 0,
            known: Known::default(),
            last: None,
        }
    }

    async fn beat(&mut self) -> Result<Reply, StoreError> {
        self.seq += 1;
        let request = Request {
            id: self.id.into(),
            incarnation: 1,
            seq: self.seq,
            as_of: self.as_of,
            want: if self.known.epoch == 0 {
                Want::Join
            } else {
                Want::Renew
            },
            record: format!("{{\"at\":{}}}", self.seq / 1_000),
            lease: LEASE,
            orphan_timeout: 10 * LEASE,
            found_after: 0,
            agreement: "same".into(),
            known: self.known.clone(),
            floor: self.known.epoch,
            view: None,
            admit: BTreeMap::new(),
            gone: BTreeMap::new(),
            pins: BTreeMap::new(),
            evict: BTreeMap::new(),
        };
        let reply = self.registry.heartbeat(&request).await?;
        self.as_of = reply.now;
        if reply.outcome == Outcome::Renewed {
            self.known = reply.known.clone();
        }
        self.last = Some(reply.clone());
        Ok(reply)
    }

    async fn fails(&mut self) -> StoreError {
        let error = self.beat().await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains(PASSWORD), "{text}");
        assert!(!error.to_string().contains('\n'), "{text}");
        error
    }

    /// Beats until it works, and tells what went wrong on the way.
    async fn recovers(&mut self) -> (Reply, Vec<StoreError>) {
        let end = Instant::now() + PATIENCE;
        let mut failures: Vec<StoreError> = Vec::new();
        loop {
            match self.beat().await {
                Ok(reply) => return (reply, failures),
                Err(error) => {
                    assert!(Instant::now() < end, "never again: {error}; {failures:?}");
                    if failures.last() != Some(&error) {
                        failures.push(error);
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Waits for news that fit.
    async fn hears(&mut self, what: &str, fits: impl FnMut(&News) -> bool) -> News {
        let heard = timeout(PATIENCE, self.news.wait_for(fits)).await;
        let heard = heard.unwrap_or_else(|_| panic!("never heard: {what}"));
        heard.unwrap().clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.changes.abort();
    }
}

fn with(port: u16, change: impl FnOnce(&mut RedisSettings)) -> RedisSettings {
    let mut settings = settings(port);
    change(&mut settings);
    settings
}

macro_rules! test {
    ($(#[$doc:meta])* $name:ident, $body:block) => {
        $(#[$doc])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() $body
    };
}

test!(
    /// One command per heartbeat, whoever else there is, and word of each other's changes.
    heartbeats_cost_one_command_each, {
        let server = Server::start(&[]);
        let mut a = Node::new("a", settings(server.port));
        let reply = a.beat().await.unwrap();
        assert_eq!((reply.outcome, reply.known.epoch), (Outcome::Renewed, 1));
        a.hears("the subscription", |news| news.subscriptions == 1).await;
        let mut b = Node::new("b", settings(server.port));
        b.beat().await.unwrap();
        a.hears("that b joins", |news| news.epoch == 2).await;
        assert_eq!(a.beat().await.unwrap().view.unwrap().members.len(), 2);
        b.hears("the subscription", |news| news.subscriptions == 1).await;

        let total = |server: &Server| {
            let info: String = server.run("INFO stats");
            let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
            line.unwrap().parse::<u64>().unwrap()
        };
        let (scripts, before) = (server.calls("evalsha"), total(&server));
        let overhead = total(&server) - before;
        let before = total(&server);
        for _ in 0..50 {
            a.beat().await.unwrap();
            b.beat().await.unwrap();
        }
        assert_eq!(server.calls("evalsha") - scripts, 100);
        // What the script calls is counted too: eight each, however many members there are.
        let all = total(&server) - before - 2 * overhead;
        println!("100 heartbeats: 100 EVALSHA, {all} commands with those inside");
        assert!(all <= 100 * 8, "{all}");
        assert_eq!(server.calls("eval"), 1);
        assert!(server.run::<u64>(&format!("PTTL {KEY}")) > 29 * 24 * 3_600_000);
    }
);

test!(
    /// The first one makes the secret, the others find it.
    one_secret_for_all, {
        let server = Server::start(&[]);
        let mut a = Node::new("a", settings(server.port));
        let mut b = Node::new("b", settings(server.port));
        assert_eq!(a.registry.secret("of a").await.unwrap(), "of a");
        assert_eq!(b.registry.secret("of b").await.unwrap(), "of a");
        assert!(server.run::<u64>(&format!("PTTL {SECRET}")) > 89 * 24 * 3_600_000);
        let mut other = Node::new("a", with(server.port, |s| s.prefix = "other".into()));
        assert_eq!(other.registry.secret("of other").await.unwrap(), "of other");
        // And not by another prefix's heartbeats either.
        a.beat().await.unwrap();
        assert_eq!(other.beat().await.unwrap().view.unwrap().members.len(), 1);
    }
);

test!(passwords_and_users, {
    let server = Server::start(&["--user", "default", "on", "nopass", "~*", "&*", "+@all"]);
    let user = |name: &str, rights: &str| {
        server.run::<()>(&format!(
            "ACL SETUSER {name} on >{PASSWORD} resetchannels {rights}"
        ));
    };
    let be = |name: &str, password: &str| {
        with(server.port, |settings| {
            settings.username = Some(name.into());
            settings.password = Some(password.into());
            settings.db = 2;
        })
    };
    // What the documentation says is needed is enough.
    let rights = "~{test}:smartroute:* &{test}:smartroute:changes +evalsha +eval +hkeys +hget \
            +hmget +hset +hdel +pexpire +time +publish +subscribe +ping +info +select";
    user("enough", rights);
    let mut enough = Node::new("a", be("enough", PASSWORD));
    enough.beat().await.unwrap();
    enough
        .hears("the subscription", |news| news.subscriptions == 1)
        .await;
    user("secretive", &format!("{rights} +set +getex"));
    let mut secretive = Node::new("a", be("secretive", PASSWORD));
    secretive.registry.secret("x").await.unwrap();

    let error = Node::new("a", be("enough", "wrong")).fails().await;
    assert_eq!(error.failure, Failure::Auth);
    assert!(
        error.to_string().contains("set username and password"),
        "{error}"
    );
    let error = Node::new("a", be("nobody", PASSWORD)).fails().await;
    assert_eq!(error.failure, Failure::Auth);

    for (missing, failure) in [
        ("+evalsha", Failure::Denied),
        ("+publish", Failure::Denied),
        ("&{test}:smartroute:changes", Failure::Denied),
        ("~{test}:smartroute:*", Failure::Denied),
    ] {
        let name = format!(
            "without{}",
            missing.replace(|c: char| !c.is_alphanumeric(), "")
        );
        user(&name, &rights.replace(&format!("{missing} "), ""));
        let error = Node::new("z", be(&name, PASSWORD)).fails().await;
        assert_eq!(error.failure, failure, "{missing}: {error}");
        assert_eq!(error.key(), "redis denied");
    }
    // Nothing of what was denied was half done.
    let fields: Vec<String> = server.run(&format!("HKEYS {KEY}"));
    assert!(fields.is_empty(), "another database: {fields:?}");
    enough.beat().await.unwrap();
    assert_eq!(enough.known.epoch, 1);

    // Without INFO every connection is a new server: no expiry by its clock at first.
    user("blind", &rights.replace("+info ", ""));
    let mut blind = Node::new("b", be("blind", PASSWORD));
    blind.beat().await.unwrap();
    assert_eq!(blind.beat().await.unwrap().outcome, Outcome::Renewed);

    // Without SUBSCRIBE all goes on, a little later, and the reason is told.
    user("deaf", &rights.replace("+subscribe ", ""));
    let mut deaf = Node::new("c", be("deaf", PASSWORD));
    deaf.beat().await.unwrap();
    let news = deaf.hears("why not", |news| news.failure.is_some()).await;
    assert_eq!(news.failure.unwrap().failure, Failure::Denied);
    deaf.beat().await.unwrap();

    server.run::<()>(&format!("CONFIG SET requirepass {PASSWORD}"));
    let error = Node::new("a", settings(server.port)).fails().await;
    assert_eq!(error.failure, Failure::Auth, "{error}");
});

test!(databases, {
    let server = Server::start(&["--databases", "4"]);
    let mut node = Node::new("a", with(server.port, |s| s.db = 3));
    node.beat().await.unwrap();
    let keyspace: String = server.run("INFO keyspace");
    assert!(
        keyspace.contains("db3:keys=1") && !keyspace.contains("db0"),
        "{keyspace}"
    );
    let error = Node::new("a", with(server.port, |s| s.db = 4))
        .fails()
        .await;
    assert_eq!(error.failure, Failure::Database, "{error}");
    assert!(error.to_string().contains("set db"), "{error}");
});

test!(a_replica_is_refused_and_taken_once_it_is_the_master, {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    until("the replica follows", || {
        replica
            .run::<String>("INFO replication")
            .contains("master_link_status:up")
    });
    let mut node = Node::new("a", settings(replica.port));
    let error = node.fails().await;
    assert_eq!(error.failure, Failure::ReadOnly, "{error}");
    assert!(error.to_string().contains("name the master"), "{error}");
    replica.run::<()>("REPLICAOF NO ONE");
    node.recovers().await;
});

test!(an_unreachable_or_silent_server_costs_bounded_time, {
    let mut node = Node::new("a", settings(free_port()));
    let error = node.fails().await;
    assert_eq!(error.failure, Failure::Unreachable);
    assert!(error.to_string().contains("cannot connect"), "{error}");
    // Until the next attempt the same one comes at once; pauses grow up to the bound.
    for _ in 0..40 {
        let wait = node.registry.retry_at().unwrap() - Instant::now();
        assert!(wait <= Duration::from_millis(200), "{wait:?}");
        assert_eq!(node.fails().await, error);
        sleep(Duration::from_millis(10)).await;
    }

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let began = Instant::now();
    let password = |s: &mut RedisSettings| s.password = Some(PASSWORD.into());
    let error = Node::new("a", with(port, password)).fails().await;
    assert_eq!(error.failure, Failure::Timeout, "{error}");
    let error = Node::new("a", settings(port)).fails().await;
    assert_eq!(error.failure, Failure::Timeout, "{error}");
    assert!(began.elapsed() < Duration::from_millis(4_500));

    let name = endpoint_of("no-such-host.invalid", 6379);
    let error = Node::new("a", with(0, |s| s.topology = name)).fails().await;
    assert_eq!(error.failure, Failure::Unreachable, "{error}");
});

fn endpoint_of(host: &str, port: u16) -> Topology {
    let mut server = endpoint(port);
    server.host = host.into();
    Topology::Standalone { server }
}

test!(killed_and_restarted_empty, {
    let mut server = Server::start(&[]);
    let mut a = Node::new("a", settings(server.port));
    a.beat().await.unwrap();
    a.hears("the subscription", |news| news.subscriptions == 1)
        .await;
    server.kill();
    assert_eq!(a.fails().await.failure, Failure::Unreachable);
    server.restart();
    let (reply, failures) = a.recovers().await;
    assert!(
        failures
            .iter()
            .all(|error| error.failure == Failure::Unreachable)
    );
    assert_eq!(reply.outcome, Outcome::Behind);
    assert!(a.registry.retry_at().is_none(), "no pause after a success");
    a.hears("the second subscription", |news| news.subscriptions == 2)
        .await;
    let mut b = Node::new("b", settings(server.port));
    b.beat().await.unwrap();
    a.hears("that b joins", |news| news.epoch == 1).await;
});

test!(stopped_and_continued, {
    let server = Server::start(&[]);
    let mut a = Node::new("a", settings(server.port));
    a.beat().await.unwrap();
    server.signal(libc::SIGSTOP);
    let began = Instant::now();
    assert_eq!(a.fails().await.failure, Failure::Timeout);
    assert!(began.elapsed() < Duration::from_millis(1_500));
    server.signal(libc::SIGCONT);
    let (reply, _) = a.recovers().await;
    assert_eq!(reply.outcome, Outcome::Renewed);
});

test!(a_flushed_script_is_sent_again, {
    let server = Server::start(&[]);
    let mut a = Node::new("a", settings(server.port));
    a.beat().await.unwrap();
    server.run::<()>("SCRIPT FLUSH");
    assert_eq!(a.beat().await.unwrap().outcome, Outcome::Renewed);
    a.beat().await.unwrap();
    assert_eq!((server.calls("eval"), server.calls("evalsha")), (2, 3));
});

test!(a_failing_script_is_told_and_retried, {
    let server = Server::start(&[]);
    server.run::<()>(&format!("SET {KEY} something-else"));
    let mut a = Node::new("a", settings(server.port));
    let error = a.fails().await;
    assert_eq!(
        (error.failure, error.key().as_str()),
        (Failure::Script, "redis script")
    );
    server.run::<()>(&format!("DEL {KEY}"));
    a.recovers().await;
    // Out of memory it cannot serve, and says so.
    server.run::<()>("CONFIG SET maxmemory 1");
    let error = a.fails().await;
    assert_eq!(error.failure, Failure::Unavailable, "{error}");
    server.run::<()>("CONFIG SET maxmemory 0");
    a.recovers().await;
});

test!(by_a_unix_socket, {
    let folder = support::Folder::new();
    let path = folder
        .path()
        .join("redis.sock")
        .to_str()
        .unwrap()
        .to_owned();
    let _server = Server::start(&["--unixsocket", &path]);
    let topology = Topology::Socket { path };
    let mut a = Node::new("a", with(0, |s| s.topology = topology));
    a.beat().await.unwrap();
    a.hears("the subscription", |news| news.subscriptions == 1)
        .await;
});

fn by_sentinel(sentinels: &[u16], name: &str) -> RedisSettings {
    with(0, |settings| {
        settings.topology = Topology::Sentinel {
            sentinels: sentinels.iter().map(|port| endpoint(*port)).collect(),
            name: name.into(),
            username: None,
            password: None,
            tls: None,
            nat: Vec::new(),
        };
    })
}

test!(a_sentinel_fails_over, {
    let mut master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    let sentinel = Server::sentinel(master.port);
    until("the sentinel knows the replica", || {
        sentinel.run::<Vec<Value>>("SENTINEL REPLICAS main").len() == 1
    });
    // The first one is down, which costs nothing but an attempt.
    let mut a = Node::new("a", by_sentinel(&[free_port(), sentinel.port], "main"));
    a.beat().await.unwrap();
    assert!(a.beat().await.unwrap().effective);
    a.hears("the subscription", |news| news.subscriptions == 1)
        .await;
    assert_eq!(master.run::<u64>("DBSIZE"), 1);
    until("the replica has it", || replica.run::<u64>("DBSIZE") == 1);

    let error = Node::new("a", by_sentinel(&[sentinel.port], "other"))
        .fails()
        .await;
    assert_eq!(error.failure, Failure::NoMaster);
    assert!(error.to_string().contains("\"other\""), "{error}");

    master.kill();
    let began = Instant::now();
    let mut failures: Vec<StoreError> = Vec::new();
    while let Err(error) = a.registry.secret("x").await {
        assert!(began.elapsed() < PATIENCE, "never again: {failures:?}");
        if failures.last() != Some(&error) {
            failures.push(error);
        }
        sleep(Duration::from_millis(20)).await;
    }
    println!("failover: {:?}, {failures:?}", began.elapsed());
    // Each is told once, although each attempt asks the sentinels in another order.
    assert!(failures.len() <= 4, "{failures:?}");
    let reply = a.beat().await.unwrap();
    assert_eq!(reply.outcome, Outcome::Renewed);
    // The other server's clock is not compared with the first one's.
    assert!(!reply.effective);
    assert!(a.beat().await.unwrap().effective);
    let meta: String = replica.run(&format!("HGET {KEY} meta"));
    let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
    assert!(meta["graceUntil"].as_u64().unwrap() >= reply.now + LEASE);
    a.hears("the new subscription", |news| news.subscriptions == 2)
        .await;

    // A sentinel that still names what has become a replica is not believed.
    let mut third = Server::start(&[]);
    let wrong = Server::sentinel(third.port);
    let mut b = Node::new("b", by_sentinel(&[wrong.port], "main"));
    b.beat().await.unwrap();
    let port = third.port;
    third.run::<()>(&format!("REPLICAOF 127.0.0.1 {}", replica.port));
    third.run::<()>("CLIENT KILL TYPE normal");
    assert_eq!(third.port, port);
    let (_, failures) = {
        sleep(Duration::from_millis(50)).await;
        (
            0,
            [b.fails().await, {
                sleep(Duration::from_millis(300)).await;
                b.fails().await
            }],
        )
    };
    assert!(
        failures
            .iter()
            .any(|error| error.failure == Failure::WrongRole),
        "{failures:?}"
    );
    third.kill();
});

fn by_cluster(nodes: &[u16]) -> RedisSettings {
    with(0, |settings| {
        settings.topology = Topology::Cluster {
            nodes: nodes.iter().map(|port| endpoint(*port)).collect(),
            nat: Vec::new(),
        };
    })
}

test!(a_cluster_moves_the_slot_and_fails_over, {
    let mut cluster = Cluster::start();
    let slot: u16 = cluster.nodes[0].run(&format!("CLUSTER KEYSLOT {KEY}"));
    let source = cluster.owner(slot);
    let target = (source + 1) % 3;
    let other = (source + 2) % 3;
    // A node that has not got the slot says who has.
    let mut a = Node::new("a", by_cluster(&[cluster.nodes[other].port]));
    a.beat().await.unwrap();
    assert_eq!(a.registry.secret("x").await.unwrap(), "x");
    a.hears("the subscription", |news| news.subscriptions == 1)
        .await;
    let mut b = Node::new(
        "b",
        by_cluster(&[cluster.nodes[3].port, cluster.nodes[other].port]),
    );
    b.beat().await.unwrap();
    a.hears("that b joins", |news| news.epoch == 2).await;

    // On its way: importing and migrating, first with the key still here, then there.
    let [from, to] = [source, target].map(|node| cluster.id(node));
    let (from_node, to_node) = (&cluster.nodes[source], &cluster.nodes[target]);
    to_node.run::<()>(&format!("CLUSTER SETSLOT {slot} IMPORTING {from}"));
    from_node.run::<()>(&format!("CLUSTER SETSLOT {slot} MIGRATING {to}"));
    assert_eq!(a.beat().await.unwrap().outcome, Outcome::Renewed);
    from_node.run::<()>(&format!("MIGRATE 127.0.0.1 {} {KEY} 0 1000", to_node.port));
    let reply = a.beat().await.unwrap();
    assert_eq!(
        (reply.outcome, reply.effective),
        (Outcome::Renewed, false),
        "by ASK"
    );
    assert_eq!(
        a.registry.secret("y").await.unwrap(),
        "x",
        "which has not moved yet"
    );
    from_node.run::<()>(&format!(
        "MIGRATE 127.0.0.1 {} {SECRET} 0 1000",
        to_node.port
    ));
    for node in [to_node, from_node, &cluster.nodes[other]] {
        node.run::<()>(&format!("CLUSTER SETSLOT {slot} NODE {to}"));
    }
    assert_eq!(
        a.beat().await.unwrap().outcome,
        Outcome::Renewed,
        "by MOVED"
    );
    assert_eq!(
        b.beat().await.unwrap().outcome,
        Outcome::Renewed,
        "by MOVED"
    );
    assert!(a.beat().await.unwrap().effective);
    a.hears("the new subscription", |news| news.subscriptions == 2)
        .await;
    let moved = to_node.calls("evalsha");
    for _ in 0..20 {
        a.beat().await.unwrap();
    }
    assert_eq!(
        to_node.calls("evalsha") - moved,
        20,
        "it went straight there"
    );

    // Its master dies, and the only node that `a` was told of as well.
    until("the replica of the target has it", || {
        let replicas = &cluster.nodes[3..];
        replicas.iter().any(|node| {
            node.run::<String>("INFO replication")
                .contains(&format!("master_port:{}", cluster.nodes[target].port))
                && node.run::<u64>("DBSIZE") == 2
        })
    });
    cluster.nodes[target].kill();
    let began = Instant::now();
    let (reply, failures) = a.recovers().await;
    println!(
        "failover in the cluster: {:?}, {failures:?}",
        began.elapsed()
    );
    assert_eq!(reply.outcome, Outcome::Renewed);
    assert_eq!(b.recovers().await.0.outcome, Outcome::Renewed);
    assert!(cluster.owner(slot) >= 3, "a replica took over");
    // `a` was told of `other` alone; the rest it has learned.
    cluster.nodes[other].kill();
    cluster.nodes[cluster.owner(slot)].run::<()>("CLIENT KILL TYPE normal");
    assert_eq!(a.recovers().await.0.outcome, Outcome::Renewed);
});

test!(
    /// What a server announces is not where it is reached from here.
    announced_addresses_are_translated, {
        let master = Server::start(&[]);
        let folder = support::Folder::new();
        drop(folder);
        let sentinel = Server::sentinel(master.port);
        let settings = |nat: Vec<Nat>| {
            let mut settings = by_sentinel(&[sentinel.port], "main");
            if let Topology::Sentinel { nat: translated, .. } = &mut settings.topology {
                *translated = nat;
            }
            settings
        };
        Node::new("a", settings(Vec::new())).beat().await.unwrap();
        let nowhere = Nat { announced: endpoint(master.port), reached: endpoint(free_port()) };
        let error = Node::new("a", settings(vec![nowhere])).fails().await;
        assert_eq!(error.failure, Failure::Unreachable);
    }
);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority {
        issuer: Issuer::new(params, key),
        pem,
    }
}

/// Certificate and key for `name`, in PEM.
fn certificate(authority: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    // Named like its issuer it would look self-signed.
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn tls(ca: &[&str]) -> Tls {
    Tls {
        ca: ca.iter().map(ToString::to_string).collect(),
        cert: None,
        key: None,
        servername: None,
        reject_unauthorized: true,
    }
}

/// A server that speaks TLS at the second port.
fn tls_server(cert: &str, key: &str, ca: &str, clients: &str) -> (Server, u16) {
    let folder = support::Folder::new();
    let port = free_port();
    let [cert, key, ca] = [("cert", cert), ("key", key), ("ca", ca)]
        .map(|(name, content)| folder.write(name, content));
    let server = Server::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        clients,
    ]);
    (server, port)
}

test!(tls_checks_both_ends, {
    let [trusted, other] = [authority(), authority()];
    let (cert, key) = certificate(&trusted, "127.0.0.1");
    let (_server, port) = tls_server(&cert, &key, &trusted.pem, "no");
    let be = |change: &dyn Fn(&mut Tls)| {
        let mut tls = tls(&[&trusted.pem]);
        change(&mut tls);
        with(port, |settings| settings.tls = Some(tls))
    };
    let mut a = Node::new("a", be(&|_| {}));
    a.beat().await.unwrap();
    a.hears("the subscription", |news| news.subscriptions == 1)
        .await;
    let wrong_name = be(&|tls| tls.servername = Some("redis.example".into()));
    for settings in [be(&|tls| tls.ca = vec![other.pem.clone()]), wrong_name] {
        let error = Node::new("a", settings).fails().await;
        assert_eq!(error.failure, Failure::Tls, "{error}");
        assert!(error.to_string().contains("ca, servername"), "{error}");
    }
    Node::new(
        "a",
        be(&|tls| {
            tls.ca = Vec::new();
            tls.reject_unauthorized = false;
        }),
    )
    .beat()
    .await
    .unwrap();

    // Plain where TLS is spoken, and the reverse.
    let error = Node::new("a", settings(port)).fails().await;
    assert!(
        matches!(error.failure, Failure::Unreachable | Failure::Timeout),
        "{error}"
    );
    let error = Node::new(
        "a",
        with(_server.port, |s| s.tls = Some(tls(&[&trusted.pem]))),
    )
    .fails()
    .await;
    assert!(
        matches!(error.failure, Failure::Tls | Failure::Timeout),
        "{error}"
    );

    // What cannot be used is told before anything is connected.
    for (field, change) in [
        (
            "ca",
            &(|tls: &mut Tls| tls.ca = vec!["nothing".into()]) as &dyn Fn(&mut Tls),
        ),
        ("servername", &|tls| tls.servername = Some("a b".into())),
        ("key", &|tls| {
            tls.cert = Some(cert.clone());
            tls.key = Some("nothing".into());
        }),
    ] {
        let Err(error) = open(be(change)) else {
            panic!("{field} was taken")
        };
        assert_eq!(error.failure, Failure::Settings);
        assert!(
            error.to_string().contains(&format!("tls.{field} ")),
            "{error}"
        );
    }
});

test!(tls_with_client_certificates_and_names, {
    let [trusted, other] = [authority(), authority()];
    let (cert, key) = certificate(&trusted, "redis.example");
    let (_server, port) = tls_server(&cert, &key, &trusted.pem, "yes");
    let be = |of: Option<&Authority>| {
        let mut tls = tls(&[&other.pem, &trusted.pem]);
        tls.servername = Some("redis.example".into());
        if let Some(of) = of {
            let (cert, key) = certificate(of, "node.example");
            tls.cert = Some(cert);
            tls.key = Some(key.as_str().into());
        }
        with(port, |settings| settings.tls = Some(tls))
    };
    Node::new("a", be(Some(&trusted))).beat().await.unwrap();
    for refused in [None, Some(&other)] {
        let error = Node::new("a", be(refused)).fails().await;
        assert_eq!(error.failure, Failure::Tls, "{error}");
    }
});

test!(
    /// What `openssl req -x509` makes is at once authority and server; Node's TLS takes it.
    a_server_that_is_its_own_authority, {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        let (_server, port) = tls_server(&cert, &key.serialize_pem(), &cert, "no");
        let be = |change: &dyn Fn(&mut Tls)| {
            let mut tls = tls(&[&cert]);
            change(&mut tls);
            with(port, |settings| settings.tls = Some(tls))
        };
        Node::new("a", be(&|_| {})).beat().await.unwrap();
        let wrong_name = be(&|tls| tls.servername = Some("redis.example".into()));
        assert_eq!(Node::new("a", wrong_name).fails().await.failure, Failure::Tls);
        let not_it = be(&|tls| tls.ca = vec![authority().pem]);
        assert_eq!(Node::new("a", not_it).fails().await.failure, Failure::Tls);
    }
);
