//! What is recorded: plain data, as it stands in the journal and in every sink.
//!
//! Times are microseconds since the Unix epoch, UTC. A text that is not known is empty.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::chain::Checkpoint;
use super::payload::Payload;

/// Anything that can be appended to the journal.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    Session(Session),
    Statement(Statement),
    Approval(Approval),
    Outcome(Outcome),
    Event(Event),
    Payload(Payload),
    Running(Running),
    Checkpoint(Checkpoint),
}

/// Who opened the connection, as the kernel attests it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Workload {
    /// Path of the cgroup below the cgroup v2 mount.
    pub cgroup: String,
    pub pid: u32,
    pub uid: u32,
    pub comm: String,
    pub executable: String,
}

/// Whom the verified token names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Caller {
    pub issuer: String,
    pub subject: String,
    pub groups: Vec<String>,
}

/// A session that was opened with Snowflake.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Session {
    /// The agent's own identifier.
    pub id: Uuid,
    pub time: i64,
    pub workload: Workload,
    pub caller: Caller,
    /// Host name of the account.
    pub account: String,
    /// The rule of the configuration that admitted the caller.
    pub rule: String,
    pub user: String,
    pub role: String,
    /// Snowflake's identifier of the session.
    pub snowflake_session: String,
    /// What the client says it is: application, version, user agent.
    pub client: String,
}

/// A request to run SQL, recorded before any of it goes upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Statement {
    /// The agent's own identifier.
    pub id: Uuid,
    /// [`Session::id`].
    pub session: Uuid,
    pub time: i64,
    /// The client's identifier of the request.
    pub request_id: String,
    pub workload: Workload,
    pub caller: Caller,
    /// Host name of the account.
    pub account: String,
    pub user: String,
    pub role: String,
    pub sql: String,
    pub kind: String,
    pub effect: String,
    pub actions: Vec<String>,
    pub objects: Vec<String>,
    pub features: Vec<String>,
    pub verdict: Verdict,
    /// Which policy decided.
    pub policy: String,
    /// The client asked for the shape of the result only.
    pub describe_only: bool,
    /// Number of bound values.
    pub binds: u32,
}

/// What became of a statement that was held for a person. There is at most one for each statement; where there is none,
/// the agent ended first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Approval {
    /// [`Statement::id`].
    pub statement: Uuid,
    pub time: i64,
    pub ruling: Ruling,
    /// Who vouches for the approver; empty where nobody has ruled.
    pub approver_issuer: String,
    /// Whom the approver's verified token names.
    pub approver: String,
    /// What the approver gave as a reason, or why nobody had to rule.
    pub reason: String,
}

/// How a statement ended. There is at most one for each statement.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Outcome {
    /// [`Statement::id`].
    pub statement: Uuid,
    pub time: i64,
    pub status: OutcomeStatus,
    /// Snowflake's identifier of the query.
    pub query_id: String,
    pub rows: Option<u64>,
    /// Snowflake's error code.
    pub code: String,
    pub message: String,
    /// From the arrival of the request to the end of the answer, in microseconds.
    pub duration_us: u64,
    pub response_bytes: u64,
}

/// That Snowflake goes on running a statement after its first answer. There is at most one for each statement.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Running {
    /// [`Statement::id`].
    pub statement: Uuid,
    pub time: i64,
    /// Snowflake's identifier of the query.
    pub query_id: String,
}

/// Anything else that the security team must be able to see.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Event {
    pub id: Uuid,
    pub time: i64,
    pub kind: EventKind,
    pub workload: Option<Workload>,
    pub caller: Option<Caller>,
    /// Host name of the account.
    pub account: String,
    pub detail: String,
}

/// What the policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Allow,
    Deny,
    Hold,
}

/// What was ruled on a held statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// It may run, once.
    Approved,
    Denied,
    /// Nobody ruled in time.
    Expired,
    /// Who asked does not want it any more, or has gone.
    Withdrawn,
}

/// How a statement ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeStatus {
    /// Snowflake answered with an error.
    Failed,
    /// It was not forwarded.
    Refused,
    Succeeded,
    /// The agent ended, or lost the connection, before an answer came: it may have run.
    Unknown,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A connection was refused because the agent gave no sign of life.
    AgentSilent,
    AgentStarted,
    AgentStopped,
    /// Somebody wanted to rule on a held statement, and may not: who, on which, and why not.
    ApprovalRefused,
    ConfigurationRefused,
    ConfigurationReloaded,
    /// UDP to Snowflake.
    DatagramRefused,
    /// A connection that the agent passed on was led elsewhere on its way.
    Diverted,
    /// A file of a stage reached a client: where it lies, its size and hash, and the statement that asked for it.
    FileDownloaded,
    /// A client put a file into a stage.
    FileUploaded,
    /// The address is Snowflake's, the name asked for is not.
    ForeignName,
    /// A client broke off the TLS handshake: as a rule it does not trust the internal CA.
    HandshakeFailed,
    /// `Host` or `:authority` differs from the name of the TLS handshake.
    HostMismatch,
    /// The journal was damaged, and what could be read of it was kept; [`Salvage`](super::Salvage) is its detail.
    JournalSalvaged,
    LoginRefused,
    /// Not HTTP, or a body that is not what the operation needs.
    MalformedRequest,
    /// TLS with a Snowflake name to an address that was not known: dropped, and the address learnt.
    NameGuarded,
    /// A connection that the kernel part knows nothing about.
    NoFlow,
    /// Bytes that are not TLS, or a hello without a name.
    NotTls,
    /// A connection to Snowflake that was older than the agent, or than what it knew of the address, was ended.
    OldConnection,
    /// A packet of a covered socket to Snowflake that was not redirected.
    PacketDropped,
    /// A request or an answer could not be kept as payload, and was refused.
    PayloadNotKept,
    /// Somebody has read payloads: who, and which.
    PayloadsRead,
    /// A packet to Snowflake that is not the agent's, on its way out of the host.
    PerimeterDropped,
    /// A raw or packet socket in a container.
    RawSocketRefused,
    /// A SIEM sink refuses a record for good: which, and why. It stays in the journal.
    RecordGivenUp,
    /// Records have left the journal; [`Removal`](super::Removal) is its detail.
    RecordsRemoved,
    /// A body or header beyond the limit.
    RequestTooLarge,
    SessionClosed,
    /// A session token that is unknown, expired, or was given to another workload.
    SessionRefused,
    /// A workload wanted more than its share of connections or of memory for requests.
    ShareUsedUp,
    /// A file did not get from or to a stage, or not whole.
    TransferFailed,
    /// A way through a proxy to a Snowflake name.
    TunnelRefused,
    UnknownOperation,
    /// Snowflake's history has a login of a covered user that no agent made; its detail is JSON.
    UnrecordedLogin,
    /// Snowflake's history has a statement of a covered user that the trail lacks; its detail is JSON.
    UnrecordedStatement,
    /// Snowflake could not be reached, or its certificate is not valid.
    UpstreamFailed,
}

/// The time of the system's clock, in microseconds since the Unix epoch.
pub fn now() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    }
}

/// A time in microseconds since the Unix epoch as ISO 8601, UTC.
pub fn iso_time(time: i64) -> String {
    // The last second of the year 9999: a time is text from outside.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let since = Duration::from_micros(u64::try_from(time).unwrap_or_default()).min(LAST);
    humantime::format_rfc3339_micros(UNIX_EPOCH + since).to_string()
}

impl Approval {
    /// What was ruled now; by nobody where the caller is empty.
    pub fn new(statement: Uuid, ruling: Ruling, approver: &Caller, reason: String) -> Self {
        Self {
            statement,
            time: now(),
            ruling,
            approver_issuer: approver.issuer.clone(),
            approver: approver.subject.clone(),
            reason,
        }
    }
}

impl Event {
    /// Something that happened now and concerns nobody in particular yet.
    pub fn new(kind: EventKind, detail: String) -> Self {
        Self {
            id: Uuid::now_v7(),
            time: now(),
            kind,
            workload: None,
            caller: None,
            account: String::new(),
            detail,
        }
    }
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Hold => "hold",
        }
    }
}

impl Ruling {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl OutcomeStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Succeeded => "succeeded",
            Self::Unknown => "unknown",
        }
    }
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentSilent => "agent_silent",
            Self::AgentStarted => "agent_started",
            Self::AgentStopped => "agent_stopped",
            Self::ApprovalRefused => "approval_refused",
            Self::ConfigurationRefused => "configuration_refused",
            Self::ConfigurationReloaded => "configuration_reloaded",
            Self::DatagramRefused => "datagram_refused",
            Self::Diverted => "diverted",
            Self::FileDownloaded => "file_downloaded",
            Self::FileUploaded => "file_uploaded",
            Self::ForeignName => "foreign_name",
            Self::HandshakeFailed => "handshake_failed",
            Self::HostMismatch => "host_mismatch",
            Self::JournalSalvaged => "journal_salvaged",
            Self::LoginRefused => "login_refused",
            Self::MalformedRequest => "malformed_request",
            Self::NameGuarded => "name_guarded",
            Self::NoFlow => "no_flow",
            Self::NotTls => "not_tls",
            Self::OldConnection => "old_connection",
            Self::PacketDropped => "packet_dropped",
            Self::PayloadNotKept => "payload_not_kept",
            Self::PayloadsRead => "payloads_read",
            Self::PerimeterDropped => "perimeter_dropped",
            Self::RawSocketRefused => "raw_socket_refused",
            Self::RecordGivenUp => "record_given_up",
            Self::RecordsRemoved => "records_removed",
            Self::RequestTooLarge => "request_too_large",
            Self::SessionClosed => "session_closed",
            Self::SessionRefused => "session_refused",
            Self::ShareUsedUp => "share_used_up",
            Self::TransferFailed => "transfer_failed",
            Self::TunnelRefused => "tunnel_refused",
            Self::UnknownOperation => "unknown_operation",
            Self::UnrecordedLogin => "unrecorded_login",
            Self::UnrecordedStatement => "unrecorded_statement",
            Self::UpstreamFailed => "upstream_failed",
        }
    }
}

impl From<Session> for Record {
    fn from(session: Session) -> Self {
        Self::Session(session)
    }
}

impl From<Statement> for Record {
    fn from(statement: Statement) -> Self {
        Self::Statement(statement)
    }
}

impl From<Approval> for Record {
    fn from(approval: Approval) -> Self {
        Self::Approval(approval)
    }
}

impl From<Outcome> for Record {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}

impl From<Event> for Record {
    fn from(event: Event) -> Self {
        Self::Event(event)
    }
}

impl From<Running> for Record {
    fn from(running: Running) -> Self {
        Self::Running(running)
    }
}

impl From<Checkpoint> for Record {
    fn from(checkpoint: Checkpoint) -> Self {
        Self::Checkpoint(checkpoint)
    }
}

impl From<Payload> for Record {
    fn from(payload: Payload) -> Self {
        Self::Payload(payload)
    }
}

impl Record {
    /// Roughly how many bytes of memory it takes.
    pub(super) fn size(&self) -> usize {
        const FIXED: usize = 512;
        let texts =
            |texts: &[String]| texts.iter().map(|text| text.len() + size_of::<String>()).sum::<usize>();
        let workload =
            |workload: &Workload| workload.cgroup.len() + workload.comm.len() + workload.executable.len();
        let caller = |caller: &Caller| caller.issuer.len() + caller.subject.len() + texts(&caller.groups);
        FIXED
            + match self {
                Self::Session(session) => {
                    workload(&session.workload)
                        + caller(&session.caller)
                        + session.rule.len()
                        + session.client.len()
                        + session.snowflake_session.len()
                }
                Self::Statement(statement) => {
                    workload(&statement.workload)
                        + caller(&statement.caller)
                        + statement.request_id.len()
                        + statement.sql.len()
                        + texts(&statement.actions)
                        + texts(&statement.objects)
                        + texts(&statement.features)
                        + statement.policy.len()
                }
                Self::Approval(approval) => {
                    approval.approver_issuer.len() + approval.approver.len() + approval.reason.len()
                }
                Self::Outcome(outcome) => outcome.query_id.len() + outcome.message.len(),
                Self::Event(event) => {
                    event.workload.as_ref().map_or(0, workload)
                        + event.caller.as_ref().map_or(0, caller)
                        + event.detail.len()
                }
                Self::Running(running) => running.query_id.len(),
                Self::Payload(payload) => size_of_val(payload.places.as_slice()),
                Self::Checkpoint(checkpoint) => checkpoint.digests.len(),
            }
    }
}
