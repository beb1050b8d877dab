//! Copies of checkpoints in an object store, where whoever has the node cannot change them: the proof that a journal was not
//! cut off at its end, or signed anew.
//!
//! An object is `<node>/<journal>/<first number>-<last number>.jsonl`: a checkpoint a line, in the form of its record, without
//! `seq` and `digests`.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt, PutMode};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use uuid::Uuid;

use super::canonical::{self, Members};
use super::checkpoint::Checkpoint;
use super::verify::{Problem, READ, Report, Source};
use crate::audit::delivery::{self, Delivery, Progress, Sink as _};
use crate::audit::{AuditError, Journal, schema};
use crate::storage::{Bucket, in_time};

/// Records behind which there are the checkpoints of one object, at most, and how long they wait for others.
const RECORDS: u32 = 20_000;
const PATIENCE: Duration = Duration::from_secs(20);
/// No object of ours is longer.
const LONGEST: u64 = 64 << 20;

/// What brings copies there.
pub struct Copier {
    journal: Journal,
    bucket: Bucket,
}

impl Copier {
    pub fn new(journal: &Journal, bucket: &Bucket) -> Self {
        Self { journal: journal.clone(), bucket: bucket.clone() }
    }

    /// The name of its cursor.
    fn cursor(&self) -> String {
        format!("checkpoints {}", self.bucket.url())
    }

    /// Writes an object that is not there yet, or is the same.
    async fn create(&self, name: &Path, content: Bytes) -> object_store::Result<()> {
        let store = self.bucket.store();
        let put = store.put_opts(name, content.clone().into(), PutMode::Create.into());
        match in_time(put).await {
            Err(object_store::Error::AlreadyExists { path, source }) => {
                let there = in_time(async { store.get(name).await?.bytes().await }).await;
                match there {
                    Ok(there) if there == content => Ok(()),
                    // Who may only write cannot tell: what is there stays, and verification reads it.
                    Err(
                        object_store::Error::PermissionDenied { .. }
                        | object_store::Error::Unauthenticated { .. },
                    ) => Ok(()),
                    _ => Err(object_store::Error::AlreadyExists { path, source }),
                }
            }
            put => put.map(drop),
        }
    }

    /// Brings there, once delivery has ended, what the last steps were signed by.
    pub async fn finish(self) -> Result<(), AuditError> {
        let after = self.journal.cursor(&self.cursor()).await?.delivered;
        let (_, checkpoints) = self.read(after, None).await?;
        self.send(checkpoints).await.map(drop)
    }

    /// Delivers until `stop` is done or the journal is closed. May be dropped at any moment.
    pub async fn run(self, progress: Arc<watch::Sender<Progress>>, stop: impl Future<Output = ()>) {
        let journal = self.journal.clone();
        Delivery::new(journal, self, progress).run(stop).await;
    }
}

impl delivery::Sink for Copier {
    type Batch = Vec<Checkpoint>;

    const SAME_AGAIN: bool = false;

    fn name(&self) -> &'static str {
        "the object store for checkpoints"
    }

    fn patience(&self) -> (u32, Duration) {
        (RECORDS, PATIENCE)
    }

    async fn prepare(&mut self) -> Result<String, AuditError> {
        Ok(self.cursor())
    }

    async fn read(&self, after: i64, end: Option<i64>) -> Result<(i64, Vec<Checkpoint>), AuditError> {
        let last = self.journal.written().borrow().last_seq;
        let end = end.unwrap_or(last.min(after.saturating_add(i64::from(RECORDS))));
        let checkpoints = schema::read(self.journal.path(), move |connection| {
            let sql = "SELECT * FROM checkpoints WHERE seq > ?1 AND seq <= ?2 ORDER BY number";
            let mut query = connection.prepare(sql).map_err(AuditError::read)?;
            let found = query.query_map([after, end], |row| {
                Ok(Checkpoint { digests: String::new(), ..Checkpoint::read(row)? })
            });
            found.and_then(Iterator::collect).map_err(AuditError::read)
        });
        Ok((end, checkpoints.await?))
    }

    async fn send(&self, checkpoints: Vec<Checkpoint>) -> Result<u64, AuditError> {
        let journal = self.journal.id();
        if let (Some(first), Some(last)) = (checkpoints.first(), checkpoints.last()) {
            let file = format!("{:012}-{:012}.jsonl", first.number, last.number);
            let name = Path::from_iter([self.journal.node(), &journal.to_string(), &file]);
            let mut lines = Vec::new();
            for checkpoint in &checkpoints {
                lines.extend(canonical::encode(&checkpoint.members(journal)));
                lines.push(b'\n');
            }
            self.create(&name, lines.into())
                .await
                .map_err(|error| AuditError::Copies(Arc::new(self.bucket.failed(&error))))?;
        }
        Ok(0)
    }
}

/// The copies of a journal's checkpoints.
pub struct Copies<'r> {
    bucket: &'r Bucket,
    runtime: &'r Runtime,
}

impl<'r> Copies<'r> {
    pub fn new(bucket: &'r Bucket, runtime: &'r Runtime) -> Self {
        Self { bucket, runtime }
    }

    /// Adds to a report what of the checkpoints, from the first that it looked at on, is not as it was copied. Returns how many
    /// copies there are. `progress` is told how many objects were read, and how many there are.
    pub fn compare(
        &self,
        source: &mut impl Source,
        from: Option<u64>,
        report: &mut Report,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<u64, AuditError> {
        let journal = source.journal();
        let oldest = source.checkpoints(0, 1)?.first().map(|oldest| oldest.number);
        let first = match (from, report.removed_through, oldest) {
            (Some(from), ..) => from,
            (None, Some(_), Some(oldest)) => oldest,
            _ => 1,
        };
        let objects = self.objects(&report.node, journal, first)?;
        report.other_journals = self.journals(&report.node)?;
        report.other_journals.retain(|other| *other != journal);
        let (mut compared, mut there) = (0, VecDeque::<Checkpoint>::new());
        for (index, object) in objects.iter().enumerate() {
            // An object that was tried twice may begin before the end of another.
            there.clear();
            for copy in self.read(journal, object)?.into_iter().filter(|copy| copy.number >= first) {
                if there.back().is_none_or(|last| last.number < copy.number) {
                    there = source.checkpoints(copy.number - 1, READ)?.into();
                }
                while there.front().is_some_and(|front| front.number < copy.number) {
                    there.pop_front();
                }
                match there.front().filter(|found| found.number == copy.number) {
                    None => report.add_missing_checkpoint(copy.number),
                    Some(found) if found.digest(journal) != copy.digest(journal) => {
                        report.add(Problem::CheckpointReplaced { number: copy.number });
                    }
                    Some(_) => {}
                }
                compared += 1;
            }
            progress(index + 1, objects.len());
        }
        Ok(compared)
    }

    /// The journals that the node has had.
    fn journals(&self, node: &str) -> Result<Vec<Uuid>, AuditError> {
        let prefix = Path::from_iter([node]);
        let listed = in_time(self.bucket.store().list_with_delimiter(Some(&prefix)));
        let listed = self.runtime.block_on(listed).map_err(|error| self.failed(&error))?;
        Ok(listed.common_prefixes.iter().filter_map(|prefix| prefix.filename()?.parse().ok()).collect())
    }

    /// The objects with checkpoints from this number on, in their order.
    fn objects(&self, node: &str, journal: Uuid, first: u64) -> Result<Vec<ObjectMeta>, AuditError> {
        let prefix = Path::from_iter([node, &journal.to_string()]);
        let listed = self.bucket.store().list(Some(&prefix)).try_collect::<Vec<_>>();
        let found = self.runtime.block_on(listed);
        let mut objects = found.map_err(|error| self.failed(&error))?;
        objects.retain(|object| numbers(&object.location).is_some_and(|(_, last)| last >= first));
        objects.sort_by_key(|object| numbers(&object.location));
        Ok(objects)
    }

    fn read(&self, journal: Uuid, object: &ObjectMeta) -> Result<Vec<Checkpoint>, AuditError> {
        let foreign = || AuditError::ForeignCopy(format!("{}/{}", self.bucket.url(), object.location));
        if object.size > LONGEST {
            return Err(foreign());
        }
        let content = async { self.bucket.store().get(&object.location).await?.bytes().await };
        let content = self.runtime.block_on(in_time(content)).map_err(|error| self.failed(&error))?;
        let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let copies = lines.map(|line| {
            let members: Members = serde_json::from_slice(line).ok()?;
            Checkpoint::from_members(journal, &members).filter(|copy| copy.number > 0)
        });
        copies.collect::<Option<_>>().ok_or_else(foreign)
    }

    fn failed(&self, error: &object_store::Error) -> AuditError {
        AuditError::Copies(Arc::new(self.bucket.failed(error)))
    }
}

/// The numbers of the first and of the last checkpoint in an object.
fn numbers(name: &Path) -> Option<(u64, u64)> {
    let (first, last) = name.filename()?.strip_suffix(".jsonl")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?))
}
