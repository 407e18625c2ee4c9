//! A cluster in one thread: the real membership machines, the reference registry with its own
//! clock, and a network that drops, delays, duplicates and parts. Everything follows from a seed.
//!
//! After every event the world checks that no two nodes serve one document, that views of one
//! epoch are equal, and that the epochs a node sees only grow.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use smartroute::cluster::members::{Config, Effect, Event, How, Members, Standing};
use smartroute::cluster::view::{Member, MemberState};
use smartroute::store::model::Registry;
use smartroute::store::{Reply, Request, Rule};

/// `leaseDuration` of all nodes, ms.
pub const LEASE: u64 = 9000;
/// Documents looked at.
const DOCUMENTS: usize = 16;
/// Index of the store beside the nodes, in matrices of who reaches whom.
pub const STORE: usize = 8;
/// Store time at the start, ms.
const EPOCH: u64 = 1_700_000_000_000;
/// An application server notices a dead peer within so many µs.
const PROBE: u64 = 250_000;

/// Microseconds of real time.
pub type Micros = u64;

#[derive(Debug, Clone)]
enum Happening {
    Wake(usize, u64),
    JsTurn(usize),
    Probe(usize),
    Resume(usize),
    Rejoin(usize, u64),
    Released(usize, u64, u64),
    /// From one node to another.
    Word {
        to: usize,
        event: Event,
    },
    ToStore {
        from: usize,
        path: Vec<usize>,
        request: Request,
    },
    /// `path`: the nodes still to pass, the addressee first; `via`: who passes it on.
    FromStore {
        path: Vec<usize>,
        via: Option<usize>,
        incarnation: u64,
        life: u32,
        reply: Reply,
    },
    Op(Op),
}

/// A step of a script.
#[derive(Debug, Clone)]
pub enum Op {
    /// Starts a node's process, new or again.
    Start(usize),
    /// Ends it at once: connections reset, the address refuses.
    Crash(usize),
    /// Stops it for so many ms: it runs nothing, then goes on as if no time had passed.
    Pause(usize, u64),
    /// Its JavaScript thread hangs for so many ms; its other threads go on.
    Hang(usize, u64),
    /// From the first to the second nothing arrives (`STORE` too).
    Cut(usize, usize),
    /// It does again.
    Mend(usize, usize),
    /// Everything arrives again, promptly.
    MendAll,
    /// From the first to the second everything takes so many ms more.
    Slow(usize, usize, u64),
    /// Loss in percent, duplicates in percent, share of long delays in percent and their length, ms.
    Weather(u32, u32, u32, u64),
    /// The store forgets everything.
    Flush,
    /// Takes a copy of the store, or goes back to the last copy.
    Copy,
    Rollback,
    /// Own nothing more / leave / become a member again in the same process.
    Drain(usize),
    Leave(usize),
    Evict(usize, usize, bool),
    Pin(usize, usize, usize),
    /// The first comes to believe that the second is gone, though it is not; and is corrected.
    Accuse(usize, usize),
    Acquit(usize, usize),
}

struct Node {
    machine: Option<Members>,
    incarnation: u64,
    /// Rate of its clock, µs per second off.
    skew: i64,
    started: Micros,
    wake: u64,
    paused: bool,
    queue: VecDeque<(u32, Event)>,
    hung_until: Micros,
    /// Bit per document.
    entitled: u32,
    floor: u64,
    /// It left or was put out by hand.
    out: bool,
}

/// The world.
pub struct World {
    pub now: Micros,
    rng: SmallRng,
    order: u64,
    agenda: BinaryHeap<Reverse<(Micros, u64, usize)>>,
    happenings: Vec<Option<Happening>>,
    free: Vec<usize>,
    nodes: Vec<Node>,
    hints: Vec<String>,
    pub registry: Registry,
    copy: Option<Registry>,
    /// Counts the losses of the store, and when the last was noticed by a request.
    life: u32,
    lost: bool,
    exempt_until: Micros,
    cut: [[bool; STORE + 1]; STORE + 1],
    slow: [[u64; STORE + 1]; STORE + 1],
    /// Who wrongly takes whom for gone.
    accused: [[bool; STORE]; STORE],
    weather: (u32, u32, u32, u64),
    views: HashMap<(u32, u64), u64>,
    without: Option<Rule>,
    orphan_timeout: u64,
    incarnations: u64,
    pub violation: Option<String>,
    pub trace: Option<Vec<String>>,
    /// Node-turns in which something was served, and while every node was cut from the store.
    pub served: u64,
    /// Overlaps that the stated exception covers.
    pub excepted: u64,
}

fn name(node: usize) -> String {
    format!("n{node}")
}

fn index(id: &str) -> usize {
    id[1..].parse().unwrap()
}

impl World {
    /// A world of `nodes` nodes, none of them started.
    pub fn new(seed: u64, nodes: usize, without: Option<Rule>, trace: bool) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let registry = Registry {
            without,
            ..Registry::default()
        };
        let all = (0..STORE).map(|_| Node {
            machine: None,
            incarnation: 0,
            // ±1 %, often the whole of it.
            skew: [-10_000, 10_000, rng.random_range(-10_000..=10_000)][rng.random_range(0..3)],
            started: 0,
            wake: 0,
            paused: false,
            queue: VecDeque::new(),
            hung_until: 0,
            entitled: 0,
            floor: 0,
            out: true,
        });
        let all = all.collect();
        Self {
            now: 0,
            rng,
            order: 0,
            agenda: BinaryHeap::new(),
            happenings: Vec::new(),
            free: Vec::new(),
            nodes: all,
            hints: (0..nodes).map(name).collect(),
            registry,
            copy: None,
            life: 0,
            lost: false,
            exempt_until: 0,
            cut: [[false; STORE + 1]; STORE + 1],
            slow: [[0; STORE + 1]; STORE + 1],
            accused: [[false; STORE]; STORE],
            weather: (0, 0, 0, 0),
            views: HashMap::new(),
            without,
            orphan_timeout: 1000 * LEASE,
            incarnations: 0,
            violation: None,
            trace: trace.then(Vec::new),
            served: 0,
            excepted: 0,
        }
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9.3} {}", now as f64 / 1e6, text()));
        }
    }

    fn at(&mut self, at: Micros, happening: Happening) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.happenings[slot] = Some(happening);
                slot
            }
            None => {
                self.happenings.push(Some(happening));
                self.happenings.len() - 1
            }
        };
        self.order += 1;
        self.agenda.push(Reverse((at, self.order, slot)));
    }

    /// Plans an operation `ms` from now.
    pub fn plan(&mut self, ms: u64, op: Op) {
        let at = self.now + ms * 1000;
        self.at(at, Happening::Op(op));
    }

    /// Lets so many ms pass; stops at the first violation.
    pub fn run(&mut self, ms: u64) {
        let until = self.now + ms * 1000;
        while self.violation.is_none() {
            match self.agenda.peek() {
                Some(Reverse((at, _, _))) if *at <= until => {}
                _ => break,
            }
            let Some(Reverse((at, _, slot))) = self.agenda.pop() else {
                break;
            };
            self.now = at;
            if let Some(happening) = self.happenings[slot].take() {
                self.free.push(slot);
                self.happen(happening);
            }
        }
        self.now = self.now.max(until);
    }

    /// The node's monotonic clock.
    fn clock(&self, node: usize) -> Duration {
        let node = &self.nodes[node];
        let real = (self.now - node.started) as i64;
        Duration::from_micros((real + real / 1000 * node.skew / 1000) as u64)
    }

    fn real(&self, node: usize, local: Duration) -> Micros {
        let node = &self.nodes[node];
        let local = u64::try_from(local.as_micros()).unwrap_or(u64::MAX / 4) as i64;
        let real = (local as f64 * 1e6 / (1_000_000 + node.skew) as f64) as u64;
        // One more, so that the node's clock has certainly come that far.
        node.started + real + 2
    }

    fn delay(&mut self) -> Micros {
        let (_, _, long, length) = self.weather;
        if self.rng.random_range(0..100) < long {
            self.rng.random_range(0..=length * 1000)
        } else {
            self.rng.random_range(500..15_000)
        }
    }

    /// Puts a message on its way, or not, or twice.
    fn carry(&mut self, from: usize, to: usize, happening: &Happening) {
        let (loss, twice, _, _) = self.weather;
        if self.cut[from][to] || self.rng.random_range(0..100) < loss {
            return;
        }
        let copies = 1 + usize::from(self.rng.random_range(0..100) < twice);
        for _ in 0..copies {
            let at = self.now + self.delay() + self.slow[from][to] * 1000;
            self.at(at, happening.clone());
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Op(op) => self.op(op),
            Happening::Wake(node, token) => {
                if self.nodes[node].wake == token && !self.nodes[node].paused {
                    self.event(node, Event::Tick);
                }
            }
            Happening::JsTurn(node) => {
                if self.nodes[node].machine.is_none() {
                    return;
                }
                let at = self.now + 100_000;
                self.at(at, Happening::JsTurn(node));
                if !self.nodes[node].paused && self.now >= self.nodes[node].hung_until {
                    self.event(node, Event::JsTurn);
                }
            }
            Happening::Probe(node) => self.probe(node),
            Happening::Resume(node) => self.resume(node),
            Happening::Rejoin(node, before) => {
                if self.nodes[node].incarnation == before && self.nodes[node].machine.is_some() {
                    self.incarnations += 1;
                    let incarnation = self.incarnations;
                    self.nodes[node].incarnation = incarnation;
                    self.event(node, Event::Rejoin { incarnation });
                }
            }
            Happening::Released(node, incarnation, epoch) => {
                let it = &self.nodes[node];
                if it.incarnation != incarnation {
                    return;
                }
                if self.now < it.hung_until {
                    let at = it.hung_until + 1000;
                    self.at(at, Happening::Released(node, incarnation, epoch));
                } else {
                    self.event(node, Event::Released(epoch));
                }
            }
            Happening::Word { to, event } => self.event(to, event),
            Happening::ToStore {
                from,
                mut path,
                request,
            } => {
                // The first of the path has it and passes it on.
                if let Some(via) = path.pop() {
                    let it = &self.nodes[via];
                    if it.machine.is_none() || it.paused {
                        return;
                    }
                    let happening = Happening::ToStore {
                        from: via,
                        path,
                        request,
                    };
                    return self.carry(via, STORE, &happening);
                }
                self.store(from, &request);
            }
            Happening::FromStore {
                mut path,
                via,
                incarnation,
                life,
                reply,
            } => {
                let Some(node) = path.pop() else { return };
                if let Some(next) = path.last().copied() {
                    if self.nodes[node].machine.is_none() || self.nodes[node].paused {
                        return;
                    }
                    let happening = Happening::FromStore {
                        path,
                        via: Some(node),
                        incarnation,
                        life,
                        reply,
                    };
                    return self.carry(node, next, &happening);
                }
                if self.nodes[node].incarnation == incarnation {
                    let event = match via {
                        None => Event::Reply(reply),
                        Some(via) => Event::Relayed {
                            from: name(via),
                            reply,
                        },
                    };
                    self.event_of(node, life, event);
                }
            }
        }
    }

    fn store(&mut self, from: usize, request: &Request) {
        if self.lost {
            self.lost = false;
            self.exempt_until = self.now + LEASE * 1000;
        }
        let now = EPOCH + self.now / 1000;
        let reply = self.registry.apply(request, now);
        let (seq, outcome, epoch) = (reply.seq, reply.outcome, reply.known.epoch);
        let (id, incarnation) = (request.id.clone(), request.incarnation);
        self.note(|| {
            format!(
                "store: {id}/{incarnation} #{seq} {:?} known {} gone {:?} -> {outcome:?} epoch {epoch} fresh {}",
                request.want, request.known.epoch, request.gone, reply.effective
            )
        });
        let addressee = index(&request.id);
        let mut path = vec![addressee];
        if from != addressee {
            path.push(from);
        }
        let happening = Happening::FromStore {
            path,
            via: None,
            incarnation: request.incarnation,
            life: self.life,
            reply,
        };
        self.carry(STORE, from, &happening);
    }

    /// What the coordinator's links see: who is dead, or another process by now.
    fn probe(&mut self, node: usize) {
        if self.nodes[node].machine.is_none() {
            return;
        }
        let at = self.now + PROBE;
        self.at(at, Happening::Probe(node));
        if self.nodes[node].paused {
            return;
        }
        let machine = self.nodes[node].machine.as_ref().unwrap();
        let mut gone = Vec::new();
        if let Some(snapshot) = machine.snapshot() {
            for (id, member) in &snapshot.view.members {
                gone.push((id.clone(), member.incarnation));
            }
        }
        for hint in &self.hints {
            gone.push((hint.clone(), 0));
        }
        for (id, incarnation) in gone {
            let peer = index(&id);
            if peer == node || self.cut[node][peer] || self.cut[peer][node] {
                continue;
            }
            let it = &self.nodes[peer];
            // Refused, another process, or out by its own word.
            let ended = it
                .machine
                .as_ref()
                .is_none_or(|it| it.standing() == Standing::Out);
            let other = incarnation != 0 && it.incarnation != incarnation;
            if !ended && !other && !self.accused[node][peer] {
                self.event(node, Event::PeerBack { id, incarnation });
                continue;
            }
            self.event(node, Event::PeerGone { id, incarnation });
        }
        // An earlier process of ours: we have its address.
        let own = self.nodes[node].incarnation;
        let id = name(node);
        if let Some(entry) = self.registry.members.get(&id)
            && entry.incarnation != own
        {
            let incarnation = entry.incarnation;
            self.event(node, Event::PeerGone { id, incarnation });
        }
    }

    fn resume(&mut self, node: usize) {
        if !self.nodes[node].paused || self.nodes[node].machine.is_none() {
            return;
        }
        self.nodes[node].paused = false;
        self.note(|| format!("n{node} resumes"));
        // The frame batch it was about to handle.
        self.check(node);
        while let Some((life, event)) = self.nodes[node].queue.pop_front() {
            self.event_of(node, life, event);
        }
        self.event(node, Event::Tick);
    }

    fn event(&mut self, node: usize, event: Event) {
        self.event_of(node, self.life, event);
    }

    fn event_of(&mut self, node: usize, life: u32, event: Event) {
        if self.nodes[node].paused {
            self.nodes[node].queue.push_back((life, event));
            return;
        }
        let now = self.clock(node);
        let Some(machine) = self.nodes[node].machine.as_mut() else {
            return;
        };
        let mut effects = Vec::new();
        let before = machine.is_settled();
        machine.handle(now, event, &mut effects);
        let (wakeup, after) = (machine.next_wakeup(), machine.is_settled());
        let mut entitlement = before != after;
        for effect in effects {
            entitlement |= matches!(
                effect,
                Effect::View(_)
                    | Effect::Serving { .. }
                    | Effect::Settled(_)
                    | Effect::Departed { .. }
            );
            self.effect(node, life, effect);
        }
        if entitlement {
            self.reckon(node);
        }
        if wakeup < Duration::MAX {
            let at = self.real(node, wakeup).max(self.now + 1);
            self.nodes[node].wake += 1;
            let token = self.nodes[node].wake;
            self.at(at, Happening::Wake(node, token));
        }
        self.check(node);
    }

    fn reckon(&mut self, node: usize) {
        let machine = self.nodes[node].machine.as_ref().unwrap();
        let mut entitled = 0;
        for document in 0..DOCUMENTS {
            if machine.entitled(format!("doc-{document}").as_bytes()) {
                entitled |= 1 << document;
            }
        }
        self.nodes[node].entitled = entitled;
    }

    fn serves(&self, node: usize) -> u32 {
        let it = &self.nodes[node];
        let Some(machine) = &it.machine else { return 0 };
        let stands = it.paused || self.now < it.hung_until;
        if it.entitled == 0 || stands || !machine.serving(self.clock(node)) {
            return 0;
        }
        it.entitled
    }

    /// G1, at this moment.
    fn check(&mut self, node: usize) {
        let mine = self.serves(node);
        if mine == 0 {
            return;
        }
        self.served += 1;
        for other in 0..self.nodes.len() {
            if other == node || self.nodes[other].entitled & mine == 0 {
                continue;
            }
            let both = self.serves(other) & mine;
            if both == 0 {
                continue;
            }
            if self.now < self.exempt_until {
                self.excepted += 1;
                continue;
            }
            let epoch = |node: usize| {
                let machine = self.nodes[node].machine.as_ref();
                machine.and_then(|it| it.snapshot()).map(|it| it.view.epoch)
            };
            self.violation = Some(format!(
                "doc-{} is served by n{node} at epoch {:?} and by n{other} at epoch {:?}",
                both.trailing_zeros(),
                epoch(node),
                epoch(other)
            ));
            return;
        }
    }

    fn effect(&mut self, node: usize, life: u32, effect: Effect) {
        match effect {
            Effect::Send(request) => {
                let happening = Happening::ToStore {
                    from: node,
                    path: Vec::new(),
                    request,
                };
                self.carry(node, STORE, &happening);
            }
            Effect::Relay { via, request } => {
                let via = index(&via);
                let happening = Happening::ToStore {
                    from: node,
                    path: vec![via],
                    request,
                };
                self.carry(node, via, &happening);
            }
            Effect::Tell { to, report } => {
                let from = name(node);
                self.tell(node, &to, Event::Report { from, report });
            }
            Effect::Plead { to, plea } => {
                let from = name(node);
                self.tell(node, &to, Event::Plea { from, plea });
            }
            Effect::Vouch { to, vouch } => {
                let from = name(node);
                self.tell(node, &to, Event::Vouch { from, vouch });
            }
            Effect::Resumed { incarnation } => {
                self.note(|| format!("n{node} resumes {incarnation}"));
                self.nodes[node].incarnation = incarnation;
            }
            Effect::View(snapshot) => {
                let epoch = snapshot.view.epoch;
                self.note(|| {
                    let members = snapshot.view.members.values();
                    let members: Vec<_> = members
                        .map(|m| format!("{}/{}:{:?}", m.id, m.incarnation, m.state))
                        .collect();
                    format!("n{node} installs {epoch}: {members:?}")
                });
                if epoch < self.nodes[node].floor {
                    self.violation = Some(format!(
                        "n{node} sees epoch {epoch} after {}",
                        self.nodes[node].floor
                    ));
                }
                self.nodes[node].floor = epoch;
                let before = self.views.insert((life, epoch), snapshot.hash);
                if before.is_some_and(|hash| hash != snapshot.hash) {
                    self.violation = Some(format!("n{node} has another view of epoch {epoch}"));
                }
                let incarnation = self.nodes[node].incarnation;
                let at = self.now + self.rng.random_range(0..50_000);
                self.at(at, Happening::Released(node, incarnation, epoch));
            }
            Effect::Serving { on, lapsed } => {
                self.note(|| format!("n{node} serves: {on} (lapsed {lapsed})"));
            }
            Effect::Settled(epoch) => self.note(|| format!("n{node} settled {epoch}")),
            Effect::Departed { reason, stay_out } => {
                self.note(|| format!("n{node} is out: {reason}"));
                self.nodes[node].out = stay_out;
                if !stay_out {
                    let at = self.now + self.rng.random_range(100_000..500_000);
                    let incarnation = self.nodes[node].incarnation;
                    self.at(at, Happening::Rejoin(node, incarnation));
                }
            }
            Effect::IdTaken { .. }
            | Effect::Mismatch { .. }
            | Effect::Strangers(_)
            | Effect::Warn(_) => {}
        }
    }

    fn tell(&mut self, from: usize, to: &str, event: Event) {
        let to = index(to);
        self.carry(from, to, &Happening::Word { to, event });
    }

    fn op(&mut self, op: Op) {
        self.note(|| format!("-- {op:?}"));
        match op {
            Op::Start(node) => self.start(node),
            Op::Crash(node) => {
                let it = &mut self.nodes[node];
                it.machine = None;
                it.paused = false;
                it.queue.clear();
                it.entitled = 0;
                it.wake += 1;
            }
            Op::Pause(node, ms) => {
                if self.nodes[node].machine.is_some() && !self.nodes[node].paused {
                    self.nodes[node].paused = true;
                    let at = self.now + ms * 1000;
                    self.at(at, Happening::Resume(node));
                }
            }
            Op::Hang(node, ms) => self.nodes[node].hung_until = self.now + ms * 1000,
            Op::Cut(from, to) => self.cut[from][to] = true,
            Op::Mend(from, to) => self.cut[from][to] = false,
            Op::MendAll => {
                self.cut = [[false; STORE + 1]; STORE + 1];
                self.slow = [[0; STORE + 1]; STORE + 1];
                self.accused = [[false; STORE]; STORE];
                self.weather = (0, 0, 0, 0);
            }
            Op::Slow(from, to, ms) => self.slow[from][to] = ms,
            Op::Weather(loss, twice, long, length) => self.weather = (loss, twice, long, length),
            Op::Flush => {
                let without = self.without;
                self.registry = Registry {
                    without,
                    ..Registry::default()
                };
                self.life += 1;
                self.lost = true;
                self.exempt_until = u64::MAX;
            }
            Op::Copy => self.copy = Some(self.registry.clone()),
            Op::Rollback => {
                if let Some(copy) = self.copy.clone() {
                    self.registry = copy;
                    self.life += 1;
                    self.lost = true;
                    self.exempt_until = u64::MAX;
                }
            }
            Op::Drain(node) => self.event(node, Event::Drain),
            Op::Leave(node) => {
                if self.nodes[node].machine.is_some() {
                    self.nodes[node].out = true;
                }
                self.event(node, Event::Leave);
            }
            Op::Evict(by, id, drain) => {
                let reason = "by hand".to_owned();
                let id = name(id);
                let how = if drain { How::Drain } else { How::Wait };
                self.event(by, Event::Evict { id, reason, how });
            }
            Op::Pin(by, document, node) => {
                let document = format!("doc-{document}");
                let node = Some(name(node));
                self.event(by, Event::Pin { document, node });
            }
            Op::Accuse(by, node) => {
                self.accused[by][node] = true;
                let incarnation = self.nodes[node].incarnation;
                let id = name(node);
                self.event(by, Event::PeerGone { id, incarnation });
            }
            Op::Acquit(by, node) => self.accused[by][node] = false,
        }
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].machine.is_some() {
            return;
        }
        self.incarnations += 1;
        let own = Member {
            id: name(node),
            incarnation: self.incarnations,
            address: "10.0.0.1".into(),
            port: 80,
            link_port: None,
            weight: 1.0,
            state: MemberState::Active,
        };
        let config = Config {
            lease: Duration::from_millis(LEASE),
            orphan_timeout: Duration::from_millis(self.orphan_timeout),
            hints: self.hints.clone(),
            agreement: "ring".into(),
            virtual_nodes: 8,
            without: self.without,
        };
        let started = self
            .now
            .saturating_sub(self.rng.random_range(0..100_000_000));
        let it = &mut self.nodes[node];
        it.machine = Some(Members::new(config, &own));
        it.incarnation = self.incarnations;
        it.started = started;
        it.paused = false;
        it.queue.clear();
        it.entitled = 0;
        it.floor = 0;
        it.out = false;
        self.event(node, Event::Announce);
        let at = self.now;
        self.at(at + 1000, Happening::JsTurn(node));
        self.at(at + 3000, Happening::Probe(node));
    }

    // ---- For scripts ----

    /// Whether the node serves anything now.
    pub fn is_serving(&self, node: usize) -> bool {
        self.serves(node) != 0
    }

    /// Starts `nodes` nodes and lets them form.
    pub fn formed(seed: u64, nodes: usize, without: Option<Rule>) -> Self {
        let mut world = Self::new(seed, nodes, without, true);
        for node in 0..nodes {
            world.plan(10 * node as u64, Op::Start(node));
        }
        world.run(2 * LEASE);
        if world.violation.is_none() {
            world.whole().unwrap();
        }
        world
    }

    /// Nothing passes between the two, either way.
    pub fn part(&mut self, ms: u64, one: usize, other: usize) {
        self.plan(ms, Op::Cut(one, other));
        self.plan(ms, Op::Cut(other, one));
    }

    /// It passes again.
    pub fn mend(&mut self, ms: u64, one: usize, other: usize) {
        self.plan(ms, Op::Mend(one, other));
        self.plan(ms, Op::Mend(other, one));
    }

    /// Lets time pass, and says for which seconds a node served nothing.
    pub fn idle_seconds(&mut self, ms: u64, node: usize) -> Vec<u64> {
        let mut idle = Vec::new();
        for _ in 0..ms / 1000 {
            self.run(1000);
            if !self.is_serving(node) {
                idle.push(self.now / 1_000_000);
            }
        }
        idle
    }

    /// Epoch of the node's view.
    pub fn epoch(&self, node: usize) -> u64 {
        let machine = self.nodes[node].machine.as_ref();
        machine
            .and_then(Members::snapshot)
            .map_or(0, |it| it.view.epoch)
    }

    /// Whether the node is one of the members by the store's word.
    pub fn is_member(&self, node: usize) -> bool {
        self.registry.members.contains_key(&name(node))
    }

    /// With everything whole: all nodes that run agree on one view of just them, and serve all.
    pub fn whole(&self) -> Result<(), String> {
        let live: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].machine.is_some() && !self.nodes[*node].out)
            .collect();
        let ids: Vec<String> = live.iter().map(|node| name(*node)).collect();
        let mut hash = None;
        let mut served = 0;
        for node in live {
            let machine = self.nodes[node].machine.as_ref().unwrap();
            let Some(snapshot) = machine.snapshot() else {
                return Err(format!("n{node} has no view"));
            };
            if machine.standing() != Standing::Member {
                return Err(format!("n{node} is {:?}", machine.standing()));
            }
            let members: Vec<String> = snapshot.view.members.keys().cloned().collect();
            if members != ids {
                return Err(format!("n{node} sees {members:?}, not {ids:?}"));
            }
            if *hash.get_or_insert(snapshot.hash) != snapshot.hash {
                return Err(format!("n{node} sees another view"));
            }
            if !machine.is_settled() {
                return Err(format!("n{node} is not settled"));
            }
            if !machine.serving(self.clock(node)) {
                return Err(format!("n{node} does not serve"));
            }
            served |= self.serves(node);
        }
        let active = ids.is_empty() || served == (1 << DOCUMENTS) - 1;
        let leaving = self.registry.members.values();
        if !active
            && leaving
                .into_iter()
                .any(|it| it.state == MemberState::Active)
        {
            return Err(format!("documents {served:b} are served"));
        }
        Ok(())
    }
}
