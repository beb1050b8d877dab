//! The file as it is written: plain structs, unknown keys refused. Doc comments here are the descriptions in
//! `snowfence config schema`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// The JSON schema of the configuration file.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Raw)
}

/// Configuration of the Snowfence agent.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "snowfence.toml")]
pub struct Raw {
    #[serde(default)]
    pub agent: Agent,
    #[serde(default)]
    pub capture: Capture,
    #[serde(default)]
    pub tls: Tls,
    #[serde(default)]
    pub clients: Clients,
    /// The Snowflake accounts that may be reached. A connection to any other account is refused.
    pub accounts: Vec<Account>,
    /// The identity providers whose tokens are accepted.
    pub issuers: Vec<Issuer>,
    /// Who becomes what in Snowflake. The first rule that matches wins; where none does, the login is refused.
    pub rules: Vec<Rule>,
    /// The Snowflake credentials that the agent holds, by name.
    pub credentials: BTreeMap<String, Credential>,
    #[serde(default)]
    pub policy: Policy,
    /// Who rules on statements that the policy holds. Without it, they are refused.
    pub approvals: Option<Approvals>,
    #[serde(default)]
    pub audit: Audit,
    /// Where the trail is delivered as OCSF events. Each sink has a cursor of its own, by its name.
    #[serde(default)]
    pub siem: Vec<Siem>,
    #[serde(default)]
    pub metrics: Metrics,
    #[serde(default)]
    pub kubernetes: Kubernetes,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// Journal, internal CA and session key; made with mode 0700.
    pub state_dir: PathBuf,
    /// The name of this node in every record. Default: the host name.
    pub node: Option<String>,
}

impl Default for Agent {
    fn default() -> Self {
        Self { state_dir: "/var/lib/snowfence".into(), node: None }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// The covered cgroup, below the cgroup v2 mount. `/` is the whole host.
    pub cgroup: PathBuf,
    /// Where the kernel programs' links and maps are pinned.
    pub bpffs: PathBuf,
    /// The loopback port that the agent listens on in each covered network namespace.
    pub listen_port: u16,
    /// The destination ports that are redirected.
    pub ports: Vec<u16>,
    /// Names under these belong to Snowflake.
    pub suffixes: Vec<String>,
    /// Names to resolve besides the account hosts, for example `PrivateLink` names.
    pub names: Vec<String>,
    /// Networks that belong to Snowflake whatever DNS says (CIDR).
    pub networks: Vec<String>,
    /// DNS servers (`ADDRESS:PORT`). Default: those of /etc/resolv.conf.
    pub nameservers: Vec<String>,
    /// What is captured of workloads that no scope names.
    pub mode: Mode,
    /// Who may have raw and packet sockets, which go by what captures connections.
    pub raw_sockets: RawSockets,
    /// Drop what goes to Snowflake and is not the agent's on the devices by which packets leave the host.
    pub perimeter: bool,
    /// What holds for some workloads instead. The first scope that matches wins.
    pub scopes: Vec<Scope>,
}

/// Where accounts are, in China too; services and apps of accounts; and the web interface, whose pages query accounts.
const SUFFIXES: [&str; 5] = [
    "snowflakecomputing.com",
    "snowflakecomputing.cn",
    "snowflakecomputing.app",
    "snowflake.app",
    "app.snowflake.com",
];

impl Default for Capture {
    fn default() -> Self {
        Self {
            cgroup: "/".into(),
            bpffs: "/sys/fs/bpf/snowfence".into(),
            listen_port: 15443,
            ports: vec![443],
            suffixes: SUFFIXES.map(String::from).to_vec(),
            names: Vec::new(),
            networks: Vec::new(),
            nameservers: Vec::new(),
            mode: Mode::default(),
            raw_sockets: RawSockets::default(),
            perimeter: true,
            scopes: Vec::new(),
        }
    }
}

/// What of a workload's connections is captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Those to Snowflake's addresses, and those that ask for Snowflake's names.
    #[default]
    Endpoints,
    /// Every outbound TCP connection: what is not Snowflake's is looked at and passed on as it is.
    All,
    /// None: the workload goes its own way.
    Off,
}

/// Who may have raw and packet sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawSockets {
    /// Processes of the host and in the host's network, not those of a container with a network of its own.
    #[default]
    Host,
    Allow,
    Refuse,
}

/// Workloads by any of their marks, and what holds for them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// Shown in messages.
    pub name: String,
    /// Globs on the cgroup's path (`*` within a component, `**` across). What is below a match is meant too.
    #[serde(default)]
    pub cgroups: Vec<String>,
    /// Globs on the name of the systemd unit, for example `airflow-*.service`.
    #[serde(default)]
    pub units: Vec<String>,
    /// Pods of Kubernetes.
    pub pods: Option<PodSelector>,
    /// What is captured. Default: as without this scope.
    pub mode: Option<Mode>,
    /// Default: as without this scope.
    pub raw_sockets: Option<RawSockets>,
}

/// Pods in one of the namespaces that have all of the labels.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PodSelector {
    /// Globs on the name of the namespace. Default: every namespace.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// Labels and their values.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// Root certificates (PEM) that Snowflake's certificate is verified with. Default: the system's.
    pub upstream_ca_bundle: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Clients {
    /// What becomes of what drivers report of themselves.
    pub telemetry: Telemetry,
    /// Who asks, for Snowflake's own history of queries.
    pub query_tag: QueryTag,
    /// Whether the certificates that clients see name a list of revoked ones, at port 80 of the account's host. Only for
    /// drivers that are told to insist on one (`crl_check_mode = ENABLED`, for example).
    pub revocation_list: bool,
}

/// What Snowflake's parameter `QUERY_TAG` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueryTag {
    /// Who asks, where the client sets no tag of its own.
    #[default]
    Caller,
    /// What the client sets.
    Client,
}

/// What becomes of what drivers report of themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Telemetry {
    /// It is answered by the agent and goes nowhere.
    #[default]
    Answer,
    /// It goes to Snowflake, if it belongs to a session.
    Forward,
    /// It is refused like any unknown request, which drivers take in silence.
    Refuse,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// For example `acme.eu-west-1.snowflakecomputing.com`.
    pub host: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// What the token's `iss` claim must equal.
    #[expect(clippy::struct_field_names, reason = "the key in the file")]
    pub issuer: String,
    /// What the token's `aud` claim must contain.
    pub audience: String,
    /// Where the public keys are fetched.
    pub jwks_url: Option<String>,
    /// A file with the public keys, instead of `jwks_url`.
    pub jwks_file: Option<PathBuf>,
    /// Fetch the keys without TLS from an address that is not loopback. Only for a network that you trust.
    #[serde(default)]
    pub allow_http: bool,
    /// Root certificates (PEM) for `jwks_url`. Default: the system's.
    pub ca_bundle: Option<PathBuf>,
    /// The claim that lists the caller's groups.
    #[serde(default = "groups")]
    pub groups_claim: String,
    /// The claim that names the caller.
    #[serde(default = "sub")]
    pub subject_claim: String,
}

fn groups() -> String {
    "groups".into()
}

fn sub() -> String {
    "sub".into()
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Shown in records and errors.
    pub name: String,
    /// Only tokens of this issuer.
    pub issuer: Option<String>,
    /// Only callers in one of these groups. Without it: every verified token.
    pub groups: Option<Vec<String>>,
    /// Only workloads whose cgroup path matches one of these globs (`*` within a component, `**` across).
    pub cgroups: Option<Vec<String>>,
    /// Only this account.
    pub account: Option<String>,
    /// The Snowflake user to log in as.
    pub user: String,
    /// The role to log in with; the client's own choice is overridden.
    pub role: Option<String>,
    /// The warehouse to log in with; the client's own choice is overridden.
    pub warehouse: Option<String>,
    /// The name of the credential to log in with.
    pub credential: String,
    /// Whether the SQL API is open. Default: only where the rule fixes no role, as the secondary roles of the user count
    /// there unless the user has none by default, or the credential is an access token restricted to the role.
    pub sql_api: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    #[serde(rename = "type")]
    pub kind: CredentialType,
    /// `file:PATH` or `env:NAME`.
    pub secret: String,
}

/// How the agent proves to Snowflake who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialType {
    Password,
    ProgrammaticAccessToken,
    OauthToken,
    /// An RSA private key in PEM (PKCS #8).
    KeyPair,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// A Cedar policy file. Default: the built-in policy.
    pub file: Option<PathBuf>,
}

/// Statements that wait for a person. Who asked cannot rule.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approvals {
    /// Whoever has a token that names one of these groups may rule, by `snowfence approvals`.
    pub groups: Vec<String>,
    /// Only tokens of this issuer. Default: of any of the issuers.
    pub issuer: Option<String>,
    /// How long a statement waits; then it is refused.
    #[serde(default = "wait_minutes")]
    pub wait_minutes: u32,
}

fn wait_minutes() -> u32 {
    15
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// Where the trail is delivered. Without it, it stays in the journal.
    pub clickhouse: Option<ClickHouse>,
    /// How much of the trail stays on this host.
    pub journal: Journal,
    /// What clients asked and were answered, whole and encrypted, for replay. Without it, no answer is kept.
    pub payloads: Option<super::payloads::Raw>,
    /// An object store that keeps copies of the checkpoints that the trail is signed by, out of this host's reach: a bucket
    /// with object lock. Without it, there are none but in `ClickHouse` and SIEM sinks.
    pub checkpoints: Option<super::bucket::Raw>,
    /// How the trail is compared with Snowflake's own history. Without it, it is not.
    pub reconcile: Option<super::reconcile::Raw>,
}

/// Records leave the journal when all that they are delivered to has them. Where they are delivered nowhere, they leave it by
/// `keep_days` alone, if it is set.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Journal {
    /// Days after which delivered records are removed. Default: 30, where records are delivered.
    pub keep_days: Option<u32>,
    /// Room on the disk. When nine tenths are used, delivered records go before their time; when all is, statements are refused.
    pub max_mebibytes: u64,
}

impl Default for Journal {
    fn default() -> Self {
        Self { keep_days: None, max_mebibytes: 20 * 1024 }
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where `GET /metrics` is answered for Prometheus, for example `127.0.0.1:9464`. Without it, nowhere.
    pub listen: Option<String>,
}

/// Where the pods of this node are asked for. Only scopes with `pods` need it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// The name that this node has there. Default: the environment variable NODE_NAME.
    pub node: Option<String>,
    /// The URL of the API server. Default: the one that the cluster tells its pods.
    pub api_server: Option<String>,
    /// A file with the token to show to `api_server`, which is read again when it is renewed.
    pub token_file: Option<PathBuf>,
    /// Root certificates (PEM) for `api_server`. Default: the system's.
    pub ca_bundle: Option<PathBuf>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClickHouse {
    /// The HTTP interface, for example `https://clickhouse:8443`; or a list of them, replicas of one ClickHouse, of which
    /// the next is used when one fails.
    pub url: Urls,
    /// Root certificates (PEM) for it. Default: the system's.
    pub ca_bundle: Option<PathBuf>,
    #[serde(default = "database")]
    pub database: String,
    /// The name of a cluster of ClickHouse: tables are replicated and sharded over it. Default: one server.
    pub cluster: Option<String>,
    pub user: Option<String>,
    /// `file:PATH` or `env:NAME`.
    pub password: Option<String>,
    /// Apply the schema before delivering. Without it, `snowfence schema apply` must have been run.
    #[serde(default = "yes")]
    pub apply_schema: bool,
    #[serde(default)]
    pub retention_days: RetentionDays,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a URL, or a list of URLs")]
pub enum Urls {
    One(String),
    Several(Vec<String>),
}

/// Days that records are kept in ClickHouse. What has no number is kept for ever.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetentionDays {
    pub sessions: Option<u32>,
    /// Statements that were allowed and are not sensitive.
    pub statements: Option<u32>,
    /// Statements that were refused or held, that administer, destroy, carry data out or are opaque, or that ran under one of
    /// Snowflake's roles that may administer.
    pub sensitive_statements: Option<u32>,
    pub events: Option<u32>,
    pub payloads: Option<u32>,
}

fn yes() -> bool {
    true
}

fn database() -> String {
    "snowfence".into()
}

/// Where security teams keep their events. Which of the keys have a meaning depends on `kind`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Siem {
    /// Lower-case letters, digits, `-` and `_`. A sink of another name begins with the first record of the journal.
    pub name: String,
    pub kind: SiemKind,
    /// Only these records. Default: all.
    pub only: Option<Vec<SiemRecords>>,
    /// Only statements, and what became of them, with one of these verdicts. Default: all.
    pub verdicts: Option<Vec<SiemVerdict>>,
    /// `file`: where to write, one JSON object a line.
    pub path: Option<PathBuf>,
    /// `file`: the size at which a new file is begun. Default: 100.
    pub max_mebibytes: Option<u64>,
    /// `file`: how many older files (`PATH.1`, `PATH.2` …) are kept. Default: 5.
    pub keep_files: Option<u32>,
    /// `syslog`: `tls://HOST:PORT`, or `tcp://HOST:PORT` for a network that you trust. `http`: where to post.
    pub url: Option<String>,
    /// `syslog` and `http`: root certificates (PEM). Default: the system's.
    pub ca_bundle: Option<PathBuf>,
    /// `syslog`: most bytes of a message; of a longer one the longest texts are cut, and it says so. Default: 8192, which
    /// every receiver takes.
    pub max_message_bytes: Option<usize>,
    /// `http`: how a batch is written.
    pub format: Option<SiemFormat>,
    /// `http`: `file:PATH` or `env:NAME`.
    pub token: Option<String>,
    /// `http`: post without TLS to an address that is not loopback. Only for a network that you trust.
    pub allow_http: Option<bool>,
    /// `http`: whether requests are compressed. Default: false.
    pub gzip: Option<bool>,
    /// `http`: most records of a request. Default: 500.
    pub batch_records: Option<u32>,
    /// `http`: most KiB of a request, before compression; a record that has more goes alone. Default: 512.
    pub batch_kibibytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SiemKind {
    /// JSON lines, for a collector on this host.
    File,
    /// RFC 5424 over TLS (RFC 5425).
    Syslog,
    Http,
}

/// Records of the trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SiemRecords {
    Events,
    /// Where payloads are, not what is in them.
    Payloads,
    Sessions,
    /// With their outcomes.
    Statements,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SiemVerdict {
    Allow,
    Deny,
    Hold,
}

impl SiemVerdict {
    /// As it stands in the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Hold => "hold",
        }
    }
}

/// How a batch is written into a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SiemFormat {
    /// An array; the token is a bearer's.
    #[default]
    Json,
    /// An object a line; the token is a bearer's.
    Ndjson,
    /// Splunk's HTTP Event Collector.
    SplunkHec,
}
