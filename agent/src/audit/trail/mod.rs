//! What the trail knows of Snowflake's queries and sessions, wherever it is: for the comparison with Snowflake's history.

mod journal;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::PathBuf;

use rusqlite::Connection;
use serde::Deserialize;

use super::clickhouse::{Central, Settings};
use super::{AuditError, schema};

/// Identifiers and times that are read at once.
pub(super) const MOST: u32 = 500_000;
/// Statements that are read at once, and how much of the text of each, in characters.
pub(super) const STATEMENTS: u32 = 20_000;
pub(super) const TEXT: u32 = 64 * 1024;

/// That a statement `s` may have run: it was allowed, or approved.
pub(super) const MAY_HAVE_RUN: &str =
    "(s.verdict = 'allow' OR s.id IN (SELECT statement FROM approvals WHERE ruling = 'approved'))";

/// Where the trail is.
#[derive(Clone, Debug)]
pub struct Trail {
    /// The journal of this node.
    journal: PathBuf,
    /// The trail of all nodes, if it is that one.
    central: Option<Central>,
}

/// Of whom, and of when. Times in microseconds since the Unix epoch; the end is not in it.
#[derive(Clone, Debug)]
pub struct Scope {
    pub account: String,
    /// Of Snowflake, in upper case.
    pub user: String,
    pub from: i64,
    pub until: i64,
}

/// A statement that was allowed or approved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, clickhouse::Row)]
pub struct Forwarded {
    pub id: String,
    /// Snowflake's number of the session; empty where there was none.
    pub session: String,
    /// Empty where it did not become known.
    pub query_id: String,
    pub sql: String,
    /// It may run statements that do not stand in it.
    pub runs_others: bool,
    pub time: i64,
    /// `i64::MAX` for one that has no outcome.
    pub ended: i64,
}

/// A session that was opened with Snowflake.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, clickhouse::Row)]
pub struct Opened {
    pub session: String,
    pub time: i64,
}

impl Trail {
    /// The journal of this node alone.
    pub fn of_node(journal: PathBuf) -> Self {
        Self { journal, central: None }
    }

    /// That of all nodes, and what of this node's is still on its way there.
    pub fn of_all(journal: PathBuf, settings: &Settings) -> Result<Self, AuditError> {
        Ok(Self { journal, central: Some(Central::new(settings)?) })
    }

    /// Since when it has everything.
    pub async fn begins(&self) -> Result<i64, AuditError> {
        match &self.central {
            Some(central) => central.begins().await,
            None => self.ask(journal::begins).await,
        }
    }

    /// Which of these queries it knows.
    pub async fn known(&self, queries: &[String]) -> Result<HashSet<String>, AuditError> {
        let asked = queries.to_vec();
        let mut known = self.ask(move |connection| journal::known(connection, &asked)).await?;
        if let Some(central) = &self.central {
            known.extend(central.known(queries).await?);
        }
        Ok(known)
    }

    /// The statements that ran at some moment of the scope: in these sessions, or by a door that has none.
    pub async fn forwarded(&self, scope: &Scope, sessions: &[String]) -> Result<Vec<Forwarded>, AuditError> {
        let (asked, of) = (scope.clone(), sessions.to_vec());
        let mut forwarded = self.ask(move |connection| journal::forwarded(connection, &asked, &of)).await?;
        if let Some(central) = &self.central {
            let here: HashSet<String> = forwarded.iter().map(|statement| statement.id.clone()).collect();
            let others = central.forwarded(scope, sessions).await?.into_iter();
            forwarded.extend(others.filter(|statement| !here.contains(&statement.id)));
        }
        Ok(forwarded)
    }

    /// When statements by a door without sessions ran, of those that did at some moment of the scope: begin and end.
    pub async fn calls(&self, scope: &Scope) -> Result<Vec<(i64, i64)>, AuditError> {
        let asked = scope.clone();
        let mut calls = self.ask(move |connection| journal::calls(connection, &asked)).await?;
        if let Some(central) = &self.central {
            calls.extend(central.calls(scope).await?);
        }
        Ok(calls)
    }

    /// The sessions that were opened in the scope.
    pub async fn opened(&self, scope: &Scope) -> Result<Vec<Opened>, AuditError> {
        let asked = scope.clone();
        let mut opened = self.ask(move |connection| journal::opened(connection, &asked)).await?;
        if let Some(central) = &self.central {
            let here: HashSet<String> = opened.iter().map(|opened| opened.session.clone()).collect();
            let others = central.opened(scope).await?.into_iter();
            opened.extend(others.filter(|opened| !here.contains(&opened.session)));
        }
        Ok(opened)
    }

    /// The queries that began and succeeded in the scope.
    pub async fn succeeded(&self, scope: &Scope) -> Result<Vec<String>, AuditError> {
        if let Some(central) = &self.central {
            return central.succeeded(scope).await;
        }
        let asked = scope.clone();
        self.ask(move |connection| journal::succeeded(connection, &asked)).await
    }

    /// Which of these have been found before: events of the kinds for it have them in their detail, by this name.
    pub async fn reported(&self, name: &'static str, ids: &[String]) -> Result<HashSet<String>, AuditError> {
        let asked = ids.to_vec();
        let mut reported = self.ask(move |connection| journal::reported(connection, name, &asked)).await?;
        if let Some(central) = &self.central {
            reported.extend(central.reported(name, ids).await?);
        }
        Ok(reported)
    }

    /// Reads the journal on a thread where that may block.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, AuditError> {
        schema::read(&self.journal, move |connection| ask(connection).map_err(AuditError::read)).await
    }
}
