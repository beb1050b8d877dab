//! What the trail of all nodes knows of Snowflake's queries and sessions: see [`Trail`](crate::audit::trail::Trail).

use std::collections::HashSet;
use std::sync::Arc;

use clickhouse::query::Query;
use clickhouse::{RowOwned, RowRead};

use super::Settings;
use super::connection::Connection;
use crate::audit::AuditError;
use crate::audit::trail::{Forwarded, MAY_HAVE_RUN, MOST, Opened, STATEMENTS, Scope, TEXT};

/// Identifiers in one question: its text has a limit.
const AT_ONCE: usize = 2000;

#[derive(Clone, Debug)]
pub(in crate::audit) struct Central {
    connection: Arc<Connection>,
    /// All rows of a journal are on one shard, and so is what is joined.
    in_cluster: bool,
}

impl Central {
    pub(in crate::audit) fn new(settings: &Settings) -> Result<Self, AuditError> {
        let connection = Arc::new(Connection::new(settings)?);
        Ok(Self { connection, in_cluster: settings.cluster.is_some() })
    }

    pub(in crate::audit) async fn begins(&self) -> Result<i64, AuditError> {
        let sql = "SELECT toUnixTimestamp64Micro(min(time)) FROM events WHERE kind = 'agent_started'";
        Ok(self.rows::<i64>(self.query(sql)).await?.first().copied().unwrap_or(0))
    }

    pub(in crate::audit) async fn known(&self, queries: &[String]) -> Result<HashSet<String>, AuditError> {
        let mut known = HashSet::new();
        for some in queries.chunks(AT_ONCE) {
            let sql = "SELECT query_id FROM outcomes WHERE query_id IN ?
                 UNION ALL SELECT query_id FROM running WHERE query_id IN ?";
            known.extend(self.rows::<String>(self.query(sql).bind(some).bind(some)).await?);
        }
        Ok(known)
    }

    pub(in crate::audit) async fn forwarded(
        &self,
        scope: &Scope,
        sessions: &[String],
    ) -> Result<Vec<Forwarded>, AuditError> {
        let sql = format!(
            "SELECT toString(s.id) AS id, n.snowflake_session AS session,
                if(o.query_id = '', r.query_id, o.query_id) AS query_id, substringUTF8(s.sql, 1, ?) AS sql,
                s.effect = 'opaque' OR hasAny(s.features, ['dynamic_sql', 'stored_body']) AS runs_others,
                toUnixTimestamp64Micro(s.time) AS time,
                if(o.status = '', 9223372036854775807, toUnixTimestamp64Micro(o.time)) AS ended
             FROM statements AS s FINAL JOIN sessions AS n FINAL ON n.id = s.session
             LEFT JOIN outcomes AS o FINAL ON o.statement = s.id
             LEFT JOIN running AS r FINAL ON r.statement = s.id
             WHERE {MAY_HAVE_RUN} AND s.account = ? AND upper(s.user) = ?
               AND s.time < fromUnixTimestamp64Micro(?) AND (o.status = '' OR o.time >= fromUnixTimestamp64Micro(?))
               AND (n.snowflake_session = '' OR n.snowflake_session IN ?)
             LIMIT ? SETTINGS join_use_nulls = 0"
        );
        let mut forwarded = Vec::new();
        // Those without a session come even where there is none to ask for.
        let none = [String::new()];
        for some in if sessions.is_empty() { &none } else { sessions }.chunks(AT_ONCE) {
            let query = self.query(&sql).bind(TEXT).bind(&scope.account).bind(&scope.user);
            let query = query.bind(scope.until).bind(scope.from).bind(some).bind(STATEMENTS);
            forwarded.extend(self.rows::<Forwarded>(query).await?);
        }
        Ok(forwarded)
    }

    pub(in crate::audit) async fn calls(&self, scope: &Scope) -> Result<Vec<(i64, i64)>, AuditError> {
        let sql = format!(
            "SELECT toUnixTimestamp64Micro(s.time) AS begin,
                if(o.status = '', 9223372036854775807, toUnixTimestamp64Micro(o.time)) AS ended
             FROM statements AS s FINAL JOIN sessions AS n FINAL ON n.id = s.session
             LEFT JOIN outcomes AS o FINAL ON o.statement = s.id
             WHERE {MAY_HAVE_RUN} AND s.account = ? AND upper(s.user) = ? AND n.snowflake_session = ''
               AND (o.status = '' OR o.time >= fromUnixTimestamp64Micro(?)) AND s.time < fromUnixTimestamp64Micro(?)
             LIMIT ? SETTINGS join_use_nulls = 0"
        );
        self.rows(self.of(&sql, scope)).await
    }

    pub(in crate::audit) async fn opened(&self, scope: &Scope) -> Result<Vec<Opened>, AuditError> {
        let sql = "SELECT snowflake_session AS session, toUnixTimestamp64Micro(time) AS time FROM sessions FINAL
             WHERE snowflake_session <> '' AND account = ? AND upper(user) = ?
               AND sessions.time >= fromUnixTimestamp64Micro(?) AND sessions.time < fromUnixTimestamp64Micro(?)
             LIMIT ?";
        self.rows(self.of(sql, scope)).await
    }

    pub(in crate::audit) async fn succeeded(&self, scope: &Scope) -> Result<Vec<String>, AuditError> {
        let sql =
            "SELECT o.query_id FROM statements AS s FINAL JOIN outcomes AS o FINAL ON o.statement = s.id
             WHERE o.status = 'succeeded' AND o.query_id <> '' AND NOT s.describe_only
               AND s.account = ? AND upper(s.user) = ?
               AND s.time >= fromUnixTimestamp64Micro(?) AND o.time < fromUnixTimestamp64Micro(?) LIMIT ?";
        self.rows(self.of(sql, scope)).await
    }

    pub(in crate::audit) async fn reported(
        &self,
        name: &str,
        ids: &[String],
    ) -> Result<HashSet<String>, AuditError> {
        let sql = "SELECT JSONExtractString(detail, ?) AS finding FROM events
             WHERE kind IN ('unrecorded_statement', 'unrecorded_login') AND finding IN ?";
        let mut reported = HashSet::new();
        for some in ids.chunks(AT_ONCE) {
            reported.extend(self.rows::<String>(self.query(sql).bind(name).bind(some)).await?);
        }
        Ok(reported)
    }

    fn of(&self, sql: &str, scope: &Scope) -> Query {
        let query = self.query(sql).bind(&scope.account).bind(&scope.user);
        query.bind(scope.from).bind(scope.until).bind(MOST)
    }

    fn query(&self, sql: &str) -> Query {
        let query = self.connection.endpoint().database.query(sql);
        if self.in_cluster { query.with_setting("distributed_product_mode", "local") } else { query }
    }

    /// After an error the next endpoint is asked, when somebody asks again.
    async fn rows<T: RowOwned + RowRead>(&self, query: Query) -> Result<Vec<T>, AuditError> {
        let answer = self.connection.answered(query.fetch_all::<T>()).await;
        if answer.is_err() {
            self.connection.next();
        }
        answer
    }
}
