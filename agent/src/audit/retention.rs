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
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::chain::Checkpoint;
use super::delivery::Progress;
use super::payload::hexadecimal;
use super::{AuditError, Event, EventKind, Journal, now, schema, store};

/// How often it is looked for what can go.
const INTERVAL: Duration = Duration::from_secs(10);
/// Between two removals, in microseconds, where there is room.
const REST: i64 = 60 * 60 * 1_000_000;
/// How long a clock that was set is not believed.
const DISTRUST: Duration = Duration::from_hours(1);
/// By how much it may go wrong between two looks, in microseconds.
const SLACK: u64 = 60 * 1_000_000;
/// Records that are removed at once: others wait to be written meanwhile.
const STEP: i64 = 5_000;
/// Of the journal's limit, in tenths: from here on, records go before their time.
const CROWDED: u64 = 9;
/// The part of the journal that goes at once.
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
    pub time: i64,
    pub removal: Removal,
}

impl Retention {
    /// Removes what can go until `stop` is done.
    pub async fn run(self, journal: Journal, stop: impl Future<Output = ()>) {
        let work = async {
            let mut failing = false;
            let mut clock = Clock::default();
            let by_room = Self { keep: None, ..self.clone() };
            loop {
                // By a clock that has just been set, nothing is old.
                let retention = if clock.is_steady(now(), Instant::now()) { &self } else { &by_room };
                match retention.step(&journal).await {
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
        let id = journal.id();
        let is_crowded = journal.written().borrow().bytes >= journal.limit() / 10 * CROWDED;
        let retention = self.clone();
        let next = schema::read(journal.path(), move |connection| {
            retention.next(connection, id, is_crowded).map_err(AuditError::read)
        });
        match next.await? {
            Next::Nothing => Ok(()),
            Next::Announce(removal) => {
                let detail = serde_json::to_string(&removal).unwrap_or_default();
                journal.append(vec![Event::new(EventKind::RecordsRemoved, detail).into()]).await
            }
            Next::Remove { first, through } => {
                let mut to = first - 1;
                while to < through {
                    to = through.min(to.saturating_add(STEP));
                    journal.remove(to).await?;
                }
                tracing::info!(through, "records that are everywhere they belong have left the journal");
                Ok(())
            }
        }
    }

    fn next(&self, connection: &Connection, journal: Uuid, is_crowded: bool) -> rusqlite::Result<Next> {
        let Some(first) = schema::first_seq(connection)? else { return Ok(Next::Nothing) };
        if let Some(Announced { seq, time, removal: Removal { through, .. } }) = latest(connection, i64::MAX)?
        {
            if first <= through {
                let is_signed = Checkpoint::last_signed(connection)? >= seq;
                return Ok(if is_signed { Next::Remove { first, through } } else { Next::Nothing });
            }
            // What was announced in the future, was by a clock that was wrong.
            if !is_crowded && (0..REST).contains(&now().saturating_sub(time)) {
                return Ok(Next::Nothing);
            }
        }
        Ok(self.choose(connection, journal, first, is_crowded)?.map_or(Next::Nothing, Next::Announce))
    }

    /// What could go next.
    fn choose(
        &self,
        connection: &Connection,
        journal: Uuid,
        first: i64,
        is_crowded: bool,
    ) -> rusqlite::Result<Option<Removal>> {
        let mut delivered = i64::MAX;
        for sink in &self.sinks {
            let Some(cursor) = sink.borrow().cursor().map(ToOwned::to_owned) else { return Ok(None) };
            delivered = delivered.min(store::delivered(connection, &cursor)?);
        }
        let last = schema::last_seq(connection)?;
        // No step takes more, whatever the clock says.
        let part = first.saturating_add(last.saturating_sub(first) / PART);
        let newest = |condition: &str, bound: i64| {
            let sql = format!(
                "SELECT * FROM checkpoints WHERE last_seq <= ?1 AND last_seq >= ?2
                 AND number <= (SELECT coalesce(min(number), (SELECT max(number) FROM checkpoints)) FROM checkpoints WHERE last_seq >= ?3)
                 AND {condition} ORDER BY number DESC LIMIT 1"
            );
            connection.query_row(&sql, [delivered, first, part, bound], Checkpoint::read).optional()
        };
        let by_age = match self.keep {
            Some(keep) => {
                let keep = i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
                // A clock that was wrong for a while makes nothing older than what came before it.
                let young = "number < (SELECT coalesce(min(number), 9223372036854775807) FROM checkpoints WHERE time >= ?4)";
                newest(young, now().saturating_sub(keep))?
            }
            None => None,
        };
        let for_room = if is_crowded && !self.sinks.is_empty() { newest("?4 = 0", 0)? } else { None };
        let chosen = by_age.into_iter().chain(for_room).max_by_key(|checkpoint| checkpoint.number);
        Ok(chosen.map(|checkpoint| Removal {
            through: checkpoint.last_seq,
            checkpoint: checkpoint.number,
            digest: hexadecimal(&checkpoint.digest(journal)),
        }))
    }
}

/// Whether the system's clock goes as time does.
#[derive(Debug, Default)]
struct Clock {
    last: Option<(i64, Instant)>,
    /// When it was set.
    set: Option<Instant>,
}

impl Clock {
    /// Whether it was not set of late.
    fn is_steady(&mut self, wall: i64, time: Instant) -> bool {
        if let Some((last_wall, last_time)) = self.last.replace((wall, time)) {
            let passed = i64::try_from(time.duration_since(last_time).as_micros()).unwrap_or(i64::MAX);
            if wall.saturating_sub(last_wall).abs_diff(passed) > SLACK {
                self.set = Some(time);
            }
        }
        self.set.is_none_or(|set| time.duration_since(set) >= DISTRUST)
    }
}

/// What is to be done.
enum Next {
    Nothing,
    Announce(Removal),
    /// What was announced, is signed, and is still there.
    Remove {
        first: i64,
        through: i64,
    },
}

/// The last removal that was announced up to this record.
pub(super) fn latest(connection: &Connection, signed: i64) -> rusqlite::Result<Option<Announced>> {
    let sql = "SELECT seq, time, detail FROM events WHERE kind = 'records_removed' AND seq <= ?1 ORDER BY seq DESC LIMIT 1";
    let found = connection
        .query_row(sql, [signed], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))
        .optional()?;
    Ok(found.and_then(|(seq, time, detail)| {
        Some(Announced { seq, time, removal: serde_json::from_str(&detail).ok()? })
    }))
}

#[cfg(test)]
mod tests;
