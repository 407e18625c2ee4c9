//! Real Redis servers for tests: one, a sentinel with master and replica, a Cluster of six. Each in
//! a folder of its own, on ports of its own, ended with the value that stands for it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use redis::{Client, Connection, FromRedisValue, Value};
use smartroute::store::redis::settings::{Endpoint, RedisSettings, Topology};
use tokio::time::Instant;

/// A condition that takes longer will never hold.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `holds`. It blocks the thread, which is the test's own.
#[allow(clippy::disallowed_methods)]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited too long: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A port that is free, with the Cluster's bus port 10,000 above it, below those that the system
/// gives to others.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(12_000..22_000);
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

/// A folder that goes with the value.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("smartroute-redis-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One server process.
pub struct Server {
    pub port: u16,
    pub folder: Folder,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Server {
    /// A server that keeps nothing on disk, with more arguments.
    pub fn start(arguments: &[&str]) -> Self {
        let mut all = vec!["--save", "", "--appendonly", "no"];
        all.extend(arguments);
        Self::with(Folder::new(), free_port(), &all)
    }

    fn with(folder: Folder, port: u16, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mut server = Self {
            port,
            folder,
            arguments,
            process: None,
        };
        server.restart();
        server
    }

    /// A sentinel that watches `master` as `main`.
    pub fn sentinel(master: u16) -> Self {
        let folder = Folder::new();
        let port = free_port();
        let configuration = folder.write(
            "sentinel.conf",
            &format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master} 1\n\
                 sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
            ),
        );
        let mut server = Self {
            port,
            folder,
            arguments: vec![configuration, "--sentinel".into()],
            process: None,
        };
        server.restart();
        server
    }

    /// Starts it, on the same port.
    pub fn restart(&mut self) {
        let mut command = Command::new("redis-server");
        if self
            .arguments
            .last()
            .is_some_and(|last| last == "--sentinel")
        {
            command.args(&self.arguments);
        } else {
            command
                .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
                .args(&self.arguments)
                .arg("--dir")
                .arg(self.folder.path());
        }
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let process = command.stdout(log).stderr(Stdio::null()).spawn();
        self.process = Some(
            process.expect("these tests need redis-server on PATH: `apt-get install redis-server`"),
        );
        until("redis-server listens", || {
            let process = self.process.as_mut().unwrap();
            let ended = process.try_wait().unwrap();
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "redis-server ended: {}", log());
            log().contains("Ready to accept connections") || log().contains("Sentinel ID is")
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn signal(&self, signal: i32) {
        let process = self.process.as_ref().unwrap().id();
        // SAFETY: a signal to a child of this process that has not been waited for.
        assert_eq!(unsafe { libc::kill(process as i32, signal) }, 0);
    }

    pub fn admin(&self) -> Connection {
        Client::open(format!("redis://127.0.0.1:{}", self.port))
            .unwrap()
            .get_connection()
            .unwrap()
    }

    /// Runs one command, words split at spaces.
    pub fn run<T: FromRedisValue>(&self, command: &str) -> T {
        self.try_run(command)
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    pub fn try_run<T: FromRedisValue>(&self, command: &str) -> redis::RedisResult<T> {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query(&mut self.admin())
    }

    /// How often each command ran, by `INFO commandstats`.
    pub fn calls(&self, command: &str) -> u64 {
        let info: String = self.run("INFO commandstats");
        let start = format!("cmdstat_{command}:calls=");
        info.lines()
            .find_map(|line| line.strip_prefix(&start)?.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }

    pub fn endpoint(&self) -> Endpoint {
        endpoint(self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn endpoint(port: u16) -> Endpoint {
    Endpoint {
        host: "127.0.0.1".into(),
        port,
    }
}

/// Settings for one server, to be changed.
pub fn settings(port: u16) -> RedisSettings {
    RedisSettings {
        topology: Topology::Standalone {
            server: endpoint(port),
        },
        username: None,
        password: None,
        db: 0,
        tls: None,
        prefix: "test".into(),
        timeout: 1_000,
        max_backoff: 200,
    }
}

/// A Cluster: three masters with a third of the slots each, and a replica for each.
pub struct Cluster {
    pub nodes: Vec<Server>,
}

impl Cluster {
    pub fn start() -> Self {
        // They would be 10,000 above the nodes' own, where outgoing connections have theirs.
        let buses: Vec<String> = (0..6).map(|_| free_port().to_string()).collect();
        let nodes: Vec<Server> = buses
            .iter()
            .map(|bus| {
                Server::start(&[
                    "--cluster-port",
                    bus,
                    "--cluster-enabled",
                    "yes",
                    "--cluster-node-timeout",
                    "1000",
                    "--cluster-require-full-coverage",
                    "no",
                ])
            })
            .collect();
        let cluster = Self { nodes };
        for (number, node) in cluster.nodes.iter().enumerate() {
            let _: () = node.run(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1));
        }
        for (node, bus) in cluster.nodes.iter().zip(&buses).skip(1) {
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus}", node.port);
            let _: () = cluster.nodes[0].run(&meet);
        }
        for (number, node) in cluster.nodes[..3].iter().enumerate() {
            let slots = (0..16_384).filter(|slot| slot * 3 / 16_384 == number);
            let slots: Vec<String> = slots.map(|slot: usize| slot.to_string()).collect();
            let _: () = node.run(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")));
        }
        until("the nodes know each other", || {
            cluster.nodes.iter().all(|node| {
                let known: String = node.run("CLUSTER NODES");
                known.lines().count() == 6 && !known.contains("handshake")
            })
        });
        for (number, node) in cluster.nodes[3..].iter().enumerate() {
            let master = cluster.id(number);
            until("a replica is accepted", || {
                node.try_run::<Value>(&format!("CLUSTER REPLICATE {master}"))
                    .is_ok()
            });
        }
        until("the cluster is up", || {
            cluster.nodes.iter().all(|node| {
                let info: String = node.run("CLUSTER INFO");
                info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
            })
        });
        until("the replicas follow", || {
            cluster.nodes[3..].iter().all(|node| {
                let info: String = node.run("INFO replication");
                info.contains("master_link_status:up")
            })
        });
        cluster
    }

    pub fn id(&self, node: usize) -> String {
        self.nodes[node].run("CLUSTER MYID")
    }

    /// The master that serves `slot`.
    pub fn owner(&self, slot: u16) -> usize {
        let slots: Vec<(u16, u16, (String, u16))> = {
            let ranges: Vec<Vec<Value>> = self.alive().run("CLUSTER SLOTS");
            ranges
                .into_iter()
                .map(|range| {
                    let mut range = range.into_iter();
                    let from = redis::from_redis_value(range.next().unwrap()).unwrap();
                    let to = redis::from_redis_value(range.next().unwrap()).unwrap();
                    let Value::Array(node) = range.next().unwrap() else {
                        panic!("no node in CLUSTER SLOTS")
                    };
                    let mut node = node.into_iter();
                    let host = redis::from_redis_value(node.next().unwrap()).unwrap();
                    let port = redis::from_redis_value(node.next().unwrap()).unwrap();
                    (from, to, (host, port))
                })
                .collect()
        };
        let (_, _, (_, port)) = slots
            .into_iter()
            .find(|(from, to, _)| (*from..=*to).contains(&slot))
            .expect("someone serves the slot");
        self.nodes
            .iter()
            .position(|node| node.port == port)
            .unwrap()
    }

    fn alive(&self) -> &Server {
        self.nodes
            .iter()
            .find(|node| node.process.is_some())
            .unwrap()
    }
}
