//! Against the real ClickHouse engine, which can be killed at any moment. They are ignored unless asked for: what they need
//! is not on every machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::server::{Server, deliver_all};
use super::*;
use crate::audit::samples::{TABLES, TIME, any_record, outcome, payload, session};
use crate::audit::{Event, Record, Running, begin_anew};

/// Where the child process of the crash test finds its journal, and ClickHouse.
const CHILD_JOURNAL: &str = "SNOWFENCE_TEST_JOURNAL";
const CHILD_URL: &str = "SNOWFENCE_TEST_URL";

/// What the journal answers, in the form of [`Server::lines`].
fn journal_lines(path: &Path, sql: &str) -> Vec<String> {
    let connection = schema::open_read_only(path).unwrap();
    let mut query = connection.prepare(sql).unwrap();
    query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn records_of_any_kind_arrive_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node-1").unwrap();
    let mut server = Server::new(directory.path().join("data"));
    server.start();
    let mut runner = TestRunner::deterministic();
    let strategy = any_record();
    let mut records: Vec<Record> =
        (0..500).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
    for (status, sql) in [(true, "SELECT 1"), (false, "SELECT 2"), (true, &"x".repeat(1 << 20)), (true, "\0")]
    {
        let session = session();
        let statement = statement(session.id, sql, Verdict::Allow);
        let end = outcome(statement.id);
        records.extend([session.into(), statement.into()]);
        if status {
            records.push(end.into());
        }
    }
    journal.append(records).await.unwrap();
    deliver_all(&journal, settings(server.url())).await;

    // Both engines are asked for the same text of every row: hexadecimal, so that no character is special.
    let row_in_journal = |columns: &[&str], lists: &[&str]| {
        let plain = columns.iter().map(|column| format!("iif({column} IS NULL, 'none', hex({column}))"));
        let list = lists.iter().map(|column| {
            format!(
                "coalesce((SELECT group_concat(hex(value), ';')
                           FROM (SELECT value FROM json_each(coalesce({column}, '[]')) ORDER BY key)), '')"
            )
        });
        plain.chain(list).collect::<Vec<_>>().join(" || ',' || ")
    };
    let row_in_clickhouse = |columns: &[&str], lists: &[&str]| {
        let plain = columns.iter().map(|column| format!("coalesce(hex(toString({column})), 'none')"));
        let list =
            lists.iter().map(|column| format!("arrayStringConcat(arrayMap(x -> hex(x), {column}), ';')"));
        plain.chain(list).collect::<Vec<_>>().join(" || ',' || ")
    };
    let workload =
        ["cgroup", "pid", "uid", "comm", "executable", "issuer", "subject", "account", "seq", "id", "node"];
    let with = |more: &[&'static str]| [&workload[..], more].concat();
    for (table, columns, lists) in [
        ("sessions", with(&["rule", "user", "role", "snowflake_session", "client"]), vec!["groups"]),
        (
            "statements",
            with(&[
                "session",
                "request_id",
                "user",
                "role",
                "sql",
                "kind",
                "effect",
                "verdict",
                "policy",
                "binds",
            ]),
            vec!["groups", "actions", "objects", "features"],
        ),
        (
            "outcomes",
            vec!["seq", "statement", "status", "query_id", "rows", "message", "duration_us"],
            vec![],
        ),
        (
            "approvals",
            vec!["seq", "node", "statement", "ruling", "approver_issuer", "approver", "reason"],
            vec![],
        ),
        ("events", with(&["kind", "detail"]), vec!["groups"]),
        ("running", vec!["seq", "node", "statement", "query_id"], vec![]),
        (
            "payloads",
            vec![
                "seq",
                "id",
                "node",
                "session",
                "statement",
                "query_id",
                "operation",
                "request_bytes",
                "answer_bytes",
                "sealed_bytes",
                "duration_us",
                "ending",
                "run",
                "places",
                "digest",
            ],
            vec![],
        ),
    ] {
        let row = row_in_journal(&columns, &lists);
        let expected = journal_lines(&path, &format!("SELECT {row} FROM {table} ORDER BY seq"));
        assert!(expected.len() > 50, "{table}: {}", expected.len());
        let row = row_in_clickhouse(&columns, &lists);
        let found = server.lines(&format!("SELECT {row} FROM snowfence.{table} FINAL ORDER BY seq")).await;
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!(expected, found, "{table}");
        }
        assert_eq!(expected.len(), found.len(), "{table}");
        let time = "toString(toUnixTimestamp64Micro(time))";
        let times = server.lines(&format!("SELECT {time} FROM snowfence.{table} FINAL ORDER BY seq")).await;
        let expected = journal_lines(&path, &format!("SELECT CAST(time AS TEXT) FROM {table} ORDER BY seq"));
        assert_eq!(times, expected, "{table}");
    }

    let trail = "coalesce(hex(sql), '') || ',' || status || ',' || rule || ',' || query_id || ',' || account || ',' || ruling || ',' || approver";
    let expected = journal_lines(&path, &format!("SELECT {trail} FROM trail ORDER BY seq"));
    assert!(expected.iter().any(|line| line.contains(",open,")));
    assert!(expected.iter().any(|line| line.contains(",succeeded,analysts,01b2c3d4")));
    assert_eq!(server.lines(&format!("SELECT {trail} FROM snowfence.trail ORDER BY seq")).await, expected);
    let open =
        "SELECT count() FROM snowfence.trail WHERE status = 'open' AND isNull(duration_us) AND isNull(rows)";
    let expected = expected.iter().filter(|line| line.contains(",open,")).count();
    assert_eq!(server.lines(open).await, [expected.to_string()]);
    let mut columns = server
        .lines("SELECT name FROM system.columns WHERE database = 'snowfence' AND table = 'trail'")
        .await;
    let mut expected = journal_lines(&path, "SELECT name FROM pragma_table_info('trail')");
    columns.sort();
    expected.sort();
    assert_eq!(columns, expected, "both views have the same columns");
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command; takes two minutes"]
async fn killed_at_any_moment_each_record_arrives_exactly_once() {
    let rounds = 36;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let mut server = Server::new(directory.path().join("data"));
    let (_crate, module) = module_path!().split_once("::").unwrap();
    let child_test = format!("{module}::appends_and_delivers_until_it_is_killed");
    let start_writer = |server: &Server| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", &child_test])
            .env(CHILD_JOURNAL, &path)
            .env(CHILD_URL, server.url())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    server.start();
    server.lines("SELECT 1").await;
    apply(&settings(server.url()), false, |_| ()).await.unwrap();
    for (table, _) in TABLES {
        // No merge may hide a row that arrived twice.
        let never = "max_bytes_to_merge_at_max_space_in_pool = 1, parts_to_delay_insert = 100000, parts_to_throw_insert = 100000";
        server.lines(&format!("ALTER TABLE snowfence.{table} MODIFY SETTING {never}")).await;
    }
    let mut writer = start_writer(&server);
    let mut in_flight = 0;
    let mut moments = Moments(0x5eed);
    for round in 0..rounds {
        thread::sleep(moments.up_to(Duration::from_millis(2500)));
        let (kill_server, kill_writer) = [(true, false), (false, true), (true, true)][round % 3];
        if kill_server {
            server.kill();
        }
        if kill_writer {
            writer.kill().unwrap();
            writer.wait().unwrap();
            in_flight += journal_lines(&path, "SELECT sink FROM cursors WHERE sending > delivered").len();
        }
        thread::sleep(moments.up_to(Duration::from_millis(300)));
        if kill_writer {
            writer = start_writer(&server);
        }
        if kill_server {
            server.start();
        }
    }
    writer.kill().unwrap();
    writer.wait().unwrap();

    let journal = Journal::open(&path, "node").unwrap();
    let last_seq = journal.written().borrow().last_seq;
    deliver_all(&journal, settings(server.url())).await;
    let mut seqs = BTreeMap::new();
    for (table, id) in TABLES {
        let expected = journal_lines(&path, &format!("SELECT seq || ' ' || {id} FROM {table} ORDER BY seq"));
        let row = format!("toString(seq) || ' ' || toString({id})");
        let found = server.lines(&format!("SELECT {row} FROM snowfence.{table} FINAL ORDER BY seq")).await;
        assert_eq!(found.len(), expected.len(), "{table}");
        assert_eq!(found, expected, "{table}");
        let raw = server.lines(&format!("SELECT count() FROM snowfence.{table}")).await;
        println!("{table}: {} records, {} rows before FINAL", expected.len(), raw[0]);
        for line in found {
            let seq: i64 = line.split(' ').next().unwrap().parse().unwrap();
            assert!(seqs.insert(seq, table).is_none(), "seq {seq} is there twice");
        }
    }
    assert!(seqs.keys().copied().eq(1..=last_seq), "each seq is in ClickHouse");
    println!("{in_flight} batches were sent again");
    assert!(in_flight > 3, "only {in_flight} batches were sent again: too few to prove anything");
    assert!(last_seq > 1000, "only {last_seq} records: too few to prove anything");
}

#[test]
#[ignore = "the child process of killed_at_any_moment_each_record_arrives_exactly_once"]
fn appends_and_delivers_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD_JOURNAL).map(PathBuf::from) else { return };
    let url = std::env::var(CHILD_URL).unwrap();
    let journal = Journal::open(&path, "node").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let writer = Writer::new(journal.clone(), settings(url)).unwrap();
        let appends = async {
            loop {
                let session = session();
                let statement = statement(session.id, "SELECT 1", Verdict::Allow);
                let end = outcome(statement.id);
                let running = Running {
                    statement: statement.id,
                    time: TIME,
                    query_id: "01b2c3d4-0000-query".to_owned(),
                };
                let payload = payload(session.id, statement.id);
                journal.append(vec![session.into(), event(EventKind::NoFlow).into()]).await.unwrap();
                journal.append_statement(statement).await.unwrap();
                journal.append(vec![running.into(), end.into(), payload.into()]).await.unwrap();
                sleep(Duration::from_millis(4)).await;
            }
        };
        writer.run(Arc::default(), appends).await;
    });
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn another_journal_of_the_same_node_does_not_collide() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::new(directory.path().join("data"));
    server.start();
    for state in ["first", "second"] {
        let journal = Journal::open(&directory.path().join(state).join("journal.db"), "node").unwrap();
        journal.append(vec![event(EventKind::NoFlow).into(), session().into()]).await.unwrap();
        deliver_all(&journal, settings(server.url())).await;
    }
    let counts = server.lines("SELECT (SELECT count() FROM snowfence.events FINAL) + (SELECT count() FROM snowfence.sessions FINAL)");
    assert_eq!(counts.await, ["4"]);
    // Tables that vanish are made again.
    server.lines("DROP DATABASE snowfence").await;
    let journal = Journal::open(&directory.path().join("first").join("journal.db"), "node").unwrap();
    journal.append(vec![event(EventKind::NotTls).into()]).await.unwrap();
    deliver_all(&journal, settings(server.url())).await;
    // And, being new ones, they get all that the journal has.
    let kinds = server.lines("SELECT kind FROM snowfence.events FINAL ORDER BY seq").await;
    assert_eq!(kinds, ["no_flow", "not_tls"]);
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn a_range_that_is_sent_twice_is_stored_once() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let mut server = Server::new(directory.path().join("data"));
    server.start();
    let events = (0..10).map(|_| event(EventKind::NoFlow).into());
    journal.append(events.collect()).await.unwrap();
    deliver_all(&journal, settings(server.url())).await;
    // As after a crash between ClickHouse's answer and the cursor.
    let sink = Writer::new(journal.clone(), settings(server.url())).unwrap().prepare().await.unwrap();
    journal.save_cursor(&sink, Cursor { delivered: 0, sending: 10 }).await.unwrap();
    deliver_all(&journal, settings(server.url())).await;
    assert_eq!(
        server.lines("SELECT count() FROM snowfence.events").await,
        ["10"],
        "ClickHouse knew the token"
    );
    // As when it has forgotten the token: the ranges differ.
    journal.save_cursor(&sink, Cursor::default()).await.unwrap();
    deliver_all(&journal, Settings { batch_rows: 4, ..settings(server.url()) }).await;
    assert_eq!(server.lines("SELECT count() FROM snowfence.events").await, ["20"]);
    assert_eq!(
        server.lines("SELECT count() FROM snowfence.events FINAL").await,
        ["10"],
        "the key is the same"
    );
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn a_journal_that_was_set_back_is_not_delivered() {
    const NODE: &str = "it's \\ node";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let mut server = Server::new(directory.path().join("data"));
    server.start();
    server.lines("SELECT 1").await;
    let add = async |records, is_delivered| {
        let journal = Journal::open(&path, NODE).unwrap();
        let some = (0..records).map(|_| Event::new(EventKind::NoFlow, String::new()).into()).collect();
        journal.append(some).await.unwrap();
        if is_delivered {
            deliver_all(&journal, settings(server.url())).await;
        }
        let prepared = Writer::new(journal.clone(), settings(server.url())).unwrap().prepare().await;
        journal.close().await;
        prepared
    };
    let snapshot = |name: &str| {
        std::fs::copy(&path, directory.path().join(name)).unwrap();
    };
    add(5, false).await.unwrap();
    snapshot("never delivered");
    add(5, true).await.unwrap();
    snapshot("delivered");
    add(10, true).await.unwrap();
    add(3, false).await.unwrap();
    snapshot("newest");
    for name in ["never delivered", "delivered"] {
        std::fs::copy(directory.path().join(name), &path).unwrap();
        // However far it is by now.
        for _ in 0..4 {
            let error = add(10, false).await.unwrap_err();
            assert!(matches!(error, AuditError::ClickHouseAhead { found: 20 }), "{name}: {error}");
        }
    }
    begin_anew(&path, NODE, "restored").unwrap();
    add(1, true).await.unwrap();
    // Records that are lost, and a cursor that is behind, are no sign of it.
    std::fs::copy(directory.path().join("newest"), &path).unwrap();
    let journal = rusqlite::Connection::open(&path).unwrap();
    journal
        .execute_batch(
            "DELETE FROM events WHERE seq BETWEEN 16 AND 20; UPDATE cursors SET delivered = 10, sending = 10",
        )
        .unwrap();
    drop(journal);
    add(1, true).await.unwrap();
    let kinds =
        server.lines("SELECT kind, count() FROM snowfence.events FINAL GROUP BY kind ORDER BY kind").await;
    assert_eq!(kinds, ["journal_salvaged\t1", "no_flow\t25"]);
}

/// Pseudo-random durations (xorshift), so that a failing run can be repeated.
struct Moments(u64);

impl Moments {
    fn up_to(&mut self, longest: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        longest.mul_f64(f64::from(u32::try_from(self.0 % 1000).unwrap()) / 1000.0)
    }
}
