//! The spool: sealed pieces in append-only files, each of which says whose it is.
//!
//! ```text
//! spool/<run>/lock               held by the agent that writes there
//! spool/<run>/00000001.segment   entries, one after the other
//! spool/<run>/00000001.archived  says that the segment is in the archive
//! ```
//!
//! An entry is a head of 104 bytes and the sealed piece. The head: `SNFP`, the version (4 bytes), the identifiers of the
//! payload, its session and its statement (16 bytes each; zeros for no statement), the number of the piece (4 bytes), the
//! length of what is sealed (4 bytes), the time in microseconds since the epoch (8 bytes), all numbers little-endian; and
//! the SHA-256 of all these and of what is sealed.
//!
//! Version 2 is a reference: in the place of what is sealed it has the offset (8 bytes), length (4 bytes) and digest of an
//! earlier entry of its segment, whose content is its piece's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::shared::{Fingerprint, Shared};

const MAGIC: [u8; 4] = *b"SNFP";
/// Versions of entries.
const SEALED: u32 = 1;
const REFERENCE: u32 = 2;
const HEAD: usize = 104;
const DIGEST: usize = 32;
/// A file that has so many bytes, or its part of the room, gets no more entries.
const SEGMENT: u64 = 64 << 20;
const SEGMENTS: u64 = 8;
/// No entry is longer: a piece is about a megabyte.
const LONGEST: u32 = 16 << 20;
/// So much is left for the answers to what has begun.
const RESERVE: u64 = 16 << 20;
/// How often what was appended is brought onto the disk.
pub const SYNC: Duration = Duration::from_millis(100);
/// An entry of nothing, which shows whether there can be one.
const PROBE: Entry =
    Entry { payload: Uuid::nil(), session: Uuid::nil(), statement: Uuid::nil(), piece: 0, time: 0 };
const EXTENSION: &str = "segment";
const ARCHIVED: &str = "archived";
const LOCK: &str = "lock";
const SETTLED: &str = "settled";

#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    #[error(
        "the spool for payloads is full ({limit} bytes): see to the archive, raise `audit.payloads.spool_mebibytes`, lower `keep_days`, or set `when_full`"
    )]
    Full { limit: u64 },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: Arc<io::Error> },
    #[error("a payload cannot be sealed: {0}")]
    Seal(Arc<io::Error>),
}

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

/// The spool of one run of an agent.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    run: Uuid,
    limit: u64,
    /// A file that has so many bytes gets no more entries.
    segment: u64,
    /// Segments go to an archive, and are not removed before.
    has_archive: bool,
    state: Mutex<State>,
    _lock: File,
}

/// A file of entries.
#[derive(Debug, Clone)]
pub struct Segment {
    pub run: Uuid,
    pub number: u32,
    pub path: PathBuf,
    /// Bytes.
    pub length: u64,
    pub is_archived: bool,
    written: SystemTime,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    segment: u32,
    /// Of that segment.
    length: u64,
    /// Of all segments of all runs.
    total: u64,
    /// When the first entry of that segment was, and the last of all.
    begun: Option<SystemTime>,
    written: Option<SystemTime>,
    unsynced: Vec<Arc<File>>,
    /// Entries of that segment that others may refer to.
    shared: Shared,
    /// Bytes that were not written again.
    saved: u64,
    /// The last entry, or the last sync.
    has_failed: bool,
}

/// A run that has ended.
pub struct Ended {
    pub run: Uuid,
    directory: PathBuf,
    _lock: File,
}

impl Spool {
    /// Begins a run.
    pub fn open(root: &Path, limit: u64, has_archive: bool) -> Result<Self, SpoolError> {
        let run = Uuid::now_v7();
        let directory = root.join(run.to_string());
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed(&directory))?;
        let lock = lock(&directory)?;
        let total = segments(root)?.iter().map(|segment| segment.length).sum();
        let state = Mutex::new(State { total, ..State::default() });
        let segment = SEGMENT.min(limit / SEGMENTS);
        Ok(Self { root: root.to_owned(), run, limit, segment, has_archive, state, _lock: lock })
    }

    pub fn run(&self) -> Uuid {
        self.run
    }

    /// Whether more can be kept: asked before anything is done that must be.
    pub fn ready(&self) -> Result<(), SpoolError> {
        let (is_full, has_failed) = {
            let state = self.state();
            (state.total + RESERVE > self.limit, state.has_failed)
        };
        if is_full {
            return Err(SpoolError::Full { limit: self.limit });
        }
        if has_failed {
            // It may be over.
            self.append(&PROBE, &[0; 4096])?;
        }
        Ok(())
    }

    /// Appends an entry. It is on the disk when [`Self::sync`] has returned after that.
    pub fn append(&self, entry: &Entry, sealed: &[u8]) -> Result<Written, SpoolError> {
        let (head, digest) = encode(entry, SEALED, sealed);
        let mut state = self.state();
        let written = self.write(&mut state, &head, sealed);
        state.has_failed = written.is_err();
        let length = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
        written.map(|(segment, offset)| {
            let place = Place { segment, offset, length, micros: None };
            Written { place, digest, bytes: length }
        })
    }

    /// Lets later entries of the segment refer to one.
    pub fn share(&self, content: Fingerprint, written: Written) {
        self.state().shared.note(content, written);
    }

    /// Appends a reference to the entry of that content; `None` if the segment that is written to has none.
    pub fn refer(&self, entry: &Entry, content: &Fingerprint) -> Result<Option<Written>, SpoolError> {
        let mut state = self.state();
        let goes_on = state.file.is_some() && state.length < self.segment;
        let Some(earlier) = state.shared.find(state.segment, content).filter(|_| goes_on) else {
            return Ok(None);
        };
        let reference = encode_reference(&earlier);
        let (head, _) = encode(entry, REFERENCE, &reference);
        let written = self.write(&mut state, &head, &reference);
        state.has_failed = written.is_err();
        written?;
        let bytes = u32::try_from(reference.len()).unwrap_or(u32::MAX);
        state.saved += u64::from(earlier.place.length.saturating_sub(bytes));
        Ok(Some(Written { bytes, ..earlier }))
    }

    /// Bytes that were not written, as they were there already.
    pub fn saved(&self) -> u64 {
        self.state().saved
    }

    fn write(&self, state: &mut State, head: &[u8], sealed: &[u8]) -> Result<(u32, u64), SpoolError> {
        let added = (head.len() + sealed.len()) as u64;
        if state.total + added > self.limit {
            return Err(SpoolError::Full { limit: self.limit });
        }
        let file = match &state.file {
            Some(file) if state.length < self.segment => Arc::clone(file),
            _ => {
                let path = segment_path(&self.directory(), state.segment + 1);
                let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path);
                let file = Arc::new(file.map_err(failed(&path))?);
                sync_directory(&self.directory())?;
                state.segment += 1;
                state.length = 0;
                state.begun = Some(SystemTime::now());
                state.file.insert(file).clone()
            }
        };
        let offset = state.length;
        if let Err(error) = (&*file).write_all(head).and_then(|()| (&*file).write_all(sealed)) {
            // What is written of it is no entry; the next one begins in its place.
            let path = segment_path(&self.directory(), state.segment);
            if file.set_len(offset).is_err() {
                state.file = None;
            }
            return Err(failed(&path)(error));
        }
        state.written = Some(SystemTime::now());
        state.length += added;
        state.total += added;
        if !state.unsynced.iter().any(|other| Arc::ptr_eq(other, &file)) {
            state.unsynced.push(file);
        }
        Ok((state.segment, offset))
    }

    /// Brings onto the disk what was appended before.
    pub fn sync(&self) -> Result<(), SpoolError> {
        let unsynced = std::mem::take(&mut self.state().unsynced);
        for file in unsynced {
            if let Err(error) = file.sync_data() {
                let mut state = self.state();
                state.has_failed = true;
                // What could not be brought there may be lost: it is written again.
                state.shared.forget();
                return Err(failed(&self.directory())(error));
            }
        }
        Ok(())
    }

    /// Removes the segments of all runs that were last written before `time`, and the folders of settled runs of
    /// which nothing is left. Where there is an archive, what is not in it stays. Returns how many segments.
    pub fn remove_before(&self, time: SystemTime) -> Result<usize, SpoolError> {
        let mut removed = 0;
        // The one that is written to goes too, if nothing was for so long.
        self.close_if(|state| state.written.is_some_and(|written| written < time));
        for segment in self.closed()? {
            if segment.written < time && (segment.is_archived || !self.has_archive) {
                self.remove(&segment)?;
                removed += 1;
            }
        }
        for directory in children(&self.root)? {
            if directory.join(SETTLED).exists() && files(&directory)?.is_empty() {
                fs::remove_dir_all(&directory).map_err(failed(&directory))?;
            }
        }
        Ok(removed)
    }

    /// Removes the oldest segments of all runs while less than a tenth of the room is left: those that are in the archive first,
    /// and the others if `even_the_only_ones`. Returns how many.
    pub fn remove_oldest(&self, even_the_only_ones: bool) -> Result<usize, SpoolError> {
        let most = self.limit - self.limit / 10;
        if self.total() <= most {
            return Ok(0);
        }
        let mut removed = 0;
        let mut segments = self.closed()?;
        segments.retain(|segment| segment.is_archived || even_the_only_ones);
        segments.sort_by_key(|segment| (!segment.is_archived, segment.written));
        for segment in segments {
            if self.total() > most {
                self.remove(&segment)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The segments that are complete and not in the archive, the oldest first. One that was begun before `time` is complete from
    /// now on.
    pub fn unarchived(&self, time: SystemTime) -> Result<Vec<Segment>, SpoolError> {
        self.close_if(|state| state.begun.is_some_and(|begun| begun < time));
        let mut segments = self.closed()?;
        segments.retain(|segment| !segment.is_archived && self.has_ended(segment.run));
        segments.sort_by_key(|segment| segment.written);
        Ok(segments)
    }

    /// Bytes that are not in the archive.
    pub fn unarchived_bytes(&self) -> Result<u64, SpoolError> {
        let segments = segments(&self.root)?;
        Ok(segments.iter().filter(|segment| !segment.is_archived).map(|segment| segment.length).sum())
    }

    /// Nobody writes to the closed segments of this run any more, be it this one.
    fn has_ended(&self, run: Uuid) -> bool {
        run == self.run || lock(&self.root.join(run.to_string())).is_ok()
    }

    fn close_if(&self, condition: impl FnOnce(&State) -> bool) {
        let mut state = self.state();
        if condition(&state) {
            state.file = None;
            state.begun = None;
        }
    }

    /// All segments but the one that is written to.
    fn closed(&self) -> Result<Vec<Segment>, SpoolError> {
        let mut segments = segments(&self.root)?;
        let current = {
            let state = self.state();
            state.file.is_some().then_some((self.run, state.segment))
        };
        segments.retain(|segment| current != Some((segment.run, segment.number)));
        Ok(segments)
    }

    fn remove(&self, segment: &Segment) -> Result<(), SpoolError> {
        for path in [segment.path.clone(), segment.path.with_extension(ARCHIVED)] {
            match fs::remove_file(&path) {
                // Another agent has removed it, or it is not archived.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
                _ => {}
            }
        }
        let mut state = self.state();
        state.total = state.total.saturating_sub(segment.length);
        Ok(())
    }

    /// Counts what there is: another agent may have written or removed something.
    pub fn count(&self) -> Result<(), SpoolError> {
        let total = segments(&self.root)?.iter().map(|segment| segment.length).sum();
        self.state().total = total;
        Ok(())
    }

    /// Bytes in all segments of all runs.
    pub fn total(&self) -> u64 {
        self.state().total
    }

    fn directory(&self) -> PathBuf {
        self.root.join(self.run.to_string())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segment {
    /// Notes that it is in the archive.
    pub fn mark_archived(&self) -> Result<(), SpoolError> {
        let path = self.path.with_extension(ARCHIVED);
        let noted = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        noted.map(drop).map_err(failed(&path))?;
        // Unless it was removed meanwhile.
        if !self.path.exists() {
            let _ = fs::remove_file(path);
        }
        Ok(())
    }
}

impl Ended {
    /// All entries that are whole, as far as they are of payloads that are asked for. An entry that was torn ends its file.
    pub fn entries(
        &self,
        mut wants: impl FnMut(Uuid) -> bool,
        mut found: impl FnMut(Entry, Written),
    ) -> Result<(), SpoolError> {
        for path in files(&self.directory)? {
            let Some(segment) = segment_number(&path) else { continue };
            let mut file = io::BufReader::new(File::open(&path).map_err(failed(&path))?);
            let mut offset = 0;
            while let Some((head, Decoded { version, entry, length })) = next_head(&mut file) {
                if wants(entry.payload) {
                    let Some(content) = read_content(&mut file, length) else { break };
                    let digest = digest(&head, &content);
                    if head.get(HEAD - DIGEST..) != Some(digest.as_slice()) {
                        break;
                    }
                    let own = Place { segment, offset, length, micros: None };
                    let written = match version {
                        SEALED => Some(Written { place: own, digest, bytes: length }),
                        _ => decode_reference(segment, &content),
                    };
                    let Some(written) = written else { break };
                    found(entry, written);
                } else if file.seek_relative(i64::from(length)).is_err() {
                    break;
                }
                offset += HEAD as u64 + u64::from(length);
            }
        }
        Ok(())
    }

    /// Notes that the entries are known to whoever needs them.
    pub fn settled(&self) -> Result<(), SpoolError> {
        let path = self.directory.join(SETTLED);
        File::create(&path).map(drop).map_err(failed(&path))
    }
}

/// The runs below `root` that have ended and whose entries are not yet settled.
pub fn unsettled(root: &Path) -> Result<Vec<Ended>, SpoolError> {
    let mut unsettled = Vec::new();
    for directory in children(root)? {
        let run = directory.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(run) = run
            && !directory.join(SETTLED).exists()
            && let Ok(lock) = lock(&directory)
        {
            unsettled.push(Ended { run, directory, _lock: lock });
        }
    }
    Ok(unsettled)
}

/// Reads an entry as it is, with its head.
pub fn read_entry(root: &Path, run: Uuid, place: Place) -> Result<Vec<u8>, SpoolError> {
    let path = segment_path(&root.join(run.to_string()), place.segment);
    let file = File::open(&path).map_err(failed(&path))?;
    let range = place.range();
    if !place.is_possible() || range.end > file.metadata().map_err(failed(&path))?.len() {
        return Err(damaged(&path));
    }
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
    file.read_exact_at(&mut bytes, range.start).map_err(failed(&path))?;
    Ok(bytes)
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
    let digest = digest(head, sealed);
    let is_whole = u32::try_from(sealed.len()) == Ok(length) && head.get(HEAD - DIGEST..) == Some(&digest);
    (is_whole && version == SEALED).then_some(Parsed { entry, digest, sealed })
}

fn damaged(path: &Path) -> SpoolError {
    failed(path)(io::Error::new(io::ErrorKind::InvalidData, "the entry is damaged"))
}

/// Takes the lock of a run's folder, which fails while the run goes on.
fn lock(directory: &Path) -> Result<File, SpoolError> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(failed(&path))?;
    file.try_lock().map_err(|error| failed(&path)(error.into()))?;
    Ok(file)
}

/// The segments of all runs.
fn segments(root: &Path) -> Result<Vec<Segment>, SpoolError> {
    let mut segments = Vec::new();
    for directory in children(root)? {
        let Some(run) = directory.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        for path in files(&directory)? {
            let Some(number) = segment_number(&path) else { continue };
            let found = path.metadata().and_then(|metadata| Ok((metadata.len(), metadata.modified()?)));
            match found {
                Ok((length, written)) => {
                    let is_archived = path.with_extension(ARCHIVED).exists();
                    segments.push(Segment { run, number, path, length, is_archived, written });
                }
                // Another agent has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        }
    }
    Ok(segments)
}

/// The segments of a run, in their order.
fn files(directory: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let mut files = children(directory)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    files.sort();
    Ok(files)
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(directory)(error)),
    }
}

fn segment_path(directory: &Path, segment: u32) -> PathBuf {
    directory.join(segment_name(segment))
}

/// How the file of a segment is called, in its run's folder and in the archive.
pub fn segment_name(segment: u32) -> String {
    format!("{segment:08}.{EXTENSION}")
}

fn segment_number(path: &Path) -> Option<u32> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn sync_directory(directory: &Path) -> Result<(), SpoolError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed(directory))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> SpoolError + use<> {
    let path = path.to_owned();
    move |source| SpoolError::Io { path: path.clone(), source: Arc::new(source) }
}

/// The head of an entry, and the digest that is the end of it.
fn encode(entry: &Entry, version: u32, content: &[u8]) -> (Vec<u8>, [u8; DIGEST]) {
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
struct Decoded {
    version: u32,
    entry: Entry,
    /// Of what follows.
    length: u32,
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

fn encode_reference(to: &Written) -> Vec<u8> {
    let Written { place, digest, .. } = to;
    [&place.offset.to_le_bytes()[..], &place.length.to_le_bytes(), digest].concat()
}

fn decode_reference(segment: u32, mut content: &[u8]) -> Option<Written> {
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

fn next_head(file: &mut impl Read) -> Option<([u8; HEAD], Decoded)> {
    let mut head = [0; HEAD];
    file.read_exact(&mut head).ok()?;
    let decoded = decode(&head)?;
    Some((head, decoded))
}

fn read_content(file: &mut impl Read, length: u32) -> Option<Vec<u8>> {
    let mut content = vec![0; usize::try_from(length).ok()?];
    file.read_exact(&mut content).ok()?;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::super::shared::Fingerprints;
    use super::*;

    const LIMIT: u64 = RESERVE + (1 << 20);

    fn entry(piece: u32) -> Entry {
        let (session, statement) = (Uuid::from_u128(2), Uuid::nil());
        Entry { payload: Uuid::from_u128(1), session, statement, piece, time: 1_767_323_045_678_901 }
    }

    fn entries(ended: &Ended) -> Vec<(Entry, Place)> {
        let mut entries = Vec::new();
        ended.entries(|_| true, |entry, written| entries.push((entry, written.place))).unwrap();
        entries
    }

    fn read(root: &Path, run: Uuid, place: Place) -> Option<(Entry, Vec<u8>)> {
        let bytes = read_entry(root, run, place).ok()?;
        let Parsed { entry, sealed, .. } = parse(&bytes)?;
        Some((entry, sealed.to_vec()))
    }

    #[test]
    fn what_was_appended_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path(), LIMIT, false).unwrap();
        let first = spool.append(&entry(0), b"first").unwrap().place;
        let second = spool.append(&entry(1), &vec![7; 100_000]).unwrap().place;
        spool.sync().unwrap();
        assert_eq!(read(directory.path(), spool.run(), first), Some((entry(0), b"first".to_vec())));
        assert_eq!(read(directory.path(), spool.run(), second), Some((entry(1), vec![7; 100_000])));
        assert!(unsettled(directory.path()).unwrap().is_empty(), "a run that goes on is left alone");
        let run = spool.run();
        drop(spool);
        let ended = unsettled(directory.path()).unwrap();
        assert_eq!(ended[0].run, run);
        assert_eq!(entries(&ended[0]), [(entry(0), first), (entry(1), second)]);
        ended[0].settled().unwrap();
        drop(ended);
        assert!(unsettled(directory.path()).unwrap().is_empty());
    }

    #[test]
    fn a_torn_or_changed_entry_ends_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path(), LIMIT, false).unwrap();
        let places: Vec<Place> =
            (0..3).map(|piece| spool.append(&entry(piece), b"sealed").unwrap().place).collect();
        let path = segment_path(&spool.directory(), 1);
        let run = spool.run();
        drop(spool);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let ended = unsettled(directory.path()).unwrap();
            assert_eq!(entries(&ended[0]).len(), cut / (whole.len() / 3), "{cut}");
        }
        let mut changed = whole.clone();
        changed[whole.len() / 3 + 30] ^= 1;
        fs::write(&path, &changed).unwrap();
        let ended = unsettled(directory.path()).unwrap();
        assert_eq!(entries(&ended[0]), [(entry(0), places[0])]);
        assert!(read(directory.path(), run, places[1]).is_none());
        assert!(read(directory.path(), run, places[2]).is_some());
    }

    #[test]
    fn a_full_spool_takes_nothing_until_old_segments_go() {
        let directory = tempfile::tempdir().unwrap();
        drop({
            let earlier = Spool::open(directory.path(), LIMIT, false).unwrap();
            earlier.append(&entry(0), &vec![0; 1_000_000]).unwrap();
            earlier
        });
        unsettled(directory.path()).unwrap()[0].settled().unwrap();
        let spool = Spool::open(directory.path(), LIMIT, false).unwrap();
        assert!(spool.ready().is_ok());
        spool.append(&entry(0), &vec![0; 100_000]).unwrap();
        assert!(
            matches!(spool.ready(), Err(SpoolError::Full { limit: LIMIT })),
            "what began has room to end"
        );
        spool.append(&entry(1), &vec![0; 15 << 20]).unwrap();
        assert!(matches!(spool.append(&entry(0), &vec![0; 2 << 20]), Err(SpoolError::Full { limit: LIMIT })));
        assert_eq!(spool.remove_before(SystemTime::UNIX_EPOCH).unwrap(), 0);
        let begun = SystemTime::now();
        assert_eq!(spool.remove_before(begun + SYNC).unwrap(), 2, "the one that was written to last, too");
        spool.append(&entry(2), &vec![0; 2 << 20]).unwrap();
        assert_eq!(spool.remove_before(begun).unwrap(), 0);
        let left = children(directory.path()).unwrap();
        assert_eq!(left, [spool.directory()], "the earlier run is gone");
    }

    #[test]
    fn the_oldest_segments_go_while_little_room_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path(), 200 << 20, false).unwrap();
        let megabytes = vec![0; 10 << 20];
        let append = |piece| spool.append(&entry(piece), &megabytes).unwrap().place;
        let places: Vec<Place> = (0..17).map(append).collect();
        assert_eq!((places[16].segment, spool.remove_oldest(true).unwrap()), (6, 0));
        append(17);
        assert_eq!(spool.remove_oldest(true).unwrap(), 1);
        let is_there = |place| read(directory.path(), spool.run(), place).is_some();
        assert_eq!([0, 2, 3, 16].map(|at: usize| is_there(places[at])), [false, false, true, true]);
    }

    #[test]
    fn what_is_in_the_segment_that_is_written_to_is_referred_to() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path(), LIMIT, false).unwrap();
        let fingerprints = Fingerprints::new().unwrap();
        let content = fingerprints.of(b"content").unwrap();
        let there = |piece| spool.refer(&entry(piece), &content).unwrap().map(|written| written.place);
        assert_eq!(there(0), None);
        let first = spool.append(&entry(1), &vec![7; 100_000]).unwrap();
        spool.share(content, first);
        assert_eq!(there(2), Some(first.place));
        assert_eq!(
            spool.refer(&entry(3), &fingerprints.of(b"other").unwrap()).unwrap().map(|it| it.place),
            None
        );
        assert_eq!(spool.saved(), 100_000 - 44);
        spool.remove_before(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(there(4), Some(first.place), "it goes on");
        spool.unarchived(SystemTime::now() + SYNC).unwrap();
        assert_eq!(there(5), None, "it is complete");
        let second = spool.append(&entry(6), b"sealed").unwrap();
        spool.share(content, second);
        // What was written to the segment before is too late.
        spool.share(content, first);
        assert_eq!(there(7), None);
        spool.share(content, second);
        assert_eq!(there(8), Some(second.place));
        spool.append(&entry(9), &vec![0; 3 << 20]).unwrap();
        assert_eq!(there(10), None, "it is long enough");
        let run = spool.run();
        drop(spool);
        let ended = unsettled(directory.path()).unwrap();
        assert_eq!(
            entries(&ended[0])[..4],
            [
                (entry(1), first.place),
                (entry(2), first.place),
                (entry(4), first.place),
                (entry(6), second.place)
            ]
        );
        let reference = Place { offset: first.place.range().end, length: 44, ..first.place };
        assert!(read_entry(directory.path(), run, reference).is_ok_and(|bytes| parse(&bytes).is_none()));
    }

    #[test]
    fn a_new_segment_begins_when_one_is_long_enough() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path(), u64::MAX, false).unwrap();
        let megabytes = vec![0; 10 << 20];
        let places: Vec<u32> =
            (0..8).map(|piece| spool.append(&entry(piece), &megabytes).unwrap().place.segment).collect();
        assert_eq!(places, [1, 1, 1, 1, 1, 1, 1, 2]);
    }
}
