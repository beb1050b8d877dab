//! Delivery of the journal to a place outside of it: in order, at the place's own pace, for as long as it takes.
//!
//! Each sink has a cursor of its own in the journal. What it has confirmed is behind the cursor; what it has not is tried
//! until it does, so that an outage of any length, a restart or a kill costs time and no record.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::store::{self, Cursor};
use super::{AuditError, Journal, Written, schema};

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// A place that takes ranges of the journal.
pub(super) trait Sink: Send {
    /// Whether a range that may have been sent has to be sent again as the very same one, by which the place knows it.
    const SAME_AGAIN: bool;

    /// How it is called in messages.
    fn name(&self) -> &str;

    /// For how many records, and for how long, a batch waits.
    fn patience(&self) -> (u32, Duration);

    /// Makes the place ready: at first, and after each failure, as it may be another one by then. Returns the name of its
    /// cursor: one that has none yet begins with the first record.
    fn prepare(&mut self) -> impl Future<Output = Result<String, AuditError>> + Send;

    /// Where the batch ends that begins after `after`, behind which there are records.
    fn choose_end(&mut self, after: i64) -> impl Future<Output = Result<i64, AuditError>> + Send;

    /// Delivers what is in (`after`, `end`], and returns when it has arrived: how many records had to be given up.
    fn send(&mut self, after: i64, end: i64) -> impl Future<Output = Result<u64, AuditError>> + Send;

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
        let mut name = None;
        loop {
            match self.deliver_next(&mut written, &mut name).await {
                Ok(()) => {
                    if tries > 0 {
                        info!("{} takes records again", self.sink.name());
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
                    self.progress.send_modify(|progress| {
                        progress.errors += 1;
                        progress.error = Some(error.to_string());
                    });
                    name = None;
                    if self.sink.has_failed().await {
                        sleep(delay(tries)).await;
                    }
                    tries = tries.saturating_add(1);
                }
            }
        }
    }

    /// Delivers one batch; waits for records where there are none.
    async fn deliver_next(
        &mut self,
        written: &mut watch::Receiver<Written>,
        name: &mut Option<String>,
    ) -> Result<(), AuditError> {
        let name = match name {
            Some(name) => name.clone(),
            None => name.insert(self.sink.prepare().await?).clone(),
        };
        let cursor = {
            let name = name.clone();
            schema::read(self.journal.path(), move |connection| store::cursor(connection, &name)).await?
        };
        self.progress.send_modify(|progress| {
            progress.cursor = Some(name.clone());
            progress.delivered = cursor.delivered;
        });
        let end = if S::SAME_AGAIN && cursor.sending > cursor.delivered {
            cursor.sending
        } else {
            self.wait_for_records(cursor.delivered, written).await;
            let end = self.sink.choose_end(cursor.delivered).await?;
            if S::SAME_AGAIN {
                let sending = Cursor { delivered: cursor.delivered, sending: end };
                self.journal.save_cursor(&name, sending).await?;
            }
            end
        };
        let given_up = self.sink.send(cursor.delivered, end).await?;
        self.journal.save_cursor(&name, Cursor { delivered: end, sending: end }).await?;
        self.progress.send_modify(|progress| {
            progress.delivered = end;
            progress.given_up += given_up;
            progress.error = None;
        });
        Ok(())
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
