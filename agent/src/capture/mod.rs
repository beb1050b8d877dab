//! The agent's side of the kernel: loads the programs that redirect connections to Snowflake, listens for these
//! connections in every network namespace, and says of each who opened it.
//!
//! What is pinned below the bpffs directory outlives the agent: without an agent, connections to the endpoints are
//! refused by the closed port that they are redirected to. Only [`detach`] undoes that.
//!
//! The only folder with `unsafe` code: system calls that no crate wraps, and reading what the kernel programs send.

mod cgroups;
mod endpoints;
mod error;
mod exempt;
mod flows;
mod host;
mod kernel;
mod listeners;
pub mod names;
mod namespace;
mod sys;

use std::{collections::HashMap, fs::File, os::fd::AsFd as _, path::PathBuf, sync::Arc, time::Instant};

use agent_common::{counter, maps};
use aya::maps::{MapData, PerCpuArray};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use log::Log;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::AbortHandle,
};

use self::{
    cgroups::Cgroups,
    kernel::Kernel,
    listeners::{Acceptor, Listeners},
};
pub use self::{
    endpoints::{EndpointClass, Endpoints},
    error::CaptureError,
    exempt::{Exemption, Exemptor},
    flows::Flow,
    host::require_capabilities,
    kernel::Detached,
    listeners::Accepted,
    names::Names,
};

/// Accepted connections that wait for the proxy; when there are more, accepting waits.
const WAITING_CONNECTIONS: usize = 256;

#[derive(Clone, Debug)]
pub struct Settings {
    /// The covered cgroup, below the cgroup v2 mount; `/` covers the whole host.
    pub cgroup: PathBuf,
    /// Directory on a BPF file system, where links and maps are pinned.
    pub bpffs: PathBuf,
    /// Loopback port of the listener in each network namespace.
    pub listen_port: u16,
    /// Destination ports that are redirected.
    pub ports: Vec<u16>,
    /// Networks that are endpoints whatever the names resolve to.
    pub networks: Vec<IpNet>,
}

/// The capture at work. When dropped, the listeners close, and connections to the endpoints are refused from then on.
pub struct Capture {
    endpoints: Endpoints,
    exemptor: Exemptor,
    counters: PerCpuArray<MapData, u64>,
    listening: AbortHandle,
    messages: AbortHandle,
    _lock: host::Lock,
}

/// Counted by the kernel programs since they were first attached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Connections that were redirected to the proxy.
    pub redirected: u64,
    /// Connects to an endpoint that were refused because they were not TCP.
    pub refused: u64,
    /// Connections whose record could not be kept, and which the proxy therefore refused.
    pub flows_lost: u64,
    /// Messages to the agent that found no room.
    pub events_lost: u64,
}

impl Capture {
    /// Takes over what an earlier agent left pinned, or begins anew. Blocks for some milliseconds; must be called inside
    /// a tokio runtime.
    pub fn start(settings: &Settings) -> Result<(Self, mpsc::Receiver<Accepted>), CaptureError> {
        require_capabilities()?;
        let root = host::cgroup_root()?;
        let (covered, cgroup_id) = host::covered_cgroup(&root, &settings.cgroup)?;
        host::prepare_bpffs(&settings.bpffs)?;
        let lock = lock(settings)?;
        let kernel = Kernel::load(settings, cgroup_id)?;

        let (sender, accepted) = mpsc::channel(WAITING_CONNECTIONS);
        let acceptor = Acceptor { flows: kernel.flows, cgroups: Cgroups::new(root), accepted: sender };
        let mut listeners = Listeners {
            port: settings.listen_port,
            covered: covered.clone(),
            acceptor: Arc::new(acceptor),
            namespaces: kernel.namespaces,
            open: HashMap::new(),
            failed: HashMap::new(),
            scanned: Instant::now(),
        };
        // Listening before redirecting: nobody is refused in between.
        listeners.open_all()?;
        let cgroup = File::open(&covered).map_err(CaptureError::io(format!("open {}", covered.display())))?;
        kernel.programs.attach(cgroup.as_fd())?;

        let messages = tokio::spawn(pass_on(kernel.messages)).abort_handle();
        let events = kernel.events;
        let listening = tokio::spawn(async move {
            if let Err(error) = listeners.run(events).await {
                tracing::error!(%error, "the listeners have ended: connections to endpoints are refused");
            }
        });
        let capture = Self {
            endpoints: kernel.endpoints,
            exemptor: kernel.exemptor,
            counters: kernel.counters,
            listening: listening.abort_handle(),
            messages,
            _lock: lock,
        };
        Ok((capture, accepted))
    }

    /// A handle to the endpoint sets.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints.clone()
    }

    /// A handle by which the agent's own connections are exempt from the redirect.
    pub fn exemptor(&self) -> Exemptor {
        self.exemptor.clone()
    }

    pub fn counters(&self) -> Result<Counters, CaptureError> {
        let count = |index| {
            let values = self.counters.get(&index, 0).map_err(CaptureError::map(maps::COUNTERS))?;
            Ok(values.iter().sum())
        };
        Ok(Counters {
            redirected: count(counter::REDIRECTED)?,
            refused: count(counter::REFUSED)?,
            flows_lost: count(counter::FLOWS_LOST)?,
            events_lost: count(counter::EVENTS_LOST)?,
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.listening.abort();
        self.messages.abort();
    }
}

/// Removes links and maps, so that connections to the endpoints go their own way again. Refused while an agent runs;
/// does nothing where there is nothing.
pub fn detach(settings: &Settings) -> Result<Detached, CaptureError> {
    if !settings.bpffs.exists() {
        return Ok(Detached::default());
    }
    let _lock = lock(settings)?;
    kernel::remove_pins(&settings.bpffs)
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
