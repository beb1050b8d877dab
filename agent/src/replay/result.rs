//! Results as tables: what a driver would make of an answer, as far as it is shown.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{arrow, values};
use crate::snowflake::Object;

/// A result, or the beginning of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    pub columns: Vec<Column>,
    /// Empty for NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// There are more rows in the same answer or part.
    pub cut: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    pub name: String,
    /// Lower case.
    pub kind: String,
}

/// What an answer to a statement says.
#[derive(Debug, Default)]
pub struct Answer {
    pub table: Option<Table>,
    /// Rows of all of the result, where it says so.
    pub total: Option<u64>,
    /// Parts that are still to be fetched.
    pub parts: usize,
    /// Snowflake's code and message, of an error or otherwise.
    pub code: String,
    pub message: String,
    pub query_id: String,
}

#[derive(Deserialize)]
struct RowType {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

type Rows = Vec<Vec<Option<Cell>>>;

/// Nearly always a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Cell {
    Text(String),
    Other(Box<RawValue>),
}

/// Reads an answer, a driver's or one of the SQL API; `None` where it is neither. Of its rows no more than `rows` are kept.
pub fn answer(bytes: &[u8], rows: usize) -> Option<Answer> {
    let body = Object::parse(bytes).ok()?;
    let text = |object: &Object, key| object.field::<String>(key).unwrap_or_default();
    let mut answer = Answer {
        code: text(&body, "code"),
        message: text(&body, "message"),
        query_id: text(&body, "statementHandle"),
        ..Answer::default()
    };
    let (types, set) = match body.object("data") {
        Ok(data) if body.raw("success").is_some() => {
            answer.query_id = text(&data, "queryId");
            answer.total = data.field("total").or_else(|| data.field("returned"));
            answer.parts = data.field::<Vec<serde::de::IgnoredAny>>("chunks").map_or(0, |parts| parts.len());
            if let Some(arrow) = data.field::<String>("rowsetBase64").filter(|arrow| !arrow.is_empty()) {
                answer.table = arrow::from_base64(&arrow, rows);
                return Some(answer);
            }
            (data.field::<Vec<RowType>>("rowtype"), data.field::<Rows>("rowset"))
        }
        _ => {
            let metadata = body.object("resultSetMetaData").ok()?;
            answer.total = metadata.field("numRows");
            let parts = metadata.field::<Vec<serde::de::IgnoredAny>>("partitionInfo");
            answer.parts = parts.map_or(0, |parts| parts.len().saturating_sub(1));
            (metadata.field::<Vec<RowType>>("rowType"), body.field::<Rows>("data"))
        }
    };
    let is_answer = types.is_some() || body.raw("success").is_some() || body.raw("code").is_some();
    if let Some(types) = types {
        let columns =
            types.into_iter().map(|RowType { name, kind }| Column { name, kind: kind.to_lowercase() });
        answer.table = Some(table(columns.collect(), set.unwrap_or_default(), rows));
    }
    is_answer.then_some(answer)
}

/// Reads a part of a result, inflated: rows of JSON without the brackets around them, or with what the SQL API has around
/// them, or Arrow.
pub fn part(bytes: &[u8], columns: &[Column], rows: usize) -> Option<Table> {
    let of_json = || {
        let of_api = Object::parse(bytes).ok().and_then(|body| body.field("data"));
        let set: Rows = match of_api {
            Some(set) => set,
            None => serde_json::from_slice(&[b"[", bytes, b"]"].concat()).ok()?,
        };
        Some(table(columns.to_vec(), set, rows))
    };
    of_json().or_else(|| arrow::from_stream(bytes.to_vec(), rows))
}

fn table(columns: Vec<Column>, set: Rows, rows: usize) -> Table {
    let cut = set.len() > rows;
    let rows = set.into_iter().take(rows).map(|row| {
        let kinds = columns.iter().map(|column| column.kind.as_str()).chain(std::iter::repeat(""));
        row.into_iter().zip(kinds).map(|(cell, kind)| cell.map(|cell| cell.shown(kind))).collect()
    });
    Table { rows: rows.collect(), columns, cut }
}

impl Cell {
    fn shown(self, kind: &str) -> String {
        match self {
            Self::Text(text) => values::of_json(kind, &text),
            Self::Other(value) => value.get().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drivers_result_is_a_table() {
        let body = br#"{"data":{"rowtype":[{"name":"N","type":"fixed"},{"name":"D","type":"date"}],"rowset":[["1","0"],[null,"1"],["3","2"]],"total":70,"queryId":"q","chunks":[{},{}]},"code":null,"message":null,"success":true}"#;
        let answer = answer(body, 2).unwrap();
        assert_eq!((answer.total, answer.parts, answer.query_id.as_str()), (Some(70), 2, "q"));
        let table = answer.table.unwrap();
        let cell = |text: &str| Some(text.to_owned());
        assert_eq!(table.columns[1], Column { name: "D".into(), kind: "date".into() });
        assert_eq!(table.rows, [vec![cell("1"), cell("1970-01-01")], vec![None, cell("1970-01-02")]]);
        assert!(table.cut);
        let part = part(br#"["9","3"],["8",null]"#, &table.columns, 9).unwrap();
        assert_eq!(part.rows, [vec![cell("9"), cell("1970-01-04")], vec![cell("8"), None]]);
        assert!(!part.cut);
        assert_eq!(super::part(br#"{"data":[["9","3"],["8",null]]}"#, &table.columns, 9).unwrap(), part);
    }

    #[test]
    fn an_error_and_an_answer_of_the_sql_api_are_read() {
        let refused =
            br#"{"data":{"sqlState":"42501","queryId":"q"},"code":"003001","message":"no","success":false}"#;
        let refused = answer(refused, 9).unwrap();
        assert_eq!((refused.code.as_str(), refused.message.as_str()), ("003001", "no"));
        assert!(refused.table.is_none());
        let api = br#"{"code":"090001","statementHandle":"h","resultSetMetaData":{"numRows":1,"rowType":[{"name":"B","type":"boolean"}],"partitionInfo":[{},{}]},"data":[["1"]]}"#;
        let api = answer(api, 9).unwrap();
        assert_eq!((api.total, api.parts, api.query_id.as_str()), (Some(1), 1, "h"));
        assert_eq!(api.table.unwrap().rows, [[Some("true".to_owned())]]);
        for other in [&b"{}"[..], b"[]", b"event: x", br#"{"name":"t"}"#] {
            assert!(answer(other, 9).is_none());
        }
    }
}
