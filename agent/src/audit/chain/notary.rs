//! The task that signs what the journal holds.

use std::future::Future;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use tokio::time::sleep;

use super::LONGEST;
use super::canonical::{self, Leaf};
use super::checkpoint::Checkpoint;
use super::key::SigningKey;
use crate::audit::schema::RECORDS;
use crate::audit::{AuditError, Journal, schema};

/// No record waits longer for a signature while the agent works.
const INTERVAL: Duration = Duration::from_secs(5);

/// Checkpoints that are made at the end, at most: whoever stops the agent waits.
const LAST: usize = 16;

/// Signs the journal's records as they come.
#[derive(Debug)]
pub struct Notary {
    journal: Journal,
    key: SigningKey,
}

/// What there is to sign.
struct Pending {
    before: Option<Checkpoint>,
    number: u64,
    leaves: Vec<Leaf>,
    /// Behind them something is missing: they are signed for themselves.
    is_cut: bool,
}

impl Notary {
    pub fn new(journal: Journal, key: SigningKey) -> Self {
        Self { journal, key }
    }

    /// Signs until `stop` is done, and then what there is by then, as far as that is no backlog.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let (mut failing, mut more) = (false, false);
        loop {
            let pause = if more { Duration::ZERO } else { INTERVAL };
            let stopped = tokio::select! {
                biased;
                () = &mut stop => true,
                () = sleep(pause) => false,
            };
            for _ in 0..if stopped { LAST } else { 1 } {
                more = match self.step().await {
                    Err(AuditError::Closed) => return,
                    Err(error) => {
                        if !failing {
                            tracing::error!(%error, "the records cannot be signed; it is tried again");
                        }
                        failing = true;
                        false
                    }
                    Ok(more) => {
                        failing = false;
                        more
                    }
                };
                if !more {
                    break;
                }
            }
            if stopped {
                return;
            }
        }
    }

    /// Signs all that there is.
    #[cfg(test)]
    pub(in crate::audit) async fn sign(&self) -> Result<(), AuditError> {
        while self.step().await? {}
        Ok(())
    }

    /// Makes one checkpoint. Says whether there may be more to sign.
    async fn step(&self) -> Result<bool, AuditError> {
        let last = self.journal.written().borrow().last_seq;
        let id = self.journal.id();
        let pending = schema::read(self.journal.path(), move |connection| pending(connection, id, last));
        let Pending { before, number, leaves, is_cut } = pending.await?;
        // A checkpoint alone needs none: there would never be an end.
        if !is_cut && leaves.iter().all(|leaf| leaf.is_checkpoint) {
            return Ok(false);
        }
        let node = self.journal.node();
        let checkpoint = Checkpoint::sign(id, node, number, before.as_ref(), &leaves, &self.key);
        let Some(checkpoint) = checkpoint else { return Ok(false) };
        self.journal.append(vec![checkpoint.into()]).await?;
        Ok(true)
    }
}

/// The first records that are not signed yet, up to `last`.
fn pending(connection: &Connection, journal: uuid::Uuid, last: i64) -> Result<Pending, AuditError> {
    let before = newest(connection).map_err(AuditError::read)?;
    let signed = before.as_ref().map_or(0, |before| before.last_seq);
    let first = schema::first_after(connection, signed).map_err(AuditError::read)?;
    let number = next_number(connection, before.as_ref()).map_err(AuditError::read)?;
    let Some(first) = first else { return Ok(Pending { before, number, leaves: Vec::new(), is_cut: false }) };
    let end = last.min(first.saturating_add(i64::try_from(LONGEST).unwrap_or(i64::MAX) - 1));
    let mut leaves = canonical::leaves(connection, journal, first - 1, end, LONGEST)?;
    // What is missing is between two checkpoints, and shows.
    let whole = leaves.iter().zip(first..).take_while(|(leaf, seq)| leaf.seq == *seq).count();
    let is_cut = whole < leaves.len();
    leaves.truncate(whole);
    Ok(Pending { before, number, leaves, is_cut })
}

/// The next checkpoint's number. Each record that is missing after the last one may have been a checkpoint, and somebody
/// may have that: no number is given twice.
fn next_number(connection: &Connection, before: Option<&Checkpoint>) -> rusqlite::Result<u64> {
    let rows = RECORDS.map(|table| format!("SELECT count(*) AS rows FROM {table} WHERE seq > ?1"));
    let sql =
        format!("SELECT last_seq - ?1 - (SELECT sum(rows) FROM ({})) FROM journal", rows.join(" UNION ALL "));
    let newest = "SELECT coalesce((SELECT seq FROM checkpoints WHERE number = ?1), 0)";
    let number = before.map_or(0, |before| before.number);
    let seq: i64 =
        connection.query_row(newest, [i64::try_from(number).unwrap_or(i64::MAX)], |row| row.get(0))?;
    let missing: i64 = connection.query_row(&sql, [seq], |row| row.get(0))?;
    Ok(number.saturating_add(1).saturating_add(u64::try_from(missing).unwrap_or_default()))
}

fn newest(connection: &Connection) -> rusqlite::Result<Option<Checkpoint>> {
    connection
        .query_row("SELECT * FROM checkpoints ORDER BY number DESC LIMIT 1", [], Checkpoint::read)
        .optional()
}
