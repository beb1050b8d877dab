//! Payloads as they are read again: by whoever has an identity that they were sealed to.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use age::{Identity, IdentityFile};
use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;
use uuid::Uuid;

use super::archive::Archived;
use super::entry::{self, Place};
use super::frames::{self, Frame, FrameKind};
use super::seal::{self, OpenError};
use super::segments::read_entry;
use super::spool::SpoolError;
use super::{LONGEST_PIECE, Payload, hexadecimal};
use crate::storage::BucketError;

/// Who reads.
pub type Identities = [Box<dyn Identity + Send + Sync>];

/// Why payloads cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{}: {source}", path.display())]
    Export { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    IdentityFile { path: PathBuf, source: io::Error },
    #[error("{}: {problem}", path.display())]
    Identity { path: PathBuf, problem: String },
    #[error(transparent)]
    Spool(SpoolError),
    #[error(
        "it is no longer in the spool (`audit.payloads.keep_days`), nor in an archive that is configured or named (`--archive`)"
    )]
    Removed,
    #[error("it is no longer in the spool, and the archive does not give it: {0}")]
    Archive(BucketError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("it is not what the record of it says: {0}")]
    Foreign(&'static str),
}

impl From<SpoolError> for ReadError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Self::Removed,
            error => Self::Spool(error),
        }
    }
}

/// Where sealed pieces are.
pub trait Pieces: Send + Sync {
    /// The entry of a payload's piece, by its number. Whether it is the right one is not looked at.
    fn entry(&self, payload: &Payload, number: usize) -> Result<Vec<u8>, ReadError>;
}

/// Where an agent keeps payloads: in a folder `spool`, whether it writes there or not, and in an archive once they have left
/// that.
pub struct Kept {
    spool: PathBuf,
    archive: Option<Archived>,
}

impl Kept {
    pub fn new(spool: PathBuf, archive: Option<Archived>) -> Self {
        Self { spool, archive }
    }

    /// The entry at a place of a run.
    pub fn read(&self, run: Uuid, place: Place) -> Result<Vec<u8>, ReadError> {
        let here = read_entry(&self.spool, run, place).map_err(ReadError::from);
        match (here, &self.archive) {
            (Ok(entry), _) => Ok(entry),
            (Err(ReadError::Removed), Some(archive)) => archive.read(run, place),
            (Err(error), Some(archive)) => archive.read(run, place).map_err(|_| error),
            (Err(error), None) => Err(error),
        }
    }
}

/// What a payload holds.
#[derive(Debug, Default)]
pub struct Content {
    pub request: Message,
    pub answer: Message,
    /// Why it ended, where not with the end of the answer.
    pub end: Value,
}

/// A request or an answer.
#[derive(Debug, Default)]
pub struct Message {
    /// Method, target and headers, or status and headers.
    pub head: Value,
    /// The first bytes of the body, as many as were asked for.
    pub body: Vec<u8>,
    /// All bytes of it that are kept.
    pub length: u64,
    /// When each piece of the body passed: microseconds since the request began, and bytes.
    pub pieces: Vec<(u64, u64)>,
}

/// Reads the identities of a file, as `age-keygen` writes it.
pub fn identities(path: &Path) -> Result<Vec<Box<dyn Identity + Send + Sync>>, ReadError> {
    let failed = |source| ReadError::IdentityFile { path: path.to_owned(), source };
    let file = IdentityFile::from_file(path.display().to_string()).map_err(failed)?;
    let unusable = |problem: String| ReadError::Identity { path: path.to_owned(), problem };
    let identities = file.into_identities().map_err(|error| unusable(error.to_string()))?;
    if identities.is_empty() {
        return Err(unusable("there is no identity in it (`AGE-SECRET-KEY-1…`)".to_owned()));
    }
    Ok(identities)
}

/// Reads a payload, of its bodies no more than `limit` bytes each.
pub fn read(
    pieces: &dyn Pieces,
    payload: &Payload,
    identities: &Identities,
    limit: usize,
) -> Result<Content, ReadError> {
    let mut content = Content::default();
    frames(pieces, payload, identities, |frame| {
        content.add(frame, limit);
        ControlFlow::Continue(())
    })?;
    Ok(content)
}

/// Hands over what a payload holds, frame by frame, until that breaks. There is one piece in memory at a time. Nothing is handed
/// over before all of it is seen to be what the record says: anybody can seal something to a public key.
pub fn frames(
    pieces: &dyn Pieces,
    payload: &Payload,
    identities: &Identities,
    mut each: impl FnMut(Frame<'_>) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    for (number, digest) in digests(pieces, payload)?.into_iter().enumerate() {
        let entry = pieces.entry(payload, number)?;
        let piece = entry::parse(&entry).filter(|piece| piece.digest == digest);
        let piece = piece.ok_or(ReadError::Foreign("it changes while it is read"))?;
        let plain = seal::open(identities, piece.sealed, LONGEST_PIECE)?;
        let passed = payload.places.get(number).and_then(|place| place.micros);
        for frame in frames::read(&plain) {
            let mut frame = frame.ok_or(ReadError::Foreign("it holds what are no frames"))?;
            if frame.micros == 0 {
                frame.micros = passed.unwrap_or_default();
            }
            if each(frame).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The digests of a payload's pieces, which are those that it was recorded with.
fn digests(pieces: &dyn Pieces, payload: &Payload) -> Result<Vec<[u8; 32]>, ReadError> {
    let mut all = Context::new(&SHA256);
    let digests = (0..payload.places.len()).map(|number| {
        let entry = pieces.entry(payload, number)?;
        let piece = entry::parse(&entry).ok_or(ReadError::Foreign("a piece is damaged"))?;
        all.update(&piece.digest);
        Ok(piece.digest)
    });
    let digests = digests.collect::<Result<_, ReadError>>()?;
    if hexadecimal(all.finish().as_ref()) != payload.digest {
        return Err(ReadError::Foreign("a piece is another one"));
    }
    Ok(digests)
}

impl Pieces for Kept {
    fn entry(&self, payload: &Payload, number: usize) -> Result<Vec<u8>, ReadError> {
        let place = payload.places.get(number).ok_or(ReadError::Foreign("there are fewer pieces"))?;
        self.read(payload.run, *place)
    }
}

impl Content {
    /// Adds a frame, of a body no more than up to `limit` bytes.
    pub fn add(&mut self, frame: Frame<'_>, limit: usize) {
        let json = || serde_json::from_slice(frame.content).unwrap_or_default();
        match frame.kind {
            FrameKind::Request => self.request.head = json(),
            FrameKind::RequestBody => self.request.add(frame, limit),
            FrameKind::Answer => self.answer.head = json(),
            FrameKind::AnswerBody => self.answer.add(frame, limit),
            FrameKind::End => self.end = json(),
        }
    }
}

impl Message {
    fn add(&mut self, frame: Frame<'_>, limit: usize) {
        let length = frame.content.len() as u64;
        let room = limit.saturating_sub(self.body.len());
        self.body.extend_from_slice(frame.content.get(..room).unwrap_or(frame.content));
        self.length += length;
        self.pieces.push((frame.micros, length));
    }
}
