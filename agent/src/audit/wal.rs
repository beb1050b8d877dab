//! The log beside the journal's file (SQLite's `-wal`), as far as damage in it is concerned: SQLite takes the first frame
//! that is not sound for the end of the log, and silently forgets what was committed after it.
//!
//! A frame's checksum follows from the one before, as that one stands there: so each frame can be judged by itself.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::schema::beside;

const HEADER: usize = 32;
const FRAME: usize = 24;
/// Checksums over big-endian words if the last bit is set, else over little-endian ones.
const MAGIC: u32 = 0x377f_0682;
const FORMAT: u32 = 3_007_000;

type Checksum = (u32, u32);

/// The log beside a database file.
pub(super) fn path_of(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// Whether transactions that were on the disk would be forgotten. One that was being written when the machine went down,
/// the last one, is none of them.
pub(super) fn forgets(database: &Path) -> io::Result<bool> {
    let Some(mut log) = Log::open(database)? else { return Ok(false) };
    let mut is_whole = log.is_sound;
    let (mut commits, mut needed) = (0, if is_whole { 2 } else { 1 });
    while let Some(frame) = log.next()? {
        if is_whole && !frame.is_sound {
            is_whole = false;
            // The first transaction after the damage may be the one that was never finished.
            needed = 2;
        }
        commits += u32::from(!is_whole && frame.is_own && frame.is_commit());
    }
    Ok(!is_whole && commits >= needed)
}

/// Writes what is sound of a database's log as the log of another; without `all`, only as far as SQLite would read it.
pub(super) fn copy_sound(database: &Path, to: &Path, all: bool) -> io::Result<()> {
    let Some(mut log) = Log::open(database)? else { return Ok(()) };
    let mut out = BufWriter::new(File::create(path_of(to))?);
    let mut header = [0; HEADER];
    let page = u32::try_from(log.page).unwrap_or_default();
    let numbers = [MAGIC | u32::from(log.is_big), FORMAT, page, 0, log.salts.0, log.salts.1];
    for (place, number) in header.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
        *place = number.to_be_bytes();
    }
    let mut sum = checksum(log.is_big, (0, 0), header.get(..24).unwrap_or_default());
    put_checksum(&mut header, 24, sum);
    out.write_all(&header)?;
    let mut is_whole = log.is_sound;
    while let Some(mut frame) = log.next()? {
        is_whole &= frame.is_sound;
        if is_whole || (all && frame.is_sound) {
            sum = frame.checksum(log.is_big, sum);
            put_checksum(&mut frame.head, 16, sum);
            out.write_all(&frame.head)?;
            out.write_all(&frame.page)?;
        }
    }
    out.flush()
}

struct Log {
    file: BufReader<File>,
    page: usize,
    is_big: bool,
    /// Its header is as it was written.
    is_sound: bool,
    salts: (u32, u32),
    /// The checksum that the next one follows.
    before: Checksum,
    /// A frame that was looked at before its turn.
    first: Option<Frame>,
}

struct Frame {
    head: [u8; FRAME],
    page: Vec<u8>,
    is_sound: bool,
    /// It is of this log, and not left from one before it in the same file.
    is_own: bool,
}

impl Log {
    /// `None` if there is none, or nothing in it.
    fn open(database: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path_of(database)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut file = BufReader::with_capacity(1 << 20, file);
        let mut header = [0; HEADER];
        if !fill(&mut file, &mut header)? {
            return Ok(None);
        }
        let is_big = number(&header, 0) & 1 == 1;
        let before = (number(&header, 24), number(&header, 28));
        let sum = checksum(is_big, (0, 0), header.get(..24).unwrap_or_default());
        let page = number(&header, 8) as usize;
        let is_sound = number(&header, 0) & !1 == MAGIC && sum == before && is_page_size(page);
        let page = if is_sound { page } else { page_size(database)? };
        let salts = (number(&header, 16), number(&header, 20));
        let mut log = Self { file, page, is_big, is_sound, salts, before, first: None };
        if !is_page_size(page) {
            return Ok(None);
        }
        if !is_sound {
            let Some(first) = log.read()? else { return Ok(None) };
            log.salts = first.salts();
            log.is_big = false;
            log.first = Some(first);
        }
        Ok(Some(log))
    }

    fn next(&mut self) -> io::Result<Option<Frame>> {
        let frame = match self.first.take() {
            Some(first) => Some(first),
            None => self.read()?,
        };
        Ok(frame.map(|mut frame| {
            let stored = (number(&frame.head, 16), number(&frame.head, 20));
            frame.is_own = frame.salts() == self.salts && self.salts != (0, 0);
            frame.is_sound = frame.is_own && frame.checksum(self.is_big, self.before) == stored;
            self.before = stored;
            frame
        }))
    }

    fn read(&mut self) -> io::Result<Option<Frame>> {
        let mut frame = Frame { head: [0; FRAME], page: vec![0; self.page], is_sound: false, is_own: false };
        let is_there = fill(&mut self.file, &mut frame.head)? && fill(&mut self.file, &mut frame.page)?;
        Ok(is_there.then_some(frame))
    }
}

impl Frame {
    fn salts(&self) -> (u32, u32) {
        (number(&self.head, 8), number(&self.head, 12))
    }

    /// A transaction ends with it.
    fn is_commit(&self) -> bool {
        number(&self.head, 4) != 0
    }

    fn checksum(&self, is_big: bool, before: Checksum) -> Checksum {
        let sum = checksum(is_big, before, self.head.get(..8).unwrap_or_default());
        checksum(is_big, sum, &self.page)
    }
}

/// Whether there was enough to fill it.
fn fill(file: &mut impl Read, place: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(place) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        read => read.map(|()| true),
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_be_bytes).unwrap_or_default()
}

fn put_checksum(bytes: &mut [u8], at: usize, sum: Checksum) {
    for (at, half) in [(at, sum.0), (at + 4, sum.1)] {
        if let Some(place) = bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&half.to_be_bytes());
        }
    }
}

fn checksum(is_big: bool, before: Checksum, bytes: &[u8]) -> Checksum {
    let word = |word: [u8; 4]| if is_big { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) };
    let (pairs, _) = bytes.as_chunks::<8>();
    pairs.iter().fold(before, |(first, second), &[a, b, c, d, e, f, g, h]| {
        let first = first.wrapping_add(word([a, b, c, d])).wrapping_add(second);
        let second = second.wrapping_add(word([e, f, g, h])).wrapping_add(first);
        (first, second)
    })
}

fn is_page_size(size: usize) -> bool {
    size.is_power_of_two() && (512..=65536).contains(&size)
}

/// That of a database file; 0 where it has none.
fn page_size(database: &Path) -> io::Result<usize> {
    let mut head = [0; 18];
    if !fill(&mut File::open(database)?, &mut head)? {
        return Ok(0);
    }
    let size = usize::from(u16::from_be_bytes([head[16], head[17]]));
    Ok(if size == 1 { 65536 } else { size })
}
