//! The only code that knows Node: one class per SmartRoute instance, plus plain functions.
//!
//! Calls from JavaScript are staged: `flush` takes a turn's records in one call, `drain` answers
//! what waits. Class methods cost some 400 ns, so none is called per frame or turn.

mod function;
mod health;
mod http;
mod lookup;
mod migrations;
#[cfg(target_os = "linux")]
mod poll;
mod turn;
mod write;

use std::sync::{Arc, OnceLock};

use napi::bindgen_prelude::{Function, Uint8Array, Unknown};
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi::{Env, JsValue};
use napi_derive::napi;
use tokio::runtime::{Builder, Handle as Runtime};

use crate::cluster::members::How;
use crate::cluster::view::MemberState;
use crate::config::{NodeSpec, Settings};
use crate::coordinator;
use crate::error::Error;
use crate::handle::{Command, Core};
use crate::link::mux::Side;
use crate::link::secrets::Secrets;
use crate::migrations::Migrations;

/// One thread drives every instance of the process: links are a few microseconds of work per
/// frame, and a second worker would cost more in wake-ups than it saves.
fn runtime() -> napi::Result<Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(handle) = RUNTIME.get() {
        return Ok(handle.clone());
    }
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("smartroute".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    // Two threads racing here leave one idle thread behind, nothing worse.
    Ok(RUNTIME.get_or_init(|| handle).clone())
}

fn thrown(error: &Error) -> napi::Error {
    napi::Error::from_reason(error.to_string())
}

/// The native half of one SmartRoute instance.
#[napi]
pub struct NativeNode {
    core: Arc<Core>,
    migrations: Migrations,
    /// Reads links on the JavaScript thread; `None` where tokio does.
    #[cfg(target_os = "linux")]
    poll: Option<poll::Poll>,
}

#[napi]
impl NativeNode {
    /// Starts a node that is not reachable yet. `settings` and `node` are JSON; `wake` is called
    /// on the JavaScript thread when there is something to drain, at most once per drain.
    #[napi(constructor, catch_unwind)]
    pub fn new(
        env: Env,
        settings: String,
        node: String,
        incarnation: f64,
        secrets: Vec<Uint8Array>,
        wake: Function<(), ()>,
    ) -> napi::Result<Self> {
        let settings: Settings = parse(&settings)?;
        let node: NodeSpec = parse(&node)?;
        let runtime = runtime()?;
        let member = node.into_member(incarnation as u64);
        let (core, commands) = Core::new(settings, member, Secrets::new(secrets), runtime.clone());
        #[cfg(target_os = "linux")]
        let poll = if core.settings.poll_links {
            poll::Poll::start(&env, &core, wake.raw())
        } else {
            None
        };
        #[cfg(not(target_os = "linux"))]
        let _ = env;
        // Weak: a node that only waits for frames must not keep the process alive.
        let wake = wake
            .build_threadsafe_function()
            .weak::<true>()
            .build_callback(|_| Ok(()))?;
        core.inbox.on_wake(move || {
            wake.call((), ThreadsafeFunctionCallMode::NonBlocking);
        });
        let actor = coordinator::run(Arc::clone(&core), commands);
        runtime.spawn(coordinator::supervise(Arc::clone(&core), actor));
        let migrations = Migrations::start(&core);
        Ok(Self {
            core,
            migrations,
            #[cfg(target_os = "linux")]
            poll,
        })
    }

    /// The look-up: a plain function from a document name to the index of its owner in the view
    /// taken last, or -1.
    #[napi(catch_unwind, ts_return_type = "(name: string) => number")]
    pub fn lookup(&self, env: Env) -> napi::Result<Unknown<'_>> {
        lookup::owner_of(&env, Arc::clone(&self.core))
    }

    /// A plain function that tells whether anything may be served now.
    #[napi(catch_unwind, ts_return_type = "() => boolean")]
    pub fn serves(&self, env: Env) -> napi::Result<Unknown<'_>> {
        lookup::serves(&env, Arc::clone(&self.core))
    }

    /// A plain function that tells whether a document that the view gives this node may be served.
    #[napi(catch_unwind, ts_return_type = "(name: string) => boolean")]
    pub fn entitles(&self, env: Env) -> napi::Result<Unknown<'_>> {
        lookup::entitles(&env, Arc::clone(&self.core))
    }

    /// A plain function that sends one WebSocket message to a client's socket, as far as it takes it:
    /// how many bytes that were, header included. 0 everywhere but on Linux.
    #[napi(
        catch_unwind,
        ts_return_type = "(descriptor: number, payload: Uint8Array) => number"
    )]
    pub fn write_frame(&self, env: Env) -> napi::Result<Unknown<'_>> {
        write::write_frame(&env, Arc::clone(&self.core))
    }

    /// Whether the newest view is settled.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.core.is_settled()
    }

    /// This node is known as `node` (JSON) from now on; peers are dialed once it is `listening`.
    #[napi(catch_unwind)]
    pub fn announce(&self, node: String, incarnation: f64, listening: bool) -> napi::Result<()> {
        let node: NodeSpec = parse(&node)?;
        let own = node.into_member(incarnation as u64);
        self.request(Command::Announce { own, listening })
    }

    /// Makes a node (JSON) a member.
    #[napi(catch_unwind)]
    pub fn add(&self, node: String) -> napi::Result<()> {
        let node: NodeSpec = parse(&node)?;
        self.request(Command::Add(node.into_member(0)))
    }

    /// Takes a node out of the view.
    #[napi(catch_unwind)]
    pub fn remove(&self, id: String) -> napi::Result<()> {
        self.request(Command::Remove(id))
    }

    /// Everything that this node does not own under the view of this epoch has been let go of.
    #[napi(catch_unwind)]
    pub fn released(&self, epoch: f64) -> napi::Result<()> {
        self.request(Command::Released(epoch as u64))
    }

    /// This node owns nothing from now on and is `leaving` in its view; still a member. At most
    /// `drainTimeout` later it has left; with Redis, when `drained` or `leave` says so.
    #[napi(catch_unwind)]
    pub fn drain_node(&self) -> napi::Result<()> {
        self.request(Command::Drain)
    }

    /// This node, `leaving` in its view, holds nothing any more: it leaves now. Also where it was
    /// removed by hand.
    #[napi(catch_unwind)]
    pub fn drained(&self) -> napi::Result<()> {
        self.request(Command::Drained)
    }

    /// Pins a document to a node, or to none. Throws where the pin is one too many or a name too long.
    #[napi(catch_unwind)]
    pub fn pin(&self, document: String, node: Option<String>) -> napi::Result<()> {
        self.core
            .pin(document, node)
            .map_err(|error| thrown(&error))
    }

    /// Gives the lease back; a record says when that is done.
    #[napi(catch_unwind)]
    pub fn leave(&self) -> napi::Result<()> {
        self.request(Command::Leave)
    }

    /// Puts a node out of the cluster by hand; `force`: without waiting for its lease.
    #[napi(catch_unwind)]
    pub fn evict(&self, id: String, reason: String, force: bool) -> napi::Result<()> {
        let how = if force { How::Force } else { How::Wait };
        self.request(Command::Evict { id, reason, how })
    }

    fn request(&self, command: Command) -> napi::Result<()> {
        self.core.request(command).map_err(|error| thrown(&error))
    }

    /// Takes the current view; look-ups answer by it from now on. JSON.
    #[napi(catch_unwind)]
    pub fn take_view(&self) -> String {
        let snapshot = self.core.snapshot.load_full();
        self.core.taken.store(Arc::clone(&snapshot));
        let links = self.core.links();
        let link_to = |id: &str| {
            links
                .iter()
                .find(|link| link.side == Side::Dialer && link.peer == id)
                .map(|link| link.id)
        };
        let node = |member: &crate::cluster::view::Member| {
            serde_json::json!({
                "id": member.id,
                "address": member.address,
                "port": member.port,
                "weight": member.weight,
                "state": member.state,
                "link": link_to(&member.id),
                "spoken": member.incarnation != 0,
            })
        };
        let members: Vec<_> = snapshot.view.members.values().map(node).collect();
        debug_assert!(
            snapshot
                .active
                .iter()
                .all(|member| member.state == MemberState::Active)
        );
        serde_json::json!({
            "epoch": snapshot.view.epoch,
            "hash": format!("{:016x}", snapshot.hash),
            "members": members,
            "active": snapshot.active.iter().map(|member| &member.id).collect::<Vec<_>>(),
            "pins": snapshot.view.pins,
        })
        .to_string()
    }

    /// A plain function that performs the staged records in the first `length` bytes, then writes
    /// every link they touch.
    #[napi(
        catch_unwind,
        ts_return_type = "(records: Uint8Array, length: number) => void"
    )]
    pub fn flush(&self, env: Env) -> napi::Result<Unknown<'_>> {
        turn::flush(&env, Arc::clone(&self.core))
    }

    /// Sends one message that is too long to stage.
    #[napi(catch_unwind)]
    pub fn send(&self, link: u32, stream: u32, kind: u32, bytes: &[u8]) {
        if let Some(link) = self.core.link(link) {
            link.send(stream, kind as u8, bytes);
            link.flush();
        }
    }

    /// The reader of a stream is slow, or keeps up again.
    #[napi(catch_unwind)]
    pub fn pause(&self, link: u32, stream: u32, paused: bool) {
        if let Some(link) = self.core.link(link) {
            link.pause(stream, paused);
        }
    }

    /// A plain function that writes the oldest records that wait to `room`, from `at` on. Four
    /// times how many words that were, and 1 more where others wait; 0: none; below 0: so many
    /// bytes are needed.
    #[napi(
        catch_unwind,
        ts_return_type = "(room: Uint8Array, at: number) => number"
    )]
    pub fn drain(&self, env: Env) -> napi::Result<Unknown<'_>> {
        turn::drain(&env, Arc::clone(&self.core))
    }

    /// Takes over the descriptor of an accepted socket on which a peer asked for a link. The
    /// descriptor is duplicated: the caller destroys its own socket afterwards.
    #[napi(catch_unwind)]
    pub fn accept_descriptor(&self, descriptor: i32, head: &[u8]) -> napi::Result<()> {
        let stream = duplicate(descriptor).map_err(|error| thrown(&error))?;
        self.core
            .accept_tcp(stream, head)
            .map_err(|error| thrown(&error))
    }

    /// Accepts a link over a socket that JavaScript keeps; answers the pipe's number.
    #[napi(catch_unwind)]
    pub fn accept_pipe(&self, head: &[u8], loopback: bool) -> u32 {
        self.core.accept_pipe(head, loopback)
    }

    /// A pipe's socket is connected.
    #[napi(catch_unwind)]
    pub fn pipe_opened(&self, pipe: u32) {
        if let Some(pipe) = self.core.pipe(pipe) {
            pipe.opened();
        }
    }

    /// A pipe's socket received bytes; `false`: pause it.
    #[napi(catch_unwind)]
    pub fn pipe_feed(&self, pipe: u32, bytes: &[u8]) -> bool {
        self.core.pipe(pipe).is_none_or(|pipe| pipe.feed(bytes))
    }

    /// A pipe's socket took bytes.
    #[napi(catch_unwind)]
    pub fn pipe_wrote(&self, pipe: u32, count: u32) {
        if let Some(pipe) = self.core.pipe(pipe) {
            pipe.wrote(count as usize);
        }
    }

    /// A pipe's socket is gone; `code` is that of its error, if there was one.
    #[napi(catch_unwind)]
    pub fn pipe_closed(&self, pipe: u32, reason: String, code: Option<String>) {
        let kind = health::error_kind(code.as_deref());
        self.core.remove_pipe(pipe, kind, &reason);
    }

    /// Asks the store for the member list now instead of at the next heartbeat.
    #[napi(catch_unwind)]
    pub fn resync(&self) -> napi::Result<()> {
        self.request(Command::Nudge)
    }

    /// Links with their counters, how many documents move away, milliseconds until this node may serve
    /// nothing any more unless it renews (null: without end), and what came of requests to the store. JSON.
    #[napi(catch_unwind)]
    pub fn stats(&self) -> String {
        use std::sync::atomic::Ordering::Relaxed;
        let links: Vec<_> = self
            .core
            .links()
            .iter()
            .map(|link| {
                let (streams, backlog, stalls) = link.load();
                let heard = link.traffic.heard.load(Relaxed);
                let age = (self.core.started.elapsed().as_millis() as u64).saturating_sub(heard);
                serde_json::json!({
                    "link": link.id,
                    "node": link.peer,
                    "accepted": link.side == Side::Acceptor,
                    "up": link.is_up(),
                    "heardAgo": (heard > 0).then_some(age),
                    "rtt": link.traffic.rtt.load(Relaxed),
                    "bytesIn": link.traffic.bytes_in.load(Relaxed),
                    "bytesOut": link.traffic.bytes_out.load(Relaxed),
                    "framesIn": link.traffic.frames_in.load(Relaxed),
                    "framesOut": link.traffic.frames_out.load(Relaxed),
                    "streams": streams,
                    "backlog": backlog,
                    "stalls": stalls,
                })
            })
            .collect();
        let now = self.core.started.elapsed();
        let until = self.core.right.load().until;
        // Without leases the right does not end.
        let margin = (until < std::time::Duration::MAX)
            .then(|| until.saturating_sub(now).as_millis() as u64);
        serde_json::json!({
            "links": links,
            "refused": self.core.refused.load(Relaxed),
            "migrations": self.migrations.counts(),
            "rightLeft": margin,
            "store": self.core.store.json(now),
        })
        .to_string()
    }

    /// Leaves the cluster and ends every link and task of the node. Idempotent.
    #[napi(catch_unwind)]
    pub fn destroy(&self) {
        self.core.shut_down();
        #[cfg(target_os = "linux")]
        if let Some(poll) = &self.poll {
            poll.close();
        }
    }
}

impl Drop for NativeNode {
    fn drop(&mut self) {
        self.core.shut_down();
    }
}

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> napi::Result<T> {
    serde_json::from_str(json).map_err(|error| thrown(&error.into()))
}

#[cfg(unix)]
fn duplicate(descriptor: i32) -> Result<std::net::TcpStream, Error> {
    use std::os::fd::FromRawFd;
    // SAFETY: F_DUPFD_CLOEXEC has no memory effects; a wrong number is answered with -1.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: `copy` is a fresh descriptor that nothing else owns.
    Ok(unsafe { std::net::TcpStream::from_raw_fd(copy) })
}

#[cfg(not(unix))]
fn duplicate(_: i32) -> Result<std::net::TcpStream, Error> {
    Err(std::io::Error::from(std::io::ErrorKind::Unsupported).into())
}
