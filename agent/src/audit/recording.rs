//! A session as it was recorded: who had it, its statements with what became of them, and its payloads, which are read
//! piece by piece.

mod exported;

use std::ops::ControlFlow;
use std::path::Path;

use rusqlite::types::Type;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use super::payload::{self, Content, Frame, FrameKind, Identities, Payload, Pieces, ReadError};
use super::store::read_list;
use super::{AuditError, Caller, Session, Workload, schema};

pub use exported::ExportFileError;

/// Of a statement's text, so many characters: the whole of it is in its payload.
const SHOWN: u32 = 64 * 1024;
/// Pieces of a body that are looked at: no honest one has so many.
const MANY: usize = 1 << 20;
/// Bytes that statements and places of payloads may take in memory.
const MOST: usize = 512 << 20;

/// A session that can be replayed.
pub struct RecordedSession {
    pub session: Session,
    /// In the order in which they were recorded.
    pub statements: Vec<RecordedStatement>,
    /// In the order in which they began.
    pub payloads: Vec<Payload>,
    pieces: Box<dyn Pieces>,
    identities: Box<Identities>,
}

/// A statement, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedStatement {
    pub id: Uuid,
    pub time: i64,
    /// Its beginning, if it is long.
    pub sql: String,
    pub verdict: String,
    pub policy: String,
    /// `open` without an outcome.
    pub status: String,
    /// When its outcome was recorded.
    pub ended: Option<i64>,
    pub query_id: String,
    pub rows: Option<u64>,
    pub code: String,
    pub message: String,
}

impl RecordedSession {
    /// Reads a session of a journal; `None` where it knows none of this identifier.
    pub fn load(
        journal: &Path,
        id: Uuid,
        pieces: Box<dyn Pieces>,
        identities: Box<Identities>,
    ) -> Result<Option<Self>, AuditError> {
        let connection = schema::open_read_only(journal)?;
        let Some(session) = session(&connection, id).map_err(AuditError::read)? else { return Ok(None) };
        let mut room = Room { session: id, ..Room::default() };
        let statements = statements(&connection, id, &mut room)?;
        let payloads = payloads(&connection, id, &mut room)?;
        Ok(Some(Self { session, statements, payloads, pieces, identities }))
    }

    /// Hands over what a payload holds, frame by frame, until that breaks.
    pub fn frames(
        &self,
        payload: &Payload,
        each: impl FnMut(Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        payload::frames(self.pieces.as_ref(), payload, &self.identities, each)
    }

    /// The request of a payload, of its body no more than `limit` bytes.
    pub fn request(&self, payload: &Payload, limit: usize) -> Result<Content, ReadError> {
        self.part(payload, limit, |content, kind| {
            kind == FrameKind::Answer || content.request.body.len() >= limit
        })
    }

    /// The request's head and the answer, of each body no more than `limit` bytes.
    pub fn answer(&self, payload: &Payload, limit: usize) -> Result<Content, ReadError> {
        self.part(payload, limit, |content, _| content.answer.body.len() >= limit)
    }

    fn part(
        &self,
        payload: &Payload,
        limit: usize,
        is_enough: impl Fn(&Content, FrameKind) -> bool,
    ) -> Result<Content, ReadError> {
        let mut content = Content::default();
        self.frames(payload, |frame| {
            content.add(frame, limit);
            let is_too_much = content.request.pieces.len().max(content.answer.pieces.len()) > MANY;
            if is_too_much || is_enough(&content, frame.kind) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(content)
    }
}

/// Memory that a session may take.
struct Room {
    left: usize,
    session: Uuid,
}

impl Default for Room {
    fn default() -> Self {
        Self { left: MOST, session: Uuid::nil() }
    }
}

impl Room {
    fn take(&mut self, bytes: usize) -> Result<(), AuditError> {
        self.left = self.left.checked_sub(bytes).ok_or(AuditError::LongSession(self.session))?;
        Ok(())
    }
}

fn session(connection: &Connection, id: Uuid) -> rusqlite::Result<Option<Session>> {
    let read = |row: &Row<'_>| {
        Ok(Session {
            id,
            time: row.get("time")?,
            workload: Workload {
                cgroup: row.get("cgroup")?,
                pid: row.get("pid")?,
                uid: row.get("uid")?,
                comm: row.get("comm")?,
                executable: row.get("executable")?,
            },
            caller: Caller {
                issuer: row.get("issuer")?,
                subject: row.get("subject")?,
                groups: read_list(row, "groups")?,
            },
            account: row.get("account")?,
            rule: row.get("rule")?,
            user: row.get("user")?,
            role: row.get("role")?,
            snowflake_session: row.get("snowflake_session")?,
            client: row.get("client")?,
        })
    };
    match connection.query_row("SELECT * FROM sessions WHERE id = ?1", [id.to_string()], read) {
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        found => found.map(Some),
    }
}

fn statements(
    connection: &Connection,
    session: Uuid,
    room: &mut Room,
) -> Result<Vec<RecordedStatement>, AuditError> {
    let mut query = connection
        .prepare(
            "SELECT s.id, s.time, substr(s.sql, 1, ?2) AS sql, s.verdict, s.policy, coalesce(o.status, 'open') AS status,
                 o.time AS ended, coalesce(o.query_id, '') AS query_id, o.rows, coalesce(o.code, '') AS code,
                 coalesce(o.message, '') AS message
             FROM statements s LEFT JOIN outcomes o ON o.statement = s.id WHERE s.session = ?1 ORDER BY s.seq",
        )
        .map_err(AuditError::read)?;
    let found = query.query_map((session.to_string(), SHOWN), statement).map_err(AuditError::read)?;
    let mut statements = Vec::new();
    for statement in found {
        let statement = statement.map_err(AuditError::read)?;
        room.take(size_of_val(&statement) + statement.sql.len() + statement.message.len())?;
        statements.push(statement);
    }
    Ok(statements)
}

fn statement(row: &Row<'_>) -> rusqlite::Result<RecordedStatement> {
    let id: String = row.get("id")?;
    let id = Uuid::parse_str(&id)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))?;
    Ok(RecordedStatement {
        id,
        time: row.get("time")?,
        sql: row.get("sql")?,
        verdict: row.get("verdict")?,
        policy: row.get("policy")?,
        status: row.get("status")?,
        ended: row.get("ended")?,
        query_id: row.get("query_id")?,
        rows: row.get::<_, Option<i64>>("rows")?.and_then(|rows| u64::try_from(rows).ok()),
        code: row.get("code")?,
        message: row.get("message")?,
    })
}

fn payloads(connection: &Connection, session: Uuid, room: &mut Room) -> Result<Vec<Payload>, AuditError> {
    let mut query = connection
        .prepare("SELECT * FROM payloads WHERE session = ?1 ORDER BY time, seq")
        .map_err(AuditError::read)?;
    let found = query.query_map([session.to_string()], payload::row).map_err(AuditError::read)?;
    let mut payloads = Vec::new();
    for payload in found {
        let payload = payload.map_err(AuditError::read)?;
        room.take(size_of_val(&payload) + size_of_val(payload.places.as_slice()) + 128)?;
        payloads.push(payload);
    }
    Ok(payloads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::payload::Kept;
    use crate::audit::{Journal, Verdict, samples};

    #[tokio::test]
    async fn a_session_is_read_with_what_became_of_its_statements() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        let session = samples::session();
        let (one, other) = (
            samples::statement(session.id, &"x".repeat(100_000), Verdict::Allow),
            samples::statement(session.id, "drop table t", Verdict::Deny),
        );
        let foreign = samples::statement(Uuid::now_v7(), "select 1", Verdict::Allow);
        let payload = samples::payload(session.id, one.id);
        let outcome = samples::outcome(one.id);
        let records = vec![
            session.clone().into(),
            one.clone().into(),
            outcome.into(),
            other.clone().into(),
            foreign.into(),
            payload.clone().into(),
        ];
        journal.append(records).await.unwrap();
        let load = |id| {
            let pieces = Box::new(Kept::new(directory.path().join("spool"), None));
            RecordedSession::load(&path, id, pieces, Box::new([])).unwrap()
        };
        let recorded = load(session.id).unwrap();
        assert_eq!((&recorded.session, &recorded.payloads), (&session, &vec![payload]));
        let [first, second] = recorded.statements.as_slice() else { panic!("{:?}", recorded.statements) };
        assert_eq!((first.id, first.sql.len(), first.status.as_str()), (one.id, SHOWN as usize, "succeeded"));
        assert_eq!((second.verdict.as_str(), second.status.as_str(), second.ended), ("deny", "open", None));
        assert!(load(Uuid::now_v7()).is_none());
        assert!(recorded.answer(&recorded.payloads[0], 9).is_err(), "there is no spool");
    }

    #[test]
    fn a_session_that_is_too_long_is_refused() {
        let mut room = Room { left: 10, session: Uuid::nil() };
        room.take(10).unwrap();
        assert!(matches!(room.take(1), Err(AuditError::LongSession(_))));
    }
}
