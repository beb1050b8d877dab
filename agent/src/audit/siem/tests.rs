mod mapping;

use super::super::samples::{event, outcome, payload, session, statement};
use super::*;
use crate::audit::{Running, Verdict};
use crate::config::SiemTarget;
use proptest::strategy::{Strategy, ValueTree};
use serde_json::Value;
use uuid::Uuid;

fn file_sink(folder: &std::path::Path, only: Option<Vec<SiemRecords>>) -> Arc<Siem> {
    let target = SiemTarget::File { path: folder.join("trail.jsonl"), max_bytes: 1 << 30, keep_files: 1 };
    Arc::new(Siem { name: "lines".to_owned(), only, verdicts: None, target })
}

fn lines(folder: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("trail.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a sink until it has what there is.
async fn deliver(journal: &Journal, settings: &Arc<Siem>) -> delivery::Status {
    let progress = Arc::<watch::Sender<Progress>>::default();
    let monitor = delivery::Monitor::new(&settings.name, journal, &progress);
    let sink = Sink::new(journal, settings).unwrap();
    let mut watching = progress.subscribe();
    let arrived = {
        let monitor = monitor.clone();
        async move {
            while monitor.status().pending > 0 || monitor.status().delivered == 0 {
                watching.changed().await.unwrap();
            }
        }
    };
    sink.run(progress, arrived).await;
    monitor.status()
}

fn story() -> Vec<crate::audit::Record> {
    let session = session();
    let allowed = statement(session.id, "select 1", Verdict::Allow);
    let refused = statement(session.id, "drop table x", Verdict::Deny);
    let running =
        Running { statement: allowed.id, time: super::super::samples::TIME, query_id: "01b2".to_owned() };
    let kept = payload(session.id, allowed.id);
    let outcome = outcome(allowed.id);
    vec![
        event(EventKind::AgentStarted).into(),
        session.into(),
        allowed.into(),
        running.into(),
        outcome.into(),
        refused.into(),
        kept.into(),
        event(EventKind::NoFlow).into(),
    ]
}

#[tokio::test]
async fn each_record_arrives_once_and_in_order_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("journal.db"), "node-1").unwrap();
    let settings = file_sink(folder.path(), None);
    journal.append(story()).await.unwrap();
    assert_eq!(deliver(&journal, &settings).await.delivered, 8);
    journal.append(vec![event(EventKind::AgentStopped).into()]).await.unwrap();
    let status = deliver(&journal, &settings).await;
    assert_eq!((status.delivered, status.pending, status.given_up), (9, 0, 0));
    let lines = lines(folder.path());
    let sequence: Vec<_> = lines.iter().filter_map(|line| line["metadata"]["sequence"].as_i64()).collect();
    assert_eq!(sequence, (1..=9).collect::<Vec<_>>());
    let uid = format!("node-1/{}/3", journal.id());
    assert_eq!(lines[2]["metadata"]["uid"], uid);
    let classes: Vec<_> = lines.iter().filter_map(|line| line["class_uid"].as_i64()).collect();
    assert_eq!(classes, [6002, 3002, 6005, 6005, 6005, 6005, 6003, 2004, 6002]);
    // What a statement and its outcome have in common.
    assert_eq!(lines[2]["metadata"]["correlation_uid"], lines[4]["metadata"]["correlation_uid"]);
    assert_eq!(lines[4]["actor"], lines[2]["actor"]);
    assert_eq!((&lines[2]["action"], &lines[5]["action"]), (&"Allowed".into(), &"Denied".into()));
}

#[tokio::test]
async fn a_filter_leaves_out_and_the_cursor_moves_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("journal.db"), "node-1").unwrap();
    journal.append(story()).await.unwrap();
    let only = file_sink(folder.path(), Some(vec![SiemRecords::Sessions]));
    assert_eq!(deliver(&journal, &only).await.delivered, 8);
    let sessions = lines(folder.path());
    assert!(sessions.len() == 1 && sessions[0]["class_uid"] == 3002, "{sessions:?}");

    let mut settings = (*file_sink(folder.path(), Some(vec![SiemRecords::Statements]))).clone();
    settings.name = "refused".to_owned();
    settings.verdicts = Some(vec![SiemVerdict::Deny]);
    deliver(&journal, &Arc::new(settings)).await;
    let all = lines(folder.path());
    assert!(all.len() == 2 && all[1]["query_info"]["query_string"] == "drop table x", "{all:?}");
}

#[tokio::test]
async fn batches_are_bounded_and_leave_nothing_out() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("journal.db"), "node-1").unwrap();
    let large = "x".repeat(100_000);
    for _ in 0..5 {
        let records = (0..3).map(|_| statement(Uuid::nil(), &large, Verdict::Allow).into());
        journal.append(records.chain([event(EventKind::NoFlow).into()]).collect()).await.unwrap();
    }
    let end = |after, rows, bytes, only: Option<Vec<SiemRecords>>| {
        schema::read(journal.path(), move |connection| {
            rows::choose_end(connection, only.as_deref(), after, rows, bytes)
        })
    };
    assert_eq!(end(0, 3, 1 << 30, None).await.unwrap(), 3);
    assert_eq!(end(0, 1000, 250_000, None).await.unwrap(), 2);
    assert_eq!(end(0, 1000, 10, None).await.unwrap(), 1, "at least one");
    assert_eq!(end(18, 1000, 1 << 30, None).await.unwrap(), 20);
    assert_eq!(end(0, 1000, 20_000, Some(vec![SiemRecords::Events])).await.unwrap(), 20);
}

/// A place that answers 400 to what has one of these words in it; returns its address, and what it takes.
async fn picky(
    refused: &'static [&'static str],
) -> (std::net::SocketAddr, Arc<std::sync::Mutex<Vec<String>>>) {
    use http_body_util::{BodyExt, Full};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::<std::sync::Mutex<Vec<String>>>::default();
    let all = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let all = Arc::clone(&all);
            let service =
                hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let all = Arc::clone(&all);
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let body = String::from_utf8(body.to_vec()).unwrap();
                        let is_refused = refused.iter().any(|word| body.contains(word));
                        let status = if is_refused {
                            hyper::StatusCode::BAD_REQUEST
                        } else {
                            all.lock().unwrap().extend(body.lines().map(ToOwned::to_owned));
                            hyper::StatusCode::OK
                        };
                        let answer =
                            hyper::Response::builder().status(status).body(Full::<bytes::Bytes>::default());
                        Ok::<_, std::convert::Infallible>(answer.unwrap())
                    }
                });
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
        }
    });
    (address, taken)
}

fn http_sink(address: std::net::SocketAddr) -> Arc<Siem> {
    let target = SiemTarget::Http {
        url: format!("http://{address}/in").parse().unwrap(),
        format: crate::config::SiemFormat::Ndjson,
        token: None,
        ca_bundle: None,
        gzip: false,
        batch_records: 10,
        batch_bytes: 1 << 20,
    };
    Arc::new(Siem { name: "picky".to_owned(), only: None, verdicts: None, target })
}

#[tokio::test]
async fn a_record_that_is_refused_alone_is_given_up_where_others_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("journal.db"), "node-1").unwrap();
    // Even what says that a record was given up is refused here: that is not told again.
    let (address, taken) = picky(&["poison", "refuses record"]).await;
    let settings = http_sink(address);
    journal.append(vec![event(EventKind::AgentStarted).into()]).await.unwrap();
    assert_eq!(deliver(&journal, &settings).await.given_up, 0);
    journal.append(vec![statement(Uuid::nil(), "select 'poison'", Verdict::Allow).into()]).await.unwrap();
    let status = deliver(&journal, &settings).await;
    assert_eq!((status.delivered, status.pending, status.given_up), (3, 0, 2), "{status:?}");
    let taken = taken.lock().unwrap();
    assert!(taken.len() > 1 && taken.iter().all(|event| event.contains("/1\"")), "{taken:?}");
}

#[tokio::test]
async fn a_place_that_refuses_everything_costs_no_record() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(&folder.path().join("journal.db"), "node-1").unwrap();
    journal.append(story()).await.unwrap();
    let (address, taken) = picky(&["metadata"]).await;
    let settings = http_sink(address);
    let progress = Arc::<watch::Sender<Progress>>::default();
    let monitor = delivery::Monitor::new("picky", &journal, &progress);
    let mut watching = progress.subscribe();
    let failed = {
        let monitor = monitor.clone();
        async move {
            while monitor.status().errors < 2 {
                watching.changed().await.unwrap();
            }
        }
    };
    Sink::new(&journal, &settings).unwrap().run(progress, failed).await;
    let status = monitor.status();
    assert_eq!((status.delivered, status.pending, status.given_up), (0, 8, 0));
    assert!(status.error.unwrap().contains("refuses every record: HTTP 400"));
    assert!(taken.lock().unwrap().is_empty());
}

const KINDS: [EventKind; 36] = {
    use EventKind::*;
    [
        AgentSilent,
        AgentStarted,
        AgentStopped,
        ConfigurationRefused,
        ConfigurationReloaded,
        DatagramRefused,
        Diverted,
        FileDownloaded,
        FileUploaded,
        ForeignName,
        HandshakeFailed,
        HostMismatch,
        JournalSalvaged,
        LoginRefused,
        MalformedRequest,
        NameGuarded,
        NoFlow,
        NotTls,
        OldConnection,
        PacketDropped,
        PayloadNotKept,
        PayloadsRead,
        PerimeterDropped,
        RawSocketRefused,
        RecordGivenUp,
        RecordsRemoved,
        RequestTooLarge,
        SessionClosed,
        SessionRefused,
        ShareUsedUp,
        TransferFailed,
        TunnelRefused,
        UnknownOperation,
        UnrecordedLogin,
        UnrecordedStatement,
        UpstreamFailed,
    ]
};

/// What is sent of these records.
fn mapped(records: Vec<crate::audit::Record>) -> Vec<OcsfEvent> {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let journal = Journal::open(&folder.path().join("journal.db"), "node-1").unwrap();
        for record in records {
            // A random identifier may be there twice.
            let _ = journal.append(vec![record]).await;
        }
        let end = journal.written().borrow().last_seq;
        let sink = Sink::new(&journal, &file_sink(folder.path(), None)).unwrap();
        sink.events(sink.filter(), 0, end).await.unwrap()
    })
}

#[test]
#[ignore = "needs the Python environment of the published schema: cargo xtask test"]
fn what_is_sent_is_valid_by_the_published_schema() {
    let Ok(checker) = std::env::var("SNOWFENCE_TEST_OCSF") else {
        panic!("SNOWFENCE_TEST_OCSF names the checker")
    };
    let mut records = story();
    let session = session();
    for sql in
        ["GET /api/v2/databases?x=1", "POST /api/v2/cortex/inference:complete\n{}", "", "\0\u{feff}\u{202e}"]
    {
        let mut one = statement(session.id, sql, Verdict::Hold);
        one.objects = vec!["@DB.S.STAGE".to_owned()];
        records.push(one.into());
    }
    let mut large = statement(session.id, &"\0\u{1f409}\"'".repeat(1 << 17), Verdict::Allow);
    large.objects = (0..100_000).map(|number| format!("DB.S.\"T.{number}\"")).collect();
    let large_outcome = outcome(large.id);
    records.push(large.into());
    records.push(large_outcome.into());
    let mut empty = statement(session.id, "", Verdict::Deny);
    (empty.workload, empty.caller) = Default::default();
    (empty.account, empty.kind, empty.objects) = Default::default();
    records.push(empty.into());
    records.push(session.into());
    records.push(super::super::samples::checkpoint(1).into());
    for kind in KINDS {
        let mut with = event(kind);
        with.caller = Some(super::super::samples::caller());
        records.push(with.into());
        records.push(Event::new(kind, "\0 \u{1f409}: what ]]> \"it\" was".to_owned()).into());
    }
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let any = super::super::samples::any_record();
    records.extend((0..400).map(|_| any.new_tree(&mut runner).unwrap().current()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    let events = mapped(records);
    let whole = events.iter().map(|event| event.json.clone() + "\n");
    let cut = events.iter().map(|event| shorten::shorten(&event.json, 4096) + "\n");
    std::fs::write(&path, whole.chain(cut).collect::<String>()).unwrap();
    let mut words = checker.split_whitespace();
    let output = std::process::Command::new(words.next().unwrap()).args(words).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_str(&said).unwrap();
    assert!(summary["valid"].as_u64().unwrap() > 900, "{summary}");
    for class in [2004, 3002, 6002, 6003, 6005, 6006] {
        assert!(summary["classes"][class.to_string()].as_u64().unwrap_or(0) > 0, "{class}: {summary}");
    }
}
