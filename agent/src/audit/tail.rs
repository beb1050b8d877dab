//! The trail as it grows: statements with their outcomes, and events, in the order in which they were recorded.

use std::collections::VecDeque;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, Row};
use serde::Serialize;

use super::filter::{EVENTS, Filter, STATEMENTS};
use super::store::read_list;
use super::{AuditError, schema};

/// How often a journal that is followed is asked for what is new.
const POLL: Duration = Duration::from_millis(200);

/// How many records are read at once.
const WINDOW: i64 = 256;

/// What a line of the trail shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Entry {
    Statement(Box<StatementEntry>),
    Event(Box<EventEntry>),
}

/// A statement with its outcome, as in the view `trail`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatementEntry {
    pub seq: i64,
    /// ISO 8601, UTC.
    pub time: String,
    pub node: String,
    pub id: String,
    pub session: String,
    pub request_id: String,
    pub cgroup: String,
    pub pid: u32,
    pub uid: u32,
    pub comm: String,
    pub executable: String,
    pub issuer: String,
    pub subject: String,
    pub groups: Vec<String>,
    pub account: String,
    pub rule: String,
    pub client: String,
    pub user: String,
    pub role: String,
    pub sql: String,
    pub kind: String,
    pub effect: String,
    pub actions: Vec<String>,
    pub objects: Vec<String>,
    pub features: Vec<String>,
    pub verdict: String,
    pub policy: String,
    pub describe_only: bool,
    pub binds: u32,
    /// `open` as long as it has no outcome.
    pub status: String,
    pub rows: Option<i64>,
    pub query_id: String,
    pub code: String,
    pub message: String,
    pub duration_us: Option<i64>,
    pub response_bytes: Option<i64>,
    /// Of one that was held: what was ruled, by whom, and why.
    pub ruling: String,
    pub approver_issuer: String,
    pub approver: String,
    pub reason: String,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventEntry {
    pub seq: i64,
    /// ISO 8601, UTC.
    pub time: String,
    pub node: String,
    pub id: String,
    pub kind: String,
    pub cgroup: Option<String>,
    pub pid: Option<u32>,
    pub uid: Option<u32>,
    pub comm: Option<String>,
    pub executable: Option<String>,
    pub issuer: Option<String>,
    pub subject: Option<String>,
    pub groups: Vec<String>,
    pub account: String,
    pub detail: String,
}

/// The entries of a journal. When it follows, it never ends: it waits for the next one. A statement that it has shown as
/// open comes again once it has its outcome.
pub struct Tail {
    connection: Connection,
    filter: Filter,
    follow: bool,
    /// The last record when it began: up to it, statements are shown once, with the outcome that they have there.
    history: i64,
    /// All up to here has been read.
    position: i64,
    ready: VecDeque<Entry>,
}

impl Tail {
    /// Begins with the last `last` entries, or with the first one of all.
    pub fn open(path: &Path, filter: Filter, last: Option<u32>, follow: bool) -> Result<Self, AuditError> {
        let connection = schema::open_read_only(path)?;
        let (history, position) = begin(&connection, &filter, last).map_err(AuditError::read)?;
        Ok(Self { connection, filter, follow, history, position, ready: VecDeque::new() })
    }

    /// Reads the next records. False where there are none.
    fn read(&mut self) -> rusqlite::Result<bool> {
        let snapshot = self.connection.unchecked_transaction()?;
        let last = if self.position < self.history { self.history } else { schema::last_seq(&snapshot)? };
        let end = last.min(self.position.saturating_add(WINDOW));
        if end <= self.position {
            return Ok(false);
        }
        let mut entries = statements(&snapshot, &self.filter, self.position, end, self.history)?;
        entries.extend(events(&snapshot, &self.filter, self.position, end)?);
        entries.sort_by_key(|(seq, _)| *seq);
        self.ready.extend(entries.into_iter().map(|(_, entry)| entry));
        self.position = end;
        Ok(true)
    }
}

impl Iterator for Tail {
    type Item = Result<Entry, AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(Ok(entry));
            }
            if !self.follow && self.position >= self.history {
                return None;
            }
            match self.read() {
                Ok(true) => {}
                Ok(false) => thread::sleep(POLL),
                Err(error) => return Some(Err(AuditError::read(error))),
            }
        }
    }
}

/// The last record, and the one after which the last `last` entries begin.
fn begin(connection: &Connection, filter: &Filter, last: Option<u32>) -> rusqlite::Result<(i64, i64)> {
    let snapshot = connection.unchecked_transaction()?;
    let history = schema::last_seq(&snapshot)?;
    let position = match last {
        None => 0,
        Some(0) => history,
        Some(last) => snapshot.query_row(
            &format!(
                "SELECT coalesce(min(seq), 1) - 1 FROM (
                    SELECT seq FROM (SELECT s.seq FROM statements s WHERE {STATEMENTS} ORDER BY s.seq DESC LIMIT :last)
                    UNION ALL
                    SELECT seq FROM (SELECT e.seq FROM events e WHERE {EVENTS} ORDER BY e.seq DESC LIMIT :last)
                    ORDER BY seq DESC LIMIT :last)"
            ),
            filter.parameters(&[(":last", &last)]).as_slice(),
            |row| row.get(0),
        )?,
    };
    Ok((history, position))
}

/// The statements in (`after`, `end`], and those before them whose outcome is there and came after `history`.
fn statements(
    connection: &Connection,
    filter: &Filter,
    after: i64,
    end: i64,
    history: i64,
) -> rusqlite::Result<Vec<(i64, Entry)>> {
    let columns = schema::TRAIL;
    let mut query = connection.prepare_cached(&format!(
        "SELECT s.seq AS position, {columns} FROM statements s
         LEFT JOIN outcomes o ON o.statement = s.id AND o.seq <= max(:end, :history)
         LEFT JOIN sessions n ON n.id = s.session
         LEFT JOIN approvals a ON a.statement = s.id AND a.seq <= max(:end, :history)
         WHERE s.seq > :after AND s.seq <= :end AND {STATEMENTS}
         UNION ALL
         SELECT o.seq AS position, {columns} FROM outcomes o
         JOIN statements s ON s.id = o.statement AND s.seq <= :after
         LEFT JOIN sessions n ON n.id = s.session
         LEFT JOIN approvals a ON a.statement = s.id
         WHERE o.seq > max(:after, :history) AND o.seq <= :end AND {STATEMENTS}"
    ))?;
    let parameters = filter.parameters(&[(":after", &after), (":end", &end), (":history", &history)]);
    query.query_map(parameters.as_slice(), |row| Ok((row.get("position")?, statement(row)?)))?.collect()
}

fn events(
    connection: &Connection,
    filter: &Filter,
    after: i64,
    end: i64,
) -> rusqlite::Result<Vec<(i64, Entry)>> {
    let mut query = connection.prepare_cached(&format!(
        "SELECT e.*, {} AS iso FROM events e WHERE e.seq > :after AND e.seq <= :end AND {EVENTS}",
        schema::ISO_TIME
    ))?;
    let parameters = filter.parameters(&[(":after", &after), (":end", &end)]);
    query.query_map(parameters.as_slice(), |row| Ok((row.get("seq")?, event(row)?)))?.collect()
}

fn statement(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry::Statement(Box::new(StatementEntry {
        seq: row.get("seq")?,
        time: row.get("time")?,
        node: row.get("node")?,
        id: row.get("id")?,
        session: row.get("session")?,
        request_id: row.get("request_id")?,
        cgroup: row.get("cgroup")?,
        pid: row.get("pid")?,
        uid: row.get("uid")?,
        comm: row.get("comm")?,
        executable: row.get("executable")?,
        issuer: row.get("issuer")?,
        subject: row.get("subject")?,
        groups: read_list(row, "groups")?,
        account: row.get("account")?,
        rule: row.get("rule")?,
        client: row.get("client")?,
        user: row.get("user")?,
        role: row.get("role")?,
        sql: row.get("sql")?,
        kind: row.get("kind")?,
        effect: row.get("effect")?,
        actions: read_list(row, "actions")?,
        objects: read_list(row, "objects")?,
        features: read_list(row, "features")?,
        verdict: row.get("verdict")?,
        policy: row.get("policy")?,
        describe_only: row.get("describe_only")?,
        binds: row.get("binds")?,
        status: row.get("status")?,
        rows: row.get("rows")?,
        query_id: row.get("query_id")?,
        code: row.get("code")?,
        message: row.get("message")?,
        duration_us: row.get("duration_us")?,
        response_bytes: row.get("response_bytes")?,
        ruling: row.get("ruling")?,
        approver_issuer: row.get("approver_issuer")?,
        approver: row.get("approver")?,
        reason: row.get("reason")?,
    })))
}

fn event(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry::Event(Box::new(EventEntry {
        seq: row.get("seq")?,
        time: row.get("iso")?,
        node: row.get("node")?,
        id: row.get("id")?,
        kind: row.get("kind")?,
        cgroup: row.get("cgroup")?,
        pid: row.get("pid")?,
        uid: row.get("uid")?,
        comm: row.get("comm")?,
        executable: row.get("executable")?,
        issuer: row.get("issuer")?,
        subject: row.get("subject")?,
        groups: read_list(row, "groups")?,
        account: row.get("account")?,
        detail: row.get("detail")?,
    })))
}

#[cfg(test)]
mod tests;
