//! The writer to ClickHouse: takes what the journal holds, in order, and delivers it exactly once, however often either
//! side dies in between.
//!
//! A batch is a range of `seq` that is written down in the journal before it is sent. After an error or a crash the very
//! same range is sent again, with the same deduplication tokens, until ClickHouse has confirmed it. Should ClickHouse
//! have forgotten the token, the rows still have the same key (node, journal, seq), of which `FINAL` shows one.

mod batch;
mod central;
mod connection;
mod ddl;
mod deployed;
mod migrations;
mod native;
mod proof;
mod reader;
mod retention;
mod roles;
mod tables;
mod views;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::watch;
use tracing::info;

use self::batch::{Batch, Limits, Rows};
use self::connection::Connection;
use self::ddl::Target;
use self::deployed::{Deployed, Last};
use super::delivery::{Delivery, Progress, Sink};
use super::{AuditError, Journal, schema};
use crate::config::{RetentionDays, Secret};

pub(super) use self::central::Central;
pub use self::deployed::{Applied, Finding, Report, apply, print, status};
pub use self::proof::{Delivered, DeliveredSource, delivered};
pub(super) use self::reader::Reader;

/// How long ClickHouse has for one request.
const REQUEST: Duration = Duration::from_mins(2);

/// How much of a request is compressed at once.
const CHUNK: usize = 1 << 20;

/// Where ClickHouse is, and how much goes there at once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The HTTP interfaces of one ClickHouse, `http://host:port` or `https://host:port`: its replicas, the first one first.
    pub urls: Vec<String>,
    /// Root certificates (PEM); the system's where there is none.
    pub ca_bundle: Option<PathBuf>,
    /// Letters, digits and underscores. It is created where it is missing.
    pub database: String,
    /// The cluster of ClickHouse, where it is one: tables are replicated and sharded.
    pub cluster: Option<String>,
    /// Whether the schema is applied before anything is delivered, or must be there.
    pub apply_schema: bool,
    pub retention: RetentionDays,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Most rows of a batch.
    pub batch_rows: u32,
    /// Most bytes of a batch; a row that has more is sent alone.
    pub batch_bytes: u64,
    /// How long rows wait for others, so that ClickHouse gets few large inserts.
    pub interval: Duration,
    /// How long ClickHouse has for one request.
    pub request: Duration,
}

/// Delivers to ClickHouse. [`Writer::run`] runs it.
#[derive(Debug)]
pub struct Writer {
    journal: Journal,
    settings: Settings,
    connection: Connection,
}

impl Settings {
    pub fn new(urls: Vec<String>, database: impl Into<String>) -> Self {
        Self {
            urls,
            ca_bundle: None,
            database: database.into(),
            cluster: None,
            apply_schema: true,
            retention: RetentionDays::default(),
            user: None,
            password: None,
            batch_rows: 80_000,
            batch_bytes: 64 << 20,
            interval: Duration::from_secs(1),
            request: REQUEST,
        }
    }

    fn target(&self) -> Result<Target, AuditError> {
        for name in [Some(&self.database), self.cluster.as_ref()].into_iter().flatten() {
            if !is_identifier(name) {
                return Err(AuditError::ClickHouseDatabase(name.clone()));
            }
        }
        Ok(Target { database: self.database.clone(), cluster: self.cluster.clone() })
    }
}

impl Writer {
    /// Checks the settings. Sends nothing yet.
    pub fn new(journal: Journal, settings: Settings) -> Result<Self, AuditError> {
        settings.target()?;
        if settings.batch_rows == 0 {
            return Err(AuditError::ClickHouseBatch);
        }
        let connection = Connection::new(&settings)?;
        Ok(Self { journal, settings, connection })
    }

    /// Delivers until `stop` is done or the journal is closed. May be dropped at any moment.
    pub async fn run(self, progress: Arc<watch::Sender<Progress>>, stop: impl Future<Output = ()>) {
        Delivery::new(self.journal.clone(), self, progress).run(stop).await;
    }

    /// The last record that ClickHouse has of this journal must be this journal's: a copy from an earlier time gives its
    /// numbers to other records.
    async fn require_own_past(&self, cursor: &str, deployed: &Deployed<'_>) -> Result<(), AuditError> {
        let after = self.journal.cursor(cursor).await?.delivered;
        let begin = schema::read(self.journal.path(), move |connection| {
            schema::first_time(connection, after).map_err(AuditError::read)
        });
        let Some(last) = deployed.last_record(&self.journal, after, begin.await?).await? else {
            return Ok(());
        };
        let Last { seq, time } = last;
        let is_another = schema::read(self.journal.path(), move |connection| {
            schema::is_another(connection, seq, time).map_err(AuditError::read)
        });
        if is_another.await? { Err(AuditError::ClickHouseAhead { found: seq }) } else { Ok(()) }
    }

    /// Inserts the rows of one table, as the batch of this token.
    async fn insert(&self, table: Rows, token: String) -> Result<(), AuditError> {
        let Rows { table, columns, native } = table;
        let insert = async {
            let sql = format!("INSERT INTO {table} ({columns}) FORMAT Native");
            let insert = self.connection.endpoint().database.insert_formatted_with(sql);
            let mut insert = insert.with_setting("insert_deduplication_token", token);
            let mut left = Bytes::from(native);
            while !left.is_empty() {
                insert.send(left.split_to(left.len().min(CHUNK))).await?;
            }
            insert.end().await
        };
        self.connection.answered(insert).await
    }
}

impl Sink for Writer {
    const SAME_AGAIN: bool = true;

    type Batch = Batch;

    fn name(&self) -> &'static str {
        "ClickHouse"
    }

    fn patience(&self) -> (u32, Duration) {
        (self.settings.batch_rows, self.settings.interval)
    }

    /// Sees to the schema. The cursor is named by the ClickHouse, by whichever endpoint, so that another one, or a new
    /// database in its place, gets everything from the beginning.
    async fn prepare(&mut self) -> Result<String, AuditError> {
        let deployed = Deployed::new(&self.connection, &self.settings)?;
        let found = deployed.version().await?;
        if self.settings.apply_schema {
            deployed.apply(found, &|step| info!("ClickHouse: {step}")).await?;
        } else {
            Deployed::require_current(found)?;
        }
        let cursor = format!("clickhouse {}", deployed.destination().await?);
        self.require_own_past(&cursor, &deployed).await?;
        Ok(cursor)
    }

    async fn read(&self, after: i64, end: Option<i64>) -> Result<(i64, Batch), AuditError> {
        let journal = self.journal.id();
        let limits = Limits { rows: self.settings.batch_rows, bytes: self.settings.batch_bytes };
        let batch = schema::read(self.journal.path(), move |connection| match end {
            Some(end) => Batch::again(connection, journal, after, end),
            None => Batch::next(connection, journal, after, limits),
        });
        batch.await.map(|batch| (batch.end, batch))
    }

    /// The tables go at the same time, as a server inserts each by one thread.
    async fn send(&self, batch: Batch) -> Result<u64, AuditError> {
        let Batch { after, end, tables } = batch;
        let inserts = tables.into_iter().map(|table| {
            let token = format!("{} {} {after} {end}", self.journal.id(), table.table);
            self.insert(table, token)
        });
        try_join_all(inserts).await?;
        Ok(0)
    }

    /// It may be another server by now. The others may be well: only when each had its turn is there reason to wait.
    async fn has_failed(&mut self) -> bool {
        self.connection.next()
    }
}

fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    name.len() <= 64
        && characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|other| other.is_ascii_alphanumeric() || other == '_')
}

#[cfg(test)]
mod tests;
