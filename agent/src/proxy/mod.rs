//! The data path: a captured connection in, statements recorded and forwarded, answers out.
//!
//! The order is in the types. A connection has a [`Flow`](crate::capture::Flow); a login turns it and a token into a
//! [`Principal`](crate::identity::Principal) and a [`Session`](sessions::Session); a request on it becomes an
//! [`Operation`](crate::snowflake::Operation); a statement is classified, decided on and recorded; and only what the
//! journal returns for it, a [`Recorded`](crate::audit::Recorded), lets it be forwarded.

#![forbid(unsafe_code)]

mod allowlist;
mod approvals;
mod attempts;
mod body;
mod callers;
mod connection;
mod counts;
mod credential;
mod dial;
mod files;
mod foreign;
mod lease;
mod login;
mod mcp_session;
mod noise;
mod own;
mod parts;
mod payload;
mod reading;
mod rest;
mod revocation;
mod service;
mod sessions;
mod share;
mod splice;
mod sql_api;
mod statement;
mod storage;
mod tunnel;
mod upstream;
mod vault;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::payload::Payloads;
use crate::audit::{Caller, Event, EventKind, Journal, Workload};
use crate::capture::{self, Accepted, Endpoints};
use crate::config::{Config, CredentialType, SecretReference};
use crate::identity::Identity;
use crate::policy::Policy;
use crate::tls::Authority;

use noise::{Source, Suppressed};

pub use allowlist::{AllowedHost, AllowlistError};
pub use approvals::{ApprovalError, Approvals, HeldStatement, Rule};
pub use body::inflated;
pub use callers::Callers;
pub use counts::Counts;
pub use dial::Dialer;
pub use foreign::{Foreign, Owner};
pub use noise::Noise;
pub use own::{Asker, OwnError, OwnSession, Row};
pub use revocation::PORT as REVOCATION_PORT;
pub use service::{Reaction, json_answer, plain, refused};
pub use sessions::{Legacy, Sessions};
pub use share::Shares;
pub use upstream::Upstream;
pub use vault::{Vault, VaultError};

/// Connections served at a time; further ones wait in the listeners' queues.
const CONNECTIONS: usize = 4096;

/// How often it is looked whether a window of events is over.
const NOISE_INTERVAL: Duration = Duration::from_secs(2);

/// Everything that the data path needs.
pub struct Proxy {
    pub config: Arc<Config>,
    pub tls: Arc<ServerConfig>,
    pub authority: Arc<Authority>,
    pub identity: Identity,
    pub policy: ArcSwap<Policy>,
    pub journal: Journal,
    /// What clients ask and are answered; `None` where it is not kept.
    pub payloads: Option<Arc<Payloads>>,
    pub sessions: Sessions,
    pub callers: Callers,
    /// What waits for a person.
    pub approvals: Approvals,
    pub credentials: HashMap<String, (CredentialType, SecretReference)>,
    pub upstream: Upstream,
    pub dialer: Dialer,
    pub endpoints: Endpoints,
    pub counts: Counts,
    pub foreign: Foreign,
    /// How many events of a kind each workload has caused of late.
    pub noise: Noise,
    /// What each workload may take at a time.
    pub shares: Shares,
    /// Tasks that must end before the agent does: connections, and requests whose client has gone.
    pub tasks: TaskTracker,
    pub shutdown: CancellationToken,
}

impl Proxy {
    /// Serves connections until the shutdown is asked for.
    pub async fn serve(self: Arc<Self>, mut accepted: mpsc::Receiver<Accepted>) {
        let mut windows = tokio::time::interval(NOISE_INTERVAL);
        let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        loop {
            let free_slot_and_connection = async {
                let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
                Some((slot, accepted.recv().await?))
            };
            let next = tokio::select! {
                next = free_slot_and_connection => next,
                () = self.shutdown.cancelled() => None,
                _ = windows.tick() => {
                    self.record_suppressed(false).await;
                    continue;
                }
            };
            let Some((slot, next)) = next else { return };
            let proxy = Arc::clone(&self);
            self.tasks.spawn(async move {
                connection::serve(proxy, next).await;
                drop(slot);
            });
        }
    }

    /// Records how many events were not recorded one by one.
    pub async fn record_suppressed(&self, all: bool) {
        for Suppressed { source, events } in self.noise.end_windows(Instant::now(), all) {
            let detail = attempts::too_fast(events);
            tracing::warn!(kind = source.kind.as_str(), cgroup = source.cgroup, %detail);
            let workload = Workload { cgroup: source.cgroup, ..Workload::default() };
            let workload = Some(workload).filter(|workload| !workload.cgroup.is_empty());
            let event = Event { workload, ..Event::new(source.kind, detail) };
            if let Err(error) = self.journal.append(vec![event.into()]).await {
                tracing::error!(%error, "a count of events could not be recorded");
            }
        }
    }

    /// Records an event, or counts it where its workload causes too many. That it cannot be recorded changes nothing for
    /// the client, who is refused either way.
    async fn event(
        &self,
        kind: EventKind,
        from: Option<&capture::Workload>,
        caller: Option<&Caller>,
        account: &str,
        detail: String,
    ) {
        self.counts.events(kind, 1);
        let cgroup = from.map(|workload| workload.cgroup.clone()).unwrap_or_default();
        if !self.noise.admits(Source { cgroup, kind }, Instant::now()) {
            return;
        }
        tracing::info!(kind = kind.as_str(), account, cgroup = from.map(|workload| workload.cgroup.as_str()), %detail);
        let event = Event {
            workload: from.map(workload),
            caller: caller.cloned(),
            account: account.to_owned(),
            ..Event::new(kind, detail)
        };
        if let Err(error) = self.journal.append(vec![event.into()]).await {
            tracing::error!(%error, kind = kind.as_str(), "an event could not be recorded");
        }
    }
}

/// A workload as it is recorded.
pub fn workload(workload: &capture::Workload) -> Workload {
    Workload {
        cgroup: workload.cgroup.clone(),
        pid: workload.pid,
        uid: workload.uid,
        comm: workload.comm.clone(),
        executable: workload.executable.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
    }
}
