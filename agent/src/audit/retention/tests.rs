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
    // There is no hour's rest where room is needed.
    trail.journal.set_limit(1);
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
        connection.execute(&format!("DELETE FROM {table} WHERE seq <= 10"), []).unwrap();
    }
    assert_eq!(trail.verify().problems, [Problem::Missing { first: 1, last: 10 }]);
    let through =
        |digest: String| serde_json::to_string(&Removal { through: 10, checkpoint: 1, digest }).unwrap();
    let digest: String = connection
        .query_row("SELECT previous FROM checkpoints WHERE number = 2", [], |row| row.get(0))
        .unwrap();
    let forged = Event::new(EventKind::RecordsRemoved, through(digest));
    trail.journal.append(vec![forged.clone().into()]).await.unwrap();
    assert!(!trail.verify().is_good(), "not signed");
    // In the hole that it is to explain, nobody compares it.
    connection.execute("DELETE FROM events WHERE seq = 23", []).unwrap();
    let insert = "INSERT INTO events (seq, node, id, time, kind, account, detail) VALUES (10, 'node-1', 'x', 1, 'records_removed', '', ?1)";
    connection.execute(insert, [&forged.detail]).unwrap();
    assert!(!trail.verify().is_good());
    connection.execute("DELETE FROM events WHERE seq = 10", []).unwrap();
    connection.execute("UPDATE journal SET last_seq = 22", []).unwrap();
    // The agent signs what it finds: whoever makes it do so is root on the host.
    trail.journal.append(vec![forged.into()]).await.unwrap();
    trail.sign().await;
    assert!(trail.verify().is_good());
}

#[tokio::test]
async fn what_is_left_of_a_removed_part_is_compared_all_the_same() {
    let trail = Trail::new();
    for _ in 0..3 {
        trail.events(10).await;
    }
    trail.deliver("one", 100).await;
    let retention = retention(Some(Duration::ZERO), &["one"]);
    trail.remove(&retention).await;
    let first = trail.first();
    assert!(first > 1);
    let connection = Connection::open(trail.path()).unwrap();
    let forged = "INSERT INTO events (seq, node, id, time, kind, account, detail) VALUES (7, 'node-1', 'x', 1, 'no_flow', '', '')";
    connection.execute(forged, []).unwrap();
    assert!(!trail.verify().is_good(), "a record where one was removed");
    connection.execute("DELETE FROM events WHERE seq = 7", []).unwrap();
    assert!(trail.verify().is_good());
    // Announced once more, signed, and not begun: what is still there must be what it was.
    trail.journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    trail.sign().await;
    let last: i64 =
        connection.query_row("SELECT max(last_seq) FROM checkpoints", [], |row| row.get(0)).unwrap();
    let number: u64 = connection
        .query_row("SELECT max(number) FROM checkpoints", [], |row| row.get::<_, i64>(0))
        .unwrap()
        .try_into()
        .unwrap();
    let newest =
        connection.query_row("SELECT * FROM checkpoints ORDER BY number DESC LIMIT 1", [], Checkpoint::read);
    let digest = hexadecimal(&newest.unwrap().digest(trail.journal.id()));
    let detail = serde_json::to_string(&Removal { through: last, checkpoint: number, digest }).unwrap();
    trail.journal.append(vec![Event::new(EventKind::RecordsRemoved, detail).into()]).await.unwrap();
    assert!(trail.verify().is_good(), "{:?}", trail.verify().problems);
    trail.sign().await;
    assert!(trail.verify().is_good(), "{:?}", trail.verify().problems);
    connection.execute("UPDATE events SET detail = 'x' WHERE seq = ?1", [first + 2]).unwrap();
    assert_eq!(trail.verify().problems, [Problem::Changed { seq: first + 2 }]);
}

#[tokio::test]
async fn a_clock_that_was_wrong_for_a_while_removes_nothing_young() {
    let trail = Trail::new();
    for _ in 0..3 {
        trail.events(10).await;
    }
    // The second checkpoint was signed in 1970.
    Connection::open(trail.path())
        .unwrap()
        .execute("UPDATE checkpoints SET time = 1 WHERE number = 2", [])
        .unwrap();
    trail.deliver("one", 100).await;
    trail.remove(&retention(Some(Duration::from_hours(1)), &["one"])).await;
    assert_eq!(trail.first(), 1);
}

#[tokio::test]
async fn what_has_gone_is_not_removed_again() {
    let trail = Trail::new();
    trail.events(10).await;
    trail.events(10).await;
    trail.deliver("one", 15).await;
    let retention = retention(Some(Duration::ZERO), &["one"]);
    trail.remove(&retention).await;
    let last = trail.journal.written().borrow().last_seq;
    for _ in 0..3 {
        retention.step(&trail.journal).await.unwrap();
    }
    assert_eq!(trail.journal.written().borrow().last_seq, last, "it announces nothing more");
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
    trail.journal.remove(2000).await.unwrap();
    assert!(trail.verify().is_good());
    retention.step(&trail.journal).await.unwrap();
    assert!(trail.first() > 4096 && trail.verify().is_good(), "{}", trail.first());
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

#[test]
fn a_clock_that_was_set_is_not_believed_for_an_hour() {
    const SECOND: i64 = 1_000_000;
    let (mut clock, begin) = (Clock::default(), Instant::now());
    let mut look =
        |wall: i64, passed: u64| clock.is_steady(wall * SECOND, begin + Duration::from_secs(passed));
    assert!(look(1000, 0) && look(1010, 10) && look(1075, 20), "it may be corrected a little");
    assert!(!look(1_000_000, 30), "it was set ahead");
    assert!(!look(1_001_000, 1030), "it goes on there");
    assert!(!look(2100, 1090), "it was set back");
    assert!(!look(2100 + 3599, 1090 + 3599));
    assert!(look(2100 + 3600, 1090 + 3600));
}

#[tokio::test]
async fn a_removal_that_a_wrong_clock_announced_in_the_future_does_not_stop_the_next() {
    let trail = Trail::new();
    for _ in 0..10 {
        trail.events(10).await;
    }
    trail.deliver("one", 200).await;
    let at_once = retention(Some(Duration::ZERO), &["one"]);
    trail.remove(&at_once).await;
    let first = trail.first();
    assert!(first > 1);
    Connection::open(trail.path())
        .unwrap()
        .execute("UPDATE events SET time = time + 31536000000000 WHERE kind = 'records_removed'", [])
        .unwrap();
    trail.remove(&at_once).await;
    assert!(trail.first() > first, "the next one goes on");
}
