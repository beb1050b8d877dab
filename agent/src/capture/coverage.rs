//! Keeps every network namespace that holds covered processes covered: with a listener, with the perimeter on the devices
//! that lead out of it, and without connections to endpoints that are older than what is known of these.
//!
//! The kernel programs tell of namespaces as soon as a covered process makes a socket there. A slow scan finds what they
//! could not tell (a full buffer, a process that was gone before it could be looked at) and leaves the namespaces that
//! nobody is in any more, which only the listeners kept alive.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agent_common::{Event, maps, mode};
use aya::maps::MapData;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    CaptureError, Settings,
    attempts::{Attempt, AttemptKind, Told},
    cgroups::{self, Cgroups},
    devices,
    endpoints::Endpoints,
    listeners::Acceptor,
    namespace::{self, Namespace, Opened},
    netlink::Netlink,
    origins::Origins,
    programs::Programs,
    scopes::Scopes,
    sockets::{self, TcpSocket},
    workload::Workload,
};
use crate::kubernetes::Pods;

const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// A scan that an event asks for comes no sooner than this after the last.
const SCAN_PAUSE: Duration = Duration::from_millis(250);
/// A namespace in which listening failed is left alone for this long.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A listener goes when so many scans in a row found nobody in its namespace.
const SCANS_UNTIL_DROPPED: u8 = 2;
/// Changes come in bursts: what they ask for waits this long for the rest.
const SETTLE: Duration = Duration::from_millis(20);

pub(super) struct Coverage {
    pub(super) settings: Settings,
    /// Directory of the covered cgroup.
    pub(super) covered: PathBuf,
    pub(super) acceptor: Arc<Acceptor>,
    pub(super) cgroups: Arc<Cgroups>,
    pub(super) origins: Arc<Origins>,
    pub(super) endpoints: Endpoints,
    pub(super) scopes: Scopes,
    /// Tells the kernel programs where listeners are.
    pub(super) namespaces: aya::maps::HashMap<MapData, u64, u8>,
    pub(super) programs: Programs,
    /// The map of the agent's marks on its own sockets.
    pub(super) marks: OwnedFd,
    pub(super) told: mpsc::Sender<Told>,
    pub(super) pods: watch::Receiver<Arc<Pods>>,
    /// Inode number of the host's own namespace.
    pub(super) home: u64,
    /// By the inode number of the namespace, which its listener keeps alive.
    pub(super) open: HashMap<u64, Covering>,
    /// When listening last failed, by inode number.
    pub(super) failed: HashMap<u64, Instant>,
    pub(super) scanned: Instant,
    /// Told of namespaces whose devices have changed.
    pub(super) devices: mpsc::Sender<u64>,
    /// Listeners of an agent that goes, by the inode number of their namespace.
    pub(super) inherited: HashMap<u64, Opened>,
}

/// A namespace that is covered.
pub(super) struct Covering {
    cookie: u64,
    namespace: Arc<Namespace>,
    listeners: Vec<Arc<TcpListener>>,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
    /// Scans in a row that found no covered process in the namespace.
    unseen: u8,
    /// What was last said of devices without a perimeter.
    unguarded: Vec<String>,
}

/// What the kernel tells, and what it is to be asked.
pub(super) struct Inbox {
    /// Sockets in namespaces without a listener.
    pub(super) namespaces: mpsc::Receiver<Vec<Event>>,
    /// Packets with a Snowflake name to an address that was not known: their sockets are to be ended.
    pub(super) guarded: mpsc::Receiver<Event>,
    pub(super) devices: mpsc::Receiver<u64>,
    /// What is asked from outside.
    pub(super) questions: mpsc::Receiver<Question>,
}

/// What is asked from outside.
pub(super) enum Question {
    /// The listeners, for a successor.
    HandOver(oneshot::Sender<Vec<HandedListener>>),
    State(oneshot::Sender<CoverageState>),
}

/// What is covered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageState {
    /// Network namespaces with a listener.
    pub namespaces: usize,
    /// Namespaces in which it was tried in vain to listen.
    pub failed: usize,
    /// Devices that have the perimeter.
    pub devices: Vec<String>,
    /// Devices that should and have not, with the reason.
    pub unguarded: Vec<String>,
    /// Cgroups for which something else holds than for the rest.
    pub scopes: usize,
    /// Whether the perimeter is on at all.
    pub perimeter: bool,
    /// Whether packet sockets are refused.
    pub packet_sockets: bool,
}

/// The listeners of a namespace, for a successor.
pub struct HandedListener {
    /// Inode number of the namespace.
    pub inode: u64,
    pub v4: OwnedFd,
    pub v6: Option<OwnedFd>,
}

impl Coverage {
    /// Covers what is there. That the port is taken in the agent's own namespace is an error, for then somebody has
    /// configured two things on one port; in any other it must not keep the agent from covering the rest.
    pub(super) fn begin(&mut self) -> Result<(), CaptureError> {
        let home =
            Namespace::of(std::process::id()).map_err(CaptureError::io("find my own network namespace"))?;
        self.home = home.inode;
        self.open(home)?;
        self.guard(self.home);
        self.scan();
        // Of namespaces that nobody is in any more.
        self.inherited.clear();
        Ok(())
    }

    /// Runs until it is aborted.
    pub(super) async fn run(mut self, mut inbox: Inbox) -> io::Result<()> {
        let made = match self.scopes.watch() {
            Ok(watch) => watch,
            Err(error) => {
                tracing::warn!(%error, "new cgroups get their scopes a few seconds late");
                None
            }
        };
        // SAFETY: the descriptor is owned, and so stays the same and open as long as it is registered.
        let register = |watch| unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) };
        let made = made.map(register).transpose()?;
        let endpoints = self.endpoints.clone();
        let mut pods = self.pods.clone();
        let mut ticks = interval(SCAN_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let task = tokio::select! {
                // What workloads cause at will comes last, and what is due now and then comes first.
                biased;
                _ = ticks.tick() => Task::Scan,
                Some(events) = inbox.namespaces.recv() => Task::Hear(events),
                Some(inode) = inbox.devices.recv() => Task::Guard(inode),
                Some(question) = inbox.questions.recv() => Task::Answer(question),
                () = created(made.as_ref()) => {
                    sleep(SETTLE).await;
                    Task::Reconcile
                }
                Ok(()) = pods.changed() => Task::Reconcile,
                () = endpoints.changed() => {
                    sleep(SETTLE).await;
                    Task::Sweep
                }
                Some(event) = inbox.guarded.recv() => Task::End(Box::new(event)),
            };
            // They read files and change namespaces, which no worker should wait for.
            self = spawn_blocking(move || {
                self.perform(task);
                self
            })
            .await?;
        }
    }

    fn perform(&mut self, task: Task) {
        match task {
            Task::Hear(events) => self.hear(&events),
            Task::End(event) => self.end_guarded(&event),
            Task::Guard(inode) => self.guard(inode),
            Task::Reconcile => self.reconcile(),
            Task::Sweep => self.sweep(),
            Task::Scan => self.scan(),
            // Whoever asked may have stopped waiting.
            Task::Answer(Question::HandOver(answer)) => drop(answer.send(self.listeners())),
            Task::Answer(Question::State(answer)) => drop(answer.send(self.state())),
        }
    }

    fn state(&self) -> CoverageState {
        CoverageState {
            namespaces: self.open.len(),
            failed: self.failed.len(),
            devices: self.programs.guarded(),
            unguarded: self.open.values().flat_map(|covering| covering.unguarded.clone()).collect(),
            scopes: self.scopes.count(),
            perimeter: self.settings.perimeter,
            packet_sockets: self.programs.refuse_packet_sockets(),
        }
    }

    /// The listeners once more. What they have accepted by then stays accepted here.
    fn listeners(&self) -> Vec<HandedListener> {
        let copy = |listener: &Arc<TcpListener>| listener.as_fd().try_clone_to_owned().ok();
        let handed = |(inode, covering): (&u64, &Covering)| {
            let mut listeners = covering.listeners.iter().map(copy);
            let v4 = listeners.next()??;
            Some(HandedListener { inode: *inode, v4, v6: listeners.next().flatten() })
        };
        self.open.iter().filter_map(handed).collect()
    }

    fn hear(&mut self, events: &[Event]) {
        for event in events {
            for task in [event.tid, event.pid] {
                if !self.listens_in(event.netns_cookie)
                    && let Ok(namespace) = Namespace::of(task)
                {
                    let inode = namespace.inode;
                    self.try_open(namespace);
                    self.settle(inode, self.cgroups.path(event.cgroup_id, task).as_deref());
                }
            }
        }
        // Whoever caused the event is gone or has changed its namespace; somebody else may be there still.
        let unheard = events.iter().any(|event| !self.listens_in(event.netns_cookie));
        if unheard && self.scanned.elapsed() >= SCAN_PAUSE {
            self.scan();
        }
    }

    fn listens_in(&self, cookie: u64) -> bool {
        self.open.values().any(|covered| covered.cookie == cookie)
    }

    fn scan(&mut self) {
        self.scanned = Instant::now();
        // A process in each, and the cgroup that all of them are in.
        let mut inhabited: HashMap<u64, (u32, PathBuf)> = HashMap::new();
        for (directory, processes) in cgroups::processes_by_cgroup(&self.covered) {
            for pid in processes {
                let Ok(inode) = namespace::inode_of(pid) else { continue };
                let (_, cgroup) = inhabited.entry(inode).or_insert_with(|| (pid, directory.clone()));
                if *cgroup != directory {
                    *cgroup = cgroups::common(cgroup, &directory);
                }
            }
        }
        inhabited.entry(self.home).or_insert_with(|| (std::process::id(), self.covered.clone()));
        for (inode, (pid, cgroup)) in &inhabited {
            let cgroup = self.cgroups.path_of(cgroup);
            if !self.open.contains_key(inode)
                && let Ok(namespace) = Namespace::of(*pid)
            {
                self.try_open(namespace);
            }
            self.settle(*inode, cgroup.to_str());
        }
        self.failed.retain(|inode, _| inhabited.contains_key(inode));
        for (inode, covered) in &mut self.open {
            covered.unseen = if inhabited.contains_key(inode) { 0 } else { covered.unseen.saturating_add(1) };
        }
        let left: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, covered)| covered.unseen >= SCANS_UNTIL_DROPPED)
            .map(|(inode, _)| *inode)
            .collect();
        for inode in left {
            self.leave(inode);
        }
        let unguarded = self.open.iter().filter(|(_, covered)| !covered.unguarded.is_empty());
        let unguarded: Vec<u64> = unguarded.map(|(inode, _)| *inode).collect();
        for inode in unguarded {
            self.guard(inode);
        }
        self.reconcile();
        if let Err(error) = self.endpoints.expire() {
            tracing::warn!(%error, "an old address is still covered");
        }
    }

    /// Says whose a namespace is. What goes out of the host's own says it by itself.
    fn settle(&self, inode: u64, cgroup: Option<&str>) {
        if inode != self.home
            && let Some(covered) = self.open.get(&inode)
        {
            self.origins.settle(inode, &covered.namespace, cgroup);
        }
    }

    fn leave(&mut self, inode: u64) {
        let Some(covered) = self.open.remove(&inode) else { return };
        self.origins.leave(inode);
        // First the kernel programs: should somebody come back just now, they tell of it again.
        if let Err(error) = self.namespaces.remove(&covered.cookie) {
            tracing::warn!(netns_cookie = covered.cookie, %error, "cannot unregister a network namespace");
        }
        self.programs.leave(covered.cookie, &|_| true);
        tracing::info!(netns_cookie = covered.cookie, "left a network namespace that nobody is in");
    }

    fn try_open(&mut self, namespace: Namespace) {
        let inode = namespace.inode;
        let failed = self.failed.get(&inode).copied();
        if failed.is_some_and(|last| last.elapsed() < RETRY_PAUSE) {
            return;
        }
        match self.open(namespace) {
            Ok(()) => {
                self.failed.remove(&inode);
                self.guard(inode);
            }
            Err(error) => {
                // Said once and not at each retry.
                if failed.is_none() {
                    tracing::error!(%error, "connections to endpoints are refused in a network namespace");
                }
                self.failed.insert(inode, Instant::now());
            }
        }
    }

    fn open(&mut self, namespace: Namespace) -> Result<(), CaptureError> {
        let inode = namespace.inode;
        if self.open.contains_key(&inode) {
            return Ok(());
        }
        let opened = match self.inherited.remove(&inode) {
            Some(opened) => opened,
            None => namespace.listen(self.settings.listen_port)?,
        };
        let (cookie, namespace) = (opened.cookie, Arc::new(namespace));
        let mut tasks = JoinSet::new();
        let mut listeners = Vec::new();
        for listener in [Some(opened.v4), opened.v6].into_iter().flatten() {
            let listener = TcpListener::from_std(listener).map_err(CaptureError::io("watch a listener"))?;
            let listener = Arc::new(listener);
            let acceptor = Arc::clone(&self.acceptor);
            tasks.spawn(acceptor.run(Arc::clone(&listener), Arc::clone(&namespace), cookie));
            listeners.push(listener);
        }
        if self.settings.perimeter {
            match namespace.inside(|| Netlink::watch(devices::GROUP)).and_then(|watch| watch) {
                Ok(watch) => drop(tasks.spawn(watch_devices(watch, inode, self.devices.clone()))),
                Err(error) => tracing::warn!(%error, "new devices get the perimeter late"),
            }
        }
        self.namespaces.insert(cookie, 0, 0).map_err(CaptureError::map(maps::NAMESPACES))?;
        let covering =
            Covering { cookie, namespace, listeners, _tasks: tasks, unseen: 0, unguarded: Vec::new() };
        self.open.insert(inode, covering);
        tracing::info!(netns_cookie = cookie, "listening in a network namespace");
        Ok(())
    }

    /// Puts the perimeter on the devices of a namespace.
    fn guard(&mut self, inode: u64) {
        if !self.settings.perimeter {
            return;
        }
        let Some(covered) = self.open.get_mut(&inode) else { return };
        let (programs, cookie) = (&mut self.programs, covered.cookie);
        let is_home = inode == self.home;
        let guarded = covered.namespace.inside(|| programs.guard(cookie, is_home)).and_then(|result| result);
        let failures = guarded.unwrap_or_else(|error| vec![error.to_string()]);
        if failures != covered.unguarded && !failures.is_empty() {
            tracing::error!(netns_cookie = cookie, devices = ?failures, "devices are without the perimeter");
        }
        covered.unguarded = failures;
    }

    fn reconcile(&mut self) {
        let pods = Arc::clone(&self.pods.borrow());
        match self.scopes.reconcile(&pods) {
            Ok(false) => {}
            Ok(true) => {
                tracing::debug!("the scopes have changed");
                self.sweep();
            }
            Err(error) => tracing::error!(%error, "the scopes are not up to date"),
        }
    }

    /// Ends connections to endpoints that go around the agent, because they are older than it, or than what is known of
    /// their address.
    pub(super) fn sweep(&mut self) {
        let namespaces: Vec<Arc<Namespace>> =
            self.open.values().map(|covered| Arc::clone(&covered.namespace)).collect();
        for namespace in namespaces {
            let ended = namespace.inside(|| -> io::Result<Vec<TcpSocket>> {
                let old = sockets::list(self.marks.as_fd())?.into_iter().filter(|socket| self.is_old(socket));
                Ok(old.filter(|socket| sockets::destroy(socket).is_ok()).collect())
            });
            match ended.and_then(|ended| ended) {
                Ok(ended) => ended.iter().for_each(|socket| self.tell_of(socket)),
                Err(error) => tracing::warn!(%error, "connections older than the agent were not looked for"),
            }
        }
    }

    /// Whether a socket goes around the agent.
    fn is_old(&self, socket: &TcpSocket) -> bool {
        if socket.is_own
            || !self.settings.ports.contains(&socket.peer.port())
            || socket.peer.ip().is_loopback()
        {
            return false;
        }
        match self.mode_of(socket) {
            mode::OFF => false,
            // What goes there now is looked at by the agent; what went there before was not.
            mode::ALL => true,
            _ => self.endpoints.class_of(socket.peer.ip()).is_some_and(super::EndpointClass::is_certain),
        }
    }

    fn mode_of(&self, socket: &TcpSocket) -> u8 {
        // What does not say where it belongs is taken for covered, and so is what belonged to a cgroup that is gone.
        let Some(path) = socket.cgroup_id.and_then(|id| self.cgroups.path(id, 0)) else {
            return mode::ENDPOINTS;
        };
        if Path::new(&path).starts_with(self.cgroups.path_of(&self.covered)) {
            self.scopes.of(&path, &self.pods.borrow()).mode
        } else {
            mode::OFF
        }
    }

    fn tell_of(&self, socket: &TcpSocket) {
        let cgroup_id = socket.cgroup_id.unwrap_or_default();
        let attempt = Attempt {
            kind: AttemptKind::OldSocket,
            workload: Workload::find(cgroup_id, 0, socket.uid, &[0; 16], &self.cgroups),
            source: Some(socket.local),
            destination: Some(socket.peer),
            name: String::new(),
            detail: String::new(),
        };
        // Nobody waits for it here; what finds no room is in the log.
        if self.told.try_send(Told::Attempt(attempt)).is_err() {
            tracing::warn!(peer = %socket.peer, "ended a connection that was older than the agent");
        }
    }

    /// Ends the socket whose packet the guard dropped: its process tries again, and is redirected then.
    fn end_guarded(&mut self, event: &Event) {
        // Where its workload is. One that was handed on elsewhere waits in vain, for nothing leaves it any more.
        for namespace in self.namespaces_of(event.cgroup_id) {
            let ended = namespace.inside(|| {
                let sockets = sockets::list(self.marks.as_fd()).unwrap_or_default();
                let found = sockets.iter().find(|socket| socket.cookie() == event.socket_cookie);
                found.is_some_and(|socket| sockets::destroy(socket).is_ok())
            });
            if ended.is_ok_and(|ended| ended) {
                return;
            }
        }
    }

    /// The namespaces that processes of a cgroup are in.
    fn namespaces_of(&self, cgroup_id: u64) -> Vec<Arc<Namespace>> {
        let Some(path) = self.cgroups.path(cgroup_id, 0) else { return Vec::new() };
        let inodes: BTreeSet<u64> = cgroups::processes(&self.cgroups.directory_of(&path))
            .filter_map(|pid| namespace::inode_of(pid).ok())
            .collect();
        let open = inodes.iter().filter_map(|inode| self.open.get(inode));
        open.map(|covering| Arc::clone(&covering.namespace)).collect()
    }
}

enum Task {
    Hear(Vec<Event>),
    End(Box<Event>),
    Guard(u64),
    Reconcile,
    Sweep,
    Scan,
    Answer(Question),
}

/// Waits until a cgroup is made.
async fn created(watch: Option<&AsyncFd<OwnedFd>>) {
    let Some(watch) = watch else { return std::future::pending().await };
    if let Ok(mut ready) = watch.readable().await {
        let mut buffer = [0; 4096];
        while rustix::io::read(watch.get_ref(), &mut buffer).is_ok_and(|count| count > 0) {}
        ready.clear_ready();
    }
}

/// Tells when devices of a namespace come, go or change.
async fn watch_devices(watch: Netlink, inode: u64, changed: mpsc::Sender<u64>) {
    // SAFETY: the socket owns its descriptor, which stays the same and open as long as it is registered.
    let Ok(watch) = (unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }) else { return };
    while let Ok(mut ready) = watch.readable().await {
        let heard = watch.get_ref().drain();
        ready.clear_ready();
        if heard && changed.send(inode).await.is_err() {
            return;
        }
    }
}
