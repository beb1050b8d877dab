//! What is delivered proves itself where it is delivered to.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tokio::runtime::Runtime;

use super::server::{Server, deliver_all};
use super::*;
use crate::audit::Record;
use crate::audit::chain::{Notary, Problem, Report, SigningKey, verify};
use crate::audit::samples::{any_record, event};

#[test]
#[ignore = "needs ClickHouse: set SNOWFENCE_TEST_CLICKHOUSE to its command"]
fn what_was_changed_there_is_found_there() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let mut server = Server::new(directory.path().join("data"));
    server.start();
    let key = SigningKey::open(&directory.path().join("audit.key")).unwrap();
    let journal = Journal::open(&directory.path().join("journal.db"), "node-1").unwrap();
    let mut runner = TestRunner::deterministic();
    let any = any_record();
    let mut records: Vec<Record> = (0..300).map(|_| any.new_tree(&mut runner).unwrap().current()).collect();
    records.push(statement(uuid::Uuid::now_v7(), &"\0'?\u{1f409}".repeat(100_000), Verdict::Deny).into());
    runtime.block_on(async {
        let notary = Notary::new(journal.clone(), key.clone());
        for records in records.chunks(70) {
            journal.append(records.to_vec()).await.unwrap();
            notary.sign().await.unwrap();
        }
        journal.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
        deliver_all(&journal, settings(server.url())).await;
    });
    let settings = settings(server.url());
    let delivered = runtime.block_on(delivered(&settings)).unwrap();
    assert_eq!(delivered, [Delivered { node: "node-1".to_owned(), journal: journal.id() }]);
    let verify = || -> Report {
        let mut source = DeliveredSource::new(&settings, journal.id(), &runtime).unwrap();
        verify(&mut source, &[key.public()], None, |_, _| {}).unwrap()
    };
    let report = verify();
    assert!(report.is_good(), "{:?}", report.problems);
    // All but the last checkpoint, and the last event.
    assert_eq!((report.checkpoints, report.verified, report.unsigned), (5, 301 + 4, 1));

    let change = |sql: &str| runtime.block_on(server.lines(&format!("{sql} SETTINGS mutations_sync = 2")));
    let find = |table: &str| -> i64 {
        let sql = format!("SELECT seq FROM snowfence.{table} WHERE seq > 80 ORDER BY seq LIMIT 1");
        runtime.block_on(server.lines(&sql))[0].parse().unwrap()
    };
    let (changed, dropped, copied) = (find("statements"), find("outcomes"), find("sessions"));
    change(&format!("ALTER TABLE snowfence.statements UPDATE sql = 'select 1' WHERE seq = {changed}"));
    assert_eq!(verify().problems, [Problem::Changed { seq: changed }]);
    change(&format!("ALTER TABLE snowfence.outcomes DELETE WHERE seq = {dropped}"));
    // Another day, so that it is another row.
    runtime.block_on(server.lines(&format!(
        "INSERT INTO snowfence.sessions SELECT * REPLACE (time + INTERVAL 3 DAY AS time) FROM snowfence.sessions WHERE seq = {copied}"
    )));
    let problems = verify().problems;
    assert!(problems.contains(&Problem::Changed { seq: changed }), "{problems:?}");
    assert!(problems.contains(&Problem::Missing { first: dropped, last: dropped }), "{problems:?}");
    assert!(problems.contains(&Problem::Twice { seq: copied }), "{problems:?}");
    change("ALTER TABLE snowfence.checkpoints UPDATE root = '00' WHERE number = 5");
    assert!(verify().problems.contains(&Problem::CheckpointForged { number: 5 }));
}
