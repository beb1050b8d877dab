//! The journal: what is appended is on the disk before the append returns.
//!
//! One thread writes. It takes what is queued and commits it as one transaction, so that many callers share one sync of
//! the disk. Both the number of waiting appends and their bytes are bounded: a caller waits when they are reached.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::schema::{self, Lock};
use super::store::{self, Cursor, Store, Write};
use super::{Approval, AuditError, Caller, Record, Ruling, Statement, Verdict, salvage, successor};

/// How many appends may wait.
const QUEUE: usize = 4096;

/// How many bytes of records may wait. A larger append waits until it is alone.
const QUEUE_BYTES: usize = 64 << 20;

/// How many appends share a transaction.
const GROUP: usize = 1024;

/// A handle to the journal. Clones share one writer.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

/// Proof that a statement is durably recorded, and as what: [`Journal::append_statement`] makes one, and
/// [`Journal::append_approval`] makes one that may be forwarded of one that was held.
#[derive(Debug)]
pub struct Recorded {
    statement: Uuid,
    verdict: Verdict,
}

/// How far the journal has been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// `seq` of the last record.
    pub last_seq: i64,
    /// Transactions since the journal was opened.
    pub commits: u64,
    /// Bytes that records take in the file.
    pub bytes: u64,
    /// The last write failed.
    pub failing: bool,
    /// There is no room: see [`Journal::limit`].
    pub full: bool,
}

impl Journal {
    /// Opens the journal and creates it where there is none. `node` goes into every row. Blocks: it reads the whole file
    /// to find damage, and gives an outcome to the statements that an agent before this one left without.
    pub fn open(path: &Path, node: &str) -> Result<Self, AuditError> {
        let (mut file, open) = JournalFile::open(path, node, true)?;
        if !open.is_empty() {
            warn!(
                statements = open.len(),
                "the agent ended before these statements did: their outcome is unknown"
            );
            file.store.commit(std::iter::once(&Write::settle(open)))?;
        }
        Self::start(file)
    }

    /// The same; but where the journal is damaged, what can be read of it is kept in a new one first, which says so.
    pub fn open_salvaged(path: &Path, node: &str) -> Result<Self, AuditError> {
        let damage = match Self::open(path, node) {
            Err(AuditError::Corrupt { detail, .. }) => detail,
            opened => return opened,
        };
        warn!(%damage, "the journal {} is damaged: keeping what can be read", path.display());
        let told = salvage(path, node, &damage)?;
        error!(%damage, missing = told.missing, "the journal was damaged: {told}");
        Self::open(path, node)
    }

    /// Opens the journal of an agent that has handed it over and goes on: also returns the statements that are without an
    /// outcome now, which come later, or are to be settled when that agent has ended.
    pub fn take_over(path: &Path, node: &str) -> Result<(Self, Vec<Uuid>), AuditError> {
        // Its agent has checked it, and statements wait.
        let (file, open) = JournalFile::open(path, node, false)?;
        Ok((Self::start(file)?, open))
    }

    fn start(file: JournalFile) -> Result<Self, AuditError> {
        let (messages, queue) = mpsc::channel(QUEUE);
        let last_seq = file.store.last_seq()?;
        let (path, node, id) = (file.path.clone(), file.node.clone(), file.id);
        let (bytes, salvages) = (file.store.bytes()?, file.store.salvages()?);
        let written = watch::Sender::new(Written { last_seq, bytes, ..Written::default() });
        let limit = Arc::new(AtomicU64::new(u64::MAX));
        let place = Place::Here(Box::new(file));
        let writer = Writer { place, queue, limit: Arc::clone(&limit), written: written.clone() };
        thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| AuditError::Directory { path: path.clone(), source: Arc::new(source) })?;
        let bytes = Arc::new(Semaphore::new(QUEUE_BYTES));
        Ok(Self { shared: Arc::new(Shared { path, node, id, salvages, limit, messages, bytes, written }) })
    }

    /// Appends all of `records` or nothing. Returns when they are durable.
    ///
    /// A caller that goes away while it waits does not undo the append.
    pub async fn append(&self, records: Vec<Record>) -> Result<(), AuditError> {
        let bytes = records.iter().map(Record::size).sum::<usize>().min(QUEUE_BYTES);
        self.shared.write(Write::Records(records), bytes).await
    }

    /// Appends a statement. Returns the proof that it is durable, without which it cannot be forwarded.
    pub async fn append_statement(&self, statement: Statement) -> Result<Recorded, AuditError> {
        let recorded = Recorded { statement: statement.id, verdict: statement.verdict };
        self.append(vec![Record::Statement(statement)]).await?;
        Ok(recorded)
    }

    /// Appends that a person has approved a held statement. Returns the proof that it may be forwarded.
    pub async fn append_approval(
        &self,
        held: &Recorded,
        approver: &Caller,
        reason: String,
    ) -> Result<Recorded, AuditError> {
        let approval = Approval::new(held.statement, Ruling::Approved, approver, reason);
        let verdict = if held.verdict == Verdict::Hold { Verdict::Allow } else { held.verdict };
        self.append(vec![approval.into()]).await?;
        Ok(Recorded { statement: held.statement, verdict })
    }

    /// How far the journal has been written, now and from now on.
    pub fn written(&self) -> watch::Receiver<Written> {
        self.shared.written.subscribe()
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Bytes that records may take. Beyond them sessions and statements are refused; what ends them still finds room.
    pub fn limit(&self) -> u64 {
        self.shared.limit.load(Ordering::Relaxed)
    }

    pub fn set_limit(&self, bytes: u64) {
        self.shared.limit.store(bytes, Ordering::Relaxed);
    }

    /// The node that stands in every row.
    pub fn node(&self) -> &str {
        &self.shared.node
    }

    /// How often it was damaged, as far as it remembers.
    pub fn salvages(&self) -> u64 {
        self.shared.salvages
    }

    /// The identifier of the journal's file.
    pub fn id(&self) -> Uuid {
        self.shared.id
    }

    /// Writes what is queued, closes the file for a successor to open, and from then on appends by way of the successor, who
    /// is at the other end of this stream. Should it be gone before this agent is, the file is opened again.
    pub async fn hand_over(&self, successor: UnixStream) -> Result<(), AuditError> {
        let (done, closed) = oneshot::channel();
        let message = Message::HandOver(successor, done);
        self.shared.messages.send(message).await.map_err(|_| AuditError::Closed)?;
        closed.await.map_err(|_| AuditError::Closed)
    }

    /// Gives those of these statements that have no outcome one: their agent ended before it knew.
    pub async fn settle(&self, statements: Vec<Uuid>) -> Result<(), AuditError> {
        self.shared.write(Write::settle(statements), 0).await
    }

    /// Writes what is queued, and closes the file. Appends that come later fail.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.shared.messages.send(Message::Close(done)).await.is_ok() {
            // The writer drops the sender without an answer only when it panicked, and then nothing is left to close.
            let _ = closed.await;
        }
    }

    /// Removes the records up to this one.
    pub(super) async fn remove(&self, through: i64) -> Result<(), AuditError> {
        self.shared.write(Write::Remove { through }, 0).await
    }

    /// How far a sink is.
    pub(super) async fn cursor(&self, sink: &str) -> Result<Cursor, AuditError> {
        let sink = sink.to_owned();
        schema::read(self.path(), move |connection| store::cursor(connection, &sink)).await
    }

    /// Saves how far a sink is, durably.
    pub(super) async fn save_cursor(&self, sink: &str, cursor: Cursor) -> Result<(), AuditError> {
        self.shared.write(Write::Cursor { sink: sink.to_owned(), cursor }, sink.len()).await
    }
}

impl Recorded {
    /// [`Statement::id`].
    pub fn statement(&self) -> Uuid {
        self.statement
    }

    /// [`Statement::verdict`]; of one that was approved since, that it is allowed.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    node: String,
    id: Uuid,
    salvages: u64,
    limit: Arc<AtomicU64>,
    messages: mpsc::Sender<Message>,
    bytes: Arc<Semaphore>,
    written: watch::Sender<Written>,
}

impl Shared {
    async fn write(&self, write: Write, bytes: usize) -> Result<(), AuditError> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit =
            Arc::clone(&self.bytes).acquire_many_owned(permits).await.map_err(|_| AuditError::Closed)?;
        let (done, answer) = oneshot::channel();
        let job = Job { write, done, _permit: permit };
        self.messages.send(Message::Job(job)).await.map_err(|_| AuditError::Closed)?;
        answer.await.map_err(|_| AuditError::Closed)?
    }
}

enum Message {
    Job(Job),
    HandOver(UnixStream, oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

struct Job {
    write: Write,
    done: oneshot::Sender<Result<(), AuditError>>,
    /// Its share of [`QUEUE_BYTES`].
    _permit: OwnedSemaphorePermit,
}

/// The journal's file, open, and the right to write it.
struct JournalFile {
    path: PathBuf,
    node: String,
    id: Uuid,
    store: Store,
    _lock: Lock,
}

impl JournalFile {
    /// Also returns the statements without an outcome.
    fn open(path: &Path, node: &str, check: bool) -> Result<(Self, Vec<Uuid>), AuditError> {
        let lock = schema::prepare(path)?;
        let connection = schema::open(path, check)?;
        let id = schema::identifier(&connection)?;
        let store = Store::new(connection, node.to_owned());
        let open = store.open_statements()?;
        Ok((Self { path: path.to_owned(), node: node.to_owned(), id, store, _lock: lock }, open))
    }
}

/// Where the journal's file is written.
enum Place {
    Here(Box<JournalFile>),
    /// By the successor at the other end. The path and the node are for the case that it ends first.
    Successor {
        stream: UnixStream,
        path: PathBuf,
        node: String,
    },
}

/// The thread that writes.
struct Writer {
    place: Place,
    queue: mpsc::Receiver<Message>,
    limit: Arc<AtomicU64>,
    written: watch::Sender<Written>,
}

impl Writer {
    fn run(mut self) {
        let mut closing = Vec::new();
        let mut jobs = Vec::new();
        while let Some(message) = self.queue.blocking_recv() {
            let mut message = Some(message);
            while let Some(next) = message.take() {
                match next {
                    Message::Job(job) => jobs.push(job),
                    Message::Close(done) => {
                        self.queue.close();
                        closing.push(done);
                    }
                    Message::HandOver(stream, done) => {
                        self.commit(&mut jobs);
                        self.hand_over(stream);
                        // Whoever asked may have stopped waiting.
                        let _ = done.send(());
                    }
                }
                if jobs.len() < GROUP {
                    message = self.queue.try_recv().ok();
                }
            }
            self.commit(&mut jobs);
        }
        drop(self.place);
        for done in closing {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }

    /// Closes the file.
    fn hand_over(&mut self, stream: UnixStream) {
        let (path, node) = match &self.place {
            Place::Here(file) => (file.path.clone(), file.node.clone()),
            Place::Successor { path, node, .. } => (path.clone(), node.clone()),
        };
        self.place = Place::Successor { stream, path, node };
    }

    /// Writes here, or has the successor write.
    fn write<'a>(&mut self, writes: impl Iterator<Item = &'a Write> + Clone) -> Result<i64, AuditError> {
        let (path, node) = match &mut self.place {
            Place::Here(file) => return file.store.commit(writes),
            Place::Successor { stream, path, node } => {
                match successor::write(stream, writes.clone()) {
                    Ok(answer) => return answer.map(|()| self.written.borrow().last_seq),
                    Err(error) => warn!(%error, "the successor is gone: writing the journal here again"),
                }
                (path.clone(), node.clone())
            }
        };
        let (file, _) = JournalFile::open(&path, &node, false)?;
        self.place = Place::Here(Box::new(file));
        let Place::Here(file) = &mut self.place else { return Err(AuditError::Closed) };
        match file.store.commit(writes) {
            // The successor wrote it and could not say so.
            Err(AuditError::Duplicate(_)) => file.store.last_seq(),
            written => written,
        }
    }

    /// Commits the jobs as one transaction. Where that fails, each is tried alone: one that cannot be written must not
    /// take others down.
    fn commit(&mut self, jobs: &mut Vec<Job>) {
        self.refuse_if_full(jobs);
        if jobs.is_empty() {
            return;
        }
        let together = self.write(jobs.iter().map(|job| &job.write));
        if together.is_ok() || jobs.len() == 1 {
            let answer = self.note(together);
            for job in jobs.drain(..) {
                // Whoever appended may have stopped waiting: the record stays.
                let _ = job.done.send(answer.clone());
            }
        } else {
            for job in jobs.drain(..) {
                let alone = self.write(std::iter::once(&job.write));
                let answer = self.note(alone);
                let _ = job.done.send(answer);
            }
        }
    }

    /// What begins something is refused where there is no room for it.
    fn refuse_if_full(&self, jobs: &mut Vec<Job>) {
        let limit = self.limit.load(Ordering::Relaxed);
        let Written { bytes, full: was_full, .. } = *self.written.borrow();
        let full = bytes >= limit;
        if full != was_full {
            self.written.send_modify(|written| written.full = full);
            if full {
                error!("{}", AuditError::Full { limit });
            } else {
                info!("the journal has room again");
            }
        }
        for job in jobs.extract_if(.., |job| full && job.write.begins()) {
            // Whoever appended may have stopped waiting.
            let _ = job.done.send(Err(AuditError::Full { limit }));
        }
    }

    /// Transactions that failed leave frames in the log that look like lost ones to whoever judges damage after a kill.
    fn begin_log_anew(&self) {
        if let Place::Here(file) = &self.place
            && let Err(error) = file.store.begin_log_anew()
        {
            tracing::warn!(%error, "the log beside the journal goes on");
        }
    }

    /// Publishes how a write went; logs when that changes.
    fn note(&self, result: Result<i64, AuditError>) -> Result<(), AuditError> {
        let was_failing = self.written.borrow().failing;
        let failing = match &result {
            Ok(_) => false,
            Err(AuditError::Write(_)) => true,
            // The fault of the record: it says nothing about the disk.
            Err(_) => was_failing,
        };
        match &result {
            Err(cause) if failing && !was_failing => error!("{cause}"),
            Ok(_) if was_failing => {
                info!("the journal can be written again");
                self.begin_log_anew();
            }
            _ => {}
        }
        let bytes = match &self.place {
            Place::Here(file) => file.store.bytes().ok(),
            Place::Successor { .. } => None,
        };
        self.written.send_modify(|written| {
            written.failing = failing;
            written.bytes = bytes.unwrap_or(written.bytes);
            if let Ok(last_seq) = result {
                written.last_seq = last_seq;
                written.commits += 1;
            }
        });
        result.map(|_| ())
    }
}

#[cfg(test)]
mod tests;
