mod engine;
mod proof;
mod questions;
mod schema_in_engine;
mod server;

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::*;
use crate::audit::samples::{event, statement};
use crate::audit::store::{self, Cursor};
use crate::audit::{EventKind, Verdict, delivery};

fn settings(url: String) -> Settings {
    Settings { batch_rows: 300, interval: Duration::from_millis(20), ..Settings::new(vec![url], "snowfence") }
}

/// What a writer tells its progress to, and whoever asks for it.
fn watched(journal: &Journal) -> (Arc<watch::Sender<Progress>>, delivery::Monitor) {
    let progress = Arc::<watch::Sender<Progress>>::default();
    let monitor = delivery::Monitor::new("clickhouse", journal, &progress);
    (progress, monitor)
}

#[tokio::test]
async fn wrong_settings_are_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let writer = |settings| Writer::new(journal.clone(), settings).map(|_| ()).unwrap_err();
    let too_long = "x".repeat(65);
    for database in ["", "a b", "a`; DROP DATABASE x; --", "1a", "ä", "a.b", "a\0", &too_long] {
        let error = writer(Settings::new(vec!["http://localhost:8123".to_owned()], database));
        assert!(matches!(error, AuditError::ClickHouseDatabase(_)), "{database}: {error}");
    }
    for url in
        ["localhost:8123", "ftp://localhost", "http://user:secret@localhost", "http://localhost/?user=x", ""]
    {
        let error = writer(Settings::new(vec![url.to_owned()], "snowfence"));
        assert!(matches!(error, AuditError::ClickHouseUrl { .. }), "{url}: {error}");
    }
    let none = Settings { batch_rows: 0, ..settings("http://localhost:8123".to_owned()) };
    assert!(matches!(writer(none), AuditError::ClickHouseBatch));
}

#[tokio::test]
async fn the_password_is_not_printed() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let settings = Settings {
        user: Some("writer".to_owned()),
        password: Some(Secret::new("hunter2".to_owned())),
        ..settings("http://localhost:8123".to_owned())
    };
    let writer = Writer::new(journal, settings).unwrap();
    assert!(!format!("{writer:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_batch_ends_at_its_rows_or_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    for size in [10, 10, 5_000, 100_000, 10, 10] {
        let mut event = event(EventKind::NoFlow);
        event.detail = "x".repeat(size);
        let statement = statement(Uuid::nil(), &"x".repeat(size), Verdict::Allow);
        journal.append(vec![event.into(), statement.into()]).await.unwrap();
    }
    let connection = schema::open_read_only(&path).unwrap();
    let end = |after, rows, bytes| {
        Batch::next(&connection, journal.id(), after, Limits { rows, bytes }).unwrap().end
    };
    assert_eq!(end(0, 3, u64::MAX), 3);
    assert_eq!(end(0, 100, u64::MAX), 12);
    assert_eq!(end(10, 100, u64::MAX), 12);
    assert_eq!(end(12, 100, u64::MAX), 12, "there is nothing");
    assert_eq!(end(0, 100, 10_000), 5, "the second text of 5,000 bytes is too much");
    assert_eq!(end(6, 100, 10_000), 7, "a large row goes alone");
    assert_eq!(end(0, 100, 0), 1);
}

#[tokio::test]
async fn a_dead_clickhouse_holds_nothing_up_and_keeps_the_range() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let writer = Writer::new(journal.clone(), settings(format!("http://127.0.0.1:{port}"))).unwrap();
    let (progress, monitor) = watched(&journal);
    let appended = async {
        for _ in 0..200 {
            journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
        }
        while monitor.status().error.is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), writer.run(progress, appended)).await.unwrap();
    let status = monitor.status();
    assert_eq!((status.delivered, status.pending), (0, 200));
    assert!(monitor.status().error.unwrap().contains("ClickHouse at http"));
}

/// A range that was begun is sent unchanged, whatever the settings are by then, and by whichever endpoint.
#[tokio::test]
async fn the_next_endpoint_gets_the_same_range_with_the_same_token() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    for _ in 0..200 {
        journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    }
    let (one, other) = (Stub::start(Answer::Refuses).await, Stub::start(Answer::Refuses).await);
    let sink = format!("clickhouse {DESTINATION}");
    journal.save_cursor(&sink, Cursor { delivered: 0, sending: 7 }).await.unwrap();
    let changed = Settings {
        batch_rows: 50,
        urls: vec![one.url.clone(), other.url.clone()],
        ..settings(String::new())
    };
    let writer = Writer::new(journal.clone(), changed).unwrap();
    let tried = async {
        while one.tokens().len() < 2 || other.tokens().len() < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), writer.run(Arc::default(), tried))
        .await
        .expect("both are tried, again and again");
    let expected = format!("{} events 0 7", journal.id()).replace(' ', "+");
    let tokens = [one.tokens(), other.tokens()].concat();
    assert!(tokens.iter().all(|token| *token == expected), "{tokens:?}");
    let saved = store::cursor(&schema::open_read_only(&path).unwrap(), &sink).unwrap();
    assert_eq!(saved, Cursor { delivered: 0, sending: 7 });
}

/// What ClickHouse may do to a batch, short of taking it.
#[tokio::test]
async fn a_clickhouse_that_answers_slowly_or_wrongly_has_not_confirmed() {
    for (answer, expected) in [
        (Answer::FailsAfterABeginning, "Memory limit"),
        (Answer::Hangs, "timeout"),
        (Answer::HangsUp, "connection closed"),
        (Answer::IsSomethingElse, "not ClickHouse"),
        (Answer::Version(1), "snowfence schema apply"),
        (Answer::Version(1000), "update it on this node"),
        (Answer::Cluster, "a database of its own"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
        let stub = Stub::start(answer).await;
        let settings = Settings {
            request: Duration::from_millis(500),
            apply_schema: false,
            ..settings(stub.url.clone())
        };
        let writer = Writer::new(journal.clone(), settings).unwrap();
        let (progress, monitor) = watched(&journal);
        let tried = async {
            while monitor.status().error.is_none() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), writer.run(progress, tried)).await.expect("it fails");
        let error = monitor.status().error.unwrap();
        assert!(error.to_lowercase().contains(&expected.to_lowercase()), "{answer:?}: {error}");
        assert_eq!((monitor.status().delivered, monitor.status().pending), (0, 1), "{answer:?}");
    }
}

#[tokio::test]
async fn tls_is_verified_by_the_bundle() {
    use rcgen::CertifiedKey;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let directory = tempfile::tempdir().unwrap();
    let certified = |file: &str| {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let path = directory.path().join(file);
        std::fs::write(&path, cert.pem()).unwrap();
        (path, cert, signing_key)
    };
    let (good, certificate, key) = certified("good.pem");
    let (other, ..) = certified("other.pem");
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n[\"1\"]").await;
        }
    });
    let with = |bundle| Settings { ca_bundle: Some(bundle), ..settings(url.clone()) };
    let connection = Connection::new(&with(good)).unwrap();
    assert_eq!(connection.rows::<1>("SELECT 1").await.unwrap(), [["1".to_owned()]]);
    let connection = Connection::new(&with(other)).unwrap();
    let error = connection.rows::<1>("SELECT 1").await.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let error = Connection::new(&with(directory.path().join("missing.pem"))).unwrap_err();
    assert!(matches!(error, AuditError::ClickHouseTls(_)), "{error}");
}

#[test]
fn a_range_of_days_is_a_ttl_of_each_table() {
    let days = RetentionDays { statements: Some(90), sensitive_statements: Some(400), ..Default::default() };
    let ttls: std::collections::BTreeMap<_, _> = retention::ttls(days).into_iter().collect();
    assert_eq!(ttls["outcomes"], "toDateTime(time) + toIntervalDay(400)", "as long as any statement");
    assert_eq!(ttls["statements"].matches("toIntervalDay").count(), 2);
    assert_eq!(ttls["sessions"], "");
    let days = RetentionDays { statements: Some(90), ..Default::default() };
    assert_eq!(
        retention::ttls(days)[2].1,
        "",
        "sensitive statements stay for ever, and so do their outcomes"
    );
}

#[test]
fn everybody_reads_what_is_theirs_and_nobody_else_payloads() {
    let settings = Settings { cluster: Some("fence".to_owned()), ..settings("http://localhost".to_owned()) };
    let statements = print(&settings, true).unwrap();
    let grants: Vec<_> = statements.iter().filter(|statement| statement.starts_with("GRANT")).collect();
    let to = |role: &str| grants.iter().filter(|grant| grant.ends_with(role)).count();
    assert!(to("snowfence_writer") > 12 && to("snowfence_auditor") > 12, "{grants:#?}");
    let payloads = grants.iter().filter(|grant| grant.contains("SELECT ON") && grant.contains("payloads"));
    assert!(payloads.clone().count() == 2 && payloads.clone().all(|grant| grant.ends_with("investigator")));
    assert!(!grants.iter().any(|grant| grant.contains("ALL") || grant.contains(".*")));
    let ddl =
        |statement: &&String| ["CREATE", "ALTER", "GRANT"].iter().any(|verb| statement.starts_with(verb));
    assert!(statements.iter().filter(ddl).all(|statement| statement.contains("ON CLUSTER `fence`")));
}

#[tokio::test]
async fn the_writer_ends_with_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let stub = Stub::start(Answer::Refuses).await;
    let writer = Writer::new(journal.clone(), settings(stub.url.clone())).unwrap();
    journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    journal.close().await;
    timeout(Duration::from_secs(10), writer.run(Arc::default(), std::future::pending()))
        .await
        .expect("it must end by itself");
}

const DESTINATION: Uuid = Uuid::from_u128(7);

/// How a stub answers; questions about the schema it answers as this program's, where nothing else is said.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Refuses,
    FailsAfterABeginning,
    Hangs,
    HangsUp,
    IsSomethingElse,
    Version(u32),
    Cluster,
}

/// Something in ClickHouse's place that takes no insert, and notes its deduplication token.
struct Stub {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    async fn start(answer: Answer) -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let noted = Arc::clone(&noted);
                tokio::spawn(async move {
                    let mut text = String::new();
                    let mut buffer = vec![0; 1 << 16];
                    // The query is in the body, or the beginning of the rows is.
                    while !text.contains("SELECT") && !text.contains("insert_deduplication_token") {
                        let length = stream.read(&mut buffer).await.unwrap();
                        if length == 0 {
                            return;
                        }
                        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
                    }
                    noted.lock().unwrap().push(text.lines().next().unwrap_or_default().to_owned());
                    let (status, body) = answer.to(&text);
                    if status.is_empty() {
                        if matches!(answer, Answer::Hangs) {
                            std::future::pending::<()>().await;
                        }
                        return;
                    }
                    let length = body.len();
                    let answer = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                    // What is still on its way here must not reset the connection before the answer is read.
                    while matches!(stream.read(&mut buffer).await, Ok(length) if length > 0) {}
                });
            }
        });
        Self { url, requests }
    }

    fn tokens(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let token = |line: &String| {
            let (_, rest) = line.split_once("insert_deduplication_token=")?;
            rest.split(['&', ' ']).next().map(str::to_owned)
        };
        requests.iter().filter_map(token).collect()
    }
}

impl Answer {
    /// Status and body; no status for no answer.
    fn to(self, request: &str) -> (&'static str, String) {
        let version = if let Self::Version(version) = self { version } else { migrations::version() };
        let engine = if matches!(self, Self::Cluster) { "Distributed" } else { "ReplacingMergeTree" };
        let body = match self {
            Self::IsSomethingElse => "<html>Welcome</html>".to_owned(),
            _ if request.contains("insert_deduplication_token") => match self {
                Self::FailsAfterABeginning => "Code: 241. DB::Exception: Memory limit exceeded. \
                    (MEMORY_LIMIT_EXCEEDED) (version 26.9 (official build))\n"
                    .to_owned(),
                Self::Hangs | Self::HangsUp => return ("", String::new()),
                _ => return ("500 No", String::new()),
            },
            _ if request.contains("system.tables") && request.contains("schema_migrations") => {
                format!("[\"statements\",\"{engine}\"]\n[\"schema_migrations\",\"MergeTree\"]\n")
            }
            _ if request.contains("destination") => format!("[\"{DESTINATION}\"]\n"),
            _ if request.contains("max(version)") => format!("[\"{version}\"]\n"),
            _ => String::new(),
        };
        ("200 OK", body)
    }
}
