use std::path::PathBuf;

use super::*;
use crate::audit::chain::{JournalSource, Notary, Problem, Report, SigningKey, verify};
use crate::audit::samples::{event, outcome, session, statement};
use crate::audit::store::Cursor;
use crate::audit::{Record, Verdict};

struct Trail {
    directory: tempfile::TempDir,
    key: SigningKey,
    journal: Journal,
}

impl Trail {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = SigningKey::open(&directory.path().join("audit.key")).unwrap();
        let journal = Journal::open(&directory.path().join("journal.db"), "node-1").unwrap();
        Self { directory, key, journal }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("journal.db")
    }

    async fn events(&self, count: usize) {
        let events = (0..count).map(|_| event(EventKind::NoFlow).into()).collect();
        self.journal.append(events).await.unwrap();
        self.sign().await;
    }

    async fn sign(&self) {
        Notary::new(self.journal.clone(), self.key.clone()).sign().await.unwrap();
    }

    async fn deliver(&self, sink: &str, to: i64) {
        self.journal.save_cursor(sink, Cursor { delivered: to, sending: to }).await.unwrap();
    }

    /// Announces, signs and removes what there is to remove.
    async fn remove(&self, retention: &Retention) {
        retention.step(&self.journal).await.unwrap();
        self.sign().await;
        retention.step(&self.journal).await.unwrap();
    }

    fn first(&self) -> i64 {
        schema::first_seq(&schema::open_read_only(&self.path()).unwrap()).unwrap().unwrap()
    }

    fn verify(&self) -> Report {
        verify(&mut JournalSource::open(&self.path()).unwrap(), &[self.key.public()], None, |_, _| {})
            .unwrap()
    }
}

fn retention(keep: Option<Duration>, sinks: &[&str]) -> Retention {
    Retention {
        keep,
        sinks: sinks.iter().map(|sink| Arc::new(watch::Sender::new(Progress::of(sink)))).collect(),
    }
}

#[tokio::test]
async fn records_go_when_every_sink_has_them_and_they_are_old_enough() {
    let trail = Trail::new();
    // Records 1 to 10, checkpoint 11, records 12 to 21, checkpoint 22.
    trail.events(10).await;
    trail.events(10).await;
    let both = retention(Some(Duration::ZERO), &["one", "two"]);
    trail.remove(&both).await;
    assert_eq!(trail.first(), 1, "no sink has them");
    trail.deliver("one", 30).await;
    trail.deliver("two", 15).await;
    trail.remove(&retention(Some(Duration::from_hours(1)), &["one", "two"])).await;
    assert_eq!(trail.first(), 1, "they are too young");
    trail.remove(&both).await;
    assert_eq!(trail.first(), 11, "the second checkpoint is not delivered as a whole");
    let report = trail.verify();
    assert!(report.is_good(), "{:?}", report.problems);
    assert_eq!(report.removed_through, Some(10));
    trail.deliver("two", 40).await;
    trail.events(3).await;
    trail.remove(&both).await;
    let report = trail.verify();
    assert!(report.is_good() && report.removed_through > Some(20), "{report:?}");
}

#[tokio::test]
async fn without_a_sink_they_go_by_their_age_alone() {
    let trail = Trail::new();
    trail.events(10).await;
    trail.journal.set_limit(1);
    trail.remove(&retention(None, &[])).await;
    assert_eq!(trail.first(), 1);
    trail.remove(&retention(Some(Duration::ZERO), &[])).await;
    assert_eq!(trail.first(), 11);
}

#[tokio::test]
async fn a_removal_that_nobody_signed_is_a_problem() {
    let trail = Trail::new();
    trail.events(10).await;
    trail.events(10).await;
    trail.deliver("one", 30).await;
    // Whoever can write the file, and has no key, removes the beginning and says that it was in its time.
    let connection = Connection::open(trail.path()).unwrap();
    for table in schema::RECORDS {
        connection.execute(&format!("DELETE FROM {table} WHERE seq <= 11"), []).unwrap();
    }
    assert!(trail.verify().problems.contains(&Problem::CheckpointMissing { first: 1, last: 1 }));
    let through =
        |digest: String| serde_json::to_string(&Removal { through: 10, checkpoint: 1, digest }).unwrap();
    let digest: String =
        connection.query_row("SELECT previous FROM checkpoints", [], |row| row.get(0)).unwrap();
    let forged = Event::new(EventKind::RecordsRemoved, through(digest));
    trail.journal.append(vec![forged.into()]).await.unwrap();
    assert!(
        matches!(trail.verify().problems[..], [.., Problem::RemovalUnsigned { seq: 23 }]),
        "{:?}",
        trail.verify().problems
    );
}

#[tokio::test]
async fn a_removal_that_broke_off_goes_on() {
    let trail = Trail::new();
    for _ in 0..3 {
        trail.events(4096).await;
    }
    trail.deliver("one", 1 << 30).await;
    let retention = retention(Some(Duration::ZERO), &["one"]);
    retention.step(&trail.journal).await.unwrap();
    trail.sign().await;
    trail.journal.remove(5000).await.unwrap();
    assert!(trail.verify().is_good());
    retention.step(&trail.journal).await.unwrap();
    assert!(trail.first() > 12_000 && trail.verify().is_good(), "{}", trail.first());
}

#[tokio::test]
async fn a_full_journal_refuses_what_begins_until_there_is_room_again() {
    let trail = Trail::new();
    let session = session();
    let statements: Vec<Record> =
        (0..2000).map(|_| statement(session.id, &"x".repeat(1000), Verdict::Allow).into()).collect();
    for statements in statements.chunks(500) {
        trail.journal.append(statements.to_vec()).await.unwrap();
        trail.sign().await;
    }
    let written = *trail.journal.written().borrow();
    assert!(written.bytes > 2_000_000 && !written.full, "{written:?}");
    trail.journal.set_limit(written.bytes);
    let more = statement(session.id, "select 1", Verdict::Allow);
    let refused = trail.journal.append_statement(more.clone()).await;
    assert!(matches!(refused, Err(AuditError::Full { .. })), "{refused:?}");
    assert!(matches!(trail.journal.append(vec![session.into()]).await, Err(AuditError::Full { .. })));
    // What has begun comes to its end, and what happens is on record.
    trail.journal.append(vec![outcome(more.id).into(), event(EventKind::NotTls).into()]).await.unwrap();
    assert!(trail.journal.written().borrow().full);

    trail.deliver("one", 1 << 30).await;
    let retention = retention(Some(Duration::from_hours(1)), &["one"]);
    for _ in 0..3 {
        trail.remove(&retention).await;
    }
    assert!(trail.first() > 1, "young as they are");
    trail.journal.append_statement(more).await.unwrap();
    assert!(trail.verify().is_good());
}
