//! A session in one file, with the proof that it carries.
//!
//! The file has one JSON object a line. The first says what it is. Then come, in the order of the journal, the session's
//! records in their canonical form, each with the number of the checkpoint that covers it and its way in that checkpoint's
//! tree; before the first record of a checkpoint, the checkpoint; after a payload, its sealed pieces, each with its head
//! as in the spool.

use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::canonical::{self, Members, id, text};
use super::checkpoint::Checkpoint;
use super::{digest, tree};
use crate::audit::payload::{Kept, Place, ReadError, hexadecimal};
use crate::audit::records::of_session;
use crate::audit::{AuditError, now, retention, schema};

/// The form of the file.
pub(super) const VERSION: u32 = 1;

/// A line of the file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged, deny_unknown_fields)]
pub(in crate::audit) enum Line {
    Head {
        snowfence_export: u32,
        session: Uuid,
        journal: Uuid,
        /// When it was made.
        time: i64,
        /// How many follow.
        records: u64,
    },
    Record {
        record: Members,
        /// None for a record that is not signed yet.
        proof: Option<Proof>,
    },
    Checkpoint {
        checkpoint: Members,
    },
    Piece {
        payload: Uuid,
        /// Base64.
        piece: String,
    },
}

/// A record's way in its checkpoint's tree.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::audit) struct Proof {
    pub checkpoint: u64,
    pub path: Vec<String>,
}

/// What was exported.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Exported {
    pub records: u64,
    /// Records that no checkpoint covers yet.
    pub unsigned: u64,
    pub payloads: u64,
    /// Payloads whose pieces are no longer in the spool, nor in an archive.
    pub removed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("cannot write the export: {0}")]
    Write(#[from] io::Error),
    #[error("a payload: {0}")]
    Payload(#[from] ReadError),
    #[error("the journal knows no session {0}")]
    Unknown(Uuid),
}

/// Whether all records of a session are signed.
pub fn is_signed(journal: &Path, session: Uuid) -> Result<bool, AuditError> {
    let connection = schema::open_read_only(journal)?;
    let last = records(&connection, session).map_err(AuditError::read)?.pop().map_or(0, |(seq, _)| seq);
    Ok(Checkpoint::last_signed(&connection).map_err(AuditError::read)? >= last)
}

/// Writes a session. `progress` is told how many of its records are written, and how many there are.
pub fn export(
    journal: &Path,
    kept: &Kept,
    session: Uuid,
    out: &mut impl Write,
    mut progress: impl FnMut(usize, usize),
) -> Result<Exported, ExportError> {
    let connection = schema::open_read_only(journal)?;
    // All of it as it is at one moment.
    let connection = connection.unchecked_transaction().map_err(AuditError::read)?;
    let journal = schema::identifier(&connection)?;
    let mut records = records(&connection, session).map_err(AuditError::read)?;
    if records.is_empty() {
        return Err(ExportError::Unknown(session));
    }
    if !records.iter().any(|(_, table)| *table == "sessions")
        && let Some(removal) = retention::latest(&connection, i64::MAX).map_err(AuditError::read)?
    {
        // It says where the beginning of the session is.
        records.push((removal.seq, "events"));
        records.sort_unstable();
    }
    let mut file = File { out };
    let count = records.len() as u64;
    file.line(&Line::Head { snowfence_export: VERSION, session, journal, time: now(), records: count })?;
    let mut exported = Exported::default();
    let mut covering: Option<Covering> = None;
    for (number, (seq, table)) in records.iter().enumerate() {
        let sql = format!("SELECT * FROM {table} WHERE seq = ?1");
        let mut found = None;
        canonical::each(&connection, journal, table, &sql, [seq], |_, members| found = Some(members))
            .map_err(AuditError::read)?;
        let Some(members) = found else { continue };
        if covering.as_ref().is_none_or(|covering| covering.checkpoint.last_seq < *seq) {
            covering = Covering::find(&connection, *seq).map_err(AuditError::read)?;
            if let Some(covering) = &covering {
                file.line(&Line::Checkpoint { checkpoint: covering.checkpoint.members(journal) })?;
            }
        }
        let proof = covering.as_ref().and_then(|covering| covering.proof(*seq));
        exported.records += 1;
        exported.unsigned += u64::from(proof.is_none());
        let pieces = (*table == "payloads").then(|| Pieces::of(&members)).flatten();
        file.line(&Line::Record { record: members, proof })?;
        if let Some(pieces) = pieces {
            exported.payloads += 1;
            exported.removed += u64::from(!file.pieces(kept, &pieces)?);
        }
        progress(number + 1, records.len());
    }
    Ok(exported)
}

/// The records of a session: their places and tables.
fn records(connection: &Connection, session: Uuid) -> rusqlite::Result<Vec<(i64, &'static str)>> {
    let mut records = Vec::new();
    for (table, condition) in of_session(session, "statements") {
        let mut query = connection.prepare(&format!("SELECT seq FROM {table} WHERE {condition}"))?;
        for seq in query.query_map([], |row| row.get(0))? {
            records.push((seq?, table));
        }
    }
    records.sort_unstable();
    Ok(records)
}

struct File<'o, W> {
    out: &'o mut W,
}

impl<W: Write> File<'_, W> {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }

    /// Whether all of them are there.
    fn pieces(&mut self, kept: &Kept, pieces: &Pieces) -> Result<bool, ExportError> {
        for place in &pieces.places {
            let entry = match kept.read(pieces.run, *place) {
                Err(ReadError::Removed) => return Ok(false),
                entry => entry?,
            };
            self.line(&Line::Piece { payload: pieces.payload, piece: STANDARD.encode(entry) })?;
        }
        Ok(true)
    }
}

/// Where the pieces of a payload are.
struct Pieces {
    payload: Uuid,
    run: Uuid,
    places: Vec<Place>,
}

impl Pieces {
    fn of(record: &Members) -> Option<Self> {
        Some(Self {
            payload: id(record, "id")?,
            run: id(record, "run")?,
            places: serde_json::from_str(text(record, "places")?).ok()?,
        })
    }
}

/// The checkpoint that covers some records.
struct Covering {
    checkpoint: Checkpoint,
    leaves: Vec<tree::Digest>,
}

impl Covering {
    fn find(connection: &Connection, seq: i64) -> rusqlite::Result<Option<Self>> {
        let sql =
            "SELECT * FROM checkpoints WHERE first_seq <= ?1 AND last_seq >= ?1 ORDER BY number LIMIT 1";
        let found = connection.query_row(sql, [seq], Checkpoint::read).optional()?;
        Ok(found.map(|checkpoint| {
            let leaves = checkpoint.leaves().unwrap_or_default();
            Self { checkpoint, leaves }
        }))
    }

    fn proof(&self, seq: i64) -> Option<Proof> {
        let index = usize::try_from(seq.checked_sub(self.checkpoint.first_seq)?).ok()?;
        let path = (index < self.leaves.len()).then(|| tree::path(&self.leaves, index))?;
        let path = path.iter().map(|digest| hexadecimal(digest)).collect();
        Some(Proof { checkpoint: self.checkpoint.number, path })
    }
}

impl Proof {
    /// The digests of the way.
    pub(super) fn digests(&self) -> Option<Vec<tree::Digest>> {
        self.path.iter().map(|text| digest(text)).collect()
    }
}
