//! What copies of checkpoints in an object store show of whoever has the node's key.

use tokio::runtime::Runtime;

use super::*;
use crate::audit::delivery::Sink;
use crate::config;
use crate::storage::Bucket;

/// A trail whose checkpoints were copied: those of the first records in one object, the others in another.
struct Copied {
    trail: Trail,
    runtime: Runtime,
    bucket: Bucket,
    _folder: tempfile::TempDir,
}

impl Copied {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let place = config::Bucket::parse(&format!("file://{}", folder.path().display())).unwrap();
        let bucket = Bucket::open(&place).unwrap();
        let trail = runtime.block_on(async {
            let trail = Trail::new().await;
            let journal = Journal::open(&trail.path(), "node-1").unwrap();
            let copier = Copier::new(&journal, &bucket);
            // The second one arrived, and nobody heard of it: it is tried again, with what there is by then.
            for (after, end) in [(0, 7), (7, 12), (7, 12), (7, 100)] {
                let (_, checkpoints) = copier.read(after, Some(end)).await.unwrap();
                copier.send(checkpoints).await.unwrap();
            }
            journal.close().await;
            trail
        });
        Self { trail, runtime, bucket, _folder: folder }
    }

    fn compare(&self, from: Option<u64>) -> Report {
        let mut source = JournalSource::open(&self.trail.path()).unwrap();
        let mut report = verify(&mut source, &[self.trail.key.public()], from, |_, _| {}).unwrap();
        assert_eq!(report.problems, [], "to whoever has the key, all is well");
        let copies = Copies::new(&self.bucket, &self.runtime);
        report.copies = Some(copies.compare(&mut source, from, &mut report, |_, _| {}).unwrap());
        report
    }

    /// Signs the records of the last checkpoint anew, with the node's key.
    fn sign_anew(&self) {
        let mut source = JournalSource::open(&self.trail.path()).unwrap();
        let checkpoints = source.checkpoints(3, 2).unwrap();
        let [before, last] = checkpoints.as_slice() else { panic!("{checkpoints:?}") };
        let leaves = source.leaves(before.last_seq, last.last_seq, LONGEST).unwrap();
        let (journal, key) = (source.journal(), &self.trail.key);
        let anew = Checkpoint::sign(journal, &last.node, last.number, Some(before), &leaves, key).unwrap();
        let Checkpoint { time, root, signature, digests, .. } = anew;
        let sql = format!(
            "UPDATE checkpoints SET time = {time}, root = '{root}', signature = '{signature}', digests = '{digests}'
             WHERE number = {}",
            last.number
        );
        assert_eq!(self.trail.change(&sql), 1);
    }
}

#[test]
fn an_untouched_trail_is_that_which_was_copied() {
    let copied = Copied::new();
    let report = copied.compare(None);
    assert_eq!((report.problems.as_slice(), report.copies), (&[][..], Some(6)));
    assert!(report.other_journals.is_empty());
    assert_eq!(copied.compare(Some(3)).copies, Some(3));
}

#[test]
fn what_was_cut_off_is_missing() {
    let copied = Copied::new();
    for table in RECORDS {
        copied.trail.change(&format!("DELETE FROM {table} WHERE seq > 12"));
    }
    copied.trail.change("UPDATE journal SET last_seq = 12");
    let report = copied.compare(None);
    assert_eq!(report.problems, [Problem::CheckpointMissing { first: 3, last: 5 }]);
    assert!(!report.is_good());
}

#[test]
fn what_was_signed_anew_is_another_trail() {
    let copied = Copied::new();
    copied.trail.change("UPDATE statements SET sql = 'select 1' WHERE sql = 'select 4'");
    copied.sign_anew();
    assert_eq!(copied.compare(None).problems, [Problem::CheckpointReplaced { number: 5 }]);
}

#[test]
fn a_store_without_copies_proves_nothing() {
    let copied = Copied::new();
    let other = Copied::new();
    let mut source = JournalSource::open(&copied.trail.path()).unwrap();
    let mut report = verify(&mut source, &[copied.trail.key.public()], None, |_, _| {}).unwrap();
    let elsewhere = Copies::new(&other.bucket, &other.runtime);
    report.copies = Some(elsewhere.compare(&mut source, None, &mut report, |_, _| {}).unwrap());
    assert!(!report.is_good() && report.problems.is_empty());
    let begun_before = JournalSource::open(&other.trail.path()).unwrap().journal();
    assert_eq!(report.other_journals, [begun_before]);
}

#[test]
fn a_copy_is_not_replaced() {
    let copied = Copied::new();
    copied.trail.change("UPDATE statements SET sql = 'select 1' WHERE sql = 'select 4'");
    copied.sign_anew();
    copied.runtime.block_on(async {
        let journal = Journal::open(&copied.trail.path(), "node-1").unwrap();
        let sink = Copier::new(&journal, &copied.bucket);
        let (_, anew) = sink.read(7, Some(100)).await.unwrap();
        assert!(sink.send(anew).await.is_err(), "there is another one of this name");
        journal.close().await;
    });
    assert_eq!(copied.compare(None).problems, [Problem::CheckpointReplaced { number: 5 }]);
}
