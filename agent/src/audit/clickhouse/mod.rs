//! The writer to ClickHouse: takes what the journal holds, in order, and delivers it exactly once, however often either
//! side dies in between.
//!
//! A batch is a range of `seq` that is written down in the journal before it is sent. After an error or a crash the very
//! same range is sent again, with the same deduplication tokens, until ClickHouse has confirmed it. Should ClickHouse
//! have forgotten the token, the rows still have the same key (node, journal, seq), of which `FINAL` shows one.

mod batch;
mod tables;

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use ::clickhouse::{Client, Row, RowOwned, RowWrite};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use self::batch::Batch;
use super::store::{self, Cursor};
use super::{AuditError, Journal, Written, schema};
use crate::config::Secret;

/// How long ClickHouse has for one request.
pub(super) const REQUEST: Duration = Duration::from_mins(2);
const CONNECT: Duration = Duration::from_secs(10);

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Where ClickHouse is, and how much goes there at once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The HTTP interface, `http://host:port` or `https://host:port`.
    pub url: String,
    /// Letters, digits and underscores. It is created where it is missing.
    pub database: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Most rows of a batch.
    pub batch_rows: u32,
    /// Most bytes of a batch; a row that has more is sent alone.
    pub batch_bytes: u64,
    /// How long rows wait for others, so that ClickHouse gets few large inserts.
    pub interval: Duration,
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
    /// For statements that name the database, as it may not be there yet.
    server: Client,
    /// For inserts.
    database: Client,
    /// Name of the cursor: another destination starts at the beginning.
    sink: String,
    progress: watch::Sender<Progress>,
}

impl Settings {
    pub fn new(url: impl Into<String>, database: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            database: database.into(),
            user: None,
            password: None,
            batch_rows: 20_000,
            batch_bytes: 16 << 20,
            interval: Duration::from_secs(1),
        }
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
        if !is_identifier(&settings.database) {
            return Err(AuditError::ClickHouseDatabase(settings.database));
        }
        if settings.batch_rows == 0 {
            return Err(AuditError::ClickHouseBatch);
        }
        let server = client(&settings)?;
        let database = server.clone().with_database(&settings.database);
        let sink = format!("clickhouse {}/{}", settings.url.trim_end_matches('/'), settings.database);
        let cursor = store::cursor(&schema::open_read_only(journal.path())?, &sink)?;
        let progress = watch::Sender::new(Progress { delivered: cursor.delivered, error: None });
        Ok(Self { journal, settings, server, database, sink, progress })
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
        let mut has_tables = false;
        loop {
            match self.deliver_next(&mut written, &mut has_tables).await {
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
                    has_tables = false;
                    self.database.clear_cached_metadata().await;
                    sleep(delay(tries)).await;
                    tries = tries.saturating_add(1);
                }
            }
        }
    }

    /// Delivers one batch; waits for records where there are none.
    async fn deliver_next(
        &self,
        written: &mut watch::Receiver<Written>,
        has_tables: &mut bool,
    ) -> Result<(), AuditError> {
        if !*has_tables {
            self.create_tables().await?;
            *has_tables = true;
            self.progress.send_modify(|progress| progress.error = None);
        }
        let cursor = self.read_cursor().await?;
        let end = if cursor.sending > cursor.delivered {
            cursor.sending
        } else {
            self.wait_for_records(cursor.delivered, written).await;
            let end = self.choose_end(cursor.delivered).await?;
            let sending = Cursor { delivered: cursor.delivered, sending: end };
            self.journal.save_cursor(&self.sink, sending).await?;
            end
        };
        self.send(cursor.delivered, end).await?;
        self.journal.save_cursor(&self.sink, Cursor { delivered: end, sending: end }).await?;
        self.progress.send_replace(Progress { delivered: end, error: None });
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

    async fn create_tables(&self) -> Result<(), AuditError> {
        for sql in tables::statements(&self.settings.database) {
            self.answered(self.server.query(&sql).execute()).await?;
        }
        Ok(())
    }

    async fn read_cursor(&self) -> Result<Cursor, AuditError> {
        let sink = self.sink.clone();
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
            let insert = self.database.insert::<T>(table).await?;
            let mut insert = insert.with_setting("insert_deduplication_token", token);
            for row in &rows {
                insert.write(row).await?;
            }
            insert.end().await
        };
        self.answered(insert).await
    }

    async fn answered(
        &self,
        request: impl Future<Output = ::clickhouse::error::Result<()>>,
    ) -> Result<(), AuditError> {
        let answer = timeout(REQUEST, request).await.unwrap_or(Err(::clickhouse::error::Error::TimedOut));
        answer.map_err(|error| AuditError::ClickHouse {
            url: self.settings.url.clone(),
            cause: one_line(&error),
        })
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

/// Asks questions about the database.
pub(super) fn reader(settings: &Settings) -> Result<Client, AuditError> {
    if !is_identifier(&settings.database) {
        return Err(AuditError::ClickHouseDatabase(settings.database.clone()));
    }
    Ok(client(settings)?.with_database(&settings.database))
}

fn client(settings: &Settings) -> Result<Client, AuditError> {
    let wrong = |problem| AuditError::ClickHouseUrl { url: settings.url.clone(), problem };
    let Some((scheme, rest)) = settings.url.split_once("://") else {
        return Err(wrong("it has no http:// or https://"));
    };
    if rest.contains(['@', '?', '#']) {
        return Err(wrong(
            "it must be a scheme, a host and a port only; user and password have keys of their own",
        ));
    }
    let client = match scheme {
        "http" => {
            let mut connector = HttpConnector::new();
            connector.set_connect_timeout(Some(CONNECT));
            connector.set_keepalive(Some(Duration::from_mins(1)));
            // ClickHouse closes idle connections after three seconds.
            let idle = Duration::from_secs(2);
            let http = HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(idle).build(connector);
            Client::with_http_client(http)
        }
        // The crate's own client panics where the system has no roots.
        "https" if rustls_native_certs::load_native_certs().certs.is_empty() => {
            return Err(wrong("the system has no CA certificates to check it with: install ca-certificates"));
        }
        "https" => Client::default(),
        _ => return Err(wrong("its scheme is neither http nor https")),
    };
    let mut client = client
        .with_url(&settings.url)
        .with_product_info("snowfence", env!("CARGO_PKG_VERSION"))
        .with_setting("async_insert", "0")
        .with_setting("insert_deduplicate", "1")
        // A clock that jumped must not make a batch that can never be delivered.
        .with_setting("max_partitions_per_insert_block", "0");
    if let Some(user) = &settings.user {
        client = client.with_user(user);
    }
    if let Some(password) = &settings.password {
        client = client.with_password(password.expose());
    }
    Ok(client)
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

/// ClickHouse's errors have many lines; the log gets the beginning of the first one.
pub(super) fn one_line(error: &::clickhouse::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
mod tests;
