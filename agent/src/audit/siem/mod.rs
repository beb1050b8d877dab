//! Delivery to where security teams keep their events: the trail as OCSF events, in a file, by syslog, by HTTP.
//!
//! A record arrives at least once, in the order of the journal; `metadata.uid` tells who gets it twice. What a place refuses
//! for good is given up, in the log, the metrics and the trail, if the place takes other records.

mod file;
mod http;
mod ocsf;
mod rows;
mod shorten;
mod stream;
mod syslog;

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::error;

use self::http::{Answered, Http};
use self::ocsf::Event as OcsfEvent;
use self::syslog::Syslog;
use super::delivery::{self, Delivery, Progress};
use super::{AuditError, Event, EventKind, Journal, schema};
use crate::config::{Siem, SiemRecords, SiemTarget, SiemVerdict};
use crate::tls::{self, TlsError};

/// How long records wait for others.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of a batch for a file, or by syslog.
const BATCH_RECORDS: u32 = 1000;
const BATCH_BYTES: u64 = 4 << 20;

/// A sink, as it is configured.
pub struct Sink {
    journal: Journal,
    settings: Arc<Siem>,
    /// For messages.
    name: String,
    place: Place,
}

enum Place {
    File,
    Syslog(Syslog),
    Http(Http),
}

/// Whether a sink can be used, as far as that can be told without sending anything.
pub fn check(settings: &Siem) -> Result<(), TlsError> {
    Place::new(settings).map(drop)
}

impl Place {
    fn new(settings: &Siem) -> Result<Self, TlsError> {
        Ok(match settings.target.clone() {
            SiemTarget::File { .. } => Self::File,
            SiemTarget::Syslog { host, port, tls, ca_bundle, max_message_bytes } => {
                let tls = if tls { Some(tls::client_config(ca_bundle.as_deref(), &[])?) } else { None };
                Self::Syslog(Syslog { host, port, tls, max_message_bytes })
            }
            SiemTarget::Http { url, format, token, ca_bundle, gzip, batch_bytes, .. } => {
                let tls = match url.scheme_str() {
                    Some("https") => Some(tls::client_config(ca_bundle.as_deref(), &[b"http/1.1"])?),
                    _ => None,
                };
                let batch_bytes = usize::try_from(batch_bytes).unwrap_or(usize::MAX);
                Self::Http(Http { url, tls, format, token, gzip, batch_bytes })
            }
        })
    }
}

/// What of a journal is wanted.
#[derive(Clone)]
struct Filter {
    only: Option<Vec<SiemRecords>>,
    verdicts: Option<Vec<SiemVerdict>>,
}

impl Sink {
    pub fn new(journal: &Journal, settings: &Arc<Siem>) -> Result<Self, TlsError> {
        let name = format!("the SIEM sink `{}`", settings.name);
        let place = Place::new(settings)?;
        Ok(Self { journal: journal.clone(), settings: Arc::clone(settings), name, place })
    }

    /// Delivers until `stop` is done or the journal is closed. May be dropped at any moment.
    pub async fn run(self, progress: Arc<watch::Sender<Progress>>, stop: impl Future<Output = ()>) {
        let journal = self.journal.clone();
        Delivery::new(journal, self, progress).run(stop).await;
    }

    fn filter(&self) -> Filter {
        Filter { only: self.settings.only.clone(), verdicts: self.settings.verdicts.clone() }
    }

    fn failed(&self, cause: impl Display) -> AuditError {
        AuditError::Siem { sink: self.settings.name.clone(), cause: cause.to_string() }
    }

    fn limits(&self) -> (u32, u64) {
        match &self.settings.target {
            SiemTarget::Http { batch_records, .. } => (*batch_records, BATCH_BYTES),
            _ => (BATCH_RECORDS, BATCH_BYTES),
        }
    }

    async fn events(&self, filter: Filter, after: i64, end: i64) -> Result<Vec<OcsfEvent>, AuditError> {
        let journal = self.journal.id();
        schema::read(self.journal.path(), move |connection| {
            rows::read(connection, filter.only.as_deref(), after, end, |row| {
                filter.wants(&row).then(|| ocsf::event(journal, row))
            })
        })
        .await
    }

    async fn append(&self, events: Vec<OcsfEvent>) -> Result<(), AuditError> {
        let SiemTarget::File { path, max_bytes, keep_files } = self.settings.target.clone() else {
            return Ok(());
        };
        let appending = tokio::task::spawn_blocking(move || {
            let mut lines = Vec::with_capacity(events.iter().map(|event| event.json.len() + 1).sum());
            for event in &events {
                lines.extend(event.json.as_bytes());
                lines.push(b'\n');
            }
            file::append(&path, &lines, max_bytes, keep_files)
                .map_err(|error| format!("{}: {error}", path.display()))
        });
        // It is cancelled only when the runtime ends.
        appending.await.unwrap_or(Ok(())).map_err(|error| self.failed(error))
    }

    /// Gives up what is refused, if anything else is not. Returns how many records that are.
    async fn settle(&self, http: &Http, events: &[OcsfEvent], answered: Answered) -> Result<u64, AuditError> {
        let Some((_, why)) = answered.refused.first() else { return Ok(0) };
        if !answered.accepted && !self.takes_anything(http).await? {
            return Err(self.failed(format!("it refuses every record: {why}")));
        }
        let mut told = Vec::new();
        for (index, why) in &answered.refused {
            let Some(event) = events.get(*index) else { continue };
            let detail = format!("{} refuses record {} ({}): {why}", self.name, event.seq, event.table);
            error!("{detail}; it is given up there, and stays in the journal");
            if !event.is_giving_up {
                told.push(Event::new(EventKind::RecordGivenUp, detail).into());
            }
        }
        if !told.is_empty() {
            self.journal.append(told).await?;
        }
        Ok(u64::try_from(answered.refused.len()).unwrap_or(u64::MAX))
    }

    /// Whether it takes a record that has nothing from outside in it: that this agent has started, once more.
    async fn takes_anything(&self, http: &Http) -> Result<bool, AuditError> {
        const STARTED: &str =
            "SELECT coalesce(max(seq), 0) FROM events WHERE kind IN ('agent_started', 'records_removed')";
        let seq: i64 = schema::read(self.journal.path(), |connection| {
            let found = connection.query_row(STARTED, [], |row| row.get(0));
            found.map_err(AuditError::read)
        })
        .await?;
        if seq == 0 {
            return Ok(false);
        }
        let filter = Filter { only: Some(vec![SiemRecords::Events]), verdicts: None };
        let started = self.events(filter, seq - 1, seq).await?;
        let answered = http.send(&started).await.map_err(|error| self.failed(error))?;
        Ok(answered.accepted)
    }
}

impl delivery::Sink for Sink {
    type Batch = Vec<OcsfEvent>;

    const SAME_AGAIN: bool = false;

    fn name(&self) -> &str {
        &self.name
    }

    fn patience(&self) -> (u32, Duration) {
        (self.limits().0, PATIENCE)
    }

    async fn prepare(&mut self) -> Result<String, AuditError> {
        Ok(format!("siem {}", self.settings.name))
    }

    async fn read(&self, after: i64, end: Option<i64>) -> Result<(i64, Vec<OcsfEvent>), AuditError> {
        let (filter, (records, bytes)) = (self.filter(), self.limits());
        let end = match end {
            Some(end) => end,
            None => {
                schema::read(self.journal.path(), move |connection| {
                    rows::choose_end(connection, filter.only.as_deref(), after, records, bytes)
                })
                .await?
            }
        };
        Ok((end, self.events(self.filter(), after, end).await?))
    }

    async fn send(&self, events: Vec<OcsfEvent>) -> Result<u64, AuditError> {
        if events.is_empty() {
            return Ok(0);
        }
        match &self.place {
            Place::File => self.append(events).await.map(|()| 0),
            Place::Syslog(syslog) => {
                syslog.send(events).await.map(|()| 0).map_err(|error| self.failed(error))
            }
            Place::Http(http) => {
                let answered = http.send(&events).await.map_err(|error| self.failed(error))?;
                self.settle(http, &events, answered).await
            }
        }
    }
}

impl Filter {
    /// Verdicts are of statements, and of what became of them.
    fn wants(&self, row: &rows::Row) -> bool {
        let Some(verdicts) = &self.verdicts else { return true };
        if row.records != SiemRecords::Statements {
            return true;
        }
        verdicts.iter().any(|verdict| verdict.as_str() == row.peek("verdict"))
    }
}

#[cfg(test)]
mod tests;
