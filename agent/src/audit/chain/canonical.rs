//! A record as it is signed: one JSON object, whose form does not depend on where the record is kept.
//!
//! Its members are the columns of the record's row, with `table` and `journal`, in the order of their names, without white
//! space, in UTF-8, with no more escapes than JSON demands. Numbers are integers, times are microseconds since the
//! epoch. A column that is null or an empty list is left out: one that is added later changes no record before it.
//! `digests` of a checkpoint is left out too, as its `root` stands for it.

use std::collections::BTreeMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use serde_json::Value;
use uuid::Uuid;

use super::tree::{self, Digest};
use crate::audit::AuditError;
use crate::audit::schema::RECORDS;

/// Columns that hold lists of texts.
const LISTS: [&str; 4] = ["actions", "features", "groups", "objects"];
const FLAGS: [&str; 1] = ["describe_only"];

/// The members of a record.
pub type Members = BTreeMap<String, Value>;

/// A record's place and the digest of its canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub seq: i64,
    pub digest: Digest,
    /// It is a checkpoint.
    pub is_checkpoint: bool,
}

/// The members of a row: its columns and their values, as whatever keeps it has them.
pub fn members(journal: Uuid, table: &str, columns: impl IntoIterator<Item = (String, Value)>) -> Members {
    let columns = columns.into_iter().filter_map(|(name, value)| {
        let value = match value {
            Value::String(text) if LISTS.contains(&name.as_str()) => {
                // What is no list any more was one when it was signed.
                serde_json::from_str::<Vec<String>>(&text).map_or(Value::String(text), Value::from)
            }
            Value::Number(number) if FLAGS.contains(&name.as_str()) => {
                Value::Bool(number.as_i64() != Some(0))
            }
            value => value,
        };
        let is_absent = value.is_null() || value.as_array().is_some_and(Vec::is_empty) || name == "digests";
        (!is_absent).then_some((name, value))
    });
    let own = [("table", table.to_owned()), ("journal", journal.to_string())];
    let own = own.map(|(name, value)| (name.to_owned(), Value::String(value)));
    columns.chain(own).collect()
}

/// The canonical form.
pub fn encode(members: &Members) -> Vec<u8> {
    // A map of texts to values can always be written.
    serde_json::to_vec(members).unwrap_or_default()
}

/// A text of a record.
pub fn text<'m>(members: &'m Members, name: &str) -> Option<&'m str> {
    members.get(name)?.as_str()
}

/// An identifier of a record.
pub fn id(members: &Members, name: &str) -> Option<Uuid> {
    text(members, name)?.parse().ok()
}

/// A number of a record.
pub fn integer(members: &Members, name: &str) -> Option<i64> {
    members.get(name)?.as_i64()
}

/// The digest that stands for a record.
pub fn leaf(members: &Members) -> Digest {
    tree::leaf(&encode(members))
}

/// The first records of a journal in (`after`, `end`], in their order, no more than `most`.
pub(super) fn leaves(
    connection: &Connection,
    journal: Uuid,
    after: i64,
    end: i64,
    most: usize,
) -> Result<Vec<Leaf>, AuditError> {
    let limit = i64::try_from(most).unwrap_or(i64::MAX);
    let mut leaves = Vec::new();
    for table in RECORDS {
        let sql = format!("SELECT * FROM {table} WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3");
        each(connection, journal, table, &sql, (after, end, limit), |seq, members| {
            let digest = leaf(&members);
            leaves.push(Leaf { seq, digest, is_checkpoint: table == "checkpoints" });
        })
        .map_err(AuditError::read)?;
    }
    leaves.sort_by_key(|leaf| leaf.seq);
    leaves.truncate(most);
    Ok(leaves)
}

/// Hands over each row of a query on one table.
pub fn each(
    connection: &Connection,
    journal: Uuid,
    table: &str,
    sql: &str,
    parameters: impl rusqlite::Params,
    mut take: impl FnMut(i64, Members),
) -> rusqlite::Result<()> {
    let mut query = connection.prepare_cached(sql)?;
    let names: Vec<String> = query.column_names().map(str::to_owned).collect();
    let mut rows = query.query(parameters)?;
    while let Some(row) = rows.next()? {
        take(row.get("seq")?, members(journal, table, columns(row, &names)?));
    }
    Ok(())
}

fn columns(row: &Row<'_>, names: &[String]) -> rusqlite::Result<Vec<(String, Value)>> {
    let column = |(index, name): (usize, &String)| {
        let value = match row.get_ref(index)? {
            ValueRef::Integer(number) => number.into(),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned().into(),
            ValueRef::Null => Value::Null,
            // No table has a column of these: whoever put one there changed the record.
            ValueRef::Real(_) | ValueRef::Blob(_) => Value::Object(serde_json::Map::new()),
        };
        Ok((name.clone(), value))
    };
    names.iter().enumerate().map(column).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_form_is_one_whoever_keeps_the_record() {
        let id = Uuid::from_u128(7);
        let journal = [
            ("sql", json!("select 'ä\u{0}\u{1f}\u{7f}/\"\\\u{2028}'\n")),
            ("groups", json!("[\"a\",\"b\"]")),
            ("features", json!("[]")),
            ("describe_only", json!(1)),
            ("rows", json!(null)),
            ("seq", json!(3)),
        ];
        let elsewhere = [
            ("seq", json!(3)),
            ("describe_only", json!(true)),
            ("features", json!([])),
            ("groups", json!(["a", "b"])),
            ("sql", json!("select 'ä\u{0}\u{1f}\u{7f}/\"\\\u{2028}'\n")),
        ];
        let encode = |columns: &[(&str, Value)]| {
            let columns = columns.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            String::from_utf8(encode(&members(id, "statements", columns))).unwrap()
        };
        assert_eq!(encode(&journal), encode(&elsewhere));
        assert_eq!(
            encode(&journal),
            "{\"describe_only\":true,\"groups\":[\"a\",\"b\"],\"journal\":\"00000000-0000-0000-0000-000000000007\",\"seq\":3,\
             \"sql\":\"select 'ä\\u0000\\u001f\u{7f}/\\\"\\\\\u{2028}'\\n\",\"table\":\"statements\"}"
        );
    }

    #[test]
    fn what_is_no_list_any_more_is_another_record() {
        let digest =
            |groups: &str| encode(&members(Uuid::nil(), "sessions", [("groups".to_owned(), json!(groups))]));
        assert_ne!(digest("[\"a\"]"), digest("[\"a\""));
        assert_ne!(digest("[]"), digest(""));
    }
}
