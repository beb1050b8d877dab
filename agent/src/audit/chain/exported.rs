//! Whether an exported session is what was signed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufRead, Read};
use std::ops::Range;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::canonical::{self, Members, id, integer, text};
use super::checkpoint::Checkpoint;
use super::export::{Line, Proof, VERSION};
use super::trust::Trust;
use super::verify::Problem;
use super::{LONGEST, digest, tree};
use crate::audit::Removal;
use crate::audit::payload::{self, hexadecimal};

/// No line is longer: a piece has at most 16 MiB.
const LINE: u64 = 64 << 20;

/// What verification of an export has found.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    pub session: Uuid,
    pub node: String,
    pub journal: Uuid,
    /// Records that are signed, and as they were signed.
    pub verified: u64,
    /// Statements without an outcome.
    pub open: u64,
    pub payloads: u64,
    /// Payloads without all their pieces.
    pub incomplete: u64,
    pub keys: Vec<String>,
    /// Whoever asked has said which keys are the node's.
    pub key_is_known: bool,
    pub problems: Vec<Problem>,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportedError {
    #[error("line {0} is none of an export: the file was cut or changed, or it is no export")]
    Line(u64),
    #[error("line {0} is longer than an export's can be")]
    Long(u64),
    #[error("it is no export of this program")]
    NoExport,
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(
        "the export has version {found}, this program knows {VERSION}: use the version that wrote it, or a newer one"
    )]
    Version { found: u32 },
}

/// Verifies an export. `keys` are those that are trusted, hexadecimal; where there are none, the first checkpoint's is.
pub fn verify_export(file: impl BufRead, keys: &[String]) -> Result<ExportReport, ExportedError> {
    verify_lines(file, keys, |_, _| {})
}

/// The same, and hands over each line with its place in the file: what is in it counts only if the report is good.
pub(in crate::audit) fn verify_lines(
    file: impl BufRead,
    keys: &[String],
    mut each: impl FnMut(&Line, Range<u64>),
) -> Result<ExportReport, ExportedError> {
    let mut lines = Lines::new(file);
    let head = lines.next_line()?.ok_or(ExportedError::NoExport)?;
    let (session, journal, records) = match head {
        Line::Head { snowfence_export: VERSION, session, journal, records, .. } => {
            (session, journal, records)
        }
        Line::Head { snowfence_export: found, .. } => return Err(ExportedError::Version { found }),
        _ => return Err(ExportedError::NoExport),
    };
    each(&head, 0..lines.position);
    let mut verification = Verification::new(session, journal, records, keys);
    let mut at = lines.position;
    while let Some(line) = lines.next_line()? {
        each(&line, at..lines.position);
        at = lines.position;
        match line {
            Line::Head { .. } => return Err(ExportedError::Line(lines.number)),
            Line::Checkpoint { checkpoint } => verification.checkpoint(&checkpoint),
            Line::Record { record, proof } => verification.record(&record, proof.as_ref()),
            Line::Piece { payload, piece } => verification.piece(payload, &piece),
        }
    }
    Ok(verification.end())
}

/// Reads an export line by line.
struct Lines<F> {
    file: F,
    /// Of the last one.
    number: u64,
    /// Where the next one begins.
    position: u64,
}

impl<F: BufRead> Lines<F> {
    fn new(file: F) -> Self {
        Self { file, number: 0, position: 0 }
    }

    fn next_line(&mut self) -> Result<Option<Line>, ExportedError> {
        let mut line = Vec::new();
        self.number += 1;
        (&mut self.file).take(LINE).read_until(b'\n', &mut line)?;
        self.position += line.len() as u64;
        if line.is_empty() {
            return Ok(None);
        }
        if line.len() as u64 == LINE {
            return Err(ExportedError::Long(self.number));
        }
        // A line without an end was cut. What means the same in another form was not written by this program.
        let whole = line.strip_suffix(b"\n").and_then(|line| {
            let parsed: Line = serde_json::from_slice(line).ok()?;
            (serde_json::to_vec(&parsed).ok()? == line).then_some(parsed)
        });
        whole.map(Some).ok_or(ExportedError::Line(self.number))
    }
}

struct Verification {
    report: ExportReport,
    trust: Trust,
    checkpoints: BTreeMap<u64, Checkpoint>,
    /// How many the export says that it has.
    records: u64,
    seqs: HashSet<i64>,
    /// The last record that others are linked to.
    last: i64,
    /// Records that do not follow the one before them, and what they say that they follow.
    unlinked: Vec<(i64, i64)>,
    /// The last record that has left the journal.
    removed: i64,
    statements: HashSet<Uuid>,
    ended: HashSet<Uuid>,
    pieces: HashMap<Uuid, Pieces>,
}

/// What a payload's pieces must be.
struct Pieces {
    seq: i64,
    digest: String,
    missing: usize,
    found: Context,
}

impl Verification {
    fn new(session: Uuid, journal: Uuid, records: u64, keys: &[String]) -> Self {
        let report = ExportReport {
            session,
            node: String::new(),
            journal,
            verified: 0,
            open: 0,
            payloads: 0,
            incomplete: 0,
            keys: Vec::new(),
            key_is_known: false,
            problems: Vec::new(),
        };
        Self {
            report,
            trust: Trust::new(keys),
            checkpoints: BTreeMap::new(),
            records,
            seqs: HashSet::new(),
            last: 0,
            unlinked: Vec::new(),
            removed: 0,
            statements: HashSet::new(),
            ended: HashSet::new(),
            pieces: HashMap::new(),
        }
    }

    fn add(&mut self, problem: Problem) {
        self.report.problems.push(problem);
    }

    fn checkpoint(&mut self, members: &Members) {
        let Some(checkpoint) = Checkpoint::from_members(self.report.journal, members) else {
            return self.add(Problem::CheckpointForged {
                number: integer(members, "number")
                    .and_then(|number| u64::try_from(number).ok())
                    .unwrap_or_default(),
            });
        };
        let number = checkpoint.number;
        if let Some(problem) = self.trust.problem(self.report.journal, &checkpoint) {
            return self.add(problem);
        }
        self.report.node.clone_from(&checkpoint.node);
        self.checkpoints.insert(number, checkpoint);
    }

    fn record(&mut self, members: &Members, proof: Option<&Proof>) {
        let Some(seq) = integer(members, "seq") else {
            return self.add(Problem::Changed { seq: 0 });
        };
        if !self.seqs.insert(seq) {
            return self.add(Problem::Twice { seq });
        }
        match proof {
            None => return self.add(Problem::NotSigned { seq }),
            Some(proof) if self.is_proven(members, seq, proof) => self.report.verified += 1,
            Some(_) => {
                self.add(Problem::Changed { seq });
                // It has its place all the same, so that what follows it is judged by itself; but it says nothing.
                if text(members, "table") == Some("events") {
                    return;
                }
            }
        }
        self.place(members, seq);
    }

    fn is_proven(&self, members: &Members, seq: i64, proof: &Proof) -> bool {
        let is_journals = text(members, "journal") == Some(self.report.journal.to_string().as_str());
        let proven = || {
            let checkpoint = self.checkpoints.get(&proof.checkpoint)?;
            let index = u64::try_from(seq.checked_sub(checkpoint.first_seq)?).ok()?;
            let size = Some(checkpoint.size()).filter(|size| *size <= LONGEST as u64)?;
            let leaf = canonical::leaf(members);
            let root = tree::root_by_path(leaf, index, size, &proof.digests()?)?;
            Some(Some(root) == digest(&checkpoint.root))
        };
        is_journals && proven().unwrap_or(false)
    }

    /// Where the record belongs in the session.
    fn place(&mut self, members: &Members, seq: i64) {
        let session = self.report.session;
        let own = id(members, "id");
        let is_ours = match text(members, "table") {
            Some("sessions") => own == Some(session) && self.link(seq, 0),
            Some("statements") => {
                self.statements.extend(own);
                id(members, "session") == Some(session)
                    && self.link(seq, integer(members, "previous").unwrap_or(-1))
            }
            Some("payloads") => {
                self.payload(members, seq, own.unwrap_or_default());
                id(members, "session") == Some(session)
                    && self.link(seq, integer(members, "previous").unwrap_or(-1))
            }
            Some("outcomes") => {
                let statement = id(members, "statement").unwrap_or_default();
                self.ended.insert(statement);
                self.statements.contains(&statement)
            }
            Some("events") => {
                let removal =
                    text(members, "detail").and_then(|detail| serde_json::from_str::<Removal>(detail).ok());
                // What it says is of records before it.
                let removal = removal.filter(|removal| removal.through < seq);
                self.removed = removal.as_ref().map_or(self.removed, |removal| removal.through);
                text(members, "kind") == Some("records_removed") && removal.is_some()
            }
            Some("approvals" | "running") => {
                id(members, "statement").is_some_and(|id| self.statements.contains(&id))
            }
            _ => false,
        };
        if !is_ours {
            self.add(Problem::Foreign { seq });
        }
    }

    /// Whether a record follows the one that is said to be before it; says itself if one is missing.
    fn link(&mut self, seq: i64, previous: i64) -> bool {
        if previous != self.last {
            self.unlinked.push((seq, previous));
        }
        self.last = seq;
        true
    }

    fn payload(&mut self, members: &Members, seq: i64, id: Uuid) {
        let places =
            text(members, "places").and_then(|places| serde_json::from_str::<Vec<Value>>(places).ok());
        let pieces = Pieces {
            seq,
            digest: text(members, "digest").unwrap_or_default().to_owned(),
            missing: places.map_or(0, |places| places.len()),
            found: Context::new(&SHA256),
        };
        self.report.payloads += 1;
        self.pieces.insert(id, pieces);
    }

    fn piece(&mut self, payload: Uuid, piece: &str) {
        let bytes = STANDARD.decode(piece).unwrap_or_default();
        // It may have been written for an earlier payload with the same content: what counts is the digest of all.
        match (self.pieces.get_mut(&payload), payload::parse(&bytes)) {
            (Some(pieces), Some(parsed)) if pieces.missing > 0 => {
                pieces.missing -= 1;
                pieces.found.update(&parsed.digest);
            }
            _ => self.add(Problem::PayloadChanged { payload }),
        }
    }

    fn end(mut self) -> ExportReport {
        // What came before left the journal, as a signed record says.
        let removed = self.removed;
        let unlinked = std::mem::take(&mut self.unlinked);
        for (seq, previous) in unlinked.into_iter().filter(|(_, previous)| !(1..=removed).contains(previous))
        {
            self.add(Problem::Unlinked { seq, previous });
        }
        self.report.open = self.statements.difference(&self.ended).count() as u64;
        let mut pieces: Vec<(Uuid, Pieces)> = self.pieces.drain().collect();
        pieces.sort_by_key(|(_, pieces)| pieces.seq);
        for (payload, pieces) in pieces {
            if pieces.missing > 0 {
                self.report.incomplete += 1;
            } else if hexadecimal(pieces.found.finish().as_ref()) != pieces.digest {
                self.add(Problem::PayloadChanged { payload });
            }
        }
        let missing = self.records.saturating_sub(self.seqs.len() as u64);
        if missing > 0 {
            self.add(Problem::Cut { missing });
        }
        let (keys, key_is_known) = self.trust.into_keys();
        ExportReport { keys, key_is_known, ..self.report }
    }
}
