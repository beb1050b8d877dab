//! A range of the journal as rows for ClickHouse.

use std::collections::HashMap;
use std::rc::Rc;

use rusqlite::Connection;
use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::types::ValueRef;
use uuid::Uuid;

use super::super::schema;
use super::AuditError;
use super::native::Kind::{
    Bool, OptionalText, OptionalU32, OptionalU64, Text, Time, U32, U64, Uuid as Id, Word, Words,
};
use super::native::{Block, Kind};

/// All records in (`after`, `end`].
#[derive(Debug)]
pub(in crate::audit) struct Batch {
    pub after: i64,
    pub end: i64,
    /// Of each table that has any.
    pub tables: Vec<Rows>,
}

/// Rows of a table.
#[derive(Debug)]
pub(in crate::audit) struct Rows {
    pub table: &'static str,
    /// Their names, with commas.
    pub columns: String,
    /// In the format of that name.
    pub native: Vec<u8>,
}

type Column = (&'static str, Kind);
/// In groups, some of which several tables have.
type Columns = &'static [&'static [Column]];

const KEY: &[Column] = &[("node", Word), ("seq", U64), ("time", Time), ("journal", Id)];
const WORKLOAD: &[Column] =
    &[("cgroup", Word), ("pid", U32), ("uid", U32), ("comm", Word), ("executable", Word)];
const CALLER: &[Column] = &[("issuer", Word), ("subject", Word), ("groups", Words)];

/// The tables in the order in which they are delivered, with all of their columns.
const TABLES: [(&str, Columns); 8] = [
    (
        "sessions",
        &[
            KEY,
            WORKLOAD,
            CALLER,
            &[
                ("id", Id),
                ("account", Word),
                ("rule", Word),
                ("user", Word),
                ("role", Word),
                ("snowflake_session", Text),
                ("client", Word),
            ],
        ],
    ),
    (
        "statements",
        &[
            KEY,
            WORKLOAD,
            CALLER,
            &[
                ("id", Id),
                ("session", Id),
                ("request_id", Text),
                ("account", Word),
                ("user", Word),
                ("role", Word),
                ("sql", Text),
                ("kind", Word),
                ("effect", Word),
                ("actions", Words),
                ("objects", Words),
                ("features", Words),
                ("verdict", Word),
                ("policy", Word),
                ("describe_only", Bool),
                ("binds", U32),
                ("previous", U64),
            ],
        ],
    ),
    (
        "approvals",
        &[
            KEY,
            &[
                ("statement", Id),
                ("ruling", Word),
                ("approver_issuer", Word),
                ("approver", Word),
                ("reason", Text),
            ],
        ],
    ),
    (
        "outcomes",
        &[
            KEY,
            &[
                ("statement", Id),
                ("status", Word),
                ("query_id", Text),
                ("rows", OptionalU64),
                ("code", Word),
                ("message", Text),
                ("duration_us", U64),
                ("response_bytes", U64),
            ],
        ],
    ),
    (
        "events",
        &[
            KEY,
            &[
                ("id", Id),
                ("kind", Word),
                ("cgroup", OptionalText),
                ("pid", OptionalU32),
                ("uid", OptionalU32),
                ("comm", OptionalText),
                ("executable", OptionalText),
                ("issuer", OptionalText),
                ("subject", OptionalText),
                ("groups", Words),
                ("account", Word),
                ("detail", Text),
            ],
        ],
    ),
    (
        "payloads",
        &[
            KEY,
            &[
                ("id", Id),
                ("session", Id),
                ("statement", Id),
                ("query_id", Text),
                ("operation", Word),
                ("request_bytes", U64),
                ("answer_bytes", U64),
                ("sealed_bytes", U64),
                ("duration_us", U64),
                ("ending", Word),
                ("run", Id),
                ("places", Text),
                ("digest", Text),
                ("previous", U64),
            ],
        ],
    ),
    ("running", &[KEY, &[("statement", Id), ("query_id", Text)]]),
    (
        "checkpoints",
        &[
            KEY,
            &[
                ("number", U64),
                ("first_seq", U64),
                ("last_seq", U64),
                ("root", Text),
                ("previous", Text),
                ("key", Word),
                ("signature", Text),
                ("digests", Text),
            ],
        ],
    ),
];

/// Columns that a table has there besides those of the record: of outcomes, whose statement it was, as what was taken out, and
/// by whom, is asked of one table.
fn beside_the_record(table: &str) -> &'static [Column] {
    if table == "outcomes" { &[("issuer", Word), ("subject", Word)] } else { &[] }
}

/// What selects the record of a row, and no more.
pub(super) fn record_of(table: &str) -> String {
    match beside_the_record(table) {
        [] => "*".to_owned(),
        columns => format!("* EXCEPT ({})", names(columns)),
    }
}

fn names(columns: &[Column]) -> String {
    columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// About how many bytes a row of each table has: 512 stands for what is short. `octet_length()` reads no more than the
/// row's header.
const SIZES: [(&str, &str); 8] = [
    ("sessions", "512 + octet_length(client) + octet_length(groups)"),
    (
        "statements",
        "512 + octet_length(sql) + octet_length(actions) + octet_length(objects) + octet_length(features)
             + octet_length(groups) + octet_length(request_id)",
    ),
    ("approvals", "512 + octet_length(reason)"),
    ("outcomes", "512 + octet_length(message)"),
    ("events", "512 + octet_length(detail)"),
    ("running", "512"),
    ("payloads", "512 + octet_length(places)"),
    ("checkpoints", "512 + octet_length(digests)"),
];

/// How much a batch has at most; one record in any case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub rows: u32,
    /// About so many.
    pub bytes: u64,
}

impl Batch {
    /// Reads the batch that begins after `after`.
    pub(super) fn next(
        connection: &Connection,
        journal: Uuid,
        after: i64,
        limits: Limits,
    ) -> Result<Self, AuditError> {
        // What is written after this question is left for the next batch.
        let last = schema::last_seq(connection).map_err(AuditError::read)?;
        read(connection, journal, (after, last), limits).map_err(AuditError::read)
    }

    /// Reads what is in (`after`, `end`].
    pub(super) fn again(
        connection: &Connection,
        journal: Uuid,
        after: i64,
        end: i64,
    ) -> Result<Self, AuditError> {
        let all = Limits { rows: u32::MAX, bytes: u64::MAX };
        let batch = read(connection, journal, (after, end), all).map_err(AuditError::read)?;
        Ok(Self { end, ..batch })
    }
}

/// Reads the tables side by side, so that the records come in their order, until there are no more or a limit is reached.
fn read(
    connection: &Connection,
    journal: Uuid,
    (after, last): (i64, i64),
    limits: Limits,
) -> rusqlite::Result<Batch> {
    let queries = TABLES.map(|(table, columns)| {
        let size = SIZES.iter().find(|(name, _)| *name == table).map_or("512", |(_, size)| size);
        connection.prepare(&format!(
            "SELECT {}, {size} FROM (SELECT *, ?3 AS journal FROM {table}) WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            names(&columns.concat())
        ))
    });
    let mut queries = queries.into_iter().collect::<rusqlite::Result<Vec<_>>>()?;
    let tables = TABLES.into_iter().zip(&mut queries).map(|((table, columns), query)| {
        Reading::begin(table, columns, query.query((after, last, journal.to_string()))?)
    });
    let mut tables = tables.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut callers = Callers::default();
    let (mut end, mut rows, mut bytes) = (after, 0, 0_u64);
    while let Some(table) = tables.iter_mut().min_by_key(|table| table.next)
        && let Some(row) = table.rows.get()
    {
        // What the disk has changed may have none.
        bytes = bytes.saturating_add(row.get::<_, u32>(table.size).unwrap_or_default().into());
        // Should two records have one number, as after damage, both are in the batch, now and when it is read again.
        if table.next > end && end > after && (rows >= limits.rows || bytes > limits.bytes) {
            break;
        }
        rows += 1;
        end = table.next;
        match table.name {
            "statements" => {
                let [issuer, subject] = table.caller;
                callers.note(row.get_ref(table.id)?, [row.get_ref(issuer)?, row.get_ref(subject)?]);
                table.block.push(row, &[])?;
            }
            "outcomes" => {
                let caller = callers.take(connection, row.get_ref(table.statement)?)?;
                table.block.push(row, &caller[..])?;
            }
            _ => table.block.push(row, &[])?,
        }
        table.advance()?;
    }
    let tables = tables.into_iter().filter_map(Reading::end).collect();
    Ok(Batch { after, end, tables })
}

/// A table that is being read.
struct Reading<'q> {
    name: &'static str,
    columns: Vec<Column>,
    rows: rusqlite::Rows<'q>,
    /// `seq` of the row; none has one so great as there is after the last one.
    next: i64,
    /// Where these columns are, if the table has them.
    seq: usize,
    size: usize,
    id: usize,
    statement: usize,
    caller: [usize; 2],
    block: Block,
}

impl<'q> Reading<'q> {
    fn begin(name: &'static str, columns: Columns, rows: rusqlite::Rows<'q>) -> rusqlite::Result<Self> {
        let mut columns = columns.concat();
        let place = |name| columns.iter().position(|(column, _)| *column == name).unwrap_or_default();
        let (id, statement, caller) = (place("id"), place("statement"), ["issuer", "subject"].map(place));
        let (seq, size) = (place("seq"), columns.len());
        columns.extend(beside_the_record(name));
        let block = Block::new(&columns);
        let mut reading = Self { name, columns, rows, next: 0, seq, size, id, statement, caller, block };
        reading.advance()?;
        Ok(reading)
    }

    /// Goes on to the next row.
    fn advance(&mut self) -> rusqlite::Result<()> {
        self.rows.advance()?;
        self.next = self.rows.get().map_or(Ok(i64::MAX), |row| row.get(self.seq))?;
        Ok(())
    }

    fn end(self) -> Option<Rows> {
        let native = self.block.encode()?;
        Some(Rows { table: self.name, columns: names(&self.columns), native })
    }
}

/// Issuer and subject of the statements of a batch. Most outcomes are in the batch of their statement.
#[derive(Default)]
struct Callers {
    of: HashMap<Uuid, Caller>,
    /// Of the last statement: the next one often has the same.
    last: Caller,
}

type Caller = Rc<[String; 2]>;

impl Callers {
    fn note(&mut self, statement: ValueRef<'_>, caller: [ValueRef<'_>; 2]) {
        let Ok(id) = Uuid::parse_str(text(statement)) else { return };
        let caller = caller.map(text);
        if *self.last != caller {
            self.last = Rc::new(caller.map(ToOwned::to_owned));
        }
        self.of.insert(id, Rc::clone(&self.last));
    }

    /// Whose the statement was that ended; nobody's, where it has left the journal.
    fn take(&mut self, connection: &Connection, statement: ValueRef<'_>) -> rusqlite::Result<Caller> {
        let statement = text(statement);
        // A statement ends once.
        let noted = Uuid::parse_str(statement).ok().and_then(|id| self.of.remove(&id));
        if let Some(caller) = noted {
            return Ok(caller);
        }
        let mut query = connection.prepare_cached("SELECT issuer, subject FROM statements WHERE id = ?1")?;
        let mut found = query.query([statement])?;
        let Some(row) = found.next()? else { return Ok(Caller::default()) };
        Ok(Rc::new([row.get_ref(0)?, row.get_ref(1)?].map(|value| text(value).to_owned())))
    }
}

/// What is no text is none.
fn text(value: ValueRef<'_>) -> &str {
    value.as_str().unwrap_or_default()
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
        let limits = Limits { rows: 3, bytes: u64::MAX };
        let end = |after| Batch::next(&connection, journal.id(), after, limits).unwrap().end;
        assert_eq!(end(0), 9);
        assert_eq!(end(9), 9, "there is nothing after it");
    }

    #[tokio::test]
    async fn records_of_one_number_are_in_one_batch() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        journal.append((0..2).map(|_| event(EventKind::NoFlow).into()).collect()).await.unwrap();
        let connection = Connection::open(&path).unwrap();
        connection.execute("INSERT INTO running VALUES (1, 'node', 'statement', 0, 'query')", []).unwrap();
        let batch = Batch::next(&connection, journal.id(), 0, Limits { rows: 1, bytes: 0 }).unwrap();
        let again = Batch::again(&connection, journal.id(), 0, 1).unwrap();
        assert_eq!((batch.end, batch.tables.len()), (1, 2));
        let native = |batch: Batch| batch.tables.into_iter().map(|rows| rows.native).collect::<Vec<_>>();
        assert_eq!(native(batch), native(again));
    }
}
