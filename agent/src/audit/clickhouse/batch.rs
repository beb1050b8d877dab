//! A range of the journal as rows for ClickHouse.

use ::clickhouse::Row;
use rusqlite::Connection;
use rusqlite::types::{FromSql, Type};
use serde::Serialize;
use uuid::Uuid;

use super::super::schema;
use super::super::store::read_list;
use super::AuditError;

/// ClickHouse's `UUID` on the wire.
type UuidPair = (u64, u64);

/// All records in a range of `seq`.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub sessions: Vec<SessionRow>,
    pub statements: Vec<StatementRow>,
    pub outcomes: Vec<OutcomeRow>,
    pub events: Vec<EventRow>,
    pub payloads: Vec<PayloadRow>,
    pub running: Vec<RunningRow>,
    pub checkpoints: Vec<CheckpointRow>,
}

#[derive(Debug, Row, Serialize)]
pub(super) struct SessionRow {
    node: String,
    journal: UuidPair,
    seq: u64,
    time: i64,
    cgroup: String,
    pid: u32,
    uid: u32,
    comm: String,
    executable: String,
    issuer: String,
    subject: String,
    groups: Vec<String>,
    id: UuidPair,
    account: String,
    rule: String,
    user: String,
    role: String,
    snowflake_session: String,
    client: String,
}

#[derive(Debug, Row, Serialize)]
pub(super) struct StatementRow {
    node: String,
    journal: UuidPair,
    seq: u64,
    time: i64,
    cgroup: String,
    pid: u32,
    uid: u32,
    comm: String,
    executable: String,
    issuer: String,
    subject: String,
    groups: Vec<String>,
    id: UuidPair,
    session: UuidPair,
    request_id: String,
    account: String,
    user: String,
    role: String,
    sql: String,
    kind: String,
    effect: String,
    actions: Vec<String>,
    objects: Vec<String>,
    features: Vec<String>,
    verdict: String,
    policy: String,
    describe_only: bool,
    binds: u32,
    previous: u64,
}

#[derive(Debug, Row, Serialize)]
pub(super) struct OutcomeRow {
    node: String,
    journal: UuidPair,
    seq: u64,
    time: i64,
    statement: UuidPair,
    status: String,
    query_id: String,
    rows: Option<u64>,
    code: String,
    message: String,
    duration_us: u64,
    response_bytes: u64,
}

#[derive(Debug, Row, Serialize)]
pub(super) struct EventRow {
    node: String,
    journal: UuidPair,
    seq: u64,
    time: i64,
    id: UuidPair,
    kind: String,
    cgroup: Option<String>,
    pid: Option<u32>,
    uid: Option<u32>,
    comm: Option<String>,
    executable: Option<String>,
    issuer: Option<String>,
    subject: Option<String>,
    groups: Vec<String>,
    account: String,
    detail: String,
}

#[derive(Debug, Row, Serialize)]
pub(super) struct RunningRow {
    node: String,
    journal: UuidPair,
    seq: u64,
    time: i64,
    statement: UuidPair,
    query_id: String,
}

#[derive(Debug, Row, Serialize)]
pub(super) struct PayloadRow {
    node: String,
    journal: UuidPair,
    seq: u64,
    time: i64,
    id: UuidPair,
    session: UuidPair,
    statement: UuidPair,
    query_id: String,
    operation: String,
    request_bytes: u64,
    answer_bytes: u64,
    sealed_bytes: u64,
    duration_us: u64,
    ending: String,
    run: UuidPair,
    places: String,
    digest: String,
    previous: u64,
}

#[derive(Debug, Row, Serialize)]
pub(super) struct CheckpointRow {
    node: String,
    journal: UuidPair,
    seq: u64,
    time: i64,
    number: u64,
    first_seq: u64,
    last_seq: u64,
    root: String,
    previous: String,
    key: String,
    signature: String,
    digests: String,
}

/// The last `seq` of the batch that begins after `after`: at most `rows` rows and about `bytes` bytes, but at least one row.
pub(super) fn choose_end(
    connection: &Connection,
    after: i64,
    rows: u32,
    bytes: u64,
) -> Result<i64, AuditError> {
    choose(connection, after, rows, bytes).map_err(AuditError::read)
}

impl Batch {
    /// Reads what is in (`after`, `end`].
    pub(super) fn read(
        connection: &Connection,
        journal: Uuid,
        after: i64,
        end: i64,
    ) -> Result<Self, AuditError> {
        Self::read_rows(connection, journal.as_u64_pair(), after, end).map_err(AuditError::read)
    }

    fn read_rows(connection: &Connection, journal: UuidPair, after: i64, end: i64) -> rusqlite::Result<Self> {
        let range = Range { connection, after, end };
        Ok(Self {
            sessions: range.rows("sessions", |row| {
                Ok(SessionRow {
                    node: row.get("node")?,
                    journal,
                    seq: row.count("seq")?,
                    time: row.get("time")?,
                    cgroup: row.get("cgroup")?,
                    pid: row.get("pid")?,
                    uid: row.get("uid")?,
                    comm: row.get("comm")?,
                    executable: row.get("executable")?,
                    issuer: row.get("issuer")?,
                    subject: row.get("subject")?,
                    groups: row.list("groups")?,
                    id: row.uuid("id")?,
                    account: row.get("account")?,
                    rule: row.get("rule")?,
                    user: row.get("user")?,
                    role: row.get("role")?,
                    snowflake_session: row.get("snowflake_session")?,
                    client: row.get("client")?,
                })
            })?,
            statements: range.rows("statements", |row| {
                Ok(StatementRow {
                    node: row.get("node")?,
                    journal,
                    seq: row.count("seq")?,
                    time: row.get("time")?,
                    cgroup: row.get("cgroup")?,
                    pid: row.get("pid")?,
                    uid: row.get("uid")?,
                    comm: row.get("comm")?,
                    executable: row.get("executable")?,
                    issuer: row.get("issuer")?,
                    subject: row.get("subject")?,
                    groups: row.list("groups")?,
                    id: row.uuid("id")?,
                    session: row.uuid("session")?,
                    request_id: row.get("request_id")?,
                    account: row.get("account")?,
                    user: row.get("user")?,
                    role: row.get("role")?,
                    sql: row.get("sql")?,
                    kind: row.get("kind")?,
                    effect: row.get("effect")?,
                    actions: row.list("actions")?,
                    objects: row.list("objects")?,
                    features: row.list("features")?,
                    verdict: row.get("verdict")?,
                    policy: row.get("policy")?,
                    describe_only: row.get("describe_only")?,
                    binds: row.get("binds")?,
                    previous: row.count("previous")?,
                })
            })?,
            outcomes: range.rows("outcomes", |row| {
                Ok(OutcomeRow {
                    node: row.get("node")?,
                    journal,
                    seq: row.count("seq")?,
                    time: row.get("time")?,
                    statement: row.uuid("statement")?,
                    status: row.get("status")?,
                    query_id: row.get("query_id")?,
                    rows: row.optional_count("rows")?,
                    code: row.get("code")?,
                    message: row.get("message")?,
                    duration_us: row.count("duration_us")?,
                    response_bytes: row.count("response_bytes")?,
                })
            })?,
            events: range.rows("events", |row| {
                Ok(EventRow {
                    node: row.get("node")?,
                    journal,
                    seq: row.count("seq")?,
                    time: row.get("time")?,
                    id: row.uuid("id")?,
                    kind: row.get("kind")?,
                    cgroup: row.get("cgroup")?,
                    pid: row.get("pid")?,
                    uid: row.get("uid")?,
                    comm: row.get("comm")?,
                    executable: row.get("executable")?,
                    issuer: row.get("issuer")?,
                    subject: row.get("subject")?,
                    groups: row.list("groups")?,
                    account: row.get("account")?,
                    detail: row.get("detail")?,
                })
            })?,
            running: range.rows("running", |row| {
                Ok(RunningRow {
                    node: row.get("node")?,
                    journal,
                    seq: row.count("seq")?,
                    time: row.get("time")?,
                    statement: row.uuid("statement")?,
                    query_id: row.get("query_id")?,
                })
            })?,
            payloads: range.rows("payloads", |row| {
                Ok(PayloadRow {
                    node: row.get("node")?,
                    journal,
                    seq: row.count("seq")?,
                    time: row.get("time")?,
                    id: row.uuid("id")?,
                    session: row.uuid("session")?,
                    statement: row.uuid("statement")?,
                    query_id: row.get("query_id")?,
                    operation: row.get("operation")?,
                    request_bytes: row.count("request_bytes")?,
                    answer_bytes: row.count("answer_bytes")?,
                    sealed_bytes: row.count("sealed_bytes")?,
                    duration_us: row.count("duration_us")?,
                    ending: row.get("ending")?,
                    run: row.uuid("run")?,
                    places: row.get("places")?,
                    digest: row.get("digest")?,
                    previous: row.count("previous")?,
                })
            })?,
            checkpoints: range.rows("checkpoints", |row| {
                Ok(CheckpointRow {
                    node: row.get("node")?,
                    journal,
                    seq: row.count("seq")?,
                    time: row.get("time")?,
                    number: row.count("number")?,
                    first_seq: row.count("first_seq")?,
                    last_seq: row.count("last_seq")?,
                    root: row.get("root")?,
                    previous: row.get("previous")?,
                    key: row.get("key")?,
                    signature: row.get("signature")?,
                    digests: row.get("digests")?,
                })
            })?,
        })
    }
}

struct Range<'c> {
    connection: &'c Connection,
    after: i64,
    end: i64,
}

impl Range<'_> {
    fn rows<T>(
        &self,
        table: &str,
        mut row: impl FnMut(JournalRow<'_, '_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        let sql = format!("SELECT * FROM {table} WHERE seq > ?1 AND seq <= ?2 ORDER BY seq");
        let mut query = self.connection.prepare_cached(&sql)?;
        query.query_map([self.after, self.end], |found| row(JournalRow(found)))?.collect()
    }
}

struct JournalRow<'r, 's>(&'r rusqlite::Row<'s>);

impl JournalRow<'_, '_> {
    fn get<T: FromSql>(&self, column: &str) -> rusqlite::Result<T> {
        self.0.get(column)
    }

    fn count(&self, column: &str) -> rusqlite::Result<u64> {
        u64::try_from(self.get::<i64>(column)?).map_err(not_understood)
    }

    fn optional_count(&self, column: &str) -> rusqlite::Result<Option<u64>> {
        self.get::<Option<i64>>(column)?
            .map(|number| u64::try_from(number).map_err(not_understood))
            .transpose()
    }

    fn uuid(&self, column: &str) -> rusqlite::Result<UuidPair> {
        let text: String = self.get(column)?;
        Uuid::parse_str(&text).map(|id| id.as_u64_pair()).map_err(not_understood)
    }

    fn list(&self, column: &str) -> rusqlite::Result<Vec<String>> {
        read_list(self.0, column)
    }
}

fn choose(connection: &Connection, after: i64, rows: u32, bytes: u64) -> rusqlite::Result<i64> {
    // What has left the journal is stepped over.
    let Some(first) = schema::first_after(connection, after)? else { return Ok(after) };
    let after = first - 1;
    // 512 stands for what is short in a row. octet_length() reads no more than the row's header.
    let mut query = connection.prepare_cached(
        "SELECT seq, 512 + octet_length(client) + octet_length(groups) FROM sessions WHERE seq > ?1 AND seq <= ?2
         UNION ALL
         SELECT seq, 512 + octet_length(sql) + octet_length(actions) + octet_length(objects) + octet_length(features)
                     + octet_length(groups) + octet_length(request_id)
         FROM statements WHERE seq > ?1 AND seq <= ?2
         UNION ALL
         SELECT seq, 512 + octet_length(message) FROM outcomes WHERE seq > ?1 AND seq <= ?2
         UNION ALL
         SELECT seq, 512 + octet_length(detail) FROM events WHERE seq > ?1 AND seq <= ?2
         UNION ALL
         SELECT seq, 512 FROM running WHERE seq > ?1 AND seq <= ?2
         UNION ALL
         SELECT seq, 512 + octet_length(places) FROM payloads WHERE seq > ?1 AND seq <= ?2
         UNION ALL
         SELECT seq, 512 + octet_length(digests) FROM checkpoints WHERE seq > ?1 AND seq <= ?2
         ORDER BY 1",
    )?;
    let mut found = query.query([after, after.saturating_add(i64::from(rows))])?;
    let mut end = after;
    let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
    let mut sum = 0_i64;
    while let Some(row) = found.next()? {
        sum = sum.saturating_add(row.get(1)?);
        if sum > limit && end > after {
            break;
        }
        end = row.get(0)?;
    }
    Ok(end)
}

fn not_understood(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::samples::event;
    use crate::audit::{EventKind, Journal};

    #[tokio::test]
    async fn what_has_left_the_journal_is_stepped_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        let events = (0..9).map(|_| event(EventKind::NoFlow).into()).collect();
        journal.append(events).await.unwrap();
        journal.remove(7).await.unwrap();
        let connection = schema::open_read_only(&path).unwrap();
        assert_eq!(choose_end(&connection, 0, 3, u64::MAX).unwrap(), 9);
        assert_eq!(choose_end(&connection, 9, 3, u64::MAX).unwrap(), 9, "there is nothing after it");
    }
}
