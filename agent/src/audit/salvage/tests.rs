use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::audit::chain::{JournalSource, Notary, Problem, Report, SigningKey, verify};
use crate::audit::samples::{event, outcome, session, statement};
use crate::audit::store::Cursor;
use crate::audit::{Journal, Record, Verdict};

const PAGE: u64 = 4096;

/// A folder with a journal of a few hundred pages, all of it signed; closed.
struct Filled {
    folder: tempfile::TempDir,
    key: SigningKey,
}

impl Filled {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::open(&folder.path().join("audit.key")).unwrap();
        let filled = Self { folder, key };
        let journal = Journal::open(&filled.path(), "node").unwrap();
        filled.append(&journal, 300).await;
        journal.save_cursor("clickhouse", Cursor { delivered: 200, sending: 250 }).await.unwrap();
        journal.close().await;
        filled
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("journal.db")
    }

    /// Statements, each with its outcome, and a checkpoint.
    async fn append(&self, journal: &Journal, statements: usize) {
        let session = session();
        let id = session.id;
        journal.append(vec![session.into()]).await.unwrap();
        for number in 0..statements {
            let one = statement(id, &format!("select {number} {}", "x".repeat(500)), Verdict::Allow);
            let end = outcome(one.id);
            journal.append(vec![one.into(), end.into()]).await.unwrap();
        }
        Notary::new(journal.clone(), self.key.clone()).sign().await.unwrap();
    }

    fn report(&self) -> Report {
        let mut source = JournalSource::open(&self.path()).unwrap();
        verify(&mut source, &[self.key.public()], None, |_, _| {}).unwrap()
    }

    fn ask<T: rusqlite::types::FromSql>(&self, sql: &str) -> Vec<T> {
        ask(&self.path(), sql)
    }

    /// The pages that a table has, as SQLite counts them.
    fn leaves_of(&self, table: &str) -> Vec<u64> {
        let bytes = fs::read(self.path()).unwrap();
        let root: i64 = self.ask(&format!("SELECT rootpage FROM sqlite_master WHERE name = '{table}'"))[0];
        let mut leaves = Vec::new();
        collect_leaves(&bytes, usize::try_from(root).unwrap(), &mut leaves);
        leaves
    }

    fn destroy(&self, page: u64) {
        let mut bytes = fs::read(self.path()).unwrap();
        let at = usize::try_from((page - 1) * PAGE).unwrap();
        bytes[at..at + 4096].fill(0x5a);
        fs::write(self.path(), bytes).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn ask<T: rusqlite::types::FromSql>(path: &Path, sql: &str) -> Vec<T> {
    let connection = schema::open_read_only(path).unwrap();
    let mut query = connection.prepare(sql).unwrap();
    query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

fn collect_leaves(bytes: &[u8], page: usize, leaves: &mut Vec<u64>) {
    let head = &bytes[(page - 1) * 4096..page * 4096];
    if head[0] != 5 {
        leaves.push(page as u64);
        return;
    }
    let cells = usize::from(u16::from_be_bytes([head[3], head[4]]));
    for cell in 0..cells {
        let at = usize::from(u16::from_be_bytes([head[12 + 2 * cell], head[13 + 2 * cell]]));
        let child = u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        collect_leaves(bytes, child as usize, leaves);
    }
    collect_leaves(bytes, u32::from_be_bytes(head[8..12].try_into().unwrap()) as usize, leaves);
}

fn missing(report: &Report) -> Vec<(i64, i64)> {
    let of = |problem: &Problem| match problem {
        Problem::Missing { first, last } => Some((*first, *last)),
        _ => None,
    };
    report.problems.iter().filter_map(of).collect()
}

#[tokio::test]
async fn what_is_not_damaged_is_kept_and_what_is_missing_is_told() {
    let filled = Filled::new().await;
    let before: Vec<i64> = filled.ask("SELECT seq FROM statements UNION SELECT seq FROM outcomes UNION SELECT seq FROM sessions UNION SELECT seq FROM checkpoints");
    let id: String = filled.ask::<String>("SELECT id FROM journal").remove(0);
    let leaves = filled.leaves_of("statements");
    for leaf in [leaves[3], leaves[4], leaves[20], leaves[40]] {
        filled.destroy(leaf);
    }
    let damaged = fs::read(filled.path()).unwrap();
    assert!(matches!(Journal::open(&filled.path(), "node"), Err(AuditError::Corrupt { .. })));

    let journal = Journal::open_salvaged(&filled.path(), "node").unwrap();
    assert_eq!((journal.id().to_string(), journal.salvages()), (id, 1));
    let detail: String =
        filled.ask::<String>("SELECT detail FROM events WHERE kind = 'journal_salvaged'").remove(0);
    let told: Salvage = serde_json::from_str(&detail).unwrap();
    let lost = told.missing;
    assert!((10..60).contains(&lost), "four pages were destroyed: {told:?}");
    assert_eq!(told.kept.values().sum::<u64>() + lost, before.len() as u64);
    assert_eq!(told.kept["outcomes"], 300);
    assert_eq!(fs::read(&told.set_aside).unwrap(), damaged, "it is set aside as it was");
    assert_eq!(fs::metadata(&told.set_aside).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!filled.files().iter().any(|name| name.contains("reading") || name.contains("salvag")));

    // The event that says so excuses nothing, signed or not.
    let unsigned = filled.report();
    assert_eq!(missing(&unsigned), told.runs);
    filled.append(&journal, 5).await;
    let report = filled.report();
    assert_eq!(missing(&report), told.runs);
    assert_eq!(report.problems.len(), told.runs.len(), "nothing else is wrong: {:?}", report.problems);
    assert_eq!(report.salvages[0].salvage, told);
    assert_eq!(filled.ask::<i64>("SELECT delivered + sending FROM cursors"), [450]);
    let next: i64 = filled.ask::<i64>("SELECT min(seq) FROM events").remove(0);
    assert_eq!(next, before.last().unwrap() + 1, "no number is used twice");
    journal.close().await;
    Journal::open(&filled.path(), "node").unwrap().close().await;
}

#[tokio::test]
async fn whichever_page_is_destroyed_nothing_is_silent_and_no_number_is_used_twice() {
    let filled = Filled::new().await;
    let whole = fs::read(filled.path()).unwrap();
    let last: i64 = filled.ask::<i64>("SELECT last_seq FROM journal").remove(0);
    let (mut salvaged, mut refused) = (0, 0);
    // The first ones are the roots of everything; of the others, some.
    let pages = whole.len() as u64 / PAGE;
    for page in (1..=40).chain((41..=pages).step_by(17)) {
        fs::write(filled.path(), &whole).unwrap();
        filled.destroy(page);
        match salvage(&filled.path(), "node", "test") {
            Ok(told) => {
                salvaged += 1;
                let kept = told.kept.values().sum::<u64>();
                assert_eq!(kept + told.missing, u64::try_from(last).unwrap(), "page {page}: {told:?}");
                let first: Vec<i64> =
                    filled.ask("SELECT min(seq) FROM events WHERE kind = 'journal_salvaged'");
                assert_eq!(first, [last + 1], "page {page}");
                Journal::open(&filled.path(), "node").unwrap().close().await;
                assert_eq!(missing(&filled.report()).is_empty(), told.missing == 0, "page {page}");
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("--begin-anew"), "page {page}: {error}");
                let mut damaged = whole.clone();
                let at = usize::try_from((page - 1) * PAGE).unwrap();
                damaged[at..at + 4096].fill(0x5a);
                assert!(fs::read(filled.path()).unwrap() == damaged, "page {page}: nothing was changed");
                assert!(
                    !filled.files().iter().any(|name| name.contains("reading") || name.contains("salvag"))
                );
            }
        }
        for name in filled.files().iter().filter(|name| name.starts_with("journal.db")) {
            fs::remove_file(filled.folder.path().join(name)).unwrap();
        }
    }
    assert!(salvaged > 40 && refused > 0 && refused < 5, "{salvaged} salvaged, {refused} refused");
}

#[tokio::test]
async fn a_lost_checkpoint_s_number_is_not_given_again() {
    let filled = Filled::new().await;
    let journal = Journal::open(&filled.path(), "node").unwrap();
    for _ in 0..3 {
        filled.append(&journal, 2).await;
    }
    journal.close().await;
    let newest: i64 = filled.ask::<i64>("SELECT max(number) FROM checkpoints").remove(0);
    // The last checkpoints are on the last page of their table.
    filled.destroy(*filled.leaves_of("checkpoints").last().unwrap());
    let journal = Journal::open_salvaged(&filled.path(), "node").unwrap();
    let left: i64 = filled.ask::<i64>("SELECT coalesce(max(number), 0) FROM checkpoints").remove(0);
    assert!(left < newest, "the newest was lost");
    filled.append(&journal, 2).await;
    let next: i64 =
        filled.ask::<i64>(&format!("SELECT min(number) FROM checkpoints WHERE number > {left}")).remove(0);
    assert!(next > newest, "{next} may be another checkpoint than ClickHouse has");
    let report = filled.report();
    assert!(report.problems.iter().any(|problem| matches!(problem, Problem::CheckpointMissing { .. })));
    filled.append(&journal, 2).await;
    let numbers: Vec<i64> =
        filled.ask(&format!("SELECT number FROM checkpoints WHERE number >= {next} ORDER BY 1"));
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "then they go on by one: {numbers:?}");
}

#[tokio::test]
async fn statements_whose_outcome_is_lost_get_one_that_says_so() {
    let filled = Filled::new().await;
    filled.destroy(filled.leaves_of("outcomes")[2]);
    Journal::open_salvaged(&filled.path(), "node").unwrap().close().await;
    let settled: Vec<String> =
        filled.ask("SELECT status || ': ' || message FROM outcomes WHERE status = 'unknown'");
    assert!(settled.len() > 5 && settled[0].contains("damaged"), "{settled:?}");
    assert_eq!(filled.ask::<i64>("SELECT count(*) FROM trail WHERE status = 'open'"), [0]);
}

/// A journal as a killed agent leaves it: its last transactions are in the log alone.
async fn with_a_log(filled: &Filled) -> Vec<String> {
    let copy = tempfile::tempdir().unwrap();
    let journal = Journal::open(&filled.path(), "node").unwrap();
    let records: Vec<Record> = (0..20).map(|_| event(EventKind::NoFlow).into()).collect();
    for record in records {
        journal.append(vec![record]).await.unwrap();
    }
    for name in ["journal.db", "journal.db-wal"] {
        fs::copy(filled.folder.path().join(name), copy.path().join(name)).unwrap();
    }
    let ids = filled.ask("SELECT id FROM events ORDER BY seq");
    journal.close().await;
    for name in ["journal.db", "journal.db-wal"] {
        fs::copy(copy.path().join(name), filled.folder.path().join(name)).unwrap();
    }
    ids
}

/// The frames of a log.
fn frames(filled: &Filled) -> usize {
    (fs::read(wal::path_of(&filled.path())).unwrap().len() - 32) / (24 + 4096)
}

fn flip(filled: &Filled, at: usize) {
    let log = wal::path_of(&filled.path());
    let mut bytes = fs::read(&log).unwrap();
    bytes[at] ^= 4;
    fs::write(log, bytes).unwrap();
}

#[tokio::test]
async fn what_was_committed_after_a_damaged_frame_of_the_log_is_kept() {
    for at in [12, 20, 32 + 3, 32 + 24 + 4000, 32 + 10 * (24 + 4096) + 24 + 77, 32 + 11 * (24 + 4096) + 9] {
        let filled = Filled::new().await;
        let ids = with_a_log(&filled).await;
        assert!(frames(&filled) > 40, "{}", frames(&filled));
        flip(&filled, at);
        let damaged = fs::read(wal::path_of(&filled.path())).unwrap();
        let error = Journal::open(&filled.path(), "node").unwrap_err();
        assert!(error.to_string().contains("would be forgotten"), "{at}: {error}");
        let journal = Journal::open_salvaged(&filled.path(), "node").unwrap();
        let kept: Vec<String> = filled.ask("SELECT id FROM events WHERE kind = 'no_flow' ORDER BY seq");
        assert_eq!(kept.last(), ids.last(), "byte {at}: the last is there");
        assert!(kept.len() >= 19, "byte {at}: {} of 20", kept.len());
        let detail: String =
            filled.ask::<String>("SELECT detail FROM events WHERE kind = 'journal_salvaged'").remove(0);
        let told: Salvage = serde_json::from_str(&detail).unwrap();
        assert_eq!(told.missing, 20 - kept.len() as u64, "byte {at}: {told:?}");
        assert_eq!(fs::read(wal::path_of(&told.set_aside)).unwrap(), damaged);
        journal.close().await;
    }
}

#[tokio::test]
async fn a_transaction_that_was_never_finished_is_no_damage() {
    let filled = Filled::new().await;
    with_a_log(&filled).await;
    let log = wal::path_of(&filled.path());
    let whole = fs::read(&log).unwrap();
    for end in [whole.len() - 1, whole.len() - 4096, 33, 32, 31, 0] {
        fs::write(&log, &whole[..end]).unwrap();
        assert!(!wal::forgets(&filled.path()).unwrap(), "{end}");
    }
    // Of the last transaction, only the end got to the disk.
    fs::write(&log, &whole).unwrap();
    let commit = |frame: usize| whole[32 + frame * 4120 + 4..][..4] != [0; 4];
    let first = (0..frames(&filled) - 1).rev().take_while(|frame| !commit(*frame)).last();
    let first = first.expect("the last transaction has several frames");
    flip(&filled, 32 + first * 4120 + 100);
    assert!(!wal::forgets(&filled.path()).unwrap());
    Journal::open(&filled.path(), "node").unwrap().close().await;
}

#[tokio::test]
async fn records_that_vanish_from_the_end_are_missed() {
    let filled = Filled::new().await;
    let last: i64 = filled.ask::<i64>("SELECT last_seq FROM journal").remove(0);
    Connection::open(filled.path()).unwrap().execute("DELETE FROM checkpoints", []).unwrap();
    let error = Journal::open(&filled.path(), "node").unwrap_err();
    assert!(error.to_string().contains(&format!("should be {last}")), "{error}");
    let journal = Journal::open_salvaged(&filled.path(), "node").unwrap();
    assert_eq!(journal.written().borrow().last_seq, last + 1);
    assert_eq!(missing(&filled.report()), [(last, last)]);
}

#[tokio::test]
async fn an_interrupted_salvage_is_finished_and_never_has_the_other_s_log() {
    let filled = Filled::new().await;
    with_a_log(&filled).await;
    let (damaged, log) = (fs::read(filled.path()).unwrap(), fs::read(wal::path_of(&filled.path())).unwrap());
    let told = salvage(&filled.path(), "node", "test").unwrap();
    let new = fs::read(filled.path()).unwrap();
    let whole = beside(&filled.path(), ".salvaged");
    for (with_log, with_new) in [(true, true), (false, true), (false, false)] {
        fs::write(filled.path(), &damaged).unwrap();
        if with_log {
            fs::write(wal::path_of(&filled.path()), &log).unwrap();
        }
        if with_new {
            fs::write(&whole, &new).unwrap();
        } else {
            fs::write(filled.path(), &new).unwrap();
        }
        let journal = Journal::open(&filled.path(), "node").unwrap();
        assert_eq!(journal.salvages(), 1);
        journal.close().await;
        assert!(!whole.exists() && told.set_aside.exists());
    }
}

#[tokio::test]
async fn of_what_is_no_database_any_more_a_new_one_is_begun_only_when_somebody_says_so() {
    let filled = Filled::new().await;
    let id: String = filled.ask::<String>("SELECT id FROM journal").remove(0);
    filled.destroy(1);
    let damaged = fs::read(filled.path()).unwrap();
    let error = Journal::open_salvaged(&filled.path(), "node").unwrap_err();
    assert!(error.to_string().contains("snowfence audit salvage --begin-anew"), "{error}");
    assert_eq!(fs::read(filled.path()).unwrap(), damaged);
    let told = begin_anew(&filled.path(), "node", &error.to_string()).unwrap();
    assert_eq!(fs::read(&told.set_aside).unwrap(), damaged);
    let journal = Journal::open(&filled.path(), "node").unwrap();
    assert_ne!(journal.id().to_string(), id, "it is another journal");
    assert_eq!(journal.salvages(), 1);
}

#[tokio::test]
async fn rows_that_nobody_could_read_are_missing() {
    let filled = Filled::new().await;
    let connection = Connection::open(filled.path()).unwrap();
    let seqs: Vec<i64> = filled.ask("SELECT seq FROM statements LIMIT 2");
    connection.execute("UPDATE statements SET sql = CAST(x'ff' AS TEXT) WHERE seq = ?1", [seqs[0]]).unwrap();
    connection.execute("UPDATE statements SET objects = '[' WHERE seq = ?1", [seqs[1]]).unwrap();
    drop(connection);
    let told = salvage(&filled.path(), "node", "test").unwrap();
    assert_eq!(told.runs, seqs.iter().map(|seq| (*seq, *seq)).collect::<Vec<_>>());
}
