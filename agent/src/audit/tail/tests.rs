use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use uuid::Uuid;

use super::*;
use crate::audit::samples::{TIME, event, outcome, session, statement};
use crate::audit::{EventKind, Journal, Record, Verdict};

/// What a line says, in short.
fn short(entry: &Entry) -> String {
    match entry {
        Entry::Statement(statement) => format!("{} {} {}", statement.seq, statement.sql, statement.status),
        Entry::Event(event) => format!("{} {}", event.seq, event.kind),
    }
}

fn read(path: &Path, filter: Filter, last: Option<u32>) -> Vec<String> {
    Tail::open(path, filter, last, false).unwrap().map(|entry| short(&entry.unwrap())).collect()
}

fn follow(path: &Path, last: Option<u32>) -> Receiver<String> {
    let tail = Tail::open(path, Filter::default(), last, true).unwrap();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for entry in tail {
            if sender.send(short(&entry.unwrap())).is_err() {
                return;
            }
        }
    });
    receiver
}

#[tokio::test]
async fn entries_come_in_order_with_their_outcome() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    assert_eq!(read(&path, Filter::default(), None), [""; 0]);
    let session = session();
    let allowed = statement(session.id, "SELECT 1", Verdict::Allow);
    let mut denied = statement(session.id, "DROP TABLE t", Verdict::Deny);
    denied.effect = "destructive".to_owned();
    denied.time += 10;
    denied.workload.cgroup = "/pods/other".to_owned();
    let end = outcome(allowed.id);
    let mut late = event(EventKind::LoginRefused);
    late.time += 10;
    late.caller = Some(session.caller.clone());
    let records: Vec<Record> = vec![
        session.into(),
        allowed.into(),
        event(EventKind::NoFlow).into(),
        denied.into(),
        late.into(),
        end.into(),
    ];
    journal.append(records).await.unwrap();

    let everything = ["2 SELECT 1 succeeded", "3 no_flow", "4 DROP TABLE t open", "5 login_refused"];
    assert_eq!(read(&path, Filter::default(), None), everything);
    for last in 0..6 {
        let expected = &everything[4 - (last as usize).min(4)..];
        assert_eq!(read(&path, Filter::default(), Some(last)), expected, "last {last}");
    }
    let filtered = |filter: Filter| {
        let lines = read(&path, filter.clone(), None);
        assert_eq!(read(&path, filter, Some(10)), lines);
        lines
    };
    assert_eq!(filtered(Filter { since: Some(TIME + 5), ..Filter::default() }), everything[2..]);
    assert_eq!(filtered(Filter { verdict: Some(Verdict::Deny), ..Filter::default() }), everything[2..3]);
    assert_eq!(filtered(Filter { effect: Some("read".to_owned()), ..Filter::default() }), everything[..1]);
    assert_eq!(
        filtered(Filter { cgroup: Some("/pods/o*".to_owned()), ..Filter::default() }),
        everything[2..3]
    );
    let subject = Filter { subject: Some("agent-7".to_owned()), ..Filter::default() };
    assert_eq!(filtered(subject), [everything[0], everything[2], everything[3]]);
    assert_eq!(filtered(Filter { subject: Some("nobody".to_owned()), ..Filter::default() }), [""; 0]);

    journal.close().await;
    let entries: Vec<Entry> =
        Tail::open(&path, Filter::default(), None, false).unwrap().collect::<Result<_, _>>().unwrap();
    let Entry::Statement(first) = &entries[0] else { panic!("{entries:?}") };
    assert_eq!((first.time.as_str(), first.rule.as_str()), ("2026-01-02T03:04:05.678901Z", "analysts"));
    assert_eq!((first.rows, first.groups.len(), first.objects.len()), (Some(42), 2, 2));
    let json = serde_json::to_value(&entries[1]).unwrap();
    assert_eq!(
        (&json["record"], &json["kind"], &json["pid"]),
        (&"event".into(), &"no_flow".into(), &4321.into())
    );
}

#[tokio::test]
async fn more_than_a_window_is_read_once_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    let statements: Vec<_> =
        (0..600).map(|number| statement(Uuid::nil(), &format!("SELECT {number}"), Verdict::Allow)).collect();
    // All outcomes stand far behind their statements.
    let ends: Vec<Record> = statements.iter().map(|statement| outcome(statement.id).into()).collect();
    journal.append(statements.into_iter().map(Record::from).collect()).await.unwrap();
    journal.append(ends).await.unwrap();
    let expected: Vec<_> =
        (0..600).map(|number| format!("{} SELECT {number} succeeded", number + 1)).collect();
    assert_eq!(read(&path, Filter::default(), None), expected);
    assert_eq!(read(&path, Filter::default(), Some(300)), expected[300..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn following_shows_what_comes_and_how_it_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    let old = statement(Uuid::nil(), "SELECT 'old'", Verdict::Allow);
    let old_end = outcome(old.id);
    journal.append(vec![event(EventKind::NoFlow).into(), old.into()]).await.unwrap();
    let lines = follow(&path, Some(1));
    let next = || lines.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(next(), "2 SELECT 'old' open");
    let new = statement(Uuid::nil(), "SELECT 'new'", Verdict::Allow);
    let new_end = outcome(new.id);
    journal.append(vec![new.into(), new_end.into()]).await.unwrap();
    assert_eq!(next(), "3 SELECT 'new' succeeded", "once, when both are there");
    journal.append(vec![old_end.into()]).await.unwrap();
    assert_eq!(next(), "2 SELECT 'old' succeeded");
    // Another agent, after a crash.
    let left = statement(Uuid::nil(), "SELECT 'left'", Verdict::Allow);
    journal.append(vec![left.into()]).await.unwrap();
    assert_eq!(next(), "6 SELECT 'left' open");
    journal.close().await;
    let journal = Journal::open(&path, "node").unwrap();
    assert_eq!(next(), "6 SELECT 'left' unknown");
    assert_eq!(lines.recv_timeout(Duration::from_millis(600)), Err(RecvTimeoutError::Timeout));
    journal.close().await;
}
