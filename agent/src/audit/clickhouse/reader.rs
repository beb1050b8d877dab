//! What ClickHouse has, row by row.

use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::batch::record_of;
use super::connection::Connection;
use super::ddl::Target;
use super::{AuditError, Settings};

/// No row is longer.
const LONGEST: usize = 256 << 20;

/// Reads rows of the trail's tables.
pub(in crate::audit) struct Reader<'r> {
    runtime: &'r Runtime,
    pub(super) connection: Connection,
    pub(super) target: Target,
}

impl<'r> Reader<'r> {
    pub(in crate::audit) fn new(settings: &Settings, runtime: &'r Runtime) -> Result<Self, AuditError> {
        Ok(Self { runtime, connection: Connection::new(settings)?, target: settings.target()? })
    }

    /// A table's name in a question.
    pub(in crate::audit) fn name(&self, table: &str) -> String {
        self.target.named(table)
    }

    /// The rows of a question, each of as many texts as it has columns.
    pub(super) fn texts<const COLUMNS: usize>(
        &self,
        sql: &str,
    ) -> Result<Vec<[String; COLUMNS]>, AuditError> {
        self.runtime.block_on(self.connection.rows(sql))
    }

    /// Hands over the rows of a table: the journal that each is of, its place there, and its columns.
    pub(in crate::audit) fn each(
        &self,
        table: &str,
        condition: &str,
        mut take: impl FnMut(Uuid, i64, Map<String, Value>) -> Result<(), AuditError>,
    ) -> Result<(), AuditError> {
        let sql = format!(
            "SELECT {} REPLACE (toUnixTimestamp64Micro(time) AS time) FROM {} FINAL WHERE {condition} \
             SETTINGS output_format_json_quote_64bit_integers = 0, asterisk_include_materialized_columns = 0{}",
            record_of(table),
            self.target.named(table),
            // All rows of a journal are on one shard.
            if self.target.cluster.is_some() { ", distributed_product_mode = 'local'" } else { "" }
        );
        let foreign = || self.connection.unintelligible();
        let mut line = |line: &[u8]| {
            let row: Map<String, Value> = serde_json::from_slice(line).map_err(|_| foreign())?;
            let journal = row.get("journal").and_then(|journal| journal.as_str()?.parse().ok());
            let seq = row.get("seq").and_then(Value::as_i64);
            take(journal.ok_or_else(foreign)?, seq.ok_or_else(foreign)?, row)
        };
        self.runtime.block_on(async {
            let query = self.connection.endpoint().server.query(&sql.replace('?', "??"));
            let mut answer = self.connection.answered(async { query.fetch_bytes("JSONEachRow") }).await?;
            let mut rest = Vec::new();
            while let Some(bytes) = self.connection.answered(answer.next()).await? {
                rest.extend_from_slice(&bytes);
                let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                let more = rest.split_off(whole);
                for bytes in rest.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    line(bytes)?;
                }
                rest = more;
                if rest.len() > LONGEST {
                    return Err(foreign());
                }
            }
            if rest.is_empty() { Ok(()) } else { line(&rest) }
        })
    }
}
