//! The spool: sealed pieces in append-only files, each of which says whose it is.
//!
//! ```text
//! spool/<run>/lock               held by the agent that writes there
//! spool/<run>/00000001.segment   entries, one after the other
//! spool/<run>/00000001.archived  says that the segment is in the archive
//! spool/<run>/settled            says that the rows of all its entries are known, once the run has ended
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::entry::{Entry, Place, REFERENCE, SEALED, Written, encode, encode_reference};
use super::segments::{
    ARCHIVED, SETTLED, Segment, children, failed, files, lock, segment_path, segments, sync_directory,
};
use super::shared::{Fingerprint, Shared};

/// A file that has so many bytes, or its part of the room, gets no more entries.
const SEGMENT: u64 = 64 << 20;
const SEGMENTS: u64 = 8;
/// So much is left for the answers to what has begun.
const RESERVE: u64 = 16 << 20;
/// How often what was appended is brought onto the disk.
pub const SYNC: Duration = Duration::from_millis(100);
/// An entry of nothing, which shows whether there can be one.
const PROBE: Entry =
    Entry { payload: Uuid::nil(), session: Uuid::nil(), statement: Uuid::nil(), piece: 0, time: 0 };

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

impl Spool {
    /// Begins a run.
    pub fn open(root: &Path, limit: u64, has_archive: bool) -> Result<Self, SpoolError> {
        let run = Uuid::now_v7();
        let directory = root.join(run.to_string());
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed(&directory))?;
        let lock = lock(&directory)?;
        let (state, segment) = (Mutex::default(), SEGMENT.min(limit / SEGMENTS));
        let spool = Self { root: root.to_owned(), run, limit, segment, has_archive, state, _lock: lock };
        spool.count()?;
        Ok(spool)
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

    /// The segments that are complete and not in the archive, the oldest first, and how many bytes are not there in all. A segment
    /// that was begun before `time` is complete from now on.
    pub fn unarchived(&self, time: SystemTime) -> Result<(Vec<Segment>, u64), SpoolError> {
        self.close_if(|state| state.begun.is_some_and(|begun| begun < time));
        let mut segments = segments(&self.root)?;
        segments.retain(|segment| !segment.is_archived);
        let bytes = segments.iter().map(|segment| segment.length).sum();
        let current = self.current();
        segments.retain(|segment| current != Some(segment.place()) && self.has_ended(segment.run));
        segments.sort_by_key(|segment| segment.written);
        Ok((segments, bytes))
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
        let current = self.current();
        segments.retain(|segment| current != Some(segment.place()));
        Ok(segments)
    }

    /// The segment that is written to: its run and its number.
    fn current(&self) -> Option<(Uuid, u32)> {
        let state = self.state();
        state.file.is_some().then_some((self.run, state.segment))
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

#[cfg(test)]
mod tests {
    use super::super::entry::{Parsed, parse};
    use super::super::segments::{Ended, read_entry, unsettled};
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
