//! Whose the latest queries are, for an agent that begins where another one ended.

use std::path::Path;

use super::{AuditError, schema};

/// A query of Snowflake's, and who asked for it by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedQuery {
    pub query_id: String,
    /// The statement, if it was held: its client knows the query by that.
    pub held: String,
    pub issuer: String,
    pub subject: String,
    pub account: String,
    pub rule: String,
}

/// The queries among the last `count` outcomes of a journal that are not older than `since`, in microseconds since the
/// epoch. The newest comes first.
pub fn latest_queries(journal: &Path, since: i64, count: u32) -> Result<Vec<OwnedQuery>, AuditError> {
    let connection = schema::open_read_only(journal)?;
    let mut query = connection
        .prepare(
            "SELECT o.query_id, s.issuer, s.subject, s.account, n.rule, iif(s.verdict = 'hold', s.id, '')
             FROM (SELECT * FROM outcomes ORDER BY seq DESC LIMIT ?2) o
             JOIN statements s ON s.id = o.statement JOIN sessions n ON n.id = s.session
             WHERE o.query_id <> '' AND o.time >= ?1 ORDER BY o.seq DESC",
        )
        .map_err(AuditError::read)?;
    let rows = query.query_map((since, count), |row| {
        Ok(OwnedQuery {
            query_id: row.get(0)?,
            issuer: row.get(1)?,
            subject: row.get(2)?,
            account: row.get(3)?,
            rule: row.get(4)?,
            held: row.get(5)?,
        })
    });
    rows.map_err(AuditError::read)?.collect::<Result<_, _>>().map_err(AuditError::read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::samples::{self, TIME, caller};
    use crate::audit::{Journal, Record, Running, Verdict};

    #[tokio::test]
    async fn the_latest_queries_are_their_callers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        let session = samples::session();
        let mut records = Vec::new();
        for (number, time) in [(1, TIME), (2, TIME + 10), (3, TIME + 20), (4, TIME + 30)] {
            let statement = samples::statement(session.id, "select 1", Verdict::Allow);
            // Of the last one, Snowflake's identifier never came.
            let query_id = if number == 4 { String::new() } else { format!("query-{number}") };
            let outcome = crate::audit::Outcome { time, query_id, ..samples::outcome(statement.id) };
            records.extend([Record::from(statement), outcome.into()]);
        }
        records.insert(0, session.clone().into());
        journal.append(records).await.unwrap();
        let ids = |since, count| {
            let latest = latest_queries(&path, since, count).unwrap();
            assert!(
                latest.iter().all(|query| query.subject == caller().subject && query.rule == session.rule)
            );
            latest.into_iter().map(|query| query.query_id).collect::<Vec<_>>()
        };
        assert_eq!(ids(TIME + 5, 10), ["query-3", "query-2"]);
        assert_eq!(ids(0, 3), ["query-3", "query-2"], "of the last three outcomes");
    }

    #[tokio::test]
    async fn a_query_that_ran_when_the_agent_ended_is_its_callers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        let session = samples::session();
        let statement = samples::statement(session.id, "call long()", Verdict::Hold);
        let id = statement.id.to_string();
        let running = Running { statement: statement.id, time: TIME, query_id: "query-1".to_owned() };
        journal.append(vec![session.into(), statement.into(), running.into()]).await.unwrap();
        assert_eq!(latest_queries(&path, 0, 10).unwrap(), []);
        journal.close().await;
        let _journal = Journal::open(&path, "node").unwrap();
        let latest = latest_queries(&path, 0, 10).unwrap();
        let known: Vec<_> =
            latest.iter().map(|query| (query.query_id.as_str(), query.held.as_str())).collect();
        assert_eq!(known, [("query-1", id.as_str())], "it was held, and is known by that too");
    }
}
