//! The only code that knows Node: one class per SmartRoute instance, plus the look-up function.
//!
//! Calls from JavaScript are staged: `flush` takes a turn's records in one call, `drain` answers
//! what waits. Class methods cost some 400 ns, so none is called per frame.

mod lookup;

use std::sync::{Arc, OnceLock};

use napi::Env;
use napi::bindgen_prelude::{ArrayBuffer, Function, Unknown};
use napi::threadsafe_function::ThreadsafeFunctionCallMode;
use napi_derive::napi;
use tokio::runtime::{Builder, Handle as Runtime};

use crate::cluster::view::MemberState;
use crate::config::{NodeSpec, Settings};
use crate::coordinator;
use crate::error::Error;
use crate::handle::{Command, Core};
use crate::link::connection::Link;
use crate::link::frame::clip;
use crate::link::mux::Side;

/// Kinds of staged records; `js/core.js` writes them.
mod staged {
    pub const OPEN: u32 = 1;
    pub const MESSAGE: u32 = 2;
    pub const MULTICAST: u32 = 3;
    pub const CLOSE: u32 = 4;
}

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
}

#[napi]
impl NativeNode {
    /// Starts a node that is not reachable yet. `settings` and `node` are JSON; `wake` is called
    /// on the JavaScript thread when there is something to drain, at most once per drain.
    #[napi(constructor, catch_unwind)]
    pub fn new(
        settings: String,
        node: String,
        incarnation: f64,
        secret: &[u8],
        wake: Function<(), ()>,
    ) -> napi::Result<Self> {
        let settings: Settings = parse(&settings)?;
        let node: NodeSpec = parse(&node)?;
        let runtime = runtime()?;
        let member = node.into_member(incarnation as u64);
        let (core, commands) = Core::new(settings, member, secret.to_vec(), runtime.clone());
        // Weak: a node that only waits for frames must not keep the process alive.
        let wake = wake
            .build_threadsafe_function()
            .weak::<true>()
            .build_callback(|_| Ok(()))?;
        core.inbox.on_wake(move || {
            wake.call((), ThreadsafeFunctionCallMode::NonBlocking);
        });
        let actor = tokio_supervised(Arc::clone(&core), commands);
        runtime.spawn(actor);
        Ok(Self { core })
    }

    /// The look-up: a plain function from a document name to the index of its owner in the view
    /// taken last, or -1.
    #[napi(catch_unwind, ts_return_type = "(name: string) => number")]
    pub fn lookup(&self, env: Env) -> napi::Result<Unknown<'_>> {
        lookup::function(&env, Arc::clone(&self.core))
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
        })
        .to_string()
    }

    /// Performs the staged records in the first `length` bytes, then writes every link they touch.
    #[napi(catch_unwind)]
    pub fn flush(&self, records: &[u8], length: u32) {
        let mut rest = &records[..(length as usize).min(records.len())];
        let mut touched: Vec<Arc<Link>> = Vec::new();
        while let Some((header, after)) = rest.split_at_checked(16) {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4"));
            let (kind, link, stream, length) = (word(0), word(4), word(8), word(12) as usize);
            let Some((payload, _)) = after.split_at_checked(length) else {
                debug_assert!(false, "record cut short");
                break;
            };
            rest = after.get(length.next_multiple_of(4)..).unwrap_or(&[]);
            let at = touched.iter().position(|known| known.id == link);
            let link = match at {
                Some(at) => &touched[at],
                None => match self.core.link(link) {
                    Some(found) => {
                        touched.push(found);
                        touched.last().expect("pushed")
                    }
                    // The link went away; its streams were told, except for new ones.
                    None => {
                        if kind == staged::OPEN {
                            self.core.refuse_stream(link, stream);
                        }
                        continue;
                    }
                },
            };
            perform(link, kind, stream, payload);
        }
        for link in touched {
            link.flush();
        }
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

    /// The oldest records that wait, or null.
    #[napi(catch_unwind)]
    pub fn drain<'env>(&self, env: &'env Env) -> napi::Result<Option<ArrayBuffer<'env>>> {
        let Some(segment) = self.core.inbox.drain() else {
            return Ok(None);
        };
        // Up to 64 KiB a copy is cheaper than an external buffer with its finalizer.
        if segment.len() <= 64 * 1024 {
            ArrayBuffer::copy_from(env, segment).map(Some)
        } else {
            ArrayBuffer::from_data(env, segment).map(Some)
        }
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

    /// A pipe's socket is gone.
    #[napi(catch_unwind)]
    pub fn pipe_closed(&self, pipe: u32, reason: String) {
        self.core.remove_pipe(pipe, &reason);
    }

    /// Links with their counters. JSON.
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
                    "streams": streams,
                    "backlog": backlog,
                    "stalls": stalls,
                })
            })
            .collect();
        serde_json::json!({ "links": links, "refused": self.core.refused.load(Relaxed) })
            .to_string()
    }

    /// Ends every link and task of the node. Idempotent.
    #[napi(catch_unwind)]
    pub fn destroy(&self) {
        self.core.stop.cancel();
    }
}

impl Drop for NativeNode {
    fn drop(&mut self) {
        self.core.stop.cancel();
    }
}

/// Runs the coordinator; a panic in it stops the node instead of leaving it half alive.
async fn tokio_supervised(core: Arc<Core>, commands: tokio::sync::mpsc::Receiver<Command>) {
    let task = tokio::spawn(coordinator::run(Arc::clone(&core), commands));
    if let Err(error) = task.await {
        core.log(
            "error",
            "coordinator",
            &format!("the coordinator failed, this node stops routing: {error}"),
        );
        core.stop.cancel();
    }
}

fn perform(link: &Link, kind: u32, stream: u32, payload: &[u8]) {
    match kind & 0xff {
        staged::OPEN => link.open(stream),
        staged::MESSAGE => link.send(stream, (kind >> 8) as u8, payload),
        staged::MULTICAST => {
            let Some((list, bytes)) = payload.split_at_checked(stream as usize * 4) else {
                return;
            };
            let ids: Vec<u32> = list
                .chunks_exact(4)
                .map(|id| u32::from_ne_bytes(id.try_into().expect("4")))
                .collect();
            link.multicast(&ids, bytes);
        }
        staged::CLOSE => {
            if let Some((code, reason)) = payload.split_first_chunk::<2>() {
                let reason = String::from_utf8_lossy(reason);
                link.close(stream, u16::from_ne_bytes(*code), clip(&reason));
            }
        }
        _ => debug_assert!(false, "unknown staged record {kind}"),
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
