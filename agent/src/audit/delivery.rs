//! Delivery of the journal to a place outside of it: in order, at the place's own pace, for as long as it takes.
//!
//! Each sink has a cursor of its own in the journal. What it has confirmed is behind the cursor; what it has not is tried
//! until it does, so that an outage of any length, a restart or a kill costs time and no record.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::store::Cursor;
use super::{AuditError, Journal, Written};

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// A place that takes ranges of the journal.
pub(super) trait Sink: Send + Sync {
    /// Records, ready to be sent.
    type Batch: Send;

    /// Whether a range that may have been sent has to be sent again as the very same one, by which the place knows it.
    const SAME_AGAIN: bool;

    /// How it is called in messages.
    fn name(&self) -> &str;

    /// For how many records, and for how long, a batch waits.
    fn patience(&self) -> (u32, Duration);

    /// Makes the place ready: at first, and after each failure, as it may be another one by then. Returns the name of its
    /// cursor: one that has none yet begins with the first record.
    fn prepare(&mut self) -> impl Future<Output = Result<String, AuditError>> + Send;

    /// Reads the batch that begins after `after`, behind which there are records: up to `end`, or up to where it chooses.
    /// Returns its end, too.
    fn read(
        &self,
        after: i64,
        end: Option<i64>,
    ) -> impl Future<Output = Result<(i64, Self::Batch), AuditError>> + Send;

    /// Delivers a batch, and returns when it has arrived: how many records had to be given up.
    fn send(&self, batch: Self::Batch) -> impl Future<Output = Result<u64, AuditError>> + Send;

    /// Hears that a try has failed. Says whether the next one has to wait.
    fn has_failed(&mut self) -> impl Future<Output = bool> + Send {
        std::future::ready(true)
    }
}

/// How far a delivery is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub name: String,
    /// `seq` of the last record that has arrived.
    pub delivered: i64,
    /// Records that have not.
    pub pending: i64,
    /// Tries that failed, since the agent started.
    pub errors: u64,
    /// Records that the sink has refused for good, since the agent started.
    pub given_up: u64,
    /// Why the last try failed; `None` after one that did not.
    pub error: Option<String>,
}

/// Answers [`Status`].
#[derive(Clone, Debug)]
pub struct Monitor {
    name: String,
    written: watch::Receiver<Written>,
    progress: watch::Receiver<Progress>,
}

/// What is known of a sink from one run of its delivery to the next.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The name of the cursor, once it is known.
    cursor: Option<String>,
    delivered: i64,
    errors: u64,
    given_up: u64,
    error: Option<String>,
}

impl Progress {
    #[cfg(test)]
    pub(super) fn of(cursor: &str) -> Self {
        Self { cursor: Some(cursor.to_owned()), ..Self::default() }
    }

    /// The name of the cursor in the journal, once it is known.
    pub(super) fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }
}

impl Monitor {
    pub fn new(name: &str, journal: &Journal, progress: &watch::Sender<Progress>) -> Self {
        Self { name: name.to_owned(), written: journal.written(), progress: progress.subscribe() }
    }

    pub fn status(&self) -> Status {
        let Progress { delivered, errors, given_up, error, .. } = self.progress.borrow().clone();
        let pending = self.written.borrow().last_seq.saturating_sub(delivered);
        Status { name: self.name.clone(), delivered, pending, errors, given_up, error }
    }
}

/// The task that delivers to a sink.
pub(super) struct Delivery<S> {
    journal: Journal,
    sink: S,
    progress: Arc<watch::Sender<Progress>>,
}

/// From where a delivery goes on.
struct Ready<B> {
    /// Of the cursor.
    name: String,
    after: i64,
    /// The next batch with its end, where it has been read. The cursor says that it may have been sent.
    ahead: Option<(i64, B)>,
}

impl<S: Sink> Delivery<S> {
    pub(super) fn new(journal: Journal, sink: S, progress: Arc<watch::Sender<Progress>>) -> Self {
        Self { journal, sink, progress }
    }

    /// Delivers until `stop` is done or the journal is closed. May be dropped at any moment.
    pub(super) async fn run(self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.deliver() => {}
            () = stop => {}
        }
    }

    async fn deliver(mut self) {
        let mut written = self.journal.written();
        let mut tries = 0;
        // What was said last of why it fails.
        let mut said = None;
        let mut ready = None;
        loop {
            match self.deliver_next(&mut written, ready.take()).await {
                Ok(next) => {
                    if said.take().is_some() {
                        info!("{} takes records again", self.sink.name());
                    }
                    tries = 0;
                    ready = Some(next);
                }
                Err(AuditError::Closed) => return,
                Err(error) => {
                    let kind = discriminant(&error);
                    if said.replace(kind) != Some(kind) {
                        warn!(
                            "{error}; the journal keeps the records, and delivery is tried until it succeeds"
                        );
                    }
                    self.progress.send_modify(|progress| {
                        progress.errors += 1;
                        progress.error = Some(error.to_string());
                    });
                    if self.sink.has_failed().await {
                        sleep(delay(tries)).await;
                    }
                    tries = tries.saturating_add(1);
                }
            }
        }
    }

    /// Delivers one batch; waits for records where there are none. Meanwhile it reads the next one, where there is enough
    /// for one already.
    async fn deliver_next(
        &mut self,
        written: &mut watch::Receiver<Written>,
        ready: Option<Ready<S::Batch>>,
    ) -> Result<Ready<S::Batch>, AuditError> {
        let Ready { name, after, ahead } = match ready {
            Some(ready) => ready,
            None => self.begin().await?,
        };
        let (end, batch) = if let Some(ahead) = ahead {
            ahead
        } else {
            self.wait_for_records(after, written).await;
            let (end, batch) = self.sink.read(after, None).await?;
            if S::SAME_AGAIN {
                self.journal.save_cursor(&name, Cursor { delivered: after, sending: end }).await?;
            }
            (end, batch)
        };
        let (given_up, ahead) = tokio::join!(self.sink.send(batch), self.read_ahead(end, written));
        let given_up = given_up?;
        // The next batch may be sent from here on.
        let sending = ahead.as_ref().map_or(end, |(end, _)| *end);
        self.journal.save_cursor(&name, Cursor { delivered: end, sending }).await?;
        self.progress.send_modify(|progress| {
            progress.delivered = end;
            progress.given_up += given_up;
            progress.error = None;
        });
        Ok(Ready { name, after: end, ahead })
    }

    /// Makes the sink ready, and reads again what may have been sent.
    async fn begin(&mut self) -> Result<Ready<S::Batch>, AuditError> {
        let name = self.sink.prepare().await?;
        let Cursor { delivered, sending } = self.journal.cursor(&name).await?;
        self.progress.send_modify(|progress| {
            progress.cursor = Some(name.clone());
            progress.delivered = delivered;
        });
        let ahead = if S::SAME_AGAIN && sending > delivered {
            Some(self.sink.read(delivered, Some(sending)).await?)
        } else {
            None
        };
        Ok(Ready { name, after: delivered, ahead })
    }

    /// The end of the batch that begins after `after`, and the batch; `None` where it has to wait for more, or cannot be
    /// read: then it is tried in its turn.
    async fn read_ahead(&self, after: i64, written: &watch::Receiver<Written>) -> Option<(i64, S::Batch)> {
        let (rows, _) = self.sink.patience();
        let waiting = written.borrow().last_seq.saturating_sub(after);
        if waiting < i64::from(rows) {
            return None;
        }
        self.sink.read(after, None).await.ok()
    }

    async fn wait_for_records(&self, delivered: i64, written: &mut watch::Receiver<Written>) {
        let (rows, patience) = self.sink.patience();
        let has = |rows: i64| move |written: &Written| written.last_seq.saturating_sub(delivered) >= rows;
        // The journal that this task holds keeps the sender: neither wait can fail.
        let _ = written.wait_for(has(1)).await;
        let full = written.wait_for(has(i64::from(rows)));
        let until = Instant::now() + patience;
        tokio::select! {
            _ = full => {}
            () = sleep_until(until) => {}
        }
    }
}

/// Doubles from [`FIRST_DELAY`] to [`LONGEST_DELAY`], less up to half of it by chance, so that a fleet does not come
/// back in step.
pub(super) fn delay(tries: u32) -> Duration {
    let longest = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(tries)).min(LONGEST_DELAY);
    let chance = RandomState::new().build_hasher().finish() % 1000;
    longest.mul_f64(1.0 - f64::from(u16::try_from(chance).unwrap_or(0)) / 2000.0)
}

#[cfg(test)]
mod tests;
