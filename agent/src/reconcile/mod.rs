//! Whether the trail is complete: Snowflake's own history of statements and logins, held against it by query id.
//!
//! What Snowflake ran for a covered user and the trail lacks came by a way around the agents. ARCHITECTURE.md
//! ("Reconciliation") says what this can see and what it cannot.

#![forbid(unsafe_code)]

mod history;
mod matching;
mod metrics;
mod reconciler;

use serde::{Deserialize, Serialize};

pub use metrics::Counts;
pub use reconciler::Reconciler;

/// What somebody wants to have compared. Times in microseconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Default: a day ago.
    pub since: Option<i64>,
    pub until: Option<i64>,
    /// One of the covered users. Default: all.
    pub user: Option<String>,
}

/// What a comparison found for an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub account: String,
    /// Why it could not be compared; empty if it could.
    pub error: String,
    /// What was compared: it may be less than was asked for.
    pub from: i64,
    pub until: i64,
    /// The trail begins later than was asked for.
    pub begins_later: bool,
    /// What Snowflake ran.
    pub statements: u64,
    /// What of it the trail lacks.
    pub missing: u64,
    pub logins: u64,
    /// Logins that no agent made.
    pub strange_logins: u64,
    /// The first of each, no more than [`LISTED`].
    pub findings: Vec<Finding>,
    /// How many of them were not found before.
    pub new: u64,
    /// Queries of the trail that Snowflake's history lacks, no more than [`LISTED`].
    pub not_in_history: Vec<String>,
}

/// Findings that are listed.
pub const LISTED: usize = 1000;

/// What the trail lacks. It is the detail of an event, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    UnrecordedStatement(UnrecordedStatement),
    UnrecordedLogin(UnrecordedLogin),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnrecordedStatement {
    pub query_id: String,
    pub user: String,
    pub role: String,
    /// Snowflake's number of the session.
    pub session: String,
    /// When it began: ISO 8601, UTC.
    pub started: String,
    pub status: String,
    /// The first part.
    pub text: String,
    /// From where; empty where nothing tells.
    pub address: String,
    pub client: String,
    /// Address and client are those of the user's last strange login before it, as the history does not tell more.
    pub by_time: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnrecordedLogin {
    pub event_id: String,
    pub user: String,
    /// ISO 8601, UTC.
    pub time: String,
    pub address: String,
    pub client: String,
    /// By what the user proved who it is.
    pub factor: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("{0} is none of the covered users")]
    NotCovered(String),
    #[error(
        "there is nothing to compare: what ended in the last {settle} min is not judged yet, and the trail, or Snowflake's history, does not reach further back than what was asked for"
    )]
    Nothing { settle: u64 },
    #[error(
        "{0} ran more than 10,000 statements, or logged in as often, in one millisecond: nobody can list them"
    )]
    TooMany(String),
    #[error(
        "Snowflake shows no statement of {user}, but the trail has {known} of the same time: the role of {asker} may not see them (MONITOR on the user's warehouses, or the view QUERY_HISTORY)"
    )]
    Blind { user: String, known: usize, asker: String },
    #[error("Snowflake's history has a row that cannot be understood: {0}")]
    Row(#[from] crate::snowflake::Malformed),
    #[error(transparent)]
    Own(#[from] crate::proxy::OwnError),
    #[error(transparent)]
    Audit(#[from] crate::audit::AuditError),
}
