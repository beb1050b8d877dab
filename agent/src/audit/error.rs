//! Errors of the audit folder.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use crate::storage::BucketError;

/// Why the trail could not be written or read. Cheap to clone: one failure answers every append that waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    #[error("ClickHouse at {url}: {cause}")]
    ClickHouse { url: String, cause: String },
    #[error("a batch for ClickHouse must have at least one row")]
    ClickHouseBatch,
    #[error(
        "the tables in the ClickHouse database {database} are not of the kind that `audit.clickhouse.cluster` asks for, one server or a cluster: give the other kind a database of its own, by `audit.clickhouse.database`"
    )]
    ClickHouseCluster { database: String },
    #[error(
        "the name `{0}` of a database or cluster of ClickHouse is refused: use letters, digits and underscores, at most 64"
    )]
    ClickHouseDatabase(String),
    #[error(
        "ClickHouse has another record {found} of this journal than the journal itself: this is a copy of it from an earlier time, as in a snapshot that was restored, and gives its numbers to other records. Nothing goes to ClickHouse. Stop the agent, run `snowfence audit salvage --begin-anew`, which sets this journal aside and begins a new one, and start the agent"
    )]
    ClickHouseAhead { found: i64 },
    #[error(
        "ClickHouse has schema {found}, this program knows up to {known}: update it on this node; until then the journal keeps the records"
    )]
    ClickHouseNewer { found: u32, known: u32 },
    #[error(
        "ClickHouse has schema {found}, this program needs {known}: run `snowfence schema apply`, or set `audit.clickhouse.apply_schema`"
    )]
    ClickHouseOlder { found: u32, known: u32 },
    #[error("TLS to ClickHouse cannot be set up: {0}")]
    ClickHouseTls(Arc<crate::tls::TlsError>),
    #[error("the ClickHouse URL {url} is wrong: {problem}")]
    ClickHouseUrl { url: String, problem: &'static str },
    #[error("the journal is closed: the agent is ending")]
    Closed,
    #[error(
        "the journal {path} is damaged ({detail}): the agent's next start, or `snowfence audit salvage`, keeps what can be read, says what is missing, and sets the damaged file aside"
    )]
    Corrupt { path: PathBuf, detail: String },
    #[error("cannot use {path} for the journal: {source}")]
    Directory { path: PathBuf, source: Arc<io::Error> },
    #[error("a record with the identifier {0} is already in the journal")]
    Duplicate(Uuid),
    #[error(
        "the journal is full ({limit} bytes): statements are refused until its records can be delivered and removed, or `audit.journal.max_mebibytes` is raised"
    )]
    Full { limit: u64 },
    #[error("the query was stopped")]
    Interrupted,
    #[error("another agent has the journal {0} open: stop it first, or give this one a state_dir of its own")]
    Locked(PathBuf),
    #[error(
        "the session {0} has too many statements to be loaded at once: `snowfence audit show` shows each"
    )]
    LongSession(Uuid),
    #[error("the copies of checkpoints: {0}")]
    Copies(Arc<BucketError>),
    #[error("{0} is no copy of checkpoints of this journal")]
    ForeignCopy(String),
    #[error("record {0} is not what this program records")]
    Record(i64),
    #[error("no journal at {0}: is the agent's state_dir right, and has the agent run once?")]
    Missing(PathBuf),
    #[error(
        "the journal {path} has schema {found}, this program knows up to {known}: use the version that wrote it, or a newer one"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "{0} is not a journal of this program, or its beginning is destroyed: if it was one, `snowfence audit salvage --begin-anew` sets it aside and begins a new one"
    )]
    NotAJournal(PathBuf),
    #[error(transparent)]
    Spool(#[from] super::payload::SpoolError),
    #[error("the query is refused: only SELECT is possible on the journal")]
    NotReadOnly,
    #[error("cannot read the journal: {0}{hint}", hint = hint(.0))]
    Read(Arc<rusqlite::Error>),
    #[error("the query is wrong: {0}")]
    Sql(String),
    #[error("the agent that has taken over cannot write the journal: {0}")]
    Successor(String),
    #[error("cannot deliver to the SIEM sink `{sink}`: {cause}")]
    Siem { sink: String, cause: String },
    #[error("cannot start the journal's thread: {0}; is the limit of processes or memory too low?")]
    Thread(Arc<io::Error>),
    #[error("the query took longer than {0} seconds: narrow it down, for example by time or with LIMIT")]
    TimedOut(u64),
    #[error(
        "the journal {path} is damaged, and cannot be salvaged: {why}. Nothing was changed. `snowfence audit salvage --begin-anew` sets it aside, for recovery by other means, and begins a new one"
    )]
    Unsalvageable { path: PathBuf, why: String },
    #[error("cannot write the journal: {0}; statements are refused until it can be written")]
    Write(Arc<rusqlite::Error>),
}

impl AuditError {
    /// The journal cannot be read.
    pub(super) fn read(error: rusqlite::Error) -> Self {
        Self::Read(Arc::new(error))
    }

    /// The journal could not be written.
    pub(super) fn write(error: rusqlite::Error) -> Self {
        Self::Write(Arc::new(error))
    }
}

/// What helps against damage.
fn hint(error: &rusqlite::Error) -> &'static str {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
            ": it is damaged; the agent's next start keeps what can be read, and says what is missing"
        }
        _ => "",
    }
}
