//! The task that speaks to Redis for one node: one heartbeat at a time, its own and those it passes
//! on for peers that cannot reach Redis, and word of changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::redis::error::StoreError;
use super::redis::settings::RedisSettings;
use super::redis::{self, Registry};
use super::{Outcome, Reply, Request};
use crate::handle::{Command, Core};
use crate::link::secrets::Secrets;

/// Heartbeats of peers that wait. More are dropped: their machines send newer ones soon.
const WAITING: usize = 8;

/// A heartbeat to be carried out, and the peer it is passed on for; `None` for this node's own.
type Ask = (Option<String>, Request);

/// The sending ends for heartbeats.
#[derive(Debug)]
pub struct Asks {
    own: mpsc::Sender<Ask>,
    relayed: mpsc::Sender<Ask>,
}

/// The receiving ends.
#[derive(Debug)]
pub struct Asked {
    own: mpsc::Receiver<Ask>,
    relayed: mpsc::Receiver<Ask>,
}

/// Two channels: this node's own heartbeat waits for the one under way, and for no peer's.
#[must_use]
pub fn asks() -> (Asks, Asked) {
    // A newer one follows where one waits already.
    let (own, own_asked) = mpsc::channel(1);
    let (relayed, relayed_asked) = mpsc::channel(WAITING);
    let asked = Asked {
        own: own_asked,
        relayed: relayed_asked,
    };
    (Asks { own, relayed }, asked)
}

impl Asks {
    /// Whether it will be carried out; otherwise it is dropped.
    pub fn ask(&self, peer: Option<String>, request: Request) -> bool {
        let channel = match peer {
            None => &self.own,
            Some(_) => &self.relayed,
        };
        channel.try_send((peer, request)).is_ok()
    }
}

impl Asked {
    async fn next(&mut self) -> Option<Ask> {
        tokio::select! {
            biased;
            ask = self.own.recv() => ask,
            Some(ask) = self.relayed.recv() => Some(ask),
        }
    }
}

/// What came of it.
pub type Answer = Result<Reply, StoreError>;

/// Runs until the node stops.
pub async fn run(core: Arc<Core>, settings: RedisSettings, asked: Asked) {
    let opened = redis::open(settings);
    let (registry, changes, news) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            core.log("error", &error.key(), &error.to_string());
            return;
        }
    };
    let stop = core.stop.clone();
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = changes.run() => {}
        () = serve(&core, registry, news, asked) => {}
    }
}

async fn serve(
    core: &Arc<Core>,
    mut registry: Registry,
    mut news: tokio::sync::watch::Receiver<redis::News>,
    mut asked: Asked,
) {
    let mut trouble = Trouble::default();
    if !core.identity.load().secrets.are_set() {
        agree_on_secret(core, &mut registry, &mut trouble).await;
    }
    let period = Duration::from_millis(core.settings.sync_interval.max(1));
    let mut resync = interval(period);
    resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
    resync.reset();
    loop {
        tokio::select! {
            ask = asked.next() => {
                let Some((peer, request)) = ask else { return };
                let sent = core.started.elapsed();
                let answer = registry.heartbeat(&request).await;
                core.store.note(sent, core.started.elapsed(), &answer);
                let again = trouble.note(core, answer.as_ref().err());
                let behind = answer.as_ref().is_ok_and(|reply| reply.outcome == Outcome::Behind);
                let _ = core.request(Command::Registry { peer, answer });
                if again || behind {
                    // It may have lost the secret, and must not hand out a new one to newcomers.
                    keep_secret(core, &mut registry, &mut trouble).await;
                }
            }
            changed = news.changed() => {
                if changed.is_err() { return }
                news.borrow_and_update();
                let _ = core.request(Command::Nudge);
            }
            _ = resync.tick() => {
                keep_secret(core, &mut registry, &mut trouble).await;
                let _ = core.request(Command::Nudge);
            }
        }
    }
}

/// Keeps a secret that was made here, puts it back into a store that lost it, and takes over what
/// others have put there first.
async fn keep_secret(core: &Arc<Core>, registry: &mut Registry, trouble: &mut Trouble) {
    if !core.settings.shared_secret {
        return;
    }
    let secret = core.identity.load().secrets.newest().text();
    let answer = registry.secret(&secret).await;
    trouble.note(core, answer.as_ref().err());
    if let Ok(answer) = answer {
        adopt(core, &answer);
    }
}

/// Makes a secret, unless a node that started earlier has made one.
async fn agree_on_secret(core: &Arc<Core>, registry: &mut Registry, trouble: &mut Trouble) {
    let candidate: String = (0..32)
        .map(|_| format!("{:02x}", rand::random::<u8>()))
        .collect();
    loop {
        match registry.secret(&candidate).await {
            Ok(secret) => {
                trouble.note(core, None);
                adopt(core, &secret);
                return;
            }
            Err(error) => {
                trouble.note(core, Some(&error));
            }
        }
        let soon = Instant::now() + Duration::from_millis(100);
        sleep_until(registry.retry_at().unwrap_or(soon)).await;
    }
}

fn adopt(core: &Arc<Core>, secret: &str) {
    let secrets = Secrets::new([secret]);
    if core.identity.load().secrets != secrets {
        core.change_identity(|identity| identity.secrets = secrets.clone());
        let _ = core.request(Command::Secret);
    }
}

/// Says each kind of trouble once, and when it is over.
#[derive(Debug, Default)]
struct Trouble {
    key: Option<String>,
}

impl Trouble {
    /// Whether it is over now.
    fn note(&mut self, core: &Core, error: Option<&StoreError>) -> bool {
        core.store.trouble(error);
        let key = error.map(StoreError::key);
        if key == self.key {
            return false;
        }
        match (&key, error) {
            (Some(key), Some(error)) => {
                core.log(
                    "error",
                    key,
                    &format!("{error}; it is tried again and again"),
                );
            }
            _ => core.log("info", "redis", "Redis answers again"),
        }
        self.key = key;
        self.key.is_none()
    }
}
