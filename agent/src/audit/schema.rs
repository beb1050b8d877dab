//! The tables of the journal, and how its file is opened.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};
use uuid::Uuid;

use super::{AuditError, now, salvage, wal};

/// The schema that this program writes, in `PRAGMA user_version`.
pub(super) const VERSION: i64 = 4;

/// "SNFW", in `PRAGMA application_id`.
const APPLICATION: i64 = 0x534e_4657;

/// The tables whose rows are records.
pub(super) const RECORDS: [&str; 8] =
    ["sessions", "statements", "approvals", "running", "outcomes", "events", "payloads", "checkpoints"];

/// `seq` has no gaps and counts over all tables; `time` is in microseconds since the epoch, UTC; lists are JSON arrays.
const TABLES: &str = "
CREATE TABLE journal (
    id       TEXT NOT NULL,      -- of this file: a new file has a new one
    created  INTEGER NOT NULL,
    last_seq INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
    seq               INTEGER PRIMARY KEY,
    node              TEXT NOT NULL,
    id                TEXT NOT NULL UNIQUE,
    time              INTEGER NOT NULL,
    cgroup            TEXT NOT NULL,
    pid               INTEGER NOT NULL,
    uid               INTEGER NOT NULL,
    comm              TEXT NOT NULL,
    executable        TEXT NOT NULL,
    issuer            TEXT NOT NULL,
    subject           TEXT NOT NULL,
    groups            TEXT NOT NULL,
    account           TEXT NOT NULL,
    rule              TEXT NOT NULL,
    user              TEXT NOT NULL,
    role              TEXT NOT NULL,
    snowflake_session TEXT NOT NULL,
    client            TEXT NOT NULL
) STRICT;

CREATE TABLE statements (
    seq           INTEGER PRIMARY KEY,
    node          TEXT NOT NULL,
    id            TEXT NOT NULL UNIQUE,
    session       TEXT NOT NULL,
    time          INTEGER NOT NULL,
    request_id    TEXT NOT NULL,
    cgroup        TEXT NOT NULL,
    pid           INTEGER NOT NULL,
    uid           INTEGER NOT NULL,
    comm          TEXT NOT NULL,
    executable    TEXT NOT NULL,
    issuer        TEXT NOT NULL,
    subject       TEXT NOT NULL,
    groups        TEXT NOT NULL,
    account       TEXT NOT NULL,
    user          TEXT NOT NULL,
    role          TEXT NOT NULL,
    sql           TEXT NOT NULL,
    kind          TEXT NOT NULL,
    effect        TEXT NOT NULL,
    actions       TEXT NOT NULL,
    objects       TEXT NOT NULL,
    features      TEXT NOT NULL,
    verdict       TEXT NOT NULL,
    policy        TEXT NOT NULL,
    describe_only INTEGER NOT NULL,
    binds         INTEGER NOT NULL
) STRICT;

CREATE TABLE outcomes (
    seq            INTEGER PRIMARY KEY,
    node           TEXT NOT NULL,
    statement      TEXT NOT NULL UNIQUE,
    time           INTEGER NOT NULL,
    status         TEXT NOT NULL,
    query_id       TEXT NOT NULL,
    rows           INTEGER,
    code           TEXT NOT NULL,
    message        TEXT NOT NULL,
    duration_us    INTEGER NOT NULL,
    response_bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
    seq        INTEGER PRIMARY KEY,
    node       TEXT NOT NULL,
    id         TEXT NOT NULL UNIQUE,
    time       INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    cgroup     TEXT,
    pid        INTEGER,
    uid        INTEGER,
    comm       TEXT,
    executable TEXT,
    issuer     TEXT,
    subject    TEXT,
    groups     TEXT,
    account    TEXT NOT NULL,
    detail     TEXT NOT NULL
) STRICT;

-- How far each sink is: all up to `delivered` has arrived, and (delivered, sending] may have.
CREATE TABLE cursors (
    sink      TEXT PRIMARY KEY,
    delivered INTEGER NOT NULL,
    sending   INTEGER NOT NULL
) STRICT;
";

/// What version 2 added. `running` are statements that Snowflake went on running after its first answer. `places` is a JSON array of where the pieces are in the spool's folder `run`; `statement` is the
/// nil UUID for a request without one.
const SECOND: &str = "
CREATE TABLE running (
    seq       INTEGER PRIMARY KEY,
    node      TEXT NOT NULL,
    statement TEXT NOT NULL UNIQUE,
    time      INTEGER NOT NULL,
    query_id  TEXT NOT NULL
) STRICT;

CREATE TABLE payloads (
    seq           INTEGER PRIMARY KEY,
    node          TEXT NOT NULL,
    id            TEXT NOT NULL UNIQUE,
    session       TEXT NOT NULL,
    statement     TEXT NOT NULL,
    query_id      TEXT NOT NULL,
    time          INTEGER NOT NULL,
    operation     TEXT NOT NULL,
    request_bytes INTEGER NOT NULL,
    answer_bytes  INTEGER NOT NULL,
    sealed_bytes  INTEGER NOT NULL,
    duration_us   INTEGER NOT NULL,
    ending        TEXT NOT NULL,
    run           TEXT NOT NULL,
    places        TEXT NOT NULL,
    digest        TEXT NOT NULL
) STRICT;
CREATE INDEX payloads_of_session ON payloads (session);
CREATE INDEX payloads_of_statement ON payloads (statement);
CREATE INDEX payloads_of_query ON payloads (query_id);
";

/// What version 3 added. `previous` is the seq of the record before of the same session, among its row, its statements and
/// its payloads; 0 for the first.
const THIRD: &str = "
ALTER TABLE statements ADD COLUMN previous INTEGER NOT NULL DEFAULT 0;
ALTER TABLE payloads ADD COLUMN previous INTEGER NOT NULL DEFAULT 0;
CREATE INDEX statements_of_session ON statements (session);
CREATE INDEX events_of_kind ON events (kind);

CREATE TABLE checkpoints (
    seq       INTEGER PRIMARY KEY,
    node      TEXT NOT NULL,
    number    INTEGER NOT NULL UNIQUE,
    time      INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    root      TEXT NOT NULL,
    previous  TEXT NOT NULL,
    key       TEXT NOT NULL,
    signature TEXT NOT NULL,
    digests   TEXT NOT NULL
) STRICT;
";

/// What version 4 added: what became of statements that were held for a person.
const FOURTH: &str = "
CREATE TABLE approvals (
    seq             INTEGER PRIMARY KEY,
    node            TEXT NOT NULL,
    statement       TEXT NOT NULL UNIQUE,
    time            INTEGER NOT NULL,
    ruling          TEXT NOT NULL,
    approver_issuer TEXT NOT NULL,
    approver        TEXT NOT NULL,
    reason          TEXT NOT NULL
) STRICT;
";

/// The columns of the view `trail`, of the tables of [`JOINED`].
pub(super) const TRAIL: &str = "
    s.seq,
    strftime('%Y-%m-%dT%H:%M:%S', s.time / 1000000, 'unixepoch') || printf('.%06dZ', s.time % 1000000) AS time,
    s.node, s.id, s.session, s.request_id, s.cgroup, s.pid, s.uid, s.comm, s.executable,
    s.issuer, s.subject, s.groups, s.account, coalesce(n.rule, '') AS rule, coalesce(n.client, '') AS client,
    s.user, s.role, s.sql, s.kind, s.effect, s.actions, s.objects, s.features, s.verdict, s.policy,
    s.describe_only, s.binds, coalesce(o.status, 'open') AS status, o.rows, coalesce(o.query_id, '') AS query_id,
    coalesce(o.code, '') AS code, coalesce(o.message, '') AS message, o.duration_us, o.response_bytes,
    coalesce(a.ruling, '') AS ruling, coalesce(a.approver_issuer, '') AS approver_issuer,
    coalesce(a.approver, '') AS approver, coalesce(a.reason, '') AS reason";

/// What the view `trail` has of a statement `s` besides its row.
const JOINED: &str = "LEFT JOIN outcomes o ON o.statement = s.id LEFT JOIN sessions n ON n.id = s.session
    LEFT JOIN approvals a ON a.statement = s.id";

/// The column `time` as ISO 8601, UTC.
pub(super) const ISO_TIME: &str =
    "strftime('%Y-%m-%dT%H:%M:%S', time / 1000000, 'unixepoch') || printf('.%06dZ', time % 1000000)";

/// Keeps other agents away from a journal while it lives.
pub(super) struct Lock {
    _file: File,
}

/// Makes the file and its directory where they are missing (0600, 0700), and keeps other agents out.
pub(super) fn prepare(path: &Path) -> Result<Lock, AuditError> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(AuditError::Missing(path.to_owned())),
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| AuditError::Directory { path, source: Arc::new(source) }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
    let lock_path = beside(path, ".lock");
    let lock = private_file(&lock_path).map_err(failed(&lock_path))?;
    lock.try_lock().map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => AuditError::Locked(path.to_owned()),
        std::fs::TryLockError::Error(source) => failed(&lock_path)(source),
    })?;
    salvage::finish(path).map_err(failed(path))?;
    private_file(path).map_err(failed(path))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed(directory))?;
    Ok(Lock { _file: lock })
}

/// Opens the journal to write it; creates the tables in an empty file. `check` reads the whole of it, to find damage.
pub(super) fn open(path: &Path, check: bool) -> Result<Connection, AuditError> {
    let failed = |source| AuditError::Directory { path: path.to_owned(), source: Arc::new(source) };
    // Before anybody opens it: that may end the log where it is damaged.
    if check && wal::forgets(path).map_err(failed)? {
        return Err(damaged(path, "its log: what was committed last would be forgotten"));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|error| unreadable(path, error))?;
    // What is damaged stays as it is.
    let keep_log = |keep| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep);
    keep_log(check).map_err(|error| unreadable(path, error))?;
    configure(&connection).map_err(|error| unreadable(path, error))?;
    if check {
        check_damage(path, &connection)?;
    }
    let found = version(path, &connection)?;
    let brought_up = match found {
        None => create(&mut connection),
        Some(found) => migrate(&mut connection, found),
    };
    brought_up.map_err(AuditError::write)?;
    if check {
        check_end(path, &connection)?;
    }
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        .map_err(|error| unreadable(path, error))?;
    Ok(connection)
}

/// Makes a journal in a file that is not there, to be filled: nothing of it is on the disk before its owner sees to it.
pub(super) fn open_unsynced(path: &Path) -> Result<Connection, AuditError> {
    let failed = |source| AuditError::Directory { path: path.to_owned(), source: Arc::new(source) };
    private_file(path).map_err(failed)?;
    let mut connection = Connection::open(path).map_err(|error| unreadable(path, error))?;
    connection
        .pragma_update(None, "journal_mode", "OFF")
        .and_then(|()| connection.pragma_update(None, "synchronous", "OFF"))
        .and_then(|()| create(&mut connection))
        .map_err(AuditError::write)?;
    Ok(connection)
}

/// Opens the journal to read it, whether an agent has it open or not.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, AuditError> {
    match path.metadata() {
        Ok(found) if found.is_file() => {}
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(AuditError::Directory { path: path.to_owned(), source: Arc::new(source) });
        }
        _ => return Err(AuditError::Missing(path.to_owned())),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| unreadable(path, error))?;
    let settings = connection
        .busy_timeout(Duration::from_secs(10))
        .and_then(|()| connection.pragma_update(None, "query_only", true));
    settings.map_err(|error| unreadable(path, error))?;
    match version(path, &connection)? {
        Some(_) => Ok(connection),
        None => Err(AuditError::Missing(path.to_owned())),
    }
}

/// Reads the journal on a thread where that may block.
pub(super) async fn read<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce(&Connection) -> Result<T, AuditError> + Send + 'static,
) -> Result<T, AuditError> {
    let path = path.to_owned();
    let task = tokio::task::spawn_blocking(move || read(&open_read_only(&path)?));
    // It is cancelled only when the runtime ends.
    task.await.unwrap_or(Err(AuditError::Closed))
}

/// The identifier of this journal file.
pub(super) fn identifier(connection: &Connection) -> Result<Uuid, AuditError> {
    let text: String =
        connection.query_row("SELECT id FROM journal", [], |row| row.get(0)).map_err(AuditError::read)?;
    Uuid::parse_str(&text).map_err(|_| AuditError::Corrupt {
        path: connection.path().map(PathBuf::from).unwrap_or_default(),
        detail: "its identifier is not a UUID".to_owned(),
    })
}

/// The number that was given last.
pub(super) fn last_seq(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("SELECT last_seq FROM journal")?.query_row([], |row| row.get(0))
}

/// The first record.
pub(super) fn first_seq(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    first_after(connection, i64::MIN)
}

/// The first record after `seq`.
pub(super) fn first_after(connection: &Connection, seq: i64) -> rusqlite::Result<Option<i64>> {
    let firsts = RECORDS.map(|table| format!("SELECT min(seq) AS seq FROM {table} WHERE seq > ?1"));
    let sql = format!("SELECT min(seq) FROM ({})", firsts.join(" UNION ALL "));
    connection.query_row(&sql, [seq], |row| row.get(0))
}

/// When the first record was that is not before `seq`, less a day, as clocks are set; 0 where there is none.
pub(super) fn first_time(connection: &Connection, seq: i64) -> rusqlite::Result<i64> {
    const DAY: i64 = 24 * 60 * 60 * 1_000_000;
    let firsts = RECORDS.map(|table| {
        format!("SELECT * FROM (SELECT seq, time FROM {table} WHERE seq >= ?1 ORDER BY seq LIMIT 1)")
    });
    let sql = format!("SELECT time FROM ({}) ORDER BY seq LIMIT 1", firsts.join(" UNION ALL "));
    let time: Option<i64> = connection.query_row(&sql, [seq], |row| row.get(0)).optional()?;
    Ok(time.map_or(0, |time| time.saturating_sub(DAY).max(0)))
}

/// Whether this number is another record's than the one of that time, or none's yet. What has left, or is lost, says nothing.
pub(super) fn is_another(connection: &Connection, seq: i64, time: i64) -> rusqlite::Result<bool> {
    let others = RECORDS.map(|table| format!("SELECT 1 FROM {table} WHERE seq = ?1 AND time <> ?2"));
    Ok(seq > last_seq(connection)? || connection.prepare(&others.join(" UNION ALL "))?.exists([seq, time])?)
}

/// The file of the same name with something behind it.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Opens a file that only its owner may read, and makes it so where it was not.
fn private_file(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // A reader can hold the log back; it shrinks again to this size once the reader is gone.
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn check_damage(path: &Path, connection: &Connection) -> Result<(), AuditError> {
    let answer: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| unreadable(path, error))?;
    if answer == "ok" {
        return Ok(());
    }
    Err(damaged(path, answer.lines().last().unwrap_or_default()))
}

/// The last record is always there: nothing removes it.
fn check_end(path: &Path, connection: &Connection) -> Result<(), AuditError> {
    let lasts = RECORDS.map(|table| format!("SELECT max(seq) AS seq FROM {table}")).join(" UNION ALL ");
    let sql = format!("SELECT last_seq, (SELECT coalesce(max(seq), 0) FROM ({lasts})) FROM journal");
    let (said, found): (i64, i64) = connection
        .query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(|error| unreadable(path, error))?;
    if said == found {
        return Ok(());
    }
    Err(damaged(path, &format!("its last record is {found}, and should be {said}")))
}

fn damaged(path: &Path, detail: &str) -> AuditError {
    AuditError::Corrupt { path: path.to_owned(), detail: detail.to_owned() }
}

/// The schema's version; `None` for an empty file.
pub(super) fn version(path: &Path, connection: &Connection) -> Result<Option<i64>, AuditError> {
    let pragma = |name: &str| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|error| unreadable(path, error))
    };
    match (pragma("application_id")?, pragma("user_version")?) {
        (APPLICATION, found) if found > VERSION => {
            Err(AuditError::Newer { path: path.to_owned(), found, known: VERSION })
        }
        (APPLICATION, found) => Ok(Some(found)),
        (0, 0) if pragma("schema_version")? == 0 => Ok(None),
        _ => Err(AuditError::NotAJournal(path.to_owned())),
    }
}

/// The tables, views and indexes that are not as [`create`] makes them.
pub(super) fn foreign(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let all = |connection: &Connection| {
        let mut query =
            connection.prepare("SELECT type || ' ' || name, sql FROM sqlite_master ORDER BY 1")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<rusqlite::Result<BTreeSet<(String, Option<String>)>>>()
    };
    let model = Connection::open_in_memory()?;
    create_tables(&model)?;
    let (found, expected) = (all(connection)?, all(&model)?);
    let names = found.symmetric_difference(&expected).map(|(name, _)| name.clone());
    Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
}

fn create_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(TABLES)?;
    connection.execute_batch(SECOND)?;
    connection.execute_batch(THIRD)?;
    connection.execute_batch(FOURTH)?;
    create_view(connection)
}

fn create_view(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("CREATE VIEW trail AS SELECT {TRAIL} FROM statements s {JOINED}"))
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    create_tables(&transaction)?;
    transaction.execute(
        "INSERT INTO journal (id, created, last_seq) VALUES (?1, ?2, 0)",
        (Uuid::new_v4().to_string(), now()),
    )?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// Brings a journal of an earlier version up to this one.
fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    if found == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if found < 2 {
        transaction.execute_batch(SECOND)?;
    }
    if found < 3 {
        transaction.execute_batch(THIRD)?;
    }
    transaction.execute_batch(FOURTH)?;
    transaction.execute_batch("DROP VIEW trail")?;
    create_view(&transaction)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

fn unreadable(path: &Path, error: rusqlite::Error) -> AuditError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase) => AuditError::NotAJournal(path.to_owned()),
        Some(rusqlite::ErrorCode::DatabaseCorrupt) => damaged(path, &error.to_string()),
        _ => AuditError::read(error),
    }
}
