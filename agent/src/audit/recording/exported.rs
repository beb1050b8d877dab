//! A session that was exported, as a recorded one.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use super::RecordedSession;
use super::loading::Loading;
use crate::audit::AuditError;
use crate::audit::chain::{ExportReport, ExportedError, Line, verify_lines};
use crate::audit::payload::{Identities, Payload, Pieces, ReadError};

/// Why an export cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ExportFileError {
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Export(#[from] ExportedError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the export has no row of its session: it left the journal before")]
    Sessionless,
    #[error("this is not what was signed: {problem} (`snowfence audit verify --export` says it all)")]
    Unproven { problem: String },
}

/// Where the line of each piece is in the file, by payload and number.
type Places = HashMap<(Uuid, usize), Range<u64>>;

/// The pieces in an export.
struct ExportPieces {
    path: PathBuf,
    places: Places,
}

impl RecordedSession {
    /// Reads a session of an export, which must be what was signed by one of `keys`; where there are none, by one key.
    pub fn load_export(
        path: &Path,
        keys: &[String],
        identities: Box<Identities>,
    ) -> Result<(Self, ExportReport), ExportFileError> {
        let file =
            File::open(path).map_err(|source| ExportFileError::Io { path: path.to_owned(), source })?;
        let mut reading =
            Reading { loading: Loading::new(Uuid::nil()), numbers: HashMap::new(), places: Places::new() };
        let mut read = Ok(());
        let report = verify_lines(BufReader::new(file), keys, |line, place| {
            if read.is_ok() {
                read = reading.line(line, place);
            }
        })?;
        if let Some(problem) = report.problems.first() {
            return Err(ExportFileError::Unproven { problem: problem.to_string() });
        }
        read?;
        let Reading { loading, places, .. } = reading;
        let Loading { session, statements, payloads, .. } = loading.end();
        let session = session.ok_or(ExportFileError::Sessionless)?;
        let pieces = Box::new(ExportPieces { path: path.to_owned(), places });
        Ok((Self { session, statements, payloads, pieces, identities }, report))
    }
}

/// What was read of an export so far.
struct Reading {
    loading: Loading,
    /// How many pieces of each payload there were.
    numbers: HashMap<Uuid, usize>,
    places: Places,
}

impl Reading {
    fn line(&mut self, line: &Line, place: Range<u64>) -> Result<(), AuditError> {
        match line {
            Line::Head { session, .. } => self.loading.room.session = *session,
            Line::Checkpoint { .. } => {}
            Line::Record { record, .. } => self.loading.record(record)?,
            // They follow their payload, in their order.
            Line::Piece { payload, .. } => {
                self.loading.room.take(64)?;
                let number = self.numbers.entry(*payload).or_default();
                self.places.insert((*payload, *number), place);
                *number += 1;
            }
        }
        Ok(())
    }
}

impl Pieces for ExportPieces {
    fn entry(&self, payload: &Payload, number: usize) -> Result<Vec<u8>, ReadError> {
        let place = self.places.get(&(payload.id, number)).ok_or(ReadError::Removed)?;
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(place.start))?;
            let mut line = vec![0; usize::try_from(place.end - place.start).unwrap_or_default()];
            file.read_exact(&mut line)?;
            Ok(line)
        };
        let unreadable = |source| ReadError::Export { path: self.path.clone(), source };
        let line: Vec<u8> = read().map_err(unreadable)?;
        let Ok(Line::Piece { piece, .. }) = serde_json::from_slice(&line) else {
            return Err(ReadError::Foreign("the export has changed"));
        };
        Ok(STANDARD.decode(piece).unwrap_or_default())
    }
}
