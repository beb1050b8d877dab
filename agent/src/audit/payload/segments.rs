//! The spool's files: segments of entries, in a folder for each run of an agent.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use uuid::Uuid;

use super::entry::{
    Decoded, Entry, HEAD, Place, SEALED, Written, decode_reference, next_head, read_content, verified,
};
use super::spool::SpoolError;

const EXTENSION: &str = "segment";
pub const ARCHIVED: &str = "archived";
const LOCK: &str = "lock";
pub const SETTLED: &str = "settled";

/// A file of entries.
#[derive(Debug, Clone)]
pub struct Segment {
    pub run: Uuid,
    pub number: u32,
    pub path: PathBuf,
    /// Bytes.
    pub length: u64,
    pub is_archived: bool,
    pub written: SystemTime,
}

/// A run that has ended.
pub struct Ended {
    pub run: Uuid,
    directory: PathBuf,
    _lock: File,
}

impl Segment {
    /// Its run and its number.
    pub fn place(&self) -> (Uuid, u32) {
        (self.run, self.number)
    }

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
                    let Some(digest) = verified(&head, &content) else { break };
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

fn damaged(path: &Path) -> SpoolError {
    failed(path)(io::Error::new(io::ErrorKind::InvalidData, "the entry is damaged"))
}

/// Takes the lock of a run's folder, which fails while the run goes on.
pub fn lock(directory: &Path) -> Result<File, SpoolError> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(failed(&path))?;
    file.try_lock().map_err(|error| failed(&path)(error.into()))?;
    Ok(file)
}

/// The segments of all runs.
pub fn segments(root: &Path) -> Result<Vec<Segment>, SpoolError> {
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
pub fn files(directory: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let mut files = children(directory)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    files.sort();
    Ok(files)
}

pub fn children(directory: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(directory)(error)),
    }
}

pub fn segment_path(directory: &Path, segment: u32) -> PathBuf {
    directory.join(segment_name(segment))
}

/// How the file of a segment is called, in its run's folder and in the archive.
pub fn segment_name(segment: u32) -> String {
    format!("{segment:08}.{EXTENSION}")
}

fn segment_number(path: &Path) -> Option<u32> {
    path.file_stem()?.to_str()?.parse().ok()
}

pub fn sync_directory(directory: &Path) -> Result<(), SpoolError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed(directory))
}

pub fn failed(path: &Path) -> impl Fn(io::Error) -> SpoolError + use<> {
    let path = path.to_owned();
    move |source| SpoolError::Io { path: path.clone(), source: Arc::new(source) }
}
