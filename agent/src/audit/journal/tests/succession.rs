//! One agent hands its journal to the next and goes on for a while.

use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use uuid::Uuid;

use super::*;
use crate::audit::{EventKind, Verdict, serve_predecessor};

/// The journal of the successor, and the thread in which it serves its predecessor.
fn take_over(path: &Path, stream: UnixStream) -> (Journal, JoinHandle<()>) {
    let (journal, open) = Journal::take_over(path, "node").unwrap();
    let (serving, runtime) = (journal.clone(), tokio::runtime::Handle::current());
    let server = thread::spawn(move || {
        let _ = serve_predecessor(stream, &serving, open, |_| true, &runtime);
    });
    (journal, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_appends_is_in_the_seconds_journal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let first = Journal::open(&path, "node").unwrap();
    let running = statement(Uuid::nil(), "SELECT 1", Verdict::Allow);
    let (ended, end) = (running.id, outcome(running.id));
    first.append_statement(running).await.unwrap();

    let (here, there) = UnixStream::pair().unwrap();
    first.hand_over(here).await.unwrap();
    let (second, server) = take_over(&path, there);
    let (one, other) = tokio::join!(
        first.append(vec![end.into(), event(EventKind::NotTls).into()]),
        second.append(vec![event(EventKind::NoFlow).into()]),
    );
    one.unwrap();
    other.unwrap();
    let left = statement(Uuid::nil(), "SELECT 2", Verdict::Allow);
    first.append_statement(left).await.unwrap();
    let twice = first.append(vec![outcome(ended).into()]).await.unwrap_err();
    assert!(matches!(twice, AuditError::Successor(_)), "{twice}");

    first.close().await;
    server.join().unwrap();
    assert_eq!(
        texts(&path, "SELECT sql || ': ' || status FROM trail ORDER BY seq"),
        ["SELECT 1: succeeded", "SELECT 2: unknown"]
    );
    assert_eq!(all_seqs(&path), ["1", "2", "3", "4", "5", "6"]);
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_second_fails_the_first_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal.db");
    let first = Journal::open(&path, "node").unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    first.hand_over(here).await.unwrap();
    let (second, open) = Journal::take_over(&path, "node").unwrap();
    assert!(open.is_empty());
    second.append(vec![event(EventKind::AgentStarted).into()]).await.unwrap();
    // It ends, as a process does.
    second.close().await;
    drop(there);
    for _ in 0..3 {
        first.append(vec![event(EventKind::NoFlow).into()]).await.unwrap();
    }
    assert_eq!(all_seqs(&path), ["1", "2", "3", "4"]);
    first.close().await;
}
