//! The trail in short: its sessions, and how much of what there was.

use std::path::Path;

use super::filter::{self, Filter, Parameter};
use super::query::{self, Cell};
use super::{AuditError, schema};

/// What statements are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Account,
    Caller,
    Day,
    Effect,
    Object,
    Policy,
    Role,
    Verdict,
    Workload,
}

/// Rows under their headings.
#[derive(Debug)]
pub struct Summary {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
}

/// The last sessions, no more than `last`, the newest first: of those with statements that are wanted.
pub fn sessions(journal: &Path, filter: &Filter, last: u32) -> Result<Summary, AuditError> {
    let began = schema::ISO_TIME.replace(", time", ", n.time");
    let sql = format!(
        "SELECT {began} AS began, n.id AS session, n.subject, n.cgroup, n.user, n.role, n.client,
                count(s.seq) AS statements, coalesce(sum(o.status = 'refused'), 0) AS refused,
                coalesce(sum(o.status = 'failed'), 0) AS failed, coalesce(sum(o.rows), 0) AS rows,
                (SELECT count(*) FROM payloads p WHERE p.session = n.id) AS payloads
         FROM sessions n JOIN statements s ON s.session = n.id LEFT JOIN outcomes o ON o.statement = s.id
         WHERE {}
         GROUP BY n.id ORDER BY n.time DESC LIMIT :last",
        filter::STATEMENTS
    );
    read(journal, &sql, &filter.parameters(&[(":last", &last)]))
}

/// How many statements there were, what became of them, and what they brought; the most first, no more than `last` rows.
pub fn stats(journal: &Path, filter: &Filter, by: By, last: u32) -> Result<Summary, AuditError> {
    let (name, what) = by.column();
    let objects = if by == By::Object { ", json_each(s.objects) object" } else { "" };
    let sql = format!(
        "SELECT {what} AS {name}, count(*) AS statements, coalesce(sum(o.status = 'refused'), 0) AS refused,
                coalesce(sum(o.status = 'failed'), 0) AS failed, count(DISTINCT s.session) AS sessions,
                coalesce(sum(o.rows), 0) AS rows, coalesce(sum(o.response_bytes), 0) AS bytes,
                cast(coalesce(avg(o.duration_us), 0) / 1000 AS INTEGER) AS mean_ms, coalesce(max(o.duration_us) / 1000, 0) AS longest_ms
         FROM statements s{objects} LEFT JOIN outcomes o ON o.statement = s.id
         WHERE {}
         GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :last",
        filter::STATEMENTS
    );
    read(journal, &sql, &filter.parameters(&[(":last", &last)]))
}

impl By {
    /// Its name, and what it is in SQL.
    fn column(self) -> (&'static str, &'static str) {
        match self {
            Self::Account => ("account", "s.account"),
            Self::Caller => ("caller", "s.subject"),
            Self::Day => ("day", "strftime('%Y-%m-%d', s.time / 1000000, 'unixepoch')"),
            Self::Effect => ("effect", "s.effect"),
            Self::Object => ("object", "object.value"),
            Self::Policy => ("policy", "s.policy"),
            Self::Role => ("role", "s.role"),
            Self::Verdict => ("verdict", "s.verdict"),
            Self::Workload => ("workload", "s.cgroup"),
        }
    }
}

fn read(journal: &Path, sql: &str, parameters: &[Parameter<'_>]) -> Result<Summary, AuditError> {
    let connection = schema::open_read_only(journal)?;
    let mut rows = Vec::new();
    let columns = query::rows(&connection, sql, parameters, |_, cells| {
        rows.push(cells);
        std::ops::ControlFlow::Continue(())
    });
    let columns = columns.map_err(AuditError::read)?;
    Ok(Summary { columns, rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::samples::{TIME, outcome, session, statement};
    use crate::audit::{Journal, Outcome, OutcomeStatus, Record, Verdict};

    fn texts(summary: &Summary, columns: &[&str]) -> Vec<String> {
        let places: Vec<usize> = columns
            .iter()
            .map(|wanted| summary.columns.iter().position(|column| column == wanted).unwrap())
            .collect();
        let row = |row: &Vec<Cell>| {
            places.iter().map(|place| row[*place].to_string()).collect::<Vec<_>>().join(" ")
        };
        summary.rows.iter().map(row).collect()
    }

    async fn journal(path: &Path) {
        let journal = Journal::open(path, "node").unwrap();
        let mut records: Vec<Record> = Vec::new();
        for (number, subject) in [(1, "agent-1"), (3, "agent-2")] {
            let mut session = session();
            session.time = TIME + number;
            session.caller.subject = subject.to_owned();
            records.push(session.clone().into());
            for statement_number in 0..number {
                let mut statement = statement(session.id, "select 1", Verdict::Allow);
                statement.time = TIME + 1000 * number + statement_number;
                statement.caller = session.caller.clone();
                if statement_number == 2 {
                    statement.objects = vec!["OTHER.\"x\"".to_owned()];
                    statement.verdict = Verdict::Deny;
                }
                let status =
                    if statement_number == 2 { OutcomeStatus::Refused } else { OutcomeStatus::Succeeded };
                let rows = (statement_number < 2).then_some(10);
                let end = Outcome { status, rows, ..outcome(statement.id) };
                records.extend([Record::from(statement), end.into()]);
            }
        }
        journal.append(records).await.unwrap();
    }

    #[tokio::test]
    async fn sessions_are_counted_with_what_is_wanted_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        journal(&path).await;
        let found = |filter: &Filter, last| {
            texts(&sessions(&path, filter, last).unwrap(), &["subject", "statements", "refused", "rows"])
        };
        assert_eq!(found(&Filter::default(), 9), ["agent-2 3 1 20", "agent-1 1 0 10"]);
        assert_eq!(found(&Filter::default(), 1), ["agent-2 3 1 20"]);
        let denied = Filter { verdict: Some(Verdict::Deny), ..Filter::default() };
        assert_eq!(found(&denied, 9), ["agent-2 1 1 0"]);
        let early = Filter { until: Some(TIME + 2000), ..Filter::default() };
        assert_eq!(found(&early, 9), ["agent-1 1 0 10"]);
        for (object, statements) in
            [("orders", 3), ("public.orders", 3), ("sales.*", 3), ("ORDER", 0), ("other.*", 1), ("*", 4)]
        {
            let filter = Filter { object: Some(object.to_owned()), ..Filter::default() };
            let counted = texts(&stats(&path, &filter, By::Account, 9).unwrap(), &["statements"]);
            assert_eq!(
                counted.concat(),
                if statements == 0 { String::new() } else { statements.to_string() },
                "{object}"
            );
        }
    }

    #[tokio::test]
    async fn statements_are_counted_by_whatever_they_have() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        journal(&path).await;
        let found = |by, column| {
            texts(
                &stats(&path, &Filter::default(), by, 9).unwrap(),
                &[column, "statements", "refused", "rows", "sessions"],
            )
        };
        assert_eq!(found(By::Caller, "caller"), ["agent-2 3 1 20 1", "agent-1 1 0 10 1"]);
        assert_eq!(found(By::Verdict, "verdict"), ["allow 3 0 30 2", "deny 1 1 0 1"]);
        assert_eq!(found(By::Day, "day"), ["2026-01-02 4 1 30 2"]);
        assert_eq!(
            found(By::Object, "object"),
            ["SALES.PUBLIC.\"Odd, name\" 3 0 30 2", "SALES.PUBLIC.ORDERS 3 0 30 2", "OTHER.\"x\" 1 1 0 1"]
        );
        for by in [By::Account, By::Effect, By::Policy, By::Role, By::Workload] {
            assert_eq!(stats(&path, &Filter::default(), by, 9).unwrap().rows.len(), 1, "{by:?}");
        }
    }
}
