//! What leaves the journal: records that are in every sink, and old enough or in the way.
//!
//! They go in whole checkpoints. That they go is itself a record (`records_removed`), which is signed before they do, and says
//! which checkpoint was the last one: from there on, the chain is verified.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep;

use super::chain::Checkpoint;
use super::delivery::Progress;
use super::payload::hexadecimal;
use super::{AuditError, Event, EventKind, Journal, now, schema, store};

/// How often it is looked for what can go.
const INTERVAL: Duration = Duration::from_secs(10);
/// Records that are removed at once: others wait to be written meanwhile.
const STEP: i64 = 5_000;
/// Of the journal's limit, in tenths: from here on, records go before their time.
const CROWDED: u64 = 9;
/// The part of the journal that goes then.
const PART: i64 = 5;

/// What stays, and for how long.
#[derive(Clone, Debug)]
pub struct Retention {
    /// `None`: until there is no more room.
    pub keep: Option<Duration>,
    /// What records must have been delivered to. Where that is nothing, records go by their age alone.
    pub sinks: Vec<Arc<watch::Sender<Progress>>>,
}

/// The detail of the event `records_removed`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Removal {
    /// The last record that went.
    pub through: i64,
    /// The checkpoint that covered it, and the digest of what was signed of that.
    pub checkpoint: u64,
    pub digest: String,
}

/// A removal, and the record that says so.
pub struct Announced {
    pub seq: i64,
    pub removal: Removal,
}

impl Retention {
    /// Removes what can go until `stop` is done.
    pub async fn run(self, journal: Journal, stop: impl Future<Output = ()>) {
        let work = async {
            let mut failing = false;
            loop {
                match self.step(&journal).await {
                    Err(AuditError::Closed) => return,
                    Err(error) if !failing => {
                        tracing::error!(%error, "old records cannot be removed from the journal; it is tried again");
                        failing = true;
                    }
                    Err(_) => {}
                    Ok(()) => failing = false,
                }
                sleep(INTERVAL).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stop => {}
        }
    }

    /// Announces a removal, or does one that was announced and is signed.
    pub(super) async fn step(&self, journal: &Journal) -> Result<(), AuditError> {
        let (path, id) = (journal.path().to_owned(), journal.id());
        let written = *journal.written().borrow();
        let is_crowded = written.bytes / 10 >= journal.limit() / 10 / 10 * CROWDED;
        let retention = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let connection = schema::open_read_only(&path)?;
            let due = due(&connection).map_err(read_error)?;
            let next = match &due {
                Some(_) => None,
                None => retention.choose(&connection, id, is_crowded).map_err(read_error)?,
            };
            Ok((due, next))
        });
        // It is cancelled only when the runtime ends.
        let (due, next) = task.await.unwrap_or(Err(AuditError::Closed))?;
        if let Some(Due { first, through }) = due {
            let mut to = first;
            while to < through {
                to = through.min(to.saturating_add(STEP));
                journal.remove(to).await?;
            }
            tracing::info!(through, "records that are everywhere they belong have left the journal");
        }
        let Some(removal) = next else { return Ok(()) };
        let detail = serde_json::to_string(&removal).unwrap_or_default();
        journal.append(vec![Event::new(EventKind::RecordsRemoved, detail).into()]).await
    }

    /// What could go next.
    fn choose(
        &self,
        connection: &Connection,
        journal: uuid::Uuid,
        is_crowded: bool,
    ) -> rusqlite::Result<Option<Removal>> {
        let mut delivered = i64::MAX;
        for sink in &self.sinks {
            let Some(cursor) = sink.borrow().cursor().map(ToOwned::to_owned) else { return Ok(None) };
            delivered = delivered.min(store::delivered(connection, &cursor)?);
        }
        let newest = |condition: &str, bound: i64| {
            let sql = format!(
                "SELECT * FROM checkpoints WHERE last_seq <= ?1 AND {condition} ORDER BY number DESC LIMIT 1"
            );
            connection.query_row(&sql, [delivered, bound], Checkpoint::read).optional()
        };
        let mut chosen = None;
        if let Some(keep) = self.keep {
            let keep = i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
            chosen = newest("time < ?2", now().saturating_sub(keep))?;
        }
        if chosen.is_none() && is_crowded && !self.sinks.is_empty() {
            let (first, last): (i64, i64) = connection.query_row(
                "SELECT coalesce(min(first_seq), 0), coalesce(max(last_seq), 0) FROM checkpoints",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            chosen = newest(
                "number <= (SELECT min(number) FROM checkpoints WHERE last_seq >= ?2)",
                first + (last - first) / PART,
            )?;
        }
        Ok(chosen.map(|checkpoint| Removal {
            through: checkpoint.last_seq,
            checkpoint: checkpoint.number,
            digest: hexadecimal(&checkpoint.digest(journal)),
        }))
    }
}

/// Records that may go now.
struct Due {
    first: i64,
    through: i64,
}

/// What was announced, is signed, and is still there.
fn due(connection: &Connection) -> rusqlite::Result<Option<Due>> {
    let Some(Announced { seq, removal: Removal { through, .. } }) = latest(connection)? else {
        return Ok(None);
    };
    let is_signed =
        connection.prepare("SELECT 1 FROM checkpoints WHERE last_seq >= ?1 LIMIT 1")?.exists([seq])?;
    let first = schema::first_seq(connection)?.filter(|first| is_signed && *first <= through);
    Ok(first.map(|first| Due { first, through }))
}

/// The last removal that was announced.
pub(super) fn latest(connection: &Connection) -> rusqlite::Result<Option<Announced>> {
    let found = connection
        .query_row(
            "SELECT seq, detail FROM events WHERE kind = 'records_removed' ORDER BY seq DESC LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get::<_, String>(1)?)),
        )
        .optional()?;
    Ok(found.and_then(|(seq, detail)| Some(Announced { seq, removal: serde_json::from_str(&detail).ok()? })))
}

fn read_error(error: rusqlite::Error) -> AuditError {
    AuditError::Read(Arc::new(error))
}

#[cfg(test)]
mod tests;
