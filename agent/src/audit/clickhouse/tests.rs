mod engine;

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::*;
use crate::audit::samples::{event, statement};
use crate::audit::{EventKind, Verdict};

fn settings(url: String) -> Settings {
    Settings { batch_rows: 300, interval: Duration::from_millis(20), ..Settings::new(url, "snowfence") }
}

#[tokio::test]
async fn wrong_settings_are_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let writer = |settings| Writer::new(journal.clone(), settings).map(|_| ()).unwrap_err();
    let too_long = "x".repeat(65);
    for database in ["", "a b", "a`; DROP DATABASE x; --", "1a", "ä", "a.b", "a\0", &too_long] {
        let error = writer(Settings::new("http://localhost:8123", database));
        assert!(matches!(error, AuditError::ClickHouseDatabase(_)), "{database}: {error}");
    }
    for url in
        ["localhost:8123", "ftp://localhost", "http://user:secret@localhost", "http://localhost/?user=x", ""]
    {
        let error = writer(Settings::new(url, "snowfence"));
        assert!(matches!(error, AuditError::ClickHouseUrl { .. }), "{url}: {error}");
    }
    let none = Settings { batch_rows: 0, ..Settings::new("http://localhost:8123", "snowfence") };
    assert!(matches!(writer(none), AuditError::ClickHouseBatch));
}

#[tokio::test]
async fn the_password_is_not_printed() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let settings = Settings {
        user: Some("writer".to_owned()),
        password: Some(Secret::new("hunter2".to_owned())),
        ..Settings::new("http://localhost:8123", "snowfence")
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
    let end = |after, rows, bytes| batch::choose_end(&connection, after, rows, bytes).unwrap();
    assert_eq!(end(0, 3, u64::MAX), 3);
    assert_eq!(end(0, 100, u64::MAX), 12);
    assert_eq!(end(10, 100, u64::MAX), 12);
    assert_eq!(end(12, 100, u64::MAX), 12, "there is nothing");
    assert_eq!(end(0, 100, 10_000), 5, "the second text of 5,000 bytes is too much");
    assert_eq!(end(6, 100, 10_000), 7, "a large row goes alone");
    assert_eq!(end(0, 100, 0), 1);
}

#[test]
fn delays_grow_to_a_limit_and_differ() {
    for tries in [0, 1, 5, 10, 1000, u32::MAX] {
        let longest = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(tries)).min(LONGEST_DELAY);
        let delays: Vec<_> = (0..20).map(|_| delay(tries)).collect();
        assert!(delays.iter().all(|delay| *delay <= longest && *delay >= longest / 2), "{tries}: {delays:?}");
        assert!(delays.iter().any(|delay| *delay != delays[0]), "{tries}: no chance in it");
    }
}

#[tokio::test]
async fn a_dead_clickhouse_holds_nothing_up_and_keeps_the_range() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let journal = Journal::open(&path, "node").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dead = format!("http://127.0.0.1:{port}");
    let writer = Writer::new(journal.clone(), settings(dead.clone())).unwrap();
    let sink = writer.sink.clone();
    let monitor = writer.monitor();
    let appended = async {
        for _ in 0..200 {
            journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
        }
        while monitor.status().error.is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), writer.run(appended)).await.unwrap();
    let status = monitor.status();
    assert_eq!((status.delivered, status.pending), (0, 200));
    assert!(status.error.unwrap().contains("cannot deliver to ClickHouse"));

    // A range that was begun is sent unchanged, whatever the settings are by then.
    journal.save_cursor(&sink, Cursor { delivered: 0, sending: 7 }).await.unwrap();
    let stub = Stub::start().await;
    let mut changed = settings(dead.clone());
    changed.batch_rows = 50;
    let mut writer = Writer::new(journal.clone(), changed).unwrap();
    // The stub does not know the tables' columns.
    writer.server = writer.server.with_url(stub.url.clone());
    writer.database = writer.database.with_url(stub.url.clone()).with_validation(false);
    let _ = timeout(Duration::from_secs(3), writer.run(std::future::pending())).await;
    let tokens = stub.tokens();
    assert!(tokens.len() >= 2, "it was tried again: {tokens:?}");
    let expected = format!("{} events 0 7", journal.id()).replace(' ', "+");
    assert!(tokens.iter().all(|token| *token == expected), "{tokens:?}");
    let saved = store::cursor(&schema::open_read_only(&path).unwrap(), &sink).unwrap();
    assert_eq!(saved, Cursor { delivered: 0, sending: 7 });
}

#[tokio::test]
async fn the_writer_ends_with_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let stub = Stub::start().await;
    let writer = Writer::new(journal.clone(), settings(stub.url.clone())).unwrap();
    journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    journal.close().await;
    timeout(Duration::from_secs(10), writer.run(std::future::pending()))
        .await
        .expect("it must end by itself");
}

/// Takes any statement, refuses any insert, and notes its deduplication token.
struct Stub {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    async fn start() -> Self {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let noted = Arc::clone(&noted);
                tokio::spawn(async move {
                    let mut buffer = vec![0; 1 << 16];
                    let length = stream.read(&mut buffer).await.unwrap();
                    let line = String::from_utf8_lossy(&buffer[..length])
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .to_owned();
                    let status =
                        if line.contains("insert_deduplication_token") { "500 No" } else { "200 OK" };
                    noted.lock().unwrap().push(line);
                    let answer =
                        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    let _ = stream.write_all(answer.as_bytes()).await;
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
