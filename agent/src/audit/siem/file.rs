//! JSON lines in a file, for a collector on this host.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How much of a file's end is looked at at once.
const CHUNK: u64 = 64 * 1024;

/// Appends whole lines, and returns when they are on the disk. Where they would make the file larger than `max_bytes`, they
/// go into a new one, and `keep_files` older ones are kept.
pub(super) fn append(path: &Path, lines: &[u8], max_bytes: u64, keep_files: u32) -> io::Result<()> {
    let (mut file, mut size) = open(path)?;
    let more = u64::try_from(lines.len()).unwrap_or(u64::MAX);
    if size > 0 && size.saturating_add(more) > max_bytes {
        rotate(path, keep_files)?;
        (file, size) = open(path)?;
    }
    let written = file.write_all(lines).and_then(|()| file.sync_data());
    if written.is_err() {
        // Whoever reads along must not take half a line for a whole one.
        let _ = file.set_len(size);
    }
    written
}

/// Opens the file that has this name, for nobody else meanwhile, without the half line that a kill may have left.
fn open(path: &Path) -> io::Result<(File, u64)> {
    loop {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        file.lock()?;
        // An agent that this one has relieved may just have moved it away.
        if fs::metadata(path).is_ok_and(|named| named.ino() == file.metadata().map_or(0, |found| found.ino()))
        {
            let size = file.metadata()?.len();
            let whole = end_of_lines(&file, size)?;
            if whole < size {
                file.set_len(whole)?;
            }
            if size == 0 {
                sync_folder(path)?;
            }
            return Ok((file, whole));
        }
    }
}

/// Where the last line ends.
fn end_of_lines(file: &File, size: u64) -> io::Result<u64> {
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        let mut chunk = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut chunk, start)?;
        if let Some(place) = memchr::memrchr(b'\n', &chunk) {
            return Ok(start + place as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Moves each file to the next number. What had the last one is gone.
fn rotate(path: &Path, keep_files: u32) -> io::Result<()> {
    for number in (1..=keep_files).rev() {
        let from = if number == 1 { path.to_owned() } else { numbered(path, number - 1) };
        match fs::rename(&from, numbered(path, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    sync_folder(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_rotated_by_size_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trail.jsonl");
        for number in 0..9 {
            append(&path, format!("{{\"n\":{number}}}\n").as_bytes(), 20, 2).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "{\"n\":8}\n");
        assert_eq!(read(&numbered(&path, 1)), "{\"n\":6}\n{\"n\":7}\n");
        assert_eq!(read(&numbered(&path, 2)), "{\"n\":4}\n{\"n\":5}\n");
        assert!(!numbered(&path, 3).exists());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_batch_that_is_larger_than_a_file_is_written_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trail.jsonl");
        append(&path, &[b"x".repeat(100), b"\n".to_vec()].concat(), 20, 1).unwrap();
        append(&path, b"y\n", 20, 1).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"y\n");
        assert_eq!(fs::metadata(numbered(&path, 1)).unwrap().len(), 101);
    }

    #[test]
    fn what_a_kill_left_of_a_line_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trail.jsonl");
        for (torn, whole) in
            [("{\"n\":1}\n{\"n\"", "{\"n\":1}\n"), ("{\"n\"", ""), ("{\"n\":1}\n", "{\"n\":1}\n")]
        {
            fs::write(&path, torn).unwrap();
            append(&path, b"{\"n\":2}\n", 1000, 1).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{whole}{{\"n\":2}}\n"));
        }
        let long = format!("{{}}\n{}", "x".repeat(200_000));
        fs::write(&path, long).unwrap();
        append(&path, b"{}\n", 1_000_000, 1).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n{}\n");
    }

    #[test]
    fn what_is_no_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(append(folder.path(), b"{}\n", 1000, 1).is_err());
        assert!(append(Path::new("/dev/null"), b"{}\n", 1000, 1).is_err());
    }
}
