//! Bringing a sandbox up, working with its parts, and taking it down.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    mount::{MountFlags, mount},
    process::{Signal, geteuid},
};
use serde_json::Value;
use toml::Table;

use crate::{
    certificates,
    cgroup::{self, Cgroup},
    configuration::{self, Facts},
    credential::Credential,
    launch::{self, Place},
    network,
    pod::{self, Pod, Specification},
    process::{Plan, Process},
    python::{self, Environment},
    services::{self, Claims, Service, World, text},
    signals,
    state::{self, Ownership, State},
    supervisor,
};

const AGENT_START_DEADLINE: Duration = Duration::from_mins(1);
/// Statements under way are seen to their end.
const AGENT_STOP_DEADLINE: Duration = Duration::from_mins(1);
const CLICKHOUSE_DEADLINE: Duration = Duration::from_mins(1);
const BPFFS: &str = "/sys/fs/bpf";
/// The password, or token, that the agent logs in to the emulated Snowflake with. Tests look for it where it must not be.
pub const SERVICE_PASSWORD: &str = "correct-horse-battery-staple-7741";

/// The port that the agent listens on unless its configuration says otherwise.
const LISTEN_PORT: i64 = 15443;
/// Holds a pod's network namespace, as the pause container of a Kubernetes pod does. Its socket tells the agent of it.
const PAUSE: &str = "import signal, socket; held = socket.socket(); signal.pause()";

type Change = Box<dyn FnOnce(&mut Table) -> Result<()> + Send>;

/// What a sandbox is to be like.
pub struct Builder {
    binary: Option<PathBuf>,
    policy: Option<PathBuf>,
    configuration: Option<PathBuf>,
    changes: Vec<Change>,
    environment: BTreeMap<String, String>,
    credential: Credential,
    driver: Environment,
    role: Option<String>,
    without: Vec<Service>,
    world: World,
    agent: bool,
    say: fn(&str),
}

impl Builder {
    /// The agent's binary. Default: `snowfence` beside this crate's own binary.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// A Cedar policy in place of the default one.
    #[must_use]
    pub fn policy(mut self, path: impl Into<PathBuf>) -> Self {
        self.policy = Some(path.into());
        self
    }

    /// A configuration in place of the default one. The sandbox puts its own places into it.
    #[must_use]
    pub fn configuration(mut self, path: impl Into<PathBuf>) -> Self {
        self.configuration = Some(path.into());
        self
    }

    /// A last change to the configuration, after those before it.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut Table) -> Result<()> + Send + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Sets a key of a section of the configuration.
    #[must_use]
    pub fn set(self, section: &'static str, key: &'static str, value: impl Into<toml::Value>) -> Self {
        let value = value.into();
        self.configure(move |configuration| configuration::put(configuration, section, key, value))
    }

    /// Has the agent keep payloads for a public key, with more settings of that section.
    #[must_use]
    pub fn payloads(self, recipient: &str, mut settings: Table) -> Self {
        settings.insert("recipients".into(), vec![recipient.to_owned()].into());
        self.configure(move |configuration| {
            configuration::put(configuration, "audit", "payloads", settings.into())
        })
    }

    /// Sets a variable of the agent's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// What the agent logs in to the emulated Snowflake with. Default: a password.
    #[must_use]
    pub fn credential(mut self, credential: Credential) -> Self {
        self.credential = credential;
        self
    }

    /// The connector that the pods' `SANDBOX_PYTHON` has. Default: 5.x.
    #[must_use]
    pub fn driver(mut self, driver: Environment) -> Self {
        self.driver = driver;
        self
    }

    /// The role that clients ask for. Default: none.
    #[must_use]
    pub fn role(mut self, role: &str) -> Self {
        self.role = Some(role.to_owned());
        self
    }

    /// Leaves out a part of the outside world; it can be started later.
    #[must_use]
    pub fn without(mut self, service: Service) -> Self {
        self.without.push(service);
        self
    }

    /// As little of the outside world as a client without a driver needs.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.world = World::Plain;
        self
    }

    /// Does not start the agent yet.
    #[must_use]
    pub fn without_agent(mut self) -> Self {
        self.agent = false;
        self
    }

    /// Who is told what happens. Default: nobody.
    #[must_use]
    pub fn progress(mut self, say: fn(&str)) -> Self {
        self.say = say;
        self
    }

    /// Removes the leftovers of dead sandboxes, then brings this one up. On failure nothing of it is left.
    pub fn start(self) -> Result<Sandbox> {
        ensure!(
            geteuid().is_root(),
            "a sandbox needs root: for namespaces, control groups and kernel programs"
        );
        state::let_others_read();
        let binary = match &self.binary {
            Some(path) => std::path::absolute(path)?,
            None => launch::launcher()?.with_file_name("snowfence"),
        };
        ensure!(binary.is_file(), "{} is not built: run `cargo xtask build`", binary.display());
        if self.world == World::Whole {
            python::prepare(&[Environment::ClickHouse, Environment::Upstream, self.driver], &self.say)?;
        }
        for id in state::sweep()? {
            (self.say)(&format!("removed what was left of sandbox {id}"));
        }
        mount_bpffs()?;
        let (state, ownership) = State::claim()?;
        signals::watch_over(state.id())?;
        let mut agent_plan = agent_plan(&state, &binary)?;
        agent_plan.environment.extend(self.environment.clone());
        let mut sandbox = Sandbox {
            agent: None,
            agent_plan,
            binary,
            driver: self.driver,
            kept: false,
            ownership: Some(ownership),
            pauses: Vec::new(),
            pods: Vec::new(),
            role: self.role.clone(),
            services: BTreeMap::new(),
            state,
            world: self.world,
        };
        // From here on a failure drops the sandbox, which takes it down.
        sandbox.bring_up(self)?;
        Ok(sandbox)
    }
}

/// A sandbox that is up. Dropping it takes it down.
#[derive(Debug)]
pub struct Sandbox {
    agent: Option<Process>,
    agent_plan: Plan,
    binary: PathBuf,
    driver: Environment,
    kept: bool,
    ownership: Option<Ownership>,
    pauses: Vec<Process>,
    pods: Vec<Pod>,
    role: Option<String>,
    services: BTreeMap<Service, Process>,
    state: State,
    world: World,
}

impl Sandbox {
    pub fn builder() -> Builder {
        Builder {
            binary: None,
            policy: None,
            configuration: None,
            changes: Vec::new(),
            environment: BTreeMap::new(),
            credential: Credential::default(),
            driver: Environment::Connector5,
            role: None,
            without: Vec::new(),
            world: World::Whole,
            agent: true,
            say: |_| {},
        }
    }

    pub fn id(&self) -> &str {
        self.state.id()
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// The agent's program.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The agent's configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.state.public("snowfence.toml")
    }

    /// The folder of the agent's journal, CA and keys.
    pub fn agent_state(&self) -> PathBuf {
        self.state.secret("state")
    }

    /// The pod of that name, which is made when it is asked for first. Its user is not root.
    pub fn pod(&mut self, name: &str) -> Result<Pod> {
        self.pod_of(name, false)
    }

    /// The same, with root of an ordinary container, NET_ADMIN and NET_RAW.
    pub fn root_pod(&mut self, name: &str) -> Result<Pod> {
        self.pod_of(name, true)
    }

    /// A token of the identity provider.
    pub fn token(&self, claims: &Claims) -> Result<String> {
        services::mint(&self.state, claims)
    }

    /// What arrived at the emulated Snowflake, a JSON object a line.
    pub fn upstream_log(&self) -> Result<Vec<Value>> {
        lines_of(&self.state.public("upstream.jsonl"))
    }

    /// Packets with content that arrived at Snowflake's addresses and were not the agent's, likewise.
    pub fn witness_log(&self) -> Result<Vec<Value>> {
        lines_of(&self.state.public("witness.jsonl"))
    }

    /// The answer of ClickHouse to a query, in the format that the query names, else tab-separated.
    pub fn clickhouse(&self, query: &str) -> Result<String> {
        network::inside(&network::outside(self.id()), || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(CLICKHOUSE_DEADLINE))
                .http_status_as_error(false)
                .build()
                .into();
            let mut answer = agent.post(services::clickhouse_url()).send(query).context("ask ClickHouse")?;
            let text = answer.body_mut().read_to_string().context("read ClickHouse's answer")?;
            ensure!(answer.status().is_success(), "ClickHouse answered {}: {}", answer.status(), text.trim());
            Ok(text)
        })
    }

    /// The rows of a query without FORMAT, each a JSON object.
    pub fn clickhouse_rows(&self, query: &str) -> Result<Vec<Value>> {
        let text = self.clickhouse(&format!("{query} FORMAT JSONEachRow"))?;
        text.lines().map(|line| serde_json::from_str(line).context("read a row of ClickHouse")).collect()
    }

    /// Runs the agent's binary on the machine with the given arguments and this sandbox's configuration.
    pub fn snowfence<S: AsRef<str>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<pod::Output> {
        let output = Command::new(&self.binary)
            .args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()))
            .arg("--config")
            .arg(self.configuration())
            .env_clear()
            .envs(services::environment())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", self.binary.display()))?;
        Ok(pod::Output {
            status: launch::status_code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts the agent and waits until it is ready.
    pub fn start_agent(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent was started already");
        let ready = self.agent_state().join("ready");
        if ready.exists() {
            fs::remove_file(&ready).context("forget the last start")?;
        }
        let mut agent = Process::start(&self.agent_plan, &self.state.logs())?;
        agent.wait_until(AGENT_START_DEADLINE, || Ok(ready.exists()))?;
        self.agent = Some(agent);
        self.publish_internal_ca()
    }

    /// Starts another agent, which takes over from the one that runs, and stops that one when it has been relieved.
    pub fn replace_agent(&mut self) -> Result<()> {
        let mut relieved = self.agent.take().context("the agent does not run")?;
        let mut plan = self.agent_plan.clone();
        plan.arguments.insert(1, "--take-over".into());
        let mut successor = Process::start(&plan, &self.state.logs())?;
        let (ready, pid) = (self.agent_state().join("ready"), successor.pid().to_string());
        successor.wait_until(AGENT_START_DEADLINE, || {
            Ok(fs::read_to_string(&ready).is_ok_and(|text| text.trim() == pid))
        })?;
        self.agent = Some(successor);
        let status = relieved.stop(AGENT_STOP_DEADLINE)?;
        ensure!(status.success(), "the agent that was relieved ended with {status}");
        Ok(())
    }

    /// Sends the agent a signal.
    pub fn signal_agent(&self, signal: Signal) -> Result<()> {
        self.agent.as_ref().context("the agent does not run")?.signal(signal)
    }

    /// The agent's pid.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Process::pid)
    }

    /// SIGKILL, and waits until the agent is gone.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("the agent does not run")?.kill()
    }

    /// SIGTERM, and waits for the agent's orderly end.
    pub fn stop_agent(&mut self) -> Result<ExitStatus> {
        self.agent.take().context("the agent does not run")?.stop(services::STOP_DEADLINE)
    }

    /// All that the agent logged, over all its starts.
    pub fn agent_log(&self) -> Result<String> {
        self.log("agent")
    }

    /// What a process of the sandbox logged: `agent`, or the name of a service.
    pub fn log(&self, process: &str) -> Result<String> {
        let path = self.state.logs().join(format!("{process}.log"));
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Starts a part of the outside world that was left out or stopped.
    pub fn start_service(&mut self, service: Service) -> Result<()> {
        ensure!(!self.services.contains_key(&service), "{} was started already", service.name());
        let process = service.start(&self.state, self.world)?;
        self.services.insert(service, process);
        Ok(())
    }

    /// Stops a part of the outside world in an orderly way.
    pub fn stop_service(&mut self, service: Service) -> Result<()> {
        self.running(service)?.stop(services::STOP_DEADLINE).map(drop)
    }

    /// Sends a part of the outside world a signal.
    pub fn signal_service(&self, service: Service, signal: Signal) -> Result<()> {
        let process = self.services.get(&service);
        process.with_context(|| format!("{} does not run", service.name()))?.signal(signal)
    }

    /// Kills a part of the outside world.
    pub fn kill_service(&mut self, service: Service) -> Result<()> {
        self.running(service)?.kill()
    }

    pub fn start_clickhouse(&mut self) -> Result<()> {
        self.start_service(Service::ClickHouse)
    }

    pub fn stop_clickhouse(&mut self) -> Result<()> {
        self.stop_service(Service::ClickHouse)
    }

    /// Has the agent started again whenever it dies. With `own` the sandbox outlives this process.
    pub fn supervise(&mut self, own: bool) -> Result<Process> {
        supervisor::start(&self.state, own)
    }

    /// Leaves the sandbox up. Somebody else must own it by now, or the next start sweeps it away.
    pub fn keep(mut self) {
        self.kept = true;
        signals::let_go(self.state.id());
        // Their values would end them. They belong to the sandbox from here on.
        std::mem::forget(self.agent.take());
        std::mem::take(&mut self.pauses).into_iter().for_each(std::mem::forget);
        std::mem::take(&mut self.services).into_values().for_each(std::mem::forget);
    }

    fn running(&mut self, service: Service) -> Result<Process> {
        self.services.remove(&service).with_context(|| format!("{} does not run", service.name()))
    }

    fn bring_up(&mut self, builder: Builder) -> Result<()> {
        let say = builder.say;
        say(&format!("sandbox {}: networks, control groups, certificates", self.id()));
        network::create(self.id())?;
        {
            let _building = signals::building();
            Cgroup::services(self.id())?.create()?;
            Cgroup::covered(self.id())?.child("agent").create()?;
            Cgroup::covered(self.id())?.child("pods").create()?;
        }
        let mut hosts = vec![services::ACCOUNT_HOST, services::ACCOUNT_ALIAS];
        hosts.extend(services::STORAGE_HOSTS);
        certificates::write(&hosts, &services::certificate_files(&self.state))?;
        certificates::write(&[services::DNS_HOST], &services::dns_certificate_files(&self.state))?;
        self.write_files(builder.policy, builder.configuration, builder.changes, builder.credential)?;
        let wanted = Service::of(self.world).filter(|service| !builder.without.contains(service));
        let wanted: Vec<Service> = wanted.collect();
        let names: Vec<&str> = wanted.iter().map(|service| service.name()).collect();
        say(&format!("sandbox {}: starting {}", self.id(), names.join(", ")));
        let (state, world) = (&self.state, self.world);
        let started: Vec<(Service, Result<Process>)> = std::thread::scope(|scope| {
            let starts: Vec<_> = wanted
                .iter()
                .map(|service| (*service, scope.spawn(move || service.start(state, world))))
                .collect();
            starts
                .into_iter()
                .map(|(service, start)| {
                    (service, start.join().unwrap_or_else(|_| Err(anyhow::anyhow!("starting it panicked"))))
                })
                .collect()
        });
        for (service, process) in started {
            self.services.insert(service, process?);
        }
        supervisor::store_agent_plan(&self.state, &self.agent_plan)?;
        if builder.agent {
            say(&format!("sandbox {}: starting the agent", self.id()));
            self.start_agent()?;
        }
        Ok(())
    }

    fn write_files(
        &self,
        policy: Option<PathBuf>,
        configuration: Option<PathBuf>,
        changes: Vec<Change>,
        credential: Credential,
    ) -> Result<()> {
        state::make_folder(&self.agent_state(), 0o700)?;
        state::make_folder(&self.state.secret("clickhouse"), 0o700)?;
        let made = credential.make()?;
        let secret = self.state.secret("credential");
        fs::write(&secret, made.secret).context("write the service's credential")?;
        let (name, value) = made.known;
        let credentials = serde_json::json!({ services::SERVICE_USER: { name: value } });
        fs::write(self.state.secret("credentials.json"), credentials.to_string())
            .context("write the credentials")?;
        // A mount point: the pods see the binary here.
        fs::write(self.state.public("snowfence"), "").context("make a place for the binary")?;
        fs::write(self.state.public("upstream.jsonl"), "").context("make the upstream's log")?;
        fs::write(self.state.public("witness.jsonl"), "").context("make the witness's log")?;
        let policy = policy
            .map(|path| {
                let copy = self.state.public("policy.cedar");
                fs::copy(&path, &copy).with_context(|| format!("read the policy {}", path.display()))?;
                anyhow::Ok(copy)
            })
            .transpose()?;
        let table = match configuration {
            Some(path) => fs::read_to_string(&path)
                .map_err(anyhow::Error::from)
                .and_then(|text| Ok(toml::from_str(&text)?))
                .with_context(|| format!("read the configuration {}", path.display()))?,
            None => configuration::default()?,
        };
        let mut table = configuration::complete(
            table,
            &Facts {
                state: self.agent_state(),
                cgroup: cgroup::covered_name(self.id()),
                pins: self.state.pins(),
                upstream_ca: services::certificate_files(&self.state).authority,
                secret,
                credential,
                policy,
            },
        )?;
        for change in changes {
            change(&mut table)?;
        }
        fs::write(self.configuration(), toml::to_string(&table)?).context("write the configuration")
    }

    fn publish_internal_ca(&self) -> Result<()> {
        let certificate =
            self.snowfence(["ca", "print"])?.into_stdout().context("ask the agent for its CA")?;
        fs::write(self.state.public("internal-ca.pem"), certificate).context("write the agent's CA")
    }

    fn pod_of(&mut self, name: &str, root: bool) -> Result<Pod> {
        if let Some(pod) = self.pods.iter().find(|pod| pod.name() == name) {
            return Ok(pod.clone());
        }
        let public = self.state.root().join("public");
        let python = match self.world {
            World::Whole => self.driver.python()?,
            World::Plain => python::system()?,
        };
        let mut environment = pod::environment(&self.state, &python, self.role.as_deref())?;
        if self.world == World::Whole {
            let claims = Claims::analyst(&format!("{name}@sandbox"));
            environment.insert("SNOWFLAKE_TOKEN".into(), self.token(&claims)?);
        }
        let files = vec![(public.clone(), public), (self.binary.clone(), self.state.public("snowfence"))];
        let specification = Specification { name, index: self.pods.len(), root, files, environment };
        let pod = Pod::create(&self.state, specification)?;
        self.pauses.push(pod.start("pause", [text(&python)?.as_str(), "-c", PAUSE])?);
        if self.agent.is_some() {
            self.wait_for_listener(name)?;
        }
        self.pods.push(pod.clone());
        Ok(pod)
    }

    /// Waits until the agent listens in a pod, as a container's start gives it the time to.
    fn wait_for_listener(&self, pod: &str) -> Result<()> {
        let configuration: Table = toml::from_str(&fs::read_to_string(self.configuration())?)?;
        let port = configuration.get("capture").and_then(|capture| capture.get("listen_port")?.as_integer());
        // As in /proc/net/tcp: the port in hexadecimal, any peer, the state LISTEN.
        let listener = format!(":{:04X} 00000000:0000 0A", port.unwrap_or(LISTEN_PORT));
        network::inside(&network::pod(self.id(), pod), || {
            let began = Instant::now();
            while !fs::read_to_string("/proc/thread-self/net/tcp")?.contains(&listener) {
                ensure!(began.elapsed() < AGENT_START_DEADLINE, "the agent does not listen in the pod {pod}");
                sleep(Duration::from_millis(10));
            }
            Ok(())
        })
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        {
            let _building = signals::building();
            if let Err(error) = state::remove(self.state.id()) {
                eprintln!("{error:#}");
            }
        }
        signals::let_go(self.state.id());
        drop(self.ownership.take());
    }
}

/// The JSON objects in a file that has one a line.
fn lines_of(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let read = |line| serde_json::from_str(line).with_context(|| format!("read {}", path.display()));
    text.lines().map(read).collect()
}

fn agent_plan(state: &State, binary: &Path) -> Result<Plan> {
    let mut environment = services::environment();
    environment.insert("RUST_BACKTRACE".into(), "1".into());
    environment.extend(std::env::var("SNOWFENCE_LOG").ok().map(|filter| ("SNOWFENCE_LOG".into(), filter)));
    Ok(Plan {
        name: "agent".to_owned(),
        place: Place {
            network: Some(network::node(state.id())),
            cgroup: Cgroup::covered(state.id())?.child("agent").path().to_owned(),
            container: None,
        },
        program: text(binary)?,
        arguments: vec!["run".into(), "--config".into(), text(&state.public("snowfence.toml"))?],
        environment,
    })
}

/// Mounts the file system of pinned programs where no init system did. It stays: others may use it by then.
fn mount_bpffs() -> Result<()> {
    // A second mount would hide what others pinned in the first.
    let folder =
        fs::File::open(BPFFS).with_context(|| format!("open {BPFFS}: is this kernel built with BPF?"))?;
    flock(&folder, FlockOperation::LockExclusive).with_context(|| format!("lock {BPFFS}"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    if mounts.lines().any(|line| line.contains(&format!(" {BPFFS} ")) && line.contains(" - bpf ")) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", BPFFS, "bpf", flags, Some(c"mode=0700")).with_context(|| format!("mount bpffs on {BPFFS}"))
}
