use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rusqlite::Connection;
use rusqlite::types::Value;

use super::*;
use crate::audit::samples::{any_record, caller, event, outcome, session, statement};
use crate::audit::{EventKind, Outcome, Workload};

/// Where a child process of the crash test finds its journal.
const CRASH_PATH: &str = "SNOWFENCE_TEST_JOURNAL";

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
         UNION ALL SELECT seq FROM outcomes UNION ALL SELECT seq FROM events ORDER BY seq",
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
    assert!(matches!(error, AuditError::Newer { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("newer"), "{error}");
}

#[test]
fn a_killed_agent_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let mut acknowledged = HashSet::new();
    let (_crate, module) = module_path!().split_once("::").unwrap();
    let child = format!("{module}::appends_until_it_is_killed");
    for round in 0..5_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", &child])
            .env(CRASH_PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, received) = std::sync::mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let reader = thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(id) = line.split_once("recorded ").map(|(_, id)| id) {
                    lines.send(id.to_owned()).unwrap();
                }
            }
        });
        // Not before it has begun, and each time at another moment.
        acknowledged.insert(received.recv_timeout(Duration::from_mins(1)).unwrap());
        thread::sleep(Duration::from_millis(40 + 37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        acknowledged.extend(received);

        let found: HashSet<String> = texts(&path, "SELECT id FROM statements").into_iter().collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "lost {lost:?}");
    }
    assert!(acknowledged.len() > 50, "only {} records: too few to prove anything", acknowledged.len());
    runtime().block_on(Journal::open(&path, "node").unwrap().close());
    assert_eq!(texts(&path, "SELECT count(*) FROM trail WHERE status = 'open'"), ["0"]);
    let seqs = all_seqs(&path);
    assert_eq!(seqs, (1..=seqs.len()).map(|seq| seq.to_string()).collect::<Vec<_>>());
}

#[test]
#[ignore = "the child process of a_killed_agent_loses_nothing_that_was_acknowledged"]
fn appends_until_it_is_killed() {
    let path = PathBuf::from(std::env::var_os(CRASH_PATH).expect("run by another test only"));
    let journal = Journal::open(&path, "node").unwrap();
    runtime().block_on(async {
        for _ in 0..16 {
            let journal = journal.clone();
            tokio::spawn(async move {
                loop {
                    let statement = statement(Uuid::nil(), "SELECT 1", Verdict::Allow);
                    let recorded = journal.append_statement(statement).await.unwrap();
                    println!("recorded {}", recorded.statement());
                }
            });
        }
        std::future::pending::<()>().await;
    });
}

#[test]
#[ignore = "needs root: it mounts a file system of 2 MiB"]
fn a_full_disk_refuses_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let done = Command::new(arguments[0]).args(&arguments[1..]).arg(directory.path()).status().unwrap();
        assert!(done.success(), "{arguments:?}");
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs"]);
    let path = directory.path().join("journal.db");
    let ballast = directory.path().join("ballast");
    fs::write(&ballast, vec![0; 600 << 10]).unwrap();
    let journal = Journal::open(&path, "node").unwrap();
    let append = || {
        let statement = statement(Uuid::nil(), &"x".repeat(10_000), Verdict::Allow);
        let id = statement.id;
        runtime().block_on(journal.append_statement(statement)).map(|_| id.to_string())
    };
    let mut recorded = Vec::new();
    let error = loop {
        match append() {
            Ok(id) => recorded.push(id),
            Err(error) => break error,
        }
        assert!(recorded.len() < 1000);
    };
    assert!(matches!(error, AuditError::Write(_)), "{error}");
    assert!(journal.written().borrow().failing);
    assert!(append().is_err());
    fs::remove_file(&ballast).unwrap();
    recorded.push(append().expect("there is room again"));
    assert!(!journal.written().borrow().failing);
    assert_eq!(texts(&path, "SELECT id FROM statements ORDER BY seq"), recorded);
    runtime().block_on(journal.close());
    assert_eq!(all_seqs(&path), (1..=recorded.len()).map(|seq| seq.to_string()).collect::<Vec<_>>());
    mount(&["umount"]);
}

#[test]
#[ignore = "a measurement: run it alone, with --nocapture"]
fn appends_per_second() {
    for tasks in [1, 16, 256] {
        let directory = tempfile::tempdir_in(".").unwrap();
        let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
        let began = Instant::now();
        let appends = runtime().block_on(async {
            let tasks: Vec<_> = (0..tasks)
                .map(|_| {
                    let journal = journal.clone();
                    tokio::spawn(async move {
                        let mut appends = 0;
                        while began.elapsed() < Duration::from_secs(3) {
                            let statement =
                                statement(Uuid::nil(), "SELECT * FROM orders WHERE id = ?", Verdict::Allow);
                            journal.append_statement(statement).await.unwrap();
                            appends += 1;
                        }
                        appends
                    })
                })
                .collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await.unwrap();
            }
            sum
        });
        let commits = journal.written().borrow().commits;
        println!(
            "{tasks} tasks: {} appends/s, {commits} commits",
            f64::from(appends) / began.elapsed().as_secs_f64()
        );
    }
}

/// What a sequence of appends, closings and reopenings must leave behind.
#[derive(Default)]
struct Model {
    /// Every identifier that is in the journal, by table, with its `seq`.
    rows: HashMap<(&'static str, Uuid), i64>,
    last_seq: i64,
}

impl Model {
    fn key(record: &Record) -> (&'static str, Uuid) {
        match record {
            Record::Session(session) => ("sessions", session.id),
            Record::Statement(statement) => ("statements", statement.id),
            Record::Outcome(outcome) => ("outcomes", outcome.statement),
            Record::Event(event) => ("events", event.id),
        }
    }

    /// Whether the append must succeed.
    fn append(&mut self, records: &[Record]) -> bool {
        let keys: Vec<_> = records.iter().map(Self::key).collect();
        let unique: HashSet<_> = keys.iter().collect();
        if unique.len() < keys.len() || keys.iter().any(|key| self.rows.contains_key(key)) {
            return false;
        }
        for key in keys {
            self.last_seq += 1;
            self.rows.insert(key, self.last_seq);
        }
        true
    }

    fn settle(&mut self) {
        let mut open: Vec<_> = self
            .rows
            .iter()
            .filter(|((table, id), _)| *table == "statements" && !self.rows.contains_key(&("outcomes", *id)))
            .map(|((_, id), seq)| (*seq, *id))
            .collect();
        open.sort_unstable();
        for (_, id) in open {
            self.last_seq += 1;
            self.rows.insert(("outcomes", id), self.last_seq);
        }
    }
}

fn stored(path: &Path) -> HashMap<(&'static str, Uuid), i64> {
    let mut stored = HashMap::new();
    for (table, column) in
        [("sessions", "id"), ("statements", "id"), ("outcomes", "statement"), ("events", "id")]
    {
        for row in rows(path, &format!("SELECT {column}, seq FROM {table}")) {
            let [Value::Text(id), Value::Integer(seq)] = &row[..] else { panic!("{row:?}") };
            stored.insert((table, Uuid::parse_str(id).unwrap()), *seq);
        }
    }
    stored
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Record>),
    /// Appends the records of an earlier append again.
    Again(usize),
    /// Appends the outcome of an earlier statement.
    End(usize),
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(any_record(), 0..5).prop_map(Step::Append),
        1 => any::<usize>().prop_map(Step::Again),
        3 => any::<usize>().prop_map(Step::End),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_equals_its_model(steps in prop::collection::vec(any_step(), 1..24)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let runtime = runtime();
        let mut journal = Journal::open(&path, "node").unwrap();
        let mut model = Model::default();
        let mut appended: Vec<Vec<Record>> = Vec::new();
        for step in steps {
            let records = match step {
                Step::Append(records) => records,
                Step::Again(index) if !appended.is_empty() => appended[index % appended.len()].clone(),
                Step::End(index) => {
                    let statements: Vec<Uuid> = appended.iter().flatten().filter_map(|record| match record {
                        Record::Statement(statement) => Some(statement.id),
                        _ => None,
                    }).collect();
                    if statements.is_empty() { continue }
                    vec![outcome(statements[index % statements.len()]).into()]
                }
                Step::Again(_) => continue,
                Step::Reopen => {
                    runtime.block_on(journal.close());
                    journal = Journal::open(&path, "node").unwrap();
                    model.settle();
                    continue;
                }
            };
            let expected = model.append(&records);
            let result = runtime.block_on(journal.append(records.clone()));
            prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
            appended.push(records);
        }
        prop_assert_eq!(journal.written().borrow().last_seq, model.last_seq);
        prop_assert_eq!(stored(&path), model.rows);
    }

    #[test]
    fn a_record_comes_back_as_it_was(record in any_record()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        runtime().block_on(async {
            let journal = Journal::open(&path, "node").unwrap();
            journal.append(vec![record.clone()]).await.unwrap();
            journal.close().await;
        });
        let row = |sql: &str| rows(&path, sql).remove(0);
        let text = |text: &String| Value::Text(text.clone());
        let list = |list: &Vec<String>| Value::Text(serde_json::to_string(list).unwrap());
        let number = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
        match &record {
            Record::Session(session) => prop_assert_eq!(
                row("SELECT time, cgroup, groups, user, client FROM sessions"),
                [Value::Integer(session.time), text(&session.workload.cgroup), list(&session.caller.groups),
                 text(&session.user), text(&session.client)]
            ),
            Record::Statement(statement) => prop_assert_eq!(
                row("SELECT time, sql, objects, features, verdict, describe_only, binds, uid FROM statements"),
                [Value::Integer(statement.time), text(&statement.sql), list(&statement.objects),
                 list(&statement.features), Value::Text(statement.verdict.as_str().to_owned()),
                 Value::Integer(i64::from(statement.describe_only)), number(statement.binds.into()),
                 number(statement.workload.uid.into())]
            ),
            Record::Outcome(Outcome { time, rows, message, duration_us, .. }) => prop_assert_eq!(
                row("SELECT time, rows, message, duration_us FROM outcomes"),
                [Value::Integer(*time), rows.map_or(Value::Null, number), text(message), number(*duration_us)]
            ),
            Record::Event(event) => {
                let workload = |part: fn(&Workload) -> &String| event.workload.as_ref().map_or(Value::Null, |all| text(part(all)));
                prop_assert_eq!(
                    row("SELECT time, cgroup, comm, groups, detail FROM events"),
                    [Value::Integer(event.time), workload(|all| &all.cgroup), workload(|all| &all.comm),
                     event.caller.as_ref().map_or(Value::Null, |caller| list(&caller.groups)), text(&event.detail)]
                );
            }
        }
    }
}

#[test]
fn a_record_is_counted_with_all_its_texts() {
    let mut big = statement(Uuid::nil(), &"x".repeat(1 << 20), Verdict::Allow);
    big.caller = caller();
    big.objects = vec!["y".repeat(100); 1000];
    assert!(Record::from(big).size() > (1 << 20) + 100_000);
}
