//! What verification finds, in journals that were changed by somebody who can write the file but has no key.

mod copies;

use std::path::PathBuf;

use bytes::Bytes;
use proptest::prelude::*;
use rusqlite::Connection;
use uuid::Uuid;

use super::*;
use crate::audit::payload::{About, Ending, FrameKind, Kept, Payloads};
use crate::audit::samples::{any_record, event, outcome, payload, session, statement};
use crate::audit::schema::RECORDS;
use crate::audit::{EventKind, Journal, Record, Running, Verdict};

/// A journal of five steps: records 1 to 6, checkpoint 7, records 8 to 11, checkpoint 12, and so on.
struct Trail {
    directory: tempfile::TempDir,
    key: SigningKey,
}

impl Trail {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = SigningKey::open(&directory.path().join("audit.key")).unwrap();
        let trail = Self { directory, key };
        let journal = Journal::open(&trail.path(), "node-1").unwrap();
        let session = session();
        journal.append(vec![session.clone().into(), event(EventKind::AgentStarted).into()]).await.unwrap();
        let notary = Notary::new(journal.clone(), trail.key.clone());
        for number in 0..5 {
            let statement = statement(session.id, &format!("select {number}"), Verdict::Allow);
            let id = statement.id;
            let running = Running { statement: id, time: 1, query_id: format!("query-{number}") };
            journal.append(vec![statement.into(), running.into()]).await.unwrap();
            journal.append(vec![payload(session.id, id).into(), outcome(id).into()]).await.unwrap();
            notary.sign().await.unwrap();
            notary.sign().await.unwrap();
        }
        journal.close().await;
        trail
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("journal.db")
    }

    fn spool(&self) -> PathBuf {
        self.directory.path().join("spool")
    }

    fn change(&self, sql: &str) -> usize {
        let connection = Connection::open(self.path()).unwrap();
        connection.execute(sql, []).unwrap()
    }

    fn verify(&self) -> Report {
        self.verify_with(&[self.key.public()])
    }

    fn verify_with(&self, keys: &[String]) -> Report {
        let mut seen = 0;
        let report = verify(&mut JournalSource::open(&self.path()).unwrap(), keys, None, |now, _| {
            assert!(now >= seen);
            seen = now;
        });
        report.unwrap()
    }

    /// What is found after a change.
    async fn found(sql: &str) -> Vec<Problem> {
        let trail = Self::new().await;
        assert!(trail.change(sql) > 0, "{sql} changes nothing");
        trail.verify().problems
    }
}

#[tokio::test]
async fn an_untouched_trail_is_good() {
    let trail = Trail::new().await;
    let report = trail.verify();
    assert_eq!(report.problems, []);
    assert_eq!((report.checkpoints, report.verified, report.unsigned), (5, 26, 0), "{report:?}");
    assert_eq!((report.first, report.signed, report.node.as_str()), (Some(1), 26, "node-1"));
    assert!(report.key_is_known);
    let report = trail.verify_with(&[]);
    assert!(report.is_good() && !report.key_is_known);
    assert_eq!(report.keys, [trail.key.public()]);
}

#[tokio::test]
async fn a_part_is_verified_from_a_checkpoint_on() {
    let trail = Trail::new().await;
    trail.change("DELETE FROM sessions");
    let from = |number| {
        let mut source = JournalSource::open(&trail.path()).unwrap();
        verify(&mut source, &[trail.key.public()], Some(number), |_, _| {}).unwrap()
    };
    let report = from(2);
    assert!(report.is_good(), "{:?}", report.problems);
    assert_eq!((report.checkpoints, report.verified), (4, 20));
    assert_eq!(from(1).problems, [Problem::Missing { first: 1, last: 1 }]);
    assert_eq!(from(9).problems, [Problem::CheckpointMissing { first: 9, last: 9 }]);
}

#[tokio::test]
async fn what_is_not_signed_yet_is_told_apart() {
    let trail = Trail::new().await;
    let journal = Journal::open(&trail.path(), "node-1").unwrap();
    journal.append(vec![event(EventKind::NoFlow).into(), event(EventKind::NoFlow).into()]).await.unwrap();
    let report = trail.verify();
    assert!(report.is_good());
    assert_eq!((report.verified, report.unsigned), (26, 2));
    trail.change("UPDATE journal SET last_seq = 40");
    assert!(trail.verify().is_good(), "the counter proves nothing");
    trail.change("DELETE FROM events WHERE seq = 28");
    assert_eq!(trail.verify().problems, [Problem::Missing { first: 28, last: 28 }]);
}

#[tokio::test]
async fn a_changed_record_is_named() {
    for (sql, seq) in [
        ("UPDATE statements SET sql = 'select 7' WHERE seq = 8", 8),
        ("UPDATE statements SET verdict = 'deny' WHERE seq = 3", 3),
        ("UPDATE statements SET previous = 0 WHERE seq = 8", 8),
        ("UPDATE sessions SET subject = 'somebody else'", 1),
        ("UPDATE sessions SET groups = '[]'", 1),
        ("UPDATE outcomes SET rows = NULL WHERE seq = 6", 6),
        ("UPDATE events SET account = '' WHERE seq = 2", 2),
        ("UPDATE payloads SET digest = 'ff' WHERE seq = 5", 5),
        ("UPDATE running SET time = time + 1 WHERE seq = 4", 4),
        ("UPDATE statements SET node = 'node-2' WHERE seq = 8", 8),
    ] {
        assert_eq!(Trail::found(sql).await, [Problem::Changed { seq }], "{sql}");
    }
}

#[tokio::test]
async fn a_dropped_record_is_named() {
    let missing = |first, last| [Problem::Missing { first, last }];
    assert_eq!(Trail::found("DELETE FROM outcomes WHERE seq = 6").await, missing(6, 6));
    assert_eq!(Trail::found("DELETE FROM statements WHERE seq = 8").await, missing(8, 8));
    assert_eq!(Trail::found("DELETE FROM sessions").await, missing(1, 1));
}

#[tokio::test]
async fn records_that_were_moved_are_named() {
    let trail = Trail::new().await;
    for (from, to) in [(8, 100), (13, 8), (100, 13)] {
        trail.change(&format!("UPDATE statements SET seq = {to} WHERE seq = {from}"));
    }
    let problems = trail.verify().problems;
    // With another place it is another record: `seq` is signed.
    assert_eq!(problems, [Problem::Changed { seq: 8 }, Problem::Changed { seq: 13 }]);
}

#[tokio::test]
async fn a_forged_record_is_named() {
    let trail = Trail::new().await;
    let columns = "node, id, time, kind, account, detail";
    let copy = |seq: i64| {
        format!(
            "INSERT INTO events (seq, {columns}) SELECT {seq}, node, 'forged-{seq}', time, kind, account, detail FROM events WHERE seq = 2"
        )
    };
    // Beside another one.
    trail.change(&copy(8));
    assert_eq!(trail.verify().problems, [Problem::Twice { seq: 8 }]);
    trail.change("DELETE FROM events WHERE seq = 8");
    assert!(trail.verify().is_good());
    // Far behind the end.
    trail.change(&copy(40));
    assert_eq!(trail.verify().problems, [Problem::Missing { first: 28, last: 39 }]);
    // Before the beginning.
    trail.change("UPDATE events SET seq = -3 WHERE seq = 40");
    assert_eq!(trail.verify().problems, [Problem::Unsigned { first: -3, last: 0 }]);
}

#[tokio::test]
async fn changed_checkpoints_are_named() {
    let forged = |number| vec![Problem::CheckpointForged { number }];
    // The checkpoint that was changed, the one that follows it, and the record that it is.
    for column in [
        "root = '00'",
        "time = time + 1",
        "first_seq = first_seq + 1",
        "last_seq = last_seq - 1",
        "key = 'xx'",
    ] {
        let problems = Trail::found(&format!("UPDATE checkpoints SET {column} WHERE number = 2")).await;
        assert_eq!(problems[0], forged(2)[0], "{column}");
        assert!(problems.contains(&Problem::CheckpointOutOfChain { number: 3 }), "{column}: {problems:?}");
        assert!(problems.contains(&Problem::Changed { seq: 12 }), "{column}: {problems:?}");
    }
    let problems = Trail::found("UPDATE checkpoints SET signature = '' WHERE number = 5").await;
    assert_eq!(problems, forged(5));
    let digests =
        Trail::found("UPDATE checkpoints SET digests = replace(digests, 'a', 'b') WHERE number = 5").await;
    assert_eq!(digests, [Problem::CheckpointDigests { number: 5, first: 22, last: 26 }]);
    let problems = Trail::found("DELETE FROM checkpoints WHERE number IN (2, 3)").await;
    assert_eq!(problems[0], Problem::CheckpointMissing { first: 2, last: 3 });
    assert!(problems.contains(&Problem::Unsigned { first: 7, last: 16 }), "{problems:?}");
}

#[tokio::test]
async fn the_last_checkpoint_cannot_be_taken_with_its_records_unless_they_are_the_end() {
    let trail = Trail::new().await;
    trail.change("DELETE FROM checkpoints WHERE number = 5");
    let report = trail.verify();
    assert_eq!((report.problems.len(), report.unsigned), (0, 4), "they count as not signed yet: {report:?}");
}

#[tokio::test]
async fn a_view_that_shows_something_else_is_named() {
    let trail = Trail::new().await;
    let connection = Connection::open(trail.path()).unwrap();
    connection.execute_batch("DROP VIEW trail; CREATE VIEW trail AS SELECT 'nothing' AS sql").unwrap();
    assert_eq!(trail.verify().problems, [Problem::Schema { name: "view trail".to_owned() }]);
}

#[tokio::test]
async fn an_end_of_all_numbers_is_no_end_of_the_program() {
    let trail = Trail::new().await;
    let copy = |seq: i64| {
        format!(
            "INSERT INTO events (seq, node, id, time, kind, account, detail)
             SELECT {seq}, node, 'forged-{seq}', time, kind, account, detail FROM events WHERE seq = 2"
        )
    };
    for seq in [i64::MIN, i64::MAX] {
        trail.change(&copy(seq));
        assert!(!trail.verify().is_good(), "{seq}");
        trail.change(&format!("DELETE FROM events WHERE seq = {seq}"));
    }
    trail.change("DELETE FROM checkpoints");
    trail.change(&copy(i64::MIN));
    assert!(!trail.verify().is_good());
}

#[tokio::test]
async fn another_key_signs_nothing() {
    let trail = Trail::new().await;
    let other = SigningKey::open(&trail.directory.path().join("other.key")).unwrap();
    let journal = Journal::open(&trail.path(), "node-1").unwrap();
    journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    Notary::new(journal, other.clone()).sign().await.unwrap();
    let foreign = Problem::CheckpointOfAnotherKey { number: 6, key: other.public() };
    assert_eq!(trail.verify().problems, std::slice::from_ref(&foreign));
    assert_eq!(trail.verify_with(&[]).problems, [foreign], "the first key is the node's");
    assert!(trail.verify_with(&[trail.key.public(), other.public()]).is_good());
}

#[tokio::test]
async fn a_long_journal_is_signed_in_steps() {
    let trail = Trail::new().await;
    let journal = Journal::open(&trail.path(), "node-1").unwrap();
    let events: Vec<Record> = (0..2 * LONGEST + 5).map(|_| event(EventKind::NoFlow).into()).collect();
    journal.append(events).await.unwrap();
    Notary::new(journal, trail.key.clone()).sign().await.unwrap();
    let report = trail.verify();
    assert_eq!((report.problems.len(), report.checkpoints, report.unsigned), (0, 8, 0));
}

#[tokio::test]
async fn a_gap_does_not_keep_the_rest_from_being_signed() {
    let trail = Trail::new().await;
    let journal = Journal::open(&trail.path(), "node-1").unwrap();
    journal.append((0..9).map(|_| event(EventKind::NoFlow).into()).collect()).await.unwrap();
    trail.change("DELETE FROM events WHERE seq IN (30, 31)");
    trail.change("UPDATE events SET seq = seq + 100000 WHERE seq > 33");
    trail.change("UPDATE journal SET last_seq = 100036");
    let notary = Notary::new(journal.clone(), trail.key.clone());
    journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    notary.sign().await.unwrap();
    let report = trail.verify();
    let unsigned = |first, last| Problem::Unsigned { first, last };
    // Any of what is missing after the last checkpoint may have been one.
    let [lost, rest @ ..] = report.problems.as_slice() else { panic!("{:?}", report.problems) };
    assert!(matches!(lost, Problem::CheckpointMissing { .. }), "{lost:?}");
    assert_eq!(rest, [unsigned(30, 31), unsigned(34, 100_033)]);
}

#[tokio::test]
async fn a_gap_right_behind_a_checkpoint_does_not_either() {
    let trail = Trail::new().await;
    // The last checkpoint is record 27, and covers up to the one before.
    let journal = Journal::open(&trail.path(), "node-1").unwrap();
    journal.append((0..4).map(|_| event(EventKind::NoFlow).into()).collect()).await.unwrap();
    trail.change("DELETE FROM events WHERE seq IN (28, 29, 30)");
    Notary::new(journal, trail.key.clone()).sign().await.unwrap();
    let report = trail.verify();
    assert_eq!((report.signed, report.unsigned), (32, 0), "{report:?}");
}

/// A session's export, and what it must hold.
struct Sample {
    trail: Trail,
    file: Vec<u8>,
}

impl Sample {
    /// Of a session between others, with a payload of two pieces.
    async fn new() -> Self {
        let trail = Trail::new().await;
        let journal = Journal::open(&trail.path(), "node-1").unwrap();
        let notary = Notary::new(journal.clone(), trail.key.clone());
        let settings = crate::config::Payloads::sample(age::x25519::Identity::generate().to_public());
        let payloads = Payloads::open(&trail.spool(), settings).unwrap();
        let (session, other) = (session(), session());
        let foreign = || Record::from(statement(other.id, "select 'theirs'", Verdict::Allow));
        journal.append(vec![session.clone().into(), other.clone().into(), foreign()]).await.unwrap();
        for number in 0..3 {
            let statement = statement(session.id, &format!("select {number}"), Verdict::Allow);
            let id = statement.id;
            let about = About { session: session.id, statement: id, query_id: "", operation: "query" };
            let mut recording = payloads.begin(&about, std::time::Instant::now());
            recording.add(FrameKind::Request, b"{}").await.unwrap();
            recording.keep().await.unwrap();
            recording.add_body(FrameKind::AnswerBody, vec![Bytes::copy_from_slice(b"answer")]).await.unwrap();
            let payload = recording.end(Ending::Complete, "").await.unwrap();
            journal
                .append(vec![statement.into(), foreign(), outcome(id).into(), payload.into()])
                .await
                .unwrap();
            if number != 1 {
                notary.sign().await.unwrap();
            }
        }
        let mut file = Vec::new();
        assert!(is_signed(&trail.path(), session.id).unwrap());
        let kept = Kept::new(trail.spool(), None);
        let exported = export(&trail.path(), &kept, session.id, &mut file, |_, _| {}).unwrap();
        assert_eq!((exported.records, exported.unsigned, exported.payloads, exported.removed), (10, 0, 3, 0));
        Self { trail, file }
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.file.clone()).unwrap().lines().map(str::to_owned).collect()
    }

    fn verify(&self, file: &[u8]) -> Result<ExportReport, ExportedError> {
        verify_export(file, &[self.trail.key.public()])
    }

    /// What is found in a file of these lines.
    fn problems(&self, lines: &[String]) -> Vec<Problem> {
        self.verify(format!("{}\n", lines.join("\n")).as_bytes()).unwrap().problems
    }
}

#[tokio::test]
async fn an_exported_session_is_verified_alone() {
    let sample = Sample::new().await;
    let report = sample.verify(&sample.file).unwrap();
    assert_eq!(report.problems, []);
    assert_eq!((report.verified, report.open), (10, 0));
    assert_eq!((report.payloads, report.incomplete, report.node.as_str()), (3, 0, "node-1"));
    assert!(!String::from_utf8_lossy(&sample.file).contains("theirs"), "nothing of other sessions is in it");
    let other = verify_export(sample.file.as_slice(), &["00".repeat(32)]).unwrap();
    assert!(matches!(other.problems[0], Problem::CheckpointOfAnotherKey { .. }));
    assert!(verify_export(sample.file.as_slice(), &[]).unwrap().problems.is_empty());
}

#[tokio::test]
async fn what_is_left_out_of_an_export_is_named() {
    let sample = Sample::new().await;
    let lines = sample.lines();
    let without = |what: &str, nth: usize| {
        let index = lines.iter().enumerate().filter(|(_, line)| line.contains(what)).nth(nth).unwrap().0;
        let mut lines = lines.clone();
        lines.remove(index);
        lines
    };
    let statement = "\"table\":\"statements\"";
    assert!(
        sample
            .problems(&without(statement, 1))
            .iter()
            .any(|problem| matches!(problem, Problem::Unlinked { .. }))
    );
    let session = sample.problems(&without("\"table\":\"sessions\"", 0));
    assert!(
        matches!(session[..], [Problem::Unlinked { previous, .. }, Problem::Cut { missing: 1 }] if previous > 0),
        "{session:?}"
    );
    assert!(!sample.problems(&without("\"table\":\"checkpoints\"", 0)).is_empty());
    let outcome = without("\"table\":\"outcomes\"", 0).join("\n") + "\n";
    assert_eq!(sample.verify(outcome.as_bytes()).unwrap().open, 1);
    // Wherever it is cut: before the last record, or within what belongs to one.
    for end in 1..lines.len() {
        let report = sample.verify((lines[..end].join("\n") + "\n").as_bytes()).unwrap();
        let is_cut = report.problems.iter().any(|problem| matches!(problem, Problem::Cut { .. }));
        assert!(is_cut || report.incomplete > 0, "{end}: {report:?}");
    }
    let piece = without("\"piece\"", 1).join("\n") + "\n";
    assert_eq!(sample.verify(piece.as_bytes()).unwrap().incomplete, 1);
    let mut swapped = lines.clone();
    let pieces: Vec<usize> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.contains("\"piece\""))
        .map(|(index, _)| index)
        .collect();
    swapped.swap(pieces[0], pieces[1]);
    assert!(matches!(sample.problems(&swapped)[..], [Problem::PayloadChanged { .. }]));
    let problems = sample.problems(&unproven(&lines));
    let unsigned = problems.iter().filter(|problem| matches!(problem, Problem::NotSigned { .. }));
    assert_eq!(unsigned.count(), 10, "an export without proofs proves nothing: {problems:?}");
    let mut twice = lines.clone();
    twice.push(lines.iter().find(|line| line.contains(statement)).unwrap().clone());
    assert!(matches!(sample.problems(&twice)[..], [Problem::Twice { .. }]));
    assert!(matches!(sample.verify(&sample.file[..sample.file.len() - 3]), Err(ExportedError::Line(_))));
    assert!(matches!(verify_export(&b"{}\n"[..], &[]), Err(ExportedError::Line(1))));
    assert!(matches!(verify_export(&b""[..], &[]), Err(ExportedError::NoExport)));
}

/// The lines without checkpoints and proofs.
fn unproven(lines: &[String]) -> Vec<String> {
    let records = lines.iter().filter(|line| !line.starts_with("{\"checkpoint\""));
    let without = |line: &String| match line.split_once(",\"proof\":") {
        Some((record, _)) => format!("{record},\"proof\":null}}"),
        None => line.clone(),
    };
    records.map(without).collect()
}

#[tokio::test]
async fn a_flipped_bit_of_an_export_is_found() {
    let sample = Sample::new().await;
    let head = sample.file.iter().position(|byte| *byte == b'\n').unwrap();
    for index in (head..sample.file.len()).step_by(7) {
        let mut file = sample.file.clone();
        file[index] ^= 1 << (index / 7 % 8);
        let Ok(report) = sample.verify(&file) else { continue };
        let good = report.problems.is_empty() && report.incomplete == 0 && report.open == 0;
        assert!(!good, "{index}: {}", String::from_utf8_lossy(&file[index.saturating_sub(60)..index + 20]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn records_of_any_kind_are_verified_and_no_other(
        records in prop::collection::vec(any_record(), 1..20),
        at: prop::sample::Index,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let key = SigningKey::open(&directory.path().join("audit.key")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let journal = Journal::open(&path, "node-1").unwrap();
            journal.append(records.clone()).await.unwrap();
            Notary::new(journal.clone(), key.clone()).sign().await.unwrap();
            journal.close().await;
        });
        let verify = || super::verify(&mut JournalSource::open(&path).unwrap(), &[key.public()], None, |_, _| {}).unwrap();
        let report = verify();
        prop_assert!(report.is_good(), "{:?}", report.problems);
        prop_assert_eq!(report.verified, records.len() as u64);
        let seq = i64::try_from(at.index(records.len()) + 1).unwrap();
        let connection = Connection::open(&path).unwrap();
        let changed: usize = RECORDS.iter()
            .map(|table| connection.execute(&format!("UPDATE {table} SET time = time + 1 WHERE seq = {seq}"), []).unwrap())
            .sum();
        prop_assert_eq!(changed, 1);
        prop_assert_eq!(verify().problems, [Problem::Changed { seq }]);
    }

    #[test]
    fn whatever_checkpoint_comes_is_checked_to_an_end(
        (first_seq, last_seq, digests, texts) in (any::<i64>(), any::<i64>(), "[0-9a-f]{0,200}", prop::collection::vec(any::<String>(), 5))
    ) {
        let [node, root, previous, key, signature] = <[String; 5]>::try_from(texts).unwrap();
        let checkpoint = Checkpoint { node, number: 1, time: 0, first_seq, last_seq, root, previous, key, signature, digests };
        prop_assert!(!checkpoint.is_signed(Uuid::nil()));
        let _ = checkpoint.leaves();
    }
}
