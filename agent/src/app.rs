//! The wiring: from a configuration to an agent at work, and to its orderly end.

mod delivery;
mod signals;
mod supervisor;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::delivery::Delivery;
pub use self::delivery::{settings as clickhouse_settings, without_password as clickhouse_without_password};
use self::signals::{Signals, Told};
use crate::admin::metrics::{self, Metrics};
use crate::admin::succession::{Predecessor, Remains, receive_legacy};
use crate::admin::{self, AdminError, Succession};
use crate::audit::chain::KeyError as SigningKeyError;
use crate::audit::payload::{self, Archive, Payloads};
use crate::audit::trail::Trail;
use crate::audit::{AuditError, Event, EventKind, Journal, Record, serve_predecessor};
use crate::capture::{self, Capture, CaptureError, Captured, Names};
use crate::config::{self, Against, Config, CredentialType, SecretError, SecretReference};
use crate::identity::{Identity, KeyError};
use crate::kubernetes::{self, Pods, watch::KubernetesError};
use crate::policy::{Policy, PolicyError};
use crate::proxy::{
    Approvals, Callers, Counts, Dialer, Foreign, Noise, Proxy, REVOCATION_PORT, Sessions, Shares, Upstream,
    Vault, VaultError,
};
use crate::reconcile::Reconciler;
use crate::storage::{Bucket, BucketError};
use crate::tls::{self, Authority, Listed, TlsError};

/// Statements under way get this long to end when the agent is told to stop.
const DRAIN: Duration = Duration::from_secs(30);
/// For so long after it took over, an agent looks for what its predecessor has begun meanwhile.
const SUCCESSION: Duration = Duration::from_mins(2);

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
    #[error("the token for the SIEM sink `{sink}` cannot be read: {source}")]
    SiemToken { sink: String, source: SecretError },
    #[error("the archive for payloads: {0}")]
    Archive(#[from] BucketError),
    #[error("the object store for checkpoints: {0}")]
    Checkpoints(#[source] BucketError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error("the metrics cannot be served on {address}: {source}")]
    Metrics { address: SocketAddr, source: io::Error },
    #[error("the agent that runs cannot be relieved: {0}")]
    Succession(io::Error),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Signing(#[from] SigningKeyError),
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

    /// What the journal is signed with.
    pub fn signing_key(&self) -> PathBuf {
        self.0.join("audit.key")
    }

    /// Where payloads are.
    pub fn spool(&self) -> PathBuf {
        self.0.join("spool")
    }

    pub fn sessions(&self) -> PathBuf {
        self.0.join("sessions")
    }

    /// Where a running agent is asked.
    pub fn socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// The names that Snowflake has told.
    pub fn allowlist(&self) -> PathBuf {
        self.0.join("allowlist.json")
    }

    /// Until when the trail has been compared with Snowflake's history.
    pub fn reconciled(&self) -> PathBuf {
        self.0.join("reconciled.json")
    }

    /// Exists while the agent is ready.
    pub fn ready(&self) -> PathBuf {
        self.0.join("ready")
    }
}

/// The part of the configuration that concerns the kernel.
pub fn capture_settings(config: &Config) -> capture::Settings {
    let mut ports = config.capture.ports.clone();
    if !ports.contains(&REVOCATION_PORT) {
        ports.push(REVOCATION_PORT);
    }
    capture::Settings {
        cgroup: config.capture.cgroup.clone(),
        bpffs: config.capture.bpffs.clone(),
        listen_port: config.capture.listen_port,
        ports,
        networks: config.capture.networks.clone(),
        suffixes: config.capture.suffixes.clone(),
        mode: config.capture.mode,
        raw_sockets: config.capture.raw_sockets,
        perimeter: config.capture.perimeter,
        scopes: config.capture.scopes.clone(),
    }
}

/// How the agent is to begin.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Take over from an agent that runs, if one does.
    pub take_over: bool,
}

/// Runs the agent until it is told to stop.
pub fn run(config: Config, options: RunOptions) -> Result<(), AppError> {
    // Delivery, metrics and questions have a thread of their own, so that the data path never waits for them.
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
    let result = data.block_on(async {
        let running = start(Arc::new(config), options, control.handle()).await?;
        running.until_told().await
    });
    data.shutdown_timeout(Duration::from_secs(1));
    control.shutdown_timeout(Duration::from_secs(1));
    result
}

/// An agent at work.
struct Running {
    config: Arc<Config>,
    capture: Arc<Capture>,
    proxy: Arc<Proxy>,
    journal: Journal,
    delivery: Delivery,
    /// What brings payloads to the archive, and how it is told to end.
    archiving: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
    serving: tokio::task::JoinHandle<()>,
    /// What looks after things, and ends with the agent.
    background: JoinSet<()>,
    signals: Signals,
    succession: mpsc::Receiver<Succession>,
}

async fn start(config: Arc<Config>, options: RunOptions, control: &Handle) -> Result<Running, AppError> {
    capture::require_capabilities()?;
    let state = State(&config.agent.state_dir);
    prepare(&state)?;
    raise_descriptor_limit();
    let signals = Signals::new().map_err(AppError::Runtime)?;

    let policy = Policy::load(config.policy_file.as_deref())?;
    let identity = Identity::new(&config)?;
    let credentials = credentials(&config)?;
    let authority = Arc::new(Authority::open(&state.authority(), &config.capture.suffixes)?);
    let listed = if config.revocation_list { Listed::AtItsHost } else { Listed::Nowhere };
    let server_tls = tls::server_config(Arc::clone(&authority), listed)?;
    let upstream_tls = tls::client_config(config.tls.upstream_ca_bundle.as_deref(), &[b"h2", b"http/1.1"])?;
    let mut delivery = Delivery::new(&config, control)?;
    let archive = config.payloads.as_ref().and_then(|payloads| payloads.archive.as_ref());
    let archive = archive.map(|settings| Ok::<_, AppError>((settings, Bucket::open(&settings.bucket)?)));
    let archive = archive.transpose()?;
    let metrics_listener = match config.metrics {
        Some(address) => {
            // Where it will be served.
            let _control = control.enter();
            Some(metrics::listen(address).map_err(|source| AppError::Metrics { address, source })?)
        }
        None => None,
    };

    let (predecessor, inheritance) = match options.take_over.then(|| Predecessor::ask(&state.socket())) {
        Some(asked) => asked?.unzip(),
        None => (None, None),
    };
    // Without a predecessor the journal is opened first: what is wrong with it must not cost anybody a connection.
    let journal = match predecessor {
        None => Some(Journal::open_salvaged(&state.journal(), &config.agent.node)?),
        Some(_) => None,
    };
    let settings = capture_settings(&config);
    let (pods_sender, pods) = watch::channel(Arc::<Pods>::default());
    let mut background = JoinSet::new();
    if let Some(settings) = &config.kubernetes {
        // Making the client needs the runtime that it will use.
        let _control = control.enter();
        let client = kubernetes::watch::client(settings)?;
        background.spawn_on(kubernetes::watch::run(client, settings.node.clone(), pods_sender), control);
    }
    let (capture, captured) = Capture::start(&settings, pods, inheritance)?;
    let capture = Arc::new(capture);
    background.spawn(beat(Arc::clone(&capture)));
    let names = Arc::new(
        Names::start(names(&config, &state), &config.capture.nameservers, capture.endpoints()).await?,
    );
    replace_other_layouts(&settings);
    identity.warm_up().await;

    let (journal, succeeding) = match (journal, predecessor) {
        (Some(journal), _) => (journal, None),
        (None, Some(mut predecessor)) => {
            let remains = predecessor.take_journal().map_err(AppError::Succession)?;
            let (journal, open) = Journal::take_over(&state.journal(), &config.agent.node)?;
            (journal, Some((predecessor, remains, open)))
        }
        (None, None) => (Journal::open_salvaged(&state.journal(), &config.agent.node)?, None),
    };
    let payloads = match &config.payloads {
        Some(settings) => Some(keep_payloads(&state, settings.clone(), &journal).await?),
        None => None,
    };
    let mut archiving = None;
    if let (Some(payloads), Some((settings, bucket))) = (&payloads, archive) {
        let stop = CancellationToken::new();
        let archive = Archive::new(payloads, bucket, settings).run(stop.clone().cancelled_owned());
        archiving = Some((stop, control.spawn(archive)));
    }
    let dialer = Dialer::new(capture.marker());
    let sessions = Sessions::new(Vault::open(&state.sessions())?, &identity);
    sessions.remember(journal.path())?;
    let proxy = Arc::new(Proxy {
        tls: server_tls,
        authority,
        identity,
        policy: ArcSwap::from_pointee(policy),
        journal: journal.clone(),
        payloads,
        sessions,
        callers: Callers::default(),
        approvals: Approvals::new(config.approvals.clone()),
        noise: Noise::default(),
        shares: Shares::default(),
        counts: Counts::default(),
        credentials,
        upstream: Upstream::new(dialer.clone(), Arc::clone(&names), Arc::clone(&upstream_tls)),
        dialer,
        endpoints: capture.endpoints(),
        foreign: Foreign::new(config.capture.suffixes.clone(), upstream_tls),
        tasks: TaskTracker::new(),
        shutdown: CancellationToken::new(),
        config: Arc::clone(&config),
    });
    let predecessor = match succeeding {
        Some((predecessor, remains, open)) => {
            serve_remains(&proxy, remains, open)?;
            Some(predecessor)
        }
        None => None,
    };
    delivery.start(&journal)?;
    let Captured { accepted, told, suspects } = captured;
    let serving = tokio::spawn(Arc::clone(&proxy).serve(accepted));
    background.spawn(Arc::clone(&proxy).end_overdue());
    background.spawn(Arc::clone(&proxy).record_attempts(told));
    background.spawn(Arc::clone(&proxy).ask_suspects(suspects));
    let reconciler = reconciler(&proxy, &state)?;
    if let Some(reconciler) = &reconciler {
        background.spawn_on(Arc::clone(reconciler).run(), control);
    }
    if let Some(listener) = metrics_listener {
        let mut metrics = Metrics::new(&proxy, &capture, delivery.monitors(&journal));
        if let Some(reconciler) = &reconciler {
            metrics.reconcile(&reconciler.counts);
        }
        background.spawn_on(metrics.serve(listener), control);
    }
    let (succession_sender, succession) = mpsc::channel(1);
    let agent = admin::Agent {
        capture: Arc::clone(&capture),
        names,
        proxy: Arc::clone(&proxy),
        reconciler,
        since: admin::status::now(),
        sinks: delivery.monitors(&journal),
        allowlist: state.allowlist(),
        succession: succession_sender,
    };
    let server = admin::Server::bind(&state.socket())?;
    server.run(Arc::new(agent), control.clone()).map_err(AppError::Runtime)?;

    capture.open();
    let detail = match &predecessor {
        Some(predecessor) => {
            format!("version {}, in the place of process {}", env!("CARGO_PKG_VERSION"), predecessor.pid)
        }
        None => format!("version {}", env!("CARGO_PKG_VERSION")),
    };
    note(&journal, EventKind::AgentStarted, detail).await?;
    // Before the one before this one ends: else its end would be taken for the service's.
    supervisor::ready();
    if let Some(predecessor) = predecessor {
        predecessor.relieve().map_err(AppError::Succession)?;
    }
    // After it knows that it is relieved: who waits for this file may stop it then.
    write_ready(&state)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.agent.node, "ready");
    Ok(Running {
        config,
        capture,
        proxy,
        journal,
        delivery,
        archiving,
        serving,
        background,
        signals,
        succession,
    })
}

impl Running {
    /// Works until it is told to stop, or relieved by a successor.
    async fn until_told(mut self) -> Result<(), AppError> {
        let mut launched = None;
        let successor = loop {
            tokio::select! {
                // Who is relieved and told to stop at once is relieved.
                biased;
                Some(step) = self.succession.recv() => match step {
                    Succession::Begins(ended) => {
                        self.delivery.stop().await;
                        // Whoever asked may have gone.
                        let _ = ended.send(());
                    }
                    Succession::Fails => self.delivery.start(&self.journal)?,
                    Succession::Done { pid } => break Some(pid),
                },
                told = self.signals.next() => match told {
                    Some(Told::Reload) => reload(&self.proxy, &self.config).await,
                    Some(Told::Replace) => launched = supervisor::launch(&self.config.path).or(launched),
                    Some(Told::Stop) | None => break None,
                },
            }
        };
        self.stop(successor).await?;
        // Who was started by this process is the service from now on. Anybody else's service must not find its process
        // gone before it stops it.
        if successor.is_some() && successor != launched {
            tracing::info!("relieved: waiting to be stopped");
            while !matches!(self.signals.next().await, Some(Told::Stop) | None) {}
        }
        Ok(())
    }

    /// Sees what has begun to its end.
    async fn stop(&mut self, successor: Option<u32>) -> Result<(), AppError> {
        tracing::info!(successor, "stopping: statements under way get {} s to end", DRAIN.as_secs());
        let state = State(&self.config.agent.state_dir);
        if successor.is_none() {
            let _ = std::fs::remove_file(state.ready());
            let _ = std::fs::remove_file(state.socket());
        }
        self.capture.close();
        self.proxy.approvals.close();
        self.proxy.shutdown.cancel();
        let _ = (&mut self.serving).await;
        self.proxy.tasks.close();
        let drained = tokio::time::timeout(DRAIN, self.proxy.tasks.wait()).await.is_ok();
        self.proxy.end_all_held().await;
        self.proxy.record_suppressed(true).await;
        if let Some(Err(error)) = self.proxy.payloads.as_ref().map(|payloads| payloads.sync()) {
            tracing::error!(%error, "the last payloads may not be on the disk");
        }
        let detail = match successor {
            Some(pid) => format!("drained: {drained}, process {pid} has taken over"),
            None => format!("drained: {drained}"),
        };
        note(&self.journal, EventKind::AgentStopped, detail).await?;
        // What is not delivered stays in the journal for the next start.
        self.delivery.stop().await;
        match (self.archiving.take(), successor) {
            (Some((stop, archiving)), None) => {
                stop.cancel();
                let _ = archiving.await;
            }
            // The successor goes on with it.
            (Some((_, archiving)), Some(_)) => archiving.abort(),
            (None, _) => {}
        }
        if successor.is_none() {
            self.delivery.copy_last_checkpoints(&self.journal).await;
        }
        match self.capture.counters() {
            Ok(counters) => tracing::info!(?counters, "what the kernel programs have counted"),
            Err(error) => tracing::warn!(%error, "what the kernel programs have counted is not known"),
        }
        self.background.shutdown().await;
        self.journal.clone().close().await;
        let now = if successor.is_some() {
            "another agent is in charge"
        } else {
            "connections to Snowflake are refused"
        };
        tracing::info!(drained, "stopped: {now}");
        Ok(())
    }
}

/// Begins to keep payloads, and records those that an agent before this one could not.
async fn keep_payloads(
    state: &State<'_>,
    settings: config::Payloads,
    journal: &Journal,
) -> Result<Arc<Payloads>, AuditError> {
    let (lost, settle) = payload::lost(&state.spool(), journal.path())?;
    if !lost.is_empty() {
        tracing::warn!(
            payloads = lost.len(),
            "the agent ended before these payloads did: as far as they go, they are kept"
        );
        journal.append(lost.into_iter().map(Record::from).collect()).await?;
    }
    settle();
    Payloads::open(&state.spool(), settings)
}

/// Writes what a predecessor appends, and hears what it knows of queries, until it ends.
fn serve_remains(proxy: &Arc<Proxy>, remains: Remains, open: Vec<uuid::Uuid>) -> Result<(), AppError> {
    let Remains { journal: stream, legacy } = remains;
    proxy.sessions.expect_predecessor(SUCCESSION);
    let heir = Arc::clone(proxy);
    let hearing = std::thread::Builder::new().name("legacy".to_owned());
    hearing
        .spawn(move || receive_legacy(legacy, |legacy| heir.sessions.inherit(legacy)))
        .map_err(AppError::Succession)?;
    let (heir, runtime) = (Arc::clone(proxy), Handle::current());
    let writing = std::thread::Builder::new().name("predecessor".to_owned());
    writing
        .spawn(move || {
            let has_ended = |statement| !heir.sessions.is_pending(statement);
            match serve_predecessor(stream, &heir.journal, open, has_ended, &runtime) {
                Ok(()) => tracing::info!("the agent before this one has ended"),
                Err(error) => tracing::error!(%error, "what the agent before this one left open stays open"),
            }
        })
        .map_err(AppError::Succession)?;
    Ok(())
}

/// What compares the trail with Snowflake's history, if something is to.
fn reconciler(proxy: &Arc<Proxy>, state: &State<'_>) -> Result<Option<Arc<Reconciler>>, AppError> {
    let Some(settings) = proxy.config.reconcile.clone() else { return Ok(None) };
    let central = match settings.against {
        Against::ClickHouse => clickhouse_settings(&proxy.config)?,
        Against::Journal => None,
    };
    let trail = match central {
        Some(central) => Trail::of_all(state.journal(), &central)?,
        None => Trail::of_node(state.journal()),
    };
    Ok(Some(Arc::new(Reconciler::new(Arc::clone(proxy), settings, trail, state.reconciled()))))
}

/// The names to resolve: the accounts, what the configuration names, and what Snowflake has told.
fn names(config: &Config, state: &State<'_>) -> Vec<String> {
    let hosts = config.accounts.iter().map(|account| account.host.clone());
    let told = admin::remembered(&state.allowlist()).into_iter().filter(|name| config.is_snowflake(name));
    let names: BTreeSet<String> = hosts.chain(config.capture.names.iter().cloned()).chain(told).collect();
    names.into_iter().collect()
}

/// Each credential is read once, so that one that cannot be is found at the start.
fn credentials(config: &Config) -> Result<HashMap<String, (CredentialType, SecretReference)>, AppError> {
    let mut credentials = HashMap::new();
    for credential in &config.credentials {
        let unreadable = |source| AppError::Credential { name: credential.name.clone(), source };
        credential.secret.read().map_err(unreadable)?;
        credentials.insert(credential.name.clone(), (credential.kind, credential.secret.clone()));
    }
    Ok(credentials)
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
    std::fs::set_permissions(state.0, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

fn write_ready(state: &State<'_>) -> Result<(), AppError> {
    std::fs::write(state.ready(), format!("{}\n", std::process::id()))
        .map_err(|source| AppError::State { path: state.ready(), source })
}
