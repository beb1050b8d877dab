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
mod proof;
mod retention;
mod roles;
mod tables;
mod views;

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use ::clickhouse::{Row, RowOwned, RowWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use self::batch::Batch;
use self::connection::Connection;
use self::ddl::Target;
use self::deployed::Deployed;
use super::store::{self, Cursor};
use super::{AuditError, Journal, Written, schema};
use crate::config::{RetentionDays, Secret};

pub(super) use self::central::Central;
pub use self::deployed::{Applied, Finding, Report, apply, print, status};
pub use self::proof::{Delivered, DeliveredSource, delivered};

/// How long ClickHouse has for one request.
const REQUEST: Duration = Duration::from_mins(2);

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

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

/// How far the delivery is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `seq` of the last record that ClickHouse has confirmed.
    pub delivered: i64,
    /// Records that it has not confirmed.
    pub pending: i64,
    /// Why the last try failed; `None` after one that did not.
    pub error: Option<String>,
}

/// Answers [`Status`] while the writer runs.
#[derive(Clone, Debug)]
pub struct Monitor {
    written: watch::Receiver<Written>,
    progress: watch::Receiver<Progress>,
}

/// The task that delivers. [`Writer::run`] runs it.
#[derive(Debug)]
pub struct Writer {
    journal: Journal,
    settings: Settings,
    connection: Connection,
    progress: watch::Sender<Progress>,
    /// The name of its cursor in the journal, once ClickHouse has told.
    cursor: watch::Sender<Option<String>>,
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
            batch_rows: 20_000,
            batch_bytes: 16 << 20,
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

impl Monitor {
    pub fn status(&self) -> Status {
        let Progress { delivered, error } = self.progress.borrow().clone();
        let pending = self.written.borrow().last_seq.saturating_sub(delivered);
        Status { delivered, pending, error }
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
        let (progress, cursor) = (watch::Sender::default(), watch::Sender::default());
        Ok(Self { journal, settings, connection, progress, cursor })
    }

    /// The name of its cursor in the journal, once ClickHouse has told.
    pub fn cursor(&self) -> watch::Receiver<Option<String>> {
        self.cursor.subscribe()
    }

    pub fn monitor(&self) -> Monitor {
        Monitor { written: self.journal.written(), progress: self.progress.subscribe() }
    }

    /// Delivers until `stop` is done or the journal is closed. May be dropped at any moment.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.deliver() => {}
            () = stop => {}
        }
    }

    async fn deliver(&self) {
        let mut written = self.journal.written();
        let mut tries = 0;
        let mut sink = None;
        loop {
            match self.deliver_next(&mut written, &mut sink).await {
                Ok(()) => {
                    if tries > 0 {
                        info!("ClickHouse takes records again");
                    }
                    tries = 0;
                }
                Err(AuditError::Closed) => return,
                Err(error) => {
                    if tries == 0 {
                        warn!(
                            "{error}; the journal keeps the records, and delivery is tried until it succeeds"
                        );
                    }
                    self.progress.send_modify(|progress| progress.error = Some(error.to_string()));
                    // It may be another server by now.
                    sink = None;
                    self.connection.endpoint().database.clear_cached_metadata().await;
                    // The others may be well: only when each had its turn is there reason to wait.
                    if self.connection.next() {
                        sleep(delay(tries)).await;
                    }
                    tries = tries.saturating_add(1);
                }
            }
        }
    }

    /// Delivers one batch; waits for records where there are none.
    async fn deliver_next(
        &self,
        written: &mut watch::Receiver<Written>,
        sink: &mut Option<String>,
    ) -> Result<(), AuditError> {
        let sink = match sink {
            Some(sink) => sink,
            None => sink.insert(self.prepare().await?),
        };
        let cursor = self.read_cursor(sink).await?;
        self.progress.send_replace(Progress { delivered: cursor.delivered, error: None });
        let end = if cursor.sending > cursor.delivered {
            cursor.sending
        } else {
            self.wait_for_records(cursor.delivered, written).await;
            let end = self.choose_end(cursor.delivered).await?;
            let sending = Cursor { delivered: cursor.delivered, sending: end };
            self.journal.save_cursor(sink, sending).await?;
            end
        };
        self.send(cursor.delivered, end).await?;
        self.journal.save_cursor(sink, Cursor { delivered: end, sending: end }).await?;
        self.progress.send_replace(Progress { delivered: end, error: None });
        Ok(())
    }

    /// Sees to the schema. Returns the name of the cursor: it is that of the ClickHouse, by whichever endpoint, so that
    /// another one, or a new database in its place, gets everything from the beginning.
    async fn prepare(&self) -> Result<String, AuditError> {
        let deployed = Deployed::new(&self.connection, &self.settings)?;
        let found = deployed.version().await?;
        if self.settings.apply_schema {
            deployed.apply(found, &|step| info!("ClickHouse: {step}")).await?;
        } else {
            Deployed::require_current(found)?;
        }
        let sink = format!("clickhouse {}", deployed.destination().await?);
        if self.read_cursor(&sink).await? == Cursor::default() {
            self.adopt_cursor(&sink, &deployed).await?;
        }
        self.cursor.send_replace(Some(sink.clone()));
        Ok(sink)
    }

    /// Goes on where a version of this program was that named the cursor by the URL; if it was this ClickHouse: then it
    /// has the last record of this journal that was delivered there.
    async fn adopt_cursor(&self, sink: &str, deployed: &Deployed<'_>) -> Result<(), AuditError> {
        let url = self.connection.endpoint().url.trim_end_matches('/');
        let old = self.read_cursor(&format!("clickhouse {url}/{}", self.settings.database)).await?;
        if old.delivered > 0 && deployed.last_seq(self.journal.id()).await? >= old.delivered {
            self.journal.save_cursor(sink, old).await?;
        }
        Ok(())
    }

    async fn wait_for_records(&self, delivered: i64, written: &mut watch::Receiver<Written>) {
        let has = |rows: i64| move |written: &Written| written.last_seq.saturating_sub(delivered) >= rows;
        // The journal that this writer holds keeps the sender: neither wait can fail.
        let _ = written.wait_for(has(1)).await;
        let full = written.wait_for(has(i64::from(self.settings.batch_rows)));
        let until = Instant::now() + self.settings.interval;
        tokio::select! {
            _ = full => {}
            () = sleep_until(until) => {}
        }
    }

    async fn read_cursor(&self, sink: &str) -> Result<Cursor, AuditError> {
        let sink = sink.to_owned();
        self.read(move |connection| store::cursor(connection, &sink)).await
    }

    async fn choose_end(&self, after: i64) -> Result<i64, AuditError> {
        let (rows, bytes) = (self.settings.batch_rows, self.settings.batch_bytes);
        self.read(move |connection| batch::choose_end(connection, after, rows, bytes)).await
    }

    async fn send(&self, after: i64, end: i64) -> Result<(), AuditError> {
        let journal = self.journal.id();
        let Batch { sessions, statements, outcomes, events, payloads, running, checkpoints } =
            self.read(move |connection| Batch::read(connection, journal, after, end)).await?;
        self.insert("sessions", sessions, after, end).await?;
        self.insert("statements", statements, after, end).await?;
        self.insert("outcomes", outcomes, after, end).await?;
        self.insert("events", events, after, end).await?;
        self.insert("payloads", payloads, after, end).await?;
        self.insert("running", running, after, end).await?;
        self.insert("checkpoints", checkpoints, after, end).await
    }

    async fn insert<T>(&self, table: &str, rows: Vec<T>, after: i64, end: i64) -> Result<(), AuditError>
    where
        T: Row + RowOwned + RowWrite,
    {
        if rows.is_empty() {
            return Ok(());
        }
        let token = format!("{} {table} {after} {end}", self.journal.id());
        let insert = async {
            let insert = self.connection.endpoint().database.insert::<T>(table).await?;
            let mut insert = insert.with_setting("insert_deduplication_token", token);
            for row in &rows {
                insert.write(row).await?;
            }
            insert.end().await
        };
        self.connection.answered(insert).await
    }

    /// Reads the journal on a thread where that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&rusqlite::Connection) -> Result<T, AuditError> + Send + 'static,
    ) -> Result<T, AuditError> {
        let path = self.journal.path().to_owned();
        let task = tokio::task::spawn_blocking(move || read(&schema::open_read_only(&path)?));
        // It is cancelled only when the runtime ends.
        task.await.unwrap_or(Err(AuditError::Closed))
    }
}

#[derive(Clone, Debug, Default)]
struct Progress {
    delivered: i64,
    error: Option<String>,
}

fn is_identifier(name: &str) -> bool {
    let mut characters = name.chars();
    name.len() <= 64
        && characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|other| other.is_ascii_alphanumeric() || other == '_')
}

/// Doubles from [`FIRST_DELAY`] to [`LONGEST_DELAY`], less up to half of it by chance, so that a fleet does not come
/// back in step.
fn delay(tries: u32) -> Duration {
    let longest = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(tries)).min(LONGEST_DELAY);
    let chance = RandomState::new().build_hasher().finish() % 1000;
    longest.mul_f64(1.0 - f64::from(u16::try_from(chance).unwrap_or(0)) / 2000.0)
}

#[cfg(test)]
mod tests;
