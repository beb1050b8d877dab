//! Rows of the journal as they are read for a sink: what a table has, by name, so that a column which the mapping does not
//! know goes on all the same.

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::{Map, Value};

use super::super::AuditError;
use super::super::schema::{self, ISO_TIME};
use crate::config::SiemRecords;

/// What the row of a statement, `s`, says of who asked and for what. Of its text, which may be long, the bytes that an
/// excerpt may have, and a few more: as a blob, in which zero bytes end nothing.
const STATEMENT: &str =
    "s.session, s.request_id, s.cgroup, s.pid, s.uid, s.comm, s.executable, s.issuer, s.subject,
    s.groups, s.account, s.user, s.role, substr(CAST(s.sql AS BLOB), 1, 4100) AS sql, s.kind, s.effect, s.objects, s.verdict, s.policy";

/// What stands for the short columns of a row, and for what an event has besides them.
const FIXED: i64 = 2048;

/// A table of the journal.
struct Table {
    name: &'static str,
    records: SiemRecords,
    /// Roughly the bytes of the row's long columns. `octet_length` reads no more than the row's header.
    size: &'static str,
    columns: &'static str,
    from: &'static str,
}

const LIST: [&str; 5] = ["groups", "actions", "objects", "features", "places"];

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    pub table: &'static str,
    pub records: SiemRecords,
    pub seq: i64,
    columns: Map<String, Value>,
}

impl Row {
    /// Takes a text; `None` where there is none, or an empty one.
    pub(super) fn text(&mut self, column: &str) -> Option<String> {
        match self.columns.remove(column) {
            Some(Value::String(text)) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(&mut self, column: &str) -> Option<i64> {
        self.columns.remove(column).and_then(|value| value.as_i64())
    }

    pub(super) fn list(&mut self, column: &str) -> Vec<Value> {
        match self.columns.remove(column) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        }
    }

    /// Looks at a text without taking it.
    pub(super) fn peek(&self, column: &str) -> &str {
        self.columns.get(column).and_then(Value::as_str).unwrap_or_default()
    }

    /// Puts a column back that has been looked at only.
    pub(super) fn leave(&mut self, column: &str, value: impl Into<Value>) {
        self.columns.insert(column.to_owned(), value.into());
    }

    /// What nobody has taken, without what is empty.
    pub(super) fn rest(self) -> Map<String, Value> {
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        self.columns.into_iter().filter(|(_, value)| !is_empty(value)).collect()
    }
}

fn tables(only: Option<&[SiemRecords]>) -> impl Iterator<Item = Table> + '_ {
    let all = [
        Table {
            name: "sessions",
            records: SiemRecords::Sessions,
            size: "octet_length(client) + octet_length(groups)",
            columns: "t.*",
            from: "sessions t",
        },
        Table {
            name: "statements",
            records: SiemRecords::Statements,
            size: "octet_length(sql) + octet_length(objects) + octet_length(groups)",
            columns: "t.*",
            from: "statements t",
        },
        Table {
            name: "approvals",
            records: SiemRecords::Statements,
            size: "octet_length(reason)",
            columns: STATEMENT,
            from: "approvals t LEFT JOIN statements s ON s.id = t.statement",
        },
        Table {
            name: "running",
            records: SiemRecords::Statements,
            size: "0",
            columns: STATEMENT,
            from: "running t LEFT JOIN statements s ON s.id = t.statement",
        },
        Table {
            name: "outcomes",
            records: SiemRecords::Statements,
            size: "octet_length(message)",
            columns: STATEMENT,
            from: "outcomes t LEFT JOIN statements s ON s.id = t.statement",
        },
        Table {
            name: "events",
            records: SiemRecords::Events,
            size: "octet_length(detail)",
            columns: "t.*",
            from: "events t",
        },
        Table {
            name: "payloads",
            records: SiemRecords::Payloads,
            size: "octet_length(places)",
            columns: "n.cgroup, n.pid, n.uid, n.comm, n.executable, n.issuer, n.subject, n.groups, n.account",
            from: "payloads t LEFT JOIN sessions n ON n.id = t.session",
        },
        Table {
            name: "checkpoints",
            records: SiemRecords::Events,
            size: "octet_length(digests)",
            columns: "t.*",
            from: "checkpoints t",
        },
    ];
    let is_wanted =
        move |table: &Table| only.is_none_or(|only: &[SiemRecords]| only.contains(&table.records));
    all.into_iter().filter(is_wanted)
}

/// The last `seq` of the batch that begins after `after`: at most `rows` records and about `bytes` bytes, but at least
/// one record. A table that is not wanted, or not known, costs nothing.
pub(super) fn choose_end(
    connection: &Connection,
    only: Option<&[SiemRecords]>,
    after: i64,
    rows: u32,
    bytes: u64,
) -> Result<i64, AuditError> {
    let choose = || {
        // What is written after this question is left for the next batch.
        let last = schema::last_seq(connection)?.min(after.saturating_add(i64::from(rows)));
        let sizes: Vec<String> = tables(only)
            .map(|Table { name, size, .. }| {
                format!("SELECT seq, {FIXED} + {size} FROM {name} WHERE seq > ?1 AND seq <= ?2")
            })
            .collect();
        let mut query = connection.prepare(&format!("{} ORDER BY 1", sizes.join(" UNION ALL ")))?;
        let mut found = query.query([after, last])?;
        let limit = i64::try_from(bytes).unwrap_or(i64::MAX);
        let (mut end, mut sum) = (after, 0_i64);
        while let Some(row) = found.next()? {
            sum = sum.saturating_add(row.get(1)?);
            if sum > limit && end > after {
                return Ok(end);
            }
            end = row.get(0)?;
        }
        Ok(last)
    };
    choose().map_err(AuditError::read)
}

/// Reads what is in (`after`, `end`], in its order, and hands on each row as it comes.
pub(super) fn read<T>(
    connection: &Connection,
    only: Option<&[SiemRecords]>,
    after: i64,
    end: i64,
    mut each: impl FnMut(Row) -> Option<T>,
) -> Result<Vec<T>, AuditError> {
    let mut read = || {
        let mut all = Vec::new();
        for Table { name, records, columns, from, .. } in tables(only) {
            let own = if columns == "t.*" { String::new() } else { "t.*, ".to_owned() };
            let sql = format!(
                "SELECT *, {ISO_TIME} AS iso FROM (SELECT {own}{columns} FROM {from} WHERE t.seq > ?1 AND t.seq <= ?2)"
            );
            let mut query = connection.prepare(&sql)?;
            let names: Vec<String> = query.column_names().map(ToOwned::to_owned).collect();
            let mut found = query.query([after, end])?;
            while let Some(row) = found.next()? {
                let mut columns = Map::new();
                for (index, column) in names.iter().enumerate() {
                    columns.insert(column.clone(), value(column, row.get_ref(index)?));
                }
                let seq = columns.remove("seq").and_then(|seq| seq.as_i64()).unwrap_or_default();
                all.extend(each(Row { table: name, records, seq, columns }).map(|made| (seq, made)));
            }
        }
        all.sort_by_key(|(seq, _)| *seq);
        Ok(all.into_iter().map(|(_, made)| made).collect())
    };
    read().map_err(AuditError::read)
}

fn value(column: &str, value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) if LIST.contains(&column) => {
            serde_json::from_slice(text).unwrap_or_else(|_| String::from_utf8_lossy(text).into())
        }
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into(),
        ValueRef::Null => Value::Null,
    }
}
