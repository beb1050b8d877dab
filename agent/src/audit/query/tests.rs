use std::fs;
use std::thread;

use uuid::Uuid;

use super::*;
use crate::audit::samples::{event, outcome, session, statement};
use crate::audit::{EventKind, Journal, Verdict};

fn all(path: &Path, sql: &str) -> Result<(Vec<String>, Vec<Vec<Cell>>), AuditError> {
    let mut rows = Vec::new();
    let columns = query(path, sql, &Limits::default(), |_, row| {
        rows.push(row);
        ControlFlow::Continue(())
    })?;
    Ok((columns, rows))
}

/// A journal with one statement, one event, and one value that is not UTF-8.
async fn sample(path: &Path) -> Journal {
    let journal = Journal::open(path, "node").unwrap();
    let session = session();
    let statement = statement(session.id, "SELECT 'ä'", Verdict::Allow);
    let end = outcome(statement.id);
    journal
        .append(vec![session.into(), statement.into(), end.into(), event(EventKind::NoFlow).into()])
        .await
        .unwrap();
    journal
}

#[tokio::test]
async fn answers_are_typed_whether_the_agent_runs_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = sample(&path).await;
    let sql = "SELECT sql, rows, duration_us / 1e6 AS seconds, NULL AS missing, x'00ff' AS bytes FROM trail";
    let expected = (
        ["sql", "rows", "seconds", "missing", "bytes"].map(str::to_owned).to_vec(),
        vec![vec![
            Cell::Text("SELECT 'ä'".to_owned()),
            Cell::Integer(42),
            Cell::Real(0.0015),
            Cell::Null,
            Cell::Bytes(vec![0, 255]),
        ]],
    );
    assert_eq!(all(&path, sql).unwrap(), expected);
    journal.close().await;
    assert_eq!(all(&path, sql).unwrap(), expected);
    let (columns, rows) = all(&path, "SELECT * FROM trail WHERE FALSE").unwrap();
    assert!(columns.len() > 30 && rows.is_empty());

    let json: Vec<String> = expected.1[0].iter().map(|cell| serde_json::to_string(cell).unwrap()).collect();
    assert_eq!(json, [r#""SELECT 'ä'""#, "42", "0.0015", "null", r#""00ff""#]);
    let plain: Vec<String> = expected.1[0].iter().map(ToString::to_string).collect();
    assert_eq!(plain, ["SELECT 'ä'", "42", "0.0015", "", "00ff"]);
    assert_eq!(all(&path, "SELECT CAST(x'61ff' AS TEXT)").unwrap().1, [[Cell::Text("a\u{fffd}".to_owned())]]);
}

#[tokio::test]
async fn nothing_but_reading_is_possible() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    sample(&path).await.close().await;
    let other = directory.path().join("other.db");
    let attach = format!("ATTACH '{}' AS other", other.display());
    let vacuum = format!("VACUUM INTO '{}'", other.display());
    for sql in [
        "DELETE FROM statements",
        "INSERT INTO cursors VALUES ('x', 1, 1)",
        "UPDATE journal SET last_seq = 0",
        "DROP TABLE events",
        "CREATE TABLE notes (text TEXT)",
        "CREATE TEMP TABLE notes (text TEXT)",
        "CREATE VIRTUAL TABLE notes USING fts5(text)",
        &attach,
        &vacuum,
        "PRAGMA journal_mode = DELETE",
        "PRAGMA query_only = 0",
        "PRAGMA writable_schema = 1",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "SELECT * FROM pragma_wal_checkpoint",
        "SELECT load_extension('/tmp/x.so')",
        "BEGIN EXCLUSIVE",
        "SAVEPOINT x",
        "WITH x AS (SELECT 1) DELETE FROM events",
        "REINDEX",
        "ANALYZE",
    ] {
        let error = all(&path, sql).unwrap_err();
        assert!(matches!(error, AuditError::NotReadOnly | AuditError::Sql(_)), "{sql}: {error:?}");
    }
    assert!(!other.exists());
    let error = all(&path, "DELETE FROM statements").unwrap_err();
    assert!(matches!(error, AuditError::NotReadOnly), "{error:?}");
    assert_eq!(all(&path, "SELECT count(*) FROM statements").unwrap().1, [[Cell::Integer(1)]]);
    assert_eq!(all(&path, "SELECT last_seq FROM journal").unwrap().1, [[Cell::Integer(4)]]);
    let columns = all(&path, "SELECT name FROM pragma_table_info('cursors')").unwrap().1;
    assert_eq!(columns.len(), 3, "people may look at the tables' columns");
}

#[tokio::test]
async fn a_wrong_query_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    sample(&path).await.close().await;
    for (sql, expected) in [
        ("SELEC 1", "syntax error"),
        ("SELECT absent FROM trail", "no such column: absent"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELECT ?", "parameter"),
        (" -- nothing", "empty"),
        ("SELECT zeroblob(1000000000)", "too big"),
    ] {
        let error = all(&path, sql).unwrap_err();
        assert!(matches!(error, AuditError::Sql(_)), "{sql}: {error:?}");
        assert!(error.to_string().contains(expected), "{sql}: {error}");
        assert!(!error.to_string().contains('\n'), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_query_without_end_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    sample(&path).await.close().await;
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let run = |limits: &Limits| query(&path, endless, limits, |_, _| ControlFlow::Continue(())).unwrap_err();
    let short = Limits { time: Duration::from_millis(50), ..Limits::default() };
    assert!(matches!(run(&short), AuditError::TimedOut(0)));

    let limits = Limits::default();
    let stop = Arc::clone(&limits.stop);
    let waiting = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
    });
    assert!(matches!(run(&limits), AuditError::Interrupted));
    waiting.join().unwrap();

    let mut rows = 0;
    query(
        &path,
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n",
        &Limits::default(),
        |_, _| {
            rows += 1;
            if rows < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        },
    )
    .unwrap();
    assert_eq!(rows, 10);
}

#[tokio::test]
async fn a_query_does_not_hold_appends_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = sample(&path).await;
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)
                   SELECT count(*) FROM n, statements";
    let limits = Limits::default();
    let stop = Arc::clone(&limits.stop);
    let reader = {
        let path = path.clone();
        thread::spawn(move || query(&path, endless, &limits, |_, _| ControlFlow::Continue(())))
    };
    thread::sleep(Duration::from_millis(100));
    for _ in 0..50 {
        journal.append_statement(statement(Uuid::nil(), "SELECT 1", Verdict::Allow)).await.unwrap();
    }
    assert!(!reader.is_finished());
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap().is_err());
}

#[test]
fn what_cannot_be_read_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let error = all(&path, "SELECT 1").unwrap_err();
    assert!(matches!(error, AuditError::Missing(_)));
    assert!(error.to_string().contains("state_dir"), "{error}");
    assert!(!path.exists(), "to look does not make one");
    assert!(matches!(all(directory.path(), "SELECT 1"), Err(AuditError::Missing(_))));
    fs::write(&path, "").unwrap();
    assert!(matches!(all(&path, "SELECT 1"), Err(AuditError::Missing(_))));
    fs::write(&path, "not a database, but a text of some length that no one could take for one").unwrap();
    assert!(matches!(all(&path, "SELECT 1"), Err(AuditError::NotAJournal(_))));
}
