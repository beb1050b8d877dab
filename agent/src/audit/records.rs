//! The records of a session, wherever they are kept.

use std::path::Path;

use rusqlite::Connection;
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::chain::{Members, each, integer, members};
use super::clickhouse::{Reader, Settings};
use super::payload::Payload;
use super::{AuditError, schema};

/// Where records are kept.
pub enum Records<'a> {
    Journal(&'a Path),
    ClickHouse(&'a Settings, &'a Runtime),
}

/// The tables that a session's records are in, each after those that it refers to, and the condition by which they are found.
/// `statements` is what that table is called there.
pub(super) fn of_session(session: Uuid, statements: &str) -> [(&'static str, String); 6] {
    let own = format!("session = '{session}'");
    let of_statements = format!("statement IN (SELECT id FROM {statements} WHERE {own})");
    [
        ("sessions", format!("id = '{session}'")),
        ("statements", own.clone()),
        ("approvals", of_statements.clone()),
        ("running", of_statements.clone()),
        ("outcomes", of_statements),
        ("payloads", own),
    ]
}

impl Records<'_> {
    /// Hands over the records of a session, table by table.
    pub(super) fn of_session(
        &self,
        session: Uuid,
        mut take: impl FnMut(&Members) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let open = Open::new(self)?;
        for (table, condition) in of_session(session, &open.name("statements")) {
            open.each(table, &condition, &mut take)?;
        }
        Ok(())
    }

    /// The payloads of a session, of a statement, or of a query by Snowflake's identifier, or the one of this identifier; in the
    /// order in which they began.
    pub fn payloads(&self, id: &str) -> Result<Vec<Payload>, AuditError> {
        let mut payloads = Vec::new();
        // All of these identifiers are of such characters, whoever gives them.
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Ok(payloads);
        }
        let open = Open::new(self)?;
        let outcomes = open.name("outcomes");
        let query = format!(
            "query_id = '{id}' OR statement IN (SELECT statement FROM {outcomes} WHERE query_id = '{id}')"
        );
        let condition = match id.parse::<Uuid>() {
            Ok(id) => format!(
                "{query} OR id = '{id}' OR session = '{id}' OR statement = '{id}'
                 OR query_id IN (SELECT query_id FROM {outcomes} WHERE statement = '{id}' AND query_id <> '')"
            ),
            Err(_) => query,
        };
        open.each("payloads", &format!("({condition})"), &mut |members| {
            let unknown = || AuditError::Record(integer(members, "seq").unwrap_or_default());
            payloads.push(Payload::of(members).ok_or_else(unknown)?);
            Ok(())
        })?;
        payloads.sort_by_key(|payload| payload.time);
        Ok(payloads)
    }
}

/// The same, opened.
enum Open<'a> {
    Journal(Connection, Uuid),
    ClickHouse(Reader<'a>),
}

impl<'a> Open<'a> {
    fn new(records: &Records<'a>) -> Result<Self, AuditError> {
        match records {
            Records::Journal(path) => {
                let connection = schema::open_read_only(path)?;
                let journal = schema::identifier(&connection)?;
                Ok(Self::Journal(connection, journal))
            }
            Records::ClickHouse(settings, runtime) => Ok(Self::ClickHouse(Reader::new(settings, runtime)?)),
        }
    }

    fn name(&self, table: &str) -> String {
        match self {
            Self::Journal(..) => table.to_owned(),
            Self::ClickHouse(reader) => reader.name(table),
        }
    }

    /// Hands over the records of a table, in their order.
    fn each(
        &self,
        table: &str,
        condition: &str,
        take: &mut impl FnMut(&Members) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        match self {
            Self::Journal(connection, journal) => {
                let sql = format!("SELECT * FROM {table} WHERE {condition} ORDER BY seq");
                let mut taken = Ok(());
                let read = each(connection, *journal, table, &sql, [], |_, members| {
                    if taken.is_ok() {
                        taken = take(&members);
                    }
                });
                read.map_err(AuditError::read).and(taken)
            }
            Self::ClickHouse(reader) => {
                let condition = format!("{condition} ORDER BY journal, seq");
                reader.each(table, &condition, |journal, _, row| take(&members(journal, table, row)))
            }
        }
    }
}
