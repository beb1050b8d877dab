//! The configuration: one TOML file, `snowfence.toml`.
//!
//! [`load`] reads it and reports every problem at once, each with its line, column and key. What it returns is
//! checked: the accounts, issuers and credentials that a rule names exist, globs and addresses are parsed. Secrets
//! are references ([`SecretReference`]) that are read when they are used, never values.

mod bucket;
mod check;
mod document;
mod payloads;
mod raw;
mod reconcile;
mod secret;
mod siem;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::GlobSet;
use ipnet::IpNet;

pub use bucket::{Bucket, BucketKind};
pub use document::{Problem, position};
pub use payloads::{Archive, Files, Payloads, WhenFull};
pub use raw::{
    CredentialType, Mode, QueryTag, RawSockets, RetentionDays, SiemFormat, SiemRecords, SiemVerdict,
    Telemetry, schema,
};
pub use reconcile::{Against, Covered, History, Reconcile};
pub use secret::{Secret, SecretError, SecretReference};
pub use siem::{Siem, SiemTarget};

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read from.
    pub path: PathBuf,
    pub agent: Agent,
    pub capture: Capture,
    pub tls: Tls,
    /// What becomes of what drivers report of themselves.
    pub telemetry: Telemetry,
    pub query_tag: QueryTag,
    /// Whether leaves name the internal CA's list of revoked certificates.
    pub revocation_list: bool,
    /// The Snowflake accounts that may be reached, by host name.
    pub accounts: Vec<Account>,
    pub issuers: Vec<Issuer>,
    /// Who becomes what in Snowflake; the first match wins.
    pub rules: Vec<Rule>,
    pub credentials: Vec<Credential>,
    /// The Cedar policy file; the built-in policy where there is none.
    pub policy_file: Option<PathBuf>,
    /// `None`: what the policy holds is refused.
    pub approvals: Option<Approvals>,
    pub clickhouse: Option<ClickHouse>,
    /// What is kept of requests and answers; `None`: nothing.
    pub journal: Journal,
    pub payloads: Option<Payloads>,
    /// Where copies of checkpoints go.
    pub checkpoints: Option<Bucket>,
    /// `None`: the trail is not compared with Snowflake's history.
    pub reconcile: Option<Reconcile>,
    /// Where else the trail is delivered.
    pub siem: Vec<Siem>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Where pods are asked for; `None` where no scope needs them.
    pub kubernetes: Option<Kubernetes>,
}

/// Who rules on held statements.
#[derive(Debug, Clone)]
pub struct Approvals {
    /// Any of these.
    pub groups: Vec<String>,
    pub issuer: Option<String>,
    /// How long a statement waits for a ruling.
    pub wait: Duration,
}

#[derive(Debug, Clone)]
pub struct Kubernetes {
    /// The name of this node.
    pub node: String,
    /// `None`: what the cluster tells its pods.
    pub api_server: Option<ApiServer>,
}

#[derive(Debug, Clone)]
pub struct ApiServer {
    pub url: hyper::Uri,
    pub token_file: Option<PathBuf>,
    pub ca_bundle: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Agent {
    /// The journal, the internal CA and the session key live here.
    pub state_dir: PathBuf,
    /// The name of this node in every record.
    pub node: String,
}

#[derive(Debug, Clone)]
pub struct Capture {
    /// The covered cgroup, below the cgroup v2 mount.
    pub cgroup: PathBuf,
    /// Where links and maps are pinned.
    pub bpffs: PathBuf,
    /// The loopback port of the listeners.
    pub listen_port: u16,
    /// The destination ports that are redirected.
    pub ports: Vec<u16>,
    /// Names under these belong to Snowflake; lower case, without a leading dot.
    pub suffixes: Vec<String>,
    /// Names that are resolved besides the account hosts.
    pub names: Vec<String>,
    /// Networks that belong to Snowflake whatever DNS says.
    pub networks: Vec<IpNet>,
    /// The DNS servers to ask; those of `/etc/resolv.conf` where empty.
    pub nameservers: Vec<SocketAddr>,
    /// What holds where no scope says otherwise.
    pub mode: Mode,
    pub raw_sockets: RawSockets,
    /// Whether the perimeter is put on the devices.
    pub perimeter: bool,
    /// The first that matches wins.
    pub scopes: Vec<Scope>,
}

/// What holds for the workloads that any of the marks fits.
#[derive(Debug, Clone)]
pub struct Scope {
    pub name: String,
    /// Of the cgroup's path.
    pub cgroups: GlobSet,
    /// Of one component of that path: the name of a systemd unit.
    pub units: GlobSet,
    pub pods: Option<PodSelector>,
    pub mode: Mode,
    pub raw_sockets: RawSockets,
}

#[derive(Debug, Clone)]
pub struct PodSelector {
    /// `None`: every namespace.
    pub namespaces: Option<GlobSet>,
    /// A pod has all of them.
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct Tls {
    /// Roots for Snowflake's certificates, in PEM; the system's where there is none.
    pub upstream_ca_bundle: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Account {
    /// The host name, lower case.
    pub host: String,
}

#[derive(Debug, Clone)]
pub struct Issuer {
    /// What the token's `iss` must equal.
    pub issuer: String,
    /// What the token's `aud` must contain.
    pub audience: String,
    pub keys: KeySource,
    /// Roots for the key server's certificate; the system's where there is none.
    pub ca_bundle: Option<PathBuf>,
    pub groups_claim: String,
    pub subject_claim: String,
}

/// Where an issuer's public keys (a JWKS document) come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    Url(hyper::Uri),
}

/// Admits callers of certain groups, from certain workloads, as a Snowflake user.
#[derive(Debug, Clone)]
pub struct Rule {
    pub name: String,
    pub issuer: Option<String>,
    /// Any of these; `None` admits every verified token.
    pub groups: Option<Vec<String>>,
    /// Any of these globs on the cgroup path; `None` admits every workload.
    pub cgroups: Option<GlobSet>,
    pub account: Option<String>,
    pub user: String,
    pub role: Option<String>,
    pub warehouse: Option<String>,
    /// The name of a credential.
    pub credential: String,
    /// Whether the SQL API is open, which has no way to switch secondary roles off.
    pub sql_api: bool,
}

#[derive(Debug, Clone)]
pub struct Credential {
    pub name: String,
    pub kind: CredentialType,
    pub secret: SecretReference,
}

#[derive(Debug, Clone)]
pub struct ClickHouse {
    pub urls: Vec<String>,
    pub ca_bundle: Option<PathBuf>,
    pub database: String,
    pub cluster: Option<String>,
    pub user: Option<String>,
    pub password: Option<SecretReference>,
    pub apply_schema: bool,
    pub retention_days: RetentionDays,
}

/// What stays in the journal.
#[derive(Debug, Clone)]
pub struct Journal {
    /// `None`: until there is no more room.
    pub keep: Option<Duration>,
    /// Bytes.
    pub limit: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}", list(path, problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

/// Where the agent's state and its kernel part are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    pub state_dir: PathBuf,
    pub cgroup: PathBuf,
    pub bpffs: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        let (agent, capture) = (raw::Agent::default(), raw::Capture::default());
        Self { state_dir: agent.state_dir, cgroup: capture.cgroup, bpffs: capture.bpffs }
    }
}

impl From<Config> for Places {
    fn from(config: Config) -> Self {
        Self { state_dir: config.agent.state_dir, cgroup: config.capture.cgroup, bpffs: config.capture.bpffs }
    }
}

/// Reads and checks a configuration file.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Checks a configuration's text; `path` is for the messages.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let invalid = |problems| ConfigError::Invalid { path: path.to_owned(), problems };
    let (raw, mut document) = document::read::<raw::Raw>(text).map_err(invalid)?;
    let config = check::check(path, raw, &mut document);
    if document.has_problems() { Err(invalid(document.into_problems())) } else { Ok(config) }
}

/// What is wrong with values that are well-formed but cannot be used, each with the path of its key.
pub fn unusable(path: &Path, problems: &[(Vec<String>, String)]) -> ConfigError {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    match document::read::<toml::Table>(&text) {
        Ok((_, mut document)) => {
            for (key, message) in problems {
                document.add(key, message);
            }
            ConfigError::Invalid { path: path.to_owned(), problems: document.into_problems() }
        }
        Err(problems) => ConfigError::Invalid { path: path.to_owned(), problems },
    }
}

impl Config {
    /// Whether a lower-case name is Snowflake's: a suffix itself or a name under it.
    pub fn is_snowflake(&self, name: &str) -> bool {
        self.capture.suffixes.iter().any(|suffix| is_under(name, suffix))
    }
}

/// Whether `name` is `suffix` or ends in `.suffix`. Both are lower case.
pub fn is_under(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn list(path: &Path, problems: &[Problem]) -> String {
    let lines: Vec<_> = problems
        .iter()
        .map(|Problem { line, column, key, message }| {
            let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
            format!("{}:{line}:{column}: {key}{message}", path.display())
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests;
