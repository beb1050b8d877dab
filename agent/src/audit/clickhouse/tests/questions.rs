//! The questions of `deploy/clickhouse.md`, as they stand there, on records with known answers, half of which arrived twice.

use std::collections::BTreeMap;

use super::server::{Server, deliver_all};
use super::*;
use crate::audit::samples::{approval, outcome, session};
use crate::audit::{Approval, Caller, OutcomeStatus, Record, Ruling, Running, Workload, now};

const GUIDE: &str = include_str!("../../../../../deploy/clickhouse.md");
const DAY: i64 = 24 * 3600 * 1_000_000;
const HOUR: i64 = DAY / 24;

/// Title and SQL of each question.
fn questions() -> BTreeMap<&'static str, &'static str> {
    let sections = GUIDE.split("\n### ").skip(1);
    sections
        .map(|section| {
            let (title, rest) = section.split_once('\n').unwrap();
            let (_, sql) = rest.split_once("```sql\n").unwrap();
            (title, sql.split_once("```").unwrap().0)
        })
        .collect()
}

/// Statements of two callers, with what became of them.
fn records() -> Vec<Record> {
    let mut records: Vec<Record> = Vec::new();
    let mut number = 0;
    let mut add =
        |subject: &str, age: i64, sql: &str, effect: &str, object: &str, verdict, change: Change| {
            number += 1;
            let mut session = session();
            session.caller.subject = subject.to_owned();
            session.workload.cgroup = format!("/pods/{subject}");
            session.time = now() - age - HOUR;
            let mut statement = statement(session.id, sql, verdict);
            statement.caller = Caller { subject: subject.to_owned(), ..session.caller.clone() };
            statement.workload = Workload { cgroup: format!("/pods/{subject}"), ..session.workload.clone() };
            statement.time = now() - age;
            statement.effect = effect.to_owned();
            statement.objects = vec![object.to_owned()];
            statement.role = change.role.unwrap_or("ANALYST").to_owned();
            let mut end = outcome(statement.id);
            end.time = statement.time + 1000;
            end.query_id = format!("query-{number}");
            if let Some(ruling) = change.ruling {
                let time = statement.time + 500;
                records.push(Approval { time, ruling, ..approval(statement.id) }.into());
            }
            if verdict != Verdict::Allow && change.ruling != Some(Ruling::Approved) {
                end.status = OutcomeStatus::Refused;
                end.query_id.clear();
                end.rows = None;
                end.message = "Snowfence refused it".to_owned();
            }
            let running = Running { statement: statement.id, time: end.time, query_id: end.query_id.clone() };
            records.extend([session.into(), statement.into()]);
            records.push(if change.runs_on { running.into() } else { end.into() });
        };
    let none = Change::default();
    let (allow, orders) = (Verdict::Allow, "SALES.PUBLIC.ORDERS");
    add("analyst", 100 * DAY, "SELECT 1", "read", orders, allow, none);
    add("analyst", 20 * DAY, "SELECT 2", "read", orders, allow, none);
    add("analyst", 2 * DAY, "SELECT 3", "read", orders, allow, none);
    add("analyst", DAY, "SELECT name FROM Salaries", "read", "HR.PUBLIC.SALARIES", allow, none);
    add("loader", DAY, "INSERT", "write", orders, allow, none);
    add("loader", DAY, "DROP TABLE orders", "destructive", orders, Verdict::Deny, none);
    add("loader", HOUR, "UPDATE orders", "write", orders, Verdict::Hold, none);
    add("loader", HOUR / 2, "GRANT x", "admin", "", allow, Change { role: Some("SYSADMIN"), ..none });
    add("loader", HOUR / 4, "CALL long()", "read", "LONG", allow, Change { runs_on: true, ..none });
    let ruled = |ruling| Change { ruling: Some(ruling), ..none };
    add(
        "loader",
        HOUR,
        "DELETE FROM bonus",
        "write",
        "HR.PUBLIC.BONUS",
        Verdict::Hold,
        ruled(Ruling::Approved),
    );
    add("loader", HOUR, "DELETE FROM pay", "write", "HR.PUBLIC.PAY", Verdict::Hold, ruled(Ruling::Denied));
    let mut bypass = event(EventKind::TunnelRefused);
    bypass.time = now() - DAY / 2;
    bypass.workload = Some(Workload { cgroup: "/pods/analyst-2".to_owned(), ..Workload::default() });
    let mut other = event(EventKind::AgentStarted);
    other.time = now() - DAY;
    other.workload = None;
    records.extend([bypass.into(), other.into()]);
    records
}

#[derive(Clone, Copy, Default)]
struct Change {
    role: Option<&'static str>,
    ruling: Option<Ruling>,
    /// It has no outcome yet.
    runs_on: bool,
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn each_question_has_the_known_answer() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::new(directory.path().join("data"));
    server.start();
    server.lines("SELECT 1").await;
    apply(&settings(server.url()), false, |_| ()).await.unwrap();
    server.lines("SYSTEM STOP MERGES").await;
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    journal.append(records()).await.unwrap();
    deliver_all(&journal, settings(server.url())).await;
    // Ranges that differ have other tokens: their rows are there twice.
    let sink = Writer::new(journal.clone(), settings(server.url())).unwrap().prepare().await.unwrap();
    journal.save_cursor(&sink, Cursor::default()).await.unwrap();
    deliver_all(&journal, Settings { batch_rows: 17, ..settings(server.url()) }).await;
    let raw = server.lines("SELECT count() FROM snowfence.statements").await;
    assert!(raw[0].parse::<u32>().unwrap() > 12, "some are there twice: {raw:?}");
    server
        .lines("CREATE TABLE snowfence.query_history (QUERY_ID String, QUERY_TEXT String, USER_NAME String, QUERY_TAG String,
                START_TIME DateTime64(3)) ENGINE = Memory")
        .await;
    let tag = r#"{"snowfence":{"subject":"analyst"}}"#;
    for (id, text, user, tag) in [
        ("query-3", "SELECT 3", "SVC_AGENTS", tag),
        ("query-9", "CALL long()", "SVC_AGENTS", tag),
        ("elsewhere-1", "SELECT secret", "SVC_AGENTS", ""),
        ("elsewhere-2", "SELECT else", "SOMEBODY", ""),
    ] {
        let insert = "INSERT INTO snowfence.query_history SELECT";
        server.lines(&format!("{insert} '{id}', '{text}', '{user}', '{tag}', now64(3)")).await;
    }

    let expected: BTreeMap<&str, &[&str]> = [
        (
            "Who read a table in the last 90 days",
            &["analyst /pods/analyst read 2 84", "loader /pods/loader write 1 42"][..],
        ),
        (
            "What did this pod do",
            &[
                "statement select analyst allow SELECT 3",
                "statement select analyst allow SELECT name FROM Salaries",
                "event tunnel_refused   GET /unknown",
            ],
        ),
        (
            "Everything that was refused or held, and why",
            &[
                "loader deny  reads destructive Snowfence refused it DROP TABLE orders",
                "loader hold  reads write Snowfence refused it UPDATE orders",
                "loader hold approved reads write  DELETE FROM bonus",
                "loader hold denied reads write Snowfence refused it DELETE FROM pay",
            ],
        ),
        (
            "What ran after an approval, and who gave it",
            &["loader kim month-end correction succeeded 42 DELETE FROM bonus"],
        ),
        ("Who took out most", &["analyst 3 126 6144", "loader 3 126 6144"]),
        (
            "Tables that a caller touched for the first time this week",
            &[
                "analyst HR.PUBLIC.SALARIES",
                "loader ",
                "loader HR.PUBLIC.BONUS",
                "loader LONG",
                "loader SALES.PUBLIC.ORDERS",
            ],
        ),
        ("Use of administrative roles", &["loader SYSADMIN admin allow GRANT x"]),
        ("Attempts to get around the agent", &["tunnel_refused /pods/analyst-2 1"]),
        ("Sessions in use at a moment", &["loader /pods/loader SVC_AGENTS ANALYST PythonConnector 4.0.0"; 2]),
        ("Gaps in the chain", &[]),
        ("A statement by a word in it", &["analyst allow SELECT name FROM Salaries"]),
        ("What Snowflake ran that no agent saw", &["elsewhere-1 SVC_AGENTS SELECT secret"]),
        (
            "Snowflake's history with the caller, by query",
            &["query-3 analyst /pods/analyst succeeded SELECT 3"],
        ),
        ("Snowflake's history by tag", &["analyst 2"]),
    ]
    .into();
    let questions = questions();
    assert!(expected.keys().eq(questions.keys()), "each question has an answer here: {:?}", questions.keys());
    let gaps = questions["Gaps in the chain"];
    for (title, sql) in questions {
        // Times differ from run to run, and are there to be ordered by.
        let found: Vec<_> = server.lines(sql).await.iter().map(|line| without_times(line)).collect();
        assert_eq!(found, expected[title], "{title}");
    }
    let delete = "ALTER TABLE snowfence.outcomes DELETE WHERE status = 'refused' SETTINGS mutations_sync = 2";
    server.lines("SYSTEM START MERGES").await;
    server.lines(delete).await;
    let found = server.lines(gaps).await;
    let cells: Vec<_> = found.iter().map(|line| line.split('\t').collect::<Vec<_>>()).collect();
    let [cells] = cells.as_slice() else { panic!("{found:?}") };
    assert_eq!((cells[0], cells[4]), ("node", "2"), "of three, one is older: {found:?}");
}

fn without_times(line: &str) -> String {
    let is_time =
        |cell: &&str| cell.len() >= 23 && cell.as_bytes().get(10) == Some(&b' ') && cell.contains(':');
    line.split('\t').filter(|cell| !is_time(cell)).collect::<Vec<_>>().join(" ")
}
