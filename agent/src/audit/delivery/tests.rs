use std::sync::Mutex;

use super::super::EventKind;
use super::super::samples::event;
use super::*;
use crate::audit::{schema, store};

/// Takes batches of three; fails as often as it is told to, after it may have taken what it got.
#[derive(Clone, Default)]
struct Place<const SAME: bool> {
    failures: Arc<Mutex<u32>>,
    ranges: Arc<Mutex<Vec<(i64, i64)>>>,
    prepared: Arc<Mutex<u32>>,
    /// It takes nothing that comes after this record.
    refuses_after: Option<i64>,
}

impl<const SAME: bool> Sink for Place<SAME> {
    type Batch = (i64, i64);

    const SAME_AGAIN: bool = SAME;

    fn name(&self) -> &'static str {
        "a place"
    }

    fn patience(&self) -> (u32, Duration) {
        (1, Duration::ZERO)
    }

    async fn prepare(&mut self) -> Result<String, AuditError> {
        *self.prepared.lock().unwrap() += 1;
        Ok("place".to_owned())
    }

    async fn read(&self, after: i64, end: Option<i64>) -> Result<(i64, (i64, i64)), AuditError> {
        let rows = if self.ranges.lock().unwrap().is_empty() { 1 } else { 3 };
        let end = end.unwrap_or(after + rows);
        Ok((end, (after, end)))
    }

    async fn send(&self, range: (i64, i64)) -> Result<u64, AuditError> {
        self.ranges.lock().unwrap().push(range);
        let mut failures = self.failures.lock().unwrap();
        if *failures == 0 && self.refuses_after.is_none_or(|last| range.0 < last) {
            return Ok(1);
        }
        *failures = failures.saturating_sub(1);
        Err(AuditError::Siem { sink: "place".to_owned(), cause: "it is away".to_owned() })
    }
}

async fn journal(folder: &std::path::Path, records: usize) -> Journal {
    let journal = Journal::open(&folder.join("journal.db"), "node-1").unwrap();
    for _ in 0..records {
        journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    }
    journal
}

/// Runs until its state is this.
async fn run<const SAME: bool>(
    journal: &Journal,
    place: &Place<SAME>,
    is_done: impl Fn(&Status) -> bool,
) -> Status {
    let progress = Arc::<watch::Sender<Progress>>::default();
    let monitor = Monitor::new("place", journal, &progress);
    let delivery = Delivery::new(journal.clone(), place.clone(), Arc::clone(&progress));
    let mut watching = progress.subscribe();
    let stop = async {
        while !is_done(&monitor.status()) {
            watching.changed().await.unwrap();
        }
    };
    delivery.run(stop).await;
    monitor.status()
}

#[tokio::test]
async fn what_may_have_been_sent_is_sent_again_as_the_same_range_also_by_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path(), 4).await;
    let place = Place::<true>::default();
    *place.failures.lock().unwrap() = 1;
    let status = run(&journal, &place, |status| status.errors == 1).await;
    assert_eq!((status.delivered, status.pending), (0, 4));
    assert!(status.error.unwrap().contains("it is away"));
    let status = run(&journal, &place, |status| status.pending == 0).await;
    assert_eq!((status.delivered, status.given_up, status.error), (4, 2, None));
    assert_eq!(*place.ranges.lock().unwrap(), [(0, 1), (0, 1), (1, 4)]);
}

#[tokio::test]
async fn a_batch_that_was_read_ahead_is_noted_before_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path(), 4).await;
    let place = Place::<true> { refuses_after: Some(1), ..Place::default() };
    let status = run(&journal, &place, |status| status.errors == 1).await;
    assert_eq!((status.delivered, status.pending), (1, 3));
    let connection = schema::open_read_only(journal.path()).unwrap();
    assert_eq!(store::cursor(&connection, "place").unwrap(), Cursor { delivered: 1, sending: 4 });
    assert_eq!(*place.ranges.lock().unwrap(), [(0, 1), (1, 4)]);
}

#[tokio::test]
async fn a_place_that_knows_records_by_their_own_names_gets_the_range_that_is_best_by_then() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path(), 3).await;
    let place = Place::<false>::default();
    *place.failures.lock().unwrap() = 2;
    let status = run(&journal, &place, |status| status.pending == 0).await;
    assert_eq!((status.delivered, status.errors), (3, 2));
    assert_eq!(*place.ranges.lock().unwrap(), [(0, 1), (0, 3), (0, 3)]);
    assert_eq!(*place.prepared.lock().unwrap(), 3, "after each failure it may be another one");
}

#[test]
fn delays_grow_to_a_limit_and_differ() {
    assert!((FIRST_DELAY / 2..=FIRST_DELAY).contains(&delay(0)));
    for tries in [10, 100, u32::MAX] {
        assert!((LONGEST_DELAY / 2..=LONGEST_DELAY).contains(&delay(tries)));
    }
    let some: std::collections::HashSet<_> = (0..50).map(|_| delay(3)).collect();
    assert!(some.len() > 10);
}
