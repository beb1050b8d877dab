//! Entries of the spool: a sealed piece, or a reference to one, with a head that says whose it is.
//!
//! An entry is a head of 104 bytes and the sealed piece. The head: `SNFP`, the version (4 bytes), the identifiers of the
//! payload, its session and its statement (16 bytes each; zeros for no statement), the number of the piece (4 bytes), the
//! length of what is sealed (4 bytes), the time in microseconds since the epoch (8 bytes), all numbers little-endian; and
//! the SHA-256 of all these and of what is sealed.
//!
//! Version 2 is a reference: in the place of what is sealed it has the offset (8 bytes), length (4 bytes) and digest of an
//! earlier entry of its segment, whose content is its piece's.

use std::io::Read;
use std::ops::Range;

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const MAGIC: [u8; 4] = *b"SNFP";
/// Versions of entries.
pub const SEALED: u32 = 1;
pub const REFERENCE: u32 = 2;
pub const HEAD: usize = 104;
const DIGEST: usize = 32;
/// No entry is longer: a piece is about a megabyte.
const LONGEST: u32 = 16 << 20;

/// Whose an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub payload: Uuid,
    pub session: Uuid,
    /// Nil for none.
    pub statement: Uuid,
    /// From 0.
    pub piece: u32,
    pub time: i64,
}

/// Where an entry is, within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    pub segment: u32,
    pub offset: u64,
    /// Of what is sealed.
    pub length: u32,
    /// When the piece passed, since the request began, where its frames do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micros: Option<u64>,
}

/// Where a piece is.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    pub place: Place,
    /// Stands in the head there.
    pub digest: [u8; DIGEST],
    /// What was written for it: sealed, or a reference.
    pub bytes: u32,
}

impl Place {
    /// Whether an entry can be so long.
    pub fn is_possible(&self) -> bool {
        self.length <= LONGEST
    }

    /// The bytes of the entry in its segment.
    pub fn range(&self) -> Range<u64> {
        let end = self.offset.saturating_add(HEAD as u64).saturating_add(u64::from(self.length));
        self.offset..end
    }
}

/// An entry as it was read.
pub struct Parsed<'b> {
    pub entry: Entry,
    pub digest: [u8; DIGEST],
    pub sealed: &'b [u8],
}

/// The parts of an entry; `None` if it is damaged.
pub fn parse(bytes: &[u8]) -> Option<Parsed<'_>> {
    let (head, sealed) = bytes.split_first_chunk::<HEAD>()?;
    let Decoded { version, entry, length } = decode(head)?;
    let digest = verified(head, sealed)?;
    let is_whole = u32::try_from(sealed.len()) == Ok(length);
    (is_whole && version == SEALED).then_some(Parsed { entry, digest, sealed })
}

/// The head of an entry, and the digest that is the end of it.
pub fn encode(entry: &Entry, version: u32, content: &[u8]) -> (Vec<u8>, [u8; DIGEST]) {
    let mut bytes = Vec::with_capacity(HEAD);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&version.to_le_bytes());
    for id in [entry.payload, entry.session, entry.statement] {
        bytes.extend_from_slice(id.as_bytes());
    }
    bytes.extend_from_slice(&entry.piece.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&entry.time.to_le_bytes());
    let digest = digest(&bytes, content);
    bytes.extend_from_slice(&digest);
    (bytes, digest)
}

/// The digest of an entry, if it is the one in its head.
pub fn verified(head: &[u8; HEAD], rest: &[u8]) -> Option<[u8; DIGEST]> {
    let digest = digest(head, rest);
    (head.get(HEAD - DIGEST..) == Some(&digest)).then_some(digest)
}

/// Of a head, as far as the digest, and what follows it.
fn digest(head: &[u8], rest: &[u8]) -> [u8; DIGEST] {
    let mut context = Context::new(&SHA256);
    context.update(head.get(..HEAD - DIGEST).unwrap_or(head));
    context.update(rest);
    let mut digest = [0; DIGEST];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// The head of an entry.
pub struct Decoded {
    pub version: u32,
    pub entry: Entry,
    /// Of what follows.
    pub length: u32,
}

fn decode(head: &[u8; HEAD]) -> Option<Decoded> {
    let mut rest = head.as_slice();
    let magic: [u8; 4] = take(&mut rest)?;
    let version = u32::from_le_bytes(take(&mut rest)?);
    let [payload, session, statement] =
        [take(&mut rest)?, take(&mut rest)?, take(&mut rest)?].map(Uuid::from_bytes);
    let piece = u32::from_le_bytes(take(&mut rest)?);
    let length = u32::from_le_bytes(take(&mut rest)?);
    let time = i64::from_le_bytes(take(&mut rest)?);
    let is_one = magic == MAGIC && (SEALED..=REFERENCE).contains(&version) && length <= LONGEST;
    let entry = Entry { payload, session, statement, piece, time };
    is_one.then_some(Decoded { version, entry, length })
}

/// What follows the head of a reference.
pub fn encode_reference(to: &Written) -> Vec<u8> {
    let Written { place, digest, .. } = to;
    [&place.offset.to_le_bytes()[..], &place.length.to_le_bytes(), digest].concat()
}

/// Where a reference leads to, in its segment.
pub fn decode_reference(segment: u32, mut content: &[u8]) -> Option<Written> {
    let bytes = u32::try_from(content.len()).ok()?;
    let offset = u64::from_le_bytes(take(&mut content)?);
    let length = u32::from_le_bytes(take(&mut content)?);
    let digest = take(&mut content)?;
    Some(Written { place: Place { segment, offset, length, micros: None }, digest, bytes })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

/// The next entry's head; `None` at the end, or where it is torn.
pub fn next_head(file: &mut impl Read) -> Option<([u8; HEAD], Decoded)> {
    let mut head = [0; HEAD];
    file.read_exact(&mut head).ok()?;
    let decoded = decode(&head)?;
    Some((head, decoded))
}

/// What follows a head.
pub fn read_content(file: &mut impl Read, length: u32) -> Option<Vec<u8>> {
    let mut content = vec![0; usize::try_from(length).ok()?];
    file.read_exact(&mut content).ok()?;
    Some(content)
}
