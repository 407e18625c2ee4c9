//! The registry in Redis, as the client of one node: which server to speak to, one script call per
//! heartbeat, and word of changes made by others.
//!
//! # Layout
//! - `settings`: which Redis, as the shim passes it.
//! - `connect`: a connection to one server, over TCP, TLS or a Unix socket.
//! - `error`: what can go wrong, and what to set.
//! - `registry.lua`: the script, a translation of [`super::model`].
//! - here: which server is the right one, and the two users of it, [`Registry`] and [`Changes`].
//!
//! # Keys
//! All in one hash tag, so that a Redis Cluster keeps them in one slot; `p` is `redisPrefix`.
//!
//! | key | type | content | expiry |
//! |---|---|---|---|
//! | `{p}:smartroute:registry` | hash | epoch, members with their leases, pins, the departed: `registry.lua` lists the fields | [`REGISTRY_LIFE`] after the last heartbeat |
//! | `{p}:smartroute:secret` | string | the cluster secret, where no node was given one | [`SECRET_LIFE`] after a node last asked for it |
//! | `{p}:smartroute:changes` | channel | the epoch, after each change of it | – |
//!
//! The registry is one key, so that a slot on its way from one node of a Redis Cluster to another is
//! never here with one key and there with the next, which no script could work on.
//!
//! # Clock
//! Leases are measured by the clock of the Redis that runs the script. Another Redis (a failover, a
//! slot that moved, a restart) has another clock: its run id differs, and then the script expires
//! nobody for one lease, and [`Request::as_of`] of the first heartbeat is sent as 0. What remains is a
//! clock that is *set* under a running Redis: forward by less than half a lease, it shortens leases.
//!
//! # Rights
//! An ACL user needs `~{p}:smartroute:* &{p}:smartroute:changes`, and of the commands `+evalsha +eval
//! +hkeys +hget +hmget +hset +hdel +pexpire +time +publish +subscribe +ping +info`; `+select` with a
//! database number, `+set +getex` without a cluster secret, `+role` with sentinels, `+asking
//! +cluster|slots` in a Cluster. `info`, `role` and `cluster|slots` can be done without, see where they
//! are used.
//!
//! # Which server
//! The `redis` crate's own Cluster client keeps a connection to every node and asks them all for the
//! topology. This registry is one slot, so it speaks to one node: whichever the last `MOVED` named.
//! With sentinels, every new connection asks them again and checks the server's role.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, ErrorKind, FromRedisValue, Script, ServerErrorKind, Value, cmd};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{Reply, Request};
use connect::{Connection, Dialer, Server};
use error::{Failure, StoreError};
use settings::{Endpoint, Nat, RedisSettings, Topology};

mod connect;
pub mod error;
pub mod settings;

const SCRIPT: &str = include_str!("registry.lua");

/// First pause after a failure; doubles up to `maxBackoff`, each jittered by half.
const MIN_BACKOFF: Duration = Duration::from_millis(100);

/// Redirections followed for one command. A slot moves to one node, and then the address is right.
const MAX_REDIRECTS: usize = 5;

/// Servers learned from a sentinel or Cluster node; past that no more are taken.
const MAX_LEARNED: usize = 64;

/// Time between two pings of the subscription, which is how its loss is noticed.
const PING: Duration = Duration::from_secs(10);

/// How long the registry outlives the last heartbeat of anybody, with the pins in it. While nodes
/// run it never ends; this is for the day when there are none left.
pub const REGISTRY_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// How long a secret that nobody was given outlives the last [`Registry::secret`]. Long, because a
/// node that starts while others run has to find theirs.
pub const SECRET_LIFE: Duration = Duration::from_secs(90 * 24 * 3_600);

/// What a node hears of changes made by others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct News {
    /// The epoch published last. A heartbeat gets the view that belongs to it.
    pub epoch: u64,
    /// Grows with each subscription: before it, anything may have been missed.
    pub subscriptions: u64,
    /// Why there is no subscription now. Views then come with the heartbeats, a little later.
    pub failure: Option<StoreError>,
}

/// The registry as one node speaks to it. One heartbeat at a time.
pub struct Registry {
    settings: Arc<RedisSettings>,
    dialer: Dialer,
    /// How to log in at the sentinels; as at Redis where there are none.
    sentinels: Dialer,
    script: Script,
    keys: Keys,
    connection: Option<Connection>,
    /// Sentinels or Cluster nodes as configured.
    configured: Vec<Endpoint>,
    /// The others, as the last one that answered listed them: never kept longer, because addresses
    /// in containers come and go. At most [`MAX_LEARNED`].
    learned: Vec<Endpoint>,
    /// Which of all these is asked next: the first that was not tried since one answered.
    turn: usize,
    /// Run id of the server that answered the last heartbeat.
    answered_by: Option<String>,
    /// Connections so far.
    connections: u64,
    backoff: Backoff,
    /// Where the registry was last found, for [`Changes`].
    found: watch::Sender<Option<Server>>,
}

/// The subscription: keeps one of its own at the server where [`Registry`] found the data.
pub struct Changes {
    settings: Arc<RedisSettings>,
    dialer: Dialer,
    channel: String,
    found: watch::Receiver<Option<Server>>,
    news: watch::Sender<News>,
}

struct Keys {
    registry: String,
    secret: String,
    channel: String,
}

/// | from      | event   | to                            |
/// |-----------|---------|-------------------------------|
/// | `Ready`   | failure | `Waiting`, shortest pause     |
/// | `Waiting` | failure | `Waiting`, twice the pause    |
/// | any       | success | `Ready`                       |
enum Backoff {
    Ready,
    Waiting {
        until: Instant,
        pause: Duration,
        error: StoreError,
    },
}

impl Backoff {
    fn failed(&mut self, error: StoreError, longest: Duration, jitter: f64, now: Instant) {
        let pause = match self {
            Self::Ready => MIN_BACKOFF.min(longest),
            Self::Waiting { pause, .. } => (*pause * 2).min(longest),
        };
        *self = Self::Waiting {
            until: now + pause.mul_f64(jitter),
            pause,
            error,
        };
    }

    /// The failure, while it is too early for another attempt.
    fn refusal(&self, now: Instant) -> Option<&StoreError> {
        match self {
            Self::Waiting { until, error, .. } if now < *until => Some(error),
            _ => None,
        }
    }
}

/// Prepares a node's registry. Nothing is connected yet: the first heartbeat connects, and
/// [`Changes::run`] subscribes once that worked.
///
/// # Errors
/// [`Failure::Settings`] for TLS settings that cannot be used.
pub fn open(
    settings: RedisSettings,
) -> Result<(Registry, Changes, watch::Receiver<News>), StoreError> {
    let settings = Arc::new(settings);
    // Half the time for one server, so that one that is silent leaves time for the next one.
    let each = match settings.topology {
        Topology::Standalone { .. } | Topology::Socket { .. } => settings.timeout(),
        Topology::Sentinel { .. } | Topology::Cluster { .. } => settings.timeout() / 2,
    };
    let dialer = Dialer::new(
        settings.username.as_ref(),
        settings.password.as_ref(),
        settings.db,
        settings.tls.as_ref(),
        each,
    )?;
    let (sentinels, configured) = match &settings.topology {
        Topology::Sentinel {
            sentinels,
            username,
            password,
            tls,
            ..
        } => {
            let dialer = Dialer::new(username.as_ref(), password.as_ref(), 0, tls.as_ref(), each)?;
            (dialer, sentinels.clone())
        }
        Topology::Cluster { nodes, .. } => (dialer.clone(), nodes.clone()),
        Topology::Standalone { .. } | Topology::Socket { .. } => (dialer.clone(), Vec::new()),
    };
    let keys = Keys::new(&settings.prefix);
    let (found, found_here) = watch::channel(None);
    let (news, heard) = watch::channel(News::default());
    let changes = Changes {
        settings: Arc::clone(&settings),
        dialer: dialer.clone(),
        channel: keys.channel.clone(),
        found: found_here,
        news,
    };
    let registry = Registry {
        settings,
        dialer,
        sentinels,
        script: Script::new(SCRIPT),
        keys,
        connection: None,
        configured,
        learned: Vec::new(),
        turn: 0,
        answered_by: None,
        connections: 0,
        backoff: Backoff::Ready,
        found,
    };
    Ok((registry, changes, heard))
}

impl Keys {
    fn new(prefix: &str) -> Self {
        let key = |what| format!("{{{prefix}}}:smartroute:{what}");
        Self {
            registry: key("registry"),
            secret: key("secret"),
            channel: key("changes"),
        }
    }
}

/// What a server answered to a command, told apart by what to do next.
enum Answer {
    Value(Value),
    NoScript,
    /// The slot lives there now.
    Moved(Endpoint),
    /// The slot is moving there, and this key has gone already.
    Ask(Endpoint),
    Failed(StoreError),
}

impl Registry {
    /// Carries out one heartbeat: one `EVALSHA`, or `EVAL` where the server does not have the script.
    ///
    /// # Errors
    /// Any [`Failure`], in twice the timeout at most; at once while it is too early for another
    /// attempt, see [`Registry::retry_at`]. The heartbeat may have been carried out nonetheless.
    pub async fn heartbeat(&mut self, request: &Request) -> Result<Reply, StoreError> {
        self.bounded(async |this: &mut Self| {
            let value = this.at_registry(&Call::Heartbeat(request)).await?;
            let text: String = this.read(value)?;
            serde_json::from_str(&text).map_err(|error| {
                let message = format!("the registry script answered what it never does: {error}");
                StoreError::new(Failure::Protocol, message)
            })
        })
        .await
    }

    /// The cluster secret that all nodes without one of their own use: `candidate` if there is none
    /// yet. To be asked at start with a new one, and with the one in use at every full resync and
    /// after [`super::Outcome::Behind`]: that keeps it from expiring, and puts it back into a store
    /// that lost it. What comes back counts, for every handshake from then on.
    ///
    /// # Errors
    /// As for heartbeats.
    pub async fn secret(&mut self, candidate: &str) -> Result<String, StoreError> {
        // `SET NX GET` needs Redis 7, hence two; the second one also makes it last.
        let mut set = cmd("SET");
        set.arg(&self.keys.secret).arg(candidate);
        set.arg("NX").arg("PX").arg(SECRET_LIFE.as_millis() as u64);
        let mut get = cmd("GETEX");
        get.arg(&self.keys.secret);
        get.arg("PX").arg(SECRET_LIFE.as_millis() as u64);
        self.bounded(async |this: &mut Self| {
            this.at_registry(&Call::Command(&set)).await?;
            let value = this.at_registry(&Call::Command(&get)).await?;
            this.read(value)
        })
        .await
    }

    /// When the next attempt is made; before it, every call fails at once with the last error.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        match &self.backoff {
            Backoff::Waiting { until, .. } => Some(*until),
            Backoff::Ready => None,
        }
    }

    /// Whatever it takes, within twice the timeout: one for finding the server, one for asking it.
    async fn bounded<T>(
        &mut self,
        attempt: impl AsyncFnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Some(error) = self.backoff.refusal(Instant::now()) {
            return Err(error.clone());
        }
        let patience = self.settings.timeout() * 2;
        let result = match timeout(patience, attempt(self)).await {
            Ok(result) => result,
            Err(_) => {
                // Whoever was being tried took too long.
                self.turn += 1;
                let (server, limit) = (self.described(), patience.as_millis());
                let message = format!("{server} was not found and asked within {limit} ms");
                Err(StoreError::new(Failure::Timeout, message))
            }
        };
        match &result {
            Ok(_) => self.backoff = Backoff::Ready,
            Err(error) => {
                let longest = self.settings.max_backoff();
                let jitter = rand::random_range(0.5..1.0);
                let now = Instant::now();
                self.backoff.failed(error.clone(), longest, jitter, now);
            }
        }
        result
    }

    /// Runs a call where the registry is, and remembers where that was.
    async fn at_registry(&mut self, call: &Call<'_>) -> Result<Value, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = self.connect().await?;
                self.identified(connection).await?
            }
        };
        let mut asked: Option<Connection> = None;
        let mut whole_script = false;
        let mut redirects = 0;
        loop {
            let asking = asked.is_some();
            let at = asked.as_mut().unwrap_or(&mut connection);
            let target = match self.run(at, call, whole_script, asking).await {
                Answer::Value(value) => {
                    // A reply to anything else tells nobody the time.
                    if let Call::Heartbeat(_) = call {
                        self.answered_by = Some(at.run_id.clone());
                    }
                    self.keep(connection);
                    return Ok(value);
                }
                Answer::NoScript if !whole_script => {
                    whole_script = true;
                    continue;
                }
                Answer::NoScript => {
                    let message = format!("Redis at {} does not keep scripts", at.server);
                    return Err(StoreError::new(Failure::Script, message));
                }
                Answer::Failed(error) => {
                    if error.failure.keeps_connection() {
                        self.keep(connection);
                    }
                    return Err(error);
                }
                Answer::Moved(to) => {
                    connection = self.follow(to).await?;
                    None
                }
                Answer::Ask(to) => Some(self.follow(to).await?),
            };
            asked = target;
            whole_script = false;
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                let message = format!("the nodes of {} send each other's way", self.described());
                return Err(StoreError::new(Failure::Unavailable, message));
            }
        }
    }

    async fn follow(&mut self, to: Endpoint) -> Result<Connection, StoreError> {
        let connection = self.dialer.connect(&self.reached(to)).await?;
        self.identified(connection).await
    }

    /// Asks the server for its run id. Where that is denied, every connection counts as one to
    /// another server, and the script does not notice a change of servers.
    async fn identified(&mut self, mut connection: Connection) -> Result<Connection, StoreError> {
        let mut question = cmd("INFO");
        question.arg("server");
        let info = match self.asked(&mut connection, &question).await? {
            Err(error) if error.is_io_error() => {
                return Err(self.dialer.refused(&connection.server, &error));
            }
            info => info.ok().and_then(text),
        };
        let run_id = info.as_deref().and_then(|info| {
            info.lines()
                .find_map(|line| line.strip_prefix("run_id:"))
                .map(str::trim)
        });
        self.connections += 1;
        connection.known_run_id = run_id.is_some();
        connection.run_id = match run_id {
            Some(run_id) => run_id.to_owned(),
            None => format!("connection {}", self.connections),
        };
        Ok(connection)
    }

    fn keep(&mut self, connection: Connection) {
        let server = Some(connection.server.clone());
        self.found.send_if_modified(|found| {
            let changed = *found != server;
            if changed {
                *found = server;
            }
            changed
        });
        self.connection = Some(connection);
    }

    async fn run(
        &self,
        connection: &mut Connection,
        call: &Call<'_>,
        whole_script: bool,
        asking: bool,
    ) -> Answer {
        let built;
        let command = match call {
            Call::Command(command) => *command,
            Call::Heartbeat(request) => {
                let (name, script) = if whole_script {
                    ("EVAL", SCRIPT)
                } else {
                    ("EVALSHA", self.script.get_hash())
                };
                let run_id = Some(&connection.run_id).filter(|_| connection.known_run_id);
                let request = match self.on_this_clock(request, connection) {
                    Ok(request) => request,
                    Err(error) => return Answer::Failed(error),
                };
                let mut command = cmd(name);
                command.arg(script).arg(1).arg(&self.keys.registry);
                command.arg(request).arg(&self.keys.channel);
                command.arg(run_id.map_or("", String::as_str));
                command.arg(REGISTRY_LIFE.as_millis() as u64);
                built = command;
                &built
            }
        };
        let patience = self.settings.timeout();
        let commands = &mut connection.commands;
        let query = async {
            if asking {
                // For the next command of this connection, on which there is no other.
                cmd("ASKING").exec_async(commands).await?;
            }
            command.query_async::<Value>(commands).await
        };
        let error = match timeout(patience, query).await {
            Ok(Ok(value)) => return Answer::Value(value),
            Ok(Err(error)) => error,
            Err(_) => {
                let (server, doing) = (&connection.server, "running the script");
                let error = StoreError::timeout(server, doing, patience.as_millis());
                return Answer::Failed(error);
            }
        };
        let speaker = match &connection.server {
            Server::Tcp(endpoint) => endpoint.host.as_str(),
            Server::Socket(_) => "127.0.0.1",
        };
        let redirect = || Endpoint::parse(error.redirect_node()?.0, speaker);
        match (error.kind(), redirect()) {
            (ErrorKind::Server(ServerErrorKind::NoScript), _) => Answer::NoScript,
            (ErrorKind::Server(ServerErrorKind::Moved), Some(to)) => Answer::Moved(to),
            (ErrorKind::Server(ServerErrorKind::Ask), Some(to)) => Answer::Ask(to),
            _ => Answer::Failed(self.classify(&error, &connection.server)),
        }
    }

    /// The request as JSON, its `as_of` only where it was read from the same clock.
    fn on_this_clock(
        &self,
        request: &Request,
        connection: &Connection,
    ) -> Result<String, StoreError> {
        let json = if self.answered_by.as_ref() == Some(&connection.run_id) {
            serde_json::to_string(request)
        } else {
            let mut request = request.clone();
            request.as_of = 0;
            serde_json::to_string(&request)
        };
        json.map_err(|error| StoreError::new(Failure::Protocol, error.to_string()))
    }

    fn classify(&self, error: &::redis::RedisError, server: &Server) -> StoreError {
        StoreError::of(error, server, &self.dialer.secrets())
    }

    fn read<T: FromRedisValue>(&self, value: Value) -> Result<T, StoreError> {
        ::redis::from_redis_value(value).map_err(|error| {
            let message = format!("{} answered what no Redis does: {error}", self.described());
            StoreError::new(Failure::Protocol, message)
        })
    }

    // Which server.

    async fn connect(&mut self) -> Result<Connection, StoreError> {
        let settings = Arc::clone(&self.settings);
        match &settings.topology {
            Topology::Standalone { server } => {
                self.dialer.connect(&Server::Tcp(server.clone())).await
            }
            Topology::Socket { path } => self.dialer.connect(&Server::Socket(path.clone())).await,
            Topology::Sentinel { name, .. } => self.connect_to_master(name).await,
            Topology::Cluster { .. } => self.connect_to_any().await,
        }
    }

    /// Any node of the Cluster that answers: it says where the slot is.
    async fn connect_to_any(&mut self) -> Result<Connection, StoreError> {
        let mut failure = None;
        for node in self.candidates() {
            match self.dialer.connect(&Server::Tcp(node.clone())).await {
                Ok(mut connection) => {
                    self.learn_nodes(&mut connection, &node).await;
                    return Ok(connection);
                }
                Err(error) => {
                    self.turn += 1;
                    first_by_text(&mut failure, error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| self.nobody()))
    }

    /// Learns the other nodes of the Cluster, for when this one is gone. Not being allowed to ask
    /// is no failure.
    async fn learn_nodes(&mut self, connection: &mut Connection, speaker: &Endpoint) {
        let mut slots = cmd("CLUSTER");
        slots.arg("SLOTS");
        let Some(Value::Array(ranges)) = self.ask(connection, &slots).await else {
            return;
        };
        let mut nodes = Vec::new();
        for range in ranges {
            let Value::Array(range) = range else { continue };
            for node in range.into_iter().skip(2) {
                let Value::Array(node) = node else { continue };
                let mut node = node.into_iter();
                let host = node.next().and_then(text).filter(|host| !host.is_empty());
                let host = host.unwrap_or_else(|| speaker.host.clone());
                if let Some(Value::Int(port)) = node.next()
                    && let Ok(port) = u16::try_from(port)
                {
                    nodes.push(Endpoint { host, port });
                }
            }
        }
        self.learn(nodes);
    }

    /// The master that the sentinels name: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>.
    async fn connect_to_master(&mut self, name: &str) -> Result<Connection, StoreError> {
        let sentinels = self.sentinels.clone();
        // What was met at the master, or said by a sentinel, tells more than that a sentinel is down.
        let (mut beyond, mut down) = (None, None);
        for sentinel in self.candidates() {
            let mut connection = match sentinels.connect(&Server::Tcp(sentinel.clone())).await {
                Ok(connection) => connection,
                Err(error) => {
                    self.turn += 1;
                    first_by_text(&mut down, error);
                    continue;
                }
            };
            match self.ask_sentinel(&mut connection, &sentinel, name).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    self.turn += 1;
                    first_by_text(&mut beyond, error);
                }
            }
        }
        Err(beyond.or(down).unwrap_or_else(|| self.nobody()))
    }

    fn nobody(&self) -> StoreError {
        let message = format!("{} cannot be reached", self.described());
        StoreError::new(Failure::Unreachable, message)
    }

    async fn ask_sentinel(
        &mut self,
        connection: &mut Connection,
        sentinel: &Endpoint,
        name: &str,
    ) -> Result<Connection, StoreError> {
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
        let named = self
            .asked(connection, &question)
            .await?
            .map_err(|error| self.sentinels.refused(&connection.server, &error))?;
        let Some(master) = address(named) else {
            let message = format!(
                "the sentinel at {sentinel} knows no master named {name:?}: set name in the redis option to the one in its configuration"
            );
            return Err(StoreError::new(Failure::NoMaster, message));
        };
        let mut others = cmd("SENTINEL");
        others.arg("SENTINELS").arg(name);
        if let Some(Value::Array(others)) = self.ask(connection, &others).await {
            // It does not list itself.
            let others = others.into_iter().filter_map(sentinel_address);
            self.learn([sentinel.clone()].into_iter().chain(others).collect());
        }

        let master = self.reached(master);
        let mut connection = self.dialer.connect(&master).await?;
        // A user that may not ask finds out by the first write, which a replica refuses.
        let role = match self.ask(&mut connection, &cmd("ROLE")).await {
            Some(Value::Array(role)) => role.into_iter().next().and_then(text),
            _ => None,
        };
        match role.as_deref() {
            None | Some("master") => Ok(connection),
            Some(role) => {
                let message = format!(
                    "the sentinel at {sentinel} names {master} as master of {name:?}, which says that it is a {role}: a failover is under way"
                );
                Err(StoreError::new(Failure::WrongRole, message))
            }
        }
    }

    /// A question whose answer one can do without.
    async fn ask(&self, connection: &mut Connection, question: &Cmd) -> Option<Value> {
        self.asked(connection, question).await.ok()?.ok()
    }

    async fn asked(
        &self,
        connection: &mut Connection,
        question: &Cmd,
    ) -> Result<Result<Value, ::redis::RedisError>, StoreError> {
        let patience = self.settings.timeout();
        let query = question.query_async::<Value>(&mut connection.commands);
        timeout(patience, query).await.map_err(|_| {
            let server = &connection.server;
            StoreError::timeout(server, "asking for the topology", patience.as_millis())
        })
    }

    /// All that may be asked, in the order to ask them in.
    fn candidates(&self) -> Vec<Endpoint> {
        let mut all = self.configured.clone();
        for learned in &self.learned {
            if !all.contains(learned) {
                all.push(learned.clone());
            }
        }
        let turn = self.turn % all.len().max(1);
        all.rotate_left(turn);
        all
    }

    fn learn(&mut self, endpoints: Vec<Endpoint>) {
        let endpoints = endpoints.into_iter().take(MAX_LEARNED);
        self.learned = endpoints
            .map(|endpoint| self.translated(endpoint))
            .collect();
    }

    fn translated(&self, announced: Endpoint) -> Endpoint {
        let nat: &[Nat] = match &self.settings.topology {
            Topology::Sentinel { nat, .. } | Topology::Cluster { nat, .. } => nat,
            Topology::Standalone { .. } | Topology::Socket { .. } => &[],
        };
        let found = nat.iter().find(|nat| nat.announced == announced);
        found.map_or(announced, |nat| nat.reached.clone())
    }

    fn reached(&self, announced: Endpoint) -> Server {
        Server::Tcp(self.translated(announced))
    }

    fn described(&self) -> String {
        let list = |nodes: &[Endpoint]| {
            let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
            nodes.join(", ")
        };
        match &self.settings.topology {
            Topology::Standalone { server } => format!("Redis at {server}"),
            Topology::Socket { path } => format!("Redis at {path}"),
            Topology::Sentinel {
                sentinels, name, ..
            } => format!(
                "the Redis that the sentinels {} call {name:?}",
                list(sentinels)
            ),
            Topology::Cluster { nodes, .. } => format!("the Redis Cluster at {}", list(nodes)),
        }
    }
}

/// Of the errors that several servers gave one is told, and the same one whatever the order they
/// were asked in: it is logged once for as long as it stays the same.
fn first_by_text(kept: &mut Option<StoreError>, error: StoreError) {
    let text = |error: &StoreError| error.to_string();
    if kept.as_ref().is_none_or(|kept| text(&error) < text(kept)) {
        *kept = Some(error);
    }
}

enum Call<'a> {
    Command(&'a Cmd),
    Heartbeat(&'a Request),
}

fn text(value: Value) -> Option<String> {
    ::redis::from_redis_value(value).ok()
}

/// `[host, port]`, both text.
fn address(value: Value) -> Option<Endpoint> {
    let (host, port): (String, u16) = ::redis::from_redis_value(value).ok()?;
    Some(Endpoint { host, port })
}

/// One entry of `SENTINEL SENTINELS`: names and values in turn.
fn sentinel_address(value: Value) -> Option<Endpoint> {
    let fields: std::collections::HashMap<String, String> =
        ::redis::from_redis_value(value).ok()?;
    Some(Endpoint {
        host: fields.get("ip")?.clone(),
        port: fields.get("port")?.parse().ok()?,
    })
}

impl Changes {
    /// Subscribes wherever the registry is found, and again whenever the subscription breaks, until
    /// [`Registry`] is dropped.
    pub async fn run(self) {
        let mut moved = self.found.clone();
        let mut pause = MIN_BACKOFF;
        loop {
            let server = match moved.wait_for(Option::is_some).await {
                Ok(found) => found.clone(),
                Err(_) => return,
            };
            let Some(server) = server else { continue };
            let before = self.news.borrow().subscriptions;
            tokio::select! {
                failure = self.listen(&server) => {
                    self.news.send_if_modified(|news| {
                        let other = news.failure.as_ref() != Some(&failure);
                        news.failure = Some(failure);
                        other
                    });
                }
                changed = moved.changed() => {
                    if changed.is_err() { return }
                    // Elsewhere now: no reason to wait.
                    pause = MIN_BACKOFF;
                    continue;
                }
            }
            let longest = self.settings.max_backoff();
            pause = if self.news.borrow().subscriptions > before {
                MIN_BACKOFF
            } else {
                (pause * 2).min(longest)
            };
            let wait = pause.mul_f64(rand::random_range(0.5..1.0));
            tokio::select! {
                () = sleep(wait) => {}
                changed = moved.changed() => if changed.is_err() { return },
            }
        }
    }

    /// One subscription, until it breaks.
    async fn listen(&self, server: &Server) -> StoreError {
        let mut subscription = match self.dialer.subscriber(server).await {
            Ok(subscription) => subscription,
            Err(error) => return error,
        };
        let patience = self.settings.timeout();
        let late = |doing| StoreError::timeout(server, doing, patience.as_millis());
        let of = |error| StoreError::of(&error, server, &self.dialer.secrets());
        match timeout(patience, subscription.subscribe(&self.channel)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return of(error),
            Err(_) => return late("subscribing"),
        }
        self.news.send_modify(|news| {
            news.subscriptions += 1;
            news.failure = None;
        });
        // The crate's queue between socket and stream has no bound. It is emptied at once into one
        // number, and only who may publish in this Redis could fill it.
        let (mut sink, mut messages) = subscription.split();
        loop {
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else {
                        let message = format!("the subscription at Redis {server} ended");
                        return StoreError::new(Failure::Unreachable, message);
                    };
                    let epoch = message.get_payload::<u64>().unwrap_or_default();
                    self.news.send_if_modified(|news| {
                        let other = epoch != news.epoch;
                        news.epoch = epoch;
                        other
                    });
                }
                () = sleep(PING) => match timeout(patience, sink.ping::<Value>()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return of(error),
                    Err(_) => return late("pinging the subscription"),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> StoreError {
        StoreError::new(Failure::Unreachable, "x")
    }

    fn refused(backoff: &Backoff, now: Instant) -> bool {
        backoff.refusal(now).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest_and_jitter() {
        let longest = Duration::from_millis(500);
        let now = Instant::now();
        let mut backoff = Backoff::Ready;
        assert!(!refused(&backoff, now));
        for pause in [100, 200, 400, 500, 500] {
            for jitter in [0.5, 1.0] {
                let mut other = match &backoff {
                    Backoff::Ready => Backoff::Ready,
                    Backoff::Waiting { until, pause, .. } => Backoff::Waiting {
                        until: *until,
                        pause: *pause,
                        error: error(),
                    },
                };
                other.failed(error(), longest, jitter, now);
                let until = now + Duration::from_millis(pause).mul_f64(jitter);
                assert!(refused(&other, until - Duration::from_millis(1)));
                assert!(!refused(&other, until));
            }
            backoff.failed(error(), longest, 1.0, now);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_is_longer_than_the_longest() {
        let now = Instant::now();
        let mut backoff = Backoff::Ready;
        backoff.failed(error(), Duration::from_millis(10), 1.0, now);
        assert!(!refused(&backoff, now + Duration::from_millis(10)));
    }

    #[test]
    fn keys_share_a_hash_tag() {
        let keys = Keys::new("mine");
        for key in [&keys.registry, &keys.secret, &keys.channel] {
            assert!(key.starts_with("{mine}:smartroute:"), "{key}");
        }
    }
}
