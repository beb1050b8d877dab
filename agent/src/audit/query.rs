//! Questions that people ask the journal in SQL, while the agent runs or when it does not.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, Params};
use serde::{Serialize, Serializer};

use super::{AuditError, schema};

/// The longest text that a query may make, in bytes.
const LONGEST: i32 = 64 << 20;

/// What ends a query that does not end by itself.
#[derive(Clone, Debug)]
pub struct Limits {
    pub time: Duration,
    /// Set by whoever no longer wants the answer.
    pub stop: Arc<AtomicBool>,
}

/// One value of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Bytes(Vec<u8>),
}

impl Default for Limits {
    /// A minute.
    fn default() -> Self {
        Self { time: Duration::from_mins(1), stop: Arc::default() }
    }
}

impl fmt::Display for Cell {
    /// Bytes are hexadecimal; NULL is empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Integer(number) => number.fmt(f),
            Self::Real(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_none(),
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Real(number) => serializer.serialize_f64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(_) => serializer.collect_str(self),
        }
    }
}

/// Runs one SELECT and hands each row to `row` until that breaks. Returns the names of the columns. Nothing but reading
/// is possible: neither another file nor a setting can be reached.
pub fn query(
    path: &Path,
    sql: &str,
    limits: &Limits,
    row: impl FnMut(&[String], Vec<Cell>) -> ControlFlow<()>,
) -> Result<Vec<String>, AuditError> {
    let mut connection = schema::open_read_only(path)?;
    let began = Instant::now();
    let over = {
        let limits = limits.clone();
        move || began.elapsed() > limits.time || limits.stop.load(Ordering::Relaxed)
    };
    confine(&mut connection, over).map_err(AuditError::read)?;
    rows(&connection, sql, [], row).map_err(|error| match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) if limits.stop.load(Ordering::Relaxed) => {
            AuditError::Interrupted
        }
        Some(ErrorCode::OperationInterrupted) => AuditError::TimedOut(limits.time.as_secs()),
        Some(ErrorCode::AuthorizationForStatementDenied | ErrorCode::ReadOnly) => AuditError::NotReadOnly,
        Some(ErrorCode::DatabaseCorrupt) => {
            AuditError::Corrupt { path: path.to_owned(), detail: error.to_string() }
        }
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::DatabaseBusy) => {
            AuditError::read(error)
        }
        _ => AuditError::Sql(reason(&error)),
    })
}

fn confine(connection: &mut Connection, over: impl Fn() -> bool + Send + 'static) -> rusqlite::Result<()> {
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, LONGEST)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.authorizer(Some(authorize))?;
    connection.progress_handler(10_000, Some(over))
}

fn authorize(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => Authorization::Allow,
        AuthAction::Function { function_name } if !function_name.eq_ignore_ascii_case("load_extension") => {
            Authorization::Allow
        }
        AuthAction::Pragma { pragma_name, .. }
            if ["table_info", "table_list", "table_xinfo"]
                .iter()
                .any(|allowed| pragma_name.eq_ignore_ascii_case(allowed)) =>
        {
            Authorization::Allow
        }
        _ => Authorization::Deny,
    }
}

/// Hands each row of an answer to `row` until that breaks. Returns the names of the columns.
pub(super) fn rows(
    connection: &Connection,
    sql: &str,
    parameters: impl Params,
    mut row: impl FnMut(&[String], Vec<Cell>) -> ControlFlow<()>,
) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut rows = statement.query(parameters)?;
    while let Some(found) = rows.next()? {
        let cells = (0..columns.len())
            .map(|column| found.get_ref(column).map(Cell::from))
            .collect::<Result<_, _>>()?;
        if row(&columns, cells).is_break() {
            break;
        }
    }
    Ok(columns)
}

impl From<ValueRef<'_>> for Cell {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(number) => Self::Real(number),
            ValueRef::Text(bytes) => Self::Text(String::from_utf8_lossy(bytes).into_owned()),
            ValueRef::Blob(bytes) => Self::Bytes(bytes.to_vec()),
        }
    }
}

/// What SQLite says, without the query, which may be long.
fn reason(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, offset, .. } if *offset >= 0 => {
            format!("{msg}, at byte {offset}")
        }
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::MultipleStatement => "more than one statement".to_owned(),
        rusqlite::Error::InvalidParameterCount(..) => "a parameter (?, :name) has no value here".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
