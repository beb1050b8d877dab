//! What ClickHouse has of a journal, to be verified.

use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::connection::Connection;
use super::reader::Reader;
use super::{AuditError, Settings};
use crate::audit::chain::{Checkpoint, Leaf, Problem, SALVAGES, Salvaged, Source, leaf, members};
use crate::audit::retention::Announced;
use crate::audit::schema::RECORDS;

/// Records that are asked for at once: of each, a digest stays in memory.
const WINDOW: i64 = 200_000;

/// A journal that ClickHouse knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub node: String,
    pub journal: Uuid,
}

/// The records of one journal in ClickHouse.
pub struct DeliveredSource<'r> {
    reader: Reader<'r>,
    journal: Uuid,
    /// The records in (`after`, `end`].
    window: Window,
}

#[derive(Default)]
struct Window {
    after: i64,
    end: i64,
    leaves: Vec<Leaf>,
}

/// The journals that ClickHouse has records of.
pub async fn delivered(settings: &Settings) -> Result<Vec<Delivered>, AuditError> {
    let connection = Connection::new(settings)?;
    let target = settings.target()?;
    let tables = RECORDS.map(|table| format!("SELECT DISTINCT node, journal FROM {}", target.named(table)));
    let sql =
        format!("SELECT DISTINCT node, journal FROM ({}) ORDER BY node, journal", tables.join(" UNION ALL "));
    let rows = connection.rows(&sql).await?;
    let journals = rows
        .into_iter()
        .filter_map(|[node, journal]| Some(Delivered { node, journal: journal.parse().ok()? }));
    Ok(journals.collect())
}

impl<'r> DeliveredSource<'r> {
    pub fn new(settings: &Settings, journal: Uuid, runtime: &'r Runtime) -> Result<Self, AuditError> {
        Ok(Self { reader: Reader::new(settings, runtime)?, journal, window: Window::default() })
    }

    fn load(&mut self, after: i64) -> Result<(), AuditError> {
        let end = after.saturating_add(WINDOW);
        let mut leaves = Vec::new();
        for table in RECORDS {
            let condition = format!("seq > {after} AND seq <= {end} ORDER BY seq LIMIT {}", 2 * WINDOW);
            self.rows(table, &condition, |seq, row| {
                let digest = leaf(&members(self.journal, table, row));
                leaves.push(Leaf { seq, digest, is_checkpoint: table == "checkpoints" });
            })?;
        }
        leaves.sort_by_key(|leaf| leaf.seq);
        self.window = Window { after, end, leaves };
        Ok(())
    }

    /// The first record after this one.
    fn first_after(&self, seq: i64) -> Result<Option<i64>, AuditError> {
        let firsts = RECORDS.map(|table| {
            let (table, journal) = (self.reader.target.named(table), self.journal);
            format!("SELECT min(seq) AS first, count() AS rows FROM {table} WHERE journal = '{journal}' AND seq > {seq}")
        });
        let sql = format!(
            "SELECT min(first) FROM ({}) WHERE rows > 0 HAVING count() > 0",
            firsts.join(" UNION ALL ")
        );
        let rows = self.reader.texts(&sql)?;
        // What is beyond all numbers of a journal is none of its.
        Ok(rows.first().and_then(|[first]: &[String; 1]| first.parse().ok()))
    }

    /// Hands over the rows of a table that are of this journal.
    fn rows(
        &self,
        table: &str,
        condition: &str,
        mut each: impl FnMut(i64, Map<String, Value>),
    ) -> Result<(), AuditError> {
        let condition = format!("journal = '{}' AND {condition}", self.journal);
        self.reader.each(table, &condition, |_, seq, row| {
            each(seq, row);
            Ok(())
        })
    }
}

impl Source for DeliveredSource<'_> {
    fn journal(&self) -> Uuid {
        self.journal
    }

    fn range(&mut self) -> Result<Option<(i64, i64)>, AuditError> {
        let ends = RECORDS.map(|table| {
            let (table, journal) = (self.reader.target.named(table), self.journal);
            format!("SELECT min(seq) AS first, max(seq) AS last, count() AS rows FROM {table} WHERE journal = '{journal}'")
        });
        let sql = format!(
            "SELECT min(first), max(last) FROM ({}) WHERE rows > 0 HAVING count() > 0",
            ends.join(" UNION ALL ")
        );
        let rows = self.reader.texts(&sql)?;
        let ends = rows
            .first()
            .map(|[first, last]: &[String; 2]| Option::zip(first.parse().ok(), last.parse().ok()));
        match ends {
            Some(None) => Err(self.reader.connection.unintelligible()),
            ends => Ok(ends.flatten()),
        }
    }

    /// What the schema is, `snowfence schema status` says.
    fn problems(&mut self) -> Result<Vec<Problem>, AuditError> {
        Ok(Vec::new())
    }

    fn signed(&mut self) -> Result<i64, AuditError> {
        let table = self.reader.target.named("checkpoints");
        let sql = format!("SELECT toString(max(last_seq)) FROM {table} WHERE journal = '{}'", self.journal);
        let rows = self.reader.texts(&sql)?;
        let signed = rows.first().and_then(|[signed]: &[String; 1]| signed.parse().ok());
        signed.ok_or_else(|| self.reader.connection.unintelligible())
    }

    fn salvages(&mut self) -> Result<Vec<Salvaged>, AuditError> {
        let condition = format!("kind = 'journal_salvaged' ORDER BY seq DESC LIMIT {SALVAGES}");
        let mut salvages = Vec::new();
        self.rows("events", &condition, |seq, row| {
            let time = row.get("time").and_then(Value::as_i64).unwrap_or_default();
            let detail = row.get("detail").and_then(Value::as_str).unwrap_or_default();
            salvages.push(Salvaged::of(seq, time, detail));
        })?;
        Ok(salvages)
    }

    /// What left the node's journal in its time is here all the same.
    fn removal(&mut self, _signed: i64) -> Result<Option<Announced>, AuditError> {
        Ok(None)
    }

    fn checkpoints(&mut self, after: u64, most: u32) -> Result<Vec<Checkpoint>, AuditError> {
        let condition = format!("number > {after} ORDER BY number LIMIT {most}");
        let mut checkpoints = Vec::new();
        self.rows("checkpoints", &condition, |_, row| {
            checkpoints.push(serde_json::from_value(Value::Object(row)));
        })?;
        checkpoints.into_iter().collect::<Result<_, _>>().map_err(|_| self.reader.connection.unintelligible())
    }

    fn leaves(&mut self, after: i64, end: i64, most: usize) -> Result<Vec<Leaf>, AuditError> {
        if after < self.window.after || after >= self.window.end || (end != i64::MAX && end > self.window.end)
        {
            self.load(after)?;
        }
        loop {
            let wanted = |leaf: &&Leaf| leaf.seq > after && leaf.seq <= end;
            let found: Vec<Leaf> = self.window.leaves.iter().filter(wanted).take(most).copied().collect();
            if !found.is_empty() || end <= self.window.end {
                return Ok(found);
            }
            // Far behind the last one there may be others.
            match self.first_after(self.window.end)? {
                Some(first) if first <= end => self.load(first - 1)?,
                _ => return Ok(found),
            }
        }
    }
}
