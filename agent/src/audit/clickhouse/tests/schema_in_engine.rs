//! The schema in the real engine: taken over, applied by several at once, interrupted, changed.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::server::{Server, deliver_all};
use super::*;
use crate::audit::samples::session;
use crate::audit::schema::RECORDS;

async fn started(directory: &tempfile::TempDir) -> Server {
    let mut server = Server::new(directory.path().join("data"));
    server.start();
    server.lines("SELECT 1").await;
    server
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn a_cursor_holds_by_any_url_of_the_same_server() {
    let directory = tempfile::tempdir().unwrap();
    let server = started(&directory).await;
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    journal.append(vec![session().into(), event(EventKind::NoFlow).into()]).await.unwrap();
    deliver_all(&journal, settings(server.url())).await;
    server.lines("TRUNCATE TABLE snowfence.sessions").await;

    // By another name for the same server, with a dead one before it: it goes on.
    let other = server.url().replace("127.0.0.1", "localhost");
    let several = Settings { urls: vec!["http://127.0.0.1:9".to_owned(), other], ..settings(String::new()) };
    journal.append(vec![event(EventKind::NotTls).into()]).await.unwrap();
    deliver_all(&journal, several).await;
    assert_eq!(server.lines("SELECT count() FROM snowfence.sessions").await, ["0"], "nothing was sent again");
    assert_eq!(server.lines("SELECT count() FROM snowfence.events").await, ["2"]);

    // A new ClickHouse in the place of the old one gets everything.
    server.lines("DROP DATABASE snowfence").await;
    deliver_all(&journal, settings(server.url())).await;
    assert_eq!(server.lines("SELECT count() FROM snowfence.sessions").await, ["1"]);
    assert_eq!(server.lines("SELECT count() FROM snowfence.events").await, ["2"]);
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn several_apply_at_once_and_each_may_be_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let server = started(&directory).await;
    let settings = settings(server.url());
    // Ended after any number of its statements, it is begun again.
    for ended_after in 0..40_u64 {
        let connection = Connection::new(&settings).unwrap();
        let deployed = Deployed::new(&connection, &settings).unwrap();
        let some = async {
            let found = deployed.version().await?;
            deployed.apply(found, &|_| ()).await
        };
        let _ = timeout(Duration::from_millis(ended_after * 5), some).await;
    }
    server.lines("DROP DATABASE IF EXISTS snowfence").await;
    let applied = AtomicUsize::new(0);
    let count = |_: &str| {
        applied.fetch_add(1, Ordering::Relaxed);
    };
    let (one, two, three) = tokio::join!(
        apply(&settings, false, count),
        apply(&settings, false, count),
        apply(&settings, false, count)
    );
    one.and(two).and(three).unwrap();
    assert!(applied.load(Ordering::Relaxed) > 3, "more than one had something to do");
    let report = status(&settings).await.unwrap();
    assert_eq!((report.version, report.findings), (migrations::version(), vec![]));
    assert!(report.migrations.iter().all(|migration| migration.time.is_some()));
    let undocumented = "SELECT table || '.' || name FROM system.columns WHERE database = 'snowfence' AND comment = ''
        AND table IN ('sessions', 'statements', 'outcomes', 'events', 'running', 'payloads', 'schema_migrations')";
    assert_eq!(server.lines(undocumented).await, [""; 0]);

    // Once more, nothing changes.
    applied.store(0, Ordering::Relaxed);
    apply(&settings, false, count).await.unwrap();
    assert_eq!(applied.load(Ordering::Relaxed), 0);

    // What is missing and what differs is named, and those who may not apply are told.
    server.lines("DROP VIEW snowfence.access").await;
    server.lines("CREATE OR REPLACE VIEW snowfence.volume AS SELECT 1").await;
    server.lines("ALTER TABLE snowfence.statements DROP INDEX by_object").await;
    server.lines("ALTER TABLE snowfence.outcomes MODIFY COLUMN code String").await;
    let objects: Vec<_> =
        status(&settings).await.unwrap().findings.into_iter().map(|found| found.object).collect();
    assert_eq!(objects, ["outcomes.code", "statements index by_object", "access", "volume"]);
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn retention_follows_the_configuration_and_keeps_what_is_sensitive() {
    let directory = tempfile::tempdir().unwrap();
    let server = started(&directory).await;
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let day = 24 * 3600 * 1_000_000;
    for (age, effect, verdict) in [
        (1, "read", Verdict::Allow),
        (100, "read", Verdict::Allow),
        (100, "destructive", Verdict::Allow),
        (100, "read", Verdict::Deny),
        (500, "admin", Verdict::Hold),
    ] {
        let mut statement = statement(Uuid::nil(), &format!("{age} {effect} {}", verdict.as_str()), verdict);
        statement.time = crate::audit::now() - age * day;
        statement.effect = effect.to_owned();
        journal.append(vec![statement.into()]).await.unwrap();
    }
    deliver_all(&journal, settings(server.url())).await;
    let with = |statements, sensitive_statements| Settings {
        retention: RetentionDays { statements, sensitive_statements, ..Default::default() },
        ..settings(server.url())
    };
    let findings = status(&with(Some(90), Some(400))).await.unwrap().findings;
    assert_eq!(findings.len(), 4, "statements, approvals, outcomes, running: {findings:?}");
    let left = "SELECT sql FROM snowfence.statements ORDER BY sql";
    for (statements, sensitive, expected) in [
        (Some(90), Some(400), vec!["1 read allow", "100 destructive allow", "100 read deny"]),
        (None, None, vec!["1 read allow", "100 destructive allow", "100 read deny"]),
        (Some(90), Some(90), vec!["1 read allow"]),
    ] {
        let settings = with(statements, sensitive);
        apply(&settings, false, |_| ()).await.unwrap();
        assert_eq!(status(&settings).await.unwrap().findings, []);
        server.lines("OPTIMIZE TABLE snowfence.statements FINAL").await;
        assert_eq!(server.lines(left).await, expected);
    }
}

#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn all_ddl_is_what_the_engine_parses() {
    let directory = tempfile::tempdir().unwrap();
    let server = started(&directory).await;
    for cluster in [None, Some("fence".to_owned())] {
        let retention =
            RetentionDays { statements: Some(90), sensitive_statements: Some(400), ..Default::default() };
        let settings = Settings { cluster, retention, ..settings(server.url()) };
        let statements = print(&settings, true).unwrap();
        assert!(statements.len() > 60, "{}", statements.len());
        for sql in statements {
            // The engine takes a body after INSERT for rows.
            if !sql.starts_with("INSERT") {
                server.lines(&format!("EXPLAIN AST {sql}")).await;
            }
        }
    }
}

/// One shard, which is this server. Neither replicated inserts nor ON CLUSTER work in the engine alone, so the tables here
/// are not replicated; that replicated ones can be made is tried apart.
#[tokio::test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
async fn a_cluster_has_distributed_tables_and_answers_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("cluster.xml");
    let cluster = "<clickhouse><tcp_port>9000</tcp_port>
        <zookeeper><implementation>testkeeper</implementation></zookeeper>
        <macros><shard>1</shard><replica>r1</replica></macros>
        <remote_servers><fence><shard><internal_replication>true</internal_replication>
        <replica><host>localhost</host><port>9000</port></replica></shard></fence></remote_servers></clickhouse>";
    std::fs::write(&config, cluster).unwrap();
    let mut server = Server::new(directory.path().join("data"));
    server.more = vec!["--config".to_owned(), config.display().to_string()];
    server.start();
    server.lines("SELECT 1").await;
    let settings =
        Settings { cluster: Some("fence".to_owned()), apply_schema: false, ..settings(server.url()) };
    let without_cluster = |sql: &str| sql.replace(" ON CLUSTER `fence`", "");
    for sql in print(&settings, false).unwrap() {
        if sql.contains("Replicated") {
            // It is made, and goes again.
            let sql = without_cluster(&sql).replace("`snowfence`", "`replicated`");
            server.lines("CREATE DATABASE IF NOT EXISTS replicated").await;
            server.lines(&sql).await;
        }
        let alone = without_cluster(&sql)
            .replace("ReplicatedReplacing", "Replacing")
            .replace("ReplicatedMerge", "Merge");
        let alone = alone.replace(" replicated_dedup", " non_replicated_dedup");
        let alone: String = match alone.split_once("MergeTree('") {
            Some((before, rest)) => format!("{before}MergeTree{}", rest.split_once(')').unwrap().1),
            None => alone,
        };
        server.lines(&alone).await;
    }
    let replicated =
        "SELECT count() FROM system.tables WHERE database = 'replicated' AND engine LIKE 'Replicated%'";
    // All of the records, and that of the migrations.
    assert_eq!(server.lines(replicated).await, [(RECORDS.len() + 1).to_string()]);
    let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
    let session = session();
    let statement = statement(session.id, "SELECT 1", Verdict::Allow);
    let outcome = crate::audit::samples::outcome(statement.id);
    journal.append(vec![session.into(), statement.into(), outcome.into()]).await.unwrap();
    deliver_all(&journal, settings.clone()).await;
    let sink = Writer::new(journal.clone(), settings.clone()).unwrap().prepare().await.unwrap();
    // Again with the same tokens, then with others.
    journal.save_cursor(&sink, Cursor { delivered: 0, sending: 3 }).await.unwrap();
    deliver_all(&journal, settings.clone()).await;
    assert_eq!(server.lines("SELECT count() FROM snowfence.statements_local").await, ["1"], "tokens hold");
    journal.save_cursor(&sink, Cursor::default()).await.unwrap();
    deliver_all(&journal, Settings { batch_rows: 2, ..settings.clone() }).await;
    assert_eq!(server.lines("SELECT count() FROM snowfence.statements_local").await, ["2"]);
    assert_eq!(
        server.lines("SELECT sql, status, rule FROM snowfence.trail").await,
        ["SELECT 1\tsucceeded\tanalysts"]
    );
    let access =
        "SELECT count(), any(status) FROM snowfence.access(object = 'SALES.PUBLIC.ORDERS', days = 30000)";
    assert_eq!(server.lines(access).await, ["1\tsucceeded"]);
    // One server's settings do not write into it.
    let error = status(&Settings { cluster: None, ..settings }).await.unwrap_err();
    assert!(matches!(error, AuditError::ClickHouseCluster { .. }), "{error}");
}
