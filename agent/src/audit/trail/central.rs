//! The questions, asked of ClickHouse.

use std::collections::HashSet;

use clickhouse::{Client, RowOwned, RowRead};

use super::{Forwarded, MOST, Opened, STATEMENTS, Scope, TEXT};
use crate::audit::AuditError;
use crate::audit::clickhouse::{Settings, one_line, reader};

/// Identifiers in one question: its text has a limit.
const AT_ONCE: usize = 2000;

#[derive(Clone)]
pub(super) struct Central {
    client: Client,
    url: String,
}

impl std::fmt::Debug for Central {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Central").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Central {
    pub(super) fn new(settings: Settings) -> Result<Self, AuditError> {
        Ok(Self { client: reader(&settings)?, url: settings.url })
    }

    pub(super) async fn begins(&self) -> Result<i64, AuditError> {
        let sql = "SELECT toUnixTimestamp64Micro(min(time)) FROM events WHERE kind = 'agent_started'";
        Ok(self.answered(self.client.query(sql).fetch_all::<i64>()).await?.first().copied().unwrap_or(0))
    }

    pub(super) async fn known(&self, queries: &[String]) -> Result<HashSet<String>, AuditError> {
        let mut known = HashSet::new();
        for some in queries.chunks(AT_ONCE) {
            let sql = "SELECT query_id FROM outcomes WHERE query_id IN ?
                 UNION ALL SELECT query_id FROM running WHERE query_id IN ?";
            known.extend(self.rows::<String>(self.client.query(sql).bind(some).bind(some)).await?);
        }
        Ok(known)
    }

    pub(super) async fn forwarded(
        &self,
        scope: &Scope,
        sessions: &[String],
    ) -> Result<Vec<Forwarded>, AuditError> {
        let sql = "SELECT toString(s.id) AS id, n.snowflake_session AS session,
                if(o.query_id = '', r.query_id, o.query_id) AS query_id, substringUTF8(s.sql, 1, ?) AS sql,
                s.effect = 'opaque' OR hasAny(s.features, ['dynamic_sql', 'stored_body']) AS runs_others,
                toUnixTimestamp64Micro(s.time) AS time,
                if(o.status = '', 9223372036854775807, toUnixTimestamp64Micro(o.time)) AS ended
             FROM statements AS s FINAL JOIN sessions AS n FINAL ON n.id = s.session
             LEFT JOIN outcomes AS o FINAL ON o.statement = s.id
             LEFT JOIN running AS r FINAL ON r.statement = s.id
             WHERE s.verdict = 'allow' AND s.account = ? AND upper(s.user) = ?
               AND s.time < fromUnixTimestamp64Micro(?) AND (o.status = '' OR o.time >= fromUnixTimestamp64Micro(?))
               AND (n.snowflake_session = '' OR n.snowflake_session IN ?)
             LIMIT ? SETTINGS join_use_nulls = 0";
        let mut forwarded = Vec::new();
        // Those without a session come even where there is none to ask for.
        let none = [String::new()];
        for some in if sessions.is_empty() { &none } else { sessions }.chunks(AT_ONCE) {
            let query = self.client.query(sql).bind(TEXT).bind(&scope.account).bind(&scope.user);
            let query = query.bind(scope.until).bind(scope.from).bind(some).bind(STATEMENTS);
            forwarded.extend(self.rows::<Forwarded>(query).await?);
        }
        Ok(forwarded)
    }

    pub(super) async fn calls(&self, scope: &Scope) -> Result<Vec<(i64, i64)>, AuditError> {
        let sql = "SELECT toUnixTimestamp64Micro(s.time) AS begin,
                if(o.status = '', 9223372036854775807, toUnixTimestamp64Micro(o.time)) AS ended
             FROM statements AS s FINAL JOIN sessions AS n FINAL ON n.id = s.session
             LEFT JOIN outcomes AS o FINAL ON o.statement = s.id
             WHERE s.verdict = 'allow' AND s.account = ? AND upper(s.user) = ? AND n.snowflake_session = ''
               AND (o.status = '' OR o.time >= fromUnixTimestamp64Micro(?)) AND s.time < fromUnixTimestamp64Micro(?)
             LIMIT ? SETTINGS join_use_nulls = 0";
        self.rows(self.of(sql, scope)).await
    }

    pub(super) async fn opened(&self, scope: &Scope) -> Result<Vec<Opened>, AuditError> {
        let sql = "SELECT snowflake_session AS session, toUnixTimestamp64Micro(time) AS time FROM sessions FINAL
             WHERE snowflake_session <> '' AND account = ? AND upper(user) = ?
               AND sessions.time >= fromUnixTimestamp64Micro(?) AND sessions.time < fromUnixTimestamp64Micro(?)
             LIMIT ?";
        self.rows(self.of(sql, scope)).await
    }

    pub(super) async fn succeeded(&self, scope: &Scope) -> Result<Vec<String>, AuditError> {
        let sql =
            "SELECT o.query_id FROM statements AS s FINAL JOIN outcomes AS o FINAL ON o.statement = s.id
             WHERE o.status = 'succeeded' AND o.query_id <> '' AND NOT s.describe_only
               AND s.account = ? AND upper(s.user) = ?
               AND s.time >= fromUnixTimestamp64Micro(?) AND o.time < fromUnixTimestamp64Micro(?) LIMIT ?";
        self.rows(self.of(sql, scope)).await
    }

    pub(super) async fn reported(&self, name: &str, ids: &[String]) -> Result<HashSet<String>, AuditError> {
        let sql = "SELECT JSONExtractString(detail, ?) AS finding FROM events
             WHERE kind IN ('unrecorded_statement', 'unrecorded_login') AND finding IN ?";
        let mut reported = HashSet::new();
        for some in ids.chunks(AT_ONCE) {
            reported.extend(self.rows::<String>(self.client.query(sql).bind(name).bind(some)).await?);
        }
        Ok(reported)
    }

    fn of(&self, sql: &str, scope: &Scope) -> clickhouse::query::Query {
        let query = self.client.query(sql).bind(&scope.account).bind(&scope.user);
        query.bind(scope.from).bind(scope.until).bind(MOST)
    }

    async fn rows<T: RowOwned + RowRead>(
        &self,
        query: clickhouse::query::Query,
    ) -> Result<Vec<T>, AuditError> {
        self.answered(query.fetch_all::<T>()).await
    }

    async fn answered<T>(
        &self,
        request: impl Future<Output = clickhouse::error::Result<T>>,
    ) -> Result<T, AuditError> {
        let answer = tokio::time::timeout(super::super::clickhouse::REQUEST, request).await;
        answer
            .unwrap_or(Err(clickhouse::error::Error::TimedOut))
            .map_err(|error| AuditError::ClickHouseRead { url: self.url.clone(), cause: one_line(&error) })
    }
}
