//! The programs that stand for the outside world, and the names and figures by which everybody knows them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    certificates,
    cgroup::Cgroup,
    launch::Place,
    network::{
        self, CLICKHOUSE, DNS, FORWARD_PROXY, IDENTITY_PROVIDER, NODE, NODE6, STORAGE, UNKNOWN, UNKNOWN6,
        UPSTREAM, UPSTREAM_ALIAS, UPSTREAM_ALTERNATIVE, UPSTREAM6,
    },
    process::{Plan, Process},
    python::{self, Environment},
    state::State,
};

pub const ACCOUNT: &str = "acme.eu-west-1";
pub const ACCOUNT_HOST: &str = "acme.eu-west-1.snowflakecomputing.com";
/// Another name of the account, which leads to an address that the agent does not know at first.
pub const ACCOUNT_ALIAS: &str = "org-acme.snowflakecomputing.com";
/// The storage behind the account, of which no client is to see anything.
pub const STORAGE_HOST: &str = "acme-stage.s3.eu-west-1.amazonaws.com";
/// Its name without a region, which drivers use.
pub const STORAGE_ALIAS: &str = "acme-stage.s3.amazonaws.com";
/// Where stages are if a statement asks for it: in Azure, and in Google's cloud.
pub const AZURE_HOST: &str = "acmestage.blob.core.windows.net";
pub const GCS_HOST: &str = "storage.googleapis.com";
/// All names of the storage.
pub const STORAGE_HOSTS: [&str; 4] = [STORAGE_HOST, STORAGE_ALIAS, AZURE_HOST, GCS_HOST];
pub const AUDIENCE: &str = "snowfence";
pub const DATABASE: &str = "ANALYTICS";
pub const SCHEMA: &str = "PUBLIC";
/// The Snowflake user that the agent logs in as.
pub const SERVICE_USER: &str = "SVC_AGENTS";
pub const WAREHOUSE: &str = "COMPUTE_WH";

/// How long a service may take to start: ClickHouse's engine is a large library.
pub const START_DEADLINE: Duration = Duration::from_mins(2);
pub const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// The name of the DNS server.
pub const DNS_HOST: &str = "dns.example";
/// Seconds that a DNS answer may be kept.
const TTL: &str = "5";

/// How much of the outside world there is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum World {
    #[default]
    Whole,
    /// No ClickHouse, no identity provider, and in the place of Snowflake a server that answers every request with
    /// nothing. Needs no Python package.
    Plain,
}

/// One of the programs.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Service {
    ClickHouse,
    Dns,
    ForwardProxy,
    IdentityProvider,
    Upstream,
    Witness,
}

impl Service {
    pub const ALL: [Self; 6] = [
        Self::ClickHouse,
        Self::Dns,
        Self::ForwardProxy,
        Self::IdentityProvider,
        Self::Upstream,
        Self::Witness,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::ClickHouse => "clickhouse",
            Self::Dns => "dns",
            Self::ForwardProxy => "forward_proxy",
            Self::IdentityProvider => "identity_provider",
            Self::Upstream => "upstream",
            Self::Witness => "witness",
        }
    }

    /// What runs in a world.
    pub fn of(world: World) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |service| {
            world == World::Whole || !matches!(service, Self::ClickHouse | Self::IdentityProvider)
        })
    }

    /// Starts the program and waits until it listens.
    pub fn start(self, state: &State, world: World) -> Result<Process> {
        let mut process = Process::start(&self.plan(state, world)?, &state.logs())?;
        process.wait_for_ready_line(START_DEADLINE)?;
        Ok(process)
    }

    fn python(self, world: World) -> Result<PathBuf> {
        match self {
            Self::ClickHouse => Environment::ClickHouse.python(),
            Self::IdentityProvider => Environment::Upstream.python(),
            Self::Upstream if world == World::Whole => Environment::Upstream.python(),
            Self::Dns | Self::ForwardProxy | Self::Upstream | Self::Witness => python::system(),
        }
    }

    fn plan(self, state: &State, world: World) -> Result<Plan> {
        let program =
            if self == Self::Upstream && world == World::Plain { "plain_upstream" } else { self.name() };
        let script = python::programs().join(format!("{program}.py"));
        let mut arguments = vec![text(&script)?];
        arguments.extend(self.arguments(state, world)?);
        let mut environment = environment();
        environment.insert("TMPDIR".to_owned(), text(&state.temporary())?);
        Ok(Plan {
            name: self.name().to_owned(),
            place: Place {
                network: Some(network::outside(state.id())),
                cgroup: Cgroup::services(state.id())?.path().to_owned(),
                container: None,
            },
            program: text(&self.python(world)?)?,
            arguments,
            environment,
        })
    }

    fn arguments(self, state: &State, world: World) -> Result<Vec<String>> {
        let words: Vec<String> = match self {
            Self::ClickHouse => options([
                ("--listen", format!("{CLICKHOUSE}:8123")),
                ("--data", text(&state.secret("clickhouse"))?),
            ]),
            Self::Dns => {
                let files = dns_certificate_files(state);
                let mut words = options([
                    ("--listen", format!("{DNS}:53")),
                    ("--listen", format!("{DNS}:5353")),
                    ("--https", format!("{DNS}:8443")),
                    ("--certificate", text(&files.certificate)?),
                    ("--key", text(&files.key)?),
                    ("--record", format!("{ACCOUNT_HOST}={UPSTREAM},{UPSTREAM6}")),
                    ("--record", format!("{ACCOUNT_ALIAS}={UPSTREAM_ALIAS}")),
                    ("--numbered", numbered()),
                    ("--ttl", TTL.to_owned()),
                ]);
                for host in STORAGE_HOSTS {
                    words.extend(options([("--record", format!("{host}={STORAGE}"))]));
                }
                words
            }
            Self::ForwardProxy => options([
                ("--http", format!("{FORWARD_PROXY}:3128")),
                ("--socks", format!("{FORWARD_PROXY}:1080")),
                ("--host", format!("{ACCOUNT_HOST}={UPSTREAM}")),
            ]),
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
                let mut words = options([
                    ("--listen", format!("{UPSTREAM}:443")),
                    ("--listen", format!("[{UPSTREAM6}]:443")),
                    ("--listen", format!("{UPSTREAM_ALTERNATIVE}:443")),
                    ("--listen", format!("{UPSTREAM_ALIAS}:443")),
                    ("--listen", format!("{STORAGE}:443")),
                    ("--network", UNKNOWN.to_owned()),
                    ("--network", UNKNOWN6.to_owned()),
                    ("--certificate", text(&files.certificate)?),
                    ("--key", text(&files.key)?),
                    ("--log", text(&state.public("upstream.jsonl"))?),
                ]);
                if world == World::Whole {
                    words.extend(options([
                        ("--account", ACCOUNT_HOST.to_owned()),
                        ("--alias", ACCOUNT_ALIAS.to_owned()),
                        ("--storage", STORAGE_HOST.to_owned()),
                        ("--azure", AZURE_HOST.to_owned()),
                        ("--gcs", GCS_HOST.to_owned()),
                        ("--credentials", text(&state.secret("credentials.json"))?),
                        ("--database", DATABASE.to_owned()),
                        ("--schema", SCHEMA.to_owned()),
                        ("--warehouse", WAREHOUSE.to_owned()),
                    ]));
                }
                words
            }
            Self::Witness => options([
                ("--device", "eth0".to_owned()),
                ("--snowflake", UPSTREAM.to_owned()),
                ("--snowflake", UPSTREAM6.to_owned()),
                ("--snowflake", UPSTREAM_ALTERNATIVE.to_owned()),
                ("--snowflake", UPSTREAM_ALIAS.to_owned()),
                ("--snowflake", UNKNOWN.to_owned()),
                ("--snowflake", UNKNOWN6.to_owned()),
                ("--agent", NODE.to_owned()),
                ("--agent", NODE6.to_owned()),
                ("--log", text(&state.public("witness.jsonl"))?),
            ]),
        };
        Ok(words)
    }
}

fn options<const COUNT: usize>(pairs: [(&str, String); COUNT]) -> Vec<String> {
    pairs.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
}

/// The names in DNS of the addresses that nobody asks for by himself.
fn numbered() -> String {
    let (v4, v6) = (UNKNOWN.trim_end_matches("0/24"), UNKNOWN6.trim_end_matches("/64"));
    format!("pod-{{}}.snowflakecomputing.com={v4}{{}},{v6}{{}}")
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

/// Of the DNS server, which is nobody's in particular.
pub fn dns_certificate_files(state: &State) -> certificates::Files {
    certificates::Files {
        authority: state.public("dns-ca.pem"),
        certificate: state.secret("dns.pem"),
        key: state.secret("dns.key"),
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
