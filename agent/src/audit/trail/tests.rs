use super::*;
use crate::audit::samples::{self, TIME, event, outcome, session, statement};
use crate::audit::{
    Event, EventKind, Journal, Outcome, OutcomeStatus, Record, Running, Session, Statement, Verdict,
};

const USER: &str = "SVC_AGENTS";

fn scope(from: i64, until: i64) -> Scope {
    Scope { account: session().account, user: USER.to_owned(), from, until }
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn sorted(values: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut values: Vec<String> = values.into_iter().collect();
    values.sort_unstable();
    values
}

async fn trail(records: Vec<Record>) -> (tempfile::TempDir, Trail) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    journal.append(records).await.unwrap();
    journal.close().await;
    (directory, Trail::of_node(path))
}

#[tokio::test]
async fn queries_are_known_by_their_outcomes_and_while_they_run() {
    let session = session();
    let (ended, runs) = (
        statement(session.id, "select 1", Verdict::Allow),
        statement(session.id, "call p()", Verdict::Allow),
    );
    let running = Running { statement: runs.id, time: TIME, query_id: "runs".to_owned() };
    let end = Outcome { query_id: "ended".to_owned(), ..outcome(ended.id) };
    let records = vec![session.into(), ended.into(), end.into(), runs.into(), running.into()];
    let (_directory, trail) = trail(records).await;
    let known = trail.known(&texts(&["ended", "runs", "other", ""])).await.unwrap();
    assert_eq!(sorted(known), ["ended", "runs"]);
    let succeeded = |from, until| {
        let (trail, scope) = (trail.clone(), scope(from, until));
        async move { trail.succeeded(&scope).await.unwrap() }
    };
    assert_eq!(succeeded(TIME, TIME + 2000).await, ["ended"]);
    assert!(
        succeeded(TIME, TIME + 1500).await.is_empty() && succeeded(TIME + 1, TIME + 2000).await.is_empty()
    );
}

#[tokio::test]
async fn what_was_forwarded_is_found_by_session_and_time() {
    let driver = Session { user: "svc_agents".to_owned(), ..session() };
    let api = Session { snowflake_session: String::new(), ..session() };
    let of = |session: &Session, sql: &str, verdict| Statement {
        user: session.user.clone(),
        ..statement(session.id, sql, verdict)
    };
    let plain = of(&driver, "select 1; select 2", Verdict::Allow);
    let call = Statement { effect: "opaque".to_owned(), ..of(&driver, "call p()", Verdict::Allow) };
    let block = Statement { features: vec!["dynamic_sql".to_owned()], ..of(&api, "begin", Verdict::Allow) };
    let denied = of(&driver, "drop table t", Verdict::Deny);
    let foreign = Statement { account: "other".to_owned(), ..of(&api, "select 4", Verdict::Allow) };
    let end = |statement: &Statement| Record::from(outcome(statement.id));
    let ends = [end(&plain), end(&denied), end(&foreign)];
    let mut records: Vec<Record> = vec![driver.into(), api.into()];
    records.extend([plain, call, block, denied, foreign].map(Record::from));
    records.extend(ends);
    let (_directory, trail) = trail(records).await;
    let found = |sessions: &[&str], from, until| {
        let (trail, scope, sessions) = (trail.clone(), scope(from, until), texts(sessions));
        async move {
            let found = trail.forwarded(&scope, &sessions).await.unwrap();
            sorted(found.into_iter().map(|found| format!("{} {}", found.sql, found.runs_others)))
        }
    };
    let all = ["begin true", "call p() true", "select 1; select 2 false"];
    assert_eq!(found(&["1234567890"], TIME, TIME + 1).await, all);
    assert_eq!(found(&["1"], TIME, TIME + 1).await, ["begin true"]);
    assert_eq!(found(&["1234567890"], TIME + 1501, TIME + 9999).await, ["begin true", "call p() true"]);
    assert!(found(&["1234567890"], TIME - 10, TIME).await.is_empty());
    let calls = trail.calls(&scope(TIME, TIME + 1)).await.unwrap();
    assert_eq!(calls, [(TIME, i64::MAX)], "one that is open");
}

#[tokio::test]
async fn sessions_and_findings_are_looked_up() {
    let finding = |kind, detail: &str| Event { detail: detail.to_owned(), ..event(kind) };
    let records: Vec<Record> = vec![
        session().into(),
        Session { snowflake_session: String::new(), ..session() }.into(),
        Session { user: "OTHER".to_owned(), ..session() }.into(),
        finding(EventKind::UnrecordedStatement, r#"{"query_id":"a"}"#).into(),
        finding(EventKind::UnrecordedLogin, r#"{"event_id":"b"}"#).into(),
        // What a workload can write into an event is none.
        finding(EventKind::MalformedRequest, r#"{"query_id":"c"}"#).into(),
        finding(EventKind::UnrecordedStatement, "no JSON").into(),
    ];
    let (_directory, trail) = trail(records).await;
    let opened = trail.opened(&scope(TIME, TIME + 1)).await.unwrap();
    assert_eq!(opened, [Opened { session: "1234567890".to_owned(), time: TIME }]);
    assert!(trail.opened(&scope(TIME + 1, TIME + 9)).await.unwrap().is_empty());
    let ids = texts(&["a", "b", "c"]);
    assert_eq!(sorted(trail.reported("query_id", &ids).await.unwrap()), ["a"]);
    assert_eq!(sorted(trail.reported("event_id", &ids).await.unwrap()), ["b"]);
}

#[tokio::test]
async fn a_trail_begins_with_its_oldest_record_where_others_have_gone() {
    let (_directory, whole) = trail(vec![samples::session().into()]).await;
    let created = whole.begins().await.unwrap();
    assert!(created > TIME, "the journal is younger than what this test puts in");
    let unknown = Outcome { status: OutcomeStatus::Unknown, time: TIME + 7, ..outcome(uuid::Uuid::now_v7()) };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    journal.append(vec![samples::session().into(), unknown.into()]).await.unwrap();
    journal.remove(1).await.unwrap();
    assert_eq!(Trail::of_node(path).begins().await.unwrap(), TIME + 7);
}
