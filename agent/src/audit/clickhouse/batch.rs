//! A range of the journal as rows for ClickHouse.

use std::collections::HashMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
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
        let mut callers = Callers::default();
        let tables = TABLES
            .into_iter()
            .map(|(table, columns)| {
                Rows::read(connection, (table, columns), (journal, after, end), &mut callers)
            })
            .filter_map(Result::transpose)
            .collect::<rusqlite::Result<_>>();
        Ok(Self { after, end, tables: tables.map_err(AuditError::read)? })
    }
}

/// Issuer and subject of the statements of a batch. Most outcomes are in the batch of their statement.
#[derive(Default)]
struct Callers(HashMap<Uuid, [String; 2]>);

impl Callers {
    fn note(&mut self, statement: &Row<'_>) -> rusqlite::Result<()> {
        if let Ok(id) = Uuid::parse_str(text(statement.get_ref("id")?)) {
            let caller = [statement.get_ref("issuer")?, statement.get_ref("subject")?];
            self.0.insert(id, caller.map(|value| text(value).to_owned()));
        }
        Ok(())
    }

    /// Whose the statement was that ended; nobody's, where it has left the journal.
    fn take(&mut self, connection: &Connection, outcome: &Row<'_>) -> rusqlite::Result<[String; 2]> {
        let statement = text(outcome.get_ref("statement")?);
        // A statement ends once.
        let noted = Uuid::parse_str(statement).ok().and_then(|id| self.0.remove(&id));
        if let Some(caller) = noted {
            return Ok(caller);
        }
        let mut query = connection.prepare_cached("SELECT issuer, subject FROM statements WHERE id = ?1")?;
        let mut found = query.query([statement])?;
        let Some(row) = found.next()? else { return Ok(Default::default()) };
        Ok([row.get_ref(0)?, row.get_ref(1)?].map(|value| text(value).to_owned()))
    }
}

/// What is no text is none.
fn text(value: ValueRef<'_>) -> &str {
    value.as_str().unwrap_or_default()
}

impl Rows {
    fn read(
        connection: &Connection,
        (table, columns): (&'static str, Columns),
        (journal, after, end): (Uuid, i64, i64),
        callers: &mut Callers,
    ) -> rusqlite::Result<Option<Self>> {
        let mut columns = columns.concat();
        let mut query = connection.prepare(&format!(
            "SELECT {} FROM (SELECT *, ?3 AS journal FROM {table}) WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            names(&columns)
        ))?;
        let mut found = query.query((after, end, journal.to_string()))?;
        columns.extend(beside_the_record(table));
        let mut block = Block::new(&columns);
        while let Some(row) = found.next()? {
            match table {
                "statements" => {
                    callers.note(row)?;
                    block.push(row, &[])?;
                }
                "outcomes" => block.push(row, &callers.take(connection, row)?)?,
                _ => block.push(row, &[])?,
            }
        }
        Ok(block.encode().map(|native| Self { table, columns: names(&columns), native }))
    }
}

fn choose(connection: &Connection, after: i64, rows: u32, bytes: u64) -> rusqlite::Result<i64> {
    // What has left the journal is stepped over.
    let Some(first) = schema::first_after(connection, after)? else { return Ok(after) };
    let after = first - 1;
    let sizes = SIZES
        .map(|(table, size)| format!("SELECT seq, {size} AS size FROM {table} WHERE seq > ?1 AND seq <= ?2"))
        .join(" UNION ALL ");
    let range = [after, after.saturating_add(i64::from(rows))];
    let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
    // Most often all of it fits: that is seen without putting it in order.
    let (last, sum): (i64, i64) = connection
        .prepare_cached(&format!("SELECT max(seq), sum(size) FROM ({sizes})"))?
        .query_row(range, |row| Ok((row.get(0)?, row.get(1)?)))?;
    if sum <= limit {
        return Ok(last);
    }
    let mut query = connection.prepare_cached(&format!("{sizes} ORDER BY 1"))?;
    let mut found = query.query(range)?;
    let (mut end, mut sum) = (after, 0_i64);
    while let Some(row) = found.next()? {
        sum = sum.saturating_add(row.get(1)?);
        if sum > limit && end > after {
            break;
        }
        end = row.get(0)?;
    }
    Ok(end)
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
