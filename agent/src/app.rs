//! The wiring: from a configuration to an agent at work, and to its orderly end.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{AuditError, Event, EventKind, Journal, clickhouse};
use crate::capture::{self, Capture, CaptureError, Names};
use crate::config::{Config, SecretError, SecretReference};
use crate::identity::{Identity, KeyError};
use crate::policy::{Policy, PolicyError};
use crate::proxy::{Dialer, Foreign, Noise, Proxy, Sessions, Shares, Upstream, Vault, VaultError};
use crate::tls::{self, Authority, TlsError};

/// Statements under way get this long to end when the agent is told to stop.
const DRAIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("{}: cannot be prepared: {source}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("the runtime cannot be started: {0}")]
    Runtime(io::Error),
    #[error("the credential `{name}` cannot be read: {source}")]
    Credential { name: String, source: SecretError },
    #[error("the password for ClickHouse cannot be read: {0}")]
    ClickHousePassword(SecretError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the sessions cannot be taken over: {0}")]
    Vault(#[from] VaultError),
}

/// Where things are in the state directory.
pub struct State<'a>(pub &'a Path);

impl State<'_> {
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal.db")
    }

    pub fn authority(&self) -> PathBuf {
        self.0.join("ca")
    }

    pub fn sessions(&self) -> PathBuf {
        self.0.join("sessions")
    }

    /// Exists while the agent is ready.
    pub fn ready(&self) -> PathBuf {
        self.0.join("ready")
    }
}

/// The part of the configuration that concerns the kernel.
pub fn capture_settings(config: &Config) -> capture::Settings {
    capture::Settings {
        cgroup: config.capture.cgroup.clone(),
        bpffs: config.capture.bpffs.clone(),
        listen_port: config.capture.listen_port,
        ports: config.capture.ports.clone(),
        networks: config.capture.networks.clone(),
        suffixes: config.capture.suffixes.clone(),
        mode: config.capture.mode,
        raw_sockets: config.capture.raw_sockets,
        perimeter: config.capture.perimeter,
        scopes: config.capture.scopes.clone(),
    }
}

/// Runs the agent until it is told to stop.
pub fn run(config: Config) -> Result<(), AppError> {
    // Delivery to ClickHouse has a thread of its own, so that the data path never waits for it.
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    let data = tokio::runtime::Builder::new_multi_thread()
        .thread_name("data")
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    let result = data.block_on(serve(Arc::new(config), control.handle()));
    data.shutdown_timeout(Duration::from_secs(1));
    control.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: Arc<Config>, control: &tokio::runtime::Handle) -> Result<(), AppError> {
    capture::require_capabilities()?;
    let state = State(&config.agent.state_dir);
    prepare(&state)?;
    raise_descriptor_limit();
    let mut signals = Signals::new()?;

    let policy = Policy::load(config.policy_file.as_deref())?;
    let identity = Identity::new(&config)?;
    let mut credentials = std::collections::HashMap::new();
    for credential in &config.credentials {
        let unreadable = |source| AppError::Credential { name: credential.name.clone(), source };
        credential.secret.read().map_err(unreadable)?;
        credentials.insert(credential.name.clone(), (credential.kind, credential.secret.clone()));
    }
    let authority = Arc::new(Authority::open(&state.authority(), &config.capture.suffixes)?);
    let server_tls = tls::server_config(authority)?;
    let upstream_tls = tls::client_config(config.tls.upstream_ca_bundle.as_deref(), &[b"h2", b"http/1.1"])?;
    let delivery = delivery_settings(&config)?;

    let journal = Journal::open(&state.journal(), &config.agent.node)?;
    let settings = capture_settings(&config);
    let (_pods_sender, pods) = tokio::sync::watch::channel(Arc::default());
    let (capture, captured) = Capture::start(&settings, pods)?;
    let capture = Arc::new(capture);
    let mut background = tokio::task::JoinSet::new();
    background.spawn(beat(Arc::clone(&capture)));
    let hosts = config.accounts.iter().map(|account| &account.host);
    let names: BTreeSet<_> = hosts.chain(&config.capture.names).cloned().collect();
    let names = names.into_iter().collect();
    let names = Arc::new(Names::start(names, &config.capture.nameservers, capture.endpoints()).await?);
    replace_other_layouts(&settings);
    identity.warm_up().await;

    let dialer = Dialer::new(capture.marker());
    let (shutdown, delivered) = (CancellationToken::new(), CancellationToken::new());
    let sessions = Sessions::new(Vault::open(&state.sessions())?, &identity);
    let proxy = Arc::new(Proxy {
        tls: server_tls,
        identity,
        policy: ArcSwap::from_pointee(policy),
        journal: journal.clone(),
        sessions,
        noise: Noise::default(),
        shares: Shares::default(),
        credentials,
        upstream: Upstream::new(dialer.clone(), names, upstream_tls),
        dialer,
        endpoints: capture.endpoints(),
        foreign: Foreign::new(config.capture.suffixes.clone())?,
        tasks: TaskTracker::new(),
        shutdown: shutdown.clone(),
        config: Arc::clone(&config),
    });
    let delivery = match delivery {
        Some(settings) => {
            let writer = clickhouse::Writer::new(journal.clone(), settings)?;
            Some(control.spawn(writer.run(delivered.clone().cancelled_owned())))
        }
        None => None,
    };
    let serving = tokio::spawn(Arc::clone(&proxy).serve(captured.accepted));
    background.spawn(Arc::clone(&proxy).record_attempts(captured.told));
    background.spawn(Arc::clone(&proxy).ask_suspects(captured.suspects));

    note(&journal, EventKind::AgentStarted, format!("version {}", env!("CARGO_PKG_VERSION"))).await?;
    write_ready(&state)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.agent.node, "ready");

    while let Some(Told::Reload) = signals.next().await {
        reload(&proxy, &config).await;
    }

    tracing::info!("stopping: statements under way get {} s to end", DRAIN.as_secs());
    let _ = std::fs::remove_file(state.ready());
    shutdown.cancel();
    let _ = serving.await;
    proxy.tasks.close();
    let drained = tokio::time::timeout(DRAIN, proxy.tasks.wait()).await.is_ok();
    proxy.record_suppressed(true).await;
    note(&journal, EventKind::AgentStopped, format!("drained: {drained}")).await?;
    if let Some(delivery) = delivery {
        // What is not delivered stays in the journal for the next start.
        delivered.cancel();
        let _ = delivery.await;
    }
    match capture.counters() {
        Ok(counters) => tracing::info!(?counters, "what the kernel programs have counted"),
        Err(error) => tracing::warn!(%error, "what the kernel programs have counted is not known"),
    }
    background.shutdown().await;
    drop(capture);
    journal.close().await;
    tracing::info!(drained, "stopped: connections to Snowflake are refused until the agent is back");
    Ok(())
}

/// Shows the kernel that the agent is alive, from a thread that serves connections, for as long as it is.
async fn beat(capture: Arc<Capture>) {
    let mut beats = tokio::time::interval(capture::HEARTBEAT);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beats.tick().await;
        if let Err(error) = capture.beat() {
            tracing::error!(%error, "the kernel cannot be shown that the agent is alive");
        }
    }
}

/// The programs of agents with other maps go when this agent's are attached and know where Snowflake is.
fn replace_other_layouts(settings: &capture::Settings) {
    match Capture::replace_other_layouts(settings) {
        Ok(replaced) if replaced.programs.is_empty() => {}
        Ok(replaced) => {
            tracing::info!(programs = ?replaced.programs, "replaced the kernel programs of another version");
        }
        Err(error) => tracing::error!(%error, "the kernel programs of another version are still attached"),
    }
}

/// Replaces the policy by what its file says now; a wrong one changes nothing.
async fn reload(proxy: &Proxy, config: &Config) {
    let (kind, detail) = match Policy::load(config.policy_file.as_deref()) {
        Ok(policy) => {
            proxy.policy.store(Arc::new(policy));
            tracing::info!("the policy was reloaded");
            (EventKind::ConfigurationReloaded, "policy".to_owned())
        }
        Err(error) => {
            tracing::error!(%error, "the new policy is refused: the one before stays in force");
            (EventKind::ConfigurationRefused, error.to_string())
        }
    };
    if let Err(error) = note(&proxy.journal, kind, detail).await {
        tracing::error!(%error, "the reload could not be recorded");
    }
}

/// Records something that concerns the agent itself.
async fn note(journal: &Journal, kind: EventKind, detail: String) -> Result<(), AuditError> {
    journal.append(vec![Event::new(kind, detail).into()]).await
}

fn delivery_settings(config: &Config) -> Result<Option<clickhouse::Settings>, AppError> {
    let Some(target) = &config.clickhouse else { return Ok(None) };
    let password = target.password.as_ref().map(SecretReference::read).transpose();
    let password = password.map_err(AppError::ClickHousePassword)?;
    let mut settings = clickhouse::Settings::new(target.url.clone(), target.database.clone());
    settings.user.clone_from(&target.user);
    settings.password = password;
    Ok(Some(settings))
}

/// Each covered network namespace costs two descriptors, each connection two to four.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn prepare(state: &State<'_>) -> Result<(), AppError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let failed = |source| AppError::State { path: state.0.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state.0).map_err(failed)?;
    // Somebody else may have made it, with the mode of everyday folders.
    std::fs::set_permissions(state.0, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    match std::fs::remove_file(state.ready()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

fn write_ready(state: &State<'_>) -> Result<(), AppError> {
    std::fs::write(state.ready(), format!("{}\n", std::process::id()))
        .map_err(|source| AppError::State { path: state.ready(), source })
}

enum Told {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, AppError> {
        let listen = |kind| signal(kind).map_err(AppError::Runtime);
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Option<Told> {
        tokio::select! {
            told = self.hangup.recv() => told.map(|()| Told::Reload),
            told = self.interrupt.recv() => told.map(|()| Told::Stop),
            told = self.terminate.recv() => told.map(|()| Told::Stop),
        }
    }
}
