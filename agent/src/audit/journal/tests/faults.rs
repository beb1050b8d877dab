//! Kills and full disks.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

/// Where a child process of the crash test finds its journal.
const CRASH_PATH: &str = "SNOWFENCE_TEST_JOURNAL";

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
    let Some(path) = std::env::var_os(CRASH_PATH).map(PathBuf::from) else { return };
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
