//! Rows of the journal, written by one connection.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;
use uuid::Uuid;

use super::chain::Checkpoint;
use super::payload::Payload;
use super::{
    Approval, AuditError, Caller, Event, Outcome, Record, Running, Session, Statement, Workload, now, schema,
};

/// Something to write.
pub(super) enum Write {
    Records(Vec<Record>),
    /// How far a sink is.
    Cursor {
        sink: String,
        cursor: Cursor,
    },
    /// Records up to this one go.
    Remove {
        through: i64,
    },
    /// An outcome for those of these statements that have none.
    Settle {
        statements: Vec<Uuid>,
        /// Why it is not known.
        message: &'static str,
    },
}

impl Write {
    /// Their agent ended before it knew.
    pub(super) fn settle(statements: Vec<Uuid>) -> Self {
        Self::Settle { statements, message: "the agent ended before the statement did" }
    }

    /// It is a session's or a statement's begin.
    pub(super) fn begins(&self) -> bool {
        let begins = |record: &Record| matches!(record, Record::Session(_) | Record::Statement(_));
        matches!(self, Self::Records(records) if records.iter().any(begins))
    }
}

/// All up to `delivered` is in the sink, and what is in (`delivered`, `sending`] may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub delivered: i64,
    pub sending: i64,
}

pub(super) struct Store {
    connection: Connection,
    node: String,
    latest: Latest,
}

/// The last record of each session that was written to of late.
type Latest = HashMap<Uuid, i64>;

/// How many sessions are remembered; of others, the journal knows.
const LATEST: usize = 10_000;

impl Store {
    pub(super) fn new(connection: Connection, node: String) -> Self {
        Self { connection, node, latest: Latest::new() }
    }

    /// Commits all of `writes` or nothing, durably. Returns the last `seq` of the journal.
    pub(super) fn commit<'a>(&mut self, writes: impl Iterator<Item = &'a Write>) -> Result<i64, AuditError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| write_error(error, Uuid::nil))?;
        let first = schema::last_seq(&transaction).map_err(|error| write_error(error, Uuid::nil))?;
        let mut last = first;
        let mut links = Links { transaction: &transaction, known: &self.latest, new: Latest::new() };
        for write in writes {
            match write {
                Write::Records(records) => {
                    for record in records {
                        last += 1;
                        insert(&mut links, &self.node, last, record)
                            .map_err(|error| write_error(error, || identifier(record)))?;
                    }
                }
                Write::Cursor { sink, cursor } => save_cursor(&transaction, sink, *cursor)?,
                Write::Remove { through } => {
                    for table in schema::RECORDS {
                        transaction
                            .prepare_cached(&format!("DELETE FROM {table} WHERE seq <= ?1"))
                            .and_then(|mut delete| delete.execute([through]))
                            .map_err(|error| write_error(error, Uuid::nil))?;
                    }
                }
                Write::Settle { statements, message } => {
                    for statement in statements {
                        let settled = settle(&transaction, &self.node, last + 1, *statement, message)
                            .map_err(|error| write_error(error, || *statement))?;
                        last += i64::from(settled > 0);
                    }
                }
            }
        }
        if last != first {
            save_last_seq(&transaction, last)?;
        }
        let latest = links.new;
        transaction.commit().map_err(|error| write_error(error, Uuid::nil))?;
        if self.latest.len() + latest.len() > LATEST {
            self.latest.clear();
        }
        self.latest.extend(latest);
        Ok(last)
    }

    /// The statements that have no outcome.
    pub(super) fn open_statements(&self) -> Result<Vec<Uuid>, AuditError> {
        let mut query = self
            .connection
            .prepare("SELECT id FROM statements s WHERE NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.statement = s.id) ORDER BY seq")
            .map_err(AuditError::read)?;
        let ids = query.query_map([], |row| row.get::<_, String>(0)).map_err(AuditError::read)?;
        let ids: Vec<String> = ids.collect::<Result<_, _>>().map_err(AuditError::read)?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Empties the log beside the file.
    pub(super) fn begin_log_anew(&self) -> Result<(), AuditError> {
        let emptied = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        emptied.map_err(AuditError::read)
    }

    /// Bytes that records take in the file.
    pub(super) fn bytes(&self) -> Result<u64, AuditError> {
        let number = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let used = || Ok((number("page_count")? - number("freelist_count")?) * number("page_size")?);
        let used = used().map_err(AuditError::read)?;
        Ok(u64::try_from(used).unwrap_or_default())
    }

    /// How often the journal was damaged.
    pub(super) fn salvages(&self) -> Result<u64, AuditError> {
        let sql = "SELECT count(*) FROM events WHERE kind = 'journal_salvaged'";
        let count =
            self.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(AuditError::read)?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// The last `seq` of the journal.
    pub(super) fn last_seq(&self) -> Result<i64, AuditError> {
        schema::last_seq(&self.connection).map_err(AuditError::read)
    }
}

/// Gives a statement without an outcome one: that it is not known. What was neither allowed nor approved was not forwarded.
/// Returns how many rows came of it.
fn settle(
    transaction: &Transaction<'_>,
    node: &str,
    seq: i64,
    statement: Uuid,
    message: &str,
) -> rusqlite::Result<usize> {
    transaction
        .prepare_cached(
            "INSERT INTO outcomes (seq, node, statement, time, status, query_id, rows, code, message,
                                   duration_us, response_bytes)
             SELECT ?1, ?2, s.id, ?3, iif(s.verdict = 'allow' OR a.ruling = 'approved', 'unknown', 'refused'),
                    coalesce(r.query_id, ''), NULL, '', ?5, 0, 0
             FROM statements s LEFT JOIN running r ON r.statement = s.id
                  LEFT JOIN approvals a ON a.statement = s.id
             WHERE s.id = ?4 AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.statement = s.id)",
        )?
        .execute(params![seq, node, now(), statement.to_string(), message])
}

/// How far a sink is; a sink that is new starts at the beginning.
pub(super) fn cursor(connection: &Connection, sink: &str) -> Result<Cursor, AuditError> {
    let mut query = connection
        .prepare_cached("SELECT delivered, sending FROM cursors WHERE sink = ?1")
        .map_err(AuditError::read)?;
    match query.query_row([sink], |row| Ok(Cursor { delivered: row.get(0)?, sending: row.get(1)? })) {
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(Cursor::default()),
        answer => answer.map_err(AuditError::read),
    }
}

/// The last record that a sink has.
pub(super) fn delivered(connection: &Connection, sink: &str) -> rusqlite::Result<i64> {
    let mut query =
        connection.prepare_cached("SELECT coalesce(max(delivered), 0) FROM cursors WHERE sink = ?1")?;
    query.query_row([sink], |row| row.get(0))
}

/// A list as [`Store`] writes it; nothing where there is none.
pub(super) fn read_list(row: &Row<'_>, column: &str) -> rusqlite::Result<Vec<String>> {
    let Some(text) = row.get::<_, Option<String>>(column)? else { return Ok(Vec::new()) };
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

fn save_last_seq(transaction: &Transaction<'_>, last: i64) -> Result<(), AuditError> {
    transaction
        .prepare_cached("UPDATE journal SET last_seq = ?1")
        .and_then(|mut update| update.execute([last]))
        .map_err(|error| write_error(error, Uuid::nil))?;
    Ok(())
}

fn save_cursor(transaction: &Transaction<'_>, sink: &str, cursor: Cursor) -> Result<(), AuditError> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO cursors (sink, delivered, sending) VALUES (?1, ?2, ?3)")
        .and_then(|mut insert| insert.execute(params![sink, cursor.delivered, cursor.sending]))
        .map_err(|error| write_error(error, Uuid::nil))?;
    Ok(())
}

/// Links the records of a session: each names the one before it, so that none can be left out of a session unnoticed.
struct Links<'t> {
    transaction: &'t Transaction<'t>,
    /// Before this transaction.
    known: &'t Latest,
    /// In this transaction.
    new: Latest,
}

impl Links<'_> {
    /// The record of a session before `seq`, which is its last from now on; 0 for none.
    fn next(&mut self, session: Uuid, seq: i64) -> rusqlite::Result<i64> {
        let known = self.new.insert(session, seq).or_else(|| self.known.get(&session).copied());
        let look_up = || {
            self.transaction
                .prepare_cached(
                    "SELECT coalesce(max(seq), 0) FROM (
                         SELECT max(seq) AS seq FROM sessions WHERE id = ?1
                         UNION ALL SELECT max(seq) FROM statements WHERE session = ?1
                         UNION ALL SELECT max(seq) FROM payloads WHERE session = ?1)",
                )?
                .query_row([session.to_string()], |row| row.get(0))
        };
        known.map_or_else(look_up, Ok)
    }
}

fn insert(links: &mut Links<'_>, node: &str, seq: i64, record: &Record) -> rusqlite::Result<()> {
    let transaction = links.transaction;
    let mut previous = |session| links.next(session, seq);
    match record {
        Record::Session(session) => {
            previous(session.id)?;
            insert_session(transaction, node, seq, session)
        }
        Record::Statement(statement) => {
            let previous = previous(statement.session)?;
            insert_statement(transaction, node, seq, statement, previous)
        }
        Record::Approval(approval) => insert_approval(transaction, node, seq, approval),
        Record::Outcome(outcome) => insert_outcome(transaction, node, seq, outcome),
        Record::Event(event) => insert_event(transaction, node, seq, event),
        Record::Payload(payload) => {
            let previous = previous(payload.session)?;
            insert_payload(transaction, node, seq, payload, previous)
        }
        Record::Running(running) => insert_running(transaction, node, seq, running),
        Record::Checkpoint(checkpoint) => insert_checkpoint(transaction, seq, checkpoint),
    }
}

fn insert_session(
    transaction: &Transaction<'_>,
    node: &str,
    seq: i64,
    session: &Session,
) -> rusqlite::Result<()> {
    let Session { id, time, workload, caller, account, rule, user, role, snowflake_session, client } =
        session;
    let Workload { cgroup, pid, uid, comm, executable } = workload;
    let Caller { issuer, subject, groups } = caller;
    transaction
        .prepare_cached(
            "INSERT INTO sessions (seq, node, id, time, cgroup, pid, uid, comm, executable, issuer, subject, groups,
                                   account, rule, user, role, snowflake_session, client)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
        )?
        .execute(params![
            seq,
            node,
            id.to_string(),
            time,
            cgroup,
            pid,
            uid,
            comm,
            executable,
            issuer,
            subject,
            list(groups)?,
            account,
            rule,
            user,
            role,
            snowflake_session,
            client
        ])?;
    Ok(())
}

fn insert_statement(
    transaction: &Transaction<'_>,
    node: &str,
    seq: i64,
    statement: &Statement,
    previous: i64,
) -> rusqlite::Result<()> {
    let Workload { cgroup, pid, uid, comm, executable } = &statement.workload;
    let Caller { issuer, subject, groups } = &statement.caller;
    transaction
        .prepare_cached(
            "INSERT INTO statements (seq, node, id, session, time, request_id, cgroup, pid, uid, comm, executable,
                                     issuer, subject, groups, account, user, role, sql, kind, effect, actions,
                                     objects, features, verdict, policy, describe_only, binds, previous)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
                     ?22, ?23, ?24, ?25, ?26, ?27, ?28)",
        )?
        .execute(params![
            seq,
            node,
            statement.id.to_string(),
            statement.session.to_string(),
            statement.time,
            statement.request_id,
            cgroup,
            pid,
            uid,
            comm,
            executable,
            issuer,
            subject,
            list(groups)?,
            statement.account,
            statement.user,
            statement.role,
            statement.sql,
            statement.kind,
            statement.effect,
            list(&statement.actions)?,
            list(&statement.objects)?,
            list(&statement.features)?,
            statement.verdict.as_str(),
            statement.policy,
            statement.describe_only,
            statement.binds,
            previous
        ])?;
    Ok(())
}

fn insert_approval(
    transaction: &Transaction<'_>,
    node: &str,
    seq: i64,
    approval: &Approval,
) -> rusqlite::Result<()> {
    let Approval { statement, time, ruling, approver_issuer, approver, reason } = approval;
    transaction
        .prepare_cached(
            "INSERT INTO approvals (seq, node, statement, time, ruling, approver_issuer, approver, reason)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            seq,
            node,
            statement.to_string(),
            time,
            ruling.as_str(),
            approver_issuer,
            approver,
            reason
        ])?;
    Ok(())
}

fn insert_outcome(
    transaction: &Transaction<'_>,
    node: &str,
    seq: i64,
    outcome: &Outcome,
) -> rusqlite::Result<()> {
    let Outcome { statement, time, status, query_id, rows, code, message, duration_us, response_bytes } =
        outcome;
    transaction
        .prepare_cached(
            "INSERT INTO outcomes (seq, node, statement, time, status, query_id, rows, code, message, duration_us,
                                   response_bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            seq,
            node,
            statement.to_string(),
            time,
            status.as_str(),
            query_id,
            rows.map(count),
            code,
            message,
            count(*duration_us),
            count(*response_bytes)
        ])?;
    Ok(())
}

fn insert_event(transaction: &Transaction<'_>, node: &str, seq: i64, event: &Event) -> rusqlite::Result<()> {
    let Event { id, time, kind, workload, caller, account, detail } = event;
    let workload = workload.as_ref();
    let caller = caller.as_ref();
    transaction
        .prepare_cached(
            "INSERT INTO events (seq, node, id, time, kind, cgroup, pid, uid, comm, executable, issuer, subject, groups,
                                 account, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .execute(params![
            seq,
            node,
            id.to_string(),
            time,
            kind.as_str(),
            workload.map(|workload| &workload.cgroup),
            workload.map(|workload| workload.pid),
            workload.map(|workload| workload.uid),
            workload.map(|workload| &workload.comm),
            workload.map(|workload| &workload.executable),
            caller.map(|caller| &caller.issuer),
            caller.map(|caller| &caller.subject),
            caller.map(|caller| list(&caller.groups)).transpose()?,
            account,
            detail
        ])?;
    Ok(())
}

fn insert_running(
    transaction: &Transaction<'_>,
    node: &str,
    seq: i64,
    running: &Running,
) -> rusqlite::Result<()> {
    let Running { statement, time, query_id } = running;
    transaction
        .prepare_cached(
            "INSERT INTO running (seq, node, statement, time, query_id) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![seq, node, statement.to_string(), time, query_id])?;
    Ok(())
}

fn insert_payload(
    transaction: &Transaction<'_>,
    node: &str,
    seq: i64,
    payload: &Payload,
    previous: i64,
) -> rusqlite::Result<()> {
    let Payload {
        id,
        session,
        statement,
        query_id,
        time,
        operation,
        request_bytes,
        answer_bytes,
        sealed_bytes,
        duration_us,
        ending,
        run,
        places,
        digest,
    } = payload;
    transaction
        .prepare_cached(
            "INSERT INTO payloads (seq, node, id, session, statement, query_id, time, operation, request_bytes,
                                   answer_bytes, sealed_bytes, duration_us, ending, run, places, digest, previous)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
        )?
        .execute(params![
            seq,
            node,
            id.to_string(),
            session.to_string(),
            statement.to_string(),
            query_id,
            time,
            operation,
            count(*request_bytes),
            count(*answer_bytes),
            count(*sealed_bytes),
            count(*duration_us),
            ending.as_str(),
            run.to_string(),
            list(places)?,
            digest,
            previous
        ])?;
    Ok(())
}

fn insert_checkpoint(
    transaction: &Transaction<'_>,
    seq: i64,
    checkpoint: &Checkpoint,
) -> rusqlite::Result<()> {
    let Checkpoint { node, number, time, first_seq, last_seq, root, previous, key, signature, digests } =
        checkpoint;
    transaction
        .prepare_cached(
            "INSERT INTO checkpoints (seq, node, number, time, first_seq, last_seq, root, previous, key, signature,
                                      digests)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            seq,
            node,
            count(*number),
            time,
            first_seq,
            last_seq,
            root,
            previous,
            key,
            signature,
            digests
        ])?;
    Ok(())
}

fn list<T: Serialize>(items: &[T]) -> rusqlite::Result<String> {
    serde_json::to_string(items).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// SQLite's integers are signed.
fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn identifier(record: &Record) -> Uuid {
    match record {
        Record::Session(session) => session.id,
        Record::Statement(statement) => statement.id,
        Record::Approval(approval) => approval.statement,
        Record::Outcome(outcome) => outcome.statement,
        Record::Event(event) => event.id,
        Record::Payload(payload) => payload.id,
        Record::Running(running) => running.statement,
        // Its number is what there can be one of.
        Record::Checkpoint(_) => Uuid::nil(),
    }
}

fn write_error(error: rusqlite::Error, identifier: impl FnOnce() -> Uuid) -> AuditError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => AuditError::Duplicate(identifier()),
        _ => AuditError::Write(Arc::new(error)),
    }
}
