//! What can be read of a damaged journal, in a new file that takes its place.
//!
//! The damaged file is set aside as it is, and never touched again. What is kept keeps its number, so that what is missing
//! shows: to verification for ever, and in an event (`journal_salvaged`), which excuses nothing.
//!
//! Whenever this is interrupted, the damaged journal or the new one is there, and never one with the log of the other:
//! once the new one is whole, its name says so, and the next start finishes what is left to do ([`finish`]).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, ToSql, params_from_iter};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::schema::beside;
use super::store::{Store, Write};
use super::{AuditError, Event, EventKind, retention, schema, wal};

/// Runs of missing records that are told one by one.
const RUNS: usize = 100;
/// Of which so many fit into a line.
const TOLD: usize = 10;
/// How often it is tried to get past damage, in each table.
const TRIES: u32 = 200_000;
/// No number is further beyond the last one of the journal than what its log may have held.
const BEYOND: i64 = 1 << 32;
/// Columns that are lists: whoever reads them must find one.
const LISTS: [&str; 5] = ["actions", "features", "groups", "objects", "places"];

/// The detail of the event `journal_salvaged`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Salvage {
    /// Where the damaged file is.
    pub set_aside: PathBuf,
    /// What was found to be wrong with it.
    pub damage: String,
    /// The new journal has nothing of it, not even its identifier.
    pub is_new: bool,
    /// Records that it has, by table.
    pub kept: BTreeMap<String, u64>,
    /// How many records should be there, and are not.
    pub missing: u64,
    /// Which: the first and the last of each run.
    pub runs: Vec<(i64, i64)>,
    /// Runs that are not listed.
    pub more_runs: u64,
}

impl fmt::Display for Salvage {
    /// In one line; the first runs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set_aside, is_new, kept, missing, runs, .. } = self;
        let aside = set_aside.display();
        if *is_new {
            return write!(f, "nothing of it was kept, the damaged file is {aside}");
        }
        write!(f, "{} records were kept, {missing} are missing", kept.values().sum::<u64>())?;
        for (number, (first, last)) in runs.iter().take(TOLD).enumerate() {
            write!(f, "{}{first}", if number == 0 { " (" } else { ", " })?;
            if first != last {
                write!(f, " to {last}")?;
            }
        }
        let end = match runs.len() {
            0 => "",
            1..=TOLD => ")",
            _ => ", …)",
        };
        write!(f, "{end}, the damaged file is {aside}")
    }
}

/// Puts what can be read of a journal in its place. Blocks. On failure nothing is changed.
pub fn salvage(path: &Path, node: &str, damage: &str) -> Result<Salvage, AuditError> {
    replace(path, node, damage, |new, told| {
        let reading = Reading::open(path)?;
        let source = &reading.connection;
        let (id, created, last): (String, i64, i64) = source
            .query_row("SELECT id, created, last_seq FROM journal", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .map_err(|error| unsalvageable(path, &error))?;
        if Uuid::parse_str(&id).is_err() || !(0..=i64::MAX - 2 * BEYOND).contains(&last) {
            return Err(unsalvageable(path, &"its identifier or its last number is destroyed"));
        }
        let most = greatest(source, last);
        let transaction = new.transaction().map_err(AuditError::write)?;
        for table in schema::RECORDS {
            let kept = Table::new(source, &transaction, table, "seq")?.copy(most)?;
            told.kept.insert(table.to_owned(), kept);
        }
        // A sink whose place is lost gets everything again, and knows it by its numbers.
        Table::new(source, &transaction, "cursors", "rowid")?.copy(i64::from(u16::MAX))?;
        transaction
            .execute(
                "DELETE FROM cursors WHERE delivered NOT BETWEEN 0 AND ?1 OR sending NOT BETWEEN 0 AND ?1",
                [most],
            )
            .and_then(|_| {
                transaction
                    .execute("UPDATE journal SET id = ?1, created = ?2, last_seq = ?3", (&id, created, most))
            })
            .map_err(AuditError::write)?;
        tell_missing(&transaction, most, told).map_err(AuditError::read)?;
        transaction.commit().map_err(AuditError::write)
    })
}

/// Begins a new journal in the place of one of which nothing can be read.
pub fn begin_anew(path: &Path, node: &str, damage: &str) -> Result<Salvage, AuditError> {
    replace(path, node, damage, |_, told| {
        told.is_new = true;
        Ok(())
    })
}

/// Finishes what was interrupted, if the new file is whole. Its user has the lock.
pub(super) fn finish(path: &Path) -> io::Result<()> {
    let new = beside(path, ".salvaged");
    if !new.exists() {
        return Ok(());
    }
    // First of all the log: it must not be read with another file than its own.
    remove(&wal::path_of(path))?;
    remove(&beside(path, "-shm"))?;
    sync_folder(path)?;
    fs::rename(&new, path)?;
    sync_folder(path)
}

/// Has a new file filled, sets the old one aside, and puts the new one in its place.
fn replace(
    path: &Path,
    node: &str,
    damage: &str,
    fill: impl FnOnce(&mut Connection, &mut Salvage) -> Result<(), AuditError>,
) -> Result<Salvage, AuditError> {
    let failed =
        |source: io::Error| AuditError::Directory { path: path.to_owned(), source: Arc::new(source) };
    let _lock = schema::prepare(path)?;
    let building = beside(path, ".salvaging");
    remove(&building).map_err(failed)?;
    let mut told = Salvage { damage: damage.to_owned(), set_aside: free_name(path), ..Salvage::default() };
    let built = (|| {
        let mut new = schema::open_unsynced(&building)?;
        fill(&mut new, &mut told)?;
        let mut store = Store::new(new, node.to_owned());
        let open = store.open_statements()?;
        let detail = serde_json::to_string(&told).unwrap_or_default();
        let event = Write::Records(vec![Event::new(EventKind::JournalSalvaged, detail).into()]);
        let settle = Write::Settle {
            statements: open,
            message: "its outcome was in a part of the journal that was damaged, or the agent ended before it did",
        };
        store.commit([&event, &settle].into_iter()).map(drop)
    })();
    if let Err(error) = built {
        // The error is what matters.
        let _ = remove(&building);
        return Err(error);
    }
    let swap = || {
        File::open(&building)?.sync_all()?;
        fs::hard_link(path, &told.set_aside)?;
        if wal::path_of(path).exists() {
            fs::hard_link(wal::path_of(path), wal::path_of(&told.set_aside))?;
        }
        sync_folder(path)?;
        fs::rename(&building, beside(path, ".salvaged"))?;
        sync_folder(path)?;
        finish(path)
    };
    swap().map_err(failed)?;
    Ok(told)
}

/// A damaged journal, to be read: the very file, with what is sound of its log.
struct Reading {
    path: PathBuf,
    connection: Connection,
}

impl Reading {
    fn open(journal: &Path) -> Result<Self, AuditError> {
        let path = beside(journal, ".reading");
        let failed =
            |source: io::Error| AuditError::Directory { path: path.clone(), source: Arc::new(source) };
        Self::remove(&path).map_err(failed)?;
        let forgets = wal::forgets(journal).map_err(failed)?;
        fs::hard_link(journal, &path).map_err(failed)?;
        wal::copy_sound(journal, &path, forgets).map_err(failed)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags)
            .and_then(|connection| {
                connection.pragma_update(None, "trusted_schema", false).map(|()| connection)
            })
            .map_err(|error| unsalvageable(journal, &error));
        match connection
            .and_then(|connection| schema::version(journal, &connection).map(|found| (connection, found)))
        {
            Ok((connection, Some(_))) => Ok(Self { path, connection }),
            Ok((_, None)) => Err(unsalvageable(journal, &"it is empty")),
            Err(error) => {
                // The error is what matters.
                let _ = Self::remove(&path);
                Err(error)
            }
        }
    }

    fn remove(path: &Path) -> io::Result<()> {
        ["", "-wal", "-shm"].iter().try_for_each(|suffix| remove(&beside(path, suffix)))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // What stays is removed by the next one.
        let _ = Self::remove(&self.path);
    }
}

/// A table of the damaged journal, and the same of the new one.
struct Table<'c> {
    source: &'c Connection,
    target: &'c Connection,
    key: &'static str,
    select: String,
    insert: String,
    lists: Vec<usize>,
    kept: u64,
}

/// Why reading stopped.
enum Stopped {
    Damage,
    /// Nothing to do with the damage.
    Error(AuditError),
}

impl<'c> Table<'c> {
    fn new(
        source: &'c Connection,
        target: &'c Connection,
        name: &str,
        key: &'static str,
    ) -> Result<Self, AuditError> {
        // An earlier version had fewer columns, and fewer tables.
        let (old, new) = (columns(source, name)?, columns(target, name)?);
        let columns: Vec<String> = new.into_iter().filter(|column| old.contains(column)).collect();
        let lists = (0..columns.len())
            .filter(|column| columns.get(*column).is_some_and(|name| LISTS.contains(&name.as_str())))
            .collect();
        let (names, places) = (columns.join(", "), vec!["?"; columns.len()].join(", "));
        Ok(Self {
            source,
            target,
            key,
            select: if old.is_empty() {
                String::new()
            } else {
                format!("SELECT {names}, {key} FROM {name} WHERE {key} BETWEEN ?1 AND ?2 ORDER BY {key}")
            },
            insert: format!("INSERT OR IGNORE INTO {name} ({names}) VALUES ({places})"),
            lists,
            kept: 0,
        })
    }

    /// Copies the rows up to `most`, around what is damaged: from both ends up to the damage, and then, by halves, what is
    /// between. Returns how many.
    fn copy(mut self, most: i64) -> Result<u64, AuditError> {
        let mut ranges = VecDeque::from([(1, most)]);
        let mut tries = 0;
        while let Some((mut first, mut last)) = ranges.pop_front() {
            if first > last || self.select.is_empty() || tries > TRIES {
                continue;
            }
            tries += 1;
            if self.walk(&mut first, &mut last, true)? || first > last {
                continue;
            }
            if self.walk(&mut first, &mut last, false)? || first >= last {
                continue;
            }
            let middle = first + (last - first) / 2;
            ranges.extend([(first, middle), (middle + 1, last)]);
        }
        Ok(self.kept)
    }

    /// Copies rows from one end of a range on, and takes them off it. Says whether it came to the other end.
    fn walk(&mut self, first: &mut i64, last: &mut i64, is_up: bool) -> Result<bool, AuditError> {
        match self.rows(first, last, is_up) {
            Ok(()) => Ok(true),
            Err(Stopped::Damage) => Ok(false),
            Err(Stopped::Error(error)) => Err(error),
        }
    }

    fn rows(&mut self, first: &mut i64, last: &mut i64, is_up: bool) -> Result<(), Stopped> {
        let sql = format!("{}{}", self.select, if is_up { "" } else { " DESC" });
        let mut query = self.source.prepare_cached(&sql).map_err(stopped)?;
        let mut rows = query.query([*first, *last]).map_err(stopped)?;
        while let Some(row) = rows.next().map_err(stopped)? {
            let key: i64 = row.get(self.key).map_err(stopped)?;
            if !(*first..=*last).contains(&key) {
                return Err(Stopped::Damage);
            }
            if self.is_readable(row) {
                self.kept += self.insert(row)?;
            }
            if is_up {
                *first = key + 1;
            } else {
                *last = key - 1;
            }
        }
        Ok(())
    }

    /// Whether everybody can read it: what it is, verification judges.
    fn is_readable(&self, row: &Row<'_>) -> bool {
        let count = row.as_ref().column_count();
        let is_text = |column| match row.get_ref(column) {
            Ok(ValueRef::Text(text)) => std::str::from_utf8(text).is_ok(),
            value => value.is_ok(),
        };
        let is_list = |column: &usize| match row.get_ref(*column) {
            Ok(ValueRef::Text(text)) => serde_json::from_slice::<Vec<serde_json::Value>>(text).is_ok(),
            value => value.is_ok(),
        };
        (0..count).all(is_text) && self.lists.iter().all(is_list)
    }

    fn insert(&self, row: &Row<'_>) -> Result<u64, Stopped> {
        let count = row.as_ref().column_count().saturating_sub(1);
        let values: Vec<Cell<'_>> = (0..count)
            .map(|column| row.get_ref(column).map(Cell))
            .collect::<Result<_, _>>()
            .map_err(stopped)?;
        let mut insert = self
            .target
            .prepare_cached(&self.insert)
            .map_err(|error| Stopped::Error(AuditError::write(error)))?;
        match insert.execute(params_from_iter(values)) {
            Ok(inserted) => Ok(inserted as u64),
            // It is no row of this table: the damage led to it.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Ok(0),
            Err(error) => Err(Stopped::Error(AuditError::write(error))),
        }
    }
}

struct Cell<'r>(ValueRef<'r>);

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}

fn columns(connection: &Connection, table: &str) -> Result<Vec<String>, AuditError> {
    let mut query = connection.prepare("SELECT name FROM pragma_table_info(?1)").map_err(AuditError::read)?;
    let names = query.query_map([table], |row| row.get(0)).map_err(AuditError::read)?;
    names.collect::<Result<_, _>>().map_err(AuditError::read)
}

/// The greatest number that anything in a journal has, so that none is used twice. What cannot be read has none.
fn greatest(source: &Connection, last: i64) -> i64 {
    let of = |sql: &str| source.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).ok().flatten();
    let tables = schema::RECORDS.map(|table| of(&format!("SELECT max(seq) FROM {table}")));
    let cursors = of("SELECT max(max(delivered, sending)) FROM cursors");
    let seen = tables.into_iter().chain([cursors]).flatten();
    seen.filter(|seen| *seen <= last.saturating_add(BEYOND)).fold(last, i64::max)
}

/// Which records are not in the new journal, of those that left it in their time apart.
fn tell_missing(new: &Connection, most: i64, told: &mut Salvage) -> rusqlite::Result<()> {
    let first = schema::first_seq(new)?.unwrap_or(most.saturating_add(1));
    let mut next = match retention::latest(new, i64::MAX)? {
        Some(announced) if announced.removal.through < first => announced.removal.through + 1,
        Some(_) => first,
        None => 1,
    };
    let mut note = |first: i64, last: i64| {
        if first <= last {
            told.missing += u64::try_from(last - first + 1).unwrap_or_default();
            if told.runs.len() < RUNS {
                told.runs.push((first, last));
            } else {
                told.more_runs += 1;
            }
        }
    };
    let seqs = schema::RECORDS.map(|table| format!("SELECT seq FROM {table}")).join(" UNION ALL ");
    let mut query = new.prepare(&format!("{seqs} ORDER BY seq"))?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        note(next, seq - 1);
        next = seq + 1;
    }
    note(next, most);
    Ok(())
}

fn stopped(error: rusqlite::Error) -> Stopped {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::SystemIoFailure) => Stopped::Damage,
        _ => Stopped::Error(AuditError::read(error)),
    }
}

fn unsalvageable(path: &Path, why: &dyn std::fmt::Display) -> AuditError {
    AuditError::Unsalvageable { path: path.to_owned(), why: why.to_string() }
}

/// A name for the file that is set aside which no other has.
fn free_name(path: &Path) -> PathBuf {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(['-', ':'], "");
    let name = beside(path, &format!(".damaged-{time}"));
    let more = (2..1000).map(|number| beside(&name, &format!("-{number}")));
    std::iter::once(name.clone()).chain(more).find(|name| !name.exists()).unwrap_or(name)
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests;
