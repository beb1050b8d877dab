mod faults;
mod model;
mod succession;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rusqlite::Connection;
use rusqlite::types::Value;

use super::*;
use crate::audit::EventKind;
use crate::audit::samples::{caller, event, outcome, payload, session, statement};

fn rows(path: &Path, sql: &str) -> Vec<Vec<Value>> {
    let connection = schema::open_read_only(path).unwrap();
    let mut query = connection.prepare(sql).unwrap();
    let columns = query.column_count();
    query
        .query_map([], |row| (0..columns).map(|column| row.get(column)).collect())
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

fn texts(path: &Path, sql: &str) -> Vec<String> {
    rows(path, sql)
        .into_iter()
        .map(|row| match &row[..] {
            [Value::Text(text)] => text.clone(),
            [Value::Integer(number)] => number.to_string(),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn all_seqs(path: &Path) -> Vec<String> {
    texts(
        path,
        "SELECT seq FROM sessions UNION ALL SELECT seq FROM statements
         UNION ALL SELECT seq FROM outcomes UNION ALL SELECT seq FROM events
         UNION ALL SELECT seq FROM payloads UNION ALL SELECT seq FROM running ORDER BY seq",
    )
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[tokio::test]
async fn the_trail_shows_a_statement_with_its_outcome_and_session() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state").join("journal.db");
    let journal = Journal::open(&path, "node-1").unwrap();
    let session = session();
    let statement = statement(session.id, "SELECT 1", Verdict::Allow);
    let (session_id, statement_id) = (session.id, statement.id);
    journal.append(vec![session.into(), event(EventKind::NotTls).into()]).await.unwrap();
    let recorded = journal.append_statement(statement).await.unwrap();
    assert_eq!((recorded.statement(), recorded.verdict()), (statement_id, Verdict::Allow));
    assert_eq!(texts(&path, "SELECT status FROM trail"), ["open"]);
    journal.append(vec![outcome(statement_id).into()]).await.unwrap();

    let row = rows(
        &path,
        "SELECT seq, time, node, id, session, cgroup, comm, subject, groups, user, role, sql, kind, effect, objects,
                verdict, policy, rule, status, rows, query_id, code, duration_us FROM trail",
    )
    .remove(0);
    let text = |text: &str| Value::Text(text.to_owned());
    assert_eq!(
        row,
        [
            Value::Integer(3),
            text("2026-01-02T03:04:05.678901Z"),
            text("node-1"),
            text(&statement_id.to_string()),
            text(&session_id.to_string()),
            text("/pods/analyst"),
            text("python3"),
            text("agent-7"),
            text(r#"["analysts","all \"staff\""]"#),
            text("SVC_AGENTS"),
            text("ANALYST"),
            text("SELECT 1"),
            text("select"),
            text("read"),
            text(r#"["SALES.PUBLIC.ORDERS","SALES.PUBLIC.\"Odd, name\""]"#),
            text("allow"),
            text("reads"),
            text("analysts"),
            text("succeeded"),
            Value::Integer(42),
            text("01b2c3d4-0000-query"),
            text(""),
            Value::Integer(1500),
        ]
    );
    assert_eq!(all_seqs(&path), ["1", "2", "3", "4"]);
    for (file, mode) in
        [("", 0o700), ("journal.db", 0o600), ("journal.db-wal", 0o600), ("journal.db-shm", 0o600)]
    {
        let found = fs::metadata(path.parent().unwrap().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
}

#[tokio::test]
async fn texts_of_any_kind_come_back_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "n\0de").unwrap();
    let long = "x".repeat(1 << 20);
    let sqls = ["", "a\0b", "\u{1f409} ünï 'quoted' \"names\" \u{202e}", &long];
    for sql in sqls {
        journal.append_statement(statement(Uuid::nil(), sql, Verdict::Deny)).await.unwrap();
    }
    assert_eq!(texts(&path, "SELECT sql FROM statements ORDER BY seq"), sqls);
    assert_eq!(texts(&path, "SELECT DISTINCT node FROM statements"), ["n\0de"]);
}

#[tokio::test]
async fn an_append_is_all_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    let first = session();
    journal.append(vec![first.clone().into()]).await.unwrap();
    let error =
        journal.append(vec![event(EventKind::NoFlow).into(), first.clone().into()]).await.unwrap_err();
    assert!(matches!(error, AuditError::Duplicate(id) if id == first.id), "{error}");
    assert!(!journal.written().borrow().failing);
    journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    assert_eq!(all_seqs(&path), ["1", "2"]);
}

#[test]
fn one_bad_record_does_not_take_its_neighbours_down() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    let again = session();
    let results = runtime().block_on(async {
        journal.append(vec![again.clone().into()]).await.unwrap();
        let tasks: Vec<_> = (0..64)
            .map(|number| {
                let journal = journal.clone();
                let record =
                    if number % 8 == 0 { again.clone().into() } else { event(EventKind::NoFlow).into() };
                tokio::spawn(async move { journal.append(vec![record]).await.is_ok() })
            })
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.unwrap());
        }
        results
    });
    let expected: Vec<bool> = (0..64).map(|number| number % 8 != 0).collect();
    assert_eq!(results, expected);
    assert_eq!(all_seqs(&path).len(), 1 + 56);
}

#[test]
fn concurrent_appends_share_commits() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    runtime().block_on(async {
        let tasks: Vec<_> = (0..256)
            .map(|_| {
                let journal = journal.clone();
                tokio::spawn(async move {
                    for _ in 0..8 {
                        journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let written = *journal.written().borrow();
    assert_eq!(written.last_seq, 2048);
    assert!(written.commits < 1024, "{} commits for 2048 appends", written.commits);
}

#[tokio::test]
async fn a_journal_goes_on_where_it_was_closed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    let id = journal.id();
    let other = journal.clone();
    let waiting: Vec<_> = (0..100)
        .map(|_| {
            let journal = journal.clone();
            tokio::spawn(async move { journal.append(vec![event(EventKind::NoFlow).into()]).await })
        })
        .collect();
    tokio::task::yield_now().await;
    journal.close().await;
    let mut appended = 0;
    for task in waiting {
        match task.await.unwrap() {
            Ok(()) => appended += 1,
            Err(error) => assert!(matches!(error, AuditError::Closed), "{error}"),
        }
    }
    let late = other.append(vec![event(EventKind::NoFlow).into()]).await;
    assert!(matches!(late, Err(AuditError::Closed)));
    other.close().await;

    let journal = Journal::open(&path, "renamed").unwrap();
    assert_eq!(journal.id(), id);
    assert_eq!(journal.written().borrow().last_seq, appended);
    journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    assert_eq!(all_seqs(&path), (1..=appended + 1).map(|seq| seq.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn statements_left_open_are_settled_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    let allowed = statement(Uuid::nil(), "SELECT 1", Verdict::Allow);
    let denied = statement(Uuid::nil(), "DROP TABLE t", Verdict::Deny);
    let ended = statement(Uuid::nil(), "SELECT 2", Verdict::Allow);
    let end = outcome(ended.id);
    for statement in [allowed, denied, ended] {
        journal.append_statement(statement).await.unwrap();
    }
    journal.append(vec![end.into()]).await.unwrap();
    journal.close().await;
    for _ in 0..2 {
        Journal::open(&path, "node").unwrap().close().await;
        assert_eq!(
            texts(&path, "SELECT sql || ': ' || status FROM trail ORDER BY seq"),
            ["SELECT 1: unknown", "DROP TABLE t: refused", "SELECT 2: succeeded"]
        );
        assert_eq!(all_seqs(&path), ["1", "2", "3", "4", "5", "6"]);
    }
}

#[tokio::test]
async fn what_cannot_be_opened_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let open = |path: &Path| Journal::open(path, "node").map(|_| ()).unwrap_err();

    let journal = Journal::open(&path, "node").unwrap();
    assert!(matches!(open(&path), AuditError::Locked(_)));
    for _ in 0..200 {
        journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    }
    journal.close().await;

    let foreign = directory.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE notes (text TEXT)").unwrap();
    assert!(matches!(open(&foreign), AuditError::NotAJournal(_)));
    let text = directory.path().join("text");
    fs::write(&text, "this is a text, and a long one so that it cannot be an empty database").unwrap();
    assert!(matches!(open(&text), AuditError::NotAJournal(_)));
    let below_a_file = text.join("journal.db");
    assert!(matches!(open(&below_a_file), AuditError::Directory { .. }));

    let damaged = directory.path().join("damaged.db");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x5a);
    fs::write(&damaged, bytes).unwrap();
    let error = open(&damaged);
    assert!(matches!(error, AuditError::Corrupt { .. }), "{error}");

    Connection::open(&path).unwrap().pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    let error = open(&path);
    let (next, this) = (schema::VERSION + 1, schema::VERSION);
    assert!(
        matches!(error, AuditError::Newer { found, known, .. } if (found, known) == (next, this)),
        "{error}"
    );
    assert!(error.to_string().contains("newer"), "{error}");
}

#[tokio::test]
async fn a_journal_of_an_earlier_version_is_brought_up() {
    let fourth =
        "DROP VIEW trail; DROP TABLE approvals; CREATE VIEW trail AS SELECT 1; PRAGMA user_version = 3;";
    let third = "ALTER TABLE statements DROP COLUMN previous; ALTER TABLE payloads DROP COLUMN previous;
                 DROP INDEX statements_of_session; DROP INDEX events_of_kind; DROP TABLE checkpoints; PRAGMA user_version = 2;";
    let second = "DROP TABLE payloads; DROP TABLE running; PRAGMA user_version = 1;";
    for undo in [fourth.to_owned(), format!("{fourth}{third}"), format!("{fourth}{third}{second}")] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        let session = Uuid::now_v7();
        journal.append(vec![statement(session, "select 1", Verdict::Allow).into()]).await.unwrap();
        journal.close().await;
        Connection::open(&path).unwrap().execute_batch(&undo).unwrap();
        let journal = Journal::open(&path, "node").unwrap();
        journal.append(vec![payload(session, Uuid::nil()).into()]).await.unwrap();
        assert_eq!(all_seqs(&path), ["1", "2", "3"], "the statement got an outcome");
        assert_eq!(texts(&path, "SELECT previous FROM payloads"), ["1"]);
        assert_eq!(texts(&path, "SELECT status || ruling FROM trail"), ["unknown"]);
    }
}

#[tokio::test]
async fn the_records_of_a_session_name_those_before_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let mut journal = Journal::open(&path, "node").unwrap();
    let (session, other) = (session(), Uuid::now_v7());
    let id = session.id;
    let one = || Record::from(statement(id, "select 1", Verdict::Allow));
    let foreign = || Record::from(statement(other, "select 2", Verdict::Deny));
    journal.append(vec![session.into(), one(), foreign(), one()]).await.unwrap();
    journal.append(vec![payload(id, Uuid::nil()).into(), one()]).await.unwrap();
    // What could not be written is no link.
    let twice = one();
    journal.append(vec![twice.clone(), twice]).await.unwrap_err();
    for _ in 0..2 {
        journal.close().await;
        journal = Journal::open(&path, "node").unwrap();
        journal.append(vec![foreign(), one()]).await.unwrap();
    }
    let of = |session: Uuid| {
        let sql = format!(
            "SELECT seq || ' ' || previous FROM (SELECT seq, previous, session FROM statements
             UNION ALL SELECT seq, previous, session FROM payloads) WHERE session = '{session}' ORDER BY seq"
        );
        texts(&path, &sql)
    };
    let ours = of(id);
    assert_eq!(ours[..4], ["2 1", "4 2", "5 4", "6 5"]);
    let links: Vec<(&str, &str)> = ours.iter().map(|link| link.split_once(' ').unwrap()).collect();
    assert!(links.windows(2).all(|pair| pair[1].1 == pair[0].0), "{ours:?}");
    assert_eq!((ours.len(), of(other).len(), of(other)[0].as_str()), (6, 3, "3 0"));
}

#[test]
fn a_record_is_counted_with_all_its_texts() {
    let mut big = statement(Uuid::nil(), &"x".repeat(1 << 20), Verdict::Allow);
    big.caller = caller();
    big.objects = vec!["y".repeat(100); 1000];
    assert!(Record::from(big).size() > (1 << 20) + 100_000);
}

#[test]
fn a_commit_reaches_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let _lock = schema::prepare(&path).unwrap();
    let connection = schema::open(&path, true).unwrap();
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
    assert_eq!((mode.as_str(), synchronous), ("wal", 2), "2 is FULL");
}
