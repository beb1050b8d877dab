//! Answers whoever asks a running agent.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::status::EndpointCounts;
use super::succession::{Step, send_inheritance, send_streams};
use super::{AdminError, Answer, Request, Status, SyncedAccount};
use crate::audit::delivery::Monitor;
use crate::audit::{AuditError, Event};
use crate::capture::{Capture, Names};
use crate::proxy::{AllowedHost, Proxy};
use crate::reconcile::Reconciler;
use crate::wire;

/// Questions that are answered at a time.
const AT_ONCE: usize = 16;
/// Whoever asks says so at once.
const DEADLINE: Duration = Duration::from_secs(10);
const HTTPS: u16 = 443;
const UNCONFIGURED: &str = "the agent that runs has no [audit.reconcile]: it says with which credential Snowflake is asked for its history";

/// The agent, as far as it is asked for.
pub struct Agent {
    pub capture: Arc<Capture>,
    pub names: Arc<Names>,
    pub proxy: Arc<Proxy>,
    pub reconciler: Option<Arc<Reconciler>>,
    pub since: u64,
    pub sinks: Vec<Monitor>,
    /// Where the names that Snowflake has told are kept.
    pub allowlist: PathBuf,
    /// What a successor asks of the wiring.
    pub succession: mpsc::Sender<Succession>,
}

/// What a successor asks of the wiring.
#[derive(Debug)]
pub enum Succession {
    /// The journal is about to be handed over: delivery from it has to end first, and to say so.
    Begins(oneshot::Sender<()>),
    /// The successor has failed.
    Fails,
    /// This process has taken over.
    Done { pid: u32 },
}

/// The socket. It is left when this is dropped, but not removed: it may be a successor's by then.
pub struct Server {
    listener: Arc<UnixListener>,
}

impl Server {
    /// Takes the place of whatever listened there before.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        let failed = |source| AdminError::Socket { path: path.to_owned(), source };
        let mut beside = path.as_os_str().to_owned();
        beside.push(".next");
        let beside = PathBuf::from(beside);
        let _ = std::fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside).map_err(failed)?;
        std::fs::set_permissions(&beside, Permissions::from_mode(0o600)).map_err(failed)?;
        std::fs::rename(&beside, path).map_err(failed)?;
        Ok(Self { listener: Arc::new(listener) })
    }

    /// Answers in threads of its own, for as long as the process lives.
    pub fn run(self, agent: Arc<Agent>, runtime: Handle) -> io::Result<()> {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        thread::Builder::new().name("admin".to_owned()).spawn(move || {
            for stream in self.listener.incoming().flatten() {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let (agent, runtime) = (Arc::clone(&agent), runtime.clone());
                let answering = thread::Builder::new().name("admin".to_owned()).spawn(move || {
                    let _place = place;
                    if let Err(error) = agent.answer(stream, &runtime) {
                        tracing::debug!(%error, "somebody who asked has gone");
                    }
                });
                if let Err(error) = answering {
                    tracing::warn!(%error, "a question is not answered");
                }
            }
        })?;
        Ok(())
    }
}

impl Agent {
    fn answer(&self, mut stream: UnixStream, runtime: &Handle) -> io::Result<()> {
        stream.set_read_timeout(Some(DEADLINE))?;
        let answer = match wire::receive(&mut stream)? {
            Some(Request::Status) => match runtime.block_on(self.status()) {
                Ok(status) => Answer::Status(Box::new(status)),
                Err(error) => Answer::Failed(error.to_string()),
            },
            Some(Request::Endpoints) => Answer::Endpoints(self.proxy.endpoints.list()),
            Some(Request::SyncEndpoints) => Answer::Synced(runtime.block_on(self.sync())),
            Some(Request::Note { kind, detail }) => {
                let event = Event::new(kind, detail);
                match runtime.block_on(self.proxy.journal.append(vec![event.into()])) {
                    Ok(()) => Answer::Noted,
                    Err(error) => Answer::Failed(error.to_string()),
                }
            }
            Some(Request::Reconcile(wanted)) => match &self.reconciler {
                Some(reconciler) => Answer::Reconciled(runtime.block_on(reconciler.reconcile(&wanted))),
                None => Answer::Failed(UNCONFIGURED.to_owned()),
            },
            Some(Request::Held) => Answer::Held(self.proxy.approvals.list()),
            Some(Request::Rule(rule)) => match runtime.block_on(self.proxy.rule(&rule)) {
                Ok(ruled) => Answer::Ruled(Box::new(ruled)),
                Err(error) => Answer::Failed(error.to_string()),
            },
            Some(Request::TakeOver { version, pid }) => {
                return self.hand_over(stream, &version, pid, runtime);
            }
            None => return Ok(()),
        };
        wire::send(&mut stream, &answer)
    }

    async fn status(&self) -> Result<Status, crate::capture::CaptureError> {
        let endpoints = self.proxy.endpoints.list();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: self.proxy.config.agent.node.clone(),
            since: self.since,
            endpoints: EndpointCounts::of(endpoints.iter().map(|endpoint| endpoint.class)),
            coverage: self.capture.coverage().await?,
            sinks: self.sinks.iter().map(Monitor::status).collect(),
            archive: self.proxy.payloads.as_ref().and_then(|payloads| payloads.archive()),
        })
    }

    /// Asks Snowflake for the hosts of every account, and captures those that are Snowflake's.
    async fn sync(&self) -> Vec<SyncedAccount> {
        let mut synced = Vec::new();
        for account in &self.proxy.config.accounts {
            let account = account.host.clone();
            synced.push(match self.proxy.allowlist(&account).await {
                Ok(hosts) => {
                    let (captured, others) = self.sort(hosts);
                    SyncedAccount { account, error: String::new(), captured, others }
                }
                Err(error) => SyncedAccount {
                    account,
                    error: error.to_string(),
                    captured: Vec::new(),
                    others: Vec::new(),
                },
            });
        }
        let names: Vec<String> = synced.iter().flat_map(|account| account.captured.clone()).collect();
        self.names.add(names.clone()).await;
        if let Err(error) = remember(&self.allowlist, &synced) {
            tracing::warn!(%error, "the names that Snowflake has told are forgotten at the next start");
        }
        tracing::info!(names = names.len(), "asked Snowflake by which hosts the accounts are reached");
        synced
    }

    fn sort(&self, hosts: Vec<AllowedHost>) -> (Vec<String>, Vec<AllowedHost>) {
        let is_captured = |host: &AllowedHost| {
            let name = host.host.trim_end_matches('.').to_ascii_lowercase();
            host.port == HTTPS && self.proxy.config.is_snowflake(&name)
        };
        let (captured, others): (Vec<_>, Vec<_>) = hosts.into_iter().partition(is_captured);
        let mut captured: Vec<String> =
            captured.into_iter().map(|host| host.host.trim_end_matches('.').to_ascii_lowercase()).collect();
        captured.sort_unstable();
        captured.dedup();
        (captured, others)
    }

    fn hand_over(&self, mut stream: UnixStream, version: &str, pid: u32, runtime: &Handle) -> io::Result<()> {
        tracing::info!(pid, version, "an agent takes over from this one");
        // It may take as long as it needs: this one goes on meanwhile.
        stream.set_read_timeout(None)?;
        let inheritance = runtime.block_on(self.capture.hand_over()).map_err(io::Error::other)?;
        send_inheritance(&mut stream, &inheritance)?;
        drop(inheritance);
        let Some(Step::Journal) = wire::receive(&mut stream)? else {
            tracing::warn!(pid, "the agent that was to take over has given up");
            return Ok(());
        };
        let (ended, delivery_ended) = oneshot::channel();
        self.tell(Succession::Begins(ended), runtime)?;
        runtime.block_on(delivery_ended).map_err(io::Error::other)?;
        let handed = self.hand_journal_over(&mut stream, runtime);
        if handed.is_ok() && matches!(wire::receive(&mut stream), Ok(Some(Step::Done))) {
            self.tell(Succession::Done { pid }, runtime)?;
            return wire::send(&mut stream, &Step::Done);
        }
        tracing::warn!(pid, "the agent that was to take over has failed: this one goes on");
        self.tell(Succession::Fails, runtime)?;
        handed
    }

    fn hand_journal_over(&self, stream: &mut UnixStream, runtime: &Handle) -> io::Result<()> {
        let (journal, their_journal) = UnixStream::pair()?;
        let handed: Result<(), AuditError> = runtime.block_on(self.proxy.journal.hand_over(journal));
        handed.map_err(io::Error::other)?;
        let mut legacy = send_streams(stream, &their_journal)?;
        drop(their_journal);
        let (sender, mut receiver) = mpsc::unbounded_channel();
        self.proxy.sessions.hand_over(sender);
        thread::Builder::new().name("legacy".to_owned()).spawn(move || {
            while let Some(told) = receiver.blocking_recv() {
                if wire::send(&mut legacy, &told).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }

    fn tell(&self, succession: Succession, runtime: &Handle) -> io::Result<()> {
        runtime.block_on(self.succession.send(succession)).map_err(io::Error::other)
    }
}

/// The names that Snowflake has told, for the next start.
fn remember(path: &Path, synced: &[SyncedAccount]) -> io::Result<()> {
    let known = |account: &&SyncedAccount| account.error.is_empty();
    let names: Vec<&String> = synced.iter().filter(known).flat_map(|account| &account.captured).collect();
    let partial = path.with_extension("partial");
    std::fs::write(&partial, serde_json::to_vec(&names)?)?;
    std::fs::rename(&partial, path)
}

/// The names that an earlier agent was told. None if there are none, or the file is damaged: they can be asked for again.
pub fn remembered(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
