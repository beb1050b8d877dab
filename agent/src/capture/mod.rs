//! The agent's side of the kernel: loads the programs that redirect connections to Snowflake, listens for these
//! connections in every network namespace, and says of each who opened it, and of each attempt to get around it whose it
//! was.
//!
//! What is pinned below the bpffs directory outlives the agent: without an agent, connections to the endpoints are
//! refused. Only [`detach`] undoes that.
//!
//! The only folder with `unsafe` code: system calls that no crate wraps, and reading what the kernel programs send.

mod attempts;
mod btf;
mod cgroups;
mod coverage;
mod devices;
mod dns;
pub mod doctor;
mod endpoints;
mod error;
mod events;
mod flows;
mod host;
mod kernel;
mod learner;
mod listeners;
pub mod names;
mod namespace;
mod netlink;
mod origins;
mod own;
mod programs;
mod scopes;
mod sockets;
mod sys;
mod workload;

use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use agent_common::{counter, maps};
use aya::maps::{Array, MapData, PerCpuArray};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use log::Log;
use rustix::time::ClockId;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    attempts::Suppression,
    cgroups::Cgroups,
    coverage::{Coverage, Inbox, Question},
    events::Events,
    host::Covered,
    kernel::Kernel,
    learner::Learner,
    listeners::Acceptor,
    namespace::Opened,
    origins::Origins,
    scopes::Scopes,
};
pub use self::{
    attempts::{Attempt, AttemptKind, Told},
    coverage::{CoverageState, HandedListener},
    endpoints::{Endpoint, EndpointClass, Endpoints},
    error::CaptureError,
    flows::Flow,
    host::require_capabilities,
    kernel::Detached,
    learner::Suspect,
    listeners::Accepted,
    names::Names,
    namespace::Namespace,
    own::Marker,
    workload::Workload,
};
use crate::{
    config::{Mode, RawSockets, Scope},
    kubernetes::Pods,
};

/// Accepted connections that wait for the proxy; when there are more, accepting waits.
const WAITING_CONNECTIONS: usize = 256;
/// Attempts that wait to be recorded; when there are more, reading them waits, and the kernel counts.
const WAITING_ATTEMPTS: usize = 1024;
/// Addresses that wait to be asked who they are.
const WAITING_SUSPECTS: usize = 256;
const WAITING_MESSAGES: usize = 64;
/// How often the agent shows the kernel that it is alive: some times within the kernel programs' patience.
pub const HEARTBEAT: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub struct Settings {
    /// The covered cgroup, below the cgroup v2 mount; `/` covers the whole host.
    pub cgroup: PathBuf,
    /// Directory on a BPF file system, where links and maps are pinned.
    pub bpffs: PathBuf,
    /// Loopback port of the listener in each network namespace.
    pub listen_port: u16,
    /// Destination ports that are captured.
    pub ports: Vec<u16>,
    /// Networks that are endpoints whatever the names resolve to.
    pub networks: Vec<IpNet>,
    /// Names under these are Snowflake's; lower case.
    pub suffixes: Vec<String>,
    /// What holds where no scope says otherwise.
    pub mode: Mode,
    pub raw_sockets: RawSockets,
    /// Whether the perimeter is put on the devices by which packets leave the host.
    pub perimeter: bool,
    /// The first that matches wins.
    pub scopes: Vec<Scope>,
}

/// The capture at work. When dropped, the listeners close, and connections to the endpoints are refused from then on.
pub struct Capture {
    endpoints: Endpoints,
    marker: Marker,
    counters: PerCpuArray<MapData, u64>,
    heartbeat: Mutex<Array<MapData, u64>>,
    questions: mpsc::Sender<Question>,
    gate: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
    lock: host::Lock,
}

/// What an agent that goes leaves to its successor.
pub struct Inheritance {
    /// The right to the pins.
    pub lock: OwnedFd,
    pub listeners: Vec<HandedListener>,
}

/// What the capture has for others.
pub struct Captured {
    /// Connections that were redirected to the agent.
    pub accepted: mpsc::Receiver<Accepted>,
    /// Attempts to get around it.
    pub told: mpsc::Receiver<Told>,
    /// Addresses that are to be asked who they are.
    pub suspects: mpsc::Receiver<Suspect>,
}

/// Counted by the kernel programs since they were first attached.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Connections that were redirected to the proxy.
    pub redirected: u64,
    /// Connections whose record could not be kept, and which the proxy therefore refused.
    pub flows_lost: u64,
    /// Messages to the agent that found no room.
    pub events_lost: u64,
    /// DNS answers that were not looked at.
    pub dns_lost: u64,
    /// Attempts, told or not.
    pub attempts: Vec<(AttemptKind, u64)>,
}

impl Capture {
    /// Takes over what an earlier agent left pinned, or begins anew, with what an agent that still runs hands over. Blocks
    /// for some milliseconds; must be called inside a tokio runtime. Connections are accepted once [`Self::open`] is called.
    pub fn start(
        settings: &Settings,
        pods: watch::Receiver<Arc<Pods>>,
        inheritance: Option<Inheritance>,
    ) -> Result<(Self, Captured), CaptureError> {
        require_capabilities()?;
        let root = host::cgroup_root()?;
        let covered = Covered::find(&root, &settings.cgroup)?;
        host::prepare_bpffs(&settings.bpffs)?;
        let (lock, inherited) = match inheritance {
            Some(inheritance) => (host::shared(inheritance.lock), inheritance.listeners),
            None => (lock(settings)?, Vec::new()),
        };
        let inherited = inherited.into_iter().filter_map(|handed| {
            // What cannot be used is opened anew.
            Some((handed.inode, Opened::inherit(handed.v4, handed.v6).ok()?))
        });
        let kernel = Kernel::load(settings, &covered)?;

        let cgroups = Arc::new(Cgroups::new(root));
        let origins = Arc::new(Origins::new(Arc::clone(&cgroups)));
        let (accepted_sender, accepted) = mpsc::channel(WAITING_CONNECTIONS);
        let (told_sender, told) = mpsc::channel(WAITING_ATTEMPTS);
        let (suspects_sender, suspects) = mpsc::channel(WAITING_SUSPECTS);
        let (namespaces_sender, namespaces) = mpsc::channel(WAITING_MESSAGES);
        let (guarded_sender, guarded) = mpsc::channel(WAITING_MESSAGES);
        let (devices_sender, devices) = mpsc::channel(WAITING_MESSAGES);
        let (questions_sender, questions) = mpsc::channel(WAITING_MESSAGES);
        let gate = CancellationToken::new();
        let acceptor = Acceptor {
            flows: kernel.flows,
            endpoints: kernel.endpoints.clone(),
            cgroups: Arc::clone(&cgroups),
            accepted: accepted_sender,
            gate: gate.clone(),
        };
        let scopes = Scopes::new(
            settings.scopes.clone(),
            scopes::value(settings.mode, settings.raw_sockets),
            Arc::clone(&cgroups),
            covered.directory.clone(),
            kernel.scopes,
        );
        let mut coverage = Coverage {
            settings: settings.clone(),
            covered: covered.directory.clone(),
            acceptor: Arc::new(acceptor),
            cgroups,
            origins: Arc::clone(&origins),
            endpoints: kernel.endpoints.clone(),
            scopes,
            namespaces: kernel.namespaces,
            programs: kernel.programs,
            marks: kernel.marks,
            told: told_sender.clone(),
            pods,
            home: 0,
            open: HashMap::new(),
            failed: HashMap::new(),
            scanned: Instant::now(),
            devices: devices_sender,
            inherited: inherited.collect(),
        };
        let learner = Learner { endpoints: kernel.endpoints.clone(), suspects: suspects_sender };
        let events = Events {
            suppression: Suppression::new(kernel.rates),
            origins,
            learner: learner.clone(),
            namespaces: namespaces_sender,
            guarded: guarded_sender,
            told: told_sender,
        };
        let capture = Self {
            endpoints: kernel.endpoints,
            marker: kernel.marker,
            counters: kernel.counters,
            heartbeat: Mutex::new(kernel.heartbeat),
            questions: questions_sender,
            gate,
            tasks: Mutex::default(),
            lock,
        };

        // Listening, and alive, before redirecting: nobody is refused in between.
        coverage.begin()?;
        capture.beat()?;
        let cgroup = File::open(&covered.directory)
            .map_err(CaptureError::io(format!("open {}", covered.directory.display())))?;
        coverage.programs.attach(cgroup.as_fd())?;
        coverage.sweep();

        let mut tasks = capture.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(pass_on(kernel.messages));
        tasks.spawn(events.run(kernel.events));
        tasks.spawn(learner.listen(kernel.dns, settings.suffixes.clone()));
        tasks.spawn(async move {
            if let Err(error) = coverage.run(Inbox { namespaces, guarded, devices, questions }).await {
                tracing::error!(%error, "the listeners have ended: connections to endpoints are refused");
            }
        });
        drop(tasks);
        Ok((capture, Captured { accepted, told, suspects }))
    }

    /// Lets connections in.
    pub fn open(&self) {
        self.gate.cancel();
    }

    /// Stops accepting and looking after things: a successor does, or the agent ends.
    pub fn close(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// What a successor needs to go on without a gap. This agent goes on too, until it is dropped.
    pub async fn hand_over(&self) -> Result<Inheritance, CaptureError> {
        let failed = CaptureError::io("hand the listeners over");
        let lock = self.lock.share().map_err(failed)?;
        Ok(Inheritance { lock, listeners: self.question(Question::HandOver).await? })
    }

    /// What is covered.
    pub async fn coverage(&self) -> Result<CoverageState, CaptureError> {
        self.question(Question::State).await
    }

    async fn question<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, CaptureError> {
        let (answer, answered) = oneshot::channel();
        let gone = || CaptureError::io("ask for what is covered")(std::io::ErrorKind::BrokenPipe.into());
        self.questions.send(question(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())
    }

    /// Removes what agents with other maps left. To be called when this one knows the endpoints.
    pub fn replace_other_layouts(settings: &Settings) -> Result<Detached, CaptureError> {
        kernel::remove_other_layouts(&settings.bpffs)
    }

    /// A handle to the endpoint sets.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints.clone()
    }

    /// A handle by which the agent's own connections are exempt from the redirect.
    pub fn marker(&self) -> Marker {
        self.marker.clone()
    }

    /// Shows the kernel that the agent is alive.
    pub fn beat(&self) -> Result<(), CaptureError> {
        let now = Duration::try_from(rustix::time::clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        let mut heartbeat = self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        heartbeat.set(0, now, 0).map_err(CaptureError::map(maps::HEARTBEAT))
    }

    pub fn counters(&self) -> Result<Counters, CaptureError> {
        let count = |index| {
            let values = self.counters.get(&index, 0).map_err(CaptureError::map(maps::COUNTERS))?;
            Ok(values.iter().sum())
        };
        let attempts = AttemptKind::ALL.into_iter();
        let attempts = attempts.filter_map(|kind| Some((kind, kind.event_kind()?)));
        Ok(Counters {
            redirected: count(counter::REDIRECTED)?,
            flows_lost: count(counter::FLOWS_LOST)?,
            events_lost: count(counter::EVENTS_LOST)?,
            dns_lost: count(counter::DNS_LOST)?,
            attempts: attempts
                .map(|(kind, index)| Ok((kind, count(index)?)))
                .collect::<Result<_, CaptureError>>()?,
        })
    }
}

/// What is in the endpoint sets that are pinned, for when no agent runs.
pub fn pinned_endpoints(settings: &Settings) -> Result<Vec<Endpoint>, CaptureError> {
    let pins = kernel::pins(&settings.bpffs);
    if pins.exists() { endpoints::read_pinned(&pins) } else { Ok(Vec::new()) }
}

/// Removes links and maps, so that connections to the endpoints go their own way again. Refused while an agent runs;
/// does nothing where there is nothing.
pub fn detach(settings: &Settings) -> Result<Detached, CaptureError> {
    if !settings.bpffs.exists() {
        return Ok(Detached::default());
    }
    let _lock = lock(settings)?;
    let mut detached = kernel::remove_pins(&settings.bpffs)?;
    if !programs::has_tcx() {
        let covered = Covered::find(&host::cgroup_root()?, &settings.cgroup)?;
        detached.programs.extend(unguard_everywhere(&covered));
    }
    Ok(detached)
}

/// Takes the perimeter off every device of every namespace that covered processes are in, where it is no link.
fn unguard_everywhere(covered: &Covered) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    let tasks = std::iter::once(std::process::id()).chain(cgroups::processes(&covered.directory));
    let namespaces = tasks.filter_map(|task| Namespace::of(task).ok());
    namespaces
        .filter(|namespace| seen.insert(namespace.inode))
        .filter_map(|namespace| namespace.inside(programs::unguard).ok()?.ok())
        .flatten()
        .map(|device| format!("perimeter on {device}"))
        .collect()
}

/// Writes what the kernel programs say to the log.
async fn pass_on(messages: EbpfLogger<&'static dyn Log>) {
    // SAFETY: the reader owns the descriptor of its ring buffer and keeps it open until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(messages, Interest::READABLE) };
    let mut messages = match registered {
        Ok(messages) => messages,
        Err(error) => return tracing::warn!(%error, "what the kernel programs say of failures is not logged"),
    };
    while let Ok(mut ready) = messages.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

fn lock(settings: &Settings) -> Result<host::Lock, CaptureError> {
    host::lock(&settings.bpffs)?.ok_or_else(|| CaptureError::AgentRunning {
        bpffs: settings.bpffs.clone(),
        pid: kernel::pid_of_agent(&settings.bpffs),
    })
}

/// A text that is padded with zeros.
fn text(padded: &[u8]) -> String {
    let end = padded.iter().position(|byte| *byte == 0).unwrap_or(padded.len());
    String::from_utf8_lossy(padded.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_the_padding() {
        assert_eq!(text(b"python3\0\0\0\0"), "python3");
        assert_eq!(text(b"0123456789abcdef"), "0123456789abcdef");
        assert_eq!(text(b"\xff\0"), "\u{fffd}");
        assert_eq!(text(b""), "");
    }
}
