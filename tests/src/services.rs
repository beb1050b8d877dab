//! The programs that stand for the outside world, and the names and figures by which everybody knows them.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result};

use crate::{
    certificates,
    cgroup::Cgroup,
    launch::Place,
    network::{
        self, CLICKHOUSE, CONNECT_PROXY, DNS, IDENTITY_PROVIDER, UPSTREAM, UPSTREAM_ALIAS,
        UPSTREAM_ALTERNATIVE, UPSTREAM6,
    },
    process::{Plan, Process},
    python::{self, Environment},
    state::State,
};

pub const ACCOUNT: &str = "acme.eu-west-1";
pub const ACCOUNT_HOST: &str = "acme.eu-west-1.snowflakecomputing.com";
/// Another name of the account, which leads to an address that the agent does not know at first.
pub const ACCOUNT_ALIAS: &str = "org-acme.snowflakecomputing.com";
pub const AUDIENCE: &str = "snowfence";
pub const DATABASE: &str = "ANALYTICS";
pub const SCHEMA: &str = "PUBLIC";
/// The Snowflake user that the agent logs in as.
pub const SERVICE_USER: &str = "SVC_AGENTS";
pub const WAREHOUSE: &str = "COMPUTE_WH";

/// How long a service may take to start: ClickHouse's engine is a large library.
pub const START_DEADLINE: Duration = Duration::from_mins(2);
pub const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// Seconds that a DNS answer may be kept.
const TTL: &str = "5";

/// One of the programs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Service {
    ClickHouse,
    ConnectProxy,
    Dns,
    IdentityProvider,
    Upstream,
}

impl Service {
    pub const ALL: [Self; 5] =
        [Self::ClickHouse, Self::ConnectProxy, Self::Dns, Self::IdentityProvider, Self::Upstream];

    pub fn name(self) -> &'static str {
        match self {
            Self::ClickHouse => "clickhouse",
            Self::ConnectProxy => "connect_proxy",
            Self::Dns => "dns",
            Self::IdentityProvider => "identity_provider",
            Self::Upstream => "upstream",
        }
    }

    /// Starts the program and waits until it listens.
    pub fn start(self, state: &State) -> Result<Process> {
        let mut process = Process::start(&self.plan(state)?, &state.logs())?;
        process.wait_for_ready_line(START_DEADLINE)?;
        Ok(process)
    }

    fn environment(self) -> Environment {
        if self == Self::ClickHouse { Environment::ClickHouse } else { Environment::Upstream }
    }

    fn plan(self, state: &State) -> Result<Plan> {
        let script = python::programs().join(format!("{}.py", self.name()));
        let mut arguments = vec![text(&script)?];
        arguments.extend(self.arguments(state)?);
        Ok(Plan {
            name: self.name().to_owned(),
            place: Place {
                network: Some(network::outside(state.id())),
                cgroup: Cgroup::services(state.id())?.path().to_owned(),
                container: None,
            },
            program: text(&self.environment().python()?)?,
            arguments,
            environment: environment(),
        })
    }

    fn arguments(self, state: &State) -> Result<Vec<String>> {
        let words: Vec<String> = match self {
            Self::ClickHouse => {
                vec![
                    "--listen".into(),
                    format!("{CLICKHOUSE}:8123"),
                    "--data".into(),
                    text(&state.secret("clickhouse"))?,
                ]
            }
            Self::ConnectProxy => vec!["--listen".into(), format!("{CONNECT_PROXY}:3128")],
            Self::Dns => vec![
                "--listen".into(),
                format!("{DNS}:53"),
                "--record".into(),
                format!("{ACCOUNT_HOST}={UPSTREAM},{UPSTREAM6}"),
                "--record".into(),
                format!("{ACCOUNT_ALIAS}={UPSTREAM_ALIAS}"),
                "--ttl".into(),
                TTL.into(),
            ],
            Self::IdentityProvider => vec![
                "serve".into(),
                "--listen".into(),
                format!("{IDENTITY_PROVIDER}:8080"),
                "--issuer".into(),
                issuer(),
                "--key".into(),
                text(&identity_key(state))?,
            ],
            Self::Upstream => {
                let files = certificate_files(state);
                let mut words = Vec::new();
                for address in [
                    format!("{UPSTREAM}:443"),
                    format!("[{UPSTREAM6}]:443"),
                    format!("{UPSTREAM_ALTERNATIVE}:443"),
                    format!("{UPSTREAM_ALIAS}:443"),
                ] {
                    words.extend(["--listen".into(), address]);
                }
                for (option, value) in [
                    ("--certificate", text(&files.certificate)?),
                    ("--key", text(&files.key)?),
                    ("--account", ACCOUNT_HOST.into()),
                    ("--alias", ACCOUNT_ALIAS.into()),
                    ("--credentials", text(&state.secret("credentials.json"))?),
                    ("--log", text(&state.public("upstream.jsonl"))?),
                    ("--database", DATABASE.into()),
                    ("--schema", SCHEMA.into()),
                    ("--warehouse", WAREHOUSE.into()),
                ] {
                    words.extend([option.into(), value]);
                }
                words
            }
        };
        Ok(words)
    }
}

/// The identity provider's name, and where it is found.
pub fn issuer() -> String {
    format!("http://{IDENTITY_PROVIDER}:8080")
}

/// ClickHouse's HTTP interface.
pub fn clickhouse_url() -> String {
    format!("http://{CLICKHOUSE}:8123")
}

/// What a token says.
#[derive(Clone, Debug)]
pub struct Claims {
    pub subject: String,
    pub groups: Vec<String>,
    pub audience: String,
    /// Negative: expired that long ago.
    pub lifetime_seconds: i64,
}

impl Claims {
    /// A token that the default configuration accepts.
    pub fn analyst(subject: &str) -> Self {
        Self {
            subject: subject.to_owned(),
            groups: vec!["analysts".to_owned()],
            audience: AUDIENCE.to_owned(),
            lifetime_seconds: 3600,
        }
    }
}

/// A token of the identity provider, which need not run for this, but must have run once.
pub fn mint(state: &State, claims: &Claims) -> Result<String> {
    let lifetime = format!("--lifetime={}", claims.lifetime_seconds);
    let mut command = std::process::Command::new(Environment::Upstream.python()?);
    command.arg(python::programs().join("identity_provider.py")).arg("mint");
    command.arg("--key").arg(identity_key(state)).args([
        "--issuer",
        &issuer(),
        "--audience",
        &claims.audience,
    ]);
    command.args(["--subject", &claims.subject, &lifetime]).env_clear().envs(environment());
    for group in &claims.groups {
        command.args(["--group", group]);
    }
    let output = command.output().context("start identity_provider.py mint")?;
    let message = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "identity_provider.py mint failed: {}", message.trim());
    Ok(String::from_utf8(output.stdout).context("read the token")?.trim().to_owned())
}

pub fn certificate_files(state: &State) -> certificates::Files {
    certificates::Files {
        authority: state.public("upstream-ca.pem"),
        certificate: state.secret("upstream.pem"),
        key: state.secret("upstream.key"),
    }
}

/// What every process of the sandbox has in its environment: nothing of the machine's own.
pub fn environment() -> BTreeMap<String, String> {
    [
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONUNBUFFERED", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// A path as an argument.
pub fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

fn identity_key(state: &State) -> std::path::PathBuf {
    state.secret("identity-provider.pem")
}
