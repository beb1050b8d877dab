//! The questions, asked of the journal.

use std::collections::HashSet;

use rusqlite::{Connection, named_params};

use super::{Forwarded, MAY_HAVE_RUN, MOST, Opened, STATEMENTS, Scope, TEXT};
use crate::audit::schema;

pub(super) fn begins(connection: &Connection) -> rusqlite::Result<i64> {
    let created = connection.query_row("SELECT created FROM journal", [], |row| row.get(0))?;
    match schema::first_seq(connection)? {
        // Older records have been removed.
        Some(first) if first > 1 => {
            let times = schema::RECORDS.map(|table| format!("SELECT time FROM {table} WHERE seq = ?1"));
            connection.query_row(&times.join(" UNION ALL "), [first], |row| row.get(0))
        }
        _ => Ok(created),
    }
}

pub(super) fn known(connection: &Connection, queries: &[String]) -> rusqlite::Result<HashSet<String>> {
    let sql = "WITH wanted AS (SELECT value FROM json_each(?1))
         SELECT query_id FROM outcomes WHERE query_id IN wanted
         UNION SELECT query_id FROM running WHERE query_id IN wanted";
    texts(connection, sql, [list(queries)])?.collect()
}

pub(super) fn forwarded(
    connection: &Connection,
    scope: &Scope,
    sessions: &[String],
) -> rusqlite::Result<Vec<Forwarded>> {
    let mut statement = connection.prepare(&format!(
        "SELECT s.id, n.snowflake_session, coalesce(nullif(o.query_id, ''), r.query_id, ''),
                substr(s.sql, 1, :text),
                s.effect = 'opaque' OR EXISTS (SELECT 1 FROM json_each(s.features)
                    WHERE value IN ('dynamic_sql', 'stored_body')),
                s.time, coalesce(o.time, 9223372036854775807)
         FROM statements s JOIN sessions n ON n.id = s.session
         LEFT JOIN outcomes o ON o.statement = s.id LEFT JOIN running r ON r.statement = s.id
         WHERE {MAY_HAVE_RUN} AND s.account = :account AND upper(s.user) = :user
           AND s.time < :until AND coalesce(o.time, :until) >= :from
           AND (n.snowflake_session = '' OR n.snowflake_session IN (SELECT value FROM json_each(:sessions)))
         LIMIT :most",
    ))?;
    let parameters = named_params! {
        ":account": scope.account, ":user": scope.user, ":from": scope.from, ":until": scope.until,
        ":sessions": list(sessions), ":most": STATEMENTS, ":text": TEXT,
    };
    let rows = statement.query_map(parameters, |row| {
        Ok(Forwarded {
            id: row.get(0)?,
            session: row.get(1)?,
            query_id: row.get(2)?,
            sql: row.get(3)?,
            runs_others: row.get(4)?,
            time: row.get(5)?,
            ended: row.get(6)?,
        })
    })?;
    rows.collect()
}

pub(super) fn calls(connection: &Connection, scope: &Scope) -> rusqlite::Result<Vec<(i64, i64)>> {
    let mut statement = connection.prepare(&format!(
        "SELECT s.time, coalesce(o.time, 9223372036854775807)
         FROM statements s JOIN sessions n ON n.id = s.session LEFT JOIN outcomes o ON o.statement = s.id
         WHERE {MAY_HAVE_RUN} AND s.account = ?1 AND upper(s.user) = ?2 AND n.snowflake_session = ''
           AND s.time < ?4 AND coalesce(o.time, ?4) >= ?3
         LIMIT ?5",
    ))?;
    let rows = statement.query_map((&scope.account, &scope.user, scope.from, scope.until, MOST), |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    rows.collect()
}

pub(super) fn opened(connection: &Connection, scope: &Scope) -> rusqlite::Result<Vec<Opened>> {
    let mut statement = connection.prepare(
        "SELECT snowflake_session, time FROM sessions
         WHERE snowflake_session <> '' AND account = ?1 AND upper(user) = ?2 AND time >= ?3 AND time < ?4
         LIMIT ?5",
    )?;
    let rows = statement.query_map((&scope.account, &scope.user, scope.from, scope.until, MOST), |row| {
        Ok(Opened { session: row.get(0)?, time: row.get(1)? })
    })?;
    rows.collect()
}

pub(super) fn succeeded(connection: &Connection, scope: &Scope) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT o.query_id FROM statements s JOIN outcomes o ON o.statement = s.id
         WHERE o.status = 'succeeded' AND o.query_id <> '' AND NOT s.describe_only
           AND s.account = ?1 AND upper(s.user) = ?2 AND s.time >= ?3 AND o.time < ?4 LIMIT ?5";
    texts(connection, sql, (&scope.account, &scope.user, scope.from, scope.until, MOST))?.collect()
}

pub(super) fn reported(
    connection: &Connection,
    name: &str,
    ids: &[String],
) -> rusqlite::Result<HashSet<String>> {
    let sql = "SELECT json_extract(detail, '$.' || ?1) AS finding FROM events
         WHERE kind IN ('unrecorded_statement', 'unrecorded_login') AND json_valid(detail)
           AND finding IN (SELECT value FROM json_each(?2))";
    texts(connection, sql, (name, list(ids)))?.collect()
}

fn texts(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<std::vec::IntoIter<rusqlite::Result<String>>> {
    let mut statement = connection.prepare(sql)?;
    let rows: Vec<_> = statement.query_map(parameters, |row| row.get(0))?.collect();
    Ok(rows.into_iter())
}

fn list(values: &[String]) -> String {
    serde_json::Value::from(values).to_string()
}
