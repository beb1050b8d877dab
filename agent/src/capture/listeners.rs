//! Keeps a listener in every network namespace that holds covered processes, and accepts.
//!
//! The kernel programs tell of namespaces as soon as a covered process makes a socket there. A slow scan finds what
//! they could not tell (a full buffer, a process that was gone before it could be looked at) and drops the listeners of
//! namespaces that nobody is in any more, which only the listeners kept alive.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_common::{Event, maps};
use aya::maps::{MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    CaptureError,
    cgroups::{self, Cgroups},
    flows::{Flow, Flows},
    namespace::{self, Namespace},
};

const SCAN_INTERVAL: Duration = Duration::from_secs(5);
/// A scan that an event asks for comes no sooner than this after the last.
const SCAN_PAUSE: Duration = Duration::from_millis(250);
/// A namespace in which listening failed is left alone for this long.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A listener goes when so many scans in a row found nobody in its namespace.
const SCANS_UNTIL_DROPPED: u8 = 2;
/// How many events are handled at once.
const EVENTS_AT_ONCE: usize = 256;

/// A connection to the agent's port in one of the namespaces.
#[derive(Debug)]
pub struct Accepted {
    pub stream: TcpStream,
    /// None: nobody was redirected here, so the connection came straight to the port. To be refused.
    pub flow: Option<Flow>,
}

/// What accepting needs.
pub(super) struct Acceptor {
    pub(super) flows: Flows,
    pub(super) cgroups: Cgroups,
    pub(super) accepted: mpsc::Sender<Accepted>,
}

pub(super) struct Listeners {
    pub(super) port: u16,
    /// Directory of the covered cgroup.
    pub(super) covered: PathBuf,
    pub(super) acceptor: Arc<Acceptor>,
    /// Tells the kernel programs where listeners are.
    pub(super) namespaces: aya::maps::HashMap<MapData, u64, u8>,
    /// By the inode number of the namespace, which its listener keeps alive.
    pub(super) open: HashMap<u64, Listener>,
    /// When listening last failed, by inode number.
    pub(super) failed: HashMap<u64, Instant>,
    pub(super) scanned: Instant,
}

pub(super) struct Listener {
    cookie: u64,
    /// Aborted when dropped.
    _accepting: JoinSet<()>,
    /// Scans in a row that found no covered process in the namespace.
    unseen: u8,
}

impl Listeners {
    /// Opens the first listeners. That the port is taken in the agent's own namespace is an error, for then somebody
    /// has configured two things on one port; in any other it must not keep the agent from covering the rest.
    pub(super) fn open_all(&mut self) -> Result<(), CaptureError> {
        let own =
            Namespace::of(std::process::id()).map_err(CaptureError::io("find my own network namespace"))?;
        let covered = cgroups::processes(&self.covered);
        if covered.iter().any(|pid| namespace::inode_of(*pid).is_ok_and(|inode| inode == own.inode)) {
            self.open(&own)?;
        }
        self.scan();
        Ok(())
    }

    /// Runs until it is aborted.
    pub(super) async fn run(mut self, events: RingBuf<MapData>) -> io::Result<()> {
        // SAFETY: the ring buffer owns its descriptor, which stays the same and open as long as the buffer lives.
        let mut events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }?;
        let mut ticks = interval(SCAN_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let heard = tokio::select! {
                _ = ticks.tick() => None,
                ready = events.readable_mut() => {
                    let mut ready = ready?;
                    let heard = read(ready.get_inner_mut());
                    if heard.len() < EVENTS_AT_ONCE {
                        ready.clear_ready();
                    }
                    Some(heard)
                }
            };
            // Both read files and change namespaces, which no worker should wait for.
            self = spawn_blocking(move || {
                match heard {
                    Some(events) => self.hear(&events),
                    None => self.scan(),
                }
                self
            })
            .await?;
        }
    }

    fn hear(&mut self, events: &[Event]) {
        for event in events {
            for task in [event.tid, event.pid] {
                if !self.listens_in(event.netns_cookie)
                    && let Ok(namespace) = Namespace::of(task)
                {
                    self.try_open(&namespace);
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
        self.open.values().any(|listener| listener.cookie == cookie)
    }

    fn scan(&mut self) {
        self.scanned = Instant::now();
        let mut inhabited: HashMap<u64, u32> = HashMap::new();
        for pid in cgroups::processes(&self.covered) {
            if let Ok(inode) = namespace::inode_of(pid) {
                inhabited.entry(inode).or_insert(pid);
            }
        }
        for (inode, pid) in &inhabited {
            if !self.open.contains_key(inode)
                && let Ok(namespace) = Namespace::of(*pid)
            {
                self.try_open(&namespace);
            }
        }
        self.failed.retain(|inode, _| inhabited.contains_key(inode));
        for (inode, listener) in &mut self.open {
            listener.unseen =
                if inhabited.contains_key(inode) { 0 } else { listener.unseen.saturating_add(1) };
        }
        let dropped: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, listener)| listener.unseen >= SCANS_UNTIL_DROPPED)
            .map(|(inode, _)| *inode)
            .collect();
        for inode in dropped {
            if let Some(listener) = self.open.remove(&inode) {
                // First the kernel programs: should somebody come back just now, they tell of it again.
                if let Err(error) = self.namespaces.remove(&listener.cookie) {
                    tracing::warn!(netns_cookie = listener.cookie, %error, "cannot unregister a network namespace");
                }
                tracing::info!(netns_cookie = listener.cookie, "left a network namespace that nobody is in");
            }
        }
    }

    fn try_open(&mut self, namespace: &Namespace) {
        let failed = self.failed.get(&namespace.inode).copied();
        if failed.is_some_and(|last| last.elapsed() < RETRY_PAUSE) {
            return;
        }
        match self.open(namespace) {
            Ok(()) => {
                self.failed.remove(&namespace.inode);
            }
            Err(error) => {
                // Said once and not at each retry.
                if failed.is_none() {
                    tracing::error!(%error, "connections to endpoints are refused in a network namespace");
                }
                self.failed.insert(namespace.inode, Instant::now());
            }
        }
    }

    fn open(&mut self, namespace: &Namespace) -> Result<(), CaptureError> {
        if self.open.contains_key(&namespace.inode) {
            return Ok(());
        }
        let opened = namespace.listen(self.port)?;
        let cookie = opened.cookie;
        let mut accepting = JoinSet::new();
        for listener in [Some(opened.v4), opened.v6].into_iter().flatten() {
            let listener = TcpListener::from_std(listener).map_err(CaptureError::io("watch a listener"))?;
            accepting.spawn(Arc::clone(&self.acceptor).run(listener, cookie));
        }
        self.namespaces.insert(cookie, 0, 0).map_err(CaptureError::map(maps::NAMESPACES))?;
        self.open.insert(namespace.inode, Listener { cookie, _accepting: accepting, unseen: 0 });
        tracing::info!(netns_cookie = cookie, "listening in a network namespace");
        Ok(())
    }
}

impl Acceptor {
    /// Accepts until nobody wants the connections any more.
    async fn run(self: Arc<Self>, listener: TcpListener, netns_cookie: u64) {
        const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);
        while !self.accepted.is_closed() {
            let (stream, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The client has gone away, or there are no descriptors left: neither ends the listener.
                    tracing::warn!(netns_cookie, %error, "cannot accept a connection");
                    sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            let flow = match self.flows.take(netns_cookie, source) {
                Some(record) => {
                    let acceptor = Arc::clone(&self);
                    let complete = move || Flow::from_record(&record, source, &acceptor.cgroups);
                    spawn_blocking(complete).await.ok().flatten()
                }
                None => None,
            };
            if self.accepted.send(Accepted { stream, flow }).await.is_err() {
                return;
            }
        }
    }
}

/// Takes waiting events, no more than [`EVENTS_AT_ONCE`].
fn read(ring: &mut RingBuf<MapData>) -> Vec<Event> {
    let mut events = Vec::new();
    while events.len() < EVENTS_AT_ONCE {
        let Some(item) = ring.next() else { break };
        events.extend(parse(&item));
    }
    events
}

fn parse(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: as many bytes as an event has, of which every pattern is valid; alignment is not assumed.
    Some(unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_another_size_are_ignored() {
        let event = Event { kind: 1, pid: 2, tid: 3, reserved: 0, netns_cookie: 4 };
        let mut bytes = Vec::new();
        for number in [1_u32, 2, 3, 0, 4, 0] {
            bytes.extend(number.to_le_bytes());
        }
        assert_eq!(parse(&bytes), Some(event));
        assert_eq!(parse(bytes.get(1..).unwrap()), None);
        assert_eq!(parse(&[]), None);
    }
}
