//! Snowflake's own history of what its users ran and when they logged in: how it is asked for, and read.
//!
//! Columns, limits and the reach of each are those of Snowflake's documentation (`QUERY_HISTORY`, `LOGIN_HISTORY`: table
//! functions and views; `SESSIONS`).

use super::json::Malformed;
use crate::config::History;

/// The most rows that an answer has; there may be more if it has as many.
pub const LIMIT: usize = 10_000;
/// Of a statement's text so much is asked for, in characters.
const TEXT: usize = 2000;

/// What a user did in a span of time. Times in microseconds since the Unix epoch; the end is not in the span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub from: i64,
    pub until: i64,
}

/// A statement that Snowflake ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Executed {
    pub query_id: String,
    /// The first part.
    pub text: String,
    pub user: String,
    pub role: String,
    /// Snowflake's number of the session.
    pub session: String,
    pub status: String,
    pub started: i64,
    pub ended: i64,
    /// From where its session was opened, and by what; empty where the history does not tell.
    pub address: String,
    pub client: String,
}

/// A login that succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login {
    pub event_id: String,
    pub time: i64,
    pub user: String,
    pub address: String,
    pub client: String,
    /// By what the user proved who it is.
    pub factor: String,
    /// The session that it opened; empty where the history does not tell.
    pub session: String,
}

/// Asks for the statements of a user that ended in the span, no more than [`LIMIT`]. What drivers run for themselves is
/// among them: whoever sends a statement may call it that.
pub fn ask_executed(history: History, user: &str, span: Span) -> String {
    let Span { from, until } = span;
    match history {
        History::InformationSchema => format!(
            "SELECT QUERY_ID, LEFT(QUERY_TEXT, {TEXT}), USER_NAME, ROLE_NAME, SESSION_ID, EXECUTION_STATUS, START_TIME, END_TIME, NULL, NULL, NULL FROM TABLE(SNOWFLAKE.INFORMATION_SCHEMA.QUERY_HISTORY_BY_USER(USER_NAME => {}, END_TIME_RANGE_START => TO_TIMESTAMP_LTZ({from}, 6), END_TIME_RANGE_END => TO_TIMESTAMP_LTZ({until}, 6), RESULT_LIMIT => {LIMIT}, INCLUDE_CLIENT_GENERATED_STATEMENT => TRUE))",
            literal(&identifier(user))
        ),
        History::AccountUsage => format!(
            "SELECT q.QUERY_ID, LEFT(q.QUERY_TEXT, {TEXT}), q.USER_NAME, q.ROLE_NAME, q.SESSION_ID, q.EXECUTION_STATUS, q.START_TIME, q.END_TIME, l.CLIENT_IP, l.REPORTED_CLIENT_TYPE, l.REPORTED_CLIENT_VERSION FROM SNOWFLAKE.ACCOUNT_USAGE.QUERY_HISTORY q LEFT JOIN SNOWFLAKE.ACCOUNT_USAGE.SESSIONS s ON s.SESSION_ID = q.SESSION_ID LEFT JOIN SNOWFLAKE.ACCOUNT_USAGE.LOGIN_HISTORY l ON l.EVENT_ID = s.LOGIN_EVENT_ID WHERE q.USER_NAME = {} AND q.END_TIME >= TO_TIMESTAMP_LTZ({from}, 6) AND q.END_TIME < TO_TIMESTAMP_LTZ({until}, 6) LIMIT {LIMIT}",
            literal(user)
        ),
    }
}

/// Asks for the logins of a user in the span, no more than [`LIMIT`], those that failed too.
pub fn ask_logins(history: History, user: &str, span: Span) -> String {
    let Span { from, until } = span;
    match history {
        History::InformationSchema => format!(
            "SELECT EVENT_ID, EVENT_TIMESTAMP, USER_NAME, CLIENT_IP, REPORTED_CLIENT_TYPE, REPORTED_CLIENT_VERSION, FIRST_AUTHENTICATION_FACTOR, IS_SUCCESS, NULL FROM TABLE(SNOWFLAKE.INFORMATION_SCHEMA.LOGIN_HISTORY_BY_USER(USER_NAME => {}, TIME_RANGE_START => TO_TIMESTAMP_LTZ({from}, 6), TIME_RANGE_END => TO_TIMESTAMP_LTZ({until}, 6), RESULT_LIMIT => {LIMIT}))",
            literal(&identifier(user))
        ),
        History::AccountUsage => format!(
            "SELECT l.EVENT_ID, l.EVENT_TIMESTAMP, l.USER_NAME, l.CLIENT_IP, l.REPORTED_CLIENT_TYPE, l.REPORTED_CLIENT_VERSION, l.FIRST_AUTHENTICATION_FACTOR, l.IS_SUCCESS, s.SESSION_ID FROM SNOWFLAKE.ACCOUNT_USAGE.LOGIN_HISTORY l LEFT JOIN SNOWFLAKE.ACCOUNT_USAGE.SESSIONS s ON s.LOGIN_EVENT_ID = l.EVENT_ID WHERE l.USER_NAME = {} AND l.EVENT_TIMESTAMP >= TO_TIMESTAMP_LTZ({from}, 6) AND l.EVENT_TIMESTAMP < TO_TIMESTAMP_LTZ({until}, 6) LIMIT {LIMIT}",
            literal(user)
        ),
    }
}

impl Executed {
    /// Reads a row of [`ask_executed`]. `None`: it has not ended.
    pub fn read(row: &[Option<String>]) -> Result<Option<Self>, Malformed> {
        let cells = Cells::of(row, 11)?;
        if cells.text(7).is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            query_id: cells.text(0),
            text: cells.text(1),
            user: cells.text(2),
            role: cells.text(3),
            session: cells.text(4),
            status: cells.text(5),
            started: cells.time(6)?,
            ended: cells.time(7)?,
            address: cells.text(8),
            client: cells.client(9),
        }))
    }
}

impl Login {
    /// Reads a row of [`ask_logins`]. `None`: it was refused.
    pub fn read(row: &[Option<String>]) -> Result<Option<Self>, Malformed> {
        let cells = Cells::of(row, 9)?;
        if cells.text(7) != "YES" {
            return Ok(None);
        }
        Ok(Some(Self {
            event_id: cells.text(0),
            time: cells.time(1)?,
            user: cells.text(2),
            address: cells.text(3),
            client: cells.client(4),
            factor: cells.text(6),
            session: cells.text(8),
        }))
    }
}

impl Span {
    /// Its two halves; `None` if it is too short to be parted.
    pub fn halves(self) -> Option<(Self, Self)> {
        let length = self.until.saturating_sub(self.from);
        let middle = whole(self.from + length / 2);
        (self.from < middle)
            .then_some((Self { until: middle, ..self }, Self { from: middle, until: self.until }))
    }

    /// Without fractions of milliseconds, which Snowflake's times lack.
    pub fn new(from: i64, until: i64) -> Self {
        Self { from: whole(from), until: whole(until) }
    }

    pub fn has(self, time: i64) -> bool {
        (self.from..self.until).contains(&time)
    }
}

fn whole(time: i64) -> i64 {
    time - time.rem_euclid(1000)
}

/// A row with as many cells as were asked for.
struct Cells<'a>(&'a [Option<String>]);

impl<'a> Cells<'a> {
    fn of(row: &'a [Option<String>], count: usize) -> Result<Self, Malformed> {
        if row.len() == count { Ok(Self(row)) } else { Err(Malformed::Field("rowset")) }
    }

    fn text(&self, column: usize) -> String {
        self.0.get(column).cloned().flatten().unwrap_or_default()
    }

    /// The application and its version, which stand side by side.
    fn client(&self, column: usize) -> String {
        format!("{} {}", self.text(column), self.text(column + 1)).trim().to_owned()
    }

    /// `TIMESTAMP_LTZ` in JSON: seconds since the Unix epoch with a fraction.
    fn time(&self, column: usize) -> Result<i64, Malformed> {
        let text = self.text(column);
        let (seconds, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let wrong = Malformed::Field("rowset");
        let digits: String = fraction.chars().chain("000000".chars()).take(6).collect();
        let seconds: i64 = seconds.parse().map_err(|_| wrong.clone())?;
        let micros: i64 = digits.parse().map_err(|_| wrong.clone())?;
        seconds.checked_mul(1_000_000).and_then(|whole| whole.checked_add(micros)).ok_or(wrong)
    }
}

/// A user's name as an identifier: in quotes, unless it is one without.
fn identifier(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'$');
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_uppercase() || byte == b'_');
    if starts && name.bytes().all(plain) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<Option<String>> {
        cells.iter().map(|cell| (!cell.is_empty()).then(|| (*cell).to_owned())).collect()
    }

    #[test]
    fn names_stay_names() {
        let span = Span { from: 1, until: 2 };
        let ask = |user: &str| ask_executed(History::InformationSchema, user, span);
        assert!(ask("SVC_1").contains("USER_NAME => 'SVC_1',"));
        assert!(ask("ADA@X'; DROP\\").contains(r#"USER_NAME => '"ADA@X''; DROP\\"',"#));
        let views = ask_logins(History::AccountUsage, "O'X", span);
        assert!(views.contains("l.USER_NAME = 'O''X' AND"), "{views}");
    }

    #[test]
    fn rows_are_read() {
        let cells = [
            "01b1",
            "select 1",
            "SVC",
            "PUBLIC",
            "42",
            "SUCCESS",
            "1700000000.123000000",
            "1700000001",
            "",
            "",
            "",
        ];
        let executed = Executed::read(&row(&cells)).unwrap().unwrap();
        assert_eq!(
            (executed.started, executed.ended, executed.session.as_str(), executed.client.as_str()),
            (1_700_000_000_123_000, 1_700_000_001_000_000, "42", "")
        );
        let mut runs = cells;
        runs[7] = "";
        assert_eq!(Executed::read(&row(&runs)).unwrap(), None);
        let mut strange = cells;
        for wrong in ["yesterday", "99999999999999999999", "9223372036854775807"] {
            strange[6] = wrong;
            assert!(Executed::read(&row(&strange)).is_err(), "{wrong}");
        }
        assert!(Executed::read(&row(&cells[1..])).is_err());
        let login = ["7", "1.5", "SVC", "192.0.2.1", "PYTHON_DRIVER", "5.2.0", "PASSWORD", "YES", ""];
        let read = Login::read(&row(&login)).unwrap().unwrap();
        assert_eq!((read.time, read.client.as_str()), (1_500_000, "PYTHON_DRIVER 5.2.0"));
        let mut failed = login;
        failed[7] = "NO";
        assert_eq!(Login::read(&row(&failed)).unwrap(), None);
    }

    #[test]
    fn a_span_is_halved_without_a_gap_until_it_is_too_short() {
        let mut span = Span::new(10_999, 1_010_000);
        let mut steps = 0;
        while let Some((early, late)) = span.halves() {
            assert_eq!((early.from, early.until, late.until), (span.from, late.from, span.until));
            span = late;
            steps += 1;
        }
        assert_eq!((steps, span.has(span.from), span.has(span.until)), (10, true, false));
    }
}
