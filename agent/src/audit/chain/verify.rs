//! Whether records are those that were signed.

use std::fmt;
use std::path::Path;

use rusqlite::Connection;
use serde::Serialize;
use uuid::Uuid;

use super::canonical::{self, Leaf};
use super::checkpoint::Checkpoint;
use super::tree::Digest;
use super::trust::Trust;
use super::{LONGEST, digest};
use crate::audit::retention::{self, Announced, Removal};
use crate::audit::{AuditError, Salvage, schema};

/// Problems that are listed; more are counted.
const LISTED: usize = 1000;
/// What an agent said of damage, so many times.
pub const SALVAGES: u32 = 20;
/// Checkpoints that are read at once.
pub(super) const READ: u32 = 64;
/// Records that are read at once where no checkpoint says how many.
const TAIL: usize = 10_000;

/// Where a journal's records and checkpoints are.
pub trait Source {
    /// The journal's identifier.
    fn journal(&self) -> Uuid;

    /// The first and the last record; `None` if there is none.
    fn range(&mut self) -> Result<Option<(i64, i64)>, AuditError>;

    /// What is not as it should be where the records are.
    fn problems(&mut self) -> Result<Vec<Problem>, AuditError>;

    /// The last record that a checkpoint covers.
    fn signed(&mut self) -> Result<i64, AuditError>;

    /// The last removal of old records that was announced up to this record.
    fn removal(&mut self, signed: i64) -> Result<Option<Announced>, AuditError>;

    /// What its agent said of damage, the last times.
    fn salvages(&mut self) -> Result<Vec<Salvaged>, AuditError>;

    /// The first checkpoints after this number, by their numbers, no more than `most`.
    fn checkpoints(&mut self, after: u64, most: u32) -> Result<Vec<Checkpoint>, AuditError>;

    /// The first records in (`after`, `end`], by their `seq`, no more than `most`.
    fn leaves(&mut self, after: i64, end: i64, most: usize) -> Result<Vec<Leaf>, AuditError>;
}

/// A record that says that the journal was damaged.
#[derive(Clone, Debug, Serialize)]
pub struct Salvaged {
    pub seq: i64,
    pub time: i64,
    #[serde(flatten)]
    pub salvage: Salvage,
}

impl Salvaged {
    /// From an event's detail.
    pub fn of(seq: i64, time: i64, detail: &str) -> Self {
        Self { seq, time, salvage: serde_json::from_str(detail).unwrap_or_default() }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// It is not what was signed.
    Changed {
        seq: i64,
    },
    Missing {
        first: i64,
        last: i64,
    },
    Twice {
        seq: i64,
    },
    /// It is not of the session that was exported.
    Foreign {
        seq: i64,
    },
    /// It says that another record of its session came before it than does.
    Unlinked {
        seq: i64,
        previous: i64,
    },
    /// An export has fewer records than its head says.
    Cut {
        missing: u64,
    },
    /// It is not signed: a whole export is.
    NotSigned {
        seq: i64,
    },
    /// A table or view of the journal is not as this program makes it: it may show what nobody recorded.
    Schema {
        name: String,
    },
    /// The pieces are not those that were kept.
    PayloadChanged {
        payload: Uuid,
    },
    /// Between two checkpoints: they were there, or not, when neither was signed.
    Unsigned {
        first: i64,
        last: i64,
    },
    CheckpointMissing {
        first: u64,
        last: u64,
    },
    CheckpointTwice {
        number: u64,
    },
    /// Its signature is not of its key.
    CheckpointForged {
        number: u64,
    },
    /// It is signed with a key that is not trusted.
    CheckpointOfAnotherKey {
        number: u64,
        key: String,
    },
    /// It does not follow the one before.
    CheckpointOutOfChain {
        number: u64,
    },
    /// It is another one than was copied to the object store.
    CheckpointReplaced {
        number: u64,
    },
    /// Its list of digests is not what its root stands for: which of its records were changed cannot be said.
    CheckpointDigests {
        number: u64,
        first: i64,
        last: i64,
    },
}

/// What verification has found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub node: String,
    pub journal: Uuid,
    /// Records that are signed, and as they were signed.
    pub verified: u64,
    pub checkpoints: u64,
    /// The first record.
    pub first: Option<i64>,
    /// Records up to this one have left the journal in their time, as a signed record says.
    pub removed_through: Option<i64>,
    /// The last record that is signed.
    pub signed: i64,
    /// When.
    pub signed_at: Option<i64>,
    /// Records after that, without checkpoints.
    pub unsigned: u64,
    /// What its agent said of damage: it explains what is missing, and excuses nothing.
    pub salvages: Vec<Salvaged>,
    /// Copies of checkpoints in an object store that were compared, if they were to be.
    pub copies: Option<u64>,
    /// Other journals of the node that there are copies of: it may have begun anew, or somebody has.
    pub other_journals: Vec<Uuid>,
    /// The public keys of the checkpoints.
    pub keys: Vec<String>,
    /// Whoever asked has said which keys are the node's.
    pub key_is_known: bool,
    pub problems: Vec<Problem>,
    /// Problems that are not listed.
    pub more_problems: u64,
}

impl Report {
    /// Nothing is wrong, and what was to prove it was there.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && self.copies != Some(0)
    }

    /// A checkpoint that was copied is not there. One after the other they are one problem.
    pub(super) fn add_missing_checkpoint(&mut self, number: u64) {
        let is_known = self.problems.iter_mut().any(|problem| match problem {
            Problem::CheckpointMissing { first, last } if *first <= number && number <= *last + 1 => {
                *last = number.max(*last);
                true
            }
            _ => false,
        });
        if !is_known {
            self.add(Problem::CheckpointMissing { first: number, last: number });
        }
    }

    pub(super) fn add(&mut self, problem: Problem) {
        if self.problems.len() < LISTED {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }
}

/// Verifies the records and checkpoints of a journal, from a checkpoint on, or all. `keys` are those that are trusted,
/// hexadecimal; where there are none, the first checkpoint's is. `progress` is told the last record that was looked at, and
/// the last one.
pub fn verify(
    source: &mut impl Source,
    keys: &[String],
    from: Option<u64>,
    mut progress: impl FnMut(i64, i64),
) -> Result<Report, AuditError> {
    let range = source.range()?;
    let mut verification = Verification::new(source.journal(), keys, range.map(|(first, _)| first));
    let Some((first, last)) = range else { return Ok(verification.end()) };
    for problem in source.problems()? {
        verification.report.add(problem);
    }
    verification.report.salvages = source.salvages()?;
    if !verification.begin(source, first, from)? {
        return Ok(verification.end());
    }
    loop {
        let checkpoints = source.checkpoints(verification.before.number, READ)?;
        if checkpoints.is_empty() {
            break;
        }
        for checkpoint in checkpoints {
            verification.checkpoint(source, &checkpoint)?;
            progress(verification.report.signed, last);
        }
    }
    verification.tail(source)?;
    progress(last, last);
    Ok(verification.end())
}

/// The checkpoint before; at the beginning, none: zeros.
#[derive(Default)]
struct Before {
    number: u64,
    digest: Digest,
}

struct Verification {
    report: Report,
    trust: Trust,
    before: Before,
    /// The record that the next checkpoint begins with.
    next: i64,
    /// What may be missing, as a signed record says that it was removed.
    removed: Option<Removal>,
}

impl Verification {
    fn new(journal: Uuid, keys: &[String], first: Option<i64>) -> Self {
        let report = Report {
            node: String::new(),
            journal,
            verified: 0,
            checkpoints: 0,
            first,
            removed_through: None,
            signed: 0,
            signed_at: None,
            unsigned: 0,
            salvages: Vec::new(),
            copies: None,
            other_journals: Vec::new(),
            keys: Vec::new(),
            key_is_known: false,
            problems: Vec::new(),
            more_problems: 0,
        };
        Self { report, trust: Trust::new(keys), before: Before::default(), next: 1, removed: None }
    }

    fn end(self) -> Report {
        let (keys, key_is_known) = self.trust.into_keys();
        Report { keys, key_is_known, ..self.report }
    }

    /// Where to begin: at the first checkpoint that is there, if what is before it may be missing, or at `from`, if that is
    /// there.
    fn begin(&mut self, source: &mut impl Source, first: i64, from: Option<u64>) -> Result<bool, AuditError> {
        self.next = first.min(1);
        if let Some(from) = from {
            let before = from.saturating_sub(1);
            let found = source.checkpoints(before, 1)?.pop().filter(|found| found.number == from);
            match &found {
                Some(found) => self.begin_at(found),
                None => self.report.add(Problem::CheckpointMissing { first: from, last: from }),
            }
            return Ok(found.is_some());
        }
        // What it excuses comes before it, so that it is itself among what is compared.
        let signed = source.signed()?;
        let announced = source.removal(signed)?.filter(|announced| announced.seq > announced.removal.through);
        let Some(Announced { removal, .. }) = announced else { return Ok(true) };
        if first > 1 {
            self.report.removed_through = Some(removal.through);
        }
        let oldest = source.checkpoints(0, 1)?.pop();
        if let Some(oldest) = oldest.filter(|oldest| (2..=removal.checkpoint).contains(&oldest.number)) {
            self.begin_at(&oldest);
            self.next = first.min(oldest.first_seq);
        }
        self.removed = Some(removal);
        Ok(true)
    }

    /// Takes a checkpoint's word for what is before it.
    fn begin_at(&mut self, checkpoint: &Checkpoint) {
        self.next = checkpoint.first_seq;
        let digest = digest(&checkpoint.previous).unwrap_or_default();
        self.before = Before { number: checkpoint.number.saturating_sub(1), digest };
    }

    /// Notes what is missing, unless it was removed in its time.
    fn missing(&mut self, first: i64, last: i64) {
        let removed = self.removed.as_ref().map_or(i64::MIN, |removal| removal.through);
        if last > removed {
            self.report.add(Problem::Missing { first: first.max(removed.saturating_add(1)), last });
        }
    }

    fn checkpoint(&mut self, source: &mut impl Source, checkpoint: &Checkpoint) -> Result<(), AuditError> {
        let number = checkpoint.number;
        let journal = self.report.journal;
        let expected = self.before.number.saturating_add(1);
        if number < expected {
            self.report.add(Problem::CheckpointTwice { number });
            return Ok(());
        }
        if number > expected {
            self.report.add(Problem::CheckpointMissing { first: expected, last: number - 1 });
        }
        let problem = self.trust.problem(journal, checkpoint);
        let is_sound = problem.is_none();
        if let Some(problem) = problem {
            self.report.add(problem);
        }
        if number == expected && digest(&checkpoint.previous) != Some(self.before.digest) {
            self.report.add(Problem::CheckpointOutOfChain { number });
        }
        if let Some(removal) = self.removed.as_ref().filter(|removal| removal.checkpoint == number)
            && digest(&removal.digest) != Some(checkpoint.digest(journal))
        {
            self.report.add(Problem::CheckpointOutOfChain { number });
        }
        self.report.checkpoints += 1;
        if is_sound {
            self.records(source, checkpoint)?;
        }
        self.before = Before { number, digest: checkpoint.digest(journal) };
        Ok(())
    }

    /// Compares the records of a checkpoint with its list of digests.
    fn records(&mut self, source: &mut impl Source, checkpoint: &Checkpoint) -> Result<(), AuditError> {
        let Checkpoint { number, first_seq: first, last_seq: last, .. } = *checkpoint;
        if first < self.next || last < first {
            self.report.add(Problem::CheckpointOutOfChain { number });
            return Ok(());
        }
        if first > self.next {
            self.report.add(Problem::Unsigned { first: self.next, last: first - 1 });
        }
        self.next = last.saturating_add(1);
        self.report.signed = last;
        self.report.signed_at = Some(checkpoint.time);
        self.report.node.clone_from(&checkpoint.node);
        match checkpoint.leaves() {
            Some(signed) => {
                let found = source.leaves(first.saturating_sub(1), last, 2 * LONGEST)?;
                self.compare(&signed, first, &found);
            }
            None => self.report.add(Problem::CheckpointDigests { number, first, last }),
        }
        Ok(())
    }

    fn compare(&mut self, signed: &[Digest], first: i64, found: &[Leaf]) {
        let mut found = found.iter().peekable();
        let mut missing = Run::default();
        for (signed, seq) in signed.iter().zip(first..) {
            let Some(leaf) = found.next_if(|leaf| leaf.seq == seq) else {
                missing.add(seq, self);
                continue;
            };
            if leaf.digest == *signed {
                self.report.verified += 1;
            } else {
                self.report.add(Problem::Changed { seq });
            }
            while found.next_if(|leaf| leaf.seq == seq).is_some() {
                self.report.add(Problem::Twice { seq });
            }
        }
        missing.end(self);
    }

    /// What is not signed yet must at least be whole.
    fn tail(&mut self, source: &mut impl Source) -> Result<(), AuditError> {
        let mut after = self.next.saturating_sub(1);
        loop {
            let found = source.leaves(after, i64::MAX, TAIL)?;
            let Some(last) = found.last() else { return Ok(()) };
            for leaf in &found {
                match leaf.seq.checked_sub(after) {
                    Some(1) => {}
                    Some(0) => self.report.add(Problem::Twice { seq: leaf.seq }),
                    _ => self.missing(after.saturating_add(1), leaf.seq.saturating_sub(1)),
                }
                self.report.unsigned += u64::from(!leaf.is_checkpoint);
                after = leaf.seq;
            }
            after = last.seq;
        }
    }
}

/// Records that are missing one after the other.
#[derive(Default)]
struct Run(Option<(i64, i64)>);

impl Run {
    fn add(&mut self, seq: i64, verification: &mut Verification) {
        match &mut self.0 {
            Some((_, last)) if last.saturating_add(1) == seq => *last = seq,
            _ => {
                self.end(verification);
                self.0 = Some((seq, seq));
            }
        }
    }

    fn end(&mut self, verification: &mut Verification) {
        if let Some((first, last)) = self.0.take() {
            verification.missing(first, last);
        }
    }
}

/// A journal's file.
pub struct JournalSource {
    connection: Connection,
    journal: Uuid,
}

impl JournalSource {
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let connection = schema::open_read_only(path)?;
        let journal = schema::identifier(&connection)?;
        Ok(Self { connection, journal })
    }
}

impl Source for JournalSource {
    fn journal(&self) -> Uuid {
        self.journal
    }

    fn range(&mut self) -> Result<Option<(i64, i64)>, AuditError> {
        let ends =
            schema::RECORDS.map(|table| format!("SELECT min(seq) AS first, max(seq) AS last FROM {table}"));
        let sql = format!("SELECT min(first), max(last) FROM ({})", ends.join(" UNION ALL "));
        let ends = self.connection.query_row(&sql, [], |row| Ok(Option::zip(row.get(0)?, row.get(1)?)));
        ends.map_err(AuditError::read)
    }

    fn problems(&mut self) -> Result<Vec<Problem>, AuditError> {
        let names = schema::foreign(&self.connection).map_err(AuditError::read)?;
        Ok(names.into_iter().map(|name| Problem::Schema { name }).collect())
    }

    fn signed(&mut self) -> Result<i64, AuditError> {
        Checkpoint::last_signed(&self.connection).map_err(AuditError::read)
    }

    fn removal(&mut self, signed: i64) -> Result<Option<Announced>, AuditError> {
        retention::latest(&self.connection, signed).map_err(AuditError::read)
    }

    fn salvages(&mut self) -> Result<Vec<Salvaged>, AuditError> {
        let sql =
            "SELECT seq, time, detail FROM events WHERE kind = 'journal_salvaged' ORDER BY seq DESC LIMIT ?1";
        let mut query = self.connection.prepare_cached(sql).map_err(AuditError::read)?;
        let rows = query.query_map([SALVAGES], |row| {
            Ok(Salvaged::of(row.get(0)?, row.get(1)?, &row.get::<_, String>(2)?))
        });
        rows.map_err(AuditError::read)?.collect::<Result<_, _>>().map_err(AuditError::read)
    }

    fn checkpoints(&mut self, after: u64, most: u32) -> Result<Vec<Checkpoint>, AuditError> {
        let sql = "SELECT * FROM checkpoints WHERE number > ?1 ORDER BY number LIMIT ?2";
        let mut query = self.connection.prepare_cached(sql).map_err(AuditError::read)?;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let rows = query.query_map((after, most), Checkpoint::read).map_err(AuditError::read)?;
        rows.collect::<Result<_, _>>().map_err(AuditError::read)
    }

    fn leaves(&mut self, after: i64, end: i64, most: usize) -> Result<Vec<Leaf>, AuditError> {
        canonical::leaves(&self.connection, self.journal, after, end, most)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { seq } => {
                write!(
                    f,
                    "record {seq} is not what was signed: it was changed, or another one put in its place"
                )
            }
            Self::Missing { first, last } => write!(f, "{} missing", Records(*first, *last)),
            Self::Twice { seq } => write!(f, "record {seq} is there more than once"),
            Self::Foreign { seq } => write!(f, "record {seq} is not of this session"),
            Self::Unlinked { seq, previous: 0 } => {
                write!(f, "record {seq} is the first one of the session, and does not stand there")
            }
            Self::Unlinked { seq, previous } => {
                write!(
                    f,
                    "record {seq} comes after record {previous} of the session, which is missing or stands elsewhere"
                )
            }
            Self::Cut { missing: 1 } => {
                write!(f, "a record of the export is missing: it was cut off, or taken out")
            }
            Self::Cut { missing } => {
                write!(f, "{missing} records of the export are missing: they were cut off, or taken out")
            }
            Self::NotSigned { seq } => {
                write!(f, "record {seq} is not signed: export it again when the agent has run")
            }
            Self::Schema { name } => {
                write!(
                    f,
                    "`{name}` of the journal is not as this program makes it: it may show what nobody recorded"
                )
            }
            Self::PayloadChanged { payload } => write!(f, "payload {payload} is not what was kept"),
            Self::Unsigned { first, last } => {
                write!(f, "{} between two checkpoints, covered by neither", Records(*first, *last))
            }
            Self::CheckpointMissing { first, last } if first == last => {
                write!(f, "checkpoint {first} is missing")
            }
            Self::CheckpointMissing { first, last } => write!(f, "checkpoints {first} to {last} are missing"),
            Self::CheckpointReplaced { number } => {
                write!(f, "checkpoint {number} is another one than was copied to the object store")
            }
            Self::CheckpointTwice { number } => write!(f, "checkpoint {number} is there more than once"),
            Self::CheckpointForged { number } => {
                write!(f, "checkpoint {number} was changed or forged: its signature is wrong")
            }
            Self::CheckpointOfAnotherKey { number, key } => {
                write!(
                    f,
                    "checkpoint {number} is signed with the key {key}, which is not one of those that are trusted"
                )
            }
            Self::CheckpointOutOfChain { number } => {
                write!(f, "checkpoint {number} does not follow the one before it")
            }
            Self::CheckpointDigests { number, first, last } => write!(
                f,
                "the list of digests of checkpoint {number} was changed: which of the records {first} to {last} were, if any, cannot be said"
            ),
        }
    }
}

struct Records(i64, i64);

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(first, last) if first == last => write!(f, "record {first} is"),
            Self(first, last) => write!(f, "records {first} to {last} are"),
        }
    }
}
