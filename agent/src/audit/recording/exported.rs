//! A session that was exported, as a recorded one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use uuid::Uuid;

use super::{MOST, RecordedSession, RecordedStatement, Room, SHOWN};
use crate::audit::chain::{ExportReport, ExportedError, Line, Lines, Members, verify_export};
use crate::audit::payload::{self, Identities, Payload, Pieces, ReadError};
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

/// Where the line of each piece is in the file, and how long it is; by payload and number.
type Places = HashMap<(Uuid, usize), (u64, usize)>;

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
        let open = || {
            let failed = |source| ExportFileError::Io { path: path.to_owned(), source };
            File::open(path).map(BufReader::new).map_err(failed)
        };
        let report = verify_export(open()?, keys)?;
        if let Some(problem) = report.problems.first() {
            return Err(ExportFileError::Unproven { problem: problem.to_string() });
        }
        let mut loading = Loading::new(report.session);
        let mut lines = Lines::new(open()?);
        loop {
            let at = lines.position();
            let Some(line) = lines.next_line()? else { break };
            match line {
                Line::Record { record, .. } => loading.record(&record)?,
                Line::Piece { payload, .. } => {
                    let length = usize::try_from(lines.position() - at).unwrap_or(usize::MAX);
                    loading.piece(payload, at, length)?;
                }
                Line::Head { .. } | Line::Checkpoint { .. } => {}
            }
        }
        let Loading { session, statements, mut payloads, places, .. } = loading;
        let session = session.ok_or(ExportFileError::Sessionless)?;
        payloads.sort_by_key(|payload| payload.time);
        let pieces = Box::new(ExportPieces { path: path.to_owned(), places });
        Ok((Self { session, statements, payloads, pieces, identities }, report))
    }
}

/// What was read of an export so far.
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
    fn new(session: Uuid) -> Self {
        Self {
            session: None,
            statements: Vec::new(),
            numbers: HashMap::new(),
            payloads: Vec::new(),
            pieces: HashMap::new(),
            places: Places::new(),
            room: Room { left: MOST, session },
        }
    }

    fn record(&mut self, members: &Members) -> Result<(), ExportFileError> {
        let seq = members.get("seq").and_then(Value::as_i64).unwrap_or_default();
        let read = match members.get("table").and_then(Value::as_str) {
            Some("sessions") => session(members).map(|session| self.session = Some(session)),
            Some("statements") => match statement(members) {
                Some(statement) => {
                    self.room.take(size_of_val(&statement) + statement.sql.len())?;
                    self.numbers.insert(statement.id, self.statements.len());
                    self.statements.push(statement);
                    Some(())
                }
                None => None,
            },
            Some("outcomes") => self.outcome(members),
            Some("payloads") => match payload(members) {
                Some(payload) => {
                    self.room.take(size_of_val(&payload) + size_of_val(payload.places.as_slice()))?;
                    self.payloads.push(payload);
                    Some(())
                }
                None => None,
            },
            _ => Some(()),
        };
        read.ok_or(ExportFileError::Record(seq))
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
    fn piece(&mut self, payload: Uuid, at: u64, length: usize) -> Result<(), AuditError> {
        self.room.take(64)?;
        let number = self.pieces.entry(payload).or_default();
        self.places.insert((payload, *number), (at, length));
        *number += 1;
        Ok(())
    }
}

impl Pieces for ExportPieces {
    fn sealed(&self, payload: &Payload, number: usize) -> Result<Vec<u8>, ReadError> {
        let (at, length) = *self.places.get(&(payload.id, number)).ok_or(ReadError::Removed)?;
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(at))?;
            let mut line = vec![0; length];
            file.read_exact(&mut line)?;
            Ok(line)
        };
        let unreadable = |source| ReadError::Export { path: self.path.clone(), source };
        let line: Vec<u8> = read().map_err(unreadable)?;
        let Ok(Line::Piece { piece, .. }) = serde_json::from_slice(&line) else {
            return Err(ReadError::Foreign("the export has changed"));
        };
        let entry = STANDARD.decode(piece).unwrap_or_default();
        let parsed = payload::parse(&entry).filter(|parsed| {
            parsed.entry.payload == payload.id && usize::try_from(parsed.entry.piece) == Ok(number)
        });
        parsed.map(|parsed| parsed.sealed.to_vec()).ok_or(ReadError::Foreign("it is damaged, or another one"))
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
    Some(members.get(name)?.as_str()?.to_owned())
}

fn id(members: &Members, name: &str) -> Option<Uuid> {
    members.get(name)?.as_str()?.parse().ok()
}

fn integer(members: &Members, name: &str) -> Option<i64> {
    members.get(name)?.as_i64()
}
