//! A session that was exported, as a recorded one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use uuid::Uuid;

use super::{RecordedSession, RecordedStatement, Room, SHOWN};
use crate::audit::chain::{self, ExportReport, ExportedError, Line, Members, id, integer, verify_lines};
use crate::audit::payload::{Identities, Payload, Pieces, ReadError};
use crate::audit::{AuditError, Caller, Session, Workload};

/// Why an export cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ExportFileError {
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Export(#[from] ExportedError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("record {0} is not what this program exports")]
    Record(i64),
    #[error("the export has no row of its session: it left the journal before")]
    Sessionless,
    #[error("this is not what was signed: {problem} (`snowfence audit verify --export` says it all)")]
    Unproven { problem: String },
}

/// Where the line of each piece is in the file, by payload and number.
type Places = HashMap<(Uuid, usize), Range<u64>>;

/// The pieces in an export.
struct ExportPieces {
    path: PathBuf,
    places: Places,
}

impl RecordedSession {
    /// Reads a session of an export, which must be what was signed by one of `keys`; where there are none, by one key.
    pub fn load_export(
        path: &Path,
        keys: &[String],
        identities: Box<Identities>,
    ) -> Result<(Self, ExportReport), ExportFileError> {
        let file =
            File::open(path).map_err(|source| ExportFileError::Io { path: path.to_owned(), source })?;
        let mut loading = Loading::default();
        let mut loaded = Ok(());
        let report = verify_lines(BufReader::new(file), keys, |line, place| {
            if loaded.is_ok() {
                loaded = loading.line(line, place);
            }
        })?;
        if let Some(problem) = report.problems.first() {
            return Err(ExportFileError::Unproven { problem: problem.to_string() });
        }
        loaded?;
        let Loading { session, statements, mut payloads, places, .. } = loading;
        let session = session.ok_or(ExportFileError::Sessionless)?;
        payloads.sort_by_key(|payload| payload.time);
        let pieces = Box::new(ExportPieces { path: path.to_owned(), places });
        Ok((Self { session, statements, payloads, pieces, identities }, report))
    }
}

/// What was read of an export so far.
#[derive(Default)]
struct Loading {
    session: Option<Session>,
    statements: Vec<RecordedStatement>,
    /// Where a statement is among them.
    numbers: HashMap<Uuid, usize>,
    payloads: Vec<Payload>,
    /// How many pieces of each there were so far.
    pieces: HashMap<Uuid, usize>,
    places: Places,
    room: Room,
}

impl Loading {
    fn line(&mut self, line: &Line, place: Range<u64>) -> Result<(), ExportFileError> {
        match line {
            Line::Head { session, .. } => self.room.session = *session,
            Line::Checkpoint { .. } => {}
            Line::Record { record, .. } => self.record(record)?,
            Line::Piece { payload, .. } => self.piece(*payload, place)?,
        }
        Ok(())
    }

    fn record(&mut self, members: &Members) -> Result<(), ExportFileError> {
        let wrong = || ExportFileError::Record(integer(members, "seq").unwrap_or_default());
        match chain::text(members, "table") {
            Some("sessions") => self.session = Some(session(members).ok_or_else(wrong)?),
            Some("statements") => {
                let statement = statement(members).ok_or_else(wrong)?;
                self.room.take(size_of_val(&statement) + statement.sql.len())?;
                self.numbers.insert(statement.id, self.statements.len());
                self.statements.push(statement);
            }
            Some("outcomes") => self.outcome(members).ok_or_else(wrong)?,
            Some("payloads") => {
                let payload = payload(members).ok_or_else(wrong)?;
                self.room.take(size_of_val(&payload) + size_of_val(payload.places.as_slice()))?;
                self.payloads.push(payload);
            }
            _ => {}
        }
        Ok(())
    }

    fn outcome(&mut self, members: &Members) -> Option<()> {
        let number = *self.numbers.get(&id(members, "statement")?)?;
        let statement = self.statements.get_mut(number)?;
        statement.status = text(members, "status")?;
        statement.ended = integer(members, "time");
        statement.query_id = text(members, "query_id")?;
        statement.rows = members.get("rows").and_then(Value::as_u64);
        statement.code = text(members, "code")?;
        statement.message = text(members, "message")?;
        Some(())
    }

    /// They follow their payload, in their order.
    fn piece(&mut self, payload: Uuid, place: Range<u64>) -> Result<(), AuditError> {
        self.room.take(64)?;
        let number = self.pieces.entry(payload).or_default();
        self.places.insert((payload, *number), place);
        *number += 1;
        Ok(())
    }
}

impl Pieces for ExportPieces {
    fn entry(&self, payload: &Payload, number: usize) -> Result<Vec<u8>, ReadError> {
        let place = self.places.get(&(payload.id, number)).ok_or(ReadError::Removed)?;
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(place.start))?;
            let mut line = vec![0; usize::try_from(place.end - place.start).unwrap_or_default()];
            file.read_exact(&mut line)?;
            Ok(line)
        };
        let unreadable = |source| ReadError::Export { path: self.path.clone(), source };
        let line: Vec<u8> = read().map_err(unreadable)?;
        let Ok(Line::Piece { piece, .. }) = serde_json::from_slice(&line) else {
            return Err(ReadError::Foreign("the export has changed"));
        };
        Ok(STANDARD.decode(piece).unwrap_or_default())
    }
}

fn session(members: &Members) -> Option<Session> {
    let text = |name| text(members, name);
    Some(Session {
        id: id(members, "id")?,
        time: integer(members, "time")?,
        workload: Workload {
            cgroup: text("cgroup")?,
            pid: integer(members, "pid")?.try_into().ok()?,
            uid: integer(members, "uid")?.try_into().ok()?,
            comm: text("comm")?,
            executable: text("executable")?,
        },
        caller: Caller {
            issuer: text("issuer")?,
            subject: text("subject")?,
            groups: match members.get("groups") {
                Some(groups) => serde_json::from_value(groups.clone()).ok()?,
                None => Vec::new(),
            },
        },
        account: text("account")?,
        rule: text("rule")?,
        user: text("user")?,
        role: text("role")?,
        snowflake_session: text("snowflake_session")?,
        client: text("client")?,
    })
}

fn statement(members: &Members) -> Option<RecordedStatement> {
    let text = |name| text(members, name);
    Some(RecordedStatement {
        id: id(members, "id")?,
        time: integer(members, "time")?,
        sql: text("sql")?.chars().take(SHOWN as usize).collect(),
        verdict: text("verdict")?,
        policy: text("policy")?,
        status: "open".to_owned(),
        ended: None,
        query_id: String::new(),
        rows: None,
        code: String::new(),
        message: String::new(),
    })
}

fn payload(members: &Members) -> Option<Payload> {
    let mut members = members.clone();
    let places = serde_json::from_str(members.get("places")?.as_str()?).ok()?;
    members.insert("places".to_owned(), places);
    serde_json::from_value(Value::Object(members.into_iter().collect())).ok()
}

fn text(members: &Members, name: &str) -> Option<String> {
    chain::text(members, name).map(ToOwned::to_owned)
}
